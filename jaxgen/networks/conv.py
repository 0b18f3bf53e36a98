"""Convolutional encoder and decoder of images of any size."""

from collections.abc import Sequence

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
    """

    outputs: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 128
    conv: type[nn.Module] = Conv

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        for channels in self.channels:
            x = nn.relu(self.conv(channels, kernel_size=4, stride=2)(x))
        h = x.reshape(len(x), -1)
        if condition is not None:
            h = jnp.concatenate([h, condition], axis=-1)
        return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.hidden)(h)))


class Decoder(nn.Module):
    """[..., D] and an optional condition [..., K] -> [..., H, W, C]: dense layers, then one doubling for each entry of
    `channels`; where H or W is no multiple, the picture is cut to size.

    Attributes:
      shape: (H, W, C) of one output.
      channels: before each doubling.
      hidden: width of the dense layer.
      conv_transpose: makes a transposed convolution.
      output_bias: initialiser of a bias of the whole output, called with `shape`.
    """

    shape: Sequence[int]
    channels: Sequence[int] = (64, 32)
    hidden: int = 128
    conv_transpose: type[nn.Module] = ConvTranspose
    output_bias: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        height, width, outputs = self.shape
        leading, scale = z.shape[:-1], 2 ** len(self.channels)
        if condition is not None:
            z = jnp.concatenate([z, jnp.broadcast_to(condition, (*leading, condition.shape[-1]))], axis=-1)
        h = nn.relu(nn.Dense(self.hidden)(z.reshape(-1, z.shape[-1])))
        rows, columns = -(-height // scale), -(-width // scale)
        h = nn.relu(nn.Dense(rows * columns * self.channels[0])(h)).reshape(-1, rows, columns, self.channels[0])
        for channels in self.channels[1:]:
            h = nn.relu(self.conv_transpose(channels, kernel_size=4, stride=2)(h))
        h = self.conv_transpose(outputs, kernel_size=4, stride=2, use_bias=False)(h)[:, :height, :width]
        bias = self.param("output_bias", self.output_bias, tuple(self.shape), jnp.float32)
        return (h + bias).reshape(*leading, *self.shape)
