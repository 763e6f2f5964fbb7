"""In what numbers a model computes, read from its file: ``float16``, ``int8 (QDQ, weights int8 per channel ...)``.

An audit compares what was trained with what was deployed: which of the two a map explains is part of its record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from fgcam_onnx.graph.load import LoadedModel

__all__ = ["model_precision"]

SUMS = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
PAIRS = {"QuantizeLinear", "DequantizeLinear"}
# A number alone is a bound or an epsilon; what a network learned is at least a vector.
FEWEST = 2


def model_precision(model: LoadedModel) -> str:
    """A few words for people: the type of a float model, the form of a quantised one with the types of its integers."""
    graph = model.proto.graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.initializer}
    operators = {node.op_type for node in graph.node}
    form = _form(operators)
    if form is None:
        floats = {kinds[n] for n in kinds if sizes[n] >= FEWEST} & {
            TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
        }  # fmt: skip
        return " and ".join(sorted(_name(kind) for kind in floats)) or "float32"
    weights = [pair for node in graph.node for pair in _weights(node, kinds, sizes)]
    types = " and ".join(sorted({_name(kind) for kind, _ in weights}))
    words = [form]
    if types:
        words.append(f"weights {types}{' per channel' if any(steps > 1 for _, steps in weights) else ''}")
    activations = " and ".join(sorted(_activations(graph.node, kinds)))
    if activations:
        words.append(f"activations {activations}")
    return f"{_bits(types)} ({', '.join(words)})"


def _form(operators: set[str]) -> str | None:
    if operators & SUMS:
        return "dynamic" if "DynamicQuantizeLinear" in operators else "integer sums"
    if any(op.startswith("QLinear") or op == "QGemm" for op in operators):
        return "QOperator"
    return "QDQ" if operators >= PAIRS else None


def _weights(node: onnx.NodeProto, kinds: Mapping[str, int], sizes: Mapping[str, int]) -> Iterable[tuple[int, int]]:
    """Type of each stored integer weight that the node reads, and how many steps it has."""
    where = {"QLinearConv": (3, 4), "QLinearMatMul": (3, 4), "QGemm": (3, 4), "DequantizeLinear": (0, 1)}
    at, step = where.get(node.op_type, (1, 1 if node.op_type in SUMS else -1))
    if step >= 0 and at < len(node.input) and sizes.get(node.input[at], 0) >= FEWEST:
        kind = kinds[node.input[at]]
        if kind != TensorProto.INT32:  # a bias
            yield kind, sizes.get(node.input[step], 1) if node.op_type not in SUMS else 1


def _activations(nodes: Iterable[onnx.NodeProto], kinds: Mapping[str, int]) -> set[str]:
    """Types of the zero points that activations are rounded to."""
    found: set[str] = set()
    for node in nodes:
        if node.op_type == "DynamicQuantizeLinear":
            found.add("uint8")
        elif node.op_type == "QuantizeLinear":
            found.add(_name(kinds[node.input[2]]) if len(node.input) > 2 and node.input[2] in kinds else "uint8")
        elif node.op_type in ("QLinearConv", "QLinearMatMul") and node.input[7] in kinds:
            found.add(_name(kinds[node.input[7]]))
    return found


def _name(kind: int) -> str:
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(kind)))


def _bits(types: str) -> str:
    return "int4" if "int4" in types else "int16" if "int16" in types else "int8"
