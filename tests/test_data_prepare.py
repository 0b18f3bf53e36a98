"""Preparation and download, on tiny files of the real formats; the real files where JAXGEN_TEST_DATA points at them."""

import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest

from jaxgen.data import catalogue, load_images
from jaxgen.data import prepare as preparation
from jaxgen.data.catalogue import RAW, RAW_AUDIO, RAW_MOLECULES, RAW_TEXT
from jaxgen.data.prepare import UnavailableError, download, fetch, find, prepare, prepared
from jaxgen.data.text import load_text
from jaxgen.data.vocabulary import vocabulary as rebuilt
from jaxgen.errors import UserError

SIZES = {"train": 23, "validation": 5, "test": 7}


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(params=["mnist", "fashion_mnist", "binarized_mnist"])
def name(request):
    return request.param


@pytest.fixture
def raw(name, tmp_path, monkeypatch):
    """A folder of tiny raw files, whose sums stand in the table; (folder, {split: images})."""
    rng = np.random.default_rng(0)
    folder, images = tmp_path / "raw", {}
    folder.mkdir()
    for split, files in RAW[name].splits.items():
        n = SIZES[split]
        if name == "binarized_mnist":
            images[split] = rng.integers(0, 2, (n, 28, 28), np.uint8)
            rows = [" ".join(map(str, row)) + "\n" for row in images[split].reshape(n, 784)]
            contents = ["".join(rows).encode()]
        else:
            images[split] = rng.integers(0, 256, (n, 28, 28), np.uint8)
            contents = [gzip.compress(idx(array)) for array in (images[split], np.arange(n, dtype=np.uint8) % 10)]
        for file, content in zip(files, contents, strict=True):
            (folder / file).write_bytes(content)
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in RAW[name].sha256}
    monkeypatch.setitem(RAW, name, RAW[name]._replace(sha256=sums))
    return folder, images


def same_images(found, expected):
    """Equal as sets: TFDS shuffles the examples of a split."""
    as_rows = lambda images: sorted(image.tobytes() for image in images)  # noqa: E731
    return as_rows(found) == as_rows(expected)


def test_prepared_data_load_as_they_were(name, raw, tmp_path, capfd):
    folder, images = raw
    written = prepare(name, raw_dir=folder, data_dir=tmp_path / "tfds")
    assert written == tmp_path / "tfds" / name / RAW[name].version == find(name, tmp_path / "tfds")
    assert capfd.readouterr() == ("", f"preparing {name} in {tmp_path / 'tfds'}\n")
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == [name]

    data = load_images(name, data_dir=tmp_path / "tfds", strict=True)
    assert data.name == name
    assert data.notice is None
    assert data.source
    for split, expected in images.items():
        arrays = getattr(data, split)
        assert arrays["image"].shape == (SIZES[split], 28, 28, 1)
        assert arrays["image"].dtype == np.uint8
        assert same_images(arrays["image"], expected * 255 if name == "binarized_mnist" else expected)
        if name == "binarized_mnist":
            assert arrays.keys() == {"image"}
            assert data.classes == ()
        else:
            assert arrays["label"].dtype == np.int32
            assert len(data.classes) == 10
            by_image = {image.tobytes(): i % 10 for i, image in enumerate(expected)}
            assert [by_image[image.tobytes()] for image in arrays["image"]] == arrays["label"].tolist()
    assert (data.validation is None) == (name != "binarized_mnist")


