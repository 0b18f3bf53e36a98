"""Gated recurrent units (Cho et al. 2014), one layer on the other: what long memories are measured against."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.sequential import Sequential

Array = jax.Array


class Cache(NamedTuple):
    """What is remembered of the samples that were read.

    Attributes:
      state: of each layer, [B, width].
      shift: [B, width], what the condition adds to every input; 0 without one.
    """

    state: tuple[Array, ...]
    shift: Array


class GRU(Sequential):
    """Tokens [B, T] or [B, T, 1], samples of a wave, -> outputs [B, T, K], each of the samples before it alone.

    Attributes:
      features_out: K, numbers per sample.
      levels: tokens are 0, ..., levels - 1, and enter scaled to [-1, 1].
      layers: on one another.
      width: of the state of each.
      dtype: of the arithmetic; parameters and outputs are float32.
    """

    features_out: int
    levels: int = 256
    layers: int = 2
    width: int = 128
    dtype: str | None = None

    given = 0  # samples that are not predicted
    limit = None

    def setup(self):
        self.first = nn.Dense(self.width, dtype=self.dtype)
        self.describe = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.cells = [nn.GRUCell(self.width, dtype=self.dtype) for _ in range(self.layers)]
        self.output = nn.Dense(self.features_out, dtype=self.dtype)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        outputs, _ = self.whole(tokens[:, :-1], condition)
        return outputs

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P, ...] -> output [B, K] of token P, and what is kept of those before it."""
        outputs, cache = self.whole(tokens, condition)
        return outputs[:, -1], cache

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B, ...] -> output [B, K] of the one after it, and the cache with it."""
        state, h = self.step(cache.state, self.first(self.scale(token[:, None])[:, 0]) + cache.shift)
        return self.output(h).astype(jnp.float32), Cache(state, cache.shift)

    def whole(self, tokens: Array, condition: Array | None) -> tuple[Array, Cache]:
        """[B, T, ...] -> outputs [B, T + 1, K], the first of none of them, and the states after the last."""
        rows, dtype = tokens.shape[0], self.dtype or jnp.float32
        shift = jnp.zeros((rows, self.width), dtype) if condition is None else self.describe(condition)
        x = jnp.pad(self.scale(tokens), ((0, 0), (1, 0), (0, 0)))  # zeros: the start
        length = x.shape[1]
        x = self.first(x.reshape(rows * length, -1)).reshape(rows, length, -1) + shift[:, None]
        state = (jnp.zeros((rows, self.width), dtype),) * self.layers
        scan = nn.scan(GRU.step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        state, h = scan(self, state, x)
        outputs = self.output(h.reshape(rows * length, -1)).reshape(rows, length, -1)
        return outputs.astype(jnp.float32), Cache(state, shift)

    def step(self, state: tuple[Array, ...], x: Array) -> tuple[tuple[Array, ...], Array]:
        """One input [B, width] through all layers."""
        new = []
        for cell, before in zip(self.cells, state, strict=True):
            after, x = cell(before, x)
            new.append(after)
        return tuple(new), x

    def scale(self, tokens: Array) -> Array:
        """[B, T, ...] -> [B, T, 2]: in [-1, 1], and a 1 that tells silence from what came before the start."""
        x = tokens.reshape(*tokens.shape[:2], 1) / ((self.levels - 1) / 2) - 1
        return jnp.concatenate([x, jnp.ones_like(x)], axis=-1).astype(self.dtype or jnp.float32)
