"""Sizes: what depends on the shapes of tensors alone, and on no value.

    Shape -> Gather -> Add -> Concat -> the ``ends`` of a Slice

Where height and width are free such a chain is no constant, and no activation either: it is known as soon as the size
of the picture is. So these layers are set apart; the rules see a graph of activations, and get the numbers before they
run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.layer import STANDARDISE, Layer, LayerGraph, Refusal, Shape
from fgcam_onnx.graph.passes.fold_constants import COMPUTED, evaluate

__all__ = ["complete_shapes", "free_shapes", "set_sizes_apart", "sizes_known", "sources_of_sizes"]

MEASURES = ("Shape", "Size")
# Sizes that stand for a free axis: (batch, height or width).
TRIALS = ((2, 224), (3, 256))

# A constant of at most this many bytes may be a shape.
SMALL = 1024

# onnx infers these through the body that the specification gives them, and a single node has none.
SAME_SHAPE = ("GroupNormalization", STANDARDISE)

Sizes = tuple[int, ...]
Infer = Callable[[dict[str, Sizes]], dict[str, Sizes]]


def set_sizes_apart(graph: LayerGraph) -> LayerGraph:
    """Move the layers that compute with sizes to ``graph.measures``; their readers list them in ``Layer.sizes``."""
    derived: set[str] = set()
    kept: list[Layer] = []
    measures: list[Layer] = []
    for layer in graph.layers:
        read = {layer.inputs[i] for i in layer.operands}
        if layer.op in MEASURES or (read and read <= derived and layer.op in COMPUTED):
            derived.update(name for name in layer.outputs if name)
            measures.append(layer)
        else:
            kept.append(replace(layer, sizes=frozenset(i for i in layer.operands if layer.inputs[i] in derived)))
    return replace(graph, layers=tuple(kept), measures=tuple(measures)) if measures else graph


def sources_of_sizes(graph: LayerGraph, layer: Layer) -> list[str]:
    """The tensors whose shapes decide ``layer``'s sizes."""
    return [m.inputs[0] for m in _needed(graph, layer) if m.op in MEASURES]


def sizes_known(graph: LayerGraph, layer: Layer, shapes: Mapping[str, Sizes]) -> Layer:
    """``layer`` with its sizes as constants, for tensors of these shapes.

    Raises:
        ModelError: they cannot be computed.
    """
    if not layer.sizes:
        return layer
    tensors = {name: replace(graph.tensor(name), shape=shape) for name, shape in shapes.items()}
    measured = replace(graph, tensors={**graph.tensors, **tensors})
    known: dict[str, np.ndarray] = {}
    for measure in _needed(graph, layer):
        constants = {i: known[name] for i, name in enumerate(measure.inputs) if name in known}
        found = evaluate(replace(measure, constants={**measure.constants, **constants}), measured, _node(measure))
        if found is None or isinstance(found, Refusal):
            raise ModelError(
                f"the sizes that node {layer.name!r} works with cannot be computed",
                at=f"node {measure.name!r} ({measure.op})",
                known="a shape is unknown" if found is None else found.reason,
                next="export the model with a fixed input size",
            )
        known.update(found)
    filled = {i: known[layer.inputs[i]] for i in layer.sizes}
    return replace(layer, constants={**layer.constants, **filled}, sizes=frozenset())


def complete_shapes(graph: LayerGraph, shapes: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """``shapes`` and those of the layers behind, one layer after the other, sizes computed on the way.

    onnx's inference of whole graphs does not follow arithmetic on shapes everywhere (a Div, a Cast), and knows nothing
    behind it. What cannot be inferred is left out.
    """
    found = dict(shapes)
    for layer in graph.layers:
        if all(name in found for name in layer.outputs if name):
            continue
        try:
            found.update(_outputs(graph, sizes_known(graph, layer, found), found))
        except Exception:  # inference is a convenience: what it cannot do stays unknown
            continue
    return found


def _outputs(graph: LayerGraph, layer: Layer, shapes: Mapping[str, Sizes]) -> dict[str, Sizes]:
    if layer.op in SAME_SHAPE:
        return {layer.output: shapes[layer.inputs[0]]}
    domain, _, op = layer.op.rpartition("::")
    types, data = {}, {}
    for i, name in enumerate(layer.inputs):
        value = layer.constants.get(i)
        if value is not None:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            types[name] = helper.make_tensor_type_proto(kind, value.shape)
            if value.nbytes <= SMALL:
                data[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        elif name:
            types[name] = helper.make_tensor_type_proto(TensorProto.FLOAT, shapes[name])
    imports = [helper.make_opsetid("", graph.opset)]
    schema = defs.get_schema(op, graph.opset, domain)
    found = shape_inference.infer_node_outputs(schema, _node(layer), types, data, opset_imports=imports)
    sizes = {name: [d.dim_value for d in kind.tensor_type.shape.dim] for name, kind in found.items()}
    return {name: tuple(dims) for name, dims in sizes.items() if all(dims)}


def free_shapes(graph: LayerGraph, inputs: Mapping[str, Shape], infer: Infer) -> dict[str, Shape]:
    """Shapes by tensor name where an axis of the inputs is free: inferred for two sizes, None where they differ."""
    first, second = (
        complete_shapes(
            graph,
            infer(
                {
                    name: tuple(
                        d if isinstance(d, int) and d > 0 else batch if a == 0 else side for a, d in enumerate(shape)
                    )
                    for name, shape in inputs.items()
                }
            ),
        )
        for batch, side in TRIALS
    )
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, second[name], strict=True))
        for name, shape in first.items()
        if name in second and len(second[name]) == len(shape)
    }


def _needed(graph: LayerGraph, layer: Layer) -> list[Layer]:
    wanted = {layer.inputs[i] for i in layer.sizes}
    needed: list[Layer] = []
    for measure in reversed(graph.measures):
        if wanted.intersection(measure.outputs):
            needed.append(measure)
            if measure.op not in MEASURES:
                wanted.update(measure.inputs[i] for i in measure.operands)
    return needed[::-1]


def _node(layer: Layer):  # type: ignore[no-untyped-def]
    given = {key: value for key, value in layer.attributes.items() if value is not None}
    return helper.make_node(layer.op, list(layer.inputs), list(layer.outputs), layer.name, **given)
