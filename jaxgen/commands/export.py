"""Write a sampler that runs without this project: python -m jaxgen export runs/vae_mnist --out sampler.jaxexport"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgen.commands.flags import parse
from jaxgen.commands.making import deliver, opened
from jaxgen.errors import UserError
from jaxgen.ranges import Index, UpTo1M
from jaxgen.terminal import say


@dataclass(frozen=True)
class Export:
    """Write the trained sampler as a file that needs JAX alone, and its weights beside it."""

    out: Path = Path("sampler.jaxexport")
    """File of the sampler; the weights go beside it, with the suffix .safetensors."""
    num: UpTo1M | None = None
    """Fixed number of samples per call, for models that cannot be traced for any number."""
    member: Index = 0
    """Index of the model, of a run with several --seeds."""
    checkpoint: str = "latest"
    """Checkpoint to use: latest, best (of the lowest validation loss) or a step."""


def run(directory: Path, args: list[str]) -> None:
    import jax
    import numpy as np

    from jaxgen import folder
    from jaxgen.handover import PLATFORMS, exported_sampler, require_packages, safetensors_of, words

    found = folder.load_run(directory)
    own, controls = parse(Export, found[-1].sample, f"export {directory}", args)
    if own.out.suffix == ".safetensors":
        raise UserError(f"--out {own.out}: the weights take this suffix, give the sampler another, such as .jaxexport")
    require_packages()
    trained = opened(found, controls, member=own.member, checkpoint=own.checkpoint)
    params, record = jax.tree.map(np.asarray, trained.params), trained.record
    model_sample = trained.experiment.model.sample
    sample = trained.experiment.sample or (lambda params, key, n, labels: model_sample(params, key, n))
    exported, heeded = exported_sampler(sample, params, own.num)
    labels = "the class of each sample" if heeded else "their values are ignored"
    about = {
        "run": directory.resolve().name,
        "experiment": record.experiment,
        "step": str(trained.step),
        "checkpoint": trained.checkpoint,
        "labels": labels,
        "classes": json.dumps(record.data.classes),
        **words(record.data.vocabulary),
    }
    sampler, weights = bytes(exported.serialize()), safetensors_of(params, about)
    files = {own.out.suffix or ".jaxexport": sampler, ".safetensors": weights}
    out, weights = deliver(own.out, files)
    say(f"{out}: call(seed, labels) of {directory} at step {trained.step}, for {', '.join(PLATFORMS)}")
    say(f"  {', '.join(map(_shape, exported.in_avals))} ({labels}) -> {_shape(exported.out_avals[0])}")
    say(f"{weights}: {len(jax.tree.leaves(params))} arrays")


def _shape(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
