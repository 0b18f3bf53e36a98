"""What copies is told from what does not, however blurred; what a likelihood betrays equals its definition."""

import math
from statistics import NormalDist

import jax
import numpy as np
import pytest

from experiments import pixelcnn_mnist
from jaxgen.data import load_images
from jaxgen.data.source import batch_indices, gather
from jaxgen.errors import UserError
from jaxgen.experiment import initializer
from jaxgen.metrics.memorization import MOST, SOME, SURE, membership, memorization, nearest
from jaxgen.step import make_step, over_seeds, scan_steps


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("dtype", "block"), [(np.float64, 7), (np.float32, 1000)])
def test_nearest_is_the_nearest(rng, dtype, block):
    x, y = (100 + rng.normal(size=(n, 4)).astype(dtype) for n in (30, 41))
    distances = np.array([[math.dist(a, b) for b in y] for a in x])
    index, distance = nearest(x, y, block=block)
    np.testing.assert_array_equal(index, distances.argmin(1))
    np.testing.assert_allclose(distance, distances.min(1), rtol=1e-9)
    assert not nearest(y[:5], y, block=block)[1].any()


def draws(rng, *counts, width=6):
    return [rng.normal(size=(count, width)) for count in counts]


def test_the_test_is_calibrated(rng):
    """Of models that sample from the distribution itself, no more are suspected than the level says."""
    found = [memorization(*draws(rng, 300, 200, 150), seed=seed) for seed in range(40)]
    for p in (np.array([one.close.p_value for one in found]), np.array([one.overall.p_value for one in found])):
        assert (p < 0.1).mean() < 0.25
    shares = [one.overall.share for one in found]
    assert all(0 <= share.low <= share.value <= share.high <= 1 for share in shares)
    assert np.mean([share.low == 0 for share in shares]) >= 0.9
    assert np.mean([share.value for share in shares]) < 0.1  # nothing below 0
    assert not any(one.copies for one in found)
    assert np.mean([one.near.value for one in found]) == pytest.approx(0.01, abs=0.01)


def test_blurred_samples_are_near_and_no_copies(rng):
    """The middle of a cluster is nearer to its examples than they are to each other."""
    middles = 10 * rng.normal(size=(20, 30))
    samples, train, held_out = (
        middles[rng.integers(20, size=count)] + noise * rng.normal(size=(count, 30))
        for count, noise in ((500, 0.1), (400, 1), (300, 1))
    )
    found = memorization(samples, train, held_out)
    assert found.near.value > 0.9
    assert not found.copies
    assert str(found).startswith("no copying detected (p = ")
    one = memorization(np.tile(train[:1], (500, 1)), train, held_out)  # all alike: by chance near one of the two
    assert one.near.value == 1
    assert not one.copies
    assert one.p_value == 1
    assert (one.distinct, one.detectable) == (1, 10)  # 0.57 ** 9 is 0.0065, 0.57 ** 10 is 0.0037
    assert str(one).startswith(
        "no verdict on copying (p = 1.0000): of 500 samples, compared with 400 training and 300 "
    )
    limit = "Copies of fewer than 10 different training examples cannot be detected, and the samples have only 1 diff"
    assert limit in str(one)


def test_binary_examples_at_equal_distances_are_shared_out(rng):
    found = [memorization(*(rng.integers(2, size=(n, 8)) for n in (300, 400, 100)), seed=seed) for seed in range(10)]
    assert np.mean([one.overall.share.value for one in found]) < 0.15
    assert not any(one.copies for one in found)


def test_copies_are_found_and_counted(rng):
    samples, train, held_out = draws(rng, 500, 400, 300)
    samples[:200] = train[rng.integers(400, size=200)] + 0.01 * rng.normal(size=(200, 6))
    found = memorization(samples, train, held_out)
    assert found.copies
    assert found.close.share.value == pytest.approx(0.4, abs=0.03)
    assert found.close.share.low > 0.35
    assert found.overall.share.low < 0.4 < found.overall.share.high
    assert found.close.p_value < 0.001
    assert found.near.low < 0.41 < found.near.high + 0.02
    assert str(found).startswith(
        "copying detected (p = 0.0001): of 500 samples, compared with 400 training and 300 held"
    )
    assert "cannot be detected" not in str(found)
    assert set(found.worst(200)) == set(range(200))
    assert (np.diff(found.distance[found.worst(10**6)]) >= 0).all()
    np.testing.assert_allclose(found.distance, np.linalg.norm(samples - train[found.nearest], axis=1))
    assert (found.held_out < found.threshold).mean() == pytest.approx(0.01, abs=0.005)
    assert not memorization(samples, held_out, train).copies  # what it copies is held out


