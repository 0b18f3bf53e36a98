import csv
import gzip
import hashlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import tyro

from jaxgen.config import TextDataConfig
from jaxgen.data.catalogue import RAW_TEXT
from jaxgen.data.prepare import find, prepare
from jaxgen.data.source import Spec, gather
from jaxgen.data.text import load_text
from jaxgen.data.vocabulary import bpe, byte, characters, vocabulary
from jaxgen.errors import UserError

TEXT = "".join(np.random.default_rng(0).choice(list("abc é日🙂\n"), 1003))


pairs = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs the package tokenizers")


def written(folder, text=TEXT, file="text.txt"):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(text.encode())
    return f"text:{folder / file}"


# Vocabularies


VOCABULARIES = [
    pytest.param(lambda: characters(TEXT), 8, np.uint8, id="characters"),
    pytest.param(lambda: characters("".join(map(chr, range(32, 400))) + TEXT), 371, np.uint16, id="many"),
    pytest.param(byte, 256, np.uint8, id="bytes"),
    pytest.param(lambda: bpe(TEXT, 256), 256, np.uint8, id="bpe-256", marks=pairs),
    pytest.param(lambda: bpe("to be or not to be " * 9, 264), 264, np.uint16, id="bpe", marks=pairs),
]


@pytest.mark.parametrize(("make", "size", "dtype"), VOCABULARIES)
def test_texts_come_back(make, size, dtype):
    serialised = make()
    words = vocabulary(serialised)
    assert words.size == size
    tokens = words.encode(TEXT)
    assert tokens.dtype == dtype
    assert tokens.max() < size
    assert words.decode(tokens) == words.decode(tokens.tolist()) == TEXT
    assert words.encode("").shape == (0,)
    assert words.decode([]) == ""
    # It lies in a file of JSON as a string, and another process reads the same from it.
    again = vocabulary(json.loads(json.dumps({"vocabulary": serialised}))["vocabulary"])
    assert again.name == words.name
    assert again.pieces == words.pieces
    np.testing.assert_array_equal(again.encode(TEXT), tokens)


@pytest.mark.parametrize(("make", "size", "dtype"), VOCABULARIES)
def test_text_streams_in_whole_characters(make, size, dtype):
    words = vocabulary(make())
    text = "é日🙂a é"
    decode = words.decoder()
    pieces = [decode([token]) for token in words.encode(text)]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert decode([], final=True) == ""


def test_bytes_wait_for_the_rest_of_a_character():
    decode = vocabulary(byte()).decoder()
    assert [decode([value]) for value in "é日🙂".encode()] == ["", "é", "", "", "日", "", "", "", "🙂"]
    assert decode(list("日".encode()[:2])) == ""
    assert decode([], final=True) == "\ufffd"
    decode = vocabulary(byte()).decoder()
    assert [decode([value]) for value in b"a\xe6b"] == ["a", "", "\ufffdb"]


def test_characters_are_numbered_in_their_order():
    words = vocabulary(characters("hello\nworld"))
    assert words.name == "8 characters"
    assert words.decode(range(8)) == "\ndehlorw"
    assert words.encode("wow\n").tolist() == [7, 5, 7, 0]


@pytest.mark.parametrize("unknown", ["x", "é", "A", "\x00", "🙂", "\udcff"])
def test_an_unknown_character_is_named(unknown):
    words = vocabulary(characters("hello\nworld"))
    with pytest.raises(UserError, match=r"of 8 characters \(such as 'd', 'e', 'h'.*--data.vocabulary bytes") as error:
        words.encode(f"hello{unknown}world")
    assert repr(unknown) in str(error.value)
    assert "\n" not in str(error.value)


def test_long_texts_are_encoded_piece_by_piece():
    text = "ab" * 2**19 + "é日" * 3
    words = vocabulary(characters(text))
    assert words.encode(text).tolist() == [0, 1] * 2**19 + [2, 3] * 3
    with pytest.raises(UserError, match="the character '!' is not in this vocabulary"):
        words.encode(text + "!")


def test_bytes_are_those_of_utf8_and_never_fail():
    words = vocabulary(byte())
    assert words.name == "bytes"
    assert words.encode("é!").tolist() == [0xC3, 0xA9, 0x21]
    assert words.decode([0xC3, 0x21]) == "\ufffd!"
    assert len(words.decode(range(256))) >= 128
    with pytest.raises(UserError, match=r"'\\udcff' is half a character"):
        words.encode("a\udcff")


