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
from jaxgen import log
from jaxgen.run import parse, run

pytestmark = pytest.mark.usefixtures("one_device")

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n", " ").splitlines()]
EXPERIMENTS = [
    line for line in SHELL if "python -m experiments." in line and not re.search("benchmark|reproduce", line)
]


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_commands_parse(line):
    words = shlex.split(line.partition("python -m experiments.")[2], comments=True)
    module = importlib.import_module(f"experiments.{words[0]}")
    parse(words[0], "", module.Config(), module.NAMED, words[1:])


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
