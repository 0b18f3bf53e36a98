"""Variational autoencoders: p(x, z) = p(x | z) p(z) learned through an approximate posterior q(z | x).

With L stochastic layers (Burda et al. 2015, section 5) z = (z_1, ..., z_L),

    p(x, z) = p(z_L) p(z_{L-1} | z_L) ... p(x | z_1)        q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})

and every bound is made of the same terms: for K samples from q, the reconstruction log p(x | z_1) and, layer by layer,
KL = log q - log p. Shapes: K samples, B examples, D_l latent dimensions of layer l. All in nats.

A `Bound` is the objective (`elbo`, `iwae`, `dreg`, ...), a `Decoder` is p(x | z_1); `vae` joins them with networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp

from jaxgen.distributions import normal_kl, normal_log_prob
from jaxgen.emissions import Emission
from jaxgen.types import Aux, Batch, Codec, Key, Model, Objective, Params, PyTree, Step

Array = jax.Array
Normals = Sequence[tuple[Array, Array]]  # mean and log-variance of each layer


@dataclass(frozen=True, kw_only=True)
class VAE(Model):
    """A `Model` with latents. A `condition` is labels, int [B].

    Attributes:
      observe: `(batch, key) -> x [B, ...]`: the codec's.
      encode: `(params, x, condition=None) -> (mu, logvar)`, each [B, D_L]: the posterior of the top layer, given the
        means of the layers below.
      decode: `(params, z [n, D_L], condition=None, key=None) -> x [n, ...]`, the mean of p(x | z_1); the layers
        between are drawn with `key`, or follow their means without one.
      reconstruct: `(params, x, key, condition=None) -> x [B, ...]`, the mean of p(x | z_1), z_1 ~ q(z_1 | x).
      log_weights: `(params, x, key, num_samples, condition=None) -> [K, B]`, log p(x, z) - log q(z | x), z ~ q.
      latents: (D_1, ..., D_L).
    """

    observe: Callable[[Batch, Key], Array]
    encode: Callable[..., tuple[Array, Array]]
    decode: Callable[..., Array]
    reconstruct: Callable[..., Array]
    log_weights: Callable[..., Array]
    latents: tuple[int, ...]


# Decoders: p(x | z_1) -------------------------------------------------------------------------------------------------


class Decoder(NamedTuple):
    """p(x | z_1). `params` are the network's own.

    Attributes:
      init: `(key, z [1, D], condition, mean of x) -> params`.
      log_prob: `(params, x [B, ...], z [K, B, D], condition) -> [K, B]`.
      generate: `(params, z [n, D], condition, key=None) -> x [n, ...]`: the mean, or with a key a draw.
    """

    init: Callable[..., PyTree]
    log_prob: Callable[[PyTree, Array, Array, Array | None], Array]
    generate: Callable[..., Array]


def independent(network: nn.Module, emission: Emission, *, remat: bool = False) -> Decoder:
    """Elements of x that are independent given z.

    Args:
      network: `(z, condition) -> [..., width]` for each element, with a field `output_bias`, an initializer.
      emission: the distribution of one element.
      remat: compute one sample after another, and again in the backward pass: the memory of one sample instead of K.
    """

    def init(key: Key, z: Array, condition: Array | None, mean: Array) -> PyTree:
        # Where Burda et al. start: at the mean of the data, whatever z is.
        bias = emission.bias(mean)
        started = network.clone(output_bias=lambda key, shape, dtype: bias.reshape(shape).astype(dtype))
        return started.init(key, z, condition)["params"]

    def log_prob(params: PyTree, x: Array, z: Array, condition: Array | None) -> Array:
        def one(z: Array) -> Array:
            return _total(emission.log_prob(x, network.apply({"params": params}, z, condition)), z)

        return _in_turn(one, z) if remat else one(z)

    def generate(params: PyTree, z: Array, condition: Array | None, key: Key | None = None) -> Array:
        output = network.apply({"params": params}, z, condition)
        return emission.mean(output) if key is None else emission.sample(key, output)

    return Decoder(init, log_prob, generate)


def sequential(network: nn.Module, emission: Emission, *, remat: bool = False) -> Decoder:
    """Elements of x one after another, each given z and those before it (Bowman et al. 2016).

    Args:
      network: `(z, condition, x=None, key=None) -> [..., T, width]`: the output for each element of `x` given those
        before it; without x, for elements that it draws itself with `key`, or of which it takes the most probable.
      emission: the distribution of one element; its mean recovers the elements that the network wrote.
      remat: as for `independent`.
    """

    def init(key: Key, z: Array, condition: Array | None, mean: Array) -> PyTree:
        return network.init(key, z, condition)["params"]

    def log_prob(params: PyTree, x: Array, z: Array, condition: Array | None) -> Array:
        def one(z: Array) -> Array:
            return _total(emission.log_prob(x, network.apply({"params": params}, z, condition, x=x)), z)

        return _in_turn(one, z) if remat else one(z)

    def generate(params: PyTree, z: Array, condition: Array | None, key: Key | None = None) -> Array:
        return emission.mean(network.apply({"params": params}, z, condition, key=key))

    return Decoder(init, log_prob, generate)


def _total(log_p: Array, z: Array) -> Array:
    """Sum over each example, on one axis: over several short ones XLA's CPU back end takes 50 times as long."""
    return log_p.reshape(*z.shape[:-1], -1).sum(-1)


