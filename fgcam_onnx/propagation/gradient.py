"""gradient: the derivative of a linear map is its adjoint.

    g_i = sum_j w_ij g_j

With it the same descent walks the head of the network, and there is no second autodiff.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap


def gradient(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """g [n, co, ...] -> [n, ci, ...]."""
    w = op.weight(node.layer)
    return Flow({0: op.adjoint(node, r, None if w is None else xp.constant(w), xp)})
