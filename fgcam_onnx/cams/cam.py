"""CAM: each channel weighted by its weight in the one linear layer behind the pooling.

    w_k = FC[c, k] = S(g_k)          components w_k A_k          [rows, c, ...]

g = dy_c/dA, S the sum over space. Behind global average pooling and one linear layer g is FC[c, k] / (h w) in every
cell, so its sum is the weight itself, whatever the exporter made of the layer. A model with another head is refused.

Conserves: the components sum to h w (y_c - b_c).

Differs: nothing known.

Source: methods 5; Zhou et al. 2016, eq. 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context
from fgcam_onnx.graph.layer import Layer, LayerGraph, Shape

DESCENDS = True
MOVES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast", "Dropout"}
INSTEAD = "grad-cam, which is the same map up to a factor where cam is defined, serves any head; so does layer-cam"


def components(context: Context) -> Array:
    """[rows, c, ...], signed."""
    xp, a = context.xp, context.activations
    return xp.mul(xp.reduce_sum(context.gradient, range(2, len(xp.shape(a)))), a)


def refuses(graph: LayerGraph, source: str, shape: Shape, options: Mapping[str, Any] | None = None) -> str | None:
    """Why the way from ``source`` to the logits is not global average pooling and one linear layer, None if it is."""
    way = graph.descendants(source) & graph.ancestors(graph.logits)
    pools, linear = [], []
    for layer in (each for each in graph.layers if way & set(each.outputs) and source not in each.outputs):
        if len(layer.operands) == 1 and layer.operands[0] == 0 and _is_linear(layer):
            linear.append(layer.name)
        elif _is_global_mean(layer, graph, source, shape):
            pools.append(layer.name)
        elif layer.op not in MOVES and not _adds_a_bias(layer):
            return f"cam needs a head of global average pooling and one linear layer, and node {layer.name!r} " + (
                f"({layer.op}) is neither; {INSTEAD}"
            )
    if len(pools) == len(linear) == 1:
        return None
    found = f"{len(pools)} such poolings and {len(linear)} linear layers"
    return f"cam needs a head of one global average pooling and one linear layer, and this one has {found}; {INSTEAD}"


def _is_linear(layer: Layer) -> bool:
    """A fully connected layer; or a convolution of one cell, which is one, before the pooling or behind it."""
    weight = layer.constant(1)
    if weight is None or layer.op not in ("Gemm", "MatMul", "Conv"):
        return False
    if layer.op == "Conv":
        single = math.prod(weight.shape[2:]) == 1 and set(layer.attributes.get("strides") or [1]) == {1}
        return single and layer.attributes.get("group", 1) == 1 and not any(layer.attributes.get("pads") or ())
    return not layer.attributes.get("transA", 0)


def _adds_a_bias(layer: Layer) -> bool:
    return layer.op == "Add" and len(layer.operands) == 1


def _is_global_mean(layer: Layer, graph: LayerGraph, source: str, shape: Shape) -> bool:
    """Does it average over all cells of space?"""
    if layer.op == "GlobalAveragePool":
        return True
    tensor = graph.tensor(layer.inputs[0])
    layout, sizes = tensor.layout or "", shape if layer.inputs[0] == source else tensor.shape or ()
    if not layout or len(layout) != len(sizes):
        return False
    space = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    if layer.op == "ReduceMean":
        operand = layer.constant(1)
        axes = layer.attributes.get("axes") if operand is None else operand.ravel().tolist()
        return sorted(int(axis) % len(layout) for axis in axes or ()) == space
    if layer.op == "AveragePool":
        whole = list(layer.attributes.get("kernel_shape") or ()) == [sizes[axis] for axis in space]
        return whole and not any(layer.attributes.get("pads") or ())
    return False
