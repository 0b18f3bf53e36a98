"""Autoregressive models: p(x) as a product of p(x_t | x_<t), all of it exact.

A network reads tokens and gives at each the parameters of the next one's distribution, an `Emission`. Tokens are
[B, T] of text, or [B, T, C] of images: T pixels of C channels each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxgen.emissions import PLAIN, Controls, Emission
from jaxgen.types import Aux, Batch, Codec, Key, Model, Objective, Params, Step

Array = jax.Array


class Network(Protocol):
    """A Flax module; `condition` is [B, K] or None, an output holds what the head needs for one token.

    Attributes:
      given: how many tokens at the start it does not predict.
      limit: the longest sequence that it can be asked for, or None.
    """

    given: int
    limit: int | None

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        """[B, T, ...] -> outputs [B, T - given, ...], each of one token and made of those before it only."""

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Any]:
        """[B, P, ...] -> output [B, ...] of token P, and a cache of what was read, in one pass."""

    def writer(self, params: dict) -> Callable[[Array, Any], tuple[Array, Any]]:
        """`(token [B, ...], cache) -> (output [B, ...] of the token after it, cache)`, for many tokens in a row."""


class Condition(NamedTuple):
    """What else a network knows.

    Attributes:
      entry: of the batch.
      size: K.
      encode: that entry as stored -> vectors [B, K].
      hide: `(key, entry as stored) ->` the same without the parts that a training step is to do without, so that they
        can be left out of what is asked for.
    """

    entry: str
    size: int
    encode: Callable[[Array], Array]
    hide: Callable[[Key, Array], Array] | None = None


class Prefix(NamedTuple):
    """A sequence that grows: the network's output for its next token, and what it remembers of those before."""

    output: Array
    cache: Any
    position: Array  # int32 [], how many tokens there are


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Model):
    """A `Model`, and what only a product of conditionals can do. A `condition` is as stored: labels [B], or [B, K].

    Attributes:
      observe: `(batch, key) -> tokens [B, T, ...]`.
      outputs: `(params, tokens, condition=None) -> [B, T - given, ...]`.
      log_prob: `(params, tokens, condition=None, length=None) -> [B]`, nats, of tokens `given` and on, and no
        further than each example's `length` [B].
      begin: `(params, prompt [B, P, ...], condition=None, guided=False) -> Prefix`, in one pass over the prompt.
      grow: `(params, prefix, key, steps, controls, forced=None) -> (Prefix, tokens [B, steps, ...])`, one at a time.
    """

    observe: Callable[[Batch, Key], Array]
    outputs: Callable[..., Array]
    log_prob: Callable[..., Array]
    begin: Callable[..., Prefix]
    grow: Callable[..., tuple[Prefix, Array]]


