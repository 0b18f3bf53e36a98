"""Means over a whole data set: of what a model says of each example, and of its importance-sampled likelihood."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.sharding import PartitionSpec

from jaxgen import parallel
from jaxgen.metrics.fidelity import Interval
from jaxgen.types import Batch, Key, Params


class Estimate(NamedTuple):
    """A mean over examples and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        """With two digits of the error, and never fewer than two after the point."""
        if not self.error > 0:
            return f"{self.mean:.2f}"
        digits = min(6, max(2, 1 - math.floor(math.log10(self.error))))
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


def estimate(values: np.ndarray) -> Estimate:
    """[N] -> its mean, and the standard error of that mean."""
    values = np.asarray(values, np.float64)
    with np.errstate(all="ignore"):  # values that are no numbers have a mean that is none
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return Estimate(float(values.mean()), float(error))


def ratio(totals: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Mean per unit of examples of unequal size, such as nats per token: a ratio of means, and its standard error.

    With totals l_i, sizes n_i and R = sum_i l_i / sum_i n_i, the error is that of the mean of l_i - R n_i:

        sqrt(sum_i (l_i - R n_i)^2 / (N (N - 1))) / mean(n)

    The error is 0 where all examples have the same rate, whatever their sizes. Cochran 1977, "Sampling Techniques",
    chapter 6.

    Args:
      totals: [N], such as the nats of each example.
      sizes: [N], such as the tokens of each example; their sum is above 0.

    >>> ratio(np.array([8.0, 80.0]), np.array([1, 10]))
    Estimate(mean=8.0, error=0.0)
    """
    totals, sizes = np.asarray(totals, np.float64), np.asarray(sizes, np.float64)
    with np.errstate(all="ignore"):  # totals that are not finite have a rate that is not finite
        rate = totals.sum() / sizes.sum()
        return Estimate(float(rate), estimate(totals - rate * sizes).error / float(sizes.mean()))


def interval(value: Interval) -> Estimate:
    """With half the width of a 95 % interval in terms of a standard error."""
    return Estimate(value.value, (value.high - value.low) / (2 * 1.96))


def evaluate(
    function: Callable[[Params, Batch, Key], dict[str, jax.Array]],
    params: Params,
    arrays: dict[str, np.ndarray],
    key: Key,
    *,
    batch_size: int = 1000,
) -> dict[str, Estimate]:
    """Means of `model.evaluate` over a data set of any size."""
    values = per_example(function, params, arrays, key, batch_size=batch_size)
    return {name: estimate(value) for name, value in values.items()}


def per_example(
    function: Callable[[Params, Batch, Key], dict[str, jax.Array]],
    params: Params,
    arrays: dict[str, np.ndarray],
    key: Key,
    *,
    batch_size: int = 1000,
) -> dict[str, np.ndarray]:
    """What `model.evaluate`, or anything like it, says of each example, [N, ...], its batches split over all devices.

    The last batch is filled up with copies of the first examples, whose values are left out.
    """
    mesh = parallel.make_mesh()
    compiled, values = parallel.gathered(function, mesh), {}
    count = len(next(iter(arrays.values())))
    size = math.ceil(min(batch_size, count) / mesh.size) * mesh.size
    for i, rows in enumerate(_rows(count, size)):
        batch = parallel.put_rows({name: array[rows] for name, array in arrays.items()}, mesh)
        for name, value in compiled(params, batch, jax.random.fold_in(key, i)).items():
            values.setdefault(name, []).append(np.asarray(value))
    return {name: np.concatenate(parts)[:count] for name, parts in values.items()}


def importance_weighted_nll(
    observe: Callable[[Batch, Key], jax.Array],
    log_weights: Callable[..., jax.Array],
    *,
    num_samples: int,
    rows: int = 1000,
) -> Callable[..., np.ndarray]:
    """An upper bound of -log p(x) for each example, in nats: -log 1/K sum_k w_k (Burda et al. 2015, eq. 8).

    Args:
      observe: `(batch, key) -> x [B, ...]`, once for each example.
      log_weights: `(params, x, key, K, condition) -> [K, B]`.
      num_samples: K, at least 1.
      rows: most samples x examples at once, which bounds the memory and is fastest while it fits the cache.

    Returns:
      `(params, arrays, key, on_progress) -> float64 [N]`, compiled at its first call; `on_progress`, if given, hears
      the number of examples done.
    """
    parts = math.ceil(num_samples / rows)
    per_part = math.ceil(num_samples / parts)
    width = max(1, rows // num_samples)  # examples at once
    mesh = parallel.make_mesh()
    least = width * mesh.size
    most = max(least, 500_000 // (per_part * parts))  # examples in one dispatch: about two seconds on two cores

    def one(params: Params, batch: Batch, key: Key) -> jax.Array:
        observe_key, key = jax.random.split(jax.random.fold_in(key, batch["group"][0]))
        x, condition = observe(batch, observe_key), batch.get("label")
        keys = jax.random.split(key, parts)
        log_w = jax.lax.map(lambda key: log_weights(params, x, key, per_part, condition), keys)
        log_w = log_w.reshape(parts * per_part, -1)[:num_samples]
        return jnp.log(num_samples) - logsumexp(log_w, axis=0)

    def many(params: Params, batch: Batch, key: Key) -> jax.Array:
        """One group of `width` examples after another, on each device its own."""
        batch = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), batch)
        return jax.lax.map(lambda group: one(params, group, key), batch).reshape(-1)

    specs = PartitionSpec(), PartitionSpec("data"), PartitionSpec()
    split = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    compiled = parallel.gathered(split, mesh)

    def nll(
        params: Params,
        arrays: dict[str, np.ndarray],
        key: Key,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        count = len(next(iter(arrays.values())))
        size = math.ceil(count / math.ceil(count / most) / least) * least  # dispatches of one size, nearly all needed
        result = []
        for i, rows in enumerate(_rows(count, size)):
            batch = {name: array[rows] for name, array in arrays.items()}
            batch["group"] = (i * size + np.arange(size)) // width  # noise belongs to a group, wherever it is computed
            again = jax.random.clone(key)  # each group folds in its own number
            result.append(np.asarray(compiled(params, parallel.put_rows(batch, mesh), again), np.float64))
            on_progress(min(count, (i + 1) * size))
        return np.concatenate(result)[:count]

    return nll


def _rows(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices of each batch, all of one size: the last one begins anew at 0."""
    for start in range(0, count, size):
        yield np.arange(start, start + size) % count
