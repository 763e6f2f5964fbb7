"""Infidelity: by how much does a map mispredict what a random change does to the logit?

    infidelity = mean over changes P of (a - b)^2,   b = y_c(x) - y_c(x - P),   a = P . E
    normalised = the same of the map s E,            s = mean(a b) / mean(a^2), the best factor a map can have

0 is best. y_c is the logit. What P . E is depends on what a number of the map means:

    E [n, c, h, w], as the input: a weight of each number of the input (a gradient).   a = sum P E
        Of a linear model w.x the map w has infidelity 0, under every P.
    E [n, h, w]: the share of each pixel in y_c(x) - y_c(baseline), its channels together (FG-CAM, LRP, integrated
        gradients). Then P has to move a pixel as a whole, P = t (x - baseline) with one t a pixel:  a = sum t E
        Of a linear model w.x and baseline 0 the map sum_c w x has infidelity 0.

Shares of single channels, such as w x, are to be summed over the channels first. ``change``:

    "square"   t = 1 on a random square, 0 elsewhere: the square is put to the baseline
    "fade"     t ~ N(0, noise^2), independent for each pixel
    "noise"    P ~ N(0, noise^2), independent for each number of the input; only for maps [n, c, h, w]

``normalised`` does not depend on the scale of a map. A map that gives a = 0 for all changes explains nothing and has
mean(b^2) in both figures. Every picture has the same draws. The figures are in squares of logits.

Source: methods 7.6; Yeh et al. 2019 (equation 1, the squares of section 2.2, the factor of their code).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics.base import Accumulator, Array, Subject, each_pair, subjects
from fgcam_onnx.metrics.changes import falls, whole
from fgcam_onnx.metrics.pixels import at_input
from fgcam_onnx.metrics.scorer import scorer_of

__all__ = ["CHANGES", "Infidelity", "infidelity", "shares", "unfaithful"]

CHANGES = ("square", "fade", "noise")


def infidelity(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    change: str = "square",
    side: int | None = None,
    noise: float = 0.1,
    samples: int = 100,
    seed: int = 0,
    signed: bool | None = None,
    baseline: Any = "zero",
    kernel: int = 51,
    sigma: float = 50.0,
) -> dict[str, Array]:
    """``infidelity`` and ``normalised`` of each picture, float64 [n].

    ``relevance``: of the input's own shape [n, c, h, w], or of pixels [n, h, w]; see above. ``side``: of a square in
    pixels, None for a quarter of the picture's shorter side. ``noise``: the deviation, of "fade" in parts of
    x - baseline, of "noise" in units of the input. ``samples``: changes. ``seed``: of the changes. The other arguments
    as of :func:`fgcam_onnx.metrics.average_drop`; the baseline is zero here by default.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
    """
    scorer, maps = scorer_of(model), np.asarray(relevance)
    samples = whole("samples", samples, 1, "changes of a picture")
    if change not in CHANGES:
        raise OptionError(f"option change cannot be {change!r}", known=", ".join(CHANGES))
    if not 0 < noise < np.inf:
        raise OptionError(f"option noise cannot be {noise!r}", known="the deviation of the change, above 0")
    pictures = subjects(scorer, x, target, baseline, kernel=kernel, sigma=sigma)
    first = pictures[0].x
    if first.dtype.kind != "f" and change != "square":
        raise InputError(
            f"change {change!r} moves a picture by fractions of a number", known=f"the pictures are {first.dtype}"
        )
    if maps.ndim != first.ndim + 1 and change == "noise":
        raise InputError(
            "a map of pixels does not say what noise in one channel does",
            known=f"the map is {list(maps.shape)}, the pictures are {[len(pictures), *first.shape]}",
            next="change='fade' moves a pixel as a whole, change='square' hides it",
        )
    size = pictures[0].size
    side = whole("side", max(1, min(size) // 4) if side is None else side, 1, "of a square in pixels")
    if side > min(size):
        raise OptionError(f"option side cannot be {side}", known=f"the picture has {list(size)} pixels")
    moved = np.empty((len(pictures), samples))
    pairs = [(subject, _read(each, subject, signed)) for subject, each in each_pair(pictures, maps)]

    def copies(row: int, subject: Subject, e: Array) -> Iterator[Array]:
        random = np.random.default_rng(seed)
        way = subject.x.astype(np.float64) - subject.baseline
        for sample in range(samples):
            if change == "noise":
                p = random.normal(0, noise, subject.x.shape)
            else:
                t = shares(random, size, change=change, side=side, noise=noise)
                p = way * np.expand_dims(t, subject.layout.index("C") - 1)
            moved[row, sample] = (e * (p if e.shape == p.shape else t)).sum()
            yield (subject.x - p).astype(subject.x.dtype)

    streams = (copies(row, subject, e) for row, (subject, e) in enumerate(pairs))
    return unfaithful(moved, falls(scorer, pictures, streams, samples))


def _read(relevance: Array, subject: Subject, signed: bool | None) -> Array:
    """A map of the input's own shape as it is, one of pixels at the input's size; float64."""
    if relevance.ndim != subject.x.ndim:
        found: Array = at_input(relevance[None], subject.size, signed=signed)[0].astype(np.float64)
        return found
    if relevance.shape != subject.x.shape or not np.isfinite(relevance).all():
        raise InputError(
            "a map of single numbers has to be finite and of the picture's shape",
            known=f"it is {list(relevance.shape)}, the picture is {list(subject.x.shape)}",
        )
    return relevance.astype(np.float64)


def shares(random: np.random.Generator, size: tuple[int, ...], *, change: str, side: int, noise: float) -> Array:
    """t: how far each pixel goes on its way to the baseline, float64 [h, w]."""
    if change == "fade":
        faded: Array = random.normal(0, noise, size)
        return faded
    t = np.zeros(size)
    corner = [int(random.integers(length - side + 1)) for length in size]
    t[tuple(slice(first, first + side) for first in corner)] = 1
    return t


def unfaithful(a: Array, b: Array) -> dict[str, Array]:
    """Both figures from what was predicted and what happened, [n, samples] each."""
    squares = (a * a).mean(axis=1)
    factor = np.divide((a * b).mean(axis=1), squares, out=np.ones(len(a)), where=squares > 0)
    return {
        "infidelity": ((a - b) ** 2).mean(axis=1),
        "normalised": ((factor[:, None] * a - b) ** 2).mean(axis=1),
    }


class Infidelity(Accumulator):
    """Options as of :func:`infidelity`."""

    figures = ("infidelity", "normalised")

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        return infidelity(self.model, x, relevance, target, **self.options)
