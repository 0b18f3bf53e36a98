"""Where a file came from, written into the file itself: a field of its metadata, or what comes closest to one.

PNG: a tEXt chunk. GIF: a comment. WebP: an XMP chunk. WAV: a comment in a LIST INFO chunk. Tables of comma-separated
values: a column that is filled in the first row, which any reader takes and sorting does not lose. Texts: a last line.
"""

import csv
import io
import json
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from jaxgen.errors import UserError
from jaxgen.files import parse_json

KEY = "jaxgen"


@dataclass(frozen=True)
class Provenance:
    """How a file was made.

    Attributes:
      command: of `python -m jaxgen`, such as "sample".
      run: the run folder.
      experiment: its experiment.
      step: of the checkpoint.
      checkpoint: SHA-256 digest of its manifest, which holds the sums of all its files.
      flags: of the command, all of them.
      controls: of the family, all of them.
      part: which of the files that the command writes.
      versions: of packages.
      device: that it was made on.
    """

    command: str
    run: str
    experiment: str
    step: int
    checkpoint: str
    flags: dict[str, Any]
    controls: dict[str, Any]
    part: str
    versions: dict[str, str]
    device: str

    def __post_init__(self):
        if "\0" in self.run:
            raise ValueError("no path holds the character NUL")

    def __str__(self) -> str:
        return json.dumps(msgspec.to_builtins(self), separators=(",", ":"))  # ASCII, on one line


def stamped(suffix: str, content: bytes, text: str) -> bytes:
    """A file with a text in it, ASCII and on one line."""
    write, _ = FORMATS[suffix]
    return write(content, text)


def stamp_of(suffix: str, content: bytes) -> Provenance:
    """What stands in a file.

    Raises:
      UserError: nothing, or nothing that this program wrote.
    """
    if suffix not in FORMATS:
        raise UserError(f"files that end in {suffix!r} carry no provenance: expected {', '.join(FORMATS)}")
    _, read = FORMATS[suffix]
    try:
        text = read(content)
        return parse_json(text.encode(), Provenance)
    except (LookupError, ValueError, AttributeError, struct.error, csv.Error):
        raise UserError(
            "it does not say where it came from: expected a file as python -m jaxgen wrote it, in its own format"
        ) from None


def _write_png(content: bytes, text: str) -> bytes:
    body = b"tEXt" + KEY.encode() + b"\0" + text.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:-12] + chunk + content[-12:]  # before IEND


def _read_png(content: bytes) -> str:
    position = 8
    while True:
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        if kind == b"tEXt" and body.startswith(KEY.encode() + b"\0"):
            return body[len(KEY) + 1 :].decode()
        position += 12 + length


def _write_gif(content: bytes, text: str) -> bytes:
    rest = f"{KEY} {text}".encode()
    blocks = b"".join(bytes([len(rest[i : i + 255])]) + rest[i : i + 255] for i in range(0, len(rest), 255))
    return content[:-1] + b"\x21\xfe" + blocks + b"\0" + content[-1:]  # before the trailer


def _read_gif(content: bytes) -> str:
    position = re.search(rb"\x21\xfe.jaxgen ", content, re.DOTALL).start() + 2
    text = b""
    while length := content[position]:
        text += content[position + 1 : position + 1 + length]
        position += 1 + length
    return text[len(KEY) + 1 :].decode()


def _write_wav(content: bytes, text: str) -> bytes:
    comment = f"{KEY} {text}".encode() + b"\0"
    comment += b"\0" * (len(comment) % 2)
    return _with_chunk(content, b"LIST", b"INFOICMT" + struct.pack("<I", len(comment)) + comment)


def _read_wav(content: bytes) -> str:
    return _chunk(content, b"LIST", b"INFOICMT")[4:].rstrip(b"\0").decode().removeprefix(f"{KEY} ")


def _write_webp(content: bytes, text: str) -> bytes:
    if content[12:16] == b"VP8L":  # the simple kind, as of frames that are all alike: only the extended has a place
        size = int.from_bytes(content[21:25], "little")
        width, height, alpha = size & 0x3FFF, size >> 14 & 0x3FFF, size >> 28 & 1
        sizes = width.to_bytes(3, "little") + height.to_bytes(3, "little")
        content = content[:12] + b"VP8X" + struct.pack("<I", 10) + bytes([alpha << 4, 0, 0, 0]) + sizes + content[12:]
    says = content[20] | 4  # the flag that there is XMP
    return _with_chunk(content[:20] + bytes([says]) + content[21:], b"XMP ", f"{KEY} {text}".encode())


def _read_webp(content: bytes) -> str:
    return _chunk(content, b"XMP ", f"{KEY} ".encode()).decode()


def _with_chunk(riff: bytes, kind: bytes, body: bytes) -> bytes:
    """A RIFF file and one more chunk at its end."""
    chunk = kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return riff[:4] + struct.pack("<I", len(riff) - 8 + len(chunk)) + riff[8:] + chunk


def _chunk(riff: bytes, kind: bytes, start: bytes) -> bytes:
    """What follows `start` in the chunk of that kind that begins so."""
    position = 12
    while True:
        found, length = struct.unpack_from("<4sI", riff, position)
        body = riff[position + 8 : position + 8 + length]
        if found == kind and body.startswith(start):
            return body[len(start) :]
        position += 8 + length + length % 2


def _write_csv(content: bytes, text: str) -> bytes:
    table = io.StringIO()
    header, *rows = csv.reader(io.StringIO(content.decode()))
    notes = [text, *[""] * len(rows)]
    written = [[*header, KEY], *([*row, note] for row, note in zip(rows or [[""] * len(header)], notes, strict=False))]
    csv.writer(table, lineterminator="\n").writerows(written)
    return table.getvalue().encode()


def _read_csv(content: bytes) -> str:
    header, *rows = csv.reader(io.StringIO(content.decode()))
    return next((row[header.index(KEY)] for row in rows if row[header.index(KEY)]), "")


def _write_text(content: bytes, text: str) -> bytes:
    return content.rstrip(b"\n") + f"\n\n{KEY} {text}\n".encode()


def _read_text(content: bytes) -> str:
    last = content.rstrip(b"\n").rpartition(b"\n")[2].decode()
    if not last.startswith(f"{KEY} "):
        raise ValueError(last)
    return last.removeprefix(f"{KEY} ")


FORMATS = {
    ".png": (_write_png, _read_png),
    ".gif": (_write_gif, _read_gif),
    ".webp": (_write_webp, _read_webp),
    ".wav": (_write_wav, _read_wav),
    ".csv": (_write_csv, _read_csv),
    ".txt": (_write_text, _read_text),
}
