"""What a position may see, and that what was kept gives the same as reading all anew."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.networks.transformer import Block, Transformer, attend_to_some, turn

KINDS = {
    "rotary": {},
    "as GPT-2": {"starts": True, "positions": "learned", "norm": "layer", "bias": True},
    "grouped, gated": {"feed_forward": "swiglu", "kv_heads": 1, "tied": False, "starts": True, "unroll": 1},
}


def network(context=6, **options):
    return Transformer(vocabulary=7, context=context, layers=2, width=16, heads=2, **options)


def ready(net, length, rows=2, condition=None):
    tokens = jax.random.randint(jax.random.key(0), (rows, length), 0, net.vocabulary)
    variables = jax.jit(net.init)(jax.random.key(1), tokens, condition)
    return tokens, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, variables)


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_itself_or_what_follows(kind):
    """By the Jacobian with respect to the embedding of each token; and it does see all before, up to the context."""
    net = network(context=4, **KINDS[kind])
    length = 4 if net.positions == "learned" else 7
    tokens, variables = ready(net, length, rows=1)
    one_hot = jax.nn.one_hot(tokens[0], net.vocabulary)

    def outputs(one_hot):
        def soft(self, tokens):  # tokens as mixtures: the embedding is linear in them
            return one_hot[None, : tokens.shape[1]] @ self.embedding

        with patched(soft):
            return net.apply(variables, tokens)[0]

    jacobian = np.abs(jax.jit(jax.jacobian(outputs))(one_hot)).max((1, 3))  # [T - given, T]
    for i, j in itertools.product(range(len(jacobian)), range(length)):
        # Two layers of a window of four see seven positions: everything here.
        assert (jacobian[i, j] > 0) == (j < i + net.given), (i, j)


def patched(call):
    from unittest import mock

    import flax.linen as nn

    return mock.patch.object(nn.Embed, "__call__", call)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_kept_gives_what_reading_anew_gives(kind):
    """From every length of prompt, to beyond the context where positions are relative."""
    net = network(**KINDS[kind])
    length = 6 if net.positions == "learned" else 15
    tokens, variables = ready(net, length)
    whole = jax.jit(net.apply)(variables, tokens)
    assert float(whole.std()) > 0.1

    @partial(jax.jit, static_argnums=1)
    def kept(variables, prompt):
        output, cache = net.apply(variables, tokens[:, :prompt], method="prefill")
        extend = net.writer(variables["params"])

        def step(cache, token):
            output, cache = extend(token, cache)
            return cache, output

        _, outputs = jax.lax.scan(step, cache, tokens[:, prompt:-1].T)
        return jnp.concatenate([output[None], outputs]).swapaxes(0, 1)

    for prompt in {net.given, 5, length - 1} | ({9} if length > 9 else set()):
        np.testing.assert_allclose(kept(variables, prompt), whole[:, prompt - net.given :], rtol=1e-4, atol=1e-5)


def test_rotary_positions_are_relative():
    """The scores of queries and keys stay when both move on (Su et al. 2021, eq. 11)."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))

    def score(i, j):
        frequency = 10_000.0 ** (-jnp.arange(4) / 4)
        q_i, k_j = (turn(x, position * frequency[None]) for x, position in ((q, i), (k, j)))
        return (q_i * k_j).sum(-1)

    np.testing.assert_allclose(score(3, 1), score(103, 101), rtol=1e-3, atol=1e-4)
    assert not np.allclose(score(3, 1), score(3, 2), atol=1e-3)