@pairs
def test_byte_pairs_learn_what_repeats():
    serialised = bpe("the cat sat on the mat, the cat sat. " * 20, 266)
    words = vocabulary(serialised)
    assert words.name == "BPE of 266"
    assert b" the" in words.pieces
    assert words.pieces[:256] == tuple(bytes([value]) for value in range(256))
    assert len(words.encode("the cat sat")) <= 5
    assert words.decode(words.encode("日本語 — the cat")) == "日本語 — the cat"
    assert vocabulary(bpe("a", 1000)).size == 256  # nothing repeats
    # Learnt again elsewhere, it is the same: what was trained with it can be evaluated.
    program = "from jaxgen.data.vocabulary import bpe; print(bpe('the cat sat on the mat, the cat sat. ' * 20, 266))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == serialised


@pytest.mark.parametrize("size", [-1, 0, 255, 65_537])
def test_sizes_out_of_range(size):
    with pytest.raises(UserError, match=rf"--data.vocabulary-size {size}: expected 256 .* to 65,536"):
        bpe(TEXT, size)


@pairs
def test_without_tokenizers_byte_pairs_can_be_read_only(monkeypatch):
    serialised = bpe("to be or not to be " * 9, 264)
    tokens = vocabulary(serialised).encode("to be")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    words = vocabulary(serialised)
    assert words.decode(tokens) == "to be"
    for encode in (lambda: words.encode("to be"), lambda: bpe(TEXT, 300)):
        with pytest.raises(UserError, match=r"pip install tokenizers, or choose --data.vocabulary characters or bytes"):
            encode()


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "{}", '{"kind": "words"}', '{"kind": "bpe"}', '{"kind": "bpe", "merges": [["a", "日"]]}'],
)
def test_what_is_no_vocabulary(damaged):
    with pytest.raises(UserError, match=r"is no vocabulary .*expected one as training writes it"):
        vocabulary(damaged)


# Splits and windows


@pytest.mark.parametrize("kind", ["characters", "bytes", pytest.param("bpe", marks=pairs)])
def test_the_first_nine_tenths_are_to_train_on(kind, tmp_path):
    data = load_text(written(tmp_path), vocabulary=kind, vocabulary_size=280, context=16)
    words = vocabulary(data.vocabulary)
    train, test = words.encode(TEXT[:902]), words.encode(TEXT[902:])
    assert data.train.keys() == {"tokens"}
    assert data.train["tokens"].shape == (len(train) - 16, 17)
    assert data.train["tokens"].dtype == (np.uint8 if words.size <= 256 else np.uint16)
    for offset, window in enumerate(data.train["tokens"]):
        np.testing.assert_array_equal(window, train[offset : offset + 17])
    assert (data.test["length"] - 1).sum() == len(test) - 1
    assert data.classes == ()
    assert data.validation is None
    assert data.notice is None
    assert data.source == str(tmp_path / "text.txt")
    spec = data.spec
    assert spec.entries == {"tokens": ((17,), str(train.dtype))}
    assert spec.vocabulary == data.vocabulary
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


@pairs
def test_byte_pairs_are_learnt_from_what_is_trained_on(tmp_path):
    text = "of the cat " * 90 + "zyxw" * 20
    name = written(tmp_path, text)
    data = load_text(name, vocabulary="bpe", vocabulary_size=262, context=8)
    assert data.vocabulary == bpe(text[: int(len(text) * 0.9)], 262)
    assert b"zy" not in vocabulary(data.vocabulary).pieces


def test_training_windows_share_the_memory_of_the_text(tmp_path):
    tokens = load_text(written(tmp_path), context=16).train["tokens"]
    assert np.shares_memory(tokens[0], tokens[16])
    assert not np.shares_memory(tokens[0], tokens[17])
    first, end = np.lib.array_utils.byte_bounds(tokens)
    assert end - first == 902


