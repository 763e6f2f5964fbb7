"""What the tests of rules share beyond ``fgcam_onnx.testing``: the compiled backends, and whole small networks.

The oracle for values is the ONNX operator itself, through onnx's reference evaluator in float64; nothing in
``fgcam_onnx`` computes an expected value. The cases are in ``operator_cases``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import backends
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from fgcam_onnx import descent, registry
from fgcam_onnx.backends.base import Array, Backend, Leak, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.composite import Composite, RelevanceComposite
from fgcam_onnx.descent import Plan
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.ledger import Ledger
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import Rule
from fgcam_onnx.testing import Case, Floats, Operand, Result, X, close, dense, flatten, rule, rules, run

__all__ = ["Case", "Change", "Descent", "Floats", "Operand", "Result", "X", "changed", "close", "dense", "descend"]
__all__ += [
    "flatten",
    "larger",
    "leaking_more",
    "linear_ops",
    "new_rules",
    "rule",
    "rules",
    "run",
    "run_float32",
    "tape",
]

_KEYS = itertools.count()


def linear_ops() -> list[str]:
    return [row.op for row in registry.table() if registry.find_linear(row.op) is not None]


def run_float32(case: Case, rule: Rule, x: Mapping[str, Floats], r: Sequence[Floats | None]) -> list[Result]:
    """The same rule in float32: NumPy's answer, then those of the compiled backends."""
    return [run(case, rule, x, r, backend) for backend in (NumpyBackend(np.float32), *backends.compiled())]


# --- rules that are wrong by 0.1 % ------------------------------------------------------------------------------------

Change = Callable[[Flow, Verbs], Flow]


def changed(right: Rule, change: Change) -> Rule:
    """The rule, its answer changed."""

    def function(node: Node, r: Any, xp: Verbs) -> Flow:
        return change(right.function(node, r, xp), xp)

    return replace(right, function=function)


def larger(flow: Flow, xp: Verbs) -> Flow:
    return Flow({i: xp.mul(part, xp.constant(1.001)) for i, part in flow.parts.items()}, flow.leaks)


def leaking_more(flow: Flow, xp: Verbs) -> Flow:
    """Says that it dropped 0.1 % of what it hands on."""

    def share(array: Array) -> Array:
        return xp.mul(xp.total(array), xp.constant(0.001))

    more = [Leak(share(part), share(xp.absolute(part))) for part in flow.parts.values()]
    return Flow(flow.parts, (*flow.leaks, *more))


@contextmanager
def new_rules() -> Iterator[None]:
    """Rules that are registered inside do not outlive it."""
    registry.table()
    tables = (registry._RULES, registry._LINEAR)
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


# --- whole networks ---------------------------------------------------------------------------------------------------


def tape(model: onnx.ModelProto, x: Floats, **others: Floats) -> dict[str, Floats]:
    """Every activation of a small network in float64, by onnx's reference evaluator."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    for k, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            graph.initializer[k].CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
            )
    for value in graph.input:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    del graph.output[:]
    names = list(dict.fromkeys(name for node in graph.node for name in node.output if name))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {graph.input[0].name: x, **others}
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(double).run(None, {name: v.astype(np.float64) for name, v in feeds.items()})
    return {**feeds, **dict(zip(names, (np.asarray(v, np.float64) for v in values), strict=True))}


@dataclass(frozen=True)
class Descent:
    """Relevance at the target, the books, and the plan that was walked."""

    relevance: Floats
    ledger: Ledger
    plan: Plan


def descend(
    model: onnx.ModelProto,
    x: Floats,
    source: str,
    target: str,
    start: Floats | None = None,
    composite: Composite | None = None,
    *,
    fold_norms: bool = True,
    dead_start: bool = False,
    backend: Backend | None = None,
    **others: Floats,
) -> Descent:
    """Relevance from ``source`` to ``target``; it starts as the activation itself unless ``start`` is given."""
    composite = composite or RelevanceComposite()
    graph = build_view(load(model), fold_norms=fold_norms)
    activations = tape(model, x, **others)
    start = activations[source] if start is None else start
    way = descent.plan(graph, source, target, composite, dead_start=dead_start)
    program = descent.program(way, {name: value.shape for name, value in activations.items()})
    feeds = {name: activations[name] for name in way.reads} | {descent.START: start}
    if backend is not None:
        feeds = {name: array.astype(backend.dtype) for name, array in feeds.items()}
    program = replace(program, key=f"{next(_KEYS)} {program.key}")
    answer = (backend or NumpyBackend(np.float64)).execute(program, feeds)
    return Descent(answer[descent.RESULT], descent.ledger_of(way, answer), way)
