"""Maps as a metric reads them that looks at the map alone: rows of float64, and sums that no size upsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import InputError

__all__ = ["checked", "entropy", "rows"]

Array = npt.NDArray[Any]


def checked(relevance: Any) -> Array:
    """Maps [n, ...] as float64.

    Raises:
        InputError: no maps, or not finite.
    """
    maps = np.asarray(relevance)
    if maps.dtype.kind not in "fiu" or maps.ndim < 2 or not maps.size:
        raise InputError("maps have to be numbers [n, ...]", known=f"they are {maps.dtype} {list(maps.shape)}")
    if not np.isfinite(maps).all():
        raise InputError("maps have to be finite", known=f"{int((~np.isfinite(maps)).sum())} cells are not")
    return maps.astype(np.float64)


def rows(relevance: Any) -> Array:
    """Maps [n, ...] -> float64 [n, cells]; raises as :func:`checked`."""
    maps = checked(relevance)
    return maps.reshape(len(maps), -1)


def entropy(weights: Array) -> Array:
    """-sum q ln q of each row of weights >= 0, q = weights / their sum, [n, k] -> [n]; NaN of a row of zeros."""
    size = weights.max(axis=1, keepdims=True)
    weights = np.divide(weights, size, out=np.zeros(weights.shape), where=size > 0)  # sums without overflow
    whole = weights.sum(axis=1, keepdims=True)
    q = np.divide(weights, whole, out=np.zeros(weights.shape), where=whole > 0)
    found: Array = -(q * np.log(q, out=np.zeros(q.shape), where=q > 0)).sum(axis=1)
    return np.where(whole[:, 0] > 0, np.maximum(found, 0), np.nan)
