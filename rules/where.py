"""Where: each cell from one of two tensors.

    R_x = R where the condition holds, R_y = R where it does not

The condition says which, not how much: it gets nothing. What a constant was chosen for leaks. The derivative is the
same map, and so are DeepLIFT's multipliers where the condition is constant; a condition that may differ between input
and reference is refused. PyTorch writes Softplus with one, and masks of uneven pools. Source: methods 3.1 (an index
map; ours); ONNX Where-9, -16.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale

OPS = {"Where": (9, 16)}


def _branches(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return tuple(i for i in layer.operands if i != 0)


def _chosen_by_input(layer: Layer, graph: LayerGraph) -> str | None:
    return "what it chooses depends on the input, and DeepLIFT has no multiplier for that" if layer.unknown(0) else None


@rescale(sends=_branches, refuses=_chosen_by_input, **OPS)
@gradient(reads="x", sends=_branches, **OPS)
@relevance("chosen", reads="x", sends=_branches, leaks="what a constant was chosen for", **OPS)
def chosen(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> one [n, ...] for each branch, of the branch's own shape."""
    holds = xp.expand(node.x(0), xp.shape(r))
    masks = {1: holds, 2: xp.sub(xp.constant(1.0), holds)}
    parts, leaks = {}, []
    for i, mask in masks.items():
        if i in node.layer.operands:
            parts[i] = xp.sum_to(xp.mul(r, mask), node.in_shape(i))
        else:
            leaks.append(xp.keep(r, masks[3 - i])[1])
    return Flow(parts, tuple(leaks))
