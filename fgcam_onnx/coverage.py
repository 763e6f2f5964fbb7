"""Coverage: each node between the image and the logits with its rule, or why it has none. Nothing is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fgcam_onnx.composite import Composite, GradientComposite
from fgcam_onnx.descent import walk
from fgcam_onnx.graph.layer import Layer, LayerGraph

__all__ = ["Coverage", "CoverageRow", "cover"]


@dataclass(frozen=True)
class CoverageRow:
    """A layer on the path and what serves it.

    ``rule`` None: ``reason`` says why there is none. ``part``: "head" between the scores and L, walked by derivatives;
    "body" between L and the image, walked by relevance rules; "gate" for a branch that gets no relevance. ``leaks``:
    what the rule may drop, "conserved" if nothing. ``folded``: further nodes that this layer stands for.
    """

    node: str
    op: str
    version: int
    rule: str | None
    reason: str | None = None
    part: str = "body"
    leaks: str | None = None
    folded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """In the order of the graph."""

    rows: tuple[CoverageRow, ...]

    @property
    def gaps(self) -> tuple[CoverageRow, ...]:
        """The rows without a rule."""
        return tuple(row for row in self.rows if row.rule is None)

    @property
    def complete(self) -> bool:
        return not self.gaps

    @property
    def nodes(self) -> int:
        """How many of the model's nodes the rows stand for."""
        return sum(1 + len(row.folded) for row in self.rows)


def cover(graph: LayerGraph, start: str, composite: Composite) -> Coverage:
    """The head (logits to ``start``) by the gradient rule, the body (``start`` to the image) by ``composite``."""
    found: dict[str, CoverageRow] = {}
    parts = (("head", graph.logits, start, GradientComposite()), ("body", start, graph.image, composite))
    for part, source, target, chosen in parts:
        steps, gaps = walk(graph, source, target, chosen)
        for step in steps:
            leaks = step.rule.leaks if part == "body" else None
            found[step.layer.name] = _row(step.layer, step.rule.name, None, part, leaks)
        for layer, gap in gaps:
            found[layer.name] = _row(layer, None, gap.reason, part, None)
    on_path = graph.ancestors(graph.logits) & graph.descendants(graph.image)
    rows = []
    for layer in graph.layers:
        if layer.name in found:
            rows.append(found[layer.name])
        elif any(name in on_path for name in layer.outputs):
            rows.append(_row(layer, "none needed", "a gate or its branch: it gets no relevance", "gate", None))
    return Coverage(tuple(rows))


def _row(layer: Layer, rule: str | None, reason: str | None, part: str, leaks: str | None) -> CoverageRow:
    folded = _without(layer.nodes, layer.name)
    return CoverageRow(layer.name, layer.op, layer.version, rule, reason, part, leaks, folded)


def _without(names: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)
