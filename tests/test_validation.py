"""The validation part of the training data: who is in it, that training sees nothing else of what is held out."""

import importlib.util
import json
import wave
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import gan_mnist, gan_stacked_mnist, gan_toy, pixelcnn_mnist, transformer_text, vae_mnist
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import folder, log, ranges
from jaxgen import run as runs
from jaxgen.checkpoint import saved_steps
from jaxgen.classifier import classifier
from jaxgen.data.audio import load_audio
from jaxgen.data.source import Dataset, hold_out
from jaxgen.data.splits import parted
from jaxgen.data.vocabulary import vocabulary
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate

LINE = "the quick brown fox jumps over the lazy dog {}!\n"
RUN = flags.RunConfig(log_every=10, evaluate_every=10, checkpoint_every=10, keep=1, chunk=5)


def keys_of(count: int) -> list[bytes]:
    return [str(i).encode() for i in range(count)]


# Which examples are held out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10, 12, 1_000])
def test_two_parts_make_up_the_training_data(count, share, keyed):
    trained, watched = parted(count, share, keys_of(count) if keyed else None)
    assert sorted([*trained, *watched]) == list(range(count))
    assert len(trained) >= 1
    assert len(watched) >= (2 if count >= 4 else 1)
    assert (np.diff(trained) > 0).all()
    if count == 10:
        assert watched[:2].tolist() == ([3, 4] if keyed else [4, 6])  # in every run the same
    if count == 1_000:
        assert len(watched) == pytest.approx(share * count, abs=60 if keyed else 0)


def test_without_a_share_all_are_trained_on_and_some_of_them_watched():
    for keys in (None, keys_of(200)):
        trained, watched = parted(200, 0.0, keys)
        assert trained.tolist() == list(range(200))
        assert 5 < len(set(watched.tolist())) == len(watched) < 50
    assert parted(1, 0.3)[0].tolist() == parted(1, 0.3)[1].tolist() == [0]  # one example cannot be held out


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match=f"--data.validation {share}: expected "):
        ranges.check(vae_mnist.Config(data=flags.ImageDataConfig(validation=share)))


def test_equal_keys_stay_together_and_where_they_are_when_others_come():
    few, more = keys_of(60) * 2, keys_of(300)
    held = {few[i] for i in parted(len(few), 0.2, few)[1]}
    assert not held & {few[i] for i in parted(len(few), 0.2, few)[0]}
    assert held == {more[i] for i in parted(len(more), 0.2, more)[1]} & set(few)
    trained, watched = parted(5, 0.2, [b"same"] * 5)
    assert trained.tolist() == list(range(5)) == sorted(watched.tolist())


def test_a_data_set_with_a_validation_split_keeps_it():
    rows = {"image": np.zeros((10, 2, 2, 1), np.uint8)}
    data = Dataset("own", rows, rows, validation=rows)
    assert hold_out(data, 0.1) is data
    assert data.watched == ("validation", rows)


# Every domain ---------------------------------------------------------------------------------------------------------


def digits(path: Path) -> flags.ImageDataConfig:
    return flags.ImageDataConfig("mnist_5k", image_size=8)


def sprites(path: Path) -> flags.ImageDataConfig:
    return flags.ImageDataConfig("sprites", binarization="fixed", image_size=8)


def pictures(path: Path) -> flags.ImageDataConfig:
    """Of each picture there are two."""
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(path / f"{i}.png")
        (path / f"copy_{i}.png").write_bytes((path / f"{i}.png").read_bytes())
    return flags.ImageDataConfig(f"folder:{path}", binarization="none")


def notes(path: Path) -> flags.AudioDataConfig:
    return flags.AudioDataConfig(seconds=0.008)


def molecules(path: Path) -> flags.MoleculeDataConfig:
    chains = ["C" * n + end for n in range(1, 20) for end in ("O", "N", "Cl", "C(=O)O", "(C)C")]
    (path / "mine.smi").write_text("\n".join(chains))
    return flags.MoleculeDataConfig(f"smiles:{path}/mine.smi", spellings=2)


