"""Whole runs of models of text: what is in the folder, what is written to the terminal, mistakes."""

import math
import signal
from dataclasses import replace

import numpy as np
import pytest
from test_run import assert_same_state

from experiments import transformer_text
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log
from jaxgen.data.vocabulary import vocabulary
from jaxgen.errors import UserError
from jaxgen.folder import read_record
from jaxgen.run import run

pytestmark = pytest.mark.usefixtures("one_device")

LINE = "the quick brown fox jumps over the lazy dog é!\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(LINE * 60)
    return transformer_text.Config(
        workdir=tmp_path / "run",
        steps=60,
        data=flags.TextDataConfig(f"text:{tmp_path / 'text.txt'}"),
        model=transformer_text.ModelConfig(layers=1, heads=2, width=16, context=8),
        run=flags.RunConfig(log_every=20, evaluate_every=30, checkpoint_every=30, chunk=10),
        sample=transformer_text.SampleConfig(length=20),
    )


def train(config):
    run(config, transformer_text.load, transformer_text.build, "transformer_text", "python -m experiments.here")


def test_a_run_leaves_what_it_promises_and_writes_on(config, capsys, tmp_path):
    train(config)
    printed = capsys.readouterr().out
    assert "windows/s" in printed
    assert f"python -m jaxgen sample {config.workdir}\n" in printed
    rows = log.read(config.workdir)
    (figures,) = [row["figures"] for row in rows if "figures" in row]
    loss, bits, perplexity = (value[0] for value in figures.values())
    assert 0 < loss < math.log(len(set(LINE)))
    np.testing.assert_allclose([bits, perplexity], [loss / math.log(2), math.exp(loss)], rtol=1e-5)
    assert all("text.txt" in name and "characters" in name for name in figures)
    texts = sorted((config.workdir / "samples").iterdir())
    assert [path.name for path in texts] == ["samples_0000030.txt", "samples_0000060.txt"]
    assert "--- 3 ---" in texts[-1].read_text()
    assert "<h3>samples</h3><pre>--- 1 ---" in (config.workdir / "report.html").read_text()

    folder = str(config.workdir)
    written = []
    for controls in ([], [], ["--seed", "1"], ["--temperature", "0"], ["--temperature", "0", "--seed", "1"]):
        commands.main(["sample", folder, "--prompt", "the qu", *controls])
        written.append(capsys.readouterr().out)
    assert all(text.startswith("the qu") and len(text) == 6 + 20 + 1 for text in written)  # far beyond the context
    assert written[0] == written[1] != written[2]
    assert written[3] == written[4]
    commands.main(["sample", folder, "--num", "2", "--out", str(tmp_path / "two.txt"), "--length", "5", "--top-k", "1"])
    assert "2 samples" in capsys.readouterr().out
    assert "--- 2 ---" in (tmp_path / "two.txt").read_text()
    commands.main(["evaluate", folder, "--trust"])
    assert f"{loss:.2f}" in capsys.readouterr().out

    with pytest.raises(UserError, match="the character 'Q' is not in this vocabulary"):
        commands.main(["sample", folder, "--prompt", "Q"])
    for controls, message in {
        ("--temperature", "-1"): "temperature -1",
        ("--top-k", "0"): "top-k 0",
        ("--top-p", "2"): "top-p 2",
        ("--length", "0"): "--length 0",
    }.items():
        with pytest.raises(UserError, match=message):
            commands.main(["sample", folder, *controls])


def test_interrupted_it_goes_on_bit_for_bit(config, monkeypatch):
    whole = replace(config, workdir=config.workdir / "whole")
    train(whole)
    stopped = replace(config, workdir=config.workdir / "stopped")
    progress = log.Log.progress

    def interrupt(self, event):
        progress(self, event)
        if event.stop == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "progress", interrupt)
        train(stopped)
    train(stopped)
    assert_same_state(whole.workdir, stopped.workdir)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_what_a_token_is_stays_with_the_run(config, capsys, kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    data = replace(config.data, vocabulary=kind, vocabulary_size=270)
    learned = replace(config.model, positions="learned")
    train(replace(config, steps=10, data=data, model=learned))
    words = vocabulary(read_record(config.workdir).data.vocabulary)
    assert words.size == {"bytes": 256, "bpe": 270}[kind]
    assert words.decode(words.encode("höre dog")) == "höre dog"
    (figures,) = [row["figures"] for row in log.read(config.workdir) if "figures" in row]
    loss, bits, _ = (value[0] for value in figures.values())
    if kind == "bytes":
        assert bits == pytest.approx(loss * len(LINE.encode()) / len(LINE) / math.log(2), rel=0.01)
    else:
        assert bits < loss / math.log(2)  # a token is more than a character
    commands.main(["sample", str(config.workdir), "--length", "4", "--prompt", "é"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("é")
    with pytest.raises(UserError, match="a model with learned positions ends at 9 tokens"):
        commands.main(["sample", str(config.workdir), "--length", "40"])


def test_text_without_a_line_break_begins_somewhere(config, tmp_path, capsys):
    path = tmp_path / "dna.txt"
    path.write_text("ACGT" * 500)
    train(replace(config, steps=2, data=replace(config.data, name=f"text:{path}")))
    capsys.readouterr()
    commands.main(["sample", str(config.workdir), "--length", "4"])
    assert set(capsys.readouterr().out.strip()) <= set("ACGT")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"context": 0}, "--model.context 0: expected at least 1"),
        ({"context": 5000}, "is too short"),
        ({"layers": 0}, "--model.layers 0"),
        ({"width": 18}, "--model.width 18: expected a multiple of 4"),
        ({"heads": 4, "kv_heads": 3}, "--model.kv-heads 3: expected a divisor of --model.heads 4"),
        ({"dropout": 1.0}, "--model.dropout 1.0"),
    ],
)
def test_what_does_not_fit_is_said(config, model, message):
    with pytest.raises(UserError, match=message):
        train(replace(config, model=replace(config.model, **model)))
    assert not (config.workdir / "config.json").exists()
