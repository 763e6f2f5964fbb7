"""Ops that move or rename cells and change no value: relevance goes back the way the cells came.

Reshape, Flatten, Squeeze, Unsqueeze, Transpose; Identity, Cast, Dropout (at inference). Exactly conserved; the
derivative is the same map. Source: methods 3.1.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

SHAPES = {
    "Reshape": (1, 5, 13, 14, 19, 21, 23, 24, 25),
    "Flatten": (1, 9, 11, 13, 21, 23, 24, 25),
    "Squeeze": (1, 11, 13, 21, 23, 24, 25),
    "Unsqueeze": (1, 11, 13, 21, 23, 24, 25),
}
TRANSPOSE = {"Transpose": (1, 13, 21, 23, 24, 25)}
SAME = {
    "Identity": (1, 13, 14, 16, 19, 21, 23, 24, 25),
    "Cast": (6, 9, 13, 19, 21, 23, 24, 25, 28),
    "Dropout": (7, 10, 12, 13, 22),
}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _training(layer: Layer, graph: LayerGraph) -> str | None:
    if (
        layer.op == "Dropout"
        and layer.given(2)
        and not (layer.constant(2) is not None and not layer.constants[2].any())
    ):
        return "it runs in training mode: what it drops is random"
    return None


@gradient(sends=_first, **SHAPES)
@relevance("reshape", dead_inputs="inherits", sends=_first, **SHAPES)
def reshape(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the input's shape, same order of cells."""
    return Flow({0: xp.reshape(r, node.in_shape())})


def _moves_batch(layer: Layer, graph: LayerGraph) -> str | None:
    perm = layer.attributes.get("perm")
    return "it moves the batch axis" if not perm or perm[0] != 0 else None


@gradient(refuses=_moves_batch, **TRANSPOSE)
@relevance("transpose", dead_inputs="inherits", refuses=_moves_batch, **TRANSPOSE)
def transpose(node: Node, r: Array, xp: Verbs) -> Flow:
    """r, axes in the order ``perm`` -> axes in the input's order."""
    rank = len(node.in_shape())
    perm = node.attributes.get("perm") or list(reversed(range(rank)))
    return Flow({0: xp.transpose(r, [perm.index(a) for a in range(rank)])})


@gradient(sends=_first, refuses=_training, **SAME)
@relevance("pass", dead_inputs="inherits", sends=_first, refuses=_training, **SAME)
def same(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> r."""
    return Flow({0: r})
