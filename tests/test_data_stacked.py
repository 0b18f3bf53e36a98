from dataclasses import replace

import numpy as np
import pytest

from jaxgen.data import Dataset
from jaxgen.data.stacked import stacked
from jaxgen.errors import UserError


def tiny(classes=tuple("0123456789"), n=20, channels=1, dtype=np.uint8):
    """No two images are equal, and any pixel tells which one it is: 10 + i in training, 110 + i in test."""

    def split(first):
        number = np.arange(first, first + n, dtype=dtype)
        image = np.broadcast_to(number[:, None, None, None], (n, 4, 6, channels)).copy()
        image[:, 0, 0] += 100  # not the same all over, so that a transposed image is found out
        return {"image": image, "label": (np.arange(n) % len(classes)).astype(np.int32)}

    return Dataset("tiny", split(10), split(110), classes=classes, source="made up", notice="not mnist")


@pytest.mark.parametrize("classes", [tuple("0123456789"), ("cat", "dog", "eel")])
def test_channels_and_labels_are_those_of_the_source(classes):
    source = tiny(classes)
    data = stacked(source, count=2000, test_count=300)
    base = len(classes)
    for arrays, parts, first, count in ((data.train, source.train, 10, 2000), (data.test, source.test, 110, 300)):
        assert arrays["image"].shape == (count, 4, 6, 3)
        assert arrays["image"].dtype == np.uint8
        assert arrays["label"].dtype == np.int32
        origin = arrays["image"][:, 1, 1].astype(int) - first  # [N, 3], from the same split
        np.testing.assert_array_equal(arrays["image"], np.moveaxis(parts["image"][origin][..., 0], 1, -1))
        a, b, c = parts["label"][origin].T
        np.testing.assert_array_equal(arrays["label"], base**2 * a + base * b + c)
        for label, triple in zip(arrays["label"][:50], origin, strict=False):
            assert data.classes[label] == " ".join(classes[part] for part in parts["label"][triple])
        assert set(origin.ravel()) == set(range(20))
    assert len(data.classes) == base**3


def test_channels_are_independent_and_uniform():
    data = stacked(tiny(), count=20_000)
    origin = data.train["image"][:, 1, 1].astype(float)
    assert np.abs(np.corrcoef(origin.T) - np.eye(3)).max() < 5 / np.sqrt(20_000)
    share = np.bincount(data.train["label"], minlength=1000) / 20_000
    np.testing.assert_allclose(share, 1e-3, atol=6 * np.sqrt(1e-3 / 20_000))
    assert len(data.test["image"]) == 10_000


def test_what_a_report_says():
    data = stacked(replace(tiny(), binarization="dynamic", validation=tiny().test), count=5, test_count=5)
    assert data.name == "stacked_tiny"
    assert data.notice == "not mnist"
    assert data.binarization == "dynamic"
    assert data.validation["image"].shape == data.test["image"].shape
    assert (data.validation["image"] != data.test["image"]).any()
    assert "Metz et al. 2017" in data.source
    assert data.source.endswith("made up")


def test_the_seed_chooses_the_triples():
    first, again, other = (stacked(tiny(), count=100, test_count=100, seed=seed) for seed in (3, 3, 4))
    assert first.spec == again.spec
    for split in ("train", "test"):
        assert (getattr(first, split)["image"] != getattr(other, split)["image"]).any()
    assert (first.train["label"] != first.test["label"]).any()


def test_float_images_stay_float():
    assert stacked(tiny(dtype=np.float32), count=2, test_count=2).train["image"].dtype == np.float32


def test_what_cannot_be_stacked():
    with pytest.raises(UserError, match=r"tiny cannot be stacked: .*one channel.*\(4, 6, 3\).*such as mnist"):
        stacked(tiny(channels=3))
    unlabelled = Dataset("plain", {"image": tiny().train["image"]}, {"image": tiny().test["image"]})
    points = Dataset("points", {"point": np.zeros((3, 1))}, {"point": np.zeros((3, 1))})
    for data in (unlabelled, points, replace(tiny(), classes=())):
        with pytest.raises(UserError, match=rf"{data.name} cannot be stacked: .*their labels, found .* of 0 classes"):
            stacked(data)
    for counts in ({"count": 0}, {"test_count": 0}):
        with pytest.raises(UserError, match=r"triples of tiny: expected at least 1 to train and to test on"):
            stacked(tiny(), **counts)
