"""Which operator has which rule. The tables in the docs and ``fgcam ops`` are printed from here.

Its decorators fill it:

    @linear_map(Conv=(1, 11, 22))        a class with ``apply`` and ``adjoint``: every propagation formula then holds
    @relevance("winner", reads="x", leaks="...", MaxPool=(1, 8, ...))      a rule of its own, for relevance
    @gradient(reads="x", MaxPool=(1, 8, ...))                              its derivative, for the head and for CAMs

and ``@rescale`` beside ``@gradient`` where DeepLIFT's multiplier of a non-linear operator is not its derivative.

The keywords name operators and list the opset versions whose text in the ONNX specification was read for the rule.
An operator outside ONNX's own domain is written ``**{"my.domain::Op": (1,)}``. A version that is not listed has no
rule: newer semantics are never guessed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.errors import RegistryError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node

__all__ = ["LinearMap", "OpRow", "Rule", "decided_against", "find", "gradient", "linear_map", "names", "no_rule"]
__all__ += ["reason_against", "relevance", "rescale", "table", "versions"]

DeadInputs = Literal["always", "inherits", "never"]
RuleFunction = Callable[[Node, Any, Verbs], Flow]
LinearClass = TypeVar("LinearClass", bound="type[LinearMap]")


def _all_operands(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return layer.operands


def _serves_all(layer: Layer, graph: LayerGraph) -> str | None:
    return None


@dataclass(frozen=True)
class Rule:
    """One rule for one operator.

    ``function(node, r, xp)`` takes the relevance of the output ([n, ...]; for an operator with several outputs a list,
    None where nothing arrived) and returns a :class:`~fgcam_onnx.node.Flow`.

    ``reads``: which activations it needs, any of "x" (all operands) and "y" (the first output).
    ``sends``: the operands that get relevance, decided before anything runs.
    ``refuses``: why this layer cannot be served, None if it can.
    ``leaks``: "conserved", or what is dropped, in words.
    ``dead_inputs``: does x_i = 0 imply R_i = 0 (methods 9.1.5), so that a ReLU before it need not mask? "always",
    "inherits" (where it holds for the output), "never"; or which of these, decided for each layer.
    ``one_sign``: the terms of its sums have one sign (:meth:`fgcam_onnx.backends.base.Verbs.rounding`).
    ``unbounded``: shares may exceed 1 in size, so that the sum of absolute relevance may grow.
    """

    name: str
    op: str
    since: tuple[int, ...]
    function: RuleFunction
    reads: str = ""
    sends: Callable[[Layer, LayerGraph], tuple[int, ...]] = _all_operands
    refuses: Callable[[Layer, LayerGraph], str | None] = _serves_all
    leaks: str = "conserved"
    dead_inputs: DeadInputs | Callable[[Layer, LayerGraph], DeadInputs] = "never"
    options: Mapping[str, Any] = field(default_factory=dict)
    one_sign: bool = False
    unbounded: bool = False

    def dead_inputs_of(self, layer: Layer, graph: LayerGraph) -> DeadInputs:
        return self.dead_inputs if isinstance(self.dead_inputs, str) else self.dead_inputs(layer, graph)


class LinearMap:
    """An operator that is linear in its first operand for fixed weights.

    Subclasses say how to apply it and its adjoint with *given* weights; the propagation formulas in
    ``fgcam_onnx.propagation`` choose those (W+, W-, W, |W|, W^2, ones).
    """

    # True: the operator has no stored weights, its coefficients are all >= 0 (pooling).
    fixed_nonnegative: ClassVar[bool] = False

    @staticmethod
    def weight(layer: Layer) -> np.ndarray | None:
        """The stored weights, None if the operator has none."""
        return layer.constant(1)

    @staticmethod
    def bias(layer: Layer) -> np.ndarray | None:
        """The stored bias, in a shape that broadcasts to the output [n, co, ...]; None if the operator has none."""
        return None

    @staticmethod
    def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
        """The operator on x [n, ...] with weights w, without bias."""
        raise TypeError("a linear map defines apply")

    @staticmethod
    def adjoint(node: Node, s: Array, w: Array | None, xp: Verbs) -> Array:
        """Its adjoint on s, of the output's shape; the result has the input's exact shape."""
        raise TypeError("a linear map defines adjoint")

    @classmethod
    def refuses(cls, layer: Layer, graph: LayerGraph) -> str | None:
        """Why this layer is not a linear map of its first operand, None if it is."""
        if cls.fixed_nonnegative:
            return None
        if 0 in layer.constants:
            return "its first operand is the constant one"
        return None if cls.weight(layer) is not None else "its weights are computed from the input of the network"


@dataclass(frozen=True)
class OpRow:
    """A row of ``fgcam ops``. ``rules``: rule name by kind."""

    op: str
    since: tuple[int, ...]
    rules: dict[str, str]
    leaks: str


_RULES: dict[tuple[str, str, str], Rule] = {}  # (kind, op, name)
_LINEAR: dict[str, tuple[type[LinearMap], tuple[int, ...]]] = {}
_AGAINST: dict[tuple[str, str], str] = {}  # (kind, op) -> why there is no rule


def _check(op: str, since: tuple[int, ...], what: str) -> None:
    if "::" in op:
        return
    from onnx import defs

    for version in since:
        try:
            found = defs.get_schema(op, version, "").since_version
        except defs.SchemaError:
            found = None
        if found != version and version <= defs.onnx_opset_version():
            raise RegistryError(
                f"{what} claims {op}-{version}, which ONNX does not define",
                known=f"the version in force at opset {version} is {found}" if found else f"no operator {op} there",
                next="list the since-versions of the operator",
            )


def _refuse_second(taken: bool, what: str) -> None:
    if taken:
        raise RegistryError(
            f"{what} is registered already",
            known="one operator has one rule of a name; a file loaded under two import names also registers twice",
            next="give the rule another name, or import it as fgcam_onnx.rules.<file>",
        )


def linear_map(**ops: tuple[int, ...]) -> Callable[[LinearClass], LinearClass]:
    """Register a :class:`LinearMap` for operators, with the since-versions it was written for."""

    def register(cls: LinearClass) -> LinearClass:
        for op, since in ops.items():
            _refuse_second(op in _LINEAR, f"a linear map for {op}")
            _check(op, since, f"the linear map {cls.__name__}")
            _LINEAR[op] = (cls, since)
        return cls

    return register


def _register(kind: str, name: str, function: RuleFunction, ops: Mapping[str, tuple[int, ...]], **fields: Any) -> None:
    for op, since in ops.items():
        _refuse_second((kind, op, name) in _RULES, f"a {kind} rule {name!r} for {op}")
        _check(op, since, f"the {kind} rule {name!r}")
        _RULES[kind, op, name] = Rule(name, op, since, function, **fields)


def relevance(
    name: str,
    *,
    reads: str = "",
    leaks: str = "conserved",
    dead_inputs: DeadInputs | Callable[[Layer, LayerGraph], DeadInputs] = "never",
    sends: Callable[[Layer, LayerGraph], tuple[int, ...]] = _all_operands,
    refuses: Callable[[Layer, LayerGraph], str | None] = _serves_all,
    unbounded: bool = False,
    **ops: tuple[int, ...],
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a relevance rule for operators that are no linear map. The fields are those of :class:`Rule`."""

    def register(function: RuleFunction) -> RuleFunction:
        _register("relevance", name, function, ops, reads=reads, leaks=leaks, dead_inputs=dead_inputs, sends=sends,
                  refuses=refuses, unbounded=unbounded)  # fmt: skip
        return function

    return register


