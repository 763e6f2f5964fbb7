"""Max, Min: cell by cell, the operand that decides the output takes all.

    R_i = R where x_i is the first operand that equals the maximum (minimum), else 0

Where a constant decides there is nobody to hand to: that leaks, as it does behind a ReLU, which is Max(x, 0). The
derivative is the same map. Source: methods 3.2 (MaxPool's winner, between tensors; ours).

DeepLIFT's multipliers are MaxPool's, between tensors: of Max, where y >= y0 the operand that decides on the input takes
(y - y0)/(x_i - x0_i), else the one that decides on the reference; of Min, where y <= y0. A constant that decides on
the input has y = its value <= y0 for Max, so nothing changed that it could answer for: the sum is exact.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale
from fgcam_onnx.rules.rescaled import over_difference

OPS = {"Max": (6, 8, 12, 13), "Min": (6, 8, 12, 13)}


@gradient(reads="xy", **OPS)
@relevance("decider", reads="xy", leaks="relevance of cells that a constant decides", **OPS)
def decider(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> one [n, ...] for each operand, of the operand's own shape."""
    y, zero, one = node.y, xp.constant(0.0), xp.constant(1.0)
    free = xp.add(xp.mul(y, zero), one)  # 1 where no operand has been found yet
    parts, leaks = {}, []
    for i in range(len(node.layer.inputs)):
        beaten = xp.greater(y, node.x(i)) if node.layer.op == "Max" else xp.greater(node.x(i), y)
        decides = xp.mul(free, xp.sub(one, beaten))
        free = xp.sub(free, decides)
        if i in node.layer.operands:
            parts[i] = xp.sum_to(xp.mul(r, decides), node.in_shape(i))
        else:
            r, leak = xp.keep(r, xp.sub(one, decides))
            leaks.append(leak)
    return Flow(parts, tuple(leaks))


@rescale(reads="xy", **OPS)
def rescaled_decider(node: Node, r: Array, xp: Verbs) -> Flow:
    """m [n, ...] -> one [n, ...] for each operand, of the operand's own shape."""
    y, y0, positions = node.y, node.y0, range(len(node.layer.inputs))
    on_input = _decides(node, y, [node.x(i) for i in positions], xp)
    on_reference = _decides(node, y0, [node.x0(i) for i in positions], xp)
    dy = xp.sub(y, y0)
    first, rest = xp.positive(dy), xp.negative(dy)
    passed = xp.greater(y0, y)
    if node.layer.op == "Min":
        first, rest, passed = rest, first, xp.greater(y, y0)
    parts = {}
    for i in node.layer.operands:
        change = xp.add(xp.mul(on_input[i], first), xp.mul(on_reference[i], rest))
        tangent = xp.mul(on_input[i], xp.sub(xp.constant(1.0), passed))
        share = over_difference(change, xp.sub(node.x(i), node.x0(i)), tangent, xp)
        parts[i] = xp.sum_to(xp.mul(r, share), node.in_shape(i))
    return Flow(parts)


def _decides(node: Node, y: Array, operands: list[Array], xp: Verbs) -> list[Array]:
    """1 where an operand is the first that equals y, for each of them."""
    one, masks = xp.constant(1.0), []
    free = xp.add(xp.mul(y, xp.constant(0.0)), one)  # 1 where no operand has been found yet
    for x in operands:
        beaten = xp.greater(y, x) if node.layer.op == "Max" else xp.greater(x, y)
        masks.append(xp.mul(free, xp.sub(one, beaten)))
        free = xp.sub(free, masks[-1])
    return masks
