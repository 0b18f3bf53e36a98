"""Measures of samples equal their closed forms and their definitions, loop by loop; bad input is told in a line."""

import math
import re
from functools import partial

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.metrics import fidelity as f


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def sets(rng):
    """Two overlapping sets of unequal size, stored as networks store them."""
    real = rng.normal(size=(211, 6)).astype(np.float32)
    return real, (0.9 * rng.normal(size=(173, 6)) + 0.4).astype(np.float32)


def with_moments(rng, mean, covariance, count=500):
    """Examples whose mean and unbiased covariance are exactly these."""
    x = rng.normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    values, vectors = np.linalg.eigh(covariance)
    return whitened @ (vectors * np.sqrt(np.maximum(values, 0))).T + mean


def distances(x, y):
    return np.array([[math.dist(a, b) for b in y] for a in x])


def test_moments_equal_numpy_over_several_blocks(rng):
    x = rng.normal(size=(5000, 3)).astype(np.float32) + 100
    mean, covariance = f.moments(x)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.T.astype(np.float64)), rtol=1e-9, atol=1e-12)


def test_frechet_distance_of_commuting_covariances(rng):
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    a, b, gap = np.array([1.0, 4.0, 0.0, 2.0]), np.array([9.0, 1.0, 0.25, 0.0]), np.array([1.0, -2.0, 0.5, 0.0])
    real = with_moments(rng, np.zeros(4), rotation * a @ rotation.T)
    fake = with_moments(rng, gap, rotation * b @ rotation.T)
    expected = gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert f.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_equals_the_textbook_formula_and_is_symmetric(sets):
    from scipy.linalg import sqrtm

    real, fake = sets
    (m, c), (n, d) = f.moments(real), f.moments(fake)
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert f.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    assert f.frechet_distance(f.Moments(n, d), real) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_translation_is_its_square(sets):
    real, _ = sets
    assert f.frechet_distance(real, real.astype(np.float64) + 3) == pytest.approx(6 * 9, rel=1e-9)


@pytest.mark.parametrize("count", [2, 20, 300])
def test_identical_sets_are_at_no_frechet_distance_even_with_covariances_of_low_rank(rng, count):
    x = rng.normal(size=(count, 100)) * 10
    assert f.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert f.frechet_distance(np.ones((count, 3)), np.ones((count, 3))) == 0


def test_frechet_interval_is_as_wide_as_resampling_the_distance_makes_it(rng):
    real, fake = rng.normal(size=(2000, 5)), rng.normal(size=(1000, 5)) * np.linspace(0.5, 1.5, 5) + 0.2
    whole = f.bootstrap(partial(f.frechet_distance, f.moments(real)), fake, resamples=200)
    linear = f.measures(real, fake, ["frechet"])["frechet"]
    assert linear.value == pytest.approx(whole.value, rel=1e-9)
    assert linear.value == pytest.approx(f.frechet_distance(real, fake), rel=1e-9)
    assert linear.high - linear.low == pytest.approx(whole.high - whole.low, rel=0.2)


def test_kernel_distance_equals_the_double_sums(sets):
    real, fake = (x[:40].astype(np.float64) for x in sets)

    def k(a, b):
        return (float(a @ b) / 6 + 1) ** 3

    pairs = [(i, j) for i in range(40) for j in range(40)]
    within = sum(k(x[i], x[j]) for x in (real, fake) for i, j in pairs if i != j) / (40 * 39)
    across = sum(k(real[i], fake[j]) for i, j in pairs) / 40**2
    assert f._squared_mmd(real, fake) == pytest.approx(within - 2 * across, rel=1e-9)


def test_kernel_distance_is_unbiased_and_sees_a_difference(rng):
    real, same = rng.normal(size=(2, 4000, 8))
    mean, deviation = f.kernel_distance(real, same, subset_size=200)
    assert abs(mean) < 3 * deviation / 10
    assert f.kernel_distance(real, same + 1, subset_size=200)[0] > 1
    assert f.kernel_distance(real, same, subset_size=200) == (mean, deviation)
    assert f.kernel_distance(real, same, subset_size=200, seed=1) != (mean, deviation)


