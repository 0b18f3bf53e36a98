"""Models of a user's own pictures, with the defaults of their experiments."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from experiments import gan_mnist, vae_mnist
from jaxgen import config as flags
from jaxgen import log
from jaxgen.classifier import classifier
from jaxgen.errors import UserError
from jaxgen.folder import read_record
from jaxgen.run import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Colored pictures without classes, brighter towards the top, some without color."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    slope = np.linspace(200, 20, 16)[:, None, None]
    for i in range(210):
        pixels = slope + rng.integers(0, 40, (16, 16, 3)) + rng.integers(-15, 15, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
    return f"folder:{root}"


def likelihood(config):
    """The likelihood's name and what the run says of the data."""
    data = vae_mnist.load(config)
    return vae_mnist.build(config, data.spec).protocol, data.notice


def test_the_likelihood_follows_the_data(photos):
    """Bernoulli for binarized digits, a discretized logistic for color; a notice only where no flag chose it."""
    digits = vae_mnist.Config(data=flags.ImageDataConfig("mnist_5k", image_size=8))
    color = replace(digits, data=flags.ImageDataConfig(photos))
    assert likelihood(digits) == ("mnist_5k, dynamic binarisation", None)
    protocol, notice = likelihood(color)
    assert protocol == f"{photos}, no binarisation, discretized logistic"
    assert "pixels are not binarized, since the images are in color (--data.binarization)" in notice
    assert "the likelihood is discretized_logistic (--model.likelihood)" in notice
    asked = replace(color, data=flags.ImageDataConfig(photos, binarization="none"))
    assert likelihood(asked) == (protocol, None)
    asked = replace(color, data=flags.ImageDataConfig(photos, binarization="dynamic"))
    assert likelihood(asked) == (f"{photos}, dynamic binarisation", None)
    grey = replace(digits, data=replace(digits.data, binarization="none"))
    assert likelihood(grey) == ("mnist_5k, no binarisation, discretized logistic", None)


def unlabeled(photos, tmp_path, **evaluate):
    return gan_mnist.Config(
        workdir=tmp_path / "run",
        steps=4,
        batch_size=8,
        data=flags.ImageDataConfig(photos, binarization="none", image_size=8),
        model=gan_mnist.ModelConfig(width=4, latents=4),
        run=flags.RunConfig(log_every=2, evaluate_every=4, chunk=2),
        evaluate=gan_mnist.EvaluateConfig(num_samples=20, copies=10, **evaluate),
    )


def train(config):
    run(config, gan_mnist.load, gan_mnist.build, "gan_mnist", "python -m experiments.gan_mnist")


def test_a_gan_of_unlabeled_pictures_is_judged_by_a_rotation_network(photos, tmp_path, capsys, one_device, monkeypatch):
    """Figures, validation and copies, all but what needs classes."""
    monkeypatch.setattr(gan_mnist, "classifier", partial(classifier, steps=4, batch_size=16, cache=tmp_path / "cache"))
    config = unlabeled(photos, tmp_path, features=True)
    train(config)
    printed = capsys.readouterr().out
    assert printed.count("training a rotation network on folder:") == 1
    for figure in ("Frechet distance", "kernel distance", "precision"):
        assert f"{figure} ({photos} rotation network, " in printed
    assert f"beyond chance, % (features of {photos} rotation network, " in printed
    watched = "".join(name for row in log.read(config.workdir) for name in row)
    assert "validation/Frechet distance" in watched
    for figure in ("modes", "class asked for", "accuracy"):
        assert figure not in printed + watched


def test_a_gan_need_not_be_judged(photos, tmp_path, capsys, one_device):
    config = unlabeled(photos, tmp_path, judge=False)
    train(config)
    printed = capsys.readouterr().out
    assert "rotation" not in printed
    assert "Frechet" not in printed
    assert "test discriminator real" in printed
    assert read_record(config.workdir).notice is None


def test_too_few_pictures_are_not_judged(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    config = unlabeled(f"folder:{tmp_path}", tmp_path)
    notice = "samples are not judged by the features of a network: 4 training and 6 held-out examples are too few"
    assert notice in gan_mnist.load(config).notice
    assert gan_mnist.load(unlabeled(f"folder:{tmp_path}", tmp_path, judge=False)).notice is None


def test_measures_of_classes_want_classes(photos, tmp_path):
    config = unlabeled(photos, tmp_path, metrics="frechet,score")
    with pytest.raises(UserError, match=r"score expects classes, and folder:.* has no labels: leave it out"):
        gan_mnist.build(config, gan_mnist.load(config).spec)
