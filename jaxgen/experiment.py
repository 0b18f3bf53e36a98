"""What an experiment is to a run, and what can be done with one: rebuild its state, measure it, draw from it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen import log, parallel, privacy, ranges
from jaxgen.audit import Audit
from jaxgen.checkpoint import find, restore
from jaxgen.config import Config
from jaxgen.data.source import Arrays, Dataset, Spec, protocol
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, evaluate
from jaxgen.keys import key_for, key_of
from jaxgen.report import Exhibit, grid
from jaxgen.step import STACKED, init_state
from jaxgen.types import Batch, Key, Model, Params, TrainState

Figures = dict[str, Estimate]


class Latents(NamedTuple):
    """The latents of a model that has some, z [n, D].

    Attributes:
      prior: `(key, n) -> z`.
      decode: `(params, z, labels int [n] or None) ->` samples as stored.
      encode: `(params, arrays) -> z [N, D]`, the mean latents of examples; None where there is no encoder.
      spherical: the prior is normal, so that a path keeps to its shell.
      conditional: on labels.
    """

    prior: Callable[[Key, int], jax.Array]
    decode: Callable[[Params, np.ndarray, np.ndarray | None], jax.Array]
    encode: Callable[[Params, Arrays], np.ndarray] | None = None
    spherical: bool = True
    conditional: bool = False


class Experiment(NamedTuple):
    """What a run needs to know.

    Attributes:
      model: what is trained.
      title: of the report.
      protocol: stands in the name of every likelihood, such as "dynamic binarisation".
      exhibits: `(params, arrays, key) -> {caption: exhibit}`, of some validation examples; by default none.
      validate: `(params, arrays, key) ->` figures on the validation split, while training goes on; by default the means
        of `model.evaluate`.
      criterion: which of those is best where it is lowest; that checkpoint is kept.
      warn: what is wrong with a model of such figures, in words.
      measure: `(params, arrays, key, on_progress) ->` figures on all test examples, by default the means of
        `model.evaluate`; on_progress hears the share done.
      audit: `(params, train, held_out, key) ->` what a comparison with the training data shows; by default nothing.
      sample: `(params, key, n, labels=None) ->` samples as stored, with the controls of `config.sample`: pure, and also
        of an n that is a symbol. `labels` [n] are the classes to draw, where the model knows any and `config.sample`
        names none. By default `model.sample`, which is given no labels.
      draw: `(params, key, n) ->` the same, where that takes more than one dispatch; by default `sample`.
      render: samples as stored -> one exhibit, or a list of several, of which the first is the one to show; of a
        picture of many, `columns` says how many stand in a row.
      stream: `(params, key) ->` the pieces of one sample as they come; by default a sample comes whole.
      latents: of a model that has some, for `jaxgen interpolate`, `traverse` and `arithmetic`.
      unit: what one example is.
      out: a name for a file of samples.
    """

    model: Model
    title: str
    protocol: str = ""
    exhibits: Callable[[Params, Arrays, Key], dict[str, Exhibit]] = lambda params, arrays, key: {}
    validate: Callable[[Params, Arrays, Key], Figures] | None = None
    criterion: str = "loss"
    warn: Callable[[Figures], list[str]] = lambda figures: []
    measure: Callable[[Params, Arrays, Key, Callable[[float], None]], Figures] | None = None
    audit: Callable[[Params, Arrays, Arrays, Key], Audit] | None = None
    sample: Callable[..., jax.Array] | None = None
    draw: Callable[[Params, Key, int], np.ndarray] | None = None
    render: Callable[..., Exhibit | list[Exhibit]] = grid
    stream: Callable[[Params, Key], Iterator[str]] | None = None
    latents: Latents | None = None
    unit: str = "images"
    out: str = "grid.png"


def restore_params(
    config: Config, model: Model, spec: Spec, *, which: str = "latest", most: int | None = None
) -> tuple[int, Params]:
    """Step of a checkpoint, and the parameters to evaluate and sample with.

    Args:
      config: of the run.
      model: of the run.
      spec: of its data.
      which: "latest" (the newest intact one), "best" (the one of the lowest validation loss), or a step as digits.
      most: leave out the steps after this one.

    Raises:
      UserError: there is none, or it is damaged.
    """
    directory = config.workdir / "checkpoints"
    only = None if which == "latest" else find(directory, which)
    state = restore(directory, abstract_state(config, model, spec, parallel.make_mesh()), most=most, only=only)
    if state is None:
        of = "yet: run its experiment first" if most is None else f"of step {most} or before: it was deleted"
        of = of if only is None else f"of step {only} that is whole: give another --checkpoint"
        raise UserError(f"{config.workdir} has no checkpoint {of}")
    return int(state.step), evaluation_params(state)


def abstract_state(config: Config, model: Model, spec: Spec, mesh: Mesh) -> TrainState:
    """The shapes of a state, known without any data, and where its arrays are to live."""
    leading = (1,) if config.seeds == 1 else (config.seeds, 1)
    batch = {name: jax.ShapeDtypeStruct((*leading, *shape), dtype) for name, (shape, dtype) in spec.entries.items()}
    shapes = jax.eval_shape(initializer(config, model), batch)
    if config.optimizer.private:
        shapes = shapes.replace(noise=shapes.key)
    return parallel.sharded(shapes, mesh, fsdp=config.run.sharding == "fsdp")


def initializer(config: Config, model: Model) -> Callable[[Batch], TrainState]:
    """Makes of some examples the state before the first step; of several seeds, stacked, of the examples of each."""
    init = partial(init_state, model, ema=config.optimizer.ema_decay is not None)
    if config.seeds == 1:
        return lambda batch: init(key_of(config.seed), batch)
    keys = [key_of(config.seed + i) for i in range(config.seeds)]
    return lambda batch: jax.vmap(init, out_axes=STACKED)(jnp.stack(keys), batch)


def members(config: Config, params: Params) -> list[Params]:
    """The parameters of each seed."""
    if config.seeds == 1:
        return [params]
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(config.seeds)]


def over_members(values: Sequence[Figures]) -> Figures:
    """The figures of the one seed; of several their means, and standard deviations in the place of errors.

    Those that not every seed has, since there was nothing to measure, are left out.
    """
    if len(values) == 1:
        return values[0]
    shared = [name for name in values[0] if all(name in value for value in values)]
    each = {name: np.array([value[name].mean for value in values]) for name in shared}
    return {name: Estimate(float(x.mean()), float(x.std(ddof=1))) for name, x in each.items()}


def evaluation_params(state: TrainState) -> Params:
    """The moving average of the parameters where there is one, the parameters where not; whole on every device."""
    params = state.params if state.ema is None else state.ema
    return parallel.gathered(_same, parallel.make_mesh())(params)


def _same(params: Params) -> Params:
    return params


def validate(config: Config, experiment: Experiment, params: Params, arrays: Arrays, key: Key) -> Figures:
    """What is watched while training goes on, of one seed or over several."""
    figures = experiment.validate or partial(evaluate, experiment.model.evaluate)
    each = members(config, params)
    return over_members([figures(member, arrays, jax.random.clone(key)) for member in each])  # the same noise for each


def measure(
    config: Config,
    experiment: Experiment,
    params: Params,
    data: Dataset,
    between: Callable[[], None] = lambda: None,
) -> Figures:
    """Figures on the test split, of one seed or over several; `between` is called between parts of the work."""
    figures = over_members([_measure(experiment, member, data.test, between) for member in members(config, params)])
    suffix = f", mean ± standard deviation of {config.seeds} seeds" if config.seeds > 1 else ""
    suffix += protocol(data.held_out)
    return {name + suffix: value for name, value in figures.items()}


def _measure(experiment: Experiment, params: Params, arrays: Arrays, between: Callable[[], None]) -> Figures:
    """With a bar while it takes its time."""
    key = key_for("measures")
    if experiment.measure is None:
        means = evaluate(experiment.model.evaluate, params, arrays, key)
        return {f"test {name} ({experiment.protocol})": value for name, value in means.items()}
    with log.bar("measuring") as show:

        def on_progress(share: float) -> None:
            show(share)
            between()

        return experiment.measure(params, arrays, key, on_progress)


def audit(config: Config, experiment: Experiment, params: Params, data: Dataset) -> Audit:
    """The experiment's, of the model of the first seed."""
    if experiment.audit is None:
        return Audit()
    found = experiment.audit(members(config, params)[0], data.train, data.test, key_for("audit"))
    suffix = f", seed {config.seed} alone" if config.seeds > 1 else ""
    suffix += protocol(data.held_out)
    return found._replace(figures={name + suffix: value for name, value in found.figures.items()})


