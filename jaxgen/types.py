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
Step = jax.Array  # int32 [], the number of finished steps


class Aux(NamedTuple):
    """What a loss returns beside its value.

    `writes` holds new values of entries of `Params` that no objective trains: batch statistics, spectral vectors,
    codebooks, the progress of a schedule.
    """

    metrics: Metrics = {}
    writes: Params = {}


class Objective(NamedTuple):
    """Minimize `loss(params, batch, key, step)` with respect to `params[wrt]`, at every `every`-th step.

    Objectives on the same network share one optimizer and its state, as a loss and its lazy regularizer should (Karras
    et al. 2020, appendix B).

    Attributes:
      name: in reports, by default that of the network.
      gradient: `(loss, has_aux=True) -> ((network, batch, key) -> ((value, aux), gradient))`, on a part of a batch.
      noise: `(gradient, key, number of examples) -> gradient`, applied once to the mean over all parts of a batch.
    """

    wrt: str
    loss: Callable[[Params, Batch, Key, Step], tuple[Scalar, Aux]]
    optimizer: optax.GradientTransformation
    every: int = 1
    name: str = ""
    gradient: Callable[..., Callable[..., Any]] = jax.value_and_grad
    noise: Callable[[PyTree, Key, int], PyTree] | None = None


class Report(NamedTuple):
    """What a step reports of one objective: scalars, or [K] over steps.

    Attributes:
      due: bool, whether the objective was due; where it was not, the numbers below are 0.
      loss: its value.
      metrics: of the loss.
      gradient_norm: with a guard, the norm of the gradient.
      skipped: with a guard, bool, whether the update was left out since loss or gradient were not finite.
    """

    due: jax.Array
    loss: jax.Array
    metrics: Metrics
    gradient_norm: jax.Array | None = None
    skipped: jax.Array | None = None


class Codec(NamedTuple):
    """Stored data and what a model sees of them.

    Attributes:
      observe: `(batch, key) -> x [B, ...]`; the key is for data that are drawn anew each time, as a binarization is.
      store: `x -> samples` of the shape and dtype of the stored data.
      protocol: whatever a likelihood of x depends on, such as {"binarization": "dynamic"}.
    """

    observe: Callable[[Batch, Key], jax.Array]
    store: Callable[[jax.Array], jax.Array]
    protocol: dict[str, str | int] = {}


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
