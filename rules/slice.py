"""Slice, Pad: index maps that leave cells out, or surround them.

Relevance goes back to the cell that was read; a cell that nobody read gets 0. Pad: what sits on constant padding has
no source and is leaked; reflect and edge padding add back to the cell they copied. The derivative is the same map.
Source: methods 3.1.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Leak, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

SLICE = {"Slice": (1, 10, 11, 13)}
PAD = {"Pad": (2, 11, 13, 18, 19, 21, 23, 24, 25)}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _dynamic(layer: Layer, graph: LayerGraph) -> str | None:
    for i in range(1, len(layer.inputs)):
        if layer.unknown(i):
            return f"its operand {layer.inputs[i]!r} is computed in the graph"
    return None


def _read_cells(node: Node) -> dict[int, np.ndarray]:
    """For each sliced axis: the input positions read, in order."""
    layer, shape = node.layer, node.in_shape()
    if layer.version < 10:
        starts, ends = layer.attributes["starts"], layer.attributes["ends"]
        axes, steps = layer.attributes.get("axes"), None
    else:
        starts, ends = layer.constants[1].ravel(), layer.constants[2].ravel()
        axes = layer.constants[3].ravel() if layer.given(3) else None
        steps = layer.constants[4].ravel() if layer.given(4) else None
    if axes is None:
        axes = range(len(starts))
    cells = {}
    for k, axis in enumerate(axes):
        size, step = shape[int(axis)], 1 if steps is None else int(steps[k])
        # ONNX counts from the end and clamps as Python does.
        cells[int(axis) % len(shape)] = np.arange(size)[int(starts[k]) : int(ends[k]) : step]
    return cells


@gradient(sends=_first, refuses=_dynamic, **SLICE)
@relevance("unslice", dead_inputs="inherits", sends=_first, refuses=_dynamic, **SLICE)
def unslice(node: Node, r: Array, xp: Verbs) -> Flow:
    """r of the slice -> zeros of the input's shape with r where it was read."""
    shape = node.in_shape()
    for axis, cells in _read_cells(node).items():
        size = shape[axis]
        if len(cells) and np.array_equal(cells, np.arange(cells[0], cells[0] + len(cells))):
            begins = [int(cells[0]) if a == axis else 0 for a in range(len(shape))]
            ends = [int(size - cells[-1] - 1) if a == axis else 0 for a in range(len(shape))]
            r = xp.pad(r, begins, ends)
        else:
            r = xp.scatter_add(r, cells, axis, size)
    return Flow({0: r})


@gradient(sends=_first, refuses=_dynamic, **PAD)
@relevance(
    "crop", dead_inputs="inherits", sends=_first, refuses=_dynamic, leaks="what falls on constant padding", **PAD
)
def crop(node: Node, r: Array, xp: Verbs) -> Flow:
    """r of the padded tensor -> the input's shape."""
    shape, amounts = node.in_shape(), _amounts(node)
    mode = node.attributes.get("mode", "constant")
    leaks: list[Leak] = []
    if mode == "constant":
        inside = np.ones(shape[1:])
        mask = np.pad(
            inside[
                tuple(slice(max(0, -b), d - max(0, -e)) for b, e, d in zip(*amounts[:, 1:], shape[1:], strict=True))
            ],
            [(max(0, b), max(0, e)) for b, e in zip(*amounts[:, 1:], strict=True)],
        )
        if not mask.all():
            r, leak = xp.keep(r, xp.constant(mask[None]))
            leaks.append(leak)
        return Flow({0: xp.pad(r, [-int(b) for b in amounts[0]], [-int(e) for e in amounts[1]])}, tuple(leaks))
    for axis, (begin, end) in enumerate(zip(*amounts, strict=True)):
        if begin or end:
            source = np.pad(np.arange(shape[axis]), (int(begin), int(end)), mode=mode)
            r = xp.scatter_add(r, source, axis, shape[axis])
    return Flow({0: r})


def _amounts(node: Node) -> np.ndarray:
    """[2, rank]: begins and ends."""
    layer, rank = node.layer, len(node.in_shape())
    pads = layer.attributes["pads"] if layer.version < 11 else layer.constants[1]
    amounts = np.asarray(pads, np.int64).reshape(2, -1)
    if layer.version >= 18 and layer.given(3):
        full = np.zeros((2, rank), np.int64)
        full[:, [int(a) % rank for a in layer.constants[3].ravel()]] = amounts
        return full
    return amounts
