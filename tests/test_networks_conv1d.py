"""Convolutions over time against Flax's own, and the shapes of what is made of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.networks.conv1d import Decoder, Discriminator, Down, Encoder, Generator, Up

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
