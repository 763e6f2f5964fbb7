"""z^B: the rule of layers fed by the image, whose pixels lie in a box l <= x <= h.

    z_j = sum_i (x_i - l) w_ij^+ + (x_i - h) w_ij^-        R_i = (x_i - l) sum_j w_ij^+ R_j/z_j + (x_i - h) sum_j w_ij^- R_j/z_j

Every term is >= 0, so it is never computed as the difference of three convolutions: on a flat image that divides
rounding noise by rounding noise. Padding pads the *shifted* inputs with 0. Conserves sum R but for outputs with
z_j = 0 (a constant image: l = h = x, all zero). Source: methods 2.1, 3.1; Montavon et al. 2017.

One output, x = (2, -1, 3), w = (1, -2, -1), l = -1, h = 3, R = 8: 3, 8, 0 of 11, so R = 24/11, 64/11, 0.
"""  # noqa: E501

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap


def z_box(node: Node, op: type[LinearMap], r: Array, xp: Verbs) -> Flow:
    """r [n, co, ...] -> [n, ci, ...]. ``node.options["bounds"]``: "per_image", or (low, high) arrays or numbers.

    Per image: l and h are the minimum and maximum over all channels and pixels of the tensor feeding the layer.
    """
    x, w = node.x(), op.weight(node.layer)
    if w is None:
        raise TypeError("z_box is for layers with stored weights")
    low, high = _bounds(node, x, xp)
    pairs = (
        (xp.sub(x, low), xp.constant(np.maximum(w, 0))),
        (xp.sub(x, high), xp.constant(np.minimum(w, 0))),
    )
    (above, plus), (below, minus) = pairs
    z = xp.add(op.apply(node, above, plus, xp), op.apply(node, below, minus, xp))
    # Given bounds are the user's word: a pixel outside them makes terms, and z, negative.
    s, leak = xp.share(r, z, nonnegative=isinstance(node.options.get("bounds", "per_image"), str))
    result = xp.add(
        xp.mul(above, op.adjoint(node, s, plus, xp)),
        xp.mul(below, op.adjoint(node, s, minus, xp)),
    )
    return Flow({0: result}, (leak,))


def _bounds(node: Node, x: Array, xp: Verbs) -> tuple[Array, Array]:
    shape = node.in_shape()
    bounds = node.options.get("bounds", "per_image")
    if isinstance(bounds, str):
        axes = tuple(range(1, len(shape)))
        return xp.reduce_min(x, axes), xp.reduce_max(x, axes)
    low, high = (np.asarray(b, np.float64) for b in bounds)
    # A vector is one bound a channel, channels being axis 1 of a first layer's input.
    column = (1, -1, *[1] * (len(shape) - 2))
    return xp.constant(low.reshape(column)), xp.constant(high.reshape(column))
