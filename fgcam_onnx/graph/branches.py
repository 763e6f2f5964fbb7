"""If with a constant condition: the branch that runs, written into the graph.

    b = If(Equal(Shape(x)[1], 1)) { Squeeze(x) } else { x }        of a fixed shape: no choice at all

PyTorch's older exporter leaves such nodes behind ``squeeze`` and the like. The runtime decides them before it runs; a
walk over the nodes, and reading what they compute, needs them decided too. Source: ONNX If-1 and later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from fgcam_onnx.graph.load import LoadedModel, damaged, light_model
from fgcam_onnx.graph.view import constants_folded

__all__ = ["with_branches_chosen"]

# Branches within branches, and conditions that only a chosen branch makes constant.
MOST_ROUNDS = 16


def with_branches_chosen(model: LoadedModel) -> LoadedModel:
    """``model`` with every If whose condition is a constant, or follows from fixed shapes, replaced by its branch.

    Raises:
        ModelError: the file is damaged there.
    """
    with damaged(str(model.path or "the given model")), np.errstate(all="ignore"):
        for _ in range(MOST_ROUNDS):
            if not any(node.op_type == "If" for node in model.proto.graph.node):
                break
            chosen = _chosen(model)
            if not chosen:
                break
            model = _written_out(model, chosen)
    return model


def _chosen(model: LoadedModel) -> dict[str, onnx.GraphProto]:
    """The branch that runs, by the first output of its If. What the runtime would refuse stays for it to refuse."""
    found: dict[str, onnx.GraphProto] = {}
    names = Counter(node.name for node in model.proto.graph.node if node.name)
    nodes = {node.output[0]: node for node in model.proto.graph.node if node.op_type == "If"}
    for layer in constants_folded(model).graph.layers:
        condition = layer.constant(0)
        if layer.op != "If" or condition is None or names[nodes[layer.output].name] > 1:
            continue
        if condition.size == 1 and condition.dtype == bool:
            wanted = "then_branch" if condition.item() else "else_branch"
            found[layer.output] = next(a.g for a in nodes[layer.output].attribute if a.name == wanted)
    return found


def _written_out(model: LoadedModel, chosen: Mapping[str, onnx.GraphProto]) -> LoadedModel:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    del graph.node[:]
    taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    taken |= {name for node in model.proto.graph.node for name in node.output}
    for node in model.proto.graph.node:
        branch = chosen.get(node.output[0]) if node.output else None
        if node.op_type != "If" or branch is None:
            graph.node.append(node)
            continue
        names = _names(branch, node, taken)
        taken.update(names.values())
        for tensor in branch.initializer:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = names[tensor.name]
        graph.node.extend(_renamed(inner, names) for inner in branch.node)
        for outer, inside in zip(node.output, branch.output, strict=True):
            source = names.get(inside.name, inside.name)
            if outer and source != outer:  # an initializer, or given out twice
                graph.node.append(helper.make_node("Identity", [source], [outer], name=f"{node.name or outer}/{outer}"))
    weights = dict(model.weights)
    return replace(model, proto=light_model(proto, weights), weights=weights)


def _names(branch: onnx.GraphProto, node: onnx.NodeProto, taken: set[str]) -> dict[str, str]:
    """New names for what the branch computes: an output has the If's own, others keep theirs where it is free."""
    computed = [name for inner in branch.node for name in inner.output if name]
    outputs = {value.name: outer for outer, value in zip(node.output, branch.output, strict=True) if outer}
    names: dict[str, str] = {}
    used = set(taken)
    for name in (*computed, *(tensor.name for tensor in branch.initializer)):
        new = outputs.get(name) if name in computed else None
        if new is None:
            new, count = name, 0
            while new in used:
                count += 1
                new = f"{node.name or node.output[0]}/{name}" + (f"_{count}" if count > 1 else "")
        names[name] = new
        used.add(new)
    return names


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """``node`` with what it reads and computes renamed, also where its own subgraphs read it."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    for field in (twin.input, twin.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for attribute in twin.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            inner = [_renamed(each, names) for each in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
            for value in graph.output:
                value.name = names.get(value.name, value.name)
    return twin
