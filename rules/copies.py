"""Expand, Tile: copies of a tensor along some axes.

    R_i = sum of R over the copies of i

Exactly conserved; the derivative is the same map. Source: methods 3.1; ONNX Expand-8, -13, Tile-6, -13.
"""

from __future__ import annotations

import math

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

EXPAND = {"Expand": (8, 13)}
TILE = {"Tile": (6, 13)}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _repeats_batch(layer: Layer, graph: LayerGraph) -> str | None:
    if layer.unknown(1):
        return f"its operand {layer.inputs[1]!r} is computed in the graph"
    repeats = layer.constant(1)
    if layer.op == "Tile" and repeats is not None and repeats.ravel()[0] != 1:
        return "it repeats the batch"
    if layer.op == "Expand":
        before, after = (graph.tensor(name).shape for name in (layer.inputs[0], layer.output))
        if before is not None and after is not None and len(before) < len(after):
            return "it adds axes before the batch"
    return None


@gradient(sends=_first, refuses=_repeats_batch, **EXPAND)
@relevance("gather", dead_inputs="inherits", sends=_first, refuses=_repeats_batch, **EXPAND)
def expand(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the input's shape."""
    return Flow({0: xp.sum_to(r, node.in_shape())})


@gradient(sends=_first, refuses=_repeats_batch, **TILE)
@relevance("gather", dead_inputs="inherits", sends=_first, refuses=_repeats_batch, **TILE)
def tile(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the input's shape; one axis after the other, as [before, copies, cells]."""
    shape, out = node.in_shape(), node.out_shape()
    for axis, (size, whole) in enumerate(zip(shape, out, strict=True)):
        if size != whole:
            before, behind = math.prod(shape[:axis]), math.prod(out[axis + 1 :])
            rows = xp.reshape(r, (before, whole // size, size * behind))
            r = xp.reshape(xp.reduce_sum(rows, (1,)), (*shape[: axis + 1], *out[axis + 1 :]))
    return Flow({0: r})
