"""MaxPool, GlobalMaxPool: the winner takes all.

    R_i = sum of R_j over the windows j whose first maximum (row-major) is i

Padding never wins, overlapping windows add. The first maximum and not every one: sharing the full R with each tied
cell would create relevance. The derivative is the same map. Source: methods 3.2.

Window (1, 1, 1, 0), R = 6: (6, 0, 0, 0).

``winner_positive`` drops the windows whose maximum is <= 0, as the published code does.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs, Window
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance
from fgcam_onnx.rules.geometry import window

OPS = {"MaxPool": (1, 8, 10, 11, 12, 22), "GlobalMaxPool": (1, 22)}


def _window(node: Node) -> Window:
    if node.layer.op == "MaxPool":
        return window(node)
    spatial = node.in_shape()[2:]
    ones = (1,) * len(spatial)
    return Window(spatial, ones, (0,) * len(spatial), ones)


@gradient(reads="x", **OPS)
@relevance("winner", reads="x", dead_inputs="inherits", **OPS)
def winner(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, c, oh, ow] -> [n, c, h, w]."""
    return Flow({0: xp.max_route(node.x(), r, _window(node))})


@relevance("winner_positive", reads="xy", leaks="relevance of windows whose maximum is <= 0", **OPS)
def winner_positive(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, c, oh, ow] -> [n, c, h, w]."""
    kept, leak = xp.keep(r, xp.greater(node.y, xp.constant(0.0)))
    return Flow({0: xp.max_route(node.x(), kept, _window(node))}, (leak,))
