"""What a metric does to a picture: rank its pixels by a map, and put a baseline where pixels are hidden.

    B = blur(x), 51 x 51, sigma 50          what is seen where a pixel is hidden                       (methods 7.1)
    rank: all H W pixels by decreasing value, stable, ties in row-major order; one for all colours     (methods 7.2)

A map of a lower resolution is ReLU'd and stretched to the input's size, as it is shown; a map of the input's size is
ranked with its signs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.cams.blur import blur
from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.imaging import resize

__all__ = ["BASELINES", "at_input", "baseline_of", "positions", "ranking", "replaced", "space_of", "walk"]

Array = npt.NDArray[Any]
BASELINES = ("blur", "mean", "zero")


def space_of(layout: str) -> tuple[int, ...]:
    """The axes of space of ``[n, ...]``: all that are neither batch nor channel."""
    return tuple(axis for axis, letter in enumerate(layout) if letter not in "NC")


def baseline_of(
    x: Array, layout: str, baseline: str | float | Array = "blur", *, kernel: int = 51, sigma: float = 50.0
) -> Array:
    """What hides the pixels of ``x`` [n, ...], of its shape and dtype.

    ``baseline``: "blur" (methods 7.1: ``kernel`` pixels wide, ``sigma`` its deviation), "mean" (of each channel of the
    picture), "zero", a number, or an array that broadcasts to ``x``.

    Raises:
        OptionError: another word, or a kernel or sigma that is none.
        InputError: an array that does not fit, holds NaN, or numbers beyond the dtype of ``x``.
    """
    if isinstance(baseline, str):
        if baseline == "blur":
            found = blur(x, space_of(layout), kernel=kernel, sigma=sigma)
        elif baseline == "mean":
            found = np.broadcast_to(x.mean(axis=space_of(layout), keepdims=True, dtype=np.float64), x.shape)
        elif baseline == "zero":
            return np.zeros_like(x)
        else:
            raise OptionError(
                f"option baseline cannot be {baseline!r}", known=f"{', '.join(BASELINES)}, a number or an array"
            )
    else:
        try:
            found = np.broadcast_to(np.asarray(baseline), x.shape)
        except ValueError:
            raise InputError(
                f"the baseline has shape {list(np.shape(baseline))}", known=f"the pictures have {list(x.shape)}"
            ) from None
        if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise InputError("the baseline has to be finite numbers", known=f"it is {found.dtype}")
        limits = np.iinfo(x.dtype) if x.dtype.kind in "iu" else np.finfo(x.dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise InputError(
                f"the baseline goes from {found.min():g} to {found.max():g}", known=f"the pictures are {x.dtype}"
            )
    return np.ascontiguousarray(np.rint(found) if x.dtype.kind in "iu" else found, x.dtype)


def at_input(relevance: Array, size: tuple[int, ...], *, signed: bool | None = None) -> Array:
    """Maps [n, ...] at the size of the input, as they are ranked.

    ``signed``: None keeps the signs of a map that has the input's size, and ReLUs others before they are stretched.

    Raises:
        InputError: maps of another number of axes, or not finite.
    """
    if relevance.ndim != len(size) + 1 or not relevance.size:
        raise InputError(
            f"maps have to be [n, ...] with {len(size)} axes of space", known=f"they are {list(relevance.shape)}"
        )
    if not np.isfinite(relevance).all():
        raise InputError("maps have to be finite", known=f"{int((~np.isfinite(relevance)).sum())} cells are not")
    own = relevance.shape[1:] == tuple(size)
    values = relevance if (own if signed is None else signed) else np.maximum(relevance, 0)
    return values if own else resize(values.astype(np.float64), size)


def ranking(values: Array) -> Array:
    """[n, ...] -> int64 [n, pixels]: the pixels, numbered in row-major order, by decreasing value; ties keep theirs."""
    flat = values.reshape(len(values), -1)
    order: Array = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")
    return order


def positions(picture: Array, layout: str) -> tuple[Array, int]:
    """A view of one picture [...] with all its pixels on one axis, and that axis."""
    channel = layout.index("C") - 1
    if channel == 0:
        return picture.reshape(picture.shape[0], -1), 1
    if channel == picture.ndim - 1:
        return picture.reshape(-1, picture.shape[-1]), 0
    raise InputError(f"pictures of layout {layout} have their channels between axes of space", next="move them")


def replaced(picture: Array, other: Array, pixels: Array, layout: str) -> Array:
    """A copy of ``picture`` with these pixels of ``other``; ``pixels``: their numbers, or bool of each."""
    result = np.ascontiguousarray(picture).copy()
    _take(result, np.ascontiguousarray(other), pixels, layout)
    return result


def walk(start: Array, goal: Array, order: Array, step: int, layout: str) -> Iterator[Array]:
    """From ``start`` to ``goal`` by ``step`` pixels at a time in this order: what lies between, without both ends.

    The same array is yielded again and again.
    """
    state, goal = np.ascontiguousarray(start).copy(), np.ascontiguousarray(goal)
    for first in range(0, len(order) - step, step):
        _take(state, goal, order[first : first + step], layout)
        yield state


def _take(picture: Array, other: Array, pixels: Array, layout: str) -> None:
    into, axis = positions(picture, layout)
    source, _ = positions(other, layout)
    if axis:
        into[:, pixels] = source[:, pixels]
    else:
        into[pixels] = source[pixels]
