"""What latents have learnt: how many of them say anything of the data and how much, and if each says one thing.

A posterior is a diagonal normal, `mu` and `logvar` [N, D] for N examples, and the prior is the standard normal; all in
nats, in float64. Codes [N, D] are the means. Factors, int [N, F], are what the examples are known to have been made
from; the scores that need them follow the definitions that Locatello et al. 2019 compare, at any N.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxgen.errors import UserError
from jaxgen.metrics.fidelity import blocks, checked

ACTIVE = 0.01  # Burda et al. 2016, section 5.2: the least variance of the mean of a latent that is in use


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness, each at most 1."""

    disentanglement: float
    completeness: float
    informativeness: float


# Posteriors -----------------------------------------------------------------------------------------------------------


def kl(mu: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """KL(q(z_d | x_n) || p(z_d)) for each example and dimension, [N, D] (Kingma & Welling 2014, appendix B)."""
    mu, logvar = _posterior(mu, logvar)
    return 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar)


def active_units(mu: np.ndarray, *, threshold: float = ACTIVE) -> np.ndarray:
    """Which dimensions are in use, bool [D]: their mean varies by more than the threshold over the data.

    Burda et al. 2016, section 5.2: Var_x(E[z_d | x]) > 0.01.
    """
    return checked(mu, "means", 2).astype(np.float64).var(axis=0, ddof=1) > threshold


def collapse(mu: np.ndarray, *, threshold: float = ACTIVE) -> str | None:
    """A sentence that names the dimensions that are not in use, counted from 0; None where all are."""
    active = active_units(mu, threshold=threshold)
    unused = np.flatnonzero(~active)
    if not len(unused):
        return None
    runs = np.split(unused, np.flatnonzero(np.diff(unused) > 1) + 1)
    names = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    many = "s" if len(unused) > 1 else ""
    return (
        f"the posterior has collapsed in {len(unused)} of {len(active)} latent dimensions, number{many} {names}: over "
        f"the data the mean varies by no more than {threshold:g} there"
    )


def information(mu: np.ndarray, logvar: np.ndarray, *, seed: int = 0, block: int = 1024) -> np.ndarray:
    """What a latent tells of which example it comes from, [N]; the mean is the mutual information I(x; z).

    E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z)), q(z) the mean of all N posteriors (Hoffman & Johnson 2016);
    so `kl(mu, logvar).sum(1) - information(mu, logvar)` has the mean KL(q(z) || p(z)), the distance of the aggregate
    posterior from the prior. One z is drawn from each posterior. N examples can tell at most log N, and no value
    exceeds it: where the mean comes near, ask more examples.

    Args:
      mu: [N, D].
      logvar: [N, D].
      seed: of the draws.
      block: rows of the matrix [N, N] that are in memory at once.
    """
    mu, logvar = _posterior(mu, logvar)
    count, precision = len(mu), np.exp(-logvar)
    z = mu + np.exp(0.5 * logvar) * np.random.default_rng(seed).standard_normal(mu.shape)
    constant = -0.5 * (logvar + mu**2 * precision).sum(axis=1)  # log 2 pi cancels
    values = np.empty(count)
    for rows in blocks(count, block):
        log_q = z[rows] @ (mu * precision).T - 0.5 * z[rows] ** 2 @ precision.T + constant  # log q(z_n | x_m)
        own = np.diagonal(log_q, rows.start)
        values[rows] = own - _log_mean_exp(log_q)
    return values


def _log_mean_exp(x: np.ndarray) -> np.ndarray:
    """[A, B] -> [A]."""
    most = x.max(axis=1, keepdims=True)
    return most[:, 0] + np.log(np.exp(x - most).mean(axis=1))


# Disentanglement ------------------------------------------------------------------------------------------------------


def scores(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0, most: int = 1_000) -> dict[str, float]:
    """All five scores of codes [N, D], by name; factors that never change are left out.

    Args:
      codes: [N, D].
      factors: int [N, F].
      seed: of all that is drawn.
      most: examples that DCI and SAP train on, and as many to test them; their cost grows with it.

    Raises:
      UserError: shapes do not fit, numbers are not finite, or fewer than two factors vary.
    """
    codes, factors = _known(codes, factors)
    some = np.random.default_rng(seed).permutation(len(codes))[: 2 * most]
    found = dci(codes[some], factors[some], seed=seed)
    return {
        "MIG": mutual_information_gap(codes, factors),
        "DCI disentanglement": found.disentanglement,
        "DCI completeness": found.completeness,
        "DCI informativeness": found.informativeness,
        "SAP": separated_attribute_predictability(codes[some], factors[some], seed=seed),
        "FactorVAE score": factor_vae_score(codes, factors, seed=seed),
        "BetaVAE score": beta_vae_score(codes, factors, seed=seed),
    }


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, *, bins: int = 20) -> float:
    """MIG, in [0, 1]: how much more the best code tells of a factor than the second best, by the factor's entropy.

    Chen et al. 2018, eq. 6; as in Locatello et al. 2019 of codes cut into `bins` of equal width.
    """
    codes, factors = _known(codes, factors)
    binned = [np.digitize(code, np.histogram(code, bins)[1][:-1]) for code in codes.T]
    told = np.array([[_mutual_information(code, factor) for factor in factors.T] for code in binned])
    entropy = np.array([_mutual_information(factor, factor) for factor in factors.T])
    return float((_gap(told) / entropy).mean())


