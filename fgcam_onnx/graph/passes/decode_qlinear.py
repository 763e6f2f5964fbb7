"""The QLinear family: an operator on integers that rounds its result to integers again.

ONNX's own QLinearConv and QLinearMatMul, and those of com.microsoft, which onnxruntime's quantiser writes. Each
operand comes with its scale and zero point; ``DECODERS`` has the float layers that an operator stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fgcam_onnx.graph.layer import Layer, Tensor
from fgcam_onnx.graph.quantisation import KeepError, Scale, constant, decoded, note, pair, saturated

__all__ = ["DECODERS"]

Tensors = dict[str, Tensor]
Decoder = Callable[[Layer, Tensors], list[Layer]]


def _conv(layer: Layer, tensors: Tensors) -> list[Layer]:
    _need_channels_first(layer)
    x, w, y = pair(layer, 1, 2), pair(layer, 4, 5), pair(layer, 6, 7)
    weight = constant(layer, 3)
    note(tensors, layer.inputs[0], x)
    inputs, constants = [layer.inputs[0], layer.inputs[3]], {1: decoded(weight, w, axis=0)}
    if layer.given(8):
        inputs.append(layer.inputs[8])
        constants[2] = (constant(layer, 8) * (x[0] * w[0]).reshape(-1)).astype(np.float32)
    return saturated(replace(layer, inputs=tuple(inputs), constants=constants), y, tensors, "Conv", 11)


def _matmul(layer: Layer, tensors: Tensors) -> list[Layer]:
    a, b, y = pair(layer, 1, 2), pair(layer, 4, 5), pair(layer, 6, 7)
    note(tensors, layer.inputs[0], a)
    weight = decoded(constant(layer, 3), b, axis=-1)
    inputs = (layer.inputs[0], layer.inputs[3])
    return saturated(replace(layer, inputs=inputs, constants={1: weight}), y, tensors, "MatMul", 13)


def _gemm(layer: Layer, tensors: Tensors) -> list[Layer]:
    """A, B and C as Gemm's; without an output scale its result is float already."""
    a, b = pair(layer, 1, 2), pair(layer, 4, 5)
    note(tensors, layer.inputs[0], a)
    transposed = layer.attributes.get("transB", 0)
    alpha = layer.attributes.get("alpha", 1.0)
    inputs, constants = [layer.inputs[0], layer.inputs[3]], {}
    constants[1] = decoded(constant(layer, 3), b, axis=0 if transposed else -1)
    if layer.given(6):
        inputs.append(layer.inputs[6])
        constants[2] = (constant(layer, 6) * (alpha * a[0] * b[0]).reshape(-1)).astype(np.float32)
    attributes = {"alpha": alpha, "beta": 1.0, "transA": layer.attributes.get("transA", 0), "transB": transposed}
    plain = replace(layer, inputs=tuple(inputs), attributes=attributes, constants=constants)
    if not layer.given(7):
        return [replace(plain, op="Gemm", version=13)]
    return saturated(plain, pair(layer, 7, 8), tensors, "Gemm", 13)


def _joined(op: str, version: int, operands: tuple[int, ...], y: int) -> Decoder:
    """Operands at these positions, each before its scale and zero point; ``y``: where the output's are."""

    def build(layer: Layer, tensors: Tensors) -> list[Layer]:
        return _operands(layer, tensors, op, version, operands, pair(layer, y, y + 1))

    return build


def _concat(layer: Layer, tensors: Tensors) -> list[Layer]:
    """The output's scale and zero point come first."""
    positions = tuple(range(2, len(layer.inputs), 3))
    return _operands(layer, tensors, "Concat", 13, positions, pair(layer, 0, 1))


def _operands(
    layer: Layer, tensors: Tensors, op: str, version: int, positions: tuple[int, ...], y: Scale
) -> list[Layer]:
    constants: dict[int, np.ndarray] = {}
    for to, position in enumerate(positions):
        scale = pair(layer, position + 1, position + 2)
        if position in layer.constants:
            constants[to] = decoded(layer.constants[position], scale, axis=-1)
        else:
            note(tensors, layer.inputs[position], scale)
    inputs = tuple(layer.inputs[position] for position in positions)
    return saturated(replace(layer, inputs=inputs, constants=constants), y, tensors, op, version)


def _where(layer: Layer, tensors: Tensors) -> list[Layer]:
    """The condition is no number and has no scale."""
    x, y = pair(layer, 2, 3), pair(layer, 5, 6)
    constants: dict[int, np.ndarray] = {}
    if 0 in layer.constants:
        constants[0] = layer.constants[0]
    for to, position, scale in ((1, 1, x), (2, 4, y)):
        if position in layer.constants:
            constants[to] = decoded(layer.constants[position], scale, axis=-1)
        else:
            note(tensors, layer.inputs[position], scale)
    inputs = tuple(layer.inputs[i] for i in (0, 1, 4))
    return saturated(replace(layer, inputs=inputs, constants=constants), pair(layer, 7, 8), tensors, "Where", 16)


def _unary(op: str, version: int, keep: tuple[str, ...] = (), **defaults: Any) -> Decoder:
    """Of one operand. ``keep``: attributes that the float operator has too; ``defaults``: where they are not given."""

    def build(layer: Layer, tensors: Tensors) -> list[Layer]:
        _need_channels_first(layer)
        note(tensors, layer.inputs[0], pair(layer, 1, 2))
        attributes = {**defaults, **{k: v for k, v in layer.attributes.items() if k in keep}}
        plain = replace(layer, inputs=layer.inputs[:1], attributes=attributes, constants={})
        return saturated(plain, pair(layer, 3, 4), tensors, op, version)

    return build


def _need_channels_first(layer: Layer) -> None:
    if layer.attributes.get("channels_last"):
        raise KeepError("it works on channels-last tensors")


_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

DECODERS: Mapping[str, Decoder] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft::QLinearConv": _conv,
    "com.microsoft::QGemm": _gemm,
    "com.microsoft::QLinearAdd": _joined("Add", 14, (0, 3), 6),
    "com.microsoft::QLinearMul": _joined("Mul", 14, (0, 3), 6),
    "com.microsoft::QLinearConcat": _concat,
    "com.microsoft::QLinearWhere": _where,
    "com.microsoft::QLinearGlobalAveragePool": _unary("GlobalAveragePool", 1),
    "com.microsoft::QLinearAveragePool": _unary("AveragePool", 11, _POOL, auto_pad="NOTSET", ceil_mode=0,
                                                count_include_pad=0),
    "com.microsoft::QLinearLeakyRelu": _unary("LeakyRelu", 16, ("alpha",), alpha=0.01),
    "com.microsoft::QLinearSigmoid": _unary("Sigmoid", 13),
    "com.microsoft::QLinearSoftmax": _unary("Softmax", 13, ("axis",), axis=-1),
}  # fmt: skip
