"""The metrics that an evaluation can take, by name: what each shows the network, and what it makes of the answers.

A measure of changed pictures says what it wants to have scored, so that all of a map go to the network together. Any
other measures by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fgcam_onnx.metrics.average_drop import kept, scores
from fgcam_onnx.metrics.base import Subject
from fgcam_onnx.metrics.deletion_insertion import count, curves, pictures
from fgcam_onnx.metrics.localisation import localisation

if TYPE_CHECKING:
    from fgcam_onnx.evaluation.settings import Settings

__all__ = ["MEASURES", "Case", "Measure"]

Array = npt.NDArray[Any]
Figures = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One map of one picture. ``relevance`` [h, w]; ``mask`` bool [H, W] of the object, None where it is not known.

    ``explain(x, target)``: the same contender's maps [n, h, w] of other pictures; None of a control. ``seed``: of this
    picture.
    """

    subject: Subject
    relevance: Array
    mask: Array | None
    settings: Settings
    explain: Callable[[Array, int], Array] | None
    seed: int


@dataclass(frozen=True)
class Measure:
    """``figures``: the columns that it fills; of ``curves`` each holds a list. ``needs``: "boxes", "explain".

    ``shown``: how many pictures of a case are to be scored, and which; ``read``: the figures from their p_c. Of one
    that scores none ``shown`` is None.
    """

    name: str
    summary: str
    figures: tuple[str, ...]
    read: Callable[[Case, Array], Figures]
    shown: Callable[[Case], tuple[int, Iterable[Array]]] | None = None
    curves: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()


# --- scores of changed pictures --------------------------------------------------------------------------------------


def _kept(case: Case) -> tuple[int, Iterable[Array]]:
    return 1, [kept(case.subject, case.relevance, fraction=case.settings.fraction)]


def _drop(case: Case, p: Array) -> Figures:
    return scores(case.subject, float(p[0]))


def _steps(case: Case) -> tuple[int, Iterable[Array]]:
    step = case.settings.step
    return count(case.subject, step), pictures(case.subject, case.relevance, step=step)


def _areas(case: Case, p: Array) -> Figures:
    found = curves(case.subject, p)
    return {
        "deletion": float(found.deletion_auc[0]),
        "insertion": float(found.insertion_auc[0]),
        "overall": float(found.overall[0]),
        "deletion_scores": found.deletion[0].tolist(),
        "insertion_scores": found.insertion[0].tolist(),
    }


# --- the map alone ----------------------------------------------------------------------------------------------------


def _inside(case: Case, p: Array) -> Figures:
    if case.mask is None:
        return {}
    found = localisation(case.relevance[None], case.mask[None])
    return {name: float(values[0]) for name, values in found.items()}


_ALL = (
    Measure("average-drop", "what the score loses, and how often it gains, when the top half alone is seen",
            ("average_drop", "average_increase"), _drop, _kept),
    Measure("deletion-insertion", "the score as pixels go and as they come, most relevant first",
            ("deletion", "insertion", "overall"), _areas, _steps, curves=("deletion_scores", "insertion_scores")),
    Measure("localisation", "the share of relevance, and the largest, inside the object's box",
            ("proportion", "pointing_game", "rank_accuracy", "empty"), _inside, needs=frozenset({"boxes"})),
)  # fmt: skip
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
