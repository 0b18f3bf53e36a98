"""Checkpoints that can be trusted. The only file that knows Orbax, which writes and reads the arrays.

A step counts as saved when its manifest is there: `manifest.json` in the step's folder, written last and atomically,
with the SHA-256 sum of every file and the shape and dtype of every array. Without it a write was killed or failed.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import msgspec

from jaxgen import processes
from jaxgen.errors import UserError
from jaxgen.files import parse_json, read_file, write_atomically
from jaxgen.terminal import say
from jaxgen.types import PyTree, TrainState

MANIFEST = "manifest.json"
STEP = re.compile("0|[1-9][0-9]{0,17}")  # the name of a step's folder
KEYS = {"key", "noise"}  # fields of a state that hold PRNG keys


class Checkpoints:
    """Writes the checkpoints of one run, a folder per step, one at a time.

    Among several processes every one makes the same calls: each writes the shards it holds, process 0 the manifest.

    Args:
      directory: made at the first save; all processes must see it.
      start: the step that training goes on from. Later ones in the folder were passed over, and go at the first save.
      keep: the newest so many stay, and the one of the lowest loss.
      asynchronous: return from `save` before the write is done.
      say: hears of what went wrong and was got over.
    """

    def __init__(
        self,
        directory: Path,
        *,
        start: int = 0,
        keep: int = 2,
        asynchronous: bool = True,
        say: Callable[[str], None] = say,
    ):
        # Orbax logs pages of traceback where a write fails; what there is to say of it is said here.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _expect_closed_loops()
        self._directory, self._start, self._keep = directory.absolute(), start, keep
        self._say, self._asynchronous = say, asynchronous
        self._losses: dict[int, float | None] | None = None  # of the saved steps, once the folder has been looked at
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, float | None, Future] | None = None

    def save(self, step: int, state: TrainState, loss: float | None = None) -> None:
        """Copies the state and returns, unless synchronous; where that step is saved already, adds a missing loss.

        An earlier write that failed is said here; the steps saved before it stay.
        """
        import orbax.checkpoint as ocp

        self._collect(self._say)
        if self._losses is None:
            losses = processes.from_main(lambda: list(_clean(self._directory, self._start).items()))
            self._losses = dict(map(tuple, losses))
            self._prune()
        if step in self._losses:
            if self._losses[step] is None and loss is not None:
                self._losses[step] = loss
                folder = self._directory / str(step)
                with suppress(OSError):  # on a full disk the step stays without
                    if processes.is_main():
                        _write_manifest(folder, _manifest(folder) | {"loss": loss})
            return
        plain, writer = _plain(state), ocp.StandardCheckpointer()
        try:
            writer.save(self._directory / str(step), plain)
        except Exception as error:  # the folder could not even be made
            future: Future = Future()
            future.set_exception(error)
        else:
            future = self._thread.submit(self._finish, writer, step, loss, _shapes(plain))
        self._writing = step, loss, future
        if not self._asynchronous:
            self._collect(self._say)

    def _finish(self, writer: Any, step: int, loss: float | None, arrays: dict[str, Any]) -> None:
        """In the thread: waits for Orbax, then makes the step count."""
        with closing(writer):
            writer.wait_until_finished()
        if processes.is_main():
            folder = self._directory / str(step)
            _write_manifest(folder, {"step": step, "loss": loss, "arrays": arrays, "files": _digests(folder)})

    def _collect(self, on_error: Callable[[str], None]) -> None:
        """Waits for the write in progress, and lets go of older steps once it is whole."""
        if self._writing is None:
            return
        (step, loss, future), self._writing = self._writing, None
        error = future.exception()
        reason = error and _reason(error)
        reasons = [reason for reason in processes.exchange(reason) if reason]
        if not reasons:
            self._losses[step] = loss
        self._prune()
        if reasons:
            if processes.is_main():
                _clean(self._directory, max(self._losses, default=0))  # what the write left
            newest = f"the newest whole one is of step {max(self._losses)}" if self._losses else "there is no whole one"
            on_error(f"a checkpoint could not be written ({reasons[0]}); {newest}")

    def _prune(self) -> None:
        """Removes the steps that are not kept."""
        for step in set(self._losses) - _kept(self._losses, self._keep):
            del self._losses[step]
            if processes.is_main():
                _remove(self._directory / str(step))

    def wait(self) -> None:
        """Returns when every save is whole on disk.

        Raises:
          UserError: the last one failed.
        """

        def fail(message: str) -> None:
            raise UserError(f"{message}; make room, then the same command goes on", shared=True)

        self._collect(fail)

    def close(self) -> None:
        """Lets a write in progress come to its end; to be called in any case, so it tells the others nothing."""
        if self._writing is not None and self._writing[2].exception() and processes.is_main():
            _clean(self._directory, max(self._losses, default=0))
        self._thread.shutdown()


def _expect_closed_loops() -> None:
    """Drop pages about writes that end after Orbax has closed its event loop, which it does at the first failure.

    Looked up anew each time: whoever held another hook meanwhile may have put the old one back.
    """
    for name in ("excepthook", "unraisablehook"):
        hook = getattr(sys, name)
        if getattr(hook, "func", None) is not _quiet:
            setattr(sys, name, partial(_quiet, hook))


def _quiet(hook: Callable[..., None], *args: Any) -> None:
    if "Event loop is closed" not in str(args):
        hook(*args)


def _reason(error: BaseException) -> str:
    """The end of the first line of an error, where tensorstore names what failed."""
    line = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    return line.rpartition('": ')[2].partition(" [os_error")[0] or type(error).__name__


def restore(
    directory: Path,
    template: TrainState,
    say: Callable[[str], None] = say,
    *,
    most: int | None = None,
    only: int | None = None,
) -> TrainState | None:
    """The newest intact state, or None where there is none; `say` hears which were passed over, and why.

    Args:
      directory: of the checkpoints; only read.
      template: a state of `jax.ShapeDtypeStruct` with the shardings to restore onto, on any number of devices.
      say: hears one line for each checkpoint that is damaged.
      most: leave out the steps after this one.
      only: leave out all steps but this one.

    Raises:
      UserError: the newest intact state is not of this model; the message names every array that differs.
    """

    def newest() -> tuple[int, dict[str, Any]] | None:
        for step in sorted(map(int, _step_folders(directory)), reverse=True):
            if (most is None or step <= most) and only in (None, step):
                reason = _damage(directory / str(step))
                if reason is None:
                    return step, _manifest(directory / str(step))["arrays"]
                say(f"checkpoint {step} is passed over: {reason}")
        return None

    found = processes.from_main(newest)
    return found and _read(directory.absolute() / str(found[0]), found[1], template)


def _read(folder: Path, saved: dict[str, Any], template: TrainState) -> TrainState:
    import orbax.checkpoint as ocp

    everywhere = template.step.sharding  # every process and device has the keys, as it has the step

    def data(key: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(jax.random.key_data, key).update(sharding=everywhere)

    shapes = _plain(template, data)
    wanted = _shapes(shapes)
    differences = [
        f"{name} is {_shape(saved.get(name))} in the checkpoint and {_shape(wanted.get(name))} in the model"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        raise UserError(f"checkpoint {folder} does not fit this model: {'; '.join(differences)}", shared=True)
    # A stranger may have claimed arrays that fill the memory; only zeros are compressed so well.
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    if size > 1000 * sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()):
        raise UserError(f"checkpoint {folder} is far smaller than the {size:,} bytes of its arrays", shared=True)
    with closing(ocp.StandardCheckpointer()) as checkpointer:
        try:
            plain = checkpointer.restore(folder, shapes)
        except Exception as error:  # what is no checkpoint of Orbax's makes it and TensorStore raise a dozen types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"checkpoint {folder} cannot be read ({reason})") from error
    return template.replace(**plain | {name: jax.random.wrap_key_data(plain[name]) for name in KEYS & plain.keys()})


def find(directory: Path, which: str) -> int:
    """Step of the saved checkpoint "best", which has the lowest validation loss, or of a step as digits.

    Raises:
      UserError: there is none; the message names the steps that exist.
    """
    losses = {step: _loss(directory / str(step)) for step in saved_steps(directory)}
    step = _best(losses) if which == "best" else int(which) if which.isdecimal() else None
    if step not in losses:
        reason = "no checkpoint has a validation loss" if which == "best" else "expected latest, best or a saved step"
        raise UserError(f"--checkpoint {which}: {reason}; {directory} holds {', '.join(map(str, losses)) or 'none'}")
    return step


def saved_steps(directory: Path) -> list[int]:
    """The steps whose write came to its end, oldest first."""
    return sorted(int(name) for name in _step_folders(directory) if (directory / name / MANIFEST).exists())


def digest(directory: Path, step: int) -> str:
    """What stands for a saved step: the SHA-256 sum of its manifest, which holds those of all its files."""
    return _manifest(directory / str(step))["digest"]


def remove_unfinished(directory: Path) -> None:
    """Remove what was left by killed writes, and by kills between removing a manifest and its folder."""
    for path in directory.iterdir() if directory.is_dir() else []:
        unfinished = STEP.fullmatch(path.name) and not (path / MANIFEST).exists()
        if unfinished or ".orbax-checkpoint-tmp" in path.name:
            _remove(path)


def _clean(directory: Path, start: int) -> dict[int, float | None]:
    """Remove unfinished checkpoints and the steps after `start`; return the losses of the others."""
    remove_unfinished(directory)
    saved = saved_steps(directory)
    for step in saved:
        if step > start:
            _remove(directory / str(step))
    return {step: _loss(directory / str(step)) for step in saved if step <= start}


def _kept(losses: dict[int, float | None], keep: int) -> set[int]:
    """The newest so many steps, and the one of the lowest loss."""
    return {*sorted(losses)[-keep:], _best(losses)}


def _best(losses: dict[int, float | None]) -> int | None:
    """Step of the lowest loss, the first of equals; None where no step has one."""
    measured = [step for step in losses if losses[step] is not None]
    return min(measured, key=lambda step: (losses[step], step), default=None)


def _remove(folder: Path) -> None:
    """The manifest first: what is left, if this is killed, does not count."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _step_folders(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if STEP.fullmatch(path.name)] if directory.is_dir() else []