def dci(
    codes: np.ndarray, factors: np.ndarray, *, method: Literal["boosting", "lasso"] = "boosting", seed: int = 0
) -> DCI:
    """How well each code says one factor, each factor is said by one code, and factors are predicted from codes.

    Eastwood & Williams 2018, section 2. Half of the examples train a predictor of each factor; informativeness is the
    accuracy (boosting) or R^2 (lasso) on the other half. Importances, [D, F], are those of gradient-boosted trees as in
    Locatello et al. 2019, or the sizes of the lasso's weights, codes and factors standardised.
    """
    codes, factors = _known(codes, factors)
    train, test = _halves(len(codes), seed)
    deviation = codes.std(axis=0)
    codes = (codes - codes.mean(axis=0)) / np.where(deviation > 0, deviation, 1)  # to trees it is all the same
    importance, right = np.empty((codes.shape[1], factors.shape[1])), np.empty(factors.shape[1])
    for j, factor in enumerate(factors.T):
        if method == "boosting":
            from sklearn.ensemble import GradientBoostingClassifier

            model = GradientBoostingClassifier(random_state=seed).fit(codes[train], factor[train])
            importance[:, j] = model.feature_importances_
        else:
            from sklearn.linear_model import LassoCV

            factor = (factor - factor.mean()) / factor.std()
            model = LassoCV(random_state=seed).fit(codes[train], factor[train])
            importance[:, j] = np.abs(model.coef_)
        right[j] = model.score(codes[test], factor[test])
    return DCI(disentanglement(importance), completeness(importance), float(right.mean()))


def disentanglement(importance: np.ndarray) -> float:
    """Of importances [D, F]: 1 - the entropy of each code's shares over the factors, to base F, weighted by the code.

    Eastwood & Williams 2018, section 2. 1 where each code matters for one factor alone, 0 for equal shares.
    """
    total = importance.sum(axis=1)
    if not total.any():
        return 0.0
    return float(total @ (1 - _evenness(importance)) / total.sum())


def completeness(importance: np.ndarray) -> float:
    """The same of each factor's shares over the codes: 1 where each factor is said by one code alone."""
    return disentanglement(np.asarray(importance).T)


def separated_attribute_predictability(
    codes: np.ndarray, factors: np.ndarray, *, continuous: bool = False, seed: int = 0
) -> float:
    """SAP: how much better the best single code predicts a factor than the second best, averaged over factors.

    Kumar et al. 2018, section 3. The accuracy of a linear support vector machine on the half of the examples that it
    was not trained on (C = 0.01, classes balanced, as in Locatello et al. 2019), or for `continuous` factors R^2.
    """
    codes, factors = _known(codes, factors)
    if continuous:
        x, y = codes - codes.mean(axis=0), factors - factors.mean(axis=0)
        variance = np.maximum((x**2).sum(axis=0), 1e-12)[:, None] * (y**2).sum(axis=0)
        return float(_gap((x.T @ y) ** 2 / variance).mean())
    from sklearn.svm import LinearSVC

    train, test = _halves(len(codes), seed)
    right = np.empty((codes.shape[1], factors.shape[1]))
    for i, code in enumerate(codes.T[:, :, None]):
        for j, factor in enumerate(factors.T):
            model = LinearSVC(C=0.01, class_weight="balanced", dual=False, random_state=seed)
            right[i, j] = model.fit(code[train], factor[train]).score(code[test], factor[test])
    return float(_gap(right).mean())


