"""w^2: shares by the squared weights, whatever the input is.

    R_i = sum_j w_ij^2 / (sum_i w_ij^2) R_j

The sum goes over the inputs of the window, cells on the padding are none. The coefficients of a pool's window are
equal, so there it is the rule flat. Source: methods 4.1; Montavon et al. 2017.

One output, w = (1, -2, -1), R = 8: 1, 4, 1 of 6, so R = 4/3, 16/3, 4/3.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap


def w_square(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. The denominators are those of all images: z [1, co, ...]."""
    w = op.weight(node.layer)
    squares = None if w is None else xp.constant(np.square(w, dtype=np.float64))
    z = op.apply(node, xp.constant(np.ones((1, *node.in_shape()[1:]))), squares, xp)
    s, leak = xp.share(r, z, nonnegative=True)
    return Flow({0: op.adjoint(node, s, squares, xp)}, (leak,))
