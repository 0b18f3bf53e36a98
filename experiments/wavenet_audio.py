"""A WaveNet of sounds, a sample at a time: python -m experiments.wavenet_audio --data.name audio:~/recordings

Default: synthetic plucked strings, conditional on their pitch (van den Oord et al. 2016), in 8-bit mu-law at 8 kHz.

Configurations, as an optional first word:
  notes             a wider WaveNet of plucked strings, half an hour on two CPU cores
  spoken_digit      spoken digits, a quarter of an hour on two CPU cores
  spoken_digit_gru  the same data and time with a recurrent network
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from msgspec import Meta

from experiments import audio
from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.decode import from_mu_law, mu_law
from jaxgen.emissions import Controls, categorical, logistic_mixture
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, per_example, ratio
from jaxgen.experiment import Experiment
from jaxgen.models.autoregressive import Autoregressive, Condition, Network, autoregressive
from jaxgen.networks.gru import GRU
from jaxgen.networks.wavenet import WaveNet
from jaxgen.ranges import Index, NonNegative, Partial, UpTo1k, UpTo1M, Width
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The network that predicts a sample."""

    network: Literal["wavenet", "gru"] = "wavenet"
    """Architecture: dilated convolutions (wavenet), or two recurrent layers (gru)."""
    dilations: Annotated[int, Meta(ge=1, le=20)] = 5
    """Number of layers per stack, of dilations 1, 2, 4, ... (of wavenet)."""
    stacks: Annotated[int, Meta(ge=1, le=16)] = 1
    """Number of stacks of layers (of wavenet)."""
    first_kernel: Annotated[int, Meta(ge=1, le=4_096)] = 64
    """Kernel size of the first layer in samples (of wavenet)."""
    width: Width = 32
    """Number of features of a layer."""
    skip: Width = 64
    """Number of features of the skip connections (of wavenet)."""
    dropout: Partial = 0.0
    """Dropout rate (of wavenet)."""
    components: UpTo1k | None = None
    """Number of logistics in a mixture over the 256 levels (default: a logit for each level)."""
    conditional: bool = True
    """Condition the network on the label, if there are labels."""
    condition_dropout: Partial = 0.0
    """Share of examples trained without their label, for --guidance."""


