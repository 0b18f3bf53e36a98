"""Variational autoencoders: p(x, z) = p(x | z) p(z) learned through an approximate posterior q(z | x).

With L stochastic layers (Burda et al. 2015, section 5) z = (z_1, ..., z_L),

    p(x, z) = p(z_L) p(z_{L-1} | z_L) ... p(x | z_1)        q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})

and every objective here is made of the same terms: for K samples from q, the reconstruction log p(x | z_1) and, layer
by layer, KL = log q - log p. Shapes: K samples, B examples, D_l latent dimensions of layer l. All in nats.
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

from jaxgen.distributions import Likelihood, normal_kl, normal_log_prob
from jaxgen.types import Aux, Batch, Key, Model, Objective, Params

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class VAE(Model):
    """A `Model`, and what only a model with latents can do. A `condition` is labels, int [B].

    Attributes:
      observe: `(batch, key) -> x [B, ...]` in [0, 1]: what the likelihood is of, binarised if so configured.
      encode: `(params, x, condition=None) -> (mu, logvar)`, each [B, D_L]: the posterior of the top layer, given the
        means of the layers below.
      decode: `(params, z [n, D_L], condition=None, key=None) -> [n, ...]`, the mean of p(x | z_1) in [0, 1]; the layers
        between are drawn with `key`, or follow their means without one.
      reconstruct: `(params, x, key, condition=None) -> [B, ...]` in [0, 1], the mean of p(x | z_1), z_1 ~ q(z_1 | x).
      log_weights: `(params, x, key, num_samples, condition=None) -> [K, B]`, log p(x, z) - log q(z | x), z ~ q.
      latents: (D_1, ..., D_L).
    """

    observe: Callable[[Batch, Key], Array]
    encode: Callable[..., tuple[Array, Array]]
    decode: Callable[..., Array]
    reconstruct: Callable[..., Array]
    log_weights: Callable[..., Array]
    latents: tuple[int, ...]


class Terms(NamedTuple):
    """The terms of every bound: `reconstruction` [K, B], `kl` for each layer [K, B, D_l]."""

    reconstruction: Array
    kl: tuple[Array, ...]

    def log_weight(self, beta: Array | float = 1.0) -> Array:
        """[K, B]: log p(x | z) - beta (log q(z | x) - log p(z))."""
        return self.reconstruction - beta * sum(kl.sum(-1) for kl in self.kl)


def vae(
    *,
    encoders: Sequence[nn.Module],
    decoders: Sequence[nn.Module],
    latents: Sequence[int],
    likelihood: Likelihood,
    observe: Callable[[Batch, Key], Array],
    store: Callable[[Array], Array],
    optimizer: optax.GradientTransformation,
    num_samples: int = 1,
    doubly_reparameterized: bool = False,
    resampled: bool = False,
    early_samples: int = 1,
    early_steps: int = 0,
    beta: float = 1.0,
    warmup_steps: int = 0,
    free_bits: float = 0.0,
    total_correlation: float = 1.0,
    num_classes: int = 0,
    remat: bool = False,
    autoregressive: bool = False,
) -> VAE:
    """A variational autoencoder of one or more stochastic layers.

    Args:
      encoders: for each layer a network `(h, condition) -> [..., 2 D_l]` to mean and log-variance; h is x, z_1, ...
      decoders: for each layer the network `(z_l, condition)` that leads down from it: z_1 to the likelihood's output,
        z_2 to the mean and log-variance of z_1, ... The first has a field `output_bias`, an initialiser.
      latents: (D_1, ..., D_L).
      likelihood: p(x | z_1).
      observe: `(batch, key) -> x [B, ...]`, float32 in [0, 1]: decodes what is stored, and binarises it if so wished.
      store: the way back, x to what is stored.
      optimizer: for all parameters.
      num_samples: K. 1 maximises the evidence lower bound, more the importance-weighted bound (Burda et al. 2015).
      doubly_reparameterized: the gradient estimator of Tucker et al. 2019 for that bound.
      resampled: the gradient of that bound through one of the K samples of an example, drawn by its weight: K forward
        passes and one backward pass, unbiased, of more variance (Burda et al. 2015, section 3).
      early_samples: K in the first steps, whose bound is looser and cheaper.
      early_steps: how many those are. Where steps are mapped by `vmap`, each pays for both bounds.
      beta: weight of the KL (Higgins et al. 2017); above 1 the loss is a weaker bound.
      warmup_steps: steps over which the weight of the KL grows linearly from 0 (Sønderby et al. 2016).
      free_bits: nats per latent dimension and example below which the KL is not pressed (Kingma et al. 2016, eq. 15,
        there on the mean over a minibatch; here per example, so that it does not depend on how a batch is sharded).
      total_correlation: weight within the KL of the total correlation, the part of it that says how far the latents are
        from independent: beta-TCVAE (Chen et al. 2018, eq. 4, alpha = gamma = 1); 1 is the plain KL. It is estimated
        within the batch that the loss sees: where that is a shard, or a part of it, within each of those.
      num_classes: above 0, everything is conditional on `batch["label"]`.
      remat: go through p(x | z_1) with one sample after another, and again in the backward pass: the memory of one
        sample instead of K.
      autoregressive: p(x | z_1) is a product of conditionals (Bowman et al. 2016). The first decoder is then
        `(z, condition, x=None, key=None)`: of x, what it says of each part given those before it; without x, of parts
        that it draws itself one by one with `key`, or takes the most probable of each without one, those parts being
        the mean of the likelihood. It has no field `output_bias`.

    Raises:
      ValueError: the networks do not fit together, or an option does not fit the objective.
    """
    if not len(encoders) == len(decoders) == len(latents) >= 1:
        raise ValueError(f"{len(encoders)} encoders, {len(decoders)} decoders, {len(latents)} latent sizes: want equal")
    if num_samples < 1 or min(latents) < 1:
        raise ValueError(f"num_samples is {num_samples} and latents are {tuple(latents)}: want at least 1 of each")
    if free_bits and (num_samples > 1 or len(latents) > 1):
        raise ValueError("free bits need a KL in closed form: num_samples=1 and one stochastic layer")
    if total_correlation != 1 and (num_samples > 1 or len(latents) > 1):
        raise ValueError("the total correlation is of the evidence lower bound: num_samples=1 and one stochastic layer")
    if (doubly_reparameterized or resampled) and num_samples == 1:
        kind = "doubly-reparameterised" if doubly_reparameterized else "resampled"
        raise ValueError(f"the {kind} gradient is of the importance-weighted bound, num_samples > 1")
    if (early_samples, early_steps) != (1, 0) and not (early_steps > 0 and 1 <= early_samples < num_samples):
        raise ValueError(
            f"the first {early_steps} steps are of early_samples={early_samples}, the others of "
            f"num_samples={num_samples}: want some steps, and of fewer samples"
        )
    top = len(latents) - 1

    # Networks ---------------------------------------------------------------------------------------------------------

    def init(key: Key, batch: Batch) -> Params:
        x = observe(batch, jax.random.fold_in(key, len(encoders)))
        bias = likelihood.bias(x.mean(0))
        condition = one_hot(jnp.zeros(1, jnp.int32))
        network = {}
        for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
            up, down = jax.random.split(jax.random.fold_in(key, layer))
            h = x[:1] if layer == 0 else jnp.zeros((1, latents[layer - 1]))
            if layer == 0 and not autoregressive:  # where Burda et al. start: with the mean image, whatever z is
                decoder = decoder.clone(output_bias=lambda key, shape, dtype: bias.reshape(shape).astype(dtype))
            network[f"encoder_{layer + 1}"] = encoder.init(up, h, condition)["params"]
            network[f"decoder_{layer + 1}"] = decoder.init(down, jnp.zeros((1, latents[layer])), condition)["params"]
        return {"vae": network} | ({"warmup": {"steps": jnp.zeros(())}} if warmup_steps or early_steps else {})

    def posterior(params: Params, layer: int, h: Array, condition: Array | None) -> tuple[Array, Array]:
        """q(z_l | h): mean and log-variance, [..., D_l]."""
        network = params["vae"][f"encoder_{layer + 1}"]
        return tuple(jnp.split(encoders[layer].apply({"params": network}, h, condition), 2, axis=-1))

    def down(params: Params, layer: int, z: Array, condition: Array | None, **more: Array) -> Array:
        """What z_l says of the layer below it: [..., 2 D_{l-1}], or the likelihood's output."""
        return decoders[layer].apply({"params": params["vae"][f"decoder_{layer + 1}"]}, z, condition, **more)

    def generate(params: Params, z: Array, condition: Array | None, key: Key | None = None) -> Array:
        """The mean of p(x | z_1), or with a key a draw from it."""
        if autoregressive:
            return likelihood.mean(down(params, 0, z, condition, **({} if key is None else {"key": key})))
        output = down(params, 0, z, condition)
        return likelihood.mean(output) if key is None else likelihood.sample(key, output)

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    # Terms of the bounds ----------------------------------------------------------------------------------------------

    def noise(key: Key, num_samples: int, x: Array) -> list[Array]:
        """Standard normal, for each layer [K, B, D_l]."""
        shape = num_samples, len(x)
        return [jax.random.normal(jax.random.fold_in(key, layer), (*shape, dim)) for layer, dim in enumerate(latents)]

    def infer(params: Params, x: Array, eps: Sequence[Array], condition: Array | None):
        """Z ~ q(z | x), reparameterised: for each layer z [K, B, D_l] and its (mu, logvar)."""
        zs, qs = [], []
        for layer, standard in enumerate(eps):
            mu, logvar = q = posterior(params, layer, zs[-1] if zs else x, condition)
            zs.append(mu + jnp.exp(0.5 * logvar) * standard)
            qs.append(q)
        return zs, qs

    def terms(params: Params, x: Array, zs, qs, condition: Array | None, *, analytic: bool = False) -> Terms:
        """The terms at given z. `analytic` takes the expectation over z_L in closed form, which lowers the variance."""

        def reconstruct(z: Array) -> Array:
            return likelihood.log_prob(x, down(params, 0, z, condition, **({"x": x} if autoregressive else {})))

        reconstruction = jax.lax.map(jax.checkpoint(reconstruct), zs[0]) if remat else reconstruct(zs[0])
        kl = []
        for layer, (z, q) in enumerate(zip(zs, qs, strict=True)):
            if layer == top:
                p = jnp.zeros(()), jnp.zeros(())
            else:
                p = jnp.split(down(params, layer + 1, zs[layer + 1], condition), 2, axis=-1)
            if layer == top and analytic:
                kl.append(jnp.broadcast_to(normal_kl(*q), z.shape))
            else:
                kl.append(normal_log_prob(z, *q) - normal_log_prob(z, *p))
        return Terms(reconstruction, tuple(kl))

    def terms_of(params: Params, x: Array, eps: Sequence[Array], condition: Array | None, **options: bool) -> Terms:
        """The terms at z ~ q(z | x)."""
        return terms(params, x, *infer(params, x, eps, condition), condition, **options)

    def log_weights(params: Params, x: Array, key: Key, num_samples: int, condition: Array | None = None) -> Array:
        return terms_of(params, x, noise(key, num_samples, x), one_hot(condition)).log_weight()

    # Objectives, each the mean over examples of a loss [B], by one sample or K ----------------------------------------

    def elbo_loss(params: Params, x: Array, key: Key, condition: Array | None, beta: Array) -> tuple[Array, Terms]:
        """Kingma & Welling 2014, eq. 10: -E_q[log p(x | z)] + KL(q(z | x) || p(z))."""
        zs, qs = infer(params, x, noise(key, 1, x), condition)
        t = terms(params, x, zs, qs, condition, analytic=True)
        pressed = t._replace(kl=tuple(jnp.maximum(kl, free_bits) for kl in t.kl)) if free_bits else t
        loss = -pressed.log_weight(beta)[0]
        if total_correlation != 1:
            loss += beta * (total_correlation - 1) * minibatch_total_correlation(zs[0][0], *qs[0])
        return loss, t

    def iwae_loss(
        K: int, params: Params, x: Array, key: Key, condition: Array | None, beta: Array
    ) -> tuple[Array, Terms]:
        """Burda et al. 2015, eq. 8: -log mean_k w_k."""
        t = terms_of(params, x, noise(key, K, x), condition)
        return -log_mean_exp(t.log_weight(beta)), t

    def surrogate_loss(
        K: int, params: Params, x: Array, key: Key, condition: Array | None, beta: Array
    ) -> tuple[Array, Terms]:
        """The same bound, its gradient estimated otherwise, by that of a weighted sum of log w.

        Doubly reparameterised, the encoder's is sum_k w~_k^2 dlog w_k/dz dz/dphi (Tucker et al. 2019, eq. 9). Where the
        KL weighs beta, so does the score of q, worth sum_k w~_k (1 - w~_k) (...): what is left is
        sum_k w~_k (1 - beta + beta w~_k) (...).
        Resampled, sum_k w~_k (...) is (...) of one sample, k ~ w~ (Burda et al. 2015, section 3).
        log w is written down twice, once to weigh and once to differentiate; where those are the same numbers, the
        compiler computes them once.
        """
        pick_key = jax.random.fold_in(key, len(latents))  # `noise` folds the key with the numbers below
        eps, frozen = noise(jax.random.clone(key), K, x), _freeze(params)
        t = terms_of(frozen, x, eps, condition)
        log_w = t.log_weight(beta)
        w = weight = jax.nn.softmax(log_w, axis=0)
        if resampled:
            k = jax.random.categorical(pick_key, log_w, axis=0)[None]
            eps = [jnp.take_along_axis(e, k[..., None], axis=0) for e in eps]
            w, weight = jnp.take_along_axis(w, k, axis=0), jnp.ones(())
        zs, qs = infer(params, x, eps, condition)
        if doubly_reparameterized:  # q as a density has no gradient of its own, only through z
            zs = [scale_gradient(z, (1 - beta + beta * w)[..., None]) for z in zs]
            qs = [posterior(frozen, i, zs[i - 1] if i else x, condition) for i in range(len(zs))]
        surrogate = -(weight * terms(params, x, zs, qs, condition).log_weight(beta)).sum(0)
        return -log_mean_exp(log_w) + surrogate - _freeze(surrogate), t

    many = surrogate_loss if doubly_reparameterized or resampled else iwae_loss

    def bound(K: int) -> Callable[..., dict[str, Array]]:
        """The means over examples of the loss by K samples, and of its terms."""
        objective = elbo_loss if K == 1 else partial(many, K)

        def means(*args: Any) -> dict[str, Array]:
            loss, t = objective(*args)
            kl = sum(kl.sum(-1).mean() for kl in t.kl)
            return {"loss": loss.mean(), "reconstruction": t.reconstruction.mean(), "kl": kl}

        return means

    def loss(params: Params, batch: Batch, key: Key) -> tuple[Array, Aux]:
        observe_key, key = jax.random.split(key)
        weight, writes = jnp.asarray(beta), {}
        if "warmup" in params:
            steps = params["warmup"]["steps"]
            writes = {"warmup": {"steps": steps + 1}}
        if warmup_steps:
            weight = beta * jnp.minimum(steps / warmup_steps, 1)
        given = params, observe(batch, observe_key), key, one_hot(batch.get("label")), weight
        if early_steps:
            metrics = jax.lax.cond(steps < early_steps, bound(early_samples), bound(num_samples), *given)
        else:
            metrics = bound(num_samples)(*given)
        return metrics["loss"], Aux(metrics, writes)

    # What a trained model can do --------------------------------------------------------------------------------------

    def evaluate(params: Params, batch: Batch, key: Key) -> dict[str, Array]:
        """The bound that is trained, and the terms of the evidence lower bound: without beta, warm-up or free bits."""
        observe_key, key = jax.random.split(key)
        x, condition = observe(batch, observe_key), one_hot(batch.get("label"))
        t = terms_of(params, x, noise(key, num_samples, x), condition, analytic=num_samples == 1)
        log_w, kl = t.log_weight(), sum(kl.sum(-1) for kl in t.kl)
        values = {"elbo": log_w.mean(0), "reconstruction": t.reconstruction.mean(0), "kl": kl.mean(0)}
        return {"loss": -log_mean_exp(log_w)} | values

    def encode(params: Params, x: Array, condition: Array | None = None) -> tuple[Array, Array]:
        mu, logvar = posterior(params, 0, x, one_hot(condition))
        for layer in range(1, len(latents)):
            mu, logvar = posterior(params, layer, mu, one_hot(condition))
        return mu, logvar

    def ancestral(
        params: Params, z: Array, condition: Array | None, key: Key | None, temperature: float = 1.0
    ) -> Array:
        """From z_L down to z_1."""
        for layer in range(top, 0, -1):
            z, logvar = jnp.split(down(params, layer, z, condition), 2, axis=-1)
            if key is not None:
                z += temperature * jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.fold_in(key, layer), z.shape)
        return z

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
        temperature: float = 1.0,
        draw: bool = False,
    ) -> Array:
        """[n, ...] as stored: the mean of p(x | z), or with `draw` a draw from it.

        `condition` is labels [n]; a conditional model that gets none draws them uniformly. `temperature` scales the
        standard deviation of the latents of every layer.
        """
        z_key, layers_key, label_key, x_key = jax.random.split(key, 4)
        z = temperature * jax.random.normal(z_key, (n, latents[top]))
        if num_classes and condition is None:
            condition = jax.random.randint(label_key, (n,), 0, num_classes)
        condition = one_hot(condition)
        z = ancestral(params, z, condition, layers_key, temperature)
        return store(generate(params, z, condition, x_key if draw else None))

    return VAE(
        init=init,
        objectives=(Objective("vae", loss, optimizer),),
        evaluate=evaluate,
        sample=sample,
        observe=observe,
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
    """Log q(z) - sum_d log q(z_d) at each z [B, D], [B]; q the mean of the posteriors of the batch.

    Chen et al. 2018, section 4.1 and appendix C.1: their minibatch-weighted sampling, up to a constant that depends on
    the sizes of batch and data set and has no gradient. Of B examples it sees at most (D - 1) log B.
    """
    log_q = normal_log_prob(z[:, None], mu, logvar)  # [B, B, D], log q(z_i | x_j) of each dimension
    log_each = logsumexp(log_q, axis=1) - jnp.log(len(z))
    return logsumexp(log_q.sum(-1), axis=1) - jnp.log(len(z)) - log_each.sum(-1)


@jax.custom_vjp
def scale_gradient(z: Array, weight: Array) -> Array:
    """z, whose gradient is multiplied by `weight` on its way back."""
    return z


scale_gradient.defvjp(lambda z, weight: (z, weight), lambda weight, g: (weight * g, jnp.zeros_like(weight)))
_freeze = jax.lax.stop_gradient
