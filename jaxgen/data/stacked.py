"""Stacked digits: with 1,000 modes and a classifier to name them, what a generator has missed can be counted."""

from dataclasses import replace
from itertools import product

import numpy as np

from jaxgen.data.source import Arrays, Dataset
from jaxgen.errors import UserError


def stacked(data: Dataset, *, count: int = 128_000, test_count: int = 10_000, seed: int = 0) -> Dataset:
    """Three random grey images as the channels of one (Metz et al. 2017; Srivastava et al. 2017, VEEGAN).

    Images of labels a, b, c become one of label (a K + b) K + c, K being the number of classes: 100 a + 10 b + c for
    digits. VEEGAN and PacGAN draw their 128,000 triples from all 70,000 digits of MNIST; here those of a split come
    from the same split of `data`, so that no part of a test image was seen in training. A validation split has as
    many triples as the test split.

    Args:
      data: labelled images of one channel, [N, H, W, 1].
      count: triples to train on; 128,000 of MNIST's take 301 MB.
      test_count: triples to test on, and to validate on.
      seed: of the triples.

    Returns:
      {"image": [N, H, W, 3] of the same dtype, "label": int32 [N]}. The class of a triple is named "a b c".

    Raises:
      UserError: images of several channels or without labels, a count below 1.
    """
    if min(count, test_count) < 1:
        raise UserError(f"{count} and {test_count} triples of {data.name}: expected at least 1 to train and to test on")
    shapes = {name: array.shape[1:] for name, array in data.train.items()}
    if shapes.get("image", ())[-1:] != (1,) or "label" not in shapes or not data.classes:
        raise UserError(
            f"{data.name} cannot be stacked: expected images of one channel and their labels, found {shapes} of "
            f"{len(data.classes)} classes; choose a labelled data set of grey images, such as mnist"
        )

    def draw(arrays: Arrays, split: int, count: int) -> Arrays:
        image, label = arrays["image"][..., 0], arrays["label"].astype(np.int32)
        triples = np.random.default_rng((seed, split)).integers(0, len(image), (count, 3))
        stack = np.empty((count, *image.shape[1:], 3), image.dtype)
        for channel in range(3):  # one at a time: it halves the memory
            stack[..., channel] = np.take(image, triples[:, channel], axis=0)
        a, b, c = label[triples].T
        return {"image": stack, "label": (a * len(data.classes) + b) * len(data.classes) + c}

    return replace(
        data,
        name=f"stacked_{data.name}",
        train=draw(data.train, 0, count),
        test=draw(data.test, 1, test_count),
        validation=draw(data.validation, 2, test_count) if data.validation is not None else None,
        watch=None,
        classes=tuple(map(" ".join, product(data.classes, repeat=3))),
        source=f"random triples, stacked as channels (Metz et al. 2017), of: {data.source or data.name}",
    )