def _in_turn(log_prob: Callable[[Array], Array], z: Array) -> Array:
    return jax.lax.map(jax.checkpoint(log_prob), z)


# Bounds ---------------------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The terms of every bound: `reconstruction` [K, B], `kl` for each layer [K, B, D_l]."""

    reconstruction: Array
    kl: tuple[Array, ...]

    def log_weight(self, beta: Array | float = 1.0) -> Array:
        """[K, B]: log p(x | z) - beta (log q(z | x) - log p(z))."""
        return self.reconstruction - beta * sum(kl.sum(-1) for kl in self.kl)

    def report(self, loss: Array) -> dict[str, Array]:
        """Each [B], means over K."""
        kl = sum(kl.sum(-1) for kl in self.kl)
        return {"loss": loss, "reconstruction": self.reconstruction.mean(0), "kl": kl.mean(0)}


class Graph(NamedTuple):
    """The model at a batch x and its condition. Parameters stay an argument, since some estimators freeze them.

    Attributes:
      noise: `(key, K) -> eps`, standard normal, for each layer [K, B, D_l].
      infer: `(params, eps) -> (zs, qs)`, z ~ q(z | x) reparameterized, [K, B, D_l], and each q's mean and log-variance.
      posteriors: `(params, zs) -> qs`, q of each layer at given z.
      terms: `(params, zs, qs, analytic=False) -> Terms`. `analytic` takes the expectation over z_L in closed form,
        which lowers the variance.
    """

    noise: Callable[[Key, int], list[Array]]
    infer: Callable[[Params, Sequence[Array]], tuple[list[Array], Normals]]
    posteriors: Callable[[Params, Sequence[Array]], Normals]
    terms: Callable[..., Terms]


class Bound(NamedTuple):
    """What a variational autoencoder minimizes.

    Attributes:
      loss: `(graph, params, key, step) -> {"loss", "reconstruction", "kl"}`, each [B].
      num_samples: K, of the bound that `evaluate` reports.
      layers: most stochastic layers for which the bound is defined, or None.
    """

    loss: Callable[[Graph, Params, Key, Step], dict[str, Array]]
    num_samples: int = 1
    layers: int | None = None


Weight = float | Callable[[Step], Array]  # a number, or a schedule of steps such as optax.linear_schedule(0, 1, 1000)


def elbo(beta: Weight = 1.0, *, free_bits: float = 0.0) -> Bound:
    """Evidence lower bound, Kingma & Welling 2014, eq. 10: -E_q[log p(x | z)] + beta KL(q(z | x) || p(z)).

    Args:
      beta: weight of the KL (Higgins et al. 2017); a schedule from 0 is warm-up (Sønderby et al. 2016).
      free_bits: nats per latent dimension and example below which the KL costs nothing (Kingma et al. 2016, eq. 15,
        there on the mean over a minibatch; here per example, so that it does not depend on how a batch is sharded).
    """

    def loss(graph: Graph, params: Params, key: Key, step: Step) -> dict[str, Array]:
        t = graph.terms(params, *graph.infer(params, graph.noise(key, 1)), analytic=True)
        pressed = t._replace(kl=tuple(jnp.maximum(kl, free_bits) for kl in t.kl)) if free_bits else t
        return t.report(-pressed.log_weight(_at(beta, step))[0])

    return Bound(loss, layers=1 if free_bits else None)


ELBO = elbo()


def beta_tc(total_correlation: float, beta: Weight = 1.0) -> Bound:
    """beta-TCVAE (Chen et al. 2018, eq. 4, alpha = gamma = 1): the evidence lower bound with its total correlation
    weighted, the part of the KL that measures how far the latents are from independent.

    It is estimated within the batch that the loss receives: where that is a shard or a part, within each of those.
    """

    def loss(graph: Graph, params: Params, key: Key, step: Step) -> dict[str, Array]:
        zs, qs = graph.infer(params, graph.noise(key, 1))
        t, weight = graph.terms(params, zs, qs, analytic=True), _at(beta, step)
        correlation = minibatch_total_correlation(zs[0][0], *qs[0])
        return t.report(-t.log_weight(weight)[0] + weight * (total_correlation - 1) * correlation)

    return Bound(loss, layers=1)


