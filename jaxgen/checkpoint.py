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
                preservation_policy=ocp.checkpoint_managers.LatestN(keep), create=True, enable_async_checkpointing=True
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Copies the state and returns; does nothing where that step is saved already."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=self._ocp.args.StandardSave(_plain(state)), force=True)

    def restore(self, template: TrainState) -> TrainState:
        """The newest state, onto the shardings of `template`, a state or one of `jax.ShapeDtypeStruct`."""
        plain = self._manager.restore(
            self._manager.latest_step(), args=self._ocp.args.StandardRestore(jax.eval_shape(_plain, template))
        )
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
