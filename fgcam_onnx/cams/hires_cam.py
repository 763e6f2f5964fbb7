"""HiRes-CAM: each cell weighted by its own gradient.

    weights g_k, one a cell          components g_k A_k          [rows, c, ...]

g = dy_c/dA. The map is signed by definition: no ReLU belongs to it.

Conserves: where all behind L is linear the components sum to y_c less its biases; elsewhere nothing.

Differs: from pytorch-grad-cam, which applies a ReLU to this map as to the others.

Source: methods 5; Draelos and Carin 2020.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context

DESCENDS = True


def components(context: Context) -> Array:
    """[rows, c, ...], signed."""
    return context.xp.mul(context.gradient, context.activations)
