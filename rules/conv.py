"""Conv: a linear map of x, in one to three dimensions.

    apply(x, w)   = conv(x, w)            [n, ci, ...] -> [n, co, ...], without bias
    adjoint(s, w) = its transpose         [n, co, ...] -> [n, ci, ...], cells that no window reads get 0
    bias          = B [1, co, 1...]

All attributes: ``group`` (depthwise included), ``strides`` (also larger than the kernel), ``pads`` (uneven),
``auto_pad``, ``dilations``. Source: methods 3.1; ONNX Conv-1, -11, -22 (the versions differ in types only).
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap, linear_map
from fgcam_onnx.rules.geometry import bias_of_channels, convolution


@linear_map(Conv=(1, 11, 22))
class Conv(LinearMap):
    @staticmethod
    def bias(layer: Layer) -> np.ndarray | None:
        return bias_of_channels(layer)

    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.conv(x, w, convolution(node, xp.shape(w)[2:]), node.out_shape()[2:])

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.conv_adjoint(s, w, convolution(node, xp.shape(w)[2:]), node.in_shape()[2:])
