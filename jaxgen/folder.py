"""A run folder: whose it is, how it came to be, and how to rebuild from it what it holds."""

import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import msgspec

from jaxgen import __version__, processes
from jaxgen.checkpoint import remove_unfinished, saved_steps
from jaxgen.config import Config, check
from jaxgen.data.source import Dataset, Spec
from jaxgen.errors import UserError
from jaxgen.files import PART, check_contained, read_file, read_json, write_atomically
from jaxgen.report import SUFFIXES

LOCK = ".lock"
CARD = "MODEL_CARD.md"
LOG = "log.txt"  # what a run said once nobody read it
LATEST = "latest"  # a link beside the folders of runs/


@dataclass(frozen=True)
class Stretch:
    """A part of a training: from step `start` with the schedules of `steps` steps."""

    start: int
    steps: int
    command: str
    versions: dict[str, str]
    device: str


@dataclass(frozen=True)
class Record:
    """config.json: how a run folder came to be."""

    experiment: str
    command: str
    config: dict[str, Any]
    data: Spec
    source: str
    notice: str | None
    versions: dict[str, str]
    device: str
    history: tuple[Stretch, ...] = ()  # more than one where --steps changed on the way

    def stretch(self, start: int = 0) -> Stretch:
        """What this command trains, from a step on."""
        return Stretch(start, self.config["steps"], self.command, self.versions, self.device)


def load_run(directory: Path) -> tuple[Record, ModuleType, Config]:
    """Reads a run folder: its record, the module of its experiment, its configuration.

    Raises:
      UserError: it is no run folder, a part of it lies elsewhere, or its experiment does not exist or has changed.
    """
    record = record_in(directory)
    name = record.experiment
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or importlib.util.find_spec(f"experiments.{name}") is None:
        raise UserError(f"{directory}/config.json names the experiment {name!r}, and experiments/ holds none of it")
    module = importlib.import_module(f"experiments.{name}")
    if not all(hasattr(module, part) for part in ("Config", "load", "build")):
        raise UserError(f"{directory}/config.json names the experiment {name!r}, and experiments.{name} is none")
    try:
        config = msgspec.convert(record.config, module.Config, dec_hook=lambda kind, value: kind(value))
        check(config)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"{directory}/config.json does not fit today's experiments.{name}: {error}") from None
    return record, module, replace(config, workdir=directory)


def record_of(experiment: str, command: str, config: Config, data: Dataset) -> Record:
    """What a run writes down about itself."""
    return Record(experiment, command, plain(config), data.spec, data.source, data.notice, versions(), device())


def plain(config: Config) -> dict[str, Any]:
    """A configuration as it will be read again from config.json."""
    return msgspec.json.decode(msgspec.json.encode(config, enc_hook=str))


def read_record(directory: Path) -> Record | None:
    path = directory / "config.json"
    try:
        record = read_json(path, Record) if path.exists() else None
        if record is not None and b"\\u0000" in msgspec.json.encode((record.experiment, record.config)):
            raise ValueError("it holds the character NUL, which no path may")
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not that of a run ({error}): give another --workdir") from None
    if record is not None and isinstance(record.config.get("data"), dict):
        record.config["data"].setdefault("validation", 0.0)  # runs older than the flag held nothing out
    return record


def record_in(directory: Path) -> Record:
    """That of a run folder; a UserError where it is none, or where a part of it lies elsewhere."""
    record = read_record(directory)
    if record is None:
        raise UserError(f"{directory} is not a run folder (it has no config.json): give the --workdir of a run")
    check_contained(directory)
    return record


def known_as(directory: Path, spec: Spec) -> str:
    """Name of the data: that which the folder has for the same data, if they were moved since."""
    record = read_record(directory)
    return record.data.name if record and record.data.digest == spec.digest else spec.name


def exhibits(directory: Path) -> dict[str, list[Path]]:
    """The files that evaluations left, by caption, the newest last."""
    found: dict[str, list[Path]] = {}
    files = [path for suffix in SUFFIXES for path in (directory / "samples").glob(f"*_*{suffix}")]
    files = [path for path in files if path.is_file() and path.stem.rpartition("_")[2].isdecimal()]
    for path in sorted(files, key=lambda path: (step_of(path), path.stat().st_mtime_ns)):
        found.setdefault(path.stem.rpartition("_")[0].replace("_", " "), []).append(path)
    return found


