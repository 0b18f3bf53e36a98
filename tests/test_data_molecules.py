import gzip
import hashlib
import importlib.util
import io
import json
import re
import sys
import tarfile

import msgspec
import numpy as np
import pytest

from jaxgen.data import molecules as source
from jaxgen.data.catalogue import RAW_MOLECULES
from jaxgen.data.molecules import known, load_molecules, to_smiles
from jaxgen.data.prepare import prepare
from jaxgen.data.source import Spec
from jaxgen.data.vocabulary import START, STOP, molecular, pieces_of, vocabulary
from jaxgen.errors import UserError
from jaxgen.metrics.molecules import PROPERTIES, canonical, properties

missing = [name for name in ("rdkit", "selfies") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

CHAINS = ["C" * n + end for n in range(1, 9) for end in ("", "O", "N", "Cl", "Br", "C(=O)O", "c1ccccc1", "[N+](C)(C)C")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source._kept.cache_clear()
    return tmp_path / "cache" / "jaxgen" / "molecules"


def written(folder, lines=CHAINS, file="mine.smi"):
    (folder / file).write_text("".join(f"{line}\n" for line in lines))
    return f"smiles:{folder / file}"


def all_of(data):
    words = vocabulary(data.vocabulary)
    return [to_smiles(split["tokens"], words) for split in (data.train, data.test)]


# Pieces ---------------------------------------------------------------------------------------------------------------


def test_pieces_of_smiles():
    text = r"C/C=C\[C@@H](Br)c1cn[nH]c1.[Na+]%10Cl@"
    expected = ["C", "/", "C", "=", "C", "\\", "[C@@H]", "(", "Br", ")", "c", "1", "c", "n", "[nH]", "c", "1"]
    assert pieces_of("smiles", text) == [*expected, ".", "[Na+]", "%10", "Cl", "@"]
    for broken in ("", "CX", "C C", "[CH", "é"):
        assert pieces_of("smiles", broken) is None
    assert pieces_of("selfies", "CC=O") == ["[C]", "[C]", "[=O]"]
    assert pieces_of("selfies", "FI(F)(F)(F)(F)(F)(F)F") is None  # more bonds than SELFIES allows


@pytest.mark.parametrize("representation", ["smiles", "selfies"])
def test_molecules_come_back(representation):
    some = ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "BrCCCl"]
    serialised = molecular(representation, [piece for one in some for piece in pieces_of(representation, one)])
    words = vocabulary(json.loads(json.dumps(serialised)))
    assert words.pieces[START] == words.pieces[STOP] == b""
    for one in some:
        tokens = words.encode(one)
        assert tokens.dtype == np.uint8
        assert tokens.min() >= 2
        assert canonical([words.decode([START, *tokens, STOP, STOP])]) == canonical([one])
    with pytest.raises(UserError, match=r"'.*F.*' of 'CF' is none of the .* pieces that were trained on"):
        words.encode("CF")
    nonsense = {"smiles": "C C", "selfies": "FI(F)(F)(F)(F)(F)(F)F"}[representation]
    with pytest.raises(UserError, match=f"{re.escape(repr(nonsense))} cannot be written in {representation.upper()}"):
        words.encode(nonsense)


def test_no_selfies_is_invalid():
    words = vocabulary(molecular("selfies", pieces_of("selfies", "CC(=O)Oc1ccc(N)cc1C#N")))
    rng = np.random.default_rng(0)
    drawn = [words.decode(rng.integers(2, words.size, 12)) for _ in range(200)]
    assert all(canonical([one])[0] for one in drawn if one)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("representation", ["smiles", "selfies"])
def test_a_file_becomes_tokens_and_properties(representation, tmp_path):
    data = load_molecules(written(tmp_path), representation=representation)
    expected = canonical(CHAINS)
    train, test = all_of(data)
    assert sorted(canonical([*train, *test])) == sorted(set(expected))
    for arrays, smiles in ((data.train, train), (data.test, test)):
        assert arrays["tokens"].dtype == np.uint8
        assert arrays["length"].dtype == np.int32
        assert arrays["properties"].dtype == np.float32
        assert (arrays["tokens"][:, 0] == START).all()
        for row, length in zip(arrays["tokens"], arrays["length"], strict=True):
            assert (row[length - 1 :] == STOP).all()
            assert (row[1 : length - 1] > STOP).all()
        mean, std = np.array([data.properties[name] for name in PROPERTIES]).T
        np.testing.assert_allclose(arrays["properties"] * std + mean, properties(smiles), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data.train["properties"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train["properties"].std(0), 1, rtol=1e-5)
    assert data.notice is None
    spec = data.spec
    assert spec.properties == data.properties
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec
    assert known(data.train, vocabulary(data.vocabulary)) == set(canonical(train))


def test_the_split_is_by_hash_whatever_else_comes(tmp_path):
    whole = all_of(load_molecules(written(tmp_path)))
    half = all_of(load_molecules(written(tmp_path, [f"{one} name {i}" for i, one in enumerate(CHAINS)][::-2])))
    assert set(half[1]) <= set(whole[1])
    assert set(half[0]) <= set(whole[0])
    assert 0 < len(whole[1]) < len(whole[0])
    draws = {one: int(hashlib.sha256(one.encode()).hexdigest()[:8], 16) / 2**32 for one in whole[0] + whole[1]}
    assert set(whole[1]) == {one for one, draw in draws.items() if draw < 0.1}


def test_tables_and_packed_files(tmp_path):
    name = written(tmp_path)
    expected = load_molecules(name).spec.digest
    rows = ["id,SMILES,note", *(f'{i},"{one}","a, b"' for i, one in enumerate(CHAINS))]
    assert load_molecules(written(tmp_path, rows, "mine.csv")).spec.digest == expected
    assert load_molecules(written(tmp_path, ["smiles\tid", *(f"{one}\t7" for one in CHAINS)])).spec.digest == expected
    rows = ["name\tsmiles\tid, note", *(f"two words\t{one}\t7, x" for one in CHAINS)]
    assert load_molecules(written(tmp_path, rows)).spec.digest == expected
    (tmp_path / "mine.smi.gz").write_bytes(gzip.compress("\n\n".join(CHAINS).encode()))
    assert load_molecules(f"smiles:{tmp_path}/mine.smi.gz").spec.digest == expected
    (tmp_path / "mine.smi.gz").write_bytes(gzip.compress(b"CC\nCO\n")[:-5])
    with pytest.raises(UserError, match=r"cannot read .*mine\.smi\.gz"):
        load_molecules(f"smiles:{tmp_path}/mine.smi.gz")


def test_broken_lines_are_counted_and_left_out(tmp_path):
    lines = [*CHAINS[:10], "C(C", "", *CHAINS[10:], "not a molecule"]
    data = load_molecules(written(tmp_path, lines))
    assert data.notice.startswith(f"left out 2 of {len(CHAINS) + 2} lines of {tmp_path}/mine.smi")
    assert data.notice.endswith(": 11, 67")
    assert data.spec.digest == load_molecules(written(tmp_path)).spec.digest
    with pytest.raises(UserError, match=r"found 2 .* in 5 lines, of which 3 are no SMILES, first line 1: expected"):
        load_molecules(written(tmp_path, ["(", "CC", "x", "CO", "C("]))
    load_molecules(written(tmp_path, ["(", "CC", "CO", "C("]))  # half of them
    for lines in ([], ["CC"], ["CCO", "OCC"]):
        with pytest.raises(UserError, match=r"expected at least two"):
            load_molecules(written(tmp_path, lines))
    with pytest.raises(UserError, match=r"cannot read nowhere \(No such file"):
        load_molecules("smiles:nowhere")


TWO = list(zip(CHAINS, [f"CHEMBL{i}" for i in range(len(CHAINS))], strict=True))
TITLES = ["ChEMBL ID", "Name", "Type", "Smiles", "Inchi Key"]


def semicolons(row):
    return ";".join(f'"{cell}"' for cell in row)


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        ([f"{i},{one}" for one, i in TWO], "number 2"),
        (["id,canonical_smiles,pIC50", *(f"{i},{one},6.5" for one, i in TWO)], "'canonical_smiles' (2 of 3)"),
        ([semicolons(TITLES), *(semicolons([i, "N", "C", one, "A-B"]) for one, i in TWO)], "'Smiles' (4 of 5)"),
        (["ID\tStructure\tElement", *(f"{i}\t{one}\tN" for one, i in TWO)], "'Structure' (2 of 3)"),
        ([f"{i} {one}" for one, i in TWO], "number 2"),
        ([f"{i} of the test set {one}" for one, i in TWO], "at the end"),
        ([f"{one} {i}, 2,3-di;test" for one, i in TWO], ""),
        (["SMILES Name ", *(f"{one} {i}" for one, i in TWO)], "'SMILES' (1 of 2)"),
        ([f"{one} |$;C,5;$,c:1| {i}" for one, i in TWO], ""),
        (["name,smiles", *(f'{i},"{one} |$a;b$,c:1|"' for one, i in TWO)], "'smiles' (2 of 2)"),
        (["smiles,id,parent_smiles", *(f"{i},{i},{one}" for one, i in TWO)], "'parent_smiles' (3 of 3)"),
        ([f'"{one}"' for one in CHAINS], ""),
        (["SMILES", *CHAINS], ""),
        (["N,text,smiles", *(f'{i},"{"x" * 140_000 * (one == "C")}",{one}' for one, i in TWO)], "'smiles' (3 of 3)"),
    ],
)
def test_the_column_that_parses_is_found_and_named(lines, chosen, tmp_path):
    expected = load_molecules(written(tmp_path)).spec.digest
    for packed in (False, True):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            content = "\r\n".join(lines).encode(encoding)
            (tmp_path / "mine").write_bytes(gzip.compress(content) if packed else content)
            data = load_molecules(f"smiles:{tmp_path}/mine")
            assert data.notice == (f"SMILES are in column {chosen}" if chosen else None)
            assert data.spec.digest == expected


