"""An autoregressive model of images: python -m experiments.pixelcnn_mnist --model.network made

Default: a gated PixelCNN (van den Oord et al. 2016) on dynamically binarized MNIST; its likelihood is exact. With
--data.binarization none it models all 256 levels by a mixture of discretized logistics (PixelCNN++).

Configurations, as an optional first word:
  full   a larger PixelCNN with dropout, for an accelerator
  made   a masked perceptron of one wide layer (Germain et al. 2015)
  fvsbn  a fully visible sigmoid belief network: a logistic regression of each pixel on the pixels before it
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.audit import images_audit
from jaxgen.classifier import judge_of_copies
from jaxgen.data import Dataset, Spec
from jaxgen.data.decode import dynamic_binarize
from jaxgen.emissions import Controls, bernoulli, logistic_mixture
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, evaluate
from jaxgen.experiment import Experiment
from jaxgen.models.autoregressive import Autoregressive, Condition, Network, autoregressive
from jaxgen.networks.made import MADE
from jaxgen.networks.pixelcnn import PixelCNN
from jaxgen.ranges import Depth, Index, NonNegative, Partial, Share, UpTo1k, UpTo1M, Width
from jaxgen.report import grid
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The network that predicts a pixel."""

    network: Literal["pixelcnn", "made"] = "pixelcnn"
    """Architecture: gated convolutions (pixelcnn), or a perceptron with masked weights (made)."""
    width: Width = 32
    """Number of features of each stack (of pixelcnn)."""
    depth: Depth = 8
    """Number of gated layers (of pixelcnn)."""
    first_kernel: Annotated[int, Meta(ge=3, le=255)] = 7
    """Kernel size of the first layer, an odd number (of pixelcnn)."""
    dropout: Partial = 0.0
    """Dropout rate."""
    hidden: Annotated[tuple[Width, ...], Meta(max_length=64)] = (1_000,)
    """Widths of the hidden layers (of made); none with --model.direct is a fully visible belief network."""
    direct: bool = False
    """Direct connections between pixels (of made)."""
    order: Literal["raster", "random"] = "raster"
    """Order of the pixels: raster (row by row), or random, the same in every run (of made)."""
    components: UpTo1k = 10
    """Number of logistics in the mixture of gray levels, for pixels that are not binarized."""
    conditional: bool = False
    """Condition the network on the label."""
    condition_dropout: Share = 0.1
    """Share of examples trained without their label, for --guidance."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How samples are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw, of a conditional model (default: without a condition, or all classes if the model was trained with
    --model.condition-dropout 0)."""
    guidance: NonNegative | None = None
    """Guidance scale: 1 is the model itself, larger values strengthen the conditioning on --label."""
    temperature: NonNegative = 1.0
    """Temperature: below 1 favors probable pixels, 0 takes the most probable one."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/pixelcnn_mnist")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 15_000
    """Number of training steps."""
    batch_size: UpTo1M = 16
    """Images per step."""
    data: flags.ImageDataConfig = field(default_factory=flags.ImageDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=100, clip_norm=100.0, ema_decay=0.999
        )
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=200, evaluate_every=4_000, chunk=10))
    evaluate: flags.ImageEvaluateConfig = field(default_factory=lambda: flags.ImageEvaluateConfig(copies=200))
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    return config.data.load()


def build(config: Config, spec: Spec) -> Experiment:
    options, controls = config.model, config.sample
    shape, dtype = spec.entries["image"]
    if dtype != "uint8":
        raise UserError(f"{spec.name} holds {dtype} images: expected uint8")
    flags.check_condition(options.conditional, controls.label, spec)
    if controls.guidance is not None and (controls.label is None or not options.condition_dropout):
        raise UserError("--guidance is towards a --label, of a model trained with --model.condition-dropout above 0")
    if controls.guidance is not None and spec.binarization == "none":
        raise UserError("--guidance is of logits, and --data.binarization none models mixtures: leave it out")
    if config.run.remat:
        raise UserError("--run.remat is not for these networks: leave it out")
    binary, height, width, channels = spec.binarization != "none", *shape
    emission = bernoulli(channels) if binary else logistic_mixture(options.components, channels)
    levels, classes = 2 if binary else 256, len(spec.classes)

    pixels = height * width
    # Raw numbers of a generator are the same in each version of NumPy: parameters mean nothing under another order.
    order = np.argsort(np.random.PCG64(0).random_raw(pixels)) if options.order == "random" else np.arange(pixels)

    def observe(batch, key):
        dynamic, image = spec.binarization == "dynamic", batch["image"]
        tokens = dynamic_binarize(image, key) if dynamic else image // (255 // (levels - 1))
        return tokens.reshape(-1, pixels, channels)[:, order].astype(jnp.int32)

    def store(tokens):
        image = tokens[:, np.argsort(order)] * (255 // (levels - 1))
        return image.astype(jnp.uint8).reshape(-1, *shape)

    label = Condition("label", classes, partial(jax.nn.one_hot, num_classes=classes))
    model = autoregressive(
        network=network_of(config, shape, emission.width, levels),
        emission=emission,
        codec=Codec(observe, store),
        optimizer=config.optimizer.build(config.steps),
        length=pixels,
        condition=label if options.conditional else None,
        condition_dropout=options.condition_dropout if options.conditional else 0.0,
    )
    return experiment(model, config, spec)


def network_of(config: Config, shape: tuple[int, ...], outputs: int, levels: int) -> Network:
    options = config.model
    common = {
        "shape": shape,
        "features_out": outputs,
        "levels": levels,
        "dropout": options.dropout,
        "dtype": config.run.dtype,
    }
    if options.network == "made":
        if not options.hidden and not options.direct:
            raise UserError("--model.hidden is empty: give widths, or --model.direct for a belief network")
        return MADE(hidden=options.hidden, direct=options.direct, **common)
    if options.order != "raster":
        raise UserError(f"--model.order {options.order} is of --model.network made: leave it out")
    if options.first_kernel % 2 == 0:
        raise UserError(f"--model.first-kernel {options.first_kernel}: expected an odd number")
    return PixelCNN(width=options.width, depth=options.depth, first_kernel=options.first_kernel, **common)


def experiment(model: Autoregressive, config: Config, spec: Spec) -> Experiment:
    """What there is to see and to measure of an autoregressive model of images."""
    conditional, classes = config.model.conditional, len(spec.classes)
    shape = spec.entries["image"][0]
    pixels = math.prod(shape[:-1])
    protocol = f"{spec.name}, {spec.binarization.replace('none', 'no')} binarisation{', given the label' * conditional}"
    sample = jax.jit(model.sample, static_argnames="n")
    observe = jax.jit(model.observe)

    def exhibits(params, arrays, key):
        """Samples; held-out images, and below them three times what the model makes of half of their pixels."""
        n = 10
        observe_key, completion_key, one_key, sample_key = jax.random.split(key, 4)
        some = {name: array[np.arange(n) % len(array)] for name, array in arrays.items()}
        tokens, label = observe(some, observe_key), some.get("label") if conditional else None
        half = jnp.repeat(tokens[None, :, : pixels // 2], 3, axis=0).reshape(3 * n, -1, shape[-1])
        labels = None if label is None else np.tile(label, 3)
        completed = sample(params, completion_key, 3 * n, labels, prompt=half)
        rows = np.concatenate([np.asarray(model.sample(params, one_key, n, prompt=tokens)), np.asarray(completed)])
        each = np.arange(64) % classes if conditional else None
        return {"samples": grid(np.asarray(sample(params, sample_key, 64, each))), "completions": grid(rows, columns=n)}

    def measure(params, arrays, key, on_progress):
        nll, count = evaluate(model.evaluate, params, arrays, key)["loss"], len(arrays["image"])
        bits = pixels * shape[-1] * math.log(2)
        return {
            f"test NLL, nats ({protocol}, exact, {count:,} images)": nll,
            f"test bits per dimension ({protocol})": Estimate(nll.mean / bits, nll.error / bits),
        }

    def draw(params, key, n, labels=None):
        controls = config.sample
        if labels is None and not config.model.condition_dropout:  # it never was without
            labels = jnp.arange(n) % max(classes, 1)
        label = flags.labels_asked(conditional, controls.label, n, labels)
        return sample(params, key, n, label, controls=Controls(controls.temperature, guidance=controls.guidance))

    audit = images_audit(
        draw=draw,
        evaluate=model.evaluate,
        attack="-loss",
        count=config.evaluate.copies,
        form=(lambda image, key: 255 * dynamic_binarize(image, key)) if spec.binarization == "dynamic" else None,
        judge=judge_of_copies(config, spec, load),
    )
    return Experiment(model, "Autoregressive model", protocol, exhibits, measure=measure, audit=audit, sample=draw)


NAMED = {
    # For an accelerator: meant for 81.3 nats or less.
    "full": Config(
        workdir=Path("runs/pixelcnn_full"),
        steps=25_000,
        batch_size=64,
        data=flags.ImageDataConfig(strict=True, validation=0.0),
        model=ModelConfig(width=64, depth=12, dropout=0.1),
        run=flags.RunConfig(log_every=500, evaluate_every=5_000, checkpoint_every=5_000),
    ),
    # Germain et al. 2015, with one wide layer. What it ends at is set by overfitting.
    "made": Config(
        workdir=Path("runs/made"),
        steps=45_000,
        batch_size=128,
        data=flags.ImageDataConfig(strict=True, validation=0.0),
        model=ModelConfig("made", dropout=0.1, hidden=(4_000,), direct=True, order="random"),
        optimizer=replace(Config().optimizer, learning_rate=4e-3),
        run=flags.RunConfig(log_every=500, evaluate_every=5_000),
    ),
    # A fully visible sigmoid belief network: a logistic regression of each pixel on those before it. Pixels that come
    # at random lie between some that are known already.
    "fvsbn": Config(
        workdir=Path("runs/fvsbn"),
        steps=20_000,
        batch_size=500,
        data=flags.ImageDataConfig(strict=True, validation=0.0),
        model=ModelConfig("made", hidden=(), direct=True, order="random"),
        optimizer=flags.OptimizerConfig(learning_rate=1e-2),
        run=flags.RunConfig(log_every=500, evaluate_every=5_000),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
