"""Sparseness: on how few cells does the relevance stand? The Gini index of |E|.

    a = |E| sorted upwards:  Gini = sum_i (2 i - n - 1) a_i / (n sum_i a_i),  i = 1..n        higher = sparser

0 where all cells are equal, 1 - 1/n where one cell has everything. Undefined of a map of zeros. The network is not run.

Source: methods 7.6; Chalasani et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.maps import rows

__all__ = ["Sparseness", "sparseness"]


def sparseness(relevance: Any) -> Array:
    """The Gini index of each map [n, ...], float64 [n]; NaN of a map of zeros.

    Raises:
        InputError: no maps, or not finite.
    """
    a = np.sort(np.abs(rows(relevance)), axis=1)
    n = a.shape[1]
    a /= np.maximum(a[:, -1:], np.finfo(np.float64).tiny)  # of any size, without overflow
    whole = a.sum(axis=1)
    weighted = a @ (2.0 * np.arange(1, n + 1) - n - 1)
    found: Array = np.divide(weighted, n * whole, out=np.full(len(a), np.nan), where=whole > 0)
    return found


class Sparseness(Accumulator):
    """Of maps alone: ``update(relevance)``."""

    figures = ("sparseness",)

    def measure(self, relevance: Any) -> Mapping[str, Array]:
        return {"sparseness": sparseness(relevance)}