def shown(exhibit: Path) -> tuple[str, bytes]:
    """The suffix and the content of an exhibit."""
    return exhibit.suffix, read_file(exhibit, 256 << 20)


def step_of(exhibit: Path) -> int:
    return int(exhibit.stem.rpartition("_")[2])


def check_writable(directory: Path) -> None:
    """Raises UserError where the folder is another's or could not be made; asked before the data are loaded."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write to {directory}: {existing} is not a writable folder; give another --workdir")
    if existing != directory.absolute():
        return
    foreign = (path for path in directory.iterdir() if path.suffix != PART and path.name != LOCK)
    if any(foreign) and read_record(directory) is None:
        raise UserError(f"{directory} is not empty and not a run folder: give another --workdir")
    check_contained(directory)


def claim(directory: Path, record: Record, *, overwrite: bool) -> Record:
    """Makes the folder this run's, or goes on in it. Where it holds no checkpoint there is nothing to go on from.

    Returns:
      The record with the folder's history. Other --steps than before add to it.

    Raises:
      UserError: it belongs to something else, cannot be written, or is past the last step asked for; what it holds was
        finished, and is no more than its results.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in (*directory.glob(f"*{PART}"), *(directory / "samples").glob(f"*{PART}")):
            left.unlink(missing_ok=True)  # of writes that were killed
        remove_unfinished(directory / "checkpoints")
        earlier, saved = read_record(directory), saved_steps(directory / "checkpoints")
        for part in directory.rglob(f".*{PART}"):  # left by a kill
            part.unlink()
        if overwrite or not saved:
            if not overwrite and (directory / CARD).exists():
                raise UserError(
                    f"{directory} holds the results of a finished run, and no checkpoints any more: "
                    "give another --workdir, or start afresh with --run.overwrite"
                )
            for name in ("checkpoints", "samples", "events"):
                if (directory / name).exists():
                    shutil.rmtree(directory / name)
            for name in ("metrics.jsonl", "report.html", CARD, LOG, "replay.json"):
                (directory / name).unlink(missing_ok=True)
            return _written(directory, replace(record, history=(record.stretch(),)))
    except OSError as error:
        raise UserError(f"cannot write to {directory} ({error}): give another --workdir") from None
    changes = list(differences(identity(earlier), identity(record)))
    if changes:
        named = "; ".join(f"--{name} was {old}, is {new}" for name, old, new in changes)
        other = earlier.config["data"].get("name") not in (None, earlier.data.name)  # a set in its place
        again = f"--data.name {earlier.data.name} and its other flags" if other else "its flags"
        raise UserError(
            f"{directory} holds a run of another configuration ({named}): "
            f"repeat {again} to go on, give another --workdir, or start afresh with --run.overwrite"
        )
    steps = record.config["steps"]
    if steps < saved[-1]:
        raise UserError(
            f"--steps {steps}: {directory} is at step {saved[-1]} already: give at least as many, another --workdir, "
            "or start afresh with --run.overwrite"
        )
    history = earlier.history or (earlier.stretch(),)
    if steps != history[-1].steps:
        history += (record.stretch(saved[-1]),)
        (directory / "report.html").unlink(missing_ok=True)  # of the shorter run; a new one says that this one is done
    config = earlier.config | {name: record.config[name] for name in ("steps", "data")}  # data may have been moved
    if config != earlier.config:
        changes = {"command": record.command, "source": record.source, "config": config, "history": history}
        _written(directory, replace(earlier, **changes))
    return replace(record, history=history)


def _written(directory: Path, record: Record) -> Record:
    write_atomically(directory / "config.json", msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return record


def check_seen(directory: Path) -> None:
    """Raises UserError where a process of a run sees another folder than process 0 under the same name."""

    def leave() -> str:
        name = f".{secrets.token_hex(8)}{PART}"
        (directory / name).touch()
        return name

    mark = directory / processes.from_main(leave)
    seen = processes.exchange(mark.exists())
    if processes.is_main():
        mark.unlink()
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see the folder {directory} of process 0: give all of them the same "
            "--workdir, on a file system that they share",
            shared=True,
        )


