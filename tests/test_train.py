"""The pure step and the loop around it."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.config import OptimizerConfig
from jaxgen.guard import Guard
from jaxgen.step import init_state, make_step, scan_steps
from jaxgen.train import Hook, Progress, _chunks, train
from jaxgen.types import Aux, Model, Objective, Report, TrainState


def quadratic(every: int = 1) -> Model:
    """Two networks that each follow a loss of their own, and a counter that the first one writes."""

    def first(params, batch, key, step):
        noise = 0.1 * jax.random.normal(key)
        loss = jnp.mean((params["a"]["w"] - batch["x"] + noise) ** 2)
        return loss, Aux({"first": loss, "noise": noise}, {"count": params["count"] + 1})

    def second(params, batch, key, step):
        return (params["b"]["w"] - params["a"]["w"]) ** 2, Aux({"second": params["b"]["w"]})

    return Model(
        init=lambda key, batch: {"a": {"w": jnp.zeros(())}, "b": {"w": jnp.ones(())}, "count": jnp.zeros(())},
        objectives=(
            Objective("a", first, optax.sgd(0.1)),
            Objective("b", second, optax.adam(0.1), every=every),
        ),
        evaluate=lambda params, batch, key: {"loss": (params["a"]["w"] - batch["x"]) ** 2},
        sample=lambda params, key, n, condition=None: jnp.full(n, params["a"]["w"]),
    )


BATCH = {"x": jnp.full(4, 3.0)}


def state_of(model, **options):
    return init_state(model, jax.random.key(0), BATCH, **options)


def test_one_step_is_what_the_optimizer_says():
    model = quadratic()
    state = state_of(model)
    new, reports = make_step(model)(state, BATCH)
    gradient = 2 * (0.0 - 3.0 + reports["a"].metrics["noise"])
    np.testing.assert_allclose(new.params["a"]["w"], -0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(new.params["b"]["w"], 1 - 0.1 * np.sign(1 - new.params["a"]["w"]), rtol=1e-5)
    assert int(new.step) == 1
    assert new.params["count"] == 1
    assert jnp.array_equal(jax.random.key_data(new.key), jax.random.key_data(state.key))


def test_noise_is_a_function_of_key_and_step():
    step = jax.jit(make_step(quadratic()))
    state, noise = state_of(quadratic()), []
    for _ in range(3):
        state, reports = step(state, BATCH)
        noise.append(float(reports["a"].metrics["noise"]))
    assert len(set(noise)) == 3
    _, reports = step(state.replace(step=jnp.int32(1)), BATCH)
    assert float(reports["a"].metrics["noise"]) == noise[1]


def test_an_objective_that_is_not_due_changes_nothing():
    model = quadratic(every=3)
    step, state = jax.jit(make_step(model)), state_of(model)
    for i in range(1, 7):
        new, reports = step(state, BATCH)
        due = i % 3 == 0
        assert (new.params["b"]["w"] != state.params["b"]["w"]) == due
        assert reports["b"].due == due
        assert (reports["b"].metrics["second"] != 0) == due
        if not due:
            jax.tree.map(np.testing.assert_array_equal, new.opt_state["b"], state.opt_state["b"])
        state = new


def test_a_step_whose_numbers_are_not_finite_changes_nothing_and_is_counted():
    model = quadratic()
    step, state = jax.jit(make_step(model, guard=True)), state_of(model)
    state, reports = step(state, BATCH)
    assert not reports["a"].skipped
    assert not reports["b"].skipped
    assert reports["a"].gradient_norm > 0
    new, reports = step(state, {"x": jnp.array([3.0, jnp.nan, 3.0, 3.0])})
    assert reports["a"].skipped
    assert not reports["b"].skipped  # the other network goes on
    for before, after in [(state.params["a"], new.params["a"]), (state.opt_state["a"], new.opt_state["a"])]:
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert new.params["count"] == state.params["count"]
    assert int(new.step) == 2
    after, reports = step(new, BATCH)
    assert not reports["a"].skipped
    assert after.params["a"]["w"] != new.params["a"]["w"]


def averages(decay: float, params: list[float], ema: float, start: int = 0) -> list[float]:
    """Moving averages of scalar parameters after steps `start`, `start + 1`, ..., by their definition."""
    found = []
    for t, value in enumerate(params, start):
        rate = min(decay, (1 + t) / (10 + t))
        ema = rate * ema + (1 - rate) * value
        found.append(ema)
    return found


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_moving_average(decay):
    model = quadratic()
    step, states = jax.jit(make_step(model, ema_decay=decay)), [state_of(model, ema=True)]
    for _ in range(6):
        states.append(step(states[-1], BATCH)[0])
    params, found = zip(*((s.params["a"]["w"], s.ema["a"]["w"]) for s in states), strict=True)
    np.testing.assert_allclose(found[1:], averages(decay, params[1:], params[0]), rtol=1e-5)


def test_moving_average_of_a_short_run_forgets_where_it_began():
    """From 1 to parameters that stay at 0, the average is the weight of the initialization: t! 9! / (t + 9)!."""
    still = Objective("a", lambda params, batch, key, step: (0.0 * params["a"].sum(), Aux()), optax.sgd(0.0))
    step = make_step(replace(quadratic(), objectives=(still,)), ema_decay=0.999)
    state = TrainState(jnp.int32(0), jax.random.key(0), {"a": jnp.zeros(1)}, {"a": optax.sgd(0.0).init(0.0)})
    state = state.replace(ema={"a": jnp.ones(1)})
    weights = []
    for _ in range(20):
        state, _ = step(state, BATCH)
        weights.append(float(state.ema["a"][0]))
    expected = [1 / math.comb(t + 9, 9) for t in range(1, 21)]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert weights[-1] < 1e-6


def test_moving_average_of_a_long_run_has_the_decay_that_was_asked_for():
    model = quadratic()
    state = state_of(model, ema=True).replace(step=jnp.int32(20_000))
    new, _ = make_step(model, ema_decay=0.999)(state, BATCH)
    expected = 0.999 * state.ema["a"]["w"] + 0.001 * new.params["a"]["w"]
    np.testing.assert_allclose(new.ema["a"]["w"], expected, rtol=1e-5)


def test_a_long_gradient_is_scaled_down_to_its_largest_norm():
    """Adam would hide the length of one gradient, but not the ratio of two of them in its second moment."""
    gradients = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.3, 0.4])}
    moments = []
    for clip_norm in (1.0, None):
        optimizer = OptimizerConfig(clip_norm=clip_norm).build(100)
        states = [optimizer.update(g, optimizer.init(g))[1] for g in gradients]
        nu = [next(s.nu["w"] for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)) for state in states]
        moments.append(nu[0] / nu[1])
    np.testing.assert_allclose(moments, [[(1 / 0.5) ** 2] * 2, [10.0**2] * 2], rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_weight_decay_is_of_kernels_and_embeddings(name):
    """Each in whatever words a network calls it: all of it that multiplies."""
    ones = jnp.ones((3, 4))
    shrinking = {"kernel": ones, "kernel_0": ones, "kernel_direct": ones, "embedding": ones}
    others = {"bias": ones[0], "bias_out": ones[0], "scale": ones[0], "output_bias": ones[0], "start": ones[0]}
    params = {"layer": shrinking | others}
    optimizer = OptimizerConfig(name, learning_rate=0.5, schedule="constant", weight_decay=0.1).build(1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for parameter, update in updates["layer"].items():
        np.testing.assert_allclose(update, -0.05 if parameter in shrinking else 0.0, rtol=1e-6, err_msg=parameter)


def test_muon_moves_each_direction_of_a_kernel_equally():
    """Singular values of the first step are as near to 1 as five iterations bring them, in units of the step size and
    0.2 times the root of the longer side. What is no kernel goes with Adam, which has Nesterov's momentum here.
    """
    shapes = {"one": (30, 12), "stacked": (2, 12, 30), "of images": (3, 3, 4, 20)}
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape) + 1)} for name, shape in shapes.items()}
    params["norm"], params["words"] = {"scale": jnp.ones(5)}, {"embedding": jnp.asarray(rng.normal(size=(7, 3)))}
    optimizer = OptimizerConfig("muon", learning_rate=0.1, schedule="constant").build(5)
    update, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)  # a gradient like any other
    for name, rows in (("one", 30), ("stacked", 12), ("of images", 36)):
        change, gradient = (np.asarray(tree[name]["kernel"]) for tree in (update, params))
        matrices = change.reshape(-1, rows, change.shape[-1])
        unit = 0.1 * 0.2 * max(matrices.shape[1:]) ** 0.5
        assert np.all(np.abs(np.linalg.svd(matrices)[1] / unit - 1) < 0.35), name
        assert (change * gradient).sum() < 0
    for leaf, gradient in ((update["norm"]["scale"], 1), (update["words"]["embedding"], params["words"]["embedding"])):
        np.testing.assert_allclose(leaf / np.sign(gradient), -0.1 * (1 + 0.9 / 1.9), rtol=1e-4)


def test_a_loss_that_is_not_due_is_no_bad_step():
    """Without a guard in the step; the second objective is due at every third step."""

    def report(due, loss):
        return Report(due, np.broadcast_to(loss, due.shape), {})

    guard, due, always = Guard(3), np.arange(12) % 3 == 2, np.ones(12, bool)
    guard.progress(Progress(0, 12, {"a": report(always, 1.0), "b": report(due, np.where(due, 1.0, np.nan))}, 1.0))
    assert guard.count == 0
    guard.progress(Progress(12, 21, {"a": report(always[:9], 1.0), "b": report(due[:9], np.nan)}, 1.0))
    assert (guard.full, guard.first) == (True, 14)


def is_adam(x) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def test_seeds_train_at_once_under_vmap():
    model = quadratic()
    step = make_step(model)
    states = jax.vmap(lambda key: init_state(model, key, BATCH))(jax.random.split(jax.random.key(0), 3))
    together, _ = jax.vmap(step, in_axes=(0, None))(states, BATCH)
    for i in range(3):
        alone, _ = step(jax.tree.map(lambda x, i=i: x[i], states), BATCH)
        np.testing.assert_allclose(together.params["a"]["w"][i], alone.params["a"]["w"], rtol=1e-6)


def run(chunk=4, start=0, stop=23, periods=(5,), state=None, **options):
    """Trains and returns the state, what hooks saw, and the noise of every step."""
    seen, progress = [], []
    steps = jax.jit(scan_steps(make_step(quadratic())))

    def batches(first, last):
        return {"x": jnp.broadcast_to(jnp.arange(first, last, dtype=jnp.float32)[:, None], (last - first, 4))}

    state = train(
        state_of(quadratic()) if state is None else state,
        steps,
        batches,
        stop=stop,
        chunk=chunk,
        hooks=[Hook(n, lambda step, state, n=n: seen.append((n, step, int(state.step)))) for n in periods],
        on_progress=progress.append,
        **options,
    )
    return state, seen, progress


def test_hooks_see_the_state_at_their_steps():
    _, seen, progress = run(periods=(5, 10))
    expected = [(5, 5), (5, 10), (10, 10), (5, 15), (5, 20), (10, 20), (5, 23), (10, 23)]
    assert [(n, step) for n, step, _ in seen] == expected
    assert all(step == at for _, step, at in seen)
    assert [p.start for p in progress] == [0, *[p.stop for p in progress[:-1]]]
    assert progress[-1].stop == 23
    assert all(len(p.reports["a"].metrics["noise"]) == p.stop - p.start for p in progress)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunks_do_not_change_the_result(chunk):
    (one, _, a), (other, _, b) = run(chunk=4), run(chunk=chunk, periods=(9,))
    np.testing.assert_allclose(one.params["a"]["w"], other.params["a"]["w"], rtol=1e-6)
    values = [np.concatenate([p.reports["a"].metrics["noise"] for p in progress]) for progress in (a, b)]
    np.testing.assert_array_equal(*values)


def test_going_on_is_the_same_as_never_stopping():
    whole, _, _ = run()
    half, _, _ = run(stop=11)
    rest, _, progress = run(state=half)
    assert progress[0].start == 11
    jax.tree.map(np.testing.assert_array_equal, whole.params, rest.params)


def test_stops_after_the_chunk_when_asked():
    asked = iter([False, False, False, True])
    state, _, progress = run(should_stop=lambda: next(asked))
    assert int(state.step) == progress[-1].stop == 8  # 0-4, 4-5 (a hook is due, asked twice), 5-8


def test_chunks_never_cross_a_period():
    for start, stop in _chunks(3, 1000, 50, [7, 30]):
        assert all(start // n == (stop - 1) // n for n in (7, 30, 50))
    assert list(_chunks(5, 5, 50, [])) == []


def test_an_error_while_a_batch_is_made_reaches_the_caller():
    def batches(first, last):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train(state_of(quadratic()), None, batches, stop=3)
