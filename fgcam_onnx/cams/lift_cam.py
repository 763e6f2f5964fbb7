"""LIFT-CAM: each channel weighted by its contribution to the score, by DeepLIFT.

    w_k = S(contribution of A_k to y_c(A) - y_c(0))          components w_k A_k          [rows, c, ...]

S the sum over space; contributions by the rescale rule, with the reference A = 0.

Conserves: the weights sum to y_c(A) - y_c(0), the components nothing. Behind global average pooling and one linear
layer w_k = FC[c, k] <A_k>.

Differs: from the paper on VGG, whose L is the ReLU before the last pooling; name it as the start for that.

Source: methods 5; Jung and Oh 2021.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context, over_space

DESCENDS = True


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed."""
    a, parts = context.activations, context.contributions()
    result: np.ndarray = over_space(parts.reshape(*parts.shape[:2], -1).sum(axis=2), a) * a
    return result
