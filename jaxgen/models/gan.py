"""Generative adversarial networks: a generator G and a discriminator D that play against each other.

G turns noise z into examples; D gives an example a number, high for what looks real. A `Loss` says what the two of them
minimise, a `Penalty` what else D does. Everything here is per row, [B]: an example, or several packed into one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.types import Aux, Batch, Codec, Key, Model, Objective, Params, Step

Array = jax.Array
softplus = jax.nn.softplus
OBSERVE = 2  # number that the key of what a codec draws is folded with; splits of a key in two take 0 and 1


@dataclass(frozen=True, kw_only=True)
class GAN(Model):
    """A `Model`, and what only a pair of networks can do. A `condition` is labels, int [B].

    Attributes:
      prior: `(key, n) -> z [n, D]`.
      generate: `(params, z [B, D], condition=None) -> x [B, ...]` in the range of `observe`.
      discriminate: `(params, x [B, ...], condition=None) -> [B]`.
      observe: `(batch, key) -> x [B, ...]`, what the discriminator sees of the stored data: the codec's.
      latents: D.
    """

    prior: Callable[[Key, int], Array]
    generate: Callable[..., Array]
    discriminate: Callable[..., Array]
    observe: Callable[[Batch, Key], Array]
    latents: int


# Losses ---------------------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """What the players minimise: `(D(x), D(G(z))) -> [B]` each, of rows that belong together."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array, Array], Array]


def minimax() -> Loss:
    """Goodfellow et al. 2014, eq. 1: min_G max_D E log D(x) + E log(1 - D(G(z))), D the logistic of the output."""
    return Loss(
        discriminator=lambda real, fake: softplus(-real) + softplus(fake),
        generator=lambda real, fake: -softplus(fake),
    )


def non_saturating() -> Loss:
    """Goodfellow et al. 2014, section 3: the same game, in which G maximises log D(G(z)) instead."""
    return Loss(
        discriminator=lambda real, fake: softplus(-real) + softplus(fake),
        generator=lambda real, fake: softplus(-fake),
    )


def least_squares() -> Loss:
    """Mao et al. 2017 (LSGAN), eq. 9: fake is 0, real is 1."""
    return Loss(
        discriminator=lambda real, fake: 0.5 * (real - 1) ** 2 + 0.5 * fake**2,
        generator=lambda real, fake: 0.5 * (fake - 1) ** 2,
    )


def wasserstein() -> Loss:
    """Arjovsky et al. 2017, eq. 3: the earth mover's distance, as far as a penalty keeps D Lipschitz."""
    return Loss(
        discriminator=lambda real, fake: fake - real,
        generator=lambda real, fake: -fake,
    )


def hinge() -> Loss:
    """Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17."""
    return Loss(
        discriminator=lambda real, fake: nn.relu(1 - real) + nn.relu(1 + fake),
        generator=lambda real, fake: -fake,
    )


def relativistic() -> Loss:
    """Jolicoeur-Martineau 2019; Huang et al. 2024 (R3GAN), eq. 2: is a real example more real than its fake partner?"""
    return Loss(
        discriminator=lambda real, fake: softplus(fake - real),
        generator=lambda real, fake: softplus(real - fake),
    )


# Penalties ------------------------------------------------------------------------------------------------------------


class Penalty(NamedTuple):
    """What D minimises beside its loss: `value(score, real, fake, key) -> [B]`, `score` being D as a function of x.

    With `every` above 1 it is left to every so many-th step, as a step of its own and so many times as heavy (Karras et
    al. 2020, appendix B).
    """

    name: str
    value: Callable[[Callable[[Array], Array], Array, Array, Key], Array]
    every: int = 1


def r1(gamma: float, every: int = 1) -> Penalty:
    """Mescheder et al. 2018, eq. 9: gamma / 2 |grad D(x)|^2 at real examples."""
    return Penalty("R1", lambda score, real, fake, key: gamma / 2 * _square(_gradient(score, real)), every)


