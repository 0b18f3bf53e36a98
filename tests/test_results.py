"""Published numbers beside ours: every row runs to its end, and the README shows what was kept."""

import json
import re
from functools import partial

import pytest
from test_experiments import without

from experiments import gan_mnist, results
from experiments.results import ROWS, main, table, words_of, written
from jaxgen.classifier import classifier
from jaxgen.data import molecules
from jaxgen.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def quick(one_device, tmp_path_factory):
    """A classifier that is trained in no time, some of RDKit's molecules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_mnist, "classifier", partial(classifier, steps=40, cache=tmp_path_factory.mktemp("cache")))
        described = molecules.described
        patch.setattr(molecules, "described", lambda lines, **options: described(lines[:300], **options))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("some")))  # where it stays
        molecules._kept.cache_clear()
        yield
    molecules._kept.cache_clear()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=without if "molecules" in row.command else ()) for name, row in ROWS.items()]
)
def test_every_row_runs_to_its_end(name, tmp_path):
    kept = tmp_path / "results.jsonl"
    main([name, "--budget", "smoke", "--workdir", str(tmp_path / "run"), "--results", str(kept)])
    (result,) = results.read(kept)
    assert result["row"] == name
    assert result["steps"] <= 20
    for figure in ROWS[name].figures:
        assert any(key.startswith(figure) for key in result["figures"]), figure
    assert {"seconds", "device", "cores", "versions", "command", "seeds", "data"} <= result.keys()


@pytest.mark.parametrize("name", ROWS)
def test_every_schedule_is_a_command(name):
    """Of the same figures, whatever the budget."""
    import importlib

    from jaxgen.run import parse

    for budget in ("cpu", "full"):
        if budget == "cpu" and ROWS[name].cpu is None:
            with pytest.raises(UserError, match=f"{name} is not for two CPU cores"):
                words_of(name, budget)
            continue
        experiment, *words = words_of(name, budget)
        module = importlib.import_module(f"experiments.{experiment}")
        config = parse(experiment, "", module.Config(), getattr(module, "NAMED", {}), words)
        assert config.data.strict or experiment in ("gan_toy", "transformer_text")


def test_the_readme_shows_what_was_kept():
    readme = results.README.read_text()
    assert written(readme, results.read()) == readme


def result(row, value, seeds, budget="cpu", **changes):
    return {
        "row": row,
        "budget": budget,
        "figures": {"test NLL, nats (mnist, and so on)": [value, 0.1]},
        "seeds": seeds,
        "steps": 200_000,
        "seconds": 600,
        "device": "1 x cpu",
        "cores": 2,
        "command": f"python -m experiments.{ROWS[row].command} --seed {seeds[0]}",
    } | changes


def row_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))


def test_the_table():
    """The newest of each seed, of the largest budget; of several seeds mean and standard deviation."""
    assert "not yet run" in row_of(table([]), "made")
    one = row_of(table([result("vae-1layer", 90.0, [0]), result("vae-1layer", 87.5, [0])]), "vae-1layer")
    assert "test NLL 87.50 ± 0.10 | shortened: 200,000 steps, seed 0 | 10 min, 2 cores of a CPU" in one
    two = row_of(table([result("fvsbn", 86.0, [0], "full"), result("fvsbn", 88.0, [1])]), "fvsbn")
    assert "test NLL 87.00 ± 1.41" in two
    assert "shortened" not in two  # its whole schedule fits
    command = f"python -m experiments.{ROWS['vae-1layer'].command} --model.hidden 9 --steps 7 --seed 0"
    whole = result("vae-1layer", 80.0, [0], "full", command=command)
    full = row_of(table([whole, result("vae-1layer", 88.0, [1])]), "vae-1layer")
    assert "80.00" in full
    assert "200,000 steps, seed 0, `--model.hidden 9` |" in full
    assert "not yet run" in row_of(table([result("made", 80.0, [0], "smoke")]), "made")
    assert "shortened: 200,000" in row_of(table([result("iwae-1layer-k50", 84.0, [0], "full")]), "iwae-1layer-k50")


def test_schedules_chosen_on_the_test_split_are_marked():
    text = table([])
    assert text.count(results.MARK) == 1 + sum(row.on_test for row in ROWS.values())
    assert "| `made` † |" in text
    assert "| `ring` |" in text
    assert text.endswith(results.FOOTNOTE)


def test_the_table_mixes_no_schedules():
    """Nor the seeds of one run, whose figure has an error over them, with those of another."""
    longer = [result("made", 90.0, [1], steps=300_000), result("made", 86.0, [0])]
    assert "86.00 ± 0.10 | 200,000 steps, seed 0 |" in row_of(table(longer), "made")
    other = result("made", 90.0, [1], command=f"python -m experiments.{ROWS['made'].command} --model.dropout 0.5")
    assert "86.00 ± 0.10 | 200,000 steps, seed 0 |" in row_of(table([other, longer[1]]), "made")
    again = [result("made", value, [seed]) for value, seed in ((90.0, 0), (88.0, 1), (86.0, 0))]
    assert "87.00 ± 1.41 | 200,000 steps, 2 seeds |" in row_of(table(again), "made")
    key = "modes of 25, and so on"
    tens = [result("grid", 0, list(range(n, n + 10)), figures={key: [25.0, n]}) for n in (0, 10)]
    assert "25.00 ± 10.00 | 200,000 steps, 10 seeds |" in row_of(table(tens), "grid")


def test_a_row_starts_afresh_and_so_does_its_time(tmp_path):
    options = partial(results.Options, "smoke", workdir=tmp_path / "run", results=tmp_path / "results.jsonl")
    times = tmp_path / "run.seconds"
    times.write_text("1000000\n")  # of a folder that is gone
    assert results.measured("ring", options())["seconds"] < 1_000_000
    with pytest.raises(UserError, match=re.escape("--seed was 0, is 1")):
        results.measured("ring", options(seed=1))
    with times.open("a") as file:
        file.write("1000000\n")
    afresh = options(seed=1, run=results.RunOptions(overwrite=True))
    assert results.measured("ring", afresh)["seconds"] < 1_000_000


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match=re.escape("no row 'mad'; did you mean made?")):
        main(["mad"])
    with pytest.raises(UserError, match="has no place for the table"):
        written("nothing", [])


def test_nothing_is_kept_unasked(tmp_path, monkeypatch, capsys):
    kept, readme, before = tmp_path / "results.jsonl", tmp_path / "README.md", "before\n"
    monkeypatch.setattr(results, "RESULTS", kept)
    monkeypatch.setattr(results, "README", readme)
    monkeypatch.setattr(results, "measured", lambda name, options: result(name, 1.0, [0], options.budget))
    readme.write_text(before := f"{before}{results.BEGIN}{results.END}after\n")
    for budget in ("smoke", "cpu"):
        main(["made", "--budget", budget])
    assert (kept.exists(), readme.read_text()) == (False, before)
    assert f"not kept: the same command with --write appends this line to {kept}" in capsys.readouterr().out
    with pytest.raises(UserError, match="--write: a smoke run is no result"):
        main(["made", "--budget", "smoke", "--write"])
    main(["made", "--results", str(tmp_path / "mine.jsonl")])
    assert (kept.exists(), readme.read_text()) == (False, before)
    main(["made", "--write"])
    for path in (kept, tmp_path / "mine.jsonl"):
        assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == ["made"]
    assert "test NLL 1.00" in readme.read_text()
