"""The same training however it is spread: replicated, sharded, mapped, or in parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import close, initial, mesh_of

from jaxgen import parallel
from jaxgen.step import make_step
from jaxgen.types import Aux, Model, Objective


def regression(noise: float = 0.0) -> Model:
    """Least squares with two layers, wide enough to be split."""

    def init(key, batch):
        a, b = jax.random.split(key)
        return {"net": {"w": jax.random.normal(a, (3, 8)), "v": jax.random.normal(b, (8, 5)), "c": jnp.zeros(())}}

    def evaluate(params, batch, key):
        p = params["net"]
        y = jnp.tanh(batch["x"] @ p["w"]) @ p["v"] + p["c"] + noise * jax.random.normal(key, (len(batch["x"]), 5))
        return {"loss": ((y - batch["y"]) ** 2).sum(-1)}

    def loss(params, batch, key, step):
        value = evaluate(params, batch, key)["loss"].mean()
        return value, Aux({"loss": value})

    return Model(
        init=init,
        objectives=(Objective("net", loss, optax.sgd(0.01, momentum=0.9)),),
        evaluate=evaluate,
        sample=lambda params, key, n, condition=None: jnp.zeros((n, 3)),
    )


def batches(steps: int = 20, size: int = 8):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(steps, size, 3)).astype("f"), "y": rng.normal(size=(steps, size, 5)).astype("f")}


def trained(model=None, *, devices=4, fsdp=False, how="jit", **options):
    """The parameters after 20 steps under SGD, and the state they are part of."""
    model, data = model or regression(noise=0.1), batches()
    mesh = mesh_of(devices)
    first = {name: x[0] for name, x in data.items()}
    template = parallel.sharded(jax.eval_shape(lambda: initial(model, first)), mesh, fsdp=fsdp)
    state = parallel.compile_init(lambda: initial(model, first), template)()
    steps = parallel.compile_steps(partial(make_step, model, **options), template, mesh, how)
    state, _ = steps(state, parallel.put_chunk(data, mesh))
    return jax.device_get(state.params), state


def test_one_device_and_four_agree_and_the_same_twice_is_the_same():
    close(trained(devices=1)[0], trained(devices=4)[0], trained(devices=2)[0])
    jax.tree.map(np.testing.assert_array_equal, trained()[0], trained()[0])


def test_fully_sharded_agrees_and_is_sharded():
    params, state = trained(fsdp=True)
    close(trained()[0], params)
    for tree in (state.params["net"], state.opt_state["net"][0].trace):
        assert tree["w"].sharding.shard_shape((3, 8)) == (3, 2)
        assert tree["v"].sharding.shard_shape((8, 5)) == (2, 5)
        assert tree["c"].sharding.is_fully_replicated


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_mapped_steps_agree_with_jit_where_no_noise_is_drawn(how):
    model = regression()
    close(trained(model)[0], trained(model, how=how)[0])


def test_mapped_steps_draw_the_same_noise_as_each_other():
    close(trained(how="pmap")[0], trained(how="shard_map")[0])


@pytest.mark.parametrize("options", [{}, {"fsdp": True}, {"how": "shard_map"}, {"how": "pmap"}])
def test_a_batch_in_parts_takes_the_same_step(options):
    model = regression()
    close(trained(model)[0], trained(model, accumulate=2, **options)[0])


def test_a_batch_in_parts_takes_less_memory():
    model, first = regression(), {"x": jnp.zeros((4096, 3)), "y": jnp.zeros((4096, 5))}
    state = initial(model, first)

    def temporary(accumulate):
        compiled = jax.jit(make_step(model, accumulate=accumulate)).lower(state, first).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(1) / 2


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform):
    model, first = regression(0.1), {"x": jnp.zeros((8, 3)), "y": jnp.zeros((8, 5))}
    state = initial(model, first)
    lowered = jax.jit(make_step(model)).trace(state, first).lower(lowering_platforms=(platform,))
    assert "dot_general" in lowered.as_text()
