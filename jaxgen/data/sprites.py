"""Sprites: images whose causes are known, so that what latents have learnt can be compared with what there is to learn.

One white shape on black, every combination of the factors once, in the manner of dSprites (Matthey et al. 2017). Three
shapes without a symmetry under a sixth of a right angle, so that no two combinations look alike.
"""

from itertools import product

import numpy as np

SIZE = 32  # pixels a side
FACTORS = ("shape", "size", "angle", "x", "y")
SHAPES = ("square", "ellipse", "triangle")
RADII = (4.0, 5.0, 6.0, 7.0)  # of the circle around a shape, in pixels
ANGLES = 6  # within a right angle, after which a square looks the same
PLACES = 16  # columns and rows in which the centre lies, from 8 on, a pixel apart
SUBPIXELS = 16  # along each axis, whose share inside the shape is the intensity
LENGTHS = (len(SHAPES), len(RADII), ANGLES, PLACES, PLACES)


def sprites() -> tuple[np.ndarray, np.ndarray]:
    """All 18,432 images, uint8 [N, 32, 32, 1], and their factors, int32 [N, 5] in the order of `FACTORS`, each from 0.

    The same in every run; anti-aliased, exact to a 256th.
    """
    factors = np.array(list(product(*map(range, LENGTHS))), np.int32)
    image = np.zeros((*LENGTHS, SIZE, SIZE), np.uint8)
    for shape, size, angle in product(*map(range, LENGTHS[:3])):
        patch = _patch(SHAPES[shape], RADII[size], angle * np.pi / 2 / ANGLES)
        for x, y in product(range(PLACES), repeat=2):
            image[shape, size, angle, x, y, y : y + len(patch), x : x + len(patch)] = patch
    return image.reshape(-1, SIZE, SIZE, 1), factors


def _patch(shape: str, radius: float, angle: float) -> np.ndarray:
    """uint8 [17, 17]: the shape around the middle of the middle pixel."""
    width = SIZE - PLACES + 1
    position = (np.arange(width * SUBPIXELS) + 0.5) / SUBPIXELS - width / 2
    x, y = np.meshgrid(position / radius, position / radius)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = {
        "square": np.maximum(abs(x), abs(y)) <= np.sqrt(0.5),
        "ellipse": x**2 + (2 * y) ** 2 <= 1,
        "triangle": (y <= 0.6) & (abs(x) <= 0.5 * (y + 1)),
    }[shape]
    share = inside.reshape(width, SUBPIXELS, width, SUBPIXELS).mean(axis=(1, 3))
    return np.round(255 * share).astype(np.uint8)
