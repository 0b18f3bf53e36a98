"""Prepared data sets of tensorflow-datasets, read as data: no module that their files name is ever imported.

tensorflow-datasets imports the module of every feature in `features.json`, so that a stranger's folder could run code.
This reader knows a few types of features by their exact names and gives all others back as "other"; it also starts
faster.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jaxgen.data.prepare import AGAIN
from jaxgen.errors import UserError
from jaxgen.files import read_file, read_json

_MODULE = "tensorflow_datasets.core.features"
KINDS = {
    f"{_MODULE}.features_dict.FeaturesDict": "dict",
    f"{_MODULE}.image_feature.Image": "image",
    f"{_MODULE}.class_label_feature.ClassLabel": "label",
    f"{_MODULE}.text_feature.Text": "text",
    f"{_MODULE}.tensor_feature.Tensor": "tensor",
    f"{_MODULE}.scalar.Scalar": "tensor",
}
MOST_CLASSES = 100_000
MOST_BYTES = 64 << 20  # of a description


class Feature(NamedTuple):
    """An entry of an example: its kind, one of the values of `KINDS` or "other", and what the kind needs.

    Attributes:
      kind: "image", "label", "text", "tensor", "dict" or "other".
      channels: of an image.
      dtype: of an image.
      classes: names of a label's values.
    """

    kind: str
    channels: int = 0
    dtype: str = "uint8"
    classes: tuple[str, ...] = ()


class Prepared(NamedTuple):
    """What a prepared data set says of itself.

    Attributes:
      name: of the data set, without configuration and version.
      source: name, configuration, version and home page, one line.
      features: by name.
      splits: files and number of examples, by name.
    """

    name: str
    source: str
    features: dict[str, Feature]
    splits: dict[str, tuple[list[Path], int]]


class _Shape(msgspec.Struct):
    dimensions: list[int] = []


class _Image(msgspec.Struct):
    shape: _Shape
    dtype: str = "uint8"


class _Label(msgspec.Struct, rename="camel"):
    num_classes: int


class _Fields(msgspec.Struct):
    features: dict[str, "_Feature"]


class _Feature(msgspec.Struct, rename="camel"):
    python_class_name: str
    image: _Image | None = None
    class_label: _Label | None = None
    features_dict: _Fields | None = None


class _Split(msgspec.Struct, rename="camel"):
    name: str
    shard_lengths: list[int] = []


class _Location(msgspec.Struct):
    urls: list[str] = []


class _Info(msgspec.Struct, rename="camel"):
    name: str
    version: str
    splits: list[_Split] = []
    config_name: str = ""
    file_format: str = "tfrecord"
    location: _Location = msgspec.field(default_factory=_Location)


@contextmanager
def readable(name: str, folder: Path) -> Iterator[None]:
    """Within, any error but a UserError becomes one: the data set cannot be read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files make ArrayRecord, protocol buffers and msgspec raise a dozen types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} in {folder} cannot be read ({reason}): delete this folder and prepare the data set again"
        ) from error


def describe(name: str, folder: Path) -> Prepared:
    """Read the description of a prepared data set.

    Args:
      name: what messages call it.
      folder: that of one version, see `jaxgen.data.prepare.find`.

    Raises:
      UserError: the description is missing or damaged, or examples are not stored as ArrayRecord.
    """
    with readable(name, folder):
        info = _read(folder / "dataset_info.json", _Info)
        top = _read(folder / "features.json", _Feature)
        if KINDS.get(top.python_class_name) != "dict" or top.features_dict is None:
            raise ValueError(f"features.json describes a {top.python_class_name}, expected a FeaturesDict")
        if info.file_format != "array_record":
            raise UserError(f"{name} in {folder} is stored as {info.file_format}, expected array_record: {AGAIN}")
        words = [info.name, info.config_name, *(split.name for split in info.splits)]
        if not all(re.fullmatch(r"[\w.-]*", word) for word in words):
            raise ValueError("dataset_info.json holds names that are none")
        features = {key: _feature(folder, key, one) for key, one in top.features_dict.features.items()}
        splits = {split.name: (_shards(folder, info.name, split), sum(split.shard_lengths)) for split in info.splits}
    full = "/".join(word for word in (info.name, info.config_name, info.version) if word)
    return Prepared(info.name, f"{full} of TFDS, {', '.join(info.location.urls[:1])}", features, splits)


def _read(path: Path, kind: type) -> Any:
    return read_json(path, kind, most=MOST_BYTES, strict=False)  # its integers are strings


def _feature(folder: Path, key: str, feature: _Feature) -> Feature:
    kind = KINDS.get(feature.python_class_name, "other")
    if kind == "image" and feature.image is not None:
        return Feature(kind, (feature.image.shape.dimensions or [3])[-1], feature.image.dtype)
    if kind == "label" and feature.class_label is not None:
        count, names = feature.class_label.num_classes, folder / f"{Path(key).name}.labels.txt"
        if not 0 <= count <= MOST_CLASSES:
            raise ValueError(f"{key} has {count:,} classes, expected at most {MOST_CLASSES:,}")
        lines = read_file(names, MOST_BYTES).decode().split("\n") if names.exists() else map(str, range(count))
        return Feature(kind, classes=tuple(line.strip() for line in lines if line.strip()))
    return Feature("other" if kind in ("image", "label") else kind)


def _shards(folder: Path, name: str, split: _Split) -> list[Path]:
    count = len(split.shard_lengths)
    return [folder / f"{name}-{split.name}.array_record-{i:05d}-of-{count:05d}" for i in range(count)]


def examples(prepared: Prepared, split: str) -> Iterator[Mapping[str, Any]]:
    """The features of each example of a split, undecoded, in the order of the files.

    A feature holds its values in `bytes_list.value`, `float_list.value` or `int64_list.value`.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    parse, (paths, count) = _example().FromString, prepared.splits[split]
    found = 0
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
        reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
        try:
            records = reader.num_records()
            found += records
            for start in range(0, records, 1000):
                for record in reader.read(range(start, min(start + 1000, records))):
                    yield parse(record).features.feature
        finally:
            reader.close()
    if found != count:
        raise ValueError(f"split {split} holds {found:,} examples, expected {count:,}")


# tensorflow.Example, whose own definition would take TensorFlow or tensorflow-datasets to import.
_SCHEMA = """
name: "jaxgen_example.proto" package: "jaxgen" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Floats" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Integers" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".jaxgen.Bytes" }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".jaxgen.Floats" }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".jaxgen.Integers" }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".jaxgen.Features.Entry" }
  nested_type {
    name: "Entry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".jaxgen.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".jaxgen.Features" }
}
"""


@cache
def _example() -> Any:
    """The message type of an example."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("jaxgen.Example"))
