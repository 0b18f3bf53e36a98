"""Texts by name, as tokens in memory: Tiny Shakespeare, Python's own code, files of yours."""

import difflib
import platform
import sys
import sysconfig
from pathlib import Path

import numpy as np

from jaxgen.data.catalogue import RAW_TEXT
from jaxgen.data.prepare import UnavailableError, fetch
from jaxgen.data.prepared import describe, examples, readable
from jaxgen.data.source import Arrays, Dataset
from jaxgen.data.vocabulary import bpe, byte, characters
from jaxgen.data.vocabulary import vocabulary as rebuilt
from jaxgen.errors import UserError

NAMES = ("tiny_shakespeare", "python_source")


def load_text(
    name: str,
    *,
    data_dir: str | Path | None = None,
    strict: bool = False,
    vocabulary: str = "characters",
    vocabulary_size: int = 1024,
    context: int = 64,
) -> Dataset:
    """Load a text; `python_source` with a notice where a downloadable one cannot be had.

    The first 90 % of its characters are to train on, the rest to test on (nanoGPT's shakespeare_char). Training
    examples are {"tokens": [N, context + 1]}, the windows at all offsets; they are views of one text, never a copy of
    it. Test examples are {"tokens": [M, context + 1], "length": int32 [M]}: each begins with the last token of the one
    before, so every token but the very first is predicted once; of the last, tokens from `length` on are padding.
    The data set's `vocabulary` holds what tokens mean; they are uint8, or uint16 where there are more than 256.

    Args:
      name: `tiny_shakespeare` (downloaded and prepared when it is not yet), `python_source` (the standard library of
        the Python that runs this), or `text:PATH` (a file in UTF-8, or all .txt, .md and .py files below a folder).
      data_dir: folder of TFDS's prepared data sets; None: TFDS's default.
      strict: a UserError instead of falling back to `python_source`.
      vocabulary: "characters" that occur in the text, "bytes", or "bpe", byte pairs learnt from what is trained on.
      vocabulary_size: tokens of "bpe".
      context: tokens that the last one of a window is predicted from.

    Raises:
      UserError: unknown or unreadable text, not UTF-8, shorter than a window; a vocabulary that cannot be.
    """
    if vocabulary not in ("characters", "bytes", "bpe"):
        raise UserError(f"unknown --data.vocabulary {vocabulary!r}: expected characters, bytes or bpe")
    if context < 1:
        raise UserError(f"a context of {context} tokens: expected at least 1")

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
        text, source = _files(name)
    else:
        raise _unknown(name)

    border = int(len(text) * 0.9)
    train, test = text[:border], text[border:]
    if vocabulary == "bpe":
        serialised = bpe(train, vocabulary_size)
    else:
        serialised = characters(text) if vocabulary == "characters" else byte()
    encode = rebuilt(serialised).encode
    train, test = encode(train), encode(test)
    if min(len(train), len(test)) <= context:
        raise UserError(
            f"{name} is too short: it has {len(train):,} tokens to train on and {len(test):,} to test on, a context of "
            f"{context} needs {context + 1} of each; choose a longer text or a shorter context"
        )
    return Dataset(
        name=name,
        train={"tokens": np.lib.stride_tricks.sliding_window_view(train, context + 1)},
        test=_in_turn(test, context),
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
        + f" Expected {', '.join(NAMES)}, or text:PATH for a file in UTF-8 or a folder of .txt, .md and .py files"
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
    return _joined(paths), (
        f"{len(paths)} modules of the standard library of Python {version} (PSF License Agreement, "
        "https://docs.python.org/3/license.html)"
    )


def _files(name: str) -> tuple[str, str]:
    """A file, or those of texts below a folder in the order of their paths."""
    root = Path(name.removeprefix("text:")).expanduser()
    if root.is_file():
        return _joined([root]), f"{root.resolve()}"
    if not root.is_dir():
        raise UserError(f"{name}: there is no {root}; expected text:PATH with the path of a file or folder")
    paths = sorted(
        path.relative_to(root)
        for path in root.rglob("*")
        if path.suffix.lower() in (".txt", ".md", ".py") and path.is_file()
    )
    paths = [root / path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not paths:
        raise UserError(f"{name}: expected texts (.txt, .md, .py) in {root}, found none")
    return _joined(paths), f"{len(paths)} files in {root.resolve()}"


def _joined(paths: list[Path]) -> str:
    return "\n".join(map(_read, paths))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it readable, or choose another text") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; convert it to UTF-8, or "
            "leave it out"
        ) from error
