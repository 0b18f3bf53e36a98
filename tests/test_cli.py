"""Flags as people type them, and help as people read it."""

import importlib
import io
import os
import sys

import pytest

from experiments import gan_mnist, vae_mnist
from jaxgen import __main__ as commands
from jaxgen import run as run_module
from jaxgen import terminal
from jaxgen.data.audio import NAMES as SOUNDS
from jaxgen.data.catalogue import RAW
from jaxgen.data.images import EMBEDDED
from jaxgen.data.molecules import NAMES as MOLECULES
from jaxgen.data.text import NAMES as TEXTS
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate
from jaxgen.run import parse

EXPERIMENTS = (
    "gan_audio", "gan_mnist", "gan_stacked_mnist", "gan_toy", "pixelcnn_mnist", "transformer_molecules",
    "transformer_text", "vae_audio", "vae_mnist", "vae_molecules", "wavenet_audio",
)  # fmt: skip


def flags(*words, module=vae_mnist):
    return parse(module.__name__.rpartition(".")[2], module.__doc__, module.Config(), module.NAMED, list(words))


def help_of(capsys, *words, module=vae_mnist):
    with pytest.raises(SystemExit) as ended:
        flags(*words, module=module)
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--optimizer.learning-rate"),
        ("--learning-rate", "--optimizer.learning-rate"),
        ("--learning_rate=3", "--optimizer.learning-rate"),
        ("--batchsize", "--batch-size"),
        ("--bs", "--batch-size"),
        ("--epochs", "--steps"),
        ("--dataset", "--data.name"),
        ("--model.num-sample", "--model.num-samples"),
        ("--model.latent", "--model.latents"),
        ("--conditional", "--model.conditional"),
        ("--optimiser.learning-rate", "--optimizer.learning-rate"),
        ("--temperature", "--sample.temperature"),
    ],
)
def test_a_flag_that_does_not_exist_has_a_suggestion(word, meant):
    with pytest.raises(UserError) as error:
        flags(word, "3")
    name = word.partition("=")[0].replace("_", "-")
    all_flags = "(all flags: python -m experiments.vae_mnist --help-all)"
    assert str(error.value) == f"there is no flag {name}: did you mean {meant}? {all_flags}"


def test_words_without_a_flag_are_refused():
    with pytest.raises(UserError, match="there is no flag --qqq "):
        flags("--qqq")
    with pytest.raises(UserError, match="unexpected word 'more': it belongs to no flag"):
        flags("--steps", "3", "more")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--model.conditional"], True),
        (["--model.conditional=True"], True),
        (["--model.conditional", "true"], True),
        (["--model.conditional=False"], False),
        (["--model.conditional", "False"], False),
        (["--model.no-conditional"], False),
        (["--model.conditional", "--steps", "3"], True),
    ],
)
def test_a_switch_takes_a_value_or_none(words, value):
    assert flags(*words, module=gan_mnist).model.conditional is value
    assert flags("--model.doubly_reparameterized=yes").model.doubly_reparameterized


def test_a_switch_takes_no_other_value():
    with pytest.raises(UserError, match=r"--model.conditional maybe: expected True or False"):
        flags("--model.conditional=maybe")


def test_help_is_short_and_begins_with_the_run_and_its_model(capsys):
    short = help_of(capsys, "--help")
    every = help_of(capsys, "--help-all")
    assert short.rindex("--workdir") < short.rindex("--model.hidden") < short.rindex("--data.name")
    assert short.rindex("--data.name") < short.rindex("--optimizer.learning-rate") < short.rindex("--run.overwrite")
    for hidden in ("--run.coordinator", "--run.num-processes", "--optimizer.b1", "--sample.label", "--evaluate.copies"):
        assert hidden not in short
        assert hidden in every
    assert "Number of training steps" in short
    assert "--help-all" in short
    assert len(short.splitlines()) < 0.6 * len(every.splitlines())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_describes_every_flag_and_configuration(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    text = help_of(capsys, "--help", module=module)
    for preset in module.NAMED:
        line = next(line for line in text.splitlines() if line.split()[:1] == [preset])
        assert len(line.split()) > 3, f"{preset} has no description"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("vae_mnist", [*EMBEDDED, *RAW]),
        ("transformer_text", TEXTS),
        ("vae_audio", SOUNDS),
        ("vae_molecules", MOLECULES),
        ("gan_toy", ("grid", "ring")),
    ],
)
def test_help_lists_the_data_sets(name, names, capsys):
    text = help_of(capsys, "--help", module=importlib.import_module(f"experiments.{name}"))
    text = text[text.index("--data.name") : text.index("--data.dir")]
    assert [one for one in names if one not in text] == []


@pytest.mark.parametrize("command", commands.FLAGS)
def test_a_command_explains_its_flags_without_a_run_folder(command, capsys):
    words = ["data", command] if command in commands.ON_DATA else [command]
    with pytest.raises(SystemExit) as ended:
        commands.main([*words, "--help"])
    assert ended.value.code in (0, None)
    text = capsys.readouterr().out
    assert f"python -m jaxgen {' '.join(words)} {commands.FLAGS[command][0]}" in text
    assert "--" in text.partition("options")[2]


def test_every_command_can_be_explained():
    assert set(commands.FLAGS) == {*commands.ON_RUN, *commands.ON_DATA, "reproduce"}


def test_a_terminal_that_lacks_a_character_gets_another(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with terminal.outputs():
        print(Estimate(86.5, 0.25), "\u0394 caf\u00e9")
    assert written.getvalue().decode() == "86.50 +- 0.25 ? caf?\n"


def test_a_reader_that_goes_away_ends_the_program_quietly(monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch, os.fdopen(writing, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended, run_module.errors_in_one_line():
            flags("--help")
    assert ended.value.code == terminal.CLOSED
    assert capfd.readouterr().err == ""
