"""Models of a user's own pictures, with the defaults of their experiments."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments import vae_mnist
from jaxgen import config as flags


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Colored pictures without classes, brighter towards the top, some without color."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    slope = np.linspace(200, 20, 16)[:, None, None]
    for i in range(40):
        pixels = slope + rng.integers(0, 40, (16, 16, 3)) + rng.integers(-15, 15, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
    return f"folder:{root}"


def likelihood(config):
    """The likelihood's name and what the run says of the data."""
    data = vae_mnist.load(config)
    return vae_mnist.build(config, data.spec).protocol, data.notice


def test_the_likelihood_follows_the_data(photos):
    """Bernoulli of binarized digits; of color, a discretized logistic, said; nothing is said of what was asked for."""
    digits = vae_mnist.Config(data=flags.ImageDataConfig("mnist_5k", image_size=8))
    color = replace(digits, data=flags.ImageDataConfig(photos))
    assert likelihood(digits) == ("mnist_5k, dynamic binarisation", None)
    protocol, notice = likelihood(color)
    assert protocol == f"{photos}, no binarisation, discretised logistic"
    assert "pixels are not binarized, since the images are in color (--data.binarization)" in notice
    assert "the likelihood is discretized_logistic (--model.likelihood)" in notice
    asked = replace(color, data=flags.ImageDataConfig(photos, binarization="none"))
    assert likelihood(asked) == (protocol, None)
    asked = replace(color, data=flags.ImageDataConfig(photos, binarization="dynamic"))
    assert likelihood(asked) == (f"{photos}, dynamic binarisation", None)
    grey = replace(digits, data=replace(digits.data, binarization="none"))
    assert likelihood(grey) == ("mnist_5k, no binarisation, discretised logistic", None)
