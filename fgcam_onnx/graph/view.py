"""ModelProto -> LayerGraph: the view that the rules see.

    nodes -> layers with complete attributes -> shapes -> folding passes -> logits -> signs, layouts, gates

Nothing here changes what runs: the forward pass is the user's own graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from fgcam_onnx.errors import ModelError, nearest
from fgcam_onnx.graph.bfloat16 import fold_rounding
from fgcam_onnx.graph.gates import find_gates
from fgcam_onnx.graph.image import image_tensors
from fgcam_onnx.graph.layer import Layer, LayerGraph, Shape, Tensor
from fgcam_onnx.graph.layout import find_layouts
from fgcam_onnx.graph.load import ONNX_DOMAINS, LoadedModel, captured, damaged
from fgcam_onnx.graph.passes.base import PassResult
from fgcam_onnx.graph.passes.decode_integer import decode_integer
from fgcam_onnx.graph.passes.decode_quantised import DEQUANTIZE, QUANTIZE, decode_quantised
from fgcam_onnx.graph.passes.fold_batch_norm import fold_batch_norm
from fgcam_onnx.graph.passes.fold_bias import fold_bias
from fgcam_onnx.graph.passes.fold_bounds import fold_bounds
from fgcam_onnx.graph.passes.fold_constants import fold_constants
from fgcam_onnx.graph.passes.fold_matmul_add import fold_matmul_add
from fgcam_onnx.graph.passes.fold_pad import fold_pad
from fgcam_onnx.graph.passes.fold_standardise import fold_standardise
from fgcam_onnx.graph.passes.fold_strided import fold_strided
from fgcam_onnx.graph.shapes import concrete_shapes, infer, typed_probe, view_shapes
from fgcam_onnx.graph.signs import nonnegative_tensors
from fgcam_onnx.graph.sizes import free_shapes, set_sizes_apart

__all__ = ["build_view", "constants_folded", "node_names"]

PASSES: tuple[Callable[[LayerGraph], PassResult], ...] = (
    fold_rounding,
    decode_quantised,
    decode_integer,
    fold_pad,
    fold_matmul_add,
    fold_standardise,
    fold_strided,
    fold_bounds,
    fold_bias,
    fold_batch_norm,
)
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
SQUASHES = {"Softmax": "Softmax", "LogSoftmax": "LogSoftmax", "Sigmoid": "Sigmoid"}
SQUASHES |= {"com.microsoft::QLinearSoftmax": "Softmax", "com.microsoft::QLinearSigmoid": "Sigmoid"}
# What may stand between the last Softmax and the output without changing a value, but for rounding.
WRAPPERS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Dropout"}
WRAPPERS |= {*QUANTIZE, *DEQUANTIZE}


def build_view(
    model: LoadedModel, output: str | None = None, *, image: str | None = None, fold_norms: bool = True
) -> LayerGraph:
    """The canonical layers of ``model``.

    ``output``: the graph output (or any tensor) to explain, None for the only or first one. ``image``: the input that
    is the picture, None for the only one that can be. ``fold_norms``: False keeps BatchNormalization layers apart,
    where the identity rule takes them (methods 2.6, ``batchnorm=identity``).

    Raises:
        ModelError: no usable input, an output that does not exist, or parts that contradict each other.
    """
    # A NaN in the weights is no reason to warn here: the forward pass finds it and says where.
    with damaged(str(model.path or "the given model")), np.errstate(all="ignore"):
        return _build(model, output, image, fold_norms)


def constants_folded(model: LoadedModel) -> PassResult:
    """The nodes of ``model`` as layers, without those that are constants."""
    proto = model.proto
    graph = proto.graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in model.weights}
    values.update(model.weights)
    inputs = tuple(value.name for value in graph.input if value.name not in values)
    outputs = tuple(value.name for value in graph.output)
    layers, protos = _layers(proto)
    opset = next((o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS), 1)
    view = LayerGraph(layers, _tensors(model, values), inputs, outputs, image="", logits="", opset=opset)
    return fold_constants(view, values, protos)


def _build(model: LoadedModel, output: str | None, image: str | None, fold_norms: bool) -> LayerGraph:
    result = constants_folded(model)
    view = _with_free_shapes(model, set_sizes_apart(result.graph))
    view, refused = _find_ends(view, output, image), list(result.refused)
    for fold in PASSES if fold_norms else PASSES[:-1]:
        result = fold(view)
        view = result.graph
        refused += result.refused
    if view.quantised:
        view = _with_shapes(view)
    return _analyse(replace(view, refusals=tuple(refused), notes=(*view.notes, *_random(view), *_ranges(view))))


def _random(graph: LayerGraph) -> list[str]:
    """A sentence about layers that draw random numbers on the way to the logits."""
    upstream = graph.ancestors(graph.logits)
    drawing = [layer for layer in graph.layers if layer.op in RANDOM and upstream.intersection(layer.outputs)]
    if not drawing:
        return []
    first = drawing[0]
    return [f"the model draws random numbers ({first.op}, node {first.name!r}): two runs give two maps"]


def _ranges(graph: LayerGraph) -> list[str]:
    """A sentence about activations that are quantised by the range of their batch."""
    if not graph.dynamic:
        return []
    return ["the model quantises by the range of each batch: pictures are run one at a time, as if each came alone"]


def node_names(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes in their order, by the names that their layers have: their own, made unique."""
    found: dict[str, onnx.NodeProto] = {}
    for position, node in enumerate(proto.graph.node):
        name = node.name or f"{node.op_type}_{position}"
        found[f"{name}_{position}" if name in found else name] = node
    return found


