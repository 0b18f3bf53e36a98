"""The bounds against a model whose likelihood is known: with linear networks and Normal noise, a VAE is probabilistic
PCA (Tipping & Bishop 1999), x ~ N(b, W W^T + s^2 I).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import check_model
from scipy import stats

from jaxgen.data.decode import dynamic_binarize, to_uint8
from jaxgen.emissions import bernoulli, normal
from jaxgen.evaluate import importance_weighted_nll
from jaxgen.models.vae import (
    beta_tc,
    dreg,
    elbo,
    independent,
    iwae,
    log_mean_exp,
    minibatch_total_correlation,
    resampled,
    staged,
    vae,
)
from jaxgen.networks import conv
from jaxgen.networks.mlp import MLP
from jaxgen.types import Codec

LOGVAR = -1.0  # of the noise
PIXELS, LATENTS = (2, 2, 1), 3


class Linear(nn.Module):
    """x or z -> an affine function of it."""

    shape: tuple[int, ...]
    event: int = 1
    output_bias: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, condition=None):
        h = x.reshape(*x.shape[: x.ndim - self.event], -1)
        h = nn.Dense(int(np.prod(self.shape)), bias_init=self.output_bias)(h)
        return h.reshape(*h.shape[:-1], *self.shape)


def unit(batch, key):
    return batch["image"] / 255


def linear(**options):
    networks = {
        "encoders": [Linear((2 * LATENTS,), event=3)],
        "decoder": independent(Linear(PIXELS), normal(logvar=LOGVAR)),
    }
    return vae(**networks | options, latents=[LATENTS], codec=Codec(unit, to_uint8), optimizer=optax.sgd(0.01))


@pytest.fixture(scope="module")
def ppca():
    """A linear model, its data, parameters with the exact posterior or a wrong one, and the exact log-likelihood."""
    model = linear()
    x = jax.random.uniform(jax.random.key(1), (5, *PIXELS))
    params = model.init(jax.random.key(0), {"image": (255 * x).astype(jnp.uint8)})
    weight = jax.random.normal(jax.random.key(2), (LATENTS, 4))  # W^T
    bias = jnp.array([0.1, 0.4, 0.2, 0.5])
    noise = np.exp(LOGVAR)
    params["vae"]["decoder_1"]["Dense_0"] = {"kernel": weight, "bias": bias}
    # p(z | x) = N(M^-1 W^T (x - b), s^2 M^-1) with M = W^T W + s^2 I; diagonal only where W's columns are orthogonal.
    q, _ = np.linalg.qr(np.asarray(weight).T)
    orthogonal = (q * np.array([1.0, 0.5, 2.0])).T
    exact = jax.tree.map(lambda a: a, params)
    exact["vae"]["decoder_1"]["Dense_0"] = {"kernel": jnp.asarray(orthogonal), "bias": bias}
    m = (orthogonal**2).sum(1) + noise
    kernel = np.concatenate([(orthogonal / m[:, None]).T, np.zeros((4, LATENTS))], axis=1)
    logvar = np.log(noise / m)
    mu_bias = -np.asarray(bias) @ (orthogonal / m[:, None]).T
    exact["vae"]["encoder_1"]["Dense_0"] = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.asarray(np.concatenate([mu_bias, logvar]), jnp.float32),
    }

    def log_likelihood(params):
        w, b = (np.asarray(params["vae"]["decoder_1"]["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
        return stats.multivariate_normal(b, w.T @ w + noise * np.eye(4)).logpdf(np.asarray(x).reshape(5, 4))

    return model, x, params, exact, log_likelihood


def test_elbo_is_the_log_likelihood_where_the_posterior_is_exact(ppca):
    model, x, _, exact, log_likelihood = ppca
    batch = {"image": 255 * x}
    keys = jax.random.split(jax.random.key(3), 20_000)
    elbo = jax.jit(jax.vmap(lambda key: model.evaluate(exact, batch, key)["elbo"]))(keys)
    error = np.asarray(elbo.std(0)) / np.sqrt(len(keys))
    assert (np.abs(elbo.mean(0) - log_likelihood(exact)) < 4 * error + 1e-4).all()
    # And with the exact posterior every single weight is the likelihood: no variance at all.
    log_w = jax.jit(model.log_weights, static_argnums=3)(exact, x, jax.random.key(4), 7)
    np.testing.assert_allclose(log_w, np.broadcast_to(log_likelihood(exact), (7, 5)), atol=1e-4)


def test_remat_takes_the_same_gradient_in_the_memory_of_one_sample():
    batch = {"image": jnp.arange(16 * 4, dtype=jnp.uint8).reshape(16, *PIXELS)}

    def compiled(remat):
        decoder = independent(MLP((256,), PIXELS), normal(logvar=LOGVAR), remat=remat)
        model = linear(bound=iwae(32), decoder=decoder)
        params = model.init(jax.random.key(0), batch)
        gradient = jax.jit(jax.grad(lambda params: model.objectives[0].loss(params, batch, jax.random.key(1), 0)[0]))
        return gradient(params), gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    (plain, much), (again, little) = compiled(False), compiled(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)
    assert little < much / 2


def test_elbo_misses_the_log_likelihood_by_the_kl_to_the_true_posterior(ppca):
    model, x, params, _, log_likelihood = ppca
    w, b = (np.asarray(params["vae"]["decoder_1"]["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
    precision = w @ w.T / np.exp(LOGVAR) + np.eye(LATENTS)
    covariance = np.linalg.inv(precision)
    mean = (np.asarray(x).reshape(5, 4) - b) @ w.T / np.exp(LOGVAR) @ covariance
    mu, logvar = (np.asarray(a, np.float64) for a in model.encode(params, x))
    gap = [
        0.5
        * (
            (precision * np.diag(np.exp(s))).sum()
            + (m - mu_) @ precision @ (m - mu_)
            - LATENTS
            - s.sum()
            - np.linalg.slogdet(precision)[1]
        )
        for mu_, s, m in zip(mu, logvar, mean, strict=True)
    ]
    keys = jax.random.split(jax.random.key(3), 50_000)
    elbo = jax.vmap(lambda key: model.evaluate(params, {"image": 255 * x}, key)["elbo"])(keys)
    error = np.asarray(elbo.std(0)) / np.sqrt(len(keys))
    assert (np.abs(elbo.mean(0) - (log_likelihood(params) - gap)) < 4 * error).all()


def test_importance_weighted_nll_converges_to_the_log_likelihood(ppca):
    model, x, params, _, log_likelihood = ppca
    # Fewer rows than K, and K no multiple: the weights of one example are drawn in parts.
    arrays = {"image": np.asarray(255 * x)}
    nll = importance_weighted_nll(model.observe, model.log_weights, num_samples=200_003, rows=30_000)
    nll = nll(params, arrays, jax.random.key(0))
    np.testing.assert_allclose(-nll, log_likelihood(params), atol=0.03)


def test_nll_does_not_depend_on_how_it_is_cut(ppca):
    model, x, _, exact, log_likelihood = ppca
    for rows, num_samples in [(1, 3), (2, 1), (7, 2), (1000, 4), (3, 10)]:
        nll = importance_weighted_nll(model.observe, model.log_weights, num_samples=num_samples, rows=rows)
        nll = nll(exact, {"image": np.asarray(255 * x)}, jax.random.key(0))
        np.testing.assert_allclose(-nll, log_likelihood(exact), atol=1e-4)


def test_bound_grows_with_k(ppca):
    model, x, params, _, log_likelihood = ppca
    keys = jax.random.split(jax.random.key(5), 4000)
    bounds = [
        float(jax.jit(jax.vmap(lambda key, k=k: log_mean_exp(model.log_weights(params, x, key, k))))(keys).mean())
        for k in (1, 2, 8, 64)
    ]
    assert bounds == sorted(bounds)
    assert bounds[-1] < log_likelihood(params).mean() + 0.01


def two_layers(**options):
    return vae(
        encoders=[MLP((8,), (6,), event=3), MLP((8,), (4,))],
        decoder=independent(MLP((8,), PIXELS), bernoulli()),
        priors=[MLP((8,), (6,))],
        latents=[3, 2],
        codec=Codec(unit, to_uint8),
        optimizer=optax.sgd(0.01),
        **options,
    )


@pytest.mark.parametrize(("make", "beta"), [(linear, 1.0), (two_layers, 1.0), (two_layers, 0.3)])
@pytest.mark.parametrize("estimator", [dreg, resampled, partial(resampled, doubly_reparameterized=True)])
def test_other_gradients_of_the_bound_have_the_mean_of_the_plain_one(make, beta, estimator):
    """Tucker et al. 2019, Burda et al. 2015: the same bound, the same expectation of its gradient; of the first, the
    decoder's gradient is the plain one at every draw.
    """
    plain, other = make(bound=iwae(4, beta)), make(bound=estimator(4, beta))
    batch = {"image": 255 * jnp.round(jax.random.uniform(jax.random.key(1), (2, *PIXELS)))}
    params = plain.init(jax.random.key(0), batch)
    keys = jax.random.split(jax.random.key(2), 20_000)

    def gradients(model):
        def one(key):
            (value, _), grad = jax.value_and_grad(model.objectives[0].loss, has_aux=True)(params, batch, key, 0)
            return value, grad["vae"]

        return jax.jit(lambda: jax.lax.map(one, keys, batch_size=1000))()

    (value, grad), (other_value, other) = gradients(plain), gradients(other)
    np.testing.assert_allclose(value, other_value, rtol=1e-5, atol=1e-5)
    for name in grad:
        for a, b in zip(jax.tree.leaves(grad[name]), jax.tree.leaves(other[name]), strict=True):
            if name.startswith("decoder") and estimator is dreg:
                np.testing.assert_allclose(a, b, atol=2e-5)
            else:
                assert not np.allclose(a, b, atol=2e-5), name
                error = np.sqrt((np.var(a, 0) + np.var(b, 0)) / len(keys))
                assert (np.abs(a.mean(0) - b.mean(0)) <= 5 * error + 1e-6).all(), name


def test_two_layers_bound_is_a_bound():
    """Brute force: over all binary images of four pixels the estimated probabilities sum to 1."""
    model = two_layers()
    x = jnp.stack(jnp.meshgrid(*[jnp.arange(2.0)] * 4, indexing="ij"), -1).reshape(16, *PIXELS)
    params = model.init(jax.random.key(0), {"image": 255 * x})
    params = jax.tree.map(lambda p: 0.5 * p, params)  # nearer to the prior, where the weights vary less
    log_w = jax.jit(model.log_weights, static_argnums=3)(params, x, jax.random.key(1), 20_000)
    total = float(jnp.exp(log_mean_exp(log_w)).sum())
    np.testing.assert_allclose(total, 1, atol=0.02)


def test_free_bits_warmup_and_beta():
    batch = {"image": (255 * jax.random.uniform(jax.random.key(1), (4, *PIXELS))).astype(jnp.uint8)}
    key = jax.random.key(2)
    model = two_layers(bound=elbo(3.0))
    params = jax.jit(model.init)(jax.random.key(0), batch)
    loss, aux = jax.jit(model.objectives[0].loss)(params, batch, key, 0)
    np.testing.assert_allclose(loss, -aux.metrics["reconstruction"] + 3 * aux.metrics["kl"], rtol=1e-5)

    model = linear(bound=elbo(free_bits=50.0))  # far above what an untrained posterior says
    params = model.init(jax.random.key(0), batch)
    loss, aux = model.objectives[0].loss(params, batch, key, 0)
    np.testing.assert_allclose(loss, -aux.metrics["reconstruction"] + 50 * LATENTS, rtol=1e-5)

    model = linear(bound=elbo(optax.linear_schedule(0.0, 1.0, 4)))
    params = model.init(jax.random.key(0), batch)
    compiled = jax.jit(model.objectives[0].loss)
    for step in range(6):
        loss, aux = compiled(params, batch, key, step)
        np.testing.assert_allclose(
            loss, -aux.metrics["reconstruction"] + min(step / 4, 1) * aux.metrics["kl"], rtol=1e-5
        )


@pytest.mark.parametrize("estimator", [iwae, resampled])
@pytest.mark.parametrize("beta", [1.0, optax.linear_schedule(0.0, 1.0, 4)])
def test_first_steps_are_those_of_fewer_samples(estimator, beta):
    """Loss and gradient; one sample's are those of the evidence lower bound."""
    batch = {"image": (255 * jax.random.uniform(jax.random.key(1), (4, *PIXELS))).astype(jnp.uint8)}

    def descent(bound):
        model = linear(bound=bound)
        return model, jax.jit(jax.value_and_grad(model.objectives[0].loss, has_aux=True))

    last = estimator(5, beta)
    for early in (elbo(beta), estimator(2, beta)):
        (model, both), (_, first), (_, then) = map(descent, (staged(early, 2, last), early, last))
        params = model.init(jax.random.key(0), batch)
        for step in range(4):
            (value, _), grad = both(params, batch, jax.random.key(2), step)
            (expected, _), gradient = (first if step < 2 else then)(params, batch, jax.random.key(2), step)
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grad, gradient)