def factor_vae_score(
    codes: np.ndarray, factors: np.ndarray, *, votes: int = 10_000, group: int = 64, seed: int = 0
) -> float:
    """How often the code that varies least among examples that share a factor's value tells which factor it is.

    Kim & Mnih 2018, section 4: each vote is of a group of that size, variances are relative to those over all examples,
    codes without any have no vote, and a majority decides what a code stands for. Half as many votes test it.
    """
    codes, factors = _known(codes, factors)
    codes = codes[:, codes.var(axis=0) > 0]
    if not codes.shape[1]:
        return 0.0
    codes, rng = codes / codes.std(axis=0), np.random.default_rng(seed)

    def table(count: int) -> np.ndarray:
        """Votes, [F, D]."""
        factor, rows = _alike(factors, count, group, rng)
        table = np.zeros((factors.shape[1], codes.shape[1]), int)
        for start in range(0, count, 1000):
            some = slice(start, start + 1000)
            least = codes[rows[some]].var(axis=1, ddof=1).argmin(axis=1)
            np.add.at(table, (factor[some], least), 1)
        return table

    meaning, test = table(votes).argmax(axis=0), table(votes // 2)
    return float(test[meaning, np.arange(test.shape[1])].sum() / test.sum())


def beta_vae_score(
    codes: np.ndarray, factors: np.ndarray, *, points: int = 10_000, group: int = 64, seed: int = 0
) -> float:
    """How often a linear classifier tells from the differences of codes which factor the examples of pairs share.

    Higgins et al. 2017, section 3: a point is the mean over a group of pairs of |code - other code|. Half as many
    points test the classifier, a logistic regression as in Locatello et al. 2019.
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = _known(codes, factors)
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        factor, pairs = _alike(factors, count * group, 2, rng, repeat=group)
        x = np.empty((count, codes.shape[1]))
        for start in range(0, count, 1000):
            some = slice(start, start + 1000)
            one, other = codes[pairs.reshape(count, group, 2)[some]].transpose(2, 0, 1, 3)
            x[some] = np.abs(one - other).mean(axis=1)
        return x, factor[::group]

    model = LogisticRegression(max_iter=1000).fit(*draw(points))
    return float(model.score(*draw(points // 2)))


def _alike(
    factors: np.ndarray, count: int, size: int, rng: np.random.Generator, *, repeat: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of random examples that share the value of one factor: which factor [count], rows [count, size].

    The factor is the same for `repeat` groups on end, the value is drawn for each.
    """
    factor = np.repeat(rng.integers(factors.shape[1], size=count // repeat), repeat)
    first, rows = rng.integers(len(factors), size=count), np.empty((count, size), int)
    for j in range(factors.shape[1]):
        _, value, counts = np.unique(factors[:, j], return_inverse=True, return_counts=True)
        order, starts = np.argsort(value, kind="stable"), np.cumsum(counts) - counts
        chosen = np.flatnonzero(factor == j)
        shared = value[first[chosen], None]
        rows[chosen] = order[starts[shared] + rng.integers(counts[shared], size=(len(chosen), size))]
    return factor, rows


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of labels [N], in nats."""
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)) / len(a)
    joint = joint.reshape(a.max() + 1, -1)
    seen = joint > 0
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def _gap(values: np.ndarray) -> np.ndarray:
    """[D, F] -> [F]: the largest of each column less the second largest; 0 is the second of a single code."""
    values = np.sort(np.pad(values, ((1, 0), (0, 0))), axis=0)
    return values[-1] - values[-2]


def _evenness(importance: np.ndarray) -> np.ndarray:
    """[A, B] -> [A]: the entropy of each row's shares, to base B. A row of nothing is even, one column never is."""
    total, width = importance.sum(axis=1, keepdims=True), importance.shape[1]
    shares = np.divide(importance, total, out=np.full(importance.shape, 1 / width), where=total > 0)
    terms = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0)
    return -terms.sum(axis=1) / max(np.log(width), 1e-12)


def _halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def _posterior(mu: np.ndarray, logvar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mu, logvar = checked(mu, "means", 1).astype(np.float64), checked(logvar, "log-variances", 1).astype(np.float64)
    if mu.shape != logvar.shape:
        raise UserError(f"means {list(mu.shape)} and log-variances {list(logvar.shape)}: expected equal shapes")
    return mu, logvar


def _known(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked, without the factors that never change."""
    codes, factors = checked(codes, "codes", 4).astype(np.float64), np.asarray(factors)
    if factors.ndim != 2 or len(factors) != len(codes) or factors.dtype.kind not in "iu":
        raise UserError(
            f"factors: expected integers [{len(codes)}, F], a row for each code, got {factors.dtype} "
            f"{list(factors.shape)}"
        )
    varies = (factors != factors[:1]).any(axis=0)
    if varies.sum() < 2:
        raise UserError(f"factors: {varies.sum()} of {len(varies)} vary over these examples, expected at least 2")
    return codes, factors[:, varies]