def _layers(proto: onnx.ModelProto) -> tuple[tuple[Layer, ...], dict[str, onnx.NodeProto]]:
    opsets = {("" if o.domain in ONNX_DOMAINS else o.domain): o.version for o in proto.opset_import}
    layers: list[Layer] = []
    protos = node_names(proto)
    for name, node in protos.items():
        domain = "" if node.domain in ONNX_DOMAINS else node.domain
        version, attributes = _attributes(node, domain, opsets.get(domain, 1))
        op = f"{domain}::{node.op_type}" if domain else node.op_type
        reads = (*node.input, *captured(node))
        layers.append(Layer(name, op, version, reads, tuple(node.output), attributes, nodes=(node.name or name,)))
    return tuple(layers), protos


def _attributes(node: onnx.NodeProto, domain: str, opset: int) -> tuple[int, dict[str, Any]]:
    """Since-version and attributes with the schema's defaults filled in."""
    attributes: dict[str, Any] = {}
    version = opset
    try:
        schema = defs.get_schema(node.op_type, opset, domain)
    except defs.SchemaError:
        schema = None
    if schema is not None:
        version = schema.since_version
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type:
                attributes[name] = helper.get_attribute_value(attribute.default_value)
    attributes.update({a.name: helper.get_attribute_value(a) for a in node.attribute})
    return version, {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}


def _tensors(model: LoadedModel, values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Shapes and types by onnx's own inference, on the light graph with its weights as typed inputs."""
    probe = typed_probe(model)
    try:
        probe = infer(probe, model.weights)
    except ModelError:
        raise
    except Exception:  # inference is a convenience: what it cannot do stays unknown
        pass
    found: dict[str, Tensor] = {}
    for value in (*probe.graph.input, *probe.graph.value_info, *probe.graph.output):
        if value.name in values or not value.type.HasField("tensor_type"):
            continue
        kind = value.type.tensor_type
        shape: Shape | None = None
        if kind.HasField("shape"):
            # Some exporters write -1 for a size that is free.
            sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
            shape = tuple(None if isinstance(size, int) and size < 0 else size for size in sizes)
        try:
            dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, ValueError):
            dtype = "unknown"
        found[value.name] = Tensor(value.name, shape, dtype)
    return found


def _with_free_shapes(model: LoadedModel, graph: LayerGraph) -> LayerGraph:
    """Fill in the shapes that were lost on a free axis of the inputs."""
    inputs = {name: shape for name in graph.inputs if (shape := graph.tensor(name).shape) is not None}
    lost = any(graph.tensor(name).shape is None for layer in graph.layers for name in layer.outputs if name)
    if not lost or all(isinstance(d, int) for shape in inputs.values() for d in shape):
        return graph
    tensors = dict(graph.tensors)
    for name, shape in free_shapes(graph, inputs, lambda sizes: concrete_shapes(model, sizes)).items():
        known = tensors.get(name) or Tensor(name, dtype="unknown")
        if known.shape is None:
            tensors[name] = replace(known, shape=shape)
    return replace(graph, tensors=tensors)


def _with_shapes(graph: LayerGraph) -> LayerGraph:
    """Fill in the shapes that only the decoded layers tell."""
    inputs = {name: shape for name in graph.inputs if (shape := graph.tensor(name).shape) is not None}
    tensors = dict(graph.tensors)
    for name, shape in view_shapes(graph, inputs).items():
        known = tensors.get(name) or Tensor(name, dtype="unknown")
        if known.shape is None:
            tensors[name] = replace(known, shape=shape)
    return replace(graph, tensors=tensors)


