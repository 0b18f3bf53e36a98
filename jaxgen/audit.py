"""What a comparison with the training images shows: whether a model copies them, and whether it betrays them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxgen.data.source import Arrays, gather
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate, interval, per_example
from jaxgen.metrics.memorization import membership, memorization
from jaxgen.report import Exhibit, grid
from jaxgen.types import Batch, Key, Params

HELD_OUT = 2_000  # most held-out images whose nearest training images are looked for


class Audit(NamedTuple):
    """Figures, things to see, what is wrong with the model, in words, and whether it copies."""

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
) -> Callable[[Params, Arrays, Arrays, Key], Audit] | None:
    """Looks for copies among samples, and for what tells training images from others (`jaxgen.metrics.memorization`).

    Args:
      draw: `(params, key, n) ->` images as stored.
      evaluate: `(params, batch, key) -> {name: [B]}`, per example.
      attack: which of those values membership is inferred from, by being higher for training images; with a minus
        before it, by being lower.
      count: samples, and training and held-out images of which it is asked whether they are told; None: no audit.
      form: `(images, key) ->` stored images in the form that samples have, if that is another.

    Returns:
      `(params, train, held_out, key) -> Audit`, of `image` uint8 [N, H, W, C].

    Raises:
      UserError: the count is too small.
    """
    if count is None:
        return None
    if count < 10:
        raise UserError(f"--copies {count}: expected at least 10 samples, or None")
    name = attack.removeprefix("-")

    def audit(params: Params, train: Arrays, held_out: Arrays, key: Key) -> Audit:
        draw_key, form_key, *value_keys = jax.random.split(key, 4)
        images, others = train["image"], held_out["image"]
        samples = np.asarray(draw(params, draw_key, count))
        drawn = others[:HELD_OUT] if form is None else np.asarray(form(others[:HELD_OUT], form_key))
        found = memorization(_flat(samples), _flat(images), _flat(others), drawn=_flat(drawn))
        size, rng = min(count, len(images), len(others)), np.random.default_rng(0)
        values = [
            per_example(evaluate, params, gather(arrays, rng.permutation(len(arrays["image"]))[:size]), key)[name]
            for arrays, key in zip((train, held_out), value_keys, strict=True)
        ]
        auc = membership(*(-value if attack.startswith("-") else value for value in values))
        worst = found.worst(10)
        pairs = np.concatenate([samples[worst], images[found.nearest[worst]]])
        near, of = interval(found.near), f"pixels, {count:,} samples"
        return Audit(
            figures={
                f"samples nearer to a training image than 1 % of held-out images are, % ({of})": Estimate(
                    100 * near.mean, 100 * near.error
                ),
                f"samples nearer to training than to held-out images beyond chance, % ({of})": Estimate(
                    100 * found.overall.share, 0.0
                ),
                f"membership AUC (by {name}, {size:,} training and {size:,} held-out images)": interval(auc),
            },
            exhibits={"memorization": f"{found}\n", "samples over nearest training images": grid(pairs, columns=10)},
            warnings=(str(found),) if found.copies else (),
            verdict=str(found),
        )

    return audit


def _flat(images: np.ndarray) -> np.ndarray:
    """uint8 [N, ...] -> float32 [N, D] in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)
