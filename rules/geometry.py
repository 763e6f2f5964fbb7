"""Sizes of windows: ONNX's strides, pads, dilations, auto_pad, ceil_mode, made explicit; reduced axes; biases.

The end padding never appears: it follows from the input and output sizes, both known (backends.base.Window).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgcam_onnx.backends.base import Convolution, Window
from fgcam_onnx.errors import UnsupportedOpError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Node

__all__ = ["bias_of_channels", "convolution", "ints", "reduced_axes", "refuses_reduction", "stored_bias", "window"]


def convolution(node: Node, kernel: Sequence[int]) -> Convolution:
    """The geometry of a Conv node."""
    strides, begins, dilations = _resolve(node, kernel)
    return Convolution(strides, begins, dilations, int(node.attributes.get("group", 1)))


def window(node: Node) -> Window:
    """The geometry of a pooling node."""
    kernel = tuple(int(k) for k in node.attributes["kernel_shape"])
    return Window(kernel, *_resolve(node, kernel))


def _resolve(node: Node, kernel: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    axes = len(kernel)
    strides = ints(node.attributes.get("strides")) or (1,) * axes
    dilations = ints(node.attributes.get("dilations")) or (1,) * axes
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spatial, out = node.in_shape()[2:], node.out_shape()[2:]
        begins = []
        for size, o, k, s, d in zip(spatial, out, kernel, strides, dilations, strict=True):
            whole = max((o - 1) * s + (k - 1) * d + 1 - size, 0)
            begins.append(whole // 2 if mode == "SAME_UPPER" else whole - whole // 2)
        return strides, tuple(begins), dilations
    pads = ints(node.attributes.get("pads")) if mode == "NOTSET" else ()
    return strides, (pads or (0,) * 2 * axes)[:axes], dilations


def ints(values: Sequence[int] | None) -> tuple[int, ...]:
    """An attribute's numbers, () if it is not given."""
    return tuple(int(v) for v in values or ())


def refuses_reduction(layer: Layer, graph: LayerGraph) -> str | None:
    """Why a Reduce... layer cannot be served: its axes are unknown, or the batch is among them."""
    if layer.unknown(1):
        return "its axes are computed in the graph"
    axes, rank = layer.constant(1), len(graph.tensor(layer.inputs[0]).shape or ())
    named = layer.attributes.get("axes") if axes is None else axes.tolist()
    if not named and not layer.attributes.get("noop_with_empty_axes"):
        return "it reduces over all axes, the batch included"
    if named and any(a == 0 or (rank and a == -rank) for a in named):
        return "it reduces over the batch"
    return None


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes of a Reduce... node: an attribute, or in later versions an operand."""
    operand = node.layer.constant(1)
    named = node.attributes.get("axes") if operand is None else operand.ravel().tolist()
    rank = len(node.in_shape())
    return tuple(sorted(int(a) % rank for a in named or ()))


def stored_bias(layer: Layer, position: int = 2) -> np.ndarray | None:
    """The bias as it is stored, None if there is none.

    Raises:
        UnsupportedOpError: it is computed in the network, so that no rule can count it.
    """
    bias = layer.constant(position)
    if bias is None and layer.given(position):
        raise UnsupportedOpError(
            f"the bias of {layer.op} is computed in the graph",
            at=f"node {layer.name!r}",
            next="choose a rule that does not count the bias: bias=False, or z_plus",
        )
    return bias


def bias_of_channels(layer: Layer) -> np.ndarray | None:
    """The bias of a convolution or its adjoint, [1, co, 1...]."""
    bias, weight = stored_bias(layer), layer.constant(1)
    return None if bias is None or weight is None else bias.reshape(1, -1, *[1] * (weight.ndim - 2))
