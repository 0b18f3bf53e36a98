"""Dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def drop(module: nn.Module, rate: float, x: jax.Array) -> jax.Array:
    """Dropout, where the module has a key for it (Srivastava et al. 2014)."""
    if not rate or not module.has_rng("dropout"):
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
