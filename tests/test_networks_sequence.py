"""A decoder that writes: what it says it writes with which probability, it writes as often."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.emissions import categorical
from jaxgen.networks.sequence import Decoder, Encoder

LENGTH, WORDS, STOP = 4, 4, 1


@pytest.fixture(scope="module")
def decoder():
    network = Decoder(length=LENGTH, vocabulary=WORDS, stop=STOP, context=3, layers=1, width=16, heads=2)
    z = jax.random.normal(jax.random.key(1), (2, 3))
    params = jax.jit(network.init)(jax.random.key(0), z)
    return jax.jit(network.apply), jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params), z


def sentences():
    """All that can be written: to the first STOP, or without one to the end; and of each how long it is."""
    every = [s for s in itertools.product(range(WORDS), repeat=LENGTH) if STOP not in s]
    ended = [
        (*s, *[STOP] * (LENGTH - n))
        for n in range(LENGTH)
        for s in itertools.product([w for w in range(WORDS) if w != STOP], repeat=n)
    ]
    lengths = [LENGTH] * len(every) + [min(LENGTH, s.index(STOP) + 1) for s in ended]
    return np.array(every + ended), np.array(lengths)


def ended(tokens, lengths):
    """-1 after the end of each."""
    return jnp.asarray(np.where(np.arange(LENGTH) < lengths[:, None], tokens, -1))


def test_probabilities_of_all_sentences_sum_to_one_and_are_those_of_draws(decoder):
    apply, params, z = decoder
    tokens, lengths = sentences()
    x = ended(tokens, lengths)
    logits = apply(params, jnp.broadcast_to(z[0], (len(x), 3)), x=x)
    p = np.exp(categorical(WORDS).log_prob(x, logits).sum(-1))
    assert p.max() > 3 / len(p)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
    n = 10_000
    drawn = apply(params, jnp.broadcast_to(z[0], (n, 3)), key=jax.random.key(3)).argmax(-1)
    number = {tuple(map(int, s)): i for i, s in enumerate(tokens)}
    counts = np.bincount([number[tuple(s)] for s in np.asarray(drawn).tolist()], minlength=len(p))
    assert (np.abs(counts / n - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-9).all()


def test_without_a_key_it_writes_the_most_probable_each_time(decoder):
    apply, params, z = decoder
    tokens = np.asarray(apply(params, z).argmax(-1))
    lengths = np.where((tokens == STOP).any(1), (tokens == STOP).argmax(1) + 1, LENGTH)
    again = np.asarray(apply(params, z, x=ended(tokens, lengths)).argmax(-1))
    for one, other, length in zip(tokens, again, lengths, strict=True):
        np.testing.assert_array_equal(one[:length], other[:length])
        assert (one[length:] == STOP).all()


def test_samples_come_first_as_they_do_elsewhere(decoder):
    """[K, B, D] is K times [B, D]."""
    apply, params, z = decoder
    tokens, lengths = sentences()
    x = ended(tokens[:2], lengths[:2])
    both = apply(params, jnp.stack([z, 2 * z]), x=x)
    assert both.shape == (2, 2, LENGTH, WORDS)
    for one, scale in zip(both, (1, 2), strict=True):
        np.testing.assert_allclose(one, apply(params, scale * z, x=x), rtol=1e-4, atol=1e-5)


def test_a_place_has_not_seen_what_comes_after(decoder):
    apply, params, z = decoder
    x = jnp.array([[0, 2, 3, 0]] * 2)
    logits, other = (apply(params, z, x=some) for some in (x, x.at[:, 2].set(0)))
    np.testing.assert_allclose(logits[:, :3], other[:, :3], rtol=1e-5)
    assert not np.allclose(logits[:, 3], other[:, 3])


def test_the_encoder_leaves_out_what_is_no_part():
    network = Encoder(vocabulary=WORDS, width=8, outputs=6, layers=1, taps=3)
    x = jnp.array([[0, 2, 1, -1], [3, 1, -1, -1]])
    params = jax.jit(network.init)(jax.random.key(0), x)
    outputs = jax.jit(network.apply)(params, x)
    assert outputs.shape == (2, 6)
    assert not np.allclose(outputs[0], jax.jit(network.apply)(params, x.at[0, 0].set(x[0, 1]))[0])
    np.testing.assert_allclose(outputs[1], jax.jit(network.apply)(params, x.at[0].set(-1))[1], rtol=1e-5)
