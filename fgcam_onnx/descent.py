"""The descent: from L down to the target, one rule a layer.

    relevance[L] = start
    for each layer, in reverse topological order:
        for (tensor, part) in rule(layer, relevance of its output): relevance[tensor] += part

All summing at fan-out and all bookkeeping happens here, once. A rule sees one layer; see ``fgcam_onnx.node``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Array, Program, Verbs
from fgcam_onnx.composite import Composite, Gap
from fgcam_onnx.errors import LayerError, UnsupportedOpError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.sizes import sizes_known, sources_of_sizes
from fgcam_onnx.ledger import Ledger, LedgerRow
from fgcam_onnx.node import REFERENCE, Node
from fgcam_onnx.registry import Rule

__all__ = ["Plan", "Step", "ledger_of", "plan", "program"]

START, RESULT = "relevance_at_start", "relevance_at_target"


@dataclass(frozen=True)
class Step:
    """A layer and the rule that serves it. ``masked``: the layers behind leave no relevance on dead cells."""

    layer: Layer
    rule: Rule
    masked: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The activations that the rule needs."""
        if self.masked and self.rule.name == "mask":
            return ()
        names: list[str] = []
        if "x" in self.rule.reads:
            names += [self.layer.inputs[i] for i in self.layer.operands]
        if "y" in self.rule.reads:
            names.append(self.layer.output)
        if self.rule.name == "rescale":
            names += [REFERENCE + name for name in names]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Plan:
    """The way down, decided before anything runs."""

    graph: LayerGraph
    source: str
    target: str
    steps: tuple[Step, ...]
    key: str

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Every activation that the descent reads."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.reads))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor whose shape the descent needs."""
        names = [n for s in self.steps for n in (*(s.layer.inputs[i] for i in s.layer.operands), *s.layer.outputs) if n]
        names += [name for s in self.steps for name in sources_of_sizes(self.graph, s.layer)]
        return tuple(dict.fromkeys((self.source, self.target, *names)))

    @cached_property
    def unbounded(self) -> bool:
        """May the sum of absolute relevance grow on the way?"""
        return any(step.rule.unbounded for step in self.steps)

    @cached_property
    def aside(self) -> tuple[tuple[Layer, str], ...]:
        """Layers and those of their operands that get relevance which does not lead to the target.

        They come from another input of the model, or pass by a target that is no cut.
        """
        on_path = self.graph.ancestors(self.source) & self.graph.descendants(self.target)
        return tuple(
            (s.layer, name) for s in self.steps for name in _sent(s.layer, s.rule, self.graph) if name not in on_path
        )

    def shared(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """A tensor beside the path that all images of a batch share: what goes to it would be summed over them."""
        for layer, name in self.aside:
            own, whole = shapes.get(name, ()), shapes.get(layer.output, ())
            if len(own) < len(whole) or own[:1] != whole[:1]:
                return name
        return None


def plan(graph: LayerGraph, source: str, target: str, composite: Composite, *, dead_start: bool = False) -> Plan:
    """Choose a rule for every layer between ``source`` (L) and ``target``.

    ``dead_start``: the start is 0 wherever the activation of ``source`` is.

    Raises:
        LayerError: ``target`` is not upstream of ``source``.
        UnsupportedOpError: a layer on the path has no rule.
    """
    steps, gaps = walk(graph, source, target, composite, dead_start)
    if gaps:
        raise _gap_error(graph, gaps, composite)
    if source != target and not any(target in _sent(s.layer, s.rule, graph) for s in steps):
        raise LayerError(
            f"no relevance can reach {target!r} from {source!r}",
            known="the first is not upstream of the second" if target not in graph.ancestors(source) else
                  "every way between them is a gate, which gets no relevance",
            next="choose layer= upstream of start=: fgcam inspect lists both",
        )  # fmt: skip
    return Plan(graph, source, target, tuple(steps), f"{composite.key}|{source}|{target}|{dead_start}")


def walk(
    graph: LayerGraph, source: str, target: str, composite: Composite, dead_start: bool = False
) -> tuple[list[Step], list[tuple[Layer, Gap]]]:
    """The steps, and the layers without a rule; behind such a layer every operand counts as reached."""
    on_path = graph.ancestors(source) & graph.descendants(target)
    reached, dead = {source}, {source: dead_start}
    steps: list[Step] = []
    gaps: list[tuple[Layer, Gap]] = []
    for layer in reversed(graph.layers):
        arriving = [name for name in layer.outputs if name in reached and name != target]
        if not arriving or not on_path.intersection(layer.inputs[i] for i in layer.operands):
            continue
        rule = composite.rule_for(layer, graph)
        if isinstance(rule, Gap):
            gaps.append((layer, rule))
            reached.update(layer.inputs[i] for i in layer.operands if layer.inputs[i] in on_path)
            continue
        if not _sent(layer, rule, graph):  # the relevance would vanish without a word
            gaps.append((layer, Gap("its rule hands relevance to a constant")))
            continue
        masked = all(dead.get(name, False) for name in arriving)
        steps.append(Step(layer, rule, masked))
        dead_inputs = rule.dead_inputs_of(layer, graph)
        quiet = dead_inputs == "always" or (dead_inputs == "inherits" and masked)
        for name in _sent(layer, rule, graph):
            if name in on_path:
                dead[name] = quiet and dead.get(name, True)
                reached.add(name)
    return steps, gaps


def _sent(layer: Layer, rule: Rule, graph: LayerGraph) -> list[str]:
    return [layer.inputs[i] for i in rule.sends(layer, graph) if i in layer.operands]


def _gap_error(graph: LayerGraph, gaps: list[tuple[Layer, Gap]], composite: Composite) -> UnsupportedOpError:
    from fgcam_onnx import registry

    layer, gap = gaps[0]
    before = graph.producer(layer.inputs[layer.operands[0]]) if layer.operands else None
    behind = graph.consumers(layer.output)
    way = " -> ".join([before.name if before else graph.image, layer.name, behind[0].name if behind else layer.output])
    ops = [row.op for row in registry.table()]
    more = f" (and {len(gaps) - 1} more nodes without a rule: fgcam inspect)" if len(gaps) > 1 else ""
    file = layer.op.split("::")[-1].lower()
    option = "layer=" if composite.kind == "relevance" else "start="
    advice = f"a map may be had behind it: {option} a tensor between this node and the scores (fgcam inspect)"
    if registry.reason_against(composite.kind, layer.op) is None:
        advice = f"register one, as rules/{file}.py would: see 'Adding a rule' in the README"
    what = f"no {composite.kind} rule for {layer.op}-{layer.version}"
    return UnsupportedOpError(
        (what if gap.reason == what else f"{what}: {gap.reason}") + more,
        at=f"node {layer.name!r}   ({way})",
        known=f"{', '.join(ops[:4])} and {len(ops) - 4} more: fgcam ops",
        next=advice,
    )


def program(plan: Plan, shapes: Mapping[str, tuple[int, ...]], *, keep_books: bool = True) -> Program:
    """The descent as a computation in verbs: takes the tape and ``START``, returns ``RESULT`` and the books."""

    def run(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return descend(plan, shapes, xp, inputs, keep_books)

    sizes = ";".join(f"{name}{shapes.get(name)}" for name in plan.tensors)
    return Program(f"{plan.key}|{keep_books}|{sizes}", run)


def descend(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]], xp: Verbs, tape: Mapping[str, Array], keep_books: bool
) -> dict[str, Array]:
    """Walk the plan. Books, each [n]: ``in:``, ``out:``, ``leaked:``, ``dropped:`` + position of the step; ``passed:``
    the sum of absolute relevance that came in, where the plan is unbounded.

    Several rows of one image: START has a row for each, the tape a batch of 1, and ``shapes`` those of the relevance.

    ``aside:``, ``aside_absolute:`` + name of a tensor that got relevance and does not lead to the target.
    """
    arrived: dict[str, Array] = {plan.source: tape[START]}
    images = xp.shape(tape[START])[0]
    books: dict[str, Array] = {}
    if keep_books:
        books["start"] = xp.total(tape[START])
        books["start_absolute"] = xp.total(xp.absolute(tape[START]))
    for position, step in enumerate(plan.steps):
        layer = sizes_known(plan.graph, step.layer, shapes)
        received = [None if name == plan.target else arrived.pop(name, None) for name in layer.outputs]
        options: dict[str, Any] = {**step.rule.options, "masked": step.masked}
        node = Node(layer, plan.graph, xp, tape, shapes, options)
        several = len([name for name in layer.outputs if name]) > 1 and layer.op == "Split"
        xp.rounding(one_sign=step.rule.one_sign)
        flow = step.rule.function(node, received if several else received[0], xp)
        if keep_books:
            _write(books, position, [r for r in received if r is not None], flow, xp, images, plan.unbounded)
        for operand, part in flow.parts.items():
            name = layer.inputs[operand]
            if name in arrived:
                part = xp.add(arrived[name], part)
            arrived[name] = part
    result = arrived.pop(plan.target)
    if keep_books:
        books["arrived"] = xp.total(result)
        for name, part in arrived.items():
            books[f"aside:{name}"] = _total(part, xp, images)
            books[f"aside_absolute:{name}"] = _total(xp.absolute(part), xp, images)
    return {RESULT: result, **books}


