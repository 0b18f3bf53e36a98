"""Models of sounds: the conformance of all models, whole runs, mistakes."""

import io
import wave
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import check_model

from experiments import audio, vae_audio, wavenet_audio
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import log
from jaxgen.data.source import Dataset, Spec
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate
from jaxgen.run import run

pytestmark = pytest.mark.usefixtures("one_device")

SPEC = Spec("noise", {"audio": ((24,), "int16"), "label": ((), "int32")}, classes=tuple("ab"))
WAVENETS = {
    "wavenet": wavenet_audio.ModelConfig(dilations=3, first_kernel=4, width=4, skip=8),
    "mixture": wavenet_audio.ModelConfig(dilations=3, first_kernel=4, width=4, skip=8, components=2),
    "gru": wavenet_audio.ModelConfig("gru", width=8),
}


def some_sounds(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(length) / 8_000
    label = np.arange(rows) % 13
    audio = 8_000 * np.sin(2 * np.pi * 261.626 * 2 ** (label / 12)[:, None] * t) + rng.normal(0, 100, (rows, length))
    return {"audio": audio.astype(np.int16), "label": label.astype(np.int32)}


@pytest.fixture
def sounds(monkeypatch):
    """A data set that is made at once, in place of the notes."""
    from jaxgen.data.audio import PITCHES

    train, test = some_sounds(26, 512), some_sounds(13, 512, seed=1)
    test["length"] = np.full(13, 512, np.int32)
    data = Dataset("notes", train, test, validation=test, classes=PITCHES)
    for module in (wavenet_audio, vae_audio):
        monkeypatch.setattr(module, "load", lambda config: data)
    return data


def train(module, config):
    run(config, module.load, module.build, module.__name__.split(".")[1], "python -m experiments.here")


def short(module, tmp_path, model, **options):
    return module.Config(
        workdir=tmp_path / "run",
        steps=20,
        batch_size=8,
        model=model,
        optimizer=flags.OptimizerConfig(learning_rate=1e-2),
        run=flags.RunConfig(log_every=10, evaluate_every=20, checkpoint_every=20, chunk=5),
        evaluate=module.EvaluateConfig(num_samples=4),
        **options,
    )


def test_wavenet_conforms(tmp_path, monkeypatch):
    config = short(wavenet_audio, tmp_path, WAVENETS["wavenet"])
    batch = {"audio": jnp.asarray(some_sounds(8, 24)["audio"]), "label": jnp.arange(8, dtype=jnp.int32) % 2}

    def make(optimizer: optax.GradientTransformation):
        monkeypatch.setattr(flags.OptimizerConfig, "build", lambda self, steps: optimizer)
        return wavenet_audio.build(config, SPEC).model

    check_model(make, batch, "audio")


def read(content):
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_a_run_can_be_heard_and_seen(sounds, tmp_path, capsys):
    model = replace(WAVENETS["wavenet"], condition_dropout=0.1)
    config = short(wavenet_audio, tmp_path, model)
    train(wavenet_audio, config)
    assert f"python -m jaxgen sample {config.workdir} --num 64 --out sounds.wav" in capsys.readouterr().out
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    bits, share, real = figures.values()
    assert 0 < bits[0] < 8  # what noise of all levels has
    assert real[0] == 100  # the meter is right
    assert 0 <= share[0] <= 100
    assert all("8-bit mu-law at 8000 Hz" in name or "within 50 cents" in name for name in figures)
    files = sorted(path.name for path in (config.workdir / "samples").iterdir())
    assert files == ["recordings_0000020.wav", "sounds_0000020.wav", "spectrograms_0000020.png"]
    gap = 800
    assert len(read((config.workdir / "samples" / files[1]).read_bytes())) == 13 * (512 + gap)
    heard = read((config.workdir / "samples" / files[0]).read_bytes()).reshape(13, 512 + gap)
    np.testing.assert_array_equal(heard[:, :512], sounds.test["audio"])
    page = (config.workdir / "report.html").read_text()
    assert page.count('<audio controls src="data:audio/wav;base64,') == 2

    out, written = tmp_path / "two.wav", []
    folder = str(config.workdir)
    three = ["--label", "3"]
    for controls in ([], [], ["--seed", "1"], three, [*three, "--guidance", "2"], ["--seconds", "0.1"]):
        commands.main(["sample", folder, "--num", "2", "--out", str(out), *controls])
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert len({*written}) == 5
    assert [len(read(content)) for content in written] == [2 * (512 + gap)] * 5 + [2 * (800 + gap)]
    commands.main(["sample", folder, "--num", "10", "--out", str(tmp_path / "each")])
    names = [f"{i:02d}{suffix}" for i in range(1, 11) for suffix in (".png", ".wav")]  # each sound and its spectrogram
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == names
    first = read((tmp_path / "each" / "01.wav").read_bytes())
    commands.main(["sample", folder, "--num", "10", "--out", str(out)])
    np.testing.assert_array_equal(read(out.read_bytes())[: len(first)], first)
    commands.main(["evaluate", folder, "--num-samples", "2"])
    assert str(Estimate(*bits)) in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "numbers"), [("mixture", 2 * 3), ("gru", 256)])
