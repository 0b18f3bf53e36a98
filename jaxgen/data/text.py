"""Texts by name, as tokens in memory: Tiny Shakespeare, Python's own code, files of yours."""

import difflib
import platform
import sys
import sysconfig
from pathlib import Path

import numpy as np

from jaxgen.data import reading
from jaxgen.data.catalogue import RAW_TEXT
from jaxgen.data.prepare import UnavailableError, fetch
from jaxgen.data.prepared import describe, examples, readable
from jaxgen.data.reading import MOST, PARQUET, TABLES, decoded, path_of, read, suffix_of
from jaxgen.data.source import Arrays, Dataset
from jaxgen.data.splits import WATCHED
from jaxgen.data.vocabulary import bpe, byte, characters
from jaxgen.data.vocabulary import vocabulary as rebuilt
from jaxgen.data.walk import files_below, left_out_notice, shown
from jaxgen.errors import UserError

NAMES = ("tiny_shakespeare", "python_source")
TEXTS = (".txt", ".md", ".py")


def load_text(
    name: str,
    *,
    data_dir: str | Path | None = None,
    strict: bool = False,
    vocabulary: str = "characters",
    vocabulary_size: int = 1024,
    context: int = 64,
    column: str | None = None,
    validation: float = 0.0,
) -> Dataset:
    """Load a text; `python_source` with a notice where a downloadable one cannot be had.

    The first 90 % of its characters are to train on, the rest to test on (nanoGPT's shakespeare_char); a validation
    split is the end of the first 90 %. Training examples are {"tokens": [N, context + 1]}, the windows at all offsets;
    they are views of one text, never a copy of it. Test and validation examples are {"tokens": [M, context + 1],
    "length": int32 [M]}: each begins with the last token of the one before, so every token but the very first is
    predicted once; of the last, tokens from `length` on are padding.
    The data set's `vocabulary` holds what tokens mean; they are uint8, or uint16 where there are more than 256.

    Args:
      name: `tiny_shakespeare` (downloaded and prepared when it is not yet), `python_source` (the standard library of
        the Python that runs this), or `text:PATH` (a file, or all .txt, .md and .py files below a folder, plain or
        gzipped, in UTF-8 or in UTF-16 with a byte-order mark; line ends become LF).
      data_dir: folder of TFDS's prepared data sets; None: TFDS's default.
      strict: a UserError instead of falling back to `python_source`.
      vocabulary: "characters" that occur in the text, "bytes", or "bpe", byte pairs learnt from what is trained on.
      vocabulary_size: tokens of "bpe".
      context: tokens that the last one of a window is predicted from.
      column: of `text:PATH`, the column of texts in a table, or in all tables below a folder, of the formats
        `jaxgen.data.reading.TABLES`; its cells are joined by line breaks. None: files are plain text.
      validation: share of the training text to hold out at its end, 0 to 0.5, at least one window of characters; with
        0 the last tenth of the training text is evaluated during training.

    Raises:
      UserError: unknown or unreadable text, not UTF-8, larger than 1 GiB, shorter than a window; a vocabulary that
        cannot be; a column of what is no table.
    """
    if vocabulary not in ("characters", "bytes", "bpe"):
        raise UserError(f"unknown --data.vocabulary {vocabulary!r}: expected characters, bytes or bpe")
    if context < 1:
        raise UserError(f"a context of {context} tokens: expected at least 1")
    if column is not None and not name.startswith("text:"):
        raise UserError(f"--data.column {column}: {name} is no table; leave it out, or use text:PATH")

    notice = None
    if name == "tiny_shakespeare":
        try:
            text, source = _prepared(name, fetch(name, data_dir)), RAW_TEXT[name].credit
        except UnavailableError as error:
            if strict:
                raise UserError(f"{error}; --data.strict forbids training on python_source instead") from error
            notice = f"using python_source, Python's own code, instead of {name}: {error} (--data.strict: an error)"
            name = "python_source"
            text, source = _python_source()
    elif name == "python_source":
        text, source = _python_source()
    elif name.startswith("text:"):
        text, source, notice = _files(name, column)
    else:
        raise _unknown(name)

    border = int(len(text) * 0.9)
    start = max(0, border - max(round((validation or WATCHED) * border), context + 1))
    train, watch, test = text[: start if validation else border], text[start:border], text[border:]
    if vocabulary == "bpe":
        serialised = bpe(train, vocabulary_size)
    else:
        serialised = characters(text) if vocabulary == "characters" else byte()
    encode = rebuilt(serialised).encode
    train, watch, test = encode(train), encode(watch), encode(test)
    if min(len(train), len(test)) <= context or len(watch) < 2:
        raise UserError(
            f"{name} is too short: it has {len(train):,} tokens to train on and {len(test):,} to test on, a context of "
            f"{context} needs {context + 1} of each; choose a longer text or a shorter context, or less "
            "--data.validation"
        )
    return Dataset(
        name=name,
        train={"tokens": np.lib.stride_tricks.sliding_window_view(train, context + 1)},
        test=_in_turn(test, context),
        validation=_in_turn(watch, context) if validation else None,
        watch=None if validation else _in_turn(watch, context),
        held_out=(len(watch), len(train) + len(watch)) if validation else (0, 0),
        notice=notice,
        source=source,
        vocabulary=serialised,
    )


