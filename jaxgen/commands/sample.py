"""Draw samples from a trained model: python -m jaxgen sample runs/vae_mnist --num 64 --out grid.png"""

from dataclasses import dataclass, replace
from pathlib import Path

from jaxgen.commands.flags import check_member, parse
from jaxgen.errors import UserError
from jaxgen.files import write_atomically


@dataclass(frozen=True)
class Sample:
    """Draw samples."""

    num: int | None = None
    """How many (default: 64, or 1 where samples are texts)."""
    out: Path | None = None
    """The file to write (default: samples.png, or .wav; texts and tables go to the terminal), or a folder for a file of
    each."""
    seed: int = 0
    """The same seed gives the same samples."""
    member: int = 0
    """Which model, of a run that trained several --seeds."""


def run(directory: Path, args: list[str]) -> None:
    import jax

    from jaxgen import folder, report
    from jaxgen.experiment import built, draw, members, restore_params
    from jaxgen.run import cache_compilations

    record, module, config = folder.load_run(directory)
    own, controls = parse(Sample, config.sample, f"sample {directory}", args)
    if own.num is not None and own.num < 1:
        raise UserError(f"--num {own.num}: expected at least 1")
    if own.seed < 0:
        raise UserError(f"--seed {own.seed}: expected at least 0")
    check_member(own.member, config.seeds)
    cache_compilations()
    experiment = built(module.build, replace(config, sample=controls), record.data)
    step, params = restore_params(config, experiment.model, record.data)
    params, key = members(config, params)[own.member], jax.random.key(own.seed)
    if experiment.stream and own.out is None and own.num in (None, 1):
        for piece in experiment.stream(params, key):
            print(piece, end="", flush=True)
        print()
        return
    num = own.num or (1 if experiment.stream else 64)
    samples = draw(experiment, params, key, num)
    if own.out is not None and not own.out.suffix:
        names, shown = [f"{i:0{len(str(num))}d}" for i in range(1, num + 1)], [own.out]
        each = ((name, report.files(experiment.render(samples[i : i + 1]))) for i, name in enumerate(names))
        files = {own.out / f"{name}{suffix}": content for name, found in each for suffix, content in found.items()}
    else:
        found = report.files(experiment.render(samples))
        first = next(iter(found))
        if first in (".txt", ".csv") and own.out is None:
            print(found[first].decode())
            return
        out = own.out or Path(f"samples{first}")
        asked = out.suffix if out.suffix in found else first
        files = {out if suffix == asked else out.with_suffix(suffix): content for suffix, content in found.items()}
        shown = list(files)
    for path, content in files.items():
        try:
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): give another --out") from None
    print(f"{num} sample{'s' if num > 1 else ''} of {directory} at step {step}: {', '.join(map(str, shown))}")
