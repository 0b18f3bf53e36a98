"""The pitch of sounds, and how far it is from the one that was asked for. Plain NumPy in float64."""

import numpy as np

THRESHOLD = 0.1  # the paper's


def pitch(sounds: np.ndarray, rate: int, *, low: float = 60.0, high: float = 1_000.0, most: float = 0.5) -> np.ndarray:
    """YIN (de Cheveigné & Kawahara 2002): hertz [N] of sounds [N, T]; NaN where more than half a sound has no pitch.

    The median over frames of two of the longest periods each, silent ones left out.

    Args:
      sounds: integers or floats.
      rate: samples per second.
      low: hertz, from which on a pitch is looked for.
      high: hertz, up to which it is.
      most: how unlike the next a period may be, 0 being equal and 1 unrelated, before it is none.
    """
    x = np.asarray(sounds, np.float64)
    longest, shortest = int(np.ceil(rate / low)), max(2, int(rate / high))
    window = 2 * longest
    span = window + longest + 1
    if x.shape[1] < span:
        raise ValueError(f"sounds of {x.shape[1]} samples: a pitch from {low:g} Hz on takes {span}")
    starts = np.arange(0, x.shape[1] - span + 1, window)
    frames = x[:, starts[:, None] + np.arange(span)]  # [N, F, span]

    # d(tau) = sum_j (x_j - x_{j + tau})^2 over the window (eq. 6): energies, and a correlation by Fourier transform.
    size = 1 << (span + window).bit_length()
    first = np.fft.rfft(frames[..., :window], size)
    correlation = np.fft.irfft(np.fft.rfft(frames, size) * first.conj(), size)[..., : longest + 1]
    energy = np.pad((frames**2).cumsum(-1), ((0, 0), (0, 0), (1, 0)))
    energy = energy[..., window : window + longest + 1] - energy[..., : longest + 1]
    difference = np.maximum(energy[..., :1] + energy - 2 * correlation, 0)
    # Its cumulative mean normalises it (eq. 8): 1 at short lags, near 0 at a period.
    lags = np.arange(1, longest + 1)
    mean = difference[..., 1:].cumsum(-1) / lags
    normal = np.concatenate([np.ones((*mean.shape[:2], 1)), difference[..., 1:] / np.maximum(mean, 1e-12)], axis=-1)

    # The first minimum below the threshold, or else the lowest one; and between lags where a parabola has its minimum.
    inner = normal[..., 1:-1]
    dip = (inner <= normal[..., :-2]) & (inner < normal[..., 2:])
    dip[..., : shortest - 1] = False
    depth = np.where(dip, inner, np.inf)
    deep = depth < THRESHOLD
    lag = np.where(deep.any(-1), deep.argmax(-1), depth.argmin(-1))
    clear = np.take_along_axis(depth, lag[..., None], -1)[..., 0] < most
    lag = lag + 1
    left, middle, right = (np.take_along_axis(difference, lag[..., None] + i, -1)[..., 0] for i in (-1, 0, 1))
    curve = left - 2 * middle + right
    lag = lag + np.where(curve > 0, (left - right) / (2 * np.where(curve > 0, curve, 1)), 0)
    hertz = np.where(clear, rate / lag, np.nan)

    silent = energy[..., 0] <= 1e-6 * energy[..., 0].max(-1, keepdims=True)
    unclear = (np.isnan(hertz) & ~silent).sum(-1) * 2 > (~silent).sum(-1)
    found = np.full(len(x), np.nan)
    for i in np.flatnonzero(~unclear & ~silent.all(-1)):
        found[i] = np.nanmedian(hertz[i][~silent[i]])
    return found


def cents(hertz: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How far a pitch is above the one that was asked for: 100 are a semitone; NaN where there is none."""
    return 1200 * np.log2(np.asarray(hertz, np.float64) / asked)


def in_tune(hertz: np.ndarray, asked: np.ndarray, *, within: float = 50.0) -> np.ndarray:
    """Bool [N]: less than so many cents from the pitch that was asked for; never where there is none."""
    return np.abs(cents(hertz, asked)) < within