def test_a_column_can_be_named(tmp_path):
    lines = ["smiles,Other,n", *(f"C{one},{one},7" for one in CHAINS)]
    expected = load_molecules(written(tmp_path)).spec.digest
    for column in ("other", "Other", "2"):
        data = load_molecules(written(tmp_path, lines), column=column)
        assert data.spec.digest == expected
        assert data.notice == "SMILES are in column 'Other' (2 of 3)"
    for column in ("othr", "4", "0", "-1"):
        with pytest.raises(UserError, match=rf"--data.column {column}: .*no such column.* columns: smiles, Other, n"):
            load_molecules(written(tmp_path, lines), column=column)
    with pytest.raises(UserError, match=r"found 0 .* in 64 lines of column 'n' \(3 of 3\), of which 64 are no"):
        load_molecules(written(tmp_path, lines), column="n")
    with pytest.raises(UserError, match=r"--data.column x: nci is no table"):
        load_molecules("nci", column="x")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"s": one}) + "\n" for one in CHAINS))
    assert load_molecules(f"smiles:{tmp_path}/mine.jsonl", column="S").spec.digest == expected
    with pytest.raises(UserError, match=r"is a table: name one of its columns with --data.column. Its columns: s"):
        load_molecules(f"smiles:{tmp_path}/mine.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"smiles\n", b"id,smiles\n", b"CC\n", b"\xff" * 99, b"a\0" * 99])
def test_files_without_molecules(content, tmp_path):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"expected at least two|NUL|UTF-16"):
        load_molecules(f"smiles:{tmp_path}/mine.csv")


