"""Concrete shapes: onnx's shape inference with the sizes of the input that is about to run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fgcam_onnx import memory
from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.layer import SATURATE, LayerGraph, Shape
from fgcam_onnx.graph.load import LoadedModel

__all__ = ["concrete_shapes", "infer", "typed_probe", "view_shapes"]

# Nothing that runs has a tensor of more elements.
MOST_ELEMENTS = 1 << 34
# onnx follows the values of one-axis tensors, element by element: only those that can be shapes.
LONGEST_SHAPE = 1 << 16
# The operators through which it follows them, and how often what is found out may let it follow more.
FOLLOWED = ("Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")
MOST_ROUNDS = 8


# Of a memory limit, what the tensors of the model may take together. As much again goes to what is computed of them.
ACTIVATIONS = 0.375
# Steps that pooling may take: cells of its outputs times cells of its window. A second is about 2^30 of them.
MOST_STEPS = 1 << 36
# Where the shape is not known before the run: a window's cells, and these times the places that padding alone makes.
LARGEST_WINDOW = 1 << 16
MOST_PADDED = 1 << 24
POOLS = ("MaxPool", "AveragePool", "LpPool")


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


def infer(probe: onnx.ModelProto, weights: Iterable[str] = ()) -> onnx.ModelProto:
    """The model with every shape that onnx can infer.

    ``weights``: the inputs of the probe that stand for weights.

    Raises:
        ModelError: a tensor is larger than any memory, or a memory limit cannot be kept.
    """
    found = shape_inference.infer_shapes(probe)
    sizes = _check_sizes(found)
    blocked: set[int] | None = None
    for _ in range(MOST_ROUNDS):
        odd = _unsafe_to_follow(probe, sizes)
        if odd == blocked:
            break
        blocked = odd
        found = shape_inference.infer_shapes(_without(probe, odd, found) if odd else probe, data_prop=True)
        sizes = _check_sizes(found)
    _check_windows(found, sizes)
    if memory.limit() is not None:
        _check_constants(found, {*weights, *(t.name for t in probe.graph.initializer)})
    return found


def _unsafe_to_follow(probe: onnx.ModelProto, sizes: Mapping[str, list[int]]) -> set[int]:
    """Positions of the nodes that onnx would follow element by element through tensors not known to be short."""

    def short(name: str) -> bool:
        dims = sizes.get(name)
        return not name or name in held or (dims is not None and (len(dims) != 1 or 0 < dims[0] <= LONGEST_SHAPE))

    held = {tensor.name for tensor in probe.graph.initializer}
    followed = [(i, node) for i, node in enumerate(probe.graph.node) if node.op_type in FOLLOWED]
    return {i for i, node in followed if not all(short(name) for name in (*node.input, *node.output[:1]))}


def _without(probe: onnx.ModelProto, positions: set[int], known: onnx.ModelProto) -> onnx.ModelProto:
    """The probe with some nodes as operators that nobody knows, and what is known of their outputs."""
    twin = onnx.ModelProto()
    twin.CopyFrom(probe)
    for position in positions:
        twin.graph.node[position].domain = "fgcam"
    twin.opset_import.append(helper.make_opsetid("fgcam", 1))
    names = {name for position in positions for name in twin.graph.node[position].output}
    names -= {value.name for value in (*twin.graph.value_info, *twin.graph.output)}
    twin.graph.value_info.extend(value for value in known.graph.value_info if value.name in names)
    return twin


def _check_sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """What is known of each tensor's dimensions; each fits the memory, and all together what a limit leaves them."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    sizes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    most, limited, together = memory.available(), memory.limit() is not None, 0
    inputs = {value.name for value in model.graph.input}
    for value in values:
        dims = sizes.get(value.name, [])
        elements = math.prod(d for d in dims if d > 0)
        size = elements * _item(value.type.tensor_type.elem_type)
        together += size if value.name not in inputs else 0
        if elements > MOST_ELEMENTS or size > most:
            raise ModelError(
                f"tensor {value.name!r} would have {elements:,} elements",
                known=f"shape {dims}; "
                + (f"FGCAM_MEMORY is {most:,} bytes" if limited else f"{most:,} bytes are here"),
                next="export the model again, or do not trust this file",
            )
    if limited and together > most * ACTIVATIONS:
        raise ModelError(
            f"the tensors of the model would have {together:,} bytes",
            known=f"they may take {int(most * ACTIVATIONS):,} of FGCAM_MEMORY={most:,}",
            next="raise FGCAM_MEMORY, give a smaller picture, or do not trust this file",
        )
    return sizes


def _check_constants(model: onnx.ModelProto, constant: set[str]) -> None:
    """Under a memory limit: whatever onnxruntime computes when it makes a session has a known size.

    It folds what depends on constants and on shapes there and then, and no arena bounds that.
    """
    values = (*model.graph.value_info, *model.graph.output)
    known = {v.name for v in values if v.type.tensor_type.HasField("shape")}
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size") or all(name in constant for name in node.input if name):
            constant |= set(node.output)
            lost = [name for name in node.output if name and name not in known]
            if lost:
                raise ModelError(
                    f"nothing tells how large tensor {lost[0]!r} is, a constant that {node.op_type} computes",
                    at=f"node {node.name!r}",
                    known="FGCAM_MEMORY is set, and could not be kept",
                    next="export the model with its constants folded, or do not trust this file",
                )


def _check_windows(model: onnx.ModelProto, sizes: Mapping[str, list[int]]) -> None:
    """No pooling whose window, over all its places, is a day's work: onnxruntime visits each cell of each window."""
    for node in model.graph.node:
        attributes = {a.name: a.ints for a in node.attribute} if node.op_type in POOLS else {}
        window = math.prod(max(1, k) for k in attributes.get("kernel_shape", ()))
        if window == 1:
            continue
        known = [d for d in sizes.get(node.output[0], ()) if d > 0]
        steps = window * math.prod(known)
        pads = list(attributes.get("pads", ()))
        half = len(pads) // 2
        padded = window * math.prod(max(0, a) + max(0, b) + 1 for a, b in zip(pads[:half], pads[half:], strict=False))
        blind = len(known) < 3 and (window > LARGEST_WINDOW or padded > MOST_PADDED)
        if steps > MOST_STEPS or blind:
            raise ModelError(
                f"{node.op_type} {node.name!r} has a window of {list(attributes['kernel_shape'])}: it would not end",
                known=f"pads {pads}" + ("" if blind else f", {steps:,} steps"),
                next="export the model again, or do not trust this file",
            )


def _item(kind: int) -> int:
    """Bytes of an element, at least 1."""
    try:
        return int(helper.tensor_dtype_to_np_dtype(kind).itemsize) or 1
    except (KeyError, ValueError):
        return 1


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
        probe = infer(probe, model.weights)
    except ModelError:
        raise
    except Exception:  # what inference cannot do is read off the forward pass
        return dict(inputs)
    found = dict(inputs)
    for value in (*probe.graph.value_info, *probe.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") and d.dim_value >= 0 for d in kind.shape.dim):
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
