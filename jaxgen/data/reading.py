"""A user's files: bytes up to a bound, text in Unicode, rows and columns of tables."""

import codecs
import csv
import difflib
import errno
import gzip
import io
import json
import os
import re
import shlex
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from jaxgen.data.walk import shown
from jaxgen.errors import UserError, install

MOST = 2**30  # bytes of one file, after decompression
MOST_LINES = 20_000_000  # of a table, whose rows take some hundred bytes each
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
TABLES = (".csv", ".tsv", *JSON_LINES, PARQUET)
MARKS = (  # UTF-32 before UTF-16, whose mark is the beginning of the other's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UNREADABLE = "make it readable, or choose another file"


def utf8(text: str) -> str:
    r"""Return a command-line word as UTF-8: a byte that is none, such as 0xe9, becomes `\xe9`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def path_of(name: str) -> Path:
    """Return the path in a data set's name such as "text:~/book.txt", which `utf8` may have written.

    Raises:
      UserError: there is no home folder for the `~` in it.
    """
    try:
        path = Path(name.partition(":")[2]).expanduser()
    except RuntimeError as error:
        raise UserError(f"{shown(name)}: there is no such home folder; give the whole path") from error
    original = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    return path if os.path.lexists(path) else Path(os.fsdecode(original))


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix of a file name, the one before ".gz" if it is gzipped."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def read(path: Path, advice: str = UNREADABLE, most: int = MOST) -> bytes:
    """Return the contents of a regular file, decompressed if they are gzip's.

    Args:
      path: the file; pipes, devices and folders are refused before they are opened.
      advice: what the message of an error tells the user to do.
      most: the largest number of bytes, before and after decompression.

    Raises:
      UserError: no such file, not a regular file, not readable, damaged, or larger than `most`.
    """
    try:
        return contents(path, most)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {shown(path)} ({reason}): {advice}") from error


def contents(path: Path, most: int = MOST) -> bytes:
    """Return what `read` does.

    Raises:
      OSError, EOFError, zlib.error, ValueError: where `read` raises a UserError.
    """
    return unpacked(stored(path, most), most)


def stored(path: Path, most: int = MOST) -> bytes:
    """Return the contents of a regular file as they are.

    Raises:
      OSError, ValueError: no such file, not a regular file, not readable, or larger than `most` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file, found a folder, pipe or device")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, expected at most {most:,}")
    with path.open("rb") as file:
        return file.read(status.st_size)


def unpacked(content: bytes, most: int = MOST) -> bytes:
    """Return bytes decompressed if they are gzip's, unchanged otherwise.

    Raises:
      OSError, EOFError, zlib.error: damaged, or more than `most` bytes when decompressed.
    """
    if not content.startswith(b"\x1f\x8b"):
        return content
    pieces, total = [], 0
    with gzip.open(io.BytesIO(content)) as file:
        while piece := file.read(2**20):
            pieces.append(piece)
            total += len(piece)
            if total > most:
                raise OSError(errno.EFBIG, f"more than {most:,} bytes when decompressed")
    return b"".join(pieces)


# Text -----------------------------------------------------------------------------------------------------------------


def decoded(content: bytes, path: Path, errors: str = "strict") -> tuple[str, list[str]]:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, and what was normalized.

    The byte-order mark is removed; line ends CRLF and CR become LF.

    Args:
      content: the file's contents, decompressed.
      path: its name, for messages.
      errors: "replace" puts U+FFFD in place of bytes that cannot be decoded, instead of raising.

    Raises:
      UserError: `content` is none of these, or holds NUL characters; the message names the likely encoding and the
        command that converts it.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding, errors)
        wrong = text.find("\0")
        position = -1 if wrong < 0 else len(text[:wrong].encode(encoding))
    except UnicodeDecodeError as error:
        position = error.start
    if position >= 0 and encoding == "utf-8":
        raise _undecodable(content, path, len(mark) + position)
    if position >= 0:
        raise UserError(f"{shown(path)} is no text in {encoding.upper()} at byte {len(mark) + position:,}: repair it")
    unix = unix_lines(text)
    changes = [*["byte-order mark removed"] * bool(mark), *["CR or CRLF line ends replaced by LF"] * (unix != text)]
    return unix, changes