@pytest.mark.parametrize("context", [1, 2, 16, 25, 33, 50, 99, 100])
def test_every_test_token_is_predicted_once(context, tmp_path):
    data = load_text(written(tmp_path), context=context)
    expected = vocabulary(data.vocabulary).encode(TEXT[902:])  # 101 tokens
    tokens, length = data.test["tokens"], data.test["length"]
    assert tokens.shape == (-(-100 // context), context + 1)
    assert tokens.dtype == np.uint8
    assert length.dtype == np.int32
    assert (length[:-1] == context + 1).all()
    assert length[-1] >= 2  # a window that predicts nothing is none
    predicted = np.concatenate([window[1:n] for window, n in zip(tokens, length, strict=True)])
    np.testing.assert_array_equal(predicted, expected[1:])
    np.testing.assert_array_equal(tokens[:, 0], expected[:-1:context])
    assert (tokens[-1, length[-1] :] == 0).all()


def test_batches_of_windows(tmp_path):
    data = load_text(written(tmp_path), context=16)
    indices = np.random.default_rng(0).integers(0, len(data), (3, 8))
    batch = gather(data.train, indices)["tokens"]
    assert batch.shape == (3, 8, 17)
    assert vocabulary(data.vocabulary).decode(batch[1, 2]) == TEXT[indices[1, 2] :][:17]


def test_the_digest_tells_texts_apart(tmp_path):
    def digest(text):
        return load_text(written(tmp_path, text), context=16).spec.digest

    original = digest(TEXT)
    assert digest(TEXT) == original
    for i in (0, 500, 901, 902, 1002):
        assert digest(TEXT[:i] + ("a" if TEXT[i] != "a" else "b") + TEXT[i + 1 :]) != original
    assert digest(TEXT.replace("a", "A")) != original  # the same tokens of another vocabulary


@pytest.mark.parametrize(("length", "context"), [(0, 4), (1, 4), (40, 4), (1003, 101)])
def test_too_short_a_text(length, context, tmp_path):
    name = written(tmp_path, TEXT[:length])
    with pytest.raises(UserError, match=rf"is too short: .*needs {context + 1} of each; choose a longer text or"):
        load_text(name, context=context)


def test_just_long_enough(tmp_path):
    data = load_text(written(tmp_path, TEXT[:50]), context=4)  # 45 and 5 characters
    assert len(data) == 41
    assert data.test["length"].tolist() == [5]


def test_options_out_of_range(tmp_path):
    with pytest.raises(UserError, match=r"unknown --data.vocabulary 'words': expected characters, bytes or bpe"):
        load_text(written(tmp_path), vocabulary="words")
    with pytest.raises(UserError, match=r"a context of 0 tokens: expected at least 1"):
        load_text(written(tmp_path), context=0)


# Files and folders


def test_a_folder_of_texts_in_the_order_of_their_paths(tmp_path):
    files = {"b/x.md": "second", "a.txt": "first ", "b/y.PY": "third\r\n", "c/z/z.txt": "日"}
    for file, text in files.items():
        written(tmp_path, text, file)
    for other in ("0.bin", ".git/x.txt", "b/.hidden.txt", "c/z.rst", "__MACOSX/a.txt"):
        written(tmp_path, "not this", other)
    (tmp_path / "d.txt").mkdir()
    data = load_text(f"text:{tmp_path}", vocabulary="bytes", context=1)
    text = "first \nsecond\nthird\n\n日"
    tokens = [*data.train["tokens"][:, 0], data.train["tokens"][-1, -1], *data.test["tokens"][:, 0]]
    assert vocabulary(data.vocabulary).decode([*tokens, data.test["tokens"][-1, -1]]) == text
    assert data.source == f"4 files in {tmp_path}"
    assert data.name == f"text:{tmp_path}"
    assert data.notice == (
        "CR or CRLF line ends replaced by LF (y.PY); left out 3 hidden or of the system (.git, __MACOSX, "
        "b/.hidden.txt); 2 of other formats (0.bin, c/z.rst)"
    )


def text_of(name, **options):
    data = load_text(name, vocabulary="bytes", context=1, **options)
    tokens = [*data.train["tokens"][:, 0], data.train["tokens"][-1, -1], *data.test["tokens"][:, 0]]
    return vocabulary(data.vocabulary).decode([*tokens, data.test["tokens"][-1, -1]]), data.notice


MARK, ENDS = "byte-order mark removed", "CR or CRLF line ends replaced by LF"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TEXT.encode(), None),
        (TEXT.encode("utf-8-sig"), f"{MARK} (a.txt)"),
        (TEXT.replace("\n", "\r\n").encode(), f"{ENDS} (a.txt)"),
        (TEXT.replace("\n", "\r").encode("utf-8-sig"), f"{MARK} (a.txt); {ENDS} (a.txt)"),
        (
            "\ufeff".encode("utf-16-le") + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
            f"{MARK} (a.txt); {ENDS} (a.txt)",
        ),
        (("\ufeff" + TEXT).encode("utf-16-be"), f"{MARK} (a.txt)"),
        (TEXT.encode("utf-32"), f"{MARK} (a.txt)"),
        (gzip.compress(TEXT.encode()), None),
        (gzip.compress(TEXT[:500].encode()) + gzip.compress(TEXT[500:].encode()), None),
    ],
)
def test_text_is_normalized_and_that_is_said(content, expected, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert text_of(f"text:{tmp_path}/a.txt") == text_of(f"text:{tmp_path}") == (TEXT, expected)


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path / "caf") + b"\xe9"
    os.mkdir(folder)
    with open(folder + b"/th\xe9.txt", "wb") as file:
        file.write(TEXT.replace("\n", "\r\n").encode())
    for name in ("", "/" + os.fsdecode(b"th\xe9.txt")):
        data = load_text(f"text:{os.fsdecode(folder)}{name}", context=1)
        assert data.notice == rf"{ENDS} (th\xe9.txt)"
        assert r"caf\xe9" in data.source
    data = load_text(f"text:{tmp_path}", context=1)
    assert data.source == f"1 files in {tmp_path}"


