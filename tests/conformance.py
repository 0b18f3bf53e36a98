"""What every model must pass, whatever its family; a test module calls `check_model(make, batch)` for each of its own.

`make(optimizer)` makes the model. Parity is tested under SGD: Adam's division hides a gradient of the wrong scale.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxgen import parallel
from jaxgen.step import init_state, make_step
from jaxgen.types import Aux, Batch, Model, TrainState

DEVICES = 4


def check_model(
    make: Callable[[optax.GradientTransformation], Model], batch: Batch, entry: str = "image", loss: str = "loss"
) -> None:
    """Everything below; `entry` is what the model samples, `loss` the metric that falls."""
    adam, sgd = make(optax.adam(1e-2)), make(optax.sgd(1e-3))
    step = jax.jit(make_step(adam))
    keys_are_used_once(adam, batch)
    same_key_same_result(adam, step, batch)
    loss_falls(adam, step, batch, loss)
    evaluate_is_per_example(adam, batch, entry)
    sample_has_shape_and_dtype(adam, batch, entry)
    devices_agree(sgd, batch)
    mapped_steps_agree(sgd, batch)
    mapped_steps_agree_with_jit(sgd, batch)


def keys_are_used_once(model: Model, batch: Batch) -> None:
    """A key that two draws share correlates them, also where the two draw from different distributions."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.debug_key_reuse(True):
        state = jax.eval_shape(partial(init_state, model), key, batch)
        jax.eval_shape(make_step(model), state, batch)
        jax.eval_shape(model.evaluate, state.params, batch, key)
        jax.eval_shape(lambda params, key: model.sample(params, key, 3), state.params, key)


def same_key_same_result(model: Model, step: Callable, batch: Batch) -> None:
    sample = jax.jit(lambda params, key: model.sample(params, key, 3))

    def result():
        state, reports = step(initial(model, batch), batch)
        return state.params, reports, sample(state.params, jax.random.key(1))

    first = result()
    jax.tree.map(np.testing.assert_array_equal, first, result())
    params = first[0]
    one, other = (sample(params, jax.random.key(i)) for i in range(2))
    assert not np.array_equal(one, other)


def loss_falls(model: Model, step: Callable, batch: Batch, loss: str, steps: int = 60) -> None:
    state, losses = initial(model, batch), []
    for _ in range(steps):
        state, reports = step(state, batch)
        losses.append(next(r.metrics[loss] for r in reports.values() if loss in r.metrics))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def evaluate_is_per_example(model: Model, batch: Batch, entry: str) -> None:
    """An example's value depends on no other example of its batch."""
    params = initial(model, batch).params
    other = batch | {entry: batch[entry].at[0].set(batch[entry][1])}
    evaluate = jax.jit(model.evaluate)
    values, changed = (evaluate(params, b, jax.random.key(1)) for b in (batch, other))
    for name, value in values.items():
        assert value.shape == batch[entry].shape[:1], name
        np.testing.assert_allclose(changed[name][1:], value[1:], rtol=1e-5, atol=1e-5)
        assert not np.allclose(changed[name][0], value[0]), name


def sample_has_shape_and_dtype(model: Model, batch: Batch, entry: str) -> None:
    params = initial(model, batch).params
    sample = jax.eval_shape(lambda: model.sample(params, jax.random.key(1), 5))
    assert sample.shape == (5, *batch[entry].shape[1:])
    assert sample.dtype == batch[entry].dtype


def devices_agree(model: Model, batch: Batch) -> None:
    """Under jit one device and four draw the same noise, and agree to rounding."""
    chunk = jax.tree.map(lambda x: jnp.stack([x] * 3), batch)
    results = []
    for count in (1, DEVICES):
        mesh = mesh_of(count)
        template = parallel.sharded(jax.eval_shape(lambda: initial(model, batch)), mesh)
        state = parallel.compile_init(partial(init_state, model), template)(jax.random.key(0), batch)
        steps = parallel.compile_steps(partial(make_step, model), template, mesh)
        state, reports = steps(state, parallel.put_chunk(chunk, mesh))
        results.append(jax.device_get((state.params, reports)))
    close(*results)


def mapped_steps_agree(model: Model, batch: Batch) -> None:
    """Under pmap and shard_map every shard draws its own noise, the same under both."""
    close(*mapped(model, initial(model, batch), batch))


def mapped_steps_agree_with_jit(model: Model, batch: Batch) -> None:
    """With noise that belongs to an example and not to a place, a mapped step equals the plain one."""
    start, model = initial(model, batch), noise_by_example(model)
    batch = batch | {"index": jnp.arange(len(next(iter(batch.values()))))}
    state, reports = jax.jit(make_step(model))(start, batch)
    close(jax.device_get((state.params, reports)), *mapped(model, start, batch))


def mapped(model: Model, state: TrainState, batch: Batch) -> list[tuple]:
    """(params, reports) after one step, under pmap and under shard_map."""
    step, mesh = make_step(model, axis_name="data"), mesh_of(DEVICES)
    shards = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
    replicas, reports = jax.pmap(step, in_axes=(None, 0), axis_name="data")(state, shards)
    pmapped = jax.tree.map(lambda x: x[0], (replicas.params, reports))
    sharded, reports = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))(state, batch)
    return jax.device_get([pmapped, (sharded.params, reports)])


def mesh_of(count: int) -> jax.sharding.Mesh:
    """The first devices along one axis, `data`."""
    axis = jax.sharding.AxisType.Auto
    return jax.make_mesh((count,), ("data",), axis_types=(axis,), devices=jax.devices()[:count])


compiled_init = jax.jit(init_state, static_argnums=0)  # once a model


def initial(model: Model, batch: Batch) -> TrainState:
    state = compiled_init(model, jax.random.key(0), batch)
    private = any(objective.noise for objective in model.objectives)
    return state.replace(noise=jax.random.key(5) if private else None)


def noise_by_example(model: Model) -> Model:
    """The same losses, but as a mean over batches of one, each with the key of its example's index."""
    from dataclasses import replace

    def split(objective):
        def loss(params, batch, key, step):
            def one(example):
                index = example.pop("index")
                example = jax.tree.map(lambda x: x[None], example)
                return objective.loss(params, example, jax.random.fold_in(jax.random.key(7), index), step)

            value, aux = jax.vmap(one)(dict(batch))
            return value.mean(), Aux(*jax.tree.map(lambda x: x.mean(0), tuple(aux)))

        return objective._replace(loss=loss)

    return replace(model, objectives=tuple(map(split, model.objectives)))


def close(*results, atol: float = 1e-6) -> None:
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), results[0], other)


def check_frequencies(probabilities: np.ndarray, drawn: np.ndarray) -> None:
    """Outcomes `drawn` [N], indices into `probabilities` [K], follow them: Pearson's chi-square, p above 1e-4.

    Outcomes that are expected fewer than 5 times count as one with the least probable of the others.
    """
    order = np.argsort(-np.asarray(probabilities))
    expected = np.asarray(probabilities, np.float64)[order]
    expected *= len(drawn) / expected.sum()
    counts = np.bincount(drawn, minlength=len(order))[order]
    last = np.count_nonzero(expected >= 5) - 1
    assert last > 0, "one outcome has all the probability"
    merged = [np.append(x[:last], x[last:].sum()) for x in (counts, expected)]
    assert stats.chisquare(*merged).pvalue > 1e-4
