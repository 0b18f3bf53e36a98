"""SMILES in a user's file: which column holds them."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from jaxgen.data import reading
from jaxgen.data.reading import JSON_LINES, PARQUET, suffix_of, table_of
from jaxgen.metrics.molecules import canonical
from jaxgen.report import unquoted

TRIED = 60  # rows on which columns are compared
COLUMNS = 1_000  # that are compared
DELIMITERS = ("\t", None, ";", ",")  # None: any white space, as between SMILES and name


def smiles_of(content: bytes, path: Path, column: str | None = None) -> tuple[list[tuple[int, str]], str]:
    """Return (1-based number of the line, SMILES) of each line or row that is not empty; and which column this is.

    A file holds a SMILES a line, perhaps before or after a name, or is a table: values separated by tabs, semicolons or
    commas, with or without a line of names, JSON objects a line, or Parquet. The column is one whose cells RDKit can
    read, by preference with "smiles" in its name. CXSMILES extensions (` |...|`) are left out.

    Args:
      content: the file's contents, decompressed.
      path: its name.
      column: name of the column in any case, or its number, from 1; None: the one that RDKit can read.

    Returns:
      The lines, and a description of the column such as "'Smiles' (8 of 32)", empty where there is no choice.

    Raises:
      UserError: no such column; a table that cannot be read; JSON or Parquet without `column`.
    """
    if suffix_of(path) in (*JSON_LINES, PARQUET):
        cells = reading.column(content, path, column)
        return [(number, _first_word(cell or "")) for number, cell in cells], repr(column)
    text = table_of(content, path, errors="replace")  # names may be in any encoding
    head = "\n".join(islice(filter(str.strip, text.split("\n")), TRIED + 1))
    tables = {
        delimiter: _rows(head, delimiter, path, TRIED + 1) for delimiter in DELIMITERS if (delimiter or "") in head
    }
    tables = {delimiter: table for delimiter, table in tables.items() if table}
    if not tables:
        return [], ""
    places = [(delimiter, index) for delimiter, table in tables.items() for index in _indices(delimiter, table)]
    if column is not None:
        places = _asked(column, places, tables, path)
    delimiter, index = max(places, key=lambda place: _merit(tables[place[0]], place[1]))
    names = tables[delimiter][0][1]
    named = _are_names(names, index, delimiter)
    lines = [(number, _cell(row, index)) for number, row in _rows(text, delimiter, path)]
    title = repr(_cell(names, index, whole=True)) if named else f"number {index + 1}" if index >= 0 else "at the end"
    chosen = f"{title} ({index % len(names) + 1} of {len(names)})" if named else title
    return lines[named:], chosen if index or (named and len(names) > 1) else ""


def _rows(text: str, delimiter: str | None, path: Path, first: int | None = None) -> list[tuple[int, list[str]]]:
    """(1-based number of its line, cells) of each row that is not empty."""
    if delimiter:
        return reading.rows(text, delimiter, path, first)
    return [(number, line.split()) for number, line in enumerate(text.split("\n"), 1) if line.strip()][:first]


def _indices(delimiter: str | None, table: Sequence[tuple[int, list[str]]]) -> Sequence[int]:
    """Where SMILES may stand: in any column; among words, first, second or, after a longer name, last."""
    width = min(max(len(row) for _, row in table), COLUMNS)
    return range(width) if delimiter else (0, 1, -1)[:width]


def _asked(column: str, places: list, tables: dict, path: Path) -> list:
    """The places of a column that is given by its name or number."""
    folded = column.strip().casefold()
    by_name = [
        (delimiter, index)
        for delimiter, table in tables.items()
        for index, name in enumerate(table[0][1])
        if _plain(name).casefold() == folded
    ]
    by_number = [(delimiter, index) for delimiter, index in places if str(index + 1) == folded]
    if not (by_name or by_number):
        delimiters = [delimiter for delimiter in tables if delimiter] or [None]
        reading.index_of(column, max((tables[one][0][1] for one in delimiters), key=len), path)
    return by_name or by_number


def _merit(table: Sequence[tuple[int, list[str]]], index: int) -> tuple[bool, int, int]:
    """How much a column looks like SMILES: whether half of it is, what its name says, how many molecules it has."""
    name, *cells = [_cell(row, index) for _, row in table]
    smiles = [one for one in canonical(cells) if one]
    says = ("smiles" in name.lower()) + (name.lower() == "smiles")
    return 2 * len(smiles) >= len(cells), says, len({*smiles, *filter(None, canonical([name]))})


def _are_names(row: list[str], index: int, delimiter: str | None) -> bool:
    """Whether a first row names columns: one is called SMILES, or the cell of the column is a word and no molecule."""
    cell = _cell(row, index, whole=True)
    word = (
        bool(delimiter) and len(row) > 1 and re.fullmatch(r"[A-Za-z][\w .#/-]*", cell) and canonical([cell]) == [None]
    )
    return any("smiles" in _plain(name).lower() for name in row) or bool(word)


def _cell(row: list[str], index: int, *, whole: bool = False) -> str:
    """The first word of a cell, which is a SMILES without a name or an extension, or all of it; empty where none is."""
    cell = row[index] if index < len(row) else ""
    return _plain(cell) if whole else _first_word(_plain(cell))


def _plain(cell: str) -> str:
    return unquoted(cell.strip().strip('"').strip())


def _first_word(cell: str) -> str:
    return next(iter(cell.split()), "")
