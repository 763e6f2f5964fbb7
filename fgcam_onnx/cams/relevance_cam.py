"""Relevance-CAM: each channel weighted by its mean relevance, that of the class against all others.

    R_c = 1, R_n = -1/N for n != c;   R_k = relevance at L by z+          start [rows, N]
    w_k = <R_k>          components w_k A_k          [rows, c, ...]

N classes, <.> the mean over space.

Conserves: nothing.

Differs: the relevance is walked to L by z+ without biases, as everything here; nothing else known.

Source: methods 4.2 and 5; Lee et al. 2021.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context, over_space

DESCENDS = True


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed."""
    a, classes = context.activations, context.logits.shape[1]
    start = np.full((len(context.target), classes), -1 / classes, a.dtype)
    start[np.arange(len(start)), context.target] = 1
    relevance = context.relevance(start)
    result: np.ndarray = over_space(relevance.reshape(*relevance.shape[:2], -1).mean(axis=2), a) * a
    return result
