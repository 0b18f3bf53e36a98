"""Emissions: the distribution of one element of an example (a pixel, a frame, a token), given a network's output.

Decoders of variational autoencoders and heads of autoregressive models share them. Log-probabilities are in nats.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.distributions import (
    bernoulli_log_prob,
    discretized_logistic_log_prob,
    logistic_mixture_log_prob,
    logistic_mixture_sample,
    nearest_level,
    normal_log_prob,
)
from jaxgen.types import Key

Array = jax.Array


class Controls(NamedTuple):
    """Controls of a draw; numbers may be traced, so that one compiled program serves every setting.

    Attributes:
      temperature: divisor of logits, factor of standard deviations; 0 takes the most probable value.
      top_k: draw from the k most probable tokens only (Fan et al. 2018).
      top_p: draw from the smallest set of tokens with this total probability (Holtzman et al. 2020).
      guidance: weight of the difference that the condition makes (Ho & Salimans 2021); 1 or None is the conditional
        model, 0 the unconditional one.
    """

    temperature: float | Array = 1.0
    top_k: int | Array | None = None
    top_p: float | Array | None = None
    guidance: float | Array | None = None

    def check(self) -> None:
        """Raise ValueError where a number is out of its range; a traced number has no value to check."""
        ranges = {
            "temperature": (lambda t: 0 <= t < float("inf"), "0 (the most probable token) or above"),
            "top_k": (lambda k: k >= 1, "at least 1, or None to draw from all tokens"),
            "top_p": (lambda p: 0 < p <= 1, "a probability above 0, up to 1"),
        }
        for name, (holds, expected) in ranges.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, jax.core.Tracer) or holds(value)):
                raise ValueError(f"{name.replace('_', '-')} {value}: expected {expected}")


PLAIN = Controls()


class Emission(NamedTuple):
    """p(x | output) of elements x [..., *event], given a network's output [..., width].

    Attributes:
      name: for reports.
      width: numbers that a network gives for one element.
      log_prob: `(x, output) -> [...]` or [..., C], one log-probability for each part that is independent of the others
        given the output; an example's is their sum. Leading axes broadcast.
      mean: `output -> x`: the mean, or the most probable token.
      sample: `(key, output, controls=PLAIN) -> x`.
      bias: `mean of x -> output` with that mean, for the bias of a network's last layer.
      event: shape of one element.
    """

    name: str
    width: int
    log_prob: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    sample: Callable[..., Array]
    bias: Callable[[Array], Array]
    event: tuple[int, ...] = ()


def bernoulli(channels: int = 1) -> Emission:
    """Independent channels in {0, 1}, from logits."""

    def log_prob(x: Array, logits: Array) -> Array:
        return bernoulli_log_prob(x.astype(logits.dtype), logits)

    def sample(key: Key, logits: Array, controls: Controls = PLAIN) -> Array:
        # A logistic variable below the logits; scaled, so that temperature 0 needs no case of its own.
        noise = jax.random.logistic(key, logits.shape, logits.dtype)
        return (controls.temperature * noise < logits).astype(logits.dtype)

    def bias(mean: Array) -> Array:
        mean = jnp.clip(mean, 1e-3, 1 - 1e-3)  # a pixel that is always black would start at minus infinity
        return jnp.log(mean) - jnp.log1p(-mean)

    return Emission("Bernoulli", channels, log_prob, jax.nn.sigmoid, sample, bias, (channels,))


def normal(channels: int = 1, logvar: float | None = None) -> Emission:
    """Independent Normal channels, with the given log-variance or one that the network gives for each."""

    def parameters(output: Array) -> tuple[Array, Array]:
        if logvar is not None:
            return output, jnp.full_like(output, logvar)
        mu, free = jnp.split(output, 2, axis=-1)
        return mu, jnp.maximum(free, -10.0)  # a pixel that is always black would take its variance to 0

    def log_prob(x: Array, output: Array) -> Array:
        return normal_log_prob(x, *parameters(output))

    def mean(output: Array) -> Array:
        return parameters(output)[0]

    def sample(key: Key, output: Array, controls: Controls = PLAIN) -> Array:
        mu, logvar = parameters(output)
        return mu + controls.temperature * jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape, mu.dtype)

    def bias(mean: Array) -> Array:
        return _with_log_scale(mean, -2.0) if logvar is None else mean

    width = channels if logvar is not None else 2 * channels
    return Emission("Normal density", width, log_prob, mean, sample, bias, (channels,))


def discretized_logistic(channels: int = 1, levels: int = 256) -> Emission:
    """Independent channels at `levels` values in [0, 1]: an exact likelihood of images as they are stored."""

    def parameters(output: Array) -> tuple[Array, Array]:
        mu, log_scale = jnp.split(output, 2, axis=-1)
        return mu, jnp.clip(log_scale, -7.0, 7.0)  # narrower than a tenth of a bin gains nothing and overflows

    def log_prob(x: Array, output: Array) -> Array:
        return discretized_logistic_log_prob(x, *parameters(output), levels=levels)

    def mean(output: Array) -> Array:
        return parameters(output)[0]

    def sample(key: Key, output: Array, controls: Controls = PLAIN) -> Array:
        mu, log_scale = parameters(output)
        x = mu + controls.temperature * jnp.exp(log_scale) * jax.random.logistic(key, mu.shape, mu.dtype)
        return nearest_level(x, levels)

    bias = partial(_with_log_scale, log_scale=-2.0)
    return Emission("discretized logistic", 2 * channels, log_prob, mean, sample, bias, (channels,))


def categorical(size: int) -> Emission:
    """One of `size` tokens, from logits. A negative token stands for none and has log-probability 0."""

    def log_prob(tokens: Array, logits: Array) -> Array:
        tokens = jnp.broadcast_to(tokens.astype(jnp.int32), logits.shape[:-1])
        chosen = jnp.take_along_axis(logits, jnp.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(tokens < 0, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))

    def mean(logits: Array) -> Array:
        return logits.argmax(-1)

    def sample(key: Key, logits: Array, controls: Controls = PLAIN) -> Array:
        # argmax(logits + T Gumbel) follows softmax(logits / T), and is the most probable token at T = 0.
        noise = controls.temperature * jax.random.gumbel(key, logits.shape, logits.dtype)
        return (filtered(logits, controls) + noise).argmax(-1)

    def bias(mean: Array) -> Array:
        return jnp.log(jnp.maximum(jax.nn.one_hot(mean, size), 1e-3))

    return Emission("categorical", size, log_prob, mean, sample, bias)


def logistic_mixture(components: int = 10, channels: int = 1, levels: int = 256) -> Emission:
    """PixelCNN++ (Salimans et al. 2017): a pixel's channels, integers below `levels`, under a mixture of logistics."""

    def log_prob(tokens: Array, output: Array) -> Array:
        return logistic_mixture_log_prob(tokens / (levels - 1), output, levels=levels)

    def sample(key: Key, output: Array, controls: Controls = PLAIN) -> Array:
        x = logistic_mixture_sample(key, output, channels, levels=levels, temperature=controls.temperature)
        return jnp.round(x * (levels - 1)).astype(jnp.int32)

    mean = partial(sample, jax.random.key(0), controls=Controls(temperature=0.0))
    width = components * (1 + 2 * channels + channels * (channels - 1) // 2)
    return Emission("mixture of logistics", width, log_prob, mean, sample, jnp.zeros_like, (channels,))


def filtered(logits: Array, controls: Controls) -> Array:
    """[..., V] with minus infinity for each token that top-k or top-p excludes."""
    if controls.top_k is None and controls.top_p is None:
        return logits
    order = jnp.argsort(-logits, axis=-1)
    rank, kept = jnp.argsort(order, axis=-1), True
    if controls.top_k is not None:
        kept &= rank < controls.top_k
    if controls.top_p is not None:
        cool = jnp.take_along_axis(logits, order, axis=-1) / jnp.maximum(controls.temperature, 1e-6)
        probability = jax.nn.softmax(cool, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # total probability of all more probable tokens
        kept &= jnp.take_along_axis(before < controls.top_p, rank, axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def _with_log_scale(mean: Array, log_scale: float) -> Array:
    return jnp.concatenate([mean, jnp.full_like(mean, log_scale)], axis=-1)