def test_kernel_distance_shrinks_its_subsets_to_half_of_the_smaller_set(sets):
    real, fake = sets
    assert f.kernel_distance(real, fake) == f.kernel_distance(real, fake, subset_size=173 // 2)


def test_kernel_interval_is_as_wide_as_new_data_scatter(rng):
    draws = [
        f.measures(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 1, ["kernel"])["kernel"] for _ in range(60)
    ]
    scatter = 2 * 1.96 * np.std([draw.value for draw in draws])
    assert np.mean([draw.high - draw.low for draw in draws]) == pytest.approx(scatter, rel=0.35)


def test_prdc_equals_the_definitions(sets):
    real, fake = sets
    across, real_radii, fake_radii = distances(fake, real), *(np.sort(distances(x, x)) for x in sets)
    assert f.prdc(real, fake) == pytest.approx(
        {
            "precision": np.mean([any(row[i] <= real_radii[i, 3] for i in range(211)) for row in across]),
            "recall": np.mean([any(column[j] <= fake_radii[j, 3] for j in range(173)) for column in across.T]),
            "density": sum(across[j, i] <= real_radii[i, 5] for i in range(211) for j in range(173)) / (5 * 173),
            "coverage": np.mean([any(d <= real_radii[i, 5] for d in column) for i, column in enumerate(across.T)]),
        }
    )


@pytest.mark.parametrize("block", [7, 64, 173, 1000])
def test_blocks_do_not_change_the_result(sets, block):
    assert f.prdc(*sets, block=block) == f.prdc(*sets)


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_identical_sets_are_precise_and_covered_however_close_their_examples(rng, offset, scale):
    x = rng.normal(size=(300, 50)) * scale + offset
    x[100:200] = x[:100]  # each twice
    x[200:210] = x[0] + 1e-9 * rng.normal(size=(10, 50))
    result, density = f.prdc(x, x[::-1], block=70), f.prdc(x, x)["density"]
    assert (result["precision"], result["recall"], result["coverage"]) == (1, 1, 1)
    assert result["density"] == pytest.approx(density, rel=1e-12)


def test_prdc_of_a_collapsed_generator_and_of_one_far_off(rng):
    real = rng.normal(size=(400, 4))
    collapsed = f.prdc(real, np.repeat(real[:1], 400, axis=0))
    assert collapsed["precision"] == 1
    assert collapsed["recall"] <= 1 / 400
    assert collapsed["coverage"] < 0.1
    assert set(f.prdc(real, real + 100).values()) == {0}


def test_classifier_score_by_hand():
    assert f.classifier_score(np.eye(4)) == pytest.approx(4)
    assert f.classifier_score(np.full((7, 4), 0.25)) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    q = [0.65, 0.35]
    kl = sum(p[i, k] * math.log(p[i, k] / q[k]) for i in range(2) for k in range(2)) / 2
    assert f.classifier_score(p) == pytest.approx(math.exp(kl))


def test_modes_by_hand():
    assert f.mode_coverage(np.arange(10), 10) == (10, 0)
    assert f.mode_coverage(np.array([3, 3, 3]), 10) == (1, pytest.approx(math.log(10)))
    hit, kl = f.mode_coverage(np.array([0, 0, 0, 2], np.uint8), 3, np.array([10, 20, 10]))
    assert (hit, kl) == (2, pytest.approx(0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.25)))
    assert f.mode_coverage(np.array([0, 1]), 2, np.array([1, 0])) == (2, math.inf)


def test_mixture_modes_by_hand():
    centers = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = np.array([[0.1, 0.1], [0.0, 0.0], [1.0, 0.29], [0.5, 0.5], [0.0, 1.31]])
    assert f.mixture_modes(points, centers, 0.1) == (0.6, 2)


def test_mixture_modes_of_the_mixture_itself(rng):
    centers = np.stack(np.meshgrid(range(5), range(5)), -1).reshape(25, 2).astype(np.float64)
    points = np.repeat(centers, 400, axis=0) + 0.05 * rng.normal(size=(10_000, 2))
    quality, hit = f.mixture_modes(points, centers, 0.05)
    assert hit == 25
    assert quality == pytest.approx(1 - math.exp(-4.5), abs=0.003)  # a Rayleigh variable below 3