def test_fewer_heads_of_keys_are_shared_by_neighbouring_queries():
    """With the shared ones written out for every head, the same network."""
    options = {"context": 4, "norm": "rms", "feed_forward": "gelu", "dropout": 0.0, "residual_scale": 1.0}
    shared, full = (Block(heads=4, kv_heads=n, bias=False, dtype=None, **options) for n in (2, 4))
    x = jax.random.normal(jax.random.key(0), (2, 4, 16))
    where = jnp.arange(4), jnp.arange(4)[:, None] * jnp.ones((1, 2))
    variables = jax.jit(shared.init)(jax.random.key(1), x, where)
    kernel = variables["params"]["query_key_value"]["kernel"].reshape(16, 8, 4)
    q, k, v = jnp.split(kernel, (4, 6), axis=1)
    repeated = jnp.concatenate([q, jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)], axis=1).reshape(16, -1)
    other = {"params": variables["params"] | {"query_key_value": {"kernel": repeated}}}
    found, expected = (jax.jit(net.apply)(of, x, where)[0] for net, of in ((shared, variables), (full, other)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("context", [3, 8])
def test_attention_that_drops_nothing_is_attention(context):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 8, heads, 4)) for i, heads in enumerate((4, 2, 2)))
    window = (context - 1, 0) if context < 8 else None
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
    np.testing.assert_allclose(attend_to_some(q, k, v, context, lambda weights: weights), expected, atol=1e-6)


def test_dropout_drops_weights_of_attention_too():
    """In training only: with one value for all keys, the output of a row is the share of its weights that stayed."""
    q, v = jax.random.normal(jax.random.key(0), (1, 8, 2, 4)), jnp.ones((1, 8, 2, 4))
    half = partial(jnp.multiply, jnp.arange(8) % 2 == 0)  # every other key
    kept = attend_to_some(q, q, v, 8, half)
    assert 0 < kept[0, 1].min() < kept[0, 1].max() < 1
    model = Transformer(vocabulary=5, layers=1, heads=2, width=8, context=8, dropout=0.5)
    tokens = jnp.zeros((1, 9), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    keys = [{"dropout": jax.random.key(i)} for i in (1, 2)]
    apply = jax.jit(model.apply)
    one, other, same = (apply(params, tokens, rngs=rngs) for rngs in (*keys, keys[0]))
    assert (one == same).all()
    assert (one != other).any()


def test_unrolled_or_not_recomputed_or_not_it_is_the_same():
    tokens, variables = ready(network(), 6)

    def gradient(**options):
        net = network(**options)
        return jax.jit(jax.grad(lambda v: (net.apply(v, tokens) ** 2).sum()))(variables)

    for options in ({"unroll": 1}, {"remat": True}):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-4), gradient(), gradient(**options))


def test_parameters_are_float32_and_few():
    net = network(dtype="bfloat16", feed_forward="swiglu")
    tokens, variables = ready(net, 6)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.jit(net.apply)(variables, tokens)
    assert logits.dtype == jnp.float32
    plain = jax.jit(network(feed_forward="swiglu").apply)(variables, tokens)
    assert 0 < float(jnp.abs(logits - plain).max()) < 0.3
    gelu = sum(x.size for x in jax.tree.leaves(ready(network(), 6)[1]))
    assert abs(sum(x.size for x in jax.tree.leaves(variables)) / gelu - 1) < 0.15


def test_logits_are_those_of_gpt_2():
    """Against the architecture of Radford et al. 2019, written in PyTorch, with the same random weights."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    net = Transformer(
        vocabulary=11, context=8, layers=2, width=16, heads=4, positions="learned", norm="layer", bias=True
    )
    tokens, variables = ready(net, 9)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), variables)
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), variables["params"])

    def norm(x, p):
        return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-5)

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    ids = torch.tensor(np.asarray(tokens[:, :-1]), dtype=torch.long)
    x = p["embed"]["embedding"][ids] + p["place"]
    for layer in range(2):
        b = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        q, k, v = dense(norm(x, b["LayerNorm_0"]), b["query_key_value"]).split(16, dim=-1)
        q, k, v = (a.view(2, 8, 4, 4).transpose(1, 2) for a in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 8, 16)
        x = x + dense(attended, b["attended"])
        x = x + dense(F.gelu(dense(norm(x, b["LayerNorm_1"]), b["hidden"]), approximate="tanh"), b["output"])
    expected = norm(x, p["last_norm"]) @ p["embed"]["embedding"].T
    np.testing.assert_allclose(jax.jit(net.apply)(variables, tokens), expected.numpy(), rtol=1e-4, atol=1e-4)
