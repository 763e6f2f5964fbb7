"""Deletion and insertion: how fast the score falls when the map's pixels go, and rises when they come.

    n = ceil(H W / step) steps of 448 pixels: 112 at 224 x 224, and n + 1 scores s_0 .. s_n
    deletion   s_i = p_c with the top ``step`` i pixels replaced by the baseline             lower is better
    insertion  s_i = p_c of the baseline with the top ``step`` i pixels of the picture       higher is better
    AUC = (sum_i s_i - s_0 / 2 - s_n / 2) / n;   over-all = AUC(insertion) - AUC(deletion)

The ends are p_c(x) and p_c(B), which all maps of a picture share: 2 n - 2 forward passes a map.

Source: methods 7.4; Petsiuk et al. 2018 (RISE), with the blurred picture in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import OptionError
from fgcam_onnx.metrics.base import Accumulator, Array, Subject, each_pair, subjects
from fgcam_onnx.metrics.pixels import at_input, ranking, walk
from fgcam_onnx.metrics.scorer import scorer_of

__all__ = ["Curves", "DeletionInsertion", "area", "count", "curves", "deletion_insertion", "pictures"]


@dataclass(frozen=True, eq=False)
class Curves:
    """``deletion`` and ``insertion``: float64 [n, steps + 1], p_c after each step; the areas under them [n]."""

    deletion: Array
    insertion: Array

    @property
    def deletion_auc(self) -> Array:
        return area(self.deletion)

    @property
    def insertion_auc(self) -> Array:
        return area(self.insertion)

    @property
    def overall(self) -> Array:
        """AUC(insertion) - AUC(deletion)."""
        return self.insertion_auc - self.deletion_auc


def area(scores: npt.ArrayLike) -> Array:
    """By the trapezoid rule over steps of equal width, [..., steps + 1] -> [...]. A constant curve has its value."""
    s = np.asarray(scores, np.float64)
    found: Array = (s.sum(axis=-1) - (s[..., 0] + s[..., -1]) / 2) / (s.shape[-1] - 1)
    return found


def deletion_insertion(
    model: Any,
    x: Any,
    relevance: Any,
    target: Any = None,
    *,
    step: int = 448,
    signed: bool | None = None,
    baseline: Any = "blur",
    kernel: int = 51,
    sigma: float = 50.0,
) -> Curves:
    """The curves of n pictures and their areas.

    ``step``: pixels at a time. The other arguments as of :func:`fgcam_onnx.metrics.average_drop`.

    Raises:
        InputError, TargetError, OptionError: what does not fit, with the shapes.
    """
    scorer = scorer_of(model)
    shown = subjects(scorer, x, target, baseline, kernel=kernel, sigma=sigma)
    pairs = list(each_pair(shown, np.asarray(relevance)))
    steps = count(shown[0], step)
    changed = chain.from_iterable(pictures(subject, each, step=step, signed=signed) for subject, each in pairs)
    p = np.zeros((len(pairs), steps))
    if steps:
        classes = np.repeat([subject.target for subject in shown], steps)
        p = scorer.probabilities_of(changed, classes).reshape(len(pairs), steps)
    found = [curves(subject, each) for subject, each in zip(shown, p, strict=True)]
    return Curves(np.stack([c.deletion[0] for c in found]), np.stack([c.insertion[0] for c in found]))


def count(subject: Subject, step: int) -> int:
    """Forward passes of a map: 2 n - 2.

    Raises:
        OptionError: a step below one pixel.
    """
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 1:
        raise OptionError(f"option step cannot be {step!r}", known="pixels at a time, at least 1")
    return 2 * (-(-int(np.prod(subject.size)) // int(step)) - 1)


def pictures(subject: Subject, relevance: Array, *, step: int = 448, signed: bool | None = None) -> Iterator[Array]:
    """What the network is shown between the ends: first of deletion, then of insertion."""
    order = ranking(at_input(relevance[None], subject.size, signed=signed))[0]
    yield from walk(subject.x, subject.baseline, order, step, subject.layout)
    yield from walk(subject.baseline, subject.x, order, step, subject.layout)


def curves(subject: Subject, p: Array) -> Curves:
    """Of one picture, from the scores of :func:`pictures`."""
    half = len(p) // 2
    ends = [subject.original], [subject.hidden]
    deletion = np.concatenate([ends[0], p[:half], ends[1]])
    insertion = np.concatenate([ends[1], p[half:], ends[0]])
    return Curves(deletion[None], insertion[None])


class DeletionInsertion(Accumulator):
    """Options as of :func:`deletion_insertion`."""

    figures = ("deletion", "insertion", "overall")

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = scorer_of(model), options

    def measure(self, x: Any, relevance: Any, target: Any = None) -> Mapping[str, Array]:
        found = deletion_insertion(self.model, x, relevance, target, **self.options)
        return {"deletion": found.deletion_auc, "insertion": found.insertion_auc, "overall": found.overall}
