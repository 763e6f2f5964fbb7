"""The proof of an export: pictures to draw, and two sets of scores to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fgcam_onnx.errors import ExportError
from fgcam_onnx.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

__all__ = ["compare", "pictures"]

Array = npt.NDArray[Any]


def pictures(n: int, shape: Sequence[int], layout: str, recipe: Preprocessing | None, seed: int) -> Array:
    """Random pictures as the model takes them, float32 ``[n, *shape]``: soft blobs, finer ones, and grain.

    White noise would not do: after a few layers it averages out, and a mistranslated network answers the same. Values
    are those that pixels of 0 to 255 have under ``recipe``, or under ImageNet's where there is none.
    """
    rng = np.random.default_rng(seed)
    channels, h, w = shape if layout == "NCHW" else (shape[-1], *shape[:-1])
    v = np.full((n, channels, h, w), 127.0)
    for cells, strength in ((3, 40), (9, 25)):
        coarse = rng.normal(size=(n, channels, cells, cells)).astype(np.float32)
        v += strength * np.stack([[_resized(plane, h, w) for plane in picture] for picture in coarse])
    v = np.clip(v + rng.normal(scale=10, size=v.shape), 0, 255).round()
    scale, mean, std = 1 / 255, np.resize(IMAGENET_MEAN, channels), np.resize(IMAGENET_STD, channels)
    if recipe is not None:
        scale, mean, std = recipe.scale, np.asarray(recipe.mean), np.asarray(recipe.std)
    x = (v * scale - mean[:, None, None]) / std[:, None, None]
    return np.ascontiguousarray(x if layout == "NCHW" else x.transpose(0, 2, 3, 1), dtype=np.float32)


def _resized(plane: npt.NDArray[np.float32], h: int, w: int) -> npt.NDArray[np.float32]:
    return np.asarray(Image.fromarray(plane).resize((w, h), Image.Resampling.BICUBIC))


def compare(expected: Array, found: Array, tolerance: float, name: str) -> float:
    """max|expected - found| / max|expected| of two arrays of scores ``[n, classes]`` or ``[n, c, h, w]``.

    Scores that are all 0 have to be equal. Raises :class:`ExportError` where it is above ``tolerance``, and where
    shape, dtype or NaN differ; the text names the image and class where they differ most.
    """
    what = f"the exported file does not compute what {name} computes"
    way = "nothing was written; try another --opset, or another version of the converter, and tell its makers"
    if found.shape != expected.shape:
        known = f"scores {list(found.shape)}, those of the source are {list(expected.shape)}"
        raise ExportError(what, known=known, next=way)
    if found.dtype != expected.dtype:
        known = f"scores of {found.dtype}, those of the source are {expected.dtype}"
        raise ExportError(what, known=known, next=way)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    gap = np.where(np.isfinite(b), np.abs(a - b), np.inf)
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    largest = float(np.abs(a).max())
    difference = float(gap[place]) / largest if largest else float(gap[place])
    if difference <= tolerance:
        return difference
    share = "not finite" if np.isinf(difference) else f"{difference:.1e} of the largest score"
    raise ExportError(
        what,
        at=f"image {place[0]} of {len(a)}, class {', '.join(str(i) for i in place[1:])}   (scores {list(a.shape)})",
        known=f"source {a[place]:.6g}, file {b[place]:.6g}: {share}, allowed {tolerance:.1e}; "
        f"largest class of each image: source {_largest(a)}, file {_largest(b)}",
        next=way,
    )


def _largest(scores: Array) -> list[int]:
    flat = np.where(np.isfinite(scores), scores, -np.inf).reshape(len(scores), -1)
    return [int(i) for i in flat.argmax(axis=1)]
