"""Concat, Split: relevance is cut where the activation was joined, and joined where it was cut.

Exactly conserved; the derivative is the same map. Source: methods 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

CONCAT = {"Concat": (4, 11, 13)}
SPLIT = {"Split": (2, 11, 13, 18)}


@gradient(**CONCAT)
@relevance("split", dead_inputs="inherits", leaks="what falls on a constant operand", **CONCAT)
def split(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, sum of c, ...] -> each operand's own slice along ``axis``."""
    shape = node.out_shape()
    axis = int(node.attributes["axis"]) % len(shape)
    parts, start = {}, 0
    mask = np.zeros([d if a == axis else 1 for a, d in enumerate(shape)])
    for i in range(len(node.layer.inputs)):
        size = node.in_shape(i)[axis]
        begins = [-start if a == axis else 0 for a in range(len(shape))]
        ends = [start + size - d if a == axis else 0 for a, d in enumerate(shape)]
        if i in node.layer.operands:
            parts[i] = xp.pad(r, begins, ends)
            mask[(slice(None),) * axis + (slice(start, start + size),)] = 1
        start += size
    if mask.all():
        return Flow(parts)
    _, leak = xp.keep(r, xp.constant(mask))
    return Flow(parts, (leak,))


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


@gradient(sends=_first, **SPLIT)
@relevance("join", dead_inputs="inherits", sends=_first, **SPLIT)
def join(node: Node, r: Sequence[Array | None] | Array, xp: Verbs) -> Flow:
    """r: one [n, c_k, ...] for each output, None where nothing arrived -> [n, c, ...]."""
    pieces = r if isinstance(r, (list, tuple)) else [r]
    axis = int(node.attributes.get("axis", 0)) % len(node.in_shape())
    whole = [xp.constant(np.zeros(node.out_shape(k))) if piece is None else piece for k, piece in enumerate(pieces)]
    return Flow({0: xp.concat(whole, axis) if len(whole) > 1 else whole[0]})
