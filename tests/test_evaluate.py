"""Means over a data set and their standard errors."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import transformer_text, wavenet_audio
from jaxgen.data.source import Spec
from jaxgen.data.vocabulary import byte
from jaxgen.evaluate import estimate, ratio

KEY = jax.random.key(0)


def test_a_constant_rate_has_no_error_however_long_the_examples():
    sizes = np.array([1, 10, 100, 7])
    found = ratio(8.0 * sizes, sizes)
    assert found.mean == 8.0
    assert found.error == 0.0
    assert estimate(8.0 * sizes).error / sizes.mean() > 1  # as if the mean size were a constant


def test_of_equal_sizes_it_is_the_mean_and_of_one_example_it_has_no_error():
    totals = np.array([1.0, 4.0, 2.5])
    found, plain = ratio(totals, np.full(3, 5)), estimate(totals / 5)
    np.testing.assert_allclose(found, plain, rtol=1e-12)
    assert ratio(np.array([6.0]), np.array([3])) == (2.0, 0.0)


def test_error_of_a_ratio_is_the_deviation_of_repeated_ratios():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 50, (4_000, 200))
    totals = 2.0 * sizes + rng.normal(size=sizes.shape) * np.sqrt(sizes)
    rates = totals.sum(1) / sizes.sum(1)
    errors = [ratio(*each).error for each in zip(totals[:200], sizes[:200], strict=True)]
    np.testing.assert_allclose(np.mean(errors), rates.std(), rtol=0.05)


def test_totals_that_are_not_finite_have_no_finite_rate():
    assert math.isnan(ratio(np.array([1.0, np.nan]), np.array([1, 2])).mean)


def constant(model, entry, nats, given):
    """The model with a loss of a given number of nats for each predicted token."""

    def evaluate(params, batch, key):
        predicted = batch[entry].shape[1] - given
        return {"loss": nats * (batch["length"] - given) / predicted}

    return replace(model, evaluate=evaluate)


def test_bits_per_sample_of_a_constant_model_are_certain():
    config = wavenet_audio.Config(model=wavenet_audio.ModelConfig(dilations=1, first_kernel=2, width=2, skip=2))
    spec = Spec("mine", {"audio": ((40,), "int16"), "length": ((), "int32")}, (), "none", "digest")
    experiment = wavenet_audio.build(config, spec)
    arrays = {"audio": np.zeros((5, 40), np.int16), "length": np.array([40, 3, 9, 40, 20], np.int32)}
    model = constant(experiment.model, "audio", 8 * math.log(2), 0)
    loss = wavenet_audio.experiment(model, config, spec, False).validate({}, arrays, KEY)["loss"]
    np.testing.assert_allclose(loss, (8 * math.log(2), 0), atol=1e-5)


@pytest.mark.parametrize("text", ["plain text", "Zoë saß 東"])
def test_bits_per_character_of_text_are_a_ratio_of_means(text):
    """Of bytes: every token of a window costs one nat, and characters differ in how many tokens they take."""
    tokens = np.frombuffer(text.encode(), np.uint8)
    windows = np.stack(
        [np.pad(tokens[i : i + 5], (0, max(0, i + 5 - len(tokens)))) for i in range(0, len(tokens) - 1, 4)]
    )
    length = np.minimum(len(tokens) - np.arange(0, len(tokens) - 1, 4), 5)
    config = transformer_text.Config(model=transformer_text.ModelConfig(layers=1, heads=1, width=2, context=4))
    spec = Spec("mine", {"tokens": ((5,), "uint8")}, (), "none", "digest", vocabulary=byte())
    experiment = transformer_text.build(config, spec)
    words, network = transformer_text.vocabulary(byte()), transformer_text.Transformer(256, 4, 1, 2, 1)
    model = constant(experiment.model, "tokens", 1.0, 1)
    figures = transformer_text.experiment(model, network, words, config, spec).measure(
        {}, {"tokens": windows, "length": length.astype(np.int32)}, KEY, lambda share: None
    )
    per_token, bits, _ = figures.values()
    np.testing.assert_allclose(per_token, (1, 0), atol=1e-6)
    starts = np.array([[byte & 0xC0 != 0x80 for byte in window] for window in windows])
    characters = [row[1:end].sum() for row, end in zip(starts, length, strict=True)]
    assert sum(characters) == len(text) - 1  # all but the first
    np.testing.assert_allclose(bits, ratio((length - 1) / math.log(2), characters), rtol=1e-5, atol=1e-6)
    assert (bits.error > 1e-3) == (not text.isascii())
