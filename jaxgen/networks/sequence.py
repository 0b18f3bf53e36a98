"""Encoder and decoder of sequences of tokens [T]; a negative token stands for none."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.transformer import Transformer

Array = jax.Array


class Encoder(nn.Module):
    """Convolutions over a sequence, then one layer over all places (Gomez-Bombarelli et al. 2018): [B, T] -> [B, O].

    Attributes:
      vocabulary: number of tokens.
      width: features of a place.
      outputs: O.
      layers: convolutions, each added to its input.
      taps: places that one convolution sees, an odd number.
      dtype: of the arithmetic; parameters and outputs are float32.
    """

    vocabulary: int
    width: int
    outputs: int
    layers: int = 3
    taps: int = 5
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        places, length = x.shape, x.shape[-1]
        x = jax.nn.one_hot(x, self.vocabulary)  # zeros where there is none

        def dense(features: int, x: Array, **options: Any) -> Array:  # a matrix product of two axes is the fast one
            flat = nn.Dense(features, dtype=self.dtype, **options)(x.reshape(-1, x.shape[-1]))
            return flat.reshape(*x.shape[:-1], features)

        h = dense(self.width, x)
        if condition is not None:
            h += dense(self.width, condition)[..., None, :]
        border = self.taps // 2
        for _ in range(self.layers):
            a = nn.LayerNorm(dtype=self.dtype)(h)
            a = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(border, border), (0, 0)])
            a = jnp.concatenate([a[..., i : i + length, :] for i in range(self.taps)], axis=-1)
            h = h + nn.gelu(dense(self.width, a))
        h = jnp.where(x.any(-1, keepdims=True), h, 0)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")  # a posterior near the prior
        return dense(self.outputs, h.reshape(*places[:-1], -1), kernel_init=small).astype(jnp.float32)


class Decoder(nn.Module):
    """A Transformer that writes a sequence, told z at each place: z [..., D] -> logits [..., T, V].

    With tokens x [B, T] each place is given those before it in x. Without x the decoder writes the sequence: draws with
    `key`, or without it the most probable token each time. The largest of the logits returned is then the token
    written, and after `stop` comes nothing else.

    Attributes:
      length: T.
      vocabulary: V.
      stop: the part that ends a sequence.
      context: places before it that one place has seen; few of them leave the rest of the sequence to z, which else
        is easily left aside (Bowman et al. 2016; Yang et al. 2017).
      layers, width, heads: of the Transformer.
      remat, dtype: see there.
    """

    length: int
    vocabulary: int
    stop: int
    context: int
    layers: int
    width: int
    heads: int
    remat: bool = False
    dtype: str | None = None

    def setup(self):
        self.transformer = Transformer(
            vocabulary=self.vocabulary,
            context=self.context,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            starts=True,
            remat=self.remat,
            dtype=self.dtype,
        )

    def __call__(
        self, z: Array, condition: Array | None = None, x: Array | None = None, key: Array | None = None
    ) -> Array:
        if condition is not None:
            z = jnp.concatenate([z, jnp.broadcast_to(condition, (*z.shape[:-1], condition.shape[-1]))], axis=-1)
        flat = z.reshape(-1, z.shape[-1])
        if x is None and not self.is_initializing():
            logits = self.write(flat, key)
        else:
            tokens = jnp.zeros((flat.shape[0], self.length), jnp.int32)
            if x is not None:
                tokens = jnp.broadcast_to(jnp.maximum(x, 0), (*z.shape[:-1], self.length)).reshape(tokens.shape)
            logits = self.transformer(tokens, flat)
        return logits.reshape(*z.shape[:-1], self.length, self.vocabulary)

    def write(self, z: Array, key: Array | None) -> Array:
        network, variables = self.transformer.unbind()
        extend = network.writer(variables["params"])

        def step(carry: tuple, place: Array) -> tuple[tuple, Array]:
            logits, cache, over = carry
            if key is not None:  # the largest of logits and Gumbel noise is a draw
                logits = logits + jax.random.gumbel(jax.random.fold_in(key, place), logits.shape)
            ends = jnp.where(jnp.arange(self.vocabulary) == self.stop, 0.0, -jnp.inf)
            logits = jnp.where(over[:, None], ends, logits)
            token = logits.argmax(-1)
            following, cache = extend(token, cache)
            return (following, cache, over | (token == self.stop)), logits

        nothing = jnp.zeros((z.shape[0], 0), jnp.int32)
        first, cache = network.apply(variables, nothing, z, method="prefill")
        start = first, cache, jnp.zeros(z.shape[0], bool)
        _, logits = jax.lax.scan(step, start, jnp.arange(self.length))
        return jnp.moveaxis(logits, 0, 1)
