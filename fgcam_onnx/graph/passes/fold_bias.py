"""A convolution, then Add of a constant for each channel: one convolution with a bias, as other exporters write it.

conv(x, W) + b = conv(x, W; b)          b one number, or [C, 1, ..., 1], [1, C, 1, ..., 1]
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs, refuse


def fold_bias(graph: LayerGraph) -> PassResult:
    """Fold each such Add into the convolution before it."""

    def matches(first: Layer, second: Layer) -> bool:
        return first.op in ("Conv", "ConvTranspose") and second.op == "Add" and len(second.constants) == 1

    return fuse_pairs(graph, matches, _fuse)


def _fuse(graph: LayerGraph, conv: Layer, add: Layer) -> Layer | Refusal:
    weight = conv.constant(1)
    position, added = next(iter(add.constants.items()))
    if weight is None or (conv.given(2) and conv.constant(2) is None):
        return refuse(add, f"weight or bias of {conv.name} is computed in the graph")
    channels = weight.shape[0] if conv.op == "Conv" else weight.shape[1] * conv.attributes["group"]
    axis = added.ndim - weight.ndim + 1
    if added.ndim > weight.ndim or (added.size > 1 and (axis < 0 or added.shape[axis] != added.size)):
        return refuse(add, f"the constant has shape {list(added.shape)}, and is not one number for each channel")
    if added.size not in (1, channels):
        return refuse(add, f"{added.size} constants for {channels} channels")
    bias = np.zeros(channels) if conv.constant(2) is None else conv.constants[2].astype(np.float64)
    name = conv.inputs[2] if conv.given(2) else add.inputs[position]
    return replace(
        conv,
        inputs=(*conv.inputs[:2], name),
        outputs=add.outputs,
        constants={**conv.constants, 2: (bias + added.reshape(-1)).astype(weight.dtype)},
        nodes=(*conv.nodes, *add.nodes),
    )
