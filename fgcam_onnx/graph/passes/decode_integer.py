"""ConvInteger and MatMulInteger: int32 sums that the graph itself scales.

    DynamicQuantizeLinear(x) -> q, s, z
    y = Cast(ConvInteger(q, w, z, w_zero)) (s w_scale)   =   Conv((q - z) s, (w - w_zero) w_scale)

The sum alone is in no unit: its scale stands in what follows, and is followed here through Cast, Mul, Add of a constant
and DequantizeLinear until it holds the scale of the activations. What is left is a Conv or MatMul of decoded
activations, and the layers that computed scales are no part of the view any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal, Tensor
from fgcam_onnx.graph.passes.base import PassResult, refuse
from fgcam_onnx.graph.quantisation import KeepError, constant, decoded, note, note_computed, pair

__all__ = ["decode_integer"]

SUMS = {"ConvInteger": ("Conv", 11), "MatMulInteger": ("MatMul", 13)}
SCALED_SUM = "com.microsoft::MatMulIntegerToFloat"


@dataclass(frozen=True)
class Factor:
    """A constant, times the scale tensor ``computed`` if it is not None."""

    value: np.ndarray
    computed: str | None = None


@dataclass(frozen=True)
class Scaled:
    """``layers`` turn an int32 sum into ``factor`` sum + ``bias``."""

    layers: tuple[Layer, ...]
    factor: np.ndarray
    bias: np.ndarray | None


def decode_integer(graph: LayerGraph) -> PassResult:
    """Replace each integer sum, with what scales it, by the float layer that it stands for."""
    tensors = dict(graph.tensors)
    replaced: dict[str, Layer | None] = {}
    refused: list[Refusal] = []
    for layer in graph.layers:
        try:
            if layer.op in SUMS:
                replaced.update(_sum(layer, graph))
            elif layer.op == SCALED_SUM:
                replaced[layer.name] = _scaled_sum(layer, tensors)
        except KeepError as reason:
            refused.append(refuse(layer, str(reason)))
    if not replaced:
        return PassResult(graph, False, tuple(refused))
    layers = [new for layer in graph.layers if (new := replaced.get(layer.name, layer)) is not None]
    return PassResult(replace(graph, layers=_without_scales(layers, graph), tensors=tensors), True, tuple(refused))


def _sum(layer: Layer, graph: LayerGraph) -> dict[str, Layer | None]:
    """What the sum's layer and those that scale it become."""
    x = graph.tensor(layer.inputs[0])
    if x.scale is None:
        raise KeepError(f"the scale of its operand {layer.inputs[0]!r} is not known")
    _check_zero_point(layer, x)
    op, version = SUMS[layer.op]
    found = _scaling(layer, graph, x)
    weight = _weight(layer, op)
    step = 1.0 if isinstance(x.scale, str) else x.scale
    column = [-1, *[1] * (weight.ndim - 1)] if op == "Conv" else [-1]
    # The factor is for each output channel, or one for all.
    weight = (weight * (_channels(found.factor, layer) / step).reshape(column)).astype(np.float32)
    inputs, constants = [layer.inputs[0], layer.inputs[1]], {1: weight}
    last = found.layers[-1] if found.layers else layer
    if found.bias is not None:
        inputs.append(f"{layer.name} bias")
        constants[2] = _channels(found.bias, layer).astype(np.float32)
        if op == "Conv":
            constants[2] = np.broadcast_to(constants[2], weight.shape[:1]).copy()
        else:
            raise KeepError("a constant is added before the sum is scaled")
    nodes = (*layer.nodes, *(name for each in found.layers for name in each.nodes))
    new = replace(
        layer, op=op, version=version, inputs=tuple(inputs), outputs=last.outputs, constants=constants, nodes=nodes
    )
    # The layer takes the place of the last one, behind everything that computed its scale.
    return {**{each.name: None for each in (layer, *found.layers)}, last.name: new}


def _scaling(layer: Layer, graph: LayerGraph, x: Tensor) -> Scaled:
    """Follow the sum until its unit is known: through its scale by DequantizeLinear, or a product with it."""
    known = graph.tensor(layer.output)
    if isinstance(known.scale, float) and not known.zero_point:  # a DequantizeLinear reads it, already decoded
        return Scaled((), np.asarray(known.scale), None)
    wanted = x.scale if isinstance(x.scale, str) else None
    passed: list[Layer] = []
    factor, scaled, at = np.ones(()), False, layer.output
    bias: np.ndarray | None = None
    while not scaled:
        readers = graph.consumers(at)
        if len(readers) != 1 or at in graph.outputs or at == graph.logits:
            raise KeepError(f"its sum {at!r} is read by {len(readers)} layers before it is scaled")
        reader = readers[0]
        other = [i for i, name in enumerate(reader.inputs) if name and name != at]
        if reader.op == "Add" and len(other) == 1 and other[0] in reader.constants:
            added = reader.constants[other[0]].astype(np.float64)
            bias = added if bias is None else bias + added
        elif reader.op == "Mul" and len(other) == 1:
            found = _factor(reader, other[0], graph)
            if found.computed is not None and (found.computed != wanted or bias is not None):
                raise KeepError(f"it is scaled by {found.computed!r}, which is not the scale of its operand")
            factor = factor * found.value
            bias = None if bias is None else bias * found.value
            scaled = wanted is None or found.computed is not None
        elif reader.op == "DequantizeLinear" and wanted is None:
            step, point = pair(reader, 1, 2)
            if point.any() or (step.size > 1 and (layer.op, reader.attributes.get("axis", 1)) != ("ConvInteger", 1)):
                raise KeepError(f"{reader.name} reads its sum by a zero point, or by scales along another axis")
            if step.size > 1:
                step = step.reshape(-1, *[1] * (layer.constants[1].ndim - 2))
            factor = factor * step.astype(np.float64)
            bias = None if bias is None else bias * step
            scaled = True
        elif reader.op not in ("Cast", "Identity"):
            raise KeepError(f"its sum {at!r} is read by {reader.op} before it is scaled")
        passed.append(reader)
        at = reader.output
    return Scaled(tuple(passed), factor, bias)


