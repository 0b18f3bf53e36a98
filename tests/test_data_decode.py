import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.decode import dynamic_binarize, to_uint8, to_unit


def test_pixels_survive_the_way_to_the_unit_interval_and_back():
    image = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(to_unit(image)), image)
    np.testing.assert_array_equal(to_uint8(jnp.array([-0.1, 1.7])), [0, 255])


def test_each_pixel_is_one_with_the_probability_of_its_intensity():
    image = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    draws = 20_000
    mean = dynamic_binarize(jnp.repeat(image, draws, axis=0), jax.random.key(0)).mean(0).ravel()
    p = np.arange(256) / 255
    assert mean[0] == 0
    assert mean[255] == 1
    assert (np.abs(mean - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 2e-5).all()


def test_pixels_are_independent_also_those_that_share_a_random_word():
    x = np.asarray(dynamic_binarize(jnp.full((20_000, 1, 3, 1), 128, jnp.uint8), jax.random.key(1))).reshape(-1, 3)
    correlation = np.corrcoef(x.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(x))
