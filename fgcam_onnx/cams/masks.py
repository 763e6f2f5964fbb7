"""Masks: maps stretched to the input's size and to [0, 1].

mm(v) = (v - min v) / (max v - min v), all 0 where v is constant          Up: bilinear, half-pixel centres
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fgcam_onnx.cams.base import Context
from fgcam_onnx.imaging import resize

__all__ = ["input_space", "min_max", "pieces", "stretched", "through"]


def input_space(context: Context) -> tuple[int, ...]:
    """Sizes of the input's spatial axes."""
    return tuple(d for axis, d in enumerate(context.x.shape) if axis not in (0, context.channel_axis))


def min_max(v: np.ndarray) -> np.ndarray:
    """mm of each v[i] by itself, [m, ...] -> [m, ...]."""
    axes = tuple(range(1, v.ndim))
    low = v.min(axis=axes, keepdims=True)
    span = v.max(axis=axes, keepdims=True) - low
    result: np.ndarray = np.divide(v - low, span, out=np.zeros_like(v), where=span > 0)
    return result


def stretched(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """mm(Up(map)) of each, [m, ...] -> [m, *size]."""
    return min_max(resize(maps, size))


def through(masks: np.ndarray, context: Context, image: int) -> np.ndarray:
    """The image seen through each mask: x m, [m, ...] of the input's layout."""
    seen: np.ndarray = context.x[image : image + 1] * np.expand_dims(masks, context.channel_axis)
    return seen


def pieces(total: int, size: int) -> Iterator[np.ndarray]:
    """0 .. total - 1 in runs of ``size``."""
    for first in range(0, total, size):
        yield np.arange(first, min(first + size, total))
