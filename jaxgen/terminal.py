"""Output as text, even on a terminal that lacks characters or loses its reader. Only this file prints."""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Control characters but newline and tab, those that change the direction of writing, and halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
PLAIN = {"±": "+-", "\N{NO-BREAK SPACE}": " "}
CLOSED = 141  # the status of a program that SIGPIPE ended


@contextmanager
def outputs() -> Iterator[None]:
    """Within, a character that a terminal cannot write stands in ASCII, and a reader that goes away ends the program.

    It ends silently, as other programs in a pipe do: `... --help | head`.
    """
    codecs.register_error("jaxgen", _plain)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a closed one
            stream.reconfigure(errors="jaxgen")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes nowhere
        sys.exit(CLOSED)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks."""
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def plain(text: str) -> str:
    """Text with its control characters as escapes; newlines and tabs stay."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text at once, its control characters as escapes."""
    print(plain(str(text)), end=end, file=file or sys.stdout, flush=True)
