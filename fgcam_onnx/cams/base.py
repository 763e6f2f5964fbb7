"""What a base CAM gets: the activations at L, and ways to ask the network for more.

A base CAM returns *components* [n, c, ...], one signed map a channel, without sum, ReLU or normalisation. Summed over
channels they are the CAM; put on L and walked down they are FG-CAM (methods 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs

__all__ = ["Context", "over_space"]


@dataclass(frozen=True, eq=False)
class Context:
    """A batch at L.

    ``activations`` A: [n, c, ...], channels first. ``target``: int64 [n]. ``x``: the network's input [n, ...] and
    ``channel_axis`` its channel axis. ``differentiate()``: the gradient of the target's logit with respect to A,
    [n, c, ...]. ``xp``: the verbs in which to compute with these two; on a GPU they are values of a program that is
    being traced, and a base that differentiates uses nothing else.
    ``score(x)``: logits of other inputs, [m, classes], in batches. ``progress(done, total)``.
    ``head``: the operator that the model turns its logits into scores with (Softmax, Sigmoid), None if it gives logits.
    """

    xp: Verbs
    activations: Array
    target: np.ndarray
    x: np.ndarray
    channel_axis: int
    differentiate: Callable[[], Array]
    score: Callable[[np.ndarray], np.ndarray]
    progress: Callable[[int, int], None]
    batch_size: int
    head: str | None = None

    @cached_property
    def gradient(self) -> Array:
        """dy_c / dA, [n, c, ...]."""
        return self.differentiate()


def over_space(weights: np.ndarray, like: np.ndarray) -> np.ndarray:
    """[n, c] -> [n, c, 1, ...], to multiply activations with."""
    return weights.reshape(*weights.shape, *[1] * (like.ndim - 2))
