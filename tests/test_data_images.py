import io
import socket
from itertools import product

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import load_images, sprites
from jaxgen.data.catalogue import RAW
from jaxgen.data.prepare import find
from jaxgen.errors import UserError


def picture(seed, size=(8, 8), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    return Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0])


def save(root, pictures):
    for path, image in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path)
    return f"folder:{root}"


def all_images(data):
    return np.concatenate([data.train["image"], data.test["image"]])


# mnist_5k


def test_mnist_5k_is_split_evenly_and_disjointly():
    data = load_images("mnist_5k")
    assert data.name == "mnist_5k"
    assert data.notice is None
    assert data.classes == tuple("0123456789")
    assert data.train["image"].shape == (4000, 28, 28, 1)
    assert data.train["image"].dtype == np.uint8
    assert data.test["image"].shape == (1000, 28, 28, 1)
    assert data.test["label"].dtype == np.int32
    assert np.bincount(data.train["label"]).tolist() == [400] * 10
    assert np.bincount(data.test["label"]).tolist() == [100] * 10
    rows = {image.tobytes() for image in all_images(data)}
    assert len(rows) == 5000  # all differ, so the splits share none
    assert data.test["label"][:10].tolist() == list(range(10))
    assert 30 < data.train["image"].mean() < 37  # MNIST's is 33.3


# sprites


def test_sprites_are_every_combination_once():
    data = load_images("sprites")
    factors = np.concatenate([data.train["factors"], data.test["factors"]])
    assert len(data) == 15_360
    assert factors.dtype == np.int32
    assert {tuple(row) for row in factors} == set(product(range(3), range(4), range(6), range(16), range(16)))
    assert data.test["factors"].min(0).tolist() == [0] * 5
    assert data.test["factors"].max(0).tolist() == [2, 3, 5, 15, 15]
    np.testing.assert_array_equal(data.train["label"], data.train["factors"][:, 0])
    assert data.classes == ("square", "ellipse", "triangle")
    assert len({image.tobytes() for image in all_images(data)}) == len(factors)  # and no two look alike
    assert data.spec.digest == load_images("sprites").spec.digest
    assert load_images("sprites", image_size=16).test["image"].shape == (3072, 16, 16, 1)


def test_sprites_are_where_and_as_large_as_their_factors_say():
    """The centre and the area of the pixels, of square and ellipse, are those of the figure in the plane."""
    image, factors = sprites.sprites()
    shape, size, _, x, y = factors.T
    light = image[..., 0].astype(np.float64) / 255
    area = light.sum((1, 2))
    place = np.arange(32)
    symmetric = shape < 2
    for axis, where in ((1, y), (2, x)):
        centre = (light.sum(3 - axis) @ place) / area
        np.testing.assert_allclose(centre[symmetric], where[symmetric] + 8, atol=0.02)
    expected = np.array(sprites.RADII)[size] ** 2 * np.array([2, np.pi / 2, 1.28])[shape]
    np.testing.assert_allclose(area, expected, rtol=0.02)
    assert (light[:, [0, -1]] == 0).all()
    turned = image[(shape == 1) & (size == 3) & (x == 8) & (y == 8)][:, 8:25, 8:25, 0]  # an ellipse at six angles
    across, along = turned.sum(1, dtype=int), turned.sum(2, dtype=int)
    assert (np.diff((across > 0).sum(1)) <= 0).all()
    assert (np.diff((along > 0).sum(1)) >= 0).all()


def test_image_size_resizes():
    small = load_images("mnist_5k", image_size=14)
    assert small.test["image"].shape == (1000, 14, 14, 1)
    full = load_images("mnist_5k", image_size=28)
    np.testing.assert_array_equal(full.test["image"], load_images("mnist_5k").test["image"])
    assert abs(small.test["image"].mean() / full.test["image"].mean() - 1) < 0.05
    with pytest.raises(UserError, match=r"--data.image-size 0"):
        load_images("mnist_5k", image_size=0)


# Binarization


def test_fixed_binarization_is_fixed_and_follows_the_intensity():
    grey, once, again = (load_images("mnist_5k", binarization=kind) for kind in ("dynamic", "fixed", "fixed"))
    for split in ("train", "test"):
        image, drawn = getattr(grey, split)["image"], getattr(once, split)["image"]
        assert set(np.unique(drawn)) == {0, 255}
        assert drawn.dtype == np.uint8
        np.testing.assert_array_equal(drawn, getattr(again, split)["image"])
        assert (drawn[image == 0] == 0).all()
        assert (drawn[image == 255] == 255).all()
        middle = (image > 96) & (image < 160)  # about 50,000 pixels in the training set: standard error 0.25 %
        assert abs(drawn[middle].mean() / image[middle].mean() - 1) < (0.015 if split == "train" else 0.03)
    assert set(np.unique(grey.train["image"])) != {0, 255}
    np.testing.assert_array_equal(once.train["label"], grey.train["label"])


