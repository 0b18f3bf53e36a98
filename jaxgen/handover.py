"""A trained sampler as StableHLO, and weights as safetensors: what runs, or is read, without this project."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UserError, install
from jaxgen.types import PyTree

PLATFORMS = ("cpu", "cuda", "tpu")


def require_packages() -> None:
    try:
        import flatbuffers  # noqa: F401 - jax.export needs it and does not say so
        import safetensors  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs two more packages ({error}): {install('flatbuffers', 'safetensors')}") from error


def exported_sampler(sample: Callable[..., jax.Array], params: PyTree, num: int | None) -> tuple[Any, bool]:
    """A `jax.export.Exported` of `call(seed, labels)`, the parameters inside; and whether it heeds the labels' values.

    It draws as many samples as there are labels: `sample(params, jax.random.key(seed), n, labels)`. Both are int32, so
    that a plain number will do for a seed.

    Args:
      sample: `(params, key, n, labels) -> [n, ...]`, pure.
      params: arrays in memory.
      num: how many samples a call draws; None: any number.

    Raises:
      UserError: it cannot be traced.
    """
    from jax import export

    leaves, tree = jax.tree.flatten(params)

    def draw(seed, labels, *leaves):
        return sample(tree.unflatten(leaves), jax.random.key(seed), labels.shape[0], labels)

    def arguments(n):
        return jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((n,), np.int32)

    try:
        # Of a fixed number of labels, export tells which arguments it did without.
        used = export.export(jax.jit(draw), platforms=("cpu",))(*arguments(num or 2), *leaves).module_kept_var_idx
    except (TypeError, NotImplementedError) as error:
        raise UserError(f"this sampler does more than JAX can trace, and cannot be exported: {_line(error)}") from error

    def call(seed, labels):
        # What only an encoder or a discriminator has learnt is not written. The barriers keep the compiler from knowing
        # the values: it would compute with constants beforehand and otherwise, and the last bits would differ.
        kept = [jax.lax.optimization_barrier(x) if i in used else None for i, x in enumerate(leaves, 2)]
        inside = [jnp.zeros(x.shape, x.dtype) if y is None else y for x, y in zip(leaves, kept, strict=True)]
        return draw(seed, labels, *inside)

    try:
        n = num or export.symbolic_shape("n")[0]
        return export.export(jax.jit(call), platforms=PLATFORMS)(*arguments(n)), 1 in used
    except (TypeError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        raise UserError(
            f"this sampler cannot be traced for any number of samples, add --num 64 for just so many: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def safetensors_of(params: PyTree, about: dict[str, str]) -> bytes:
    """The weights by names such as generator/Dense_0/kernel, and what is said about them."""
    from safetensors.numpy import save

    leaves = jax.tree.leaves_with_path(params)
    # In C order, since bytes are written as they lie; bfloat16 too goes by its name.
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, order="C") for path, x in leaves}
    return save(arrays, about)


def words(vocabulary: str) -> dict[str, str]:
    """What the tokens of a text mean: nothing where there is no text.

    `tokens` is a list in JSON of the bytes of each token, written as Latin-1 since they may be a part of a character:
    `"".join(tokens[t] for t in sample).encode("latin-1").decode(errors="replace")` is the text.
    """
    from jaxgen.data.vocabulary import vocabulary as rebuilt

    if not vocabulary:
        return {}
    pieces = [piece.decode("latin-1") for piece in rebuilt(vocabulary).pieces]
    return {"vocabulary": vocabulary, "tokens": json.dumps(pieces)}
