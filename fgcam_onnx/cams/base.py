"""What a base CAM gets: the activations at L, and ways to ask the network for more.

A base CAM returns *components*, one signed map a channel, without sum, ReLU or normalisation. Summed over channels they
are the CAM; put on L and walked down they are FG-CAM (methods 2.1).

Rows: a row is one image explained for one class. For one class an image there is a row for each of the n images, and
activations are [n, c, ...]. For several classes the images come one at a time: activations are [1, c, ...], and there
is a row for each class. So gradients and components are [rows, c, ...], and broadcast against the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs

__all__ = ["Context", "over_space"]


@dataclass(frozen=True, eq=False)
class Context:
    """A batch at L.

    ``activations`` A: [n, c, ...], channels first. ``target``: int64 [rows]. ``x``: the network's input [n, ...] and
    ``channel_axis`` its channel axis. ``differentiate()``: the gradient of the target's logit with respect to A,
    [rows, c, ...]. ``xp``: the verbs in which to compute with these two; on a GPU they are values of a program that is
    being traced, and a base that differentiates uses nothing else.
    ``score(x)``: logits of other inputs, [m, classes], in batches. ``progress(done, total)``.
    ``head``: the operator that the model turns its logits into scores with (Softmax, Sigmoid), None if it gives logits.
    ``logits``: [n, classes]. ``options``: those of the method, all of them, defaults filled in.

    ``behind(a, image)``: logits [m, classes] of the network from L on, for other activations a [m, c, ...]; what else
    that part of the network reads is that of ``image``. ``relevance(start)``: [rows, c, ...], LRP with z+ from the
    logits to L, of ``start`` [rows, classes]. ``contributions()``: [rows, c, ...], the share of each cell of A in
    y_c(A) - y_c(0), by DeepLIFT-rescale.
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
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    options: Mapping[str, Any] = field(default_factory=dict)
    behind: Callable[[np.ndarray, int], np.ndarray] = lambda a, image: np.zeros((0, 0), np.float32)
    relevance: Callable[[np.ndarray], np.ndarray] = lambda start: np.zeros(0, np.float32)
    contributions: Callable[[], np.ndarray] = lambda: np.zeros(0, np.float32)

    @cached_property
    def gradient(self) -> Array:
        """dy_c / dA, [rows, c, ...]."""
        return self.differentiate()

    def rows_of(self, image: int) -> np.ndarray:
        """The rows that explain this image."""
        several = self.xp.shape(self.activations)[0] != len(self.target)
        return np.arange(len(self.target)) if several else np.arange(image, image + 1)


def over_space(weights: np.ndarray, like: np.ndarray) -> np.ndarray:
    """[n, c] -> [n, c, 1, ...], to multiply activations with."""
    return weights.reshape(*weights.shape, *[1] * (like.ndim - 2))
