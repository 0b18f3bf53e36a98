"""Base of the networks that can write a sequence token by token."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

Write = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


class Sequential(nn.Module):
    """A network with a method `extend(token, cache) -> (output, cache)`."""

    def writer(self, params: dict) -> Write:
        """`extend` with these parameters, for many tokens in a row."""
        return lambda token, cache: self.apply({"params": params}, token, cache, method="extend")
