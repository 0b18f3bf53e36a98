"""A generative adversarial network of points in the plane: python -m experiments.gan_toy --seeds 10

The data are a mixture of 25 or 8 Gaussians, so that the modes missed by a generator can be counted.

Configurations, as an optional first word:
  pacgan   the protocol of Lin et al. 2018 with packing: 400 epochs of 100,000 points
  vanilla  the same protocol without packing
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import flax.linen as nn
import jax
import numpy as np
from msgspec import Meta

from experiments import gan_mnist
from experiments.gan_mnist import game
from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.points import SIGMA, centers, load_points
from jaxgen.data.source import hold_out
from jaxgen.evaluate import Estimate, evaluate
from jaxgen.experiment import Experiment, Latents
from jaxgen.metrics.fidelity import mixture_modes
from jaxgen.models.gan import GAN, gan
from jaxgen.networks.dcgan import leaky_relu
from jaxgen.networks.mlp import MLP, fourier, maxout
from jaxgen.ranges import Index, NonNegative, Positive, UpTo1M, Width, Widths
from jaxgen.report import scatter
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class DataConfig(flags.DataConfig):
    """Which points."""

    name: Literal["grid", "ring"] = "grid"
    """Mixture: grid (25 modes at {-4, -2, 0, 2, 4}^2), or ring (8 modes on the unit circle)."""
    count: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Points of the training data."""
    sigma: Positive | None = None
    """Standard deviation of each mode (default: grid 0.05, ring 0.01)."""


@dataclass(frozen=True)
class ModelConfig(gan_mnist.GameConfig):
    """The two networks and their game."""

    network: Literal["mlp", "pacgan"] = "mlp"
    """Architecture: perceptrons with Fourier features (mlp), or those of Lin et al. 2018 (pacgan)."""
    hidden: Widths = (128, 128, 128)
    """Widths of the hidden layers of each network (of mlp)."""
    latents: Width = 10
    """Latent dimensions."""
    prior: Literal["normal", "uniform", "mixture"] = "mixture"
    """Distribution of each latent: N(0, 1), uniform in [-1, 1], or a mixture around -1 and 1, so that modes need not be
    connected."""
    r1: NonNegative = 0.1
    """Weight gamma of the squared gradient norm at real examples."""
    r2: NonNegative = 0.1
    """Weight gamma of the squared gradient norm at generated examples."""


@dataclass(frozen=True)
class EvaluateConfig(flags.EvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    num_samples: UpTo1M = 2_500
    """Number of generated points to measure; Lin et al. 2018 use 2,500."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/gan_toy")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 12_000
    """Number of training steps."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(learning_rate=1e-3, b1=0.0, b2=0.9, ema_decay=0.999)
    )
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def load(config: Config) -> Dataset:
    points = load_points(config.data.name, count=config.data.count, sigma=config.data.sigma)
    return hold_out(points, config.data.validation)


def build(config: Config, spec: Spec) -> Experiment:
    gan_mnist.check_game(config, config.model)
    generator, discriminator = networks(config)
    model = gan(
        generator=generator,
        discriminator=discriminator,
        **game(config, config.model),
        latents=config.model.latents,
        prior=config.model.prior,
        codec=Codec(lambda batch, key: batch["point"], lambda x: x),
    )
    return experiment(model, config)


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    if config.model.network == "pacgan":
        mlp = partial(MLP, kernel_init=nn.initializers.normal(0.02), dtype=config.run.dtype)
        return mlp((400,) * 4, (2,), activation=nn.relu, norm="batch"), mlp((5 * 200,) * 3, (1,), activation=maxout)
    # The shortest wave that the discriminator sees is some sixteen standard deviations of a mode long.
    sigma = config.data.sigma or SIGMA[config.data.name]
    octaves = 1 + max(0, round(math.log2(math.pi / 8 / sigma)))
    mlp = partial(MLP, kernel_init=nn.initializers.he_normal(), dtype=config.run.dtype)
    generator = mlp(config.model.hidden, (2,), activation=leaky_relu, embed=partial(fourier, octaves=4))
    return generator, generator.clone(shape=(1,), embed=partial(fourier, octaves=octaves))


def experiment(model: GAN, config: Config) -> Experiment:
    """What there is to see and to measure of a generator of points."""
    means, sigma = centers(config.data.name), config.data.sigma or SIGMA[config.data.name]
    sample = jax.jit(model.sample, static_argnames="n")
    far = 3 * np.abs(means).max()  # a point beyond is as far away as any

    def count(params, key):
        points = np.asarray(sample(params, key, n=config.evaluate.num_samples))
        found = mixture_modes(np.clip(np.nan_to_num(points, nan=far), -far, far), means, sigma)
        return {
            f"modes of {len(means)}": Estimate(found.hit, 0.0),
            "points within 3 sigma of a mode, %": Estimate(100 * found.quality, 0.0),
        }

    def measure(params, arrays, key, on_progress):
        protocol = f"{config.data.name}, sigma {sigma:g}, {config.evaluate.num_samples:,} samples"
        return {f"{name} ({protocol})": value for name, value in count(params, key).items()}

    def validate(params, arrays, key):
        sample_key, key = jax.random.split(key)
        means = evaluate(model.evaluate, params, arrays, key)
        return count(params, sample_key) | {name: means[name] for name in ("discriminator loss", "discriminator real")}

    def warn(figures):
        hit = figures[f"modes of {len(means)}"].mean
        return [f"samples hit {hit:g} of {len(means)} modes"] if hit < len(means) / 2 else []

    def pictures(params, arrays, key):
        return {"samples": scatter(np.asarray(sample(params, key, n=2_500)), arrays["point"][:2_500])}

    return Experiment(
        model,
        "Generative adversarial network",
        f"{config.data.name}, {config.evaluate.num_samples:,} samples",
        pictures,
        validate=validate,
        criterion="",
        warn=warn,
        measure=measure,
        render=lambda points, columns=None: scatter(points, means),
        latents=Latents(
            prior=model.prior,
            decode=lambda params, z, label: model.generate(params, z),
            spherical=config.model.prior == "normal",
        ),
        unit="points",
        out="points.png",
    )


# Lin et al. 2018, section 4.1: 400 epochs of 1,000 batches, each of 100 rows of points.
PACGAN = Config(
    workdir=Path("runs/pacgan"),
    steps=400_000,
    batch_size=400,
    data=DataConfig(validation=0.0),
    model=ModelConfig("non_saturating", network="pacgan", latents=2, prior="normal", r1=0.0, r2=0.0, pack=4),
    optimizer=flags.OptimizerConfig(learning_rate=1e-4, schedule="constant", b1=0.8),
    run=flags.RunConfig(log_every=2_000, evaluate_every=20_000, checkpoint_every=20_000),
)
NAMED = {
    "pacgan": PACGAN,
    "vanilla": replace(PACGAN, workdir=Path("runs/vanilla"), batch_size=100, model=replace(PACGAN.model, pack=1)),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
