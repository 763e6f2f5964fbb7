"""Constants: whatever depends on nothing but constants is a constant.

Resolves Constant nodes, de-duplicated initializers behind Identity, and chains such as Shape -> Gather -> Concat
where the shape is known. Single nodes are computed by onnx's own reference evaluator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, refuse
from fgcam_onnx.graph.passes.decode_quantised import decoded

# A folded value larger than this stays a node: a hostile ConstantOfShape must not fill the memory.
LARGEST = 1 << 28
# Never computed: they draw numbers, or hold a graph of their own.
LEAVE = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
LEAVE |= {"If", "Loop", "Scan", "SequenceMap"}


def fold_constants(
    graph: LayerGraph, values: Mapping[str, np.ndarray], protos: Mapping[str, onnx.NodeProto], opset: int
) -> PassResult:
    """Fill in every layer's constant operands; drop the layers that are constants themselves.

    ``values``: initializers by name. ``protos``: the ONNX nodes by layer name, for evaluation.
    """
    known = dict(values)
    kept: list[Layer] = []
    refused: list[Refusal] = []
    for original in graph.layers:
        layer = replace(original, constants={i: known[name] for i, name in enumerate(original.inputs) if name in known})
        found = _evaluate(layer, graph, protos[layer.name], opset)
        if isinstance(found, Refusal):
            refused.append(found)
        elif found is not None:
            known.update(found)
            continue
        kept.append(layer)
    return PassResult(replace(graph, layers=tuple(kept)), len(kept) < len(graph.layers), tuple(refused))


def _evaluate(
    layer: Layer, graph: LayerGraph, proto: onnx.NodeProto, opset: int
) -> dict[str, np.ndarray] | Refusal | None:
    if layer.op == "Constant":
        value = layer.attributes.get("value")
        if isinstance(value, onnx.TensorProto):
            return {layer.output: numpy_helper.to_array(value)}
    if layer.op == "Shape" and layer.operands:
        shape = graph.tensor(layer.inputs[0]).shape
        span = slice(layer.attributes.get("start", 0), layer.attributes.get("end"))
        if shape is not None and all(isinstance(d, int) for d in shape[span]):
            return {layer.output: np.array(shape[span], np.int64)}
        return None
    if layer.operands or layer.op in LEAVE or "::" in layer.op:
        return None
    if layer.op == "Identity":
        return {layer.output: layer.constants[0]}
    if layer.op == "DequantizeLinear" and not layer.attributes.get("block_size"):
        # The reference evaluator knows the newest versions only; the arithmetic never changed.
        q, step = layer.constants[0], layer.constants[1].astype(np.float32)
        point = layer.constants.get(2, np.zeros((), q.dtype))
        if q.dtype.kind in "iu":
            return {layer.output: decoded(q, (step, point), axis=layer.attributes.get("axis", 1))}
    if layer.op == "ConstantOfShape":
        size = math.prod(int(d) for d in layer.constants[0].ravel()) * 8
    else:
        size = sum(value.nbytes for value in layer.constants.values())
    if layer.op in ("Expand", "Tile", "Range") or size > LARGEST:
        shape = graph.tensor(layer.output).shape
        if shape is None or not all(isinstance(d, int) for d in shape) or math.prod(shape) * 8 > LARGEST:  # type: ignore[arg-type]
            return refuse(layer, "a constant, but too large or of unknown size to be folded")
    from onnx.reference import ReferenceEvaluator

    feeds = {layer.inputs[i]: value for i, value in layer.constants.items()}
    try:
        inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in feeds]
        outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in layer.outputs]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([proto], "constant", inputs, outputs),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        return refuse(layer, f"a constant that onnx's reference evaluator cannot compute: {error}")
    return dict(zip(layer.outputs, (np.asarray(r) for r in results), strict=True))
