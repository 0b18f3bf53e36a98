"""A user's folder, walked safely: regular files only, and a count of everything else."""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from jaxgen.errors import UserError

SYSTEM = {  # what operating systems, archives and storage devices leave in folders, lower case
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "desktop.ini",
}  # fmt: skip

LeftOut = dict[str, list[str]]  # reason -> names


def files_below(root: Path, suffixes: Collection[str]) -> tuple[list[Path], LeftOut]:
    """Return the regular files below a folder, and the entries that were left out.

    Hidden entries and those of `SYSTEM` are skipped: folders with a notice, files with one only if their suffix is
    asked for. A link to a file counts as the file if its target lies below `root`, too. Links that lead elsewhere or
    to a folder, pipes, sockets and devices are left out; none of them is opened.

    Args:
      root: the folder.
      suffixes: lower-case suffixes to return, such as ".png"; files of other suffixes are left out.

    Returns:
      The files, relative to `root` and ordered by the bytes of their paths; names that are not UTF-8 hold surrogates
      (`os.fsencode` restores the bytes, `shown` makes them printable). And the names left out, for `left_out_notice`.

    Raises:
      UserError: `root` cannot be listed.
    """
    real = root.resolve()
    files: list[Path] = []
    left_out: LeftOut = {}

    def skip(reason: str, path: Path) -> None:
        left_out.setdefault(reason, []).append(shown(path))

    folders = [Path()]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if folder == Path():
                raise UserError(f"cannot list the folder {shown(root)} ({error.strerror})") from error
            skip("folders that cannot be listed", folder)
            continue
        for entry in listed:
            path = folder / entry.name
            wanted = path.suffix.lower() in suffixes
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
                if wanted or entry.is_dir(follow_symlinks=False):
                    skip("hidden or of the system", path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif (reason := _unusable(root / path, real)) is not None:
                skip(reason, path)
            elif wanted:
                files.append(path)
            else:
                skip("of other formats", path)
    return sorted(files, key=os.fsencode), left_out


def _unusable(path: Path, root: Path) -> str | None:
    """Return why an entry that is no folder must not be opened, None for a regular file below `root`."""
    try:
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            target = path.resolve(strict=True)
            if not target.is_relative_to(root):
                return "links out of the folder"
            kind = target.stat().st_mode
    except (OSError, RuntimeError):  # a circle of links is a RuntimeError before Python 3.13
        return "broken links"
    if stat.S_ISDIR(kind):
        return "links to folders"
    return None if stat.S_ISREG(kind) else "pipes, sockets or devices"


def left_out_notice(left_out: LeftOut) -> str:
    """Return one line that counts what was left out by reason and names the first of each; empty if nothing was."""
    parts = [counted(names, reason) for reason, names in left_out.items()]
    return f"left out {'; '.join(parts)}" if parts else ""


def counted(names: list[str], what: str) -> str:
    """Return the number of names, what they are, and the first three, such as "2 broken links (a, b)"."""
    return f"{len(names):,} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def shown(path: Path | str) -> str:
    """Return a path as printable text: bytes that are not UTF-8, and control characters, as escapes."""

    def escaped(c: str) -> str:
        byte = ord(c) - 0xDC00  # how `os.fsdecode` stores a byte that is not UTF-8
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else c.encode("unicode_escape").decode()

    return "".join(c if c.isprintable() else escaped(c) for c in str(path))
