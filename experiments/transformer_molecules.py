"""A Transformer that designs molecules: python -m experiments.transformer_molecules --data.name smiles:~/mine.smi

Writes SMILES token by token, conditional on any of log P, drug-likeness, synthetic accessibility and weight, or on
none. After training: python -m jaxgen sample RUN --condition logP=2.5 QED=0.9 --out hits.csv

Configurations, as an optional first word:
  qm9           small molecules of QM9, 20 minutes on two CPU cores
  zinc250k_cpu  drug-like molecules of ZINC, two to three hours on two CPU cores
  zinc250k      the same data and a larger model, for an accelerator
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.data import Dataset, Spec
from jaxgen.data.molecules import known, to_smiles
from jaxgen.data.vocabulary import START, STOP, Vocabulary, vocabulary
from jaxgen.emissions import PLAIN, Controls, categorical
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, estimate, evaluate, per_example, ratio
from jaxgen.experiment import Experiment, Figures, in_batches
from jaxgen.metrics.molecules import PROPERTIES, TOLERANCE, canonical, measures, properties
from jaxgen.models.autoregressive import Autoregressive, Condition, autoregressive
from jaxgen.networks.transformer import Transformer
from jaxgen.ranges import Depth, Index, NonNegative, Partial, Probability, UpTo1k, UpTo1M, UpTo10k, Width
from jaxgen.report import Exhibit, Table, structures
from jaxgen.run import main
from jaxgen.types import Codec

BATCH = 512  # molecules in one dispatch


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer."""

    layers: Depth = 3
    """Number of Transformer blocks."""
    heads: UpTo1k = 4
    """Number of attention heads."""
    width: Width = 128
    """Number of features of a token."""
    dropout: Partial = 0.0
    """Dropout rate."""
    conditions: tuple[str, ...] = PROPERTIES
    """Properties to condition on: some of logP, QED, SA, weight; none is an unconditional model."""
    condition_dropout: Partial = 0.2
    """Share of examples trained without any property, for --guidance and unconditional samples."""
    property_dropout: Partial = 0.5
    """Probability of leaving out each property of an example, so that the model accepts any subset."""


