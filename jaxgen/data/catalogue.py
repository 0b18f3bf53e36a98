"""What data sets are made of: their files, addresses and sums, and how examples are read from them.

tensorflow-datasets' own builders of these data sets read files or encode images with TensorFlow; these readers do not.
"""

import gzip
import hashlib
import io
import re
import tarfile
import wave
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.reading import unpacked

LARGEST = 2**28  # bytes of a raw file, packed or not; the largest known one has 78 million

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
    with tarfile.open(fileobj=io.BytesIO(unpacked(archive, LARGEST)), mode="r:") as tar:
        names = re.compile(r"/recordings/\d_\w+\.wav$")
        return sorted((Path(name).name, content) for name, content in _files(tar) if names.search(name))


def _files(tar: tarfile.TarFile) -> list[tuple[str, bytes]]:
    """The names and contents of the files in an archive, which may claim to be of any size."""
    files = [member for member in tar if member.isfile()]
    if sum(member.size for member in files) > LARGEST:
        raise tarfile.TarError(f"more than {LARGEST:,} bytes")
    return [(member.name, tar.extractfile(member).read()) for member in files]


def _sum_of_members(archive: bytes) -> str:
    """Of the recordings and their names: GitHub packs an archive when it is asked for, and not always alike."""
    try:
        members = _members(archive)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError):
        return f"no archive that can be read, of at most {LARGEST:,} bytes"
    return _sum(b"".join(name.encode() + hashlib.sha256(content).digest() for name, content in members))


def _molecule_features() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {"smiles": tfds.features.Text(), "properties": tfds.features.Tensor(shape=(4,), dtype=np.float32)}


def _molecules(split: str, contents: bytes) -> Iterator[Example]:
    """Those of the split, with their computed properties."""
    table = _described(_smiles(contents))
    for key in np.flatnonzero(table.is_test == (split == "test")).tolist():
        yield key, {"smiles": table.smiles[key], "properties": table.properties[key].astype(np.float32)}


@lru_cache(maxsize=1)  # both splits are of the same file
def _described(contents: bytes) -> Any:
    from jaxgen.data.molecules import described

    return described(list(enumerate(contents.decode().split(), 1)))


def _smiles(contents: bytes) -> bytes:
    """One SMILES a line, of such lines, or of a table's first column, or of an archive of them."""
    contents = unpacked(contents, LARGEST)
    if contents[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(contents), mode="r:") as tar:
            contents = b"".join(content for _, content in _files(tar))
    # No list of lines: what is not yet verified may have a hundred million of them.
    lines = re.sub(rb"[, \t\r][^\n]*", b"", contents)
    return re.sub(rb"\n+", b"\n", lines).strip(b"\n").removeprefix(b"smiles\n")


def _sum_of_smiles(contents: bytes) -> str:
    """Of the molecules and their order, however they are packed."""
    try:
        if lines := _smiles(contents):
            return _sum(lines)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError):
        pass
    return f"no molecules that can be read, in at most {LARGEST:,} bytes"


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
        url="https://raw.githubusercontent.com/wenhao-gao/mol_opt/2da631be85af8d10a2bb43f2de76a03171166190/data/",
        splits={"train": ("zinc.txt.gz",), "test": ("zinc.txt.gz",)},
        sha256={"zinc.txt.gz": "b2a780b520e9188fdbc3dd1affe785f0f21151ac7e9fa8889e33832067763a9b"},
        credit="249,455 molecules of ZINC, Irwin et al. 2012, https://doi.org/10.1021/ci3001277, in the choice of "
        "Gomez-Bombarelli et al. 2018, as SMILES of https://github.com/wenhao-gao/mol_opt (MIT)",
        features=_molecule_features,
        examples=_molecules,
        digest=_sum_of_smiles,
        also="zinc250k.csv*",
    ),
}
