"""Gather, GatherND, and views by strides: cells picked by index, some of them several times.

Relevance goes back to the cell that was read, where repetitions add; a cell that nobody read gets 0. Exactly conserved;
the derivative is the same map. Source: methods 3.1; ONNX Gather-1, -11, -13, GatherND-12, -13 (before, it always
gathered along the batch).
"""

from __future__ import annotations

import math

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.errors import UnsupportedOpError
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

GATHER = {"Gather": (1, 11, 13)}
GATHER_ND = {"GatherND": (12, 13)}
STRIDED = {"fgcam::Strided": (1,)}  # the view's own (graph.passes.fold_strided)


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _refuses(layer: Layer, graph: LayerGraph) -> str | None:
    if 0 in layer.constants:
        return "it reads a constant table"
    if layer.unknown(1):
        return f"its operand {layer.inputs[1]!r} is computed in the graph"
    if layer.op == "Gather":
        rank = len(graph.tensor(layer.inputs[0]).shape or ())
        axis = layer.attributes.get("axis", 0)
        return "it gathers along the batch" if axis == 0 or (rank and axis == -rank) else None
    indices = layer.constant(1)
    if not layer.attributes.get("batch_dims", 0):
        return "it gathers along the batch"
    if indices is not None and not (indices == indices[:1]).all():
        return "it reads other cells of each image"
    return None


@gradient(sends=_first, refuses=_refuses, **GATHER)
@relevance("scatter", dead_inputs="inherits", sends=_first, refuses=_refuses, **GATHER)
def scatter(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ..., *indices.shape, ...] -> the input's shape."""
    shape, indices = node.in_shape(), node.layer.constants[1].astype(np.int64)
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    flat = np.where(indices < 0, indices + shape[axis], indices).ravel()
    r = xp.reshape(r, (*shape[:axis], flat.size, *shape[axis + 1 :]))
    return Flow({0: xp.scatter_add(r, flat, axis, shape[axis])})


@gradient(sends=_first, refuses=_refuses, **GATHER_ND)
@relevance("scatter", dead_inputs="inherits", sends=_first, refuses=_refuses, **GATHER_ND)
def scatter_nd(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, *batch_dims, *indices.shape[:-1], ...] -> the input's shape.

    An index names the axes behind the batch ones; the cells in front are numbered in one go.
    """
    shape, indices = node.in_shape(), node.layer.constants[1].astype(np.int64)[0]
    batch_dims = int(node.attributes["batch_dims"])
    depth = batch_dims + indices.shape[-1]  # the axes that are named, the batch ones included
    indices = np.where(indices < 0, indices + np.asarray(shape[batch_dims:depth]), indices)
    own = np.indices(indices.shape[:-1])[: batch_dims - 1]  # further batch axes read their own position
    cells = np.ravel_multi_index((*own, *np.moveaxis(indices, -1, 0)), shape[1:depth]).ravel()
    rest = math.prod(shape[depth:])
    r = xp.scatter_add(xp.reshape(r, (shape[0], cells.size, rest)), cells, 1, math.prod(shape[1:depth]))
    return Flow({0: xp.reshape(r, shape)})


@gradient(sends=_first, **STRIDED)
@relevance("scatter", dead_inputs="inherits", sends=_first, **STRIDED)
def scatter_strided(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, *positions.shape[1:]] -> the input's shape; positions count through the whole batch.

    Raises:
        UnsupportedOpError: an image reads cells of another one, or other cells than the others do.
    """
    shape, positions = node.in_shape(), node.layer.constants[1].astype(np.int64)
    n, cells = shape[0], math.prod(shape[1:])
    positions = np.where(positions < 0, positions + n * cells, positions)
    images = len(positions)  # of the tape; several rows of one image have more relevances than that
    own = positions.reshape(images, -1) - cells * np.arange(images)[:, None] if node.out_shape()[0] == n else None
    if own is None or own.min() < 0 or own.max() >= cells or (own != own[:1]).any():
        raise UnsupportedOpError(
            "no rule for a view by strides that mixes images",
            at=f"node {node.layer.name!r}",
            known=f"input {list(shape)}, positions {list(positions.shape)}",
            next="explain one image at a time (batch_size=1), or export the model with a fixed batch of 1",
        )
    r = xp.scatter_add(xp.reshape(r, (n, own.shape[1])), own[0], 1, cells)
    return Flow({0: xp.reshape(r, shape)})
