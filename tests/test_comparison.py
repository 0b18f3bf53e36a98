"""Runs side by side, from folders that are written by hand: no training is needed to compare."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from jaxgen import __main__ as commands
from jaxgen import folder, report
from jaxgen.commands import compare
from jaxgen.comparison import NONE, aligned, differing, page, table
from jaxgen.data.source import Spec
from jaxgen.errors import UserError

CONFIG = {"workdir": "runs/x", "seed": 0, "steps": 200, "model": {"hidden": [8], "clip_norm": None}}
FIGURES = {"figures": {"test NLL (mnist_5k)": [103.62, 0.891], "exact (mnist_5k)": [1.5, 0.0]}, "measured": {}}
NLL = "103.62\xa0±\xa00.89 (101.87\xa0to\xa0105.37)"


def write(directory: Path, *, config=CONFIG, rows=(), exhibits=(), **others) -> Path:
    """A run folder, as a run leaves it."""
    fields = {"experiment": "vae_mnist", "command": "python -m experiments.vae_mnist", "source": "drawn (MIT)"}
    fields |= {"notice": None, "versions": {"jax": "0.10.2"}, "device": "1 x cpu"} | others
    record = folder.Record(config=config, data=Spec("mnist_5k", {}, digest="0123456789abcdef"), **fields)
    (directory / "samples").mkdir(parents=True)
    (directory / "config.json").write_bytes(msgspec.json.encode(record))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, exhibit in exhibits:
        suffix, content = report.encode(exhibit)
        (directory / "samples" / f"{name}{suffix}").write_bytes(content)
    return directory


def losses(*values, **others):
    return [{"step": 100 * (i + 1), "train/loss (mnist_5k)": value} | others for i, value in enumerate(values)]


@pytest.fixture
def finished(tmp_path):
    black, white = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)
    exhibits = [("the_samples_0000200", white), ("the_samples_0000100", black), ("notes_0000200", "words"), ("x_y", "")]
    rows = [*losses(3.0, 2.0), {"step": 200, "warning": "collapsed"}, {"step": 200} | FIGURES]
    return write(tmp_path / "finished", rows=rows, exhibits=exhibits)


@pytest.fixture
def unfinished(tmp_path):
    config = CONFIG | {"seed": 1, "model": {"hidden": [8, 4], "clip_norm": None}, "generator": {"width": 3}}
    return write(tmp_path / "unfinished", config=config, rows=losses(3.5), experiment="gone_since")


def cells(page: str, name: str) -> list[str]:
    return re.findall("<td>(.*?)</td>", re.search(rf"<tr><td>{re.escape(name)}</td>(.*?)</tr>", page)[1])


def test_one_page_and_one_table_of_a_finished_and_an_unfinished_run(finished, unfinished, tmp_path, capsys):
    out = tmp_path / "there" / "both.html"
    commands.main(["compare", str(finished), str(unfinished), "--out", str(out)])
    printed, page = capsys.readouterr().out, out.read_text()
    assert "no figures yet, at step 100 of 200" in page
    assert "no figures yet, at step 100 of 200" in printed
    assert cells(page, "test NLL (mnist_5k)") == [NLL, NONE]
    assert cells(page, "exact (mnist_5k)") == ["1.50", NONE]
    assert cells(page, "model.hidden") == ["[8]", "[8, 4]"]
    assert cells(page, "generator.width") == [NONE, "3"]
    assert cells(page, "experiment") == ["vae_mnist", "gone_since"]
    for alike in ("steps", "workdir", "model.clip-norm", "device", "versions.jax"):
        assert f"<td>{alike}</td>" not in page
    assert "run 1: step 200: collapsed" in page
    row = rf"test NLL \(mnist_5k\) +103.62 ± 0.89 +{NONE}\n +\(101.87 to 105.37\)\n"
    assert re.search(row, printed.replace("\xa0", " "))
    assert str(out) in printed
    assert page.count("data:image/png;base64,") == 1
    assert report.png(np.full((4, 4, 1), 255, np.uint8)) == (finished / "samples/the_samples_0000200.png").read_bytes()
    assert "<pre>words</pre>" in page


def test_the_newest_of_each_caption_is_that_of_the_last_step(finished):
    exhibits = compare.read(finished).exhibits
    assert list(exhibits) == ["the samples", "notes"]
    assert exhibits["the samples"] == (".png", (finished / "samples" / "the_samples_0000200.png").read_bytes())


def test_figures_share_a_row_where_their_whole_names_agree():
    assert aligned([{"a": 1, "b": 2}, {}, {"c": 3, "a": 4}]) == {
        "a": [1, None, 4],
        "b": [2, None, None],
        "c": [None, None, 3],
    }


def test_settings_differ_whatever_their_order(finished, unfinished):
    one, other = compare.read(finished), compare.read(unfinished)
    expected = {"experiment", "seed", "model.hidden", "generator.width"}
    assert set(differing([one, other])) == set(differing([other, one])) == expected
    assert set(differing([one, one, other])) == expected
    assert differing([one, one]) == {}


def test_deviations_over_seeds_are_no_intervals(finished, tmp_path):
    told = {"membership AUC, seed 0 alone": [0.5, 0.01]}
    rows = [{"step": 200, "figures": FIGURES["figures"] | told}]
    several = write(tmp_path / "several", config=CONFIG | {"seeds": 3}, rows=rows)
    figures = compare.read(several).figures
    assert figures["test NLL (mnist_5k)"] == "103.62 ± 0.89"
    assert figures["membership AUC, seed 0 alone"].endswith("(0.480\xa0to\xa00.520)")
    assert compare.read(finished).figures["test NLL (mnist_5k)"] == NLL


def test_the_newest_figures_count(finished):
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 200, "figures": {"another": [1.0, 0.0]}}) + "\n" + '{"step": 2')  # cut short
    assert compare.read(finished).figures == {"another": "1.00"}


def test_a_line_for_each_run_and_only_what_both_have_over_one_another(finished, unfinished):
    svg = page([compare.read(finished), compare.read(unfinished)]).partition("<svg")[2]
    colours = set(re.findall(r"stroke: (#\w{6})", svg)) - {"#000000", "#ffffff"}
    assert {"#1f77b4", "#ff7f0e"} <= colours
    assert svg.count("<!-- train/loss (mnist_5k) -->") == 1


def test_nothing_that_came_from_a_run_can_steer_page_or_terminal(finished, tmp_path):
    evil = "<script>alert(1)</script>\x1b[31m$\\frac{$"
    rows = [{"step": 1, f"train/{evil}": 1.0}, {"step": 1, "warning": evil, "figures": {evil: [1.0, 0.5]}}]
    config = CONFIG | {evil: evil, "steps": evil}
    others = {"experiment": evil, "command": evil, "notice": evil, "device": evil, "versions": {evil: evil}}
    run = write(tmp_path / "evil", config=config, rows=rows, exhibits=[("a_0000001", evil)], **others)
    runs = [replace(compare.read(run), name=evil), compare.read(finished)]
    text = page(runs)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") >= 10
    assert "\x1b" not in table(runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finished"], "at least two run folders"),
        (["finished", "--out", "x.html"], "at least two run folders"),
        (["finished", "unfinished", "finished/../finished"], "twice"),
        (["finished", "nowhere"], "nowhere is not a run folder"),
        (["finished", "finished/samples"], "is not a run folder"),
        (["finished", "finished/config.json"], "is not a run folder"),
        (["finished", "unfinished", "--out", "finished/config.json"], "expected the name of a page"),
        (["finished", "unfinished", "--out", "finished/config.json/x.html"], "cannot write"),
        ([], "needs a run folder"),
    ],
)
def test_one_line_for_what_cannot_be_compared(finished, unfinished, monkeypatch, arguments, message):
    monkeypatch.chdir(finished.parent)
    before = (finished / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        commands.main(["compare", *arguments])
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", '{"experiment": "vae', "[]", '{"experiment": "vae_mnist"}', "\xff"])
def test_half_a_config_is_named(finished, unfinished, content):
    (unfinished / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"unfinished/config.json is not that of a run"):
        commands.main(["compare", str(finished), str(unfinished)])


@pytest.mark.parametrize(
    "line",
    [
        *("3", "[]", "{}", '{"step": "1"}', '{"step": 1, "figures": 3}', '{"step": 1, "figures": {"a": 1}}', "\xff"),
        *('{"step": 1, "figures": {"a": [NaN, 1]}}', '{"step": 1, "figures": {"a": ["1", 1]}}'),
    ],
)
def test_edited_metrics_are_named(finished, unfinished, line):
    (unfinished / "metrics.jsonl").write_text(line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"unfinished/metrics.jsonl is not what a run wrote"):
        commands.main(["compare", str(finished), str(unfinished)])


def test_a_run_that_has_only_begun_is_compared_too(finished, tmp_path):
    begun = write(tmp_path / "begun")
    (begun / "metrics.jsonl").unlink()
    shutil.rmtree(begun / "samples")
    assert compare.read(begun).state == "no figures yet, at step 0 of 200"
    assert "no figures yet" in page([compare.read(begun), compare.read(finished)])
