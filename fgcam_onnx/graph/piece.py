"""A piece of the model: what lies between some tensor and others, as a model of its own.

The nodes are the model's own, unchanged. What they read beside the tensor, and what does not come from it, become
further inputs of the piece: their values on an image are those that the whole model computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

__all__ = ["Piece", "cut_piece"]


@dataclass(frozen=True)
class Piece:
    """``others``: the inputs beside the first, by their names in the model."""

    proto: onnx.ModelProto
    others: tuple[str, ...]


def cut_piece(proto: onnx.ModelProto, source: onnx.ValueInfoProto, outputs: Sequence[str]) -> Piece:
    """From ``source`` to ``outputs``, which depend on it. The types of the other inputs are left to the runtime."""
    behind = {source.name}
    kept: list[onnx.NodeProto] = []
    for node in proto.graph.node:  # in topological order
        if source.name not in node.output and behind.intersection(_read(node)):
            kept.append(node)
            behind.update(name for name in node.output if name)
    wanted, needed = set(outputs), []
    for node in reversed(kept):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(_read(node))
    needed.reverse()
    held = {t.name: t for t in proto.graph.initializer}
    sparse = {t.values.name: t for t in proto.graph.sparse_initializer}
    read = list(dict.fromkeys(name for node in needed for name in _read(node)))
    made = {name for node in needed for name in node.output}
    others = [n for n in read if n not in made and n != source.name and n not in held and n not in sparse]

    piece = onnx.ModelProto(ir_version=proto.ir_version)
    piece.opset_import.extend(proto.opset_import)
    piece.functions.extend(proto.functions)
    graph = piece.graph
    graph.name = proto.graph.name or "piece"
    graph.node.extend(needed)
    graph.initializer.extend(held[name] for name in read if name in held)
    graph.sparse_initializer.extend(sparse[name] for name in read if name in sparse)
    graph.input.append(source)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return Piece(piece, tuple(others))


def _read(node: onnx.NodeProto) -> Iterable[str]:
    """What a node reads, its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {name for inner in graph.node for name in inner.output}
            inside |= {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in _read(inner) if name not in inside)
            yield from (value.name for value in graph.output if value.name not in inside)
