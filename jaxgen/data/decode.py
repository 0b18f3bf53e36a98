"""Stored arrays to what a model reads, as pure functions that run inside the compiled step."""

import jax
import jax.numpy as jnp

from jaxgen.types import Key


def to_unit(image: jax.Array, key: Key | None = None) -> jax.Array:
    """uint8 [B, H, W, C] -> float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255


def dynamic_binarize(image: jax.Array, key: Key) -> jax.Array:
    """uint8 [B, H, W, C] -> float32 in {0, 1}, each pixel 1 with probability intensity / 255, drawn anew by every key.

    Salakhutdinov & Murray 2008; Burda et al. 2015. Each random word serves two pixels, since drawing it is the cost:
    16 bits leave the probability right to 2e-5, and exact for black and for white.
    """
    shape, pixels = image.shape, image[0].size
    words = jax.random.bits(key, (shape[0], (pixels + 1) // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(shape[0], -1)[:, :pixels].reshape(shape)
    threshold = image.astype(jnp.uint32) * 257 + (image >> 7)  # 0..65536
    return (halves < threshold).astype(jnp.float32)


def to_uint8(image: jax.Array) -> jax.Array:
    """Float in [0, 1] -> uint8, the way back."""
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


def to_signed(image: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] -> float32 in [-1, 1], where a hyperbolic tangent ends."""
    return image.astype(jnp.float32) / 127.5 - 1


def from_signed(image: jax.Array) -> jax.Array:
    """Float in [-1, 1] -> uint8, the way back."""
    return to_uint8((image + 1) / 2)


def to_wave(audio: jax.Array) -> jax.Array:
    """int16 [B, T] -> float32 in [-1, 1)."""
    return audio.astype(jnp.float32) / 32_768


def from_wave(wave: jax.Array) -> jax.Array:
    """Float in [-1, 1] -> int16, the way back."""
    return jnp.round(jnp.clip(wave, -1, 32_767 / 32_768) * 32_768).astype(jnp.int16)


def mu_law(audio: jax.Array) -> jax.Array:
    """int16 -> int32 from 0 to 255, of which 127 and 128 are the quietest (ITU-T G.711; van den Oord et al. 2016)."""
    x = to_wave(audio)
    loudness = jnp.sign(x) * jnp.log1p(255 * jnp.abs(x)) / jnp.log(256.0)
    return jnp.floor((loudness + 1) * 127.5 + 0.5).astype(jnp.int32)


def from_mu_law(tokens: jax.Array) -> jax.Array:
    """Integers from 0 to 255 -> int16, in the middle of what becomes each."""
    loudness = tokens / 127.5 - 1
    return from_wave(jnp.sign(loudness) * jnp.expm1(jnp.abs(loudness) * jnp.log(256.0)) / 255)
