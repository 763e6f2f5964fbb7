"""Run one rule on one case."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fgcam_onnx import registry
from fgcam_onnx.backends.base import Array, Backend, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.composite import Gap, GradientComposite, RelevanceComposite, split_rule
from fgcam_onnx.errors import UnsupportedOpError, nearest
from fgcam_onnx.node import Node
from fgcam_onnx.propagation import FORMULAS
from fgcam_onnx.registry import Rule
from fgcam_onnx.testing.case import Case
from fgcam_onnx.testing.compare import Floats, flatten

__all__ = ["Result", "rule", "rules", "run"]

_KEYS = itertools.count()


@dataclass(frozen=True)
class Result:
    """A rule's answer: relevance by operand position, (signed, absolute) leaks, and the sums that the ledger writes."""

    parts: dict[int, Floats]
    leaks: list[tuple[Floats, Floats]]
    books: dict[str, Floats]

    @property
    def leaked(self) -> Floats:
        return np.asarray(self.books["leaked"], np.float64)

    @property
    def relevance(self) -> Floats:
        """All that went on, per image: [n, cells]."""
        n = len(self.books["in"])
        return flatten([np.zeros((n, 0)), *(np.asarray(part, np.float64) for part in self.parts.values())])


def rules(op: str) -> list[str]:
    """The names of an operator's rules: relevance rules (formulas for linear maps), then "gradient" if it has one.

    Raises:
        UnsupportedOpError: it has none.
    """
    table = registry.table()
    row = next((row for row in table if row.op == op), None)
    if row is None:
        ops = [row.op for row in table]
        raise UnsupportedOpError(
            f"no rule is registered for {op}",
            known=f"{', '.join(ops[:4])} and {len(ops) - 4} more: fgcam ops",
            next=nearest(op, ops) or "import the module that registers it first",
        )
    if registry.find_linear(op) is not None:
        without = () if "first layer" in row.rules else ("z_box",)
        return [*(name for name in FORMULAS if name not in (*without, "gradient")), "gradient"]
    own = row.rules["relevance"].split(" | ") if "relevance" in row.rules else []
    return [*own, *(["gradient"] if "gradient" in row.rules else [])]


def rule(case: Case, name: str, bounds: Any = "per_image") -> Rule:
    """The rule of that name for the case's layer, as the composites choose it; a formula may have its parameters.

    Raises:
        UnsupportedOpError: the rule does not serve this layer, and why.
    """
    found: Rule | Gap
    if name == "gradient":
        found = GradientComposite().rule_for(case.layer, case.graph)
    elif registry.find_linear(case.op) is not None and split_rule(name)[0] in FORMULAS:
        found = RelevanceComposite(zb_bounds=bounds).named(case.layer, case.graph, name)
    else:
        found = _own(case, name)
    if isinstance(found, Gap):
        raise UnsupportedOpError(f"rule {name} does not serve this {case.op}: {found.reason}", at=f"case {case.id!r}")
    return found


def _own(case: Case, name: str) -> Rule | Gap:
    found = registry.find("relevance", case.op, name)
    if found is None:
        return Gap("it has no relevance rule of that name")
    if case.layer.version not in found.since:
        return Gap(f"its version {case.layer.version} is not among {', '.join(map(str, found.since))}")
    refusal = found.refuses(case.layer, case.graph)
    return found if refusal is None else Gap(refusal)


class _Declared(Mapping[str, Array]):
    """The activations that a rule declared. Another one is an error that says so."""

    def __init__(self, arrays: Mapping[str, Array], rule: Rule) -> None:
        self.arrays, self.rule = arrays, rule

    def __getitem__(self, name: str) -> Array:
        if name not in self.arrays:
            raise AssertionError(f"it reads the activation {name}, and declares reads={self.rule.reads!r}")
        return self.arrays[name]

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


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
    relevance on dead cells. Where x is one image and r has several rows, the rule gets them as the descent hands them
    over: activations of a batch of 1, and the shapes of the relevance.
    """
    backend = backend or NumpyBackend(np.float64)
    graph = case.graph
    if nonnegative:
        tensors = {name: replace(graph.tensor(name), nonnegative=True) for name in (*case.inputs, *case.output_names)}
        graph = replace(graph, tensors={**graph.tensors, **tensors})
    outputs = case.forward(x)
    shapes = {name: array.shape for name, array in (*x.items(), *zip(case.output_names, outputs, strict=True))}
    images = len(next(iter(x.values())))
    rows = next(len(part) for part in r if part is not None)
    if images == 1 and rows != 1 and len(outputs[0]) == 1:
        shapes = {name: (rows, *shape[1:]) for name, shape in shapes.items()}
        images = rows
    feeds = dict(x) if "x" in rule.reads else {}  # what a rule did not declare it does not see
    if "y" in rule.reads:
        feeds[case.output_names[0]] = outputs[0]
    feeds |= {f"r{k}": part for k, part in enumerate(r) if part is not None}

    def descend(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tape = _Declared(inputs, rule)
        node = Node(case.layer, graph, xp, tape, shapes, {**rule.options, "masked": masked})
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
        return np.asarray(sum(found, np.zeros(images)))

    return Result(
        {int(name[5:]): value for name, value in answer.items() if name.startswith("part:")},
        [(answer[f"signed:{k}"], answer[f"absolute:{k}"]) for k in range(sum(n.startswith("signed:") for n in answer))],
        {"in": summed("in:"), "out": summed("out:"), "leaked": summed("signed:"), "dropped": summed("absolute:")},
    )