def placed(copied: int, others: int = 0, *, around: int, held_out: int = 100, width: int = 8):
    """Samples beside each of the first `copied` training and `others` held-out examples, far apart, `around` each."""
    examples = 100 * np.random.default_rng(1).normal(size=(2 * held_out, width))
    train, others_of = examples[:held_out], examples[held_out:]
    samples = np.concatenate([np.repeat(train[:copied], around, 0), np.repeat(others_of[:others], around, 0)])
    return memorization(samples + 1e-3, train, others_of)


def test_the_verdict_follows_from_its_p_value_alone():
    """Half of the examples are training examples, so k of k happens by chance once in 2 ** k."""
    for copied, others in ((3, 0), (7, 0), (8, 0), (12, 0), (4, 4), (20, 10), (0, 20), (30, 10)):
        found = placed(copied, others, around=5)
        assert found.p_value == min(1, 2 * min(found.close.p_value, found.overall.p_value))
        assert found.copies == (found.p_value < 0.01) == str(found).startswith("copying detected")
        assert f"(p = {found.p_value:.4f}): of {5 * (copied + others)} samples" in str(found)
        assert found.detectable == 8
        assert found.distinct == copied + others
        assert str(found).startswith("no verdict on copying") == (found.distinct < 8 and not found.copies)
    assert not placed(7, around=5).copies
    assert placed(8, around=5).close.p_value == pytest.approx(2**-8, abs=0.0015)
    assert placed(12, around=5).copies
    assert not placed(4, 4, around=5).copies


@pytest.mark.parametrize(("copied", "others"), [(0, 20), (2, 18), (10, 10)])
def test_fewer_than_by_chance_are_none(copied, others):
    """A model that keeps away from its training examples is said to have 0 % of copies, not -400 %."""
    found = placed(copied, others, around=5)
    for excess in (found.close, found.overall):
        assert excess.share.value == excess.share.low == 0
        assert excess.share.high < 0.5
        assert excess.p_value > 0.5
    assert "0.0 % (95 % interval 0.0 to" in str(found)
    assert "-" not in str(found).replace("held-out", "").replace("one-sided", "")


def test_with_few_held_out_examples_there_is_no_verdict(rng):
    samples, train, held_out = draws(rng, 200, 1000, 2)
    samples[:150] = train[:150]
    found = memorization(samples, train, held_out)
    assert not found.copies
    assert found.detectable == math.floor(math.log(0.005) / math.log(1000 / 1002)) + 1 == 2652
    assert str(found).startswith("no verdict on copying (p = ")
    assert "Copies of fewer than 2,652 different training examples cannot be detected" in str(found)
    assert (found.close.share.low, found.overall.share.low) == (0, 0)  # and no interval pretends to know more
    assert found.overall.share.high == 1


def test_no_sample_is_near(rng):
    samples, train, held_out = draws(rng, 50, 100, 100)
    found = memorization(samples + 100, train, held_out)
    assert found.close == ((0, 0, 0), 1)
    assert not found.copies


def test_examples_that_are_all_equal_give_no_verdict():
    found = memorization(np.ones((20, 3)), np.zeros((50, 3)), np.zeros((50, 3)))
    assert not found.copies
    assert str(found).startswith("no verdict on copying (p = 1.0000)")


def test_the_rule_holds_its_level_at_the_boundary_of_its_null_hypothesis():
    """Of models that copy in just as many samples as one of its parts allows, few are reported."""
    reported = {SOME: 0, MOST: 0}
    for part in reported:
        for seed in range(40):
            samples, train, held_out = draws(np.random.default_rng(seed), 200, 200, 100)
            copied = int(part * 200)
            samples[:copied] = train[:copied]
            found = memorization(samples, train, held_out, seed=seed)
            reported[part] += {SOME: found.close, MOST: found.overall}[part].p_value < SURE / 2
    assert max(reported.values()) <= 2