def rows_of(kind, texts):
    """A table of an identifier and texts, in one of the formats."""
    if kind == "jsonl":
        return "".join(f"{json.dumps({'id': i, 'Text': one})}\n\n" for i, one in enumerate(texts)).encode()
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="needs the package pyarrow")
        pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "Text": texts}), file)
        return file.getvalue()
    file = io.StringIO()
    delimiter = {"csv": ",", "semicolons.csv": ";", "tsv": "\t"}[kind]
    csv.writer(file, delimiter=delimiter).writerows([["id", "Text"], *enumerate(texts)])
    return file.getvalue().encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "semicolons.csv", "tsv", "jsonl", "parquet"])
def test_a_column_of_a_table(kind, packed, tmp_path):
    texts = ['first, or "1"', "two\nlines;\tand", None, "日" * 131_073]
    content = rows_of(kind, texts)
    path = tmp_path / (f"a.{kind}.gz" if packed else f"a.{kind}")
    path.write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "b.txt").write_text("not a table")
    expected = 'first, or "1"\ntwo\nlines;\tand\n' + "日" * 131_073
    said = "column text: left out 1 of 4 cells, which hold no text"
    assert text_of(f"text:{path}", column="text") == (expected, said)
    assert text_of(f"text:{tmp_path}", column="text") == (expected, f"{said}; left out 1 of other formats (b.txt)")
    with pytest.raises(UserError, match=r"--data.column texts: .* no such column, did you mean Text\? Its columns: id"):
        load_text(f"text:{path}", column="texts")


def test_a_table_read_as_plain_text_says_so(tmp_path):
    name = written(tmp_path, TEXT, "a.csv")
    assert load_text(name).notice == "read as plain text: --data.column NAME reads one column of this table"
    with pytest.raises(UserError, match=r"--data.column x: tiny_shakespeare is no table"):
        load_text("tiny_shakespeare", column="x")
    with pytest.raises(UserError, match=r"--data.column x: expected a table \(.csv, .tsv, .jsonl, .ndjson, .parquet\)"):
        load_text(written(tmp_path), column="x")
    with pytest.raises(UserError, match=r"expected files \(.csv, .* found none"):
        load_text(written(tmp_path / "b").removesuffix("/text.txt"), column="x")


def test_parquet_wants_a_column_and_a_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(rows_of("parquet", ["a"]))
    with pytest.raises(UserError, match=r"is a table: name one of its columns with --data.column. Its columns: id"):
        load_text(f"text:{tmp_path}/a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet needs the package pyarrow .* or convert the file to CSV: duckdb -c"):
        load_text(f"text:{tmp_path}/a.parquet", column="text")


