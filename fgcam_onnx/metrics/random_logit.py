"""Random logit: does the map of a class look different from that of another class?

    SSIM(E_c, E_k), k another class at random                                                  lower is better

A method whose maps are the same for every class scores 1. Methods of z+ chains tend to one pattern: they score high,
and it is said, not hidden. The other class follows from the seed and the picture, whatever else is in the batch. SSIM
as in :mod:`fgcam_onnx.metrics.similarity`, over the joint range of both maps; undefined where both are constant.

Source: methods 7.6; Sixt et al. 2020 (random logit test). quantus takes the SSIM of flattened maps, with windows of 7
cells in a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, OptionError, TargetError
from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.explaining import classes_of, maps_of
from fgcam_onnx.metrics.similarity import ssim

__all__ = ["RandomLogit", "other_classes", "random_logit"]


def random_logit(
    explain: Any,
    x: Any,
    target: Any = None,
    *,
    classes: int | None = None,
    seed: int = 0,
    window: int = 7,
    **options: Any,
) -> Array:
    """The similarity of the maps of two classes of each picture, float64 [n].

    ``explain``: an Explainer, with ``method`` and other ``options`` of its ``explain``; or a function that is called
    with ``target=``, see :mod:`fgcam_onnx.metrics.explaining`. ``x`` [n, ...]. ``target``: a class for all, or one
    each; None for an Explainer's predicted class. ``classes``: how many there are; an Explainer knows. ``seed``: of the
    other classes. ``window``: of SSIM.

    Raises:
        InputError, TargetError, OptionError: what does not fit; fewer than two classes.
    """
    pictures = np.asarray(x)
    if pictures.dtype.kind not in "fiu" or pictures.ndim < 3 or not pictures.size:
        raise InputError("pictures have to be [n, ...]", known=f"they are {pictures.dtype} {list(pictures.shape)}")
    maps = maps_of(explain, options)
    count = getattr(explain, "num_classes", 0) if classes is None else classes
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 2:
        raise OptionError(
            f"option classes cannot be {classes!r}", known="how many classes there are, at least 2: another is drawn"
        )
    own = classes_of(explain, pictures, target, inputs=options.get("inputs"))
    if own is None:
        raise TargetError("a function that explains does not say which class it takes", next="give target=")
    return ssim(maps(pictures, own), maps(pictures, other_classes(pictures, own, int(count), seed)), window=window)


def other_classes(x: Array, own: Array, classes: int, seed: int = 0) -> Array:
    """int64 [n]: for each picture a class that is not its own, each with the same probability.

    Raises:
        TargetError: a class that does not exist.
    """
    if own.min() < 0 or own.max() >= classes:
        wrong = own[(own < 0) | (own >= classes)]
        raise TargetError(f"there is no class {int(wrong[0])}", known=f"there are {classes}, 0 to {classes - 1}")
    keys = [zlib.crc32(np.ascontiguousarray(picture).tobytes()) for picture in x]
    steps = [int(np.random.default_rng([seed, key]).integers(1, classes)) for key in keys]
    found: Array = (own + np.array(steps)) % classes
    return found


class RandomLogit(Accumulator):
    """Options as of :func:`random_logit`; ``update(x, target)``."""

    figures = ("random_logit",)

    def __init__(self, explain: Any, **options: Any) -> None:
        super().__init__()
        self.explain, self.options = explain, options

    def measure(self, x: Any, target: Any = None) -> Mapping[str, Array]:
        return {"random_logit": random_logit(self.explain, x, target, **self.options)}
