"""Files that are whole or not there."""

from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
