"""How far the logit falls when a picture is changed: what Sensitivity-n, MuFidelity and infidelity set against a map.

    falls = y_c(x) - y_c(changed x)

All pictures' changed copies go to the network as one stream, batch after batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import OptionError, TargetError
from fgcam_onnx.metrics.base import Subject
from fgcam_onnx.metrics.pixels import replaced
from fgcam_onnx.metrics.scorer import Scorer

__all__ = ["falls", "hidden", "of_class", "sums", "whole"]

Array = npt.NDArray[Any]


def falls(scorer: Scorer, pictures: list[Subject], changed: Iterable[Iterable[Array]], count: int) -> Array:
    """float64 [n, count]: how far y_c falls at each of the ``count`` changed copies of each of the n pictures.

    Raises:
        TargetError: a class that the model does not have.
    """
    own = (chain([subject.x], copies) for subject, copies in zip(pictures, changed, strict=True))
    logits = scorer.of(chain.from_iterable(own), len(pictures) * (count + 1))
    rows = logits.reshape(len(pictures), count + 1, -1).astype(np.float64)
    y = np.stack([of_class(row, subject.target) for row, subject in zip(rows, pictures, strict=True)])
    fallen: Array = y[:, :1] - y[:, 1:]
    return fallen


def of_class(logits: Array, target: int) -> Array:
    """Logits [m, classes] of one class, [m]. Raises :class:`TargetError` for a class that is not there."""
    if not 0 <= target < logits.shape[1]:
        raise TargetError(
            f"there is no class {target}", known=f"the model has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}"
        )
    return logits[:, target]


def hidden(subject: Subject, sets: Iterable[Array]) -> Iterator[Array]:
    """The picture with each set of pixels at the baseline; a set: their numbers, or bool of each."""
    for pixels in sets:
        yield replaced(subject.x, subject.baseline, pixels, subject.layout)


def sums(relevance: Array, sets: Array) -> Array:
    """The relevance in each set: maps [n, pixels] -> float64 [n, sets]. Sets as of :func:`hidden`."""
    return np.array([[each[pixels].sum() for pixels in sets] for each in relevance.astype(np.float64)])


def whole(name: str, value: Any, least: int, what: str) -> int:
    """An option that has to be a whole number from ``least`` on; raises :class:`OptionError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OptionError(f"option {name} cannot be {value!r}", known=f"{what}, from {least} on")
    return int(value)
