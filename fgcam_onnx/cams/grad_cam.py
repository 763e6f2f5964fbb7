"""Grad-CAM: w_k = mean over space of dy_c/dA_k; components w_k A_k.

Source: methods 5; Selvaraju et al. 2017, eq. 1 and 2 (the ReLU of eq. 2 belongs to the display).
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context, over_space


def components(context: Context) -> np.ndarray:
    """[n, c, ...], signed."""
    g, a = context.gradient, context.activations
    weighted: np.ndarray = over_space(g.reshape(*g.shape[:2], -1).mean(axis=2), a) * a
    return weighted
