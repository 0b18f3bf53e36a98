"""Where arrays live: one mesh over all devices, the batch split over it, the state on every device."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import UserError
from jaxgen.step import Step, scan_steps
from jaxgen.types import Batch, PyTree, TrainState


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        raise UserError(
            f"--batch-size {batch_size} cannot be split evenly over {mesh.size} devices: use a multiple of {mesh.size}."
        )


def replicated(template: PyTree, mesh: Mesh) -> PyTree:
    """The shapes of `template`, to live on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), template)


def compile_init(init: Callable[..., TrainState], mesh: Mesh) -> Callable[..., TrainState]:
    """Compiles the initialisation, so that the state is created where it is to live."""
    return jax.jit(init, out_shardings=NamedSharding(mesh, PartitionSpec()))


def compile_steps(step: Step, mesh: Mesh) -> Step:
    """Compiles `(state, batches) -> (state, metrics)` for chunks [K, B, ...] of steps; the old state is given up.

    Noise is drawn for the global batch, so that any number of devices sees the same and agrees to rounding.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        scan_steps(step),
        in_shardings=(everywhere, NamedSharding(mesh, PartitionSpec(None, "data"))),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def put_chunk(batches: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Host arrays [K, B, ...] to the devices, as stored, split over B."""
    return jax.device_put(dict(batches), NamedSharding(mesh, PartitionSpec(None, "data")))
