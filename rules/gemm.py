"""Gemm and MatMul by a constant: fully connected layers.

    Gemm:    apply(x, w) = x op_B(w)      w = alpha B, and op_B transposes if transB says so
    MatMul:  apply(x, w) = x w            x [n, ..., i], w [i, o]

beta C is bias, of any shape that is the same for all images: a scalar, [N], [1, N]. alpha belongs to the weight: a
negative one swaps W+ and W-. transA would make the batch the last axis: refused.

Source: methods 3.1; ONNX Gemm-7, -9, -11, -13 and MatMul-1, -9, -13 (the versions differ in types only).
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.errors import UnsupportedOpError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap, linear_map
from fgcam_onnx.rules.geometry import stored_bias


def _t(x: Array, xp: Verbs) -> Array:
    rank = len(xp.shape(x))
    return xp.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


@linear_map(Gemm=(7, 9, 11, 13))
class Gemm(LinearMap):
    @staticmethod
    def weight(layer: Layer) -> np.ndarray | None:
        w, alpha = layer.constant(1), layer.attributes["alpha"]
        return w if w is None or alpha == 1.0 else w.astype(np.float64) * alpha

    @staticmethod
    def bias(layer: Layer) -> np.ndarray | None:
        c = stored_bias(layer)
        if c is None or layer.attributes["beta"] == 0.0:
            return None
        if c.ndim == 2 and c.shape[0] != 1:
            raise UnsupportedOpError(
                f"the bias of {layer.op} differs from image to image",
                at=f"node {layer.name!r}",
                known=f"its shape is {list(c.shape)}, and its first axis is the batch",
                next="choose a rule that does not count the bias: bias=False, or z_plus",
            )
        return c if layer.attributes["beta"] == 1.0 else c.astype(np.float64) * layer.attributes["beta"]

    @classmethod
    def refuses(cls, layer: Layer, graph: LayerGraph) -> str | None:
        if layer.attributes["transA"]:
            return "transA: its rows are features and its columns images"
        return super().refuses(layer, graph)

    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.matmul(x, _t(w, xp) if node.attributes["transB"] else w)

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.matmul(s, w if node.attributes["transB"] else _t(w, xp))


@linear_map(MatMul=(1, 9, 13))
class MatMul(LinearMap):
    @classmethod
    def refuses(cls, layer: Layer, graph: LayerGraph) -> str | None:
        if len(layer.operands) == 2:
            return "it multiplies two activations (attention): there is no relevance rule for that"
        weight = layer.constant(1)
        if weight is not None and weight.ndim < 2:
            return "its weight has one axis"
        return super().refuses(layer, graph)

    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.matmul(x, w)

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.sum_to(xp.matmul(s, _t(w, xp)), node.in_shape())
