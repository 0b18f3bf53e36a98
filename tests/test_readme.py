"""The README is true: its commands parse, its example runs."""

import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import folder, log
from jaxgen.run import parse, run

pytestmark = pytest.mark.usefixtures("one_device")

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n", " ").splitlines()]
EXPERIMENTS = [line for line in SHELL if "python -m experiments." in line and not re.search("benchmark|results", line)]


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_commands_parse(line):
    words = shlex.split(line.partition("python -m experiments.")[2], comments=True)
    module = importlib.import_module(f"experiments.{words[0]}")
    parse(words[0], "", module.Config(), module.NAMED, words[1:])


def test_commands_work_in_their_order():
    """None meets the folder of another configuration, and those on a run folder come after what trains it."""
    identities = {}
    for line in SHELL:
        words = shlex.split(line.partition("python -m ")[2], comments=True) or [""]
        if line in EXPERIMENTS:
            module = importlib.import_module(words[0])
            config = parse(module.__name__, "", module.Config(), module.NAMED, words[1:])
            identity = (words[0], folder.trained(folder.plain(config)))
            assert identities.setdefault(config.workdir, identity) == identity, line
        for word in words if words[0] == "jaxgen" else []:
            assert not word.startswith("runs/") or word == "runs/latest" or Path(word) in identities, line
    for name in re.findall(r"runs/[\w.-]+-[0-9a-f]{4}\b", README):
        assert Path(name) in identities


def test_the_example_is_short_and_runs(tmp_path, monkeypatch, capsys):
    source = next(block for kind, block in BLOCKS if kind == "python" and "Experiment(" in block)
    assert len(source.splitlines()) < 60
    (tmp_path / "mixture.py").write_text(source)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    mixture = importlib.import_module("experiments.mixture")
    config = mixture.Config(workdir=tmp_path / "run", steps=200, data=flags.ImageDataConfig("mnist_5k"))
    config = replace(config, run=flags.RunConfig(log_every=20), optimizer=flags.OptimizerConfig(learning_rate=0.03))
    run(config, mixture.load, mixture.build, "mixture", "python -m experiments.mixture")
    losses = [row[name] for row in log.read(config.workdir) for name in row if name.startswith("train/loss")]
    assert losses[-1] < 200 < losses[0]  # independent pixels reach 206 nats, fair coins 543
    commands.main(["evaluate", str(config.workdir)])
    assert "test loss (dynamic binarisation)" in capsys.readouterr().out
    commands.main(["sample", str(config.workdir), "--num", "4", "--out", str(tmp_path / "grid.png")])
    assert np.asarray(Image.open(tmp_path / "grid.png")).std() > 0