def unix_lines(text: str) -> str:
    """Return a text whose lines end in LF only."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _clean(value: object) -> str | None:
    """Return a cell's text with LF line ends and without half characters (JSON can spell those); None for others."""
    if not isinstance(value, str):
        return None
    return unix_lines(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _undecodable(content: bytes, path: Path, position: int) -> UserError:
    """Name the first byte that is wrong, the likely encoding, and a command that converts the file."""
    source, target = shlex.quote(shown(path)), shlex.quote(f"{shown(path.with_suffix(''))}.utf8{suffix_of(path)}")
    source = f"gunzip -c {source} |" if path.suffix.lower() == ".gz" else f"< {source}"

    def command(encoding: str) -> str:
        return f"{source} iconv -f {encoding} -t UTF-8 > {target}"

    sample = content[:1_000_000]
    high = sum(byte >= 0x80 for byte in sample)
    in_characters = sum(byte >= 0x80 for byte in sample.decode("utf-8", "ignore").encode())
    if content.startswith(b"PK\x03\x04"):
        advice = "a ZIP archive: unpack it first"
    elif 4 * sample[1::2].count(0) > len(sample):
        advice = f"UTF-16 without a byte-order mark; convert it: {command('UTF-16LE')}"
    elif 4 * sample[::2].count(0) > len(sample):
        advice = f"UTF-16 without a byte-order mark; convert it: {command('UTF-16BE')}"
    elif 0 in content:
        advice = "binary data, or text with NUL characters: leave it out, or remove them with tr -d '\\000'"
    elif 2 * in_characters > high:
        advice = f"damaged UTF-8; drop the damaged bytes: {command('UTF-8 -c')}"
    elif 3 * high > len(sample) or set(sample) & {0x81, 0x8D, 0x8F, 0x90, 0x9D}:  # unused in Windows-1252
        advice = f"another encoding (file -i may tell which); convert it: {command('ENCODING')}"
    elif any(0x80 <= byte < 0xA0 for byte in sample):
        advice = f"Windows-1252; convert it: {command('WINDOWS-1252')}"
    else:
        advice = f"Latin-1; convert it: {command('LATIN1')}"
    return UserError(f"{shown(path)} is not UTF-8 at byte {position:,} (0x{content[position]:02x}). Likely {advice}")


# Tables ---------------------------------------------------------------------------------------------------------------


def table_of(content: bytes, path: Path, errors: str = "strict") -> str:
    """Return the text of a table, see `decoded`. UserError: it has more than `MOST_LINES` lines."""
    text, _ = decoded(content, path, errors)
    if text.count("\n") > MOST_LINES:
        raise UserError(f"{shown(path)} has more than {MOST_LINES:,} lines: use a part of it")
    return text


def rows(text: str, delimiter: str, path: Path, first: int | None = None) -> list[tuple[int, list[str]]]:
    """Return (1-based number of its first line, cells) of each row of delimiter-separated values that is not empty.

    With `first`, only that many rows.

    Raises:
      UserError: a quotation mark is not closed.
    """
    limit = csv.field_size_limit(len(text) + 1)  # by default 131,072 characters, fewer than many a text
    try:
        reader, found, start, end = csv.reader(io.StringIO(text), delimiter=delimiter), [], 0, 0
        for row in reader:
            start, end = end, reader.line_num
            if any(row):
                found.append((start + 1, row))
            if len(found) == first:
                return found
    except csv.Error as error:
        raise UserError(f"{shown(path)}, line {end + 1:,}: {error}; repair this table") from error
    finally:
        csv.field_size_limit(limit)
    if end - start > 1 and "\n".join(text.split("\n")[start:end]).count('"') % 2:
        raise UserError(f"{shown(path)}, line {start + 1:,}: a quotation mark that is never closed; repair this line")
    return found


def column(content: bytes, path: Path, name: str | None) -> list[tuple[int, str | None]]:
    """Return (1-based number of the row or line, text) of one column of a table; None for a cell that holds no text.

    Args:
      content: the file's contents, decompressed.
      path: its name, whose suffix, perhaps before .gz, is one of `TABLES`: comma-, semicolon- or tab-separated values
        with a line of names, JSON objects a line, or Parquet (which needs the package pyarrow).
      name: the column, in any case.

    Raises:
      UserError: another suffix, no such column, or a table that cannot be read.
    """
    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise UserError(f"--data.column {name}: expected a table ({', '.join(TABLES)}), found {shown(path)}")
    if suffix == PARQUET:
        return list(enumerate(_parquet(content, path, name), 1))
    text = table_of(content, path)
    if suffix in JSON_LINES:
        return _json_lines(text, path, name)
    head = next(filter(str.strip, text.split("\n", 100)), "")
    heads = {delimiter: rows(head, delimiter, path)[0][1] if head else [] for delimiter in "\t,;"}
    delimiter = max(heads, key=lambda one: len(heads[one]))
    index = index_of(name, heads[delimiter], path)
    return [(number, row[index] if index < len(row) else None) for number, row in rows(text, delimiter, path)[1:]]


def index_of(name: str | None, names: list[str], path: Path) -> int:
    """Return where a column stands among all, by its name in any case.

    Raises:
      UserError: `name` is None or is none of them; the message lists them.
    """
    folded = [one.strip().strip('"').casefold() for one in names]
    if name is not None and name.strip().casefold() in folded:
        return names.index(name) if name in names else folded.index(name.strip().casefold())
    listed = [shown(one.strip()[:40]) for one in names[:20]]
    close = difflib.get_close_matches(name or "", listed)
    wrong = f"--data.column {name}: {shown(path)} has no such column"
    if name is None:
        wrong = f"{shown(path)} is a table: name one of its columns with --data.column"
    raise UserError(
        wrong
        + (f", did you mean {' or '.join(close)}?" if close else ".")
        + f" Its columns: {', '.join(listed)}{', ...' * (len(names) > 20)}"
    )


def _json_lines(text: str, path: Path, name: str | None) -> list[tuple[int, str | None]]:
    found, names, wanted = [], {}, (name or "").strip().casefold()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{shown(path)}, line {number:,}: expected one JSON object a line ({error}); repair this line"
            ) from error
        names |= dict.fromkeys(record)
        key = name if name in record else next((key for key in record if key.strip().casefold() == wanted), None)
        found.append((number, _clean(record.get(key))))
    index_of(name, list(names), path)  # for its error
    return found


def _parquet(content: bytes, path: Path, name: str | None) -> Iterator[str | None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{shown(path)}: Parquet needs the package pyarrow ({install('pyarrow')}); or convert the file to CSV: "
            f"""duckdb -c "COPY '{shown(path)}' TO '{shown(path.stem)}.csv'" """.rstrip()
        ) from error
    try:
        file, total = pyarrow.parquet.ParquetFile(io.BytesIO(content)), 0
        names = file.schema_arrow.names
        chosen = names[index_of(name, names, path)]
        for batch in file.iter_batches(batch_size=256, columns=[chosen]):
            for value in batch.column(0).to_pylist():
                value = _clean(value)
                total += len(value or "")
                if total > MOST:
                    raise UserError(f"{shown(path)}: column {name} holds more than {MOST:,} characters; split the file")
                yield value
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {shown(path)} ({reason}): repair this file, or choose another") from error
