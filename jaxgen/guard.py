"""Stops a training whose numbers are not finite."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.train import Progress
from jaxgen.types import PyTree


class Guard:
    """Counts bad steps in a row, for each objective by itself.

    Attributes:
      most: bad steps in a row after which the guard is `full`.
      first: the first step of the row that filled the guard.
      what: that step's numbers, in words.
    """

    def __init__(self, most: int):
        self.most, self.first, self.what = most, 0, ""
        self._rows: dict[str, tuple[int, int, str]] = {}  # of each objective: count, first step, its numbers

    @property
    def count(self) -> int:
        return max((count for count, *_ in self._rows.values()), default=0)

    @property
    def full(self) -> bool:
        return self.count >= self.most

    def progress(self, progress: Progress) -> None:
        """Count: a step is bad if its update was left out, or without a guard in the step, if its loss is not finite.

        A step at which an objective is not due neither adds to its row nor ends it.
        """
        for i in range(progress.stop - progress.start):
            for name, report in progress.reports.items():
                if self.full or not report.due[i]:
                    continue
                if not (~np.isfinite(report.loss[i]) if report.skipped is None else report.skipped[i]):
                    self._rows.pop(name, None)
                    continue
                norm = "" if report.gradient_norm is None else f", gradient norm {report.gradient_norm[i]:.4g}"
                step = progress.start + i
                count, *since = self._rows.get(name, (0, step, f"{name} loss {report.loss[i]:.4g}{norm}"))
                self._rows[name] = count + 1, *since
                if self.full:
                    self.first, self.what = since[0], f"at step {since[0]} {since[1]}"


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


def is_finite(tree: PyTree) -> bool:
    """Whether every number of the arrays is finite."""
    return bool(_all_finite(tree))
