"""MatMul by a constant, then Add of a constant vector: one Gemm, as other exporters write a linear layer."""

from __future__ import annotations

from dataclasses import replace

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs, refuse

GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def fold_matmul_add(graph: LayerGraph) -> PassResult:
    """Fuse ``x @ W + b`` where x has two axes."""

    def matches(first: Layer, second: Layer) -> bool:
        return first.op == "MatMul" and second.op == "Add" and len(second.operands) == 1

    return fuse_pairs(graph, matches, _fuse)


def _fuse(graph: LayerGraph, matmul: Layer, add: Layer) -> Layer | Refusal:
    weight = matmul.constant(1)
    bias = next(iter(add.constants.values()), None)
    if weight is None or bias is None:
        return refuse(add, "weight or bias is computed in the graph")
    shape = graph.tensor(matmul.inputs[0]).shape
    if shape is None or len(shape) != 2 or weight.ndim != 2:
        return refuse(add, f"{matmul.name} works on {'unknown' if shape is None else len(shape)} axes, a Gemm on two")
    if bias.size not in (1, weight.shape[1]) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
        return refuse(add, f"the constant has shape {list(bias.shape)}, a bias has [{weight.shape[1]}]")
    position = next(iter(add.constants))
    return replace(
        matmul,
        op="Gemm",
        version=13,
        inputs=(matmul.inputs[0], matmul.inputs[1], add.inputs[position]),
        outputs=add.outputs,
        attributes=dict(GEMM),
        constants={1: weight, 2: bias.reshape(-1)},
        nodes=(*matmul.nodes, *add.nodes),
    )