def test_texts_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}/nowhere \(No such file"):
        load_text(f"text:{tmp_path}/nowhere")
    written(tmp_path, "a picture", "a.png")
    with pytest.raises(UserError, match=rf"expected files \(.txt, .md, .py\) in {tmp_path}, found none"):
        load_text(f"text:{tmp_path}")


def test_unknown_names_get_suggestions():
    with pytest.raises(UserError, match=r"unknown text 'tiny_shakespear', did you mean tiny_shakespeare\?"):
        load_text("tiny_shakespear")
    with pytest.raises(UserError, match=r"unknown text 'zzz': Expected tiny_shakespeare, python_source, or text:PATH"):
        load_text("zzz")


# python_source, and falling back to it


def test_python_source_is_this_pythons(tmp_path):
    data = load_text("python_source", context=32)
    assert data.name == "python_source"
    assert data.notice is None
    assert sys.version.split()[0] in data.source
    assert "PSF License" in data.source
    assert len(data) > 1_000_000
    words = vocabulary(data.vocabulary)
    text = words.decode(np.append(data.train["tokens"][:, 0], data.train["tokens"][-1, 1:]))
    for line in ("class ArgumentParser(", "class Fraction(numbers.Rational):", "class CalledProcessError("):
        assert line in text
    assert "build_time_vars = {" not in text  # where and how this Python was built
    assert load_text("python_source", context=32).spec.digest == data.spec.digest


@pytest.fixture
def offline(monkeypatch):
    """Tiny Shakespeare lies at a closed port of the loopback interface."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setitem(RAW_TEXT, "tiny_shakespeare", RAW_TEXT["tiny_shakespeare"]._replace(url=url))


def test_offline_falls_back_with_a_notice(offline, tmp_path):
    data = load_text("tiny_shakespeare", data_dir=tmp_path / "tfds")
    assert data.name == "python_source"
    for part in (
        "tiny_shakespeare",
        "python_source",
        str(tmp_path / "tfds"),
        "refused",
        "data prepare tiny_shakespeare --from DIR",
        "--data.strict",
    ):
        assert part in data.notice
    assert "\n" not in data.notice
    assert not (tmp_path / "tfds").exists()
    assert data.spec.digest == load_text("python_source").spec.digest
    with pytest.raises(UserError, match=r"neither prepared in .*refused.*--data.strict forbids training on python_sou"):
        load_text("tiny_shakespeare", data_dir=tmp_path / "tfds", strict=True)


def test_a_prepared_text_is_read_whole(offline, tmp_path, monkeypatch):
    written(tmp_path, TEXT, "raw/input.txt")
    sums = {"input.txt": hashlib.sha256(TEXT.encode()).hexdigest()}
    monkeypatch.setitem(RAW_TEXT, "tiny_shakespeare", RAW_TEXT["tiny_shakespeare"]._replace(sha256=sums))
    prepare("tiny_shakespeare", raw_dir=tmp_path / "raw", data_dir=tmp_path / "tfds")
    data = load_text("tiny_shakespeare", data_dir=tmp_path / "tfds", strict=True, context=16)
    same = load_text(f"text:{tmp_path}/raw/input.txt", context=16)
    assert data.name == "tiny_shakespeare"
    assert "Karpathy" in data.source
    assert "MIT" in data.source
    assert data.vocabulary == same.vocabulary
    np.testing.assert_array_equal(data.train["tokens"], same.train["tokens"])
    np.testing.assert_array_equal(data.test["tokens"], same.test["tokens"])

    folder = find("tiny_shakespeare", tmp_path / "tfds")
    next(folder.glob("*-test.array_record*")).write_bytes(b"")
    with pytest.raises(UserError, match=f"tiny_shakespeare in {folder} cannot be read .*prepare the data set again"):
        load_text("tiny_shakespeare", data_dir=tmp_path / "tfds")


# Flags


def test_flags_reach_the_text(tmp_path):
    words = ["--name", written(tmp_path), "--vocabulary", "bytes"]
    config = tyro.cli(TextDataConfig, args=words)
    data = config.load(context=9)
    assert data.train["tokens"].shape[1] == 10
    assert vocabulary(data.vocabulary).name == "bytes"
    assert TextDataConfig().name == "tiny_shakespeare"
    with pytest.raises(UserError, match=r"--data.vocabulary-size 12"):
        TextDataConfig(name=words[1], vocabulary="bpe", vocabulary_size=12).load(context=9)