def iwae(num_samples: int, beta: Weight = 1.0) -> Bound:
    """Importance-weighted bound of K samples, Burda et al. 2015, eq. 8: -log mean_k w_k."""

    def loss(graph: Graph, params: Params, key: Key, step: Step) -> dict[str, Array]:
        t = graph.terms(params, *graph.infer(params, graph.noise(key, num_samples)))
        return t.report(-log_mean_exp(t.log_weight(_at(beta, step))))

    return Bound(loss, num_samples)


def dreg(num_samples: int, beta: Weight = 1.0) -> Bound:
    """The importance-weighted bound with the doubly reparameterized gradient of Tucker et al. 2019."""
    return _reweighted(num_samples, beta, doubly_reparameterized=True, resampled=False)


def resampled(num_samples: int, beta: Weight = 1.0, *, doubly_reparameterized: bool = False) -> Bound:
    """The importance-weighted bound with the gradient of one of the K samples, drawn by its weight: K forward passes
    and one backward pass, unbiased, with more variance (Burda et al. 2015, section 3).
    """
    return _reweighted(num_samples, beta, doubly_reparameterized=doubly_reparameterized, resampled=True)


def _reweighted(K: int, beta: Weight, *, doubly_reparameterized: bool, resampled: bool) -> Bound:
    """The bound of `iwae`, its gradient estimated by that of a weighted sum of log w.

    Doubly reparameterized, the encoder's is sum_k w~_k^2 dlog w_k/dz dz/dphi (Tucker et al. 2019, eq. 9). Where the
    KL weighs beta, so does the score of q, worth sum_k w~_k (1 - w~_k) (...): what is left is
    sum_k w~_k (1 - beta + beta w~_k) (...).
    Resampled, sum_k w~_k (...) is (...) of one sample, k ~ w~ (Burda et al. 2015, section 3).
    log w is written down twice, once to weigh and once to differentiate; where those are the same numbers, the
    compiler computes them once.
    """

    def loss(graph: Graph, params: Params, key: Key, step: Step) -> dict[str, Array]:
        eps, frozen, beta_t = graph.noise(jax.random.clone(key), K), _freeze(params), _at(beta, step)
        pick_key = jax.random.fold_in(key, len(eps))  # `noise` folds the key with smaller numbers, those of the layers
        t = graph.terms(frozen, *graph.infer(frozen, eps))
        log_w = t.log_weight(beta_t)
        w = weight = jax.nn.softmax(log_w, axis=0)
        if resampled:
            k = jax.random.categorical(pick_key, log_w, axis=0)[None]
            eps = [jnp.take_along_axis(e, k[..., None], axis=0) for e in eps]
            w, weight = jnp.take_along_axis(w, k, axis=0), jnp.ones(())
        zs, qs = graph.infer(params, eps)
        if doubly_reparameterized:  # q as a density has no gradient of its own, only through z
            zs = [scale_gradient(z, (1 - beta_t + beta_t * w)[..., None]) for z in zs]
            qs = graph.posteriors(frozen, zs)
        surrogate = -(weight * graph.terms(params, zs, qs).log_weight(beta_t)).sum(0)
        return t.report(-log_mean_exp(log_w) + surrogate - _freeze(surrogate))

    return Bound(loss, K)


def staged(first: Bound, steps: int, then: Bound) -> Bound:
    """`first` in the first `steps` steps, `then` afterwards. Steps that are mapped by `vmap` pay for both."""

    def loss(graph: Graph, params: Params, key: Key, step: Step) -> dict[str, Array]:
        return jax.lax.cond(step < steps, partial(first.loss, graph), partial(then.loss, graph), params, key, step)

    layers = [bound.layers for bound in (first, then) if bound.layers is not None]
    return Bound(loss, then.num_samples, min(layers, default=None))


def _at(weight: Weight, step: Step) -> Array:
    return jnp.asarray(weight(step) if callable(weight) else weight)


# The model ------------------------------------------------------------------------------------------------------------


