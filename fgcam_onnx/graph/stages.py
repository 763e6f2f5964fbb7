"""Stages: the tensors where a map can be asked for by default, and L, where the base CAM works (methods 2.2).

A *cut* is a tensor that every way from the image to the logits passes. L is the last spatial cut with a layer of
learned weights behind it, taken before any average pooling of the head. For a dense output, whose logits are themselves
a picture, that could be a decoder's last tensor; there L is the smallest such cut, of several the last that is no bare
sum of a convolution: where the backbone ends and the way up begins. The other stages are, for each spatial size, the
last cut before the network gets smaller; where a pooling layer does that, its output (the paper's choice).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.layer import Layer, LayerGraph, Shape

__all__ = ["Stage", "find_stages", "is_cut"]

QUANTISED = {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "com.microsoft::QLinearConv"}
LEARNED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
POOLS = {"MaxPool", "AveragePool", "LpPool"}
MOVES = {"Identity", "Transpose", "Cast", "Dropout"}


@dataclass(frozen=True)
class Stage:
    """A tensor that ``layer=`` accepts. ``scale``: its height relative to the image's, nan if unknown.

    ``default`` marks L.
    """

    name: str
    node: str
    shape: Shape
    scale: float
    default: bool = False


Shapes = Mapping[str, tuple[int, ...]]


def find_stages(graph: LayerGraph, *, dense: bool = False, shapes: Shapes | None = None) -> tuple[Stage, ...]:
    """Stages from the image to L.

    ``dense``: the logits are more than one score a class. ``shapes``: of the tensors for some size of the image, where
    the file leaves sizes free.

    Raises:
        ModelError: there is no spatial tensor with learned weights behind it: not a CNN classifier.
    """
    cuts = _spatial_cuts(graph)
    last = _find_l(graph, cuts, dense, shapes or {})
    cuts = cuts[: cuts.index(last) + 1]
    chosen = [graph.image]
    for name, following in itertools.pairwise(cuts):
        if _area(graph, following) == _area(graph, name):
            continue
        producer = graph.producer(following)
        pooled = producer is not None and producer.op in POOLS
        if pooled or not graph.tensor(name).from_image:  # the picture again, turned or quantised
            chosen.append(following if pooled else name)
    chosen.append(last)
    return tuple(_stage(graph, name, name == last) for name in dict.fromkeys(chosen))


def _stage(graph: LayerGraph, name: str, default: bool) -> Stage:
    tensor, image = graph.tensor(name), graph.tensor(graph.image)
    producer = graph.producer(name)
    own, whole = (t.spatial[0] if t.spatial else None for t in (tensor, image))
    scale = own / whole if isinstance(own, int) and isinstance(whole, int) and whole else float("nan")
    return Stage(name, producer.name if producer else name, tensor.shape or (), scale, default)


def _area(graph: LayerGraph, name: str) -> tuple[int | str | None, ...]:
    return graph.tensor(name).spatial


def _is_spatial(graph: LayerGraph, name: str) -> bool:
    """Has it cells beside one another, with the axes that the picture has?

    A tensor with fewer axes may look spatial: torch writes a group norm as InstanceNormalization of [n, groups, -1].
    """
    tensor, image = graph.tensor(name), graph.tensor(graph.image)
    if tensor.shape is not None and image.shape is not None and len(tensor.shape) != len(image.shape):
        return False
    return bool(tensor.spatial) and any(size != 1 for size in tensor.spatial)


def _spatial_cuts(graph: LayerGraph) -> list[str]:
    """Spatial tensors that every path from the image to the logits passes, in order.

    One sweep: after each layer, the tensors "alive" are those computed from the image that something later still
    reads. When a single one is alive, it is a cut.
    """
    on_path = graph.ancestors(graph.logits) & graph.descendants(graph.image)
    layers = [layer for layer in graph.layers if any(o in on_path for o in layer.outputs)]
    last_read: dict[str, int] = {graph.logits: len(layers)}
    for position, layer in enumerate(layers):
        for i in layer.operands:
            if layer.inputs[i] in on_path:
                last_read[layer.inputs[i]] = max(position, last_read.get(layer.inputs[i], -1))
    cuts: list[str] = []
    alive = {graph.image}
    computed: list[Layer | None] = [None, *layers]
    for position, done in enumerate(computed):  # position of the *next* layer
        if done is not None:
            alive |= {o for o in done.outputs if o in on_path}
            alive = {name for name in alive if last_read.get(name, -1) >= position}
        if len(alive) == 1 and (name := next(iter(alive))) not in cuts and _is_spatial(graph, name):
            cuts.append(name)
    return cuts


def is_cut(graph: LayerGraph, name: str) -> bool:
    """Does every way from the image to the logits pass this tensor?"""
    seen, stack = {graph.image, name}, [graph.image]
    while stack:
        if (at := stack.pop()) == graph.logits:
            return False
        for layer in graph.consumers(at) if at != name else ():
            stack += [o for o in layer.outputs if o and o not in seen]
            seen.update(layer.outputs)
    return True


def _find_l(graph: LayerGraph, cuts: list[str], dense: bool, shapes: Shapes) -> str:
    convolutions = [layer for layer in graph.layers if layer.op in ("Conv", "ConvTranspose")]
    if not convolutions:
        ops = sorted({layer.op for layer in graph.layers})
        quantised = [layer for layer in graph.layers if layer.op in QUANTISED]
        if quantised:
            raise ModelError(
                f"the model is quantised: {len(quantised)} of its layers compute in int8 ({quantised[0].op})",
                at=f"first at node {quantised[0].name!r}",
                known=next((r.reason for r in graph.refusals if r.node == quantised[0].name), None)
                or "the descent walks float layers, and this one could not be read as one",
                next="explain the float model that this one was made from",
            )
        raise ModelError(
            "the model has no convolution: there is no spatial evidence to map",
            known=f"its operators are {', '.join(ops[:12])}{' ...' if len(ops) > 12 else ''}",
            next="fgcam_onnx explains convolutional networks; give the model of one",
        )
    # What has learned weights behind it has them behind every earlier cut too.
    last = next((i for i in reversed(range(len(cuts))) if _has_learned_behind(graph, cuts[i])), -1)
    usable = [name for name in cuts[: last + 1] if name != graph.image]
    if usable and dense:
        cells = {name: _cells(graph, name, shapes) for name in usable}
        smallest = [name for name in usable if cells[name] == min(cells.values())]
        return next((name for name in reversed(smallest) if not _is_bare_sum(graph, name)), smallest[-1])
    if usable:
        return _before_pooling(graph, usable[-1])
    raise ModelError(
        "no layer to start from: no spatial tensor that all evidence passes has learned weights behind it",
        at=f"logits {graph.logits!r}",
        known=_candidates(graph, shapes),
        next="name one yourself: explain(x, start='tensor name'); the map then shows the evidence through it alone",
    )


def _is_bare_sum(graph: LayerGraph, name: str) -> bool:
    """Does a convolution's output come here without an activation? Often those are the classes, before they grow."""
    layer = graph.producer(name)
    while layer is not None and layer.op in MOVES and 0 in layer.operands:
        layer = graph.producer(layer.inputs[0])
    return layer is not None and layer.op in LEARNED and 1 in layer.constants


