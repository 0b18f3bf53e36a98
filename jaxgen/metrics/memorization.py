"""Whether samples are copies of training examples, and whether a model can tell what it was trained on.

Examples are rows of features, [N, D]: pixels, or what a network makes of them. Distances are Euclidean.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.fidelity import LEVEL, Interval, blocks, bootstrap, checked, equally_wide, squared_distances

QUANTILE = 0.01  # of held-out examples: nearer than that is near
SURE = 0.001  # a verdict of copying needs a p-value below this,
SOME, MOST = 0.01, 0.25  # and a share of samples beyond chance above the one of near ones, or the other of all
PERMUTATIONS = 20_000


class Excess(NamedTuple):
    """Of samples with a training example for their nearest: the share beyond chance, at most 1, and its p-value."""

    share: float
    p_value: float


class Memorization(NamedTuple):
    """What the distances of S samples and M held-out examples to their nearest training examples say.

    nearest: int [S], which training example that is.
    distance: [S], how far it is.
    held_out: [M], how far it is from a held-out example.
    threshold: the 1 % quantile of `held_out`.
    near: share of samples nearer than that; 0.01 where samples are as good as held-out examples, more where they copy,
      or where they are smoother than examples are.
    close: how many of the near samples are nearer to training than to held-out examples: copies, however few.
    overall: the same of all samples: a model that knows nothing but its training examples, and mixes them.
    """

    nearest: np.ndarray
    distance: np.ndarray
    held_out: np.ndarray
    threshold: float
    near: Interval
    close: Excess
    overall: Excess

    @property
    def copies(self) -> bool:
        """Whether the model is said to copy."""
        return any(x.p_value < SURE and x.share > least for x, least in ((self.close, SOME), (self.overall, MOST)))

    def worst(self, count: int) -> np.ndarray:
        """The samples nearest to a training example, nearest first: int [count], or all of them if there are fewer."""
        return np.argsort(self.distance, kind="stable")[:count]

    def __str__(self) -> str:
        """A verdict."""
        p = min(self.close.p_value, self.overall.p_value) if self.copies else self.overall.p_value
        p = f"p = {p:.2g}" if p > 2 / PERMUTATIONS else f"p < {2 / PERMUTATIONS:.2g}"
        near = f"{self.near.value:.1%} of samples are nearer to a training example than {QUANTILE:.0%} of held-out ones"
        if self.copies:
            share = max(self.close.share, self.overall.share)
            return f"the model copies: about {share:.0%} of its samples stay around training examples ({p}); {near}"
        more = f"{self.overall.share:.0%} of them, beyond chance, are nearer to training than to held-out examples"
        return f"no sign of copying: {near}; {more} ({p})"


def memorization(
    samples: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    drawn: np.ndarray | None = None,
    seed: int = 0,
    block: int = 2048,
) -> Memorization:
    """Do samples lie nearer to training examples than to examples that the model has not seen?

    Nearer than those examples themselves are: that also happens to a model of blurred samples, which are near to
    everything. So the test is another. Take N training examples and H held-out ones together: as many samples should
    have a training example for their nearest as there are such among all, N / (N + H), since nothing but the model's
    memory tells the two sets apart. Around which examples samples lie is taken as it is: the p-value is of drawing anew
    which examples were trained on (each by itself, which is on the safe side), so that one typical example with many
    samples around it proves nothing; ten examples that are copied do. Meehan et al. 2020 compare ranks of the same
    distances. Some distance between the two sets is every model's; a verdict asks for more (`Memorization.copies`).

    Args:
      samples: [S, D].
      train: [N, D], all that the model was trained on.
      held_out: [H, D] from the same distribution.
      drawn: [M, D], the held-out examples whose own distances are asked for, in the form that samples have, such as
        binarised; those of `held_out` unless given.
      seed: of the draws.
      block: rows and columns of the matrix of distances that are in memory at once.

    Raises:
      UserError: features of different widths, none at all, or not finite.
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
    mine, share = to_train < to_other, len(train) / (len(train) + len(held_out))

    def excess(counted: np.ndarray) -> Excess:
        around = [np.bincount(which[counted & side]) for which, side in ((index, mine), (other, ~mine))]
        counts, found = np.concatenate(around), around[0].sum()
        counts, as_many = counts[counts > 0], 0
        for rows in blocks(PERMUTATIONS, 1000):
            trained = rng.random((rows.stop - rows.start, len(counts)), np.float32) < share
            as_many += (trained @ counts.astype(np.float32) >= found).sum()
        # Those that are no copies are spread over both sets, so the ones around held-out examples tell how many.
        beyond = (found - around[1].sum() * share / (1 - share)) / len(samples)
        return Excess(float(beyond), float((1 + as_many) / (1 + PERMUTATIONS)))

    return Memorization(
        nearest=index,
        distance=distance,
        held_out=reference,
        threshold=threshold,
        near=bootstrap(np.mean, (distance < threshold).astype(float), seed=seed),
        close=excess(np.minimum(to_train, to_other) < threshold),
        overall=excess(np.full(len(samples), True)),
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