def test_prepared_data_are_not_prepared_again(name, raw, tmp_path):
    written = prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds")
    assert prepare(name, raw_dir=tmp_path, data_dir=tmp_path / "tfds") == written
    with pytest.raises(UserError, match=r"--from .*/nowhere: there is no such folder; expected the folder of "):
        prepare(name, raw_dir=tmp_path / "nowhere", data_dir=tmp_path / "tfds")
    for path in written.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(UserError, match=r"is not stored as array_record: delete this folder and prepare"):
        prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds")


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_without_array_record_nothing_is_prepared_and_that_is_said(name, raw, tmp_path, monkeypatch):
    def write(*args):
        raise ModuleNotFoundError("No module named 'array_record'")

    monkeypatch.setattr("jaxgen.data.prepare._write", write)  # TFDS keeps hold of what it once imported
    with pytest.raises(UserError, match=r"cannot write mnist without array_record .*: pip install array_record"):
        prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds")
    assert find(name, tmp_path / "tfds") is None


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_plain_tfds_reads_it_without_tensorflow(name, raw, tmp_path):
    prepare(name, raw_dir=raw[0], data_dir=tmp_path)
    program = """
import sys
import tensorflow_datasets as tfds
source = tfds.data_source("mnist", split="train", data_dir=sys.argv[1])
stock = tfds.builder("mnist", data_dir=sys.argv[1])
assert stock.is_prepared() and repr(stock.info.features) == repr(type(stock)._info(stock).features)
print(len(source), source[0]["image"].shape, source[0]["image"].dtype, 0 <= source[0]["label"] < 10)
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "23 (28, 28, 1) uint8 True"


@pytest.mark.parametrize("name", ["binarized_mnist"], indirect=True)
def test_packed_text_is_accepted_and_truncation_is_named(name, raw, tmp_path):
    folder, _ = raw
    for file in RAW[name].sha256:
        (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
        (folder / file).unlink()
    packed = folder / "binarized_mnist_test.amat.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"cannot read {packed} .*get it again from"):
        prepare(name, raw_dir=folder, data_dir=tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()
    packed.write_bytes(whole)
    assert prepare(name, raw_dir=folder, data_dir=tmp_path / "tfds").is_dir()


def test_a_truncated_file_is_named_and_nothing_is_written(name, raw, tmp_path):
    folder, _ = raw
    file = RAW[name].splits["test"][0]
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:-7])
    with pytest.raises(UserError) as error:
        prepare(name, raw_dir=folder, data_dir=tmp_path / "tfds")
    found = hashlib.sha256(whole[:-7]).hexdigest()
    for part in (str(folder / file), RAW[name].sha256[file], found, f"{len(whole) - 7} bytes"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tfds").exists()


def test_a_missing_file_is_named(name, raw, tmp_path):
    file = RAW[name].splits["train"][0]
    (raw[0] / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing: {name} is prepared from"):
        prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds")


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_preparation_leaves_nothing_that_passes_for_whole(
    name, raw, tmp_path, monkeypatch, interruption
):
    def examples(*contents):
        yield from itertools.islice(RAW["fashion_mnist"].examples(*contents), 1)
        raise interruption

    with monkeypatch.context() as patch:
        patch.setitem(RAW, name, RAW[name]._replace(examples=examples))
        with pytest.raises((KeyboardInterrupt, UserError)) as error:
            prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds")
    if error.type is UserError:
        assert "No space left on device" in str(error.value)
    assert [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()] == []
    assert find(name, tmp_path / "tfds") is None
    assert prepare(name, raw_dir=raw[0], data_dir=tmp_path / "tfds").is_dir()


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_a_killed_preparation_does_not_pass_for_whole(name, raw, tmp_path):
    written = prepare(name, raw_dir=raw[0], data_dir=tmp_path)
    written.rename(written.with_name("incomplete.A1B2C3_3.0.1"))  # as TFDS names it until the last moment
    assert find(name, tmp_path) is None
    assert prepared(tmp_path) == {}


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_an_unwritable_folder_is_named(name, raw, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write mnist to {tmp_path / 'file' / 'tfds'}"):
        prepare(name, raw_dir=raw[0], data_dir=tmp_path / "file" / "tfds")


# Texts


@pytest.fixture
def raw_text(tmp_path, monkeypatch):
    """A folder with a small text in place of Tiny Shakespeare; (folder, text)."""
    text = "".join(map(chr, np.random.default_rng(0).integers(ord("à"), ord("ö"), 137)))  # 123, 7 and 7 characters
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "input.txt").write_text(text)
    sums = {"input.txt": hashlib.sha256(text.encode()).hexdigest()}
    monkeypatch.setitem(RAW_TEXT, "tiny_shakespeare", RAW_TEXT["tiny_shakespeare"]._replace(sha256=sums))
    return folder, text


def test_a_text_is_prepared_as_tfds_does_without_tensorflow(raw_text, tmp_path, capfd):
    folder, text = raw_text
    written = prepare("tiny_shakespeare", raw_dir=folder, data_dir=tmp_path / "tfds")
    assert written == tmp_path / "tfds" / "tiny_shakespeare" / "1.0.0" == find("tiny_shakespeare", tmp_path / "tfds")
    assert capfd.readouterr() == ("", f"preparing tiny_shakespeare in {tmp_path / 'tfds'}\n")
    program = """
import json, sys
import tensorflow_datasets as tfds
splits = ("train", "validation", "test")
sources = [tfds.data_source("tiny_shakespeare", split=split, data_dir=sys.argv[1]) for split in splits]
stock = tfds.builder("tiny_shakespeare", data_dir=sys.argv[1])
assert stock.is_prepared() and repr(stock.info.features) == repr(type(stock)._info(stock).features)
print(json.dumps([[example["text"].decode() for example in source] for source in sources]))
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(tmp_path / "tfds")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Of 137 characters, 0.9 are 123.3; of the other 14, a half is 7.
    assert json.loads(done.stdout) == [[text[:123]], [text[123:130]], [text[130:]]]


