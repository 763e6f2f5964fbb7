"""Ablation-CAM: each channel weighted by the share of the score that goes when the channel is taken away.

    w_k = (y_c - y_c[A_k := 0]) / y_c, 0 where y_c = 0          components w_k A_k          [rows, c, ...]

A channel of zeros has weight 0 and costs nothing; the others cost one pass through the layers behind L, shared by all
classes of an image. Near y_c = 0 the weights are as large as their definition says; y_c < 0 turns their signs.

Conserves: nothing.

Differs: from pytorch-grad-cam where no activation is exactly 0: there a channel becomes the smallest activation less
1e7 and not 0.

Source: methods 5; Desai and Ramaswamy 2020.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import TINY
from fgcam_onnx.cams.base import Context, over_space
from fgcam_onnx.cams.masks import pieces

DESCENDS = True


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed. Costs one pass from L to the logits a channel that is not dead."""
    a, (n, c) = context.activations, context.activations.shape[:2]
    weights = np.zeros((len(context.target), c), a.dtype)
    for image in range(n):
        rows = context.rows_of(image)
        target = context.target[rows]
        # From the same part of the network as the ablated scores, so that nothing but the channel differs.
        y = context.behind(a[image : image + 1], image)[0, target][:, None]
        alive = np.flatnonzero(a[image].reshape(c, -1).any(axis=1))
        for piece in pieces(len(alive), context.batch_size):
            without = np.repeat(a[image : image + 1], len(piece), axis=0)
            without[np.arange(len(piece)), alive[piece]] = 0
            lost = y - context.behind(without, image)[:, target].T
            weights[np.ix_(rows, alive[piece])] = np.divide(lost, y, out=np.zeros_like(lost), where=np.abs(y) >= TINY)
            context.progress(image * c + int(alive[piece[-1]]) + 1, n * c)
        context.progress((image + 1) * c, n * c)
    result: np.ndarray = over_space(weights, a) * a
    return result
