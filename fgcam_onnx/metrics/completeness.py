"""Completeness gap: how far is the sum of a map from what its method promises it to be?

    gap = |sum E - promised|;  relative = gap / |promised|                                     lower is better

``promised``: the score, or the difference of scores, that the method shares out (``Explanation.promised``). Only some
methods promise a sum; the figure says nothing of others. ``relative`` is undefined where 0 is promised.

Source: methods 7.6; Sundararajan et al. 2017 (completeness), Shrikumar et al. 2017 (summation to delta).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError
from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.maps import rows

__all__ = ["Completeness", "completeness"]


def completeness(relevance: Any, promised: Any = None) -> dict[str, Array]:
    """``gap`` and ``relative`` of each map, float64 [n].

    ``relevance``: maps [n, ...] with their sums ``promised`` [n]; or an Explanation alone, which knows both. Of k
    classes of an image the maps are counted as n k.

    Raises:
        InputError: an explanation whose method promises no sum, or another number of sums than maps.
    """
    if hasattr(relevance, "promised"):
        explanation = relevance
        if promised is None and explanation.promised is None:
            raise InputError(
                f"method {explanation.method!r} promises no sum, so it has no completeness gap",
                next="give promised=, or a method that shares out a difference, as integrated-gradients",
            )
        promised = explanation.promised if promised is None else promised
        space = explanation.relevance.shape[len(explanation.rows) :]
        relevance = explanation.relevance.reshape(-1, *space)
    found = rows(relevance).sum(axis=1)
    due = np.asarray(np.nan if promised is None else promised)
    if due.dtype.kind not in "fiu" or due.size != len(found) or not np.isfinite(due).all():
        raise InputError(
            f"promised has to be a finite number for each of {len(found)} maps",
            known=f"it is {'None' if promised is None else f'{due.dtype} {list(due.shape)}'}",
        )
    due = due.astype(np.float64).ravel()
    gap = np.abs(found - due)
    return {"gap": gap, "relative": np.divide(gap, np.abs(due), out=np.full(len(gap), np.nan), where=due != 0)}


class Completeness(Accumulator):
    """``update(explanation)``, or ``update(relevance, promised)``."""

    figures = ("gap", "relative")

    def measure(self, relevance: Any, promised: Any = None) -> Mapping[str, Array]:
        return completeness(relevance, promised)
