"""Average Drop and Average Increase: what remains of the score when only the highlighted half of the picture is seen.

    keep the top ceil(q H W) pixels, q = 0.5; the others become the blurred picture B
    Y = p_c(x);  O = p_c of what is kept
    A.D. = 100 mean(max(0, Y - O) / Y)     lower is better
    A.I. = 100 mean(1[Y < O])              higher is better

Of a map with signs only what is positive is kept: the top min(q H W, pixels with E > 0). Undefined where Y is 0.

Source: methods 7.3; Chattopadhay et al. 2018, with the paper's top half in place of a product with the map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import OptionError
from fgcam_onnx.metrics.base import Accumulator, Array, Subject, each_pair, subjects
from fgcam_onnx.metrics.pixels import at_input, ranking, replaced
from fgcam_onnx.metrics.scorer import scorer_of

__all__ = ["AverageDrop", "average_drop", "kept"]


def average_drop(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    fraction: float = 0.5,
    signed: bool | None = None,
    baseline: Any = "blur",
    kernel: int = 51,
    sigma: float = 50.0,
) -> dict[str, Array]:
    """``average_drop`` and ``average_increase`` of each picture in percent, [n]; their means are A.D. and A.I.

    ``model``: an Explainer, a Scorer, or a function x [m, ...] -> logits [m, classes]. ``x`` [n, ...]: as the model
    takes it. ``relevance`` [n, ...]: a map for each. ``target``: see :func:`fgcam_onnx.metrics.base.subjects`.
    ``fraction`` q. ``signed``: None for signs where the map has the input's size. ``baseline``, ``kernel``, ``sigma``:
    see :func:`fgcam_onnx.metrics.pixels.baseline_of`.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
    """
    scorer = scorer_of(model)
    pictures = subjects(scorer, x, target, baseline, kernel=kernel, sigma=sigma)
    pairs = list(each_pair(pictures, np.asarray(relevance)))
    shown = (kept(subject, each, fraction=fraction, signed=signed) for subject, each in pairs)
    left = scorer.probabilities_of(shown, [subject.target for subject in pictures])
    found = [scores(subject, o) for subject, o in zip(pictures, left, strict=True)]
    return {name: np.array([each[name] for each in found]) for name in AverageDrop.figures}


def kept(subject: Subject, relevance: Array, *, fraction: float = 0.5, signed: bool | None = None) -> Array:
    """The picture with its lower part hidden, [...].

    Raises:
        OptionError: a fraction outside 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise OptionError(f"option fraction cannot be {fraction!r}", known="the share of pixels to keep, 0 to 1")
    values = at_input(relevance[None], subject.size, signed=signed)
    count = math.ceil(fraction * values[0].size - 1e-9)  # 0.07 of 100 pixels are 7, though 0.07 * 100 > 7
    if signed or (signed is None and relevance.shape == subject.size):
        count = min(count, int((values > 0).sum()))
    return replaced(subject.baseline, subject.x, ranking(values)[0, :count], subject.layout)


def scores(subject: Subject, left: float) -> dict[str, float]:
    """Drop and increase in percent, from O = ``left``; NaN where Y is 0."""
    y = subject.original
    if y == 0:
        return {"average_drop": math.nan, "average_increase": math.nan}
    return {"average_drop": 100 * max(0.0, y - float(left)) / y, "average_increase": 100.0 * (y < left)}


class AverageDrop(Accumulator):
    """Options as of :func:`average_drop`."""

    figures = ("average_drop", "average_increase")

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        return average_drop(self.model, x, relevance, target, **self.options)
