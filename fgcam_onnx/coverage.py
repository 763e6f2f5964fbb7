"""Coverage: each node between the image and the logits with its rule, or why it has none. Nothing is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fgcam_onnx.composite import Composite, GradientComposite
from fgcam_onnx.descent import walk
from fgcam_onnx.graph.layer import LayerGraph

__all__ = ["Coverage", "CoverageRow", "cover"]


@dataclass(frozen=True)
class CoverageRow:
    """``rule`` None: ``reason`` says why there is none. ``folded``: further nodes that this layer stands for."""

    node: str
    op: str
    version: int
    rule: str | None
    reason: str | None = None
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


def cover(graph: LayerGraph, start: str, composite: Composite) -> Coverage:
    """The head (logits to ``start``) by the gradient rule, the body (``start`` to the image) by ``composite``."""
    found: dict[str, CoverageRow] = {}
    for source, target, chosen in ((graph.logits, start, GradientComposite()), (start, graph.image, composite)):
        steps, gaps = walk(graph, source, target, chosen)
        for step in steps:
            found[step.layer.name] = _row(graph, step.layer.name, step.rule.name, None)
        for layer, gap in gaps:
            found[layer.name] = _row(graph, layer.name, None, gap.reason)
    on_path = graph.ancestors(graph.logits) & graph.descendants(graph.image)
    rows = []
    for layer in graph.layers:
        if layer.name in found:
            rows.append(found[layer.name])
        elif any(name in on_path for name in layer.outputs):
            rows.append(_row(graph, layer.name, "none needed", "a gate or its branch: it gets no relevance"))
    return Coverage(tuple(rows))


def _row(graph: LayerGraph, name: str, rule: str | None, reason: str | None) -> CoverageRow:
    layer = next(each for each in graph.layers if each.name == name)
    return CoverageRow(layer.name, layer.op, layer.version, rule, reason, _without(layer.nodes, layer.name))


def _without(names: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)
