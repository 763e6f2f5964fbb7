"""p_c: how sure a model is of a class, by its own last step.

    p_c = exp(y_c) / sum_k exp(y_k)          softmax, where classes compete
    p_c = 1 / (1 + exp(-y_c))                sigmoid, where the model ends in one, or has one class only

Both written so that no logit overflows.
"""

from __future__ import annotations

import numpy as np

__all__ = ["probability"]


def probability(logits: np.ndarray, target: np.ndarray, head: str | None) -> np.ndarray:
    """Logits [m, classes] and the classes [r] -> p [r, m]. ``head``: what makes scores of the logits in the model."""
    if head == "Sigmoid" or logits.shape[1] == 1:
        alone: np.ndarray = np.exp(-np.logaddexp(0, -logits[:, target])).T
        return alone
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = (e[:, target] / e.sum(axis=1, keepdims=True)).T
    return shares