def rows_of(arrays: dict) -> list[bytes]:
    """Each example, as bytes; properties are standardized by what is trained on, and are left out."""
    entries = [array for name, array in sorted(arrays.items()) if name not in ("properties", "length")]
    return [b"".join(array[i].tobytes() for array in entries) for i in range(len(entries[0]))]


missing = [name for name in ("rdkit", "selfies") if importlib.util.find_spec(name) is None]
without = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.mark.parametrize("make", [digits, sprites, pictures, notes, pytest.param(molecules, marks=without)])
def test_the_parts_of_a_data_set_share_no_example(make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = make(tmp_path)
    data, whole = config.load(), replace(config, validation=0.0).load()
    train, validation, every = rows_of(data.train), rows_of(data.validation), rows_of(whole.train)
    if make is molecules:  # of which those in training have two other spellings
        held, total = data.held_out
        assert len(train) == 3 * (total - held)
        train, every = train[: total - held], every[:total]
    assert Counter(train) + Counter(validation) == Counter(every)
    assert not set(validation) & set(train)
    assert data.held_out == data.spec.held_out == (len(validation), len(every))
    assert len(validation) == pytest.approx(0.1 * len(every), rel=0.7)
    assert data.validation.keys() == data.test.keys()
    assert data.watched == ("validation", data.validation)
    assert rows_of(data.test) == rows_of(whole.test)
    assert not (set(train) | set(validation)) & set(rows_of(data.test))
    assert whole.validation is None
    assert whole.held_out == (0, 0)
    name, watched = whole.watched
    assert name == "train subset"
    assert watched.keys() == whole.test.keys()
    assert 2 <= len(rows_of(watched)) < len(every) / 2
    assert set(rows_of(watched)) <= set(every)


@without
def test_properties_are_standardized_by_what_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = molecules(tmp_path).load()
    np.testing.assert_allclose(data.train["properties"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train["properties"].std(0), 1, atol=1e-5)
    assert np.abs(data.validation["properties"].mean(0)).max() > 1e-3


def test_pieces_of_a_recording_stay_together(tmp_path):
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    rng = np.random.default_rng(0)
    for i in range(30):
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8_000, 0, "NONE", ""))
            file.writeframes((1_000 * i + rng.integers(900, 1_000, 8_000)).astype("<i2").tobytes())
    data = load_audio(f"audio:{tmp_path}", seconds=0.1, validation=0.2)
    of = [{int(row.max()) // 1_000 for row in arrays["audio"]} for arrays in (data.train, data.validation, data.test)]
    assert len(of[0] | of[1] | of[2]) == 30 == sum(map(len, of))
    assert min(map(len, of)) >= 1


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_text_is_cut_into_three(tmp_path, kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    text = "".join(LINE.format(i) for i in range(60))
    (tmp_path / "text.txt").write_text(text)
    config = flags.TextDataConfig(f"text:{tmp_path}/text.txt", vocabulary=kind, vocabulary_size=300, validation=0.2)
    data, whole = config.load(8), replace(config, validation=0.0).load(8)
    decode = vocabulary(data.vocabulary).decode

    def joined(arrays):
        tokens = [
            row[bool(i) : end] for i, (row, end) in enumerate(zip(arrays["tokens"], arrays["length"], strict=True))
        ]
        return decode(np.concatenate(tokens))

    train = decode([*data.train["tokens"][:, 0], *data.train["tokens"][-1, 1:]])
    assert train + joined(data.validation) + joined(data.test) == text
    assert len(joined(data.validation)) == round(0.2 * int(0.9 * len(text)))
    held, total = data.held_out
    assert held == (data.validation["length"] - 1).sum() + 1
    assert total == held + len(data.train["tokens"]) + 8
    name, watched = whole.watched
    assert (name, whole.validation) == ("train subset", None)
    decode = vocabulary(whole.vocabulary).decode
    every = decode([*whole.train["tokens"][:, 0], *whole.train["tokens"][-1, 1:]])
    assert every.endswith(joined(watched))
    assert len(joined(watched)) == pytest.approx(0.1 * len(every), abs=1)


def test_points_and_stacked_digits():
    points = gan_toy.load(gan_toy.Config(data=gan_toy.DataConfig(count=200)))
    assert (len(points.train["point"]), len(points.validation["point"]), points.held_out) == (180, 20, (20, 200))
    config = gan_stacked_mnist.Config(data=gan_stacked_mnist.DataConfig("mnist_5k", image_size=8, count=50))
    data, singles = gan_stacked_mnist.load(config), gan_stacked_mnist.digits(config)
    assert data.held_out == singles.held_out == (400, 4_000)
    held = {image.tobytes() for image in singles.validation["image"]}
    assert {x[..., i].tobytes() for x in data.validation["image"] for i in range(3)} <= held
    assert not held & {x[..., i].tobytes() for x in data.train["image"] for i in range(3)}
    whole = gan_stacked_mnist.load(replace(config, data=replace(config.data, validation=0.0)))
    assert whole.validation is None
    assert whole.watched[1]["image"].shape == (5, 8, 8, 3)


# Runs -----------------------------------------------------------------------------------------------------------------

DIGITS = flags.ImageDataConfig("mnist_5k", image_size=8)


def vae(tmp_path):
    return vae_mnist, vae_mnist.Config(
        data=DIGITS,
        model=vae_mnist.ModelConfig(hidden=(8,), latents=(2,)),
        evaluate=vae_mnist.EvaluateConfig(nll_samples=2, copies=20),
    )


def gan(tmp_path):
    return gan_mnist, gan_mnist.Config(
        data=replace(DIGITS, binarization="none"),
        model=gan_mnist.ModelConfig(width=4, latents=4, lazy=4),
        evaluate=gan_mnist.EvaluateConfig("frechet", num_samples=50, copies=None),
    )


def pixelcnn(tmp_path):
    return pixelcnn_mnist, pixelcnn_mnist.Config(
        data=DIGITS,
        model=pixelcnn_mnist.ModelConfig(width=4, depth=2, first_kernel=3),
        evaluate=flags.ImageEvaluateConfig(copies=None),
    )


def text(tmp_path):
    (tmp_path / "text.txt").write_text("".join(LINE.format(i) for i in range(60)))
    return transformer_text, transformer_text.Config(
        data=flags.TextDataConfig(f"text:{tmp_path / 'text.txt'}"),
        model=transformer_text.ModelConfig(layers=1, heads=2, width=16, context=8),
    )


def train(module, config):
    runs.run(config, module.load, module.build, module.__name__.rpartition(".")[2], "python -m experiments.x")


@pytest.fixture
def light(monkeypatch):
    """An experiment without pictures, that measures means alone; its module."""
    build = vae_mnist.build
    bare = {"exhibits": lambda params, arrays, key: {}, "validate": None, "measure": None, "audit": None}
    monkeypatch.setattr(vae_mnist, "build", lambda *args: build(*args)._replace(warn=lambda figures: [], **bare))
    return vae_mnist


@pytest.mark.parametrize(("make", "share"), [(vae, 0.1), (gan, 0.1), (pixelcnn, 0.1), (text, 0.1), (gan, 0.0)])
def test_the_test_split_is_not_read_before_the_end(make, share, tmp_path, monkeypatch, one_device):
    """By anything that runs in training: of the test split of every data set only the size is there meanwhile."""
    training = []

    class Size:
        def __init__(self, array):
            self.len = len(array)

        def __len__(self):
            return self.len

    class Guarded(Dataset):
        def __getattribute__(self, name):
            if name == "spec":  # the digest is of all splits, and no number of the model
                return Dataset(**super().__getattribute__("__dict__")).spec
            found = super().__getattribute__(name)
            return {key: Size(array) for key, array in found.items()} if training and name == "test" else found

    def guarded(*args):
        training.append(True)
        try:
            return trained(*args)
        finally:
            training.clear()

    module, config = make(tmp_path)
    load, trained = module.load, runs._train
    monkeypatch.setattr(runs, "_train", guarded)
    monkeypatch.setattr(module, "load", lambda config: Guarded(**vars(load(config))))
    monkeypatch.setattr(gan_mnist, "classifier", partial(classifier, steps=40, cache=tmp_path / "classifiers"))
    config = replace(
        config,
        workdir=tmp_path / "run",
        steps=20,
        batch_size=16,
        data=replace(config.data, validation=share),
        run=RUN,
    )
    train(module, config)
    rows = log.read(config.workdir)
    split = "validation" if share else "train subset"
    assert [row["step"] for row in rows if any(name.startswith(f"{split}/") for name in row)] == [10, 20]
    assert not any(name.startswith("test/") for row in rows for name in row)
    (figures,) = [row["figures"] for row in rows if "figures" in row]
    assert figures
    assert all((", trained on " in name) == bool(share) for name in figures)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tmp_path, light, one_device):
    config = vae(tmp_path)[1]
    losses, seen = iter([2.0, 1.0, 3.0, 4.0] * 2), []

    def build(config, spec):
        def validate(params, arrays, key):
            seen.append(arrays)
            return {"loss": Estimate(next(losses), 0.0)}

        return light.build(config, spec)._replace(validate=validate)

    for share, saved in ((0.1, [20, 40]), (0.0, [40])):
        one = replace(
            config, workdir=tmp_path / str(share), steps=40, run=RUN, data=replace(config.data, validation=share)
        )
        runs.run(one, light.load, build, "vae_mnist", "python -m experiments.vae_mnist")
        assert saved_steps(one.workdir / "checkpoints") == saved
        watched = light.load(one).watched[1]
        np.testing.assert_array_equal(seen[-1]["image"], watched["image"])


def test_what_was_held_out_is_part_of_a_run(tmp_path, capsys, light, one_device):
    config = replace(vae(tmp_path)[1], workdir=tmp_path / "run", steps=20, run=RUN)
    train(light, config)
    record = folder.read_record(tmp_path / "run")
    assert record.data.held_out == (400, 4_000)
    held = ", trained on 3,600 of 4,000"
    assert f"mnist_5k{held}" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert f"(no licence stated){held}" in (tmp_path / "run" / "report.html").read_text()
    commands.main(["evaluate", str(tmp_path / "run")])
    assert held in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--data.validation was 0.1, is 0.2"):
        train(light, replace(config, data=replace(config.data, validation=0.2)))
    shares = [replace(config.data, validation=share).load().spec.digest for share in (0.0, 0.1, 0.2)]
    assert len(set(shares)) == 3


def test_a_run_older_than_the_flag_held_nothing_out(tmp_path, capsys, light, one_device):
    config = replace(vae(tmp_path)[1], workdir=tmp_path / "run", steps=20, run=RUN)
    whole = replace(config, data=replace(config.data, validation=0.0))
    train(light, whole)
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["data"]["validation"], record["data"]["held_out"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"--data.validation was 0.0, is 0.1"):
        train(light, config)
    commands.main(["evaluate", str(tmp_path / "run")])
    capsys.readouterr()
    train(light, whole)
    assert "is finished: nothing left to do" in capsys.readouterr().out


def test_published_protocols_train_on_the_whole_training_split():
    from experiments import transformer_molecules
    from experiments.results import ROWS, words_of
    from jaxgen.run import parse

    for module in (vae_mnist, pixelcnn_mnist, transformer_text, transformer_molecules, gan_toy, gan_stacked_mnist):
        assert module.Config().data.validation == 0.1
        assert all(config.data.validation == 0 for config in module.NAMED.values())
    for name, row in ROWS.items():
        for budget in ("cpu", "full") if row.cpu is not None else ("full",):
            experiment, *words = words_of(name, budget)
            module = importlib.import_module(f"experiments.{experiment}")
            assert parse(experiment, "", module.Config(), module.NAMED, words).data.validation == 0
