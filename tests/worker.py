"""What tests start as a process of its own: `python worker.py WHAT ...`, one of several on loopback."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

from jaxgen import parallel, processes
from jaxgen.data.source import batch_indices
from jaxgen.models.vae import independent, vae
from jaxgen.step import init_state, make_step
from jaxgen.types import Codec


def train(folder: str, variants: str, *address: str) -> None:
    """20 steps under SGD, from a global batch of which each process reads its part; process 0 saves the parameters.

    Each of the variants, joined by commas, is fsdp, or what compiles the step; its parameters go to a file of its name.
    """
    from jaxgen.data.decode import to_uint8, to_unit
    from jaxgen.emissions import bernoulli
    from jaxgen.networks.mlp import MLP

    processes.start(*address[:1], *map(int, address[1:]))
    data = {"image": np.random.default_rng(0).integers(0, 256, (48, 6, 6, 1), np.uint8)}
    model = vae(
        encoders=[MLP((16,), (8,), event=3)],
        decoder=independent(MLP((16,), (6, 6, 1)), bernoulli()),
        latents=[4],
        codec=Codec(lambda batch, key: to_unit(batch["image"]), to_uint8),
        optimizer=optax.sgd(1e-2, momentum=0.9),
    )
    mesh = parallel.make_mesh()
    first = {name: array[:8] for name, array in data.items()}
    init = partial(init_state, model)
    for variant in variants.split(","):
        fsdp = variant == "fsdp"
        template = parallel.sharded(jax.eval_shape(init, jax.random.key(0), first), mesh, fsdp=fsdp)
        state = parallel.compile_init(init, template)(jax.random.key(0), first)
        step = partial(make_step, model, guard=True)
        steps = parallel.compile_steps(step, template, mesh, "jit" if fsdp else variant)
        rows = parallel.local_rows(8, mesh)
        for start in (0, 10):
            indices = batch_indices(48, 8, seed=0, start=start, stop=start + 10)[:, rows]
            state, _ = steps(state, parallel.put_chunk({"image": data["image"][indices]}, mesh))
        params = parallel.gathered(lambda state: state.params, mesh)(state)
        if processes.is_main():
            flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}
            np.savez(Path(folder, f"{variant}.npz"), **flat)
    assert processes.exchange(jax.process_index()) == list(range(jax.process_count()))


def record(folder: str, *arguments: str) -> None:
    """`python -m experiments.vae_mnist`, writing down which examples of which steps this process reads."""
    from experiments import vae_mnist
    from jaxgen import run

    asked: list[tuple[int, int]] = []

    def indices(*args, start: int, stop: int, **options):
        asked.append((start, stop))
        return batch_indices(*args, start=start, stop=stop, **options)

    def gather(arrays, rows):
        if rows.shape[1] <= 16:  # a chunk of batches, not the examples that the initialisation sees
            name = f"{asked[-1][0]:06d}-{jax.process_index()}of{jax.process_count()}-{jax.device_count()}.json"
            Path(folder, name).write_text(json.dumps([asked[-1], rows.tolist()]))
        return {name: np.take(array, rows, axis=0) for name, array in arrays.items()}

    run.batch_indices, run.gather = indices, gather
    sys.argv = ["vae_mnist", *arguments]
    run.main("vae_mnist.py", vae_mnist.Config(), vae_mnist.load, vae_mnist.build, vae_mnist.NAMED)


def other_versions(*arguments: str) -> None:
    """`python -m experiments.vae_mnist`, with packages of another version on process 1."""
    from experiments import vae_mnist
    from jaxgen import folder, run

    versions = folder.versions
    folder.versions = lambda: versions() | {"flax": f"0.{jax.process_index()}"}
    sys.argv = ["vae_mnist", *arguments]
    run.main("vae_mnist.py", vae_mnist.Config(), vae_mnist.load, vae_mnist.build, vae_mnist.NAMED)


if __name__ == "__main__":
    {"train": train, "record": record, "other_versions": other_versions}[sys.argv[1]](*sys.argv[2:])
