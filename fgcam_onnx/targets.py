"""What is explained: a class, a place of a dense output, or any weighted sum of the logits.

Or the difference of two classes, "why A and not B", with weight 1 at A and -1 at B. All are one thing, a score that is
linear in the logits:

    score = sum of weights * logits        weights of the logits' shape, d score / d logits = weights

A class has weight 1 at its logit. A place ``(class, y, x)`` has weight 1 there, and a whole axis counts where it says
None. A function of the logits returns the weights themselves. The walk through the head starts in them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.errors import TargetError
from fgcam_onnx.graph.dense import axis_names, is_dense
from fgcam_onnx.labels import resolve_class, resolve_target

__all__ = ["Aim", "against_class", "aim_at", "aims_at"]

Entry = int | str
_TOP = re.compile(r"top-?(\d{1,9})")
_SPAN = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?")


@dataclass(frozen=True, eq=False)
class Aim:
    """The target of each image of a batch.

    ``weights``: how much each logit counts, float32 of the logits' shape [n, ...]. ``classes``: int64 [n], None where
    the target is no class. ``said``: for each image its class, its place as a tuple ("2:5" and ":" for sums), or
    "function". ``against``: int64 [n], the class that the target is held against, if any.
    """

    weights: np.ndarray
    classes: np.ndarray | None
    said: tuple[Any, ...]
    against: np.ndarray | None = None

    def score(self, logits: np.ndarray) -> np.ndarray:
        """float32 [n]: the number that is explained of each image."""
        product = self.weights.astype(np.float64) * logits
        summed: np.ndarray = product.reshape(len(logits), -1).sum(axis=1)
        return summed.astype(np.float32)

    def hashes(self) -> tuple[str, ...]:
        """sha256 of each image's weights, float32 in row-major order, where a function gave them; else ()."""
        if "function" not in self.said:
            return ()
        return tuple(hashlib.sha256(np.ascontiguousarray(w).tobytes()).hexdigest() for w in self.weights)


def aim_at(
    target: Any,
    logits: np.ndarray,
    labels: Sequence[str] | None = None,
    layout: str | None = None,
    *,
    first: int = 0,
    images: int | None = None,
) -> Aim:
    """What ``target`` means for these logits.

    ``logits``: float32 [n, ...] in the output's own shape; ``layout``: its axes, where known. They belong to the images
    from number ``first`` on of a call with ``images`` of them: a target for each image is written for the whole call.

    For one score a class: as :func:`fgcam_onnx.labels.resolve_target`. For any output: a tuple with an entry for each
    axis after the batch, an index (negative ones count from the end), a label on the class axis, or None, ":" or a
    slice for the sum; a list of such tuples, one for each image; an array of weights of the logits' shape; a function
    that is called with the logits of each image, [1, ...], and returns its weights.

    Raises:
        TargetError: a target that the output does not have, or one that leaves open what to explain.
    """
    n, total = len(logits), len(logits) if images is None else images
    if callable(target):
        return _by_function(target, logits, layout, first)
    if isinstance(target, np.ndarray) and target.ndim > 1:
        return _weighted(target, logits, layout, first, total)
    dense = is_dense(logits.shape, layout)
    if isinstance(target, tuple) and (dense or logits.ndim > 2):
        return _at_places([target] * n, logits, labels, layout)
    if (isinstance(target, Sequence) and not isinstance(target, str)) or np.ndim(target) == 1:
        if len(target) != total:
            raise TargetError(
                f"{len(target)} target{'s' * (len(target) != 1)} for {total} image{'s' * (total != 1)}",
                next="give one target for all, or one for each image",
            )
        target = target[first : first + n]
        if any(isinstance(each, tuple) for each in target):
            return _at_places(target, logits, labels, layout)
    if dense:
        raise _dense_error(target, logits, layout)
    flat = logits.reshape(n, -1)
    classes = resolve_target(target, labels, flat.shape[1], flat)
    weights = np.zeros_like(flat)
    weights[np.arange(n), classes] = 1
    return Aim(weights.reshape(logits.shape), classes, tuple(classes.tolist()))


