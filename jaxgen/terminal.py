"""The one place that prints: text from files, data and users reaches the terminal as text, never as commands to it."""

import re
import sys
from typing import TextIO

# Control characters but newline and tab, those that change the direction of writing, and halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text with its control characters as escapes; newlines and tabs stay."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text at once, its control characters as escapes."""
    print(plain(str(text)), end=end, file=file or sys.stdout, flush=True)