def _manifest(folder: Path) -> dict[str, Any]:
    """That of a step; any damage is an OSError or a ValueError."""
    content = read_file(folder / MANIFEST, 256 << 20)
    parse_json(content, _Manifest)
    return parse_json(content)


class _Manifest(msgspec.Struct):
    step: int
    loss: float | None
    arrays: dict[str, tuple[list[int], str]]
    files: dict[str, str]
    digest: str


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    content["digest"] = _digest(content)
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def _loss(folder: Path) -> float | None:
    """Of a step that may be damaged: then it has none, and goes first."""
    try:
        return _manifest(folder)["loss"]
    except (ValueError, OSError):
        return None


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder, by its path there."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = _manifest(folder)
        if manifest["digest"] != _digest(manifest):
            return f"{MANIFEST} has changed since it was written"
        expected, found = manifest["files"], _digests(folder)
    except FileNotFoundError:
        return "its write did not come to its end"
    except (ValueError, OSError) as error:
        return f"{MANIFEST} or a file beside it cannot be read ({error})"
    missing = sorted(expected.keys() - found.keys())
    if missing:
        return f"{missing[0]} is missing"
    changed = [name for name, digest in expected.items() if found[name] != digest]
    return f"{changed[0]} has changed since it was written" if changed else None


def _plain(state: TrainState, data: Callable[[Any], Any] = jax.random.key_data) -> dict[str, Any]:
    """Plain arrays in plain dictionaries, readable by any later version; `data` gives the words of a PRNG key."""
    fields = {name: getattr(state, name) for name in ("step", "params", "opt_state", "ema")}
    keys = {name: getattr(state, name) for name in KEYS}
    return fields | {name: data(key) for name, key in keys.items() if key is not None}


def _shapes(tree: PyTree) -> dict[str, list]:
    """[shape, dtype] of every array, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): [list(x.shape), str(x.dtype)] for path, x in leaves}


def _shape(entry: list | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{entry[0]}"
