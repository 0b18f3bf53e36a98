"""Comparison of a model with its training images: copies among its samples, and membership inference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.data.source import Arrays, gather
from jaxgen.evaluate import Estimate, interval, per_example
from jaxgen.metrics.fidelity import Interval
from jaxgen.metrics.memorization import Memorization, membership, memorization
from jaxgen.report import Exhibit, grid
from jaxgen.types import Batch, Key, Params

HELD_OUT = 2_000  # most held-out images whose distances give the threshold


class Audit(NamedTuple):
    """Figures, exhibits, warnings, and the verdict on copying in words that a model card can carry."""

    figures: dict[str, Estimate] = {}
    exhibits: dict[str, Exhibit] = {}
    warnings: tuple[str, ...] = ()
    verdict: str = ""


def images_audit(
    *,
    draw: Callable[[Params, Key, int], jax.Array],
    evaluate: Callable[[Params, Batch, Key], dict[str, jax.Array]],
    attack: str,
    count: int | None,
    form: Callable[[np.ndarray, Key], jax.Array] | None = None,
    judge: Callable[[], Any] | None = None,
) -> Callable[[Params, Arrays, Arrays, Key], Audit] | None:
    """An audit: copies among samples, and membership inference (`jaxgen.metrics.memorization`).

    Args:
      draw: `(params, key, n) ->` images as stored.
      evaluate: `(params, batch, key) -> {name: [B]}`, per example.
      attack: name of the value of `evaluate` that infers membership, where training images have higher values; with a
        leading minus, where they have lower values.
      count: number of samples, and of training and held-out images in the membership inference; None: no audit.
      form: `(images, key) ->` stored images in the form of samples, if that form is another.
      judge: makes a network with a `name`, whose features `apply(images)[0]`, [N, D], are compared too: a copy that is
        moved is far in pixels, and near in features. None, or one that returns None: pixels
        alone.

    Returns:
      `(params, train, held_out, key) -> Audit`, of `image` uint8 [N, H, W, C].
    """
    if count is None:
        return None
    name = attack.removeprefix("-")

    def audit(params: Params, train: Arrays, held_out: Arrays, key: Key) -> Audit:
        draw_key, form_key, *value_keys = jax.random.split(key, 4)
        images, others = train["image"], held_out["image"]
        if min(len(images), len(others)) < 2:
            few = f"{len(images):,} training and {len(others):,} held-out images"
            return Audit(verdict=f"no verdict on copying: the audit needs at least 2 of each, and there are {few}")
        samples = np.asarray(draw(params, draw_key, count))
        drawn = others[:HELD_OUT] if form is None else np.asarray(form(others[:HELD_OUT], form_key))
        size, rng = min(count, len(images), len(others)), np.random.default_rng(0)
        values = [
            per_example(evaluate, params, gather(arrays, rng.permutation(len(arrays["image"]))[:size]), key)[name]
            for arrays, key in zip((train, held_out), value_keys, strict=True)
        ]
        auc = membership(*(-value if attack.startswith("-") else value for value in values))
        views = [("pixels,", "", _flat)]
        network = judge() if judge is not None else None
        if network is not None:
            views.append((f"features of {network.name};", " in features", lambda images: network.apply(images)[0]))
        found = [
            _seen(
                memorization(view(samples), view(images), view(others), drawn=view(drawn)),
                samples,
                images,
                of=f"{of} {count:,} samples",
                where=where,
            )
            for of, where, view in views
        ]
        told = f"membership AUC (by {name}, {size:,} training and {size:,} held-out images)"
        return Audit(
            figures={key: figure for one in found for key, figure in one.figures.items()} | {told: interval(auc)},
            exhibits={key: exhibit for one in found for key, exhibit in one.exhibits.items()},
            warnings=tuple(warning for one in found for warning in one.warnings),
            verdict=" ".join(one.verdict for one in found),
        )

    return audit


def _seen(found: Memorization, samples: np.ndarray, images: np.ndarray, *, of: str, where: str) -> Audit:
    """Findings from the distances of samples to training images; `of` names the features and samples."""
    worst, verdict = found.worst(10), f"{where and f'{where.strip()}: '}{found}"
    pairs = np.concatenate([samples[worst], images[found.nearest[worst]]])
    shares = {
        "samples nearer to a training image than 1 % of held-out images are": found.near,
        "samples nearer to training than to held-out images beyond chance": found.overall.share,
    }
    return Audit(
        figures={
            f"{name}, % ({of})": interval(Interval(*(100 * bound for bound in share))) for name, share in shares.items()
        },
        exhibits={
            f"memorization{where}": f"{verdict}\n",
            f"samples over nearest training images{where}": grid(pairs, columns=len(worst)),
        },
        warnings=(verdict,) if found.copies else (),
        verdict=verdict,
    )


def _flat(images: np.ndarray) -> np.ndarray:
    """uint8 [N, ...] -> float32 [N, D] in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)
