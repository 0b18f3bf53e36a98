"""A generative adversarial network of waveforms: python -m experiments.gan_audio --data.name spoken_digit

Networks after WaveGAN (Donahue et al. 2019): strided convolutions over time, conditional on the label, with the loss
and penalties of gan_mnist. Default: synthetic plucked strings.

Configurations, as an optional first word:
  wavegan  loss and optimizer of Donahue et al. 2019 (WGAN-GP, 5 steps of the discriminator per step); not yet run
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from msgspec import Meta

from experiments import audio
from experiments.audio import EvaluateConfig
from experiments.gan_mnist import GameConfig, check_game, game
from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.decode import from_wave, to_wave
from jaxgen.errors import UserError
from jaxgen.evaluate import evaluate
from jaxgen.experiment import Experiment, Latents
from jaxgen.models.gan import GAN, gan
from jaxgen.networks.conv1d import Discriminator, Generator
from jaxgen.networks.norm import Kind
from jaxgen.ranges import Index, Positive, UpTo1M, Width
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig(GameConfig):
    """The two networks and their game."""

    width: Width = 8
    """Number of channels at the highest resolution."""
    layers: Annotated[int, Meta(ge=1, le=12)] = 4
    """Number of layers of each network, of stride 4."""
    phase_shuffle: Index = 0
    """Largest shift of the discriminator's features before each layer, in samples (Donahue et al. 2019)."""
    latents: Width = 64
    """Latent dimensions."""
    conditional: bool = True
    """Condition both networks on the label, if there are labels."""
    norm: Kind = "batch"
    """Normalization in the generator."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How sounds are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw (default: all classes in turn)."""
    truncation: Positive | None = None
    """Largest absolute value of a latent: lower values give more typical and less diverse samples. None is no bound."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/gan_audio")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 1_500
    """Number of training steps."""
    batch_size: UpTo1M = 32
    """Sounds per step."""
    data: flags.AudioDataConfig = field(default_factory=flags.AudioDataConfig)
    # Waves are quiet: at an image's weight of 1 the penalties leave the discriminator nothing to tell them by.
    model: ModelConfig = field(default_factory=lambda: ModelConfig(r1=0.03, r2=0.03, lazy=4))
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(learning_rate=1e-3, b1=0.0, b2=0.99, ema_decay=0.995)
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=100, evaluate_every=500, chunk=10))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    return audio.judgeable(config.data.load())


def build(config: Config, spec: Spec) -> Experiment:
    options, controls = config.model, config.sample
    (length,), _ = spec.entries["audio"]
    conditional = options.conditional and bool(spec.classes)
    check_game(config, options)
    flags.check_condition(conditional, controls.label, spec)
    if 4**options.layers > length:
        raise UserError(
            f"--model.layers {options.layers}: expected 4 to the power of the layers up to {length}, the samples of a "
            "sound"
        )
    if not options.phase_shuffle < length // 4**options.layers:
        raise UserError(
            f"--model.phase-shuffle {options.phase_shuffle}: expected 0 to {length // 4**options.layers - 1}, "
            "less than the last layer is long"
        )
    common = {"width": options.width, "layers": options.layers, "dtype": config.run.dtype}
    model = gan(
        generator=Generator(length, norm=options.norm, **common),
        discriminator=Discriminator(phase_shuffle=options.phase_shuffle, **common),
        **game(config, options),
        latents=options.latents,
        codec=Codec(lambda batch, key: to_wave(batch["audio"])[..., None], lambda wave: from_wave(wave[..., 0])),
        num_classes=len(spec.classes) if conditional else 0,
    )
    return experiment(model, config, spec, conditional)


def experiment(model: GAN, config: Config, spec: Spec, conditional: bool) -> Experiment:
    """What there is to hear, to see and to measure of a generator of waves."""
    rate = config.data.sample_rate
    sample = jax.jit(model.sample, static_argnames=("n", "truncation"))

    def generate(params, key, labels, truncation=None):
        condition = labels if conditional else None
        return np.asarray(sample(params, key, len(labels), condition, truncation=truncation))

    def exhibits(params, arrays, key):
        labels = audio.labels_shown(spec)
        return audio.exhibits(generate(params, key, labels), labels, arrays, rate)

    def measure(params, arrays, key, on_progress):
        sample_key, key = jax.random.split(key)
        labels = audio.labels_in_turn(spec, config.evaluate.num_samples)
        sounds = generate(params, sample_key, labels)
        on_progress(0.5)
        asked = labels if conditional else None
        figures = audio.judged(sounds, asked, arrays, spec, rate, lambda: load(config))
        return figures or {f"test {k}": v for k, v in evaluate(model.evaluate, params, arrays, key).items()}

    def draw(params, key, n, labels=None):
        controls = config.sample
        condition = audio.labels_asked(conditional, controls.label, n, labels, spec)
        return sample(params, key, n, condition, truncation=controls.truncation)

    return Experiment(
        model,
        "Generative adversarial network",
        f"{spec.name} at {rate} Hz",
        exhibits,
        criterion="",
        measure=measure,
        sample=draw,
        render=partial(audio.rendered, rate=rate),
        latents=Latents(
            prior=model.prior,
            decode=lambda params, z, label: from_wave(model.generate(params, z, label)[..., 0]),
            conditional=conditional,
        ),
        unit="sounds",
        out="sounds.wav",
    )


NAMED = {
    # Donahue et al. 2019: WGAN-GP, five steps of the discriminator for one of the generator; not yet run.
    "wavegan": Config(
        workdir=Path("runs/wavegan"),
        steps=100_000,
        batch_size=64,
        model=ModelConfig(
            "wasserstein",
            r1=0.0,
            r2=0.0,
            gradient_penalty=10.0,
            n_critic=5,
            norm="none",
            width=64,
            latents=100,
            phase_shuffle=2,
        ),
        optimizer=flags.OptimizerConfig(learning_rate=1e-4, schedule="constant", b1=0.5, b2=0.9),
        run=flags.RunConfig(log_every=200, evaluate_every=10_000, checkpoint_every=5_000, chunk=10),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