def test_a_truncated_text_is_named_and_nothing_is_written(raw_text, tmp_path):
    file = raw_text[0] / "input.txt"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{file} is truncated or not the right file: expected sha256") as error:
        prepare("tiny_shakespeare", raw_dir=raw_text[0], data_dir=tmp_path / "tfds")
    assert RAW_TEXT["tiny_shakespeare"].sha256["input.txt"] in str(error.value)
    assert not (tmp_path / "tfds").exists()


def packed(kind, content):
    """Some bytes, gzipped; or in a gzipped archive, which may claim more than it holds."""
    if kind == "gzip":
        return gzip.compress(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("x/recordings/0_ann_0.wav")
        if kind == "sparse":
            member.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,1"}
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "archive", "sparse", "pipe", "device", "holes"])
@pytest.mark.parametrize("name", [*RAW, *RAW_TEXT, *RAW_AUDIO, *RAW_MOLECULES])
def test_bombs_under_each_known_name_are_one_line(name, kind, tmp_path, monkeypatch):
    """Nothing is read or decompressed beyond a limit, here of 100,000 bytes."""
    for module in (preparation, catalogue):
        monkeypatch.setattr(module, "LARGEST", 100_000)
    raw = (RAW | RAW_TEXT | RAW_AUDIO | RAW_MOLECULES)[name]
    for files in (list(raw.sha256), [f"{file}.gz" for file in raw.sha256], [raw.also.replace("*", "")]):
        for file in filter(None, files):
            path = tmp_path / file
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "device":
                path.symlink_to("/dev/zero")
            elif kind == "holes":
                with path.open("wb") as target:
                    target.truncate(2**40)
            else:
                path.write_bytes(packed(kind, bytes(200_000)))
        with pytest.raises(UserError) as error:
            prepare(name, raw_dir=tmp_path, data_dir=tmp_path / "tfds")
        assert "\n" not in str(error.value)
        for file in filter(None, files):
            (tmp_path / file).unlink()
    assert not (tmp_path / "tfds").exists()


def test_only_known_data_sets_are_prepared(tmp_path):
    with pytest.raises(UserError, match=r"cannot prepare 'mnits' .*mnist, fashion_mnist, binarized_mnist, tiny_sh"):
        prepare("mnits", raw_dir=tmp_path)


