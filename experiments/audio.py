"""What there is to hear, to see and to measure of sounds, whatever model made them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxgen import config as flags
from jaxgen.classifier import Classifier, classifier, shortage
from jaxgen.data import Dataset, Spec
from jaxgen.data.audio import frequency
from jaxgen.data.decode import to_wave
from jaxgen.data.source import Arrays
from jaxgen.evaluate import Estimate, estimate, interval
from jaxgen.experiment import Figures
from jaxgen.metrics import fidelity
from jaxgen.metrics.audio import in_tune, pitch
from jaxgen.report import Exhibit, in_turn, spectrograms
from jaxgen.spectra import Scale, log_mel


@dataclass(frozen=True)
class EvaluateConfig(flags.EvaluateConfig):
    """What is measured at the end, and by `python -m jaxgen evaluate`."""

    num_samples: Annotated[int, Meta(ge=2, le=1_000_000)] = 500
    """Number of generated sounds to measure, the same for each label."""


def labels_asked(
    conditional: bool, label: int | None, n: int, labels: jax.Array | None, spec: Spec
) -> jax.Array | None:
    """As `config.labels_asked`, and where nothing is asked for all classes in turn."""
    every = jnp.arange(n) % max(len(spec.classes), 1)
    return flags.labels_asked(conditional, label, n, every if labels is None else labels)


def labels_shown(spec: Spec) -> np.ndarray:
    """One of each class, as far as a page has room."""
    return labels_in_turn(spec, min(len(spec.classes) or 10, 16))


def labels_in_turn(spec: Spec, n: int) -> np.ndarray:
    """0, 1, ..., of all classes alike; zeros where there are none."""
    return (np.arange(n) % max(len(spec.classes), 1)).astype(np.int32)


def exhibits(sounds: np.ndarray, labels: np.ndarray, arrays: Arrays, rate: int) -> dict[str, Exhibit]:
    """Generated sounds, and held-out ones of the same labels; spectrograms of these, and below them of those."""
    rows = np.arange(len(labels)) % len(arrays["audio"])
    if "label" in arrays:
        rows = [next(iter(np.flatnonzero(arrays["label"] == label)), 0) for label in labels]
    real = arrays["audio"][rows]
    return {
        "sounds": in_turn(sounds, rate),
        "recordings": in_turn(real, rate),
        "spectrograms": spectrograms(levels(np.concatenate([sounds, real]), rate), columns=len(sounds)),
    }


def rendered(sounds: np.ndarray, rate: int, columns: int | None = None) -> list[Exhibit]:
    """int16 [N, T] -> all of them one after another, and their spectrograms."""
    return [in_turn(sounds, rate), spectrograms(levels(sounds, rate), columns=columns)]


def judged(
    sounds: np.ndarray,
    labels: np.ndarray | None,
    arrays: Arrays,
    spec: Spec,
    rate: int,
    load: Callable[[], Dataset],
    at: str = "",
) -> Figures:
    """Whether sounds are what they were asked to be: notes in tune by YIN, others by a classifier of recordings.

    Args:
      sounds: int16 [N, T].
      labels: that they were asked for, or None.
      arrays: held-out recordings.
      spec: of the data.
      rate: samples per second.
      load: the data, to train a classifier on where none was yet.
      at: how they were drawn, where that is to be said.
    """
    if spec.name == "notes":
        return {} if labels is None else tuned(sounds, labels, arrays, spec, rate, at)
    if not spec.classes:
        return {}
    judge = judge_of(spec, rate, load)
    if judge is None:
        return {}
    features, probabilities = judge.apply(pictures(sounds, rate))
    expected, _ = judge.apply(pictures(arrays["audio"], rate))
    of, figures = f"{judge.name}; {len(sounds):,} samples{at}, {len(expected):,} held out", {}
    if len(expected) > 1:
        frechet = fidelity.measures(expected, features, ["frechet"])["frechet"]
        figures[f"Frechet distance ({of})"] = interval(frechet)
    if labels is not None:
        right = probabilities.argmax(-1) == labels
        figures[f"samples of the class asked for, % ({of})"] = estimate(100.0 * right)
    return figures


def tuned(sounds: np.ndarray, labels: np.ndarray, arrays: Arrays, spec: Spec, rate: int, at: str = "") -> Figures:
    """Share of notes whose pitch is less than 50 cents from that of their label; and, of real ones, what YIN makes."""
    asked = np.array([frequency(name) for name in spec.classes])
    low = asked.min() / 2
    if sounds.shape[1] < 4 * rate / low:
        return {}  # too short to tell

    def share(sounds: np.ndarray, labels: np.ndarray) -> Estimate:
        return estimate(100.0 * in_tune(pitch(sounds, rate, low=low), asked[labels]))

    count = len(arrays["audio"])
    return {
        f"generated notes within 50 cents, % (YIN, {len(sounds):,} notes{at})": share(sounds, labels),
        f"held-out notes within 50 cents, % (YIN, {count:,} notes)": share(arrays["audio"], arrays["label"]),
    }


def judgeable(data: Dataset) -> Dataset:
    """The data, with a notice if they have labels and are too few to train a judge on."""
    reason = shortage(data, labels=True) if data.classes and data.name != "notes" else ""
    return data.noted(reason) if reason else data


def judge_of(spec: Spec, rate: int, load: Callable[[], Dataset]) -> Classifier | None:
    """Return a classifier of spectrograms, trained once on the labels of the data; None if the data are too few."""

    def as_pictures(data: Dataset) -> Dataset:
        train, test = (
            {"image": pictures(arrays["audio"], rate), "label": arrays["label"]} for arrays in (data.train, data.test)
        )
        return replace(data, train=train, test=test)

    return classifier(load, spec.digest, form="log-mel", view=as_pictures)


def pictures(sounds: np.ndarray, rate: int) -> np.ndarray:
    """int16 [N, T] -> uint8 [N, frames, bins, 1]."""
    return np.round(255 * levels(sounds, rate)[..., None]).astype(np.uint8)


def levels(sounds: np.ndarray, rate: int) -> np.ndarray:
    """int16 [N, T] -> loudness [N, frames, bins] in [0, 1], in frames of about 30 ms."""
    size = 2 ** round(np.log2(0.03 * rate))
    scale = Scale(rate, size=size, hop=size // 2)
    return np.concatenate([_levels(sounds[i : i + 500], scale) for i in range(0, len(sounds), 500)])


@partial(jax.jit, static_argnames="scale")
def _levels(sounds: jax.Array, scale: Scale) -> jax.Array:
    return log_mel(to_wave(sounds), scale)
