"""A case: one node, and what feeds it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx.errors import OptionError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.testing.compare import Floats
from fgcam_onnx.testing.forward import Operator, operator_of

__all__ = ["STYLES", "Case", "Operand", "X"]

STYLES = ("mixed", "positive", "zero", "denormal")
# Of ONNX's own operators in the model of a case whose operator is of another domain.
OPSET = 17
# Elements of activations whose outputs are kept: a batch of small images, and not one image for each of its cells.
SMALL = 4096


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
    """One node and what feeds it.

    ``id``: its name in messages, and the seed of its values. ``op``: as in the registry, "Conv" or "my.domain::Op".
    ``operands``: by position, an :class:`X`, an array for a constant, None for an omitted one. ``opset``: the version
    of the operator's domain. ``function``: the operator in NumPy, of its operands and attributes, for an operator that
    neither onnx nor onnxruntime knows in float64.
    """

    id: str
    op: str
    operands: tuple[Operand, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = OPSET
    outputs: int = 1
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for i, operand in enumerate(self.operands):
            if not (operand is None or isinstance(operand, (X, np.ndarray))):
                raise OptionError(
                    f"operand {i} of {self.op} is {operand!r}"[:120],
                    known="an operand is an X for an activation, a NumPy array for a constant, None if it is omitted",
                    next="X((2, 3, 8, 7)), or np.asarray(...)",
                )
        if not any(isinstance(operand, X) and operand.same is None for operand in self.operands):
            raise OptionError(f"no operand of {self.op} is an activation", next="give an X, as X((2, 3, 8, 7))")

    # --- the model ------------------------------------------------------------------------------------------------

    @property
    def domain(self) -> str:
        """Of the operator, "" for ONNX's own."""
        return self.op.rpartition("::")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The operands' names, by position: x0 for an activation, c1 for a constant, "" for an omitted one."""
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
        """The node as a model; the activations are its inputs, of a free batch."""
        kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
        constants = [
            numpy_helper.from_array(value.astype(dtype) if value.dtype.kind == "f" else value, name)
            for name, value in zip(self.names, self.operands, strict=True)
            if isinstance(value, np.ndarray)
        ]
        attributes = dict(self.attributes)
        if self.op == "Cast":
            attributes["to"] = kind
        if self.op == "GroupNormalization" and self.opset >= 21:  # the type of the statistics inside
            attributes["stash_type"] = kind
        op = self.op.rpartition("::")[2]
        node = helper.make_node(
            op, list(self.names), list(self.output_names), name="node", domain=self.domain, **attributes
        )
        graph = helper.make_graph(
            [node],
            "single",
            [helper.make_tensor_value_info(name, kind, ("n", *self.shape_of(name)[1:])) for name in self.inputs],
            [helper.make_tensor_value_info(name, kind, None) for name in self.output_names],
            constants,
        )
        opsets = [helper.make_opsetid("", OPSET if self.domain else self.opset)]
        if self.domain:
            opsets.append(helper.make_opsetid(self.domain, self.opset))
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an activation."""
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
        """What the rules see of it."""
        if self.domain != "fgcam":
            return build_view(load(self.single_input()))
        # A layer that only the view has: it takes the place of an Identity.
        graph = replace(self, op="Identity", operands=self.operands[:1], attributes={}).graph
        constants = {i: value for i, value in enumerate(self.operands) if isinstance(value, np.ndarray)}
        layer = replace(graph.layers[0], op=self.op, version=1, inputs=self.names, constants=constants)
        return replace(graph, layers=(replace(layer, attributes=self.attributes),))

    @cached_property
    def layer(self) -> Layer:
        layer = self.graph.layers[-1]
        if layer.op != self.op:
            raise AssertionError(f"the view reads {self.op} as {layer.op}")
        return layer

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
    def operator(self) -> Operator:
        """Who computes the operator: the oracle."""
        return operator_of(self)

    def forward(self, x: Mapping[str, Floats]) -> list[Floats]:
        """The operator itself, in float64 (of values in float32 where nobody has it in float64)."""
        if sum(array.size for array in x.values()) > SMALL:
            return self._computed(x)
        key = tuple((name, array.shape, array.tobytes()) for name, array in x.items())
        if key not in self._answers:
            self._answers[key] = [y.copy() for y in self._computed(x)]
            for y in self._answers[key]:
                y.setflags(write=False)
        return list(self._answers[key])

    @cached_property
    def _answers(self) -> dict[Any, list[Floats]]:
        """The checks ask the operator for the same few activations again and again."""
        return {}

    def _computed(self, x: Mapping[str, Floats]) -> list[Floats]:
        n = len(next(iter(x.values())))
        one_by_one = n > 1 and self.shape_of(next(iter(self.inputs)))[0] == 1
        with np.errstate(all="ignore"):
            try:
                found = [np.asarray(y, np.float64) for y in self.operator.run(x)]
            except Exception:
                if not one_by_one:
                    raise
                found = []
        if one_by_one and (not found or any(y.shape[:1] != (n,) for y in found)):
            # It states a batch of one image: in a constant to which it is joined, in the sizes that it is given.
            rows = [self._computed({name: array[k : k + 1] for name, array in x.items()}) for k in range(n)]
            found = [np.concatenate(pieces) for pieces in zip(*rows, strict=True)]
        return found

    def relevance(self, x: Mapping[str, Floats], seed: int = 7) -> list[Floats]:
        """Random relevance for each output, of mixed sign."""
        rng = np.random.default_rng(seed + zlib.crc32(self.id.encode()))
        return [rng.normal(size=y.shape).astype(np.float32).astype(np.float64) for y in self.forward(x)]

    def __str__(self) -> str:
        return self.id
