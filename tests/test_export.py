"""Exported samplers: callable without this project, the same bits as in it; the weights beside them; mistakes."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
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
from jaxgen.commands.export import exported_sampler, safetensors_of, words
from jaxgen.data.vocabulary import characters, vocabulary
from jaxgen.errors import UserError
from jaxgen.experiment import built, draw, initializer, members, restore_params
from jaxgen.files import write_atomically
from jaxgen.folder import load_run, record_of

pytest.importorskip("flatbuffers", reason="pip install 'jaxgen[export]'")
safetensors = pytest.importorskip("safetensors", reason="pip install 'jaxgen[export]'")

IMAGES = flags.ImageDataConfig("mnist_5k", image_size=8)
GREY = flags.ImageDataConfig("mnist_5k", image_size=32, binarization="none")
SOUNDS = flags.AudioDataConfig(seconds=0.016)
MOLECULES = flags.MoleculeDataConfig(longest=12)
CONFIGS = {
    "vae_mnist": vae_mnist.Config(data=IMAGES, model=vae_mnist.ModelConfig(hidden=(8,), latents=(2,))),
    "vae_mnist conditional conv": vae_mnist.Config(
        data=flags.ImageDataConfig("mnist_5k"),
        model=vae_mnist.ModelConfig("conv", hidden=(8,), latents=(2,), conditional=True),
        sample=vae_mnist.SampleConfig(draw=True),
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
        sample=pixelcnn_mnist.SampleConfig(label=3, guidance=2.0),
    ),
    "transformer_text": transformer_text.Config(
        model=transformer_text.ModelConfig(layers=1, heads=2, width=16, context=8),
        sample=transformer_text.SampleConfig("the", length=12, top_k=5, top_p=0.9),
    ),
    "wavenet_audio": wavenet_audio.Config(data=SOUNDS, model=wavenet_audio.ModelConfig(dilations=3, stacks=1, width=4)),
    "wavenet_audio gru": wavenet_audio.Config(data=SOUNDS, model=wavenet_audio.ModelConfig("gru", width=4)),
    "vae_audio": vae_audio.Config(data=flags.AudioDataConfig(seconds=0.064)),
    "gan_audio": gan_audio.Config(data=flags.AudioDataConfig(seconds=0.128), model=gan_audio.ModelConfig(width=4)),
    "transformer_molecules": transformer_molecules.Config(
        data=MOLECULES,
        model=transformer_molecules.ModelConfig(layers=1, heads=2, width=16),
        sample=transformer_molecules.SampleConfig(("logP=2.5",)),
    ),
    "vae_molecules": vae_molecules.Config(data=MOLECULES, sample=vae_molecules.SampleConfig(near="CCO")),
}


def untrained(name: str, workdir: Path, **changes) -> Path:
    """A run folder as training leaves one, of parameters that were drawn instead of learnt."""
    config, module = CONFIGS[name], sys.modules[f"experiments.{name.split()[0]}"]
    if "molecules" in name:
        pytest.importorskip("rdkit", reason="pip install 'jaxgen[molecules]'")
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


def in_process(directory: Path, member: int = 0):
    """The experiment of a run folder, and its parameters."""
    record, module, config = load_run(directory)
    experiment = built(module.build, config, record.data)
    return experiment, members(config, restore_params(config, experiment.model, record.data)[1])[member]


def exported(directory: Path, out: Path, *args: str):
    commands.main(["export", str(directory), "--out", str(out), *args])
    return jax.export.deserialize(bytearray(out.read_bytes()))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_sampler_draws_the_same_bits(name, tmp_path):
    directory = untrained(name, tmp_path / "run")
    experiment, params = in_process(directory)
    # What a folder of parameters is asked for lies in its config.json only while it trains: here, as by flags.
    controls = {
        "vae_mnist conditional conv": ["--draw"],
        "pixelcnn_mnist made guided": ["--label", "3", "--guidance", "2"],
        "transformer_text": ["--prompt", "the", "--length", "12", "--top-k", "5", "--top-p", "0.9"],
        "transformer_molecules": ["--condition", "logP=2.5"],
        "vae_molecules": ["--near", "CCO"],
    }.get(name, [])
    sampler = exported(directory, tmp_path / "sampler.jaxexport", *controls)
    assert sampler.platforms == ("cpu", "cuda", "tpu")
    sample = experiment.sample or (lambda params, key, n, labels: experiment.model.sample(params, key, n))
    for n in (1, 5):
        labels = np.arange(n, dtype=np.int32)
        expected = np.asarray(jax.jit(sample, static_argnums=2)(params, jax.random.key(7), n, labels))
        found = np.asarray(sampler.call(7, labels))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1
    assert not np.array_equal(found, np.asarray(sampler.call(8, labels)))