def test_find_takes_the_newest_version_and_asks_for_a_configuration(tmp_path):
    for folder in ("a/1.0.0", "a/1.10.0", "a/1.9.0", "b/small/1.0.0", "b/large/2.0.0", "c/only/1.0.0", "d/junk"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text(json.dumps({}))
    assert find("a", tmp_path) == tmp_path / "a" / "1.10.0"
    assert find("a:1.9.0", tmp_path) == tmp_path / "a" / "1.9.0"
    assert find("b/small", tmp_path) == tmp_path / "b" / "small" / "1.0.0"
    assert find("b/large:2.0.0", tmp_path) == tmp_path / "b" / "large" / "2.0.0"
    assert find("c", tmp_path) == tmp_path / "c" / "only" / "1.0.0"
    assert find("d", tmp_path) is None
    assert find("small", tmp_path) is None
    assert find("a:3.0.0", tmp_path) is None
    with pytest.raises(UserError, match=r"several configurations, name one: b/large, b/small"):
        find("b", tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on the loopback interface that serves tmp_path and writes down what it is asked for."""
    monkeypatch.setenv("no_proxy", "*")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/raw/", asked
        web.shutdown()
        thread.join()


def at(url, name, monkeypatch):
    monkeypatch.setitem(RAW, name, RAW[name]._replace(url=url))


def test_download_fetches_what_is_missing(name, raw, server, tmp_path, monkeypatch):
    url, asked = server
    at(url, name, monkeypatch)
    into = tmp_path / "downloads" / name
    download(name, into)
    assert sorted(path.name for path in into.iterdir()) == sorted(RAW[name].sha256)
    assert all((into / file).read_bytes() == (raw[0] / file).read_bytes() for file in RAW[name].sha256)
    asked.clear()
    lost = RAW[name].splits["test"][0]
    (into / lost).write_bytes(b"half")
    download(name, into)
    assert asked == [f"/raw/{lost}"]
    assert (into / lost).read_bytes() == (raw[0] / lost).read_bytes()


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_load_images_downloads_and_prepares(name, raw, server, tmp_path, monkeypatch):
    at(server[0], name, monkeypatch)
    data = load_images(name, data_dir=tmp_path / "tfds")
    assert data.name == "mnist"
    assert data.notice is None
    assert same_images(data.train["image"], raw[1]["train"])
    assert find(name, tmp_path / "tfds")
    assert (tmp_path / "tfds" / "downloads" / "mnist").is_dir()


def test_load_text_downloads_and_prepares_once(raw_text, server, tmp_path, monkeypatch):
    url, asked = server
    raw = RAW_TEXT["tiny_shakespeare"]._replace(url=url)
    monkeypatch.setitem(RAW_TEXT, "tiny_shakespeare", raw)
    for _ in range(2):
        data = load_text("tiny_shakespeare", data_dir=tmp_path / "tfds", context=5)
        assert (data.name, data.notice, data.source) == ("tiny_shakespeare", None, raw.credit)
        assert len(data) == 123 - 5
    assert asked == ["/raw/input.txt"]


def test_what_can_be_neither_found_nor_had_says_so(raw_text, server, tmp_path, monkeypatch):
    raw = RAW_TEXT["tiny_shakespeare"]._replace(url=server[0] + "elsewhere/")
    monkeypatch.setitem(RAW_TEXT, "tiny_shakespeare", raw)
    with pytest.raises(UnavailableError, match=r"neither prepared in .*tfds nor downloadable .*404.* --from DIR"):
        fetch("tiny_shakespeare", tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_a_wrong_file_from_the_server_is_refused(name, raw, server, tmp_path, monkeypatch):
    at(server[0], name, monkeypatch)
    file = RAW[name].splits["train"][0]
    (raw[0] / file).write_bytes(b"<html>please log in</html>")
    with pytest.raises(UserError, match=f"{file}: expected sha256 {RAW[name].sha256[file]}, found .* .26 bytes"):
        download(name, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_a_file_not_found_is_reported(name, raw, server, tmp_path, monkeypatch):
    at(server[0] + "elsewhere/", name, monkeypatch)
    with pytest.raises(UserError, match=r"cannot download .*elsewhere/train-images-idx3-ubyte.gz: .*404"):
        download(name, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its backlog for ever
        at(f"http://127.0.0.1:{silent.getsockname()[1]}/", "mnist", monkeypatch)
        with pytest.raises(UserError, match=r"cannot download http://127.0.0.1.*(timed out|no answer)"):
            download("mnist", tmp_path / "into", timeout=0.05)
    assert not (tmp_path / "into").exists()


def test_name_resolution_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    done, left = threading.Event(), threading.Event()

    def hang(*args, **kwargs):
        done.wait()
        left.set()
        raise socket.gaierror("resolver was hanging")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", hang)
        with pytest.raises(UserError, match=r"no answer in 0.05 s"):
            download("mnist", tmp_path / "into", timeout=0.05)
        done.set()
        assert left.wait(10)


def test_an_unreachable_server_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    at(f"http://127.0.0.1:{port}/", "mnist", monkeypatch)
    with pytest.raises(UserError, match=f"cannot download http://127.0.0.1:{port}/.*refused"):
        download("mnist", tmp_path / "into")


real_files = pytest.mark.skipif(
    "JAXGEN_TEST_DATA" not in os.environ, reason="JAXGEN_TEST_DATA names no folder of the real files"
)


@real_files
def test_real_files(name, tmp_path):
    prepare(name, raw_dir=os.path.join(os.environ["JAXGEN_TEST_DATA"], name), data_dir=tmp_path)
    data = load_images(name, data_dir=tmp_path, strict=True)
    splits = {split: arrays for split in SIZES if (arrays := getattr(data, split)) is not None}
    sizes = {split: len(arrays["image"]) for split, arrays in splits.items()}
    if name == "binarized_mnist":
        assert sizes == {"train": 50000, "validation": 10000, "test": 10000}
        assert set(np.unique(data.train["image"])) == {0, 255}
        assert 0.12 < data.train["image"].mean() / 255 < 0.14
    else:
        assert sizes == {"train": 60000, "test": 10000}
        assert np.bincount(data.test["label"]).sum() == 10000
        assert set(data.test["label"]) == set(range(10))
        mean = {"mnist": 33.3184, "fashion_mnist": 72.9404}[name]  # of the training set, often used to normalise it
        assert abs(data.train["image"].mean() - mean) < 1e-3


@real_files
def test_the_real_text(tmp_path):
    raw_dir = os.path.join(os.environ["JAXGEN_TEST_DATA"], "tiny_shakespeare")
    prepare("tiny_shakespeare", raw_dir=raw_dir, data_dir=tmp_path)
    data = load_text("tiny_shakespeare", data_dir=tmp_path, strict=True, context=64)
    vocabulary = rebuilt(data.vocabulary)
    assert vocabulary.name == "65 characters"
    assert len(data) == 1_003_854 - 64
    assert (data.test["length"] - 1).sum() == 111_540 - 1
    assert vocabulary.decode(data.train["tokens"][0]).startswith("First Citizen:\nBefore we proceed")
