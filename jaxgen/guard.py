"""Watches for steps whose numbers are not finite."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.train import Progress
from jaxgen.types import PyTree


class Guard:
    """Counts bad steps in a row, for each objective by itself: how many, the first, and what its numbers were."""

    def __init__(self, most: int, periods: Mapping[str, int] = {}):
        """`periods` are steps between two values of a loss that is not due at each of them."""
        self.most, self.periods, self.first, self.what = most, periods, 0, ""
        self._rows: dict[str, tuple[int, int, str]] = {}  # of each objective: count, first step, its numbers

    @property
    def count(self) -> int:
        return max((count for count, *_ in self._rows.values()), default=0)

    @property
    def full(self) -> bool:
        return self.count >= self.most

    def progress(self, progress: Progress) -> None:
        """A step is bad where it was left out; where nothing watches over it, if a loss is no number.

        An objective that is not due has a value that is no number: that step says nothing of it.
        """
        metrics = progress.metrics
        bad = {name: v > 0 for name, v in metrics.items() if name.endswith(" skipped")}
        due = {name: ~np.isnan(metrics[name]) for name in bad}
        if not bad:
            bad = {name: ~np.isfinite(v) for name, v in metrics.items() if name.split()[-1] == "loss"}
            steps = np.arange(progress.start, progress.stop) + 1
            due = {name: steps % self.periods.get(name, 1) == 0 for name in bad}
        for i in range(progress.stop - progress.start):
            for name in bad:
                if self.full:
                    return
                if due[name][i] and not bad[name][i]:
                    self._rows.pop(name, None)
                elif due[name][i]:
                    step = progress.start + i
                    numbers = (f"{n} {v[i]:.4g}" for n, v in metrics.items() if "loss" in n or "norm" in n)
                    count, *since = self._rows.get(name, (0, step, ", ".join(numbers)))
                    self._rows[name] = count + 1, *since
                    if self.full:
                        self.first, self.what = since[0], f"at step {since[0]} {since[1]}"


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


def is_finite(tree: PyTree) -> bool:
    """Whether every number of the arrays is one."""
    return bool(_all_finite(tree))