@dataclass(frozen=True)
class EvaluateConfig(audio.EvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    temperature: NonNegative = 1.0
    """Temperature of the sounds that are measured."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How sounds are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw (default: all classes in turn)."""
    seconds: Annotated[float, Meta(gt=0, le=3_600)] | None = None
    """Length of a sound in seconds (default: that of the data)."""
    guidance: NonNegative | None = None
    """Guidance scale: 1 is the model itself, larger values strengthen the conditioning on --label."""
    temperature: NonNegative = 1.0
    """Temperature: below 1 favors probable samples, 0 takes the most probable one."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/wavenet_audio")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 1_500
    """Number of training steps."""
    batch_size: UpTo1M = 4
    """Sounds per step."""
    data: flags.AudioDataConfig = field(default_factory=flags.AudioDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(
            learning_rate=5e-3, warmup_steps=50, clip_norm=1.0, ema_decay=0.99
        )
    )
    run: flags.RunConfig = field(
        default_factory=lambda: flags.RunConfig(log_every=100, evaluate_every=500, checkpoint_every=500, chunk=10)
    )
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(num_samples=200))
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    return audio.judgeable(config.data.load())


def build(config: Config, spec: Spec) -> Experiment:
    options, controls = config.model, config.sample
    (length,), _ = spec.entries["audio"]
    conditional = options.conditional and bool(spec.classes)
    check(config)
    flags.check_condition(conditional, controls.label, spec)
    if controls.guidance is not None and not (conditional and options.components is None):
        raise UserError("--guidance is towards a label, of logits: it wants a conditional model without components")
    if controls.guidance is not None and not options.condition_dropout:
        raise UserError("--guidance is of a model trained with --model.condition-dropout above 0")
    if options.components is None:
        emission, observe = categorical(256), lambda batch, key: mu_law(batch["audio"])
    else:
        emission, observe = logistic_mixture(options.components), lambda batch, key: mu_law(batch["audio"])[..., None]
    classes = len(spec.classes)
    label = Condition("label", classes, partial(jax.nn.one_hot, num_classes=classes))
    model = autoregressive(
        network=network_of(config, emission.width),
        emission=emission,
        codec=Codec(observe, lambda tokens: from_mu_law(tokens.reshape(*tokens.shape[:2]))),
        optimizer=config.optimizer.build(config.steps),
        length=length,
        per_token=True,
        condition=label if conditional else None,
        condition_dropout=options.condition_dropout if conditional else 0.0,
    )
    return experiment(model, config, spec, conditional)


def check(config: Config) -> None:
    """Raises UserError where a flag does not fit the networks or another flag."""
    if config.run.remat:
        raise UserError("--run.remat is not for these networks: leave it out")
    if (seconds := config.sample.seconds) is not None and not seconds * config.data.sample_rate >= 1:
        raise UserError(f"--seconds {seconds}: expected at least one sample, {1 / config.data.sample_rate:g} seconds")


def network_of(config: Config, outputs: int) -> Network:
    options, dtype = config.model, config.run.dtype
    if options.network == "gru":
        return GRU(outputs, width=options.width, dtype=dtype)
    dilations = tuple(2**i for i in range(options.dilations)) * options.stacks
    return WaveNet(
        outputs,
        dilations=dilations,
        first_kernel=options.first_kernel,
        width=options.width,
        skip=options.skip,
        dropout=options.dropout,
        dtype=dtype,
    )


def experiment(model: Autoregressive, config: Config, spec: Spec, conditional: bool) -> Experiment:
    """What there is to hear, to see and to measure of an autoregressive model of sounds."""
    rate, (length,) = config.data.sample_rate, spec.entries["audio"][0]
    protocol = f"{spec.name}, 8-bit mu-law at {rate} Hz{', given the label' * conditional}"
    sample = jax.jit(model.sample, static_argnames=("n", "length"))

    def validate(params, arrays, key):
        """Over the whole split, in nats per sample of the recordings."""
        loss = per_example(model.evaluate, params, arrays, key, batch_size=20)["loss"]  # nats / length
        return {"loss": ratio(length * loss, arrays["length"])}

    def generate(params, key, labels, **options):
        return np.asarray(sample(params, key, len(labels), labels if conditional else None, **options))

    def exhibits(params, arrays, key):
        labels = audio.labels_shown(spec)
        return audio.exhibits(generate(params, key, labels), labels, arrays, rate)

    def measure(params, arrays, key, on_progress):
        evaluate_key, sample_key = jax.random.split(key)
        loss = validate(params, arrays, evaluate_key)["loss"]
        bits = Estimate(loss.mean / math.log(2), loss.error / math.log(2))
        on_progress(0.3)
        labels = audio.labels_in_turn(spec, config.evaluate.num_samples)
        temperature = config.evaluate.temperature
        sounds = generate(params, sample_key, labels, controls=Controls(temperature))
        on_progress(0.8)
        asked, at = labels if conditional else None, "" if temperature == 1 else f", temperature {temperature:g}"
        return {f"test bits per sample ({protocol}, exact, {len(arrays['audio']):,} recordings)": bits} | audio.judged(
            sounds, asked, arrays, spec, rate, lambda: load(config), at
        )

    def draw(params, key, n, labels=None):
        controls = config.sample
        condition = audio.labels_asked(conditional, controls.label, n, labels, spec)
        return sample(
            params,
            key,
            n,
            condition,
            length=round(controls.seconds * rate) if controls.seconds else length,
            controls=Controls(controls.temperature, guidance=controls.guidance),
        )

    return Experiment(
        model,
        "Recurrent network" if config.model.network == "gru" else "WaveNet",
        protocol,
        exhibits,
        validate=validate,
        measure=measure,
        sample=draw,
        render=partial(audio.rendered, rate=rate),
        unit="sounds",
        out="sounds.wav",
    )


LONG = flags.RunConfig(log_every=100, evaluate_every=2_500, checkpoint_every=1_000, chunk=10)
DIGITS = Config(
    workdir=Path("runs/wavenet_digits"),
    steps=4_000,
    data=flags.AudioDataConfig("spoken_digit", strict=True),
    model=ModelConfig(dilations=10, skip=128, condition_dropout=0.1),
    run=LONG,
    evaluate=EvaluateConfig(num_samples=500),
)
NAMED = {
    # For half an hour on two CPU cores. At temperature 1 one note in twelve goes astray.
    "notes": Config(
        workdir=Path("runs/wavenet_notes"),
        steps=9_000,
        batch_size=8,
        model=ModelConfig(width=48, skip=128),
        run=LONG,
        evaluate=EvaluateConfig(num_samples=1_000, temperature=0.8),
        sample=SampleConfig(temperature=0.8),
    ),
    # Trained for the same time, a quarter of an hour on two CPU cores.
    "spoken_digit": DIGITS,
    "spoken_digit_gru": replace(
        DIGITS,
        workdir=Path("runs/gru_digits"),
        steps=400,
        batch_size=16,
        model=ModelConfig("gru", width=128, condition_dropout=0.1),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