def test_binary_images_stay_and_cannot_be_drawn_again(tmp_path):
    pixels = [np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), (6, 6)) for seed in range(5)]
    name = save(tmp_path, {f"{i}.png": Image.fromarray(image) for i, image in enumerate(pixels)})
    for binarization in ("none", "fixed"):
        images = all_images(load_images(name, binarization=binarization))
        assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in pixels)
    for binary in (name, "binarized_mnist"):
        with pytest.raises(UserError, match=r"binary already.*--data.binarization fixed"):
            load_images(binary, binarization="dynamic")


def test_pixels_are_binarized_by_default_where_that_is_usual(tmp_path):
    """Digits and their like: as ever. Color, and a folder of pictures: not, said. Binary images: as they are."""
    assert load_images("mnist_5k", binarization=None).binarization == "dynamic"
    assert load_images("mnist_5k", binarization=None).notice is None
    grey = load_images(save(tmp_path / "g", {f"{i}.png": picture(i, mode="L") for i in range(3)}), binarization=None)
    color = load_images(save(tmp_path / "c", {f"{i}.png": picture(i) for i in range(3)}), binarization=None)
    assert grey.binarization == color.binarization == "none"
    for data, why in ((grey, "pictures of a folder"), (color, "in color")):
        assert data.notice == f"pixels are not binarized, since the images are {why} (--data.binarization)"
    assert load_images(grey.name, binarization="dynamic").binarization == "dynamic"
    black = {f"{i}.png": Image.fromarray(255 * np.eye(6, k=i, dtype=np.uint8)) for i in range(3)}
    binary = load_images(save(tmp_path / "b", black), binarization=None)
    assert (binary.binarization, binary.notice) == ("fixed", None)


def test_unknown_binarization():
    with pytest.raises(UserError, match=r"'static': expected none, dynamic or fixed"):
        load_images("mnist_5k", binarization="static")


# Data sets prepared by TFDS


