"""z+: relevance returns along positive contributions only.

    z_j = sum_i x_i^+ w_ij^+ + x_i^- w_ij^-          R_i = x_i^+ sum_j w_ij^+ R_j/z_j + x_i^- sum_j w_ij^- R_j/z_j

The bias never enters. Conserves sum R but for outputs with z_j = 0. Source: methods 2.1 and 3.1 (FG-CAM, AAAI 2024,
eq. of the IR step; the rule is Montavon et al. 2017, with the x^- w^- pairs for negative inputs).

One output, x = (2, -1, 3), w = (1, -2, -1), R = 8: contributions 2, 2, 0, so R = 4, 4, 0.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap


def z_plus(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. Where x is provably >= 0 the negative half is not computed: it is 0."""
    x, w = node.x(), op.weight(node.layer)
    mixed = not node.nonnegative()
    pairs = [(xp.positive(x) if mixed else x, None if w is None else xp.constant(np.maximum(w, 0)))]
    if mixed and w is not None:
        pairs.append((xp.negative(x), xp.constant(np.minimum(w, 0))))
    z = None
    for part, weight in pairs:
        term = op.apply(node, part, weight, xp)
        z = term if z is None else xp.add(z, term)
    s, leak = xp.share(r, z, nonnegative=True)
    result = None
    for part, weight in pairs:
        term = xp.mul(part, op.adjoint(node, s, weight, xp))
        result = term if result is None else xp.add(result, term)
    return Flow({0: result}, (leak,))