def guarantee(config: Config, model: Model, num_examples: int, steps: int) -> Figures:
    """Differential-privacy guarantee after `steps` steps: an upper bound of epsilon for each change of one example.

    No figures without noise. The guarantee is of the parameters of each seed by itself. Every step counts, including
    those that the guard skipped, and so does every objective: labels and the relativistic loss show the examples to the
    generator of a GAN too.
    """
    noise = config.optimizer.noise_multiplier
    if not noise:
        return {}
    delta = config.evaluate.delta or privacy.default_delta(num_examples)
    releases = privacy.releases(model.objectives, steps, num_examples // config.batch_size)
    each = " of each seed" if config.seeds > 1 else ""
    of = f"{steps:,} steps of {config.batch_size} of {num_examples:,} examples in shuffled epochs"
    return {
        f"epsilon{each}, one example {change} (delta {delta:g}, noise {noise:g}, {of}, no amplification)": Estimate(
            privacy.epsilon(noise_multiplier=noise, releases=releases, delta=delta, sensitivity=sensitivity), 0.0
        )
        for change, sensitivity in privacy.RELATIONS.items()
    }


def draw(experiment: Experiment, params: Params, key: Key, n: int) -> np.ndarray:
    """As many samples, as the data are stored."""
    sample = experiment.draw or jax.jit(experiment.sample or experiment.model.sample, static_argnums=2)
    return np.asarray(sample(params, key, n))


def in_batches(
    some: Callable[[Key, np.ndarray], Any],
    key: Key,
    n: int,
    size: int,
    on_progress: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """What `some(key, rows)` says of rows 0 to n - 1, int [size] at a time: always as many, so that one program does.

    The last batch is filled up with the first rows again. `on_progress` hears the share done.
    """
    parts = []
    for start in range(0, n, size):
        parts.append(np.asarray(some(jax.random.fold_in(key, start), np.arange(start, start + size) % n)))
        on_progress(min(1.0, (start + size) / n))
    return np.concatenate(parts)[:n]


def built(build: Callable[[Any, Spec], Experiment], config: Config, spec: Spec) -> Experiment:
    """`build(config, spec)` of a configuration in its ranges; a UserError where values do not fit each other."""
    ranges.check(config)
    try:
        experiment = build(config, spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.optimizer.private:
        options = config.optimizer
        private = privacy.privately(
            experiment.model, example_norm=options.example_norm, noise_multiplier=options.noise_multiplier
        )
        experiment = experiment._replace(model=private)
    return experiment