def test_total_correlation_of_a_batch():
    """None where the posteriors' mean is a product; of points on a line that are far apart, (D - 1) log B."""
    grid = jnp.stack(jnp.meshgrid(jnp.arange(3.0), jnp.arange(4.0), indexing="ij"), -1).reshape(12, 2)
    z = jax.random.normal(jax.random.key(0), grid.shape)
    np.testing.assert_allclose(minibatch_total_correlation(z, grid, jnp.zeros((12, 2))), 0, atol=1e-5)
    line = 100 * jnp.arange(7.0)[:, None] * jnp.ones(3)
    found = minibatch_total_correlation(line, line, jnp.zeros((7, 3)))
    np.testing.assert_allclose(found, 2 * np.log(7), rtol=1e-5)


def test_beta_tcvae_is_the_published_objective_up_to_a_constant():
    """Chen et al. 2018, eq. 4, by loops over the batch, with their estimate of log q(z) for N examples."""
    batch = {"image": (255 * jax.random.uniform(jax.random.key(1), (4, *PIXELS))).astype(jnp.uint8)}
    plain, model = linear(), linear(bound=beta_tc(5.0))
    params, count, key = plain.init(jax.random.key(0), batch), 1000, jax.random.key(2)
    mu, logvar = (np.asarray(a, np.float64) for a in plain.encode(params, unit(batch, None)))
    eps = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.split(key)[1], 0), (1, 4, LATENTS)))[0]
    z = mu + np.exp(logvar / 2) * eps
    log_q = np.array([[stats.norm(mu[j], np.exp(logvar[j] / 2)).logpdf(z[i]) for j in range(4)] for i in range(4)])
    joint = np.log(np.exp(log_q.sum(-1)).sum(1) / (count * 4))
    each = np.log(np.exp(log_q).sum(1) / (count * 4)).sum(-1)
    expected = plain.objectives[0].loss(params, batch, key, 0)[0] + 4 * (joint - each).mean()
    constant = 4 * (LATENTS - 1) * np.log(count)
    loss, _ = model.objectives[0].loss(params, batch, key, 0)
    np.testing.assert_allclose(loss, expected - constant, rtol=1e-5)
    values = (m.evaluate(params, batch, key) for m in (plain, model))  # the bound itself is what is evaluated
    jax.tree.map(np.testing.assert_array_equal, *values)


