"""Make a file again that a run folder's model made, and compare: python -m jaxgen reproduce grid.png"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jaxgen import cli
from jaxgen.commands.flags import Where
from jaxgen.commands.making import Files, Trained, opened
from jaxgen.errors import UserError
from jaxgen.terminal import say

MOST_BYTES = 1 << 30  # of a file


@dataclass(frozen=True)
class Flags(Where):
    """Make a file again, by what it says of itself, and compare the two byte by byte."""

    run: Path | None = None
    """The run folder, if it no longer lies where the file says, or lies outside the working directory."""
    out: Path | None = None
    """File to write the reproduction to (default: none)."""


def run(path: Path, args: list[str], makers: Mapping[str, tuple[type, Callable[[Trained, Any], Files]]]) -> None:
    """Says that the file came out the same, or raises UserError with what differs.

    Args:
      path: the file.
      args: what follows it.
      makers: by command, its flags and what makes its files.
    """
    from jaxgen import folder
    from jaxgen.files import read_file, write_atomically
    from jaxgen.provenance import stamp_of, stamped

    own = cli.parse(Flags, args, program=f"python -m jaxgen reproduce {path}")
    try:
        content = read_file(path, MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give a file that jaxgen wrote") from None
    try:
        then = stamp_of(path.suffix, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if then.command not in makers:
        raise UserError(f"{path} was made by {then.command!r}, which makes no files today: see python -m jaxgen")
    flags, files_of = makers[then.command]
    directory = own.run or Path(then.run)
    if own.run is None and not own.trust and not directory.resolve().is_relative_to(Path.cwd()):
        raise UserError(
            f"{path} says that the run folder {directory} made it, which does not lie below the working directory: "
            "name the run folder with --run, or give --trust if you know where the file comes from"
        )
    record, module, config = folder.load_run(directory)
    if record.experiment != then.experiment:
        raise UserError(f"{path} is of the experiment {then.experiment!r}, {directory} of {record.experiment!r}")
    try:
        options = _converted(then.flags, flags)
        controls = _converted(then.controls, type(config.sample))
    except msgspec.ValidationError as error:
        raise UserError(f"{path} was made with flags that {then.command} does not have today: {error}") from None
    trained = opened(
        (record, module, config), controls, member=options.member, seed=options.seed, step=then.step, where=own
    )
    if trained.checkpoint != then.checkpoint:
        raise UserError(
            f"{path} was made by the checkpoint {then.checkpoint[:12]} of step {then.step}, and {directory} holds "
            f"{trained.checkpoint[:12]} of step {trained.step}: the model is another"
        )
    made = files_of(trained, options)
    again = stamped(path.suffix, made[then.part], str(then)) if then.part in made else b""
    if own.out is not None:
        try:
            write_atomically(own.out, again)
        except OSError as error:
            raise UserError(f"cannot write {own.out} ({error.strerror}): give another --out") from None
    if again == content:
        say(f"{path} is reproduced, bit for bit: {then.command} of {directory} at step {then.step}")
        return
    here = folder.versions() | {"device": folder.device()}
    changes = [f"{n} was {a}, is {b}" for n, a, b in folder.differences(then.versions | {"device": then.device}, here)]
    raise UserError(
        f"{path} comes out differently ({len(content):,} and {len(again):,} bytes): "
        + ("; ".join(changes) or "with the same packages and device, so the file was changed, or the code was")
    )


def _converted(values: dict[str, Any], to: type) -> Any:
    return msgspec.convert(values, to, dec_hook=lambda kind, value: kind(value))
