"""How good and how diverse samples are: distances between sets of features, the modes that samples hit.

Features are any [N, D] that a network or a person makes of examples; a figure compares only with figures of the same
features and of as many examples. Every function is plain NumPy in float64.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from jaxgen.errors import UserError

RESAMPLES = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


class Moments(NamedTuple):
    """What the Frechet distance needs to know of a set of features: mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Modes(NamedTuple):
    """Number of distinct modes hit, and KL(generated labels || reference) in nats."""

    hit: int
    kl: float


class Mixture(NamedTuple):
    """Share of samples that are of high quality, in [0, 1], and number of modes that have at least one such sample."""

    quality: float
    hit: int


def measures(
    real: np.ndarray,
    fake: np.ndarray,
    names: Sequence[str] = ("frechet", "kernel", "prdc"),
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """The named measures of generated features against real ones, with confidence intervals, in the order of `names`.

    frechet: of the means of per-example values that the distance is to first order (see `_frechet`); generated
      examples are resampled, the real ones are taken as they are. Its upward bias, of order 1/N, stays.
    kernel: delete-d jackknife over the subsets, which leave out real and generated examples alike; about twice too wide
      where the distributions are equal.
    prdc: precision and density are means over generated examples and these are resampled; recall and coverage are
      means over real examples and those are. Neighbourhoods stay as they are, so no distance is computed twice.

    Args:
      real: features [N, D].
      fake: features [M, D].
      names: some of frechet, kernel and prdc; the last one gives four figures.
      seed: of the resamples and of the kernel distance's subsets.
      resamples: bootstrap resamples of per-example values.
      level: that the intervals should cover.

    Raises:
      UserError: a name is unknown, or the features are not what a measure needs.
    """
    for name in names:
        if name not in MEASURES:
            near = difflib.get_close_matches(name, MEASURES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown measure {name!r}: {hint}expected some of {', '.join(MEASURES)}")
    result = {}
    for name in names:
        result |= MEASURES[name](real, fake, seed=seed, resamples=resamples, level=level)
    return result


def bootstrap(
    function: Callable[..., float],
    *arrays: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """`function(*arrays)` and its percentile bootstrap interval (Efron 1979), moved so that its median is the value.

    The arrays' rows are resampled, all arrays alike: whatever stays fixed is bound in `function`. The move takes out
    the bias that a plug-in estimator (a KL, an entropy, a Frechet distance) has anew in every resample and that would
    leave the value outside of its own interval. A count of distinct modes is not smooth enough for a bootstrap.
    It calls the function `resamples + 1` times.

    >>> bootstrap(np.mean, np.array([0.0, 1.0, 1.0, 1.0]), seed=0)
    Interval(value=0.75, low=0.25, high=1.0)
    """
    value, rng, count = float(function(*arrays)), np.random.default_rng(seed), len(arrays[0])
    draws = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(count, size=count)
        draws[i] = function(*(array[rows] for array in arrays))
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(value, float(value + low - middle), float(value + high - middle))


# Distances between two sets of features


def moments(features: np.ndarray) -> Moments:
    """[N, D] -> mean and unbiased covariance; N at least 2. Worth keeping for a data set that is compared often."""
    features = checked(features, "features", 2)
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for rows in blocks(len(features)):
        centred = features[rows] - mean
        covariance += centred.T @ centred
    return Moments(mean, covariance / (len(features) - 1))


def frechet_distance(real: np.ndarray | Moments, fake: np.ndarray | Moments) -> float:
    """Squared Frechet distance between the normal distributions that have the two sets' moments.

    Dowson & Landau 1982; Heusel et al. 2017, who take the features from an Inception network and call it the FID.
    It is biased upwards, in proportion to 1/N: compare figures of equally many samples, 50,000 by custom.

    Args:
      real: features [N, D], or their moments; any N of 2 or more, though N > D gives covariances of full rank.
      fake: features [M, D], or their moments.
    """
    real, fake = (x if isinstance(x, Moments) else moments(x) for x in (real, fake))
    equally_wide(real.covariance, fake.covariance)
    return _frechet(real, fake)[0]


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3: its mean and standard deviation.

    Binkowski et al. 2018, who take the features from an Inception network and call it the KID. Being unbiased, it is
    negative now and then for equal distributions, and its mean depends on no number of samples.

    Args:
      real: features [N, D], N at least 4.
      fake: features [M, D], M at least 4.
      subsets: pairs of subsets over which mean and deviation are taken.
      subset_size: examples in each, drawn without replacement; at most half of the smaller set, for subsets to differ.
      seed: of the subsets.
    """
    real, fake = _pair(real, fake, 4)
    rng, size = np.random.default_rng(seed), _subset_size(real, fake, subset_size)
    values = np.empty(subsets)
    for i in range(subsets):
        x, y = (a[rng.choice(len(a), size, replace=False)].astype(np.float64) for a in (real, fake))
        values[i] = _squared_mmd(x, y)
    return float(values.mean()), float(values.std())


def prdc(
    real: np.ndarray, fake: np.ndarray, *, precision_k: int = 3, coverage_k: int = 5, block: int = 2048
) -> dict[str, float]:
    """Precision, recall, density and coverage: do samples lie among real examples, and real examples among samples?

    A set's manifold is taken as the closed balls around its examples that reach to their k-th neighbours within it.
    precision: share of samples within the real manifold; recall: share of real examples within that of the samples
      (Kynkaanniemi et al. 2019, eq. 2; k = 3).
    density: number of real balls that hold a sample, over k, on average: 1 for equal distributions and unbounded;
      coverage: share of real balls that hold a sample (Naeem et al. 2020, section 3; k = 5).

    All depend on N and M, which are equal by custom. Distances are compared up to rounding, 1e-6 of the features' norm.

    Args:
      real: features [N, D], N above both k.
      fake: features [M, D], M above both k.
      precision_k: neighbours for precision and recall.
      coverage_k: neighbours for density and coverage.
      block: rows and columns of the matrix of distances that are in memory at once; does not change the result.
    """
    values = _prdc(real, fake, precision_k=precision_k, coverage_k=coverage_k, block=block)
    return {name: float(value.mean()) for name, value in values.items()}


# Modes, by a classifier or by position


def classifier_score(probabilities: np.ndarray) -> float:
    """Exp of the mean KL(p(y | x) || p(y)) over all samples, from 1 to K: are they classified surely and diversely?

    Salimans et al. 2016. It is the Inception score if, and only if, the classifier is their Inception network; theirs
    is then averaged over 10 splits, whose smaller number of samples raises it.

    Args:
      probabilities: p(y | x) of each sample, [N, K].
    """
    p = checked(probabilities, "class probabilities", 1).astype(np.float64)
    total = p.sum(axis=1)
    if (p < 0).any() or (abs(total - 1) > 1e-3).any():
        worst = total[abs(total - 1).argmax()]
        raise UserError(f"class probabilities: expected rows >= 0 of sum 1, got {p.min():.3g} and sum {worst:.3g}")
    return math.exp(_kl(p, p.mean(axis=0)).mean())


def mode_coverage(labels: np.ndarray, num_modes: int, reference: np.ndarray | None = None) -> Modes:
    """How many modes the samples hit, and how far their shares are from the reference's.

    Srivastava et al. 2017 (VEEGAN), who classify samples of Stacked MNIST into 1,000 modes. An absent mode adds nothing
    by itself to this "reverse" KL, which is infinite where a sample hits a mode that the reference never does.

    Args:
      labels: of generated samples, int [N] in [0, num_modes).
      num_modes: of the data.
      reference: counts or shares of the modes in the data, [num_modes]; uniform unless given.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise UserError(f"labels: expected integers [N], N at least 1, got {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= num_modes:
        raise UserError(f"labels: expected 0 to {num_modes - 1}, got {labels.min()} to {labels.max()}")
    q = np.ones(num_modes) if reference is None else np.asarray(reference, np.float64)
    if q.shape != (num_modes,) or not np.isfinite(q).all() or (q < 0).any() or not q.any():
        raise UserError(f"reference: expected counts >= 0 of {num_modes} modes, not all 0, got shape {list(q.shape)}")
    counts = np.bincount(labels, minlength=num_modes)
    return Modes(int((counts > 0).sum()), float(_kl(counts / len(labels), q / q.sum())))


def mixture_modes(points: np.ndarray, centers: np.ndarray, sigma: float) -> Mixture:
    """High-quality samples of a mixture of normals: those within 3 standard deviations of the nearest centre.

    Srivastava et al. 2017 (VEEGAN); Lin et al. 2018 (PacGAN), section 4.1.

    Args:
      points: samples [N, 2].
      centers: of the modes, [M, 2].
      sigma: standard deviation of each mode, in each direction.
    """
    points, centers = checked(points, "points", 1), checked(centers, "centers", 1)
    equally_wide(centers, points)
    distance = np.linalg.norm(points[:, None] - centers, axis=-1)
    good = distance.min(axis=1) <= 3 * sigma
    return Mixture(float(good.mean()), len(np.unique(distance.argmin(axis=1)[good])))


# What `measures` puts together


def _frechet_measure(real, fake, **options) -> dict[str, Interval]:
    real, fake = _pair(real, fake, 2)
    of_fake = moments(fake)
    distance, gap, factor = _frechet(moments(real), of_fake)
    # The distance of a distribution is, to first order in that distribution, the mean of these influence values
    # (Hampel 1974); the gradient in the covariance is I - T, T the optimal transport map. Resampling them is cheap.
    # Resampling the distance itself takes N D^2 + D^3 each time, and as a resample holds fewer distinct examples, its
    # interval is twice too wide at N = 2 D, three times at N = 2/3 D; this one is right to a fifth (normal features).
    values = np.empty(len(fake))
    for rows in blocks(len(fake)):
        x = fake[rows] - of_fake.mean
        values[rows] = -2 * x @ gap + (x**2).sum(axis=1) - ((x @ factor) ** 2).sum(axis=1)
    return {"frechet": bootstrap(np.mean, values - values.mean() + distance, **options)}


def _kernel_measure(real, fake, *, seed, resamples, level) -> dict[str, Interval]:
    subsets, subset_size = 100, 1000
    value, deviation = kernel_distance(real, fake, subsets=subsets, subset_size=subset_size, seed=seed)
    count, size = min(len(real), len(fake)), _subset_size(real, fake, subset_size)
    # Shao & Wu 1989: what leaving out d = count - size examples does to a figure, times size / d, is the variance
    # of the figure of all examples. The mean over finitely many subsets adds its own.
    error = deviation * math.sqrt(size / (count - size) + 1 / subsets)
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    return {"kernel": Interval(value, value - margin, value + margin)}


def _prdc_measure(real, fake, **options) -> dict[str, Interval]:
    return {name: bootstrap(np.mean, value, **options) for name, value in _prdc(real, fake).items()}


MEASURES = {"frechet": _frechet_measure, "kernel": _kernel_measure, "prdc": _prdc_measure}


# The arithmetic


def _frechet(real: Moments, fake: Moments) -> tuple[float, np.ndarray, np.ndarray]:
    """The distance, the gap between the means [D], and F [D, D] such that F F' is the optimal transport map.

    tr (C_r^1/2 C_f C_r^1/2)^1/2 is the sum of the singular values of A'B for any A A' = C_r and B B' = C_f; so no root
    is taken of what rounding made negative or not symmetric, and equal sets are at distance 0.
    """
    gap, root = real.mean - fake.mean, _root(real.covariance)
    u, s, _ = np.linalg.svd(root.T @ _root(fake.covariance))
    distance = gap @ gap + np.trace(real.covariance) + np.trace(fake.covariance) - 2 * s.sum()
    kept = s > 1e-10 * s[0]
    return max(float(distance), 0.0), gap, root @ u[:, kept] / np.sqrt(s[kept])


def _root(covariance: np.ndarray) -> np.ndarray:
    """A such that A A' = covariance. Directions without variance get exactly none: a root would enlarge rounding."""
    values, vectors = np.linalg.eigh(covariance)
    values[values < 1e-13 * len(values) * values[-1]] = 0
    return vectors * np.sqrt(np.maximum(values, 0))


def _subset_size(real: np.ndarray, fake: np.ndarray, subset_size: int) -> int:
    return min(subset_size, len(real) // 2, len(fake) // 2)


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of Binkowski et al. 2018, of two sets of equal size."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        k = a @ b.T / a.shape[1] + 1
        return k * k * k  # several times as fast as a power

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _prdc(real, fake, *, precision_k: int = 3, coverage_k: int = 5, block: int = 2048) -> dict[str, np.ndarray]:
    """Values per generated example (precision, density) and per real example (recall, coverage)."""
    real, fake = _pair(real, fake, max(precision_k, coverage_k) + 1)
    centre = real.mean(axis=0, dtype=np.float64)  # distances between features far from 0 would lose digits
    narrow, wide = _radii(real, (precision_k, coverage_k), centre, block)
    (fake_radii,) = _radii(fake, (precision_k,), centre, block)
    precision, balls = np.zeros(len(fake), bool), np.zeros(len(fake), int)
    recall, coverage = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for f in blocks(len(fake), block):
        y = fake[f] - centre
        for r in blocks(len(real), block):
            distance = squared_distances(y, real[r] - centre)
            inside = distance <= wide[r]
            balls[f] += inside.sum(axis=1)
            coverage[r] |= inside.any(axis=0)
            precision[f] |= (distance <= narrow[r]).any(axis=1)
            recall[r] |= (distance <= fake_radii[f, None]).any(axis=0)
    return {"precision": precision, "recall": recall, "density": balls / coverage_k, "coverage": coverage}


def _radii(x: np.ndarray, ks: Sequence[int], centre: np.ndarray, block: int) -> list[np.ndarray]:
    """For each k, the squared distance [N] of every example to its k-th neighbour among the others."""
    most = max(ks) + 1  # an example is its own nearest neighbour, the 0th
    nearest = np.full((len(x), most), np.inf)
    parts = list(blocks(len(x), block))
    for i, a in enumerate(parts):
        x_a = x[a] - centre
        for b in parts[i:]:
            distance = squared_distances(x_a, x[b] - centre)
            nearest[a] = _smallest(nearest[a], distance)
            if a != b:
                nearest[b] = _smallest(nearest[b], distance.T)
    # A sample that copies a training image lies on the edge of other images' balls: no rounding may put it outside.
    return [nearest[:, k] * (1 + 1e-9) for k in ks]


def _smallest(found: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The smallest of each row [B, K], sorted, of what was found so far [B, K] and of more [B, any]."""
    most = found.shape[1]
    if more.shape[1] > most:
        more = np.partition(more, most - 1, axis=1)[:, :most]
    return np.sort(np.concatenate([found, more], axis=1), axis=1)[:, :most]


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[A, D], [B, D] -> [A, B]. What may be all rounding is 0, so that an example is at no distance from its copy."""
    squares = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
    distance = x @ y.T
    distance *= -2
    distance += squares
    distance[distance < 1e-12 * squares] = 0
    return distance


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) over the last axis, in nats; 0 log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum(axis=-1)


def blocks(count: int, size: int = 2048) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _pair(real: np.ndarray, fake: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    real, fake = checked(real, "real features", least), checked(fake, "generated features", least)
    equally_wide(real, fake)
    return real, fake


def checked(x: np.ndarray, name: str, least: int) -> np.ndarray:
    """An array of finite numbers [N, D], N at least `least`."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1]:
        raise UserError(f"{name}: expected an array [N, D], got shape {list(x.shape)}; flatten each example to a row")
    if len(x) < least:
        raise UserError(f"{name}: this measure needs at least {least} examples, got {len(x)}; give it more")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        raise UserError(f"{name}: {bad} of {len(x)} examples hold numbers that are not finite; look for what made them")
    return x


def equally_wide(real: np.ndarray, fake: np.ndarray) -> None:
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"features of different widths, {real.shape[1]} and {fake.shape[1]}: make both by one network")