def test_condition_reaches_encoder_decoder_and_samples():
    model = vae(
        encoders=[MLP((8,), (4,), event=3)],
        decoder=independent(MLP((8,), PIXELS), bernoulli()),
        latents=[2],
        codec=Codec(unit, to_uint8),
        optimizer=optax.sgd(0.01),
        num_classes=3,
    )
    x = jax.random.uniform(jax.random.key(1), (2, *PIXELS))
    params = model.init(jax.random.key(0), {"image": 255 * x, "label": jnp.zeros(2, jnp.int32)})
    zero, one = jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32)
    assert not np.allclose(model.encode(params, x, zero)[0], model.encode(params, x, one)[0])
    z = jnp.zeros((2, 2))
    assert not np.allclose(model.decode(params, z, zero), model.decode(params, z, one))
    key = jax.random.key(3)
    assert not np.array_equal(model.sample(params, key, 2, zero), model.sample(params, key, 2, one))


def binarized(batch, key):
    return dynamic_binarize(batch["image"], key)


def small(optimizer, **options):
    """A convolutional model of one layer, unless `options` hold other networks."""
    networks = {
        "encoders": [conv.Encoder(6, channels=(4, 4), hidden=8)],
        "decoder": independent(conv.Decoder((8, 8, 1), channels=(4, 4), hidden=8), bernoulli()),
        "latents": [3],
    }
    return vae(**networks | {"codec": Codec(binarized, to_uint8), "optimizer": optimizer} | options)


