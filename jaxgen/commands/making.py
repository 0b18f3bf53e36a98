"""What the commands that make files share: a trained model opened, and files written that say how they were made."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jaxgen.commands.flags import Where
from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.terminal import say

DEFAULT = Where()
MOST_BYTES = 2 << 30  # of the samples of one command
Files = dict[str, bytes]  # by what is added to --out: a suffix, or the name of a file in a folder


class Trained(NamedTuple):
    """A model of a run folder, with controls of the moment."""

    directory: Path
    record: Any
    config: Any
    module: Any
    experiment: Any
    step: int
    checkpoint: str
    params: Any
    seed: int
    where: Where

    @property
    def key(self) -> Any:
        from jaxgen.keys import key_of

        return key_of(self.seed)


def opened(
    run: tuple[Any, Any, Any],
    controls: Any,
    *,
    member: int,
    seed: int = 0,
    checkpoint: str = "latest",
    step: int | None = None,
    where: Where = DEFAULT,
) -> Trained:
    """The model of a checkpoint, or of the newest up to a step.

    Args:
      run: what `folder.load_run` says.
      controls: of the family.
      member: which model, of a run that trained several --seeds.
      seed: of what is drawn.
      checkpoint: "latest", "best" or a step, as --checkpoint says.
      step: the last that is wished for.
      where: the data are read from, if a command needs them.

    Raises:
      UserError: there is no such member, or there is no checkpoint.
    """
    from jaxgen.checkpoint import digest
    from jaxgen.experiment import built, members, restore_params
    from jaxgen.run import cache_compilations

    record, module, config = run
    if member >= config.seeds:
        raise UserError(
            f"--member {member}: expected 0 to {config.seeds - 1}, since the run has --seeds {config.seeds}"
        )
    cache_compilations()
    config = replace(config, sample=controls)
    experiment = built(module.build, config, record.data)
    found, params = restore_params(config, experiment.model, record.data, which=checkpoint, most=step)
    return Trained(
        directory=config.workdir,
        record=record,
        config=config,
        module=module,
        experiment=experiment,
        step=found,
        checkpoint=digest(config.workdir / "checkpoints", found),
        params=members(config, params)[member],
        seed=seed,
        where=where,
    )


def check_size(trained: Trained, count: int, flags: str) -> None:
    """Raise a UserError if `count` samples take more than `MOST_BYTES` bytes in their stored form."""
    each = max(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in trained.record.data.entries.values())
    if count * each > MOST_BYTES:
        raise UserError(
            f"{flags}: {count:,} samples of {each:,} bytes are more than {MOST_BYTES:,} bytes: "
            f"ask for at most {MOST_BYTES // each:,} at once, and again with another --seed"
        )


def stamps(command: str, trained: Trained, own: Any, files: Files) -> Files:
    """The files, each with its provenance."""
    from jaxgen import folder
    from jaxgen.provenance import Provenance, stamped

    made = Provenance(
        command=command,
        run=str(trained.directory.absolute()),
        experiment=trained.record.experiment,
        step=trained.step,
        checkpoint=trained.checkpoint,
        flags=plain(own),
        controls=plain(trained.config.sample),
        part="",
        versions=folder.versions(),
        device=folder.device(),
    )
    return {
        part: stamped(Path(part).suffix or part, content, str(replace(made, part=part)))
        for part, content in files.items()
    }


def plain(flags: Any) -> dict[str, Any]:
    """As it will be read again."""
    return msgspec.json.decode(msgspec.json.encode(asdict(flags), enc_hook=str))


def deliver(out: Path, files: Files) -> list[Path]:
    """Writes files beside each other, or into a folder; returns what there is to name.

    Raises:
      UserError: they cannot be written, or are of other formats than `out` says.
    """
    in_folder = not any(part.startswith(".") for part in files)
    if not in_folder and out.suffix and out.suffix not in files:
        raise UserError(f"--out {out}: expected a name that ends in {' or '.join(files)}")
    asked = out.suffix if out.suffix in files else next(iter(files))
    for part, content in files.items():
        path = out / part if in_folder else out if part == asked else out.with_suffix(part)
        try:
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): give another --out") from None
    return [out] if in_folder else [out if part == asked else out.with_suffix(part) for part in files]


def make(
    command: str,
    run: tuple[Any, Any, Any],
    own: Any,
    controls: Any,
    files_of: Callable[[Trained, Any], Files],
    where: Where,
) -> None:
    """Opens a run, makes files and writes them to `own.out`."""
    trained = opened(run, controls, member=own.member, seed=own.seed, checkpoint=own.checkpoint, where=where)
    files = stamps(command, trained, own, files_of(trained, own))
    out = own.out or Path(command)
    out = out if out.suffix else out.with_suffix(next(iter(files)))  # `reproduce` goes by it
    shown = deliver(out, files)
    say(f"{trained.directory} at step {trained.step}: {', '.join(map(str, shown))}")
