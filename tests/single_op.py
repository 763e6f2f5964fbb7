"""One operator at a time: a model of one node, its activations, and one rule run on it.

The oracle for values is the ONNX operator itself, through onnx's reference evaluator in float64; nothing in
``fgcam_onnx`` computes an expected value. The cases are in ``operator_cases``.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import backends
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fgcam_onnx import descent, registry
from fgcam_onnx.backends.base import Array, Backend, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.composite import Composite, GradientComposite, RelevanceComposite
from fgcam_onnx.descent import Plan
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.shapes import concrete_shapes
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.ledger import Ledger
from fgcam_onnx.node import Node
from fgcam_onnx.registry import Rule

__all__ = ["Case", "Descent", "Floats", "Result", "X", "close", "dense", "descend", "flatten"]
__all__ += ["linear_ops", "numeric_gradient", "rule", "rules", "run", "run_float32", "tape"]

Floats = np.ndarray
FORMULAS = {"z_plus": "z+", "z_box": "zB", "flat": "flat"}
_KEYS = itertools.count()
# Operators that onnx's reference evaluator gets wrong and onnxruntime has in float64: negative pads, the statistics of
# an old BatchNormalization. Those in PLAIN it gets wrong too, or rounds to float32.
ONNXRUNTIME_DECIDES = ("BatchNormalization", "Pad")


@dataclass(frozen=True)
class X:
    """An operand that is an activation, batch first: a shape to fill, or values. ``low``: all values above it.

    ``same``: the tensor of another operand, by position.
    """

    shape: tuple[int, ...] = ()
    low: float | None = None
    values: Any = None
    same: int | None = None


Operand = X | np.ndarray | None


@dataclass(frozen=True, eq=False)
class Case:
    """One node and what feeds it."""

    id: str
    op: str
    operands: tuple[Operand, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1

    # --- the model ------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The operands' names, by position."""
        found: list[str] = []
        for i, operand in enumerate(self.operands):
            if isinstance(operand, X) and operand.same is not None:
                found.append(found[operand.same])
            else:
                found.append("" if operand is None else f"{'x' if isinstance(operand, X) else 'c'}{i}")
        return tuple(found)

    @property
    def inputs(self) -> dict[str, X]:
        """The activations, each once."""
        pairs = zip(self.names, self.operands, strict=True)
        return {name: operand for name, operand in pairs if isinstance(operand, X) and operand.same is None}

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"y{k}" for k in range(self.outputs))

    def model(self, dtype: type[np.floating[Any]] = np.float32) -> onnx.ModelProto:
        kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
        constants = [
            numpy_helper.from_array(value.astype(dtype) if value.dtype.kind == "f" else value, name)
            for name, value in zip(self.names, self.operands, strict=True)
            if isinstance(value, np.ndarray)
        ]
        attributes = dict(self.attributes)
        if self.op == "Cast":
            attributes["to"] = kind
        node = helper.make_node(self.op, list(self.names), list(self.output_names), name="node", **attributes)
        graph = helper.make_graph(
            [node],
            "single",
            [helper.make_tensor_value_info(name, kind, ("n", *self.shape_of(name)[1:])) for name in self.inputs],
            [helper.make_tensor_value_info(name, kind, self.output_dims(name, dtype)) for name in self.output_names],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    def output_dims(self, name: str, dtype: type[np.floating[Any]]) -> list[str] | None:
        """A name for each axis: onnx's checker asks for the rank, nothing may tell the sizes."""
        if dtype == np.float64 and self.op not in ONNXRUNTIME_DECIDES:
            return None
        if self.op in (*PLAIN, *ONNXRUNTIME_DECIDES):
            return [f"{name}_{axis}" for axis in range(len(self.shape_of("x0")))]
        rank = self.forward(self.values())[self.output_names.index(name)].ndim
        return [f"{name}_{axis}" for axis in range(rank)]

    def shape_of(self, name: str) -> tuple[int, ...]:
        x = self.inputs[name]
        return x.shape if x.values is None else np.shape(x.values)

    def single_input(self) -> onnx.ModelProto:
        """The model as a network has it: activations but the first are computed from the first, by a node unknown."""
        model = self.model()
        graph = model.graph
        others = [value for value in graph.input if value.name != next(iter(self.inputs))]
        for value in others:
            graph.input.remove(value)
            graph.value_info.append(value)
            graph.node.insert(0, helper.make_node("Source", [graph.input[0].name], [value.name], domain="test"))
        if others:
            model.opset_import.append(helper.make_opsetid("test", 1))
        return model

    @cached_property
    def graph(self) -> LayerGraph:
        if "::" not in self.op:
            return build_view(load(self.single_input()))
        # A layer that only the view has: it takes the place of an Identity.
        graph = replace(self, op="Identity", attributes={}).graph
        return replace(graph, layers=(replace(graph.layers[0], op=self.op, version=1, attributes=self.attributes),))

    @cached_property
    def layer(self) -> Layer:
        layer = self.graph.layers[-1]
        assert layer.op == self.op
        return layer

    def inferred_shapes(self, x: Mapping[str, Floats]) -> list[tuple[int, ...]]:
        """Of the outputs, by the package's own shape inference."""
        found = concrete_shapes(load(self.model()), {name: array.shape for name, array in x.items()})
        return [found[name] for name in self.output_names]

    # --- values -----------------------------------------------------------------------------------------------------

    def values(self, style: str = "mixed") -> dict[str, Floats]:
        """Activations: "mixed" in sign, "positive" (a ReLU's output: half zeros), "zero", "denormal".

        All are float32 numbers, so that both precisions see the same ties and the same zeros.
        """
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        found = {}
        for name, x in self.inputs.items():
            if x.values is not None:
                array = np.asarray(x.values, np.float64)
            else:
                array = rng.normal(size=x.shape)
                if x.low is not None:
                    array = np.abs(array) + x.low
            if style == "positive":
                array = np.maximum(array, 0)
            elif style == "zero":
                array = np.zeros_like(array)
            elif style == "denormal":
                array = np.sign(array) * 1e-42
            found[name] = array.astype(np.float32).astype(np.float64)
        return found

    @cached_property
    def _evaluator(self) -> Any:
        if self.op in PLAIN:
            return _Plain(self)
        if self.op in ONNXRUNTIME_DECIDES:
            return _Session(self.model(np.float64))
        return ReferenceEvaluator(self.model(np.float64))

    def forward(self, x: Mapping[str, Floats]) -> list[Floats]:
        """The operator itself, in float64."""
        n = len(next(iter(x.values())))
        if self.op == "Concat" and n > 1 and any(isinstance(operand, np.ndarray) for operand in self.operands):
            rows = [self.forward({name: array[k : k + 1] for name, array in x.items()}) for k in range(n)]
            return [np.concatenate(pieces) for pieces in zip(*rows, strict=True)]  # the constant's batch is 1
        with np.errstate(all="ignore"):
            return [np.asarray(y, np.float64) for y in self._evaluator.run(None, dict(x))]

    def forward_onnxruntime(self, x: Mapping[str, Floats]) -> list[Floats]:
        """The operator itself, in float32, as it is deployed."""
        return [np.asarray(y, np.float64) for y in _Session(self.model()).run(None, dict(x))]

    def relevance(self, x: Mapping[str, Floats], seed: int = 7) -> list[Floats]:
        """Random relevance for each output, of mixed sign."""
        rng = np.random.default_rng(seed + zlib.crc32(self.id.encode()))
        return [rng.normal(size=y.shape).astype(np.float32).astype(np.float64) for y in self.forward(x)]

    def __str__(self) -> str:
        return self.id


class _Session:
    """onnxruntime without optimisations, in the precision of the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, names: None, x: Mapping[str, Floats]) -> list[Floats]:
        found: list[Floats] = self.session.run(names, {name: array.astype(self.dtype) for name, array in x.items()})
        return found


class _Plain:
    """Operators that the reference evaluator has wrong or in float32 only, as their specification reads."""

    def __init__(self, case: Case) -> None:
        self.function, self.attributes = PLAIN[case.op], case.layer.attributes

    def run(self, names: None, x: Mapping[str, Floats]) -> list[Floats]:
        (v,) = x.values()
        return [self.function(v, **self.attributes)]


def _lrn(x: Floats, size: int, alpha: float, beta: float, bias: float) -> Floats:
    """The window holds channels c - floor((size - 1)/2) to c + ceil((size - 1)/2)."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + math.ceil((size - 1) / 2) + 1]
        y[:, c] = x[:, c] / (bias + alpha / size * (window**2).sum(axis=1)) ** beta
    return y


def _erf(x: Floats) -> Floats:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _gelu(x: Floats, approximate: str = "none") -> Floats:
    if approximate == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + _erf(x / math.sqrt(2)))