def aims_at(
    target: Any,
    logits: np.ndarray,
    labels: Sequence[str] | None = None,
    layout: str | None = None,
    *,
    first: int = 0,
    images: int | None = None,
) -> list[Aim] | None:
    """The aims of a target that names several for each image, best first or as given; None if it names one.

    "top3": the classes of the three largest logits. A list of lists: those of each image, equally many. The arguments
    are those of :func:`aim_at`.

    Raises:
        TargetError: more classes than there are, lists of different lengths, the same class twice, or as
            :func:`aim_at`.
    """
    n, total = len(logits), len(logits) if images is None else images
    top = _TOP.fullmatch(target.strip().lower()) if isinstance(target, str) else None
    if top is not None and target not in (labels or ()):
        if is_dense(logits.shape, layout):
            raise _dense_error(target, logits, layout)
        flat = logits.reshape(n, -1)
        k = int(top[1])
        if not 1 <= k <= flat.shape[1]:
            raise TargetError(f"target {target!r}: the model has {flat.shape[1]} classes")
        order = np.argsort(-flat, axis=1, kind="stable")[:, :k]
        return [aim_at(order[:, j], logits, labels, layout) for j in range(k)]
    if not _is_list(target) or not any(_is_list(each) for each in target):
        return None
    if len(target) != total:
        raise TargetError(
            f"{len(target)} lists of targets for {total} image{'s' * (total != 1)}",
            next="give a list of targets for each image",
        )
    sizes = {len(each) if _is_list(each) else 0 for each in target}
    if len(sizes) != 1 or 0 in sizes:
        raise TargetError("each image needs equally many targets, at least one", known=f"their numbers are {sizes}")
    own = target[first : first + n]
    aims = [aim_at([each[j] for each in own], logits, labels, layout) for j in range(sizes.pop())]
    for i, said in enumerate(zip(*(aim.said for aim in aims), strict=True)):
        twice = next((each for each in said if said.count(each) > 1), None)
        if twice is not None:
            raise TargetError(f"target {twice!r} is given twice", at=f"image {first + i}")
    return aims


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim == 1)


def against_class(
    aim: Aim, against: Any, logits: np.ndarray, labels: Sequence[str] | None, layout: str | None, *, first: int,
    images: int,
) -> Aim:  # fmt: skip
    """``aim`` held against another class: y_A - y_B is explained.

    Raises:
        TargetError: the target is no class, or the two are the same.
    """
    if aim.classes is None or against is None:
        raise TargetError("only a class can be held against another", known=f"the target is {aim.said[0]!r}")
    other = aim_at(against, logits, labels, layout, first=first, images=images)
    if other.classes is None:
        raise TargetError("only a class can be held against another", known=f"against is {other.said[0]!r}")
    same = np.flatnonzero(aim.classes == other.classes)
    if len(same):
        raise TargetError(
            f"class {int(aim.classes[same[0]])} is held against itself: there is nothing to explain",
            at=f"image {first + int(same[0])}",
            next="give target= and against= two classes",
        )
    return Aim(aim.weights - other.weights, aim.classes, aim.said, other.classes)


def _dense_error(target: Any, logits: np.ndarray, layout: str | None) -> TargetError:
    names = axis_names(logits.shape, layout)
    said = "no target" if target is None else f"target {target!r}"
    return TargetError(
        f"the output is dense, and {said} does not say which of its scores to explain",
        known=_axes(logits, layout),
        next=f"target=({', '.join(names)}), with None to sum over an axis, or a function of the logits that returns "
        "how much each of them counts",
    )


def _axes(logits: np.ndarray, layout: str | None) -> str:
    names = axis_names(logits.shape, layout)
    return f"its axes after the batch are [{', '.join(names)}] = {list(logits.shape[1:])}"


# --- places -------------------------------------------------------------------------------------------------------


def _at_places(places: Sequence[Any], logits: np.ndarray, labels: Sequence[str] | None, layout: str | None) -> Aim:
    weights = np.zeros_like(logits)
    said = []
    for i, place in enumerate(places):
        index = _index(place, logits, labels, layout)
        weights[i][index] = 1
        said.append(tuple(_written(entry, size) for entry, size in zip(index, logits.shape[1:], strict=True)))
    return Aim(weights, None, tuple(said))


def _index(place: Any, logits: np.ndarray, labels: Sequence[str] | None, layout: str | None) -> tuple[int | slice, ...]:
    """An index or a slice for each axis after the batch."""
    sizes, names = logits.shape[1:], axis_names(logits.shape, layout)
    if not isinstance(place, tuple):
        raise _dense_error(place, logits, layout)
    dots = [i for i, entry in enumerate(place) if entry is Ellipsis]
    if len(dots) == 1:
        place = place[: dots[0]] + (None,) * (len(sizes) - len(place) + 1) + place[dots[0] + 1 :]
    if len(place) != len(sizes):
        raise TargetError(
            f"target {_shown(place)} has {len(place)} entries, and the output {len(sizes)} axes after the batch",
            known=_axes(logits, layout),
            next=f"target=({', '.join(names)}), with None to sum over an axis",
        )
    found = []
    for entry, size, name in zip(place, sizes, names, strict=True):
        own = labels if name == "class" and labels is not None and len(labels) == size else None
        found.append(_entry(entry, size, name, own, f"target {_shown(place)}", _axes(logits, layout)))
    return tuple(found)