def test_devices_and_bombs_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read /dev/zero \(expected a regular file"):
        load_molecules("smiles:/dev/zero")
    # RDKit's recursion would end the process at the first of these.
    data = load_molecules(written(tmp_path, ["C" * 100_000, "C(" * 50_000, *CHAINS]))
    assert data.notice.endswith("which are no SMILES: 1, 2")
    with pytest.raises(UserError, match="line 2: a quotation mark that is never closed"):
        load_molecules(written(tmp_path, ["smiles,name", 'C,"x', *(f"{one},y" for one in CHAINS)]))


def test_salts_isotopes_and_atom_maps_are_kept_and_counted(tmp_path):
    lines = [*CHAINS, "CCO.[Na+].[Cl-]", "CC(=O)[O-].[Na+]", "[Na+].[O-]C(C)=O", "[13CH4]", "[CH3:1][OH:2]"]
    data = load_molecules(written(tmp_path, lines))
    assert data.notice == (
        "2 molecules of several fragments (salts, mixtures), kept (--data.largest-fragment keeps one); "
        "1 molecules with labeled isotopes, kept; 1 molecules with atom-map numbers, kept"
    )
    assert {"CC(=O)[O-].[Na+]", "[13CH4]", "[CH3:1][OH:2]"} <= {*canonical([*all_of(data)[0], *all_of(data)[1]])}
    data = load_molecules(written(tmp_path, lines), largest_fragment=True)
    assert data.notice.startswith("2 molecules of several fragments (salts, mixtures), only the largest is kept; 1 mol")
    every = [*all_of(data)[0], *all_of(data)[1]]
    assert not any("." in one for one in every)
    assert {"CC(=O)[O-]", "CCO"} <= set(every)
    assert len(every) == len(set(every)) == len(CHAINS) + 3  # ethanol was there


def test_properties_are_computed_once(tmp_path, cache, monkeypatch):
    name = written(tmp_path)
    expected = load_molecules(name).spec.digest
    (kept,) = cache.iterdir()
    source._kept.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(source, "described", lambda *_, **__: pytest.fail("they were kept"))
        assert load_molecules(name).spec.digest == expected
    kept.write_bytes(kept.read_bytes()[:-99])  # damaged, they are computed again
    source._kept.cache_clear()
    assert load_molecules(name).spec.digest == expected
    assert kept.stat().st_size > 99


@pytest.mark.parametrize("representation", ["smiles", "selfies"])
def test_other_spellings_are_the_same_molecules(representation, tmp_path):
    plain = load_molecules(written(tmp_path), representation=representation)
    data = load_molecules(written(tmp_path), representation=representation, spellings=3)
    n, words = len(plain), vocabulary(data.vocabulary)
    assert len(data) == 4 * n
    smiles = to_smiles(data.train["tokens"], words)
    first = to_smiles(plain.train["tokens"], vocabulary(plain.vocabulary))
    assert smiles[:n] == first
    assert canonical(smiles) == canonical(first) * 4
    assert len(set(smiles)) > 2 * n
    np.testing.assert_array_equal(data.train["properties"], np.tile(plain.train["properties"], (4, 1)))
    assert len(data.test["tokens"]) == len(plain.test["tokens"])
    assert known(data.train, words, 3) == set(canonical(first))
    again = load_molecules(written(tmp_path), representation=representation, spellings=3)
    assert again.spec.digest == data.spec.digest


def test_long_ones_are_left_out_and_said(tmp_path):
    data = load_molecules(written(tmp_path), longest=6)
    lengths = np.concatenate([data.train["length"], data.test["length"]])
    assert lengths.max() == 8 == data.train["tokens"].shape[1]
    left = len(CHAINS) - len(lengths)
    assert data.source.endswith(f"; without {left} molecules of more than 6 tokens")
    assert data.notice == f"left out {left} molecules of more than 6 tokens (--data.longest None keeps them)"
    both = load_molecules(written(tmp_path, [*CHAINS, "C(C"]), longest=6)
    assert both.notice.endswith(f"which are no SMILES: 65; {data.notice}")
    with pytest.raises(UserError, match="are left, expected at least one of each"):
        load_molecules(written(tmp_path), longest=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"representation": "inchi"}, "unknown --data.representation 'inchi': expected smiles or selfies"),
        ({"spellings": -1}, "--data.spellings -1"),
        ({"longest": 0}, "--data.longest 0"),
        ({"name": "qm8"}, r"unknown molecules 'qm8', did you mean qm9\?"),
        ({"name": "chembl"}, "unknown molecules 'chembl': Expected qm9, zinc250k, nci, or smiles:PATH"),
    ],
)
def test_options_out_of_range(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_molecules(**{"name": written(tmp_path)} | options)


def test_a_token_that_never_ends_is_no_molecule():
    words = vocabulary(molecular("smiles", "CO"))
    tokens = np.array([[START, 2, 3, STOP, STOP], [START, 2, 2, 2, 3], [START, STOP, STOP, STOP, STOP]])
    assert to_smiles(tokens, words) == ["CO", "", ""]


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rdkit", None)
        with pytest.raises(UserError, match="pip install rdkit"):
            load_molecules(written(tmp_path))
    monkeypatch.setitem(sys.modules, "selfies", None)
    with pytest.raises(UserError, match=r"pip install selfies, or choose --data.representation smiles"):
        load_molecules(written(tmp_path), representation="selfies")


# Prepared data sets ---------------------------------------------------------------------------------------------------


def packed(lines):
    """A compressed archive of one file, as it is published."""
    buffer, content = io.BytesIO(), "".join(f"{line}\n" for line in lines).encode()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("zinc.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("qm9", "qm9_smiles.txt", "\n".join(CHAINS).encode()),
        ("qm9", "qm9_smiles.txt.gz", gzip.compress("\n".join(CHAINS).encode())),
        ("zinc250k", "zinc.txt.gz", packed(CHAINS)),
        ("zinc250k", "zinc250k.csv", "\n".join(["smiles,logP", *(f"{one},0.0" for one in CHAINS)]).encode()),
    ],
)
def test_a_prepared_set_is_the_file(name, file, content, tmp_path, monkeypatch):
    raw, published = tmp_path / "raw", RAW_MOLECULES[name]
    raw.mkdir()
    (raw / file).write_bytes(content)
    of = gzip.decompress(content) if file == "qm9_smiles.txt.gz" else content
    monkeypatch.setitem(
        RAW_MOLECULES, name, published._replace(sha256={next(iter(published.sha256)): published.digest(of)})
    )
    prepare(name, raw_dir=raw, data_dir=tmp_path / "tfds")
    data, same = load_molecules(name, data_dir=tmp_path / "tfds", strict=True), load_molecules(written(tmp_path))
    assert [sorted(split) for split in all_of(data)] == [sorted(split) for split in all_of(same)]
    by_tokens = {
        row.tobytes(): values for row, values in zip(same.train["tokens"], same.train["properties"], strict=True)
    }
    for row, values in zip(data.train["tokens"], data.train["properties"], strict=True):
        np.testing.assert_allclose(values, by_tokens[row.tobytes()], atol=1e-4)
    assert data.source == RAW_MOLECULES[name].credit


