"""A variational autoencoder of molecules, with latents to search in: python -m experiments.vae_molecules

A convolutional encoder (Gomez-Bombarelli et al. 2018) and a Transformer as decoder (Bowman et al. 2016). After
training: python -m jaxgen sample RUN --near "CC(=O)Oc1ccccc1C(=O)O" --out near.csv
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from msgspec import Meta

from experiments.transformer_molecules import (
    BATCH,
    figures_of,
    glance,
    listed,
    pictures,
    training_molecules,
)
from experiments.transformer_molecules import warn as warn_of_samples
from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.molecules import to_smiles
from jaxgen.data.vocabulary import START, STOP, Vocabulary, vocabulary
from jaxgen.emissions import categorical
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, estimate, evaluate, importance_weighted_nll
from jaxgen.experiment import Experiment, Latents, in_batches
from jaxgen.metrics.latents import active_units
from jaxgen.metrics.molecules import canonical
from jaxgen.models.vae import VAE, elbo, sequential, vae
from jaxgen.networks.sequence import Decoder, Encoder
from jaxgen.ranges import Count, Depth, Index, NonNegative, UpTo1k, UpTo1M, Width
from jaxgen.report import structures
from jaxgen.run import main
from jaxgen.types import Codec


@dataclass(frozen=True)
class ModelConfig:
    """The autoencoder."""

    latents: Width = 32
    """Latent dimensions."""
    width: Width = 128
    """Number of features of a token, in encoder and decoder."""
    convolutions: Depth = 3
    """Number of convolutions of the encoder."""
    layers: Depth = 2
    """Number of Transformer blocks of the decoder."""
    heads: UpTo1k = 4
    """Number of attention heads."""
    context: Count | None = None
    """Number of preceding tokens that the decoder sees (default: all); fewer tokens keep the latents informative."""
    beta: NonNegative = 1.0
    """Weight of the KL divergence."""
    warmup_steps: Index = 600
    """Number of steps over which the weight of the KL grows from 0."""
    free_bits: NonNegative = 0.25
    """Nats of KL per latent dimension without cost."""


@dataclass(frozen=True)
class EvaluateConfig(flags.EvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    num_samples: Annotated[int, Meta(ge=2, le=1_000_000)] = 1_000
    """Number of generated molecules to measure."""
    nll_samples: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """Number of importance samples per held-out molecule for the negative log-likelihood."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How samples are drawn, here and by `python -m jaxgen sample`."""

    near: str | None = None
    """SMILES of a molecule; samples are drawn around its latents."""
    temperature: NonNegative = 1.0
    """Standard deviation of the latents, or of their distance from --near."""
    draw: bool = True
    """Sample the tokens too; otherwise, and with --near, the most probable ones."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/vae_molecules")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 1_000
    """Number of training steps."""
    batch_size: UpTo1M = 64
    """Molecules per step."""
    data: flags.MoleculeDataConfig = field(default_factory=lambda: flags.MoleculeDataConfig(longest=30))
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: flags.OptimizerConfig = field(
        default_factory=lambda: flags.OptimizerConfig(learning_rate=2e-3, warmup_steps=50, clip_norm=20.0)
    )
    run: flags.RunConfig = field(default_factory=lambda: flags.RunConfig(log_every=100, evaluate_every=500, chunk=20))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def load(config: Config) -> Dataset:
    data = config.data.load()
    if (count := len(data.test["tokens"])) < 2:
        raise UserError(f"{data.spec.name}: {count} molecule is held out, expected two or more: give more molecules")
    return data


def build(config: Config, spec: Spec) -> Experiment:
    options, words = config.model, vocabulary(spec.vocabulary)
    if options.width % (2 * options.heads):
        raise UserError(f"--model.width {options.width}: expected a multiple of {2 * options.heads}, twice the heads")
    (length,), dtype = spec.entries["tokens"]

    def observe(batch, key):
        """The tokens after START up to the first STOP, then -1."""
        tokens = batch["tokens"][:, 1:]
        inside = jnp.arange(1, length) < batch["length"][:, None]
        return jnp.where(inside, tokens.astype(jnp.int32), -1)

    def store(tokens):
        return jnp.pad(tokens.astype(dtype), ((0, 0), (1, 0)), constant_values=START)

    common = {"width": options.width, "dtype": config.run.dtype}
    decoder = Decoder(
        length=length - 1,
        vocabulary=words.size,
        stop=STOP,
        context=min(options.context or length, length),
        layers=options.layers,
        heads=options.heads,
        **common,
    )
    beta = options.beta
    if options.warmup_steps:
        beta = optax.linear_schedule(0.0, options.beta, options.warmup_steps)
    model = vae(
        encoders=[Encoder(vocabulary=words.size, outputs=2 * options.latents, layers=options.convolutions, **common)],
        decoder=sequential(decoder, categorical(words.size), remat=config.run.remat),
        latents=[options.latents],
        codec=Codec(observe, store),
        bound=elbo(beta, free_bits=options.free_bits),
        optimizer=config.optimizer.build(config.steps),
    )
    return experiment(model, store, words, config, spec)


def experiment(model: VAE, store: Callable, words: Vocabulary, config: Config, spec: Spec) -> Experiment:
    """What there is to see and to measure of an autoencoder of molecules."""
    protocol = f"{spec.name}, {words.name}"
    sample = jax.jit(model.sample, static_argnames=("n", "draw"))
    encode = jax.jit(lambda params, batch: model.encode(params, model.observe(batch, jax.random.key(0)))[0])
    decode = jax.jit(lambda params, z: store(model.decode(params, z)))
    nll = importance_weighted_nll(model.observe, model.log_weights, num_samples=config.evaluate.nll_samples)
    training = training_molecules(config.data, spec, words)

    def decode_many(params, z):
        return in_batches(lambda key, rows: decode(params, z[rows]), jax.random.key(0), len(z), BATCH)

    def written(params, z):
        """SMILES of latents [n, D], the most probable ones."""
        return to_smiles(decode_many(params, z), words)

    def means(params, arrays):
        """Of the posterior, [N, D]."""

        def some(key, rows):
            return encode(params, {name: arrays[name][rows] for name in ("tokens", "length")})

        return in_batches(some, jax.random.key(0), len(arrays["tokens"]), BATCH)

    def draw_many(params, key, n):
        controls = {"temperature": config.sample.temperature, "draw": config.sample.draw}
        return in_batches(lambda key, rows: sample(params, key, BATCH, **controls), key, n, BATCH)

    def near(molecule):
        """The molecule that samples are to be near to, as stored, one row."""
        (spelled,) = canonical([molecule])
        (length,), dtype = spec.entries["tokens"]
        if spelled is None:
            raise UserError(f"--near {molecule}: expected the SMILES of a molecule, such as CC(=O)Oc1ccccc1C(=O)O")
        tokens = words.encode(spelled)
        if len(tokens) + 2 > length:
            raise UserError(
                f"--near {molecule} has {len(tokens)} tokens: expected at most {length - 2}, as was trained on"
            )
        row = np.full((1, length), STOP, dtype)
        row[0, : len(tokens) + 1] = START, *tokens
        return {"tokens": row, "length": np.array([len(tokens) + 2], np.int32)}

    def around(mu, key, n):
        return mu + config.sample.temperature * jax.random.normal(key, (n, mu.shape[1]))

    def at_once(params, key, n, labels=None):
        if config.sample.near is None:
            return sample(params, key, n, temperature=config.sample.temperature, draw=config.sample.draw)
        return decode(params, around(encode(params, near(config.sample.near)), key, n))

    def draw(params, key, n):
        if config.sample.near is None:
            return draw_many(params, key, n)
        return decode_many(params, np.asarray(around(means(params, near(config.sample.near)), key, n)))

    def exhibits(params, arrays, key):
        """Samples; molecules of the data over what becomes of them; a path between two of them."""
        shown = pictures(to_smiles(draw_many(params, key, BATCH), words))
        originals = to_smiles(arrays["tokens"][:6], words)
        mu = means(params, {name: array[:6] for name, array in arrays.items()})
        t = np.linspace(0, 1, 24)[:, None]
        rebuilt, path = written(params, mu), written(params, (1 - t) * mu[0] + t * mu[1])
        pairs = list(zip(originals, rebuilt, strict=True))
        figures = [originals[i] for i in range(len(pairs))] + [b for _, b in pairs]
        spelled = canonical(figures)
        captions = ["original"] * len(pairs) + ["rebuilt" if one else "not valid" for one in spelled[len(pairs) :]]
        shown["reconstructions"] = structures([one or "" for one in spelled], captions, columns=len(pairs))
        stations = list(dict.fromkeys(one for one in canonical(path) if one))
        return shown | ({"interpolations": structures(stations)} if stations else {})

    def validate(params, arrays, key):
        evaluate_key, sample_key = jax.random.split(key)
        values = evaluate(model.evaluate, params, arrays, evaluate_key)
        mu = means(params, arrays)
        some = {name: array[:BATCH] for name, array in arrays.items()}
        pairs = zip(canonical(to_smiles(some["tokens"], words)), canonical(written(params, mu[:BATCH])), strict=True)
        figures = {name: values[name] for name in ("loss", "reconstruction", "kl")}
        figures["active latents"] = Estimate(float(active_units(mu).sum()), 0.0)
        figures["rebuilt %"] = estimate(np.array([100.0 * (one == other) for one, other in pairs]))
        return figures | glance(to_smiles(draw_many(params, sample_key, BATCH), words))

    def warn(figures):
        kl, active = figures["kl"].mean, figures["active latents"].mean
        if kl < 0.5 or not active:
            yield (
                f"the posterior has collapsed: latents carry {kl:.2f} nats of a molecule, {active:.0f} of "
                f"{config.model.latents} vary; try more --model.warmup-steps, --model.free-bits or less --model.context"
            )
        yield from warn_of_samples(figures)

    def measure(params, arrays, key, on_progress):
        count, k = len(arrays["tokens"]), config.evaluate.nll_samples
        validate_key, nll_key, sample_key = jax.random.split(key, 3)
        values = validate(params, arrays, validate_key)
        entries = {name: arrays[name] for name in ("tokens", "length")}
        bound = nll(params, entries, nll_key, lambda done: on_progress(0.8 * done / count))
        figures = {
            f"test NLL, nats per molecule ({protocol}, {k} importance samples, {count:,} molecules)": estimate(bound),
            f"test -ELBO, nats per molecule ({protocol})": values["loss"],
            f"test reconstruction, nats per molecule ({protocol})": values["reconstruction"],
            "test KL, nats per molecule": values["kl"],
            f"latents that vary, of {config.model.latents}": values["active latents"],
            f"rebuilt exactly, % ({protocol}, the most probable from the mean of the latents)": values["rebuilt %"],
        }
        drawn = to_smiles(draw_many(params, sample_key, config.evaluate.num_samples), words)
        return figures | figures_of(drawn, to_smiles(arrays["tokens"], words), training(), protocol)

    return Experiment(
        model,
        "Variational autoencoder of molecules",
        protocol,
        exhibits,
        validate=validate,
        warn=lambda figures: list(warn(figures)),
        measure=measure,
        sample=at_once,
        draw=draw,
        render=lambda tokens, columns=None: listed(to_smiles(tokens, words), training(), {}, spec, columns),
        latents=Latents(
            prior=lambda key, n: jax.random.normal(key, (n, config.model.latents)),
            decode=lambda params, z, label: decode_many(params, z),
            encode=means,
        ),
        unit="molecules",
        out="molecules.csv",
    )


NAMED: dict[str, Config] = {}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