def _entry(entry: Any, size: int, name: str, labels: Sequence[str] | None, where: str, known: str) -> int | slice:
    if isinstance(entry, np.ndarray) and entry.ndim == 0:
        entry = entry[()]
    if isinstance(entry, str):
        entry = _word(entry, size, name, labels, where)
    if entry is None:
        return slice(0, size)
    if isinstance(entry, slice):
        span = range(*entry.indices(size))
        if not len(span):
            raise TargetError(f"{where} selects nothing on {_axis(name)}, of size {size}", known=known)
        low, high = min(span[0], span[-1]), max(span[0], span[-1])
        return slice(low, high + 1, abs(span.step))
    if not isinstance(entry, (int, np.integer)) or isinstance(entry, (bool, np.bool_)):
        raise TargetError(
            f"{where} has the entry {entry!r}, a {type(entry).__name__}",
            known="an index, None or a slice for a sum, a label on the class axis",
        )
    if not -size <= entry < size:
        raise TargetError(f"{where} is outside the output: {entry} on {_axis(name)}, of size {size}", known=known)
    return int(entry) % size


def _word(text: str, size: int, name: str, labels: Sequence[str] | None, where: str) -> Any:
    """An entry that was written: a number, a span "2:5" or ":", a label."""
    word = text.strip()
    if re.fullmatch(r"-?\d{1,18}", word):
        return int(word)
    if (span := _SPAN.fullmatch(word)) is not None:
        return slice(*(None if bound is None else int(bound) for bound in span.groups()))
    if labels is None:
        raise TargetError(
            f"{where} has the word {word!r} on {_axis(name)}",
            known="an index, or ':' or '2:5' for a sum; a label on the class axis, where the model has labels",
        )
    return resolve_class(word, labels, size)


def _axis(name: str) -> str:
    return name if name.startswith("axis ") else f"the axis {name}"


def _written(entry: int | slice, size: int) -> Entry:
    if isinstance(entry, int):
        return entry
    if (entry.start, entry.stop, entry.step or 1) == (0, size, 1):
        return ":"
    return f"{entry.start}:{entry.stop}" + (f":{entry.step}" if (entry.step or 1) != 1 else "")


def _shown(place: tuple[Any, ...]) -> str:
    words = [":" if e is None else _span(e) if isinstance(e, slice) else str(e) for e in place]
    return f"({', '.join(words)})"


def _span(entry: slice) -> str:
    bounds = [entry.start, entry.stop] if entry.step is None else [entry.start, entry.stop, entry.step]
    return ":".join("" if bound is None else str(bound) for bound in bounds)


# --- weights ------------------------------------------------------------------------------------------------------


def _by_function(function: Callable[[np.ndarray], Any], logits: np.ndarray, layout: str | None, first: int) -> Aim:
    """One image at a time, so that what an image's weights are cannot depend on the batch it came in."""
    rows = []
    for i in range(len(logits)):
        one = logits[i : i + 1].copy()
        one.flags.writeable = False
        rows.append(_checked(function(one), one, layout, "the target function returned", f"image {first + i}"))
    return Aim(np.concatenate(rows), None, ("function",) * len(rows))


def _weighted(weights: np.ndarray, logits: np.ndarray, layout: str | None, first: int, total: int) -> Aim:
    if weights.shape != (total, *logits.shape[1:]):
        raise _wrong_shape(weights, (total, *logits.shape[1:]), layout, "target is an array")
    rows = []
    for i in range(len(logits)):
        own = weights[first + i : first + i + 1]
        rows.append(_checked(own, logits[i : i + 1], layout, "target is an array of", f"image {first + i}"))
    return Aim(np.concatenate(rows), None, ("function",) * len(rows))


def _checked(weights: Any, logits: np.ndarray, layout: str | None, what: str, where: str) -> np.ndarray:
    """float32 weights of the logits' shape, finite and not all 0."""
    try:
        array = np.asarray(weights)
    except Exception as error:
        raise TargetError(f"{what} no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TargetError(f"{what} {array.dtype} values", at=where, known=WANTED)
    if array.shape != logits.shape:
        raise _wrong_shape(array, logits.shape, layout, f"{what} an array")
    with np.errstate(over="ignore"):
        cast: np.ndarray = array.astype(np.float32)
    if not np.isfinite(cast).all():
        raise TargetError(f"{what} weights that are NaN or Inf", at=where)
    if not cast.any():
        raise TargetError(
            f"{what} weights that are all 0: no logit counts, there is nothing to explain",
            at=where,
            next="if it selects the cells of a class, the network gave none of them that class",
        )
    return cast


WANTED = "a target function returns how much each logit counts: numbers of the logits' own shape"


def _wrong_shape(array: np.ndarray, wanted: tuple[int, ...], layout: str | None, what: str) -> TargetError:
    names = ", ".join(("n", *axis_names(wanted, layout)))
    return TargetError(
        f"{what} of shape {list(array.shape)}, and the logits are [{names}] = {list(wanted)}",
        known=WANTED,
        next="for the mean of class 3 over the picture: w = 0 * logits; w[:, 3] = 1 / w[0, 3].size; return w",
    )
