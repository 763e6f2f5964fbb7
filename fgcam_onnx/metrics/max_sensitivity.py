"""Max-sensitivity: how much can a map change where the picture hardly does?

    max over 10 draws d, each number uniform in [-0.02, 0.02], of   ||E(x + d) - E(x)|| / ||E(x)||

Norms are Euclidean, over all cells. Lower is better; 0 is a map that does not move. The class is that of x for every
copy: a map that changes because the prediction does would say nothing of the method. Undefined where E(x) is all 0.

Every picture has the same draws. A picture and its copies are explained in batches.

Source: methods 7.6; Yeh et al. 2019 (SENS_MAX). captum's ``sensitivity_max`` is the same, but for maps of zeros, whose
norm it takes for 1; quantus leaves out copies of which the network predicts another class, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.changes import whole
from fgcam_onnx.metrics.explaining import Maps, classes_of, maps_of

__all__ = ["MaxSensitivity", "max_sensitivity"]


def max_sensitivity(
    explain: Any,
    x: Any,
    target: Any = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 8,
    **options: Any,
) -> Array:
    """The largest relative change of the map of each picture, float64 [n].

    ``explain``: an Explainer, with ``method`` and other ``options`` of its ``explain``; or a function, see
    :mod:`fgcam_onnx.metrics.explaining`. ``x`` [n, ...]: fractions, as the model takes them. ``target``: a class for
    all, or one each; None for the predicted class of x, or for what a function chooses. ``radius``: of the draws, in
    units of the input. ``samples``: draws. ``seed``: of the draws. ``batch_size``: pictures explained at a time. Where
    the options have ``inputs``, each of them has one row, that serves every picture.

    Raises:
        InputError, TargetError, OptionError: what does not fit.
    """
    samples = whole("samples", samples, 1, "draws around a picture")
    batch_size = whole("batch_size", batch_size, 1, "pictures at a time")
    if not 0 < radius < np.inf:
        raise OptionError(f"option radius cannot be {radius!r}", known="how far a number may move, above 0")
    pictures = np.asarray(x)
    if pictures.dtype.kind != "f" or pictures.ndim < 3 or not pictures.size:
        raise InputError(
            "max-sensitivity moves pictures [n, ...] by fractions of a number",
            known=f"they are {pictures.dtype} {list(pictures.shape)}",
        )
    maps = maps_of(explain, options)
    classes = classes_of(explain, pictures, target, inputs=options.get("inputs"))

    draws = np.random.default_rng(seed).uniform(-radius, radius, (samples, *pictures.shape[1:]))

    def copies() -> Iterator[Array]:
        for picture in pictures:
            yield picture
            yield from ((picture + d).astype(picture.dtype) for d in draws)

    of_each = None if classes is None else np.repeat(classes, samples + 1)
    found = _explained(maps, copies(), of_each, batch_size)
    return np.array([_change(next(found), list(islice(found, samples))) for _ in pictures])


def _explained(maps: Maps, pictures: Iterator[Array], classes: Array | None, size: int) -> Iterator[Array]:
    """The map of each picture, made in batches of ``size``."""
    first = 0
    while batch := list(islice(pictures, size)):
        yield from maps(np.stack(batch), None if classes is None else classes[first : first + len(batch)])
        first += len(batch)


def _change(own: Array, others: list[Array]) -> float:
    """The largest distance of the others from ``own``, over its norm."""
    size = float(np.linalg.norm(own))
    return max(float(np.linalg.norm(e - own)) for e in others) / size if size > 0 else math.nan


class MaxSensitivity(Accumulator):
    """Options as of :func:`max_sensitivity`; ``update(x, target)``."""

    figures = ("max_sensitivity",)

    def __init__(self, explain: Any, **options: Any) -> None:
        super().__init__()
        self.explain, self.options = explain, options

    def measure(self, x: Any, target: Any = None) -> Mapping[str, Array]:
        return {"max_sensitivity": max_sensitivity(self.explain, x, target, **self.options)}
