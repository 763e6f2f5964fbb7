"""Concrete shapes: onnx's shape inference with the sizes of the input that is about to run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.layer import SATURATE, LayerGraph, Shape
from fgcam_onnx.graph.load import LoadedModel

__all__ = ["concrete_shapes", "infer", "typed_probe", "view_shapes"]

# Nothing that runs has a tensor of more elements.
MOST_ELEMENTS = 1 << 34
# onnx follows the values of one-axis tensors, element by element: only those that can be shapes.
LONGEST_SHAPE = 1 << 16


def typed_probe(model: LoadedModel) -> onnx.ModelProto:
    """A copy of the model in which the held-back weights are typed inputs: what checker and inference can read."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model.proto)
    del probe.graph.initializer[:]
    probe.graph.initializer.extend(t for t in model.proto.graph.initializer if t.name not in model.weights)
    known = {value.name for value in probe.graph.input}
    for tensor in model.proto.graph.initializer:
        if tensor.name in model.weights and tensor.name not in known:
            probe.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return probe


def infer(probe: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every shape that onnx can infer.

    Raises:
        ModelError: a tensor is larger than any memory.
    """
    plain = shape_inference.infer_shapes(probe)
    values = (*plain.graph.input, *plain.graph.value_info)
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    for name, dims in sizes.items():
        if math.prod(d for d in dims if d > 0) > MOST_ELEMENTS:
            raise ModelError(
                f"tensor {name!r} would have {math.prod(d for d in dims if d > 0):,} elements",
                known=f"shape {dims}",
                next="no machine can run this model: export it again, or do not trust this file",
            )
    if any(len(sizes[v.name]) == 1 and sizes[v.name][0] > LONGEST_SHAPE for v in plain.graph.value_info):
        return plain
    return shape_inference.infer_shapes(probe, data_prop=True)


def concrete_shapes(model: LoadedModel, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, given the inputs' shapes; tensors whose shape cannot be inferred are left out."""
    probe = typed_probe(model)
    del probe.graph.value_info[:]  # what the exporter wrote may name dimensions, or be wrong for this size
    for value in probe.graph.input:
        if value.name in inputs:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, list(inputs[value.name])))
    for value in probe.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        probe = infer(probe)
    except ModelError:
        raise
    except Exception:  # what inference cannot do is read off the forward pass
        return dict(inputs)
    found = dict(inputs)
    for value in (*probe.graph.value_info, *probe.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return found


def view_shapes(graph: LayerGraph, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the view's own tensors, inferred on its canonical layers.

    For models with operators whose shapes onnx does not know (com.microsoft's) and that the view has decoded.
    """
    nodes, small = [], []
    typed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()]
    for layer in graph.layers:
        names = list(layer.inputs)
        for position, value in layer.constants.items():
            names[position] = f"{layer.name}/constant {position}"
            if value.dtype.kind in "fiu" and value.size <= 64:
                small.append(numpy_helper.from_array(np.ascontiguousarray(value), names[position]))
            else:
                typed.append(helper.make_tensor_value_info(names[position], TensorProto.FLOAT, value.shape))
        domain, _, op = layer.op.rpartition("::")
        given = {k: v for k, v in layer.attributes.items() if v is not None and not (isinstance(v, list) and not v)}
        if layer.op == SATURATE:
            domain, op, given = "", "Identity", {}
        nodes.append(helper.make_node(op, names, list(layer.outputs), layer.name, domain=domain, **given))
    output = onnx.ValueInfoProto(name=graph.logits)
    twin = helper.make_model(
        helper.make_graph(nodes, "view", typed, [output], small),
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    try:
        twin = infer(twin)
    except ModelError:
        raise
    except Exception:  # as in concrete_shapes
        return dict(inputs)
    found: dict[str, Shape] = dict(inputs)
    for entry in (*twin.graph.value_info, *twin.graph.output):
        kind = entry.type.tensor_type
        if kind.HasField("shape"):
            found[entry.name] = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
            )
    return found
