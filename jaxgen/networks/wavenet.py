"""WaveNet (van den Oord et al. 2016, "WaveNet: a generative model for raw audio")."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.dropout import drop
from jaxgen.networks.sequential import Sequential

Array = jax.Array


class Cache(NamedTuple):
    """What the samples to come need of those that were read (Paine et al. 2016).

    Attributes:
      position: int32 [], how many inputs were read: the start and the samples.
      recent: [B, first_kernel], the last samples, scaled.
      past: of each layer [dilation, B, width]: its last inputs, input t at t modulo the dilation.
      shift: [B, depth, 2 * width], what the condition adds to the gates; 0 without one.
    """

    position: Array
    recent: Array
    past: tuple[Array, ...]
    shift: Array


class WaveNet(Sequential):
    """Tokens [B, T] or [B, T, 1], samples of a wave, -> outputs [B, T, K], each of the samples before it alone.

    A convolution over the last samples, then gated ones of two taps, `dilation` samples apart, each added to its input;
    all of them are summed and go through two more layers. An output sees the `receptive_field` samples before it. An
    optional condition [B, D] shifts the gates of every layer (eq. 2).

    Attributes:
      features_out: K, numbers per sample.
      levels: tokens are 0, ..., levels - 1, and enter scaled to [-1, 1].
      dilations: of the layers, in turn.
      first_kernel: taps of the first convolution.
      width: features of a layer.
      skip: features of the sum of all layers.
      dropout: share of each gate's features that are dropped where there is a key "dropout" to draw them with, that is
        in training.
      dtype: of the arithmetic; parameters and outputs are float32.
    """

    features_out: int
    levels: int = 256
    dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
    first_kernel: int = 2
    width: int = 32
    skip: int = 128
    dropout: float = 0.0
    dtype: str | None = None

    given = 0  # samples that are not predicted
    limit = None

    @property
    def receptive_field(self) -> int:
        """How many samples before it an output depends on."""
        return self.first_kernel + sum(self.dilations)

    def setup(self):
        def dense(features: int, **options) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, **options)

        self.first = dense(self.width)
        self.gates = [dense(2 * self.width) for _ in self.dilations]
        self.residuals = [dense(self.width) for _ in self.dilations[1:]]
        self.describe = dense(len(self.dilations) * 2 * self.width, use_bias=False)
        self.sum = dense(self.skip)  # of all layers, side by side: one large product instead of many small ones
        self.hidden = dense(self.skip)
        self.output = dense(self.features_out)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        outputs, _ = self.whole(self.scale(tokens[:, :-1]), self.shift(condition, tokens.shape[0]))
        return outputs

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P, ...] -> output [B, K] of token P, and what is kept of those before it."""
        x, shift = self.scale(tokens), self.shift(condition, tokens.shape[0])
        outputs, inputs = self.whole(x, shift)
        read = tokens.shape[1] + 1  # with the start
        past = []
        for h, dilation in zip(inputs, self.dilations, strict=True):
            h = jnp.pad(h, ((0, 0), (max(dilation - read, 0), 0), (0, 0)))[:, -dilation:]
            past.append(jnp.roll(h.swapaxes(0, 1), read % dilation, axis=0))
        recent = jnp.pad(x, ((0, 0), (self.first_kernel, 0)))[:, -self.first_kernel :]
        return outputs[:, -1], Cache(jnp.asarray(read, jnp.int32), recent, tuple(past), shift)

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B, ...] -> output [B, K] of the one after it, and the cache with it."""
        position, shift = cache.position, cache.shift
        recent = jnp.concatenate([cache.recent[:, 1:], self.scale(token[:, None])], axis=1)
        x = self.first(jnp.pad(recent, ((0, 0), (0, 1)), constant_values=1))
        gated, past = [], []
        for i, (before, dilation) in enumerate(zip(cache.past, self.dilations, strict=True)):
            slot = position % dilation
            earlier = jax.lax.dynamic_index_in_dim(before, slot, keepdims=False)
            past.append(jax.lax.dynamic_update_index_in_dim(before, x, slot, 0))
            h = gate(self.gates[i](jnp.concatenate([earlier, x], axis=-1)) + shift[:, i])
            gated.append(h)
            x = self.following(i, x, h)
        return self.head(gated), Cache(position + 1, recent, tuple(past), shift)

    def whole(self, x: Array, shift: Array) -> tuple[Array, list[Array]]:
        """Scaled samples [B, T] -> outputs [B, T + 1, K], and each layer's inputs [B, T + 1, width].

        Tokens are flat but where they are shifted in time: a matrix product of two axes is the fast one.
        """
        rows, length, taps = x.shape[0], x.shape[1] + 1, self.first_kernel
        padded = jnp.pad(x, ((0, 0), (taps, 0)))
        began = jnp.broadcast_to((jnp.arange(length) > 0).astype(x.dtype), (rows, length))  # else silence looks like it
        x = jnp.stack([padded[:, i : i + length] for i in range(taps)] + [began], axis=-1)
        x = self.first(x.reshape(rows * length, -1))
        gated, inputs = [], []
        for i, dilation in enumerate(self.dilations):
            x = x.reshape(rows, length, -1)
            inputs.append(x)
            earlier = jnp.pad(x, ((0, 0), (dilation, 0), (0, 0)))[:, :length]
            z = self.gates[i](jnp.concatenate([earlier, x], axis=-1).reshape(rows * length, -1))
            h = gate(z.reshape(rows, length, -1) + shift[:, None, i])
            h = drop(self, self.dropout, h).reshape(rows * length, -1)
            gated.append(h)
            x = self.following(i, x.reshape(rows * length, -1), h)
        return self.head(gated).reshape(rows, length, -1), inputs

    def following(self, i: int, x: Array, h: Array) -> Array:
        """Of the layer after layer i, if there is one."""
        return x + self.residuals[i](h) if i < len(self.residuals) else x

    def head(self, gated: list[Array]) -> Array:
        h = nn.relu(self.sum(jnp.concatenate(gated, axis=-1)))
        return self.output(nn.relu(self.hidden(h))).astype(jnp.float32)

    def scale(self, tokens: Array) -> Array:
        """[B, T] or [B, T, 1] -> [B, T] in [-1, 1]."""
        x = tokens.reshape(tokens.shape[:2]) / ((self.levels - 1) / 2) - 1
        return x.astype(self.dtype or jnp.float32)

    def shift(self, condition: Array | None, rows: int) -> Array:
        shape = (rows, len(self.dilations), 2 * self.width)
        if condition is None:
            return jnp.zeros(shape, self.dtype or jnp.float32)
        return self.describe(condition).reshape(shape)


def gate(x: Array) -> Array:
    """[..., 2 D] -> [..., D], tanh of one half times sigmoid of the other (eq. 2)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)
