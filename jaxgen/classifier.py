"""Judges: networks in whose features, and by whose probabilities, generated images are compared with data.

A judge is a small network trained here, on the labels of the data. Without labels it learns how far an image was turned
(Gidaris et al. 2018), which takes features of what is in the image. Figures in the features of two networks do not
compare, so the name of the network stands in every figure.
"""

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.data.decode import to_unit
from jaxgen.data.source import Arrays, Dataset, Spec, batch_indices, gather
from jaxgen.errors import UserError
from jaxgen.files import write_atomically
from jaxgen.keys import key_of
from jaxgen.log import bar
from jaxgen.networks.conv import Classifier as Network
from jaxgen.step import init_state, make_step, scan_steps
from jaxgen.terminal import say
from jaxgen.train import train
from jaxgen.types import Aux, Batch, Key, Model, Objective, Params, Step

SHIFT = 2  # pixels by which a training image may be moved
VERSION = 2  # of the network and its training: counts up where either changes, so that what was kept is not used
EPOCHS = 80  # most passes over the training images, but for
LEAST_STEPS = 200  # steps, which are quick where images are few
LEAST = 10  # training images per class, on average
LEAST_HELD_OUT = 20  # held-out images; an accuracy of fewer says little, and so does a distance from them


class Classifier(NamedTuple):
    """A network that judges images.

    named: computes `name`.
    apply: `images uint8 [N, H, W, C] -> (features [N, D], probabilities [N, K])`, float32.
    """

    named: Callable[[], str]
    apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    @property
    def name(self) -> str:
        """Name of the network; of one trained here also its data and its accuracy on their test split.

        Ask for it at the end of a run only: it may evaluate the test split.
        """
        return self.named()


