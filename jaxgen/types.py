"""The few shapes that everything else hangs on. No logic."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.struct
import jax
import optax

PyTree = Any
Key = jax.Array  # a typed PRNG key, shape []
Scalar = jax.Array  # shape []
Params = dict[str, PyTree]  # one entry per network
Batch = dict[str, jax.Array]  # leading axis = example; uint8, int32 or float32 as stored
Metrics = dict[str, jax.Array]  # scalars


class Aux(NamedTuple):
    """What a loss returns beside its value.

    `writes` holds new values of entries of `Params` that no objective trains: batch statistics, spectral vectors,
    codebooks, the progress of a schedule.
    """

    metrics: Metrics = {}
    writes: Params = {}


class Private(NamedTuple):
    """An optimiser that sees no gradient but in privacy: DP-SGD (Abadi et al. 2016, algorithm 1).

    Its `update` is given the mean over the batch of the examples' gradients, each clipped to the norm `example_norm`,
    and Gaussian noise on it: of their sum the standard deviation `noise_multiplier * example_norm`.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    example_norm: float
    noise_multiplier: float


class Objective(NamedTuple):
    """Minimise `loss(params, batch, key)` with respect to `params[wrt]`, at every `every`-th step.

    Objectives on the same network share one optimiser and its state, as a loss and its lazy regulariser should (Karras
    et al. 2020, appendix B); `name` tells them apart in the metrics, and is by default that of the network.
    """

    wrt: str
    loss: Callable[[Params, Batch, Key], tuple[Scalar, Aux]]
    optimizer: optax.GradientTransformation | Private
    every: int = 1
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What every family provides; a family that has more to offer (encode, decode, ...) derives from it.

    Attributes:
      init: `(key, batch) -> params`; the batch gives shapes and dtypes, and the mean at which an output may start.
      objectives: a variational autoencoder or an autoregressive model has one, an adversarial model two.
      evaluate: `(params, batch, key) -> {name: [B]}`, per example, so that an evaluation is its masked mean.
      sample: `(params, key, n, condition=None, **controls) -> [n, ...]`, of the shape and dtype of the stored data.
    """

    init: Callable[[Key, Batch], Params]
    objectives: tuple[Objective, ...]
    evaluate: Callable[[Params, Batch, Key], dict[str, jax.Array]]
    sample: Callable[..., jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and nothing else: arrays only.

    Attributes:
      step: int32 [], the number of finished steps.
      key: PRNG key that never changes; all that is random at step t derives from `fold_in(key, t)`.
      noise: PRNG key of the noise of private training, independent of `key`; None in other training.
      params: one entry per network.
      opt_state: one entry per network that an objective trains.
      ema: `params` with an exponential moving average of every network that an objective trains, or None.
    """

    step: jax.Array
    key: Key
    params: Params
    opt_state: dict[str, PyTree] = field(default_factory=dict)
    ema: Params | None = None
    noise: Key | None = None
