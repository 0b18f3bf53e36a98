"""A variational autoencoder of images: python -m experiments.vae_mnist --optimizer.learning-rate 3e-4

Default: the model of Burda et al. 2015 with one stochastic layer (784-200-200-50) on dynamically binarized MNIST, so
that its test likelihood compares with their Table 1.

Configurations, as an optional first word:
  burda-1layer-k1       their protocol for one stochastic layer: 1 importance sample, the evidence lower bound
  burda-1layer-k5       the same with 5 importance samples (IWAE)
  burda-1layer-k50      the same with 50 importance samples
  burda-1layer-k50-dreg the same with 50 importance samples and the gradient of Tucker et al. 2019
  burda-2layer-k1       two stochastic layers of 100 and 50 latents: 1 importance sample
  burda-2layer-k5       two stochastic layers: 5 importance samples
  burda-2layer-k50      two stochastic layers: 50 importance samples
  flax                  sizes and length of the example of flax, on MNIST binarized once
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.audit import images_audit
from jaxgen.classifier import judge_of_copies
from jaxgen.data import Dataset, Spec
from jaxgen.data.decode import dynamic_binarize, to_uint8, to_unit
from jaxgen.emissions import Emission, bernoulli, discretized_logistic, normal
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, estimate, importance_weighted_nll, per_example
from jaxgen.experiment import Experiment, Latents
from jaxgen.interpolation import straight
from jaxgen.keys import key_for
from jaxgen.metrics import latents
from jaxgen.models.vae import VAE, Bound, beta_tc, dreg, elbo, independent, iwae, resampled, staged, vae
from jaxgen.networks import conv, mlp
from jaxgen.ranges import Index, NonNegative, UpTo10k, Widths
from jaxgen.report import grid, latent_map
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The autoencoder."""

    network: Literal["mlp", "conv"] = "mlp"
    """Architecture of encoder and decoder."""
    hidden: Widths = (200,)
    """Width of the hidden layers, one number per stochastic layer, from the data upwards."""
    depth: Annotated[int, Meta(ge=0, le=128)] = 2
    """Number of hidden layers of each network (of mlp)."""
    latents: Widths = (50,)
    """Latent dimensions, one number per stochastic layer, from the data upwards."""
    likelihood: Literal["bernoulli", "normal", "discretized_logistic"] | None = None
    """Likelihood p(x | z) of a pixel (default: bernoulli of binarized pixels, discretized_logistic of others)."""
    conditional: bool = False
    """Condition encoder and decoder on the label."""
    num_samples: UpTo10k = 1
    """Number of importance samples in training: 1 is the evidence lower bound, more are IWAE."""
    doubly_reparameterized: bool = False
    """Doubly reparameterized gradient of the encoder (DReG, Tucker et al. 2019)."""
    resampled: bool = False
    """Gradient through one importance sample per image, drawn by its weight: half the time at 50 samples, and more
    noise."""
    early_samples: UpTo10k = 1
    """Number of importance samples in the first --model.early-steps, to save time."""
    early_steps: Index = 0
    """Number of steps with --model.early-samples; with several seeds they save no time."""
    beta: NonNegative = 1.0
    """Weight of the KL divergence."""
    warmup_steps: Index = 0
    """Number of steps over which the weight of the KL grows from 0."""
    free_bits: NonNegative = 0.0
    """Nats of KL per latent dimension without cost."""
    total_correlation: NonNegative = 1.0
    """Weight of the total correlation within the KL; above 1 is beta-TCVAE (Chen et al. 2018)."""


