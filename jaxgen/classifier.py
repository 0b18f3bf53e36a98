"""A small classifier, trained here on a labelled data set: its features and probabilities judge generated images.

A figure in its features compares with no figure in another network's, so its name stands beside every one.
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
from jaxgen.networks.conv import Classifier as Network
from jaxgen.step import init_state, make_step, scan_steps
from jaxgen.train import train
from jaxgen.types import Aux, Batch, Key, Model, Objective, Params, Step

SHIFT = 2  # pixels by which a training image may be moved
VERSION = 1  # of the network and its training: counts up where either changes, so that what was kept is not used


class Classifier(NamedTuple):
    """A network that judges images.

    name: what it is; of one trained here, of which data, and how well it does.
    apply: `images uint8 [N, H, W, C] -> (features [N, D], probabilities [N, K])`, float32.
    """

    name: str
    apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def classifier(
    load: Callable[[], Dataset],
    digest: str,
    *,
    seed: int = 0,
    steps: int = 2_500,
    batch_size: int = 128,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
) -> Classifier:
    """Trains on labelled images, or reads what was trained before: the same data, seed and steps, the same network.

    Args:
      load: the images and labels, asked for where nothing was trained on them before.
      digest: what they are known by.
      seed: of all that is random.
      steps: of Adam, its rate falling from 1e-3 along half a cosine.
      batch_size: images in one step.
      cache: folder of trained classifiers; None: that of the user.
      say: hears that something is being trained.

    Raises:
      UserError: the images have no labels.
    """
    path = _place(cache, digest, seed, steps, batch_size)
    found = _read(path)
    if found is None:
        data = load()
        if not data.classes:
            raise UserError(f"{data.name} has no labels to train a classifier on: use labelled data, or --inception")
        say(f"training a classifier of {data.name} to judge samples, once")
        params = _train(Network(len(data.classes)), data.train, seed, steps, batch_size)
        _, probabilities = _apply(partial(_forward, params), 1_000, data.test["image"])
        right = probabilities.argmax(-1) == data.test["label"]
        found = flatten_dict(params, sep="/") | {"name": np.array(data.name), "accuracy": right.mean()}
        _write(path, found)
    accuracy, name = float(found.pop("accuracy")), str(found.pop("name"))
    params = unflatten_dict(found, sep="/")
    name = f"{name} classifier, {100 * accuracy:.1f} % right"
    return Classifier(name, partial(_apply, partial(_forward, params), 1_000))


def inception(path: Path) -> Classifier:
    """FID's Inception network, of the weights in a file (`jaxgen.metrics.inception`).

    Raises:
      UserError: the file is not what it should be.
    """
    from jaxgen.metrics.inception import load
    from jaxgen.networks.inception import features

    return Classifier("FID's Inception network", partial(_apply, partial(jax.jit(features), load(path)), 50))


def by_channel(judge: Classifier) -> Classifier:
    """Of images whose C channels are an image each: features side by side, probabilities of all combinations."""

    def apply(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = zip(*(judge.apply(x[..., None]) for x in np.moveaxis(images, -1, 0)), strict=True)
        combined = probabilities[0]
        for each in probabilities[1:]:
            combined = (combined[:, :, None] * each[:, None, :]).reshape(len(images), -1)
        return np.concatenate(features, axis=-1), combined

    return Classifier(f"{judge.name}, on each channel", apply)


def _apply(function: Callable, size: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In parts of one size, of which the last is filled up with the first images."""
    size = min(size, len(images))
    starts = range(0, len(images), size)
    parts = [jax.device_get(function(images[np.arange(i, i + size) % len(images)])) for i in starts]
    return tuple(np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))


@jax.jit
def _forward(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    network = Network(params["Dense_0"]["bias"].size)
    features, logits = network.apply({"params": params}, to_unit(images))
    return features, jax.nn.softmax(logits)


def _train(network: Network, arrays: Arrays, seed: int, steps: int, batch_size: int) -> Params:
    """By the one loop, as a model that has no samples."""

    def init(key: Key, batch: Batch) -> Params:
        return {"classifier": network.init(key, to_unit(batch["image"][:1]))["params"]}

    def evaluate(params: Params, batch: Batch, key: Key) -> dict[str, jax.Array]:
        _, logits = network.apply({"params": params["classifier"]}, to_unit(batch["image"]))
        return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])}

    def loss(params: Params, batch: Batch, key: Key, step: Step) -> tuple[jax.Array, Aux]:
        shifted = batch | {"image": jax.vmap(_shifted)(batch["image"], jax.random.split(key, len(batch["image"])))}
        value = evaluate(params, shifted, key)["loss"].mean()
        return value, Aux({"loss": value})

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    model = Model(
        init=init, objectives=(Objective("classifier", loss, optimizer),), evaluate=evaluate, sample=_no_samples
    )
    state = jax.jit(init_state, static_argnums=0)(model, jax.random.key(seed), gather(arrays, np.arange(1)))

    def batches(start: int, stop: int) -> Batch:
        indices = batch_indices(len(arrays["label"]), batch_size, seed=seed, start=start, stop=stop)
        return gather({name: arrays[name] for name in ("image", "label")}, indices)

    state = train(state, jax.jit(scan_steps(make_step(model)), donate_argnums=0), batches, stop=steps)
    return jax.device_get(state.params["classifier"])


def _shifted(image: jax.Array, key: Key) -> jax.Array:
    padded = jnp.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    return jax.lax.dynamic_slice(padded, (*jax.random.randint(key, (2,), 0, 2 * SHIFT + 1), 0), image.shape)


def _no_samples(*args, **controls):
    raise TypeError("a classifier has no samples")


def judge_of_copies(config: Any, spec: Spec, load: Callable[[Any], Dataset]) -> Callable[[], Classifier] | None:
    """What looks for copies among samples in its features, where --features asks for it, of an experiment's data.

    Raises:
      UserError: the data have no labels.
    """
    if not config.evaluate.features:
        return None
    if not spec.classes:
        raise UserError(f"--features: {spec.name} has no labels to train a classifier on: leave it out")
    return partial(classifier, partial(load, config), spec.digest)


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
    return found if {"name", "accuracy"} <= found.keys() else None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Where the folder cannot be written, it is trained again another time."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    with suppress(OSError):
        write_atomically(path, content.getvalue())
