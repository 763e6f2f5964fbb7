"""The engine of one machine: picture after picture, each one's rows stored before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fgcam_onnx.errors import ActivationError, ImageError, InputError, TargetError
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.evaluator import Evaluator
from fgcam_onnx.evaluation.store import Store

__all__ = ["PICTURE_ERRORS", "Failure", "evaluate"]

# What ends one picture and not the run: the picture, its label, or what the network made of it.
PICTURE_ERRORS = (ImageError, TargetError, InputError, ActivationError)
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Failure:
    """A picture that could not be measured, and why."""

    id: str
    error: str
    what: str


def evaluate(
    evaluator: Evaluator, samples: Sequence[Sample], store: Store, progress: Progress | None = None
) -> list[Failure]:
    """Measure what the store does not have yet; returns what could not be measured, which the next start tries again.

    ``progress(pictures done, id)``, with fractions within a picture.

    Raises:
        OutputError: the rows cannot be written; what was stored stays.
    """
    failures: list[Failure] = []
    report = progress or (lambda done, id: None)
    for i, sample in enumerate(samples):
        report(i, sample.id)
        if sample.id in store.done:
            continue
        try:
            rows = evaluator(sample, lambda done, total, i=i, id=sample.id: report(i + done / total, id))  # type: ignore[misc]
        except PICTURE_ERRORS as error:
            failures.append(Failure(sample.id, type(error).__name__, error.what))
            continue
        store.append(sample.id, rows)
    report(len(samples), "")
    return failures