def build(root, name, images, splits=("train", "test"), config=None, labels=False, factors=(), **feature):
    """Prepare a TFDS data set of PNG images; every split holds all of them."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(**feature)}
    features["image"].encode_example = lambda encoded: encoded  # float images too come encoded, for want of TensorFlow
    if labels:
        features["label"] = tfds.features.ClassLabel(names=["even", "odd"])
    features |= {f"label_{name}": tfds.features.ClassLabel(num_classes=100) for name in factors}

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for i, image in enumerate(images):
                buffer = io.BytesIO()
                image.save(buffer, "png")
                labelled = {"label": i % 2} if labels else {}
                known = {f"label_{name}": i + place for place, name in enumerate(factors)}
                yield i, {"image": buffer.getvalue()} | labelled | known

    Pictures.name = name
    tfds.disable_progress_bar()
    Pictures(data_dir=root, file_format="array_record").download_and_prepare(download_dir=root / "unused")


def test_any_prepared_data_set_by_its_names(tmp_path):
    images = [picture(i) for i in range(30)]
    build(tmp_path, "shapes", images, splits=("train",), config="small", labels=True, shape=(8, 8, 3))
    for name in ("shapes", "shapes/small", "shapes/small:1.0.0"):
        data = load_images(name, data_dir=tmp_path)
        assert data.name == name
        assert data.classes == ("even", "odd")
        assert data.validation is None
        # No split for testing: a fixed tenth of train.
        assert data.train["image"].shape == (27, 8, 8, 3)
        assert data.test["image"].shape == (3, 8, 8, 3)
        number = {np.asarray(image).tobytes(): i for i, image in enumerate(images)}
        for arrays in (data.train, data.test):
            assert [number[image.tobytes()] % 2 for image in arrays["image"]] == arrays["label"].tolist()
        assert {image.tobytes() for image in all_images(data)} == number.keys()


def test_several_labels_are_factors(tmp_path):
    """As in dsprites, whose pixels are 0 and 1."""
    images = [Image.fromarray(np.array([[i & 1, i >> 1 & 1], [i >> 2 & 1, i >> 3]], np.uint8)) for i in range(16)]
    build(tmp_path, "spots", images, splits=("train",), factors=("x", "y"), shape=(2, 2, 1))
    data = load_images("spots", data_dir=tmp_path)
    number = (data.train["image"].reshape(-1, 4) // 255) @ np.array([1, 2, 4, 8])
    assert data.train["factors"].dtype == np.int32
    np.testing.assert_array_equal(data.train["factors"], np.stack([number, number + 1], axis=1))
    assert data.train.keys() == {"image", "factors"}


def test_prepared_images_of_mixed_sizes(tmp_path):
    build(tmp_path, "mixed", [picture(0, (8, 8)), picture(1, (9, 7))], shape=(None, None, 3))
    with pytest.raises(UserError, match=r"mixed sizes: example 0 of mixed \(train\) is .*--data.image-size N"):
        load_images("mixed", data_dir=tmp_path)
    assert load_images("mixed", data_dir=tmp_path, image_size=6).train["image"].shape == (2, 6, 6, 3)


def test_prepared_float_images_are_checked(tmp_path):
    def stored(value):  # as TFDS stores a float image: its bytes as four channels
        field = np.full((4, 4, 1), value, np.float32)
        return Image.fromarray(field.view(np.uint8))

    build(tmp_path, "sound", [stored(0.25), stored(0.5)], shape=(4, 4, 1), dtype=np.float32)
    data = load_images("sound", data_dir=tmp_path)
    assert data.train["image"].dtype == np.float32
    assert data.train["image"].shape == (2, 4, 4, 1)
    assert sorted(data.train["image"][:, 0, 0, 0]) == [0.25, 0.5]
    with pytest.raises(UserError, match=r"sound holds float32 images, fixed binarization expects uint8"):
        load_images("sound", data_dir=tmp_path, binarization="fixed")
    build(tmp_path, "broken", [stored(0.25), stored(np.nan)], shape=(4, 4, 1), dtype=np.float32)
    with pytest.raises(UserError, match=r"broken \(train\): 'image' of example [01] holds NaN"):
        load_images("broken", data_dir=tmp_path)


def test_a_damaged_data_set_is_named(tmp_path):
    build(tmp_path, "shapes", [picture(i) for i in range(30)], shape=(8, 8, 3))
    folder = find("shapes", tmp_path)
    (records,) = folder.glob("shapes-train.array_record*")
    whole = records.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:100] + bytes(len(whole) - 200) + whole[-100:]):
        records.write_bytes(damage)
        with pytest.raises(UserError, match=f"shapes in {folder} cannot be read .*prepare the data set again") as error:
            load_images("shapes", data_dir=tmp_path)
        assert "\n" not in str(error.value)


def test_prepared_data_sets_that_cannot_be_used(tmp_path):
    build(tmp_path, "evaluation", [picture(0)], splits=("test",), shape=(8, 8, 3))
    with pytest.raises(UserError, match=r"expected an image feature and a split 'train', .*splits test"):
        load_images("evaluation", data_dir=tmp_path)
    build(tmp_path, "deep", [picture(0)], shape=(8, 8, 3), dtype=np.uint16, encoding_format="png")
    with pytest.raises(UserError, match=r"deep holds uint16 images of 3 channels, expected uint8"):
        load_images("deep", data_dir=tmp_path)
    build(tmp_path, "shapes", [picture(0)], shape=(8, 8, 3))
    info = find("shapes", tmp_path) / "dataset_info.json"
    whole = info.read_text()
    info.write_text(whole.replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"is stored as tfrecord, expected array_record"):
        load_images("shapes", data_dir=tmp_path)
    info.write_text(whole[:50])
    with pytest.raises(UserError, match=r"shapes in .* cannot be read"):
        load_images("shapes", data_dir=tmp_path)


def test_unknown_names_get_suggestions(tmp_path):
    build(tmp_path, "shapes", [picture(0)], shape=(8, 8, 3))
    with pytest.raises(UserError, match=r"'fashion_mnits', did you mean fashion_mnist"):
        load_images("fashion_mnits", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"did you mean shapes.*found there: shapes:1.0.0"):
        load_images("shape", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"unknown data set 'zzz': Expected one of mnist, .*folder:PATH.*\(found there"):
        load_images("zzz", data_dir=tmp_path)


# Without a network


@pytest.fixture
def offline(monkeypatch):
    """Every known data set lies at a closed port of the loopback interface."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    for name, raw in RAW.items():
        monkeypatch.setitem(RAW, name, raw._replace(url=url))


@pytest.mark.parametrize("name", RAW)
def test_offline_falls_back_with_a_notice(name, offline, tmp_path):
    data = load_images(name, data_dir=tmp_path / "tfds")
    assert data.name == "mnist_5k"
    for part in (
        name,
        str(tmp_path / "tfds"),
        "refused",
        "mnist_5k",
        f"data prepare {name} --from DIR",
        "--data.strict",
    ):
        assert part in data.notice
    assert "\n" not in data.notice
    assert not (tmp_path / "tfds").exists()
    expected = load_images("mnist_5k", binarization="fixed" if name == "binarized_mnist" else "none")
    np.testing.assert_array_equal(data.train["image"], expected.train["image"])


def test_offline_and_strict_is_an_error(offline, tmp_path):
    with pytest.raises(UserError, match=r"mnist is neither prepared in .*refused.*data prepare mnist --from DIR"):
        load_images("mnist", data_dir=tmp_path, strict=True)


def test_tfds_data_dir_is_honoured(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    build(tmp_path, "mnist", [picture(i, mode="L") for i in range(3)], labels=True, shape=(8, 8, 1))
    data = load_images("mnist")
    assert data.name == "mnist"
    assert data.notice is None
    assert data.train["image"].shape == (3, 8, 8, 1)
