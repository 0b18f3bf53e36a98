"""Saving and restoring a TrainState. The only file that knows Orbax."""

from pathlib import Path
from typing import Any

import jax

from jaxgen.types import TrainState


class Checkpoints:
    """The checkpoints of one run, a folder per step; writes happen in the background.

    Args:
      directory: made at the first save.
      keep: the newest so many stay.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep), enable_async_checkpointing=True
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Copies the state and returns; does nothing where that step is saved already."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=self._ocp.args.StandardSave(_plain(state)), force=True)

    def restore(self, template: TrainState) -> TrainState:
        """The newest state; `template` is one of `jax.ShapeDtypeStruct`, with the shardings to restore onto."""
        shapes = _plain(template.replace(key=jax.random.key(0)))
        everywhere = template.step.sharding  # one that every process and device has
        shapes["key"] = jax.ShapeDtypeStruct(shapes["key"].shape, shapes["key"].dtype, sharding=everywhere)
        plain = self._manager.restore(self._manager.latest_step(), args=self._ocp.args.StandardRestore(shapes))
        return template.replace(**plain | {"key": jax.random.wrap_key_data(plain["key"])})

    def wait(self) -> None:
        """Returns when every save is whole on disk; raises what a background write raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _plain(state: TrainState) -> dict[str, Any]:
    """Plain arrays in plain dictionaries: what any later version can read."""
    fields = {name: getattr(state, name) for name in ("step", "params", "opt_state", "ema")}
    return fields | {"key": jax.random.key_data(state.key)}
