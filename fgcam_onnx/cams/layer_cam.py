"""Layer-CAM: pixel weights; components (dy_c/dA)^+ A.

Source: methods 5; Jiang et al. 2021, eq. 6 to 8 (the final ReLU belongs to the display).
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context


def components(context: Context) -> Array:
    """[n, c, ...], signed as the activations are."""
    xp = context.xp
    return xp.mul(xp.positive(context.gradient), context.activations)
