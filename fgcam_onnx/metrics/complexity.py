"""Complexity: over how many cells is the relevance spread? The entropy of the shares of |E|, in nats.

    q = |E| / sum |E|:  complexity = -sum q ln q,  0 ln 0 = 0                                  lower = simpler

ln n where all n cells are equal, 0 where one cell has everything. Undefined of a map of zeros. The network is not run.

Source: methods 7.6; Bhatt et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.maps import entropy, rows

__all__ = ["Complexity", "complexity"]


def complexity(relevance: Any) -> Array:
    """The entropy of each map [n, ...] in nats, float64 [n]; NaN of a map of zeros.

    Raises:
        InputError: no maps, or not finite.
    """
    return entropy(np.abs(rows(relevance)))


class Complexity(Accumulator):
    """Of maps alone: ``update(relevance)``."""

    figures = ("complexity",)

    def measure(self, relevance: Any) -> Mapping[str, Array]:
        return {"complexity": complexity(relevance)}
