"""LRP-epsilon: shares of the pre-activation itself, its denominator kept away from 0; LRP-0 is epsilon = 0.

    z_j = sum_i x_i w_ij + b_j          R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign z_j),   sign 0 = 1

Terms of both signs are divided by their sum, so shares are unbounded and rounding in a small z_j is magnified. Not
conserved: bias and epsilon absorb s_j b_j and s_j epsilon sign z_j, s_j = R_j / (z_j + epsilon sign z_j). ``bias``
false: z_j is the sum alone. An average pool has its means as z_j, and no bias: this is the rule "norm", x_i / sum of x.
LRP-0, named zero, drops the outputs with z_j = 0; on a ReLU network without biases it is gradient * input.
Source: methods 4.1; Bach et al. 2015.

One output, x = (2, -1, 3), w = (1, -2, -1), R = 8, epsilon = 0: 2, 2, -3 of 1, so R = 16, 16, -24.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.terms import absorbed, applied, bias_of, returned
from fgcam_onnx.registry import LinearMap


def epsilon(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. ``node.options``: "epsilon", "bias"."""
    return _shared(node, op, r, xp, float(node.options["epsilon"]), bool(node.options["bias"]))


def zero(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]."""
    return _shared(node, op, r, xp, 0.0, True)


def _shared(node: Node, op: type[LinearMap], r: Array, xp: Verbs, size: float, with_bias: bool) -> Flow:
    w, b = op.weight(node.layer), bias_of(node, op, with_bias)
    terms = [(node.x(), None if w is None else xp.constant(w))]
    z = applied(node, op, terms, xp, b)
    extra = None if b is None else xp.constant(b)
    if size:
        # epsilon sign z, sign 0 = 1
        towards = xp.sub(xp.constant(size), xp.mul(xp.constant(2 * size), xp.greater(xp.constant(0.0), z)))
        z = xp.add(z, towards)
        extra = towards if extra is None else xp.add(extra, towards)
    s, leak = xp.share(r, z)
    leaks = (leak,) if extra is None else (leak, absorbed(s, extra, xp))
    return Flow({0: returned(node, op, [(s, terms)], xp)}, leaks)
