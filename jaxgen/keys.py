"""PRNG keys of seeds, and of random draws outside training."""

import zlib

import jax
import numpy as np

from jaxgen.types import Key


def key_of(seed: int) -> Key:
    """Return the key of a seed from 0 to 2**64 - 1; different seeds have different keys.

    Below 2**32 it is `jax.random.key(seed)`, which reads only the last 32 bits of a seed.
    """
    return jax.random.wrap_key_data(np.array([seed >> 32, seed % 2**32], np.uint32))


def key_for(purpose: str) -> Key:
    """Return the key of draws outside training: the same in every run, and different for each purpose."""
    return jax.random.key(zlib.crc32(purpose.encode()))
