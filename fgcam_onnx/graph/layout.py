"""Layout: which axis of a tensor is the batch, which the channels, which are space.

ONNX does not say. But Conv and the pooling ops read and write channels first, by definition: the layout starts
there and spreads through everything that moves axes in a known way, forward and backward, until nothing changes.
So a TensorFlow export whose input is NHWC behind a Transpose is understood without being told.
"""

from __future__ import annotations

from collections.abc import Mapping

from fgcam_onnx.graph.layer import SATURATE, STANDARDISE, Layer, Tensor

__all__ = ["channels_first", "find_layouts"]

ANCHORS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"}
ANCHORS |= {"GlobalLpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"}
ANCHORS |= {"DepthToSpace", "SpaceToDepth", "MaxUnpool"}
# Ops whose output axes are their input axes, for operands of the output's rank.
KEEPS = {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish"}
KEEPS |= {"Gelu", "Softplus", "Softsign", "ThresholdedRelu", "Tanh", "Erf", "Exp", "Sqrt", "Pow", "Abs", "Neg", "Clip"}
KEEPS |= {"Identity", "Dropout", "Cast", "Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Concat", "Split"}
KEEPS |= {"Slice", "Pad", "Resize", "Upsample", "Expand", "Tile", "LayerNormalization", "Where", "Reciprocal", "Log"}
KEEPS |= {SATURATE, STANDARDISE, "RMSNormalization", "MeanVarianceNormalization", "Softmax"}
BETWEEN = KEEPS | {"InstanceNormalization", "Transpose"}  # what may stand between two Reshapes of a round trip
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
    returns = _round_trips(layers, tensors)
    changed = True
    while changed:
        changed = False
        for layer in (*layers, *reversed(layers)):
            changed |= _spread(layer, found, learn)
        for source, target in returns:
            changed |= learn(target, found.get(source)) or learn(source, found.get(target))
    return found


def _round_trips(layers: tuple[Layer, ...], tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Tensors that a Reshape takes apart and a later one puts together again, with nothing moved in space between.

    GroupNormalization as [n, groups, -1] and back; a channel shuffle as [n, groups, -1, h, w], axes 1 and 2 exchanged.
    """

    def shape(name: str) -> tuple[object, ...] | None:
        known = tensors.get(name)
        return known.shape if known is not None else None

    producers = {name: layer for layer in layers for name in layer.outputs}
    found = []
    for layer in layers:
        if layer.op != "Reshape" or shape(layer.output) is None:
            continue
        before = producers.get(layer.inputs[0])
        while before is not None and before.op in BETWEEN and len(before.operands) == 1 and _keeps_space(before):
            before = producers.get(before.inputs[0])
        if before is None or before.op != "Reshape":
            continue
        source, target = shape(before.inputs[0]), shape(layer.output)
        if source is not None and target is not None and source[1:] == target[1:] and None not in source[1:]:
            found.append((before.inputs[0], layer.output))
    return found


def _keeps_space(layer: Layer) -> bool:
    perm = layer.attributes.get("perm") if layer.op == "Transpose" else None
    return perm is None or (layer.op == "Transpose" and list(perm) == [0, 2, 1, *range(3, len(perm))])


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
