"""The pure update: for each objective, descend one loss with respect to one network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.types import Aux, Batch, Key, Model, Objective, Params, PyTree, Report, Step, TrainState

Reports = dict[str, Report]  # by the objective's name
Update = Callable[[TrainState, Batch], tuple[TrainState, Reports]]


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
) -> Update:
    """The update `(state, batch) -> (state, reports)`; it is compiled where it is used.

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
        Gradients, reports and writes are then averaged over it, and every shard draws its own noise. Under a plain
        `jax.jit` (on one device, or sharded by the compiler over many) leave it None.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Reports]:
        step_keys = jax.tree.map(lambda key: jax.random.fold_in(key, state.step), (state.key, state.noise))
        params, opt_state, reports = state.params, dict(state.opt_state), {}
        for i, objective in enumerate(model.objectives):
            key, noise = jax.tree.map(partial(jax.random.fold_in, data=i), step_keys)
            update = partial(descend, objective, noise=noise, accumulate=accumulate, guard=guard, axis_name=axis_name)
            args = params, opt_state[objective.wrt], batch, key, state.step
            if objective.every > 1:
                due = state.step % objective.every == objective.every - 1
                params, opt_state[objective.wrt], report = jax.lax.cond(due, update, partial(_skip, update), *args)
            else:
                params, opt_state[objective.wrt], report = update(*args)
            reports[objective.name or objective.wrt] = report
        ema = state.ema
        if ema_decay is not None:
            trained = {objective.wrt for objective in model.objectives}
            share = jnp.maximum(1 - ema_decay, 9 / (10 + state.step))  # 1 - decay
            average = optax.incremental_update(params, ema, share)
            ema = {name: average[name] if name in trained else params[name] for name in params}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), reports

    return step


def descend(
    objective: Objective,
    params: Params,
    opt_state: PyTree,
    batch: Batch,
    key: Key,
    step: Step,
    *,
    noise: Key | None = None,
    accumulate: int = 1,
    guard: bool = False,
    axis_name: str | None = None,
) -> tuple[Params, PyTree, Report]:
    """One optimizer step of `objective`; every other network stays as it is, except for what the loss writes.

    With `guard`, nothing changes where the loss or the norm of its gradient is not finite, and the report says so.
    All shards share the key `noise` of a private gradient.
    """
    own = key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    local = params if axis_name is None else _vary(params, axis_name)

    def loss(network: PyTree, batch: Batch, key: Key) -> tuple[jax.Array, Aux]:
        return objective.loss(local | {objective.wrt: network}, batch, key, step)

    gradient = partial(objective.gradient(loss, has_aux=True), local[objective.wrt])
    (value, aux), grads = gradient(batch, own) if accumulate == 1 else _in_parts(gradient, accumulate, batch, own)
    if axis_name is not None:
        mean = jax.lax.pmean((value, grads, aux), axis_name)
        value, grads, aux = jax.tree.map(lambda m, x: m.astype(x.dtype), mean, (value, grads, aux))
    if objective.noise is not None:
        shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        grads = objective.noise(grads, noise, shards * len(next(iter(batch.values()))))

    def update(grads: PyTree, network: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree, Params]:
        updates, new_opt_state = objective.optimizer.update(grads, opt_state, network)
        return optax.apply_updates(network, updates), new_opt_state, aux.writes

    args, report = (grads, params[objective.wrt], opt_state), Report(jnp.array(True), value, aux.metrics)
    if not guard:
        network, opt_state, writes = update(*args)
        return params | writes | {objective.wrt: network}, opt_state, report
    norm = optax.tree.norm(grads)
    unchanged = params[objective.wrt], opt_state, {name: params[name] for name in aux.writes}
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    network, opt_state, writes = _if(good, update, args, unchanged)
    report = report._replace(gradient_norm=norm, skipped=~good)
    return params | writes | {objective.wrt: network}, opt_state, report


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


def scan_steps(step: Update) -> Update:
    """Several steps in one dispatch: `(state, batches) -> (state, reports)` over a leading axis [K] of both."""

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Reports]:
        return jax.lax.scan(step, state, batches)

    return steps


STACKED = TrainState(step=None, key=0, params=0, opt_state=0, ema=0, noise=0)  # axes of the states of several seeds


def over_seeds(step: Update) -> Update:
    """The same step of several states at once, stacked along a first axis [S] as their batches [S, B, ...] are.

    They share the counter of steps, so that an objective is due for all of them or for none. Reports are means over S;
    a step counts as skipped if one of the states skipped it.
    """
    mapped = jax.vmap(step, in_axes=(STACKED, 0), out_axes=(STACKED, 0))

    def step_all(state: TrainState, batch: Batch) -> tuple[TrainState, Reports]:
        state, reports = mapped(state, batch)
        return state, jax.tree.map(lambda x: x.any(0) if x.dtype == bool else x.mean(0), reports)

    return step_all


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


def _skip(update: Callable, params: Params, opt_state: PyTree, *rest: Any) -> tuple[Params, PyTree, Report]:
    """The other branch of an objective that is not due: nothing changes, and its report is all zeros."""
    report = jax.eval_shape(update, params, opt_state, *rest)[2]
    return params, opt_state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), report)
