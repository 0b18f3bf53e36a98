from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.augment import colour, cutout, diff_augment, translate

ALL = ("colour", "translation", "cutout")
KEY = jax.random.key(0)


def compiled(policy, **options):
    augment = jax.jit(diff_augment(policy, **options))
    return lambda x, key, p: np.asarray(augment(x, key, np.float32(p)))


augment_all = compiled(ALL)


def images(n=8, size=(16, 24), channels=3):
    return np.random.default_rng(7).uniform(-1, 1, (n, *size, channels)).astype(np.float32)


def each(transform, x, **options):
    u = np.random.default_rng(5).uniform(size=(len(x), 3)).astype(np.float32)
    return np.asarray(jax.jit(jax.vmap(partial(transform, **options)))(x, u))


# Strength


def test_strength_zero_changes_no_bit():
    x = images()
    np.testing.assert_array_equal(augment_all(x, KEY, 0), x)
    np.testing.assert_array_equal(compiled(())(x, KEY, 1), x)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_type_stay(channels, dtype):
    x = jax.ShapeDtypeStruct((3, 16, 24, channels), dtype)
    y = jax.eval_shape(diff_augment(ALL), x, KEY, jnp.ones(()))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_each_transformation_changes_a_share_p_of_the_examples_independently():
    n, augment = 4000, compiled(("colour", "cutout"), fill=5.0)
    for p in (0.0, 0.25, 0.7, 1.0):
        y = augment(np.ones((n, 4, 4, 1), np.float32), KEY, p)
        cut, coloured = (y == 5).any(axis=(1, 2, 3)), ((y != 5) & (y != 1)).any(axis=(1, 2, 3))
        for share, expected in ((cut, p), (coloured, p), (cut & coloured, p * p)):
            np.testing.assert_allclose(share.mean(), expected, atol=5 * np.sqrt(expected * (1 - expected) / n))


# Randomness


def test_an_example_depends_on_the_key_its_index_and_itself():
    x, augment = images(), compiled(("translation", "cutout"))
    y = augment(x, KEY, 0.7)
    np.testing.assert_array_equal(augment(x, KEY, 0.7), y)
    np.testing.assert_array_equal(augment(x[:3], KEY, 0.7), y[:3])
    others = np.arange(8) != 4
    other = np.where(others[:, None, None, None], x, 0)
    np.testing.assert_array_equal(augment(other, KEY, 0.7)[others], y[others])
    assert (augment(x, jax.random.key(1), 0.7) != y).any()
    alike = augment(np.repeat(x[:1], 8, axis=0), KEY, 1)
    assert len({image.tobytes() for image in alike}) == 8


def test_seeds_train_at_once():
    x, keys, p = images(), jax.random.split(KEY, 3), np.array([0, 0.5, 1], np.float32)
    together = jax.jit(jax.vmap(diff_augment(ALL), (None, 0, 0)))(x, keys, p)
    for i in range(3):
        np.testing.assert_allclose(together[i], augment_all(x, keys[i], p[i]), atol=1e-5)


# Translation


def test_translation_moves_by_every_distance_up_to_an_eighth():
    size = (16, 24)
    x = np.zeros((2000, *size, 2), np.float32)
    x[:, 8, 12] = 1, 2
    y = each(translate, x)
    np.testing.assert_array_equal(y.sum(axis=(1, 2)), np.tile([1, 2], (2000, 1)))  # channels move together
    example, row, column = np.nonzero(y[..., 0])
    np.testing.assert_array_equal(example, range(2000))
    np.testing.assert_array_equal(y[example, row, column, 1], 2)
    counts = np.zeros((5, 7))
    np.add.at(counts, (row - 6, column - 9), 1)
    np.testing.assert_allclose(counts / 2000, 1 / 35, atol=5 * np.sqrt(1 / 35 / 2000))


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_translation_brings_in_the_fill(fill):
    x = images(64, size=(16, 16), channels=1) + 5
    for before, after in zip(x, each(translate, x, fill=fill), strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), constant_values=fill)
        assert any((padded[i : i + 16, j : j + 16] == after).all() for i in range(5) for j in range(5))


def test_a_small_image_stays_where_it_is():
    x = images(size=(3, 3))
    np.testing.assert_array_equal(each(translate, x), x)


# Cutout


