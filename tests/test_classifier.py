"""The network that judges: right about its data, the same twice, kept for the next time."""

import numpy as np
import pytest

from jaxgen.classifier import by_channel, classifier
from jaxgen.data.source import Dataset
from jaxgen.errors import UserError


@pytest.fixture(scope="module")
def bars():
    """Images of a vertical or a horizontal bar: two classes that are easy to tell apart."""
    rng = np.random.default_rng(0)

    def draw(count):
        label, place = rng.integers(0, 2, count).astype(np.int32), rng.integers(2, 6, count)
        image = rng.integers(0, 40, (count, 8, 8, 1)).astype(np.uint8)
        for i in range(count):
            (image[i] if label[i] else image[i].swapaxes(0, 1))[place[i]] = 255
        return {"image": image, "label": label}

    return Dataset("bars", draw(400), draw(100), classes=("vertical", "horizontal"))


def make(data, cache, **options):
    said = []
    judge = classifier(lambda: data, data.spec.digest, steps=60, batch_size=32, cache=cache, say=said.append, **options)
    return judge, said


def test_it_is_right_and_the_same_twice_and_trained_once(bars, tmp_path):
    judge, said = make(bars, tmp_path / "a")
    assert said == ["training a classifier on bars to judge samples, once: 60 steps"]
    assert judge.name == "bars classifier, 100.0 % right"
    features, probabilities = judge.apply(bars.test["image"])
    assert features.shape == (100, 128)
    assert (probabilities.argmax(-1) == bars.test["label"]).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    kept, said = make(bars, tmp_path / "a")
    assert said == []
    np.testing.assert_array_equal(kept.apply(bars.test["image"])[0], features)
    anew, _ = make(bars, tmp_path / "b")
    np.testing.assert_array_equal(anew.apply(bars.test["image"])[0], features)


def test_a_damaged_file_is_trained_anew(bars, tmp_path):
    judge, _ = make(bars, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    again, said = make(bars, tmp_path)
    assert said
    np.testing.assert_array_equal(*(j.apply(bars.test["image"])[0] for j in (judge, again)))


def test_it_is_kept_under_the_digest_of_the_data_that_it_was_trained_on(bars, tmp_path):
    """Data that changed after their digest was taken leave no classifier behind under that digest."""
    images = {"image": 255 - bars.train["image"], "label": bars.train["label"]}
    others = Dataset("others", images, bars.test, classes=bars.classes)

    def trained(load, digest):
        return classifier(lambda: load, digest, steps=1, batch_size=8, cache=tmp_path, say=lambda line: None).name

    assert trained(others, bars.spec.digest).startswith("others classifier")
    assert trained(bars, bars.spec.digest).startswith("bars classifier")
    assert trained(bars, others.spec.digest).startswith("others classifier")


def test_a_view_is_kept_apart_from_the_data_that_it_is_of(bars, tmp_path):
    def view(data):
        return Dataset("dark", {**data.train, "image": data.train["image"] // 2}, data.test, classes=data.classes)

    options = {"steps": 1, "batch_size": 8, "cache": tmp_path, "say": lambda line: None}
    for form, name in (("dark", "dark"), ("", "bars"), ("dark", "dark")):
        kept = classifier(lambda: bars, bars.spec.digest, form=form, view=view if form else lambda x: x, **options)
        assert kept.name.startswith(name)


def test_channels_are_judged_one_by_one_and_combined(bars, tmp_path):
    judge, _ = make(bars, tmp_path)
    stack = np.concatenate([bars.test["image"][i : i + 10] for i in (0, 10, 20)], axis=-1)
    features, probabilities = by_channel(judge).apply(stack)
    assert features.shape == (10, 3 * 128)
    a, b, c = (bars.test["label"][i : i + 10] for i in (0, 10, 20))
    np.testing.assert_array_equal(probabilities.argmax(-1), 4 * a + 2 * b + c)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def slopes(count, shape, seed):
    """Images that are brighter towards the top."""
    noise = np.random.default_rng(seed).integers(0, 40, (count, *shape))
    return {"image": (np.linspace(200, 0, shape[0])[:, None, None] + noise).astype(np.uint8)}


def test_without_labels_rotations_are_learned(tmp_path):
    shape = (8, 12, 3)
    data = Dataset("slopes", slopes(200, shape, 0), slopes(30, shape, 1))
    judge, said = make(data, tmp_path, labels=False)
    assert said == ["training a rotation network on slopes to judge samples, once: 60 steps"]
    assert judge.name == "slopes rotation network, 100.0 % right"
    features, probabilities = judge.apply(data.test["image"])
    assert features.shape == (30, 128)
    assert (probabilities.argmax(-1) == 0).all()
    kept, said = make(data, tmp_path, labels=False)
    assert said == []
    np.testing.assert_array_equal(kept.apply(data.test["image"])[0], features)


def test_small_data_take_fewer_steps_and_too_small_ones_have_no_judge(bars, tmp_path, monkeypatch):
    """Rather than minutes on a few examples, and a figure that says nothing."""
    monkeypatch.setattr("jaxgen.classifier.LEAST_STEPS", 7)
    monkeypatch.setattr("jaxgen.classifier.EPOCHS", 3)

    def some(train, test):
        parts = (
            {key: array[:n] for key, array in arrays.items()} for arrays, n in ((bars.train, train), (bars.test, test))
        )
        return Dataset("bars", *parts, classes=bars.classes)

    for labels, train in ((True, 20), (False, 10)):
        said = []
        options = {"labels": labels, "cache": tmp_path, "say": said.append}
        for few in (some(train - 1, 20), some(train, 19)):
            assert classifier(lambda few=few: few, few.spec.digest, **options) is None
            assert said.pop().startswith("warning: samples are not judged by the features of a network:")
        assert list(tmp_path.glob("*")) == []
    enough = some(20, 20)
    assert classifier(lambda: enough, enough.spec.digest, cache=tmp_path, say=said.append) is not None
    assert said == ["training a classifier on bars to judge samples, once: 7 steps"]
    assert by_channel(None) is None


def test_data_without_labels_are_refused(bars, tmp_path):
    unlabelled = Dataset("bars", {"image": bars.train["image"]}, {"image": bars.test["image"]})
    with pytest.raises(UserError, match="bars has no labels to train a classifier on"):
        make(unlabelled, tmp_path)
