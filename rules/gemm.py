"""Gemm and MatMul by a constant: fully connected layers.

    Gemm:    apply(x, w) = alpha op_A(x) op_B(w)      op transposes if transA, transB say so; beta C is bias
    MatMul:  apply(x, w) = x w                        x [n, ..., i], w [i, o]

Source: methods 3.1; ONNX Gemm-7, -9, -11, -13 and MatMul-1, -9, -13 (the versions differ in types only).
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap, linear_map


def _t(x: Array, xp: Verbs) -> Array:
    rank = len(xp.shape(x))
    return xp.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


@linear_map(Gemm=(7, 9, 11, 13))
class Gemm(LinearMap):
    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        a = _t(x, xp) if node.attributes["transA"] else x
        b = _t(w, xp) if node.attributes["transB"] else w
        return _scale(xp.matmul(a, b), node, xp)

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        b = w if node.attributes["transB"] else _t(w, xp)
        r = _scale(xp.matmul(s, b), node, xp)
        return _t(r, xp) if node.attributes["transA"] else r


def _scale(y: Array, node: Node, xp: Verbs) -> Array:
    alpha = node.attributes["alpha"]
    return y if alpha == 1.0 else xp.mul(y, xp.constant(alpha))


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
