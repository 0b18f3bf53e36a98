"""Exported samplers: callable without this project, the same bits as in it; the weights beside them; mistakes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax import export
from test_readme import BLOCKS, SHELL

from experiments import (
    gan_audio,
    gan_mnist,
    gan_toy,
    pixelcnn_mnist,
    transformer_molecules,
    transformer_text,
    vae_audio,
    vae_mnist,
    vae_molecules,
    wavenet_audio,
)
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen.checkpoint import Checkpoints, digest
from jaxgen.data.vocabulary import characters, vocabulary
from jaxgen.errors import UserError
from jaxgen.experiment import built, draw, initializer, members, restore_params
from jaxgen.files import write_atomically
from jaxgen.folder import load_run, record_of
from jaxgen.handover import exported_sampler, safetensors_of, words

pytestmark = pytest.mark.usefixtures("one_device")

pytest.importorskip("flatbuffers", reason="needs the extra export")
safetensors = pytest.importorskip("safetensors", reason="needs the extra export")
load_file = pytest.importorskip("safetensors.numpy", reason="needs the extra export").load_file

IMAGES = flags.ImageDataConfig("mnist_5k", image_size=8)
GREY = flags.ImageDataConfig("mnist_5k", image_size=32, binarization="none")
SOUNDS = flags.AudioDataConfig(seconds=0.016)
MOLECULES = flags.MoleculeDataConfig(longest=12)
CONFIGS = {
    "vae_mnist": vae_mnist.Config(data=IMAGES, model=vae_mnist.ModelConfig(hidden=(8,), latents=(2,))),
    "vae_mnist conditional conv": vae_mnist.Config(
        data=flags.ImageDataConfig("mnist_5k"),
        model=vae_mnist.ModelConfig("conv", hidden=(8,), latents=(2,), conditional=True),
    ),
    "vae_mnist bfloat16": vae_mnist.Config(
        data=IMAGES,
        model=vae_mnist.ModelConfig(hidden=(8, 8), latents=(4, 2), conditional=True),
        run=flags.RunConfig(dtype="bfloat16"),
    ),
    "gan_mnist": gan_mnist.Config(data=GREY, model=gan_mnist.ModelConfig(width=4)),
    "gan_toy": gan_toy.Config(data=gan_toy.DataConfig(count=100), model=gan_toy.ModelConfig(hidden=(8,))),
    "pixelcnn_mnist": pixelcnn_mnist.Config(
        data=IMAGES, model=pixelcnn_mnist.ModelConfig(width=4, depth=2, first_kernel=3)
    ),
    "pixelcnn_mnist made guided": pixelcnn_mnist.Config(
        data=IMAGES,
        model=pixelcnn_mnist.ModelConfig("made", hidden=(16,), conditional=True, condition_dropout=0.1),
    ),
    "transformer_text": transformer_text.Config(
        model=transformer_text.ModelConfig(layers=1, heads=2, width=16, context=8),
    ),
    "wavenet_audio": wavenet_audio.Config(data=SOUNDS, model=wavenet_audio.ModelConfig(dilations=3, stacks=1, width=4)),
    "wavenet_audio gru": wavenet_audio.Config(data=SOUNDS, model=wavenet_audio.ModelConfig("gru", width=4)),
    "vae_audio": vae_audio.Config(data=flags.AudioDataConfig(seconds=0.064)),
    "gan_audio": gan_audio.Config(data=flags.AudioDataConfig(seconds=0.128), model=gan_audio.ModelConfig(width=4)),
    "transformer_molecules": transformer_molecules.Config(
        data=MOLECULES,
        model=transformer_molecules.ModelConfig(layers=1, heads=2, width=16),
    ),
    "vae_molecules": vae_molecules.Config(data=MOLECULES),
}

CONTROLS = {  # as words of the command, and as they lie in a configuration
    "vae_mnist conditional conv": (["--draw"], vae_mnist.SampleConfig(draw=True)),
    "pixelcnn_mnist made guided": (
        ["--label", "3", "--guidance", "2"],
        pixelcnn_mnist.SampleConfig(label=3, guidance=2.0),
    ),
    "transformer_text": (
        ["--prompt", "the", "--length", "12", "--top-k", "5", "--top-p", "0.9"],
        transformer_text.SampleConfig("the", length=12, top_k=5, top_p=0.9),
    ),
    "transformer_molecules": (["--condition", "logP=2.5"], transformer_molecules.SampleConfig(("logP=2.5",))),
    "vae_molecules": (["--near", "CCO"], vae_molecules.SampleConfig(near="CCO")),
}
HEED_LABELS = {"vae_mnist conditional conv", "vae_mnist bfloat16", "gan_mnist", "wavenet_audio", "wavenet_audio gru"}
HEED_LABELS |= {"vae_audio", "gan_audio"}


def untrained(name: str, workdir: Path, **changes) -> Path:
    """A run folder as training leaves one, of parameters that were drawn instead of learnt."""
    config, module = CONFIGS[name], sys.modules[f"experiments.{name.split()[0]}"]
    if "molecules" in name:
        pytest.importorskip("rdkit", reason="needs the extra molecules")
    if "text" in name:
        (workdir.parent / "text.txt").write_text("the quick brown fox jumps over the lazy dog é!\n" * 20)
        changes["data"] = flags.TextDataConfig(f"text:{workdir.parent / 'text.txt'}")
    config = replace(config, workdir=workdir, **changes)
    data = module.load(config)
    model = built(module.build, config, data.spec).model
    some = {entry: array[: 10 * config.seeds] for entry, array in data.train.items()}
    if config.seeds > 1:
        some = {entry: array.reshape(config.seeds, 10, *array.shape[1:]) for entry, array in some.items()}
    state = jax.jit(initializer(config, model))(some)
    keys = iter(jax.random.split(jax.random.key(1), 1_000))

    def shaken(x):  # biases and what begins at nothing would hide mistakes
        return x + 0.1 * jax.random.normal(next(keys), x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else x

    params = jax.tree.map(shaken, state.params)
    state = state.replace(params=params, ema=state.ema and params)
    saving = Checkpoints(workdir / "checkpoints", asynchronous=False)
    saving.save(0, state)
    saving.close()
    record = record_of(name.split()[0], "python -m experiments.here", config, data)
    write_atomically(workdir / "config.json", msgspec.json.encode(record))
    return workdir


def in_process(directory: Path, controls=None, member: int = 0):
    """The experiment of a run folder, with the controls of a sampler, and its parameters."""
    record, module, config = load_run(directory)
    config = replace(config, sample=controls or config.sample)
    experiment = built(module.build, config, record.data)
    return experiment, members(config, restore_params(config, experiment.model, record.data)[1])[member]


def exported(directory: Path, out: Path, *args: str):
    commands.main(["export", str(directory), "--out", str(out), *args])
    return export.deserialize(bytearray(out.read_bytes()))


# Of each way to sample one; the networks that sample as another does are for whoever changes export.
ALIKE = ("vae_mnist", "vae_mnist bfloat16", "gan_toy", "gan_audio", "pixelcnn_mnist made guided", "wavenet_audio gru")
ALIKE += ("vae_audio", "transformer_molecules")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in CONFIGS])
def test_an_exported_sampler_draws_the_same_bits(name, tmp_path, capsys):
    directory = untrained(name, tmp_path / "run")
    args, asked = CONTROLS.get(name, ([], None))
    experiment, params = in_process(directory, asked)
    sampler = exported(directory, tmp_path / "sampler.jaxexport", *args)
    assert sampler.platforms == ("cpu", "cuda", "tpu")
    sample = experiment.sample or (lambda params, key, n, labels: experiment.model.sample(params, key, n))
    for n in (1, 5) if name in ("gan_toy", "transformer_text") else (5,):
        labels = np.arange(n, dtype=np.int32)
        expected = np.asarray(jax.jit(sample, static_argnums=2)(params, jax.random.key(7), n, labels))
        found = np.asarray(sampler.call(7, labels))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1
    assert not np.array_equal(found, np.asarray(sampler.call(8, labels)))
    says = "the class of each sample" if name in HEED_LABELS else "their values are ignored"
    assert says in capsys.readouterr().out
    assert (name in HEED_LABELS) != np.array_equal(found, np.asarray(sampler.call(7, labels[::-1].copy())))


ALONE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jaxgen", "experiments", "flax", "optax", "orbax", "tyro", "msgspec"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
try:
    import jaxgen
except ImportError:
    pass
else:
    raise SystemExit("jaxgen is there")
"""


