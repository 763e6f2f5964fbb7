"""gamma: the contributions of one sign are favoured by a factor 1 + gamma.

With P and N as in alpha_beta, P_ij + N_ij = x_i w_ij, and z_j = P_j + N_j:

    general        z_j > 0:  R_i = sum_j ((1 + gamma) P_ij + N_ij) / ((1 + gamma) P_j + N_j) R_j
                   z_j < 0:  R_i = sum_j (P_ij + (1 + gamma) N_ij) / (P_j + (1 + gamma) N_j) R_j
    nonnegative    R_i = sum_j x_i (w_ij + gamma w_ij^+) / (sum_i of these) R_j          meant for x >= 0

The general form's larger half decides, so its denominator is no cancellation: |it| >= gamma max(P_j, -N_j). Outputs
with z_j = 0 are dropped. With ``bias`` b_j is a term of its own, as of an input 1: it joins z_j, whose sign then
decides, and the denominators by b_j + gamma b_j^+ (or ^-), and absorbs its share; without it z_j is the sum alone.
gamma = 0 is LRP-0, and gamma -> infinity tends to z+ where z_j > 0. Source: methods 4.1; Montavon et al. 2019, the
general form after Andeol et al. 2021.

One output, x = (2, -1, 3), w = (1, -2, -1), R = 8, gamma = 1: 4, 4, -3 of 5, so R = 6.4, 6.4, -4.8.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.terms import Term, absorbed, applied, bias_of, parts, returned
from fgcam_onnx.registry import LinearMap


def gamma(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. ``node.options``: "gamma", "form", "bias"."""
    g = float(node.options["gamma"])
    w, b = _exact(op.weight(node.layer)), bias_of(node, op, bool(node.options["bias"]))
    more = None if b is None else b + g * np.maximum(b, 0)
    if node.options["form"] == "nonnegative" or (w is None and node.nonnegative()):
        # Coefficients that are all >= 0 are favoured all alike, which cancels.
        terms: list[Term] = [(node.x(), None if w is None else xp.constant(w + g * np.maximum(w, 0)))]
        s, leak = xp.share(r, applied(node, op, terms, xp, more))
        leaks = (leak,) if more is None else (leak, absorbed(s, xp.constant(more), xp))
        return Flow({0: returned(node, op, [(s, terms)], xp)}, leaks)

    above, below = _terms(node, op, g, xp)
    less = None if more is None or b is None else b + g * np.minimum(b, 0)
    z_above, z_below = applied(node, op, above, xp, more), applied(node, op, below, xp, less)
    sign = xp.add(z_above, z_below)  # (2 + gamma) z_j
    rises, falls = xp.greater(sign, xp.constant(0.0)), xp.greater(xp.constant(0.0), sign)
    s, leak = xp.share(r, xp.add(xp.mul(rises, z_above), xp.mul(falls, z_below)))
    up, down = xp.mul(s, rises), xp.mul(s, falls)
    result = returned(node, op, [(up, above), (down, below)], xp)
    if more is None or less is None:
        return Flow({0: result}, (leak,))
    amount = xp.add(xp.mul(rises, xp.constant(more)), xp.mul(falls, xp.constant(less)))
    return Flow({0: result}, (leak, absorbed(s, amount, xp)))


def _exact(w: np.ndarray | None) -> np.ndarray | None:
    """W + gamma W^+ is rounded once, by the backend."""
    return None if w is None else w.astype(np.float64)


def _terms(node: Node, op: type[LinearMap], g: float, xp: Verbs) -> tuple[list[Term], list[Term]]:
    """The terms of (1 + gamma) P + N, and those of P + (1 + gamma) N."""
    w = _exact(op.weight(node.layer))
    up, down = parts(node, xp)
    if w is None:
        x, size = node.x(), xp.constant(g)
        return [(xp.add(x, xp.mul(size, up)), None)], [(xp.add(x, xp.mul(size, down)), None)]
    plus, minus = xp.constant(w + g * np.maximum(w, 0)), xp.constant(w + g * np.minimum(w, 0))
    if down is None:
        return [(up, plus)], [(up, minus)]
    return [(up, plus), (down, minus)], [(up, minus), (down, plus)]
