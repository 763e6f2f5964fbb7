"""Maps that know nothing of the network: what a method has to beat before its figures mean anything.

    random           each cell by itself, uniform from 0 to 1, at the resolution of the layer it stands beside
    center-gaussian  exp(-(y^2 + x^2) / 2), y and x in quarters of the picture's sides from its centre
    edges            length of the Sobel gradient of the picture's mean over its channels

The class-blind control is a method of its own, ``class-blind`` and ``fg-class-blind``: it knows the network, and no
class.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CONTROLS", "center_gaussian", "edges", "random_map"]

Array = npt.NDArray[Any]
CONTROLS = ("random", "center-gaussian", "edges")


def random_map(size: tuple[int, ...], *key: object) -> Array:
    """float32 of this size; the same for the same key, on every machine."""
    digest = hashlib.sha256("|".join(str(part) for part in key).encode()).digest()
    values: Array = np.random.default_rng(list(digest)).random(size, np.float32)
    return values


def center_gaussian(size: tuple[int, ...]) -> Array:
    """float32 of this size, 1 in the middle."""
    axes = [(np.arange(side) - (side - 1) / 2) / (side / 4) for side in size]
    grids = np.meshgrid(*axes, indexing="ij")
    found: Array = np.exp(-sum(grid**2 for grid in grids) / 2).astype(np.float32)
    return found


def edges(x: Array, layout: str) -> Array:
    """Of one input ``[...]`` without its batch axis; ``layout`` with it, "NCHW". Borders are repeated. Of any rank."""
    grey = x.mean(axis=layout.index("C") - 1, dtype=np.float64)
    smooth, difference = (1, 2, 1), (-1, 0, 1)
    total = np.zeros(grey.shape)
    for along in range(grey.ndim):
        slope = grey
        for axis in range(grey.ndim):
            slope = _filtered(slope, axis, difference if axis == along else smooth)
        total += slope**2
    found: Array = np.sqrt(total).astype(np.float32)
    return found


def _filtered(x: Array, axis: int, weights: tuple[int, int, int]) -> Array:
    wide = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
    n = x.shape[axis]
    parts = [w * np.take(wide, np.arange(i, i + n), axis) for i, w in enumerate(weights)]
    found: Array = parts[0] + parts[1] + parts[2]
    return found
