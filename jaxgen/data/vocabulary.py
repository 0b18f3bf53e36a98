"""Texts to tokens and back, over characters, bytes or byte pairs; molecules, over the parts of SMILES or SELFIES.

A vocabulary is made once, as a string that lies in the run folder's config.json, and rebuilt from it by `vocabulary`:
what was trained can write text without its data.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from jaxgen.errors import UserError, install

MOST = 65_536  # tokens: what uint16 can count
START, STOP = 0, 1  # of a molecule: tokens that say where it begins and ends, and stand for no text
# Schwaller et al. 2019 (Molecular Transformer), section 2.1: an atom, a bond, a branch, the number of a ring.
SMILES = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOPSFIbcnops]|[()=#+\-\\/:~.@?<>*$]|%[0-9]{2}|[0-9]")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a text is made of, numbered from 0."""

    name: str  # for reports, e.g. "65 characters"
    pieces: tuple[bytes, ...]  # the UTF-8 of each token; it may be a part of a character
    encode: Callable[[str], np.ndarray]  # text -> tokens [T], uint8 up to 256 of them, uint16 above
    translate: Callable[[str], str] = str  # what the pieces say -> the text

    @property
    def size(self) -> int:
        return len(self.pieces)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, U+FFFD where they are not UTF-8."""
        return self.translate(self.decoder()(tokens, final=True))

    def decoder(self) -> Callable[..., str]:
        """A function from the next tokens of a text to what they make certain: half a character waits for its rest.

        >>> decode = vocabulary(byte()).decoder()
        >>> decode([0xC3]), decode([0xA9, 0x21])
        ('', 'é!')

        Its `final=True` ends the text: U+FFFD for a rest that never came.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")

        def decode(tokens: Sequence[int], final: bool = False) -> str:
            # Of Python's numbers, since numpy's and JAX's are slow to index with.
            return utf8.decode(b"".join(self.pieces[token] for token in np.asarray(tokens, int).tolist()), final)

        return decode


def characters(text: str) -> str:
    """The vocabulary of the characters that occur in a text, in their order, for `vocabulary`."""
    found = "".join(sorted(set(text)))
    if len(found) > MOST:
        raise UserError(f"the text has {len(found):,} characters, expected at most {MOST:,}: choose bytes instead")
    return json.dumps({"kind": "characters", "characters": found})


def byte() -> str:
    """The vocabulary of the 256 bytes of UTF-8, for `vocabulary`."""
    return json.dumps({"kind": "bytes"})


def bpe(training_text: str, size: int) -> str:
    """A vocabulary of the 256 bytes and of what is most often written together, for `vocabulary`.

    Byte pairs are joined as in GPT-2 (Sennrich et al. 2016; Radford et al. 2019), never across the borders of words.

    Args:
      training_text: what to learn it from.
      size: tokens, from 256 to 65,536; they are fewer where the text repeats too little.

    Raises:
      UserError: a size out of this range; the package tokenizers is not installed.
    """
    if not 256 <= size <= MOST:
        raise UserError(f"--data.vocabulary-size {size}: expected 256 (the bytes alone) to {MOST:,}")
    tokenizers = _tokenizers()
    tokenizer = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=list(_byte_of()), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([training_text], trainer)
    # All that it has learnt, and no more: what else the package writes may change with its version.
    return json.dumps({"kind": "bpe", "merges": json.loads(tokenizer.to_str())["model"]["merges"]})


def molecular(representation: str, pieces: Iterable[str]) -> str:
    """The vocabulary of some pieces of "smiles" or "selfies", after START and STOP, for `vocabulary`.

    What it encodes and decodes is SMILES in either case.
    """
    return json.dumps({"kind": representation, "pieces": sorted(set(pieces))})


def pieces_of(representation: str, one: str) -> list[str] | None:
    """What a SMILES is made of: atoms, bonds, branches and rings, or the symbols of its SELFIES (Krenn et al. 2020).

    None where it cannot be taken apart, as an atom with more bonds than SELFIES allows.

    >>> pieces_of("smiles", "CCl")
    ['C', 'Cl']
    """
    if representation == "smiles":
        pieces = SMILES.findall(one)
        return pieces if pieces and "".join(pieces) == one else None
    selfies = _selfies()
    try:
        return list(selfies.split_selfies(selfies.encoder(one)))
    except selfies.EncoderError:
        return None


def vocabulary(serialised: str) -> Vocabulary:
    """The vocabulary that one of the functions above made.

    Its `encode` raises a UserError at a character that it does not have (bytes and byte pairs have all), and for byte
    pairs where the package tokenizers is not installed; decoding needs no package.

    Raises:
      UserError: the string is none of theirs.
    """
    try:
        record = json.loads(serialised)
        kinds = {"characters": _characters, "bytes": _bytes, "bpe": _bpe, "smiles": _molecular, "selfies": _molecular}
        return kinds[record["kind"]](record)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{serialised[:60]!r} is no vocabulary ({type(error).__name__}: {error}): expected one as training writes "
            "it to a run folder's config.json"
        ) from error


