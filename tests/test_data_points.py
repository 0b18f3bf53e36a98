import numpy as np
import pytest

from jaxgen.data.points import SIGMA, centers, load_points
from jaxgen.errors import UserError


def test_centers():
    grid, ring = centers("grid"), centers("ring")
    assert grid.shape == (25, 2)
    assert {tuple(mean) for mean in grid} == {(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)}
    root = np.sqrt(0.5)
    eight = [(1, 0), (root, root), (0, 1), (-root, root), (-1, 0), (-root, -root), (0, -1), (root, -root)]
    np.testing.assert_allclose(ring, eight, atol=1e-15)
    assert grid.dtype == ring.dtype == np.float64


@pytest.mark.parametrize("name", SIGMA)
def test_entries(name):
    data = load_points(name)
    modes = len(centers(name))
    assert data.name == name
    assert len(data) == 100_000
    assert len(data.test["point"]) == len(data.test["label"]) == 10_000
    assert data.spec.entries == {"point": ((2,), "float32"), "label": ((), "int32")}
    assert data.classes == tuple(str(mode) for mode in range(modes))
    assert f"sigma {SIGMA[name]}" in data.source


# Variance of all points along either axis: that of the means, (16 + 4 + 0 + 4 + 16) / 5 or 1 / 2, and sigma^2.
@pytest.mark.parametrize(("name", "sigma", "spread"), [("grid", None, 8), ("ring", None, 0.5), ("ring", 0.1, 0.5)])
def test_moments(name, sigma, spread):
    data = load_points(name, sigma=sigma)
    sigma, means = sigma or SIGMA[name], centers(name)
    point, label = data.train["point"].astype(np.float64), data.train["label"]
    count, modes = len(point), len(means)
    variance = spread + sigma**2
    np.testing.assert_allclose(point.mean(0), 0, atol=5 * np.sqrt(variance / count))
    np.testing.assert_allclose(np.cov(point.T), variance * np.eye(2), atol=0.01 * variance + 5 * spread / count**0.5)

    share = np.bincount(label, minlength=modes) / count
    np.testing.assert_allclose(share, 1 / modes, atol=5 / np.sqrt(modes * count))
    noise = (point - means[label]) / sigma  # standard normal
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=5 * np.sqrt(2 / count))
    np.testing.assert_allclose((noise**4).mean(0), 3, atol=5 * np.sqrt(96 / count))
    for mode in range(modes):
        own = noise[label == mode]
        np.testing.assert_allclose(own.mean(0), 0, atol=5 / np.sqrt(len(own)))


@pytest.mark.parametrize("name", SIGMA)
def test_labels_name_the_nearest_center(name):
    data = load_points(name, count=5000)
    for arrays in (data.train, data.test):
        distance = np.linalg.norm(arrays["point"][:, None] - centers(name), axis=-1)
        np.testing.assert_array_equal(distance.argmin(1), arrays["label"])


def test_the_same_every_time():
    first, again = load_points("grid", count=1000), load_points("grid", count=1000)
    np.testing.assert_array_equal(first.train["point"], again.train["point"])
    assert first.spec == again.spec
    on_every_machine = [[4.067772, -1.9998894], [1.9604727, -3.992906]]
    np.testing.assert_allclose(first.train["point"][:2], on_every_machine, rtol=1e-6)
    # The test points are others, and the same for any number of training points.
    np.testing.assert_array_equal(load_points("grid", count=7).test["point"], first.test["point"])
    assert not np.isin(first.test["point"], first.train["point"]).all(axis=1).any()
    assert load_points("grid", count=1000, sigma=0.1).spec.digest != first.spec.digest


def test_what_cannot_be_drawn():
    with pytest.raises(UserError, match=r"'rign', did you mean ring\? Expected one of grid, ring"):
        load_points("rign")
    with pytest.raises(UserError, match=r"'zzz': Expected one of grid, ring"):
        centers("zzz")
    for count in (0, -3):
        with pytest.raises(UserError, match=rf"{count} points of ring: expected at least 1"):
            load_points("ring", count=count)
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UserError, match=rf"sigma {sigma} of ring: expected a positive number, such as 0.01"):
            load_points("ring", sigma=sigma)
    assert len(load_points("ring", count=1)) == 1
