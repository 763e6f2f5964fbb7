"""Integer layers of a quantised model as the float layers that they stand for.

    QLinearConv(x, w) = Saturate(Conv(decode x, decode w))        decode q = (q - zero_point) scale

The forward pass stays the quantised one; what changes is the view. Weights are decoded once, activations when they are
read, each by the scale that the model itself states. Saturate is where the range of the integer type ends, which is
also where a ReLU went that the quantiser absorbed: a uint8 tensor with zero point 0 is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.image import image_tensors
from fgcam_onnx.graph.layer import SATURATE, Layer, LayerGraph, Refusal, Tensor
from fgcam_onnx.graph.passes.base import PassResult, refuse

# An Identity here may be a decoded Quantize or DequantizeLinear, with integers on one side only: it carries nothing.
CARRIES = {"MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"}
CARRIES |= {"Gather", "Dropout"}
Scale = tuple[np.ndarray, np.ndarray]


__all__ = ["decode_quantised", "decoded"]


class _KeepError(Exception):
    """Why a layer stays an integer one."""


def decode_quantised(graph: LayerGraph) -> PassResult:
    """Replace each quantised layer by a float layer and a Saturate; note how each integer tensor is scaled."""
    pictures = image_tensors(graph.layers, graph.image)
    tensors = dict(graph.tensors)
    layers: list[Layer] = []
    refused: list[Refusal] = []
    modified = False
    for layer in graph.layers:
        try:
            decoded = _decode(layer, tensors, layer.inputs[:1] and layer.inputs[0] in pictures)
        except _KeepError as reason:
            refused.append(refuse(layer, str(reason)))
            decoded = None
        modified |= decoded is not None
        layers += [layer] if decoded is None else decoded
    if modified:
        _spread(layers, tensors)
    result = replace(graph, layers=tuple(layers), tensors=tensors) if modified else graph
    return PassResult(result, modified, tuple(refused))


def _spread(layers: list[Layer], tensors: dict[str, Tensor]) -> None:
    """Ops that hand integers on unchanged hand their scale on too."""
    for layer in (*layers, *reversed(layers)):
        if layer.op not in CARRIES or not layer.operands:
            continue
        names = [layer.inputs[0], *(name for name in layer.outputs if name)]
        known = next((tensors[name] for name in names if name in tensors and tensors[name].scale is not None), None)
        for name in names if known is not None else ():
            own = tensors.get(name) or Tensor(name, dtype="unknown")
            if own.scale is None:
                tensors[name] = replace(own, scale=known.scale, zero_point=known.zero_point)  # type: ignore[union-attr]


def _decode(layer: Layer, tensors: dict[str, Tensor], picture: object) -> list[Layer] | None:
    if layer.op == "QuantizeLinear":
        scale = _pair(layer, 1, 2)
        # The picture's own range is not a ReLU: its darkest pixels are pixels.
        if not picture:
            return [_saturate(layer, layer.inputs[0], layer.output, scale, tensors)]
        _note(tensors, layer.output, scale)
        return [replace(layer, op="Identity", version=13, inputs=layer.inputs[:1], attributes={}, constants={})]
    if layer.op == "DequantizeLinear":
        _note(tensors, layer.inputs[0], _pair(layer, 1, 2))
        return [replace(layer, op="Identity", version=13, inputs=layer.inputs[:1], attributes={}, constants={})]
    build = DECODERS.get(layer.op)
    return build(layer, tensors) if build is not None else None


def _conv(layer: Layer, tensors: dict[str, Tensor]) -> list[Layer]:
    x, w, y = _pair(layer, 1, 2), _pair(layer, 4, 5), _pair(layer, 6, 7)
    weight = _constant(layer, 3)
    _note(tensors, layer.inputs[0], x)
    inputs, constants = [layer.inputs[0], layer.inputs[3]], {1: decoded(weight, w, axis=0)}
    if layer.given(8):
        inputs.append(layer.inputs[8])
        constants[2] = (_constant(layer, 8) * (x[0] * w[0]).reshape(-1)).astype(np.float32)
    return _saturated(replace(layer, inputs=tuple(inputs), constants=constants), y, tensors, "Conv", 11)


def _matmul(layer: Layer, tensors: dict[str, Tensor]) -> list[Layer]:
    a, b, y = _pair(layer, 1, 2), _pair(layer, 4, 5), _pair(layer, 6, 7)
    _note(tensors, layer.inputs[0], a)
    weight = decoded(_constant(layer, 3), b, axis=-1)
    inputs = (layer.inputs[0], layer.inputs[3])
    return _saturated(replace(layer, inputs=inputs, constants={1: weight}), y, tensors, "MatMul", 13)


def _gemm(layer: Layer, tensors: dict[str, Tensor]) -> list[Layer]:
    """com.microsoft's QGemm: A, B and C as Gemm's; without an output scale its result is float already."""
    a, b = _pair(layer, 1, 2), _pair(layer, 4, 5)
    _note(tensors, layer.inputs[0], a)
    transposed = layer.attributes.get("transB", 0)
    alpha = layer.attributes.get("alpha", 1.0)
    inputs, constants = [layer.inputs[0], layer.inputs[3]], {}
    constants[1] = decoded(_constant(layer, 3), b, axis=0 if transposed else -1)
    if layer.given(6):
        inputs.append(layer.inputs[6])
        constants[2] = (_constant(layer, 6) * (alpha * a[0] * b[0]).reshape(-1)).astype(np.float32)
    attributes = {"alpha": alpha, "beta": 1.0, "transA": layer.attributes.get("transA", 0), "transB": transposed}
    plain = replace(layer, inputs=tuple(inputs), attributes=attributes, constants=constants)
    if not layer.given(7):
        return [replace(plain, op="Gemm", version=13)]
    return _saturated(plain, _pair(layer, 7, 8), tensors, "Gemm", 13)


def _binary(op: str) -> Callable[[Layer, dict[str, Tensor]], list[Layer]]:
    def build(layer: Layer, tensors: dict[str, Tensor]) -> list[Layer]:
        pairs = {0: _pair(layer, 1, 2), 3: _pair(layer, 4, 5)}
        constants = {}
        for to, (position, pair) in enumerate(pairs.items()):
            if position in layer.constants:
                constants[to] = decoded(layer.constants[position], pair, axis=-1)
            else:
                _note(tensors, layer.inputs[position], pair)
        inputs = (layer.inputs[0], layer.inputs[3])
        return _saturated(replace(layer, inputs=inputs, constants=constants), _pair(layer, 6, 7), tensors, op, 14)

    return build


def _pool(op: str, version: int) -> Callable[[Layer, dict[str, Tensor]], list[Layer]]:
    def build(layer: Layer, tensors: dict[str, Tensor]) -> list[Layer]:
        if layer.attributes.get("channels_last"):
            raise _KeepError("it works on channels-last tensors")
        _note(tensors, layer.inputs[0], _pair(layer, 1, 2))
        plain = replace(layer, inputs=layer.inputs[:1], constants={})
        return _saturated(plain, _pair(layer, 3, 4), tensors, op, version)

    return build


DECODERS: Mapping[str, Callable[[Layer, dict[str, Tensor]], list[Layer]]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft::QGemm": _gemm,
    "com.microsoft::QLinearAdd": _binary("Add"),
    "com.microsoft::QLinearMul": _binary("Mul"),
    "com.microsoft::QLinearGlobalAveragePool": _pool("GlobalAveragePool", 1),
    "com.microsoft::QLinearAveragePool": _pool("AveragePool", 11),
}


def _saturated(layer: Layer, scale: Scale, tensors: dict[str, Tensor], op: str, version: int) -> list[Layer]:
    """``layer`` as ``op`` in float, and the Saturate that gives its output the range of the integer type."""
    name = layer.output
    free = f"{name} before saturation"
    tensors[free] = Tensor(free, tensors[name].shape if name in tensors else None)
    value = replace(layer, op=op, version=version, outputs=(free,))
    clamp = Layer(f"{layer.name} saturation", layer.op, 1, (free,), (name,))
    return [value, _saturate(clamp, free, name, scale, tensors)]


def _saturate(layer: Layer, source: str, name: str, scale: Scale, tensors: dict[str, Tensor]) -> Layer:
    """The layer that clamps ``source`` to what the integers of ``name`` can state."""
    _note(tensors, name, scale)
    limits = np.iinfo(scale[1].dtype)
    low, high = (float(decoded(np.asarray(bound, scale[1].dtype), scale)) for bound in (limits.min, limits.max))
    attributes = {"low": low, "high": high}
    return replace(layer, op=SATURATE, version=1, inputs=(source,), attributes=attributes, constants={})


def _note(tensors: dict[str, Tensor], name: str, scale: Scale) -> None:
    if scale[0].size != 1:
        raise _KeepError(f"activation {name!r} has a scale for each channel")
    known = tensors.get(name) or Tensor(name, dtype="unknown")
    tensors[name] = replace(known, scale=float(scale[0].reshape(())), zero_point=int(scale[1].reshape(())))


def _pair(layer: Layer, scale: int, zero_point: int) -> Scale:
    """Scale and zero point; ONNX's default zero point is an unsigned 0."""
    point = _constant(layer, zero_point) if layer.given(zero_point) else np.zeros((), np.uint8)
    if point.dtype.kind not in "iu":
        raise _KeepError(f"its zero point has type {point.dtype}")
    step = _constant(layer, scale).astype(np.float32)
    odd = step[~(np.isfinite(step) & (step >= 0))]
    if odd.size:
        raise ModelError(
            f"{layer.name} has a quantisation step that is none: {float(odd[0])}",
            next="a step is a positive number: quantise the model again",
        )
    return step, point


def _constant(layer: Layer, position: int) -> np.ndarray:
    value = layer.constant(position)
    if value is None:
        raise _KeepError(f"operand {position} is computed in the graph")
    return value


def decoded(q: np.ndarray, scale: Scale, axis: int = 0) -> np.ndarray:
    """(q - zero_point) scale; a vector of scales runs along ``axis``."""
    step, point = scale
    if step.size > 1:
        if not -q.ndim <= axis < q.ndim or step.size != q.shape[axis]:  # else each cell would meet each step
            raise ModelError(f"{step.size} quantisation steps along axis {axis} of a tensor of shape {list(q.shape)}")
        column = [1] * q.ndim
        column[axis] = -1
        step, point = step.reshape(column), np.broadcast_to(point.reshape(-1), step.size).reshape(column)
    elif q.ndim:
        step, point = step.reshape(()), point.reshape(())
    values: np.ndarray = (q.astype(np.int32) - point.astype(np.int32)).astype(np.float32) * step
    return values
