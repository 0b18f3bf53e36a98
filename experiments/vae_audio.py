"""A variational autoencoder of sounds: python -m experiments.vae_audio --data.name spoken_digit

Models log-mel spectrograms with convolutions over time; the algorithm of Griffin and Lim turns them into sounds.
Default: synthetic plucked strings, conditional on their pitch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
from msgspec import Meta

from experiments import audio
from experiments.audio import EvaluateConfig
from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.decode import from_wave, to_wave
from jaxgen.emissions import normal
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, evaluate, per_example
from jaxgen.experiment import Experiment, Latents
from jaxgen.models.vae import VAE, elbo, independent, vae
from jaxgen.networks.conv1d import Decoder, Encoder
from jaxgen.ranges import Index, NonNegative, Positive, UpTo1M, Width
from jaxgen.report import in_turn
from jaxgen.run import main
from jaxgen.spectra import Scale, frames, from_log_mel, log_mel
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The autoencoder, and what it sees of a sound."""

    latents: Width = 16
    """Latent dimensions."""
    channels: Annotated[tuple[Width, ...], Meta(min_length=1, max_length=16)] = (64, 128)
    """Channels of the encoder after each halving in time; the decoder mirrors them."""
    hidden: Width = 256
    """Width of the dense layers."""
    conditional: bool = True
    """Condition encoder and decoder on the label, if there are labels."""
    beta: NonNegative = 1.0
    """Weight of the KL divergence."""
    warmup_steps: Index = 0
    """Number of steps over which the weight of the KL grows from 0."""
    deviation: Positive | None = 0.1
    """Standard deviation of p(x | z), as a share of 80 decibels. None: predicted by the decoder for every bin."""
    size: Annotated[int, Meta(ge=2, le=8_192)] = 512
    """Samples per frame, a power of two."""
    hop: Width = 64
    """Samples between two frames."""
    bins: Annotated[int, Meta(ge=1, le=4_096)] = 80
    """Number of mel bins."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How sounds are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw (default: all classes in turn)."""
    temperature: NonNegative = 1.0
    """Standard deviation of the latents."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/vae_audio")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 2_000
    """Number of training steps."""
    batch_size: UpTo1M = 64
    """Sounds per step."""
    data: flags.AudioDataConfig = field(default_factory=flags.AudioDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(learning_rate=1e-3, clip_norm=1_000.0)
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=200, evaluate_every=1_000, chunk=20))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    return audio.judgeable(config.data.load())


def build(config: Config, spec: Spec) -> Experiment:
    options, controls = config.model, config.sample
    (length,), _ = spec.entries["audio"]
    conditional = options.conditional and bool(spec.classes)
    if options.size < 2 * options.hop or options.size & (options.size - 1):
        raise UserError(f"--model.size {options.size}: expected a power of two, at least twice --model.hop")
    flags.check_condition(conditional, controls.label, spec)
    scale = Scale(config.data.sample_rate, options.size, options.hop, options.bins)
    fixed = options.deviation
    emission = normal(options.bins, None if fixed is None else 2 * math.log(fixed))
    shape = frames(length, options.hop), emission.width
    beta = options.beta
    if options.warmup_steps:
        beta = optax.linear_schedule(0.0, options.beta, options.warmup_steps)

    def store(mel):
        return from_wave(from_log_mel(mel, length, scale))

    decoder = Decoder(shape, options.channels[::-1], options.hidden, dtype=config.run.dtype)
    model = vae(
        encoders=[Encoder(2 * options.latents, options.channels, options.hidden, config.run.dtype)],
        decoder=independent(decoder, emission, remat=config.run.remat),
        latents=(options.latents,),
        codec=Codec(lambda batch, key: log_mel(to_wave(batch["audio"]), scale), store),
        bound=elbo(beta),
        optimizer=config.optimizer.build(config.steps),
        num_classes=len(spec.classes) if conditional else 0,
    )
    return experiment(model, config, spec, conditional, store)


def experiment(model: VAE, config: Config, spec: Spec, conditional: bool, store: Callable) -> Experiment:
    """What there is to hear, to see and to measure of a variational autoencoder of sounds."""
    options, rate = config.model, config.data.sample_rate
    protocol = f"{spec.name}, log-mel of {options.bins} bins every {options.hop} samples at {rate} Hz"
    protocol += ", given the label" * conditional
    sample = jax.jit(model.sample, static_argnames=("n", "temperature"))
    observe, reconstruct, store = jax.jit(model.observe), jax.jit(model.reconstruct), jax.jit(store)

    def generate(params, key, labels, temperature=1.0):
        condition = labels if conditional else None
        return np.asarray(sample(params, key, len(labels), condition, temperature=temperature))

    def exhibits(params, arrays, key):
        """And held-out sounds that went through the latents and came back."""
        labels = audio.labels_shown(spec)
        observe_key, reconstruct_key, sample_key = jax.random.split(key, 3)
        some = {name: array[np.arange(10) % len(array)] for name, array in arrays.items()}
        rebuilt = reconstruct(
            params, observe(some, observe_key), reconstruct_key, some["label"] if conditional else None
        )
        pairs = np.stack([some["audio"], np.asarray(store(rebuilt))], axis=1).reshape(-1, some["audio"].shape[-1])
        shown = audio.exhibits(generate(params, sample_key, labels), labels, arrays, rate)
        return shown | {"recordings and what became of them": in_turn(pairs, rate)}

    def measure(params, arrays, key, on_progress):
        evaluate_key, sample_key = jax.random.split(key)
        elbo = evaluate(model.evaluate, params, arrays, evaluate_key)
        on_progress(0.3)
        labels = audio.labels_in_turn(spec, config.evaluate.num_samples)
        sounds = generate(params, sample_key, labels)
        on_progress(0.8)
        figures = {
            f"test -ELBO, nats ({protocol}, normal density)": Estimate(-elbo["elbo"].mean, elbo["elbo"].error),
            "test KL, nats": elbo["kl"],
        }
        asked = labels if conditional else None
        return figures | audio.judged(sounds, asked, arrays, spec, rate, lambda: load(config))

    def draw(params, key, n, labels=None):
        controls = config.sample
        condition = audio.labels_asked(conditional, controls.label, n, labels, spec)
        return sample(params, key, n, condition, temperature=controls.temperature)

    def means(params, arrays):
        def encode(params, batch, key):
            label = batch["label"] if conditional else None
            return {"mu": model.encode(params, model.observe(batch, key), label)[0]}

        return per_example(encode, params, arrays, jax.random.key(0))["mu"]

    return Experiment(
        model,
        "Variational autoencoder",
        protocol,
        exhibits,
        measure=measure,
        sample=draw,
        render=partial(audio.rendered, rate=rate),
        latents=Latents(
            prior=lambda key, n: jax.random.normal(key, (n, options.latents)),
            decode=lambda params, z, label: store(model.decode(params, z, label)),
            encode=means,
            conditional=conditional,
        ),
        unit="sounds",
        out="sounds.wav",
    )


NAMED: dict[str, Config] = {}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
