"""Checkpoints that can be trusted. The only file that knows Orbax, which writes and reads the arrays.

A step counts as saved when its manifest is there: `manifest.json` in the step's folder, written last and atomically,
with the SHA-256 sum of every file and the shape and dtype of every array. Without it a write was killed or failed.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jax

from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.types import PyTree, TrainState

MANIFEST = "manifest.json"


class Checkpoints:
    """Writes the checkpoints of one run, a folder per step, in the background and one at a time.

    Args:
      directory: made at the first save.
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
        say: Callable[[str], None] = print,
    ):
        # Orbax logs pages of traceback where a write fails; what there is to say of it is said here.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._directory, self._keep = directory.absolute(), keep
        self._say, self._asynchronous = say, asynchronous
        self._manager = self._open()
        self._damaged = [step for step in self._manager.all_steps() if step > start]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._writing: Future | None = None

    def _open(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            # Orbax would let old steps go before the manifest of a new one is written: `_prune` does it after.
            preservation_policy=ocp.checkpoint_managers.LatestN(None),
            cleanup_tmp_directories=True,  # what killed or failed saves left
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return saved_steps(self._directory)

    def save(self, step: int, state: TrainState, loss: float | None = None) -> None:
        """Copies the state and returns, unless synchronous; does nothing where that step is saved already.

        An earlier write that failed is said here; the steps saved before it stay.
        """
        import orbax.checkpoint as ocp

        self._collect(self._say)
        for damaged in self._damaged:
            self._manager.delete(damaged)
        self._damaged = []
        if step in self.steps():
            return
        plain = _plain(state)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(plain), force=True)
        except (OSError, ValueError) as error:  # the folder could not even be made
            self._writing = Future()
            self._writing.set_exception(error)
        else:
            self._writing = self._thread.submit(self._finish, step, loss, _shapes(plain))
        if not self._asynchronous:
            self._collect(self._say)

    def _finish(self, step: int, loss: float | None, arrays: dict[str, Any]) -> None:
        """In the thread: waits for Orbax, then makes the step count."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            folder = self._directory / str(step)
            content = {"step": step, "loss": loss, "arrays": arrays, "files": _digests(folder)}
            content["digest"] = _digest(content)
            write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())

    def _prune(self) -> None:
        """Lets go of every saved step but the newest so many and the one of the lowest loss."""
        steps = self.steps()
        losses = {step: _manifest(self._directory / str(step)).get("loss") for step in steps}
        measured = [step for step in steps if losses[step] is not None]
        best = [min(measured, key=lambda step: (losses[step], step))] if measured else []
        for step in set(steps) - set(steps[-self._keep :]) - set(best):
            self._manager.delete(step)

    def _collect(self, on_error: Callable[[str], None]) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            error = writing.exception()
            if error is None:
                self._prune()
            else:
                # Orbax would count the step, and raise the error again at every later call: begin anew.
                with suppress(Exception):
                    self._manager.close()
                for name in set(_step_folders(self._directory)) - set(map(str, self.steps())):
                    shutil.rmtree(self._directory / name, ignore_errors=True)
                self._manager = self._open()
                reason = (str(error).split(" [tensorstore_spec")[0].splitlines() or [type(error).__name__])[0]
                steps = self.steps()
                newest = f"the newest whole one is of step {steps[-1]}" if steps else "there is no whole one yet"
                on_error(f"a checkpoint could not be written ({reason}); {newest}")

    def wait(self) -> None:
        """Returns when every save is whole on disk.

        Raises:
          UserError: the last one failed.
        """

        def fail(message: str) -> None:
            raise UserError(message)

        self._collect(fail)

    def close(self) -> None:
        """Lets a write in progress come to its end."""
        self._collect(self._say)
        self._thread.shutdown()
        self._manager.close()


def restore(directory: Path, template: TrainState, say: Callable[[str], None] = print) -> TrainState | None:
    """The newest intact state, or None where there is none; `say` hears which were passed over, and why.

    Args:
      directory: of the checkpoints; only read.
      template: a state of `jax.ShapeDtypeStruct` with the shardings to restore onto, on any number of devices.
      say: hears one line for each checkpoint that is damaged.

    Raises:
      UserError: the newest intact state is not of this model; the message names every array that differs.
    """
    for step in sorted(map(int, _step_folders(directory)), reverse=True):
        reason = _damage(directory / str(step))
        if reason is None:
            return _read(directory.absolute() / str(step), template)
        say(f"checkpoint {step} is passed over: {reason}")
    return None


def _read(folder: Path, template: TrainState) -> TrainState:
    import orbax.checkpoint as ocp

    shapes = _plain(template.replace(key=jax.random.key(0)))
    everywhere = template.step.sharding  # every process and device has the key, as it has the step
    shapes["key"] = jax.ShapeDtypeStruct(shapes["key"].shape, shapes["key"].dtype, sharding=everywhere)
    saved, wanted = _manifest(folder)["arrays"], _shapes(shapes)
    differences = [
        f"{name} is {_shape(saved.get(name))} in the checkpoint and {_shape(wanted.get(name))} in the model"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        raise UserError(f"checkpoint {folder} does not fit this model: {'; '.join(differences)}")
    with closing(ocp.StandardCheckpointer()) as checkpointer:
        plain = checkpointer.restore(folder / "default", shapes)
    return template.replace(**plain | {"key": jax.random.wrap_key_data(plain["key"])})


def saved_steps(directory: Path) -> list[int]:
    """The steps whose write came to its end, oldest first."""
    return sorted(int(name) for name in _step_folders(directory) if (directory / name / MANIFEST).exists())


def _step_folders(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


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
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"{MANIFEST} or a file beside it cannot be read ({error})"
    missing = sorted(expected.keys() - found.keys())
    if missing:
        return f"{missing[0]} is missing"
    changed = [name for name, digest in expected.items() if found[name] != digest]
    return f"{changed[0]} has changed since it was written" if changed else None


def _plain(state: TrainState) -> dict[str, Any]:
    """Plain arrays in plain dictionaries: what any later version can read."""
    fields = {name: getattr(state, name) for name in ("step", "params", "opt_state", "ema")}
    return fields | {"key": jax.random.key_data(state.key)}


def _shapes(tree: PyTree) -> dict[str, list]:
    """[shape, dtype] of every array, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): [list(x.shape), str(x.dtype)] for path, x in leaves}


def _shape(entry: list | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{entry[0]}"
