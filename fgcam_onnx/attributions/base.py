"""What a method gets that works on inputs: the batch, and ways to ask the network about other inputs.

Rows: a row is one image explained for one class. For one class an image there is a row for each of the n images; for
several classes the images come one at a time, and there is a row for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch at the input.

    ``x``: float [n, ...], the network's input, ``channel_axis`` its channel axis. ``target``: int64 [rows].
    ``logits``: [n, classes]. ``head``: the operator that the model turns its logits into scores with (Softmax,
    Sigmoid), None if it gives logits. ``options``: those of the method, all of them, defaults filled in.

    Of the rows of one image, at m other inputs ``points`` [m, ...]: ``gradients(points, image)`` [r, m, ...] is the
    derivative of the score that each row explains, ``scores(points, image)`` [r, m] that score, ``probabilities(points,
    image)`` [r, m] the probability of its class. ``progress(done, total)``.
    """

    x: np.ndarray
    channel_axis: int
    target: np.ndarray
    logits: np.ndarray
    gradients: Callable[[np.ndarray, int], np.ndarray]
    scores: Callable[[np.ndarray, int], np.ndarray]
    probabilities: Callable[[np.ndarray, int], np.ndarray]
    progress: Callable[[int, int], None]
    batch_size: int
    head: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def rows_of(self, image: int) -> np.ndarray:
        """The rows that explain this image."""
        several = len(self.x) != len(self.target)
        return np.arange(len(self.target)) if several else np.arange(image, image + 1)
