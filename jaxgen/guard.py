"""Watches for steps whose numbers are not finite."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.train import Progress
from jaxgen.types import PyTree


class Guard:
    """Counts bad steps in a row: how many, the first, and what its numbers were."""

    def __init__(self, most: int):
        self.most, self.count, self.first, self.what = most, 0, 0, ""

    @property
    def full(self) -> bool:
        return self.count >= self.most

    def progress(self, progress: Progress) -> None:
        """A step is bad where it was left out; where nothing watches over it, if its loss is no number."""
        metrics = progress.metrics
        bad = [value > 0 for name, value in metrics.items() if name.endswith(" skipped")]
        bad = bad or [~np.isfinite(value) for name, value in metrics.items() if name == "loss"]
        for i in range(progress.stop - progress.start):
            if self.full:
                return
            if not any(values[i] for values in bad):
                self.count = 0
                continue
            if self.count == 0:
                self.first = progress.start + i
                numbers = (f"{n} {v[i]:.4g}" for n, v in metrics.items() if "loss" in n or "norm" in n)
                self.what = f"at step {self.first} {', '.join(numbers)}"
            self.count += 1


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


def is_finite(tree: PyTree) -> bool:
    """Whether every number of the arrays is one."""
    return bool(_all_finite(tree))
