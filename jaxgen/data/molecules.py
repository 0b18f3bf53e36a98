"""Molecules by name, as tokens in memory: QM9, ZINC-250k, those that lie inside RDKit, files of yours."""

import difflib
import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxgen.data.catalogue import RAW_MOLECULES
from jaxgen.data.prepare import UnavailableError, fetch
from jaxgen.data.prepared import describe, examples, readable
from jaxgen.data.progress import watched
from jaxgen.data.reading import path_of, read
from jaxgen.data.smiles import smiles_of
from jaxgen.data.source import Arrays, Dataset
from jaxgen.data.splits import parted
from jaxgen.data.vocabulary import START, STOP, Vocabulary, molecular, pieces_of, vocabulary
from jaxgen.data.walk import shown
from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.metrics.molecules import PROPERTIES, canonical, properties, rdkit

NAMES = ("qm9", "zinc250k", "nci")
VERSION = 3  # of what is kept of a file; another one is computed anew


@dataclass(frozen=True)
class Table:
    """What is known of the molecules of a file, each of them once.

    Attributes:
      smiles: RDKit's spellings, [N].
      properties: float64 [N, 4], see `jaxgen.metrics.molecules.properties`.
      lines: how many the file has, empty ones not counted.
      broken: 1-based numbers of those that are no molecules.
      fragments: how many molecules have several fragments, or had before all but the largest were left out.
      isotopes: how many molecules have labeled isotopes.
      mapped: how many molecules have atom-map numbers.
    """

    smiles: tuple[str, ...]
    properties: np.ndarray
    lines: int
    broken: tuple[int, ...]
    fragments: int
    isotopes: int
    mapped: int

    @property
    def is_test(self) -> np.ndarray:
        """Bool [N]: a tenth, by the hash of each molecule, so that it stays where it is when others come."""
        hashes = (hashlib.sha256(one.encode()).digest()[:4] for one in self.smiles)
        draws = np.array([int.from_bytes(some) / 2**32 for some in hashes])
        chosen = draws < 0.1
        chosen[draws.argmin()], chosen[draws.argmax()] = True, False  # at least one in each split
        return chosen


