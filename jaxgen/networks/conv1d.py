"""Strided convolutions over time: encoder and decoder of frames, generator and discriminator of waves (WaveGAN)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.convolution import Conv, ConvTranspose
from jaxgen.networks.dcgan import Head, leaky_relu
from jaxgen.networks.norm import Kind, Norm


class Down(nn.Module):
    """[B, T, C] -> [B, T / stride, features], the length rounded up."""

    features: int
    kernel_size: int
    stride: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = Conv(self.features, kernel_size=(self.kernel_size, 1), stride=self.stride, dtype=self.dtype)
        return conv(x[:, :, None])[:, :, 0]


class Up(nn.Module):
    """[B, T, C] -> [B, stride * T, features]."""

    features: int
    kernel_size: int
    stride: int
    use_bias: bool = True
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        both = self.kernel_size + self.stride - 2
        conv = ConvTranspose(
            self.features,
            kernel_size=(self.kernel_size, 1),
            stride=self.stride,
            padding=((both - both // 2, both // 2), (0, 0)),  # over time to its multiple, and across nothing
            use_bias=self.use_bias,
            dtype=self.dtype,
        )
        return conv(x[:, :, None])[:, :, 0]


class Encoder(nn.Module):
    """Frames [B, T, C] and an optional condition [B, K] -> [B, outputs]: halvings in time, then a dense layer.

    Attributes:
      outputs: numbers per example.
      channels: after each halving.
      hidden: width of the dense layer.
      dtype: of the arithmetic; parameters and output are float32.
    """

    outputs: int
    channels: Sequence[int] = (64, 128)
    hidden: int = 128
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        for channels in self.channels:
            x = nn.relu(Down(channels, kernel_size=5, stride=2, dtype=self.dtype)(x))
        h = x.reshape(x.shape[0], -1)
        if condition is not None:
            h = jnp.concatenate([h, condition], axis=-1)
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(h))
        return nn.Dense(self.outputs, dtype=self.dtype)(h).astype(jnp.float32)


class Decoder(nn.Module):
    """[..., D] and an optional condition [..., K] -> frames [..., T, C]: dense layers, then one doubling for each entry
    of `channels`; where T is no multiple, the end is cut off.

    Attributes:
      shape: (T, C) of one output.
      channels: before each doubling.
      hidden: width of the dense layer.
      output_bias: initialiser of a bias of the whole output, called with `shape`.
      dtype: of the arithmetic; parameters and output are float32.
    """

    shape: Sequence[int]
    channels: Sequence[int] = (128, 64)
    hidden: int = 128
    output_bias: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        length, outputs = self.shape
        leading, first = z.shape[:-1], -(-length // 2 ** len(self.channels))
        init, size = nn.initializers.lecun_normal(), z.shape[-1]
        if condition is not None:
            z = jnp.concatenate([z, jnp.broadcast_to(condition, (*leading, condition.shape[-1]))], axis=-1)

        def kernel_init(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
            """A condition, one-hot, is as loud as z from the start, or z learns first what the condition says."""
            z_key, condition_key = jax.random.split(key)
            of_condition = jax.random.normal(condition_key, (shape[0] - size, shape[1]), dtype)
            return jnp.concatenate([init(z_key, (size, shape[1]), dtype), of_condition])

        h = nn.relu(nn.Dense(self.hidden, kernel_init=kernel_init, dtype=self.dtype)(z.reshape(-1, z.shape[-1])))
        h = nn.relu(nn.Dense(first * self.channels[0], dtype=self.dtype)(h)).reshape(-1, first, self.channels[0])
        up = partial(Up, kernel_size=6, stride=2, dtype=self.dtype)
        for channels in self.channels[1:]:
            h = nn.relu(up(channels)(h))
        h = up(outputs, use_bias=False)(h)[:, :length].astype(jnp.float32)
        bias = self.param("output_bias", self.output_bias, tuple(self.shape), jnp.float32)
        return (h + bias).reshape(*leading, *self.shape)


class Generator(nn.Module):
    """z [B, D] and an optional condition [B, K] -> waves [B, T, 1] in [-1, 1] (Donahue et al. 2019, table 3).

    Attributes:
      length: T; where it is no multiple of 4 to the power of `layers`, the end is cut off.
      width: channels at the highest resolution but one; twice as many at each lower one, up to 8 times.
      layers: each four times as long as the one before.
      norm: before each activation; the condition enters there and beside z.
      dtype: of the arithmetic; parameters and output are float32.
    """

    length: int
    width: int = 16
    layers: int = 4
    norm: Kind = "none"
    dtype: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        widths = [self.width * 2 ** min(i, 3) for i in reversed(range(self.layers))]
        first = -(-self.length // 4**self.layers)
        h = z if condition is None else jnp.concatenate([z, condition], axis=-1)
        h = nn.Dense(first * widths[0], dtype=self.dtype)(h).reshape(-1, first, widths[0])
        for features in [*widths[1:], 1]:
            h = nn.relu(Norm(self.norm, self.dtype)(h, condition))
            h = Up(features, kernel_size=25, stride=4, dtype=self.dtype)(h)
        return jnp.tanh(h[:, : self.length].astype(jnp.float32))


class Discriminator(nn.Module):
    """Waves [B, T, C] and an optional condition [B, K] -> [B], high for what looks real (Donahue et al. 2019, table 4).

    A condition enters by projection (Miyato & Koyama 2018, eq. 7).

    Attributes:
      width: channels after the first layer; twice as many after each further one, up to 8 times.
      layers: each a quarter as long as the one before.
      phase_shuffle: most samples by which each example is moved, at random, before every layer but the first, where
        there is a key "dropout" to draw with: what upsampling leaves at one phase then betrays no generated wave.
      dtype: of the arithmetic; parameters and output are float32.
    """

    width: int = 16
    layers: int = 4
    phase_shuffle: int = 0
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        for i in range(self.layers):
            if i and self.phase_shuffle and self.has_rng("dropout"):
                x = moved(x, self.make_rng("dropout"), self.phase_shuffle)
            x = leaky_relu(Down(self.width * 2 ** min(i, 3), kernel_size=25, stride=4, dtype=self.dtype)(x))
        return Head(dtype=self.dtype)(x.reshape(x.shape[0], -1), condition)


def moved(x: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """Examples [B, T, C], each by -most to most samples, mirrored at its ends (Donahue et al. 2019, section 3.3)."""
    padded = jnp.pad(x, ((0, 0), (most, most), (0, 0)), mode="reflect")
    starts = jax.random.randint(key, (len(x),), 0, 2 * most + 1)
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, x.shape[1]))(padded, starts)