@dataclass(frozen=True)
class EvaluateConfig(flags.ImageEvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    nll_samples: Annotated[int, Meta(ge=1, le=100_000)] = 500
    """Number of importance samples per test image for the negative log-likelihood; published tables use 5000."""
    disentanglement: Annotated[int, Meta(ge=100, le=1_000_000)] | None = 1_000
    """Number of images each to train and to test the predictors of known factors (needs scikit-learn). None skips these
    scores."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How samples are drawn, here and by `python -m jaxgen sample`."""

    label: Index | None = None
    """Class to draw, of a conditional model (default: all classes)."""
    temperature: NonNegative = 1.0
    """Standard deviation of the latents."""
    draw: bool = False
    """Sample the pixels, instead of showing their means."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/vae_mnist")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 6_000
    """Number of training steps."""
    data: flags.ImageDataConfig = field(default_factory=flags.ImageDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    data = config.data.load()
    unusual = config.data.binarization is None and data.binarization == "none" and config.model.likelihood is None
    return data.noted("the likelihood is discretized_logistic (--model.likelihood)") if unusual else data


def build(config: Config, spec: Spec) -> Experiment:
    usual = "discretized_logistic" if spec.binarization == "none" else "bernoulli"
    options = replace(config.model, likelihood=config.model.likelihood or usual)
    flags.check_condition(options.conditional, config.sample.label, spec)
    if spec.binarization == "none" and options.likelihood == "bernoulli":
        raise UserError(
            "--model.likelihood bernoulli: expects binarized pixels, found grey or color; leave it out, or add "
            "--data.binarization dynamic"
        )
    shape, dtype = spec.entries["image"]
    if dtype != "uint8":
        raise UserError(f"{spec.name} holds {dtype} images: expected uint8")
    if options.total_correlation != 1 and (config.run.parallel != "jit" or config.run.accumulate > 1):
        raise UserError(
            f"--model.total-correlation {options.total_correlation:g} is estimated over the whole batch: leave out "
            "--run.parallel and --run.accumulate"
        )
    if options.total_correlation != 1 and config.optimizer.private:
        raise UserError(
            f"--model.total-correlation {options.total_correlation:g} is estimated between examples, and private "
            "training sees one at a time: leave it out, or --optimizer.noise-multiplier"
        )
    decode = dynamic_binarize if spec.binarization == "dynamic" else to_unit
    emission = EMISSIONS[options.likelihood](shape[-1])
    model = vae(
        **networks(shape, options, config.run, emission),
        codec=Codec(lambda batch, key: decode(batch["image"], key), to_uint8),
        bound=bound_of(options),
        optimizer=config.optimizer.build(config.steps),
        num_classes=len(spec.classes) if options.conditional else 0,
    )
    protocol = f"{spec.name}, {spec.binarization.replace('none', 'no')} binarisation"
    if options.likelihood != "bernoulli":
        protocol += f", {emission.name}"
    protocol += ", given the label" * options.conditional
    return experiment(model, config, protocol, spec)


def bound_of(options: ModelConfig) -> Bound:
    """The objective that the flags name."""
    many = options.num_samples > 1
    staged_samples = (options.early_samples, options.early_steps) != (1, 0)
    for flag, given, holds, expected in (
        ("free-bits", options.free_bits, not many, "only with --model.num-samples 1"),
        ("total-correlation", options.total_correlation != 1, not many, "only with --model.num-samples 1"),
        ("total-correlation", options.total_correlation != 1, not options.free_bits, "not with --model.free-bits"),
        ("doubly-reparameterized", options.doubly_reparameterized, many, "only with --model.num-samples above 1"),
        ("resampled", options.resampled, many, "only with --model.num-samples above 1"),
        ("early-samples", staged_samples, options.early_steps > 0, "--model.early-steps above 0"),
        (
            "early-samples",
            staged_samples,
            options.early_samples < options.num_samples,
            "fewer than --model.num-samples",
        ),
    ):
        if given and not holds:
            raise UserError(f"--model.{flag}: expected {expected}")
    beta = options.beta
    if options.warmup_steps:
        beta = optax.linear_schedule(0.0, options.beta, options.warmup_steps)

    def of(num_samples: int) -> Bound:
        if num_samples == 1:
            return elbo(beta, free_bits=options.free_bits)
        if options.resampled:
            return resampled(num_samples, beta, doubly_reparameterized=options.doubly_reparameterized)
        return (dreg if options.doubly_reparameterized else iwae)(num_samples, beta)

    if options.total_correlation != 1:
        return beta_tc(options.total_correlation, beta)
    if options.early_steps:
        return staged(of(options.early_samples), options.early_steps, of(options.num_samples))
    return of(options.num_samples)


def networks(shape: tuple[int, ...], options: ModelConfig, run: flags.RunConfig, emission: Emission) -> dict:
    """Encoders, decoder and priors, sized by the shape [H, W, C] of one image."""
    output = (*shape[:-1], emission.width)
    if len(options.hidden) != len(options.latents):
        raise UserError(
            f"--model.hidden has {len(options.hidden)} numbers and --model.latents {len(options.latents)}: "
            "expected one of each for every stochastic layer"
        )
    if options.network == "conv":
        if len(options.latents) > 1:
            raise UserError("--model.network conv has one stochastic layer: give one number of --model.latents")
        encoders = [conv.Encoder(hidden=options.hidden[0], outputs=2 * options.latents[0], dtype=run.dtype)]
        downward = [conv.Decoder(hidden=options.hidden[0], shape=output, dtype=run.dtype)]
    else:
        encoders, downward = [], []
        for layer, (hidden, size) in enumerate(zip(options.hidden, options.latents, strict=True)):
            below = (2 * options.latents[layer - 1],) if layer else output
            event = 1 if layer else len(shape)
            encoders.append(mlp.MLP((hidden,) * options.depth, (2 * size,), event=event, dtype=run.dtype))
            downward.append(mlp.MLP((hidden,) * options.depth, below, dtype=run.dtype))
    decoder = independent(downward[0], emission, remat=run.remat)
    return {"encoders": encoders, "decoder": decoder, "priors": downward[1:], "latents": options.latents}


EMISSIONS = {"bernoulli": bernoulli, "normal": normal, "discretized_logistic": discretized_logistic}


def experiment(model: VAE, config: Config, protocol: str, spec: Spec) -> Experiment:
    """What there is to see and to measure of a variational autoencoder of images."""
    options = config.model
    reconstruct, decode, observe = jax.jit(model.reconstruct), jax.jit(model.decode), jax.jit(model.observe)
    encode, sample = jax.jit(model.encode), jax.jit(model.sample, static_argnames=("n", "draw"))
    nll = importance_weighted_nll(model.observe, model.log_weights, num_samples=config.evaluate.nll_samples)
    computed = {}  # by `look`, for the newest arguments

    def posterior(params, batch, key):
        """Of the top layer."""
        label = batch["label"] if options.conditional else None
        mu, logvar = model.encode(params, model.observe(batch, key), label)
        return {"mu": mu, "logvar": logvar}

    def watch(params, batch, key):
        """What the model says of each example, and the posterior."""
        evaluate_key, posterior_key = jax.random.split(key)
        return model.evaluate(params, batch, evaluate_key) | posterior(params, batch, posterior_key)

    def look(params, arrays):
        """Means of what the model says, and all of the posterior, under the same noise each time.

        Computed once for the same parameters and data: validation and exhibits both ask for it.
        """
        if computed.get("params") is not params or computed["arrays"] is not arrays:
            values = per_example(watch, params, arrays, key_for("posterior"))
            computed.update(params=params, arrays=arrays, values=values)
        values = dict(computed["values"])
        mu, logvar = values.pop("mu"), values.pop("logvar")
        return {name: estimate(value) for name, value in values.items()}, mu, logvar

    def validate(params, arrays, key):
        means, mu, _ = look(params, arrays)
        if not np.isfinite(mu).all():  # the run is about to say so
            return means
        return means | {"active units": Estimate(float(latents.active_units(mu).sum()), 0.0)}

    def warn(figures):
        active, size = figures.get("active units"), options.latents[-1]
        if active and active.mean <= 0.1 * size:  # some are spare in any model
            yield (
                f"the posterior has collapsed: {active.mean:g} of {size} latent dimensions are in use; try more "
                "--model.warmup-steps, --model.free-bits or a smaller --model.beta"
            )

    def pictures(params, arrays, key):
        """Samples; held-out images over their reconstructions; paths between pairs of them through the latents."""
        n = 10
        observe_key, reconstruct_key, sample_key = jax.random.split(key, 3)
        first = {name: array[np.arange(4 * n) % len(array)] for name, array in arrays.items()}
        label = first["label"] if options.conditional else None
        x = observe(first, observe_key)
        rebuilt = reconstruct(params, x, reconstruct_key, label)
        pairs = np.stack([x.reshape(4, n, *x.shape[1:]), rebuilt.reshape(4, n, *x.shape[1:])], axis=1)
        mu = encode(params, x, label)[0]
        paths = jnp.concatenate([straight(mu[2 * i], mu[2 * i + 1], np.linspace(0, 1, n)) for i in range(8)])
        path_label = None if label is None else jnp.repeat(label[:16:2], n)
        _, means, logvar = look(params, arrays)
        finite, labels = np.isfinite(means).all(), arrays.get("label", np.zeros(len(means), int))[:2_000]
        return {
            "samples": grid(np.asarray(draw(params, sample_key, 100))),
            "reconstructions": grid(np.asarray(to_uint8(pairs.reshape(-1, *x.shape[1:]))), columns=n),
            "latents": table(means, logvar),
            "interpolations": grid(np.asarray(to_uint8(decode(params, paths, path_label))), columns=n),
        } | ({"map of latents": latent_map(means[:2_000], labels, spec.classes or [""])} if finite else {})

    def measure(params, arrays, key, on_progress):
        count, k = len(arrays["image"]), config.evaluate.nll_samples
        elbo, mu, logvar = look(params, arrays)
        some = slice(0, 10_000)  # more would cost their square
        kl, told = latents.kl(mu[some], logvar[some]).sum(1), latents.information(mu[some], logvar[some])
        of, bound = f"{len(told):,} images", f"at most {math.log(len(told)):.2f}"
        known = {}
        if "factors" in arrays and config.evaluate.disentanglement is not None:
            found = latents.scores(mu, arrays["factors"], most=config.evaluate.disentanglement)
            known = {f"{name} ({protocol}, {count:,} images)": Estimate(value, 0.0) for name, value in found.items()}
        values = nll(params, arrays, key, lambda done: on_progress(done / count))
        return {
            f"test NLL, nats ({protocol}, {k} importance samples, {count:,} images)": estimate(values),
            f"test -ELBO, nats ({protocol})": Estimate(-elbo["elbo"].mean, elbo["elbo"].error),
            f"test reconstruction, nats ({protocol})": elbo["reconstruction"],
            "test KL, nats": elbo["kl"],
            f"active units of {mu.shape[1]} (Burda et al. 2016)": Estimate(float(latents.active_units(mu).sum()), 0.0),
            f"mutual information of image and latents, nats ({of}: {bound})": estimate(told),
            f"KL of the aggregate posterior from the prior, nats ({of})": estimate(kl - told),
        } | known

    def draw(params, key, n, labels=None):
        controls = config.sample
        condition = flags.labels_asked(config.model.conditional, controls.label, n, labels)
        return sample(params, key, n, condition, temperature=controls.temperature, draw=controls.draw)

    def means(params, arrays):
        return per_example(posterior, params, arrays, jax.random.key(0))["mu"]

    return Experiment(
        model,
        "Variational autoencoder",
        protocol,
        pictures,
        validate=validate,
        warn=lambda figures: list(warn(figures)),
        measure=measure,
        audit=images_audit(
            draw=draw,
            evaluate=model.evaluate,
            attack="-loss",
            count=config.evaluate.copies,
            judge=judge_of_copies(config, spec, load),
        ),
        sample=draw,
        latents=Latents(
            prior=lambda key, n: jax.random.normal(key, (n, options.latents[-1])),
            decode=lambda params, z, label: to_uint8(decode(params, z, label)),
            encode=means,
            conditional=options.conditional,
        ),
    )


def table(mu: np.ndarray, logvar: np.ndarray) -> str:
    """What each latent dimension says of the data, the most first, and which say nothing."""
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        return "The posterior is not finite.\n"
    mu = mu.astype(np.float64)
    with np.errstate(over="ignore"):  # of a run that is going astray
        kl, variance, active = latents.kl(mu, logvar).mean(0), mu.var(0), latents.active_units(mu)
    rows = [f"{d:>9}  {kl[d]:7.3f}  {variance[d]:17.4f}{'' if active[d] else '  unused'}" for d in np.argsort(-kl)]
    sentence = latents.collapse(mu) or "every latent dimension is in use"
    return "\n".join([f"{sentence}.", "", "dimension  KL, nats  variance of means", *rows, ""])


def burda(
    hidden: tuple[int, ...], latents: tuple[int, ...], num_samples: int, *, doubly_reparameterized: bool = False
) -> Config:
    """Burda et al. 2015, Table 1: one or two stochastic layers, k importance samples."""
    name = f"burda-{len(latents)}layer-k{num_samples}{'-dreg' * doubly_reparameterized}"
    return Config(
        workdir=Path("runs") / name,
        steps=200_000,
        run=flags.RunConfig(log_every=1_000, evaluate_every=20_000, checkpoint_every=10_000, chunk=100),
        data=flags.ImageDataConfig(strict=True, validation=0.0),
        model=ModelConfig(
            hidden=hidden, latents=latents, num_samples=num_samples, doubly_reparameterized=doubly_reparameterized
        ),
        evaluate=EvaluateConfig(nll_samples=5000),
    )


NAMED = {f"burda-1layer-k{k}": burda((200,), (50,), k) for k in (1, 5, 50)}
NAMED |= {f"burda-2layer-k{k}": burda((200, 100), (100, 50), k) for k in (1, 5, 50)}
NAMED["burda-1layer-k50-dreg"] = burda((200,), (50,), 50, doubly_reparameterized=True)
# Sizes of the example that comes with flax, and its 30 epochs of 50,000 images that were binarised once. Its learning
# rate stays at 1e-3; falling to 0 from there ours ends at 101.4 nats, from 3e-3 at 98.9.
NAMED["flax"] = Config(
    workdir=Path("runs/vae_flax"),
    steps=11_700,
    data=flags.ImageDataConfig("binarized_mnist", binarization="fixed", strict=True, validation=0.0),
    model=ModelConfig(hidden=(500,), depth=1, latents=(20,)),
    optimizer=flags.OptimizerConfig(learning_rate=3e-3),
)

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
