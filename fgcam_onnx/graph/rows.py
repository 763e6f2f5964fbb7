"""Rows: can several relevances of one image share its activations?

A row is one image explained for one class. The rules are linear in the relevance for fixed activations (methods 1), so
k rows of an image can be walked down together: the tape keeps a batch of 1, the relevance has a batch of k, and every
denominator is computed once. That is right as long as a layer treats what lies along the first axis one by one, in all
its operands alike.

What cannot be served, and is walked one row after the other: layers that move, join or cut the first axis; operands
that lack it; constants with a row for each image; numbers computed from the count of all cells; operators of other
packages, whose rules may rely on a batch of one size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgcam_onnx.graph.layer import SATURATE, STANDARDISE, STRIDED, Layer, LayerGraph

__all__ = ["shares_batch"]

# Image by image whatever their attributes: where they reach across the batch, their rules refuse them.
IMAGE_BY_IMAGE = frozenset(
    {"Abs", "AveragePool", "BatchNormalization", "Cast", "Celu", "Clip", "Conv", "ConvTranspose", "DepthToSpace"}
    | {"Dropout", "Elu", "Erf", "Exp", "Flatten", "Gather", "GatherND", "Gelu", "GlobalAveragePool"}
    | {"GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LRN"}
    | {"LeakyRelu", "Log", "MaxPool", "MeanVarianceNormalization", "Mish", "Neg", "ReduceMax", "ReduceMean"}
    | {"ReduceSum", "Relu", "Reshape", "Selu", "Sigmoid", "Softplus", "Softsign", "SpaceToDepth", "Sqrt", "Squeeze"}
    | {"Swish", "Tanh", "ThresholdedRelu", "Tile", "Unsqueeze", SATURATE, STRIDED}
)
# Cell by cell, operands broadcast.
BROADCAST = frozenset(
    {"Add", "Div", "LayerNormalization", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "RMSNormalization", "Sub"}
    | {"Sum", "Where", STANDARDISE}
)


def shares_batch(layer: Layer, graph: LayerGraph) -> bool:
    """May the activations of ``layer`` have a batch of 1 where its relevance has one of k?

    It is the caller's to see that the first axis of every activation and output of the layer is the batch, by its size.
    """
    if layer.sizes and any(measure.op == "Size" for measure in graph.measures):
        return False
    if layer.op in IMAGE_BY_IMAGE:
        return True
    if layer.op in BROADCAST:
        return _broadcasts_beside_batch(layer, graph)
    found = BY_ATTRIBUTE.get(layer.op)
    return found is not None and found(layer, graph)


def _rank(name: str, graph: LayerGraph) -> int | None:
    shape = graph.tensor(name).shape
    return None if shape is None else len(shape)


def _broadcasts_beside_batch(layer: Layer, graph: LayerGraph) -> bool:
    """Every activation has all axes, and no constant has a row for each image."""
    rank = _rank(layer.output, graph)
    if rank is None or layer.sizes:
        return False
    constants = [np.shape(value) for value in layer.constants.values()]
    return all(_rank(layer.inputs[i], graph) == rank for i in layer.operands) and all(
        len(shape) < rank or (len(shape) == rank and shape[0] == 1) for shape in constants
    )


def _keeps_first_axis(layer: Layer, graph: LayerGraph) -> bool:
    perm = layer.attributes.get("perm")
    return perm is not None and len(perm) > 0 and perm[0] == 0


def _adds_no_axes(layer: Layer, graph: LayerGraph) -> bool:
    rank = _rank(layer.output, graph)
    return rank is not None and _rank(layer.inputs[0], graph) == rank


def _rows_are_images(layer: Layer, graph: LayerGraph) -> bool:
    return not layer.attributes.get("transA")


def _multiplies_last_axis(layer: Layer, graph: LayerGraph) -> bool:
    """x [n, ..., i] by a weight [i, o], or by one that has no row for each image."""
    weight, rank = layer.constant(1), _rank(layer.inputs[0], graph)
    if weight is None or rank is None or rank < 2 or weight.ndim > rank:
        return False
    return weight.ndim < rank or weight.ndim == 2 or weight.shape[0] == 1


def _along_another_axis(layer: Layer, graph: LayerGraph) -> bool:
    """Joined or cut along an axis that is not the first."""
    rank, axis = _rank(layer.output, graph), int(layer.attributes.get("axis", 0))
    return axis > 0 or (rank is not None and axis < 0 and axis != -rank)


def _cuts_other_axes(layer: Layer, graph: LayerGraph) -> bool:
    rank = _rank(layer.inputs[0], graph)
    axes = layer.attributes.get("axes") if layer.version < 10 else layer.constant(3)
    if axes is None or rank is None:  # from the first axis on
        return False
    return all(int(axis) % rank != 0 for axis in np.ravel(axes))


def _resizes_axis_by_axis(layer: Layer, graph: LayerGraph) -> bool:
    """With one ratio for several axes, the batch among them, its size would count."""
    axes = layer.attributes.get("axes")
    stretched = layer.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    return stretched or (axes is not None and len(axes) > 0 and min(axes) > 0)


def _pads_other_axes(layer: Layer, graph: LayerGraph) -> bool:
    pads = layer.attributes.get("pads") if layer.version < 11 else layer.constant(1)
    if pads is None or layer.given(3):  # the first axis may not be named, and has kept its size
        return True
    amounts = np.reshape(np.asarray(pads), (2, -1))
    return not amounts[:, 0].any()


BY_ATTRIBUTE: dict[str, Callable[[Layer, LayerGraph], bool]] = {
    "Concat": _along_another_axis,
    "Expand": _adds_no_axes,
    "Gemm": _rows_are_images,
    "MatMul": _multiplies_last_axis,
    "Pad": _pads_other_axes,
    "Resize": _resizes_axis_by_axis,
    "Slice": _cuts_other_axes,
    "Split": _along_another_axis,
    "Transpose": _keeps_first_axis,
    "Upsample": _resizes_axis_by_axis,
}
