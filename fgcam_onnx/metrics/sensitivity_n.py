"""Sensitivity-n: does the relevance of some pixels say how far the logit falls without them?

    Pearson over random sets S of n pixels of   sum_S E   and   y_c(x) - y_c(x with S at the baseline)

From -1 to 1, higher is better. y_c is the logit. Of a linear model w.x and baseline 0 the map w x has 1, for every n.
Undefined where one side is the same for every set: a constant map, or a class that no set moves.

A map of a lower resolution is ReLU'd and stretched, as it is shown. Every picture has the same sets, so that batches
equal pictures one by one, and the maps of a picture are compared on the same sets.

Source: methods 7.6; Ancona et al. 2018. There a set has n numbers of the input; here n pixels, with all their channels.
Of inputs with one channel it is what quantus calls faithfulness correlation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import OptionError
from fgcam_onnx.metrics.base import Accumulator, Array, each_pair, subjects
from fgcam_onnx.metrics.changes import falls, hidden, sums, whole
from fgcam_onnx.metrics.pixels import at_input
from fgcam_onnx.metrics.scorer import scorer_of
from fgcam_onnx.metrics.similarity import pearson

__all__ = ["SensitivityN", "pixel_sets", "sensitivity_n"]


def sensitivity_n(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    size: float = 0.1,
    samples: int = 100,
    seed: int = 0,
    signed: bool | None = None,
    baseline: Any = "zero",
    kernel: int = 51,
    sigma: float = 50.0,
) -> Array:
    """The correlation of each picture, float64 [n].

    ``size``: pixels of a set: a whole number, or a share between 0 and 1. ``samples``: sets. ``seed``: of the sets.
    The other arguments as of :func:`fgcam_onnx.metrics.average_drop`; pixels are set to zero here by default.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
    """
    scorer = scorer_of(model)
    pictures = subjects(scorer, x, target, baseline, kernel=kernel, sigma=sigma)
    pairs = list(each_pair(pictures, np.asarray(relevance)))
    sets = pixel_sets(int(np.prod(pictures[0].size)), size=size, samples=samples, seed=seed)
    e = np.stack([at_input(each[None], subject.size, signed=signed)[0].ravel() for subject, each in pairs])
    return pearson(sums(e, sets), falls(scorer, pictures, (hidden(subject, sets) for subject in pictures), len(sets)))


def pixel_sets(pixels: int, *, size: float = 0.1, samples: int = 100, seed: int = 0) -> Array:
    """int64 [samples, size]: the numbers of the pixels of each set, none twice in a set.

    Raises:
        OptionError: sets without a pixel or of all pixels, or fewer than 2 of them.
    """
    samples = whole("samples", samples, 2, "sets of pixels")
    share = isinstance(size, (float, np.floating)) and 0 < size < 1
    count = max(1, round(size * pixels)) if share else size
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 0 < count < pixels:
        raise OptionError(
            f"option size cannot be {size!r}",
            known=f"pixels of a set, 1 to {pixels - 1}, or a share of all between 0 and 1",
        )
    random = np.random.default_rng(seed)
    return np.stack([random.choice(pixels, count, replace=False, shuffle=False) for _ in range(samples)])


class SensitivityN(Accumulator):
    """Options as of :func:`sensitivity_n`."""

    figures = ("sensitivity_n",)

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        return {"sensitivity_n": sensitivity_n(self.model, x, relevance, target, **self.options)}
