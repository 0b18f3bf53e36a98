"""Run folders: their default names, and the link to the newest."""

import importlib
import os
from pathlib import Path

import pytest

from experiments import vae_mnist
from jaxgen import folder, processes
from jaxgen.errors import UserError
from jaxgen.run import parse

EXPERIMENTS = sorted(path.stem for path in Path(vae_mnist.__file__).parent.glob("*_*.py") if path.stem[0] != "_")


def workdir(*words: str) -> str:
    return str(parse("vae_mnist", "", vae_mnist.Config(), vae_mnist.NAMED, list(words)).workdir)


def test_a_default_folder_says_what_differs_and_is_found_again():
    assert workdir() == "runs/vae_mnist"
    variant = workdir("--model.network", "conv", "--model.conditional")
    assert variant == workdir("--model.conditional", "--model.network", "conv")
    assert variant.startswith("runs/vae_mnist-conv-conditional-")
    assert workdir("burda-1layer-k1") == "runs/burda-1layer-k1"
    assert workdir("burda-1layer-k1", "--seed", "3").startswith("runs/burda-1layer-k1-seed-3-")
    assert workdir("--model.conditional", "--workdir", "here") == "here"
    assert workdir("--model.conditional", "--workdir=here") == "here"


def test_flags_that_train_nothing_else_keep_the_folder():
    for words in (
        ["--steps", "7"],
        ["--run.keep", "9", "--run.overwrite"],
        ["--evaluate.nll-samples", "3"],
        ["--sample.temperature", "0.5"],
        ["--data.dir", "elsewhere", "--data.strict"],
    ):
        assert workdir(*words) == "runs/vae_mnist"
        assert workdir("--model.conditional", *words) == workdir("--model.conditional")


def test_folders_differ_where_what_is_trained_differs():
    variants = [
        ["--seed", "1"],
        ["--run.dtype", "bfloat16"],
        ["--optimizer.learning-rate", "1e-4"],
        ["--optimizer.learning-rate", "2e-4"],
        ["--data.name", "folder:/a/pictures"],
        ["--data.name", "folder:/a/pictures!"],
        ["--data.name", f"folder:/{'long' * 50}/one"],
        ["--data.name", f"folder:/{'long' * 50}/other"],
    ]
    folders = [workdir(*words) for words in variants]
    assert len(set(folders)) == len(folders)
    for path in folders:
        assert Path(path).parent == Path("runs")
        assert len(Path(path).name) < 80


def test_no_two_named_configurations_share_a_folder():
    modules = [importlib.import_module(f"experiments.{name}") for name in EXPERIMENTS]
    configs = [config for module in modules for config in (module.Config(), *getattr(module, "NAMED", {}).values())]
    folders = [config.workdir for config in configs]
    assert len(set(folders)) == len(folders)


def test_latest_is_a_relative_link_to_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    latest = Path("runs/latest")
    for name in ("one", "other", "one"):
        Path("runs", name).mkdir(parents=True, exist_ok=True)
        folder.link_latest(Path("runs", name))
        assert os.readlink(latest) == name
        assert folder.followed(latest) == Path("runs", name)
    folder.link_latest(latest)  # the run was started by the link's name
    folder.link_latest(tmp_path / "elsewhere")
    assert os.readlink(latest) == "one"
    assert sorted(os.listdir("runs")) == ["latest", "one", "other"]
    assert sorted(os.listdir(tmp_path)) == ["runs"]
    assert folder.followed(Path("runs/one")) == Path("runs/one")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/somewhere/else")])
def test_what_is_no_such_link_stays(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    Path("runs/one").mkdir(parents=True)
    make(Path("runs/latest"))
    before = os.lstat("runs/latest")
    folder.link_latest(Path("runs/one"))
    assert os.lstat("runs/latest") == before


def test_a_folder_that_another_process_does_not_see_is_refused(tmp_path, monkeypatch):
    folder.check_seen(tmp_path)
    monkeypatch.setattr(processes, "exchange", lambda value: [value, False] if isinstance(value, bool) else [value])
    with pytest.raises(UserError, match="process 1 does not see the folder"):
        folder.check_seen(tmp_path)
    assert not list(tmp_path.iterdir())
