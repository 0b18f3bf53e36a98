"""WaveNet and GRU: what an output may depend on, and that it is the same one sample at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks_pixelcnn import methods, one_by_one, started

from jaxgen.networks.gru import GRU
from jaxgen.networks.wavenet import WaveNet

KEY = jax.random.key(5)
NETWORKS = {
    "wavenet": partial(WaveNet, dilations=(1, 3, 1, 3), first_kernel=3, width=4, skip=8),
    "gru": partial(GRU, width=8),
}
by_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def samples(length, rows=2):
    return jax.random.randint(jax.random.key(0), (rows, length), 0, 256)


@by_network
def test_an_output_depends_on_what_was_before_it_as_far_back_as_it_should(make):
    network = make(2)
    tokens = 60 * jax.random.normal(KEY, (8, 14)) + 128
    variables = started(network, tokens)
    jacobian = jax.jit(jax.jacrev(lambda x: network.apply(variables, x).sum(0)))(tokens)  # [T, K, B, T]
    depends = np.abs(jacobian).max(axis=(1, 2)) > 0
    back = np.arange(14)[:, None] - np.arange(14)
    field = getattr(network, "receptive_field", 14)
    np.testing.assert_array_equal(depends, (back >= 1) & (back <= field))


def test_receptive_field_is_that_of_all_layers():
    assert WaveNet(1).receptive_field == 257
    assert WaveNet(1, dilations=(1, 3, 1, 3), first_kernel=3).receptive_field == 11


@by_network
def test_one_by_one_is_as_the_whole_from_every_prompt(make):
    network = make(3)
    tokens, condition = samples(12), jax.random.normal(KEY, (2, 3))
    variables = started(network, tokens, condition)
    whole = jax.jit(network.apply)(variables, tokens, condition)
    scanned = jax.jit(partial(one_by_one, network))(variables, tokens, condition)
    np.testing.assert_allclose(scanned[:, :-1], whole, atol=1e-5)
    prefill, extend = methods(network)
    for read in (0, 2, 11):
        output, cache = prefill(variables, tokens[:, :read], condition)
        for i in range(read, 12):
            np.testing.assert_allclose(output, whole[:, i], atol=1e-5)
            output, cache = extend(variables, tokens[:, i], cache)


@by_network
def test_one_by_one_without_condition_as_tokens_of_one_channel(make):
    network = make(3)
    tokens = samples(12)
    variables = started(network, tokens)
    outputs = jax.jit(partial(one_by_one, network))(variables, tokens[..., None])
    np.testing.assert_allclose(outputs[:, :-1], jax.jit(network.apply)(variables, tokens), atol=1e-5)


@by_network
def test_condition_changes_every_output(make):
    network = make(3)
    tokens = jnp.repeat(samples(12, rows=1), 3, axis=0)
    condition = jnp.eye(3).at[2].set(0)
    variables = started(network, tokens, condition)
    one, other, none = jax.jit(network.apply)(variables, tokens, condition)
    assert (np.abs(one - other) > 1e-6).all()
    np.testing.assert_allclose(none, jax.jit(network.apply)(variables, tokens)[0], atol=1e-6)


@by_network
def test_bfloat16_is_of_the_arithmetic_alone(make):
    network = make(3)
    half = network.clone(dtype="bfloat16")
    tokens, condition = samples(12), jax.random.normal(KEY, (2, 3))
    variables = started(network, tokens, condition)
    exact = jax.jit(network.apply)(variables, tokens, condition)
    rough = jax.jit(partial(one_by_one, half))(variables, tokens, condition)
    assert rough.dtype == jnp.float32
    assert not np.array_equal(rough[:, :-1], exact)
    np.testing.assert_allclose(rough[:, :-1], exact, rtol=0.05, atol=0.05 * np.abs(exact).max())


def test_dropout_is_for_training():
    network = NETWORKS["wavenet"](1, dropout=0.5)
    tokens = samples(9)
    variables = started(network, tokens)
    plain = network.apply(variables, tokens)
    np.testing.assert_array_equal(plain, network.clone(dropout=0.0).apply(variables, tokens))
    one, again, other = (network.apply(variables, tokens, rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_cache_is_as_long_as_the_dilations():
    network, tokens = WaveNet(1, dilations=(1, 4), width=3), samples(5)
    variables = jax.eval_shape(network.init, KEY, tokens)
    _, cache = jax.eval_shape(partial(network.apply, method="prefill"), variables, tokens)
    assert [past.shape for past in cache.past] == [(1, 2, 3), (4, 2, 3)]