@pytest.mark.parametrize("size", [(16, 24), (7, 9), (1, 1)])
def test_a_hole_is_a_rectangle_of_half_the_size(size):
    x = np.ones((3000, *size, 2), np.float32)
    y = each(cutout, x, fill=-1.0)
    assert set(np.unique(y)) <= {-1.0, 1.0}
    hole = y == -1
    np.testing.assert_array_equal(hole[..., 0], hole[..., 1])
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None])
    for line, length in ((rows, size[0]), (columns, size[1])):
        half = int(length / 2 + 0.5)
        # By the centre: all places are equally likely, and part of the hole may lie outside.
        places = length + 1 - half % 2
        expected = [
            sum(first <= i < first + half for first in range(-(half // 2), places - half // 2)) for i in range(length)
        ]
        np.testing.assert_allclose(line.mean(0), np.array(expected) / places, atol=5 * 0.5 / np.sqrt(3000))
        assert line.sum(1).max() == half
        assert line.sum(1).min() >= min(half // 2, 1)


def test_no_gradient_comes_out_of_a_hole():
    x, augment = images() + 5, diff_augment(("cutout",))

    @jax.jit
    def outcome(x):
        y, pull = jax.vjp(lambda x: augment(x, KEY, 1.0), x)
        return y, pull(jnp.ones_like(y))[0]

    y, gradient = map(np.asarray, outcome(x))
    assert (y == 0).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(gradient, np.where(y == 0, 0, 1))


# Colour


def test_colour_of_grey_images_is_an_affine_map():
    x = images(500, size=(4, 4), channels=1)
    y = each(colour, x)
    shift = y.mean(axis=(1, 2, 3)) - x.mean(axis=(1, 2, 3))
    scale = y.std(axis=(1, 2, 3)) / x.std(axis=(1, 2, 3))
    centred = x - x.mean(axis=(1, 2, 3), keepdims=True)
    expected = x.mean(axis=(1, 2, 3), keepdims=True) + shift[:, None, None, None] + scale[:, None, None, None] * centred
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for value, low, high in ((shift, -0.5, 0.5), (scale, 0.5, 1.5)):  # uniform
        assert low - 1e-5 <= value.min() < value.max() <= high + 1e-5
        np.testing.assert_allclose(np.sort(value), np.linspace(low, high, 500), atol=2 / np.sqrt(500))
    assert abs(np.corrcoef(shift, scale)[0, 1]) < 5 / np.sqrt(500)


def test_saturation_scales_the_distance_from_grey():
    x = images(500, size=(4, 4))
    y = each(colour, x)
    grey_x, grey_y = x.mean(-1, keepdims=True), y.mean(-1, keepdims=True)
    contrast = grey_y.std(axis=(1, 2, 3)) / grey_x.std(axis=(1, 2, 3))
    both = (y - grey_y).std(axis=(1, 2, 3)) / (x - grey_x).std(axis=(1, 2, 3))
    saturation = both / contrast
    assert 0 <= saturation.min() < saturation.max() <= 2 + 1e-4
    np.testing.assert_allclose(np.sort(saturation), np.linspace(0, 2, 500), atol=4 / np.sqrt(500))
    scale = (contrast * saturation)[:, None, None, None]
    np.testing.assert_allclose(y - grey_y, scale * (x - grey_x), atol=1e-5)


# Gradients


def test_gradients_of_an_affine_map():
    """J v is the difference that v makes, and J^T is the transpose of J."""
    x, v, w = images(), images() * np.float32(0.1), images()[::-1]

    @jax.jit
    def derivatives(x):
        y, push = jax.linearize(lambda x: diff_augment(ALL)(x, KEY, 0.8), x)
        return y, push(v), jax.linear_transpose(push, x)(w)[0]

    y, forward, back = map(np.asarray, derivatives(x))
    np.testing.assert_allclose(forward, augment_all(x + v, KEY, 0.8) - y, atol=1e-5)
    np.testing.assert_allclose((v * back).sum(), (forward * w).sum(), rtol=1e-4)


def test_a_gradient_penalty_can_be_minimised_through_it():
    """R1 of D(x) = w |A x|^2 / 2 is w^2 |A x|^2 where A does no more than move and remove pixels."""
    x, augment = images() + 5, diff_augment()

    def penalty(w):
        gradient = jax.grad(lambda x: w * (augment(x, KEY, 1.0) ** 2).sum() / 2)(x)
        return (gradient**2).sum(), (augment(x, KEY, 1.0) ** 2).sum()

    slope, square = jax.jit(jax.grad(penalty, has_aux=True))(3.0)
    np.testing.assert_allclose(slope, 6 * square, rtol=1e-5)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match=r"'color': expected a sequence of translation, cutout, colour"):
        diff_augment(("cutout", "color"))