def load_molecules(
    name: str,
    *,
    data_dir: str | Path | None = None,
    strict: bool = False,
    representation: str = "smiles",
    spellings: int = 0,
    longest: int | None = None,
    column: str | None = None,
    largest_fragment: bool = False,
    validation: float = 0.0,
) -> Dataset:
    """Load molecules; `nci` with a notice where a downloadable data set cannot be had.

    Entries are {"tokens": [N, T], "length": int32 [N], "properties": float32 [N, 4]}. Tokens begin with START and end
    with STOP, which also fills them up; `length` counts both. Properties are those of `metrics.molecules.PROPERTIES`,
    less their means and divided by their standard deviations over the training molecules, which the data set's
    `properties` keeps. A tenth of the molecules is for testing, chosen by their hashes, as are those of a validation
    split; these have one spelling each.

    Args:
      name: `qm9` or `zinc250k` (downloaded and prepared when they are not yet), `nci` (the first 5,000 of the National
        Cancer Institute's, which lie inside RDKit), or `smiles:PATH` (a file of SMILES, see
        `jaxgen.data.smiles.smiles_of`; plain or gzipped, at most 1 GiB).
      data_dir: folder of TFDS's prepared data sets; None: TFDS's default.
      strict: a UserError instead of falling back to `nci`.
      representation: "smiles", RDKit's own spelling, or "selfies", of which none is invalid.
      spellings: other SMILES of each training molecule, drawn at random, that are trained on too (Bjerrum 2017); they
        come after the canonical ones.
      longest: leave out molecules of more tokens than so many.
      column: of `smiles:PATH`, the name or number (from 1) of the column of SMILES; None: the one that RDKit can read.
      largest_fragment: keep only the largest fragment of each molecule of `nci` or `smiles:PATH`, so without
        counterions and solvents; the others have one fragment.
      validation: share of the training molecules to hold out, see `splits.parted`.

    Raises:
      UserError: unknown or unreadable data set, more than half of its lines are no molecules, fewer than two are left;
        RDKit or selfies is not installed.
    """
    rdkit()
    if representation not in ("smiles", "selfies"):
        raise UserError(f"unknown --data.representation {representation!r}: expected smiles or selfies")
    if spellings < 0 or (longest is not None and longest < 1):
        raise UserError(f"--data.spellings {spellings}, --data.longest {longest}: expected at least 0 and 1")

    if column is not None and not name.startswith("smiles:"):
        raise UserError(f"--data.column {column}: {name} is no table; leave it out, or use smiles:PATH")

    notice = None
    if name in RAW_MOLECULES:
        try:
            splits, source = _prepared(name, fetch(name, data_dir)), RAW_MOLECULES[name].credit
        except UnavailableError as error:
            if strict:
                raise UserError(f"{error}; --data.strict forbids training on nci instead") from error
            notice = f"using nci, 5,000 molecules inside RDKit, instead of {name}: {error} (--data.strict: an error)"
            name = "nci"
            splits, source = _nci(largest_fragment)
    elif name == "nci":
        splits, source = _nci(largest_fragment)
    elif name.startswith("smiles:"):
        splits, source, notice = _file(name, column, largest_fragment)
    else:
        close = difflib.get_close_matches(name, NAMES)
        raise UserError(
            f"unknown molecules {name!r}"
            + (f", did you mean {' or '.join(close)}?" if close else ":")
            + f" Expected {', '.join(NAMES)}, or smiles:PATH for a file of SMILES"
        )

    texts = [_spelled(smiles, spellings if i == 0 else 0) for i, (smiles, _) in enumerate(splits)]
    taken = [[_taken_apart(row, representation, longest) for row in rows] for rows in texts]
    kept = [np.array([row is not None for row in rows], bool) for rows in taken]
    counts = [int(some.sum()) for some in kept]
    if min(counts) < 1:
        raise UserError(
            f"{name}: {counts[0]} molecules to train on and {counts[1]} to test on are left, expected at least one of "
            "each: give more molecules, or a larger --data.longest"
        )
    left_out = sum(map(len, kept)) - sum(counts)
    if left_out:
        why = f" of more than {longest} tokens" if longest else ""
        source += f"; without {left_out:,} molecules{why}"
        if longest and name.startswith("smiles:"):
            said = f"left out {left_out:,} molecules{why} (--data.longest None keeps them)"
            notice = f"{notice}; {said}" if notice else said
    spelled = [[row for row in rows if row] for rows in taken]
    values = [split[1][some] for split, some in zip(splits, kept, strict=True)]
    keys = (one.encode() for one, some in zip(splits[0][0], kept[0], strict=True) if some)
    trained, watched = parted(counts[0], validation, keys)
    spelled.append([spelled[0][i][:1] for i in watched])
    spelled[0] = [spelled[0][i] for i in trained]
    values += [values[0][watched]]
    values[0] = values[0][trained]
    held_out = (len(watched), counts[0]) if len(trained) < counts[0] else (0, 0)
    mean, std = values[0].mean(0), values[0].std(0)
    std = np.where(std > 1e-6, std, 1.0)  # where all are alike
    every = [pieces for rows in spelled for row in rows for pieces in row]
    serialised = molecular(representation, {piece for pieces in every for piece in pieces})
    number = {piece.decode(): token for token, piece in enumerate(vocabulary(serialised).pieces)}
    arrays = [
        _arrays(rows, (value - mean) / std, number, max(map(len, every)) + 2)
        for rows, value in zip(spelled, values, strict=True)
    ]
    return Dataset(
        name=name,
        train=arrays[0],
        test=arrays[1],
        validation=arrays[2] if held_out[0] else None,
        watch=None if held_out[0] else arrays[2],
        held_out=held_out,
        notice=notice,
        source=source,
        vocabulary=serialised,
        properties={name: (float(m), float(s)) for name, m, s in zip(PROPERTIES, mean, std, strict=True)},
    )


def to_smiles(tokens: np.ndarray, words: Vocabulary) -> list[str]:
    """[N, T] -> SMILES as they were written; empty for a molecule that does not end."""
    ends = (np.asarray(tokens) == STOP).argmax(1)  # 0 where there is none
    return [words.decode(row[:end]) if end else "" for row, end in zip(np.asarray(tokens), ends, strict=True)]


