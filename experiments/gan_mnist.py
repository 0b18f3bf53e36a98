"""A generative adversarial network of images: python -m experiments.gan_mnist --model.loss hinge --model.spectral

Default: convolutional networks after Radford et al. 2016, conditional on the label, with the relativistic loss and the
gradient penalties of Huang et al. 2024 (R3GAN).

Configurations, as an optional first word:
  dcgan  the recipe of Radford et al. 2016: batch normalization, Adam at 2e-4 with beta1 0.5, no penalty, no average
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.audit import images_audit
from jaxgen.classifier import Classifier, classifier, inception, shortage
from jaxgen.data import Dataset, Spec
from jaxgen.data.augment import diff_augment
from jaxgen.data.decode import from_signed, to_signed
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, estimate, evaluate, interval
from jaxgen.experiment import Experiment, Latents, in_batches
from jaxgen.interpolation import spherical, straight
from jaxgen.metrics import fidelity
from jaxgen.models import gan as gans
from jaxgen.models.gan import GAN, gan
from jaxgen.networks import dcgan, residual
from jaxgen.networks.norm import Kind
from jaxgen.ranges import Index, NonNegative, Positive, UpTo1k, UpTo1M, UpTo10k, Width
from jaxgen.report import grid
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class GameConfig:
    """What generator and discriminator play."""

    loss: Literal["relativistic", "non_saturating", "minimax", "hinge", "wasserstein", "least_squares"] = "relativistic"
    """Loss of generator and discriminator."""
    r1: NonNegative = 1.0
    """Weight gamma of the squared gradient norm at real examples."""
    r2: NonNegative = 1.0
    """Weight gamma of the squared gradient norm at generated examples."""
    gradient_penalty: NonNegative = 0.0
    """Weight of the gradient penalty of WGAN-GP, which uses 10."""
    lazy: UpTo10k = 1
    """Steps between two penalties, whose weight grows accordingly."""
    n_critic: UpTo10k = 1
    """Number of steps of the discriminator per step of the generator."""
    discriminator_rate: Positive = 1.0
    """Learning rate of the discriminator, as a multiple of the generator's."""
    pack: UpTo1k = 1
    """Number of examples that the discriminator sees together (PacGAN, Lin et al. 2018)."""


@dataclass(frozen=True)
class ModelConfig(GameConfig):
    """The two networks and their game."""

    network: Literal["dcgan", "residual"] = "dcgan"
    """Architecture of generator and discriminator."""
    width: Width = 32
    """Number of channels at the highest resolution."""
    latents: Width = 64
    """Latent dimensions."""
    prior: Literal["normal", "uniform"] = "normal"
    """Distribution of each latent: N(0, 1), or uniform in [-1, 1]."""
    conditional: bool = True
    """Condition both networks on the label, if the data have labels."""
    norm: Kind = "batch"
    """Normalization in the generator."""
    discriminator_norm: Kind = "none"
    """Normalization in the discriminator."""
    spectral: bool = False
    """Spectral normalization of the discriminator."""
    augment: tuple[Literal["translation", "cutout", "colour"], ...] = ()
    """Augmentations of all inputs of the discriminator, for small data sets."""
    augment_target: Annotated[float, Meta(ge=-1, le=1)] | None = None
    """Target of the mean sign of the discriminator at real images, which controls the strength of the augmentations
    (ADA: 0.6)."""


