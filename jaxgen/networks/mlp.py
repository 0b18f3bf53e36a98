"""Multilayer perceptrons."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.norm import Kind, Norm


class MLP(nn.Module):
    """[..., *event] and an optional condition [..., K] -> [..., *shape].

    Leading axes are flattened away, since a matrix product of two axes is the fast one, and come back at the end.

    Attributes:
      hidden: widths of the hidden layers.
      shape: shape of one output.
      event: number of trailing axes that make one input.
      embed: of the flat input, before the first layer.
      activation: after each hidden layer.
      norm: before each activation.
      kernel_init: of every layer.
      output_bias: initialiser of the last layer's bias, called with the flat shape [prod(shape)].
      dtype: of the arithmetic; parameters and output are float32.
    """

    hidden: Sequence[int]
    shape: Sequence[int]
    event: int = 1
    embed: Callable[[jax.Array], jax.Array] = lambda x: x
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    norm: Kind = "none"
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    output_bias: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        leading = x.shape[: x.ndim - self.event]
        h = self.embed(x.reshape(math.prod(leading), -1))
        if condition is not None:
            condition = jnp.broadcast_to(condition, (*leading, condition.shape[-1]))
            h = jnp.concatenate([h, condition.reshape(h.shape[0], -1)], axis=-1)
        dense = partial(nn.Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        for width in self.hidden:
            h = dense(width)(h)
            h = self.activation(h if self.norm == "none" else Norm(self.norm, self.dtype)(h))
        h = dense(math.prod(self.shape), bias_init=self.output_bias)(h)
        return h.reshape(*leading, *self.shape).astype(jnp.float32)


def maxout(x: jax.Array, pieces: int = 5) -> jax.Array:
    """[..., pieces * D] -> [..., D], the largest of each D's pieces (Goodfellow et al. 2013)."""
    return x.reshape(*x.shape[:-1], -1, pieces).max(-1)


def fourier(x: jax.Array, octaves: int) -> jax.Array:
    """[..., D] -> [..., D (1 + 2 octaves)]: x, and the sines and cosines of x, 2 x, 4 x, ... (Mildenhall et al. 2020).

    A perceptron learns slowly what changes over short distances of its input, and fast what is a wave of it.
    """
    waves = [wave(2.0**i * x) for i in range(octaves) for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1)
