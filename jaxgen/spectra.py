"""Sounds as spectra and back: short-time Fourier transform, mel scale, Griffin-Lim. Pure functions of arrays.

Frames are centred on the multiples of `hop`, as many as T / hop rounded up; a sound goes on beyond its ends as silence.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Scale(NamedTuple):
    """How sounds become pictures.

    Attributes:
      rate: samples per second.
      size: samples in a frame, a power of two.
      hop: samples between two frames.
      bins: of the mel scale.
      floor: decibels below full scale that become 0.
    """

    rate: int
    size: int = 256
    hop: int = 128
    bins: int = 40
    floor: float = 80.0


def frames(length: int, hop: int) -> int:
    """How many frames a sound of so many samples has."""
    return -(-length // hop)


def stft(x: Array, size: int, hop: int) -> Array:
    """Sounds [..., T] -> complex [..., frames, size / 2 + 1], under a periodic Hann window."""
    count = frames(x.shape[-1], hop)
    before = size // 2
    after = (count - 1) * hop + size - before - x.shape[-1]
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (before, max(after, 0))))
    index = hop * np.arange(count)[:, None] + np.arange(size)
    pieces, (cos, sin) = x[..., index] * _window(size), _waves(size)
    return jax.lax.complex(_product(pieces, cos), _product(pieces, -sin))


def istft(spectrum: Array, length: int, size: int, hop: int) -> Array:
    """The sounds [..., length] whose spectra are nearest to those (Griffin & Lim 1984, eq. 6)."""
    count = spectrum.shape[-2]
    window = _window(size)
    # Of real sounds the frequencies above half the rate are those below it once more.
    twice = np.where(np.arange(size // 2 + 1) % (size // 2) == 0, 1, 2) / np.float32(size)
    cos, sin = _waves(size)
    pieces = _product(spectrum.real * twice, cos.T) - _product(spectrum.imag * twice, sin.T)
    pieces *= window
    index = (hop * np.arange(count)[:, None] + np.arange(size)).reshape(-1)
    total = max((count - 1) * hop + size, size // 2 + length)
    weight = np.zeros(total, np.float32)
    np.add.at(weight, index, np.tile(window**2, count))
    x = jnp.zeros((*spectrum.shape[:-2], total)).at[..., index].add(pieces.reshape(*pieces.shape[:-2], -1))
    return (x / np.maximum(weight, 1e-8))[..., size // 2 : size // 2 + length]


def griffin_lim(magnitude: Array, length: int, size: int, hop: int, *, iterations: int = 32, momentum: float = 0.99):
    """Sounds [..., length] of magnitudes [..., frames, size / 2 + 1], whose phases are looked for.

    Griffin & Lim 1984, with the momentum of Perraudin et al. 2013. The first phases are drawn, always the same.
    """
    phase = np.random.default_rng(0).uniform(-np.pi, np.pi, magnitude.shape[-2:])
    start = magnitude * np.exp(1j * phase).astype(np.complex64)

    def step(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        spectrum, before = carry
        consistent = stft(istft(spectrum, length, size, hop), size, hop)
        ahead = consistent + momentum * (consistent - before)
        return magnitude * ahead / jnp.maximum(jnp.abs(ahead), 1e-8), consistent

    spectrum, _ = jax.lax.fori_loop(0, iterations, step, (start, jnp.zeros_like(start)))
    return istft(spectrum, length, size, hop)


def log_mel(x: Array, scale: Scale) -> Array:
    """Sounds [..., T] in [-1, 1] -> loudness [..., frames, bins]: 0 is the floor, 1 about a sine of full scale."""
    magnitude = jnp.abs(stft(x, scale.size, scale.hop)) / (_window(scale.size).sum() / 2)
    decibels = 20 * jnp.log10(jnp.maximum(_product(magnitude, _mel(scale)), 1e-9))
    return jnp.clip(1 + decibels / scale.floor, 0, 1)


def from_log_mel(mel: Array, length: int, scale: Scale, *, iterations: int = 32) -> Array:
    """Sounds [..., length] in [-1, 1] of such loudness, the way back as far as there is one."""
    # Nothing is louder than 1, as nothing is there: the power of what a decoder says wildly would be infinite.
    amplitude = jnp.where(mel > 0, 10 ** ((jnp.minimum(mel, 1) - 1) * scale.floor / 20), 0)
    magnitude = _product(amplitude, _linear(scale)) * (_window(scale.size).sum() / 2)
    return jnp.clip(griffin_lim(magnitude, length, scale.size, scale.hop, iterations=iterations), -1, 1)


def _product(x: Array, weights: np.ndarray) -> Array:
    """In full precision, whatever the device would take: decibels tell a hundred-thousandth."""
    return jnp.matmul(x, weights, precision="highest")


def _window(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


@lru_cache
def _waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [size, size / 2 + 1], for Fourier transforms that are products of matrices.

    XLA's own on CPU waits for threads of the pool that it runs in: several devices at once wait for each other forever.
    """
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size // 2 + 1)) % size) / size
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@lru_cache
def _mel(scale: Scale) -> np.ndarray:
    """[size / 2 + 1, bins]: the weights of each mel bin, triangles that sum to 1, equally wide on the mel scale.

    O'Shaughnessy 1987: 2595 log10(1 + f / 700) mel. Where a triangle is narrower than the distance of two frequencies,
    it is as wide as that.
    """
    frequencies = np.linspace(0, scale.rate / 2, scale.size // 2 + 1)
    top = 2595 * math.log10(1 + scale.rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, scale.bins + 2) / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    width = scale.rate / scale.size
    rise = (frequencies[:, None] - centre) / np.maximum(centre - low, width) + 1
    fall = (centre - frequencies[:, None]) / np.maximum(high - centre, width) + 1
    weights = np.maximum(np.minimum(rise, fall), 0)
    return (weights / weights.sum(0)).astype(np.float32)


@lru_cache
def _linear(scale: Scale) -> np.ndarray:
    """[bins, size / 2 + 1]: from mel bins to frequencies, each a mean of the bins that it is part of."""
    weights = _mel(scale).T
    return weights / np.maximum(weights.sum(0), 1e-8)