def _factor(layer: Layer, position: int, graph: LayerGraph) -> Factor:
    """An operand as a constant, times one computed scale at most."""
    value = layer.constant(position)
    if value is not None:
        return Factor(value.astype(np.float64))
    name = layer.inputs[position]
    maker = graph.producer(name)
    if name in _computed_scales(graph):
        return Factor(np.ones(()), name)
    if maker is None or maker.op not in ("Mul", "Identity", "Reshape", "Cast"):
        raise KeepError(f"it is scaled by {name!r}, which is no product of scales")
    operands = (0, 1) if maker.op == "Mul" else (0,)
    parts = [_factor(maker, i, graph) for i in operands]
    computed = [part.computed for part in parts if part.computed is not None]
    if len(computed) > 1:
        raise KeepError(f"it is scaled by {name!r}, a product of {len(computed)} computed scales")
    value = parts[0].value if len(parts) == 1 else parts[0].value * parts[1].value
    return Factor(value, computed[0] if computed else None)


def _computed_scales(graph: LayerGraph) -> set[str]:
    return {tensor.scale for tensor in graph.tensors.values() if isinstance(tensor.scale, str)}


def _channels(factor: np.ndarray, layer: Layer) -> np.ndarray:
    """One for all, or one for each output channel: the last axis of a product of matrices, the second of a Conv."""
    if factor.size == 1:
        return factor.reshape(-1)
    axis = -1 if layer.op != "ConvInteger" else 1 - (layer.constants[1].ndim - factor.ndim)
    if not -factor.ndim <= axis < factor.ndim or factor.shape[axis] != factor.size:
        raise KeepError(f"its scale has shape {list(factor.shape)}, and is not one for each output channel")
    return factor.reshape(-1)


def _check_zero_point(layer: Layer, x: Tensor) -> None:
    """The sum is taken from the zero point that the operand was quantised with."""
    stated = layer.constant(2)
    if isinstance(x.zero_point, str):
        same = len(layer.inputs) > 2 and layer.inputs[2] == x.zero_point
    else:
        known = stated is not None or not layer.given(2)
        same = known and bool(np.all(np.asarray(0 if stated is None else stated) == x.zero_point))
    if not same:
        raise KeepError("its zero point is not the one that its operand was quantised with")


def _weight(layer: Layer, op: str) -> np.ndarray:
    """w - zero point, in float64; zero points of several channels run along the output channels."""
    q = constant(layer, 1)
    point = constant(layer, 3) if layer.given(3) else np.zeros((), q.dtype)
    steps = np.ones(point.size, np.float32)
    return decoded(q, (steps, point), axis=0 if op == "Conv" else -1).astype(np.float64)


def _scaled_sum(layer: Layer, tensors: dict[str, Tensor]) -> Layer:
    """A MatMul of integers with its scales as operands, as onnxruntime fuses it: a MatMul, with a bias a Gemm."""
    b = pair(layer, 3, 5)
    if 2 in layer.constants:
        note(tensors, layer.inputs[0], pair(layer, 2, 4))
    elif layer.given(4) and 4 not in layer.constants:
        note_computed(tensors, layer.inputs[0], layer.inputs[2], layer.inputs[4])
    else:
        raise KeepError("its operand has a computed scale and a fixed zero point")
    weight = decoded(constant(layer, 1), b, axis=-1)
    if not layer.given(6):
        return replace(layer, op="MatMul", version=13, inputs=layer.inputs[:2], attributes={}, constants={1: weight})
    inputs = (layer.inputs[0], layer.inputs[1], layer.inputs[6])
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    constants = {1: weight, 2: constant(layer, 6)}
    return replace(layer, op="Gemm", version=13, inputs=inputs, attributes=attributes, constants=constants)


def _without_scales(layers: Iterable[Layer], graph: LayerGraph) -> tuple[Layer, ...]:
    """Without the layers that compute nothing but scales that nobody reads any more."""
    names = _computed_scales(graph) | _computed_zero_points(graph.tensors)
    derived = set(names)
    for layer in graph.layers:
        if layer.operands and all(layer.inputs[i] in derived for i in layer.operands):
            derived.update(layer.outputs)
    derived -= names
    kept: list[Layer] = []
    read = {*graph.outputs, graph.logits}
    for layer in reversed(list(layers)):
        if derived.issuperset(layer.outputs) and not read.intersection(layer.outputs):
            continue
        kept.append(layer)
        read.update(layer.inputs[i] for i in layer.operands)
    return tuple(reversed(kept))


def _computed_zero_points(tensors: Mapping[str, Tensor]) -> set[str]:
    return {tensor.zero_point for tensor in tensors.values() if isinstance(tensor.zero_point, str)}
