"""What every experiment promises, on its test configuration: the same losses as ever, and a step for every platform.

`python tests/test_experiments.py` writes the losses anew, where a change of them is meant.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments import (
    gan_audio,
    gan_mnist,
    gan_stacked_mnist,
    gan_toy,
    pixelcnn_mnist,
    transformer_molecules,
    transformer_text,
    vae_audio,
    vae_mnist,
    vae_molecules,
    wavenet_audio,
)
from jaxgen import config as flags
from jaxgen import parallel
from jaxgen.data.source import Spec, batch_indices, gather
from jaxgen.evaluate import Estimate
from jaxgen.experiment import initializer
from jaxgen.networks.gru import GRU
from jaxgen.networks.made import MADE
from jaxgen.networks.pixelcnn import PixelCNN
from jaxgen.networks.transformer import Transformer
from jaxgen.networks.wavenet import WaveNet
from jaxgen.step import make_step, scan_steps

STEPS = 50
GOLDEN = Path(__file__).with_name("golden.json")
LICENSE = Path(__file__).parents[1] / "LICENSE"  # a text that does not change
DIGITS = flags.ImageDataConfig("mnist_5k")
MOLECULES = flags.MoleculeDataConfig(f"smiles:{Path(__file__).with_name('molecules.smi')}")
# Adam at full speed would blow up the rounding of gradients near 0 within these few steps of an adversarial game.
SLOW = flags.OptimizerConfig(learning_rate=1e-4, epsilon=1e-4, b1=0.0, b2=0.99, ema_decay=0.9)
CONFIGS = {
    "vae_mnist": vae_mnist.Config(batch_size=16, data=DIGITS, model=vae_mnist.ModelConfig(hidden=(32,), latents=(4,))),
    "vae_mnist conv": vae_mnist.Config(
        batch_size=16, data=DIGITS, model=vae_mnist.ModelConfig("conv", (16,), latents=(4,), conditional=True)
    ),
    "vae_mnist muon": vae_mnist.Config(
        batch_size=16,
        optimizer=flags.OptimizerConfig("muon", clip_norm=100.0, weight_decay=0.1),
        data=DIGITS,
        model=vae_mnist.ModelConfig(hidden=(32,), latents=(4,)),
    ),
    "vae_mnist iwae": vae_mnist.Config(
        batch_size=16,
        data=DIGITS,
        model=vae_mnist.ModelConfig(hidden=(16, 8), latents=(4, 2), num_samples=5, doubly_reparameterized=True),
    ),
    "gan_mnist": gan_mnist.Config(
        batch_size=16,
        optimizer=SLOW,
        data=flags.ImageDataConfig("mnist_5k", binarization="none"),
        model=gan_mnist.ModelConfig(width=8, latents=8, lazy=4),
    ),
    "gan_mnist residual": gan_mnist.Config(
        batch_size=16,
        optimizer=SLOW,
        data=flags.ImageDataConfig("mnist_5k", binarization="none", image_size=8),
        model=gan_mnist.ModelConfig(
            "hinge", network="residual", width=4, latents=8, spectral=True, r1=0, r2=0, n_critic=2
        ),
    ),
    "gan_toy": gan_toy.Config(batch_size=32, optimizer=SLOW, model=gan_toy.ModelConfig(hidden=(16, 16))),
    "gan_stacked_mnist": gan_stacked_mnist.Config(
        batch_size=16,
        optimizer=SLOW,
        data=gan_stacked_mnist.DataConfig("mnist_5k", count=500),
        model=gan_mnist.ModelConfig(conditional=False, width=4, latents=8),
    ),
    "pixelcnn_mnist": pixelcnn_mnist.Config(
        batch_size=16,
        data=flags.ImageDataConfig("mnist_5k", image_size=8),
        model=pixelcnn_mnist.ModelConfig(width=8, depth=3, first_kernel=3, conditional=True),
    ),
    "pixelcnn_mnist made": pixelcnn_mnist.Config(
        batch_size=16,
        data=flags.ImageDataConfig("mnist_5k", image_size=8, binarization="none"),
        model=pixelcnn_mnist.ModelConfig("made", hidden=(32,), components=2),
    ),
    "transformer_text": transformer_text.Config(
        data=flags.TextDataConfig(f"text:{LICENSE}"),
        model=transformer_text.ModelConfig(layers=2, heads=2, width=16, context=16),
    ),
    "wavenet_audio": wavenet_audio.Config(
        batch_size=4,
        data=flags.AudioDataConfig(seconds=0.016),
        model=wavenet_audio.ModelConfig(dilations=3, first_kernel=8, width=8, skip=16),
    ),
    "vae_audio": vae_audio.Config(
        batch_size=8,
        data=flags.AudioDataConfig(seconds=0.032),
        model=vae_audio.ModelConfig(latents=4, channels=(8, 8), hidden=16, size=64, hop=32, bins=16, warmup_steps=10),
    ),
    "gan_audio": gan_audio.Config(
        batch_size=8,
        optimizer=SLOW,
        data=flags.AudioDataConfig(seconds=0.016),
        model=gan_audio.ModelConfig(width=4, layers=2, latents=8, lazy=4),
    ),
    "transformer_molecules": transformer_molecules.Config(
        batch_size=16,
        data=MOLECULES,
        model=transformer_molecules.ModelConfig(layers=2, heads=2, width=16, conditions=("logP", "weight")),
    ),
    "vae_molecules": vae_molecules.Config(
        batch_size=16,
        data=MOLECULES,
        model=vae_molecules.ModelConfig(latents=4, width=16, convolutions=1, layers=1, heads=2, context=4),
    ),
}
CONFIGS = {name: replace(config, data=replace(config.data, validation=0.0)) for name, config in CONFIGS.items()}

missing = [package for package in ("rdkit", "selfies") if importlib.util.find_spec(package) is None]
without = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
NAMES = [pytest.param(name, marks=without if "molecules" in name else ()) for name in CONFIGS]
QUICK = ("vae_mnist conv", "gan_mnist residual", "pixelcnn_mnist", "transformer_text")  # the others by hand
SOME = [
    name if name in QUICK else pytest.param(name, marks=[pytest.mark.slow] + [without] * ("molecules" in name))
    for name in CONFIGS
]


def module_of(name: str):
    return importlib.import_module(f"experiments.{name.split()[0]}")


@cache
def built(name: str):
    """Of an experiment in its test configuration: the data, the pure step, and the shapes of its arguments."""
    config, module = CONFIGS[name], module_of(name)
    data = module.load(config)
    model = module.build(config, data.spec).model
    batch = shapes_of(data.spec, config.batch_size)
    with jax.debug_key_reuse(True):
        state = jax.eval_shape(initializer(config, model), batch)
    return data, model, make_step(model, ema_decay=config.optimizer.ema_decay, guard=True), state, batch


def shapes_of(spec: Spec, *leading: int) -> dict:
    return {name: jax.ShapeDtypeStruct((*leading, *shape), dtype) for name, (shape, dtype) in spec.entries.items()}


def losses(name: str) -> dict[str, list[float]]:
    """Every loss of the first steps."""
    config = CONFIGS[name]
    data, model, step, *_ = built(name)
    state = jax.jit(initializer(config, model))(gather(data.train, np.arange(min(500, len(data)))))
    indices = batch_indices(len(data), config.batch_size, seed=config.seed, start=0, stop=STEPS)
    _, reports = jax.jit(scan_steps(step))(state, gather(data.train, indices))
    metrics = {key: value for report in reports.values() for key, value in report.metrics.items() if "loss" in key}
    return {key: [float(f"{x:.8g}") for x in value] for key, value in metrics.items()}


def test_every_experiment_has_a_test_configuration():
    files = {path.stem for path in Path(vae_mnist.__file__).parent.glob("*_*.py")} - {"__init__"}
    assert files == {name.split()[0] for name in CONFIGS}


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_that_were_kept(name):
    """To rounding, which grows from step to step: other processors and compilers add in another order."""
    expected = json.loads(GOLDEN.read_text())[name]
    found = losses(name)
    assert found.keys() == expected.keys()
    for key, values in found.items():
        np.testing.assert_allclose(values[:10], expected[key][:10], rtol=1e-5, err_msg=key)
        np.testing.assert_allclose(values, expected[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_lowers_for_every_platform(name):
    _, _, step, state, batch = built(name)
    with jax.debug_key_reuse(True):  # one key, one draw
        exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(state, batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("name", SOME)
def test_the_steps_compile_for_sixteen_tpu_chips(name, record_property, capsys):
    """Without a TPU: the compiler is all that it takes."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: no compiler for TPUs")
    from jax.experimental import topologies

    topology = topologies.get_topology_desc("v5e:4x4", platform="tpu")
    mesh = Mesh(np.array(topology.devices), ("data",))
    data, model, _, state, _ = built(name)
    template = parallel.sharded(state, mesh)
    steps = parallel.compile_steps(partial(make_step, model, guard=True), template, mesh)
    compiled = steps.lower(template, shapes_of(data.spec, 2, 16 * 16)).compile()
    assert "all-reduce" in compiled.as_text()
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    record_property("bytes per chip", total)
    with capsys.disabled():
        print(f"\n{name} on 16 TPU chips: {total / 1e6:.1f} MB per chip")


