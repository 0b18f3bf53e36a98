"""Differentiable augmentations of what a GAN's discriminator sees, so that it cannot learn few images by heart.

Pure functions that run inside the compiled step. They are applied to real and generated images alike, and a generator
learns through them (Zhao et al. 2020, DiffAugment; Karras et al. 2020, ADA).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxgen.types import Key

Array = jax.Array


def diff_augment(
    policy: Sequence[str] = ("translation", "cutout"), *, fill: float = 0.0
) -> Callable[[Array, Key, Array], Array]:
    """`augment(x [B, H, W, C] in [-1, 1], key, p) -> x`: each transformation of each example, with probability p.

    With p = 1 this is DiffAugment, with p steered by the discriminator's overfitting it is in the manner of ADA. What
    becomes of an example depends on it, the key and its index in the batch; all its channels share one fate, as do
    examples that are packed along them.

    Args:
      policy: which of `translation`, `cutout` and `colour`, in the order in which they are applied.
      fill: what comes in from outside and into holes. Grey, as in DiffAugment, shows how far an image was moved. With
        the colour of a plain background, -1 for black, moved images look like others of the data, and a generator may
        well learn to move its own.

    Raises:
      ValueError: an unknown name.
    """
    known = {"translation": partial(translate, fill=fill), "cutout": partial(cutout, fill=fill), "colour": colour}
    if unknown := [name for name in policy if name not in known]:
        raise ValueError(f"unknown augmentation {unknown[0]!r}: expected a sequence of {', '.join(known)}")

    def one(x: Array, key: Key, p: Array) -> Array:
        draws = jax.random.uniform(key, (len(policy), 4))  # all at once: what takes long to compile is the generator
        for name, (chance, *u) in zip(policy, draws, strict=True):
            x = jnp.where(chance < p, known[name](x, jnp.stack(u)), x)
        return x

    def augment(x: Array, key: Key, p: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
        return jax.vmap(one, (0, 0, None))(x, keys, p)

    return augment


# Of one image, [H, W, C], and three numbers u that are uniform in [0, 1) ----------------------------------------------


def translate(x: Array, u: Array, *, fill: float = 0.0) -> Array:
    """Move by whole pixels, at most an eighth of the height and of the width (rounded)."""
    reach = [_share(size, 1 / 8) for size in x.shape[:2]]
    # A slice of the padded image: on a CPU at least twice as fast, forward and back, as shift matrices.
    padded = jnp.pad(x, [*((r, r) for r in reach), (0, 0)], constant_values=fill)
    row, column = (_choose(u, 2 * r + 1) for u, r in zip(u[:2], reach, strict=True))
    return jax.lax.dynamic_slice(padded, (row, column, 0), x.shape)


def cutout(x: Array, u: Array, *, fill: float = 0.0) -> Array:
    """Cut a hole of half the height and width (rounded), centred at any pixel: part of it may lie outside."""

    def inside(size: int, u: Array) -> Array:
        hole = _share(size, 1 / 2)
        # The centre of an even hole lies between pixels, where there is one place more.
        first = _choose(u, size + 1 - hole % 2) - hole // 2
        return (jnp.arange(size) >= first) & (jnp.arange(size) < first + hole)

    rows, columns = (inside(size, u) for size, u in zip(x.shape[:2], u[:2], strict=True))
    return jnp.where((rows[:, None] & columns)[..., None], fill, x)


def colour(x: Array, u: Array) -> Array:
    """Change brightness (+ U(-1/2, 1/2)), saturation (x U(0, 2)) and contrast (x U(1/2, 3/2)).

    Three channels are taken for red, green and blue; with any other number of them the saturation stays as it is.
    """
    brightness, saturation, contrast = u.astype(x.dtype)
    x = x + brightness - 0.5
    if x.shape[-1] == 3:
        grey = x.mean(-1, keepdims=True)
        x = grey + 2 * saturation * (x - grey)
    return x.mean() + (contrast + 0.5) * (x - x.mean())


def _choose(u: Array, n: int) -> Array:
    """One of 0 to n - 1."""
    return (u * n).astype(jnp.int32)


def _share(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)