def _global_max_pool(x: Floats) -> Floats:
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


def _saturate(x: Floats, low: float, high: float) -> Floats:
    return np.clip(x, low, high)


PLAIN: dict[str, Callable[..., Floats]] = {
    "fgcam::Saturate": _saturate,
    "LRN": _lrn,
    "Erf": _erf,
    "Gelu": _gelu,
    "GlobalMaxPool": _global_max_pool,
}


# --- running one rule -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A rule's answer: relevance by operand position, (signed, absolute) leaks, and the sums that the ledger writes."""

    parts: dict[int, Floats]
    leaks: list[tuple[Floats, Floats]]
    books: dict[str, Floats]

    @property
    def leaked(self) -> Floats:
        return np.asarray(self.books["leaked"], np.float64)


def rules(op: str) -> list[str]:
    """The names of an operator's rules: relevance rules (formulas for linear maps), then "gradient"."""
    row = next(row for row in registry.table() if row.op == op)
    if registry.find_linear(op) is None:
        return [*row.rules["relevance"].split(" | "), "gradient"]
    return ["z_plus", *(["z_box"] if "first layer" in row.rules else []), "flat", "gradient"]


def rule(case: Case, name: str, bounds: Any = "per_image") -> Rule:
    """The rule of that name for the case's layer, as the composites choose it; fails where they see a gap."""
    found: Any
    if name == "gradient":
        found = GradientComposite().rule_for(case.layer, case.graph)
    elif name in FORMULAS:
        found = RelevanceComposite(first_layer=FORMULAS[name], zb_bounds=bounds).rule_for(case.layer, case.graph)
    else:
        found = registry.find("relevance", case.op, name)
        assert found is not None
        assert found.refuses(case.layer, case.graph) is None
        assert case.layer.version in found.since
    assert isinstance(found, Rule), found
    return found