def r2(gamma: float, every: int = 1) -> Penalty:
    """Mescheder et al. 2018, eq. 10: gamma / 2 |grad D(G(z))|^2 at generated ones."""
    return Penalty("R2", lambda score, real, fake, key: gamma / 2 * _square(_gradient(score, fake)), every)


def gradient_penalty(weight: float, every: int = 1) -> Penalty:
    """Gulrajani et al. 2017, eq. 3: weight (|grad D(x)| - 1)^2 at a random place between a real example and a fake."""

    def value(score: Callable[[Array], Array], real: Array, fake: Array, key: Key) -> Array:
        t = jax.random.uniform(key, (len(real), *(1,) * (real.ndim - 1)))
        square = _square(_gradient(score, t * real + (1 - t) * fake))
        return weight * (jnp.sqrt(square + 1e-12) - 1) ** 2  # at 0 the root has no derivative

    return Penalty("gradient penalty", value, every)


def _gradient(score: Callable[[Array], Array], x: Array) -> Array:
    """[B, ...]: of each row's output with respect to that row."""
    return jax.grad(lambda x: score(x).sum())(x)


def _square(x: Array) -> Array:
    """[B, ...] -> [B]: squared Euclidean norm."""
    return (x.reshape(len(x), -1) ** 2).sum(-1)


# The game -------------------------------------------------------------------------------------------------------------