def test_a_warning_is_of_the_figures_that_it_is_given():
    """And of nothing that was computed before, as for the last of several seeds."""
    data, *_ = built("vae_mnist")
    experiment = vae_mnist.build(CONFIGS["vae_mnist"], data.spec)
    assert experiment.warn({"active units": Estimate(1.0, 0.0)}) == []
    assert "0 of 4 latent dimensions" in experiment.warn({"active units": Estimate(0.0, 0.0)})[0]
    assert experiment.warn({}) == []  # the posterior was not finite


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_of_the_arithmetic_and_of_nothing_that_stays(name):
    """Every product of matrices and every convolution; parameters, optimiser and loss are float32."""
    config, data = CONFIGS[name], built(name)[0]
    other = replace(config, run=replace(config.run, dtype="bfloat16"))
    model = module_of(name).build(other, data.spec).model
    step, (state, batch) = make_step(model), built(name)[3:]
    with float32_inside() as found:
        text = jax.jit(step).lower(state, batch).as_text()
    assert found == set()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line or ".convolution(" in line]
    products = [line for line in products if "tensor<1x" not in line]  # power iterations of spectral normalisation stay
    products = [line for line in products if "HIGHEST" not in line]  # and what makes a spectrum of a sound
    assert products
    assert [line for line in products if "bf16" not in line] == []
    assert not any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(jax.eval_shape(step, state, batch)))


