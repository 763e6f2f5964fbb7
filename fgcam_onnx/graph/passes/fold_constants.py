"""Constants: whatever depends on nothing but constants is a constant.

Resolves Constant nodes, de-duplicated initializers behind Identity, and chains such as Shape -> Gather -> Concat
where the shape is known, or that part of it which the chain asks for: the channels of a batch of any size. Single
nodes are computed by onnx's own reference evaluator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from fgcam_onnx import memory
from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, refuse
from fgcam_onnx.graph.quantisation import decoded

# Folded values may take so many bytes together: a hostile ConstantOfShape must not fill the memory.
LARGEST = 1 << 28
# One value, repeated, takes no memory here; the network itself has to hold it.
LARGEST_REPETITION = 1 << 28
ENDLESS = 1 << 62
# What the file itself holds may grow so often: integers of a byte are decoded to floats.
GROWTH = 8
# And of the memory there is, this part.
SHARE = 8
# What is computed: what exporters leave between an initializer and its reader. The evaluator computes other operators
# too, some of them cell by cell in Python: a Resize or a Conv of constants could take hours.
_COMPUTED = """
    Abs Add And ArgMax ArgMin BatchNormalization Cast CastLike Ceil Clip Compress Concat Constant
    ConstantOfShape Cos CumSum DequantizeLinear Div Equal Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gemm Greater GreaterOrEqual Identity InstanceNormalization LayerNormalization Less LessOrEqual Log
    LpNormalization MatMul Max Mean Min Mod Mul Neg NonZero Not Or Pad Pow QuantizeLinear Range Reciprocal
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round
    ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
    Trilu Unsqueeze Where Xor
"""
COMPUTED = frozenset(_COMPUTED.split())
# Never constant: they draw numbers, or hold a graph of their own.
LEAVE = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
LEAVE |= {"If", "Loop", "Scan", "SequenceMap"}
# What picks and joins sizes; of a shape that is known in part, a mark for each size that is not goes through these.
PICKS = ("Concat", "Gather", "Identity", "Slice", "Squeeze", "Unsqueeze")
MARK = -(1 << 40)
# Those whose operands spread each other.
_BROADCASTS = """
    Add And Clip Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor
