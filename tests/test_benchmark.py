"""What is shown of comparisons; how fast anything is, no test says."""

import itertools
import sys
from functools import partial

import pytest

from experiments import benchmark, ratios
from experiments.benchmark import BEGIN, END, main
from experiments.ratios import compared, picture, table, take_turns
from experiments.results import README, between, read
from jaxgen.errors import UserError


def result(what, unit="images/s", **rates):
    return {"name": "x", "what": what, "unit": unit, "rates": rates}


def test_the_readme_shows_what_was_kept():
    readme = README.read_text()
    assert between(readme, BEGIN, END, table(read(benchmark.RESULTS))) == readme
    assert benchmark.PICTURE.read_text().endswith("</svg>\n")


def test_turns_are_compared_one_by_one():
    rates = {"ours": [2.0, 40.0, 9.0], "a": [1.0, 10.0, 3.0], "b": [4.0, 80.0, 18.0]}
    assert list(compared(rates)) == [("a", 3.0, (2.0, 3.0, 4.0)), ("b", 18.0, (0.5, 0.5, 0.5))]


def test_every_task_has_its_turns_and_another_begins_each_time(monkeypatch):
    ticks, calls = itertools.count(), []
    monkeypatch.setattr(ratios.time, "perf_counter", lambda: float(next(ticks)))
    rates = take_turns({name: partial(calls.append, name) for name in "abc"}, 2, {"a": 1, "b": 2, "c": 3})
    assert "".join(calls) == "abc" + "cab" + "bca"
    assert rates == {"a": [1, 1], "b": [2, 2], "c": [3, 3]}


def test_the_newest_of_each_is_shown():
    old, new = result("x", ours=[1.0], other=[2.0]), result("x", ours=[3.0], b=[2e9])
    text = table([old, result("m", "MB", ours=[936.4]), new])
    assert "| x | images/s | ours: 3.00 | b: 2.00 billion | 0.00 (0.00 to 0.00) |" in text
    assert "| m | MB | ours: 936 |  |  |" in text
    assert "other" not in text


def test_the_picture_is_the_same_twice_and_of_rates_alone():
    results = [result("x", ours=[1.0, 2.0], other=[2.0, 2.0]), result("m", "MB", ours=[1.0])]
    assert picture(results) == picture(results) == picture(results[:1])
    assert picture(results) != picture([result("x", ours=[1.0, 2.0], other=[1.0, 1.0])])


def test_mistakes_are_one_line(monkeypatch, capsys):
    with pytest.raises(UserError, match="no comparison 'vea': expected some of vae, "):
        main(["vea"])
    main([])
    assert "scaling" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs PyTorch"):
        main(["gan"])
