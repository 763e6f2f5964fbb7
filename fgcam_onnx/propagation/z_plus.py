"""z+: relevance returns along positive contributions only.

    z_j = sum_i x_i^+ w_ij^+ + x_i^- w_ij^-          R_i = x_i^+ sum_j w_ij^+ R_j/z_j + x_i^- sum_j w_ij^- R_j/z_j

The bias does not enter, and sum R is conserved but for outputs with z_j = 0; with ``bias`` b_j^+ joins z_j and absorbs
its share. ``negate``: the layer's negative, -w for w and -b for b, as the dual passes of CLRP2 and of contrastive
excitation backprop want it. Source: methods 2.1, 3.1, 4.1 and 4.2 (FG-CAM, AAAI 2024, eq. of the IR step; the rule is
Montavon et al. 2017, with the x^- w^- pairs for negative inputs).

One output, x = (2, -1, 3), w = (1, -2, -1), R = 8: contributions 2, 2, 0, so R = 4, 4, 0.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.terms import Term, absorbed, applied, bias_of, parts, returned
from fgcam_onnx.registry import LinearMap


def z_plus(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. ``node.options``: "bias", "negate".

    Where x is provably >= 0 the negative half is not computed: it is 0.
    """
    negate = bool(node.options.get("negate", False))
    w, b = op.weight(node.layer), bias_of(node, op, bool(node.options.get("bias", False)))
    if w is None and negate:
        # Coefficients >= 0 make negative contributions of x^-, which count here: part and z_j have one sign.
        terms: list[Term] = [(xp.negative(node.x()), None)]
    else:
        up, down = parts(node, xp)
        w = -w if negate and w is not None else w
        terms = [(up, None if w is None else xp.constant(np.maximum(w, 0)))]
        if down is not None and w is not None:
            terms.append((down, xp.constant(np.minimum(w, 0))))
    b = None if b is None else np.maximum(-b if negate else b, 0)
    z = applied(node, op, terms, xp, b)
    s, leak = xp.share(r, z, nonnegative=not (op.weight(node.layer) is None and negate))
    leaks = (leak,) if b is None else (leak, absorbed(s, xp.constant(b), xp))
    return Flow({0: returned(node, op, [(s, terms)], xp)}, leaks)
