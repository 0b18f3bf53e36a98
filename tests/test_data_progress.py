"""Whoever waits for data sees how far it is, in a terminal or not."""

from types import SimpleNamespace

from jaxgen.data import progress


def test_lines_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    now = iter(range(100))  # a second goes by with every look at the clock
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    monkeypatch.setattr(progress, "EVERY", 4.0)
    assert list(progress.watched(iter("abcdefgh"), "letters", 8)) == list("abcdefgh")
    assert capsys.readouterr() == ("", "letters: 3 of 8\nletters: 7 of 8\n")
    assert list(progress.watched(iter("abcd"), "letters")) == list("abcd")
    assert capsys.readouterr().err == "letters: 3\n"
