"""How far two batches of maps are apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def relative_error(found: ArrayLike, expected: ArrayLike) -> float:
    """The greatest ||found - expected|| / ||expected|| over the batch, axis 0, in float64.

    Shapes must be equal: no broadcasting. Where an expected map is all zero, its norm is taken for 1. NaN stays NaN,
    so a comparison ``<=`` with it fails.
    """
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"maps of shapes {a.shape} and {b.shape} cannot be compared")
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(b, axis=1)
    return float(np.max(np.linalg.norm(a - b, axis=1) / np.where(norms == 0, 1, norms)))
