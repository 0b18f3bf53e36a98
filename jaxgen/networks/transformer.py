"""A causal Transformer (Vaswani et al. 2017; Radford et al. 2019), which keeps what it has read for what comes next."""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.dropout import drop

Array = jax.Array


class Cache(NamedTuple):
    """Keys and values of the last `context` inputs; the one at position p lies at p modulo `context`.

    Attributes:
      keys, values: [layers, B, context, kv_heads, D].
      position: int32 [], how many inputs were read.
      shift: [B, width], what the condition adds to every input; 0 without one.
    """

    keys: Array
    values: Array
    position: Array
    shift: Array


class Transformer(nn.Module):
    """Tokens [B, T], and an optional condition [B, K] -> logits [B, T - given, vocabulary] of tokens given, ..., T - 1.

    A position attends to the `context` positions up to itself: within one context to all before it, beyond it to a
    window that slides (Beltagy et al. 2020), so that a cache of `context` positions gives what the whole would.

    Attributes:
      vocabulary: number of tokens.
      context: positions that one position attends to.
      layers, width: how many blocks, of how many features.
      heads: of queries; `kv_heads` of keys and values, each shared by as many heads of queries (Ainslie et al. 2023).
      starts: learn an input that comes before the first token, so that `given` is 0; else it is 1, and the first token
        is never predicted.
      positions: "rotary" (Su et al. 2021), which knows distances only, or "learned", which ends where the context does.
      norm: before each half of a block, and at the end: "rms" (Zhang & Sennrich 2019) or "layer".
      feed_forward: 4 * width features under GELU, or 8 / 3 * width under SwiGLU (Shazeer 2020).
      dropout: share of features that are dropped after the embedding and each half of a block, where there is a key
        "dropout" to draw them with, that is in training.
      tied: use the embedding as last layer too (Press & Wolf 2017).
      bias: in every layer and norm.
      remat: compute a block again in the backward pass instead of keeping it.
      unroll: blocks that are compiled one by one; the more, the faster it runs and the longer it compiles.
      dtype: of the arithmetic; parameters and logits are float32.
    """

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    starts: bool = False
    positions: Literal["rotary", "learned"] = "rotary"
    norm: Literal["rms", "layer"] = "rms"
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    dropout: float = 0.0
    tied: bool = True
    bias: bool = False
    remat: bool = False
    unroll: int = 12
    dtype: str | None = None

    @property
    def given(self) -> int:
        """How many tokens at the start are not predicted."""
        return 0 if self.starts else 1

    @property
    def limit(self) -> int | None:
        """The longest sequence of tokens, where there is one."""
        return self.context + self.given if self.positions == "learned" else None

    def setup(self):
        init = nn.initializers.normal(0.02)
        self.embed = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype)
        if self.starts:
            self.start = self.param("start", init, (self.width,))
        if self.positions == "learned":
            self.place = self.param("place", init, (self.context, self.width))
        self.describe = nn.Dense(self.width, kernel_init=init, dtype=self.dtype)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.layers,
            unroll=self.unroll,
        )(
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            context=self.context,
            norm=self.norm,
            feed_forward=self.feed_forward,
            dropout=self.dropout,
            residual_scale=(2 * self.layers) ** -0.5,
            bias=self.bias,
            dtype=self.dtype,
        )
        self.last_norm = norm_of(self.norm, self.bias, self.dtype)
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=init, dtype=self.dtype)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        x = self.inputs(tokens[:, :-1], self.shift(condition, len(tokens)))
        x, _ = self.blocks(drop(self, self.dropout, x), None, self.where(jnp.arange(x.shape[1])))
        return self.logits(x)

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P], P >= given -> logits [B, vocabulary] of token P, and what is kept of those before it."""
        shift = self.shift(condition, len(tokens))
        x = self.inputs(tokens, shift)
        read = x.shape[1]
        x, (keys, values) = self.blocks(x, None, self.where(jnp.arange(read)))
        kept = min(read, self.context)
        slots = jnp.arange(read - kept, read) % self.context

        def ring(a: Array) -> Array:
            empty = jnp.zeros((*a.shape[:2], self.context, *a.shape[3:]), a.dtype)
            return empty.at[:, :, slots].set(a[:, :, read - kept :])

        return self.logits(x[:, -1:])[:, 0], Cache(ring(keys), ring(values), jnp.asarray(read, jnp.int32), shift)

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B] -> logits [B, vocabulary] of the one after it, and the cache with it."""
        keys, values, position, shift = cache
        x = self.embed(token[:, None]) + shift[:, None]
        if self.positions == "learned":
            x = x + jax.lax.dynamic_slice_in_dim(self.place, position, 1)
        x, (key, value) = self.blocks(x, (keys, values), self.where(position[None]))
        slot = (0, 0, position % self.context, 0, 0)
        keys, values = (jax.lax.dynamic_update_slice(*pair, slot) for pair in ((keys, key), (values, value)))
        return self.logits(x)[:, 0], Cache(keys, values, position + 1, shift)

    def shift(self, condition: Array | None, rows: int) -> Array:
        return jnp.zeros((rows, self.width)) if condition is None else self.describe(condition)

    def inputs(self, tokens: Array, shift: Array) -> Array:
        """[B, T] -> [B, T, width], or with a start [B, T + 1, width]."""
        x = self.embed(tokens)
        if self.starts:
            x = jnp.concatenate([jnp.broadcast_to(self.start, (len(x), 1, self.width)), x], axis=1)
        x = x + shift[:, None]
        if self.positions == "rotary":
            return x
        if x.shape[1] > self.context:
            raise ValueError(f"{x.shape[1]} positions, and only {self.context} are learned: use rotary ones")
        return x + self.place[: x.shape[1]]

    def where(self, position: Array) -> tuple[Array, Array | None]:
        """Positions [T], and the angles by which each turns pairs of features, [T, D / 2]."""
        if self.positions == "learned":
            return position, None
        half = self.width // self.heads // 2
        return position, position[:, None] * 10_000.0 ** (-jnp.arange(half) / half)

    def logits(self, x: Array) -> Array:
        flat = self.last_norm(x).reshape(-1, self.width)
        logits = self.embed.attend(flat) if self.tied else self.head(flat)
        return logits.reshape(*x.shape[:2], self.vocabulary).astype(jnp.float32)