def _total(part: Array, xp: Verbs, images: int) -> Array:
    """Sum per image, [n]. Of a single image all is its own, also what has no batch axis."""
    shape = xp.shape(part)
    if images == 1 and shape[:1] != (1,):
        part = xp.reshape(part, (1, math.prod(shape)))
    return xp.total(part)


def _write(
    books: dict[str, Array], position: int, received: list[Array], flow: Any, xp: Verbs, images: int, unbounded: bool
) -> None:
    def summed(values: list[Array]) -> Array | None:
        whole = None
        for value in values:
            whole = value if whole is None else xp.add(whole, value)
        return whole

    columns = {
        "in": summed([xp.total(r) for r in received]),
        "out": summed([_total(part, xp, images) for part in flow.parts.values()]),
        "leaked": summed([leak.signed for leak in flow.leaks]),
        "dropped": summed([leak.absolute for leak in flow.leaks]),
    }
    if unbounded:
        columns["passed"] = summed([xp.total(xp.absolute(r)) for r in received])
    books.update({f"{name}:{position}": value for name, value in columns.items() if value is not None})


def ledger_of(plan: Plan, books: Mapping[str, np.ndarray]) -> Ledger:
    """The ledger from what the descent wrote down."""
    exact = {name: np.asarray(value, np.float64) for name, value in books.items()}
    nothing = np.zeros_like(exact["start"])
    rows = tuple(
        LedgerRow(
            step.layer.name,
            step.layer.op,
            step.rule.name,
            *(exact.get(f"{name}:{position}", nothing) for name in ("in", "out", "leaked", "dropped", "passed")),
        )
        for position, step in enumerate(plan.steps)
    )
    aside = {name.removeprefix("aside:") for name in exact if name.startswith("aside:")}
    signed: dict[str, np.ndarray] = {}
    absolute: dict[str, np.ndarray] = {}
    for name in sorted(aside):
        goal = _destination(plan.graph, name)
        signed[goal] = signed.get(goal, 0) + exact[f"aside:{name}"]
        absolute[goal] = absolute.get(goal, 0) + exact[f"aside_absolute:{name}"]
    return Ledger(rows, exact["start"], exact["start_absolute"], exact["arrived"], signed, absolute)


def _destination(graph: LayerGraph, name: str) -> str:
    """The input that a tensor is computed from, if it is one other than the picture; else the tensor itself."""
    sources = graph.ancestors(name).intersection(graph.inputs)
    return next(iter(sources)) if len(sources) == 1 and graph.image not in sources else name
