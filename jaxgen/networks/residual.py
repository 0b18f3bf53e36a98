"""Residual generator and discriminator of images, without normalisation by default (after Huang et al. 2024, R3GAN)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.convolution import Conv
from jaxgen.networks.dcgan import Head, halvings, leaky_relu
from jaxgen.networks.norm import Kind, Norm, Spectral

scaled = nn.initializers.variance_scaling(2.0 / (1 + 0.2**2), "fan_in", "truncated_normal")  # He et al. 2015, eq. 15


class Block(nn.Module):
    """[B, H, W, C] -> [B, H, W, features]: x + f(x); f starts at 0, as in Zhang et al. 2019 (Fixup)."""

    features: int
    norm: Kind = "none"
    spectral: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        def conv(kernel_size, kernel_init=scaled):
            layer = Conv(self.features, kernel_size=kernel_size, kernel_init=kernel_init, dtype=self.dtype)
            return Spectral(layer, on=self.spectral)

        def norm(h):
            return h if self.norm == "none" and condition is None else Norm(self.norm, self.dtype)(h, condition)

        # A kernel of zeros has no singular value to divide by.
        last = nn.initializers.normal(1e-3) if self.spectral else nn.initializers.zeros
        h = conv(3)(leaky_relu(norm(x)))
        h = conv(3, last)(leaky_relu(norm(h)))
        return h + (x if x.shape[-1] == self.features else conv(1)(x))


class Generator(nn.Module):
    """z [B, D] and an optional condition [B, K] -> images [B, H, W, C] in [-1, 1].

    Attributes:
      shape: (H, W, C).
      width: channels at the highest resolution; twice as many at each lower one, up to 8 times.
      norm: before each activation; the condition enters there and beside z.
      remat: compute the inside of each block again in the backward pass.
      dtype: of the arithmetic; parameters and output are float32.
    """

    shape: Sequence[int]
    width: int = 64
    norm: Kind = "none"
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        height, width, channels = self.shape
        doublings = halvings(self.shape)
        rows, columns = (-(-n // 2**doublings) for n in (height, width))
        widths = [self.width * 2 ** min(i, 3) for i in reversed(range(doublings + 1))]
        block = nn.remat(Block) if self.remat else Block
        h = z if condition is None else jnp.concatenate([z, condition], axis=-1)
        h = nn.Dense(rows * columns * widths[0], kernel_init=scaled, dtype=self.dtype)(h)
        h = h.reshape(-1, rows, columns, widths[0])
        for i, features in enumerate(widths):
            if i:
                h = jax.image.resize(h, (h.shape[0], 2 * h.shape[1], 2 * h.shape[2], h.shape[3]), "bilinear")
            h = block(features, self.norm, dtype=self.dtype, name=f"Block_{i}")(h, condition)
        h = Conv(channels, kernel_init=nn.initializers.normal(0.02), dtype=self.dtype)(leaky_relu(h))
        return jnp.tanh(h[:, :height, :width].astype(jnp.float32))


class Discriminator(nn.Module):
    """Images [B, H, W, C] and an optional condition [B, K] -> [B], high for what looks real.

    Attributes:
      width: channels at the highest resolution; twice as many after each halving, up to 8 times.
      norm: before each activation.
      spectral: divide every kernel by its largest singular value.
      remat: compute the inside of each block again in the backward pass.
      dtype: of the arithmetic; parameters and output are float32.
    """

    width: int = 64
    norm: Kind = "none"
    spectral: bool = False
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        block = partial(nn.remat(Block) if self.remat else Block, norm=self.norm, spectral=self.spectral)
        halve = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)
        h = Spectral(Conv(self.width, kernel_init=scaled, dtype=self.dtype), on=self.spectral)(x)
        for i in range(halvings(x.shape[1:]) + 1):
            if i:
                h = halve(h)
            h = block(self.width * 2 ** min(i, 3), dtype=self.dtype, name=f"Block_{i}")(h)
        h = leaky_relu(h).reshape(h.shape[0], -1)
        return Head(self.spectral, nn.initializers.normal(0.02), self.dtype)(h, condition)
