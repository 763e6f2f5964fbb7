"""ReduceMax: the winner takes all, as in a MaxPool whose window is all that is reduced.

    R_i = R_j where i is the first maximum (row-major over the reduced axes) of the cells that j is the maximum of

Conserved exactly; the derivative is the same map. DeepLIFT's multipliers are MaxPool's. Source: methods 3.2; ONNX
ReduceMax-1 to -20.
"""

from __future__ import annotations

import math

from fgcam_onnx.backends.base import Array, Verbs, Window
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale
from fgcam_onnx.rules.geometry import reduced_axes, refuses_reduction
from fgcam_onnx.rules.max_pool import change_of_maximum

OPS = {"ReduceMax": (1, 11, 12, 13, 18, 20)}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


@gradient(reads="x", sends=_first, refuses=refuses_reduction, **OPS)
@relevance("winner", reads="x", sends=_first, refuses=refuses_reduction, dead_inputs="inherits", **OPS)
def winner(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> the input's shape. The reduced axes are moved to the end and seen as one window."""
    shape, axes = node.in_shape(), reduced_axes(node)
    if not axes:
        return Flow({0: xp.reshape(r, shape)})
    kept = [a for a in range(len(shape)) if a not in axes]
    order = (*kept, *axes)
    cells = math.prod(shape[a] for a in axes)
    rows = math.prod(shape[a] for a in kept[1:])
    x = xp.reshape(xp.transpose(node.x(), order), (xp.shape(node.x())[0], rows, cells))
    routed = xp.max_route(x, xp.reshape(r, (shape[0], rows, 1)), Window((cells,), (1,), (0,), (1,)))
    moved = xp.reshape(routed, [shape[a] for a in order])
    return Flow({0: xp.transpose(moved, [order.index(a) for a in range(len(shape))])})


@rescale(reads="xy", sends=_first, refuses=refuses_reduction, **OPS)
def rescaled_winner(node: Node, r: Array, xp: Verbs) -> Flow:
    """m -> the input's shape; seen as one window, as in :func:`winner`."""
    shape, axes = node.in_shape(), reduced_axes(node)
    if not axes:
        return Flow({0: xp.reshape(r, shape)})
    kept = [a for a in range(len(shape)) if a not in axes]
    order = (*kept, *axes)
    cells, rows = math.prod(shape[a] for a in axes), math.prod(shape[a] for a in kept[1:])

    def apart(x: Array) -> Array:
        return xp.reshape(xp.transpose(x, order), (xp.shape(x)[0], rows, cells))

    def maxima(y: Array) -> Array:
        return xp.reshape(y, (xp.shape(y)[0], rows, 1))

    how = Window((cells,), (1,), (0,), (1,))
    x, y = (apart(node.x()), apart(node.x0())), (maxima(node.y), maxima(node.y0))
    moved = xp.reshape(change_of_maximum(maxima(r), x, y, how, xp), [shape[a] for a in order])
    return Flow({0: xp.transpose(moved, [order.index(a) for a in range(len(shape))])})
