"""BatchNormalization after Conv, ConvTranspose or Gemm: one linear layer with scaled weights.

    bn(conv(x, W) + b) = conv(x, s W) + s (b - mean) + beta,    s = gamma / sqrt(var + epsilon)  per output channel

Source: methods 2.6, 3.1. Where s < 0 the positive and negative parts of the weights swap, so folding and the
published "BatchNorm is the identity" differ there: the count is reported.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs, refuse

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norm(graph: LayerGraph) -> PassResult:
    """Fold each BatchNormalization into the linear layer before it."""
    negative: dict[str, int] = {}

    def fuse(graph: LayerGraph, linear: Layer, norm: Layer) -> Layer | Refusal:
        result = _fuse(linear, norm)
        if isinstance(result, Layer):
            below = int((norm.constants[1] < 0).sum())
            if below:
                negative[norm.name] = below
        return result

    result = fuse_pairs(graph, lambda first, second: first.op in FOLDABLE and second.op == "BatchNormalization", fuse)
    if not negative:
        return result
    note = (
        f"{sum(negative.values())} channels in {len(negative)} BatchNormalization layers have a negative scale "
        f"(first: {next(iter(negative))}): folded, which differs there from treating BatchNormalization as identity"
    )
    return replace(result, graph=replace(result.graph, notes=(*result.graph.notes, note)))


def _fuse(linear: Layer, norm: Layer) -> Layer | Refusal:
    if norm.attributes.get("training_mode"):
        return refuse(norm, "it runs in training mode: its scale depends on the batch")
    if any(norm.constant(i) is None for i in (1, 2, 3, 4)):
        return refuse(norm, "its parameters are computed in the graph")
    weight = linear.constant(1)
    if weight is None:
        return refuse(norm, f"the weight of {linear.name} is computed in the graph")
    if linear.given(2) and linear.constant(2) is None:
        return refuse(norm, f"the bias of {linear.name} is computed in the graph")
    dtype = weight.dtype
    gamma, beta, mean, var = (norm.constants[i].astype(np.float64) for i in (1, 2, 3, 4))
    scale = gamma / np.sqrt(var + norm.attributes["epsilon"])
    bias = linear.constant(2)
    shift = np.zeros_like(scale) if bias is None else bias.astype(np.float64)
    attributes = dict(linear.attributes)
    if linear.op == "Gemm":
        shift = shift * attributes.pop("beta", 1.0)
        attributes["beta"] = 1.0
        scaled = weight * (scale[:, None] if attributes["transB"] else scale)
    elif linear.op == "ConvTranspose":  # [ci, co / group, ...]: output channels are group-major
        group = attributes["group"]
        per_input = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        scaled = weight * per_input.reshape(*per_input.shape, *[1] * (weight.ndim - 2))
    else:
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return replace(
        linear,
        inputs=(linear.inputs[0], linear.inputs[1], linear.inputs[2] if len(linear.inputs) > 2 else norm.inputs[2]),
        outputs=norm.outputs[:1],
        attributes=attributes,
        constants={1: scaled.astype(dtype), 2: (beta + scale * (shift - mean)).astype(dtype)},
        nodes=(*linear.nodes, *norm.nodes),
    )
