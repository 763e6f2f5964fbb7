"""How alike are two maps? Correlations of their cells and of their ranks, and of their structure.

    pearson    sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)
    spearman   pearson of the ranks; cells of equal value share the mean of their ranks
    ssim       mean over windows of  (2 ma mb + C1)(2 sab + C2) / ((ma^2 + mb^2 + C1)(sa^2 + sb^2 + C2))
               windows of 7 cells a side that lie inside whole, with the covariances of a sample (over N - 1);
               C1 = (0.01 R)^2, C2 = (0.03 R)^2, R the range of the values

1 for equal maps. Correlations are undefined where a map is constant; ssim where both are constant and R is their own
range, or where a side has less than 3 cells. Of maps with a side below 7 the window is the largest odd one that fits.

Source: methods 7.6; Wang et al. 2004 (SSIM), with the window, constants and covariances of scikit-image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.maps import checked, rows

__all__ = ["Similarity", "pearson", "ranks", "similarity", "spearman", "ssim"]

# Deviations below this share of the largest value are rounding: the map is constant.
FLAT = 1e-13


def similarity(a: Any, b: Any, *, window: int = 7, data_range: float | None = None) -> dict[str, Array]:
    """``pearson``, ``spearman`` and ``ssim`` of each map of ``a`` [n, ...] with the one of ``b``, float64 [n].

    ``window``: cells of a side of SSIM's window. ``data_range``: its R; None for max - min of each pair of maps.

    Raises:
        InputError, OptionError: maps of two shapes, or a window that is none.
    """
    return {
        "pearson": pearson(a, b),
        "spearman": spearman(a, b),
        "ssim": ssim(a, b, window=window, data_range=data_range),
    }


def pearson(a: Any, b: Any) -> Array:
    """[n, ...] and [n, ...] -> float64 [n]; NaN where one of a pair is constant."""
    _same(a, b)
    left, right = _centred(rows(a)), _centred(rows(b))
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    together = (left * right).sum(axis=1)
    found: Array = np.divide(together, size, out=np.full(len(size), np.nan), where=size > 0)
    return np.clip(found, -1, 1)


def spearman(a: Any, b: Any) -> Array:
    """[n, ...] and [n, ...] -> float64 [n]; NaN where one of a pair is constant."""
    _same(a, b)
    return pearson(ranks(a), ranks(b))


def ranks(values: Any) -> Array:
    """[n, ...] -> float64 [n, cells], from 1; equal values have the mean of their ranks."""
    flat = rows(values)
    found = np.empty(flat.shape)
    for row, into in zip(flat, found, strict=True):
        _, which, count = np.unique(row, return_inverse=True, return_counts=True)
        last = np.cumsum(count)
        into[:] = (last - (count - 1) / 2)[which.ravel()]
    return found


def ssim(a: Any, b: Any, *, window: int = 7, data_range: float | None = None) -> Array:
    """[n, ...] and [n, ...] -> float64 [n]; arguments as of :func:`similarity`.

    Raises:
        InputError, OptionError: as :func:`similarity`.
    """
    _same(a, b)
    if isinstance(window, bool) or not isinstance(window, (int, np.integer)) or window < 3 or window % 2 == 0:
        raise OptionError(f"option window cannot be {window!r}", known="an odd number of cells, 3 or more")
    if data_range is not None and not 0 < data_range < np.inf:
        raise OptionError(f"option data_range cannot be {data_range!r}", known="max - min of the values, above 0")
    x, y = checked(a), checked(b)
    axes = tuple(range(1, x.ndim))
    side = min(x.shape[1:])
    if side < 3:
        return np.full(len(x), np.nan)
    window = min(int(window), side - 1 + side % 2)
    if data_range is None:
        span = np.maximum(x.max(axis=axes), y.max(axis=axes)) - np.minimum(x.min(axis=axes), y.min(axis=axes))
    else:
        span = np.full(len(x), float(data_range))
    unit = np.where(span > 0, span, 1).reshape(-1, *[1] * len(axes))
    x, y = x / unit, y / unit
    cells = float(window ** len(axes))
    ma, mb = _mean(x, window), _mean(y, window)
    sample = cells / (cells - 1)
    saa, sbb = sample * (_mean(x * x, window) - ma * ma), sample * (_mean(y * y, window) - mb * mb)
    sab = sample * (_mean(x * y, window) - ma * mb)
    c1, c2 = 0.01**2, 0.03**2
    each = (2 * ma * mb + c1) * (2 * sab + c2) / ((ma**2 + mb**2 + c1) * (saa + sbb + c2))
    return np.where(span > 0, each.mean(axis=axes), np.nan)


def _mean(x: Array, window: int) -> Array:
    """Of each window that lies inside whole, [n, h, w] -> [n, h - window + 1, w - window + 1]."""
    for axis in range(1, x.ndim):
        x = np.lib.stride_tricks.sliding_window_view(x, window, axis=axis).mean(axis=-1)
    return x


def _centred(values: Array) -> Array:
    """Over the largest size, less the mean; zeros where what is left is rounding."""
    size = np.abs(values).max(axis=1, keepdims=True)
    scaled = np.divide(values, size, out=np.zeros(values.shape), where=size > 0)
    centred = scaled - scaled.mean(axis=1, keepdims=True)
    flat = np.abs(centred).max(axis=1, keepdims=True) < FLAT
    return np.where(flat, 0, centred)


def _same(a: Any, b: Any) -> None:
    if np.shape(a) != np.shape(b):
        raise InputError(
            "two maps are compared cell by cell", known=f"they are {list(np.shape(a))} and {list(np.shape(b))}"
        )


class Similarity(Accumulator):
    """``update(a, b)``; options as of :func:`similarity`."""

    figures = ("pearson", "spearman", "ssim")

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def measure(self, a: Any, b: Any) -> Mapping[str, Array]:
        return similarity(a, b, **self.options)
