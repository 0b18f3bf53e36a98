"""Autoregressive models of images: the conformance of all models, whole runs, mistakes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import check_model
from PIL import Image

from experiments import pixelcnn_mnist
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log
from jaxgen.data.source import Spec
from jaxgen.errors import UserError
from jaxgen.run import run

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = {
    "pixelcnn": pixelcnn_mnist.ModelConfig(width=4, depth=2, first_kernel=3),
    "made": pixelcnn_mnist.ModelConfig("made", hidden=(16,), direct=True, order="random"),
}


def small(tmp_path, kind="pixelcnn", binarization="dynamic", **changes):
    return pixelcnn_mnist.Config(
        workdir=tmp_path / "run",
        steps=20,
        batch_size=16,
        data=flags.ImageDataConfig("mnist_5k", image_size=8, binarization=binarization),
        model=replace(SMALL[kind], **changes),
        run=flags.RunConfig(log_every=10, evaluate_every=20, checkpoint_every=20, chunk=5),
        evaluate=flags.ImageEvaluateConfig(copies=None),
    )


def train(config):
    run(config, pixelcnn_mnist.load, pixelcnn_mnist.build, "pixelcnn_mnist", "python -m experiments.here")


@pytest.mark.parametrize("kind", SMALL)
def test_conformance(tmp_path, kind, monkeypatch):
    """With 256 levels, since what is drawn of a batch differs between its shards."""
    config = small(tmp_path, kind, "none", conditional=True, condition_dropout=0.0, components=2)
    spec = Spec("noise", {"image": ((4, 4, 1), "uint8"), "label": ((), "int32")}, classes=tuple("ab"))
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 4, 4, 1)), jnp.uint8),
        "label": jnp.arange(8, dtype=jnp.int32) % 2,
    }

    def make(optimizer: optax.GradientTransformation):
        monkeypatch.setattr(flags.OptimizerConfig, "build", lambda self, steps: optimizer)
        return pixelcnn_mnist.build(config, spec).model

    check_model(make, batch)


def test_a_run_is_conditional_and_completes_images(tmp_path, capsys):
    config = small(tmp_path, conditional=True, condition_dropout=0.2)
    train(config)
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    (nll, _), (bits, _) = figures.values()
    assert all("dynamic binarisation, given the label" in name for name in figures)
    np.testing.assert_allclose(bits, nll / 64 / np.log(2), rtol=1e-5)
    assert nll < 64 * np.log(2)
    completions = np.asarray(Image.open(config.workdir / "samples" / "completions_0000020.png"))[::2, ::2]
    assert completions.shape == (4 * 10 - 2, 10 * 10 - 2)
    originals, *completed = (completions[10 * i : 10 * i + 8] for i in range(4))
    assert all((originals[:4] == other[:4]).all() for other in completed)
    assert not any((originals[4:] == other[4:]).all() for other in completed)
    out = tmp_path / "grid.png"
    pictures = []
    for controls in ([], ["--label", "3"], ["--label", "3", "--guidance", "4"], ["--temperature", "0"]):
        commands.main(["sample", str(config.workdir), "--num", "4", "--out", str(out), *controls])
        pictures.append(out.read_bytes())
    assert len(set(pictures)) == 4
    assert "4 samples" in capsys.readouterr().out
    commands.main(["evaluate", str(config.workdir), "--copies", "20"])
    printed = capsys.readouterr().out
    assert "membership AUC (by loss, 20 training and 20 held-out images)" in printed
    assert "no verdict on copying" in printed


def test_without_a_label_a_model_that_always_had_one_draws_each_in_turn(tmp_path):
    spec, key = Spec("digits", {"image": ((4, 4, 1), "uint8")}, classes=tuple("abc")), jax.random.key(1)
    for share in (0.0, 0.2):
        config = small(tmp_path, "made", conditional=True, condition_dropout=share)
        experiment = pixelcnn_mnist.build(config, spec)
        batch = {"image": jnp.zeros((2, 4, 4, 1), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
        params = experiment.model.init(jax.random.key(0), batch)
        shift = params["network"]["shifts_0"]["kernel"]
        params["network"]["shifts_0"]["kernel"] = 100 * jax.random.normal(key, shift.shape)
        drawn, each = experiment.sample(params, key, 4), experiment.sample(params, key, 4, jnp.array([0, 1, 2, 0]))
        assert (drawn == each).all() == (share == 0)


def test_all_levels_by_flag(tmp_path):
    config = small(tmp_path, "made", "none", components=2)
    train(config)
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    assert all("no binarisation" in name for name in figures)
    assert np.unique(np.asarray(Image.open(config.workdir / "samples" / "samples_0000020.png"))).size > 20


def test_a_random_order_is_the_same_each_time_and_undone(tmp_path):
    """Which pixel comes when is part of what parameters mean."""
    key = jax.random.key(0)
    image = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    spec = Spec("noise", {"image": ((4, 4, 1), "uint8")})
    for order, first in (("raster", [0, 1, 2, 3]), ("random", [11, 3, 13, 2])):
        model = pixelcnn_mnist.build(small(tmp_path, "made", "none", components=2, order=order), spec).model
        tokens = model.observe({"image": image}, key)
        assert tokens[0, :4, 0].tolist() == first
        params = model.init(key, {"image": image})
        assert (model.sample(params, key, 1, prompt=tokens) == image).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": pixelcnn_mnist.SampleConfig(label=3)}, "--label 3: expected none"),
        ({"sample": pixelcnn_mnist.SampleConfig(guidance=3.0)}, "--guidance is towards a --label"),
        ({"sample": pixelcnn_mnist.SampleConfig(temperature=-1.0)}, "temperature -1.0"),
        (
            {
                "model": pixelcnn_mnist.ModelConfig("made", conditional=True),
                "sample": pixelcnn_mnist.SampleConfig(label=1, guidance=2.0),
                "data": flags.ImageDataConfig("mnist_5k", image_size=8, binarization="none"),
            },
            "--guidance is of logits",
        ),
        ({"run": flags.RunConfig(remat=True)}, "--run.remat is not for these networks"),
        ({"model": pixelcnn_mnist.ModelConfig(condition_dropout=2.0)}, "--model.condition-dropout 2.0"),
        ({"model": pixelcnn_mnist.ModelConfig(order="random")}, "--model.order random is of --model.network made"),
        ({"model": pixelcnn_mnist.ModelConfig(first_kernel=4)}, "--model.first-kernel 4: expected an odd number"),
        ({"model": pixelcnn_mnist.ModelConfig(depth=0)}, "--model.depth 0"),
        ({"model": pixelcnn_mnist.ModelConfig("made", dropout=1.0)}, "--model.dropout 1.0"),
        ({"model": pixelcnn_mnist.ModelConfig("made", hidden=())}, "--model.hidden is empty"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(replace(small(tmp_path), **changes))


def test_binarised_images_are_0_and_1_and_come_back(tmp_path):
    for binarization in ("dynamic", "fixed"):
        config = small(tmp_path, binarization=binarization)
        data = pixelcnn_mnist.load(config)
        model = pixelcnn_mnist.build(config, data.spec).model
        batch = {"image": jnp.asarray(data.train["image"][:4])}
        tokens = jax.jit(model.observe)(batch, jax.random.key(0))
        assert set(np.unique(tokens)) == {0, 1}
        if binarization == "fixed":
            np.testing.assert_array_equal(255 * tokens.reshape(4, 8, 8, 1), batch["image"])
