"""Sizes of windows: ONNX's strides, pads, dilations, auto_pad and ceil_mode, made explicit.

The end padding never appears: it follows from the input and output sizes, both known (backends.base.Window).
"""

from __future__ import annotations

from collections.abc import Sequence

from fgcam_onnx.backends.base import Convolution, Window
from fgcam_onnx.node import Node

__all__ = ["convolution", "window"]


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
    strides = _ints(node.attributes.get("strides")) or (1,) * axes
    dilations = _ints(node.attributes.get("dilations")) or (1,) * axes
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spatial, out = node.in_shape()[2:], node.out_shape()[2:]
        begins = []
        for size, o, k, s, d in zip(spatial, out, kernel, strides, dilations, strict=True):
            whole = max((o - 1) * s + (k - 1) * d + 1 - size, 0)
            begins.append(whole // 2 if mode == "SAME_UPPER" else whole - whole // 2)
        return strides, tuple(begins), dilations
    pads = _ints(node.attributes.get("pads")) if mode == "NOTSET" else ()
    return strides, (pads or (0,) * 2 * axes)[:axes], dilations


def _ints(values: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(int(v) for v in values or ())