def test_molecules_are_the_same_however_they_are_packed():
    digest = RAW_MOLECULES["zinc250k"].digest
    table = "\n".join(["smiles,logP", *(f"{one},0.0" for one in CHAINS)]).encode()
    assert digest(packed(CHAINS)) == digest(table) == digest(gzip.compress(table)) == digest("\n".join(CHAINS).encode())
    assert digest(packed(CHAINS[1:])) != digest(table)
    assert "no molecules" in digest(packed(CHAINS)[:40])
    assert "no molecules" in digest(b"")


def test_offline_falls_back_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    for name in ("qm9", "zinc250k"):
        monkeypatch.setitem(RAW_MOLECULES, name, RAW_MOLECULES[name]._replace(url="http://127.0.0.1:9/"))
    with pytest.raises(UserError, match=r"data prepare qm9 --from DIR; --data.strict forbids training on nci instead"):
        load_molecules("qm9", data_dir=tmp_path / "tfds", strict=True)
    monkeypatch.setattr(
        source, "_nci", lambda _: (source._splits(source.described([(1, "CC"), (2, "CO"), (3, "CN")])), "three")
    )
    data = load_molecules("zinc250k", data_dir=tmp_path / "tfds")
    assert data.name == "nci"
    assert data.notice.startswith("using nci, 5,000 molecules inside RDKit, instead of zinc250k: ")
    assert "\n" not in data.notice


def test_nci_lies_inside_rdkit(monkeypatch):
    """Of which some, since the properties of all of them take long."""
    described = source.described
    monkeypatch.setattr(source, "described", lambda lines, **options: described(lines[:300], **options))
    data = load_molecules("nci", longest=60)
    assert data.name == "nci"
    assert 200 < len(data) < 300
    assert "National Cancer Institute" in data.source
