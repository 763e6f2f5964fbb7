"""Grad-CAM: w_k = mean over space of dy_c/dA_k; components w_k A_k.

Source: methods 5; Selvaraju et al. 2017, eq. 1 and 2 (the ReLU of eq. 2 belongs to the display).
"""

from __future__ import annotations

import math

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context


def components(context: Context) -> Array:
    """[n, c, ...], signed."""
    xp, a = context.xp, context.activations
    space = xp.shape(a)[2:]
    summed = xp.reduce_sum(context.gradient, range(2, 2 + len(space)))
    return xp.mul(xp.mul(summed, xp.constant(1 / math.prod(space))), a)
