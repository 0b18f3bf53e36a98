"""Paths between latents."""

import numpy as np


def straight(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[D], [D], [T] -> [T, D]."""
    return (1 - t)[:, None] * start + t[:, None] * end


def spherical(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[D], [D], [T] -> [T, D]: along the great circle (Shoemake 1985), straight where there is none to speak of."""
    cosine = start @ end / max(np.linalg.norm(start) * np.linalg.norm(end), 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-4:
        return straight(start, end, t)
    return (np.sin((1 - t) * angle)[:, None] * start + np.sin(t * angle)[:, None] * end) / np.sin(angle)
