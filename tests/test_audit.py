"""What comparing samples with training images shows."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.audit import images_audit


def test_copies_that_are_moved_are_found_in_features():
    """Samples are training images, rolled: far in pixels, equal in sizes of Fourier terms."""
    rng = np.random.default_rng(0)
    train, held_out = ({"image": rng.integers(0, 256, (n, 8, 8, 1), np.uint8)} for n in (200, 100))

    def draw(params, key, n):
        moved = np.roll(train["image"], (3, 5), axis=(1, 2))
        return jnp.asarray(moved[:n])

    Judge = namedtuple("Judge", ["name", "apply"])
    judge = Judge("a network", lambda x: (np.abs(np.fft.fft2(x[..., 0] / 255.0)).reshape(len(x), -1), None))

    def audit(**options):
        look = images_audit(
            draw=draw,
            evaluate=lambda params, batch, key: {"loss": jnp.zeros(len(batch["image"]))},
            attack="-loss",
            count=50,
            **options,
        )
        return look({}, train, held_out, jax.random.key(0))

    pixels, both = audit(), audit(judge=lambda: judge)
    assert pixels.warnings == ()
    assert pixels.verdict.startswith("no copying detected (p = ")
    (warning,) = both.warnings
    assert warning.startswith("in features: copying detected (p = ")
    assert both.verdict == f"{pixels.verdict} {warning}"
    assert set(both.exhibits) - set(pixels.exhibits) == {
        "memorization in features",
        "samples over nearest training images in features",
    }
    name = "samples nearer to a training image than 1 % of held-out images are, % (features of a network; 50 samples)"
    assert both.figures[name].mean == 100
    assert both.figures.items() >= pixels.figures.items()
    assert audit(judge=lambda: None).figures == pixels.figures  # where the data are too few to train a judge


@pytest.mark.parametrize(("train", "held_out"), [(1, 50), (50, 1), (50, 0)])
def test_too_few_images_end_in_no_verdict(train, held_out):
    look = images_audit(draw=None, evaluate=None, attack="loss", count=50)
    found = look({}, *({"image": np.zeros((n, 8, 8, 1), np.uint8)} for n in (train, held_out)), jax.random.key(0))
    assert found.verdict.startswith("no verdict on copying: the audit needs at least 2 of each, and there are ")
    assert found.verdict.endswith(f"{train} training and {held_out} held-out images")
    assert (found.figures, found.warnings) == ({}, ())
