"""Progress of work on data, for whoever waits."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from jaxgen.terminal import say

T = TypeVar("T")

EVERY = 10.0  # seconds between two lines, if there is no terminal for a bar


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and count them on standard error: by a bar in a terminal, else by a line now and then."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, unit="", leave=False)
        return
    said = time.monotonic()
    for count, item in enumerate(items):
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            say(f"{what}: {count:,}{f' of {total:,}' if total else ''}", file=sys.stderr)
        yield item
