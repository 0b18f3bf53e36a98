"""Generator and discriminator of Radford et al. 2016 (DCGAN), sized by the images."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.convolution import Conv, ConvTranspose
from jaxgen.networks.norm import Kind, Norm, Spectral

leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
normal = nn.initializers.normal(0.02)


def halvings(shape: Sequence[int]) -> int:
    """How often images [H, W, C] are halved until their shorter side is 4 to 7 pixels: 8 to 15 once, 128 five times."""
    if min(shape[:2]) < 8:
        raise ValueError(f"images are {shape[0]}x{shape[1]}: these networks want at least 8x8")
    return int(math.log2(min(shape[:2]) / 4))


class Generator(nn.Module):
    """z [B, D] and an optional condition [B, K] -> images [B, H, W, C] in [-1, 1].

    Attributes:
      shape: (H, W, C).
      width: channels at the highest resolution; twice as many at each lower one, up to 8 times.
      norm: before each activation; the condition enters there and beside z.
      kernel_init: of every layer.
      dtype: of the arithmetic; parameters and output are float32.
    """

    shape: Sequence[int]
    width: int = 64
    norm: Kind = "batch"
    kernel_init: Callable = normal
    dtype: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        height, width, channels = self.shape
        doublings = halvings(self.shape)
        rows, columns = (-(-n // 2**doublings) for n in (height, width))
        widths = [self.width * 2 ** min(i, 3) for i in reversed(range(doublings))]
        options = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        h = z if condition is None else jnp.concatenate([z, condition], axis=-1)
        h = nn.Dense(rows * columns * widths[0], **options)(h).reshape(-1, rows, columns, widths[0])
        for features in [*widths[1:], channels]:
            h = nn.relu(Norm(self.norm, self.dtype)(h, condition))
            h = ConvTranspose(features, kernel_size=4, stride=2, **options)(h)
        return jnp.tanh(h[:, :height, :width].astype(jnp.float32))


class Discriminator(nn.Module):
    """Images [B, H, W, C] and an optional condition [B, K] -> [B], high for what looks real.

    A condition enters by projection: <e(y), phi(x)> is added (Miyato & Koyama 2018, eq. 7).

    Attributes:
      width: channels after the first halving; twice as many after each further one, up to 8 times.
      norm: before each activation but the first.
      spectral: divide every kernel by its largest singular value.
      kernel_init: of every layer.
      dtype: of the arithmetic; parameters and output are float32.
    """

    width: int = 64
    norm: Kind = "batch"
    spectral: bool = False
    kernel_init: Callable = normal
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        options = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        spectral = partial(Spectral, on=self.spectral)
        h = x
        for i in range(halvings(x.shape[1:])):
            h = spectral(Conv(self.width * 2 ** min(i, 3), kernel_size=4, stride=2, **options))(h)
            if i and self.norm != "none":
                h = Norm(self.norm, self.dtype)(h)
            h = leaky_relu(h)
        return Head(self.spectral, self.kernel_init, self.dtype)(h.reshape(h.shape[0], -1), condition)


class Head(nn.Module):
    """Features phi [B, F] and an optional condition y [B, K] -> psi(phi) + <e(y), phi>, [B]."""

    spectral: bool = False
    kernel_init: Callable = normal
    dtype: str | None = None

    @nn.compact
    def __call__(self, phi: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        spectral = partial(Spectral, on=self.spectral)
        options = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        value = spectral(nn.Dense(1, **options))(phi)[:, 0]
        if condition is not None:
            embedded = spectral(nn.Dense(phi.shape[-1], use_bias=False, **options))(condition)
            value += (embedded * phi).sum(-1)
        return value.astype(jnp.float32)
