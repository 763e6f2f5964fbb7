"""Integer layers of a quantised model as the float layers that they stand for.

    QLinearConv(x, w) = Saturate(Conv(decode x, decode w))        decode q = (q - zero_point) scale

The forward pass stays the quantised one; what changes is the view. Weights are decoded once, activations when they are
read, each by the scale that the model itself states. Saturate is where the range of the integer type ends, which is
also where a ReLU went that the quantiser absorbed: a uint8 tensor with zero point 0 is never negative.

DynamicQuantizeLinear chooses a range that holds all values of its input, and 0: nothing is clamped there.
"""

from __future__ import annotations

from dataclasses import replace

from fgcam_onnx.graph.image import image_tensors
from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal, Tensor
from fgcam_onnx.graph.passes.base import PassResult, refuse
from fgcam_onnx.graph.passes.decode_qlinear import DECODERS
from fgcam_onnx.graph.quantisation import KeepError, note, note_computed, pair, saturate

__all__ = ["DEQUANTIZE", "QUANTIZE", "decode_quantised"]

# An Identity here may be a decoded Quantize or DequantizeLinear, with integers on one side only: it carries nothing.
CARRIES = {"MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"}
CARRIES |= {"Gather", "Dropout"}
QUANTIZE = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
DEQUANTIZE = ("DequantizeLinear", "com.microsoft::DequantizeLinear")


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
        except KeepError as reason:
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
            if own.scale is None and known is not None:
                dtype = known.dtype if own.dtype == "unknown" else own.dtype
                tensors[name] = replace(own, dtype=dtype, scale=known.scale, zero_point=known.zero_point)


def _decode(layer: Layer, tensors: dict[str, Tensor], picture: object) -> list[Layer] | None:
    if layer.op in QUANTIZE:
        scale = pair(layer, 1, 2)
        # The picture's own range is not a ReLU: its darkest pixels are pixels.
        if not picture:
            return [saturate(layer, layer.inputs[0], layer.output, scale, tensors)]
        note(tensors, layer.output, scale)
        return [_same(layer)]
    if layer.op in DEQUANTIZE:
        note(tensors, layer.inputs[0], pair(layer, 1, 2))
        return [_same(layer)]
    if layer.op == "DynamicQuantizeLinear":
        note_computed(tensors, *layer.outputs)
        return [_same(layer)]
    build = DECODERS.get(layer.op)
    return build(layer, tensors) if build is not None else None


def _same(layer: Layer) -> Layer:
    """The layer as one that changes no value."""
    return replace(
        layer,
        op="Identity",
        version=13,
        inputs=layer.inputs[:1],
        outputs=layer.outputs[:1],
        attributes={},
        constants={},
    )
