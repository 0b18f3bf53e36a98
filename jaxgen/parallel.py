"""Where arrays live: one mesh over all devices, the batch split over it, the state on every device or split too."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import UserError
from jaxgen.step import Update, over_seeds, scan_steps
from jaxgen.types import Batch, Metrics, PyTree, TrainState

How = Literal["jit", "pmap", "shard_map"]


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError where the parts of a batch cannot be split evenly over the mesh."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise UserError(
            f"--batch-size {batch_size} cannot be split evenly over {mesh.size} devices"
            + (f" and --run.accumulate {accumulate}" if accumulate > 1 else "")
            + f": use a multiple of {parts}, such as {-(-batch_size // parts) * parts}",
            shared=True,
        )


def sharded(template: PyTree, mesh: Mesh, *, fsdp: bool = False) -> PyTree:
    """The shapes of `template` with the sharding of each array: on every device, or with `fsdp` split over them.

    Fully sharded data parallelism is a choice of shardings and nothing else: the largest axis that the number of
    devices divides is split, of parameters, optimiser state and moving average alike, and the compiler gathers what a
    layer needs when it needs it (Rajbhandari et al. 2020, ZeRO stage 3).
    """

    def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [None] * x.ndim
        if fsdp and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # every device has the keys
            divisible = [axis for axis in range(x.ndim) if x.shape[axis] and x.shape[axis] % mesh.size == 0]
            if divisible:
                axes[max(divisible, key=lambda axis: x.shape[axis])] = "data"
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(one, template)


def compile_init(init: Callable[..., TrainState], template: TrainState) -> Callable[..., TrainState]:
    """Compiles the initialisation, so that every array is created where `template` says it is to live."""
    return jax.jit(init, out_shardings=_shardings(template))


def compile_steps(
    make_step: Callable[..., Update], template: TrainState, mesh: Mesh, how: How = "jit", *, stacked: bool = False
) -> Update:
    """Compiles `(state, batches) -> (state, metrics)` for chunks [K, B, ...] of steps; the old state is given up.

    Args:
      make_step: makes the update; called with `axis_name` where the step is mapped.
      template: shapes and shardings of the state. Only under jit may any of it be split.
      mesh: of the devices.
      how: "jit" leaves it to the compiler how to split the work. Noise is then drawn for the global batch, so that any
        number of devices sees the same and agrees to rounding. "shard_map" and "pmap" run the same step on each
        device's part of the batch, with noise of its own.
      stacked: the state is of several seeds, and chunks are [K, S, B, ...]; under jit only.
    """
    if how == "jit":
        state = _shardings(template)
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = make_step()
        return jax.jit(
            scan_steps(over_seeds(step) if stacked else step),
            in_shardings=(state, _chunks(mesh, stacked)),
            out_shardings=(state, everywhere),
            donate_argnums=0,
        )
    steps = scan_steps(make_step(axis_name="data"))
    if how == "shard_map":
        return jax.jit(over_parts(steps, mesh, axis=1), donate_argnums=0)
    mapped = jax.pmap(steps, axis_name="data", in_axes=(None, 1), out_axes=None)

    def split(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return mapped(state, jax.tree.map(lambda x: x.reshape(len(x), mesh.size, -1, *x.shape[2:]), batches))

    return split


def over_parts(step: Update, mesh: Mesh, axis: int = 0) -> Update:
    """A step of the axis "data", on each device's part of a batch, whose examples lie along that axis."""
    batch = PartitionSpec(*[None] * axis, "data")
    return jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=PartitionSpec())


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Which examples of each batch this process reads, those of its own devices; alone, it reads them all."""
    devices = NamedSharding(mesh, PartitionSpec("data")).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in devices.values()]))


def put_chunk(batches: Mapping[str, np.ndarray], mesh: Mesh, *, stacked: bool = False) -> Batch:
    """Host arrays [K, b, ...] of `local_rows` to the devices, as stored: the batches [K, B, ...], split over B.

    With `stacked` they are [K, S, b, ...], of several seeds.
    """
    sharding = _chunks(mesh, stacked)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batches.items()}


def _chunks(mesh: Mesh, stacked: bool) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, None, "data") if stacked else PartitionSpec(None, "data"))


def put_rows(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Host arrays [B, ...], the same on every process, to the devices, split over B, a multiple of the mesh's size."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_callback(x.shape, sharding, lambda i, x=x: x[i]) for name, x in arrays.items()}


def gathered(function: Callable[..., PyTree], mesh: Mesh) -> Callable[..., PyTree]:
    """Compiles `function`, whose results are to be on every device, so that every process can read them."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _shardings(template: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.sharding, template)
