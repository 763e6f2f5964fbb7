"""XGrad-CAM: each channel weighted by its mean gradient, cells counting as much as they are active.

    w_k = S(g_k A_k) / (S A_k + 1e-7)          components w_k A_k          [rows, c, ...]

g = dy_c/dA, S the sum over space; 0 where the denominator is. A dead channel has weight 0.

Conserves: S(w_k A_k) = S(g_k A_k) for each channel of which S A_k is well above 1e-7: the map sums to that of
HiRes-CAM. Where activations have both signs S A_k may be near 0, and the weight is unbounded.

Differs: nothing known; the constant 1e-7 is pytorch-grad-cam's.

Source: methods 5; Fu et al. 2020.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context

DESCENDS = True
EPSILON = 1e-7


def components(context: Context) -> Array:
    """[rows, c, ...], signed."""
    xp, a = context.xp, context.activations
    space = range(2, len(xp.shape(a)))
    product = xp.reduce_sum(xp.mul(context.gradient, a), space)
    # Once for each row: a share is of one shape.
    total = xp.expand(xp.add(xp.reduce_sum(a, space), xp.constant(EPSILON)), xp.shape(product))
    weights, _ = xp.share(product, total)
    return xp.mul(weights, a)
