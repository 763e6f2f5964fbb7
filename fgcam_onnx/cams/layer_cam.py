"""Layer-CAM: pixel weights; components (dy_c/dA)^+ A.

Source: methods 5; Jiang et al. 2021, eq. 6 to 8 (the final ReLU belongs to the display).
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context


def components(context: Context) -> np.ndarray:
    """[n, c, ...], signed as the activations are."""
    weighted: np.ndarray = np.maximum(context.gradient, 0) * context.activations
    return weighted
