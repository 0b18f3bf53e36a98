"""The pure update: for each objective, descend one loss with respect to one network."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import UserError
from jaxgen.types import Aux, Batch, Key, Metrics, Model, Objective, Params, Private, PyTree, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(model: Model, key: Key, batch: Batch, *, ema: bool = False) -> TrainState:
    """The state before the first step: fresh parameters, fresh optimiser state, the key for all later randomness."""
    init_key, train_key = jax.random.split(key)
    params = model.init(init_key, batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=train_key,
        params=params,
        opt_state={o.wrt: o.optimizer.init(params[o.wrt]) for o in model.objectives},
        ema=jax.tree.map(jnp.copy, params) if ema else None,  # a copy: donating one buffer twice is an error
    )


def make_step(
    model: Model,
    *,
    ema_decay: float | None = None,
    accumulate: int = 1,
    guard: bool = False,
    axis_name: str | None = None,
) -> Step:
    """Returns the update `(state, batch) -> (state, metrics)`; it is compiled where it is used.

    Args:
      model: what to train.
      ema_decay: decay of the moving average of the parameters, approached from below: at step t = 0, 1, ... the decay
        is min(ema_decay, (1 + t) / (10 + t)), as in TensorFlow's `ExponentialMovingAverage(decay, num_updates)`. The
        average then spans about the last tenth of a short run, and after t steps the initial parameters weigh
        9! t! / (t + 9)!, below 1e-6 from step 20 on. A constant decay of 0.999 would leave them exp(-t / 1000).
        None keeps no average.
      accumulate: number of equal parts of the batch whose gradients are computed one after another, and averaged: the
        same step in less memory. Each part draws its own noise.
      guard: leave out every update whose loss or gradient is not finite.
      axis_name: the mapped axis when the step runs under `jax.pmap` or `jax.shard_map` over shards of the batch.
        Gradients, metrics and writes are then averaged over it, and every shard draws its own noise. Under a plain
        `jax.jit` (on one device, or sharded by the compiler over many) leave it None.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_keys = jax.tree.map(lambda key: jax.random.fold_in(key, state.step), (state.key, state.noise))
        params, opt_state, metrics = state.params, dict(state.opt_state), {}
        for i, objective in enumerate(model.objectives):
            key, noise = jax.tree.map(partial(jax.random.fold_in, data=i), step_keys)
            update = partial(descend, objective, noise=noise, accumulate=accumulate, guard=guard, axis_name=axis_name)
            args = params, opt_state[objective.wrt], batch, key
            if objective.every > 1:
                due = state.step % objective.every == objective.every - 1
                params, opt_state[objective.wrt], new = jax.lax.cond(due, update, partial(_skip, update), *args)
            else:
                params, opt_state[objective.wrt], new = update(*args)
            metrics |= new
        ema = state.ema
        if ema_decay is not None:
            trained = {objective.wrt for objective in model.objectives}
            share = jnp.maximum(1 - ema_decay, 9 / (10 + state.step))  # 1 - decay
            average = optax.incremental_update(params, ema, share)
            ema = {name: average[name] if name in trained else params[name] for name in params}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return step


def descend(
    objective: Objective,
    params: Params,
    opt_state: PyTree,
    batch: Batch,
    key: Key,
    *,
    noise: Key | None = None,
    accumulate: int = 1,
    guard: bool = False,
    axis_name: str | None = None,
) -> tuple[Params, PyTree, Metrics]:
    """One step of the optimiser of `objective`; every other network stays as it is, but for what the loss writes.

    With `guard`, nothing changes where the loss or the norm of its gradient is not finite. The metrics say so: `NAME
    skipped` is 1, beside `NAME gradient norm`.

    A `Private` optimizer receives the clipped and noisy gradient, and the metrics report the norm of that gradient.
    Each example is a batch of one with its own key. All shards share the key `noise`, so the noise is drawn once.
    """
    optimizer = objective.optimizer
    own = key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    local = params if axis_name is None else _vary(params, axis_name)

    def loss(network: PyTree, batch: Batch, key: Key) -> tuple[jax.Array, Aux]:
        return objective.loss(local | {objective.wrt: network}, batch, key)

    gradient = partial(jax.value_and_grad(loss, has_aux=True), local[objective.wrt])
    if isinstance(optimizer, Private):
        gradient = partial(_clipped, gradient, optimizer.example_norm)
    (value, aux), grads = gradient(batch, own) if accumulate == 1 else _in_parts(gradient, accumulate, batch, own)
    if axis_name is not None:
        mean = jax.lax.pmean((value, grads, aux), axis_name)
        value, grads, aux = jax.tree.map(lambda m, x: m.astype(x.dtype), mean, (value, grads, aux))
    if isinstance(optimizer, Private):
        examples = _rows(batch) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        deviation = optimizer.noise_multiplier * optimizer.example_norm / examples
        grads = optax.tree.add_scale(grads, deviation, optax.tree.random_like(noise, grads, jax.random.normal))

    def update(grads: PyTree, network: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree, Params]:
        updates, new_opt_state = optimizer.update(grads, opt_state, network)
        return optax.apply_updates(network, updates), new_opt_state, aux.writes

    args = grads, params[objective.wrt], opt_state
    if not guard:
        network, opt_state, writes = update(*args)
        return params | writes | {objective.wrt: network}, opt_state, aux.metrics
    norm = optax.tree.norm(grads)
    unchanged = params[objective.wrt], opt_state, {name: params[name] for name in aux.writes}
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    network, opt_state, writes = _if(good, update, args, unchanged)
    name = objective.name or objective.wrt
    health = {f"{name} gradient norm": norm, f"{name} skipped": 1.0 - good}
    return params | writes | {objective.wrt: network}, opt_state, aux.metrics | health


