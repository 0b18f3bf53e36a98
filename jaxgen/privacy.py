"""What differentially private training (`jaxgen.types.Private`) guarantees: epsilon at a delta."""

import importlib.util
from collections.abc import Sequence

import numpy as np

from jaxgen.errors import UserError
from jaxgen.types import Objective


def check(delta: float | None) -> None:
    """Raises UserError where epsilon cannot be computed: at such a delta, or at all."""
    if delta is not None and not 0 < delta < 1:
        raise UserError(f"--delta {delta}: expected a number between 0 and 1, or None")
    if importlib.util.find_spec("dp_accounting") is None:
        raise UserError("--optimizer.noise-multiplier needs dp-accounting: pip install -e '.[privacy]'")


def default_delta(num_examples: int) -> float:
    """The power of ten next below 1 / N."""
    return 10.0 ** -len(str(num_examples))


def releases(objectives: Sequence[Objective], steps: int) -> dict[int, int]:
    """{k: in how many of the steps k of the objectives are due}: each gives away a noisy gradient of the same batch."""
    t = np.arange(steps)
    due = sum(((t % o.every == o.every - 1).astype(int) for o in objectives), np.zeros(steps, int))
    return {int(k): int(count) for k, count in zip(*np.unique(due, return_counts=True), strict=True) if k}


def epsilon(*, sampling_rate: float, noise_multiplier: float, steps: dict[int, int], delta: float) -> float:
    """Of (epsilon, delta)-differential privacy, of data sets that differ in one example, added or left out.

    An upper bound by the Renyi divergences of the sampled Gaussian mechanism (Mironov et al. 2019), for batches into
    which every example comes with the same probability, by itself.

    Args:
      sampling_rate: that probability, at most 1.
      noise_multiplier: standard deviation of the noise, in units of the largest norm of an example's gradient.
      steps: `releases`; k Gaussians of one batch tell as much as one of which the noise is sqrt(k) times smaller.
      delta: between 0 and 1.
    """
    if not steps:
        return 0.0
    if not noise_multiplier:
        return float("inf")
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for k, count in steps.items():
        accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier / k**0.5)), count)
    return float(accountant.get_epsilon(delta))
