"""AveragePool, GlobalAveragePool, ReduceMean, ReduceSum: linear maps whose weights are fixed and >= 0.

    share of x_i in a window = x_i^+ / sum of x^+ in the window, summed over windows (the z+ formula)

So ``count_include_pad`` changes the gradient and not the shares. Source: methods 3.1. The opset-19 ``dilations``,
``ceil_mode`` and ``auto_pad`` are honoured.
"""

from __future__ import annotations

import math

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap, linear_map
from fgcam_onnx.rules.geometry import reduced_axes, refuses_reduction, window


class FixedWeights(LinearMap):
    fixed_nonnegative = True

    @staticmethod
    def weight(layer: Layer) -> np.ndarray | None:
        return None


@linear_map(AveragePool=(1, 7, 10, 11, 19, 22))
class AveragePool(FixedWeights):
    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.div(xp.window_sum(x, window(node), node.out_shape()[2:]), _divisor(node, xp))

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.window_spread(xp.div(s, _divisor(node, xp)), window(node), node.in_shape()[2:])


def _divisor(node: Node, xp: Verbs) -> Array:
    """How many cells each window averages over: a number, or [1, 1, ...] where the windows differ."""
    how, spatial, out = window(node), node.in_shape()[2:], node.out_shape()[2:]
    include = bool(node.attributes.get("count_include_pad", 0))
    pads = node.attributes.get("pads") or [0] * 2 * len(spatial)
    axes = []
    for axis, (size, o, k, s, b, d) in enumerate(
        zip(spatial, out, how.kernel, how.strides, how.begins, how.dilations, strict=True)
    ):
        # With count_include_pad the declared padding counts, the extra cells of ceil_mode never do.
        declared = (o - 1) * s + (k - 1) * d + 1 - size - b
        if node.attributes.get("auto_pad", "NOTSET") == "NOTSET":
            declared = int(pads[len(spatial) + axis])
        low, high = (-b, size + declared) if include else (0, size)
        starts = np.arange(o)[:, None] * s - b + np.arange(k)[None] * d
        axes.append(((starts >= low) & (starts < high)).sum(axis=1))
    counts = axes[0]
    for axis_counts in axes[1:]:
        counts = counts[..., None] * axis_counts
    if (counts == counts.flat[0]).all():
        return xp.constant(float(counts.flat[0]))
    return xp.constant(counts[None, None].astype(np.float64))


@linear_map(GlobalAveragePool=(1, 22))
class GlobalAveragePool(FixedWeights):
    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        axes = range(2, len(node.in_shape()))
        return xp.mul(xp.reduce_sum(x, axes), xp.constant(1 / math.prod(node.in_shape()[2:])))

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        return xp.expand(xp.mul(s, xp.constant(1 / math.prod(node.in_shape()[2:]))), node.in_shape())


class Reduce(FixedWeights):
    """Mean or sum over ``axes``: an attribute, or since ReduceSum-13 and ReduceMean-18 an operand."""

    mean = True

    @classmethod
    def refuses(cls, layer: Layer, graph: LayerGraph) -> str | None:
        return refuses_reduction(layer, graph)

    @classmethod
    def factor(cls, node: Node) -> float:
        return 1 / math.prod(node.in_shape()[a] for a in reduced_axes(node)) if cls.mean else 1.0

    @classmethod
    def apply(cls, node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        axes = reduced_axes(node)
        y = xp.mul(xp.reduce_sum(x, axes), xp.constant(cls.factor(node))) if axes else x
        return xp.reshape(y, (xp.shape(x)[0], *node.out_shape()[1:]))

    @classmethod
    def adjoint(cls, node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        axes, shape = reduced_axes(node), node.in_shape()
        kept = [1 if a in axes else d for a, d in enumerate(shape)]
        return xp.expand(xp.mul(xp.reshape(s, kept), xp.constant(cls.factor(node))), shape)


@linear_map(ReduceMean=(1, 11, 13, 18))
class ReduceMean(Reduce):
    pass


@linear_map(ReduceSum=(1, 11, 13))
class ReduceSum(Reduce):
    mean = False
