"""Mul, Div: signals and gates.

    Mul(signal, gate)   all to the signal, 0 to the gate
    Mul(a, a'), neither or both a gate: R/2 each
    Div(a, b)           all to a
    by a constant       all to the tensor

A gate says how much, the signal says where: with half each, half of the relevance would go through the global
pooling of a squeeze-and-excitation branch and be spread over the whole image. What counts as a gate:
``fgcam_onnx.graph.gates``. ``uniform`` ignores gates. Source: methods 3.2 (ours: the paper covers VGG only).

DeepLIFT's multipliers, each exact: the difference of a product is that of one factor times the mean of the other.

    Mul    m_a = m (b + b0)/2,              m_b = m (a + a0)/2
    Div    m_a = m (1/b + 1/b0)/2,          m_b = -m (a + a0)/2 / (b b0)
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale

MUL = {"Mul": (7, 13, 14)}
DIV = {"Div": (7, 13, 14)}


def _signals(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    gate = graph.gates.get(layer.name)
    return tuple(i for i in layer.operands if i != gate)


def _numerator(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,) if 0 in layer.operands else layer.operands


@relevance("signal", sends=_signals, **MUL)
def signal(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the signal, or halves."""
    return _equal_shares(node, _signals(node.layer, node.graph), r, xp)


@relevance("uniform", **MUL)
def uniform(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> equal shares, gate or not."""
    return _equal_shares(node, node.layer.operands, r, xp)


@relevance("numerator", sends=_numerator, **DIV)
def numerator(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the numerator (the denominator of constant / x)."""
    return _equal_shares(node, _numerator(node.layer, node.graph), r, xp)


def _equal_shares(node: Node, takers: tuple[int, ...], r: Array, xp: Verbs) -> Flow:
    share = r if len(takers) == 1 else xp.mul(r, xp.constant(1 / len(takers)))
    return Flow({i: xp.sum_to(share, node.in_shape(i)) for i in takers})


@gradient(reads="x", **MUL)
def product_rule(node: Node, r: Array, xp: Verbs) -> Flow:
    """d(ab) = b da + a db."""
    return Flow({i: xp.sum_to(xp.mul(r, node.x(1 - i)), node.in_shape(i)) for i in node.layer.operands})


@gradient(reads="xy", **DIV)
def quotient_rule(node: Node, r: Array, xp: Verbs) -> Flow:
    """d(a/b) = da / b - (a/b) db / b."""
    parts = {}
    for i in node.layer.operands:
        g = xp.div(r, node.x(1))
        if i == 1:
            g = xp.mul(xp.mul(g, node.y), xp.constant(-1.0))
        parts[i] = xp.sum_to(g, node.in_shape(i))
    return Flow(parts)


@rescale(reads="x", **MUL)
def mean_factors(node: Node, r: Array, xp: Verbs) -> Flow:
    """m [n, ...] -> m times the mean of the other factor on input and reference."""
    return Flow({i: xp.sum_to(xp.mul(r, _mean(node, 1 - i, xp)), node.in_shape(i)) for i in node.layer.operands})


@rescale(reads="x", **DIV)
def mean_quotients(node: Node, r: Array, xp: Verbs) -> Flow:
    """m [n, ...] -> as Mul by 1/b, whose chord is -1/(b b0)."""
    one, b, b0 = xp.constant(1.0), node.x(1), node.x0(1)
    over_b, over_b0 = xp.div(one, b), xp.div(one, b0)
    parts = {}
    for i in node.layer.operands:
        if i == 0:
            share = xp.mul(xp.add(over_b, over_b0), xp.constant(0.5))
        else:
            share = xp.mul(xp.mul(_mean(node, 0, xp), xp.constant(-1.0)), xp.mul(over_b, over_b0))
        parts[i] = xp.sum_to(xp.mul(r, share), node.in_shape(i))
    return Flow(parts)


def _mean(node: Node, i: int, xp: Verbs) -> Array:
    if node.layer.constant(i) is not None:
        return node.x(i)
    return xp.mul(xp.add(node.x(i), node.x0(i)), xp.constant(0.5))
