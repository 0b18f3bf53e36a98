"""stdout and stderr as they are: some cannot write every character, some lose their reader."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
