"""A causal Transformer (Vaswani et al. 2017; Radford et al. 2019), which keeps what it has read for what comes next."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.dropout import drop
from jaxgen.networks.sequential import Sequential, Write

Array = jax.Array


class Cache(NamedTuple):
    """Keys and values of the last `context` inputs; the one at position p lies at p modulo `context`.

    Attributes:
      keys, values: of each layer, [B * kv_heads, context, D]: as a product wants them, which else would copy them.
      position: int32 [], how many inputs were read.
      shift: [B, width], what the condition adds to every input; 0 without one.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    position: Array
    shift: Array


class Transformer(Sequential):
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
        dtype = self.dtype or jnp.float32  # of the features from the first layer on
        if self.starts:
            self.start = self.param("start", init, (self.width,)).astype(dtype)
        if self.positions == "learned":
            self.place = self.param("place", init, (self.context, self.width)).astype(dtype)
        self.describe = nn.Dense(self.width, kernel_init=init, dtype=self.dtype)
        options = {
            "heads": self.heads,
            "kv_heads": self.kv_heads or self.heads,
            "context": self.context,
            "norm": self.norm,
            "feed_forward": self.feed_forward,
            "dropout": self.dropout,
            "residual_scale": (2 * self.layers) ** -0.5,
            "bias": self.bias,
            "dtype": self.dtype,
        }
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.blocks = block(**options)  # a stack of them, see `all_blocks`
        self.block = [Block(**options) for _ in range(self.layers)]  # the same ones, for `writer`
        self.last_norm = norm_of(self.norm, self.bias, self.dtype)
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=init, dtype=self.dtype)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        x = self.inputs(tokens[:, :-1], self.shift(condition, tokens.shape[0]))
        x, _ = self.all_blocks(drop(self, self.dropout, x), self.unroll)
        return self.logits(x)

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P], P >= given -> logits [B, vocabulary] of token P, and what is kept of those before it."""
        shift = self.shift(condition, tokens.shape[0])
        x = self.inputs(tokens, shift)
        read = x.shape[1]
        x, (keys, values) = self.all_blocks(x, unroll=1)  # read once: what counts is how soon it is compiled
        kept = min(read, self.context)
        slots = jnp.arange(read - kept, read) % self.context

        def ring(a: Array) -> tuple[Array, ...]:
            a = a[:, :, read - kept :].swapaxes(2, 3)
            a = a.reshape(self.layers, -1, kept, a.shape[-1])
            return tuple(jnp.zeros((*a.shape[:2], self.context, a.shape[-1]), a.dtype).at[:, :, slots].set(a))

        return self.logits(x[:, -1:])[:, 0], Cache(ring(keys), ring(values), jnp.asarray(read, jnp.int32), shift)

    def writer(self, params: dict) -> Write:
        """`extend` with every block's parameters apart: a slice of the stack would be copied at each token."""
        stack, rest = params["blocks"], {name: value for name, value in params.items() if name != "blocks"}
        return super().writer(
            rest | {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], stack) for i in range(self.layers)}
        )

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B] -> logits [B, vocabulary] of the one after it, and the cache with it."""
        pasts, position, shift = zip(cache.keys, cache.values, strict=True), cache.position, cache.shift
        x = self.embed(token[:, None]) + shift[:, None]
        if self.positions == "learned":
            x = x + jax.lax.dynamic_slice_in_dim(self.place, position, 1)
        kept = []
        for block, past in zip(self.block, pasts, strict=True):
            x, now = block(x, self.where(position[None]), past)
            kept.append(now)
        return self.logits(x)[:, 0], Cache(*zip(*kept, strict=True), position + 1, shift)

    def all_blocks(self, x: Array, unroll: int) -> tuple[Array, tuple[Array, Array]]:
        """Features [B, T, width] -> those after all blocks, and keys and values [layers, B, T, kv_heads, D]."""
        scan = nn.scan(
            lambda block, x, where: block(x, where),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
            unroll=unroll,
        )
        return scan(self.blocks, x, self.where(jnp.arange(x.shape[1])))

    def shift(self, condition: Array | None, rows: int) -> Array:
        if condition is None:
            return jnp.zeros((rows, self.width), self.dtype or jnp.float32)
        return self.describe(condition)

    def inputs(self, tokens: Array, shift: Array) -> Array:
        """[B, T] -> [B, T, width], or with a start [B, T + 1, width]."""
        x = self.embed(tokens)
        if self.starts:
            x = jnp.concatenate([jnp.broadcast_to(self.start, (x.shape[0], 1, self.width)), x], axis=1)
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
        self, x: Array, where: tuple[Array, Array | None], past: tuple[Array, Array] | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Takes x [B, T, width] at T positions; or at 1, and keys and values [B * kv_heads, context, D] of the past.

        Returns x, and its own keys and values [B, T, kv_heads, D]; or those of the past, with its own.
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
            if self.dropout and self.has_rng("dropout"):
                h = attend_to_some(q, k, v, self.context, partial(drop, self, self.dropout))
            else:
                window = (self.context - 1, 0) if length > self.context else None
                h = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
        else:
            slot = (0, position[0] % self.context, 0)
            k, v = (
                jax.lax.dynamic_update_slice(ring, one.reshape(-1, 1, depth), slot)
                for ring, one in zip(past, (k, v), strict=True)
            )
            h = attend_to_all(q, k, v, jnp.arange(self.context) <= position[0])  # all, once the ring is full
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


def attend_to_some(q: Array, keys: Array, values: Array, context: int, drop: Callable[[Array], Array]) -> Array:
    """Queries [B, T, heads, D] on keys and values [B, T, kv_heads, D] of their own place and the context before it.

    As `jax.nn.dot_product_attention`, which cannot `drop` some of the weights.
    """
    q = q.reshape(*keys.shape[:3], -1, q.shape[-1]) * q.shape[-1] ** -0.5
    scores = jnp.einsum("btngd,bsnd->bngts", q, keys, preferred_element_type=jnp.float32)
    back = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    weights = jax.nn.softmax(jnp.where((back >= 0) & (back < context), scores, -jnp.inf)).astype(values.dtype)
    h = jnp.einsum("bngts,bsnd->btngd", drop(weights), values)
    return h.reshape(*h.shape[:2], -1, h.shape[-1])


def attend_to_all(q: Array, keys: Array, values: Array, seen: Array) -> Array:
    """One query q [B, 1, heads, D] on keys and values [B * kv_heads, context, D], those that are `seen` [context].

    As `jax.nn.dot_product_attention`, for keys and values that lie otherwise.
    """
    q = q.reshape(keys.shape[0], -1, q.shape[-1]) * q.shape[-1] ** -0.5
    scores = jnp.einsum("ngd,ncd->ngc", q, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)).astype(values.dtype)
    return jnp.einsum("ngc,ncd->ngd", weights, values)


def norm_of(kind: str, bias: bool, dtype: str | None) -> nn.Module:
    if kind == "rms":
        return nn.RMSNorm(dtype=dtype)
    return nn.LayerNorm(epsilon=1e-5, use_bias=bias, dtype=dtype)


def turn(x: Array, angles: Array) -> Array:
    """Rotates the pair (i, i + D / 2) of x [B, T, heads, D] by angle i of its position [T, D / 2] (Su et al. 2021)."""
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
