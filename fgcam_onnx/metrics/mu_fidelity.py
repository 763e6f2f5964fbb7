"""MuFidelity: does the relevance of some patches say which of them the logit needs most?

    the picture is cut into 9 x 9 cells; a set S has 20 % of them, 16 of 81, chosen at random
    Spearman over 200 sets of   sum_S E   and   y_c(x) - y_c(x with S at the baseline)

From -1 to 1, higher is better. y_c is the logit. Undefined where one side is the same for every set.

A map of a lower resolution is ReLU'd and stretched, as it is shown. Every picture has the same sets.

Source: methods 7.6; Bhatt et al. 2020, with the grid, share and rank correlation of Fel et al. 2022 (Xplique).
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
from fgcam_onnx.metrics.similarity import spearman

__all__ = ["MuFidelity", "cell_sets", "mu_fidelity"]


def mu_fidelity(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    grid: int = 9,
    share: float = 0.2,
    samples: int = 200,
    seed: int = 0,
    signed: bool | None = None,
    baseline: Any = "zero",
    kernel: int = 51,
    sigma: float = 50.0,
) -> Array:
    """The correlation of ranks of each picture, float64 [n].

    ``grid``: cells along a side, of at least one pixel. ``share``: of the cells in a set. ``samples``: sets. ``seed``:
    of the sets. The other arguments as of :func:`fgcam_onnx.metrics.average_drop`; pixels are set to zero by default.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
    """
    scorer = scorer_of(model)
    pictures = subjects(scorer, x, target, baseline, kernel=kernel, sigma=sigma)
    pairs = list(each_pair(pictures, np.asarray(relevance)))
    sets = cell_sets(pictures[0].size, grid=grid, share=share, samples=samples, seed=seed)
    e = np.stack([at_input(each[None], subject.size, signed=signed)[0].ravel() for subject, each in pairs])
    return spearman(sums(e, sets), falls(scorer, pictures, (hidden(subject, sets) for subject in pictures), len(sets)))


def cell_sets(size: tuple[int, ...], *, grid: int = 9, share: float = 0.2, samples: int = 200, seed: int = 0) -> Array:
    """bool [samples, pixels]: the pixels in the cells of each set. Pixel i of H lies in cell floor(i grid / H).

    Raises:
        OptionError: a grid that leaves cells without a pixel, a share that takes no cell or all, fewer than 2 samples.
    """
    samples = whole("samples", samples, 2, "sets of cells")
    grid = whole("grid", grid, 2, "cells along a side")
    if grid > min(size):
        raise OptionError(f"option grid cannot be {grid}", known=f"the picture has {list(size)} pixels")
    cells = grid ** len(size)
    count = round(share * cells) if 0 < share < 1 else 0
    if not 0 < count < cells:
        raise OptionError(f"option share cannot be {share!r}", known=f"of {cells} cells at least one and not all")
    cell = np.zeros(size, np.int64)
    for axis, side in enumerate(size):
        along = np.arange(side) * grid // side
        cell = cell * grid + along.reshape([-1 if a == axis else 1 for a in range(len(size))])
    random = np.random.default_rng(seed)
    chosen = np.zeros((samples, cells), bool)
    for row in chosen:
        row[random.choice(cells, count, replace=False, shuffle=False)] = True
    return chosen[:, cell.ravel()]


class MuFidelity(Accumulator):
    """Options as of :func:`mu_fidelity`."""

    figures = ("mu_fidelity",)

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        return {"mu_fidelity": mu_fidelity(self.model, x, relevance, target, **self.options)}
