"""Prepared data sets are data: nothing that their files name is imported, and damage is one line."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import load_images
from jaxgen.data.audio import load_audio
from jaxgen.data.molecules import load_molecules
from jaxgen.data.prepared import KINDS, describe, examples
from jaxgen.data.text import load_text
from jaxgen.errors import UserError

CLASS = {kind: name for name, kind in KINDS.items()}


def feature(kind, **values):
    return {"pythonClassName": CLASS.get(kind, kind)} | values


IMAGE = feature("image", image={"shape": {"dimensions": ["4", "4", "1"]}, "dtype": "uint8"})
LABEL = feature("label", classLabel={"numClasses": "2"})


def written(root, features, rows, name="shapes", **changes):
    """A prepared data set of one split, whose rows are bytes or integers by name."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2  # the definition that ours must agree with

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(str(folder / f"{name}-train.array_record-00000-of-00001"), "group_size:1")
    for row in rows:
        example = tf_example_pb2.Example()
        for key, value in row.items():
            kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
            getattr(example.features.feature[key], kind).value.append(value)
        writer.write(example.SerializeToString())
    writer.close()
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record"}
    info |= {"splits": [{"name": "train", "shardLengths": [str(len(rows))]}]} | changes
    (folder / "dataset_info.json").write_text(json.dumps(info))
    top = feature("dict", featuresDict={"features": features})
    (folder / "features.json").write_text(json.dumps(top))
    return folder


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(content, "png")
    return content.getvalue()


ROWS = [{"image": png(10 * i), "label": i % 2} for i in range(20)]


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module that says when it is imported."""
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Feature: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "payload.Feature"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["top", "feature", "nested", "info"])
def test_no_name_in_a_data_set_is_imported(where, payload, tmp_path):
    features = {"image": IMAGE, "label": LABEL}
    if where == "feature":
        features["other"] = feature(payload, jsonFeature={"json": "{}"})
    if where == "nested":
        inner = {"features": {"other": feature(payload)}}
        features["other"] = feature("dict", featuresDict=inner)
    folder = written(tmp_path, features, ROWS, moduleName="payload")
    if where == "top":
        (folder / "features.json").write_text(json.dumps({"type": payload, "pythonClassName": payload, "content": {}}))
        with pytest.raises(UserError, match=r"features.json describes a payload.Feature, expected a FeaturesDict"):
            load_images("shapes", data_dir=tmp_path)
    else:
        assert load_images("shapes", data_dir=tmp_path).classes == ("0", "1")


@pytest.mark.parametrize("load", [load_text, load_audio, load_molecules])
def test_nor_by_texts_sounds_and_molecules(load, payload, tmp_path):
    name = {load_text: "tiny_shakespeare", load_audio: "spoken_digit", load_molecules: "qm9"}[load]
    folder = written(tmp_path, {"text": feature(payload)}, [], name=name, moduleName="payload")
    (folder / "features.json").write_text(json.dumps({"pythonClassName": payload}))
    with pytest.raises(UserError, match=f"{name} in .*expected a FeaturesDict"):
        load(name, data_dir=tmp_path)


def test_examples_in_their_order(tmp_path):
    found = describe("shapes", written(tmp_path, {"image": IMAGE, "label": LABEL}, ROWS))
    rows = list(examples(found, "train"))
    assert [row["label"].int64_list.value[0] for row in rows] == [row["label"] for row in ROWS]
    assert [row["image"].bytes_list.value[0] for row in rows] == [row["image"] for row in ROWS]


def deep(folder):
    (folder / "features.json").write_text('{"featuresDict":{"features":{"a":' * 50_000 + "1" + "}}}" * 50_000)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (deep, "nested too deeply"),
        (lambda folder: (folder / "features.json").write_bytes(b"\xff{}"), "features.json|malformed|utf-8"),
        (lambda folder: (folder / "features.json").unlink(), "No such file"),
        (lambda folder: (folder / "dataset_info.json").write_text('{"name": 3}'), "Expected `str`"),
        (lambda folder: edit(folder, name="../../etc"), "names that are none"),
        (lambda folder: edit(folder, splits=[{"name": "train", "shardLengths": ["7"]}]), "20 examples, expected 7"),
        (lambda folder: edit(folder, splits=[{"name": "train", "shardLengths": ["7"] * 3}]), "is missing"),
        (
            lambda folder: edit(folder, splits=[{"name": "train", "shardLengths": ["9" * 30]}]),
            "20 examples, expected 999,9",
        ),
        (lambda folder: edit(folder, fileFormat="tfrecord"), "is stored as tfrecord, expected array_record"),
    ],
)
def test_damage_is_one_line(damage, match, tmp_path):
    damage(written(tmp_path, {"image": IMAGE, "label": LABEL}, ROWS))
    with pytest.raises(UserError, match=match) as error:
        load_images("shapes", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def edit(folder, **changes):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | changes))


def test_a_huge_number_of_classes_is_refused(tmp_path):
    label = feature("label", classLabel={"numClasses": str(10**12)})
    written(tmp_path, {"image": IMAGE, "label": label}, ROWS)
    with pytest.raises(UserError, match="label has 1,000,000,000,000 classes"):
        load_images("shapes", data_dir=tmp_path)
