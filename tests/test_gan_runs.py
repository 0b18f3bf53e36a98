"""Whole runs of adversarial networks: what is in the folder, going on bit for bit, several seeds, mistakes."""

import io
import json
import shutil
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_run import assert_same_state

from experiments import gan_mnist, gan_stacked_mnist, gan_toy
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log
from jaxgen.classifier import classifier
from jaxgen.errors import UserError
from jaxgen.run import run

RUN = flags.RunConfig(log_every=10, evaluate_every=20, checkpoint_every=20, chunk=5)


@pytest.fixture(scope="module", autouse=True)
def quick(one_device, tmp_path_factory):
    """A classifier that is trained in no time."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("classifiers")
        patch.setattr(gan_mnist, "classifier", partial(classifier, steps=40, cache=cache))
        yield


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory):
    """A run that ended undisturbed, and what it printed; its folder is only to be read."""
    config, printed = digits(tmp_path_factory.mktemp("whole")), io.StringIO()
    with redirect_stdout(printed):
        train(gan_mnist, config)
    return config, printed.getvalue()


def digits(tmp_path, **changes):
    config = gan_mnist.Config(
        workdir=tmp_path / "digits",
        steps=40,
        batch_size=16,
        data=flags.ImageDataConfig("mnist_5k", binarization="none", image_size=8),
        model=gan_mnist.ModelConfig(width=4, latents=4, lazy=4),
        optimizer=flags.OptimizerConfig(ema_decay=0.9),
        run=RUN,
        evaluate=gan_mnist.EvaluateConfig("frechet,prdc,score,labels", num_samples=100, copies=None),
    )
    return replace(config, **changes)


def train(module, config):
    run(config, module.load, module.build, module.__name__.rpartition(".")[2], "python -m experiments.x")


def test_a_run_leaves_what_it_promises(whole, tmp_path, capsys):
    config, printed = whole
    for figure in ("Frechet distance", "precision", "recall", "density", "coverage", "score", "samples of the class"):
        assert f"{figure}" in printed
        assert "(mnist_5k classifier, " in printed
    rows = log.read(config.workdir)
    trained = [row for row in rows if "train/generator loss (mnist_5k)" in row]
    assert [row["step"] for row in trained] == [10, 20, 30, 40]
    for name in ("discriminator loss", "discriminator real", "discriminator fake", "R1", "generator gradient norm"):
        assert f"train/{name} (mnist_5k)" in trained[-1]
    watched = [row for row in rows if "validation/Frechet distance (mnist_5k)" in row]
    assert [row["step"] for row in watched] == [20, 40]
    assert len(list((config.workdir / "samples").glob("samples_*.png"))) == 2
    page = (config.workdir / "report.html").read_text()
    assert "samples at step 20" in page

    out = tmp_path / "grid.png"
    for given in ([], ["--label", "3"], ["--truncation", "0.7"]):
        commands.main(["sample", str(config.workdir), "--num", "4", "--out", str(out), *given])
        with Image.open(out) as picture:
            assert picture.size == (2 * (2 * 8 + 2), 2 * (2 * 8 + 2))
    capsys.readouterr()
    shutil.copytree(config.workdir, tmp_path / "copy")
    commands.main(
        [
            "evaluate",
            str(tmp_path / "copy"),
            "--metrics",
            "frechet,kernel,prdc",
            "--num-samples",
            "50",
            "--copies",
            "20",
        ]
    )
    printed = capsys.readouterr().out
    for expected in (
        "kernel distance (mnist_5k classifier",
        "membership AUC (by discriminator real, 20",
        "copying (p = ",
    ):
        assert expected in printed
    with pytest.raises(UserError, match="--copies 1: expected at least 10, or None"):
        commands.main(["evaluate", str(config.workdir), "--copies", "1"])
    with pytest.raises(UserError, match=r"--evaluate.inception typo.npz: there is no such file"):
        train(gan_mnist, replace(config, evaluate=replace(config.evaluate, inception=Path("typo.npz"))))
    with pytest.raises(UserError, match="--label 10: expected 0 to 9"):
        commands.main(["sample", str(config.workdir), "--label", "10"])
    with pytest.raises(UserError, match="--metrics frechet,fid: expected some of frechet"):
        commands.main(["evaluate", str(config.workdir), "--metrics", "frechet,fid"])


def test_interrupted_it_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    config = digits(tmp_path)
    progress = log.Log.progress

    def interrupt(self, chunk):
        progress(self, chunk)
        if chunk.start == 10:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "progress", interrupt)
        train(gan_mnist, config)
    assert not (config.workdir / "report.html").exists()
    train(gan_mnist, config)
    assert_same_state(config.workdir, whole[0].workdir)


def test_a_run_that_collapses_says_so(tmp_path, capsys):
    """A generator that never learns is soon found out."""
    still = gan_mnist.ModelConfig("non_saturating", width=4, latents=4, r1=0, r2=0, n_critic=1000)
    train(gan_mnist, digits(tmp_path, model=still, steps=120, run=replace(RUN, evaluate_every=120)))
    assert "warning: " in capsys.readouterr().out
    assert "samples are alike" in (tmp_path / "digits" / "report.html").read_text()


def test_points_of_several_seeds(tmp_path, capsys):
    config = gan_toy.Config(
        workdir=tmp_path / "points",
        steps=20,
        seeds=2,
        batch_size=16,
        model=gan_toy.ModelConfig(hidden=(8,)),
        run=RUN,
        evaluate=gan_toy.EvaluateConfig(num_samples=100),
    )
    train(gan_toy, config)
    printed = capsys.readouterr().out
    assert "modes of 25 (grid, sigma 0.05, 100 samples), mean ± standard deviation of 2 seeds" in printed
    out = tmp_path / "points.png"
    commands.main(["sample", str(config.workdir), "--num", "10", "--member", "1", "--out", str(out)])
    with Image.open(out) as picture:
        assert np.asarray(picture).std() > 0
    with pytest.raises(UserError, match="--member 2: expected 0 to 1"):
        commands.main(["sample", str(config.workdir), "--member", "2"])


def test_three_digits_are_judged_channel_by_channel(tmp_path, capsys):
    config = gan_stacked_mnist.Config(
        workdir=tmp_path / "stacked",
        steps=4,
        batch_size=16,
        data=gan_stacked_mnist.DataConfig("mnist_5k", image_size=8, count=100),
        model=gan_mnist.ModelConfig(conditional=False, width=4, latents=4),
        run=RUN,
        evaluate=gan_mnist.EvaluateConfig("labels", num_samples=200, copies=None),
    )
    train(gan_stacked_mnist, config)
    assert "modes of 1,000 (mnist_5k classifier" in capsys.readouterr().out
    record = json.loads((config.workdir / "config.json").read_text())
    assert record["data"]["name"] == "stacked_mnist_5k"
    commands.main(["evaluate", str(config.workdir), "--num-samples", "100"])
    assert "100 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": gan_mnist.ModelConfig(pack=3)}, "--batch-size 16: expected a multiple of --model.pack 3"),
        ({"model": gan_mnist.ModelConfig(pack=2)}, "pack joins examples of any label"),
        ({"model": gan_mnist.ModelConfig(r1=-1)}, "--model.r1 -1: expected at least 0"),
        ({"model": gan_mnist.ModelConfig(n_critic=0)}, "--model.n-critic 0: expected at least 1"),
        ({"model": gan_mnist.ModelConfig("hinge", augment_target=0.6)}, "nothing to steer"),
        ({"model": gan_mnist.ModelConfig(augment_target=0.6, augment=("cutout",))}, "wants a discriminator"),
        ({"data": flags.ImageDataConfig("mnist_5k", binarization="dynamic")}, "dynamic is for likelihoods"),
        (
            {"sample": gan_mnist.SampleConfig(truncation=0.0)},
            "--sample.truncation 0.0: expected a number above 0",
        ),
        ({"evaluate": gan_mnist.EvaluateConfig(num_samples=1)}, "--evaluate.num-samples 1: expected at least 10"),
        ({"run": flags.RunConfig(remat=True)}, "--run.remat is of residual blocks"),
        (
            {"data": flags.ImageDataConfig("sprites", binarization="none"), "sample": gan_mnist.SampleConfig(label=7)},
            "--label 7: expected 0 to 2",
        ),
        ({"data": flags.ImageDataConfig("mnist_5k", image_size=4, binarization="none")}, "at least 8x8"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        train(gan_mnist, digits(tmp_path, **change))
    assert len(str(error.value).splitlines()) == 1


def test_an_inception_file_that_is_none_is_refused(whole, tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"cannot read .*weights.npz"):
        commands.main(["evaluate", str(whole[0].workdir), "--inception", str(tmp_path / "weights.npz")])
