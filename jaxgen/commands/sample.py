"""Draw samples from a trained model: python -m jaxgen sample runs/vae_mnist --num 64 --out grid.png"""

from dataclasses import dataclass
from pathlib import Path

from jaxgen.commands.flags import parse
from jaxgen.commands.making import Files, Trained, check_size, deliver, opened, stamps
from jaxgen.ranges import Index, Seed, UpTo1M
from jaxgen.terminal import say


@dataclass(frozen=True)
class Flags:
    """Draw samples."""

    num: UpTo1M | None = None
    """Number of samples (default: 64, or 1 of texts)."""
    out: Path | None = None
    """File to write (default: samples.png or .wav; texts and tables are printed), or a folder for one file per
    sample."""
    seed: Seed = 0
    """Seed; the same seed gives the same samples."""
    member: Index = 0
    """Index of the model, of a run with several --seeds."""
    checkpoint: str = "latest"
    """Checkpoint to use: latest, best (of the lowest held-out loss) or a step."""


def files_of(trained: Trained, own: Flags) -> Files:
    """One file of all samples, or one of each where --out is a folder."""
    from jaxgen import report
    from jaxgen.experiment import draw

    experiment, num = trained.experiment, number(trained, own)
    check_size(trained, num, f"--num {num}")
    samples = draw(experiment, trained.params, trained.key, num)
    if own.out is None or own.out.suffix:
        return report.files(experiment.render(samples))
    names = [f"{i:0{len(str(num))}d}" for i in range(1, num + 1)]
    each = ((name, report.files(experiment.render(samples[i : i + 1]))) for i, name in enumerate(names))
    return {f"{name}{suffix}": content for name, found in each for suffix, content in found.items()}


def number(trained: Trained, own: Flags) -> int:
    """How many samples."""
    return own.num or (1 if trained.experiment.stream else 64)


def run(directory: Path, args: list[str]) -> None:
    from jaxgen import folder

    found = folder.load_run(directory)
    own, controls = parse(Flags, found[-1].sample, f"sample {directory}", args)
    trained = opened(found, controls, member=own.member, seed=own.seed, checkpoint=own.checkpoint)
    stream = trained.experiment.stream
    if stream and own.out is None and own.num in (None, 1):
        for piece in stream(trained.params, trained.key):
            say(piece, end="")
        say()
        return
    files = files_of(trained, own)
    first = next(iter(files))
    if first in (".txt", ".csv") and own.out is None:
        say(files[first].decode())
        return
    shown = deliver(own.out or Path(f"samples{first}"), stamps("sample", trained, own, files))
    num = number(trained, own)
    say(f"{num} sample{'s' if num > 1 else ''} of {directory} at step {trained.step}: {', '.join(map(str, shown))}")