def _find_ends(graph: LayerGraph, output: str | None, image: str | None) -> LayerGraph:
    """The tensor to explain (before a final Softmax or ArgMax), and the input that is the picture."""
    if not graph.inputs or not graph.outputs:
        raise ModelError(
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs that are not constant",
            next="it must take a picture and give class scores",
        )
    logits = output or graph.outputs[0]
    if logits not in graph.outputs and graph.producer(logits) is None:
        raise ModelError(
            f"the model has no output {logits!r}",
            known=f"its outputs are {_listed(graph, graph.outputs)}",
            next=nearest(logits, (*graph.outputs, *(o for layer in graph.layers for o in layer.outputs))) or None,
        )
    notes = graph.notes
    if output is None and len(graph.outputs) > 1:
        notes += (f"the model has outputs {_listed(graph, graph.outputs)}: explaining {logits!r}",)
    stripped, ends = _before_softmax(graph, logits)
    if ends:
        shape = graph.tensor(stripped).shape
        axes = f" {_shape(shape)}" if shape is not None and len(shape) > 2 else ""
        before = f"the tensor before {'it' if len(ends) == 1 else 'them'}, {stripped!r}{axes}"
        notes += (f"the model ends in {' and '.join(ends)}: explaining {before}",)
    upstream = graph.ancestors(stripped)
    feeding = [name for name in graph.inputs if name in upstream]
    if not feeding:
        raise ModelError(f"output {logits!r} depends on no input of the model", next="name another output")
    picture = _find_image(graph, feeding, logits) if image is None else _named_image(graph, feeding, logits, image)
    if image is None and len(graph.inputs) > 1:
        notes += (f"the model takes inputs {_listed(graph, graph.inputs)}: the picture is {picture!r}",)
    _refuse_text(graph, picture)
    head = ends[0] if ends and ends[0] in SQUASHES else None
    return replace(graph, image=picture, logits=stripped, notes=notes, head=head)


def _refuse_text(graph: LayerGraph, picture: str) -> None:
    dtype = graph.tensor(picture).dtype
    if dtype == "unknown" or np.dtype(dtype).kind not in "fiub":
        raise ModelError(f"input {picture!r} takes no numbers: its type is {dtype}", next="it must take a picture")


def _find_image(graph: LayerGraph, feeding: list[str], logits: str) -> str:
    """The only input that feeds the output, or the only one of these that is spatial."""
    shapes = {name: graph.tensor(name).shape for name in feeding}
    spatial = [name for name, shape in shapes.items() if shape is None or 3 <= len(shape) <= 5]
    found = feeding if len(feeding) == 1 else spatial
    if len(found) != 1:
        raise ModelError(
            f"which input of the model is the picture is not clear: {len(found) or 'none'} of those that feed "
            f"{logits!r} could be",
            known=_listed(graph, feeding),
            next="name it: Explainer(model, input='name') or --input; explain(x, inputs={...}) takes the others",
        )
    return found[0]


def _named_image(graph: LayerGraph, feeding: list[str], logits: str, name: str) -> str:
    if name not in graph.inputs:
        raise ModelError(
            f"the model has no input {name!r}",
            known=f"its inputs are {_listed(graph, graph.inputs)}",
            next=nearest(name, graph.inputs) or None,
        )
    if name not in feeding:
        raise ModelError(
            f"output {logits!r} does not depend on input {name!r}",
            known=f"it depends on {_listed(graph, feeding)}",
            next="name another input, or another output",
        )
    return name


def _listed(graph: LayerGraph, names: Iterable[str]) -> str:
    """Tensors with their shapes, for people."""
    found = [(name, graph.tensor(name).shape) for name in names]
    return ", ".join(name if shape is None else f"{name} {_shape(shape)}" for name, shape in found)


def _shape(shape: Shape) -> str:
    return f"[{', '.join('any' if d is None else str(d) for d in shape)}]"


def _before_softmax(graph: LayerGraph, name: str) -> tuple[str, tuple[str, ...]]:
    """The tensor that a final Softmax or ArgMax reads, and these operators in the order of the graph.

    ``name`` itself and none where the model ends in neither. An ArgMax may stand behind a Softmax: an index has no
    derivative, and a probability is the logits once more.
    """
    found, at, ends = name, name, []
    while (layer := graph.producer(at)) is not None and 0 in layer.operands:
        at = layer.inputs[0]
        if layer.op in (*SQUASHES, "ArgMax"):
            found = at
            ends.append(SQUASHES.get(layer.op, layer.op))
        if layer.op in SQUASHES or layer.op not in {*WRAPPERS, "ArgMax"}:
            break
    return found, tuple(reversed(ends))


def _analyse(graph: LayerGraph) -> LayerGraph:
    positive = nonnegative_tensors(graph.layers)
    layouts = find_layouts(graph.layers, graph.tensors)
    pictures = image_tensors(graph.layers, graph.image, graph.inputs)
    names = {*graph.tensors, *layouts, *positive, *pictures}
    tensors = {
        name: replace(
            graph.tensor(name),
            layout=layouts.get(name),
            nonnegative=name in positive,
            from_image=name in pictures,
        )
        for name in names
    }
    return replace(graph, tensors=tensors, gates=find_gates(graph.layers, tensors))
