"""Convolutions over time against Flax's own, and the shapes of what is made of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.networks.conv1d import Decoder, Discriminator, Down, Encoder, Generator, Up, moved

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("layer", "plain", "kernel", "stride"),
    [(Down, nn.Conv, 25, 4), (Down, nn.Conv, 5, 2), (Up, nn.ConvTranspose, 25, 4), (Up, nn.ConvTranspose, 6, 2)],
)
def test_they_are_those_of_flax_in_one_dimension(layer, plain, kernel, stride):
    x = jax.random.normal(KEY, (2, 13, 3))
    variables = jax.tree.map(lambda a: a + 0.1, layer(4, kernel, stride).init(KEY, x))  # biases, too
    (params,) = variables["params"].values()
    flat = {"params": {"kernel": params["kernel"][:, 0], "bias": params["bias"]}}
    found = layer(4, kernel, stride).apply(variables, x)
    assert found.shape == (2, 4 if (layer, stride) == (Down, 4) else 7 if layer is Down else 13 * stride, 4)
    np.testing.assert_allclose(found, plain(4, (kernel,), strides=(stride,)).apply(flat, x), atol=1e-4)


def test_shapes_of_any_length():
    def of(network, *args):
        found = jax.eval_shape(lambda *args: network.init_with_output(KEY, *args)[0], *args)
        assert found.dtype == jnp.float32
        return found.shape

    z, condition = jnp.zeros((2, 5)), jnp.zeros((2, 3))
    for length in (64, 70):
        assert of(Generator(length, width=2, layers=3), z, condition) == (2, length, 1)
        assert of(Discriminator(width=2, layers=3), jnp.zeros((2, length, 1)), condition) == (2,)
        assert of(Encoder(6, channels=(2, 4)), jnp.zeros((2, length, 7)), condition) == (2, 6)
        assert of(Decoder((length, 7), channels=(4, 2)), jnp.zeros((9, 2, 5)), condition) == (9, 2, length, 7)


def test_a_phase_shuffle_moves_each_example_by_a_few_samples():
    """By every distance up to the most, mirrored at the ends; and not where there is no key."""
    x = jnp.arange(200 * 9.0).reshape(200, 9, 1)
    found = np.asarray(moved(x, KEY, 2))[..., 0]
    for row, original in zip(found, np.asarray(x)[..., 0], strict=True):
        mirrored = np.pad(original, 2, mode="reflect")
        assert any(np.array_equal(row, mirrored[i : i + 9]) for i in range(5))
    assert len(set((found[:, 4] - np.asarray(x)[:, 4, 0]).tolist())) == 5
    network, x = Discriminator(width=2, layers=2, phase_shuffle=2), jax.random.normal(KEY, (3, 64, 1))
    variables = network.init(KEY, x)
    still = network.apply(variables, x)
    assert not np.array_equal(still, network.apply(variables, x, rngs={"dropout": KEY}))
    np.testing.assert_array_equal(still, Discriminator(width=2, layers=2).apply(variables, x))
