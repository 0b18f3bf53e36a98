"""A run folder from a stranger: it stays within itself, and whatever is wrong with it is one line."""

import json
import os
import random
import re
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from test_experiments import CONFIGS, built, module_of

from jaxgen import __main__ as commands
from jaxgen import folder, log, report
from jaxgen.checkpoint import MANIFEST, Checkpoints, _digest, remove_unfinished
from jaxgen.commands import making
from jaxgen.errors import UserError
from jaxgen.experiment import initializer
from jaxgen.files import PART, check_contained, read_file, write_atomically
from jaxgen.run import errors_in_one_line

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder of an untrained model, with metrics, samples and a step to replay."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    config = replace(CONFIGS["vae_mnist"], workdir=directory)
    data, model, *_ = built("vae_mnist")
    record = folder.record_of(module_of("vae_mnist").__name__.split(".")[1], "-", config, data)
    folder.claim(directory, record, overwrite=False)
    checkpoints = Checkpoints(directory / "checkpoints", asynchronous=False)
    checkpoints.save(0, jax.jit(initializer(config, model))({name: x[:50] for name, x in data.train.items()}))
    checkpoints.close()
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 1, "warning": "w"}, {"step": 1, "figures": {"loss": [1.0, 0.1]}}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(directory / "samples" / "samples_0000001.png", report.png(np.zeros((8, 8, 1), np.uint8)))
    write_atomically(directory / "samples" / "words_0000001.txt", b"words\n")
    (directory / "replay.json").write_text('{"step": 0}')
    return directory


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def jaxgen(*words):
    commands.main([str(word) for word in words])


# Writing and reading --------------------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("report.html", "report.html.part"):
        (tmp_path / name).symlink_to(outside)
    earlier = os.umask(0o027)
    try:
        write_atomically(tmp_path / "report.html", b"page")
    finally:
        os.umask(earlier)
    assert outside.read_text() == "mine"
    assert (tmp_path / "report.html").read_bytes() == b"page"
    assert not (tmp_path / "report.html").is_symlink()
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o640
    assert len(list(tmp_path.iterdir())) == 3  # and nothing temporary stays


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"12345")
    for path, reason in ((Path("/dev/zero"), "not a regular"), (tmp_path / "pipe", "not a regular")):
        with pytest.raises(OSError, match=reason):
            read_file(path, 10)
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "big", 4)
    assert read_file(tmp_path / "big", 5) == b"12345"
    for suffix in ("", ".png"):
        link = tmp_path / f"zero{suffix}"
        link.symlink_to("/dev/zero")
        with pytest.raises(UserError, match=r"cannot read .*not a regular file"):
            jaxgen("reproduce", link)


PARTS = [
    "config.json",
    "metrics.jsonl",
    "samples",
    "samples/x_1.png",
    "checkpoints",
    "events",
    ".lock",
    "a/b",
    "replay.json",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_link_out_of_a_run_folder_is_refused(part, run, tmp_path):
    outside, path = tmp_path / "outside", run / part
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("mine")
        path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside)
    for ask in (folder.record_in, folder.check_writable):
        with pytest.raises(UserError, match=f"{re.escape(str(path))} is a link out of the run folder"):
            ask(run)


def test_what_else_leads_out_is_refused(run, tmp_path):
    (run / "inside.png").symlink_to(run / "samples" / "samples_0000001.png")
    check_contained(run)
    (tmp_path / "latest").symlink_to(run)
    check_contained(tmp_path / "latest")
    (run / "circle").symlink_to(run / "circle")
    with pytest.raises(UserError, match="circle is a link out"):
        check_contained(run)
    (run / "circle").unlink()
    os.mkfifo(run / "samples" / "pipe_1.txt")
    with pytest.raises(UserError, match=r"pipe_1.txt is a pipe"):
        check_contained(run)
    (run / "samples" / "pipe_1.txt").unlink()
    (tmp_path / "mine.txt").write_text("mine")
    (run / "samples" / "mine_1.txt").hardlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"mine_1.txt is a hard link"):
        check_contained(run)


