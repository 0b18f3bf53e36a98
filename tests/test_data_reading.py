"""Files that are bombs, no files, or no text."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import transformer_text
from jaxgen import run
from jaxgen.data import reading
from jaxgen.data.reading import column, decoded, path_of, read, rows
from jaxgen.data.smiles import smiles_of
from jaxgen.errors import UserError


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(UserError, match=r"expected a regular file, found a folder, pipe or device\): make it"):
            read(path)
    with pytest.raises(UserError, match=r"cannot read .*null byte"):
        read(tmp_path / "a\0b")
    with pytest.raises(UserError, match="there is no such home folder"):
        path_of("text:~nobody-of-that-name/book.txt")


def test_a_path_that_is_not_utf8_is_recorded_in_utf8_and_found_again(tmp_path, monkeypatch):
    path = os.fsencode(tmp_path / "caf") + b"\xe9.txt"
    os.close(os.open(path, os.O_CREAT))
    name = f"text:{os.fsdecode(path)}"
    assert path_of(name) == Path(os.fsdecode(path))
    found = []
    monkeypatch.setattr(run, "run", lambda config, *_, **__: found.append(config))
    monkeypatch.setattr(run.processes, "start", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["x", "--data.name", name, "--sample.prompt", "é\n\\x41"])
    run.main("x.py", transformer_text.Config(), None, transformer_text.build)
    assert found[0].data.name == rf"text:{tmp_path}/caf\xe9.txt"
    assert found[0].sample.prompt == "é\n\\x41"
    assert path_of(found[0].data.name) == Path(os.fsdecode(path))
    assert path_of(rf"text:{tmp_path}/a\x41") == tmp_path / r"a\x41"


def test_a_file_is_read_up_to_a_bound(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(2**40)  # holes: it takes no room on the disk
    with pytest.raises(UserError, match=r"a.txt \(1,099,511,627,776 bytes, expected at most 1,073,741,824\): mend it"):
        read(path, "mend it")
    path.write_bytes(gzip.compress(bytes(3_000_000)))
    assert read(path) == bytes(3_000_000)
    assert read(path, most=3_000_000) == bytes(3_000_000)
    with pytest.raises(UserError, match="more than 2,999,999 bytes when decompressed"):
        read(path, most=2_999_999)
    for damaged in (path.read_bytes()[:-9], path.read_bytes()[:20] + b"!" * 2000, b"\x1f\x8b"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot read .*a.txt \("):
            read(path)


UNMARKED = "UTF-16 without a byte-order mark; convert it:"
GERMAN = "Über die Größe der Straße: „schön“"


@pytest.mark.parametrize(
    ("content", "position", "likely"),
    [
        (
            "Das Café ist schön".encode("latin-1"),
            "7 (0xe9)",
            "Latin-1; convert it: < {path} iconv -f LATIN1 -t UTF-8 >",
        ),
        (GERMAN.encode("cp1252"), "0 (0xdc)", "Windows-1252; convert it: < {path} iconv -f WINDOWS-1252 -t UTF-8 >"),
        (
            GERMAN.encode("utf-16-le"),
            "0 (0xdc)",
            "UTF-16 without a byte-order mark; convert it: < {path} iconv -f UTF-16LE",
        ),
        (
            "plain".encode("utf-16-be"),
            "0 (0x00)",
            "UTF-16 without a byte-order mark; convert it: < {path} iconv -f UTF-16BE",
        ),
        (GERMAN.encode()[:-1], "40 (0xe2)", "damaged UTF-8; drop the damaged bytes: < {path} iconv -f UTF-8 -c"),
        ("Война и мир".encode("cp1251"), "0 (0xc2)", "another encoding (file -i may tell which)"),
        (b"text \0 text", "5 (0x00)", "binary data, or text with NUL characters"),
        (b"PK\x03\x04\0\0\xff", "6 (0xff)", "a ZIP archive: unpack it first"),
    ],
)
def test_what_is_no_unicode_is_named_with_its_place_and_a_way_out(content, position, likely, tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError) as error:
        decoded(content, path)
    assert f"{path} is not UTF-8 at byte {position}. Likely {likely.format(path=path)}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_converts(tmp_path):
    path = tmp_path / "it's.txt.gz"
    path.write_bytes(gzip.compress(GERMAN.encode("cp1252")))
    with pytest.raises(UserError) as error:
        decoded(read(path), path)
    subprocess.run(["sh", "-c", str(error.value).split("convert it: ")[1]], check=True)
    assert (tmp_path / "it's.txt.utf8.txt").read_text() == GERMAN


def test_utf16_that_is_broken(tmp_path):
    with pytest.raises(UserError, match="is no text in UTF-16-LE at byte 4: repair it"):
        decoded(b"\xff\xfea\0\0\xd8b\0", tmp_path / "a.txt")
    with pytest.raises(UserError, match="is no text in UTF-16-LE at byte 4: repair it"):
        decoded(b"\xff\xfea\0\0\0b\0", tmp_path / "a.txt")


def test_rows_have_the_number_of_their_first_line(tmp_path):
    found = rows('a,b\n\n"1\n2",x\n3,"y"\n', ",", tmp_path)
    assert found == [(1, ["a", "b"]), (3, ["1\n2", "x"]), (5, ["3", "y"])]
    with pytest.raises(UserError, match="line 2: a quotation mark that is never closed"):
        rows('a,b\n1,"x\n2,y\n3,z\n', ",", tmp_path)
    assert rows('a,5" x 3"\nb,6"\n', ",", tmp_path)[1] == (2, ["b", '6"'])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "b"}\n{', "line 2: expected one JSON object a line"),
        (b"[1]\n", "line 1: expected one JSON object a line"),
        (b'{"a":' * 200_000, "line 1: expected one JSON object a line"),
        (b'{"b": "x"}\n{"c": 1}\n', "no such column. Its columns: b, c"),
        (b"", "no such column. Its columns: "),
        (b'{"a": "x\0"}', "NUL characters"),
    ],
)
def test_json_lines_that_are_none(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        column(content, tmp_path / "a.jsonl", "a")


def test_json_spells_half_characters(tmp_path):
    content = rb'{"a": "\ud83d\ude42 \ud83d", "b": [1]}'
    assert column(content, tmp_path / "a.jsonl", "a") == [(1, "🙂 \ufffd")]
    assert column(content, tmp_path / "a.jsonl", "b") == [(1, None)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_parquet_that_is_none(content, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    with pytest.raises(UserError, match=r"cannot read .*a.parquet \("):
        column(content, tmp_path / "a.parquet", "a")


def test_a_column_of_parquet_has_a_bound(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x" * 1_000] * 1_000}), tmp_path / "a.parquet")
    monkeypatch.setattr(reading, "MOST", 999_999)
    with pytest.raises(UserError, match="column a holds more than 999,999 characters"):
        column((tmp_path / "a.parquet").read_bytes(), tmp_path / "a.parquet", "a")


def test_tables_have_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_LINES", 3)
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(UserError, match="has more than 3 lines: use a part of it"):
            column(b"a\n\n\n\n", tmp_path / name, "a")
    with pytest.raises(UserError, match="has more than 3 lines: use a part of it"):
        smiles_of(b"C\n\n\n\n", tmp_path / "a.smi")
    pytest.importorskip("rdkit", reason="needs the extra molecules")
    lines, _ = smiles_of(b"," * 200_000 + b"C\n" + b"CC\n", tmp_path / "a.csv")  # columns without end
    assert lines[1] == (2, "CC")