def vae(
    *,
    encoders: Sequence[nn.Module],
    decoder: Decoder,
    latents: Sequence[int],
    codec: Codec,
    optimizer: optax.GradientTransformation,
    priors: Sequence[nn.Module] = (),
    bound: Bound = ELBO,
    num_classes: int = 0,
) -> VAE:
    """A variational autoencoder of one or more stochastic layers.

    Args:
      encoders: for each layer a network `(h, condition) -> [..., 2 D_l]` to mean and log-variance; h is x, z_1, ...
      decoder: p(x | z_1).
      latents: (D_1, ..., D_L).
      codec: stored data to x [B, ...], and back.
      optimizer: for all parameters.
      priors: for each layer but the top the network `(z_{l+1}, condition) -> [..., 2 D_l]` of p(z_l | z_{l+1}).
      bound: what is minimized.
      num_classes: above 0, everything is conditional on `batch["label"]`.

    Raises:
      ValueError: the networks do not fit together, or not the bound.
    """
    if not len(encoders) == len(priors) + 1 == len(latents):
        raise ValueError(f"{len(encoders)} encoders, {len(priors)} priors, {len(latents)} latents: want L, L - 1, L")
    if bound.layers is not None and len(latents) > bound.layers:
        raise ValueError(f"this bound is defined for {bound.layers} stochastic layer, not for {len(latents)}")
    top = len(latents) - 1

    # Networks ---------------------------------------------------------------------------------------------------------

    def init(key: Key, batch: Batch) -> Params:
        x = codec.observe(batch, jax.random.fold_in(key, len(encoders)))
        condition, network = one_hot(jnp.zeros(1, jnp.int32)), {}
        for layer, encoder in enumerate(encoders):
            up, down = jax.random.split(jax.random.fold_in(key, layer))
            h = x[:1] if layer == 0 else jnp.zeros((1, latents[layer - 1]))
            network[f"encoder_{layer + 1}"] = encoder.init(up, h, condition)["params"]
            z = jnp.zeros((1, latents[layer]))
            network[f"decoder_{layer + 1}"] = (
                priors[layer - 1].init(down, z, condition)["params"]
                if layer
                else decoder.init(down, z, condition, x.mean(0))
            )
        return {"vae": network}

    def posterior(params: Params, layer: int, h: Array, condition: Array | None) -> tuple[Array, Array]:
        """q(z_l | h): mean and log-variance, [..., D_l]."""
        network = params["vae"][f"encoder_{layer + 1}"]
        return tuple(jnp.split(encoders[layer].apply({"params": network}, h, condition), 2, axis=-1))

    def prior(params: Params, layer: int, z: Array, condition: Array | None) -> tuple[Array, Array]:
        """p(z_l | z_{l+1}): mean and log-variance, [..., D_l]."""
        network = params["vae"][f"decoder_{layer + 2}"]
        return tuple(jnp.split(priors[layer].apply({"params": network}, z, condition), 2, axis=-1))

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    # Terms of the bounds ----------------------------------------------------------------------------------------------

    def graph(x: Array, condition: Array | None) -> Graph:
        def noise(key: Key, K: int) -> list[Array]:
            shape = K, len(x)
            return [jax.random.normal(jax.random.fold_in(key, layer), (*shape, d)) for layer, d in enumerate(latents)]

        def infer(params: Params, eps: Sequence[Array]) -> tuple[list[Array], Normals]:
            zs, qs = [], []
            for layer, standard in enumerate(eps):
                mu, logvar = q = posterior(params, layer, zs[-1] if zs else x, condition)
                zs.append(mu + jnp.exp(0.5 * logvar) * standard)
                qs.append(q)
            return zs, qs

        def posteriors(params: Params, zs: Sequence[Array]) -> Normals:
            return [posterior(params, i, zs[i - 1] if i else x, condition) for i in range(len(zs))]

        def terms(params: Params, zs: Sequence[Array], qs: Normals, *, analytic: bool = False) -> Terms:
            reconstruction = decoder.log_prob(params["vae"]["decoder_1"], x, zs[0], condition)
            kl = []
            for layer, (z, q) in enumerate(zip(zs, qs, strict=True)):
                if layer == top and analytic:
                    kl.append(jnp.broadcast_to(normal_kl(*q), z.shape))
                    continue
                standard = jnp.zeros(()), jnp.zeros(())
                p = standard if layer == top else prior(params, layer, zs[layer + 1], condition)
                kl.append(normal_log_prob(z, *q) - normal_log_prob(z, *p))
            return Terms(reconstruction, tuple(kl))

        return Graph(noise, infer, posteriors, terms)

    def loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[Array, Aux]:
        observe_key, key = jax.random.split(key)
        given = graph(codec.observe(batch, observe_key), one_hot(batch.get("label")))
        metrics = {name: value.mean() for name, value in bound.loss(given, params, key, step).items()}
        return metrics["loss"], Aux(metrics)

    # What a trained model can do --------------------------------------------------------------------------------------

    def evaluate(params: Params, batch: Batch, key: Key) -> dict[str, Array]:
        """The bound that is trained, and the terms of the evidence lower bound: without beta, warm-up or free bits."""
        observe_key, key = jax.random.split(key)
        g, K = graph(codec.observe(batch, observe_key), one_hot(batch.get("label"))), bound.num_samples
        t = g.terms(params, *g.infer(params, g.noise(key, K)), analytic=K == 1)
        log_w = t.log_weight()
        return t.report(-log_mean_exp(log_w)) | {"elbo": log_w.mean(0)}

    def log_weights(params: Params, x: Array, key: Key, num_samples: int, condition: Array | None = None) -> Array:
        g = graph(x, one_hot(condition))
        return g.terms(params, *g.infer(params, g.noise(key, num_samples))).log_weight()

    def encode(params: Params, x: Array, condition: Array | None = None) -> tuple[Array, Array]:
        mu, logvar = posterior(params, 0, x, one_hot(condition))
        for layer in range(1, len(latents)):
            mu, logvar = posterior(params, layer, mu, one_hot(condition))
        return mu, logvar

    def ancestral(params: Params, z: Array, condition: Array | None, key: Key | None, temperature: Any = 1.0) -> Array:
        """From z_L down to z_1."""
        for layer in range(top, 0, -1):
            z, logvar = prior(params, layer - 1, z, condition)
            if key is not None:
                z += temperature * jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.fold_in(key, layer), z.shape)
        return z

    def generate(params: Params, z: Array, condition: Array | None, key: Key | None = None) -> Array:
        return decoder.generate(params["vae"]["decoder_1"], z, condition, key)

    def decode(params: Params, z: Array, condition: Array | None = None, key: Key | None = None) -> Array:
        condition = one_hot(condition)
        return generate(params, ancestral(params, z, condition, key), condition)

    def reconstruct(params: Params, x: Array, key: Key, condition: Array | None = None) -> Array:
        mu, logvar = posterior(params, 0, x, one_hot(condition))
        z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        return generate(params, z, one_hot(condition))

    def sample(
        params: Params,
        key: Key,
        n: int,
        condition: Array | None = None,
        *,
        temperature: Array | float = 1.0,
        draw: bool = False,
    ) -> Array:
        """[n, ...] as stored: the mean of p(x | z), or with `draw` a draw from it.

        `condition` is labels [n]; a conditional model without one draws labels uniformly. `temperature` scales the
        standard deviation of the latents of every layer.
        """
        z_key, layers_key, label_key, x_key = jax.random.split(key, 4)
        z = temperature * jax.random.normal(z_key, (n, latents[top]))
        if num_classes and condition is None:
            condition = jax.random.randint(label_key, (n,), 0, num_classes)
        condition = one_hot(condition)
        z = ancestral(params, z, condition, layers_key, temperature)
        return codec.store(generate(params, z, condition, x_key if draw else None))

    return VAE(
        init=init,
        objectives=(Objective("vae", loss, optimizer),),
        evaluate=evaluate,
        sample=sample,
        observe=codec.observe,
        encode=encode,
        decode=decode,
        reconstruct=reconstruct,
        log_weights=log_weights,
        latents=tuple(latents),
    )


def log_mean_exp(log_w: Array) -> Array:
    """[K, B] -> [B]: log of the mean over K samples."""
    return logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def minibatch_total_correlation(z: Array, mu: Array, logvar: Array) -> Array:
    """Log q(z) - sum_d log q(z_d) at each z [B, D], [B]; q is the mean of the posteriors of the batch.

    Chen et al. 2018, section 4.1 and appendix C.1: minibatch-weighted sampling, up to a constant that depends on
    the sizes of batch and data set and has no gradient. Of B examples it sees at most (D - 1) log B.
    """
    log_q = normal_log_prob(z[:, None], mu, logvar)  # [B, B, D], log q(z_i | x_j) of each dimension
    log_each = logsumexp(log_q, axis=1) - jnp.log(len(z))
    return logsumexp(log_q.sum(-1), axis=1) - jnp.log(len(z)) - log_each.sum(-1)


@jax.custom_vjp
def scale_gradient(z: Array, weight: Array) -> Array:
    """z, with its gradient multiplied by `weight`."""
    return z


scale_gradient.defvjp(lambda z, weight: (z, weight), lambda weight, g: (weight * g, jnp.zeros_like(weight)))
_freeze = jax.lax.stop_gradient
