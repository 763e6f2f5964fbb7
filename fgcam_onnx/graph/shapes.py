"""Concrete shapes: onnx's shape inference with the sizes of the input that is about to run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.load import LoadedModel

__all__ = ["concrete_shapes", "infer", "typed_probe"]

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
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in plain.graph.value_info}
    for name, dims in sizes.items():
        if math.prod(d for d in dims if d > 0) > MOST_ELEMENTS:
            raise ModelError(
                f"tensor {name!r} would have {math.prod(d for d in dims if d > 0):,} elements",
                known=f"shape {dims}",
                next="no machine can run this model: export it again, or do not trust this file",
            )
    if any(len(dims) == 1 and dims[0] > LONGEST_SHAPE for dims in sizes.values()):
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