"""
BROADCASTS = frozenset(_BROADCASTS.split())


def fold_constants(
    graph: LayerGraph, values: Mapping[str, np.ndarray], protos: Mapping[str, onnx.NodeProto]
) -> PassResult:
    """Fill in every layer's constant operands; drop the layers that are constants themselves.

    ``values``: initializers by name. ``protos``: the ONNX nodes by layer name, for evaluation.
    """
    known = dict(values)
    marked: dict[str, np.ndarray] = {}
    kept: list[Layer] = []
    refused: list[Refusal] = []
    left = largest() + GROWTH * sum(value.nbytes for value in values.values())
    for original in graph.layers:
        layer = replace(original, constants={i: known[name] for i, name in enumerate(original.inputs) if name in known})
        found = evaluate(layer, graph, protos[layer.name])
        if found is None:
            found = _picked(layer, graph, protos[layer.name], marked)
        if found is not None and not isinstance(found, Refusal):
            own = sum(value.nbytes for name, value in found.items() if value.base is None)  # else a view of another
            if own <= left:
                left -= own
                known.update(found)
                continue
            found = refuse(layer, "a constant, but all of them together are too large to be folded")
        if found is not None:
            refused.append(found)
        kept.append(layer)
    return PassResult(replace(graph, layers=tuple(kept)), len(kept) < len(graph.layers), tuple(refused))


def _picked(
    layer: Layer, graph: LayerGraph, proto: onnx.NodeProto, marked: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """What ``layer`` picks of shapes that are known in part, if that part is; else noted in ``marked``."""
    if layer.op == "Shape" and layer.operands and (shape := graph.tensor(layer.inputs[0]).shape) is not None:
        span = slice(layer.attributes.get("start", 0), layer.attributes.get("end"))
        marked[layer.output] = np.array([d if isinstance(d, int) else MARK for d in shape[span]], np.int64)
    if layer.op not in PICKS or not all(layer.inputs[i] in marked for i in layer.operands):
        return None
    constants = {**layer.constants, **{i: marked[layer.inputs[i]] for i in layer.operands}}
    found = evaluate(replace(layer, constants=constants), graph, proto)
    if found is None or isinstance(found, Refusal):
        return None
    if any((value == MARK).any() for value in found.values()):
        marked.update(found)
        return None
    return found


def largest() -> int:
    """The most bytes that folded values may take."""
    return min(LARGEST, memory.available() // SHARE)


def evaluate(layer: Layer, graph: LayerGraph, proto: onnx.NodeProto) -> dict[str, np.ndarray] | Refusal | None:
    """The values that ``layer`` computes from constants and known shapes, by name; None if it computes with others."""
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
    if layer.op == "com.microsoft::DequantizeLinear":
        layer = replace(layer, op="DequantizeLinear")
    if layer.operands or layer.op not in COMPUTED:
        constant = not layer.operands and layer.constants and layer.op not in LEAVE
        return refuse(layer, f"a constant, but {layer.op} is not computed here") if constant else None
    if layer.op == "Identity":
        return {layer.output: layer.constants[0]}
    if layer.op in ("QuantizeLinear", "DequantizeLinear") and not _fits(layer):
        return refuse(layer, "a constant with a step for each of more cells than it has")
    if layer.op == "DequantizeLinear" and not layer.attributes.get("block_size"):
        # The reference evaluator knows the newest versions only; the arithmetic never changed.
        q, step = layer.constants[0], layer.constants[1].astype(np.float32)
        point = layer.constants.get(2, np.zeros((), q.dtype))
        if q.dtype.kind in "iu":
            return {layer.output: decoded(q, (step, point), axis=layer.attributes.get("axis", 1))}
    if layer.op == "ConstantOfShape":
        return _filled(layer)
    from onnx.reference import ReferenceEvaluator

    feeds = {layer.inputs[i]: value for i, value in layer.constants.items()}
    held = sum(value.nbytes for value in feeds.values() if any(value.strides))  # one value, repeated, is no memory
    try:
        if _most_bytes(layer) > largest() + GROWTH * held:
            return refuse(layer, "a constant, but too large or of unknown size to be folded")
        inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in feeds]
        outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in layer.outputs]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([proto], "constant", inputs, outputs),
            opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
        )
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        return refuse(layer, f"a constant that onnx's reference evaluator cannot compute: {error}")
    return dict(zip(layer.outputs, (np.asarray(r) for r in results), strict=True))


def _fits(layer: Layer) -> bool:
    """Is there one step for all, one for each cell along the axis, or one for each block?"""
    shape, step = layer.constants[0].shape, layer.constants[1]
    return step.size <= max(1, layer.constants[0].size) and (step.ndim != 1 or step.size == 1 or step.size in shape)


def _most_bytes(layer: Layer) -> int:
    """What the layer's result takes at most, by its operands alone: what a file says about shapes may be a lie."""
    arrays = list(layer.constants.values())
    first, others = arrays[0] if arrays else np.zeros(1), arrays[1:]
    if layer.op in ("Expand", "Tile", "Pad"):
        asked = others[0].ravel().tolist() if others else layer.attributes.get("pads", layer.attributes.get("paddings"))
        if asked is None or len(asked) > 64 or not all(isinstance(n, int) for n in asked):
            return ENDLESS
        if layer.op == "Pad":
            return 8 * math.prod(int(n) + sum(max(0, int(p)) for p in asked) for n in first.shape)
        return 8 * max(1, first.size) * math.prod(max(1, int(n)) for n in asked)
    if layer.op == "Range":
        start, end, step = (float(array.ravel()[0]) for array in arrays)
        rounds = (end - start) / step if step else math.inf
        return 8 * math.ceil(max(0.0, rounds)) if math.isfinite(rounds) else ENDLESS
    if layer.op == "Gather" and others and first.ndim:
        return 8 * (first.size // max(1, int(first.shape[layer.attributes.get("axis", 0)])) * others[0].size)
    if layer.op == "GatherND" and others:
        return 8 * first.size * others[0].size
    if layer.op in ("MatMul", "Gemm") and others:
        inner = max(1, min(*first.shape, *others[0].shape)) if first.shape and others[0].shape else 1
        return 8 * (first.size // inner + 1) * (others[0].size // inner + 1)
    if layer.op.endswith("Normalization"):
        channels = first.shape[1] if first.ndim > 1 else 1
        return 8 * first.size * max((array.size // max(1, channels) + 1 for array in others), default=1)
    if layer.op in BROADCASTS:
        return 8 * math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    return 8 * sum(array.size for array in arrays)


def _filled(layer: Layer) -> dict[str, np.ndarray] | Refusal:
    """ConstantOfShape: one element, seen everywhere."""
    shape = [int(d) for d in layer.constants[0].ravel()]
    if min(shape, default=0) < 0 or math.prod(shape) > LARGEST_REPETITION:
        return refuse(layer, "a constant, but too large or of unknown size to be folded")
    value = layer.attributes.get("value")
    one = numpy_helper.to_array(value).ravel()[:1] if isinstance(value, onnx.TensorProto) else np.zeros(1, np.float32)
    if one.size != 1:
        return refuse(layer, "its value is not one element")
    return {layer.output: np.broadcast_to(one, shape)}
