"""Grad-CAM++: each channel weighted by its positive gradients, each of them by how few share the channel's score.

    a_ki = g_ki^2 / (2 g_ki^2 + (S A_k) g_ki^3 + 1e-6), 0 where g_ki = 0
    w_k = S(a_k g_k^+)          components w_k A_k          [rows, c, ...]

g = dy_c/dA, S the sum over space. Only cells with g > 0 count in w, so a is computed for these alone: elsewhere its
denominator could vanish. Where it does for g > 0, which takes a negative S A_k, a is 0.

A = [[1, 2], [0, 1]], g = [[0.5, -0.2], [0, 0.1]]: a = 0.25 and 0.41665 where g > 0, w = 0.166665.

Conserves: nothing.

Differs: from the paper, whose score is exp(y_c): the constant 1e-6, and g is the gradient of y_c. pytorch-grad-cam does
the same.

Source: methods 5; Chattopadhay et al. 2018, eq. 7 and 19.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context

DESCENDS = True
EPSILON = 1e-6


def components(context: Context) -> Array:
    """[rows, c, ...], signed as the activations are."""
    xp, a = context.xp, context.activations
    space = range(2, len(xp.shape(a)))
    up = xp.positive(context.gradient)
    squared = xp.mul(up, up)
    shared = xp.mul(xp.reduce_sum(a, space), xp.mul(squared, up))
    z = xp.add(xp.add(xp.add(squared, squared), shared), xp.constant(EPSILON))
    alpha, _ = xp.share(squared, z)
    return xp.mul(xp.reduce_sum(xp.mul(alpha, up), space), a)