@contextmanager
def float32_inside() -> Iterator[set[str]]:
    """Layers within a network that return float32, but for those that end one and for power iterations."""
    found, ends = set(), {"Head", "SpectralNorm", "Transformer"}

    def look(method, args, options, context):
        output, module = method(*args, **options), context.module
        if module.scope is not None and module.path and context.method_name == "__call__":
            kinds = {x.dtype for x in jax.tree.leaves(output)}
            found.update({type(module).__name__} - ends if jnp.float32 in kinds else ())
        return output

    with nn.intercept_methods(look):
        yield found


@pytest.mark.parametrize("condition", [None, 3], ids=["without a condition", "with one"])
@pytest.mark.parametrize(
    "network",
    [
        *(Transformer(8, 4, 2, 4, 1, starts=s, positions=p) for s in (True, False) for p in ("rotary", "learned")),
        Transformer(8, 4, 2, 4, 1, dropout=0.1, remat=True, tied=False, bias=True, norm="layer"),
        WaveNet(8, dilations=(1, 2), width=4, skip=4),
        GRU(8, width=4),
        PixelCNN((2, 2, 1), 8, depth=2, width=4),
        MADE((2, 2, 1), 8, hidden=(4,)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_no_layer_of_a_bfloat16_network_goes_on_in_float32(network, condition):
    tokens = jnp.zeros((2, 4, 1) if isinstance(network, PixelCNN | MADE) else (2, 4), jnp.int32)
    given = None if condition is None else jnp.zeros((2, condition))
    network = network.clone(dtype="bfloat16")
    with float32_inside() as found:
        jax.eval_shape(network.init, jax.random.key(0), tokens, given)
    assert found == set()


@pytest.mark.parametrize("name", SOME)
def test_losses_in_bfloat16_are_nearly_those_in_float32(name):
    config, data = CONFIGS[name], built(name)[0]
    model = module_of(name).build(replace(config, run=replace(config.run, dtype="bfloat16")), data.spec).model
    first = gather(data.train, np.arange(config.batch_size))
    params = jax.jit(model.init)(jax.random.key(0), first)
    exact, rough = (jax.jit(m.evaluate)(params, first, jax.random.key(1)) for m in (built(name)[1], model))
    for key in exact:
        assert not np.array_equal(exact[key], rough[key]), key
        np.testing.assert_allclose(rough[key].mean(), exact[key].mean(), rtol=0.02, atol=0.02, err_msg=key)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses(name) for name in CONFIGS}, indent=1) + "\n")