def gan(
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    latents: int,
    loss: Loss,
    penalties: Sequence[Penalty] = (),
    codec: Codec,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    n_critic: int = 1,
    pack: int = 1,
    num_classes: int = 0,
    prior: Literal["normal", "uniform", "mixture"] = "normal",
    augment: Callable[[Array, Key, Array], Array] | None = None,
    augment_target: float | None = None,
    augment_step: float = 64 / 500_000,
) -> GAN:
    """A generator and a discriminator. Both train at each step, on the same real examples and noise of their own.

    Args:
      generator: `(z [B, D], condition) -> x [B, ...]`.
      discriminator: `(x [B, ...], condition) -> [B]`, or [B, 1].
      latents: D.
      loss: what the two minimise.
      penalties: what the discriminator minimises beside that.
      codec: stored data to x [B, ...], float32 in the range of the generator's output, and back.
      generator_optimizer: steps once for `n_critic` steps of the other.
      discriminator_optimizer: of the discriminator, and of lazy penalties.
      n_critic: steps of the discriminator for one of the generator.
      pack: examples that the discriminator judges together, joined along the last axis (Lin et al. 2018, PacGAN).
      num_classes: above 0, everything is conditional on `batch["label"]`.
      prior: of each latent: N(0, 1); uniform in [-1, 1]; or a mixture of N(-1, 1/25) and N(1, 1/25), of z thus one of
        2^D Gaussians (Ben-Yosef & Weinshall 2018, GM-GAN): a continuous G of a prior in one piece joins modes that are
        apart.
      augment: `(x, key, p) -> x`, differentiable, of what the discriminator sees, real or not; p is its strength.
      augment_target: mean sign of D at real examples that p is steered to (Karras et al. 2020, ADA: 0.6). None: p is 1.
      augment_step: by which p is steered at a step; Karras et al. let it go from 0 to 1 within 500,000 examples.

    Raises:
      ValueError: an option does not fit another.
    """
    if n_critic < 1 or pack < 1 or latents < 1:
        raise ValueError(f"n_critic is {n_critic}, pack is {pack}, latents are {latents}: want at least 1 of each")
    if pack > 1 and num_classes:
        raise ValueError("pack joins examples of any label: leave out the condition, or use pack=1")
    if any(penalty.every < 1 for penalty in penalties):
        raise ValueError("a penalty is due every 1 step, or more")

    # Networks: the parameters of NAME are params[NAME], what else it remembers is params[NAME_statistics] -------------

    def init(key: Key, batch: Batch) -> Params:
        observe_key, key = jax.random.fold_in(key, OBSERVE), jax.random.clone(key)
        x, condition = (
            codec.observe(jax.tree.map(lambda a: a[:1], batch), observe_key),
            one_hot(jnp.zeros(1, jnp.int32)),
        )
        generator_key, discriminator_key = jax.random.split(key)
        made = {
            "generator": generator.init(generator_key, jnp.zeros((1, latents)), condition),
            "discriminator": discriminator.init(discriminator_key, packed(jnp.repeat(x, pack, axis=0)), condition),
        }
        statistics = {f"{name}_statistics": v["batch_stats"] for name, v in made.items() if "batch_stats" in v}
        adaptive = {} if augment_target is None else {"augmentation": {"p": jnp.zeros(())}}
        return {name: variables["params"] for name, variables in made.items()} | statistics | adaptive

    def call(
        name: str, params: Params, x: Array, condition: Array | None, *, training: bool, key: Key | None = None
    ) -> tuple[Array, Params]:
        """The output, and the statistics that it leaves behind; `key` is for what a network draws."""
        network, statistics = {"generator": generator, "discriminator": discriminator}[name], f"{name}_statistics"
        variables, rngs = {"params": params[name]}, {} if key is None else {"dropout": key}
        if statistics not in params:
            return network.apply(variables, x, condition, rngs=rngs), {}
        variables["batch_stats"] = params[statistics]
        if not training:
            return network.apply(variables, x, condition, rngs=rngs), {}
        output, new = network.apply(variables, x, condition, rngs=rngs, mutable=["batch_stats"])
        return output, {statistics: new["batch_stats"]}

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def packed(x: Array) -> Array:
        """[B, ..., C] -> [B / pack, ..., pack C]."""
        if pack == 1:
            return x
        if len(x) % pack:
            raise ValueError(f"a batch of {len(x)} cannot be packed by {pack}: want a multiple")
        return jnp.concatenate(jnp.split(x.reshape(-1, pack, *x.shape[1:]), pack, axis=1), axis=-1)[:, 0]

    def draw(key: Key, n: int, truncation: float = math.inf) -> Array:
        """Latents [n, D], their noise within that distance of 0 (Brock et al. 2019)."""
        if prior == "uniform":
            return min(truncation, 1.0) * jax.random.uniform(key, (n, latents), minval=-1.0, maxval=1.0)
        if prior == "mixture":
            key, sign_key = jax.random.split(key)
        noise = (
            jax.random.truncated_normal(key, -truncation, truncation, (n, latents))
            if truncation < math.inf
            else jax.random.normal(key, (n, latents))
        )
        return noise if prior == "normal" else jax.random.rademacher(sign_key, noise.shape, noise.dtype) + noise / 5

    # The players' losses ----------------------------------------------------------------------------------------------

    def play(params: Params, batch: Batch, key: Key) -> tuple[Array, Array, Array | None, Params]:
        """Real rows, fake rows, their condition, the generator's statistics."""
        observe_key, key = jax.random.fold_in(key, OBSERVE), jax.random.clone(key)
        real, condition = codec.observe(batch, observe_key), one_hot(batch.get("label"))
        fake, writes = call("generator", params, draw(key, len(real)), condition, training=True)
        return packed(real), packed(fake), condition, writes

    def judge(params: Params, x: Array, condition: Array | None, key: Key) -> tuple[Array, Params]:
        """D of rows as they are, or augmented; [B]."""
        key, augment_key = jax.random.split(key)
        if augment is not None:
            x = augment(x, augment_key, jnp.ones(()) if augment_target is None else params["augmentation"]["p"])
        output, writes = call("discriminator", params, x, condition, training=True, key=key)
        return output.reshape(len(x)), writes

    def score(params: Params, condition: Array | None, key: Key) -> Callable[[Array], Array]:
        return lambda x: judge(params, x, condition, key)[0]

    def discriminator_loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[Array, Aux]:
        play_key, real_key, fake_key, key = jax.random.split(key, 4)
        x_real, x_fake, condition, _ = play(params, batch, play_key)
        real, writes = judge(params, x_real, condition, real_key)
        fake, writes = judge(params | writes, x_fake, condition, fake_key)
        value = loss.discriminator(real, fake).mean()
        metrics = {"discriminator loss": value, "discriminator real": real.mean(), "discriminator fake": fake.mean()}
        for i, penalty in enumerate(penalties):
            if penalty.every == 1:
                judge_key, value_key = jax.random.split(jax.random.fold_in(key, i))
                at = score(params, condition, judge_key), x_real, x_fake
                metrics[penalty.name] = penalty.value(*at, value_key).mean()
                value += metrics[penalty.name]
        if augment_target is not None:
            p, overfit = params["augmentation"]["p"], jnp.sign(real).mean() - augment_target
            p = jnp.clip(p + jnp.sign(overfit) * augment_step, 0, 1)
            writes, metrics = writes | {"augmentation": {"p": p}}, metrics | {"augmentation": p}
        return value, Aux(metrics, writes)

    def lazy_loss(penalty: Penalty, params: Params, batch: Batch, key: Key, step: Step) -> tuple[Array, Aux]:
        play_key, judge_key, key = jax.random.split(key, 3)
        real, fake, condition, _ = play(params, batch, play_key)
        value = penalty.value(score(params, condition, judge_key), real, fake, key).mean()
        return penalty.every * value, Aux({penalty.name: value})

    def generator_loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[Array, Aux]:
        play_key, real_key, fake_key = jax.random.split(key, 3)
        x_real, x_fake, condition, writes = play(params, batch, play_key)
        real, _ = judge(params, x_real, condition, real_key)
        fake, _ = judge(params, x_fake, condition, fake_key)
        value = loss.generator(real, fake).mean()
        return value, Aux({"generator loss": value}, writes)

    lazy = (p for p in penalties if p.every > 1)
    objectives = (
        Objective("discriminator", discriminator_loss, discriminator_optimizer),
        *(Objective("discriminator", partial(lazy_loss, p), discriminator_optimizer, p.every, p.name) for p in lazy),
        Objective("generator", generator_loss, generator_optimizer, every=n_critic),
    )

    # What a trained model can do --------------------------------------------------------------------------------------

    def generate(params: Params, z: Array, condition: Array | None = None) -> Array:
        return call("generator", params, z, one_hot(condition), training=False)[0]

    def discriminate(params: Params, x: Array, condition: Array | None = None) -> Array:
        """Each example packed with those that follow it."""
        rows = jnp.concatenate([jnp.roll(x, -i, axis=0) for i in range(pack)], axis=-1)
        return call("discriminator", params, rows, one_hot(condition), training=False)[0].reshape(len(x))

    def evaluate(params: Params, batch: Batch, key: Key) -> dict[str, Array]:
        observe_key, key = jax.random.fold_in(key, OBSERVE), jax.random.clone(key)
        x, condition = codec.observe(batch, observe_key), batch.get("label")
        real = discriminate(params, x, condition)
        fake = discriminate(params, generate(params, draw(key, len(x)), condition), condition)
        return {"discriminator loss": loss.discriminator(real, fake), "discriminator real": real}

    def sample(
        params: Params, key: Key, n: int, condition: Array | None = None, *, truncation: float | None = None
    ) -> Array:
        """[n, ...] as stored. `condition` is labels [n]; a conditional model that gets none draws them uniformly.

        `truncation` keeps every latent within that distance of 0 (Brock et al. 2019): less diverse, more typical.
        """
        z_key, label_key = jax.random.split(key)
        z = draw(z_key, n, math.inf if truncation is None else truncation)
        if num_classes and condition is None:
            condition = jax.random.randint(label_key, (n,), 0, num_classes)
        return codec.store(generate(params, z, condition))

    return GAN(
        init=init,
        objectives=objectives,
        evaluate=evaluate,
        sample=sample,
        prior=draw,
        generate=generate,
        discriminate=discriminate,
        observe=codec.observe,
        latents=latents,
    )
