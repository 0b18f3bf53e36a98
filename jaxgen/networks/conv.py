"""Convolutional encoder and decoder of images of any size."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.convolution import Conv, ConvTranspose


class Encoder(nn.Module):
    """[B, H, W, C] and an optional condition [B, K] -> [B, outputs]: two halvings, then a dense layer.

    Attributes:
      outputs: numbers per image.
      channels: after each halving.
      hidden: width of the dense layer.
      conv: makes a strided convolution.
      dtype: of the arithmetic; parameters and output are float32.
    """

    outputs: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 128
    conv: type[nn.Module] = Conv
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        for channels in self.channels:
            x = nn.relu(self.conv(channels, kernel_size=4, stride=2, dtype=self.dtype)(x))
        h = x.reshape(x.shape[0], -1)
        if condition is not None:
            h = jnp.concatenate([h, condition], axis=-1)
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(h))
        return nn.Dense(self.outputs, dtype=self.dtype)(h).astype(jnp.float32)


class Classifier(nn.Module):
    """[B, H, W, C] -> features [B, features], at least 0, and logits [B, classes]."""

    classes: int
    features: int = 128
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nn.relu(Encoder(self.features, dtype=self.dtype)(x))
        return h, nn.Dense(self.classes)(h)


class Decoder(nn.Module):
    """[..., D] and an optional condition [..., K] -> [..., H, W, C]: dense layers, then one doubling for each entry of
    `channels`; where H or W is no multiple, the picture is cut to size.

    Attributes:
      shape: (H, W, C) of one output.
      channels: before each doubling.
      hidden: width of the dense layer.
      conv_transpose: makes a transposed convolution.
      output_bias: initialiser of a bias of the whole output, called with `shape`.
      dtype: of the arithmetic; parameters and output are float32.
    """

    shape: Sequence[int]
    channels: Sequence[int] = (64, 32)
    hidden: int = 128
    conv_transpose: type[nn.Module] = ConvTranspose
    output_bias: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        height, width, outputs = self.shape
        leading, scale = z.shape[:-1], 2 ** len(self.channels)
        if condition is not None:
            z = jnp.concatenate([z, jnp.broadcast_to(condition, (*leading, condition.shape[-1]))], axis=-1)
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(z.reshape(-1, z.shape[-1])))
        rows, columns = -(-height // scale), -(-width // scale)
        h = nn.relu(nn.Dense(rows * columns * self.channels[0], dtype=self.dtype)(h))
        h = h.reshape(-1, rows, columns, self.channels[0])
        up = partial(self.conv_transpose, kernel_size=4, stride=2, dtype=self.dtype)
        for channels in self.channels[1:]:
            h = nn.relu(up(channels)(h))
        h = up(outputs, use_bias=False)(h)[:, :height, :width].astype(jnp.float32)
        bias = self.param("output_bias", self.output_bias, tuple(self.shape), jnp.float32)
        return (h + bias).reshape(*leading, *self.shape)
