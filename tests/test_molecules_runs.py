"""Models of molecules: the conformance of all models, whole runs, design on request, mistakes."""

import csv
import importlib.util
import math
from dataclasses import replace

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import transformer_molecules, vae_molecules
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log, report
from jaxgen.data.source import Spec
from jaxgen.data.vocabulary import START, STOP, molecular, vocabulary
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate
from jaxgen.experiment import built, over_members
from jaxgen.metrics.molecules import PROPERTIES, canonical, properties
from jaxgen.run import run

missing = [name for name in ("rdkit", "selfies") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.usefixtures("one_device"),
]

CHAINS = ["C" * n + end for n in range(1, 9) for end in ("O", "N", "Cl", "C(=O)O", "(C)C")] + ["C" * 9]
RUN = flags.RunConfig(log_every=50, evaluate_every=150, checkpoint_every=150, chunk=25)
MODEL = transformer_molecules.ModelConfig(layers=1, heads=2, width=32)
SPEC = Spec(
    "chains",
    {"tokens": ((7,), "uint8"), "length": ((), "int32"), "properties": ((4,), "float32")},
    vocabulary=molecular("smiles", "CON"),
    properties=dict.fromkeys(PROPERTIES, (2.0, 0.5)),
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (transformer_molecules, vae_molecules):
        monkeypatch.setattr(module, "BATCH", 64)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "mine.smi").write_text("\n".join(CHAINS))
    return flags.MoleculeDataConfig(f"smiles:{tmp_path}/mine.smi")


def batch(rows=8):
    rng = np.random.default_rng(0)
    length = np.arange(rows, dtype=np.int32) % 4 + 3
    tokens = np.where(np.arange(7) < length[:, None] - 1, rng.integers(2, 5, (rows, 7)), STOP).astype(np.uint8)
    tokens[:, 0] = START
    values = rng.normal(size=(rows, 4)).astype(np.float32)
    return {
        name: jnp.asarray(value) for name, value in (("tokens", tokens), ("length", length), ("properties", values))
    }


def figures_in(directory):
    return next(row["figures"] for row in log.read(directory) if "figures" in row)


def of(figures, start):
    return next(value[0] for name, value in figures.items() if name.startswith(start))


# The Transformer ------------------------------------------------------------------------------------------------------


def transformer(config, monkeypatch, optimizer=None):
    monkeypatch.setattr(flags.OptimizerConfig, "build", lambda self, steps: optimizer or optax.sgd(0.1))
    return transformer_molecules.build(config, SPEC).model


def test_a_property_that_is_no_number_is_not_told(monkeypatch):
    """Whatever it was, and none of the others changes with it."""
    model, some = transformer(transformer_molecules.Config(model=MODEL), monkeypatch), batch()
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, jax.jit(model.init)(jax.random.key(0), some))
    log_prob = jax.jit(model.log_prob)
    told = some["properties"].at[:, 2].set(jnp.nan)
    hidden = log_prob(params, some["tokens"], told, some["length"])
    assert np.isfinite(hidden).all()
    assert not np.allclose(hidden, log_prob(params, some["tokens"], some["properties"], some["length"]))
    assert not np.allclose(hidden, log_prob(params, some["tokens"], told.at[:, 2].set(0), some["length"]))
    assert not np.allclose(hidden, log_prob(params, some["tokens"], told.at[:, 0].add(1), some["length"]))


def test_distances_are_in_standard_deviations_of_what_is_wanted():
    mean, std = np.array([SPEC.properties[name] for name in transformer_molecules.PROPERTIES]).T
    values = np.stack([mean + 3 * std, mean + 3 * std, mean, np.full(4, np.nan)])
    wanted = np.full((4, 4), np.nan)
    wanted[0, 1], wanted[1, :2], wanted[3, 0] = 1, (3, -1), 0
    found = transformer_molecules.distances(values, wanted, SPEC)
    np.testing.assert_allclose(found, [2, np.sqrt((0 + 16) / 2), 0, np.inf])
    asked = transformer_molecules.standardised({"QED": mean[1] + 2 * std[1]}, 2, SPEC)
    np.testing.assert_allclose(asked, [[np.nan, 2, np.nan, np.nan]] * 2, rtol=1e-5)


def test_training_leaves_out_each_property_as_often_as_asked():
    condition = transformer_molecules.told(("logP", "weight"), 0.25)
    values = jnp.ones((4_000, 4))
    vectors = condition.encode(condition.hide(jax.random.key(0), values))
    assert vectors.shape == (4_000, 4) == (4_000, condition.size)
    np.testing.assert_array_equal(vectors[:, :2], vectors[:, 2:])  # a value of 1 where it is known
    np.testing.assert_allclose(vectors.mean(0), 0.75, atol=0.03)
    assert abs(np.corrcoef(vectors[:, 0], vectors[:, 1])[0, 1]) < 0.05
    np.testing.assert_array_equal(condition.encode(values.at[0, 0].set(jnp.nan))[0], [0, 1, 0, 1])


