"""alpha-beta: positive contributions weigh alpha, negative ones -beta, alpha - beta = 1.

    P_j = sum_i x_i^+ w_ij^+ + x_i^- w_ij^-,   N_j = sum_i x_i^+ w_ij^- + x_i^- w_ij^+
    R_i = sum_j (alpha P_ij / P_j - beta N_ij / N_j) R_j

Where P_j or N_j is 0 that half is dropped: alpha R_j or -beta R_j leaks, and what goes on is no longer R_j in all. With
``bias`` b_j^+ joins P_j and b_j^- joins N_j, and both absorb their shares. alpha = 1, beta = 0 is z+. Source: methods
4.1; Bach et al. 2015.

One output, x = (2, -1, 3), w = (1, -2, -1), R = 8, alpha = 2, beta = 1: P 2, 2, 0, N 0, 0, -3, so R = 8, 8, -8.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.terms import Term, absorbed, applied, bias_of, dropped, parts, returned
from fgcam_onnx.registry import LinearMap


def alpha_beta(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. ``node.options``: "alpha", "beta", "bias"."""
    alpha, beta = float(node.options["alpha"]), float(node.options["beta"])
    b = bias_of(node, op, bool(node.options["bias"]))
    supporting, opposing = _terms(node, op, xp)
    halves = [(alpha, supporting, None if b is None else np.maximum(b, 0), True)]
    if beta:
        halves.append((-beta, opposing, None if b is None else np.minimum(b, 0), False))
    ways, leaks = [], []
    for factor, terms, share_of_bias, nonnegative in halves:
        part = r if factor == 1 else xp.mul(r, xp.constant(factor))
        if not terms:  # a mean of x >= 0: nothing opposes
            leaks.append(dropped(part, xp))
            continue
        s, leak = xp.share(part, applied(node, op, terms, xp, share_of_bias), nonnegative=nonnegative)
        leaks.append(leak)
        if share_of_bias is not None:
            leaks.append(absorbed(s, xp.constant(share_of_bias), xp))
        ways.append((s, terms))
    return Flow({0: returned(node, op, ways, xp)}, tuple(leaks))


def _terms(node: Node, op: type[LinearMap], xp: Verbs) -> tuple[list[Term], list[Term]]:
    """The terms of P and those of N."""
    w = op.weight(node.layer)
    up, down = parts(node, xp)
    if w is None:
        return [(up, None)], [] if down is None else [(down, None)]
    plus, minus = xp.constant(np.maximum(w, 0)), xp.constant(np.minimum(w, 0))
    if down is None:
        return [(up, plus)], [(up, minus)]
    return [(up, plus), (down, minus)], [(up, minus), (down, plus)]
