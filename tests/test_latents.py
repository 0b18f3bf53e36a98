"""What is said of latents equals closed forms and definitions; scores of disentanglement meet their published cases."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxgen.errors import UserError
from jaxgen.metrics import latents as l


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def factors(rng):
    """Ten factors of ten values, as in the tests of Locatello et al. 2019."""
    return rng.integers(10, size=(3000, 10))


CASES = {
    "identity": lambda x: x.astype(float),
    "bad": lambda x: np.zeros(x.shape),
    "duplicated": lambda x: np.hstack([x, x]).astype(float),
}


def test_kl_is_that_of_two_normals(rng):
    mu, logvar = rng.normal(size=(2, 5, 3))
    z = np.linspace(-30, 30, 20_001)
    for n in range(5):
        for d in range(3):
            q = stats.norm(mu[n, d], math.exp(logvar[n, d] / 2))
            integral = np.trapezoid(q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), z)
            assert l.kl(mu, logvar)[n, d] == pytest.approx(integral, abs=1e-6)


def test_unused_dimensions_are_named(rng):
    mu = rng.normal(size=(500, 6))
    assert l.collapse(mu) is None
    mu *= [1, 0.01, 1, 0, 0.05, 0.2]
    assert l.active_units(mu).tolist() == [True, False, True, False, False, True]
    assert l.collapse(mu) == (
        "the posterior has collapsed in 3 of 6 latent dimensions, numbers 1, 3 to 4: over the data the mean varies by "
        "no more than 0.01 there"
    )


def test_information_equals_the_double_sum(rng):
    mu, logvar = rng.normal(size=(7, 2)), rng.normal(size=(7, 2)) - 1
    z = mu + np.exp(logvar / 2) * np.random.default_rng(3).standard_normal((7, 2))
    density = np.array(
        [[stats.norm(m, np.exp(s / 2)).pdf(a).prod() for m, s in zip(mu, logvar, strict=True)] for a in z]
    )
    expected = np.log(np.diag(density) / density.mean(axis=1))
    for block in (1, 3, 100):
        np.testing.assert_allclose(l.information(mu, logvar, seed=3, block=block), expected, rtol=1e-9)


def test_information_and_divergence_in_the_cases_that_are_known(rng):
    """Nothing is told; all is told; and a Gaussian channel, whose aggregate is the prior."""
    same = np.full((300, 2), 0.7), np.full((300, 2), -1.0)
    np.testing.assert_allclose(l.information(*same), 0, atol=1e-9)
    apart = 100.0 * np.arange(300)[:, None], np.zeros((300, 1))
    np.testing.assert_allclose(l.information(*apart), math.log(300), atol=1e-9)
    variance = 0.4  # z = mean + noise, both normal, of total variance 1
    mu = math.sqrt(1 - variance) * rng.standard_normal((1500, 2))
    logvar = np.full(mu.shape, math.log(variance))
    told = l.information(mu, logvar, seed=1)
    assert told.mean() == pytest.approx(-math.log(variance), abs=0.08)  # I = -1/2 log variance of each dimension
    assert abs((l.kl(mu, logvar).sum(1) - told).mean()) < 0.05
    shifted = l.kl(mu + 1, logvar).sum(1) - l.information(mu + 1, logvar, seed=1)
    assert shifted.mean() == pytest.approx(1, abs=0.15)  # KL(N(1, 1) || N(0, 1)) = 1/2 of each dimension


def test_mig(factors):
    found = {name: l.mutual_information_gap(code(factors), factors) for name, code in CASES.items()}
    assert found["identity"] >= 0.9
    assert found["bad"] <= 0.2
    assert found["duplicated"] <= 0.1
    # One code for a bit and one that tells half of another: (1 + H(1/4) - 3/4 H(1/3)) / 2 bits, at infinitely many.
    a, b, c = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)] * 5).T
    told = stats.entropy([0.25, 0.75]) - 0.5 * stats.entropy([0.5, 0.5])
    expected = (1 + told / math.log(2)) / 2
    assert l.mutual_information_gap(np.stack([a, b * c], 1), np.stack([a, b], 1)) == pytest.approx(expected)


def test_sap(factors):
    found = {
        name: l.separated_attribute_predictability(code(factors), factors, continuous=True)
        for name, code in CASES.items()
    }
    assert found["identity"] >= 0.9
    assert found["bad"] <= 0.2
    assert found["duplicated"] <= 0.2
    few = factors[:300, :2] % 2
    assert l.separated_attribute_predictability(few.astype(float), few) > 0.4  # the second best is right by chance
    assert l.separated_attribute_predictability(np.hstack([few, few]), few) < 0.01


@pytest.mark.parametrize(
    ("importance", "disentanglement", "completeness"),
    [
        (5 * np.eye(5), 1, 1),
        (np.array([[1, 0], [0, 1], [0, 0]]), 1, 1),
        (np.zeros((10, 10)), 0, 0),
        (np.vstack([np.eye(5), np.eye(5)]), 1, 1 - math.log(2) / math.log(10)),
        (np.eye(5)[:2], 1, 1),
        (np.hstack([np.eye(5), np.eye(5)]), 1 - math.log(2) / math.log(10), 1),
        (
            np.array([[3, 1], [0, 2]]),
            1 - 4 / 6 * stats.entropy([3, 1], base=2),
            1 - 3 / 6 * stats.entropy([1, 2], base=2),
        ),
    ],
)
def test_dci_of_importances_has_its_closed_form(importance, disentanglement, completeness):
    assert l.disentanglement(importance) == pytest.approx(disentanglement)
    assert l.completeness(importance) == pytest.approx(completeness)


@pytest.mark.parametrize("method", ["boosting", "lasso"])
def test_dci_of_codes(factors, method):
    few = factors[:200, :3] % 2
    assert min(l.dci(few.astype(float), few, method=method)) > 0.95


def test_dci_of_codes_that_are_not_as_they_should_be(factors, rng):
    few = factors[:200, :3] % 2
    twice = l.dci(np.hstack([few, few]).astype(float), few)  # of two equal codes, trees take either
    assert twice.disentanglement > 0.9
    assert twice.completeness == pytest.approx(1 - math.log(2) / math.log(6), abs=0.1)
    mixed = l.dci(rng.permuted(factors[:, :3], axis=1).astype(float), factors[:, :3], method="lasso")
    assert max(mixed.disentanglement, mixed.completeness) < 0.2


@pytest.mark.parametrize("score", [l.factor_vae_score, l.beta_vae_score])
def test_scores_of_what_examples_share(factors, score):
    few, size = factors[:, :4], {"votes": 1000} if score is l.factor_vae_score else {"points": 400}
    assert score(few.astype(float), few, **size) > 0.99
    assert score(np.zeros((3000, 4)), few, **size) < 0.35
    assert score(np.hstack([few, few]).astype(float), few, **size) > 0.99


def test_scores_do_not_depend_on_scale_sign_and_order_of_codes(factors):
    """And leave out a factor that never changes."""
    few = factors[:200, :2] % 2
    codes = few + 0.3 * np.random.default_rng(1).standard_normal(few.shape)
    one = l.scores(codes, few)
    other = l.scores(-codes[:, ::-1] * 4, np.hstack([few, np.full((200, 1), 7)]))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=0.06), name
        assert -1e-9 <= one[name] <= 1


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros(5), np.zeros((5, 2), int), "codes: expected an array"),
        (np.full((5, 2), np.nan), np.zeros((5, 2), int), "5 of 5 examples hold numbers that are not finite"),
        (np.zeros((5, 2)), np.zeros((4, 2), int), r"factors: expected integers \[5, F\]"),
        (np.zeros((5, 2)), np.zeros((5, 2)), r"factors: expected integers \[5, F\].* got float64"),
        (np.zeros((5, 2)), np.zeros((5, 2), int), "0 of 2 vary"),
    ],
)
def test_bad_input_is_said(codes, factors, message):
    with pytest.raises(UserError, match=message):
        l.scores(codes, factors)
    with pytest.raises(UserError, match=r"means \[3, 2\] and log-variances \[3, 1\]"):
        l.kl(np.zeros((3, 2)), np.zeros((3, 1)))