class Block(nn.Module):
    """Attention, then a perceptron, each added to its input (pre-norm)."""

    heads: int
    kv_heads: int
    context: int
    norm: str
    feed_forward: str
    dropout: float
    residual_scale: float
    bias: bool
    dtype: str | None

    @nn.compact
    def __call__(
        self, x: Array, past: tuple[Array, Array] | None, where: tuple[Array, Array | None]
    ) -> tuple[Array, tuple[Array, Array]]:
        """Takes x [B, T, width] at T positions, and keys and values [B, context, kv_heads, D] of the past where T is 1.

        Returns x, and its own keys and values [B, T, kv_heads, D].
        """
        rows, length, width = x.shape
        depth = width // self.heads
        normal = nn.initializers.normal
        # A matrix product of two axes is the fast one: tokens are flat outside attention.
        dense = partial(nn.Dense, use_bias=self.bias, kernel_init=normal(0.02), dtype=self.dtype)
        last = partial(dense, width, kernel_init=normal(0.02 * self.residual_scale))
        position, angles = where

        h = norm_of(self.norm, self.bias, self.dtype)(x).reshape(-1, width)
        h = dense((self.heads + 2 * self.kv_heads) * depth, name="query_key_value")(h)
        h = h.reshape(rows, length, -1, depth)
        q, k, v = jnp.split(h, (self.heads, self.heads + self.kv_heads), axis=2)
        if angles is not None:
            q, k = turn(q, angles), turn(k, angles)
        if past is None:
            window = (self.context - 1, 0) if length > self.context else None
            h = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
        else:
            slot = position[0] % self.context
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(*pair, slot, 1) for pair in zip(past, (k, v), strict=True)
            )
            seen = jnp.arange(self.context) <= position[0]  # all, once the ring is full
            h = jax.nn.dot_product_attention(q, keys, values, mask=seen[None, None, None])
        h = last(name="attended")(h.reshape(-1, width)).reshape(x.shape)
        x = x + drop(self, self.dropout, h)

        h = norm_of(self.norm, self.bias, self.dtype)(x).reshape(-1, width)
        if self.feed_forward == "gelu":
            h = nn.gelu(dense(4 * width, name="hidden")(h))
        else:
            hidden = -(-8 * width // 3 // 8) * 8  # as many parameters as 4 * width without a gate
            h = nn.silu(dense(hidden, name="gate")(h)) * dense(hidden, name="hidden")(h)
        h = last(name="output")(h).reshape(x.shape)
        return x + drop(self, self.dropout, h), (k, v)


def norm_of(kind: str, bias: bool, dtype: str | None) -> nn.Module:
    if kind == "rms":
        return nn.RMSNorm(dtype=dtype)
    return nn.LayerNorm(epsilon=1e-5, use_bias=bias, dtype=dtype)


def turn(x: Array, angles: Array) -> Array:
    """Rotates the pair (i, i + D / 2) of x [B, T, heads, D] by angle i of its position [T, D / 2] (Su et al. 2021)."""
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
