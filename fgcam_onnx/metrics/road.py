"""ROAD: remove pixels so that nothing shows where they were, and see what the score does.

    morf   p_c without the top p % of the pixels, p = 10, 20, .. 90      falls at once where the map is right
    lerf   p_c without the bottom p %                                    stays
    combined = mean over p of (lerf - morf) / 2                          from -0.5 to 0.5, higher is better

A removed pixel is the weighted mean of its 8 neighbours, 1/6 each of the four that share an edge, 1/12 each of the
four corners. Neighbours outside the picture are dropped, and the other weights divided by their sum. Neighbours may be
removed too: all removed pixels are solved together, a sparse system with a right side for each channel,

    (sum_j w_ij) v_i - sum_(j removed) w_ij v_j = sum_(j kept) w_ij x_j

and then get noise, N(0, noise^2) each. Without noise an affine picture is restored, as long as no pixel of the border
is removed. p % of the pixels is the nearest whole number of them, at least 1, and one pixel always stays. The bottom
of the ranking is its end: without the bottom 30 % is with the top 70 %. The noise of a pixel is the same at every p,
in every picture.

Source: methods 7.6; Rong et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics.base import Accumulator, Array, Subject, each_pair, subjects
from fgcam_onnx.metrics.pixels import at_input, positions, ranking
from fgcam_onnx.metrics.scorer import scorer_of
from fgcam_onnx.optional import need

__all__ = ["PERCENT", "Removal", "Road", "imputed", "road"]

PERCENT = (10, 20, 30, 40, 50, 60, 70, 80, 90)


@dataclass(frozen=True, eq=False)
class Removal:
    """``morf`` and ``lerf``: float64 [n, percentages], p_c without the top and without the bottom ``percent``."""

    percent: tuple[float, ...]
    morf: Array
    lerf: Array

    @property
    def combined(self) -> Array:
        """(lerf - morf) / 2, averaged over the percentages, [n]."""
        found: Array = (self.lerf - self.morf).mean(axis=1) / 2
        return found


def road(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    percent: Sequence[float] = PERCENT,
    noise: float = 0.01,
    seed: int = 0,
    signed: bool | None = None,
) -> Removal:
    """The scores of n pictures at each percentage, most and least relevant first.

    ``percent``: of the pixels, between 0 and 100. ``noise``: its deviation, in units of the input. ``seed``: of the
    noise. The other arguments as of :func:`fgcam_onnx.metrics.average_drop`.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
        MissingPackageError: scipy is not installed, which solves the system.
    """
    shares = tuple(float(p) for p in np.atleast_1d(np.asarray(percent, np.float64)))
    if not shares or not all(0 < p < 100 for p in shares):
        raise OptionError(f"option percent cannot be {percent!r}", known="percentages between 0 and 100")
    if not 0 <= noise < np.inf:
        raise OptionError(f"option noise cannot be {noise!r}", known="the deviation of the noise, 0 or more")
    scorer = scorer_of(model)
    pictures = subjects(scorer, x, target, "zero")
    if len(pictures[0].size) != 2 or min(pictures[0].size) < 2:
        raise InputError(
            "ROAD fills holes in pictures of two axes", known=f"the input has {list(pictures[0].size)} pixels"
        )
    pairs = list(each_pair(pictures, np.asarray(relevance)))
    shown = chain.from_iterable(
        _removed(subject, each, shares, noise=noise, seed=seed, signed=signed) for subject, each in pairs
    )
    count = 2 * len(shares)
    logits = scorer.of(shown, len(pairs) * count).reshape(len(pairs), count, -1)
    p = np.stack([scorer.probability(z, s.target) for z, s in zip(logits, pictures, strict=True)])
    return Removal(shares, p[:, : len(shares)], p[:, len(shares) :])


def _removed(
    subject: Subject, relevance: Array, percent: tuple[float, ...], *, noise: float, seed: int, signed: bool | None
) -> Iterator[Array]:
    """The picture without its top p % for each p, then without its bottom p %."""
    order = ranking(at_input(relevance[None], subject.size, signed=signed))[0]
    pixels = len(order)
    counts = [min(max(1, round(pixels * p / 100)), pixels - 1) for p in percent]
    for gone in (*(order[:count] for count in counts), *(order[pixels - count :] for count in counts)):
        mask = np.zeros(pixels, bool)
        mask[gone] = True
        yield imputed(subject.x, mask.reshape(subject.size), subject.layout, noise=noise, seed=seed)


def imputed(picture: Array, removed: Array, layout: str = "NCHW", *, noise: float = 0.01, seed: int = 0) -> Array:
    """A copy of one picture [...] with the ``removed`` pixels, bool [H, W], filled in from around; of its dtype.

    ``layout``: one letter an axis, the batch's included.

    Raises:
        InputError: a mask of another size, or one that removes everything.
        MissingPackageError: scipy is not installed.
    """
    size = tuple(side for side, letter in zip(picture.shape, layout[1:], strict=True) if letter != "C")
    mask = np.asarray(removed)
    if mask.dtype != bool or mask.shape != size or mask.all():
        raise InputError(
            f"removed has to be bool {list(size)} and leave a pixel",
            known=f"it is {mask.dtype} {list(mask.shape)}, with {int(mask.astype(bool).sum())} removed",
        )
    result = np.ascontiguousarray(picture).copy()
    flat, axis = positions(result, layout)
    values = flat if axis else flat.T
    gone = mask.ravel()
    if not gone.any():
        return result
    found = _solve(mask, values.astype(np.float64))
    if noise:
        drawn = np.random.default_rng(seed).normal(0, noise, (gone.size, len(values)))
        found = found + drawn[gone]
    values[:, gone] = (np.rint(found) if result.dtype.kind in "iu" else found).T
    return result


def _solve(mask: Array, values: Array) -> Array:
    """What the removed pixels are, [removed, channels], from values [channels, H W]: one factorisation for all."""
    sparse = need("scipy.sparse", "evaluate", "ROAD solves a sparse system with it")
    linalg = need("scipy.sparse.linalg", "evaluate", "ROAD solves a sparse system with it")
    high, wide = mask.shape
    gone = np.flatnonzero(mask)
    unknown = np.full(mask.size, -1)
    unknown[gone] = np.arange(len(gone))
    row, column = gone // wide, gone % wide
    diagonal, right = np.zeros(len(gone)), np.zeros((len(gone), len(values)))
    parts: list[tuple[Array, Array, Array]] = []
    for down, across in product((-1, 0, 1), repeat=2):
        if not (down or across):
            continue
        weight = 1 / 12 if down and across else 1 / 6
        y, x = row + down, column + across
        inside = np.flatnonzero((y >= 0) & (y < high) & (x >= 0) & (x < wide))
        diagonal[inside] += weight
        beside = y[inside] * wide + x[inside]
        other = unknown[beside]
        kept = other < 0
        right[inside[kept]] += weight * values[:, beside[kept]].T
        parts.append((inside[~kept], other[~kept], np.full(int((~kept).sum()), -weight)))
    own = np.arange(len(gone))
    parts.append((own, own, diagonal))
    rows, columns, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    matrix = sparse.csc_matrix((weights, (rows, columns)), shape=(len(gone), len(gone)))
    # Symmetric and diagonally dominant: no pivoting, and an ordering that is made for such.
    factors = linalg.splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solved: Array = factors.solve(right)
    return solved


class Road(Accumulator):
    """``combined``, and the mean of ``morf`` and of ``lerf`` over the percentages. Options as of :func:`road`."""

    figures = ("morf", "lerf", "combined")

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        found = road(self.model, x, relevance, target, **self.options)
        return {"morf": found.morf.mean(axis=1), "lerf": found.lerf.mean(axis=1), "combined": found.combined}