def test_binarised_copies_are_found_among_binarised_examples(rng):
    samples, train, held_out = (rng.uniform(size=(n, 30)) ** 4 for n in (300, 200, 200))
    samples[:150] = train[rng.integers(200, size=150)]

    def binarised(x):
        return (rng.uniform(size=x.shape) < x).astype(float)

    found = memorization(binarised(samples), train, held_out, drawn=binarised(held_out))
    assert found.near.value < 0.5
    assert not memorization(
        binarised(held_out), train, rng.uniform(size=(200, 30)) ** 4, drawn=binarised(held_out)
    ).copies


def test_membership_equals_its_definition(rng):
    a, b = rng.integers(6, size=40), rng.integers(5, size=30)
    pairs = np.array([(x > y) + 0.5 * (x == y) for x in a for y in b]).reshape(40, 30)
    found = membership(a, b)
    assert found.value == pytest.approx(pairs.mean())
    error = math.sqrt(pairs.mean(1).var(ddof=1) / 40 + pairs.mean(0).var(ddof=1) / 30)  # DeLong et al. 1988
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-5)
    assert membership(b, a).value == pytest.approx(1 - found.value)
    assert membership([1, 2], [0, 0.5]) == (1, 1, 1)


def test_membership_covers_the_truth(rng):
    truth = NormalDist().cdf(1 / math.sqrt(2))  # of two unit normals whose means are 1 apart
    found = [membership(rng.normal(size=60) + 1, rng.normal(size=80)) for _ in range(300)]
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.01)
    assert np.mean([one.low < truth < one.high for one in found]) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), np.zeros((3, 3)), np.zeros((3, 3))), "different widths, 3 and 2"),
        ((np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((3, 2))), "training examples: this measure needs at least 1"),
        ((np.zeros((3, 2)), np.full((3, 2), np.inf), np.zeros((3, 2))), "training examples: 3 of 3"),
        ((np.zeros(3), np.zeros((3, 2)), np.zeros((3, 2))), "samples: expected an array"),
    ],
)
def test_bad_input_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        memorization(*arguments)
    with pytest.raises(UserError, match="values of held-out examples: this measure needs at least 2"):
        membership(np.zeros(3), np.zeros(1))


def samples_of(data, count, *, seeds, steps, samples=300):
    """Of as many autoregressive models, trained at once on the first images: uint8 [seeds, samples, 8, 8, 1]."""
    config = pixelcnn_mnist.Config(
        steps=steps, batch_size=64, seeds=seeds, model=pixelcnn_mnist.ModelConfig("made", hidden=(256,))
    )
    model = pixelcnn_mnist.build(config, data.spec).model
    arrays = {"image": data.train["image"][:count]}
    state = jax.jit(initializer(config, model))(gather(arrays, np.zeros((seeds, 1), int)))
    train = jax.jit(scan_steps(over_seeds(make_step(model))))
    for start in range(0, steps, 100):
        rows = [batch_indices(count, 64, seed=i, start=start, stop=start + 100) for i in range(seeds)]
        state, _ = train(state, gather(arrays, np.stack(rows, axis=1)))
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    return np.asarray(jax.jit(jax.vmap(lambda params, key: model.sample(params, key, samples)))(state.params, keys))


@pytest.mark.parametrize("seeds", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_model_trained_to_copy_is_found_for_every_seed_and_one_trained_normally_for_none(seeds):
    data = load_images("mnist_5k", image_size=8, binarization="fixed")
    train, held_out = (x["image"].reshape(-1, 64) / np.float32(255) for x in (data.train, data.test))
    for count, steps, copies in ((64, 1000, True), (4000, 200, False)):
        for samples in samples_of(data, count, seeds=seeds, steps=steps):
            found = memorization(samples.reshape(-1, 64) / np.float32(255), train[:count], held_out)
            assert found.copies == copies, str(found)
