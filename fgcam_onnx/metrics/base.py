"""What the metrics share: one picture with its class and baseline, accumulators, and what they sum up to."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import InputError, TargetError
from fgcam_onnx.feeds import as_dtype
from fgcam_onnx.metrics.pixels import baseline_of
from fgcam_onnx.metrics.scorer import Scorer

__all__ = ["Accumulator", "Subject", "Summary", "interval", "subjects", "summarise"]

Array = npt.NDArray[Any]
# Resamples of the bootstrap, and its seed: the interval of the same values is always the same.
RESAMPLES, SEED = 4000, 0


@dataclass(eq=False)
class Subject:
    """One picture x [...] with the class that is explained, what hides its pixels, and the scores of both.

    ``original`` p_c(x), ``hidden`` p_c(B): computed once, and shared by every metric and every map of the picture.
    """

    scorer: Scorer
    x: Array
    layout: str
    target: int
    baseline: Array

    @cached_property
    def _ends(self) -> Array:
        logits = self.scorer.of([self.x, self.baseline], 2)
        return self.scorer.probability(logits, self.target)

    @property
    def original(self) -> float:
        """p_c of the picture."""
        return float(self._ends[0])

    @property
    def hidden(self) -> float:
        """p_c of the baseline alone."""
        return float(self._ends[1])

    @property
    def size(self) -> tuple[int, ...]:
        """Of space: (H, W)."""
        return tuple(side for side, letter in zip(self.x.shape, self.layout[1:], strict=True) if letter != "C")


def subjects(
    scorer: Scorer,
    x: Any,
    target: npt.ArrayLike | None,
    baseline: str | float | Array = "blur",
    *,
    kernel: int = 51,
    sigma: float = 50.0,
) -> list[Subject]:
    """The pictures x [n, ...] with their classes; ``target``: None for the predicted class, one for all, or one each.

    Raises:
        TargetError: a class that the model does not have, or another number of classes than pictures.
        InputError: no array of pictures, NaN in them, or numbers that the model's type cannot hold.
    """
    pictures = np.asarray(x)
    if pictures.dtype.kind not in "fiu" or pictures.ndim < 3 or not pictures.size or not np.isfinite(pictures).all():
        raise InputError(
            "pictures have to be finite numbers [n, ...]", known=f"they are {pictures.dtype} {list(pictures.shape)}"
        )
    layout = scorer.layout(pictures)
    if len(layout) != pictures.ndim:
        raise InputError(
            f"pictures have shape {list(pictures.shape)}", known=f"the model takes {len(layout)} axes, {layout}"
        )
    if scorer.dtype is not None:
        pictures = as_dtype(pictures, scorer.dtype, "the pictures")
    if target is None:
        target = scorer.logits(pictures).argmax(axis=1)
    classes = np.atleast_1d(np.asarray(target))
    if classes.dtype.kind not in "iu" or classes.ndim != 1 or len(classes) not in (1, len(pictures)):
        raise TargetError(
            f"targets have to be whole numbers, one for all or one for each of {len(pictures)} pictures",
            known=f"they are {classes.dtype} {list(classes.shape)}",
        )
    classes = np.broadcast_to(classes, len(pictures))
    hidden = baseline_of(pictures, layout, baseline, kernel=kernel, sigma=sigma)
    return [
        Subject(scorer, picture, layout, int(c), b) for picture, c, b in zip(pictures, classes, hidden, strict=True)
    ]


# --- summing up -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One figure over many pictures.

    ``mean`` over ``n`` pictures; ``standard_error`` of the mean, deviation / sqrt(n), NaN for one picture; ``low`` and
    ``high``: 95 % interval of the mean, by bootstrap over the pictures. ``undefined``: pictures for which the figure
    does not exist, which are not among the n; why is told where the metric is.
    """

    mean: float
    standard_error: float
    n: int
    low: float
    high: float
    undefined: int = 0


def interval(values: npt.ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of ``values`` [n], by percentile bootstrap with 4000 resamples; NaN of no values."""
    v = np.asarray(values, np.float64)
    if len(v) == 0:
        return float("nan"), float("nan")
    if len(v) == 1 or v.min() == v.max():
        return float(v.mean()), float(v.mean())
    random = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    chunk = max(1, 1_000_000 // len(v))
    for first in range(0, RESAMPLES, chunk):
        drawn = random.integers(0, len(v), (min(chunk, RESAMPLES - first), len(v)))
        means[first : first + chunk] = v[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(values: npt.ArrayLike) -> Summary:
    """Of a figure of each picture, [n]; NaN where it is undefined."""
    v = np.asarray(values, np.float64).ravel()
    known = v[~np.isnan(v)]
    if not len(known):
        nan = float("nan")
        return Summary(nan, nan, 0, nan, nan, len(v))
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return Summary(float(known.mean()), error, len(known), *interval(known), len(v) - len(known))


class Accumulator(abc.ABC):
    """A metric over many pictures: ``update`` with a batch, ``summary`` of all so far.

    A class sets ``figures``, the names of what it counts, and ``measure``, which returns an array [n] for each.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._values: dict[str, list[Array]] = {name: [] for name in self.figures}

    @abc.abstractmethod
    def measure(self, *args: Any, **options: Any) -> Mapping[str, Array]:
        """Each figure of each picture of a batch, [n]."""

    def update(self, *args: Any, **options: Any) -> dict[str, Array]:
        """Count a batch; returns its figures, [n] each. Arguments as of the plain function, without the model."""
        found = {name: np.asarray(v, np.float64) for name, v in self.measure(*args, **options).items()}
        for name in self.figures:
            self._values[name].append(found[name])
        return found

    @property
    def values(self) -> dict[str, Array]:
        """Each figure of all pictures so far, [n]."""
        return {name: np.concatenate([np.zeros(0), *parts]) for name, parts in self._values.items()}

    def summary(self) -> dict[str, Summary]:
        """Mean, standard error, interval and count of each figure."""
        return {name: summarise(values) for name, values in self.values.items()}

    def reset(self) -> None:
        """Forget all pictures."""
        self._values = {name: [] for name in self.figures}


def each_pair(pictures: list[Subject], maps: Array) -> Iterator[tuple[Subject, Array]]:
    """A picture with its map.

    Raises:
        InputError: another number of maps than pictures.
    """
    if len(maps) != len(pictures):
        raise InputError(f"{len(maps)} maps for {len(pictures)} pictures", next="give a map for each picture")
    return zip(pictures, maps, strict=True)
