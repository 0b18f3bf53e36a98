"""Masked autoencoder for distribution estimation (MADE, Germain et al. 2015)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.dropout import drop
from jaxgen.networks.sequential import Sequential

Array = jax.Array


class Cache(NamedTuple):
    """The tokens that were read, and what the first hidden layer makes of them.

    Attributes:
      position: int32 [], how many tokens were read.
      tokens: [B, T * C], scaled; 0 where none was read.
      hidden: [B, hidden[0]], the first hidden layer before its activation; None where there is none.
      condition: [B, D] or None.
    """

    position: Array
    tokens: Array
    hidden: Array | None
    condition: Array | None


class MADE(Sequential):
    """Tokens [B, T, C] -> outputs [B, T, K], each of the tokens before it alone: a perceptron with weights left out.

    Each hidden unit has a degree m and sees tokens 0, ..., m, directly or through units of degree m and less; output i
    sees units of degrees less than i. The degrees are spread evenly over 0, ..., T - 2, so that a layer of at least
    T - 1 units has them all. The channels of a token are predicted together.

    Without hidden layers it is a fully visible sigmoid belief network (FVSBN; Neal 1992, Frey 1998).
    An optional condition [B, D] enters through a dense layer of its own in every layer.

    Attributes:
      shape: (..., C), of which T is the product of the others: in images, pixels in the order in which they are given.
      features_out: K, numbers per token.
      levels: of a channel: tokens are 0, ..., levels - 1, and enter scaled to [0, 1].
      hidden: widths of the hidden layers, under ReLU.
      direct: connect each output with the tokens before it, too.
      dropout: share of the hidden units that are dropped where there is a key "dropout" to draw them with, that is in
        training.
      dtype: of the arithmetic; parameters and outputs are float32.
    """

    shape: Sequence[int]
    features_out: int
    levels: int = 2
    hidden: Sequence[int] = (500,)
    direct: bool = False
    dropout: float = 0.0
    dtype: str | None = None

    given = 0  # tokens that are not predicted

    @property
    def limit(self) -> int:
        """The longest sequence of tokens: T."""
        return math.prod(self.shape[:-1])

    def setup(self):
        if not self.hidden and not self.direct:
            raise ValueError("without hidden layers only direct connections lead to the outputs: use direct=True")
        tokens = jnp.arange(self.limit)
        first, last = jnp.repeat(tokens, self.shape[-1]), jnp.repeat(tokens, self.features_out)
        degrees = [first, *(jnp.arange(width) * (self.limit - 1) // width for width in self.hidden)]

        def masked(name: str, before: Array, after: Array, init: nn.initializers.Initializer) -> Array:
            kernel = self.param(name, init, (before.size, after.size))
            return (kernel * (before[:, None] <= after)).astype(self.compute)

        # Uniform within 1 / sqrt(inputs).
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernels = [masked(f"kernel_{i}", *pair, init) for i, pair in enumerate(pairwise(degrees))]
        self.biases = [self.param(f"bias_{i}", nn.initializers.zeros, (width,)) for i, width in enumerate(self.hidden)]
        if self.hidden:
            self.kernel_out = masked("kernel_out", degrees[-1], last - 1, init)
        if self.direct:
            # Each of these stands for itself: from 0, those of pixels that are hardly ever on stay out of the way.
            self.kernel_direct = masked("kernel_direct", first, last - 1, nn.initializers.zeros)
        self.bias_out = self.param("bias_out", nn.initializers.zeros, last.shape)
        self.shifts = [nn.Dense(width, use_bias=False, dtype=self.dtype) for width in (*self.hidden, last.size)]

    @property
    def compute(self) -> jnp.dtype:
        return jnp.dtype(self.dtype or jnp.float32)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        x = self.scale(tokens)
        outputs = self.bias(-1, condition)
        if self.hidden:
            outputs = outputs + self.deep(self.first(x, condition), condition) @ self.kernel_out
        if self.direct:
            outputs = outputs + x @ self.kernel_direct
        return outputs.reshape(tokens.shape[0], self.limit, self.features_out).astype(jnp.float32)

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P, C], 0 <= P < T -> output [B, K] of token P, and what is kept of those before it."""
        read = tokens.shape[1]
        if read >= self.limit:
            raise ValueError(f"a prompt of {read} tokens leaves none of {self.limit} to predict")
        x = self.scale(tokens)
        x = jnp.pad(x, ((0, 0), (0, self.limit * self.shape[-1] - x.shape[1])))
        hidden = self.first(x, condition) if self.hidden else None
        cache = Cache(jnp.asarray(read, jnp.int32), x, hidden, condition)
        return self.next_output(cache), cache

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B, C] -> output [B, K] of the one after it, and the cache with it.

        The first hidden layer gains what this token adds to it, the later ones are computed again, and of the last
        layer only the columns of that output. After the last token, the output means nothing.
        """
        x, channels = self.scale(token), self.shape[-1]
        start, hidden = cache.position * channels, cache.hidden
        if hidden is not None:
            hidden = hidden + x @ jax.lax.dynamic_slice_in_dim(self.kernels[0], start, channels)
        tokens = jax.lax.dynamic_update_slice_in_dim(cache.tokens, x, start, axis=1)
        cache = Cache(cache.position + 1, tokens, hidden, cache.condition)
        return self.next_output(cache), cache

    def next_output(self, cache: Cache) -> Array:
        def columns(a: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(a, cache.position * self.features_out, self.features_out, axis=-1)

        output = columns(self.bias(-1, cache.condition))
        if self.hidden:
            # Units that still wait for tokens have degrees that this output does not see.
            output = output + self.deep(cache.hidden, cache.condition) @ columns(self.kernel_out)
        if self.direct:
            output = output + cache.tokens @ columns(self.kernel_direct)
        return jnp.broadcast_to(output, (cache.tokens.shape[0], self.features_out)).astype(jnp.float32)

    def first(self, x: Array, condition: Array | None) -> Array:
        return x @ self.kernels[0] + self.bias(0, condition)

    def deep(self, h: Array, condition: Array | None) -> Array:
        """The first hidden layer before its activation -> the last one after it."""
        for i, kernel in enumerate(self.kernels[1:], 1):
            h = drop(self, self.dropout, nn.relu(h)) @ kernel + self.bias(i, condition)
        return drop(self, self.dropout, nn.relu(h))

    def bias(self, layer: int, condition: Array | None) -> Array:
        """[width], or with a condition [B, width]."""
        bias = (*self.biases, self.bias_out)[layer].astype(self.compute)
        return bias if condition is None else bias + self.shifts[layer](condition)

    def scale(self, tokens: Array) -> Array:
        """[B, ..., C] -> [B, ... * C]."""
        # 0 is black: what says nothing in most images adds nothing.
        x = (tokens / (self.levels - 1)).astype(self.compute)
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))
