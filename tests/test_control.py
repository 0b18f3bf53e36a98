"""What is made from a run folder: it does what was asked, says how it was made, and can be made again bit for bit."""

import csv
import io
import json
import re
import wave
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from test_experiments import CONFIGS, built, module_of, without

from jaxgen import __main__ as commands
from jaxgen import folder
from jaxgen.checkpoint import Checkpoints
from jaxgen.errors import UserError
from jaxgen.experiment import initializer, restore_params
from jaxgen.interpolation import spherical
from jaxgen.provenance import FORMATS, stamp_of, stamped

pytestmark = pytest.mark.usefixtures("one_device")

SAMPLES = {
    "vae_mnist": "out.png",
    "gan_mnist": "out.png",
    "gan_toy": "out.png",
    "pixelcnn_mnist": "out.png",
    "transformer_text": "out.txt",
    "wavenet_audio": "out.wav",
    "vae_audio": "out.wav",
    "gan_audio": "out.wav",
    "transformer_molecules": "out.csv",
    "vae_molecules": "out.csv",
}
PATHS = [
    "vae_mnist",
    "vae_mnist conv",
    "vae_mnist iwae",
    "gan_mnist",
    "gan_toy",
    "vae_audio",
    "gan_audio",
    "vae_molecules",
]


def marked(names):
    return [pytest.param(name, marks=without if "molecules" in name else ()) for name in names]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Run folders of untrained models."""
    made = {}

    def make(name):
        if name not in made:
            config = replace(CONFIGS[name], workdir=tmp_path_factory.mktemp("runs") / name.replace(" ", "_"))
            data, model, *_ = built(name)
            module = module_of(name)
            folder.claim(
                config.workdir, folder.record_of(module.__name__.split(".")[1], "-", config, data), overwrite=False
            )
            some = {entry: array[:50] for entry, array in data.train.items()}
            checkpoints = Checkpoints(config.workdir / "checkpoints", asynchronous=False)
            checkpoints.save(0, jax.jit(initializer(config, model))(some))
            checkpoints.close()
            made[name] = config.workdir
        return made[name]

    return make


def jaxgen(*words):
    commands.main([str(word) for word in words])


@pytest.mark.parametrize("name", marked(SAMPLES))
def test_samples_are_reproduced_bit_for_bit(name, run_of, tmp_path, capsys):
    out = tmp_path / SAMPLES[name]
    jaxgen("sample", run_of(name), "--num", 3, "--seed", 5, "--out", out)
    for path in tmp_path.iterdir():  # the picture beside a table too
        jaxgen("reproduce", path, "--trust")
    assert "reproduced, bit for bit" in capsys.readouterr().out
    found = stamp_of(out.suffix, out.read_bytes())
    assert (found.command, found.flags["seed"], found.flags["num"], found.step) == ("sample", 5, 3, 0)
    assert found.versions["jax"] == jax.__version__
    assert len(found.checkpoint) == 64


@pytest.mark.parametrize("name", marked(PATHS))
def test_paths_are_reproduced_bit_for_bit(name, run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jaxgen("interpolate", run_of(name), "--num", 2, "--steps", 3)
    jaxgen("traverse", run_of(name), "--dims", 0, 1, "--steps", 3, "--trust")
    made = list(tmp_path.iterdir())
    assert {path.stem for path in made} == {"interpolate", "traverse"}
    for path in made:
        jaxgen("reproduce", path, "--trust")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_goes_there_and_back(suffix, run_of, tmp_path):
    out = tmp_path / f"a{suffix}"
    jaxgen("interpolate", run_of("vae_mnist"), "--steps", 4, "--num", 3, "--out", out)
    jaxgen("reproduce", out, "--trust")
    with Image.open(out) as animation:
        frames = []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("L")).copy())
    assert len(frames) == 2 * 4 - 2
    np.testing.assert_array_equal(frames[1], frames[5])
    assert not np.array_equal(frames[0], frames[3])


def test_a_name_without_an_end_gets_one(run_of, tmp_path):
    jaxgen("interpolate", run_of("vae_mnist"), "--num", 2, "--steps", 3, "--out", tmp_path / "paths")
    assert [path.name for path in tmp_path.iterdir()] == ["paths.png"]
    jaxgen("reproduce", tmp_path / "paths.png", "--trust")


def test_a_path_begins_and_ends_with_its_examples(run_of, tmp_path):
    """The ends of the first row are what the mean latents of held-out images 4 and 7 are decoded to."""
    run, out = run_of("vae_mnist"), tmp_path / "path.png"
    jaxgen("interpolate", run, "--examples", 4, 7, "--steps", 5, "--out", out)
    data = built("vae_mnist")[0]
    record, module, config = folder.load_run(run)
    experiment = module.build(config, record.data)
    _, params = restore_params(config, experiment.model, record.data)
    some = {name: array[[4, 7]] for name, array in data.test.items()}
    z = experiment.latents.encode(params, some)
    ends = np.asarray(experiment.latents.decode(params, z, None))
    picture = np.asarray(Image.open(out))[::2, ::2]
    np.testing.assert_array_equal(picture[:28, :28], ends[0, ..., 0])
    np.testing.assert_array_equal(picture[:28, -28:], ends[1, ..., 0])


def test_great_circles():
    start, end, t = np.array([3.0, 0.0]), np.array([0.0, 3.0]), np.linspace(0, 1, 7)
    path = spherical(start, end, t)
    np.testing.assert_allclose(path, 3 * np.stack([np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)], 1), atol=1e-12)
    np.testing.assert_allclose(spherical(start, 2 * start, t), start + t[:, None] * start)  # no circle between
    np.testing.assert_allclose(spherical(start, -start, t)[[0, -1]], [start, -start])


def test_traversal_moves_one_latent(run_of, tmp_path):
    """Only the row of a latent that is moved changes with the span."""
    pictures = []
    for span in (1, 2):
        out = tmp_path / f"{span}.png"
        jaxgen("traverse", run_of("vae_mnist"), "--dims", 2, "--steps", 3, "--span", span, "--out", out)
        pictures.append(np.asarray(Image.open(out))[::2, ::2])
    middle = slice(30, 58)
    np.testing.assert_array_equal(pictures[0][:, middle], pictures[1][:, middle])
    assert not np.array_equal(pictures[0][:, :28], pictures[1][:, :28])


def test_arithmetic_adds_the_difference_of_means(run_of, tmp_path):
    out = tmp_path / "sum.png"
    jaxgen("arithmetic", run_of("vae_mnist"), "--minus", 3, "--plus", 8, "--num", 2, "--steps", 4, "--out", out)
    jaxgen("reproduce", out, "--trust")
    jaxgen("arithmetic", run_of("vae_mnist"), "--minus", 3, "--plus", 3, "--num", 2, "--steps", 4, "--out", out)
    same = np.asarray(Image.open(out))[::2, ::2]
    np.testing.assert_array_equal(same[:, :28], same[:, 30:58])  # nothing is added


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("pixelcnn_mnist", ["interpolate"], "pixelcnn_mnist has no latents to move in"),
        ("transformer_text", ["traverse"], "transformer_text has no latents"),
        ("gan_mnist", ["interpolate", "--examples", "1", "2"], "gan_mnist has no encoder"),
        ("gan_mnist", ["arithmetic"], "gan_mnist has no encoder"),
        ("gan_mnist", ["traverse", "--example", "1"], "--example is for models with an encoder"),
        ("gan_mnist", ["interpolate", "--label", "10"], "--label 10: expected 0 to 9"),
        ("vae_mnist", ["interpolate", "--label", "1"], "--label is for conditional models"),
        ("vae_mnist", ["interpolate", "--steps", "1"], "--steps 1: expected at least 2"),
        ("vae_mnist", ["interpolate", "--num", "0"], "--num 0: expected at least 1"),
        ("vae_mnist", ["interpolate", "--examples", "1"], "--examples has 1 numbers: expected pairs"),
        ("vae_mnist", ["interpolate", "--examples", "1", "1000"], "--examples 1000: expected 0 to 999"),
        ("vae_mnist", ["traverse", "--dims", "4"], "--dims 4: expected 0 to 3"),
        ("vae_mnist", ["traverse", "--span", "0"], "--span 0.0: expected a number above 0"),
        ("vae_mnist", ["arithmetic", "--minus", "11"], "--minus 11: expected a label of held-out examples, 0 to 9"),
        ("vae_mnist", ["interpolate", "--seed", "-1"], "--seed -1: expected at least 0"),
        ("vae_mnist", ["interpolate", "--member", "1"], "--member 1: expected 0 to 0"),
        ("vae_mnist", ["interpolate", "--out", "/proc/no/where.png"], "cannot write /proc/no/where.png"),
        ("vae_mnist", ["interpolate", "--out", "path.jpg"], "--out path.jpg: expected a name that ends in .png"),
        ("vae_mnist", ["sample", "--out", "a.gif"], "--out a.gif: expected a name that ends in .png"),
        ("vae_audio", ["sample", "--num", "2", "--out", "a.mp3"], "expected a name that ends in .wav or .png"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(name, words, message, run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        jaxgen(words[0], run_of(name), *words[1:])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# Files that say how they were made ------------------------------------------------------------------------------------


def contents():
    """A file of every format."""
    from jaxgen import report

    sound = report.Sound(np.arange(11, dtype=np.int16), 8_000)
    pictures = [np.full((8, 8, 1), shade, np.uint8) for shade in (0, 120, 250)]
    return {
        ".png": report.png(pictures[1]),
        ".gif": report.animation(pictures, ".gif"),
        ".webp": report.animation(pictures, ".webp"),
        ".wav": report.wav(sound),
        ".csv": b'smiles,note\nCC,\nC#N,"a, b"\n',
        ".txt": b"To be,\nor not\n",
    }


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stamp_comes_back_and_the_file_stays_what_it_was(suffix):
    """Read by those who know nothing of it; a text of every length, since some formats cut it into blocks."""
    content = contents()[suffix]
    write, read = FORMATS[suffix]
    for size in (1, 2, 200, 254, 255, 256, 1_000, 70_000):
        text = json.dumps("x" * size)
        assert read(write(content, text)) == text
    new = write(content, text)
    if suffix in (".png", ".gif", ".webp"):
        before, after = (Image.open(io.BytesIO(some)) for some in (content, new))
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert getattr(before, "n_frames", 1) == getattr(after, "n_frames", 1)
    elif suffix == ".wav":
        with wave.open(io.BytesIO(new)) as file:
            assert np.frombuffer(file.readframes(100), "<i2").tolist() == list(range(11))
    elif suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(new.decode())))
        assert [(row["smiles"], row["note"]) for row in rows] == [("CC", ""), ("C#N", "a, b")]
    else:
        assert new.startswith(content)


def test_an_animation_that_stands_still_is_stamped_too():
    from jaxgen import report

    for shape in ((8, 11, 1), (500, 401, 3)):
        content = report.animation([np.full(shape, 7, np.uint8)] * 3, ".webp")
        assert content[12:16] == b"VP8L"
        new = stamped(".webp", content, "{}")
        before, after = (Image.open(io.BytesIO(some)) for some in (content, new))
        assert before.size == after.size
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert FORMATS[".webp"][1](new) == "{}"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_a_stamp_has_none(suffix):
    for content in (contents()[suffix], b"", b"nonsense", stamped(suffix, contents()[suffix], '{"command": 3}')):
        with pytest.raises(UserError, match="does not say where it came from"):
            stamp_of(suffix, content)


def test_a_table_without_rows_is_stamped_too():
    assert FORMATS[".csv"][1](FORMATS[".csv"][0](b"smiles,note\n", "text")) == "text"


def test_what_is_not_the_same_any_more_is_named(run_of, tmp_path, monkeypatch):
    run, out = run_of("vae_mnist"), tmp_path / "grid.png"
    jaxgen("sample", run, "--num", 4, "--out", out)
    text = FORMATS[".png"][1](out.read_bytes())

    def edited(**changes):
        from jaxgen import report

        values = json.loads(text) | changes
        path = tmp_path / "other.png"
        path.write_bytes(stamped(".png", report.png(np.zeros((8, 8, 1), np.uint8)), json.dumps(values)))
        return path

    with pytest.raises(UserError, match=r"comes out differently .*with the same packages and device"):
        jaxgen("reproduce", edited(), "--trust")
    with pytest.raises(UserError, match=r"comes out differently .*jax was 0\.1, is "):
        jaxgen("reproduce", edited(versions=json.loads(text)["versions"] | {"jax": "0.1"}), "--trust")
    with pytest.raises(UserError, match=r"was made by the checkpoint 000 of step 0, .*: the model is another"):
        jaxgen("reproduce", edited(checkpoint="000"), "--trust")
    with pytest.raises(UserError, match="is of the experiment 'gan_toy'"):
        jaxgen("reproduce", edited(experiment="gan_toy"), "--trust")
    with pytest.raises(UserError, match="was made by 'paint', which makes no files today"):
        jaxgen("reproduce", edited(command="paint"), "--trust")
    with pytest.raises(UserError, match="flags that sample does not have today"):
        jaxgen("reproduce", edited(flags={"num": "many"}), "--trust")
    with pytest.raises(UserError, match="is not a run folder"):
        jaxgen("reproduce", edited(run=str(tmp_path / "gone")), "--trust")
    with pytest.raises(UserError, match="cannot read"):
        jaxgen("reproduce", tmp_path / "none.png")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"files that end in '.jpg' carry no provenance"):
        jaxgen("reproduce", tmp_path / "a.jpg")
    moved = tmp_path / "moved.png"
    moved.write_bytes(out.read_bytes())
    jaxgen("reproduce", moved, "--run", run, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


def test_a_stamp_outside_the_working_directory_is_confirmed(run_of, tmp_path, monkeypatch, capsys):
    run, out = run_of("vae_mnist"), tmp_path / "a.png"
    jaxgen("sample", run, "--num", 2, "--out", out)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"run folder {re.escape(str(run))} made it, which does not lie below the"):
        jaxgen("reproduce", out)
    jaxgen("reproduce", out, "--run", run)
    jaxgen("reproduce", out, "--trust")
    monkeypatch.chdir(run.parent)
    jaxgen("reproduce", out)
    assert capsys.readouterr().out.count("bit for bit") == 3


@pytest.mark.parametrize("named", [{"name": "mnist_5k", "dir": "/elsewhere"}, {"name": "folder:/elsewhere"}])
def test_no_command_reads_data_from_where_a_run_folder_says(named, run_of, tmp_path, capsys):
    """No command reads such a place until a flag confirms it."""
    import shutil

    run, out = tmp_path / "run", tmp_path / "a.png"
    shutil.copytree(run_of("vae_mnist"), run)
    record = json.loads((run / "config.json").read_text())
    record["config"]["data"] |= named
    record["data"]["name"] = named["name"]
    (run / "config.json").write_text(json.dumps(record))
    message = r"config.json names --data.(dir|name) (folder:)?/elsewhere: repeat this flag, or give --trust"
    (run / "replay.json").write_text('{"step": 0}')
    for command in (["evaluate", run], ["replay", run], ["interpolate", run, "--examples", 0, 1]):
        with pytest.raises(UserError, match=message):
            jaxgen(*command)
    flags = ["--data.dir", tmp_path] if "dir" in named else ["--data.name", "mnist_5k"]
    for which in (flags, *(["--trust"] for _ in [0] if "dir" in named)):
        jaxgen("interpolate", run, "--examples", 0, 1, "--out", out, *which)
    assert out.exists()
    jaxgen("reproduce", out, "--run", run, *flags)
    with pytest.raises(UserError, match=message):  # what the file says of data is no word of the user's
        jaxgen("reproduce", out, "--run", run)
