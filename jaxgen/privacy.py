"""Differentially private training: clipped and noisy gradients, their (epsilon, delta) guarantee, and the noise key."""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.errors import UserError
from jaxgen.types import Aux, Batch, Key, Model, Objective, PyTree

# Change of one example, and how far it moves a sum of gradients that are clipped to norm 1.
RELATIONS = {"zeroed out": 1, "replaced": 2}

NOTICE = (
    "this training is private: its noise comes from the operating system, so the seed does not reproduce the run. "
    "checkpoints/ holds the key of the noise, which undoes the protection: keep that folder secret"
)


def privately(model: Model, *, example_norm: float, noise_multiplier: float) -> Model:
    """The model trained by DP-SGD (Abadi et al. 2016, algorithm 1), for every objective.

    The optimizer receives the mean over the batch of the examples' gradients, each clipped to the norm `example_norm`,
    plus Gaussian noise of standard deviation `noise_multiplier * example_norm` on their sum. Each example is a batch
    of one with its own key.
    """

    def noise(gradient: PyTree, key: Key, examples: int) -> PyTree:
        deviation = noise_multiplier * example_norm / examples
        return optax.tree.add_scale(gradient, deviation, optax.tree.random_like(key, gradient, jax.random.normal))

    gradient = partial(_clipped, example_norm)
    return replace(model, objectives=tuple(o._replace(gradient=gradient, noise=noise) for o in model.objectives))


def _clipped(norm: float, loss: Callable[..., tuple[jax.Array, Aux]], *, has_aux: bool) -> Callable[..., tuple]:
    """`jax.value_and_grad(loss)`, but with gradients of single examples that are clipped before their mean is taken."""
    gradient = jax.value_and_grad(loss, has_aux=has_aux)

    def mean(network: PyTree, batch: Batch, key: Key) -> tuple[tuple[jax.Array, Aux], PyTree]:
        rows, one = len(next(iter(batch.values()))), partial(gradient, network)
        examples = jax.tree.map(lambda x: x[:, None], batch)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))
        (values, aux), grads = jax.vmap(one)(examples, keys)
        if aux.writes:
            try:  # JAX refuses to leave out the axis of the examples where a value depends on them
                jax.eval_shape(jax.vmap(lambda *each: one(*each)[0][1].writes, out_axes=None), examples, keys)
            except ValueError:
                raise UserError(
                    "--optimizer.noise-multiplier: this loss writes down what depends on its examples, past the noise, "
                    "as batch normalization does: use a model without it (such as --model.norm group), or no noise",
                    shared=True,
                ) from None
        total, _ = optax.per_example_global_norm_clip(grads, norm)
        metrics, writes = jax.tree.map(lambda x: x.mean(0), aux.metrics), jax.tree.map(lambda x: x[0], aux.writes)
        return (values.mean(), Aux(metrics, writes)), jax.tree.map(lambda x: x / rows, total)

    return mean


def default_delta(num_examples: int) -> float:
    """The largest power of ten below 1 / num_examples."""
    return 10.0 ** -len(str(num_examples))


def entropy(key: Key) -> list:
    """Fresh words for a PRNG key (or several) of the shape of `key`, from the operating system: nested lists of uint32.

    The default generator of JAX, Threefry, has keys of 64 bits.
    """
    shape = jax.eval_shape(jax.random.key_data, key).shape
    return np.frombuffer(secrets.token_bytes(4 * math.prod(shape)), np.uint32).reshape(shape).tolist()


def releases(objectives: Sequence[Objective], steps: int, steps_per_epoch: int) -> int:
    """Largest possible number of noisy gradients that depend on one example.

    Each example takes part in at most one step per epoch. Every objective that is due at that step releases a gradient.
    The maximum is over all orders of the data, so the example meets the busiest step of every epoch.
    """
    if not steps:
        return 0
    t = np.arange(steps)
    due = sum(((t % o.every == o.every - 1).astype(int) for o in objectives), np.zeros(steps, int))
    return int(np.maximum.reduceat(due, np.arange(0, steps, steps_per_epoch)).sum())


def epsilon(*, noise_multiplier: float, releases: int, delta: float, sensitivity: float = 1.0) -> float:
    """Epsilon of (epsilon, delta)-differential privacy of `releases` adaptively chosen Gaussian mechanisms.

    Their composition is exactly one Gaussian mechanism whose noise is sqrt(releases) times smaller (Dong et al. 2022,
    corollary 3.3), and its epsilon has a closed form (Balle & Wang 2018, theorem 8). Subsampling gives no amplification
    here: that would require Poisson batches, and training shuffles epochs (Chua et al. 2024). For a fixed order of the
    data the bound is exact at the worst case, and it holds for every distribution of orders that ignores the data.

    Args:
      noise_multiplier: standard deviation of the noise on a sum of gradients, in units of the clipping norm.
      releases: noisy gradients that depend on one example, see the function `releases`.
      delta: between 0 and 1.
      sensitivity: how far the change of one example moves a sum of gradients, in units of the clipping norm:
        1 if its gradients become zero (zero-out adjacency), 2 if another example takes its place (replace-one
        adjacency), see `RELATIONS`.
    """
    if not releases:
        return 0.0
    mu = sensitivity * math.sqrt(releases) / noise_multiplier if noise_multiplier else math.inf
    low, high = 0.0, mu * (mu / 2 + math.sqrt(-2 * math.log(delta)))  # above by the Gaussian tail
    if high == math.inf:
        return high
    if gaussian_delta(mu, low) <= delta:
        return low
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism at `epsilon`; `mu` is its sensitivity in standard deviations of the noise."""
    from scipy.special import log_ndtr

    above, below = (float(log_ndtr(side * mu / 2 - epsilon / mu)) for side in (1, -1))
    return -math.exp(above) * math.expm1(min(0.0, epsilon + below - above))
