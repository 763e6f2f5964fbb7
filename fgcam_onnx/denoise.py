"""Denoising of components, "FG-CAM^D": keep the strongest directions of the channels (methods 2.4).

    M = I as [c, h w], each row minus its mean;  M = U S V^T
    M_d = U_d S_d V_d^T,  d = max(1, floor(ratio min(c, h w)))
    I <- M_d * 1[A != 0]

The row means are not added back. The support mask: each row of M_d sums to 0, so half of its mass may sit on dead
positions; the first layer undone would lose it, and does so in the published code.
"""

from __future__ import annotations

import math

import numpy as np

from fgcam_onnx.errors import OptionError

__all__ = ["denoise"]


def denoise(
    components: np.ndarray,
    activations: np.ndarray,
    *,
    ratio: float = 0.1,
    add_mean_back: bool = False,
    support_mask: bool = True,
) -> np.ndarray:
    """Components and activations [n, c, ...] -> denoised components, the same shape.

    Raises:
        OptionError: ``ratio`` outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise OptionError(f"option ratio cannot be {ratio!r}", known="a share of the directions, above 0 and up to 1")
    n, c = components.shape[:2]
    m = components.reshape(n, c, -1).astype(np.float64)
    mean = m.mean(axis=2, keepdims=True)
    centred = m - mean
    d = max(1, math.floor(ratio * min(c, m.shape[2])))
    # U_d S_d V_d^T is M projected on its strongest directions, which are eigenvectors of the smaller of M M^T and
    # M^T M: for 512 x 49 that is a fraction of the cost of the whole SVD.
    turned = centred.swapaxes(1, 2)
    if c <= m.shape[2]:
        basis = np.linalg.eigh(centred @ turned)[1][:, :, -d:]
        kept = basis @ (basis.swapaxes(1, 2) @ centred)
    else:
        basis = np.linalg.eigh(turned @ centred)[1][:, :, -d:]
        kept = (centred @ basis) @ basis.swapaxes(1, 2)
    if add_mean_back:
        kept = kept + mean
    result: np.ndarray = kept.reshape(components.shape).astype(components.dtype)
    return np.where(activations != 0, result, 0) if support_mask else result
