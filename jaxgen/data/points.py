"""Mixtures of Gaussians in the plane: every mode is known, so what a generator has missed can be counted."""

import difflib
import math
from itertools import product

import numpy as np

from jaxgen.data.source import Arrays, Dataset
from jaxgen.errors import UserError

SIGMA = {"grid": 0.05, "ring": 0.01}  # standard deviation of each mode along each axis


def centers(name: str) -> np.ndarray:
    """Means of the modes, float64 [M, 2], in the order of their labels. UserError: no mixture has this name."""
    if name not in SIGMA:
        close = difflib.get_close_matches(name, SIGMA)
        hint = f", did you mean {' or '.join(close)}?" if close else ":"
        raise UserError(f"unknown mixture of Gaussians {name!r}{hint} Expected one of {', '.join(SIGMA)}")
    if name == "grid":
        return np.array(list(product((-4, -2, 0, 2, 4), repeat=2)), np.float64)
    angle = 2 * np.pi * np.arange(8) / 8
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def load_points(name: str, *, count: int = 100_000, sigma: float | None = None) -> Dataset:
    """UpTo1M from a mixture of equally likely Gaussians (Lin et al. 2018, PacGAN, section 4.1), the same in every run.

    Entries are {"point": float32 [N, 2], "label": int32 [N]}, the label being the mode; 10,000 are for testing.

    Args:
      name: `grid`, 25 modes at {-4, -2, 0, 2, 4}^2, or `ring`, 8 modes on the unit circle.
      count: points to train on.
      sigma: standard deviation of each mode along each axis; None: that of the paper, 0.05 or 0.01.

    Raises:
      UserError: unknown name, a count below 1, a sigma that is not positive.
    """
    means = centers(name)
    sigma = SIGMA[name] if sigma is None else sigma
    if count < 1:
        raise UserError(f"{count} points of {name}: expected at least 1")
    if not 0 < sigma < math.inf:
        raise UserError(f"sigma {sigma} of {name}: expected a positive number, such as {SIGMA[name]}")

    def draw(split: int, count: int) -> Arrays:
        rng = np.random.default_rng((0, split))  # the seed is not the run's
        label = rng.integers(0, len(means), count, np.int32)
        point = means[label] + sigma * rng.standard_normal((count, 2))
        return {"point": point.astype(np.float32), "label": label}

    return Dataset(
        name=name,
        train=draw(0, count),
        test=draw(1, 10_000),
        classes=tuple(map(str, range(len(means)))),
        source=f"drawn from {len(means)} Gaussians of sigma {sigma:g}, as in Lin et al. 2018 (PacGAN), section 4.1",
    )
