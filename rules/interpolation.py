"""How Resize reads one axis: its output cells as weighted means of input cells, a matrix [out, in].

Computed in float32, as onnxruntime does, so that a coordinate half way between two cells falls to the same side.
Source: ONNX Resize-19 (``coordinate_transformation_mode``, ``nearest_mode``, ``cubic_coeff_a``, ``exclude_outside``,
``antialias``); the cubic kernel is that of Keys, IEEE TASSP 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["matrix"]

F = np.float32
# A coordinate on a cell is on it up to float32: without this the neighbour would have a weight of 1e-8, and where the
# cell itself is negative all relevance.
ROUNDING = 1e-5


def matrix(size: int, out: int, scale: float, roi: tuple[float, float], attributes: Mapping[str, Any]) -> np.ndarray:
    """float64 [out, size]: row o holds the weights of the input cells that output o is a mean of.

    ``scale``: out / in as the model states it. ``roi``: the region that ``tf_crop_and_resize`` reads. A row of zeros is
    an output that reads outside of the input, where ``extrapolation_value`` stands.
    """
    mode = attributes.get("mode", "nearest")
    where = _coordinates(size, out, F(scale), roi, attributes.get("coordinate_transformation_mode", "half_pixel"))
    if mode == "nearest":
        weights = np.zeros((out, size))
        weights[np.arange(out), _nearest(where, size, attributes.get("nearest_mode", "round_prefer_floor"))] = 1
    else:
        shrink = F(min(scale, 1.0)) if attributes.get("antialias") else F(1)
        kernel, reach = _kernel(mode, F(attributes.get("cubic_coeff_a", -0.75)))
        drop = bool(attributes.get("exclude_outside"))
        weights = _spread(where, size, kernel, reach, shrink, drop)
        weights[np.abs(weights) < ROUNDING] = 0
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        weights[(where < 0) | (where > size - 1)] = 0
    return weights


def _coordinates(size: int, out: int, scale: np.float32, roi: tuple[float, float], mode: str) -> np.ndarray:
    """Where in the input each output cell lies, in cells; float32 [out]."""
    o = np.arange(out, dtype=F)
    if mode == "asymmetric":
        return o / scale
    if mode == "align_corners":
        return o * F(size - 1) / F(out - 1) if out > 1 else np.zeros(out, F)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(out, F)
    if mode == "tf_crop_and_resize":
        begin, end = F(roi[0]), F(roi[1])
        if out == 1:
            return np.full(out, F(0.5) * (begin + end) * F(size - 1))
        return begin * F(size - 1) + o * (end - begin) * F(size - 1) / F(out - 1)
    middle = (o + F(0.5)) / scale - F(0.5)
    if mode == "half_pixel_symmetric":
        whole = scale * F(size)
        return F(size / 2) * (F(1) - F(out) / whole) + middle
    return np.asarray(middle, F)


def _nearest(where: np.ndarray, size: int, mode: str) -> np.ndarray:
    rounded = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - F(0.5)),
        "round_prefer_ceil": lambda v: np.floor(v + F(0.5)),
    }[mode](where)
    return np.asarray(np.clip(rounded, 0, size - 1), np.int64)


def _kernel(mode: str, a: np.float32) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The interpolation's weight by distance, and how far it reaches."""
    if mode == "linear":
        return lambda d: np.maximum(1 - np.abs(d), 0), 1

    def cubic(d: np.ndarray) -> np.ndarray:
        d = np.abs(d)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return cubic, 2


def _spread(
    where: np.ndarray, size: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int, shrink: np.float32, drop: bool
) -> np.ndarray:
    """The weights of the taps around each coordinate; taps outside fall to the edge cell, or are dropped.

    ``shrink`` < 1 widens the kernel, as antialiasing does.
    """
    weights = np.zeros((len(where), size))
    radius = math.ceil(reach / shrink)
    for o, at in enumerate(where):
        first = math.floor(at) - radius + 1
        taps = np.arange(first, first + 2 * radius)
        values = kernel((taps - at) * shrink).astype(np.float64)
        if drop:
            values = np.where((taps >= 0) & (taps < size), values, 0)
        if drop or shrink < 1:
            values = values / values.sum()
        np.add.at(weights[o], np.clip(taps, 0, size - 1), values)
    return weights