def test_hidden_properties_change_the_loss_and_nothing_else(monkeypatch):
    whole = transformer(transformer_molecules.Config(model=replace(MODEL, property_dropout=0.0)), monkeypatch)
    hiding = transformer(transformer_molecules.Config(model=replace(MODEL, property_dropout=0.9)), monkeypatch)
    some, key = batch(), jax.random.key(0)
    params = jax.jit(whole.init)(key, some)
    losses = [jax.jit(model.objectives[0].loss)(params, some, key, 0)[0] for model in (whole, hiding)]
    assert losses[0] != losses[1]
    values = [jax.jit(model.evaluate)(params, some, key)["loss"] for model in (whole, hiding)]
    np.testing.assert_array_equal(*values)


def test_a_run_designs_what_is_asked_for(data, tmp_path, capsys):
    config = transformer_molecules.Config(
        workdir=tmp_path / "run",
        steps=150,
        batch_size=32,
        data=data,
        model=MODEL,
        run=RUN,
        optimizer=flags.OptimizerConfig(learning_rate=1e-2),
        evaluate=transformer_molecules.EvaluateConfig(num_samples=100, num_conditions=20),
    )
    run(config, transformer_molecules.load, transformer_molecules.build, "transformer_molecules", "python -m here")
    assert "molecules/s" in capsys.readouterr().out
    figures = figures_in(config.workdir)
    assert of(figures, "valid, %") > 60
    assert 0 < of(figures, "novel") < 100
    assert of(figures, "mean absolute error of weight asked for") < 20  # the data spread over 30
    assert "tokens of SMILES, 100 samples" in next(iter(name for name in figures if name.startswith("valid")))
    samples = config.workdir / "samples" / "samples_0000150.png"
    picture = np.asarray(Image.open(samples))
    assert picture.shape[1] == 6 * 180
    assert picture.std() > 10
    assert 'class="wide"' in (config.workdir / "report.html").read_text()

    out, folder = tmp_path / "hits.csv", str(config.workdir)
    commands.main(["sample", folder, "--condition", "weight=74", "logP=0.8", "--num", "30", "--out", str(out)])
    assert f"{out}, {out.with_suffix('.png')}" in capsys.readouterr().out
    assert np.asarray(Image.open(out.with_suffix(".png"))).std() > 10
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 30
    valid = [row for row in rows if row["note"] != "not valid"]
    assert rows[: len(valid)] == valid  # the others at the end
    names = [row["smiles"] for row in valid]
    assert canonical(names) == names
    found = np.array([[float(row[name]) for name in PROPERTIES] for row in valid])
    np.testing.assert_allclose(found, properties(names), atol=1e-3)
    distance = [float(row["distance"]) for row in valid]
    assert distance == sorted(distance)
    assert np.median(np.abs(found[:, 3] - 74)) < 20
    training = set(canonical(CHAINS)) - {one for one in canonical(CHAINS) if one in held_out(data)}
    for i, row in enumerate(valid):
        assert ("duplicate" in row["note"]) == (row["smiles"] in names[:i])
        assert ("training" in row["note"]) == (row["smiles"] in training)

    commands.main(["sample", folder, "--condition", "weight=74", "logP=0.8", "--num", "30", "--candidates", "8"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 30
    closer = [float(row["distance"]) for row in rows if row["note"] != "not valid"]
    assert len(closer) >= len(distance)
    assert np.median(closer) < 0.7 * np.median(distance)

    commands.main(["sample", folder, "--num", "3", "--temperature", "0"])
    assert capsys.readouterr().out.startswith("smiles,logP,QED,SA,weight,note\n")
    (tmp_path / "mine.smi").unlink()  # elsewhere there may be no training data
    commands.main(["sample", folder, "--num", "2", "--out", str(tmp_path / "grid.png"), "--condition", "logP=1"])
    assert "training data not found" in (tmp_path / "grid.csv").read_text()
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    for words, message in (
        (["--condition", "logD=3"], r"--condition logD=3: expected NAME=NUMBER with some of logP, QED, SA, weight"),
        (["--condition", "logP"], r"--condition logP: expected NAME=NUMBER"),
        (["--condition", "logP=nan"], r"--condition logP=nan: expected NAME=NUMBER"),
        (["--guidance", "2"], r"--guidance is towards a --condition"),
        (["--candidates", "2"], r"--candidates 2: expected 1 without a --condition"),
        (["--candidates", "0", "--condition", "logP=1"], r"--candidates 0: expected at least 1"),
        (["--temperature", "-1"], r"temperature -1"),
    ):
        with pytest.raises(UserError, match=message):
            commands.main(["sample", folder, *words])


def held_out(data):
    found = data.load()
    tokens = np.concatenate([found.validation["tokens"], found.test["tokens"]])
    return set(transformer_molecules.to_smiles(tokens, vocabulary(found.vocabulary)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": replace(MODEL, conditions=("logD",))}, "--model.conditions logD: expected some of logP"),
        ({"model": replace(MODEL, width=30)}, "--model.width 30: expected a multiple of 4"),
        ({"model": replace(MODEL, layers=0)}, "--model.layers 0"),
        ({"model": replace(MODEL, property_dropout=1.0)}, "--model.property-dropout 1.0"),
        ({"evaluate": transformer_molecules.EvaluateConfig(num_samples=1)}, "--evaluate.num-samples 1: expected"),
        (
            {
                "model": replace(MODEL, conditions=()),
                "sample": transformer_molecules.SampleConfig(condition=("logP=1",)),
            },
            "--condition logP=1: expected none, the model has no condition",
        ),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    with pytest.raises(UserError, match=message):
        built(transformer_molecules.build, transformer_molecules.Config(**changes), SPEC)


# The autoencoder ------------------------------------------------------------------------------------------------------

SMALL = vae_molecules.ModelConfig(latents=4, width=16, convolutions=1, layers=1, heads=2, warmup_steps=0)


def autoencoder(monkeypatch, optimizer=None, **changes):
    monkeypatch.setattr(flags.OptimizerConfig, "build", lambda self, steps: optimizer or optax.sgd(0.1))
    return vae_molecules.build(vae_molecules.Config(model=replace(SMALL, **changes)), SPEC).model


def test_an_example_of_the_autoencoder_is_on_its_own(monkeypatch):
    model = autoencoder(monkeypatch)
    conformance.evaluate_is_per_example(model, batch(), "tokens")
    conformance.sample_has_shape_and_dtype(model, batch(), "tokens")


@pytest.mark.slow
def test_conformance_of_the_autoencoder(monkeypatch):
    conformance.check_model(lambda optimizer: autoencoder(monkeypatch, optimizer), batch(), entry="tokens")


def test_bounds_of_the_autoencoder(monkeypatch):
    """What lies beyond the end counts for nothing; more importance samples give a tighter bound."""
    model, some = autoencoder(monkeypatch), batch()
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, jax.jit(model.init)(jax.random.key(0), some))
    evaluate = jax.jit(model.evaluate)
    values = evaluate(params, some, jax.random.key(1))
    beyond = jnp.arange(7) >= some["length"][:, None]
    other = some | {"tokens": jnp.where(beyond, 3, some["tokens"])}
    np.testing.assert_array_equal(values["loss"], evaluate(params, other, jax.random.key(1))["loss"])
    np.testing.assert_allclose(values["elbo"], values["reconstruction"] - values["kl"], rtol=1e-5)
    x = model.observe(some, jax.random.key(0))
    assert x.shape == (8, 6)
    np.testing.assert_array_equal((x >= 0).sum(1), some["length"] - 1)
    log_w = jax.jit(model.log_weights, static_argnums=3)(params, x, jax.random.key(2), 256)
    bound = jax.nn.logsumexp(log_w, axis=0) - np.log(256)
    assert log_w.mean() < bound.mean()


def test_a_run_searches_among_latents(data, tmp_path, capsys):
    config = vae_molecules.Config(
        workdir=tmp_path / "run",
        steps=250,
        batch_size=32,
        data=data,
        model=replace(SMALL, width=32, free_bits=0.5),
        run=replace(RUN, evaluate_every=250, checkpoint_every=250),
        optimizer=flags.OptimizerConfig(learning_rate=1e-2),
        evaluate=vae_molecules.EvaluateConfig(num_samples=64, nll_samples=4),
    )
    run(config, vae_molecules.load, vae_molecules.build, "vae_molecules", "python -m here")
    figures = figures_in(config.workdir)
    kl, reconstruction = of(figures, "test KL"), of(figures, "test reconstruction")
    assert of(figures, "test -ELBO") == pytest.approx(kl - reconstruction, rel=1e-5)
    assert of(figures, "valid, %") > 30
    assert of(figures, "latents that vary") >= 1
    shown = {path.name.rpartition("_")[0] for path in (config.workdir / "samples").iterdir()}
    assert {"samples", "reconstructions"} <= shown  # and a path, where there is a molecule on it
    folder = str(config.workdir)
    capsys.readouterr()
    written = {}
    for temperature in ("0", "3"):
        commands.main(["sample", folder, "--near", "OCCCC", "--temperature", temperature, "--num", "8"])
        written[temperature] = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len({row["smiles"] for row in written["0"]}) == 1
    assert len({row["smiles"] for row in written["3"]}) > 1
    for near, message in (
        ("C(C", "expected the SMILES of a molecule"),
        ("F", "'F' of 'F' is none of the"),
        ("CCCCCCCCCCCCCCC", "has 15 tokens: expected at most 14"),
    ):
        with pytest.raises(UserError, match=message):
            commands.main(["sample", folder, "--near", near])


def test_a_posterior_that_collapsed_is_said(monkeypatch):
    monkeypatch.setattr(flags.OptimizerConfig, "build", lambda self, steps: optax.sgd(0.1))
    warn = vae_molecules.build(vae_molecules.Config(model=SMALL), SPEC).warn
    good = {"kl": 8.0, "active latents": 4.0, "valid %": 90.0, "valid and unique %": 90.0, "ended %": 100.0}
    for changes, lines in (({}, 0), ({"kl": 0.01}, 1), ({"active latents": 0.0}, 1), ({"valid %": 5.0}, 1)):
        figures = {name: vae_molecules.Estimate(value, 0.0) for name, value in (good | changes).items()}
        assert len(warn(figures)) == lines
    assert "the posterior has collapsed" in warn({n: vae_molecules.Estimate(0.0, 0.0) for n in good})[0]


# Both -----------------------------------------------------------------------------------------------------------------


def test_warnings_are_in_words():
    def figures(valid, different, ended):
        values = {"valid %": valid, "valid and unique %": different, "ended %": ended}
        return {name: transformer_molecules.Estimate(value, 0.0) for name, value in values.items()}

    assert list(transformer_molecules.warn(figures(98, 95, 100))) == []
    (line,) = transformer_molecules.warn(figures(98, 20, 100))
    assert line.startswith("samples repeat: 98 % are molecules, and only 20 % different ones")
    assert len(list(transformer_molecules.warn(figures(10, 10, 50)))) == 2


def test_what_lies_on_paths_keeps_its_place():
    """In the table and in the picture; elsewhere the closest come first, and each is drawn once."""
    smiles = ["CC", "C(", "CC", "CCO", None, "CO"]
    table, picture = transformer_molecules.listed(smiles, frozenset(), {}, SPEC, 3)
    assert [row[0] for row in table.rows] == ["CC", "C(", "CC", "CCO", "(no end)", "CO"]
    _, other = transformer_molecules.listed(["CC"] * 6, frozenset(), {}, SPEC, 3)
    assert picture.shape == other.shape  # frames of an animation
    table, picture = transformer_molecules.listed(smiles, frozenset(), {}, SPEC)
    assert [row[0] for row in table.rows] == ["CC", "CC", "CCO", "CO", "C(", "(no end)"]
    assert picture.shape[1] == other.shape[1]


def test_the_error_of_a_share_is_of_what_it_is_a_share_of():
    smiles = ["CC"] * 5 + ["CO"] * 3 + ["C("] * 2
    figures = transformer_molecules.figures_of(smiles, ["CC", "CCO"], frozenset(["CC"]), "chains")
    errors = {name.split(" (")[0]: value for name, value in figures.items()}
    assert errors["valid, %"] == (80, pytest.approx(100 * math.sqrt(0.8 * 0.2 / 10)))
    assert errors["novel, %"] == (50, pytest.approx(100 * math.sqrt(0.5 * 0.5 / 2)))


def test_seeds_need_not_have_the_same_figures():
    """As many valid molecules, or any."""
    figures = [{"a": Estimate(1.0, 0.1), "b": Estimate(2.0, 0.1)}, {"b": Estimate(4.0, 0.1), "c": Estimate(1.0, 0.1)}]
    assert over_members(figures) == {"b": (3.0, pytest.approx(2**0.5))}
    assert over_members(figures[:1]) == figures[0]


def test_one_held_out_molecule_is_too_few(tmp_path):
    (tmp_path / "mine.smi").write_text("\n".join(CHAINS[:4]))
    config = vae_molecules.Config(
        workdir=tmp_path / "run", data=flags.MoleculeDataConfig(f"smiles:{tmp_path}/mine.smi")
    )
    with pytest.raises(UserError, match="1 molecule is held out, expected two or more: give more molecules"):
        run(config, vae_molecules.load, vae_molecules.build, "vae_molecules", "")
    assert not config.workdir.exists()


def test_a_table_is_a_file_of_comma_separated_values():
    suffix, content = report.encode(report.Table(("a", "b"), [(1, 'x,"y"'), ("", "z")]))
    assert suffix == ".csv"
    assert list(csv.reader(content.decode().splitlines())) == [["a", "b"], ["1", 'x,"y"'], ["", "z"]]