def gradient(
    *,
    name: str = "gradient",
    reads: str = "",
    sends: Callable[[Layer, LayerGraph], tuple[int, ...]] = _all_operands,
    refuses: Callable[[Layer, LayerGraph], str | None] = _serves_all,
    **ops: tuple[int, ...],
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the derivative of operators that are no linear map; or, by another ``name``, what stands in for it."""

    def register(function: RuleFunction) -> RuleFunction:
        _register("gradient", name, function, ops, reads=reads, sends=sends, refuses=refuses)
        return function

    return register


def rescale(
    *,
    reads: str = "",
    sends: Callable[[Layer, LayerGraph], tuple[int, ...]] = _all_operands,
    refuses: Callable[[Layer, LayerGraph], str | None] = _serves_all,
    **ops: tuple[int, ...],
) -> Callable[[RuleFunction], RuleFunction]:
    """Register DeepLIFT's multipliers of operators that are no linear map.

    What a rule reads it finds twice: ``node.x(i)``, ``node.y`` on the input, ``node.x0(i)``, ``node.y0`` on the
    reference. Operators without such a rule that only move cells are served by their derivative.
    """

    def register(function: RuleFunction) -> RuleFunction:
        _register("rescale", "rescale", function, ops, reads=reads, sends=sends, refuses=refuses)
        return function

    return register


def no_rule(kind: str, reason: str, *ops: str) -> None:
    """State why operators have no rule of a kind: errors and coverage then say it."""
    for op in ops:
        _refuse_second((kind, op) in _AGAINST, f"why {op} has no {kind} rule")
        _AGAINST[kind, op] = reason


def decided_against() -> dict[str, tuple[str, ...]]:
    """The operators that will have no relevance rule, by reason."""
    _load_rules()
    found: dict[str, tuple[str, ...]] = {}
    for (kind, op), reason in _AGAINST.items():
        if kind == "relevance":
            found[reason] = (*found.get(reason, ()), op)
    return found


def reason_against(kind: str, op: str) -> str | None:
    """Why the operator has no rule of that kind, None if nobody decided against one."""
    _load_rules()
    return _AGAINST.get((kind, op))


def _load_rules() -> None:
    importlib.import_module("fgcam_onnx.rules")


def find(kind: str, op: str, name: str | None = None) -> Rule | None:
    """The rule of an operator, by name or the first registered one; None if there is none.

    Of kind "gradient" the one without a name is the derivative.
    """
    _load_rules()
    if name is None and kind == "gradient":
        name = "gradient"
    if name is not None:
        return _RULES.get((kind, op, name))
    return next((rule for (k, o, _), rule in _RULES.items() if (k, o) == (kind, op)), None)


def names(kind: str, op: str) -> tuple[str, ...]:
    """The names of an operator's rules of a kind, the default first."""
    _load_rules()
    return tuple(name for (k, o, name) in _RULES if (k, o) == (kind, op))


def find_linear(op: str) -> tuple[type[LinearMap], tuple[int, ...]] | None:
    """The linear map of an operator and its since-versions."""
    _load_rules()
    return _LINEAR.get(op)


def versions(op: str) -> tuple[int, ...]:
    """The since-versions for which the operator has rules, () if it has none."""
    linear = find_linear(op)
    if linear is not None:
        return linear[1]
    rule = find("relevance", op)
    return rule.since if rule is not None else ()


def table() -> list[OpRow]:
    """Every operator with a rule, sorted by name."""
    _load_rules()
    rows = [
        OpRow(op, since, {"relevance": "z_plus", "first layer": "z_box", "gradient": "gradient"}
              if not cls.fixed_nonnegative else {"relevance": "z_plus", "gradient": "gradient"},
              "relevance of outputs whose denominator is 0")
        for op, (cls, since) in _LINEAR.items()
    ]  # fmt: skip
    for op in dict.fromkeys(op for _, op, _ in _RULES):
        rules = [rule for (kind, o, _), rule in _RULES.items() if o == op and kind == "relevance"]
        has_gradient = ("gradient", op, "gradient") in _RULES
        names = {"relevance": " | ".join(rule.name for rule in rules)} if rules else {}
        first = rules[0] if rules else _RULES["gradient", op, "gradient"]
        rows.append(OpRow(op, first.since, names | ({"gradient": "gradient"} if has_gradient else {}), first.leaks))
    return sorted(rows, key=lambda row: row.op)
