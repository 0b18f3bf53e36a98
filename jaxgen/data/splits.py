"""Splits of a data set, the same in every run. Those that follow the content of examples keep copies together."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

SHARE = 0.1  # of the examples for testing
WATCHED = 0.1  # of the training examples, evaluated during training where none are held out
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


def parted(count: int, share: float, keys: Iterable[bytes] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the training examples to train on, in their order, and those to evaluate during training, mixed.

    The two are disjoint and make up all examples. At least two are held out, of fewer than four one. With share 0, or
    where nothing can be held out, all are trained on, and a tenth of them (or all) is evaluated too.

    Args:
      count: number of training examples, N.
      share: share of the examples to hold out, 0 to 0.5.
      keys: N keys, such as an example's content or path, whose hashes choose: an example then stays in its part when
        others are added, and examples with equal keys stay together. None: a fixed permutation chooses.

    Returns:
      Indices, int64 [T] and int64 [V]; T + V = N unless all examples are trained on.
    """
    part, least = share or WATCHED, min(2, count // 2)
    if keys is None:
        order = np.random.default_rng(0).permutation(count)
        number = max(round(part * count), least)
    else:
        drawn = draws([hashlib.sha256(b"validation" + key).digest() for key in keys])
        order = drawn.argsort(kind="stable")
        drawn = drawn[order]
        number = max(np.searchsorted(drawn, part), least)
        # Equal keys stay together, and those of the highest hash are trained on.
        number = min(np.searchsorted(drawn, drawn[number - 1], "right"), np.searchsorted(drawn, drawn[-1]))
    watched = order[:number]
    trained = np.sort(order[number:]) if share else np.arange(count)
    return trained, watched if number else order
