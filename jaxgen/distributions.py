"""Log-probabilities and divergences, elementwise and in nats; whoever calls them sums."""

import jax
import jax.numpy as jnp

from jaxgen.types import Key

Array = jax.Array
LOG_2PI = 1.8378770664093453


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """Log Bernoulli(x; sigmoid(logits)), x in [0, 1].

    log sigmoid is written out: the sum below is finite for every logit.
    -|logits| is written as logits - 2 max(logits, 0), whose derivative at 0 is 0 in JAX, as it has to be here; that of
    |.| is 1, and an output that starts at 0 would not learn that its pixel is always black.
    """
    positive = jnp.maximum(logits, 0)
    return x * logits - positive - jnp.log1p(jnp.exp(logits - 2 * positive))


def normal_log_prob(x: Array, mu: Array, logvar: Array) -> Array:
    """Log N(x; mu, exp(logvar))."""
    return -0.5 * (LOG_2PI + logvar + (x - mu) ** 2 * jnp.exp(-logvar))


def normal_kl(mu: Array, logvar: Array, mu_p: Array | float = 0.0, logvar_p: Array | float = 0.0) -> Array:
    """KL(N(mu, exp(logvar)) || N(mu_p, exp(logvar_p))); against the standard normal unless told otherwise.

    Kingma & Welling 2014, appendix B, for the standard normal.
    """
    return 0.5 * (logvar_p - logvar + (jnp.exp(logvar) + (mu - mu_p) ** 2) * jnp.exp(-jnp.asarray(logvar_p)) - 1)


def discretized_logistic_log_prob(x: Array, mu: Array, log_scale: Array, *, levels: int = 256) -> Array:
    """log-probability of one of `levels` equally spaced values in [0, 1] under a logistic density cut into bins.

    The first and the last bin reach to infinity, so that the probabilities sum to 1.
    Kingma et al. 2016 (inverse autoregressive flow), appendix; Salimans et al. 2017 (PixelCNN++), eq. 2.
    """
    half_bin = 0.5 / (levels - 1)
    inv_scale = jnp.exp(-log_scale)
    upper = (x - mu + half_bin) * inv_scale
    lower = (x - mu - half_bin) * inv_scale
    log_cdf, log_survival = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b)), exact far out in the tails
    # where the difference itself would be 0 in float32.
    inside = log_cdf + log_survival + jnp.log(-jnp.expm1(-2 * half_bin * inv_scale))
    return jnp.where(x < half_bin, log_cdf, jnp.where(x > 1 - half_bin, log_survival, inside))


def logistic_mixture_log_prob(x: Array, output: Array, *, levels: int = 256) -> Array:
    """log-probability of pixels x [..., C] under a mixture of M discretised logistics; [...].

    Within a component, channel c is centred on a linear function of the channels before it.
    Salimans et al. 2017 (PixelCNN++), eq. 2 and 3.

    Args:
      x: channels, in [0, 1].
      levels: how many values of each.
      output: [..., M (1 + 2 C + C (C - 1) / 2)]: logits of the components, then of each its centres, log-scales and
        coefficients.
    """
    channels = x.shape[-1]
    logits, mu, log_scale, coefficients = _mixture(output, channels)
    x = x[..., None, :]
    mu = jnp.stack([_centre(mu, coefficients, x, c) for c in range(channels)], axis=-1)
    log_p = discretized_logistic_log_prob(x, mu, log_scale, levels=levels).sum(-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_p, axis=-1)


def logistic_mixture_sample(
    key: Key, output: Array, channels: int, *, levels: int = 256, temperature: float | Array = 1.0
) -> Array:
    """Draw pixels [..., C] in [0, 1], each channel one of `levels` values.

    A channel is rounded before the next one is drawn, since `logistic_mixture_log_prob` conditions on rounded channels.
    At temperature 0 a channel is the level nearest to the center of the most probable component.
    """
    component_key, key = jax.random.split(key)
    logits, *parameters = _mixture(output, channels)
    component = (logits + temperature * jax.random.gumbel(component_key, logits.shape)).argmax(-1)
    chosen = (jnp.take_along_axis(p, component[..., None, None], axis=-2)[..., 0, :] for p in parameters)
    mu, log_scale, coefficients = chosen
    noise = temperature * jnp.exp(log_scale) * jax.random.logistic(key, mu.shape)
    x = jnp.zeros((*mu.shape[:-1], 0))
    for c in range(channels):
        value = nearest_level(_centre(mu, coefficients, x, c) + noise[..., c], levels)
        x = jnp.concatenate([x, value[..., None]], axis=-1)
    return x


def _mixture(output: Array, channels: int) -> tuple[Array, Array, Array, Array]:
    """Logits [..., M]; centres and log-scales [..., M, C]; coefficients [..., M, C (C - 1) / 2]."""
    pairs = channels * (channels - 1) // 2
    components = output.shape[-1] // (1 + 2 * channels + pairs)
    logits, rest = output[..., :components], output[..., components:]
    rest = rest.reshape(*output.shape[:-1], components, -1)
    mu, log_scale, coefficients = jnp.split(rest, (channels, 2 * channels), axis=-1)
    return logits, mu + 0.5, jnp.clip(log_scale - 2.0, -7.0, 7.0), jnp.tanh(coefficients)


def _centre(mu: Array, coefficients: Array, x: Array, channel: int) -> Array:
    """[...] of one channel, given those of x before it."""
    first = channel * (channel - 1) // 2
    before = coefficients[..., first : first + channel] * (2 * x[..., :channel] - 1)
    return mu[..., channel] + before.sum(-1)


def nearest_level(x: Array, levels: int) -> Array:
    """The nearest of `levels` equally spaced values in [0, 1]."""
    return jnp.round(jnp.clip(x, 0, 1) * (levels - 1)) / (levels - 1)
