"""Write a sampler that runs without this project: python -m jaxgen export runs/vae_mnist --out sampler.jaxexport"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgen.commands.flags import check_member, parse
from jaxgen.errors import UserError
from jaxgen.files import write_atomically


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
    import jax
    import numpy as np

    from jaxgen import checkpoint, folder
    from jaxgen.experiment import built, members, restore_params
    from jaxgen.handover import PLATFORMS, exported_sampler, require_packages, safetensors_of, words

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


def _shape(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
