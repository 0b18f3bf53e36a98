"""Write a sampler that runs without this project: python -m jaxgen export runs/vae_mnist --out sampler.jaxexport"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.commands.flags import check_member, parse
from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.types import PyTree

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True)
class Export:
    """Write the trained sampler as a file that needs JAX alone, and its weights beside it."""

    out: Path = Path("sampler.jaxexport")
    """The sampler's file; the weights go beside it, with the suffix .safetensors."""
    num: int | None = None
    """Make it draw just so many samples a call, where a model cannot be traced for any number."""
    member: int = 0
    """Which model, of a run that trained several --seeds."""


def run(directory: Path, args: list[str]) -> None:
    from jaxgen import checkpoint, folder
    from jaxgen.experiment import built, members, restore_params

    record, module, config = folder.load_run(directory)
    own, controls = parse(Export, config.sample, f"export {directory}", args)
    if own.num is not None and own.num < 1:
        raise UserError(f"--num {own.num}: expected at least 1, or nothing for any number")
    if own.out.suffix == ".safetensors":
        raise UserError(f"--out {own.out}: the weights take this suffix, give the sampler another, such as .jaxexport")
    check_member(own.member, config.seeds)
    require_packages()
    experiment = built(module.build, replace(config, sample=controls), record.data)
    step, params = restore_params(config, experiment.model, record.data)
    params = jax.tree.map(np.asarray, members(config, params)[own.member])
    model_sample = experiment.model.sample
    sample = experiment.sample or (lambda params, key, n, labels: model_sample(params, key, n))
    exported, heeded = exported_sampler(sample, params, own.num)
    labels = "the class of each sample" if heeded else "their values are ignored"
    about = {
        "run": directory.resolve().name,
        "experiment": record.experiment,
        "step": str(step),
        "checkpoint": checkpoint.digest(directory / "checkpoints", step),
        "labels": labels,
        "classes": json.dumps(record.data.classes),
        **words(record.data.vocabulary),
    }
    weights = own.out.with_suffix(".safetensors")
    for path, content in {own.out: exported.serialize(), weights: safetensors_of(params, about)}.items():
        try:
            write_atomically(path, bytes(content))
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): give another --out") from None
    print(f"{own.out}: call(seed, labels) of {directory} at step {step}, for {', '.join(PLATFORMS)}")
    print(f"  {', '.join(map(_shape, exported.in_avals))} ({labels}) -> {_shape(exported.out_avals[0])}")
    print(f"{weights}: {len(jax.tree.leaves(params))} arrays")


def require_packages() -> None:
    try:
        import flatbuffers  # noqa: F401 - jax.export needs it and does not say so
        import safetensors  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs two more packages ({error}): pip install 'jaxgen[export]'") from error


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


def _shape(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


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
