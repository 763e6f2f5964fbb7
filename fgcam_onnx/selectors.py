"""Selectors: which layers a rule is meant for.

    Conv                 an operator type
    conv, dense, pool    convolutions; fully connected layers; the linear maps without learned weights
    first, last          the layers that read the picture; the learned layers that give the logits
    node:layer4.*        node names, as in a shell: * ? [abc]
    before:TENSOR        layers on the picture's side of a tensor, ``after:TENSOR`` on the side of the logits
    conv & after:relu3   all of several

A layer *before* a tensor is one that the tensor depends on; one *after* it depends on the tensor.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from fgcam_onnx import registry
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.graph.layer import Layer, LayerGraph

__all__ = ["GROUPS", "matches", "number_matched"]

CONV, DENSE = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")
GROUPS = ("conv", "dense", "pool", "first", "last")


def matches(selector: str, layer: Layer, graph: LayerGraph) -> bool:
    """Is ``layer`` one of those that ``selector`` means?"""
    return all(_matches(part.strip(), layer, graph) for part in selector.split("&"))


def number_matched(selector: str, graph: LayerGraph) -> int:
    """How many layers of the graph it means.

    Raises:
        OptionError: it means none, so that a misspelt one cannot go unnoticed.
    """
    found = sum(matches(selector, layer, graph) for layer in graph.layers)
    if found:
        return found
    ops = sorted({layer.op for layer in graph.layers})
    for part in (part.strip() for part in selector.split("&")):
        kind, _, name = part.partition(":")
        if kind in ("before", "after") and name not in graph.tensors:
            raise OptionError(
                f"rule selector {selector!r}: the model has no tensor {name!r}",
                next=nearest(name, graph.tensors) or "fgcam inspect lists them",
            )
        if kind == "node" and name:
            continue
        if kind not in ("before", "after") and part not in (*GROUPS, *ops):
            raise OptionError(
                f"rule selector {selector!r} matches no layer of this model",
                known=f"its operators are {', '.join(ops)}; groups are {', '.join(GROUPS)}; also node:PATTERN, "
                "before:TENSOR, after:TENSOR",
                next=nearest(part, (*ops, *GROUPS)) or None,
            )
    raise OptionError(f"rule selector {selector!r} matches no layer of this model", next="fgcam inspect lists them")


def _matches(part: str, layer: Layer, graph: LayerGraph) -> bool:
    kind, colon, name = part.partition(":")
    if colon and kind == "node":
        return any(fnmatchcase(node, name) for node in (layer.name, *layer.nodes))
    if colon and kind == "before":
        return layer.output in graph.ancestors(name)
    if colon and kind == "after":
        return any(layer.inputs[i] in graph.descendants(name) for i in layer.operands)
    if part == "conv":
        return layer.op in CONV
    if part == "dense":
        return layer.op in DENSE
    if part == "pool":
        return layer.op not in (*CONV, *DENSE) and registry.find_linear(layer.op) is not None
    if part == "first":
        return _is_linear(layer) and graph.tensor(layer.inputs[0]).from_image
    if part == "last":
        return _is_learned(layer) and _nothing_learned_behind(layer, graph)
    return part == layer.op


def _is_linear(layer: Layer) -> bool:
    return bool(layer.operands) and layer.operands[0] == 0 and registry.find_linear(layer.op) is not None


def _is_learned(layer: Layer) -> bool:
    return layer.op in (*CONV, *DENSE)


def _nothing_learned_behind(layer: Layer, graph: LayerGraph) -> bool:
    behind = graph.descendants(layer.output)
    if graph.logits not in behind:
        return False
    on_way = behind & graph.ancestors(graph.logits)
    producers = (graph.producer(name) for name in on_way - {layer.output})
    return not any(other is not None and _is_learned(other) for other in producers)
