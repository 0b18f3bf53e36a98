"""Put runs side by side: python -m jaxgen compare runs/vae_mnist runs/gan_mnist --out comparison.html"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxgen import cli
from jaxgen.comparison import Run, page, table
from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.terminal import say


@dataclass(frozen=True)
class Compare:
    """Settings that differ, figures, curves and samples of several runs, side by side."""

    others: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Further run folders, of any experiment, finished or not."""
    out: Path = Path("comparison.html")
    """Page to write."""


def run(directory: Path, args: list[str]) -> None:
    from jaxgen.folder import followed

    own = cli.parse(Compare, args, program=f"python -m jaxgen compare {directory}")
    directories = [directory, *map(followed, own.others)]
    if len(directories) < 2:
        raise UserError("compare needs at least two run folders: python -m jaxgen compare RUN RUN ...")
    if len({one.resolve() for one in directories}) < len(directories):
        raise UserError(f"compare was given a run twice: {' '.join(map(str, directories))}")
    if own.out.suffix != ".html":
        raise UserError(f"--out {own.out}: expected the name of a page, such as comparison.html")
    runs = [read(one) for one in directories]
    try:
        write_atomically(own.out, page(runs).encode(errors="replace"))
    except OSError as error:
        raise UserError(f"cannot write {own.out} ({error.strerror}): give another --out") from None
    say(f"{table(runs)}\n\n{own.out}: all that, with curves and samples")


def read(directory: Path) -> Run:
    """What a run folder holds, finished or not, whether or not its experiment is still there.

    Raises:
      UserError: it is no run folder, or was edited.
    """
    from jaxgen import folder, log

    record = folder.record_in(directory)
    rows = log.read(directory, whole=True)
    measured = next((row for row in reversed(rows) if "figures" in row), {})
    figures, at = measured.get("figures", {}), measured.get("step", 0)
    step, steps = max((row["step"] for row in rows), default=0), record.config.get("steps", "?")
    state = f"measured at step {at:,}" if figures else "no figures yet"
    about = {"experiment": record.experiment, "data": {"used": record.data.name, "digest": record.data.digest[:12]}}
    config = {name: value for name, value in record.config.items() if name != "workdir"}
    about |= {"device": record.device, "versions": record.versions}
    settings = {name: value for part in (about, config) for name, value, _ in folder.differences(part, {})}
    warnings = [f"step {row['step']:,}: {row['warning']}" for row in rows if "warning" in row]
    return Run(
        name=str(directory),
        what=f"{record.experiment}, {record.data.name}",
        state=state if figures and at == step else f"{state}, at step {step:,} of {steps}",
        command=record.command,
        figures={
            name: _figure(value, seeds=1 if name.endswith(" alone") else record.config.get("seeds", 1))
            for name, value in figures.items()
        },
        settings=settings,
        rows=rows,
        exhibits={caption: folder.shown(paths[-1]) for caption, paths in folder.exhibits(directory).items()},
        notes=[*([record.notice] if record.notice else []), *warnings],
    )


def _figure(value: list[float], *, seeds: int) -> str:
    """With a 95 % interval where the error is a standard error."""
    from jaxgen.evaluate import Estimate

    mean, error = value
    shown = str(Estimate(mean, error))
    if not error > 0 or seeds != 1:
        return shown
    digits = len(shown.partition(" ")[0].partition(".")[2])
    bounds = f"({mean - 1.96 * error:.{digits}f} to {mean + 1.96 * error:.{digits}f})"
    return " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in (shown, bounds))
