"""Gates: which operand of a Mul says only *how much* (methods 3.2).

An operand is a gate if it (b) comes from Sigmoid, HardSigmoid, Tanh, Softmax, Erf or a Clip to a finite interval, up to
a constant Add, Mul or Div; or (c) is 1 x 1 in space where the other is not. This covers squeeze-and-excitation and
the exported forms of SiLU, HardSwish and GELU. (A constant operand, (a), is no activation to begin with.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fgcam_onnx.graph.layer import Layer, Tensor

__all__ = ["find_gates"]

BOUNDED = {"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "Erf"}
LARGE = 1e30
AFFINE = {"Add", "Sub", "Mul", "Div", "Identity", "Cast", "Reshape", "Unsqueeze", "Expand", "Transpose", "Squeeze"}


def find_gates(layers: tuple[Layer, ...], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """For each Mul of two activations with exactly one gate: the gate's position, by layer name."""
    producers = {name: layer for layer in layers for name in layer.outputs}
    gates: dict[str, int] = {}
    for layer in layers:
        if layer.op != "Mul" or len(layer.operands) != 2:
            continue
        a, b = layer.inputs
        bounded = [_is_bounded(a, producers), _is_bounded(b, producers)]
        pooled = [_is_pooled(tensors.get(a), tensors.get(b)), _is_pooled(tensors.get(b), tensors.get(a))]
        # Where both are bounded, being 1 x 1 in space decides.
        evidence = pooled if pooled[0] != pooled[1] else bounded
        if evidence[0] != evidence[1]:
            gates[layer.name] = evidence.index(True)
    return gates


def _is_bounded(name: str, producers: Mapping[str, Layer]) -> bool:
    while (layer := producers.get(name)) is not None:
        if layer.op in BOUNDED:
            return True
        if layer.op == "Clip":
            # Before opset 11 the default bounds are the largest floats: no interval either.
            return all(abs(bound) < LARGE for bound in _bounds(layer))
        if layer.op not in AFFINE or len(layer.operands) != 1:
            return False
        name = layer.inputs[layer.operands[0]]
    return False


def _bounds(layer: Layer) -> tuple[float, float]:
    if layer.version < 11:
        return float(layer.attributes.get("min", -math.inf)), float(layer.attributes.get("max", math.inf))
    low, high = layer.constant(1), layer.constant(2)
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _is_pooled(one: Tensor | None, other: Tensor | None) -> bool:
    """Is ``one`` 1 x 1 in space where ``other`` is not?"""
    if one is None or other is None or one.shape is None or other.shape is None:
        return False
    if len(one.shape) != len(other.shape) or len(one.shape) < 3:
        return False
    layout = one.layout or other.layout
    axes = [i for i, axis in enumerate(layout) if axis not in "NC"] if layout else list(range(2, len(one.shape)))
    return all(one.shape[i] == 1 for i in axes) and not all(other.shape[i] == 1 for i in axes)
