"""Files that are whole or not there, and that are what they seem to be."""

import errno
import os
import secrets
import stat
from pathlib import Path

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
    """Return the content of a regular file of at most so many bytes; pipes and devices are not waited for.

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
