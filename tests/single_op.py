"""One operator at a time: a model of one node, its activations, and one rule run on it.

The oracle for values is the ONNX operator itself, through onnx's reference evaluator in float64; nothing in
``fgcam_onnx`` computes an expected value. :func:`grid` moves every attribute of every registered operator off its
default; the ids show what was moved.
"""

from __future__ import annotations

import functools
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

__all__ = ["Case", "Descent", "Floats", "Result", "X", "close", "dense", "descend", "distinct", "flatten", "grid"]
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


# --- the grid ---------------------------------------------------------------------------------------------------------


def _weight(*shape: int, seed: int = 0) -> Floats:
    values = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return np.where(np.abs(values) < 0.01, np.float32(0.5), values)  # no cell is 0: flat counts the cells by it


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def _scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def _label(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Grid:
    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(
        self,
        op: str,
        *operands: Operand,
        opset: int | Sequence[int] = 17,
        tag: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> None:
        """A case for each opset."""
        for version in [opset] if isinstance(opset, int) else opset:
            words = [op, f"opset{version}", *([tag] if tag else [])]
            words += [f"{key}={_label(value)}" for key, value in attributes.items() if key != "to"]
            self.cases.append(Case("-".join(words), op, operands, attributes, version, outputs))


@functools.cache
def grid() -> tuple[Case, ...]:
    """Every registered operator, every attribute off its default, every version in force from opset 7 on."""
    add = _Grid()
    for fill in (
        _convolutions,
        _matrices,
        _averages,
        _max_pools,
        _arithmetic,
        _joins,
        _slices,
        _shapes,
        _norms,
        _smooth,
    ):
        fill(add)
    ids = [case.id for case in add.cases]
    assert len(set(ids)) == len(ids), sorted(i for i in ids if ids.count(i) > 1)
    return tuple(add.cases)


def distinct() -> tuple[Case, ...]:
    """The grid without the repetitions of a node at further opsets."""
    found: dict[str, Case] = {}
    for case in grid():
        found.setdefault(case.id.replace(f"-opset{case.opset}", ""), case)
    return tuple(found.values())


def _convolutions(add: _Grid) -> None:
    x = X((2, 4, 7, 6))
    w = _weight(6, 4, 3, 2)
    add("Conv", x, w, opset=(7, 11, 22))
    add("Conv", x, w, _weight(6), tag="bias", kernel_shape=[3, 2])
    add("Conv", X((2, 3, 9)), _weight(4, 3, 3), tag="1d", strides=[2], pads=[1, 0])
    add("Conv", X((1, 2, 11)), _weight(4, 1, 2), tag="1d", strides=[3], dilations=[2], pads=[0, 3], group=2)
    add("Conv", x, _weight(6, 2, 3, 3), group=2)
    add("Conv", x, _weight(4, 1, 3, 3), tag="depthwise", group=4, pads=[1, 1, 1, 1])
    add("Conv", x, _weight(8, 1, 3, 3), tag="depthwise2", group=4, strides=[2, 2], pads=[1, 0, 0, 1])
    add("Conv", x, _weight(5, 4, 3, 2), dilations=[2, 3])
    add("Conv", x, _weight(5, 4, 3, 2), dilations=[2, 3], strides=[2, 1], pads=[1, 0, 2, 3])
    add("Conv", x, w, pads=[1, 0, 2, 1], strides=[2, 2])
    add("Conv", x, w, pads=[0, 2, 0, 0], strides=[1, 3])
    add("Conv", x, w, pads=[3, 2, 4, 3], tag="pads_beyond_kernel")
    add("Conv", x, w, pads=[4, 3, 0, 0], strides=[2, 2], tag="pads_beyond_kernel")
    add("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 2])
    add("Conv", x, w, auto_pad="SAME_LOWER", strides=[2, 2])
    add("Conv", x, w, auto_pad="SAME_LOWER", dilations=[2, 1])
    add("Conv", x, w, auto_pad="VALID", strides=[3, 1])
    add("Conv", X((2, 2, 9, 8)), _weight(3, 2, 2, 2), tag="stride_over_kernel", strides=[4, 3])
    add("Conv", X((2, 2, 9, 9)), _weight(3, 2, 2, 2), tag="stride_over_kernel", strides=[3, 3], pads=[1, 1, 0, 0])
    add("Conv", X((2, 3, 8, 7)), _weight(3, 3, 3, 3), tag="leftovers", strides=[3, 3])
    add("Conv", X((1, 3, 12, 13)), _weight(4, 3, 5, 5), tag="first_layer", strides=[4, 4], pads=[2, 2, 2, 2])
    add("Conv", X((1, 3, 10, 7)), _weight(4, 3, 3, 3), tag="first_layer", strides=[2, 2], pads=[1, 1, 1, 1])
    add(
        "Conv",
        X((1, 3, 10, 7)),
        _weight(4, 3, 3, 3),
        tag="first_layer",
        strides=[2, 2],
        dilations=[2, 2],
        pads=[2, 1, 0, 3],
    )
    add("Conv", x, _weight(5, 4, 1, 1), tag="pointwise", strides=[2, 2])
    add("Conv", X((2, 20, 5, 6)), _weight(4, 20, 3, 3), tag="wide", strides=[2, 2], pads=[1, 0, 1, 1])
    add("Conv", X((2, 3, 1, 1)), _weight(4, 3, 1, 1), tag="one_cell")
    add(
        "Conv",
        X((2, 4, 4, 5, 3)),
        _weight(4, 2, 2, 3, 2),
        tag="3d",
        strides=[1, 2, 1],
        pads=[1, 0, 0, 0, 2, 1],
        group=2,
    )
    add("Conv", X((1, 2, 5, 4, 6)), _weight(3, 2, 2, 2, 2), tag="3d", dilations=[2, 1, 3], strides=[2, 2, 2])


def _matrices(add: _Grid) -> None:
    x = X((3, 5))
    add("Gemm", x, _weight(5, 4), _weight(4), opset=(7, 9, 11, 13))
    add("Gemm", x, _weight(4, 5), _weight(1, 4), transB=1, alpha=0.5, beta=2.0)
    add("Gemm", x, _weight(5, 4), tag="no_bias", alpha=-1.5, opset=13)
    add("MatMul", x, _weight(5, 4), opset=(7, 9, 13))
    add("MatMul", X((2, 3, 5)), _weight(5, 4), tag="3d")
    add("MatMul", X((2, 3, 5)), _weight(1, 5, 4), tag="one_matrix_stacked")
    add("MatMul", X((2, 1, 3, 5)), _weight(4, 5, 2), tag="broadcast")


def _averages(add: _Grid) -> None:
    x = X((2, 3, 7, 6))
    add("AveragePool", x, opset=(7, 10, 11, 19, 22), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
    add("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1], count_include_pad=1)
    add("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)
    add(
        "AveragePool",
        x,
        opset=19,
        kernel_shape=[2, 3],
        strides=[2, 2],
        ceil_mode=1,
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    )
    add("AveragePool", x, opset=19, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 0, 0, 1])
    add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")
    add("AveragePool", x, kernel_shape=[3, 2], strides=[2, 3], auto_pad="VALID")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[3, 3], tag="stride_over_kernel")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], tag="touching")
    add("AveragePool", X((2, 3, 7, 5)), kernel_shape=[2, 2], strides=[2, 2], tag="touching", ceil_mode=1)
    add("AveragePool", X((2, 3, 9)), tag="1d", kernel_shape=[4], strides=[2], pads=[2, 1])
    add("AveragePool", X((1, 2, 4, 5, 3)), tag="3d", kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[0, 1, 1, 0, 0, 1])
    add("GlobalAveragePool", x, opset=(7, 22))
    add("GlobalAveragePool", X((2, 3, 5)), tag="1d")
    add("GlobalAveragePool", X((2, 3, 2, 3, 4)), tag="3d")
    add("GlobalAveragePool", X((2, 3, 1, 1)), tag="one_cell")
    add("ReduceMean", x, opset=(7, 11, 13), axes=[2, 3])
    add("ReduceMean", x, opset=13, axes=[-1, -2], keepdims=0)
    add("ReduceMean", x, opset=13, axes=[1], keepdims=0)
    add("ReduceMean", x, _ints(2, 3), opset=18, tag="operand", keepdims=0)
    add("ReduceMean", x, _ints(), opset=18, tag="none", noop_with_empty_axes=1)
    add("ReduceSum", x, opset=(7, 11), axes=[2], keepdims=0)
    add("ReduceSum", x, _ints(-1, 2), opset=13, tag="operand")
    add("ReduceSum", x, _ints(1, 3), opset=13, tag="operand", keepdims=0)


def _max_pools(add: _Grid) -> None:
    x = X((2, 3, 7, 6))
    ties = X(values=np.random.default_rng(5).integers(-1, 2, (2, 3, 7, 6)))
    add("MaxPool", x, opset=(7, 8, 10, 11, 12, 22), kernel_shape=[2, 2], strides=[2, 2])
    add("MaxPool", ties, tag="ties", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    add("MaxPool", ties, tag="ties_overlap", kernel_shape=[2, 3])
    add("MaxPool", ties, tag="ties", kernel_shape=[2, 2], storage_order=1, strides=[2, 2])
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1])
    add("MaxPool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)
    add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[0, 1, 0, 0])
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 3])
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 2], tag="dilated_overlap")
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 1])
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    add("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 3], auto_pad="VALID")
    add("MaxPool", x, kernel_shape=[2, 2], strides=[3, 4], tag="stride_over_kernel")
    add("MaxPool", X((2, 3, 9)), tag="1d", kernel_shape=[4], strides=[3], pads=[2, 1])
    add("MaxPool", X((1, 2, 4, 5, 3)), tag="3d", kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[0, 1, 1, 0, 0, 1])
    add("GlobalMaxPool", x, opset=(7, 22))
    add("GlobalMaxPool", ties, tag="ties")
    add("GlobalMaxPool", X((2, 3, 5)), tag="1d")


def _arithmetic(add: _Grid) -> None:
    a, b = X((2, 3, 4, 5)), X((2, 3, 4, 5), low=None)
    for op in ("Add", "Sub"):
        add(op, a, b, opset=(7, 13, 14))
        add(op, a, X((2, 3, 1, 1)), tag="broadcast")
        add(op, X((2, 1, 4, 5)), X((2, 3, 1, 5)), tag="broadcast_both")
        add(op, a, X(same=0), tag="itself")
        add(op, a, _weight(3, 1, 1), tag="constant")
        add(op, _weight(3, 1, 1), a, tag="constant_first")
        add(op, X((2, 1, 4, 1)), _weight(3, 1, 5), tag="constant_broadcasts")
    add("Sum", a, b, X((2, 3, 4, 5)), opset=(8, 13))
    add("Sum", a, X((2, 3, 1, 5)), _weight(3, 4, 1), tag="broadcast_and_constant")
    add("Sum", a, tag="one")
    add("Mul", a, b, opset=(7, 13, 14))
    add("Mul", a, X((2, 3, 1, 1)), tag="gate")
    add("Mul", X((2, 3, 1, 1)), a, tag="gate_first")
    add("Mul", a, X((2, 1, 4, 5)), tag="broadcast")
    add("Mul", a, X(same=0), tag="itself")
    add("Mul", a, _weight(3, 1, 1), tag="constant")
    add("Mul", X((2, 1, 4, 1)), _weight(3, 1, 5), tag="constant_broadcasts")
    add("Div", a, X((2, 3, 4, 5), low=0.5), opset=(7, 13, 14))
    add("Div", a, X((2, 1, 4, 1), low=0.5), tag="broadcast")
    add("Div", a, _weight(3, 1, 1), tag="constant")
    add("Div", _weight(3, 1, 1), X((2, 3, 4, 5), low=0.5), tag="constant_first")


def _joins(add: _Grid) -> None:
    a = X((2, 3, 4, 5))
    add("Concat", a, X((2, 1, 4, 5)), X((2, 2, 4, 5)), opset=(7, 11, 13), axis=1)
    add("Concat", a, X((2, 3, 4, 2)), tag="last", axis=-1)
    add("Concat", a, X(same=0), tag="itself", axis=2)
    add("Concat", X((1, 3, 4)), _weight(1, 2, 4), X((1, 1, 4)), tag="constant", axis=1)
    x = X((2, 7, 4, 5))
    add("Split", x, opset=(7, 11), tag="uneven", outputs=3, axis=1, split=[1, 4, 2])
    add("Split", x, _ints(3, 4), opset=(13, 18), tag="uneven", outputs=2, axis=1)
    add("Split", X((2, 6, 4, 5)), opset=13, tag="even", outputs=3, axis=-3)
    add("Split", x, opset=18, tag="last_is_smaller", outputs=3, axis=1, num_outputs=3)


def _slices(add: _Grid) -> None:
    x = X((2, 5, 7, 6))
    add("Slice", x, opset=7, starts=[1, -5], ends=[4, 1000], axes=[1, 2])
    add("Slice", x, opset=7, tag="no_axes", starts=[0, 2], ends=[1000, 5])
    add("Slice", x, _ints(1, 2), _ints(5, 7), _ints(1, 3), opset=(10, 11, 13), tag="range")
    add("Slice", x, _ints(0, 6), _ints(1000, 0), _ints(-1, 2), _ints(2, -3), tag="steps")
    add("Slice", x, _ints(-1), _ints(-1000), _ints(2), _ints(-1), tag="reversed")
    add("Slice", x, _ints(-2, 1), _ints(-5, -1), _ints(1, 2), _ints(-1, 2), tag="negative")
    add("Slice", x, _ints(6), _ints(-8), _ints(2), _ints(-2), tag="to_the_front")
    add("Slice", x, _ints(4), _ints(-(2**63)), _ints(1), _ints(-1), tag="int_min")
    add("Gather", x, _ints(3, 0, 3, -1), opset=(7, 11, 13), tag="repeated", axis=1)
    add("Gather", x, np.asarray(2, np.int64), tag="scalar", axis=-2)
    add("Gather", x, _ints(5, 1, 1, 0).reshape(2, 2), tag="two_axes", axis=3)
    add("Pad", x, opset=7, pads=[0, 0, 1, 2, 0, 0, 0, 3])
    add("Pad", x, opset=7, mode="reflect", pads=[0, 0, 2, 1, 0, 0, 3, 0])
    add("Pad", x, _ints(0, 0, 1, 2, 0, 1, 0, 3), opset=(11, 13, 18, 19, 21, 23, 24, 25), tag="constant")
    add("Pad", x, _ints(0, 0, 1, 2, 0, 0, 0, 3), _scalar(1.5), tag="fill", opset=13)
    add("Pad", x, _ints(0, 0, -1, -2, 0, -1, 0, -1), tag="crops", opset=13)
    add("Pad", x, _ints(0, 0, -1, 2, 0, 1, 3, -2), tag="crops_and_pads", opset=13)
    add("Pad", x, _ints(0, 2, 1, 3, 0, 0, 2, 0), tag="mirror", opset=13, mode="reflect")
    add("Pad", x, _ints(0, 0, 3, 2, 0, 1, 0, 4), tag="copies", opset=13, mode="edge")
    add("Pad", x, _ints(2, 1, 0, 3), None, _ints(3, 2), tag="axes", opset=18)
    add("Pad", x, _ints(2, 1, 0, 3), None, _ints(-1, 2), tag="axes", opset=19, mode="wrap")


def _shapes(add: _Grid) -> None:
    x = X((2, 3, 4, 5))
    every = (13, 21, 23, 24, 25)
    add("Reshape", x, _ints(0, -1), opset=(7, *every, 14, 19))
    add("Reshape", x, _ints(-1, 4, 3, 5), tag="mixes")
    add("Flatten", x, opset=(7, 9, 11, *every))
    add("Flatten", x, tag="axis", opset=13, axis=-3)
    add("Squeeze", X((2, 3, 1, 1)), opset=(7, 11), axes=[2, 3])
    add("Squeeze", X((2, 3, 1, 1)), _ints(-1, 2), opset=every, tag="operand")
    add("Squeeze", X((2, 1, 4, 1)), opset=13, tag="all")
    add("Unsqueeze", X((2, 3)), opset=(7, 11), axes=[2, 3])
    add("Unsqueeze", X((2, 3)), _ints(-1, 1), opset=every, tag="operand")
    add("Transpose", x, opset=(7, *every), perm=[0, 2, 3, 1])
    add("Transpose", X((2, 3, 4)), perm=[0, 2, 1])
    add("Identity", x, opset=(7, *every, 14, 16, 19))
    add("Cast", x, opset=(7, 9, *every, 19, 28), to=1)
    add("Dropout", x, opset=(7, 10), ratio=0.3)
    add("Dropout", x, _scalar(0.4), opset=(12, 13, 22), tag="operand")
    add("Dropout", x, _scalar(0.4), np.asarray(False), opset=13, tag="not_training")


def _norms(add: _Grid) -> None:
    parameters = (_weight(3), _weight(3, seed=1), _weight(3, seed=2), np.abs(_weight(3, seed=3)) + np.float32(0.1))
    add("BatchNormalization", X((2, 3, 4, 5)), *parameters, opset=(7, 9, 14, 15), epsilon=0.1)
    add("BatchNormalization", X((4, 3)), *parameters, tag="flat", opset=15)
    add("BatchNormalization", X((2, 3, 4)), *parameters, tag="1d", opset=15, momentum=0.5)
    for size in (1, 2, 3, 4, 9):
        add("LRN", X((2, 6, 3, 2)), size=size, alpha=0.3, beta=0.6, bias=1.4, opset=(7, 13) if size == 3 else 13)
    add("LRN", X((2, 6, 3, 2)), tag="defaults", size=5)


def _smooth(add: _Grid) -> None:
    x = X((2, 3, 4, 5))
    spread = X(values=6 * np.random.default_rng(3).normal(size=(2, 3, 4, 5)))
    add("Relu", x, opset=(7, 13, 14))
    add("Clip", spread, opset=(7,), min=-1.0, max=2.5)
    add("Clip", x, opset=(7,), tag="no_bounds")
    add("Clip", spread, _scalar(0), _scalar(6), opset=(11, 12, 13), tag="relu6")
    add("Clip", x, _scalar(-0.5), tag="below")
    add("Clip", x, None, _scalar(0.25), tag="above")
    add("Clip", x, _scalar(0.5), _scalar(1), tag="zero_is_outside")
    add("fgcam::Saturate", spread, low=-1.0, high=2.5)
    add("fgcam::Saturate", spread, tag="relu6", low=0.0, high=6.0)
    add("LeakyRelu", x, opset=(7, 16), alpha=0.3)
    add("LeakyRelu", x, tag="default")
    add("PRelu", x, _weight(3, 1, 1), opset=(7, 9, 16))
    add("PRelu", x, np.full(1, -0.2, np.float32), tag="one_slope")
    add("Elu", x, opset=(7, 22), alpha=1.7)
    add("Selu", x, opset=(7, 22), alpha=1.3, gamma=0.8)
    add("Selu", x, tag="default")
    add("Celu", x, opset=(12, 28), alpha=0.6)
    add("Softplus", spread, opset=(7, 22))
    add("Softsign", x, opset=(7, 22))
    add("Tanh", x, opset=(7, 13))
    add("Sigmoid", spread, opset=(7, 13))
    add("HardSigmoid", spread, opset=(7, 22), alpha=0.3, beta=0.4)
    add("HardSigmoid", spread, tag="default")
    add("HardSwish", spread, opset=(14, 22))
    add("Swish", spread, opset=24, alpha=0.7)
    add("Mish", spread, opset=(18, 22))
    add("Gelu", spread, opset=20)
    add("Gelu", spread, opset=20, approximate="tanh")
    add("Erf", x, opset=(9, 13))
    add("Exp", x, opset=(7, 13))
    add("Log", X((2, 3, 4, 5), low=0.1), opset=(7, 13))
    add("Sqrt", X((2, 3, 4, 5), low=0.1), opset=(7, 13))
    add("Pow", X((2, 3, 4, 5), low=0.1), _scalar(1.5), opset=(7, 12, 13, 15))
    add("Pow", x, _scalar(2), tag="square")
    add("Pow", x, np.asarray([2, 3, 1], np.float32).reshape(3, 1, 1), tag="a_power_each")
    add("Abs", x, opset=(7, 13))
    add("Neg", x, opset=(7, 13))


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
