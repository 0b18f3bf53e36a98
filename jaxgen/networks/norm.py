"""Normalisation of activations, conditional on a label where there is one, and of weights.

What these layers remember lies in the collection `batch_stats`: they renew it where it may be written, that is in
training, and use it as it is where it may not.
"""

import math
from typing import Literal

import flax.linen as nn
import jax

Kind = Literal["none", "batch", "group"]


class Norm(nn.Module):
    """[B, ..., C] and an optional condition [B, K] -> the same shape, normalised, then scaled and shifted.

    Scale and shift are parameters, or with a condition an affine function of it (Dumoulin et al. 2017).

    Attributes:
      kind: "batch" normalises over a batch (Ioffe & Szegedy 2015), "group" over the pixels of one example and up to
        eight groups of its channels (Wu & He 2018), so that no example depends on another; "none" scales and shifts.
      dtype: of the arithmetic.
    """

    kind: Kind = "batch"
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        plain = {"use_bias": condition is None, "use_scale": condition is None, "dtype": self.dtype}
        if self.kind == "batch":
            running = not self.is_mutable_collection("batch_stats")
            x = nn.BatchNorm(use_running_average=running, momentum=0.9, **plain)(x)
        elif self.kind == "group":
            x = nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]), **plain)(x)
        if condition is None:
            return x
        scale, shift = (
            nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)(condition)
            for name in ("scale", "shift")
        )
        each = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        return x * (1 + scale.reshape(each)) + shift.reshape(each)


class Spectral(nn.Module):
    """A layer whose kernel is divided by its largest singular value (Miyato et al. 2018), or, if not `on`, as it is.

    One power iteration a call; its vectors are remembered.
    """

    layer: nn.Module
    on: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.on:
            return self.layer(x)
        return nn.SpectralNorm(self.layer)(x, update_stats=self.is_mutable_collection("batch_stats"))
