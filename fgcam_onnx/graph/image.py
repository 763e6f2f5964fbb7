"""Which tensors are still the picture: reached from the input by index moves and affine constants alone.

A linear layer that reads one is a *first layer*: it gets the z^B rule, whose bounds are those of the tensor that feeds
it (methods 2.6, 9.2: "preprocessing inside the graph").
"""

from __future__ import annotations

from fgcam_onnx.graph.layer import Layer

__all__ = ["image_tensors"]

MOVES = {
    "Identity",
    "Cast",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Pad",
    "Slice",
    "Split",
    "Concat",
    "Resize",
}
MOVES |= {"Upsample", "Gather", "Add", "Sub", "Mul", "Div", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"}
MOVES |= {"Clip", "Expand", "Tile", "SpaceToDepth", "DepthToSpace", "Dropout", "Flatten"}


def image_tensors(layers: tuple[Layer, ...], image: str, inputs: tuple[str, ...] = ()) -> set[str]:
    """``image`` and everything that is a rearranged, shifted or scaled copy of it.

    Also where another of the model's ``inputs`` has a part in it: a depth map that is joined to the picture as a fourth
    channel is read by the same first layer.
    """
    raw, found = {image, *inputs}, {image}
    for layer in layers:
        if layer.op in MOVES and layer.operands and all(layer.inputs[i] in raw for i in layer.operands):
            names = {name for name in layer.outputs if name}
            raw |= names
            if any(layer.inputs[i] in found for i in layer.operands):
                found |= names
    return found