def keeper(directory: Path) -> Callable[[], None]:
    """Return a check to make before a run writes: a config.json that was removed is written anew.

    The check raises UserError if the folder itself was removed or replaced, since what the run left there is gone.
    """
    config, mine = directory / "config.json", directory.stat()
    content = config.read_bytes()

    def keep() -> None:
        if not (directory.is_dir() and os.path.samestat(directory.stat(), mine)):
            raise UserError(f"{directory} was removed or replaced while the run wrote to it: start the run again")
        if not config.exists():
            write_atomically(config, content)

    return keep


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within, no other process runs in the folder; the lock goes with the process, however it ends."""
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is running in {directory}: wait for it, or give another --workdir"
            ) from None
        yield


def identity(record: Record) -> dict[str, Any]:
    """What two runs must share for one to go on from the other; how a run is watched and measured is not part of it."""
    config = trained(record.config)
    data = {"name": record.data.name, "digest": record.data.digest, "binarization": record.data.binarization}
    return {"experiment": record.experiment} | config | {"data": config["data"] | data}


def trained(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that decide what is trained."""
    named = {"seeds": 1} | config
    kept = {k: v for k, v in named.items() if k not in ("workdir", "steps", "run", "evaluate", "sample")}
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in ("dir", "strict")}
    run = config.get("run", {})  # of which these decide what is computed, and who draws which noise
    as_before = {"accumulate": 1, "parallel": "jit", "dtype": "float32"}
    return kept | {"run": {name: run.get(name, default) for name, default in as_before.items()}}


def default_workdir(default: Config, config: Config) -> Path:
    """Folder of a run without --workdir: that of `default`, and what `config` trains differently.

    A pure function of both, so that the same command finds its own run again, and no other command does.
    """
    changes = [(name, new) for name, _, new in differences(trained(plain(default)), trained(plain(config)))]
    if not changes:
        return default.workdir
    digest = hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:4]
    slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(_slug(*change) for change in changes).lower())[:48].strip("-.")
    return default.workdir.with_name(f"{default.workdir.name}-{slug}-{digest}")


def _slug(name: str, value: Any) -> str:
    """A changed value in a folder's name: "conv" speaks for itself, numbers need the name of their field."""
    name = name.rpartition(".")[2]
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    if isinstance(value, str):
        return value
    return f"{name}-{'-'.join(map(str, value)) if isinstance(value, list) else value}"


def link_latest(directory: Path) -> None:
    """Points runs/latest to a run folder in runs/; what lies there and is no such link stays."""
    link = directory.parent / LATEST
    if directory.absolute().parent != Path("runs").absolute() or directory.name == LATEST:
        return
    with suppress(OSError):  # file systems without links: only the short name is missing
        if os.path.lexists(link) and not (link.is_symlink() and os.readlink(link) == Path(os.readlink(link)).name):
            return
        fresh = link.with_name(f".{LATEST}-{os.getpid()}")
        fresh.symlink_to(directory.name)
        fresh.replace(link)


def followed(directory: Path) -> Path:
    """The folder that a link such as runs/latest leads to now, so that files name the run itself."""
    return directory.parent / os.readlink(directory) if directory.is_symlink() else directory


def shared(record: Record) -> dict[str, Any]:
    """What all processes of a run must agree on."""
    run = {k: v for k, v in record.config["run"].items() if k not in ("coordinator", "process_id")}
    data = {"name": record.data.name, "digest": record.data.digest}
    return {"experiment": record.experiment, "versions": record.versions, "of": data} | record.config | {"run": run}


def check_alike(processes: list[dict[str, Any]]) -> None:
    """Raises UserError where what the processes of a run are to do differs."""
    first, *others = processes
    for process, other in enumerate(others, 1):
        changes = [f"{name} is {a} and {b}" for name, a, b in differences(first, other)]
        if changes:
            raise UserError(
                f"processes 0 and {process} differ: {'; '.join(changes)}. Start all of them with the same command, "
                "the same packages and the same data",
                shared=True,
            )


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, old, new) of what differs, down to the last leaf, also where all that it is part of is missing."""
    if old == new:
        return
    one, other = ({} if value is None else value for value in (old, new))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one | other:
            yield from differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    else:
        yield name.replace("_", "-"), old, new


def versions() -> dict[str, str]:
    """Of the packages that decide what comes out, as far as they are installed."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    extras = ("rdkit", "selfies", "tokenizers", "soxr", "scikit-learn")
    modules = {"scikit-learn": "sklearn"}
    there = [name for name in extras if importlib.util.find_spec(modules.get(name, name))]
    ours = {"python": platform.python_version(), "jaxgen": __version__}
    return ours | {name: metadata.version(name) for name in (*names, *there)}


def device() -> str:
    """Such as "1 x NVIDIA H100" or "1 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
