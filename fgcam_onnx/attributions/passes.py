"""What a method of the LRP family gets: relevance of its own on the logits, walked down as often as it likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.ledger import Ledger

__all__ = ["Answer", "Walks", "Way", "minus", "per_total"]


@dataclass(frozen=True)
class Way:
    """From ``source`` down to ``target``; ``rules``: pairs of selector and rule that come before those of the user."""

    source: str
    target: str
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """Relevance [rows, ...] in the layout of the tensor where it arrived, and its account."""

    relevance: np.ndarray
    ledger: Ledger


@dataclass(frozen=True, eq=False)
class Walks:
    """``logits``: [rows, classes]. ``weights``: how much each logit counts, [rows, classes]. ``target``: int64 [rows].

    ``against``: int64 [rows] or None. ``options``: those of the method, defaults filled in. ``walk(way, *starts)``:
    relevance of the tensor where the way begins, [rows, ...] each -> an answer for each. Of a single image they share
    every denominator.
    """

    logits: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    against: np.ndarray | None
    options: Mapping[str, Any]
    walk: Callable[..., list[Answer]]


def per_total(answer: Answer) -> Answer:
    """The answer divided by the size of its sum, row by row; 0 where the sum is 0."""
    total = answer.ledger.arrived
    factor = np.divide(1.0, np.abs(total), out=np.zeros_like(total), where=total != 0)
    along = factor.reshape(-1, *[1] * (answer.relevance.ndim - 1))
    return Answer(answer.relevance * along, answer.ledger.scaled(factor))


def minus(a: Answer, b: Answer) -> Answer:
    """a - b, and the account of the difference."""
    return Answer(a.relevance - b.relevance, a.ledger + b.ledger.scaled(np.full(len(b.relevance), -1.0)))
