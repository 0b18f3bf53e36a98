"""The chain rule of probability, and how tokens are drawn."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import check_frequencies, check_model, mesh_of

from jaxgen import distributions, parallel
from jaxgen.emissions import Controls, bernoulli, categorical, filtered, logistic_mixture
from jaxgen.models.autoregressive import Condition, autoregressive
from jaxgen.networks.transformer import Transformer
from jaxgen.step import init_state, make_step
from jaxgen.types import Codec

WORDS = 7
LABEL = Condition("label", 3, partial(jax.nn.one_hot, num_classes=3))


def text_model(optimizer=None, *, length=6, emission=None, **options):
    network = Transformer(vocabulary=WORDS, context=5, layers=1, width=16, heads=2, **options.pop("network", {}))
    return autoregressive(
        network=network,
        emission=emission or categorical(WORDS),
        codec=Codec(lambda batch, key: batch["tokens"], lambda tokens: tokens.astype(jnp.uint8)),
        optimizer=optimizer or optax.sgd(0.1),
        length=length,
        opening=[0] * network.given,
        **options,
    )


def text_batch(rows=8, length=6, seed=0):
    return {"tokens": jnp.asarray(np.random.default_rng(seed).integers(0, WORDS, (rows, length)), jnp.uint8)}


def sharp(model, batch, scale=6.0):
    """Parameters large enough for probabilities far from uniform."""
    params = jax.jit(model.init)(jax.random.key(0), batch)
    return jax.tree.map(lambda x: scale * x if x.ndim > 1 else x, params)


def labelled(**options):
    model, batch = text_model(condition=LABEL, **options), text_batch()
    return model, batch | {"label": jnp.arange(len(batch["tokens"]), dtype=jnp.int32) % 3}


def test_conformance():
    check_model(text_model, text_batch(), entry="tokens")


def test_conformance_with_a_condition_and_unequal_lengths():
    options = {"network": {"starts": True, "positions": "learned", "norm": "layer", "bias": True}, "length": 5}
    options |= {"condition": LABEL}
    batch = text_batch(length=5) | {"label": jnp.arange(8, dtype=jnp.int32) % 3}
    check_model(lambda optimizer: text_model(optimizer, **options), batch, entry="tokens")


@pytest.mark.parametrize("starts", [True, False])
def test_probabilities_of_all_texts_sum_to_one(starts):
    model = text_model(network={"starts": starts}, length=4)
    every = jnp.asarray(list(itertools.product(range(WORDS), repeat=3)), jnp.uint8)
    tokens = every if starts else jnp.concatenate([jnp.full((len(every), 1), 2, jnp.uint8), every], axis=1)
    params = sharp(model, {"tokens": tokens})
    log_p = jax.jit(model.log_prob)(params, tokens)
    assert float(log_p.std()) > 0.3
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1, rtol=1e-4)


def test_what_lies_beyond_the_length_does_not_count():
    model, batch = text_model(), text_batch()
    params, length = sharp(model, batch), jnp.asarray([2, 3, 4, 5, 6, 6, 6, 1], jnp.int32)
    other = {"tokens": jnp.where(jnp.arange(6) < length[:, None], batch["tokens"], 3)}
    log_prob = jax.jit(model.log_prob)
    one, two = (log_prob(params, b["tokens"], None, length) for b in (batch, other))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    alone = log_prob(params, batch["tokens"][:1, :2])
    np.testing.assert_allclose(one[0], alone[0], rtol=1e-5)
    assert one[-1] == 0  # only what is given


def test_a_padded_batch_has_the_same_gradient_however_it_is_split():
    """Shards hold unequally many tokens; a mean over tokens would weigh them wrongly."""
    model, batch = text_model(optax.sgd(0.1)), text_batch()
    batch |= {"length": jnp.asarray([2, 2, 3, 3, 6, 6, 6, 6], jnp.int32)}
    state = jax.jit(partial(init_state, model))(jax.random.key(0), batch)
    plain, _ = jax.jit(make_step(model))(state, batch)
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        make_step(model, axis_name="data"),
        mesh=parallel.make_mesh(),
        in_specs=(spec(), spec("data")),
        out_specs=spec(),
    )
    split, _ = jax.jit(mapped)(state, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), plain.params, split.params)


def test_a_condition_left_out_is_the_model_without_one():
    model, batch = labelled()
    params = sharp(model, batch)
    outputs = jax.jit(model.outputs)
    with_it, without = (outputs(params, batch["tokens"], label) for label in (batch["label"], None))
    assert not np.allclose(with_it, without)
    begin = jax.jit(model.begin, static_argnames="guided")
    prefix = begin(params, batch["tokens"][:, :3].astype(jnp.int32), batch["label"], guided=True)
    np.testing.assert_allclose(prefix.output, jnp.concatenate([with_it[:, 2], without[:, 2]]), rtol=1e-4, atol=1e-5)


def test_condition_dropout_leaves_it_out_as_often_as_asked():
    model, batch = labelled(condition_dropout=1.0)
    always, batch = labelled()
    params, key = sharp(model, batch), jax.random.key(3)
    loss = jax.jit(model.objectives[0].loss)(params, batch, key, 0)[0]
    bare = -jax.jit(model.log_prob)(params, batch["tokens"]).mean()
    np.testing.assert_allclose(loss, bare, rtol=1e-5)
    kept = jax.jit(always.objectives[0].loss)(params, batch, key, 0)[0]
    assert abs(float(kept - bare)) > 1e-3


def test_dropout_is_for_training_only():
    model, batch = text_model(network={"dropout": 0.5}), text_batch()
    params, loss = sharp(model, batch), jax.jit(model.objectives[0].loss)
    one, two = (loss(params, batch, jax.random.key(i), 0)[0] for i in range(2))
    assert one != two
    evaluate = jax.jit(model.evaluate)
    np.testing.assert_array_equal(*(evaluate(params, batch, jax.random.key(i))["loss"] for i in range(2)))


# Drawing --------------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_with_their_probabilities():
    """Of all texts of two tokens after a given one, by 20,000 draws."""
    model = text_model(length=3)
    every = jnp.asarray([(0, a, b) for a, b in itertools.product(range(WORDS), repeat=2)], jnp.uint8)
    params = sharp(model, {"tokens": every})
    expected = np.exp(jax.jit(model.log_prob)(params, every))
    drawn = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 20_000)
    counts = np.bincount(np.asarray(drawn[:, 1], int) * WORDS + drawn[:, 2], minlength=WORDS**2)
    error = np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(counts / 20_000 - expected) < 5 * error + 1e-9).all()


def test_greedy_decoding_is_the_most_probable_token_each_time():
    model, batch = text_model(), text_batch()
    params = sharp(model, batch)
    sample = jax.jit(model.sample, static_argnames=("n", "length"))
    texts = [
        sample(params, jax.random.key(i), 2, prompt=[1, 2], length=9, controls=Controls(temperature=0)) for i in (0, 1)
    ]
    np.testing.assert_array_equal(*texts)
    outputs = jax.jit(model.outputs)(params, texts[0])  # the window slides: the context is 5
    np.testing.assert_array_equal(outputs[:, 1:].argmax(-1), texts[0][:, 2:])


def test_unequal_prompts_stay_as_they_are_and_draw_what_each_would_alone():
    model, batch = text_model(), text_batch()
    params, lengths = sharp(model, batch), (1, 3, 2)
    prompt = jnp.asarray([[4, 0, 0], [1, 2, 3], [5, 6, 0]], jnp.int32)
    sample = jax.jit(model.sample, static_argnames=("n", "length", "controls", "prompt_length"))
    greedy = {"length": 8, "controls": Controls(temperature=0)}
    together = sample(params, jax.random.key(0), 3, prompt=prompt, prompt_length=lengths, **greedy)
    for row, length in enumerate(lengths):
        alone = sample(params, jax.random.key(0), 1, prompt=prompt[row, :length], **greedy)
        np.testing.assert_array_equal(together[row], alone[0])


def test_pieces_are_the_whole():
    model, batch = text_model(), text_batch()
    params, key = sharp(model, batch), jax.random.key(5)
    whole = jax.jit(model.sample, static_argnames=("n", "length"))(params, key, 2, length=12)
    prefix = jax.jit(model.begin)(params, jnp.zeros((2, 1), jnp.int32))
    pieces = [np.zeros((2, 1), np.int32)]
    for steps in (4, 4, 3):
        prefix, tokens = jax.jit(model.grow, static_argnums=3)(params, prefix, key, steps)
        pieces.append(tokens)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_one_device_and_four_draw_the_same():
    model, batch = text_model(), text_batch()
    params = sharp(model, batch)
    results = []
    for count in (1, 4):
        mesh = mesh_of(count)
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        sample = jax.jit(model.sample, static_argnums=2, out_shardings=rows)
        placed = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        results.append(np.asarray(sample(placed, jax.random.key(2), 8)))
    np.testing.assert_array_equal(*results)


def test_after_the_stop_token_nothing_comes():
    model, batch = text_model(stop=3), text_batch()
    params = sharp(model, batch, scale=1.0)
    texts = np.asarray(jax.jit(model.sample, static_argnames=("n", "length"))(params, jax.random.key(0), 64, length=20))
    stopped = np.maximum.accumulate(texts == 3, axis=1)
    assert stopped[:, -1].mean() > 0.5
    assert (texts[stopped] == 3).all()


def test_guidance_goes_from_one_model_to_the_other_and_beyond():
    model, batch = labelled()
    params, label = sharp(model, batch), batch["label"]
    sample = jax.jit(model.sample, static_argnames=("n", "length"))

    def drawn(label, guidance):
        controls = Controls(temperature=1.0, guidance=guidance)
        return sample(params, jax.random.key(1), 8, label, length=8, controls=controls)

    np.testing.assert_array_equal(drawn(label, 1.0), drawn(label, None))
    np.testing.assert_array_equal(drawn(label, 0.0), drawn(None, None))
    assert not np.array_equal(drawn(label, 5.0), drawn(label, None))


def test_top_k_and_top_p_leave_out_what_is_less_probable():
    logits = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]]))
    kept = {
        Controls(top_k=1): [[0, 1, 0, 0], [1, 0, 0, 0]],
        Controls(top_k=2): [[0, 1, 0, 1], [1, 0, 1, 0]],
        Controls(top_k=9): [[1, 1, 1, 1], [1, 1, 1, 1]],
        Controls(top_p=0.5): [[0, 1, 0, 1], [1, 0, 0, 0]],
        Controls(top_p=0.8): [[0, 1, 1, 1], [1, 0, 1, 0]],
        Controls(top_p=1e-9): [[0, 1, 0, 0], [1, 0, 0, 0]],
        Controls(top_p=1.0): [[1, 1, 1, 1], [1, 1, 1, 1]],
        Controls(top_k=3, top_p=0.5): [[0, 1, 0, 1], [1, 0, 0, 0]],
    }
    for controls, expected in kept.items():
        left = filtered(logits, controls)
        np.testing.assert_array_equal(jnp.isfinite(left), np.array(expected, bool), err_msg=str(controls))
        np.testing.assert_array_equal(jnp.where(jnp.isfinite(left), left, 0), jnp.where(jnp.isfinite(left), logits, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": Controls(temperature=-1)}, "temperature -1: expected 0"),
        ({"controls": Controls(top_k=0)}, "top-k 0: expected at least 1"),
        ({"controls": Controls(top_p=0.0)}, "top-p 0.0: expected"),
        ({"controls": Controls(guidance=2.0)}, "this one has no condition"),
        ({"prompt": [1, 2, 3], "length": 2}, "a prompt of 3 tokens for 2 in all"),
        ({"prompt": []}, "a prompt of 0 tokens"),
    ],
)
def test_what_cannot_be_asked_for_is_said(options, message):
    model, batch = text_model(), text_batch()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: model.sample(params, jax.random.key(0), 2, **options), sharp(model, batch))


def test_learned_positions_end_and_an_opening_is_wanted():
    model = text_model(network={"positions": "learned"})
    with pytest.raises(ValueError, match="ends at 6"):
        jax.eval_shape(lambda p: model.sample(p, jax.random.key(0), 2, length=7), sharp(model, text_batch()))
    with pytest.raises(ValueError, match="an opening of 0 tokens"):
        autoregressive(
            network=Transformer(vocabulary=WORDS, context=5, layers=1, width=8, heads=2),
            emission=categorical(WORDS),
            codec=Codec(lambda batch, key: batch["tokens"], lambda tokens: tokens),
            optimizer=optax.sgd(0.1),
            length=3,
        )


# Emissions ------------------------------------------------------------------------------------------------------------


def outcomes(levels: int, channels: int) -> jax.Array:
    """All values of a pixel, [levels ** channels, channels]."""
    return jnp.asarray(list(itertools.product(range(levels), repeat=channels)), jnp.int32)


@pytest.mark.parametrize("width", [-30.0, -2.0, 0.0, 2.0])  # narrower than a level, and wider than all of them
@pytest.mark.parametrize(("levels", "channels"), [(256, 1), (16, 2), (6, 3)])
def test_logistic_mixture_sums_to_one_and_draws_what_it_says(levels, channels, width):
    emission = logistic_mixture(components=3, channels=channels, levels=levels)
    output = jax.random.normal(jax.random.key(channels), (emission.width,))
    per_component = output[3:].reshape(3, -1).at[:, channels : 2 * channels].add(width)
    output = jnp.concatenate([output[:3], per_component.at[:, 2 * channels :].multiply(2).reshape(-1)])
    p = np.exp(jax.jit(emission.log_prob)(outcomes(levels, channels), output))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
    n = 20_000
    draw = jax.jit(emission.sample)
    drawn = draw(jax.random.key(1), jnp.broadcast_to(output, (n, emission.width)), Controls())
    assert drawn.shape == (n, channels)
    check_frequencies(p, np.asarray(drawn) @ levels ** np.arange(channels)[::-1])


@pytest.mark.parametrize("width", [-30.0, 0.0])
def test_what_the_logistic_mixture_draws_in_color_costs_its_entropy(width):
    """Of 256 levels: the mean of -log p of samples is the entropy, here the sum over all 65,536 values."""
    emission, n = logistic_mixture(components=1, channels=2), 4_000
    output = jnp.asarray([0.0, 0.0, 0.0, width, width, 2.0])
    log_p = np.asarray(jax.jit(emission.log_prob)(outcomes(256, 2), output), np.float64)
    entropy = -np.where(log_p > -100, np.exp(log_p) * log_p, 0).sum()
    drawn = emission.sample(jax.random.key(0), jnp.broadcast_to(output, (n, 6)), Controls())
    cost = -np.asarray(emission.log_prob(drawn, output), np.float64)
    assert abs(cost.mean() - entropy) < 5 * cost.std() / np.sqrt(n)


def test_gradients_of_the_logistic_mixture_are_finite_for_extreme_parameters():
    emission = logistic_mixture(components=2)
    compiled = jax.jit(jax.value_and_grad(lambda output, tokens: emission.log_prob(tokens, output).sum()))
    for scale in (1e2, 1e4, 1e6):
        output = scale * jnp.asarray([[1.0, -1, 1, 1, -1, -1], [-1.0, 1, -1, 1, 1, -1], [0.0, 0, 0, -1, 0, 1]])
        for pixel in (0, 127, 255):
            tokens = jnp.full((3, 1), pixel)
            value, gradient = compiled(output, tokens)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


def test_bernoulli_emission_is_a_bernoulli():
    emission, logits = bernoulli(2), jnp.asarray([[1.0, -2.0]])
    value = emission.log_prob(jnp.asarray([[1, 0]]), logits)
    np.testing.assert_allclose(value, distributions.bernoulli_log_prob(jnp.asarray([[1.0, 0.0]]), logits))
    drawn = emission.sample(jax.random.key(0), jnp.broadcast_to(logits, (5_000, 2)), Controls())
    np.testing.assert_allclose(drawn.mean(0), jax.nn.sigmoid(logits[0]), atol=0.03)
    np.testing.assert_array_equal(emission.sample(jax.random.key(0), logits, Controls(temperature=0)), [[1, 0]])


@pytest.mark.parametrize(
    ("emission", "events"),
    [(categorical(5), np.arange(5)), (bernoulli(3), np.array(list(itertools.product(range(2), repeat=3))))],
    ids=["categorical", "bernoulli"],
)
def test_emissions_draw_with_the_probabilities_that_they_give(emission, events):
    output, n = jax.random.normal(jax.random.key(2), (emission.width,)), 20_000
    log_p = emission.log_prob(jnp.asarray(events), jnp.broadcast_to(output, (len(events), emission.width)))
    p = np.exp(log_p.reshape(len(events), -1).sum(-1))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    drawn = np.asarray(emission.sample(jax.random.key(3), jnp.broadcast_to(output, (n, emission.width)), Controls()))
    check_frequencies(p, drawn if drawn.ndim == 1 else drawn.astype(int) @ [4, 2, 1])
