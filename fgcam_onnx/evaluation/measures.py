"""The metrics that an evaluation can take, by name: what each shows the network, and what it makes of the answers.

A measure of changed pictures says what it wants to have scored, so that all of a map go to the network together. Any
other measures by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import ActivationError
from fgcam_onnx.metrics.average_drop import kept, scores
from fgcam_onnx.metrics.base import Subject
from fgcam_onnx.metrics.completeness import completeness
from fgcam_onnx.metrics.complexity import complexity
from fgcam_onnx.metrics.deletion_insertion import count, curves, pictures
from fgcam_onnx.metrics.infidelity import infidelity
from fgcam_onnx.metrics.localisation import localisation
from fgcam_onnx.metrics.max_sensitivity import max_sensitivity
from fgcam_onnx.metrics.mu_fidelity import mu_fidelity
from fgcam_onnx.metrics.random_logit import random_logit
from fgcam_onnx.metrics.randomisation import alike, histogram_entropy
from fgcam_onnx.metrics.road import road
from fgcam_onnx.metrics.scorer import Scorer
from fgcam_onnx.metrics.sensitivity_n import sensitivity_n
from fgcam_onnx.metrics.sparseness import sparseness

if TYPE_CHECKING:
    from fgcam_onnx import Explainer
    from fgcam_onnx.evaluation.settings import Settings

__all__ = ["MEASURES", "Case", "Measure"]

Array = npt.NDArray[Any]
Figures = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One map of one picture. ``relevance`` [h, w]; ``mask`` bool [H, W] of the object, None where it is not known.

    ``explainer`` and ``options`` make the contender's maps of other pictures and other classes; None and {} of a
    control. ``random``: the same network with every weight drawn anew, made when it is first asked for. ``promised``:
    what the map's sum should be, where its method says so.
    """

    subject: Subject
    relevance: Array
    mask: Array | None
    settings: Settings
    explainer: Explainer | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    random: Callable[[], Explainer] | None = None
    promised: float | None = None

    @property
    def asked(self) -> tuple[Scorer, Array, Array, int]:
        """Scorer, picture, map and class, as the plain functions take them."""
        return self.subject.scorer, self.subject.x[None], self.relevance[None], self.subject.target


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


def _sparse(case: Case, p: Array) -> Figures:
    return {"sparseness": float(sparseness(case.relevance[None])[0])}


def _complex(case: Case, p: Array) -> Figures:
    return {"complexity": float(complexity(case.relevance[None])[0])}


def _complete(case: Case, p: Array) -> Figures:
    if case.promised is None:
        return {}
    found = completeness(case.relevance[None], np.array([case.promised]))
    return {"completeness_gap": float(found["gap"][0]), "completeness_relative": float(found["relative"][0])}


# --- random changes of the picture ------------------------------------------------------------------------------------


def _road(case: Case, p: Array) -> Figures:
    return {"road": float(road(*case.asked, seed=case.settings.seed).combined[0])}


def _sensitivity_n(case: Case, p: Array) -> Figures:
    return {"sensitivity_n": float(sensitivity_n(*case.asked, seed=case.settings.seed)[0])}


def _mu_fidelity(case: Case, p: Array) -> Figures:
    return {"mu_fidelity": float(mu_fidelity(*case.asked, seed=case.settings.seed)[0])}


def _infidelity(case: Case, p: Array) -> Figures:
    found = infidelity(*case.asked, seed=case.settings.seed)
    return {"infidelity": float(found["infidelity"][0]), "infidelity_normalised": float(found["normalised"][0])}


# --- other maps of the same method ------------------------------------------------------------------------------------


def _max_sensitivity(case: Case, p: Array) -> Figures:
    if case.explainer is None:
        return {}
    x, target = case.subject.x[None], case.subject.target
    found = max_sensitivity(case.explainer, x, target, seed=case.settings.seed, **case.options)
    return {"max_sensitivity": float(found[0])}


def _random_logit(case: Case, p: Array) -> Figures:
    if case.explainer is None:
        return {}
    x, target = case.subject.x[None], case.subject.target
    found = random_logit(case.explainer, x, target, seed=case.settings.seed, **case.options)
    return {"random_logit": float(found[0])}


def _randomisation(case: Case, p: Array) -> Figures:
    if case.random is None:
        return {}
    own = case.relevance[None].astype(np.float64)
    target = [case.subject.target]
    try:
        other = case.random().explain(case.subject.x[None], target=target, **case.options).relevance
    except ActivationError:  # a random network may overflow: then there is no figure
        return {}
    ranks, shape = alike(own, other.astype(np.float64))
    before, after = histogram_entropy(own)[0], histogram_entropy(other)[0]
    return {
        "randomisation_spearman": float(ranks[0]),
        "randomisation_ssim": float(shape[0]),
        "randomisation_entropy": float((after - before) / before) if before > 0 else math.nan,
    }


_EXPLAINS = frozenset({"explain"})
_ALL = (
    Measure("average-drop", "what the score loses, and how often it gains, when the top half alone is seen",
            ("average_drop", "average_increase"), _drop, _kept),
    Measure("deletion-insertion", "the score as pixels go and as they come, most relevant first",
            ("deletion", "insertion", "overall"), _areas, _steps, curves=("deletion_scores", "insertion_scores")),
    Measure("localisation", "the share of relevance, and the largest, inside the object's box",
            ("proportion", "pointing_game", "rank_accuracy", "empty"), _inside, needs=frozenset({"boxes"})),
    Measure("road", "the score without the most and the least relevant pixels, filled from their neighbours",
            ("road",), _road),
    Measure("sensitivity-n", "correlation of relevance and fall of the logit, over random sets of pixels",
            ("sensitivity_n",), _sensitivity_n),
    Measure("mu-fidelity", "rank correlation of relevance and fall of the logit, over random patches",
            ("mu_fidelity",), _mu_fidelity),
    Measure("infidelity", "square error of the fall that the map predicts; normalised: of the map's best multiple",
            ("infidelity", "infidelity_normalised"), _infidelity),
    Measure("max-sensitivity", "how far the map moves when the picture hardly does", ("max_sensitivity",),
            _max_sensitivity, needs=_EXPLAINS),
    Measure("random-logit", "likeness to the map of a random other class", ("random_logit",), _random_logit,
            needs=_EXPLAINS),
    Measure("randomisation", "likeness to the map of the same network with random weights",
            ("randomisation_spearman", "randomisation_ssim", "randomisation_entropy"), _randomisation,
            needs=_EXPLAINS),
    Measure("sparseness", "Gini index of |relevance|", ("sparseness",), _sparse),
    Measure("complexity", "entropy of |relevance|", ("complexity",), _complex),
    Measure("completeness", "distance of the map's sum from what its method promises",
            ("completeness_gap", "completeness_relative"), _complete),
)  # fmt: skip
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