def _characters(record: dict) -> Vocabulary:
    known = record["characters"]
    points = _points(known)
    dtype = np.uint8 if len(known) <= 256 else np.uint16

    def encode(text: str) -> np.ndarray:
        # A piece at a time: code points and places take twelve times the memory of the text.
        pieces = [encoded(text[start : start + 2**20]) for start in range(0, max(len(text), 1), 2**20)]
        return np.concatenate(pieces)

    def encoded(text: str) -> np.ndarray:
        wanted = _points(text)
        tokens = np.searchsorted(points, wanted)
        unknown = points.take(tokens, mode="clip") != wanted if known else np.ones(len(wanted), bool)
        if unknown.any():
            some = sorted(known, key=lambda character: not character.isalnum())[:10]
            raise UserError(
                f"the character {text[unknown.argmax()]!r} is not in this vocabulary of {len(known)} characters (such "
                f"as {', '.join(map(repr, some))}): leave it out, or train with --data.vocabulary bytes, which has all"
            )
        return tokens.astype(dtype)

    return Vocabulary(f"{len(known)} characters", tuple(character.encode() for character in known), encode)


def _points(text: str) -> np.ndarray:
    """The code points of a text, uint32 [T]."""
    # A command line that is not UTF-8 reaches Python as lone surrogates; no text that was read holds any.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _bytes(record: dict) -> Vocabulary:
    def encode(text: str) -> np.ndarray:
        return np.frombuffer(_whole(text).encode(), np.uint8)

    return Vocabulary("bytes", tuple(bytes([value]) for value in range(256)), encode)


def _bpe(record: dict) -> Vocabulary:
    merges, byte_of = [(first, second) for first, second in record["merges"]], _byte_of()
    # Two merges may come to the same token.
    names = list(dict.fromkeys([*byte_of, *(first + second for first, second in merges)]))
    pieces = tuple(bytes(byte_of[character] for character in name) for name in names)
    dtype = np.uint8 if len(pieces) <= 256 else np.uint16

    @cache
    def tokenizer() -> Any:  # when asked for: decoding needs no package
        numbers = {name: number for number, name in enumerate(names)}
        return _byte_level(_tokenizers().models.BPE(numbers, merges))

    def encode(text: str) -> np.ndarray:
        # "Fast" leaves out where in the text each token stood: half the time.
        return np.array(tokenizer().encode_batch_fast([_whole(text)])[0].ids, dtype)

    return Vocabulary(f"BPE of {len(pieces):,}", pieces, encode)


def _molecular(record: dict) -> Vocabulary:
    known, representation = record["pieces"], record["kind"]
    number = {piece: i for i, piece in enumerate(known, 2)}
    dtype = np.uint8 if len(known) + 2 <= 256 else np.uint16
    name = {"smiles": "SMILES", "selfies": "SELFIES"}[representation]

    def encode(one: str) -> np.ndarray:
        pieces = pieces_of(representation, one)
        if pieces is None:
            raise UserError(f"{one!r} cannot be written in {name}: expected a molecule such as CC(=O)Oc1ccccc1")
        unknown = next((piece for piece in pieces if piece not in number), None)
        if unknown is not None:
            raise UserError(f"{unknown!r} of {one!r} is none of the {len(known)} pieces that were trained on")
        return np.array([number[piece] for piece in pieces], dtype)

    def translate(symbols: str) -> str:
        return _selfies().decoder(symbols)

    every = (b"", b"", *(piece.encode() for piece in known))
    return Vocabulary(f"{len(every)} tokens of {name}", every, encode, str if name == "SMILES" else translate)


def _byte_level(model: Any) -> Any:
    """A tokenizer that splits text into words as GPT-2 does, and gives their bytes to the model."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _byte_of() -> dict[str, int]:
    """The byte of each character in the names of tokens; GPT-2 writes bytes that do not print as other letters."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printing]
    names = {value: chr(value) for value in printing} | {value: chr(256 + i) for i, value in enumerate(others)}
    return {names[value]: value for value in range(256)}


def _whole(text: str) -> str:
    """The text itself, or a UserError where it is not Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{text[error.start]!r} is half a character: expected text in UTF-8") from None
    return text


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise UserError(
            f"byte pairs need the package tokenizers ({error}): {install('tokenizers')}, or choose "
            "--data.vocabulary characters or bytes"
        ) from error
    return tokenizers


def _selfies() -> ModuleType:
    try:
        import selfies
    except ImportError as error:
        raise UserError(
            f"SELFIES need the package selfies ({error}): {install('selfies')}, or choose --data.representation smiles"
        ) from error
    return selfies
