"""Grad-CAM: each channel weighted by its mean gradient.

    w_k = <g_k>          components w_k A_k          [rows, c, ...]

g = dy_c/dA, <.> the mean over space.

Conserves: behind global average pooling and one linear layer the components sum to y_c - b_c; elsewhere nothing.

Differs: nothing known.

Source: methods 5; Selvaraju et al. 2017, eq. 1 and 2 (the ReLU of eq. 2 belongs to the display).
"""

from __future__ import annotations

import math

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context

DESCENDS = True


def components(context: Context) -> Array:
    """[rows, c, ...], signed."""
    xp, a = context.xp, context.activations
    space = xp.shape(a)[2:]
    summed = xp.reduce_sum(context.gradient, range(2, 2 + len(space)))
    return xp.mul(xp.mul(summed, xp.constant(1 / math.prod(space))), a)
