"""bfloat16 models where the runtime has no bfloat16 kernels.

    y = op(x, w)   in bfloat16      ->      y = round(op(x, w)) in float32, rounded to bfloat16 and held in float32

onnxruntime's CPU provider loads such a model and cannot run it, while for float16 it adds casts of its own. The same is
done here: an operator computes in float32, on weights and operands that are bfloat16 numbers, and its result is
rounded to one, as hardware does that adds in float32. Nothing else of the model changes, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.load import LoadedModel, damaged, light_model
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs
from fgcam_onnx.graph.shapes import infer, typed_probe

__all__ = ["fold_rounding", "with_bfloat16_rounded"]

NOTE = (
    "the model computes in bfloat16, for which onnxruntime has no kernels here: each operator is computed in float32 "
    "and its result rounded to bfloat16"
)
BEFORE, ROUNDED = " before rounding", " as bfloat16"
# What gives out numbers that it read: rounding them again changes nothing.
MOVES = {"Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "GlobalMaxPool"}
MOVES |= {"Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
MOVES |= {"Constant", "Max", "Min", "Clip", "Where", "Neg", "Abs"}


def with_bfloat16_rounded(model: LoadedModel) -> tuple[LoadedModel, tuple[str, ...]]:
    """``model`` in float32 with every result rounded to bfloat16, and what to say of that.

    The model itself and nothing where it has no bfloat16 tensor.

    Raises:
        ModelError: the file is damaged.
    """
    with damaged(str(model.path or "the given model")):
        kinds = _kinds(model)
        if TensorProto.BFLOAT16 not in kinds.values():
            return model, ()
        rounded = _rounded(model, {name for name, kind in kinds.items() if kind == TensorProto.BFLOAT16})
        return rounded, (NOTE, *_mixtures(model, kinds))


def _kinds(model: LoadedModel) -> dict[str, int]:
    """The element type of each tensor, as far as onnx infers it."""
    kinds = {tensor.name: tensor.data_type for tensor in model.proto.graph.initializer}
    stated = [*model.proto.graph.input, *model.proto.graph.output, *model.proto.graph.value_info]
    casts = any(a.i == TensorProto.BFLOAT16 for n in model.proto.graph.node for a in n.attribute if a.name == "to")
    held = {*kinds.values(), *(value.type.tensor_type.elem_type for value in stated)}
    if TensorProto.BFLOAT16 not in held and not casts:
        return kinds
    graph = infer(typed_probe(model), model.weights).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    return kinds


def _mixtures(model: LoadedModel, kinds: Mapping[str, int]) -> list[str]:
    """A sentence where an operator has operands of two types that ONNX wants to be one: no runtime has to take that.

    PyTorch's exporter folds a BatchNormalization of a bfloat16 model into a float32 bias.
    """
    opsets = {opset.domain: opset.version for opset in model.proto.opset_import}
    mixed: list[str] = []
    for node in model.proto.graph.node:
        try:
            schema = defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        except defs.SchemaError:
            continue
        found: dict[str, int] = {}
        for i, name in enumerate(node.input):
            formal = schema.inputs[min(i, len(schema.inputs) - 1)].type_str
            kind = kinds.get(name, 0)
            if kind and TensorProto.BFLOAT16 in (kind, found.setdefault(formal, kind)) and kind != found[formal]:
                types = " and ".join(TensorProto.DataType.Name(each).lower() for each in (found[formal], kind))
                mixed.append(f"{node.op_type} {node.name!r} has operands of {types}")
                break
    if not mixed:
        return []
    more = f", and {len(mixed) - 1} nodes more are so" if len(mixed) > 1 else ""
    return [f"{mixed[0]}{more}: ONNX does not allow that, and each number is taken as it is stored"]


def _rounded(model: LoadedModel, narrow: set[str]) -> LoadedModel:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    weights = dict(model.weights)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(_widened(tensor))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    names: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:  # a picture is rounded as it comes in
        if value.name in narrow and value.name not in weights:
            names[value.name] = f"{value.name}{ROUNDED}, in float32"
            nodes += _rounding(value.name, names[value.name])
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        casts = node.op_type == "Cast"
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(_widened(attribute.t))
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in MOVES and not casts:
            continue
        for i, name in enumerate(node.output):
            if name in narrow:
                node.output[i] = name + BEFORE
                nodes += _rounding(node.output[i], name)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return replace(model, proto=light_model(proto, weights), weights=weights)


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    middle = f"{target}{ROUNDED}"
    return [
        helper.make_node("Cast", [source], [middle], name=f"{target} rounded", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [middle], [target], name=f"{target} in float32", to=TensorProto.FLOAT),
    ]


def _widened(tensor: TensorProto) -> TensorProto:
    """The same numbers in float32."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def fold_rounding(graph: LayerGraph) -> PassResult:
    """An operator and the rounding of its result are one layer of the view."""

    def matches(first: Layer, second: Layer) -> bool:
        source, target = second.inputs[0], second.outputs[0]
        ours = (
            source == target.removesuffix(ROUNDED) + BEFORE if target.endswith(ROUNDED) else source == target + ROUNDED
        )
        return second.op == "Cast" and ours and len(first.outputs) == 1

    def fuse(graph: LayerGraph, first: Layer, second: Layer) -> Layer | Refusal:
        return replace(first, outputs=second.outputs)

    return fuse_pairs(graph, matches, fuse)
