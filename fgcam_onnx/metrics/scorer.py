"""The network as a metric sees it: scores of many changed copies of a picture, in batches that fit the memory.

A metric describes its copies as an iterable of arrays, each made when it is asked for. The scorer copies them into one
buffer of a batch and runs that: memory is that of a batch, whatever the number of copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx import memory
from fgcam_onnx.cams.probability import probability
from fgcam_onnx.errors import ActivationError, InputError, ModelError, OptionError, TargetError

if TYPE_CHECKING:
    from fgcam_onnx import Explainer
    from fgcam_onnx.feeds import Feeds

__all__ = ["Scorer", "scorer_of"]

Array = npt.NDArray[Any]
LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
# A batch beyond this gains nothing on a CPU: measured flat from 4 pictures on.
MOST = 32
# The share of the memory that a batch may take, with its activations.
SHARE = 8


class Scorer:
    """Logits and probabilities of arrays that the model takes.

    ``model``: an Explainer, or a function from inputs [m, ...] to logits [m, classes]. ``layout`` and ``head`` (the
    operator that makes scores of logits: None or "Softmax", or "Sigmoid") of a function; an Explainer knows its own.
    ``batch_size``: copies at a time; None for what fits the memory. ``inputs``: for the inputs beside the picture, one
    row that serves every copy.

    ``forwards`` counts the pictures that were run. ``dtype``: what the model takes; None of a function.

    Raises:
        InputError: a dense output, which has no probability of a class.
        OptionError: a batch_size below 1.
    """

    def __init__(
        self,
        model: Any,
        *,
        layout: str | None = None,
        head: str | None = None,
        batch_size: int | None = None,
        inputs: Mapping[str, Any] | Feeds | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"option batch_size cannot be {batch_size}", known="copies at a time, at least 1")
        self.forwards = 0
        self.batch_size = batch_size
        self._layout = layout
        if hasattr(model, "scores"):
            if model.dense:
                raise InputError(
                    "metrics ask for the probability of a class, and a dense output has none",
                    known=f"output {model.output_name!r} is {list(model.output_shape)}",
                )
            self.head, self._layout = model.graph.head, model.layout
            self._run: Callable[[Array], Array] = lambda x: model.scores(x, inputs=inputs)
            self.batch_size = batch_size or model.fixed_batch
            self._activations = _largest(model)
            self.dtype: str | None = model.input_dtype
        else:
            self.head, self._run, self._activations, self.dtype = head, model, 0, None

    def layout(self, x: Array) -> str:
        """One letter an axis of ``x`` [n, ...]."""
        return self._layout or LAYOUTS.get(x.ndim, "N" + "?" * (x.ndim - 1))

    def logits(self, x: Array) -> Array:
        """[m, ...] -> [m, classes], in batches."""
        return self.of(x, len(x))

    def probabilities(self, x: Array, target: npt.ArrayLike) -> Array:
        """p_c of [m, ...], float64 [m]; ``target``: a class for all, or one for each."""
        return self.probability(self.logits(x), target)

    def probability(self, logits: Array, target: npt.ArrayLike) -> Array:
        """p_c of logits [m, classes], float64 [m]: softmax, or sigmoid where the model ends in one.

        Raises:
            TargetError: a class that the model does not have.
        """
        classes = np.broadcast_to(np.asarray(target), len(logits))
        outside = classes[(classes < 0) | (classes >= logits.shape[1])]
        if len(outside):
            raise TargetError(
                f"there is no class {int(outside[0])}",
                known=f"the model has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}",
            )
        wide = logits.astype(np.float64)
        if np.ndim(target) == 0:
            one: Array = probability(wide, classes[:1], self.head)[0]
            return one
        parts = [
            np.diagonal(probability(wide[i : i + MOST], classes[i : i + MOST], self.head))
            for i in range(0, len(wide), MOST)
        ]
        return np.concatenate([np.zeros(0), *parts])

    def probabilities_of(self, pictures: Iterable[Array], classes: npt.ArrayLike) -> Array:
        """p_c of pictures that are made one after the other, float64 [m]; ``classes``: one for each of them, [m].

        The logits of a batch are let go with it.
        """
        wanted = np.asarray(classes)
        return self._batches(
            pictures, len(wanted), lambda logits, first: self.probability(logits, wanted[first : first + len(logits)])
        )

    def of(self, pictures: Iterable[Array], count: int) -> Array:
        """Logits [count, classes] of pictures that are made one after the other.

        ``pictures`` may yield the same array again and again, changed: each is copied before the next is asked for.
        """
        return self._batches(pictures, count, lambda logits, first: logits)

    def _batches(self, pictures: Iterable[Array], count: int, kept: Callable[[Array, int], Array]) -> Array:
        """What ``kept(logits, number of the first picture)`` makes of each batch, side by side."""
        found: list[Array] = []
        buffer: Array | None = None
        size, filled, left = 0, 0, count
        for picture in pictures:
            if buffer is None:
                size = min(count, self.fits(picture))
                buffer = np.empty((size, *picture.shape), picture.dtype)
            buffer[filled] = picture
            filled += 1
            left -= 1
            if filled == size or left == 0:
                found.append(kept(self._scored(buffer[:filled]), count - left - filled))
                filled = 0
        if left or buffer is None:
            raise ValueError(f"{count} pictures were announced, and {count - left} came")
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _scored(self, x: Array) -> Array:
        self.forwards += len(x)
        logits = np.array(self._run(x))  # a copy: a function may return a view of the buffer, which is used again
        if logits.ndim != 2 or len(logits) != len(x):
            raise InputError(
                "the model has to give logits [m, classes]", known=f"for {len(x)} pictures it gave {list(logits.shape)}"
            )
        if np.isnan(logits).any():
            raise ActivationError(
                "the model gave NaN for a changed picture",
                known=f"{int(np.isnan(logits).any(axis=1).sum())} of a batch of {len(x)}",
                next="choose another baseline: the numbers of this one may be too large for the model",
            )
        return logits

    def fits(self, picture: Array) -> int:
        """Copies at a time: what the user or the file says, else what the memory holds, at most MOST."""
        if self.batch_size is not None:
            return self.batch_size
        each = max(1, 2 * picture.nbytes + self._activations)
        return int(np.clip(memory.available() // SHARE // each, 1, MOST))


def _largest(model: Explainer) -> int:
    """Bytes that the activations of one picture take at their peak, about: the two largest tensors, twice."""
    try:
        stages = model.layers()
    except ModelError:  # no convolutional classifier
        return 0
    known = [[side for side in stage.shape[1:] if isinstance(side, int)] for stage in stages]
    sizes: list[int] = sorted(math.prod(sides) for sides in known)
    return 8 * sum(sizes[-2:])


def scorer_of(model: Any) -> Scorer:
    """``model`` itself if it is a Scorer, else one of it."""
    return model if isinstance(model, Scorer) else Scorer(model)
