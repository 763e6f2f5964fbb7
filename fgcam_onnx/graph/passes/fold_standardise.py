"""A normalisation written out in elementary operators: one layer.

    m = ReduceMean(x)   d = x - m   v = ReduceMean(d d)   y = d / sqrt(v + epsilon)
                                    v = ReduceMean(x x)   y = x / sqrt(v + epsilon)      without a mean

Exporters write LayerNormalization so before opset 17, RMSNormalization before 23. Left apart, the Sub would share the
relevance of x with its own mean, as an Add shares it between branches; a normalisation hands it on (methods 3.1). The
affine part behind it, a Mul and an Add of constants, needs no folding: it hands relevance on too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fgcam_onnx.graph.layer import STANDARDISE, Layer, LayerGraph
from fgcam_onnx.graph.passes.base import PassResult

# x, and the axes of its mean
Centred = tuple[str, list[int]]


@dataclass(frozen=True)
class _Found:
    """A normalisation of ``x`` over ``axes``; ``parts``: the layers that write it out, first to last."""

    x: str
    axes: list[int]
    epsilon: float
    centred: bool
    parts: tuple[Layer, ...]


def fold_standardise(graph: LayerGraph) -> PassResult:
    """Fold each (ReduceMean, Sub,) square, ReduceMean, Add, root and division into one layer."""
    found = {layer.name: match for layer in graph.layers if (match := _find(graph, layer)) is not None}
    if not found:
        return PassResult(graph, False)
    parts = {part.name for match in found.values() for part in match.parts}
    replaced = set(found)
    for layer in reversed(graph.layers):  # a part goes if all that read it go
        seen = any(name in graph.outputs or name == graph.logits for name in layer.outputs)
        readers = [reader.name for name in layer.outputs for reader in graph.consumers(name)]
        if layer.name in parts and not seen and all(reader in replaced for reader in readers):
            replaced.add(layer.name)
    layers = [
        _folded(layer, found[layer.name]) if layer.name in found else layer
        for layer in graph.layers
        if layer.name in found or layer.name not in replaced
    ]
    return PassResult(replace(graph, layers=tuple(layers)), True)


def _folded(last: Layer, found: _Found) -> Layer:
    return Layer(
        name=last.name,
        op=STANDARDISE,
        version=1,
        inputs=(found.x,),
        outputs=last.outputs,
        attributes={"axes": found.axes, "epsilon": found.epsilon, "centred": int(found.centred)},
        nodes=(*last.nodes, *(node for part in found.parts for node in part.nodes)),
    )


def _find(graph: LayerGraph, last: Layer) -> _Found | None:
    """The normalisation that ``last`` ends, None if it ends no such thing."""
    value, tail = _quotient(graph, last)
    shifted = _before(graph, tail[0], tail[0].op) if tail else None
    variance = _before(graph, shifted, "Add")
    square = _before(graph, variance, "ReduceMean")
    if shifted is None or variance is None or square is None:
        return None
    epsilon, axes, squared = _epsilon(shifted), _axes(variance), _squared(square)
    if epsilon is None or axes is None:
        return None
    over, under = _centred(graph, value), _centred(graph, squared)
    parts = [square, variance, shifted, *tail]
    if over is None:  # what is divided must be what is squared
        return _Found(value, axes, epsilon, False, _known(parts)) if value == squared else None
    if over != under or over[1] != axes:
        return None
    subs = _known([graph.producer(name) for name in dict.fromkeys((value, squared))])
    means = [graph.producer(sub.inputs[1]) for sub in subs]
    return _Found(over[0], axes, epsilon, True, _known([*means, *subs, *parts]))


def _known(layers: Sequence[Layer | None]) -> tuple[Layer, ...]:
    return tuple({layer.name: layer for layer in layers if layer is not None}.values())


def _quotient(graph: LayerGraph, last: Layer) -> tuple[str, list[Layer]]:
    """value / root(...), also written value * 1 / root(...): the value, and the layers of the root, first to last."""
    if last.operands == (0, 1) and last.op == "Div":
        root = graph.producer(last.inputs[1])
        return last.inputs[0], [root] if root is not None and _power(root) == 0.5 else []
    if last.operands == (0, 1) and last.op == "Mul":
        for value, factor in (last.inputs, last.inputs[::-1]):
            inverse = graph.producer(factor)
            root = _before(graph, inverse, "Reciprocal")
            if inverse is not None and root is not None and _power(root) == 0.5:
                return value, [root, inverse]
            if inverse is not None and _power(inverse) == -0.5:
                return value, [inverse]
    return "", []


def _power(layer: Layer) -> float | None:
    """The exponent of a Sqrt or Pow."""
    if layer.op == "Sqrt":
        return 0.5
    exponent = layer.constant(1) if layer.op == "Pow" else None
    return float(exponent.ravel()[0]) if exponent is not None and exponent.size == 1 else None


def _before(graph: LayerGraph, layer: Layer | None, op: str) -> Layer | None:
    """The producer of the one activation that ``layer`` reads, if ``layer`` is an ``op``."""
    if layer is None or layer.op != op or len(layer.operands) != 1:
        return None
    return graph.producer(layer.inputs[layer.operands[0]])


def _centred(graph: LayerGraph, tensor: str) -> Centred | None:
    """x and the axes, where ``tensor`` is x - mean(x)."""
    sub = graph.producer(tensor)
    if sub is None or sub.op != "Sub" or sub.operands != (0, 1):
        return None
    mean = graph.producer(sub.inputs[1])
    axes = _axes(mean)
    return None if mean is None or axes is None or mean.inputs[0] != sub.inputs[0] else (sub.inputs[0], axes)


def _axes(mean: Layer | None) -> list[int] | None:
    """The axes of a ReduceMean that keeps them."""
    if mean is None or mean.op != "ReduceMean" or not mean.attributes.get("keepdims", 1):
        return None
    operand = mean.constant(1)
    axes = mean.attributes.get("axes") if operand is None else operand.ravel().tolist()
    return [int(a) for a in axes] if axes else None


def _squared(square: Layer) -> str:
    """The tensor whose square this layer computes, "" if it computes something else."""
    if square.op == "Pow":
        return square.inputs[0] if _power(square) == 2 else ""
    return square.inputs[0] if square.op == "Mul" and square.inputs[0] == square.inputs[1] else ""


def _epsilon(add: Layer) -> float | None:
    """The number that an Add adds."""
    value = next(iter(add.constants.values()), None) if add.op == "Add" else None
    return float(value.ravel()[0]) if value is not None and value.size == 1 else None