def classifier(
    load: Callable[[], Dataset],
    digest: str,
    *,
    labels: bool = True,
    form: str = "",
    view: Callable[[Dataset], Dataset] = lambda data: data,
    seed: int = 0,
    steps: int = 2_500,
    batch_size: int = 128,
    cache: Path | None = None,
    say: Callable[[str], None] = say,
) -> Classifier | None:
    """Return a judge trained on images; one that was trained before on the same data, if there is one.

    Args:
      load: the data; called only if no judge is kept for `digest`.
      digest: digest of the data. If `load` returns other data by now, the judge is kept under their digest.
      labels: train on the labels of the data; otherwise on four rotations of each image.
      form: name of `view` in the cache.
      view: the data -> images and labels.
      seed: of all that is random.
      steps: most steps of Adam, the learning rate falling from 1e-3 along half a cosine. Small data take fewer:
        `EPOCHS` passes, but at least `LEAST_STEPS`.
      batch_size: most images in one step.
      cache: folder of trained judges; None: that of the user.
      say: callback for a line that announces the training, or the reason for none.

    Returns:
      The judge; None if there are too few images to train and test one (`shortage`).

    Raises:
      UserError: the images have no labels.
    """

    def place(digest: str) -> Path:
        of = f"{digest} {form}".strip()
        return _place(cache, of, seed, steps, batch_size, *(() if labels else ("rotation",)))

    path = place(digest)
    found = _read(path)
    if found is None:
        data = load()
        if labels and not data.classes:
            raise UserError(f"{data.name} has no labels to train a classifier on: use labelled data, or --inception")
        path = place(data.spec.digest)
        found = _read(path)
    if found is None:
        data = view(data)
        if reason := shortage(data, labels):
            say(f"warning: {reason}")
            return None
        classes, count = len(data.classes) if labels else ROTATIONS, len(data)
        batch_size = min(batch_size, count)
        steps = min(steps, max(LEAST_STEPS, -(-EPOCHS * count // batch_size)))
        kind = "classifier" if labels else "rotation network"
        say(f"training a {kind} on {data.name} to judge samples, once: {steps:,} steps")
        params = _train(Network(classes), data.train, _labelled if labels else _turned, seed, steps, batch_size)
        found = flatten_dict(params, sep="/") | {"name": np.array(f"{data.name} {kind}")}
        _write(path, found)
    known = {name: found.pop(name) for name in ("name", "accuracy") if name in found}
    apply = partial(_apply, partial(_forward, unflatten_dict(found, sep="/"), labels), 1_000)

    def named() -> str:
        if "accuracy" not in known:
            test = view(load()).test
            images, label = (test["image"], test["label"]) if labels else _all_turns(test["image"])
            known["accuracy"] = np.mean(apply(images)[1].argmax(-1) == label)
            _write(path, found | known)
        return f"{known['name']}, {100 * known['accuracy']:.1f} % right"

    return Classifier(named, apply)


def shortage(data: Dataset, labels: bool) -> str:
    """Return why no judge can be trained and tested on the data, in a sentence; empty if one can."""
    classes = len(data.classes) if labels else 1
    train, test = len(data), len(next(iter(data.test.values())))
    if train >= LEAST * classes and test >= LEAST_HELD_OUT:
        return ""
    of = f" of {classes} classes" if labels else ""
    return (
        f"samples are not judged by the features of a network: {train:,} training and {test:,} held-out examples{of} "
        f"are too few, expected {LEAST * classes:,} and {LEAST_HELD_OUT}"
    )


def inception(path: Path) -> Classifier:
    """FID's Inception network, of the weights in a file (`jaxgen.metrics.inception`).

    Raises:
      UserError: the file is not what it should be.
    """
    from jaxgen.metrics.inception import load
    from jaxgen.networks.inception import features

    return Classifier(lambda: "FID's Inception network", partial(_apply, partial(jax.jit(features), load(path)), 50))


def by_channel(judge: Classifier | None) -> Classifier | None:
    """Of images whose C channels are an image each: features side by side, probabilities of all combinations."""

    def apply(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = zip(*(judge.apply(x[..., None]) for x in np.moveaxis(images, -1, 0)), strict=True)
        combined = probabilities[0]
        for each in probabilities[1:]:
            combined = (combined[:, :, None] * each[:, None, :]).reshape(len(images), -1)
        return np.concatenate(features, axis=-1), combined

    return judge and Classifier(lambda: f"{judge.name}, on each channel", apply)


def _apply(function: Callable, size: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In parts of one size, of which the last is filled up with the first images."""
    size = min(size, len(images))
    starts = range(0, len(images), size)
    parts = [jax.device_get(function(images[np.arange(i, i + size) % len(images)])) for i in starts]
    return tuple(np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))


@partial(jax.jit, static_argnums=1)
def _forward(params: Params, labels: bool, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    network = Network(params["Dense_0"]["bias"].size)
    if not labels:
        images = jax.vmap(_squared)(images)
    features, logits = network.apply({"params": params}, to_unit(images))
    return features, jax.nn.softmax(logits)


def _train(
    network: Network,
    arrays: Arrays,
    posed: Callable[[Batch, Key], tuple[jax.Array, jax.Array]],
    seed: int,
    steps: int,
    batch_size: int,
) -> Params:
    """Train by the one loop, as a model without samples; `posed` makes an image and its class of an example."""

    def init(key: Key, batch: Batch) -> Params:
        image, _ = jax.eval_shape(posed, jax.tree.map(lambda x: x[0], batch), key)
        return {"classifier": network.init(key, jnp.zeros((1, *image.shape)))["params"]}

    def evaluate(params: Params, batch: Batch, key: Key) -> dict[str, jax.Array]:
        images, label = jax.vmap(posed)(batch, jax.random.split(key, len(batch["image"])))
        _, logits = network.apply({"params": params["classifier"]}, to_unit(images))
        return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, label)}

    def loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[jax.Array, Aux]:
        value = evaluate(params, batch, key)["loss"].mean()
        return value, Aux({"loss": value})

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    model = Model(
        init=init, objectives=(Objective("classifier", loss, optimizer),), evaluate=evaluate, sample=_no_samples
    )
    arrays = {name: arrays[name] for name in ("image", "label") if name in arrays}
    state = jax.jit(init_state, static_argnums=0)(model, key_of(seed), gather(arrays, np.arange(1)))

    def batches(start: int, stop: int) -> Batch:
        return gather(arrays, batch_indices(len(arrays["image"]), batch_size, seed=seed, start=start, stop=stop))

    with bar("training a judge") as shown:
        update = jax.jit(scan_steps(make_step(model)), donate_argnums=0)
        state = train(state, update, batches, stop=steps, on_progress=lambda progress: shown(progress.stop / steps))
    return jax.device_get(state.params["classifier"])


def _labelled(example: Batch, key: Key) -> tuple[jax.Array, jax.Array]:
    """An image, moved a little, and its label."""
    return _shifted(example["image"], key), example["label"]


ROTATIONS = 4


def _turned(example: Batch, key: Key) -> tuple[jax.Array, jax.Array]:
    """An image, turned and moved a little, and the number of quarter turns."""
    turn_key, shift_key = jax.random.split(key)
    turns, square = jax.random.randint(turn_key, (), 0, ROTATIONS), _squared(example["image"])
    turned = jax.lax.switch(turns, [partial(jnp.rot90, k=k) for k in range(ROTATIONS)], square)
    return _shifted(turned, shift_key), turns


def _all_turns(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every image in all rotations, and the quarter turns of each."""
    square = np.asarray(jax.vmap(_squared)(images))
    turned = np.concatenate([np.rot90(square, k, axes=(1, 2)) for k in range(ROTATIONS)])
    return turned, np.repeat(np.arange(ROTATIONS), len(images))


def _squared(image: jax.Array) -> jax.Array:
    """[H, W, C] as it is if H = W, else resized to the shorter side."""
    height, width, channels = image.shape
    if height == width:
        return image
    size = min(height, width)
    return jax.image.resize(image.astype(jnp.float32), (size, size, channels), "linear")


def _shifted(image: jax.Array, key: Key) -> jax.Array:
    padded = jnp.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    return jax.lax.dynamic_slice(padded, (*jax.random.randint(key, (2,), 0, 2 * SHIFT + 1), 0), image.shape)


def _no_samples(*args, **controls):
    raise TypeError("a classifier has no samples")


def judge_of_copies(config: Any, spec: Spec, load: Callable[[Any], Dataset]) -> Callable[[], Classifier | None] | None:
    """Return a function that makes the judge of the copy audit, None unless --evaluate.features asks for one."""
    if not config.evaluate.features:
        return None
    return partial(classifier, partial(load, config), spec.digest, labels=bool(spec.classes))


def _place(cache: Path | None, *what: int | str) -> Path:
    if cache is None:
        import platformdirs

        cache = Path(platformdirs.user_cache_dir("jaxgen"), "classifiers")
    return cache / f"{hashlib.sha256(repr((VERSION, what)).encode()).hexdigest()[:16]}.npz"


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is none, or a damaged one: it is trained anew."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception:  # what damaged bytes raise depends on where they are damaged
        return None
    return found if "name" in found else None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Where the folder cannot be written, it is trained again another time."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    with suppress(OSError):
        write_atomically(path, content.getvalue())
