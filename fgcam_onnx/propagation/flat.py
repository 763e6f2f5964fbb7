"""flat: every input of a window gets the same share.

    R_i = sum_j 1[i in window of j] R_j / |window of j|

Source: methods 4.1. One output of three inputs, R = 8: 8/3 each.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap


def flat(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. Cells on the padding are no inputs: they count in no window.

    The counts are those of all images: z [1, co, ...].
    """
    w = op.weight(node.layer)
    ones = None if w is None else xp.constant(np.ones_like(w))
    z = op.apply(node, xp.constant(np.ones((1, *node.in_shape()[1:]))), ones, xp)
    s, leak = xp.share(r, z, nonnegative=True)
    return Flow({0: op.adjoint(node, s, ones, xp)}, (leak,))
