"""TFDS data sets from raw files, without TensorFlow: `python -m jaxgen data prepare mnist --from DIR`.

tensorflow-datasets' own builders of these data sets read files or encode images with TensorFlow. A builder with the
same name, version and features that yields text, numbers or PNG bytes writes the same examples without it, and
`tfds.data_source` reads them. Its downloader is not used either: offline it retries for minutes, and the files of MNIST
and Fashion-MNIST have the same names, so in a shared download folder they silently mix.
"""

import contextlib
import gzip
import hashlib
import io
import os
import queue
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
import wave
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import UserError

Example = tuple[int | str, dict[str, Any]]  # its key, which decides the order, and its values


def _sum(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


class Raw(NamedTuple):
    """What a data set is made of; version, file names, addresses and sums are those of tensorflow-datasets 4.9.10."""

    version: str
    url: str  # address of the folder that holds the files
    splits: dict[str, tuple[str, ...]]  # split -> the files that it is read from
    sha256: dict[str, str]  # of every file, as `digest` computes it
    credit: str
    features: Callable[[], dict[str, Any]]  # TFDS's description of an example; a function, since it imports TFDS
    examples: Callable[..., Iterator[Example]]  # (split, *contents of its files) -> the split's examples
    digest: Callable[[bytes], str] = _sum
    also: str = ""  # pattern of other names by which the file goes


def _image_features(**label: Any) -> dict[str, Any]:
    """A small image and, where `label` holds arguments of ClassLabel, its label."""
    import tensorflow_datasets as tfds

    image = {"image": tfds.features.Image(shape=(28, 28, 1))}
    return image | {"label": tfds.features.ClassLabel(**label)} if label else image


def _idx_images(split: str, images: bytes, labels: bytes) -> Iterator[Example]:
    """Images and labels of two packed IDX files."""
    images, labels = _idx(gzip.decompress(images)), _idx(gzip.decompress(labels)).tolist()
    for key, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield key, {"image": _png(image), "label": label}


def _idx(contents: bytes) -> np.ndarray:
    """The uint8 array of an IDX file: two zero bytes, type, number of axes, big-endian lengths, values."""
    axes = contents[3]
    shape = np.frombuffer(contents, ">i4", count=axes, offset=4)
    return np.frombuffer(contents, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _amat_images(split: str, matrix: bytes) -> Iterator[Example]:
    """Images that are the rows of one matrix of 0 and 1, written as text."""
    pixels = np.frombuffer(matrix, np.uint8)[::2] - ord("0")  # every number is one digit and one separator
    for key, image in enumerate(pixels.reshape(-1, 28, 28)):
        yield key, {"image": _png(image)}


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def _text_features() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {"text": tfds.features.Text()}


def _text_part(split: str, contents: bytes) -> Iterator[Example]:
    """One example, the split's share of the text: the first 90 % of the characters, half of the rest, what remains."""
    text = contents.decode()
    first, rest = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    half = int(len(rest) * 0.5)
    yield split, {"text": {"train": first, "validation": rest[:half], "test": rest[half:]}[split]}


def _sound_features() -> dict[str, Any]:
    """As TFDS stores them; its own description of a sound, `Audio`, wants TensorFlow to be made."""
    import tensorflow_datasets as tfds

    return {
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        "label": tfds.features.ClassLabel(num_classes=10),
        "audio/filename": tfds.features.Text(),
    }


def _sounds(split: str, archive: bytes) -> Iterator[Example]:
    """The recordings in an archive, `DIGIT_SPEAKER_INDEX.wav`."""
    for name, content in _members(archive):
        with wave.open(io.BytesIO(content)) as file:
            audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int64)
        yield Path(name).stem, {"audio": audio, "label": int(name.split("_")[0]), "audio/filename": name}


def _members(archive: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [member for member in tar if member.isfile() and re.search(r"/recordings/\d_\w+\.wav$", member.name)]
        return sorted((Path(member.name).name, tar.extractfile(member).read()) for member in files)


def _sum_of_members(archive: bytes) -> str:
    """Of the recordings and their names: GitHub packs an archive when it is asked for, and not always alike."""
    try:
        members = _members(archive)
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return "no archive that can be read"
    return _sum(b"".join(name.encode() + hashlib.sha256(content).digest() for name, content in members))


def _molecule_features() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {"smiles": tfds.features.Text(), "properties": tfds.features.Tensor(shape=(4,), dtype=np.float32)}


def _molecules(split: str, contents: bytes) -> Iterator[Example]:
    """Those of one SMILES a line, or of a table, that belong to the split, with their computed properties."""
    table = _described(contents)
    for key in np.flatnonzero(table.is_test == (split == "test")).tolist():
        yield key, {"smiles": table.smiles[key], "properties": table.properties[key].astype(np.float32)}


@lru_cache(maxsize=1)  # both splits are of the same file
def _described(contents: bytes) -> Any:
    from jaxgen.data.molecules import described

    return described(contents)


_IDX_SPLITS = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

RAW = {  # images
    "mnist": Raw(
        version="3.0.1",
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        splits=_IDX_SPLITS,
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        credit="MNIST, LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/ (no licence stated)",
        features=partial(_image_features, num_classes=10),
        examples=_idx_images,
    ),
    "fashion_mnist": Raw(
        version="3.0.1",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        splits=_IDX_SPLITS,
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        credit="Fashion-MNIST, Xiao, Rasul and Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist (MIT)",
        features=partial(
            _image_features,
            names=[
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ],
        ),
        examples=_idx_images,
    ),
    "binarized_mnist": Raw(
        version="1.0.0",
        url="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        splits={
            "train": ("binarized_mnist_train.amat",),
            "validation": ("binarized_mnist_valid.amat",),
            "test": ("binarized_mnist_test.amat",),
        },
        sha256={
            "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
        },
        credit="MNIST binarised once, Larochelle and Murray 2011, http://www.cs.toronto.edu/~larocheh/ "
        "(no licence stated)",
        features=_image_features,
        examples=_amat_images,
    ),
}

RAW_TEXT = {  # texts
    "tiny_shakespeare": Raw(
        version="1.0.0",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        splits={"train": ("input.txt",), "validation": ("input.txt",), "test": ("input.txt",)},
        sha256={"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        credit="Tiny Shakespeare, Karpathy 2015, https://github.com/karpathy/char-rnn (MIT)",
        features=_text_features,
        examples=_text_part,
    ),
}

RAW_AUDIO = {  # sounds
    "spoken_digit": Raw(
        version="1.0.9",
        url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/",
        splits={"train": ("v1.0.9.tar.gz",)},
        sha256={"v1.0.9.tar.gz": "32fbbcc9380cf33c8cd36704fb01dd2123c70e160099aa6768e4a8cc6eff68c7"},
        credit="Free Spoken Digit Dataset 1.0.9, Jackson et al., "
        "https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0)",
        features=_sound_features,
        examples=_sounds,
        digest=_sum_of_members,
        also="free-spoken-digit-dataset-1.0.9*.tar.gz",
    ),
}

RAW_MOLECULES = {  # molecules; no data sets of TFDS's: versions are ours
    "qm9": Raw(
        version="1.0.0",
        url="https://raw.githubusercontent.com/sancar17/IDP-Inverse-Design-for-Molecules/main/data/",
        splits={"train": ("qm9_smiles.txt",), "test": ("qm9_smiles.txt",)},
        sha256={"qm9_smiles.txt": "7bf1716051c3892501f8112ebbb5dc56f11538cf3401cbe3e5d1219eae59eece"},
        credit="119,399 molecules of QM9, Ramakrishnan et al. 2014, https://doi.org/10.1038/sdata.2014.22, as SMILES "
        "of https://github.com/sancar17/IDP-Inverse-Design-for-Molecules (no licence stated)",
        features=_molecule_features,
        examples=_molecules,
    ),
    "zinc250k": Raw(
        version="1.0.0",
        url="https://raw.githubusercontent.com/wenhao-gao/mol_opt/main/data/",
        splits={"train": ("zinc250k.csv",), "test": ("zinc250k.csv",)},
        sha256={"zinc250k.csv": "e283df076070233765ab0ad424181dcebec5c545fd69075de24e019c93e58f19"},
        credit="249,455 molecules of ZINC, Irwin et al. 2012, https://doi.org/10.1021/ci3001277, in the choice of "
        "Gomez-Bombarelli et al. 2018, as SMILES of https://github.com/wenhao-gao/mol_opt (MIT)",
        features=_molecule_features,
        examples=_molecules,
    ),
}


def _raw(name: str) -> Raw:
    known = RAW | RAW_TEXT | RAW_AUDIO | RAW_MOLECULES
    if name not in known:
        raise UserError(f"cannot prepare {name!r} from raw files: expected one of {', '.join(known)}")
    return known[name]


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of prepared data sets: `data_dir`, else TFDS's default, which TFDS_DATA_DIR changes."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(data_dir: str | Path | None = None) -> dict[str, Path]:
    """Folder of every data set that TFDS has prepared under `data_dir`, by "name:version" or "name/config:version"."""
    root = data_folder(data_dir)
    found = {}
    for info in sorted([*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]):
        folder = info.parent
        # TFDS writes to a folder "incomplete.*" and renames it at the end: what is not named by a version is no whole.
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
            found[f"{folder.parent.relative_to(root).as_posix()}:{folder.name}"] = folder
    return found


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a prepared data set, None when there is none.

    Args:
      name: "name", "name/config" or either with ":version"; without a version, the newest.
      data_dir: see `data_folder`.

    Raises:
      UserError: `name` has several prepared configurations and says not which.
    """
    found = {
        key: folder
        for key, folder in prepared(data_dir).items()
        if name in (key, key.partition(":")[0], key.partition("/")[0])
    }
    configs = sorted({key.partition(":")[0] for key in found})
    if len(configs) > 1:
        raise UserError(f"data set {name!r} is prepared in several configurations, name one: {', '.join(configs)}")
    return max(found.values(), key=lambda folder: [int(n) for n in folder.name.split(".")], default=None)


class UnavailableError(UserError):
    """A data set that is neither prepared nor downloadable."""


def fetch(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder of a data set, which is downloaded and prepared where it is not yet.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      data_dir: see `data_folder`.

    Raises:
      UnavailableError: its files cannot be had or not be written, with the reason.
    """
    if (folder := find(name, data_dir)) is not None:
        return folder
    root = data_folder(data_dir)
    raw_dir = root / "downloads" / name  # a folder of its own: MNIST's and Fashion-MNIST's files have equal names
    try:
        download(name, raw_dir)
        return prepare(name, raw_dir=raw_dir, data_dir=data_dir)
    except UserError as error:
        raise UnavailableError(
            f"{name} is neither prepared in {root} nor downloadable ({error}); with its raw files in a folder DIR, "
            f"prepare it by: python -m jaxgen data prepare {name} --from DIR"
        ) from error


def prepare(name: str, *, raw_dir: str | Path, data_dir: str | Path | None = None) -> Path:
    """Write the TFDS data set `name` (ArrayRecord files) from its raw files, all of which are verified first.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      raw_dir: holds the files named there, an `.amat` file perhaps as `.amat.gz`.
      data_dir: see `data_folder`.

    Returns:
      The data set's folder, at once when it is prepared already.

    Raises:
      UserError: unknown name; a raw file is missing, truncated or has another sha256; `data_dir` cannot be written.
    """
    raw = _raw(name)
    if (folder := find(name, data_dir)) is not None:
        return folder
    contents = {file: _verified(name, Path(raw_dir).expanduser(), file) for file in raw.sha256}
    root = data_folder(data_dir)
    print(f"preparing {name} in {root}", file=sys.stderr, flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write(name, contents, root)
    except OSError as error:
        # Another process may have finished first; its folder is as good as ours.
        if (folder := find(name, root)) is None:
            raise UserError(f"cannot write {name} to {root} ({error}): choose another --data.dir") from error
        return folder
    return find(name, root)


def _verified(name: str, raw_dir: Path, file: str) -> bytes:
    """The contents of a raw file, once their sha256 is the expected one."""
    raw, path = _raw(name), raw_dir / file
    if not path.exists() and (raw_dir / f"{file}.gz").exists():
        path = raw_dir / f"{file}.gz"
    elif not path.exists() and raw.also:
        path = next(iter(sorted(raw_dir.glob(raw.also))), path)
    try:
        contents = path.read_bytes()
        if path.name == f"{file}.gz":
            contents = gzip.decompress(contents)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: {name} is prepared from {', '.join(raw.sha256)}, get them from {raw.url}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): get it again from {raw.url}") from error
    found = raw.digest(contents)
    if found != raw.sha256[file]:
        raise UserError(
            f"{path} is truncated or not the right file: expected sha256 {raw.sha256[file]}, found {found} "
            f"({len(contents)} bytes); get it again from {raw.url}"
        )
    return contents


def _write(name: str, contents: dict[str, bytes], root: Path) -> None:
    """Run a TFDS builder with the name, version, features and example keys (so the order) of the stock one."""
    import tensorflow_datasets as tfds

    raw, features = _raw(name), _raw(name).features()

    class FromRaw(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(raw.version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=raw.credit,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=(next(iter(features)), "label") if "label" in features else None,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in raw.splits}

        def _generate_examples(self, split):
            return raw.examples(split, *(contents[file] for file in raw.splits[split]))

    FromRaw.name = name  # the files are named by it
    tfds.disable_progress_bar()
    # TFDS prints to the terminal, and makes a download folder whether it downloads or not.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
        builder = FromRaw(data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_dir=unused, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def download(name: str, into: str | Path, *, timeout: float = 4.0) -> None:
    """Fetch the raw files of data set `name` into a folder of its own; files that are there and right are kept.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      into: the folder, made when the first file arrives. A file gets its name only when it is whole and verified.
      timeout: seconds to wait for a server's answer, name resolution included, and for each piece of a file.

    Raises:
      UserError: a file cannot be had or has the wrong sha256, with the reason; or the folder cannot be written.
    """
    raw, into = _raw(name), Path(into)
    for file, expected in raw.sha256.items():
        url, path, part = raw.url + file, into / file, into / f"{file}.{os.getpid()}.part"
        try:
            if path.exists() and raw.digest(path.read_bytes()) == expected:
                continue
            with _open(url, timeout) as response:
                into.mkdir(parents=True, exist_ok=True)
                print(f"downloading {url}", file=sys.stderr, flush=True)
                with part.open("wb") as target:
                    shutil.copyfileobj(response, target)
            found = raw.digest(part.read_bytes())
            if found != expected:
                raise UserError(
                    f"cannot download {url}: expected sha256 {expected}, found {found} ({part.stat().st_size} bytes)"
                )
            os.replace(part, path)
        except (OSError, HTTPException) as error:  # urllib's errors and time limits are OSErrors
            reason = error.reason if type(error) is urllib.error.URLError else error
            raise UserError(f"cannot download {url}: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def _open(url: str, timeout: float):
    """`urlopen` under a time limit that covers name resolution too, which no socket's time limit does."""
    answers = queue.Queue()

    def ask():
        try:
            answers.put(urllib.request.urlopen(url, timeout=timeout))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is a response as well, on an open socket
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()  # a daemon: a hanging resolver must not keep the process alive
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer in {timeout:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
