"""Max, Min: cell by cell, the operand that decides the output takes all.

    R_i = R where x_i is the first operand that equals the maximum (minimum), else 0

Where a constant decides there is nobody to hand to: that leaks, as it does behind a ReLU, which is Max(x, 0). The
derivative is the same map. Source: methods 3.2 (MaxPool's winner, between tensors; ours).
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

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