def test_bootstrap_covers_as_often_as_it_says_and_repeats_from_its_seed(rng):
    intervals = [f.bootstrap(np.mean, rng.normal(size=50), resamples=100, level=0.8) for _ in range(150)]
    assert np.mean([low <= 0 <= high for _, low, high in intervals]) == pytest.approx(0.8, abs=0.09)
    x = rng.normal(size=50)
    assert f.bootstrap(np.mean, x, seed=1) == f.bootstrap(np.mean, x, seed=1) != f.bootstrap(np.mean, x, seed=2)


def test_bootstrap_resamples_arrays_alike_and_keeps_a_biased_value_inside(rng):
    x = rng.normal(size=100)
    assert f.bootstrap(lambda a, b: abs(a - b).max(), x, x.copy(), resamples=20) == (0, 0, 0)
    labels = rng.integers(500, size=1000)  # the KL of a resample is about twice that of the labels
    kl = f.bootstrap(lambda labels: f.mode_coverage(labels, 500).kl, labels, resamples=50)
    assert kl.low < kl.value < kl.high


def test_measures_are_in_the_order_asked_for_and_say_what_the_functions_say(sets):
    result = f.measures(*sets, ["prdc", "kernel", "frechet"], seed=3, resamples=100)
    assert list(result) == ["precision", "recall", "density", "coverage", "kernel", "frechet"]
    expected = f.prdc(*sets) | {
        "kernel": f.kernel_distance(*sets, seed=3)[0],
        "frechet": f.frechet_distance(*sets),
    }
    assert {name: figure.value for name, figure in result.items()} == pytest.approx(expected, rel=1e-9)
    assert all(figure.low <= figure.value <= figure.high for figure in result.values())
    assert result == f.measures(*sets, ["prdc", "kernel", "frechet"], seed=3, resamples=100)
    assert re.fullmatch(r"0\.\d+ \(0\.\d+ to 0\.\d+\)", str(result["precision"]))


GOOD = np.random.default_rng(0).normal(size=(10, 3))
HOLED = np.where(np.arange(10)[:, None] == 4, np.nan, GOOD)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.measures(GOOD, GOOD, ["frechett"]), "'frechett': did you mean frechet?.*frechet, kernel, prdc"),
        (lambda: f.measures(GOOD, GOOD, ["x"]), "unknown measure 'x': expected some of"),
        (lambda: f.frechet_distance(GOOD, GOOD[:1]), "needs at least 2 examples, got 1"),
        (lambda: f.frechet_distance(GOOD, GOOD[:, :2]), "different widths, 3 and 2"),
        (lambda: f.kernel_distance(GOOD[:3], GOOD), "real features: this measure needs at least 4 examples, got 3"),
        (lambda: f.prdc(GOOD, GOOD[:5]), "generated features: this measure needs at least 6 examples, got 5"),
        (lambda: f.prdc(GOOD, GOOD[:, :2]), "different widths"),
        (lambda: f.prdc(GOOD, GOOD[:, None]), r"expected an array \[N, D\], got shape \[10, 1, 3\]"),
        (lambda: f.moments(GOOD[:, :0]), r"got shape \[10, 0\]"),
        (lambda: f.prdc(GOOD, HOLED), "generated features: 1 of 10 examples hold numbers that are not finite"),
        (lambda: f.frechet_distance(GOOD / 0.0, GOOD), "10 of 10 examples"),
        (lambda: f.classifier_score(np.full((2, 2), 0.4)), "sum 0.8"),
        (lambda: f.classifier_score(np.array([[1.5, -0.5]])), "rows >= 0 of sum 1, got -0.5"),
        (lambda: f.classifier_score(np.ones(3)), r"got shape \[3\]"),
        (lambda: f.mode_coverage(np.array([0, 3]), 3), "expected 0 to 2, got 0 to 3"),
        (lambda: f.mode_coverage(np.array([-1, 2]), 3), "got -1 to 2"),
        (lambda: f.mode_coverage(np.array([0.5]), 3), "expected integers"),
        (lambda: f.mode_coverage(np.array([], int), 3), "N at least 1"),
        (lambda: f.mode_coverage(np.array([0]), 3, np.ones(2)), r"3 modes, not all 0, got shape \[2\]"),
        (lambda: f.mixture_modes(GOOD, np.zeros((2, 2)), 0.1), "different widths"),
    ],
)
def test_bad_input_is_told_in_a_line(call, message):
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