def run(
    case: Case,
    rule: Rule,
    x: Mapping[str, Floats],
    r: Sequence[Floats | None],
    backend: Backend | None = None,
    *,
    nonnegative: bool = False,
    masked: bool = False,
) -> Result:
    """``rule`` on ``case``, through a backend (float64 NumPy if none is given).

    ``nonnegative``: tell the rule that every activation is provably >= 0. ``masked``: that the layers behind left no
    relevance on dead cells.
    """
    backend = backend or NumpyBackend(np.float64)
    graph = case.graph
    if nonnegative:
        tensors = {name: replace(graph.tensor(name), nonnegative=True) for name in (*case.inputs, *case.output_names)}
        graph = replace(graph, tensors={**graph.tensors, **tensors})
    outputs = case.forward(x)
    shapes = {name: array.shape for name, array in (*x.items(), *zip(case.output_names, outputs, strict=True))}
    feeds = dict(x) if "x" in rule.reads else {}  # what a rule did not declare it does not see
    if "y" in rule.reads:
        feeds[case.output_names[0]] = outputs[0]
    feeds |= {f"r{k}": part for k, part in enumerate(r) if part is not None}

    def descend(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        node = Node(case.layer, graph, xp, inputs, shapes, {**rule.options, "masked": masked})
        received = [inputs.get(f"r{k}") for k in range(case.outputs)]
        flow = rule.function(node, received if case.outputs > 1 else received[0], xp)
        found = {f"part:{i}": part for i, part in flow.parts.items()}
        for k, leak in enumerate(flow.leaks):
            found |= {f"signed:{k}": leak.signed, f"absolute:{k}": leak.absolute}
        found |= {f"in:{k}": xp.total(part) for k, part in enumerate(received) if part is not None}
        found |= {f"out:{i}": xp.total(part) for i, part in flow.parts.items()}
        return found

    feeds = {name: array.astype(backend.dtype) for name, array in feeds.items()}
    answer = backend.execute(Program(f"single {next(_KEYS)}", descend), feeds)

    def summed(prefix: str) -> Floats:
        found = [np.asarray(value, np.float64) for name, value in answer.items() if name.startswith(prefix)]
        return np.asarray(sum(found, np.zeros(len(next(iter(x.values()))))))

    return Result(
        {int(name[5:]): value for name, value in answer.items() if name.startswith("part:")},
        [(answer[f"signed:{k}"], answer[f"absolute:{k}"]) for k in range(sum(n.startswith("signed:") for n in answer))],
        {"in": summed("in:"), "out": summed("out:"), "leaked": summed("signed:"), "dropped": summed("absolute:")},
    )


def run_float32(case: Case, rule: Rule, x: Mapping[str, Floats], r: Sequence[Floats | None]) -> list[Result]:
    """The same rule in float32: NumPy's answer, then those of the compiled backends."""
    return [run(case, rule, x, r, backend) for backend in (NumpyBackend(np.float32), *backends.compiled())]


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal up to ``tolerance`` of the largest expected value; same shape, no NaN."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    worst = float(np.abs(found - expected).max(initial=0.0)) / scale
    assert worst <= tolerance, f"off by {worst:.3g} of the largest value"


# --- the operator as a matrix -----------------------------------------------------------------------------------------


def linear_ops() -> list[str]:
    return [row.op for row in registry.table() if registry.find_linear(row.op) is not None]


def dense(case: Case, name: str | None = None) -> Floats:
    """The operator's dependence on one activation as a dense matrix [outputs, inputs] for one image.

    One run of the operator itself, whose batch holds every unit input; the run on zeros is taken off (the bias).
    Other activations are 0; several outputs stand one below the other.
    """
    name = name or next(iter(case.inputs))
    size = math.prod(case.shape_of(name)[1:])

    def outputs(units: Floats) -> Floats:
        n = len(units)
        feeds = {other: np.zeros((n, *case.shape_of(other)[1:])) for other in case.inputs}
        feeds[name] = units.reshape(n, *case.shape_of(name)[1:])
        return np.concatenate([y.reshape(n, -1) for y in case.forward(feeds)], axis=1)

    return np.asarray((outputs(np.eye(size)) - outputs(np.zeros((1, size)))).T)


def flatten(arrays: Sequence[Floats]) -> Floats:
    """Each [n, ...] -> side by side [n, cells]."""
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def numeric_gradient(case: Case, x: Mapping[str, Floats], r: Sequence[Floats], name: str, step: float = 1e-5) -> Floats:
    """Central differences of <r, op(x)> in float64, one cell at a time, all cells and images in one batch."""
    base = x[name]
    n, cells = len(base), math.prod(base.shape[1:])
    nudges = np.concatenate([np.eye(cells), -np.eye(cells)]) * step  # [2 cells, cells]

    def repeated(array: Floats) -> Floats:
        return np.repeat(array, 2 * cells, axis=0)

    feeds = {other: repeated(array) for other, array in x.items()}
    feeds[name] = feeds[name] + np.tile(nudges, (n, 1)).reshape(n * 2 * cells, *base.shape[1:])
    outputs = case.forward(feeds)
    value = sum((y * repeated(part)).reshape(n, 2 * cells, -1).sum(axis=2) for y, part in zip(outputs, r, strict=True))
    plus, minus = np.asarray(value)[:, :cells], np.asarray(value)[:, cells:]
    return ((plus - minus) / (2 * step)).reshape(base.shape)


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
