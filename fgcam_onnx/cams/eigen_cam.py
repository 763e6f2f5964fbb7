"""Eigen-CAM: the strongest pattern of the activations, of whatever class.

    X = A as [h w, c], each column less its mean;   X = U S V^T
    map = X V[:, 0]          components V[k, 0] (A_k - <A_k>)          [rows, c, ...]

<.> the mean over space. The sign of V is free: the extreme of larger magnitude becomes positive, the first of equal
ones. Activations without variation give zeros. The same map for every class.

Conserves: the components sum to 0.

Differs: from pytorch-grad-cam, which leaves the sign to the decomposition.

Source: methods 5; Muhammad and Yeasin 2020.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context

DESCENDS = False
NO_DESCENT = "eigen-cam explains no class, so there is no relevance that could be walked down"


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed; for several classes the same again."""
    a = context.activations
    x = a.reshape(*a.shape[:2], -1).astype(np.float64)
    x = x - x.mean(axis=2, keepdims=True)
    direction = np.linalg.svd(x.swapaxes(1, 2), full_matrices=False)[2][:, 0]  # [n, c]
    parts = direction[:, :, None] * x
    summed = parts.sum(axis=1)
    extreme = np.take_along_axis(summed, np.abs(summed).argmax(axis=1)[:, None], axis=1)
    parts *= np.where(extreme < 0, -1, 1)[:, :, None]
    result: np.ndarray = parts.astype(a.dtype).reshape(a.shape)
    several = len(context.target) > len(a)
    return np.repeat(result, len(context.target), axis=0) if several else result
