"""Max and Min with a number: a Clip, as other exporters write it.

    Min(Max(x, 0), 6) = Clip(x, 0, 6)

JAX's converter writes a ReLU6 so. Between two tensors relevance goes to the one that wins; a bound is no tensor, and a
Clip hands relevance on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs

# Where a Clip has its bounds.
LOW, HIGH = 1, 2


def fold_bounds(graph: LayerGraph) -> PassResult:
    """Replace each such Max and Min by a Clip, and two Clips in a row by one."""
    layers = [_clip(layer, graph) for layer in graph.layers]
    modified = any(new is not old for new, old in zip(layers, graph.layers, strict=True))
    if not modified:
        return PassResult(graph, False)
    result = fuse_pairs(replace(graph, layers=tuple(layers)), _both_bounds, _fuse)
    return PassResult(result.graph, True, result.refused)


def _clip(layer: Layer, graph: LayerGraph) -> Layer:
    if layer.op not in ("Max", "Min") or len(layer.inputs) != 2 or len(layer.operands) != 1:
        return layer
    (x,) = layer.operands
    bound = layer.constant(1 - x)
    shape = graph.tensor(layer.inputs[x]).shape
    if bound is None or bound.size != 1 or bound.ndim > (0 if shape is None else len(shape)):  # it would spread x
        return layer
    position = LOW if layer.op == "Max" else HIGH
    names = ["", "", ""]
    names[0], names[position] = layer.inputs[x], layer.inputs[1 - x]
    constants = {position: bound.reshape(())}
    return replace(layer, op="Clip", version=13, inputs=tuple(names), attributes={}, constants=constants)


def _both_bounds(first: Layer, second: Layer) -> bool:
    """A lower bound and then an upper one, or the other way round, that leave room between them."""
    if first.op != "Clip" or second.op != "Clip" or first.version < 11 or second.version < 11:
        return False
    bounds = {**first.constants, **second.constants}
    return len(first.constants) == len(second.constants) == 1 and len(bounds) == 2 and _low(bounds) <= _high(bounds)


def _low(bounds: dict[int, np.ndarray]) -> float:
    return float(bounds[LOW])


def _high(bounds: dict[int, np.ndarray]) -> float:
    return float(bounds[HIGH])


def _fuse(graph: LayerGraph, first: Layer, second: Layer) -> Layer | Refusal:
    names = [first.inputs[0], *(a or b for a, b in zip(first.inputs[1:], second.inputs[1:], strict=True))]
    constants = {**first.constants, **second.constants}
    nodes = (*first.nodes, *second.nodes)
    return replace(first, inputs=tuple(names), outputs=second.outputs, constants=constants, nodes=nodes)