TWO_LAYERS = {
    "encoders": [MLP((8,), (6,), event=3), MLP((8,), (4,))],
    "decoder": independent(MLP((8,), (8, 8, 1)), bernoulli()),
    "priors": [MLP((8,), (6,))],
    "latents": [3, 2],
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": elbo(free_bits=1.0)}, "1 stochastic layer"),
        ({"bound": beta_tc(2.0)}, "1 stochastic layer"),
        ({"bound": staged(elbo(free_bits=1.0), 2, iwae(2))}, "1 stochastic layer"),
        ({"latents": [1, 2, 3]}, "want L"),
        ({"priors": []}, "want L"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(optax.sgd(0.1), **TWO_LAYERS | options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 3, "bound": elbo(optax.linear_schedule(0.0, 1.0, 5))},
        TWO_LAYERS | {"bound": staged(iwae(2), 1, dreg(3))},
    ],
    ids=["conv, conditional, warm-up", "two layers, DReG, of fewer samples first"],
)
def test_conformance(options):
    key = jax.random.key(9)
    batch = {
        "image": jax.random.randint(key, (8, 8, 8, 1), 0, 256).astype(jnp.uint8),
        "label": jnp.arange(8, dtype=jnp.int32) % 3,
    }
    check_model(lambda optimizer: small(optimizer, **options), batch)
