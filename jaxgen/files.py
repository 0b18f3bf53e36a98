"""Files that are whole or not there, and that are what they seem to be."""

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import msgspec

from jaxgen.errors import UserError

PART = ".part"  # suffix of a file that is being written


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written.

    The temporary file has a fresh name, so that nothing that lies there is written to; a link at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # not every system call names the file
    finally:
        partial.unlink(missing_ok=True)


def read_file(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes, without waiting for a pipe or a device.

    Raises:
      OSError: it cannot be read, is no regular file, or is larger.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return content


def read_json(path: Path, kind: Any = Any, *, most: int = 64 << 20, strict: bool = True) -> Any:
    """Return the content of a JSON file as a value of a type.

    Raises:
      OSError: see `read_file`.
      ValueError: it is no JSON, or of another type.
    """
    return parse_json(read_file(path, most), kind, strict=strict)


def parse_json(content: bytes, kind: Any = Any, *, strict: bool = True) -> Any:
    """Return JSON as a value of a type; any damage is a ValueError."""
    try:
        return msgspec.json.decode(content, type=kind, strict=strict)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_contained(root: Path) -> None:
    """Raise UserError for an entry below a folder that leads elsewhere: links out of it, hard links, pipes, devices.

    Whatever is read or written there afterwards stays there.
    """
    real = root.resolve()
    folders = [real]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:  # a run removes an old checkpoint meanwhile
            continue
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(Path(entry.path))
            elif (reason := _elsewhere(Path(entry.path), found, real)) is not None:
                raise UserError(f"{root / Path(entry.path).relative_to(real)} is {reason}: put a file there")


def _elsewhere(path: Path, found: os.stat_result, root: Path) -> str | None:
    """Where an entry leads that is no folder, None for a file of the folder's own."""
    if stat.S_ISLNK(found.st_mode):
        try:
            inside = path.resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # a circle of links is a RuntimeError before Python 3.13
            inside = False
        return None if inside else "a link out of the run folder"
    if not stat.S_ISREG(found.st_mode):
        return "a pipe, socket or device"
    return "a hard link, whose other name may lie outside the run folder" if found.st_nlink > 1 else None
