"""Flax Linen modules: the shapes of functions. They know nothing of losses, data or training."""