def _in_turn(tokens: np.ndarray, context: int) -> Arrays:
    """Windows that overlap by one token, the last one padded with zeros, and how many tokens each holds."""
    starts = np.arange(0, len(tokens) - 1, context)
    padded = np.pad(tokens, (0, context))
    return {
        "tokens": np.lib.stride_tricks.sliding_window_view(padded, context + 1)[starts],
        "length": np.minimum(len(tokens) - starts, context + 1).astype(np.int32),
    }


def _unknown(name: str) -> UserError:
    close = difflib.get_close_matches(name, NAMES)
    return UserError(
        f"unknown text {name!r}"
        + (f", did you mean {' or '.join(close)}?" if close else ":")
        + f" Expected {', '.join(NAMES)}, or text:PATH for a file of text or a folder of .txt, .md and .py files"
    )


def _prepared(name: str, folder: Path) -> str:
    """The text of which TFDS keeps the three consecutive parts."""
    with readable(name, folder):
        found = describe(name, folder)
        parts = [next(examples(found, split))["text"] for split in ("train", "validation", "test")]
        return b"".join(part.bytes_list.value[0] for part in parts).decode()


def _python_source() -> tuple[str, str]:
    """The modules of the standard library that lie at its top, without what a platform or distribution adds."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names)
    version = platform.python_version()
    if not paths:
        raise UserError(f"python_source: the standard library of this Python {version} lies in no files: use text:PATH")
    return _joined(paths, None)[0], (
        f"{len(paths)} modules of the standard library of Python {version} (PSF License Agreement, "
        "https://docs.python.org/3/license.html)"
    )


def _files(name: str, column: str | None) -> tuple[str, str, str | None]:
    """Return the text of a file, or of those below a folder in the order of their paths; its source and a notice."""
    root = path_of(name)
    if not root.is_dir():
        text, notes = _joined([root], column)
        if column is None and suffix_of(root) in TABLES:
            notes.append("read as plain text: --data.column NAME reads one column of this table")
        return text, shown(root.resolve()), "; ".join(notes) or None
    formats = TEXTS if column is None else TABLES
    found, left_out = files_below(root, (*formats, ".gz"))
    paths = [path for path in found if suffix_of(path) in formats]
    others = [shown(path) for path in found if suffix_of(path) not in formats]
    if others:
        left_out["of other formats"] = [*left_out.get("of other formats", []), *others]
    if not paths:
        raise UserError(f"{shown(name)}: expected files ({', '.join(formats)}) in {shown(root)}, found none")
    text, notes = _joined([root / path for path in paths], column)
    notes += filter(None, [left_out_notice(left_out)])
    return text, f"{len(paths)} files in {shown(root.resolve())}", "; ".join(notes) or None


def _joined(paths: list[Path], column: str | None) -> tuple[str, list[str]]:
    """Return the texts of all files, joined by line breaks, and what was normalized or left out, as notes."""
    texts: list[str] = []
    changed: dict[str, list[str]] = {}
    total = cells = empty = 0
    for path in paths:
        content = read(path)
        total += len(content)
        if total > MOST:
            raise UserError(f"{shown(path)}: with this file, texts are larger than {MOST:,} bytes; choose fewer files")
        if column is None and suffix_of(path) != PARQUET:
            text, changes = decoded(content, path)
            texts.append(text)
            for change in changes:
                changed.setdefault(change, []).append(shown(path.name))
        else:
            values = [value for _, value in reading.column(content, path, column)]
            texts += filter(None, values)
            cells, empty = cells + len(values), empty + sum(not value for value in values)
    notes = [f"{what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for what, names in changed.items()]
    if empty:
        notes.append(f"column {column}: left out {empty:,} of {cells:,} cells, which hold no text")
    return "\n".join(texts), notes