def test_other_networks_by_flag(sounds, tmp_path, kind, numbers):
    """Their shapes alone: what they compute is tested elsewhere, and compiling it takes long."""
    experiment = wavenet_audio.build(short(wavenet_audio, tmp_path, WAVENETS[kind]), sounds.spec)
    model, key = experiment.model, jax.random.key(0)
    params = jax.eval_shape(model.init, key, sounds.train)
    assert params["network"]["output"]["kernel"].shape == (8, numbers)
    samples = jax.eval_shape(lambda params: model.sample(params, key, 3, np.arange(3)), params)
    assert (samples.shape, samples.dtype) == ((3, 512), jnp.int16)
    assert experiment.title == {"mixture": "WaveNet", "gru": "Recurrent network"}[kind]


def test_bits_are_of_what_is_the_recordings_own(sounds, tmp_path):
    """A third of each is silence that was added; figures are of the rest, each sample counted once."""
    config = short(wavenet_audio, tmp_path, WAVENETS["wavenet"])
    experiment = wavenet_audio.build(config, sounds.spec)
    params = experiment.model.init(jax.random.key(0), sounds.train)
    some = {name: array[:4] for name, array in sounds.test.items()} | {"length": np.array([100, 200, 300, 400])}
    loss = experiment.validate(params, some, jax.random.key(0))["loss"].mean
    tokens = experiment.model.observe({"audio": jnp.asarray(some["audio"])}, None)
    log_p = jax.nn.log_softmax(experiment.model.outputs(params, tokens, some["label"]))
    total = sum(log_p[i, np.arange(n), tokens[i, :n]].sum() for i, n in enumerate(some["length"]))
    np.testing.assert_allclose(loss, -total / 1_000, rtol=1e-4)


def test_a_vae_is_heard_too(sounds, tmp_path):
    model = vae_audio.ModelConfig(latents=4, channels=(8, 8), hidden=16, size=128, hop=32, bins=20)
    config = short(vae_audio, tmp_path, model)
    train(vae_audio, config)
    files = sorted(path.name for path in (config.workdir / "samples").iterdir())
    assert files == [
        "recordings_0000020.wav",
        "recordings_and_what_became_of_them_0000020.wav",
        "sounds_0000020.wav",
        "spectrograms_0000020.png",
    ]
    figures = next(row["figures"] for row in log.read(config.workdir) if "figures" in row)
    assert [name.split(" (")[0] for name in figures] == [
        "test -ELBO, nats",
        "test KL, nats",
        "generated notes within 50 cents, %",
        "held-out notes within 50 cents, %",
    ]
    out = tmp_path / "one.wav"
    commands.main(["sample", str(config.workdir), "--num", "1", "--label", "0", "--out", str(out)])
    assert len(read(out.read_bytes())) == 512 + 800


def test_recordings_beside_sounds_are_several():
    """Of the label that was asked for, where there are labels."""
    recordings = np.arange(12, dtype=np.int16)[:, None] * np.ones(800, np.int16)
    sounds, labels = np.zeros((4, 800), np.int16), np.array([2, 1, 0, 5])
    for arrays, chosen in (
        ({"audio": recordings}, [0, 1, 2, 3]),
        ({"audio": recordings, "label": np.repeat([0, 1, 2], 4)}, [8, 4, 0, 0]),
    ):
        heard = audio.exhibits(sounds, labels, arrays, 8_000)["recordings"].samples.reshape(4, -1)
        assert heard[:, 0].tolist() == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": wavenet_audio.SampleConfig(label=30)}, "--label 30: expected 0 to 12"),
        ({"sample": wavenet_audio.SampleConfig(temperature=-1.0)}, "temperature -1"),
        ({"sample": wavenet_audio.SampleConfig(seconds=0.0)}, r"seconds 0.0: expected a number above 0"),
        (
            {
                "sample": wavenet_audio.SampleConfig(label=1, guidance=2.0),
                "model": wavenet_audio.ModelConfig(components=5),
            },
            "--guidance is towards a label",
        ),
        (
            {"sample": wavenet_audio.SampleConfig(label=1, guidance=2.0)},
            "--guidance is of a model trained with --model.condition-dropout above 0",
        ),
        ({"model": wavenet_audio.ModelConfig(dilations=0)}, "--model.dilations 0"),
        ({"model": wavenet_audio.ModelConfig(dropout=1.0)}, "--model.dropout 1"),
        ({"run": flags.RunConfig(remat=True)}, "--run.remat"),
    ],
)
def test_what_does_not_fit_is_said(sounds, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(wavenet_audio, replace(short(wavenet_audio, tmp_path, WAVENETS["wavenet"]), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "--model.size 100: expected a power of two"),
        ({"channels": ()}, "--model.channels"),
        ({"latents": 0}, "--model.latents 0"),
    ],
)
def test_what_does_not_fit_a_vae_is_said(sounds, tmp_path, changes, message):
    model = replace(vae_audio.ModelConfig(), **changes)
    with pytest.raises(UserError, match=message):
        train(vae_audio, short(vae_audio, tmp_path, model))
