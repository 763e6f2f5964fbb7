"""Layer-CAM: each cell weighted by its own positive gradient.

    weights g_k^+, one a cell          components g_k^+ A_k          [rows, c, ...]
    several layers, M = ReLU of the map:  max over layers of Up(tanh(2 M / max M)), of the last one Up(M / max M)

g = dy_c/dA.

Conserves: nothing.

Differs: nothing known for one layer. Of several, pytorch-grad-cam takes the mean of maps stretched to [0, 1].

Source: methods 5; Jiang et al. 2021, eq. 6 to 8 (the final ReLU belongs to the display).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context
from fgcam_onnx.imaging import resize

DESCENDS = True


def components(context: Context) -> Array:
    """[rows, c, ...], signed as the activations are."""
    xp = context.xp
    return xp.mul(xp.positive(context.gradient), context.activations)


def fuse(maps: Sequence[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Maps of several layers [n, ...], from the shallowest to the deepest, as one: [n, *size] in [0, 1].

    An image without a positive cell in a layer's map gets zeros from it.
    """
    scaled = []
    for depth, each in enumerate(maps, start=1):
        positive = np.maximum(each, 0)
        peak = positive.max(axis=tuple(range(1, each.ndim)), keepdims=True)
        share = np.divide(positive, peak, out=np.zeros_like(positive), where=peak > 0)
        scaled.append(resize(share if depth == len(maps) else np.tanh(2 * share), size))
    fused: np.ndarray = np.maximum.reduce(scaled)
    return fused