def _candidates(graph: LayerGraph, shapes: Shapes) -> str:
    """The spatial tensors that could be named, the smallest first."""
    on_path = graph.ancestors(graph.logits) & graph.descendants(graph.image)
    found = [o for layer in graph.layers for o in layer.outputs if o in on_path and _is_spatial(graph, o)]
    found = [name for name in found if _has_learned_behind(graph, name)]
    sizes: dict[float, list[str]] = {}
    for name in found:
        sizes.setdefault(_cells(graph, name, shapes), []).append(name)
    last = [name for _, names in sorted(sizes.items()) for name in reversed(names[-2:])]
    if last:
        named = (f"{name} [{', '.join(map(str, graph.tensor(name).shape or ()))}]" for name in last[:6])
        return f"part of the evidence passes {', '.join(named)}"
    return "the scores come out of the last convolution alone, or a tensor's shape is unknown"


def _cells(graph: LayerGraph, name: str, shapes: Shapes) -> float:
    """How many places the tensor has, inf if unknown."""
    tensor = graph.tensor(name)
    shape = shapes.get(name, tensor.shape)
    if tensor.layout is None or shape is None or len(shape) != len(tensor.layout):
        return math.inf
    sizes = [size for size, axis in zip(shape, tensor.layout, strict=True) if axis not in "NC"]
    return math.prod(size if isinstance(size, int) else math.inf for size in sizes)


def _has_learned_behind(graph: LayerGraph, name: str) -> bool:
    behind = (graph.descendants(name) & graph.ancestors(graph.logits)) - {name}
    return any(_learned(layer, behind) for layer in graph.layers)


def _learned(layer: Layer, tensors: set[str]) -> bool:
    return layer.op in LEARNED and layer.output in tensors and 1 in layer.constants


def _before_pooling(graph: LayerGraph, name: str) -> str:
    while (producer := graph.producer(name)) is not None:
        if producer.op != "AveragePool" or not _only_pooling_between(graph, producer):
            break
        name = producer.inputs[0]
    return name


def _only_pooling_between(graph: LayerGraph, pool: Layer) -> bool:
    """Is ``pool`` part of the head, that is, does no convolution with a kernel read beyond it?"""
    behind = graph.descendants(pool.output)
    return not any(
        layer.op in ("Conv", "ConvTranspose")
        and layer.output in behind
        and (weight := layer.constant(1)) is not None
        and max(weight.shape[2:]) > 1
        for layer in graph.layers
    )
