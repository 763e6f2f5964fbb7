"""ConvTranspose: a linear map of x, in one to three dimensions; the adjoint of a convolution.

    apply(x, w)   = conv^T(x, w)          [n, ci, ...] -> [n, co, ...], without bias
    adjoint(s, w) = conv(s, w)            [n, co, ...] -> [n, ci, ...]
    bias          = B [1, co, 1...]

with w [ci, co / group, k...], which is how ``conv`` wants the weight of the convolution from co to ci channels. All
attributes: ``group``, ``strides``, ``pads``, ``auto_pad``, ``dilations``, ``output_padding`` and ``output_shape``.
Output cells that no input reaches (stride over kernel, ``output_padding``) hold the bias alone: Z = 0, their relevance
leaks. Source: methods 3.1; ONNX ConvTranspose-1, -11, -22 (the versions differ in types only).
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Convolution, Verbs
from fgcam_onnx.graph.layer import Layer
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap, linear_map
from fgcam_onnx.rules.geometry import bias_of_channels, ints


@linear_map(ConvTranspose=(1, 11, 22))
class ConvTranspose(LinearMap):
    @staticmethod
    def bias(layer: Layer) -> np.ndarray | None:
        return bias_of_channels(layer)

    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.conv_adjoint(x, w, _convolution(node, xp.shape(w)[2:]), node.out_shape()[2:])

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.conv(s, w, _convolution(node, xp.shape(w)[2:]), node.in_shape()[2:])


def _convolution(node: Node, kernel: tuple[int, ...]) -> Convolution:
    """The geometry of the convolution whose adjoint this is: it goes from the output's cells to the input's."""
    axes = len(kernel)
    strides = ints(node.attributes.get("strides")) or (1,) * axes
    dilations = ints(node.attributes.get("dilations")) or (1,) * axes
    begins = (ints(node.attributes.get("pads")) or (0,) * 2 * axes)[:axes]
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        begins = (0,) * axes
    elif mode != "NOTSET" or node.attributes.get("output_shape"):
        # The size of the output is given, and the padding follows from it.
        more = ints(node.attributes.get("output_padding")) or (0,) * axes
        sizes = zip(node.in_shape()[2:], node.out_shape()[2:], kernel, strides, dilations, more, strict=True)
        whole = [max(0, s * (i - 1) + extra + (k - 1) * d + 1 - o) for i, o, k, s, d, extra in sizes]
        begins = tuple(w // 2 if mode == "SAME_UPPER" else w - w // 2 for w in whole)
    return Convolution(strides, begins, dilations, int(node.attributes.get("group", 1)))
