"""Probabilities sum to one, closed-form divergences equal what sampling says, nothing overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import check_frequencies
from scipy import stats

from jaxgen import distributions as d
from jaxgen.emissions import bernoulli, discretized_logistic, normal


def test_bernoulli_equals_the_definition_and_is_finite_far_out():
    logits = jnp.array([-3.0, 0.0, 2.0, -1e4, 1e4])
    x = jnp.array([0.0, 1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(
        d.bernoulli_log_prob(x, logits)[:3],
        stats.bernoulli.logpmf([0, 1, 1], 1 / (1 + np.exp([3.0, 0.0, -2.0]))),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(d.bernoulli_log_prob(x, logits)[3:], [0, 0])
    assert np.isfinite(jax.grad(lambda logits: d.bernoulli_log_prob(1 - x, logits).sum())(logits)).all()
    slope = jax.grad(lambda logits: d.bernoulli_log_prob(x[:3], logits).sum())(logits[:3])
    np.testing.assert_allclose(slope, x[:3] - jax.nn.sigmoid(logits[:3]), rtol=1e-6)  # at 0, too


def test_normal_equals_scipy():
    x, mu, logvar = jnp.array([0.3, -2.0]), jnp.array([0.1, 1.0]), jnp.array([-1.0, 2.0])
    expected = stats.norm.logpdf(x, mu, np.exp(0.5 * np.asarray(logvar)))
    np.testing.assert_allclose(d.normal_log_prob(x, mu, logvar), expected, rtol=1e-5)


@pytest.mark.parametrize("p", [(0.0, 0.0), (0.7, -0.5)])
def test_normal_kl_equals_monte_carlo(p):
    mu, logvar, n = 1.2, -0.8, 400_000
    z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.key(0), (n,))
    ratio = d.normal_log_prob(z, mu, jnp.asarray(logvar)) - d.normal_log_prob(z, p[0], jnp.asarray(p[1]))
    error = float(ratio.std()) / np.sqrt(n)
    assert abs(float(d.normal_kl(jnp.asarray(mu), jnp.asarray(logvar), *p)) - float(ratio.mean())) < 4 * error


@pytest.mark.parametrize("mu", [-0.5, 0.0, 0.31, 1.0, 3.0])
@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0, 2.0])
def test_discretized_logistic_sums_to_one(mu, log_scale):
    levels = jnp.arange(256) / 255
    log_prob = d.discretized_logistic_log_prob(levels, jnp.asarray(mu), jnp.asarray(log_scale))
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1, atol=2e-4)
    assert np.isfinite(log_prob).all()


def test_discretized_logistic_has_finite_gradients_for_extreme_parameters():
    x = jnp.array([0.0, 0.5, 1.0])

    def total(parameters):
        return discretized_logistic().log_prob(x[:, None], parameters).sum()

    for parameters in ([[0.0, -30.0]] * 3, [[50.0, -5.0]] * 3, [[0.5, 30.0]] * 3):
        assert np.isfinite(jax.grad(total)(jnp.array(parameters))).all()


@pytest.mark.parametrize("emission", [bernoulli(2), normal(2), normal(2, logvar=-1.0), discretized_logistic(2)])
def test_samples_have_the_mean_of_the_emission_and_the_bias_starts_there(emission):
    mean = jnp.full((5, 3, 3, 2), 0.4)
    output = emission.bias(mean)
    assert output.shape == (5, 3, 3, emission.width)
    np.testing.assert_allclose(emission.mean(output), mean, rtol=1e-5)
    draws = jax.vmap(lambda key: emission.sample(key, output))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.mean(), 0.4, atol=0.01)
    assert emission.log_prob(draws[0], jnp.stack([output] * 7)).shape == (7, 5, 3, 3, 2)


@pytest.mark.parametrize("log_scale", [-7.0, -1.0, 1.0])
def test_discretized_logistic_draws_with_the_probabilities_that_it_gives(log_scale):
    emission, n = discretized_logistic(levels=8), 20_000
    output = jnp.asarray([3.5 / 7 + 0.02, log_scale])
    p = np.exp(emission.log_prob(jnp.arange(8)[:, None] / 7, jnp.broadcast_to(output, (8, 2)))[:, 0])
    drawn = emission.sample(jax.random.key(0), jnp.broadcast_to(output, (n, 2)))[:, 0]
    levels = np.round(7 * np.asarray(drawn)).astype(int)
    np.testing.assert_allclose(levels / 7, drawn, rtol=1e-6)
    if log_scale == -7.0:  # narrower than a level: one outcome
        np.testing.assert_array_equal(levels, p.argmax())
    else:
        check_frequencies(p, levels)
