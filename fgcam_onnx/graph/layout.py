"""Layout: which axis of a tensor is the batch, which the channels, which are space.

ONNX does not say. But Conv and the pooling ops read and write channels first, by definition: the layout starts
there and spreads through everything that moves axes in a known way, forward and backward, until nothing changes.
So a TensorFlow export whose input is NHWC behind a Transpose is understood without being told.
"""

from __future__ import annotations

from collections.abc import Mapping

from fgcam_onnx.graph.layer import SATURATE, Layer, Tensor

__all__ = ["channels_first", "find_layouts"]

ANCHORS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"}
ANCHORS |= {"GlobalLpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"}
ANCHORS |= {"DepthToSpace", "SpaceToDepth", "MaxUnpool"}
# Ops whose output axes are their input axes, for operands of the output's rank.
KEEPS = {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish"}
KEEPS |= {"Gelu", "Softplus", "Softsign", "ThresholdedRelu", "Tanh", "Erf", "Exp", "Sqrt", "Pow", "Abs", "Neg", "Clip"}
KEEPS |= {"Identity", "Dropout", "Cast", "Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Concat", "Split"}
KEEPS |= {"Slice", "Pad", "Resize", "Upsample", "Expand", "Tile", "LayerNormalization", "Where", "Reciprocal", "Log"}
KEEPS |= {SATURATE, "Softmax"}
REDUCE = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"}
SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


def channels_first(rank: int) -> str | None:
    """ "NCW", "NCHW" or "NCDHW"; None for other ranks."""
    return "NC" + SPATIAL[rank - 2] if rank - 2 in SPATIAL else None


def find_layouts(layers: tuple[Layer, ...], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Layout by tensor name; tensors without one are not spatial, or unknown."""

    def rank(name: str) -> int | None:
        known = tensors.get(name)
        return len(known.shape) if known is not None and known.shape is not None else None

    found: dict[str, str] = {}

    def learn(name: str, layout: str | None) -> bool:
        if not name or layout is None or name in found or rank(name) not in (len(layout), None):
            return False
        found[name] = layout
        return True

    for layer in layers:
        if layer.op in ANCHORS and layer.operands:
            weight = layer.constant(1) if layer.op in ("Conv", "ConvTranspose") else None
            axes = weight.ndim if weight is not None else rank(layer.inputs[0]) or rank(layer.output)
            if axes is None and layer.attributes.get("kernel_shape"):
                axes = 2 + len(layer.attributes["kernel_shape"])
            for name in (layer.inputs[0], layer.output):
                learn(name, channels_first(axes or 4))
    changed = True
    while changed:
        changed = False
        for layer in (*layers, *reversed(layers)):
            changed |= _spread(layer, found, learn)
    return found


def _spread(layer: Layer, found: dict[str, str], learn) -> bool:  # type: ignore[no-untyped-def]
    if not layer.operands:
        return False
    changed = False
    if layer.op in KEEPS:
        names = [layer.inputs[i] for i in layer.operands] + list(layer.outputs)
        layout = next((found[name] for name in names if name in found), None)
        for name in names:
            changed |= learn(name, layout)
    elif layer.op == "Transpose" and layer.attributes.get("perm"):
        perm, (source, target) = layer.attributes["perm"], (layer.inputs[0], layer.output)
        if source in found and len(found[source]) == len(perm):
            changed |= learn(target, "".join(found[source][p] for p in perm))
        if target in found and len(found[target]) == len(perm):
            back = [""] * len(perm)
            for axis, p in enumerate(perm):
                back[p] = found[target][axis]
            changed |= learn(source, "".join(back))
    elif layer.op in REDUCE and layer.attributes.get("keepdims", 1):
        source, target = layer.inputs[0], layer.output
        changed |= learn(target, found.get(source)) or learn(source, found.get(target))
    return changed