def test_the_snippet_of_the_readme_runs_without_this_project(tmp_path, monkeypatch):
    (snippet,) = [block for kind, block in BLOCKS if kind == "python" and "jaxexport" in block]
    assert len(snippet.splitlines()) <= 8
    (line,) = [line for line in SHELL if line.startswith("python -m jaxgen export") and "--" in line]
    directory = untrained("vae_mnist bfloat16", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    commands.main(["export", str(directory), *shlex.split(line, comments=True)[5:]])
    keep = "\nnp.save('samples.npy', samples)\nnp.savez('weights.npz', **weights)\n"
    child = [sys.executable, "-I", "-c", ALONE + snippet + keep]
    found = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    experiment, params = in_process(directory)
    samples = np.load("samples.npy")
    sample = jax.jit(experiment.sample, static_argnums=2)
    expected = np.asarray(sample(params, jax.random.key(0), len(samples), np.full(len(samples), 3, np.int32)))
    np.testing.assert_array_equal(samples, expected)
    assert samples.dtype == np.uint8
    weights = dict(np.load("weights.npz"))
    leaves = jax.tree.leaves_with_path(params)
    assert weights.keys() == {"/".join(part.key for part in path) for path, _ in leaves}
    for path, value in leaves:
        np.testing.assert_array_equal(weights["/".join(part.key for part in path)], value)


def test_what_is_said_of_the_weights_and_what_the_sampler_leaves_out(tmp_path):
    directory = untrained("transformer_text", tmp_path / "run")
    sampler = exported(directory, tmp_path / "text.jaxexport", "--length", "9", "--temperature", "0")
    with safetensors.safe_open(tmp_path / "text.safetensors", "np") as file:
        about = file.metadata()
    assert (about["run"], about["experiment"], about["step"]) == ("run", "transformer_text", "0")
    assert about["checkpoint"] == digest(directory / "checkpoints", 0)
    sample = np.asarray(sampler.call(0, np.zeros(1, np.int32)))[0]
    tokens = json.loads(about["tokens"])
    text = "".join(tokens[t] for t in sample).encode("latin-1").decode(errors="replace")
    assert text == vocabulary(about["vocabulary"]).decode(sample)
    assert len(text) == 10  # after a line break
    np.testing.assert_array_equal(sample, np.asarray(sampler.call(1, np.zeros(1, np.int32)))[0])  # temperature 0

    directory = untrained("gan_toy", tmp_path / "toy", model=gan_toy.ModelConfig(hidden=(300, 300)))
    exported(directory, tmp_path / "toy.jaxexport")
    generator = 4 * sum(x.size for x in jax.tree.leaves(in_process(directory)[1]["generator"]))
    assert (tmp_path / "toy.safetensors").stat().st_size > 1.5 * generator
    assert generator < (tmp_path / "toy.jaxexport").stat().st_size < 1.3 * generator  # without the discriminator


def test_one_of_several_seeds(tmp_path):
    directory = untrained("gan_toy", tmp_path / "run", seeds=2)
    zeros = np.zeros(4, np.int32)
    first, second = (exported(directory, tmp_path / "one", "--member", m).call(0, zeros) for m in "01")
    assert not np.array_equal(first, second)
    experiment, params = in_process(directory, member=1)
    np.testing.assert_array_equal(second, draw(experiment, params, jax.random.key(0), 4))


def test_half_the_characters_of_a_text_are_not_latin():
    serialised = characters("aé漢")
    tokens = json.loads(words(serialised)["tokens"])
    row = vocabulary(serialised).encode("漢aé")
    assert "".join(tokens[t] for t in row).encode("latin-1").decode() == "漢aé"
    assert words("") == {}


def test_weights_of_every_dtype_and_layout(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not in C order
    half = np.asarray(jnp.asarray(kernel / 7, jnp.bfloat16))
    params = {"net": {"Dense_0": {"kernel": kernel, "bias": half}}, "warmup": {"steps": np.int32(3)}}
    (tmp_path / "w.safetensors").write_bytes(safetensors_of(params, {"run": "é"}))
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == {"net/Dense_0/kernel", "net/Dense_0/bias", "warmup/steps"}
    np.testing.assert_array_equal(found["net/Dense_0/kernel"], kernel)
    assert found["net/Dense_0/bias"].dtype == half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["net/Dense_0/bias"].view(np.uint16), half.view(np.uint16))
    assert found["warmup/steps"] == 3
    assert found["warmup/steps"].shape == ()


def test_a_sampler_of_a_fixed_number():
    def one_by_one(params, key, n, labels):
        return params["scale"] * jnp.stack([jax.random.normal(jax.random.fold_in(key, i)) for i in range(n)])

    params = {"scale": np.float32(2)}
    with pytest.raises(UserError, match="any number of samples, add --num 64"):
        exported_sampler(one_by_one, params, None)
    sampler, heeded = exported_sampler(one_by_one, params, 6)
    assert not heeded
    expected = one_by_one(params, jax.random.key(1), 6, None)
    np.testing.assert_array_equal(sampler.call(1, np.zeros(6, np.int32)), expected)
    with pytest.raises(UserError, match="more than JAX can trace"):
        exported_sampler(lambda params, key, n, labels: np.asarray(labels), params, None)


def test_mistakes(tmp_path, monkeypatch):
    out = tmp_path / "sampler.jaxexport"
    with pytest.raises(UserError, match="is not a run folder"):
        exported(tmp_path, out)
    directory = untrained("gan_toy", tmp_path / "run")
    for args, message in (
        (["--num", "0"], "--num 0: expected at least 1"),
        (["--member", "1"], "--member 1: expected 0 to 0"),
        (["--out", "w.safetensors"], "give the sampler another, such as .jaxexport"),
        (["--out", str(directory / "config.json" / "sampler")], "give another --out"),
        (["--out", str(directory)], "give another --out"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            exported(directory, out, *args)
        assert "\n" not in str(raised.value)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "flatbuffers", None)
        with pytest.raises(UserError, match="pip install flatbuffers safetensors"):
            exported(directory, out)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        exported(directory, out)