@dataclass(frozen=True)
class EvaluateConfig(flags.ImageEvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    metrics: str = "frechet,kernel,prdc,labels"
    """Some of frechet, kernel, prdc, and of labelled data score and labels (that a classifier gives), separated by
    commas."""
    judge: bool = True
    """Compare samples with held-out images in the features of a network: trained once on the labels of the data, on
    rotations of images without labels (Gidaris et al. 2018), or given by --evaluate.inception."""
    num_samples: Annotated[int, Meta(ge=10, le=1_000_000)] = 10_000
    """Number of generated images to measure, and at most as many held-out images."""
    truncation: Positive | None = 2.0
    """Largest absolute value of a latent: lower values give more typical and less diverse samples. None is no bound."""
    inception: Path | None = None
    """Weights of FID's Inception network, to compare samples in its features."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How samples are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw, of a conditional model (default: all classes)."""
    truncation: Positive | None = 2.0
    """Largest absolute value of a latent: lower values give more typical and less diverse samples. None is no bound."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/gan_mnist")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 12_000
    """Number of training steps."""
    batch_size: UpTo1M = 64
    """Images per step."""
    data: flags.ImageDataConfig = field(default_factory=lambda: flags.ImageDataConfig(binarization="none"))
    model: ModelConfig = field(default_factory=lambda: ModelConfig(lazy=4))
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(learning_rate=1e-3, b1=0.0, b2=0.99, ema_decay=0.999)
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=200, evaluate_every=2_000))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    weights = config.evaluate.inception
    if weights is not None and not weights.is_file():  # said before hours of training, not after
        raise UserError(f"--evaluate.inception {weights}: there is no such file; see python -m jaxgen data inception")
    return judgeable(config, config.data.load())


def judgeable(config: Config, data: Dataset) -> Dataset:
    """The data, with a notice if a judge was asked for and there are too few to train one."""
    reason = shortage(data, bool(data.classes)) if config.evaluate.judge and config.evaluate.inception is None else ""
    return data.noted(reason) if reason else data


def build(config: Config, spec: Spec) -> Experiment:
    check(config, spec)
    judge = cache(lambda: judge_of(config, spec, lambda: load(config)))
    return experiment(model_of(config, spec), config, spec, judge)


def check(config: Config, spec: Spec) -> None:
    """Raises UserError where flags do not fit the data or each other."""
    options, controls = config.model, config.sample
    dcgan.halvings(spec.entries["image"][0])
    if spec.entries["image"][1] != "uint8":
        raise UserError(f"{spec.name} holds {spec.entries['image'][1]} images: expected uint8")
    flags.check_condition(options.conditional and bool(spec.classes), controls.label, spec)
    if spec.binarization == "dynamic":
        raise UserError("--data.binarization dynamic is for likelihoods: use none, or fixed")
    if options.augment_target is not None and options.loss not in ("non_saturating", "minimax", "hinge"):
        raise UserError(
            "--model.augment-target wants a discriminator that is above 0 for real images: "
            f"--model.loss non_saturating, minimax or hinge, not {options.loss}"
        )
    if options.augment_target is not None and not options.augment:
        raise UserError("--model.augment-target has nothing to steer: name some --model.augment")
    check_game(config, options)
    for name in config.evaluate.metrics.split(","):
        if name not in METRICS:
            raise UserError(f"--metrics {config.evaluate.metrics}: expected some of {', '.join(METRICS)}, with commas")
    if "score" in config.evaluate.metrics.split(",") and config.evaluate.inception is None and not spec.classes:
        raise UserError(
            f"--metrics {config.evaluate.metrics}: score expects classes, and {spec.name} has no labels: leave it out, "
            "or give --inception"
        )


def check_game(config: flags.Config, options: GameConfig) -> None:
    """Raises UserError where flags of the game exclude each other or do not fit the batch."""
    if config.run.remat and getattr(options, "network", None) != "residual":
        raise UserError("--run.remat is of residual blocks, and these networks have none: leave it out")
    if config.batch_size % (options.pack * config.run.accumulate):
        parts = f" times --run.accumulate {config.run.accumulate}" if config.run.accumulate > 1 else ""
        raise UserError(f"--batch-size {config.batch_size}: expected a multiple of --model.pack {options.pack}{parts}")
    if options.pack > 1 and config.optimizer.private:
        raise UserError(
            f"--model.pack {options.pack} judges several examples together, and private training sees one at a time: "
            "leave it out, or --optimizer.noise-multiplier"
        )
    if options.pack > 1 and config.run.parallel != "jit":
        raise UserError(f"--model.pack {options.pack} is for jit: leave out --run.parallel {config.run.parallel}")


def model_of(config: Config, spec: Spec) -> GAN:
    """The networks, sized by the shape [H, W, C] of one image, and their game."""
    options = config.model
    shape, networks = spec.entries["image"][0], {"dcgan": dcgan, "residual": residual}[options.network]
    common = {"width": options.width, "dtype": config.run.dtype}
    common |= {"remat": config.run.remat} if options.network == "residual" else {}
    return gan(
        generator=networks.Generator(shape, norm=options.norm, **common),
        discriminator=networks.Discriminator(norm=options.discriminator_norm, spectral=options.spectral, **common),
        **game(config, options),
        latents=options.latents,
        prior=options.prior,
        codec=Codec(lambda batch, key: to_signed(batch["image"]), from_signed),
        num_classes=len(spec.classes) if options.conditional else 0,  # none without labels
        augment=diff_augment(options.augment) if options.augment else None,
        augment_target=options.augment_target,
        augment_step=config.batch_size / 500_000,
    )


def game(config: flags.Config, options: GameConfig) -> dict:
    """Loss, penalties and optimisers."""
    weights = {gans.r1: options.r1, gans.r2: options.r2, gans.gradient_penalty: options.gradient_penalty}
    critic = replace(config.optimizer, learning_rate=config.optimizer.learning_rate * options.discriminator_rate)
    penalties = [penalty(weight, options.lazy) for penalty, weight in weights.items() if weight]
    extra = len(penalties) if options.lazy > 1 else 0
    if extra:  # Karras et al. 2020, appendix B, for each penalty: the optimiser takes 1 / k as many steps more
        c = options.lazy / (options.lazy + extra)
        critic = replace(critic, learning_rate=critic.learning_rate * c, b1=critic.b1**c, b2=critic.b2**c)
    return {
        "loss": LOSSES[options.loss],
        "penalties": penalties,
        "generator_optimizer": config.optimizer.build(config.steps // options.n_critic),
        "discriminator_optimizer": critic.build(config.steps + extra * (config.steps // options.lazy)),
        "n_critic": options.n_critic,
        "pack": options.pack,
    }


# What there is to see and to measure ----------------------------------------------------------------------------------

LOSSES = {
    "relativistic": gans.relativistic(),
    "non_saturating": gans.non_saturating(),
    "minimax": gans.minimax(),
    "hinge": gans.hinge(),
    "wasserstein": gans.wasserstein(),
    "least_squares": gans.least_squares(),
}
METRICS = ("frechet", "kernel", "prdc", "score", "labels")


def judge_of(config: Config, spec: Spec, load: Callable[[], Dataset]) -> Classifier | None:
    """The network that judges: FID's Inception network if its weights are given, else one trained on the data.

    None if the data are too few, or --evaluate.no-judge.
    """
    path = config.evaluate.inception
    if not config.evaluate.judge:
        return None
    return classifier(load, spec.digest, labels=bool(spec.classes)) if path is None else inception(path)


def experiment(model: GAN, config: Config, spec: Spec, judge: Callable[[], Classifier | None]) -> Experiment:
    """What there is to see and to measure of a generator of images."""
    classes = len(spec.classes)
    conditional = config.model.conditional and classes > 0
    knows_classes = config.evaluate.inception is None and classes > 0  # FID's network knows others
    truncation = config.evaluate.truncation if config.model.prior == "normal" else None
    generate, sample = jax.jit(model.generate), jax.jit(model.sample, static_argnames=("n", "truncation"))
    discriminate = jax.jit(model.discriminate)

    def pictures(params, arrays, key):
        """Samples of the same latents each time, a latent a row and a class a column; paths between latents."""
        rows, columns = 10, 10
        path_key, key = jax.random.split(key)
        z = model.prior(path_key, rows)
        label = jnp.tile(jnp.arange(columns) % classes, rows) if conditional else None
        each = jnp.repeat(z, columns, axis=0) if conditional else model.prior(key, rows * columns)
        path, ends = spherical if config.model.prior == "normal" else straight, np.asarray(z)
        t = np.linspace(0, 1, columns)
        paths = np.concatenate([path(start, end, t) for start, end in zip(ends, np.roll(ends, 1, axis=0), strict=True)])
        path_label = jnp.repeat(jnp.arange(rows) % classes, columns) if conditional else None
        return {
            "samples": grid(np.asarray(from_signed(generate(params, each, label))), columns=columns),
            "interpolations": grid(np.asarray(from_signed(generate(params, paths, path_label))), columns=columns),
        }

    def draw_many(params, key, n, on_progress=lambda share: None):
        """As many images, of every class equally many, and the labels asked for."""
        size, labels = min(500, n), np.arange(n) % max(classes, 1)

        def some(key, rows):
            return sample(params, key, size, labels[rows] if conditional else None, truncation=truncation)

        return in_batches(some, key, n, size, on_progress), labels

    def validate(params, arrays, key):
        """The measures, quickly, on 1,000 images; and whether the two networks still have something to learn."""
        n = min(1_000, len(arrays["image"]))
        images, labels = draw_many(params, key, n)
        condition = arrays["label"][:n] if conditional else None
        on_real = discriminate(params, to_signed(arrays["image"][:n]), condition)
        on_fake = discriminate(params, to_signed(images), labels if conditional else None)
        figures = {"discriminator AUC": np.mean(on_real[:, None] > on_fake[None, :])}
        network = judge()
        if network is not None:
            features, probabilities = network.apply(images)
            expected, _ = real_features(arrays, n)
            figures["Frechet distance"] = fidelity.frechet_distance(expected, features)
            figures["diversity"] = features.var(0).sum() / expected.var(0).sum()
        if network is not None and knows_classes:
            given = probabilities.argmax(-1)
            figures["modes"] = fidelity.mode_coverage(given, probabilities.shape[-1]).hit
            if conditional:
                figures["accuracy"] = np.mean(given == labels)
        return {name: Estimate(float(value), 0.0) for name, value in figures.items()}

    def warn(figures):
        diversity = figures["diversity"].mean if "diversity" in figures else math.inf
        apart = figures["discriminator AUC"].mean
        if apart > 0.995:
            yield f"the discriminator tells {apart:.1%} of real and generated images apart: it is saturated"
        if diversity < 0.5:
            yield f"samples are alike: their features vary {diversity:.2f} times as much as those of the data"

    def measure(params, arrays, key, on_progress):
        n, names = config.evaluate.num_samples, config.evaluate.metrics.split(",")
        network = judge()
        if network is None:
            return {f"test {k}": v for k, v in evaluate(model.evaluate, params, arrays, key).items()}
        images, labels = draw_many(params, key, n, on_progress)
        features, probabilities = network.apply(images)
        expected, _ = real_features(arrays, n)
        cut = f", latents truncated at {truncation:g}" if truncation else ""
        of = f"{network.name}; {n:,} samples{cut}, {len(expected):,} held out"
        figures = {}
        for name, value in fidelity.measures(expected, features, [m for m in names if m in fidelity.MEASURES]).items():
            figures[f"{TITLES.get(name, name)} ({of})"] = interval(value)
        if "score" in names:
            figures[f"score ({of})"] = interval(
                fidelity.bootstrap(fidelity.classifier_score, probabilities, resamples=100)
            )
        if "labels" in names and knows_classes:
            given, modes = probabilities.argmax(-1), probabilities.shape[-1]
            coverage = fidelity.mode_coverage(given, modes)
            figures[f"modes of {modes:,} ({of})"] = Estimate(coverage.hit, 0.0)
            kl = fidelity.bootstrap(lambda given: fidelity.mode_coverage(given, modes).kl, given, resamples=100)
            figures[f"KL of the modes from uniform, nats ({of})"] = interval(kl)
            if conditional:
                figures[f"samples of the class asked for, % ({of})"] = estimate(100.0 * (given == labels))
        return figures

    def real_features(arrays, count):
        """Of held-out images; those of the last time are remembered."""
        if known.get("count") != count or known["image"] is not arrays["image"]:
            found = judge().apply(arrays["image"][:count])
            known.update(count=count, image=arrays["image"], found=found)
        return known["found"]

    known = {}

    def draw(params, key, n, labels=None):
        controls = config.sample
        condition = flags.labels_asked(conditional, controls.label, n, labels)
        return sample(params, key, n, condition, truncation=controls.truncation)

    return Experiment(
        model,
        "Generative adversarial network",
        spec.name,
        pictures,
        validate=validate,
        criterion="Frechet distance",
        warn=lambda figures: list(warn(figures)),
        measure=measure,
        audit=images_audit(
            draw=draw,
            evaluate=model.evaluate,
            attack="discriminator real",
            count=config.evaluate.copies,
            judge=judge if config.evaluate.features else None,
        ),
        sample=draw,
        latents=Latents(
            prior=model.prior,
            decode=lambda params, z, label: from_signed(generate(params, z, label)),
            spherical=config.model.prior == "normal",
            conditional=conditional,
        ),
    )


TITLES = {"frechet": "Frechet distance", "kernel": "kernel distance"}
DCGAN = ModelConfig(
    width=32,
    latents=100,
    prior="uniform",
    conditional=False,
    loss="non_saturating",
    r1=0.0,
    r2=0.0,
    discriminator_norm="batch",
)
NAMED = {
    # Radford et al. 2016: batch normalisation in both networks, Adam at 2e-4 with beta1 0.5, no average, no penalty.
    "dcgan": Config(
        workdir=Path("runs/dcgan"),
        batch_size=128,
        model=DCGAN,
        optimizer=flags.OptimizerConfig(learning_rate=2e-4, schedule="constant", b1=0.5),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
