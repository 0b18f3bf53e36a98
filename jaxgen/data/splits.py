"""Splits that follow the content of examples, so that copies of one example never stand in two splits."""

from collections.abc import Sequence

import numpy as np

SHARE = 0.1  # of the examples for testing
LEAST = 6  # examples for testing, if half of the examples are as many: fewer can hardly be measured


def draws(digests: Sequence[bytes]) -> np.ndarray:
    """Return a number in [0, 1) for each digest, uniform over digests: float64 [N]."""
    return np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])


def for_testing(digests: Sequence[bytes]) -> np.ndarray:
    """Choose the examples for testing by their content: bool [N].

    An example stays in its split when others are added (but for the smallest sets). Equal examples are in one split.

    Args:
      digests: hash of each example's content; at least two of them differ.
    """
    drawn = draws(digests)
    different = np.unique(drawn)
    limit = different[min(LEAST, len(different) // 2) - 1]
    return ((drawn < SHARE) | (drawn <= limit)) & (drawn < different[-1])