def _if(good: jax.Array, update: Callable[..., PyTree], args: tuple, unchanged: PyTree) -> PyTree:
    """`update(*args)` where `good`, else `unchanged`.

    A branch on CPU, where choosing number by number costs a tenth of the step of a small model; elsewhere a choice,
    which is fused with the update, while for a branch the host would have to wait for the device.
    """

    def branch(good: jax.Array, args: tuple, unchanged: PyTree) -> PyTree:
        return jax.lax.cond(good, lambda: update(*args), lambda: unchanged)

    def choice(good: jax.Array, args: tuple, unchanged: PyTree) -> PyTree:
        return jax.tree.map(partial(jnp.where, good), update(*args), unchanged)

    return jax.lax.platform_dependent(good, args, unchanged, cpu=branch, default=choice)


def scan_steps(step: Step) -> Step:
    """Several steps in one dispatch: `(state, batches) -> (state, metrics)` over a leading axis [K] of both."""

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(step, state, batches)

    return steps


STACKED = TrainState(step=None, key=0, params=0, opt_state=0, ema=0, noise=0)  # axes of the states of several seeds


def over_seeds(step: Step) -> Step:
    """The same step of several states at once, stacked along a first axis [S] as their batches [S, B, ...] are.

    They share the counter of steps, so that an objective is due for all of them or for none. Metrics are means over S.
    A step that one of them has to leave out counts as left out.
    """
    mapped = jax.vmap(step, in_axes=(STACKED, 0), out_axes=(STACKED, 0))

    def step_all(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = mapped(state, batch)
        return state, jax.tree.map(lambda m: m.mean(0), metrics)

    return step_all


def _clipped(
    gradient: Callable[[Batch, Key], tuple], norm: float, batch: Batch, key: Key
) -> tuple[tuple[jax.Array, Aux], PyTree]:
    """What `gradient(batch, key)` would return, but of gradients of examples that are clipped before their mean."""
    examples = jax.tree.map(lambda x: x[:, None], batch)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(_rows(batch)))
    (values, aux), grads = jax.vmap(gradient)(examples, keys)
    if aux.writes:
        try:  # JAX refuses to leave out the axis of the examples where a value depends on them
            jax.eval_shape(jax.vmap(lambda *one: gradient(*one)[0][1].writes, out_axes=None), examples, keys)
        except ValueError:
            raise UserError(
                "--optimizer.noise-multiplier: this loss writes down what depends on its examples, past the noise, as "
                "batch normalisation does: use a model without it (such as --model.norm group), or no noise",
                shared=True,
            ) from None
    total, _ = optax.per_example_global_norm_clip(grads, norm)
    mean = jax.tree.map(lambda x: x / _rows(batch), total)
    metrics, writes = jax.tree.map(lambda x: x.mean(0), aux.metrics), jax.tree.map(lambda x: x[0], aux.writes)
    return (values.mean(), Aux(metrics, writes)), mean


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _in_parts(function: Callable[[Batch, Key], PyTree], parts: int, batch: Batch, key: Key) -> PyTree:
    """The mean of `function` over equal parts of the batch, one after another, each spread over all devices."""
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    each = split, jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(parts))

    def add(total: PyTree, part: tuple[Batch, Key]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    first, rest = (jax.tree.map(lambda x, part=part: x[part], each) for part in (0, slice(1, None)))
    total, _ = jax.lax.scan(add, function(*first), rest)
    return jax.tree.map(lambda x: (x / parts).astype(x.dtype), total)


def _vary(params: Params, axis_name: str) -> Params:
    """Marks replicated parameters as varying over the axis.

    Under shard_map the gradient with respect to a replicated value arrives already summed over the axis, so its mean
    would be as many times too large as there are shards; with respect to a varying value it is local.
    """
    return jax.tree.map(lambda p: jax.lax.pcast(p, axis_name, to="varying"), params)


def _skip(update: Callable, params: Params, opt_state: PyTree, batch: Batch, key: Key) -> tuple:
    """The other branch of an objective that is not due: nothing changes, and its metrics are not numbers."""
    metrics = jax.eval_shape(update, params, opt_state, batch, key)[2]
    return params, opt_state, jax.tree.map(lambda m: jnp.full(m.shape, jnp.nan, m.dtype), metrics)