def test_what_killed_writes_left_goes_at_the_next_start(run):
    record = folder.read_record(run)
    for left in ("config.json.part", f".12345678{PART}", f"samples/.12345678{PART}"):
        (run / left).write_text("half")
    unfinished = run / "checkpoints" / "7"
    unfinished.mkdir()
    (unfinished / "array").write_text("half")
    (run / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    folder.claim(run, record, overwrite=False)
    assert not [path for path in run.rglob("*") if path.suffix == PART]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0"]
    remove_unfinished(run / "nowhere")


# Damage ---------------------------------------------------------------------------------------------------------------


def manifest(run, **changes):
    """A manifest whose digest is right."""
    path = run / "checkpoints" / "0" / MANIFEST
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content | {"digest": _digest(content)}))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda run: (run / "config.json").write_text(DEEP), "config.json is not that of a run"),
        (lambda run: (run / "config.json").write_bytes(b'{"experiment": "\xff"}'), "config.json is not that of a run"),
        (lambda run: edit(run, config={"data": {"dir": "a\0b"}}), "holds the character NUL"),
        (lambda run: edit(run, config={"seeds": 10**9}), "seeds"),
        (lambda run: edit(run, config={"model": {"hidden": [1] * 10**5}}), "hidden"),
        (lambda run: edit(run, config={"steps": -1}), "steps"),
        (lambda run: edit(run, data={"entries": {"image": [[-1], "uint8"]}}), "entries .image. of shape"),
        (
            lambda run: edit(run, data={"entries": {"image": [[1], "evil"]}}),
            "config.json is not that of a run .data type .evil. not understood",
        ),
        (lambda run: manifest(run, files=["/etc/passwd"]), "0 is passed over|no checkpoint"),
        (lambda run: manifest(run, files={"../../../etc/passwd": "0"}), "no checkpoint"),
        (lambda run: manifest(run, arrays={"params": "no shape"}), "no checkpoint"),
        (lambda run: manifest(run, arrays={}), "does not fit this model"),
        (lambda run: manifest(run, step="0"), "no checkpoint"),
        (lambda run: (run / "checkpoints" / "0" / MANIFEST).write_text(DEEP), "no checkpoint"),
    ],
)
def test_a_damaged_folder_is_one_line(damage, match, run, capsys):
    damage(run)
    with pytest.raises(UserError, match=match) as error:
        jaxgen("sample", run, "--num", 1, "--out", run.parent / "a.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"step": "1"}',
        b'{"step": -1}',
        b'{"step": 1, "figures": {"a": [1]}}',
        b'{"step": 1, "figures": [1]}',
        b'{"step": 1, "warning": 3}',
        b'{"step": 1, "figures": {"a": [1e999, 1]}}',
        b'{"step": 1, "audit": {"figures": 1}}',
    ],
)
def test_lines_of_other_types_are_refused(line, run):
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is not what a run wrote \(line 2: "):
        log.read(run)


def edit(run, **changes):
    path = run / "config.json"
    record = json.loads(path.read_text())
    for part, values in changes.items():
        for name, value in values.items():
            record[part][name] = record[part][name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(record))


def test_what_does_not_fit_the_memory_is_one_line(run, tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    monkeypatch.setattr(making, "MOST_BYTES", 100 * 784)  # of 100 images
    for command, *flags in (["sample", "--num", 101], ["interpolate", "--num", 11], ["traverse", "--steps", 999]):
        with pytest.raises(UserError, match=r"are more than 78,400 bytes: ask for at most 100 at once"):
            jaxgen(command, run, *flags, "--out", out)
    jaxgen("sample", run, "--num", 100, "--out", out)


@pytest.mark.parametrize("words", [["sample", "--num", 10**9], ["evaluate", "--nll-samples", 10**9]])
def test_bombs_of_flags_are_one_line(words, run):
    with pytest.raises(UserError, match="1000000000: expected at most"):
        jaxgen(words[0], run, *words[1:])


# Fuzzing --------------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e300,
    -1e-300,
    "",
    "x",
    "\0",
    "../..",
    "/etc/passwd",
    [],
    {},
    [[]],
    "\x1b[2J",
]


def damaged(path, rng):
    """Damages a file in one of many ways; says how."""
    content = path.read_bytes()
    how = rng.choice(["truncate", "flip", "random", "empty", "huge", "value", "key", "value", "value", "link", "gone"])
    if how == "truncate":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif how == "flip" and content:
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    elif how == "random":
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "huge":
        path.write_bytes(content + b"9" * 100_000)
    elif how == "link":
        path.unlink()
        path.symlink_to(rng.choice(["/etc/passwd", "/dev/zero", "nowhere", path.name]))
    elif how == "gone":
        path.unlink()
    else:  # another value somewhere in JSON
        lines = (
            [json.loads(line) for line in content.decode(errors="ignore").split("\n") if line]
            if path.suffix == ".jsonl"
            else None
        )
        tree = (
            lines
            if lines is not None
            else json.loads(content)
            if path.suffix == ".json" or path.name.startswith("_")
            else None
        )
        if tree is None:
            return damaged(path, rng)
        spots = list(leaves(tree))
        holder, key = rng.choice(spots)
        if how == "key" and isinstance(holder, dict):
            holder[rng.choice(["x", "\x1b[2J", "$\\frac{1}{0}$", "\0"])] = holder.pop(key)
        else:
            holder[key] = rng.choice(VALUES)
        how = f"{how} {key} = {holder.get(key) if isinstance(holder, dict) else holder[key]!r}"
        text = "".join(json.dumps(line) + "\n" for line in tree) if lines is not None else json.dumps(tree)
        path.write_text(text)
        if path.name == MANIFEST and isinstance(tree, dict) and rng.random() < 0.8:  # with the right digest
            path.write_text(json.dumps(tree | {"digest": _digest(tree)}))
    return f"{path.name}: {how}"


def leaves(tree):
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from leaves(tree[key])


def outcome(words, capsys):
    """What a command line prints to stderr, and its status; anything but one line is an error."""
    status = 0
    try:
        with errors_in_one_line():
            jaxgen(*words)
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


def fuzz(made, root, count, seed, capsys):
    rng = random.Random(seed)
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    names += ["config.json", "metrics.jsonl", f"checkpoints/0/{MANIFEST}"] * (len(names) // 6)
    other = root / "other"
    shutil.copytree(made, other)
    for i in range(count):
        directory = Path(tempfile.mkdtemp(dir=root)) / "run"
        shutil.copytree(made, directory)
        how = damaged(directory / rng.choice(names), rng)
        command = rng.choice(["compare", "sample", "interpolate", "evaluate", "replay", "export", "traverse"])
        out = root / f"{i}{'.html' if command == 'compare' else '.png' if command != 'export' else '.jaxexport'}"
        flags = {
            "compare": [other, "--out", out],
            "sample": ["--num", 2, "--out", out],
            "interpolate": ["--num", 1, "--out", out],
            "traverse": ["--dims", 0, "--out", out],
            "evaluate": ["--nll-samples", 1, "--copies", "None"],
            "export": ["--out", out],
            "replay": [],
        }[command]
        try:
            status, printed = outcome([command, directory, *flags], capsys)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {i}: {how}, {command}: {type(error).__name__}: {error}") from error
        assert status in (0, 1), (how, command, status)
        if status:
            assert printed.err.count("\n") == 1, (how, command, printed.err)
        assert "\x1b" not in printed.out + printed.err, (how, command)
        shutil.rmtree(directory.parent)


def test_damage_anywhere_is_one_line(made, tmp_path, capsys):
    fuzz(made, tmp_path, 5, 0, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_damage_anywhere_is_one_line_many_times(seed, made, tmp_path, capsys):
    fuzz(made, tmp_path, 50, seed, capsys)