def autoregressive(
    *,
    network: Network,
    emission: Emission,
    codec: Codec,
    optimizer: optax.GradientTransformation,
    length: int,
    opening: Sequence[int] | Array = (),
    per_token: bool = False,
    condition: Condition | None = None,
    condition_dropout: float = 0.0,
    stop: int | None = None,
) -> Autoregressive:
    """A network that predicts the next token.

    A loss is a mean over examples, of each the sum over its tokens: shards of a batch may hold unequally many tokens
    and yet their mean is that of the batch, as it would not be of means over tokens.

    Args:
      network: what reads the tokens.
      emission: the distribution of a token, given the network's output.
      codec: stored data to tokens [B, T, ...], integers, and back.
      optimizer: of the network.
      length: tokens of a sample, unless another number is asked for.
      opening: [P, ...], what samples begin with where no prompt is given; at least as many tokens as are `given`.
      per_token: divide the loss, in nats, by the number of tokens that an example of full length predicts.
      condition: what else the network is told.
      condition_dropout: share of examples that are trained without their condition, for classifier-free guidance.
      stop: token after which a sample is over; it is repeated to the end.

    Raises:
      ValueError: the opening is shorter than what the network does not predict.
    """
    if len(opening) < network.given:
        raise ValueError(f"an opening of {len(opening)} tokens: the network wants {network.given} that it is given")

    def init(key: Key, batch: Batch) -> Params:
        shape = jax.eval_shape(codec.observe, jax.tree.map(lambda a: a[:1], batch), key)
        tokens = jnp.zeros(shape.shape, shape.dtype)
        return {"network": network.init(key, tokens, vectors(None, 1))["params"]}

    # What the network says --------------------------------------------------------------------------------------------

    def vectors(given: Array | None, rows: int, kept: Array | None = None) -> Array | None:
        """[B, K + 1], the last number being 1; all 0 where the condition is left out."""
        if condition is None:
            return None
        if given is None:
            return jnp.zeros((rows, condition.size + 1))
        vector = jnp.concatenate([condition.encode(given), jnp.ones((rows, 1))], axis=-1)
        return vector if kept is None else vector * kept[:, None]

    def outputs(params: Params, tokens: Array, given: Array | None = None, **training: Any) -> Array:
        """`training` is who keeps the condition, and keys of what is random in the network."""
        vector = vectors(given, tokens.shape[0], training.pop("kept", None))
        return network.apply({"params": params["network"]}, tokens, vector, **training)

    def log_prob(
        params: Params, tokens: Array, given: Array | None = None, length: Array | None = None, **training: Any
    ) -> Array:
        log_p = emission.log_prob(tokens[:, network.given :], outputs(params, tokens, given, **training))
        log_p = log_p.reshape(*log_p.shape[:2], -1).sum(-1)
        if length is not None:
            log_p = jnp.where(jnp.arange(network.given, tokens.shape[1]) < length[:, None], log_p, 0.0)
        return log_p.sum(-1)

    def evaluate(params: Params, batch: Batch, key: Key, **training: Any) -> dict[str, Array]:
        tokens, length = codec.observe(batch, key), batch.get("length")
        given, predicted = batch[condition.entry] if condition else None, tokens.shape[1] - network.given
        return {"loss": -log_prob(params, tokens, given, length, **training) / (predicted if per_token else 1)}

    def loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[Array, Aux]:
        observe_key, dropout_key, kept_key, hidden_key = jax.random.split(key, 4)
        training = {"rngs": {"dropout": dropout_key}}
        if condition is not None and condition_dropout:
            rows = len(batch[condition.entry])
            training["kept"] = jax.random.bernoulli(kept_key, 1 - condition_dropout, (rows,))
        if condition is not None and condition.hide:
            parts = condition.hide(hidden_key, batch[condition.entry])
            batch = batch | {condition.entry: parts}
        value = evaluate(params, batch, observe_key, **training)["loss"].mean()
        return value, Aux({"loss": value})

    # Drawing ----------------------------------------------------------------------------------------------------------

    def begin(params: Params, prompt: Array, given: Array | None = None, guided: bool = False) -> Prefix:
        """With `guided`, rows without the condition stand below those with it."""
        vector = vectors(given, prompt.shape[0])
        if guided:
            if condition is None:
                raise ValueError("guidance is of a conditional model, and this one has no condition")
            vector = jnp.concatenate([vector, jnp.zeros_like(vector)])
            prompt = jnp.concatenate([prompt, prompt])
        output, cache = network.apply({"params": params["network"]}, prompt, vector, method="prefill")
        return Prefix(output, cache, jnp.asarray(prompt.shape[1], jnp.int32))

    def grow(
        params: Params,
        prefix: Prefix,
        key: Key,
        steps: int,
        controls: Controls = PLAIN,
        forced: tuple[Array, Array] | None = None,
    ) -> tuple[Prefix, Array]:
        """`forced` is (tokens [B, steps, ...], how many of them [B]): what is known of the following tokens already.

        The draw of token t depends on (key, t) only, however the steps are cut into calls.
        """
        guided = controls.guidance is not None

        def draw(output: Array, position: Array) -> Array:
            if guided:
                with_it, without = jnp.split(output, 2)
                output = without + controls.guidance * (with_it - without)
            return emission.sample(jax.random.fold_in(key, position), output, controls).astype(jnp.int32)

        def step(carry: tuple[Prefix, Array], i: Array) -> tuple[tuple[Prefix, Array], Array]:
            (output, cache, position), over = carry
            token = draw(output, position)
            if forced is not None:
                known = (i < forced[1]).reshape(-1, *(1,) * (token.ndim - 1))
                token = jnp.where(known, forced[0][:, i].astype(token.dtype), token)
            if stop is not None:
                token = jnp.where(over, stop, token)
                over = over | (token == stop)
            each = jnp.concatenate([token, token]) if guided else token
            output, cache = write(each, cache)
            return (Prefix(output, cache, position + 1), over), token

        rows, write = prefix.output.shape[0] // (2 if guided else 1), network.writer(params["network"])
        (prefix, _), tokens = jax.lax.scan(step, (prefix, jnp.zeros((rows,), bool)), jnp.arange(steps))
        return prefix, jnp.moveaxis(tokens, 0, 1)

    default_length = length

    def sample(
        params: Params,
        key: Key,
        n: int,
        condition: Array | None = None,
        *,
        prompt: Array | None = None,
        prompt_length: Sequence[int] | None = None,
        length: int = default_length,
        controls: Controls = PLAIN,
    ) -> Array:
        """[n, length, ...] as stored, prompt included.

        `prompt` [P, ...] or [n, P, ...] is what samples begin with; of unequal ones, `prompt_length` [n] says how long
        each is, and what all of them have is read in one pass.

        Raises:
          ValueError: a control is out of its range, the prompt does not fit, or the network ends before.
        """
        controls.check()
        prompt = jnp.asarray(opening if prompt is None else prompt, jnp.int32)
        prompt = prompt if prompt.size else prompt.reshape(0, *emission.event)
        if prompt.ndim == 1 + len(emission.event):
            prompt = jnp.broadcast_to(prompt, (n, *prompt.shape))
        least = prompt.shape[1] if prompt_length is None else min(prompt_length)
        if not network.given <= least <= prompt.shape[1] <= length:
            raise ValueError(
                f"a prompt of {least} tokens for {length} in all: expected {network.given} to {length} of them"
            )
        if network.limit is not None and length > network.limit:
            raise ValueError(f"{length} tokens: this network ends at {network.limit}")
        known, rest = prompt[:, :least], length - least
        if not rest:
            return codec.store(known)
        prefix = begin(params, known, condition, controls.guidance is not None)
        forced = None
        if prompt_length is not None and least < prompt.shape[1]:
            following = (
                jnp.zeros((n, length, *emission.event), jnp.int32).at[:, : prompt.shape[1]].set(prompt)[:, least:]
            )
            forced = following, jnp.asarray(prompt_length) - least
        _, tokens = grow(params, prefix, key, rest, controls, forced)
        return codec.store(jnp.concatenate([known, tokens.astype(known.dtype)], axis=1))

    return Autoregressive(
        init=init,
        objectives=(Objective("network", loss, optimizer),),
        evaluate=evaluate,
        sample=sample,
        observe=codec.observe,
        outputs=outputs,
        log_prob=log_prob,
        begin=begin,
        grow=grow,
    )
