"""Several real processes on loopback: the same training, stopped together, killed, gone on with by other numbers."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from experiments import vae_mnist as vae_mnist_module
from jaxgen import herald, log
from jaxgen.checkpoint import saved_steps
from jaxgen.processes import LOST

WORKER = str(Path(__file__).with_name("worker.py"))
TINY = ["--data.name", "mnist_5k", "--model.hidden", "8", "--model.latents", "2", "--batch-size", "16"]
TINY += ["--evaluate.nll-samples", "2", "--evaluate.copies", "None", "--run.log-every", "20", "--run.chunk", "10"]
LIMIT = 240  # seconds until a process counts as hanging


@pytest.fixture
def environment():
    """For child processes."""
    return dict(os.environ)


def address() -> str:
    """A port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@contextmanager
def started(commands: list[list[str]], environment: dict[str, str], devices: int = 1) -> Iterator[list]:
    """The commands as processes, of which none outlives the test."""
    environment = environment | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen([sys.executable, *command], env=environment, **pipes) for command in commands]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()


def finish(running: list, status: int | None = 0, limit: float = LIMIT) -> list[str]:
    """What each of them printed, once all have ended; `status` None allows any but 0."""
    outputs = [process.communicate(timeout=limit)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == status if status is not None else process.returncode != 0, output
    return outputs


def joined(command: list[str], count: int) -> list[list[str]]:
    """The command for each of so many processes."""
    where = ["--run.coordinator", address(), "--run.num-processes", str(count)]
    return [[*command, *where, "--run.process-id", str(i)] for i in range(count)] if count > 1 else [command]


def until(process, text: str) -> list[str]:
    """Reads what the process prints up to a line that starts with `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(text):
            return lines
    raise AssertionError(f"no line {text!r} in {''.join(lines)}")


def vae_mnist(workdir: Path, *flags: str) -> list[str]:
    return ["-m", "experiments.vae_mnist", *TINY, "--workdir", str(workdir), *flags]


def parameters(environment, tmp_path: Path, count: int, devices: int, *variants: str) -> list[dict]:
    """Of each variant, the parameters after 20 steps on so many processes of so many devices."""
    out, where = tmp_path / f"{len(list(tmp_path.iterdir()))}", address()
    out.mkdir()
    several = [[where, str(count), str(i)] if count > 1 else [] for i in range(count)]
    commands = [[WORKER, "train", str(out), ",".join(variants), *given] for given in several]
    with started(commands, environment, devices) as running:
        finish(running)
    return [dict(np.load(out / f"{variant}.npz")) for variant in variants]


def largest_difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name]).max() for name in one)


def test_processes_and_devices_agree_and_the_same_twice_is_the_same(environment, tmp_path, record_property):
    (alone,) = parameters(environment, tmp_path, 1, 1, "jit")
    assert max(np.abs(x).max() for x in alone.values()) > 0.1
    one_by_four, one_by_four_mapped = parameters(environment, tmp_path, 1, 4, "jit", "shard_map")
    two_by_two, fsdp, mapped = parameters(environment, tmp_path, 2, 2, "jit", "fsdp", "shard_map")
    (four_by_one,) = parameters(environment, tmp_path, 4, 1, "jit")
    for name, other in {"1 x 4": one_by_four, "2 x 2": two_by_two, "4 x 1": four_by_one, "2 x 2, fsdp": fsdp}.items():
        difference = largest_difference(alone, other)
        record_property(name, float(difference))
        print(name, difference)
        assert difference <= 1e-6, name
    (again,) = parameters(environment, tmp_path, 2, 2, "jit")
    assert largest_difference(two_by_two, again) == 0
    assert largest_difference(mapped, one_by_four_mapped) <= 1e-6


def test_stopped_together_and_gone_on_with_by_other_numbers_of_processes(environment, tmp_path):
    """2 processes, then 1, then 4 devices: each example once in an epoch; and the same end as undisturbed."""
    folder, seen = tmp_path / "run", tmp_path / "seen"
    seen.mkdir()
    flags = ["--steps", "500", "--run.checkpoint-every", "1000", "--workdir", str(folder), "--data.validation", "0"]
    command = [WORKER, "record", str(seen), *TINY, *flags]
    ends = [0]
    for count, devices, line in ((2, 1, "step 100/"), (1, 1, "step 240/"), (1, 4, None)):
        with started(joined(command, count), environment, devices) as running:
            if line:
                until(running[0], line)
                running[-1].send_signal(signal.SIGTERM)
            output = finish(running)[0]
        if line:
            assert "stopped and saved at step" in output
            ends.append(saved_steps(folder / "checkpoints")[-1])
            assert ends[-1] > ends[-2]
        else:
            assert f"going on from step {ends[-1]}" in output
    ends.append(500)

    read = {}  # of each step: the examples that each process read, in the turn in which it was really made
    for path in sorted(seen.iterdir()):
        (start, stop), rows = json.loads(path.read_text())
        count, devices = path.stem.partition("of")[2].split("-")
        turn = [("2", "2"), ("1", "1"), ("1", "4")].index((count, devices))
        for step in range(start, stop):
            if ends[turn] <= step < ends[turn + 1]:
                read.setdefault(step, []).extend(rows[step - start])
    assert sorted(read) == list(range(500))
    for epoch in (0, 1):  # of 4,000 examples, 250 steps of 16
        examples = [i for step in range(250 * epoch, 250 * (epoch + 1)) for i in read[step]]
        assert sorted(examples) == list(range(4000))
    steps = [row["step"] for row in log.read(folder) if "train/loss (mnist_5k, dynamic binarisation)" in row]
    assert steps == list(range(20, 501, 20))


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_goes_on_bit_for_bit(environment, tmp_path):
    flags = ["--steps", "240", "--run.checkpoint-every", "1000", "--run.sharding", "fsdp"]
    flags += ["--model.hidden", "8", "--model.latents", "4"]
    with started(joined(vae_mnist(tmp_path / "whole", *flags), 2), environment) as running:
        finish(running)
    command = vae_mnist(tmp_path / "stopped", *flags)
    with started(joined(command, 2), environment) as running:
        until(running[0], "step 60/")
        running[1].send_signal(signal.SIGTERM)
        outputs = finish(running)
    assert "stopped and saved at step" in outputs[0]
    assert "stopping after this chunk" in outputs[1]
    assert 60 < saved_steps(tmp_path / "stopped" / "checkpoints")[-1] < 240
    with started(joined(command, 2), environment) as running:
        assert "going on from step" in finish(running)[0]
    assert digests(tmp_path / "stopped", 240) == digests(tmp_path / "whole", 240)


def digests(folder: Path, step: int) -> dict:
    """Of every array of a checkpoint, read in a process that has as many devices as are needed."""
    program = (
        "import hashlib, json, sys, jax, numpy as np; from pathlib import Path; from jaxgen import folder, parallel;"
        "from jaxgen.checkpoint import restore; from jaxgen.experiment import abstract_state;"
        "directory = Path(sys.argv[1]); record, module, config = folder.load_run(directory);"
        "model = module.build(config, record.data).model;"
        "template = abstract_state(config, model, record.data, parallel.make_mesh());"
        "state = restore(directory / 'checkpoints', template);"
        "state = state.replace(key=jax.random.key_data(state.key));"
        "leaves = jax.tree.leaves_with_path(state);"
        "print(json.dumps({jax.tree_util.keystr(p): hashlib.sha256(np.asarray(x)).hexdigest() for p, x in leaves}))"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert saved_steps(folder / "checkpoints")[-1] == step
    return found


def test_processes_that_differ_are_told_apart(environment, tmp_path):
    one, other = joined(vae_mnist(tmp_path / "run"), 2)
    with started([one, [*other, "--seed", "1"]], environment) as running:
        outputs = finish(running, status=1)
    assert "error: processes 0 and 1 differ: seed is 0 and 1. Start all of them" in outputs[0]
    assert not (tmp_path / "run" / "config.json").exists()
    commands = joined([WORKER, "other_versions", *TINY, "--workdir", str(tmp_path / "run")], 2)
    with started(commands, environment) as running:
        assert "versions.flax is 0.0 and 0.1" in finish(running, status=1)[0]


def test_an_error_of_one_process_ends_all(environment, tmp_path):
    (tmp_path / "pictures").mkdir()  # empty
    command = vae_mnist(tmp_path / "run", "--data.name", f"folder:{tmp_path / 'pictures'}", "--data.strict")
    with started(joined(command, 2), environment) as running:
        outputs = finish(running, status=1)
    assert sum(output.count("error:") for output in outputs) == 1


def test_a_process_that_dies_without_a_word_stops_the_others(environment, tmp_path):
    command = vae_mnist(tmp_path / "run", "--steps", "1000000")
    with started(joined(command, 2), environment) as running:
        until(running[0], "step 40/")
        running[1].kill()
        died = time.monotonic()
        (output,) = finish(running[:1], status=None, limit=60)
        print(f"the other stopped after {time.monotonic() - died:.1f} s")
    assert output.count(f"error: {LOST}\n") == output.count("error") == 1
    assert "Traceback" not in output
    assert "stack trace" not in output


def test_a_process_that_does_not_start_is_named(environment, tmp_path):
    one, other = joined(vae_mnist(tmp_path / "run", "--run.start-timeout", "1"), 2)
    with started([one, [*other, "--nonsense"]], environment) as running:
        output, _ = finish(running, status=None)
    line = "error: process 1 of this run did not come within 1 s (--run.start-timeout): did "
    assert output.startswith(line)
    assert len(output.splitlines()) == 1


def test_the_herald_drops_stack_traces():
    """Native lines of others pass; of JAX's coordination service one line is left, however often it is said."""
    head = "1128 01:20:38.973203   29433 "
    native = [
        f"W{head}cuda.cc:12] slow\n",
        "\tand more\n",
        "[Gloo] Rank 1 is connected\n",
        f"E{head}coordination_service_agent.cc:289] Polled an error\n",
        f"F{head}client.h:80] Terminating process because\n",
        "1\n",
        "*** Check failure stack trace: ***\n",
        "    @     0x7f8666640634  absl::SendToLog()\n",
        "farewell\n",
    ]
    for some, expected in (
        (native, [*native[:2], "farewell\n"]),
        (native[-1:], ["farewell\n"]),
        (native[:1], native[:1]),
    ):
        command = [sys.executable, "-I", herald.__file__, "farewell"]
        result = subprocess.run(command, input="".join(some), capture_output=True, text=True, check=True)
        assert result.stderr == "".join(expected)


def test_the_slurm_script_runs_and_asks_to_be_queued_again(environment, tmp_path):
    """With an srun that sets what Slurm's does, and an scontrol that says that it was called."""
    script = Path(vae_mnist_module.__file__).parent / "launch" / "slurm.sbatch"
    assert "\n#SBATCH --signal=USR1@120 " in script.read_text()  # no B: before it, so that the processes get it
    for name, program in {
        "srun": 'shift; for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done; wait',
        "scontrol": 'echo "scontrol $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{program}\n")
        (tmp_path / name).chmod(0o755)
    job = str(random.randrange(10**6))
    slurm = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = environment | slurm | {"PATH": path, "WORKDIR": str(tmp_path / "run"), "JAX_NUM_CPU_DEVICES": "1"}
    command = ["bash", str(script), *TINY, "--steps", "20"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    assert "20 steps on 2 x cpu" in result.stdout
    assert "scontrol" not in result.stdout
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "srun").write_text("#!/bin/bash\n")  # all processes were stopped, and exited in good order
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert result.stdout == f"scontrol requeue {job}\n"


def test_the_job_set_is_what_kubernetes_reads():
    import yaml

    job = yaml.safe_load((Path(vae_mnist_module.__file__).parent / "launch" / "jobset.yaml").read_text())
    template = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    arguments = template["template"]["spec"]["containers"][0]["args"][0].split()
    assert arguments[:4] == ["exec", "python", "-m", "experiments.vae_mnist"]
    flags = dict(zip(arguments[4::2], arguments[5::2], strict=True))
    assert int(flags["--run.num-processes"]) == template["parallelism"] == template["completions"]
    assert flags["--run.coordinator"].startswith(f"{job['metadata']['name']}-workers-0-0.{job['metadata']['name']}:")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--run.process-id", "1"], "several processes need --run.coordinator HOST:PORT"),
        (["--run.coordinator", "nowhere", "--run.num-processes", "2", "--run.process-id", "1"], "expected HOST:PORT"),
        (["--run.coordinator", "a:1", "--run.num-processes", "2", "--run.process-id", "2"], "expected 0 to 1"),
    ],
)
def test_a_mistake_in_the_address_is_one_clear_line(environment, tmp_path, given, message):
    with started([vae_mnist(tmp_path / "run", *given)], environment) as running:
        (output,) = finish(running, status=1)
    assert message in output
    assert len(output.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "steps", "every", "flags"),
    [(1, 20_000, 100, []), (1, 20_000, 100, ["--run.synchronous"]), (2, 1_500, 20, [])],
)
def test_killed_twenty_times_no_saved_step_is_lost(environment, tmp_path, count, steps, every, flags):
    """Kill -9 of all processes, at random moments; the end is that of the undisturbed run.

    Each second time they live to save once more, so that the run gets on.
    """
    flags = [*flags, "--steps", str(steps), "--run.checkpoint-every", str(every), "--run.log-every", str(every)]
    with started(joined(vae_mnist(tmp_path / "whole", *flags), count), environment) as running:
        finish(running, limit=600)
    folder, moments, kills = tmp_path / "killed", random.Random(0), 0
    while kills < 20:
        before = saved_steps(folder / "checkpoints")
        with started(joined(vae_mnist(folder, *flags), count), environment) as running:
            lines = until(running[0], "step ")
            if before:
                assert any(f"going on from step {before[-1]} " in line for line in lines), lines
            while kills % 2 and saved_steps(folder / "checkpoints")[-1:] == before[-1:]:
                until(running[0], "step ")
            try:
                running[0].wait(timeout=moments.uniform(0, 0.7))
                raise AssertionError("the run was over before it was killed often enough")
            except subprocess.TimeoutExpired:
                kills += 1
    assert saved_steps(folder / "checkpoints")
    with started(joined(vae_mnist(folder, *flags), count), environment) as running:
        finish(running, limit=600)
    assert digests(folder, steps) == digests(tmp_path / "whole", steps)