def known(arrays: Arrays, words: Vocabulary, spellings: int = 0) -> frozenset[str]:
    """The canonical SMILES of training molecules, of which there are as many other spellings."""
    written = to_smiles(arrays["tokens"][: len(arrays["tokens"]) // (spellings + 1)], words)
    is_canonical = words.translate is str  # SELFIES come back as another spelling
    return frozenset(written if is_canonical else filter(None, canonical(written)))


Split = tuple[Sequence[str], np.ndarray]  # canonical SMILES, and properties float64 [N, 4]


def _spelled(smiles: Sequence[str], spellings: int) -> list[list[str]]:
    """Each molecule's SMILES, and as many random ones."""
    rows = [[one] for one in smiles]
    if spellings:
        chem = rdkit().Chem
        for one, row in zip(smiles, rows, strict=True):
            row += chem.MolToRandomSmilesVect(chem.MolFromSmiles(one), spellings, 1)
    return rows


def _taken_apart(row: list[str], representation: str, longest: int | None) -> list[list[str]] | None:
    """The pieces of each spelling of a molecule; None where one of them has none, or too many."""
    found = [pieces_of(representation, one) for one in row]
    return found if all(found) and (longest is None or max(map(len, found)) <= longest) else None


def _arrays(rows: Sequence[list[list[str]]], values: np.ndarray, number: dict[str, int], width: int) -> Arrays:
    """The first spellings of all molecules, then the second ones, and so on."""
    every = [pieces for spelled in zip(*rows, strict=True) for pieces in spelled]
    tokens = np.full((len(every), width), STOP, np.uint8 if max(number.values()) < 256 else np.uint16)
    for row, pieces in zip(tokens, every, strict=True):
        row[0], row[1 : len(pieces) + 1] = START, [number[piece] for piece in pieces]
    return {
        "tokens": tokens,
        "length": np.array([len(pieces) + 2 for pieces in every], np.int32),
        "properties": np.tile(values, (len(rows[0]), 1)).astype(np.float32),
    }


# Where molecules come from --------------------------------------------------------------------------------------------


def _prepared(name: str, folder: Path) -> list[Split]:
    def read(split: str) -> Split:
        rows = [
            (example["smiles"].bytes_list.value[0].decode(), example["properties"].float_list.value)
            for example in examples(found, split)
        ]
        return [one for one, _ in rows], np.array([values for _, values in rows], np.float64)

    with readable(name, folder):
        found = describe(name, folder)
        return [read("train"), read("test")]


def _nci(largest_fragment: bool) -> tuple[list[Split], str]:
    from rdkit import RDConfig

    path = Path(RDConfig.RDDataDir, "NCI", "first_5K.smi")
    if not path.is_file():
        raise UserError(f"nci lies inside RDKit, and this one has no {path}: install rdkit anew, or use smiles:PATH")
    lines, _ = smiles_of(path.read_bytes(), path)
    table = _kept(tuple(lines), largest_fragment)
    source = f"{len(table.smiles):,} molecules of the National Cancer Institute's that RDKit carries (BSD-3-Clause)"
    return _splits(table), "; ".join([source, *_counts(table, largest_fragment)])


def _file(name: str, column: str | None, largest_fragment: bool) -> tuple[list[Split], str, str | None]:
    """A file of the user's, and what is to be said of it, in a line."""
    path = path_of(name)
    lines, chosen = smiles_of(read(path), path, column)
    table = _kept(tuple(lines), largest_fragment)
    broken, notes = len(table.broken), [f"SMILES are in column {chosen}"] if chosen else []
    if 2 * broken > table.lines or len(table.smiles) < 2:
        raise UserError(
            f"{shown(path)}: found {len(table.smiles):,} different molecules in {table.lines:,} lines"
            + (f" of column {chosen}" if chosen else "")
            + (f", of which {broken:,} are no SMILES, first line {table.broken[0]:,}" if broken else "")
            + ": expected at least two, and most lines valid; or a table, of which --data.column names the column of "
            "SMILES"
        )
    if broken:
        some = ", ".join(map(str, table.broken[:5])) + (", ..." if broken > 5 else "")
        notes.append(f"left out {broken:,} of {table.lines:,} lines of {shown(path)}, which are no SMILES: {some}")
    notes += _counts(table, largest_fragment)
    return _splits(table), f"{len(table.smiles):,} molecules in {shown(path.resolve())}", "; ".join(notes) or None


def _counts(table: Table, largest_fragment: bool) -> list[str]:
    """Notes on the molecules that have several fragments, labeled isotopes or atom-map numbers."""
    fragments = "only the largest is kept" if largest_fragment else "kept (--data.largest-fragment keeps one)"
    kinds = (
        (table.fragments, f"of several fragments (salts, mixtures), {fragments}"),
        (table.isotopes, "with labeled isotopes, kept"),
        (table.mapped, "with atom-map numbers, kept"),
    )
    return [f"{count:,} molecules {kind}" for count, kind in kinds if count]


def _splits(table: Table) -> list[Split]:
    is_test, smiles = table.is_test, np.array(table.smiles, object)
    return [(smiles[some].tolist(), table.properties[some]) for some in (~is_test, is_test)]


def described(lines: Sequence[tuple[int, str]], *, largest_fragment: bool = False, quiet: bool = False) -> Table:
    """Compute the molecules of numbered lines, one or a few milliseconds each."""
    whole = canonical([text for _, text in lines])
    spelled = [_largest(one) for one in whole] if largest_fragment else whole
    first = {one: None for one in spelled if one}  # in the order of the file, each once
    shown = first if quiet else watched(first, "properties of molecules", len(first))
    values = np.concatenate([properties([one]) for one in shown]) if first else np.zeros((0, len(PROPERTIES)))
    broken = tuple(number for (number, _), one in zip(lines, spelled, strict=True) if not one)
    fragments = sum("." in one for one in set(filter(None, whole)))
    isotopes, mapped = (sum(bool(re.search(label, one)) for one in first) for label in (r"\[\d", r":\d+\]"))
    return Table(tuple(first), values, len(lines), broken, fragments, isotopes, mapped)


def _largest(one: str | None) -> str | None:
    """The fragment of most heavy atoms, then of greatest weight, of a canonical SMILES."""
    if not one or "." not in one:
        return one

    def size(fragment: str) -> tuple[int, float, str]:
        from rdkit.Chem.Descriptors import MolWt

        molecule = rdkit().Chem.MolFromSmiles(fragment)
        return molecule.GetNumHeavyAtoms(), MolWt(molecule), fragment

    return canonical([max(one.split("."), key=size)])[0]


@lru_cache(maxsize=4)
def _kept(lines: tuple[tuple[int, str], ...], largest_fragment: bool = False) -> Table:
    """The same, computed once for all lines and a version of RDKit, then kept in the user's cache folder."""
    import platformdirs

    content = repr((VERSION, rdkit().__version__, largest_fragment, lines)).encode()
    path = Path(platformdirs.user_cache_dir("jaxgen"), "molecules", f"{hashlib.sha256(content).hexdigest()[:16]}.npz")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            smiles = tuple(bytes(found["smiles"]).decode().split())
            counts = (int(found[name]) for name in ("fragments", "isotopes", "mapped"))
            return Table(smiles, found["properties"], int(found["lines"]), tuple(found["broken"].tolist()), *counts)
    except Exception:  # there is none, or it is damaged in one of many ways: it is computed anew
        table = described(lines, largest_fragment=largest_fragment)
    kept = io.BytesIO()
    np.savez(
        kept,
        smiles=np.frombuffer("\n".join(table.smiles).encode(), np.uint8),
        properties=table.properties,
        lines=np.array(table.lines),
        broken=np.array(table.broken, int),
        fragments=np.array(table.fragments),
        isotopes=np.array(table.isotopes),
        mapped=np.array(table.mapped),
    )
    with suppress(OSError):  # where the folder cannot be written, it is computed again another time
        write_atomically(path, kept.getvalue())
    return table
