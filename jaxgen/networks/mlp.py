"""Multilayer perceptrons."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """[..., *event] and an optional condition [..., K] -> [..., *shape].

    Leading axes are flattened away, since a matrix product of two axes is the fast one, and come back at the end.

    Attributes:
      hidden: widths of the hidden layers.
      shape: shape of one output.
      event: number of trailing axes that make one input.
      activation: after each hidden layer.
      kernel_init: of every layer.
      output_bias: initialiser of the last layer's bias, called with the flat shape [prod(shape)].
    """

    hidden: Sequence[int]
    shape: Sequence[int]
    event: int = 1
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    output_bias: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        leading = x.shape[: x.ndim - self.event]
        h = x.reshape(math.prod(leading), -1)
        if condition is not None:
            condition = jnp.broadcast_to(condition, (*leading, condition.shape[-1]))
            h = jnp.concatenate([h, condition.reshape(h.shape[0], -1)], axis=-1)
        for width in self.hidden:
            h = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(h))
        h = nn.Dense(math.prod(self.shape), kernel_init=self.kernel_init, bias_init=self.output_bias)(h)
        return h.reshape(*leading, *self.shape)
