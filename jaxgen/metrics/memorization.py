"""Whether samples are copies of training examples, and whether a model can tell what it was trained on.

Examples are rows of features, [N, D]: pixels, or what a network makes of them. Distances are Euclidean.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.fidelity import LEVEL, Interval, blocks, bootstrap, checked, equally_wide, squared_distances

QUANTILE = 0.01  # a sample is near if it is nearer to a training example than this share of held-out examples
SURE = 0.01  # copying is reported if and only if the p-value is below
SOME, MOST = 0.01, 0.25  # shares of copies, among near samples and among all, that the null hypothesis allows
PERMUTATIONS = 19_999  # so that p-values are multiples of 1 / 20,000


class Excess(NamedTuple):
    """Copies among the samples of a kind, as a share of all samples.

    share: estimate and 95 % interval, both within 0 and 1. Fewer samples than chance puts around training examples
      count as 0.
    p_value: one-sided, of the null hypothesis that the share is at most the one that is allowed.
    """

    share: Interval
    p_value: float


class Memorization(NamedTuple):
    """Distances of S samples and M held-out examples to their nearest training examples, and a test for copies.

    **The rule.** Copying is reported if and only if `p_value` < 0.01. The null hypothesis: at most 1 % of the samples
    are near copies (`close`), and at most 25 % of the samples are nearer to training examples because the model was
    trained on them (`overall`). All other samples would be the same whichever examples had been the training set. The
    p-value is twice the smaller one of the two parts (Bonferroni). The null hypothesis allows some copies, since
    ordinary models fit their training set a little better than held-out data.

    **The limit.** Where S samples have k different nearest examples, all of them training examples, that happens by
    chance with probability (N / (N + H))^k for N training and H held-out examples. So copies of fewer than
    `detectable` different training examples cannot be told from chance, whatever their number. With fewer than that
    many `distinct` nearest examples there is no verdict.

    Attributes:
      nearest: int [S], index of the nearest training example.
      distance: [S], distance to it.
      held_out: [M], distance of each held-out example to its nearest training example.
      threshold: the 1 % quantile of `held_out`.
      near: share of samples nearer than `threshold`; 0.01 where samples are as good as held-out examples, more where
        they are copies or smoother than examples are. Not part of the rule.
      close: copies among the near samples, however few.
      overall: copies among all samples, as of a model that mixes its few training examples.
      sizes: numbers of training and held-out examples, N and H.
      distinct: number of different training and held-out examples that are nearest to a sample.
    """

    nearest: np.ndarray
    distance: np.ndarray
    held_out: np.ndarray
    threshold: float
    near: Interval
    close: Excess
    overall: Excess
    sizes: tuple[int, int]
    distinct: int

    @property
    def p_value(self) -> float:
        """P-value of the rule, a multiple of 1 / 10,000."""
        return min(1.0, 2 * min(self.close.p_value, self.overall.p_value))

    @property
    def copies(self) -> bool:
        """Whether copying is reported."""
        return self.p_value < SURE

    @property
    def detectable(self) -> int:
        """Smallest number of different training examples whose copies can be told from chance."""
        train, held_out = self.sizes
        return math.floor(math.log(SURE / 2) / math.log(train / (train + held_out))) + 1

    def worst(self, count: int) -> np.ndarray:
        """The samples nearest to a training example, nearest first: int [count], or all of them if there are fewer."""
        return np.argsort(self.distance, kind="stable")[:count]

    def __str__(self) -> str:
        """The verdict, with its rule and its limit."""
        train, held_out = self.sizes
        limit = f"Copies of fewer than {self.detectable:,} different training examples cannot be detected"
        if self.copies:
            verdict, limit = "copying detected", ""
        elif self.distinct >= self.detectable:
            verdict, limit = "no copying detected", f"{limit}. "
        else:
            verdict = "no verdict on copying"
            limit = f"{limit}, and the samples have only {self.distinct:,} different nearest examples. "
        return (
            f"{verdict} (p = {self.p_value:.4f}): "
            f"of {len(self.distance):,} samples, compared with {train:,} training and {held_out:,} held-out examples, "
            f"{_percent(self.overall.share)} are nearer to training examples beyond chance, and "
            f"{_percent(self.close.share)} are near copies beyond chance. Copying is reported if p < {SURE:g}, "
            f"where the null hypothesis allows {100 * MOST:g} % and {100 * SOME:g} %. {limit}"
            f"{100 * self.near.value:.1f} % of the samples are nearer to a training example than {100 * QUANTILE:g} % "
            "of held-out examples are; smooth samples are so without being copies."
        )


def _percent(share: Interval) -> str:
    value, low, high = (100 * bound for bound in share)
    return f"{value:.1f} % (95 % interval {low:.1f} to {high:.1f} %)"


def memorization(
    samples: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    drawn: np.ndarray | None = None,
    seed: int = 0,
    block: int = 2048,
) -> Memorization:
    """Test whether samples are copies of training examples; see `Memorization` for the rule and its limit.

    Samples may be nearer to training examples than held-out examples are without being copies: blurred samples are near
    everything. So the test compares two sets. Take N training examples and H held-out ones together: without copying,
    a sample has a training example for its nearest with probability N / (N + H), since nothing but the memory of the
    model tells the two sets apart. The examples that samples surround stay as they are, and the p-value is over
    random choices of the training examples among them (each by itself, which is conservative). So one typical example
    with many samples around it proves nothing, and ten copied examples do. Meehan et al. 2020 compare ranks of the
    same distances.

    Args:
      samples: [S, D].
      train: [N, D], all that the model was trained on.
      held_out: [H, D] from the same distribution.
      drawn: [M, D], held-out examples in the form of the samples, such as binarized; their distances give the
        threshold. By default `held_out`.
      seed: seed of the random choices.
      block: rows and columns of the matrix of distances in memory at once.

    Raises:
      UserError: features of different widths or not finite, no sample or training example, or fewer than 2 held-out
        examples.
    """
    samples = checked(samples, "samples", 1)
    train, held_out = checked(train, "training examples", 1), checked(held_out, "held-out examples", 2)
    equally_wide(train, samples)
    equally_wide(train, held_out)
    rng = np.random.default_rng(seed)
    # Where features are binary, many examples are equally near. A column that is 0 for samples, and for the others a
    # random number too small to matter otherwise, picks one of these, whichever of the two sets it is in.
    spread = 0.01 * np.sqrt(train.var(axis=0).sum())

    def marked(x: np.ndarray, scale: float) -> np.ndarray:
        kind = np.result_type(x, np.float32)
        return np.concatenate([x.astype(kind), (scale * rng.random((len(x), 1))).astype(kind)], axis=1)

    index, to_train = nearest(marked(samples, 0.0), marked(train, spread), block=block)
    other, to_other = nearest(marked(samples, 0.0), marked(held_out, spread), block=block)
    distance = np.linalg.norm(samples.astype(np.float64) - train[index], axis=1)
    _, reference = nearest(held_out if drawn is None else checked(drawn, "drawn examples", 2), train, block=block)
    threshold = float(np.quantile(reference, QUANTILE))
    mine, chance = to_train < to_other, len(train) / (len(train) + len(held_out))

    def excess(counted: np.ndarray, allowed: float) -> Excess:
        around = [np.bincount(which[counted & side]) for which, side in ((index, mine), (other, ~mine))]
        counts, found, total = np.concatenate(around), around[0].sum(), counted.sum()
        counts, by_chance = counts[counts > 0].astype(np.float32), np.empty(PERMUTATIONS)
        for rows in blocks(PERMUTATIONS, 1000):
            trained = rng.random((rows.stop - rows.start, len(counts)), np.float32) < chance
            by_chance[rows] = trained @ counts

        def copies(others: float, least: float) -> float:
            """Share of copies, if of the `total` samples without any copy `others` had a training example nearest."""
            share = (found - others) / (total - others) if others < total else least
            return float(np.clip(share, 0, 1) * total / len(samples))

        low, high = np.quantile(by_chance, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        share = Interval(copies(chance * total, 0), copies(high, 0), copies(low, 1))
        as_many = (found - by_chance) * total <= allowed * len(samples) * (total - by_chance)
        return Excess(share, float((1 + as_many.sum()) / (1 + PERMUTATIONS)))

    return Memorization(
        nearest=index,
        distance=distance,
        held_out=reference,
        threshold=threshold,
        near=bootstrap(np.mean, (distance < threshold).astype(float), seed=seed),
        close=excess(np.minimum(to_train, to_other) < threshold, SOME),
        overall=excess(np.full(len(samples), True), MOST),
        sizes=(len(train), len(held_out)),
        distinct=len(np.unique(index[mine])) + len(np.unique(other[~mine])),
    )


def nearest(queries: np.ndarray, references: np.ndarray, *, block: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Which of the references [N, D] is nearest to each query [M, D], int [M], and its distance, float64 [M].

    Searched among all, block by block in the precision of the features; the distance itself is computed in float64.
    """
    centre = references.mean(axis=0)  # distances between features far from 0 would lose digits
    index, found = np.zeros(len(queries), int), np.full(len(queries), np.inf)
    for q in blocks(len(queries), block):
        query = queries[q] - centre
        for r in blocks(len(references), block):
            squared = squared_distances(query, references[r] - centre)
            best = squared.argmin(axis=1)
            least = squared[np.arange(len(best)), best]
            better = least < found[q]
            index[q] = np.where(better, best + r.start, index[q])
            found[q] = np.where(better, least, found[q])
    exact = [
        np.linalg.norm(queries[q].astype(np.float64) - references[index[q]], axis=1)
        for q in blocks(len(queries), block)
    ]
    return index, np.concatenate(exact)


def membership(trained: np.ndarray, held_out: np.ndarray, *, level: float = LEVEL) -> Interval:
    """How well a value of each example tells those that were trained on from others: an AUC and its interval.

    The probability that a training example has the higher value, ties counted half; 0.5 tells nothing. The attack of
    Yeom et al. 2018 with values of likelihood, or of Hayes et al. 2019 with those of a discriminator. The interval is
    of DeLong et al. 1988.

    Args:
      trained: values of training examples, [N], N at least 2.
      held_out: of others, [M], M at least 2.
      level: that the interval should cover.
    """
    trained, held_out = (
        checked(np.asarray(values, np.float64)[..., None], name, 2)[:, 0]
        for values, name in ((trained, "values of training examples"), (held_out, "values of held-out examples"))
    )
    above = _above(trained, held_out)  # share of the others that each is above
    below = 1 - _above(held_out, trained)
    auc = float(above.mean())
    error = math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(auc, max(0.0, auc - margin), min(1.0, auc + margin))


def _above(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N], [M] -> [N]: the share of others below each value, ties counted half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))