@dataclass(frozen=True)
class EvaluateConfig(flags.EvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    num_samples: Annotated[int, Meta(ge=2, le=1_000_000)] = 1_000
    """Number of generated molecules to measure; published tables use 10,000 or more."""
    num_conditions: Annotated[int, Meta(ge=2, le=1_000_000)] = 500
    """Number of molecules generated per property, each for a held-out value."""
    temperature: NonNegative = 1.0
    """Temperature of the molecules that are measured."""
    guidance: NonNegative | None = None
    """Guidance scale of the molecules generated for a property."""
    candidates: UpTo10k = 1
    """Number of candidates per value, of which the closest one is measured."""


@dataclass(frozen=True)
class SampleConfig(flags.SampleConfig):
    """How samples are drawn, here and by `python -m jaxgen sample`."""

    condition: tuple[str, ...] = ()
    """Wanted properties, such as logP=2.5 QED=0.9; samples are sorted by their distance."""
    guidance: NonNegative | None = None
    """Guidance scale: larger values strengthen the conditioning and lower the diversity."""
    candidates: UpTo10k = 1
    """Number of candidates per sample, of which the closest one to --condition is kept."""
    temperature: NonNegative = 1.0
    """Temperature: below 1 gives more valid molecules, 0 takes the most probable token."""
    top_p: Probability | None = None
    """Total probability of the most probable tokens to sample from (nucleus sampling)."""


@dataclass(frozen=True)
class Config(flags.Config):
    """One run."""

    workdir: Path = Path("runs/transformer_molecules")
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
    return config.data.load()


def build(config: Config, spec: Spec) -> Experiment:
    options, words = config.model, vocabulary(spec.vocabulary)
    if options.width % (2 * options.heads):
        raise UserError(f"--model.width {options.width}: expected a multiple of {2 * options.heads}, twice the heads")
    unknown = [name for name in options.conditions if name not in spec.properties]
    if unknown:
        raise UserError(f"--model.conditions {' '.join(unknown)}: expected some of {', '.join(spec.properties)}")
    asked = asked_of(config.sample, options.conditions)
    for drawn, conditions in ((config.sample, asked), (config.evaluate, options.conditions)):
        if drawn.guidance is not None and not (conditions and options.condition_dropout):
            raise UserError(
                "--guidance is towards a --condition, of a model trained with --model.condition-dropout above 0"
            )
        if drawn.candidates > 1 and not conditions:
            raise UserError(f"--candidates {drawn.candidates}: expected 1 without a --condition to come close to")
    (length,), dtype = spec.entries["tokens"]
    network = Transformer(
        vocabulary=words.size,
        context=length,
        layers=options.layers,
        heads=options.heads,
        width=options.width,
        dropout=options.dropout,
        remat=config.run.remat,
        dtype=config.run.dtype,
    )
    model = autoregressive(
        network=network,
        emission=categorical(words.size),
        codec=Codec(lambda batch, key: batch["tokens"], lambda tokens: tokens.astype(dtype)),
        optimizer=config.optimizer.build(config.steps),
        length=length,
        opening=(START,),
        condition=told(options.conditions, options.property_dropout) if options.conditions else None,
        condition_dropout=options.condition_dropout if options.conditions else 0.0,
        stop=STOP,
    )
    return experiment(model, words, config, spec)


def told(names: Sequence[str], dropout: float) -> Condition:
    """Standardised properties, and beside each whether it is known; what is not a number is not."""
    columns = jnp.array([PROPERTIES.index(name) for name in names])

    def encode(values):
        values = values[:, columns]
        is_known = ~jnp.isnan(values)
        return jnp.concatenate([jnp.where(is_known, values, 0.0), is_known.astype(jnp.float32)], axis=-1)

    def hide(key, values):
        return jnp.where(jax.random.bernoulli(key, dropout, values.shape), jnp.nan, values)

    return Condition("properties", 2 * len(names), encode, hide if dropout else None)


def controls_of(sample: SampleConfig) -> Controls:
    return Controls(sample.temperature, top_p=sample.top_p, guidance=sample.guidance)


def asked_of(sample: SampleConfig, names: Sequence[str]) -> dict[str, float]:
    """What is asked for: logP=2.5 becomes {"logP": 2.5}."""
    asked = {}
    for text in sample.condition:
        name, _, value = text.partition("=")
        try:
            asked[name] = float(value)
        except ValueError:
            asked[name] = math.nan
        if name not in names or not math.isfinite(asked[name]):
            expected = f"NAME=NUMBER with some of {', '.join(names)}" if names else "none, the model has no condition"
            raise UserError(f"--condition {text}: expected {expected}")
    return asked


def standardised(asked: dict[str, float], n: int, spec: Spec) -> np.ndarray:
    """[n, 4] of properties by name, less the data's mean, in standard deviations; NaN where not asked for."""
    rows = np.full((n, len(PROPERTIES)), np.nan, np.float32)
    for name, value in asked.items():
        mean, std = spec.properties[name]
        rows[:, PROPERTIES.index(name)] = (value - mean) / std
    return rows


def distances(values: np.ndarray, wanted: np.ndarray, spec: Spec) -> np.ndarray:
    """[n], root mean square of properties [n, 4], standardised, less those `wanted` that are not NaN.

    Infinite where there is no molecule, whose properties are NaN.
    """
    mean, std = np.array([spec.properties[name] for name in PROPERTIES]).T
    is_wanted = ~np.isnan(wanted)
    squares = np.where(is_wanted, (values - mean) / std - wanted, 0.0) ** 2
    distance = np.sqrt(squares.sum(1) / np.maximum(is_wanted.sum(1), 1))
    return np.where(np.isnan(values).any(1), np.inf, distance)


# What there is to see and to measure ----------------------------------------------------------------------------------


def experiment(model: Autoregressive, words: Vocabulary, config: Config, spec: Spec) -> Experiment:
    """What there is to see and to measure of a model of molecules that can be told properties."""
    protocol = f"{spec.name}, {words.name}"
    sample = jax.jit(model.sample, static_argnames="n")
    asked = asked_of(config.sample, config.model.conditions)
    training = training_molecules(config.data, spec, words)

    def draw_many(params, key, n, condition=None, controls=PLAIN, on_progress=lambda share: None):
        """[n, T] tokens, `condition` [n, 4] being standardised."""

        def some(key, rows):
            asked = None if condition is None else condition[rows]
            return sample(params, key, BATCH, asked, controls=controls)

        return in_batches(some, key, n, BATCH, on_progress)

    def designed(params, key, wanted, controls, candidates):
        """[n, T] tokens, of so many candidates those that come closest to what is `wanted` [n, 4]."""
        each = np.tile(wanted, (candidates, 1))
        drawn = draw_many(params, key, len(each), each, controls)
        if candidates == 1:
            return drawn
        far = distances(properties(to_smiles(drawn, words)), each, spec).reshape(candidates, -1)
        return drawn.reshape(candidates, len(wanted), -1)[far.argmin(0), np.arange(len(wanted))]

    def at_once(params, key, n, labels=None):
        if config.sample.candidates > 1:
            raise UserError("--candidates are told apart by RDKit, which is not part of a sampler: leave it out")
        condition = jnp.broadcast_to(standardised(asked, 1, spec), (n, len(PROPERTIES))) if asked else None
        return sample(params, key, n, condition, controls=controls_of(config.sample))

    def draw(params, key, n):
        controls = controls_of(config.sample)
        if not asked:
            return draw_many(params, key, n, controls=controls)
        return designed(params, key, standardised(asked, n, spec), controls, config.sample.candidates)

    def exhibits(params, arrays, key):
        smiles = to_smiles(draw_many(params, key, BATCH), words)
        return pictures(smiles)

    def validate(params, arrays, key):
        evaluate_key, sample_key = jax.random.split(key)
        loss = evaluate(model.evaluate, params, arrays, evaluate_key)["loss"]
        return {"loss": loss} | glance(to_smiles(draw_many(params, sample_key, BATCH), words))

    def measure(params, arrays, key, on_progress):
        """Likelihood; samples of the model at large; then, for each property, samples of held-out values of it."""
        count, options = len(arrays["tokens"]), config.evaluate
        evaluate_key, sample_key, key = jax.random.split(key, 3)
        controls = Controls(options.temperature)
        at = f", temperature {options.temperature:g}" if options.temperature != 1 else ""
        guided, by = controls._replace(guidance=options.guidance), at
        if options.guidance is not None:
            by += f", guidance {options.guidance:g}"
        if options.candidates > 1:
            by += f", the best of {options.candidates}"
        nll = per_example(model.evaluate, params, arrays, evaluate_key)["loss"]
        given = f", given {', '.join(config.model.conditions)}" if config.model.conditions else ""
        figures = {
            f"test NLL, nats per molecule ({protocol}{given}, {count:,} molecules)": estimate(nll),
            f"test NLL, nats per token ({protocol}{given})": ratio(nll, arrays["length"] - 1),
        }
        on_half = lambda share: on_progress(0.5 * share)  # noqa: E731
        drawn = draw_many(params, sample_key, options.num_samples, None, controls, on_half)
        figures |= figures_of(to_smiles(drawn, words), to_smiles(arrays["tokens"], words), training(), protocol + at)
        n = min(count, options.num_conditions)
        for i, name in enumerate(config.model.conditions):
            column, (mean, std) = PROPERTIES.index(name), spec.properties[name]
            wanted = np.full((n, len(PROPERTIES)), np.nan, np.float32)
            wanted[:, column] = arrays["properties"][:n, column]
            drawn = designed(params, jax.random.fold_in(key, i), wanted, guided, options.candidates)
            found = properties(to_smiles(drawn, words))[:, column]
            error = np.abs(found - (wanted[:, column] * std + mean))
            error = error[np.isfinite(error)]
            if len(error):
                of = f"{protocol}{by}, the valid ones of {n:,} samples"
                figures[f"mean absolute error of {name} asked for ({of})"] = estimate(error)
                share = 100.0 * (error <= TOLERANCE[name])
                figures[f"{name} within {TOLERANCE[name]:g} of what was asked, % ({of})"] = estimate(share)
            on_progress(0.5 + 0.5 * (i + 1) / len(config.model.conditions))
        return figures

    return Experiment(
        model,
        "Transformer of molecules",
        protocol,
        exhibits,
        validate=validate,
        warn=lambda figures: list(warn(figures)),
        measure=measure,
        sample=at_once,
        draw=draw,
        render=lambda tokens, columns=None: listed(to_smiles(tokens, words), training(), asked, spec, columns),
        unit="molecules",
        out="molecules.csv",
    )


def training_molecules(
    data: flags.MoleculeDataConfig, spec: Spec, words: Vocabulary
) -> Callable[[], frozenset[str] | None]:
    """A function to what was trained on, as canonical SMILES, computed once; None where the data are not to be had."""

    @cache
    def training() -> frozenset[str] | None:
        try:
            found = replace(data, name=spec.name, strict=True).load()
        except UserError:
            return None
        return known(found.train, words, data.spellings) if found.spec.digest == spec.digest else None

    return training


def figures_of(
    smiles: Sequence[str], reference: Sequence[str], training: frozenset[str] | None, protocol: str
) -> Figures:
    """The measures of generated molecules, against as many held-out ones."""
    reference = [one for one in canonical(reference[: len(smiles)]) if one]
    n, figures = len(smiles), measures(smiles, reference, training)
    valid, different = (n * figures[name] / 100 for name in ("valid, %", "valid and unique, %"))
    # Shares of samples that do not interact, and of how many.
    shares = {"valid, %": n, "novel, %": different, "with PAINS alerts, %": valid, "with BRENK alerts, %": valid}
    return {
        f"{name} ({protocol}, {n:,} samples)": Estimate(
            float(value), math.sqrt(value * (100 - value) / shares[name]) if name in shares else 0.0
        )
        for name, value in figures.items()
        if math.isfinite(value)  # of no scaffolds, say, there is no similarity
    }


def glance(smiles: Sequence[str]) -> Figures:
    """What can be seen quickly: shares in percent, as errors those of as many coins."""
    spelled = canonical(smiles)
    valid = estimate(np.array([100.0 * (one is not None) for one in spelled]))
    different = 100 * len({one for one in spelled if one}) / len(spelled)
    ended = estimate(np.array([100.0 * (one != "") for one in smiles]))
    return {"valid %": valid, "valid and unique %": Estimate(different, 0.0), "ended %": ended}


def warn(figures: Figures):
    valid, different, ended = (figures[name].mean for name in ("valid %", "valid and unique %", "ended %"))
    if ended < 90:
        yield f"only {ended:.0f} % of the samples come to an end: train longer"
    if valid < 50:
        yield f"only {valid:.0f} % of the samples are molecules: train longer, or lower --temperature"
    elif different < 0.7 * valid:
        yield f"samples repeat: {valid:.0f} % are molecules, and only {different:.0f} % different ones"


def pictures(smiles: Sequence[str], count: int = 24) -> dict[str, Exhibit]:
    """Drawings of the first valid molecules, and what the first were that are none."""
    spelled = canonical(smiles)
    values, some = properties(spelled[: 4 * count]), [i for i, one in enumerate(spelled[: 4 * count]) if one][:count]
    captions = [f"logP {values[i][0]:.1f}  QED {values[i][1]:.2f}" for i in some]
    bad = [one or "(no end)" for one, good in zip(smiles, spelled, strict=True) if not good][:10]
    shown = {"samples": structures([spelled[i] for i in some], captions)} if some else {}
    return shown | ({"not valid": "\n".join(bad)} if bad else {})


def listed(
    smiles: Sequence[str],
    training: frozenset[str] | None,
    asked: dict[str, float],
    spec: Spec,
    columns: int | None = None,
    shown: int = 60,
) -> list[Exhibit]:
    """A table of molecules with their properties, the closest to what is asked for first, and drawings of them.

    The last column says what is the matter: not valid, a duplicate of one above, in the training data. With `columns`
    all are drawn, so many a row, each in its place.
    """
    spelled, values = canonical(smiles), properties(smiles)
    distance = distances(values, standardised(asked, len(smiles), spec), spec)
    rows, seen, drawn = [], set(), []
    for i in range(len(smiles)) if columns else np.argsort(distance, kind="stable"):
        one = spelled[i]
        if one is None:
            rows.append([smiles[i] or "(no end)", *[""] * len(PROPERTIES), *[""] * bool(asked), "not valid"])
            drawn += [("", "not valid")] * bool(columns)
            continue
        notes = ["duplicate"] * (one in seen) + ["training"] * (training is not None and one in training)
        notes += ["training data not found"] * (training is None)
        numbers = [f"{value:.3f}" for value in values[i]]
        rows.append([one, *numbers, *([f"{distance[i]:.3f}"] * bool(asked)), "; ".join(notes)])
        if columns or one not in seen:
            first = values[i][[PROPERTIES.index(name) for name in asked or ("logP", "QED")]]
            drawn.append((one, "  ".join(f"{n} {v:.2f}" for n, v in zip(asked or ("logP", "QED"), first, strict=True))))
        seen.add(one)
    names = ["smiles", *PROPERTIES, *["distance"] * bool(asked), "note"]
    drawn = drawn if columns else drawn[:shown]
    picture = [structures(*map(list, zip(*drawn, strict=True)), columns=columns or 6)] if drawn else []
    return [Table(names, rows), *picture]


NAMED = {
    # For 20 minutes on two CPU cores.
    "qm9": Config(
        workdir=Path("runs/qm9"),
        steps=8_000,
        batch_size=128,
        data=flags.MoleculeDataConfig("qm9", strict=True, validation=0.0),
        run=flags.RunConfig(log_every=200, evaluate_every=2_000, checkpoint_every=500, chunk=20),
        evaluate=EvaluateConfig(num_samples=10_000),
    ),
    # For two CPU cores: 1,024,000 molecules, 150 of them a second.
    "zinc250k_cpu": Config(
        workdir=Path("runs/zinc250k_cpu"),
        steps=16_000,
        data=flags.MoleculeDataConfig("zinc250k", strict=True, longest=60, validation=0.0),
        model=ModelConfig(width=192),
        optimizer=replace(Config().optimizer, warmup_steps=200),
        run=flags.RunConfig(log_every=200, evaluate_every=4_000, checkpoint_every=500, chunk=20),
        evaluate=EvaluateConfig(10_000, num_conditions=1_000, temperature=0.8, guidance=1.5, candidates=4),
    ),
    # For an accelerator.
    "zinc250k": Config(
        workdir=Path("runs/zinc250k"),
        steps=20_000,
        batch_size=256,
        data=flags.MoleculeDataConfig("zinc250k", strict=True, validation=0.0),
        model=ModelConfig(layers=6, heads=8, width=256),
        optimizer=replace(Config().optimizer, learning_rate=1e-3, warmup_steps=500),
        run=flags.RunConfig(log_every=200, evaluate_every=5_000, checkpoint_every=5_000),
        evaluate=EvaluateConfig(10_000, num_conditions=1_000, temperature=0.8, guidance=1.5, candidates=4),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
