"""Text reaches a terminal as text."""

import pytest

from jaxgen.errors import UserError
from jaxgen.log import Log
from jaxgen.run import errors_in_one_line
from jaxgen.terminal import plain, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x08c\x7f\x9b1m", r"a\rb\x08c\x7f\x9b1m"),
        ("\u202egnp\u2066\u2028", r"\u202egnp\u2066\u2028"),
        ("\ud800", r"\ud800"),
        ("lines\n\tand tabs, ± and 字 and 👩‍🔬", "lines\n\tand tabs, ± and 字 and 👩‍🔬"),
    ],
)
def test_control_characters_are_escaped(text, shown, capsys):
    assert plain(text) == shown
    say(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_errors_and_logs_are_plain(tmp_path, capsys):
    with pytest.raises(SystemExit), errors_in_one_line():
        raise UserError("no such name: \x1b[2J")
    log = Log(tmp_path, start=0, stop=1, batch_size=1, every=1)
    log.warn(0, "\x1b[2J")
    log.close()
    printed = capsys.readouterr()
    assert printed.err == "error: no such name: \\x1b[2J\n"
    assert "\x1b" not in printed.out
