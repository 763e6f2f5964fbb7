"""Add, Sum, Mean, Sub: where branches meet.

    zplus:  R_a = a^+ / (a^+ + b^+ + ...) R        Sub(a, b) counts b as -b
    norm:   R_a = a / (a + b + ...) R              shares are unbounded where signs differ

Operands that were broadcast get the sum over the broadcast axes. A constant operand gets nothing: adding a constant
hands all relevance to the tensor. Source: methods 3.1 (ours: the paper covers VGG only).

a = (2, -1, 1), b = (1, 3, -4), R = (6, 6, 6): zplus gives a (4, 0, 6), b (2, 6, 0); norm a (4, -3, -2), b (2, 9, 8).
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import DeadInputs, gradient, relevance

OPS = {"Add": (7, 13, 14), "Sum": (6, 8, 13), "Mean": (6, 8, 13), "Sub": (7, 13, 14)}


def _terms(node: Node, xp: Verbs) -> dict[int, Array]:
    """The activations that are added, with their sign; by position."""
    minus = xp.constant(-1.0)
    return {
        i: xp.mul(node.x(i), minus) if node.layer.op == "Sub" and i == 1 else node.x(i) for i in node.layer.operands
    }


def _dead_inputs(layer: Layer, graph: LayerGraph) -> DeadInputs:
    """A share of 0 is 0, but a tensor to which a constant is added takes everything, also where it is 0."""
    return "always" if len(layer.operands) > 1 else "never"


@relevance("zplus", reads="x", leaks="relevance of cells where every operand is <= 0", dead_inputs=_dead_inputs, **OPS)
def zplus(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> one [n, ...] for each operand, of the operand's own shape."""
    if len(node.layer.operands) == 1:
        return _to_tensor(node, r, xp)
    terms = {
        i: t if node.nonnegative(i) and node.layer.op != "Sub" else xp.positive(t) for i, t in _terms(node, xp).items()
    }
    return _split(node, terms, r, xp, nonnegative=True)


@relevance(
    "norm", reads="x", leaks="relevance of cells where the sum is 0", dead_inputs=_dead_inputs, unbounded=True, **OPS
)
def norm(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> one [n, ...] for each operand, of the operand's own shape."""
    if len(node.layer.operands) == 1:
        return _to_tensor(node, r, xp)
    return _split(node, _terms(node, xp), r, xp, nonnegative=False)


def _to_tensor(node: Node, r: Array, xp: Verbs) -> Flow:
    (i,) = node.layer.operands
    return Flow({i: xp.sum_to(r, node.in_shape(i))})


def _split(node: Node, terms: dict[int, Array], r: Array, xp: Verbs, *, nonnegative: bool) -> Flow:
    z = None
    for term in terms.values():
        z = term if z is None else xp.add(z, term)
    s, leak = xp.share(r, z, nonnegative=nonnegative)
    return Flow({i: xp.sum_to(xp.mul(t, s), node.in_shape(i)) for i, t in terms.items()}, (leak,))


@gradient(**OPS)
def derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """g to every operand, -g to what is subtracted; a Mean of n hands g / n."""
    if node.layer.op == "Mean":
        r = xp.mul(r, xp.constant(1 / len(node.layer.inputs)))
    parts = {}
    for i in node.layer.operands:
        g = xp.mul(r, xp.constant(-1.0)) if node.layer.op == "Sub" and i == 1 else r
        parts[i] = xp.sum_to(g, node.in_shape(i))
    return Flow(parts)
