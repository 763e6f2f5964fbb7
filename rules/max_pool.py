"""MaxPool, GlobalMaxPool: the winner takes all.

    R_i = sum of R_j over the windows j whose first maximum (row-major) is i

Padding never wins, overlapping windows add. The first maximum and not every one: sharing the full R with each tied
cell would create relevance. The derivative is the same map. Source: methods 3.2.

Window (1, 1, 1, 0), R = 6: (6, 0, 0, 0).

DeepLIFT's multipliers: a window's change goes to one cell, whose own change is as large or larger, so the share is in
(0, 1] and nothing is lost:

    y >= y0:  (y - y0)/(x_i - x0_i)  for the winner i on the input       x_i - x0_i >= y - y0, since x0_i <= y0
    y <  y0:  (y - y0)/(x_i - x0_i)  for the winner i on the reference   x0_i - x_i >= y0 - y, since x_i <= y
    1 for the winner on the input, where |x_i - x0_i| < 1e-10 and y >= y0: the derivative

``winner_positive`` drops the windows whose maximum is <= 0, as the published code does.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs, Window
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale
from fgcam_onnx.rules.geometry import window
from fgcam_onnx.rules.rescaled import over_difference

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


@rescale(reads="xy", **OPS)
def rescaled_winner(node: Node, r: Array, xp: Verbs) -> Flow:
    """m [n, c, oh, ow] -> [n, c, h, w]."""
    return Flow({0: change_of_maximum(r, (node.x(), node.x0()), (node.y, node.y0), _window(node), xp)})


def change_of_maximum(m: Array, x: tuple[Array, Array], y: tuple[Array, Array], window: Window, xp: Verbs) -> Array:
    """DeepLIFT's multipliers of the cells of windows, x and y on input and reference: m [n, c, out] -> [n, c, ...]."""
    dx, dy = xp.sub(*x), xp.sub(*y)
    up, down = xp.mul(m, xp.positive(dy)), xp.mul(m, xp.negative(dy))
    no_less = xp.mul(m, xp.sub(xp.constant(1.0), xp.greater(y[1], y[0])))
    change = xp.add(_routed(x[0], up, window, xp), _routed(x[1], down, window, xp))
    return over_difference(change, dx, _routed(x[0], no_less, window, xp), xp)


def _routed(x: Array, r: Array, window: Window, xp: Verbs) -> Array:
    """``max_route`` of a batch of r over one x for all."""
    n = xp.shape(r)[0]
    return xp.max_route(x if xp.shape(x)[0] == n else xp.expand(x, (n, *xp.shape(x)[1:])), r, window)
