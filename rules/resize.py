"""Resize, Upsample: every output is a weighted mean of inputs, axis by axis.

    nearest:         a copy has one source: R_i = sum of R over the copies of i          conserved, 0 where nobody reads
    linear, cubic:   the z+ rule with the weights of the interpolation (cubic has negative ones)
    on the picture:  the z^B rule with the same weights, as for every linear layer that reads pixels

All modes of ``coordinate_transformation_mode`` and ``nearest_mode``, ``antialias``, ``exclude_outside``, ``axes``: the
matrices are those of ``fgcam_onnx.rules.interpolation``. What ``tf_crop_and_resize`` reads outside the picture has no
source: it leaks. Source: methods 3.1; ONNX Resize-10 to -19, Upsample-7 and -9.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import DeadInputs, gradient, relevance
from fgcam_onnx.rules.interpolation import matrix

RESIZE = {"Resize": (10, 11, 13, 18, 19), "Upsample": (7, 9)}
LEAKS = "what was read outside the picture; interpolated cells whose sum is 0"

Matrices = dict[int, np.ndarray]  # axis -> [out, in]


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _is_nearest(layer: Layer) -> bool:
    return bool(layer.attributes.get("mode", "nearest") == "nearest")


def _refuses(layer: Layer, graph: LayerGraph) -> str | None:
    # roi 1 and scales 2 decide the coordinates; sizes are seen in the output's shape
    for i in (1, 2) if layer.op == "Resize" and layer.version >= 11 else (1,):
        if layer.unknown(i):
            return f"its operand {layer.inputs[i]!r} is computed in the graph"
    return None


def _dead_inputs(layer: Layer, graph: LayerGraph) -> DeadInputs:
    if _is_nearest(layer):
        return "inherits"
    return "never" if graph.tensor(layer.inputs[0]).from_image else "always"


def _matrices(node: Node) -> Matrices:
    """For each axis that changes: its interpolation as a matrix [out, in]."""
    layer, shape, out = node.layer, node.in_shape(), node.out_shape()
    rank, attributes = len(shape), dict(node.attributes)
    given = _numbers(layer, 2 if layer.op == "Resize" and layer.version >= 11 else 1)
    if layer.op == "Upsample" and layer.version < 9:
        given = [float(v) for v in layer.attributes["scales"]]
    if layer.version < 11:
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    axes = [int(a) % rank for a in attributes.get("axes") or range(rank)]
    scales = dict(zip(axes, given, strict=True)) if given else {a: _scale(node, a, axes) for a in axes}
    roi = _numbers(layer, 1) if layer.version >= 11 and layer.op == "Resize" else []
    found = {}
    for k, a in enumerate(axes):
        if a == 0 and shape[0] == out[0] and scales[a] == 1:
            continue
        region = (roi[k], roi[k + len(axes)]) if len(roi) == 2 * len(axes) else (0.0, 1.0)
        weights = matrix(shape[a], out[a], scales[a], region, attributes)
        if weights.shape[0] != weights.shape[1] or not np.array_equal(weights, np.eye(len(weights))):
            found[a] = weights
    return found


def _numbers(layer: Layer, position: int) -> list[float]:
    value = layer.constant(position)
    return [] if value is None else [float(v) for v in value.ravel()]


def _scale(node: Node, axis: int, axes: list[int]) -> float:
    """out / in where sizes are given; one for all axes where the aspect ratio is kept."""
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    sizes = node.layer.constant(3)
    if policy == "stretch" or sizes is None:
        return node.out_shape()[axis] / node.in_shape()[axis]
    ratios = [float(s) / node.in_shape()[a] for s, a in zip(sizes.ravel(), axes, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


@relevance("resize", reads="x", sends=_first, refuses=_refuses, leaks=LEAKS, dead_inputs=_dead_inputs, **RESIZE)
def resize(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, ...] -> the input's shape."""
    found = _matrices(node)
    if _is_nearest(node.layer):
        return _to_the_source(r, found, xp)
    x = node.x()
    if node.graph.tensor(node.layer.inputs[0]).from_image:
        axes = tuple(range(1, len(node.in_shape())))
        halves = (xp.sub(x, xp.reduce_min(x, axes)), xp.sub(x, xp.reduce_max(x, axes)))
    else:
        halves = (x if node.nonnegative() else xp.positive(x), xp.negative(x))
    pairs = [(half, terms) for half, terms in zip(halves, _signed(found), strict=True) if terms]
    z = None
    for half, terms in pairs:
        for term in terms:
            part = _along(half, term, xp)
            z = part if z is None else xp.add(z, part)
    s, leak = xp.share(r, z, nonnegative=True)
    result = None
    for half, terms in pairs:
        for term in terms:
            part = xp.mul(half, _along(s, {a: m.T for a, m in term.items()}, xp))
            result = part if result is None else xp.add(result, part)
    return Flow({0: result}, (leak,))


def _to_the_source(r: Array, found: Matrices, xp: Verbs) -> Flow:
    """Each output cell is a copy of one input cell, or of none."""
    leaks = []
    for axis, weights in found.items():
        inside = weights.any(axis=1)
        if not inside.all():
            mask = inside.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(len(xp.shape(r)))])
            r, leak = xp.keep(r, xp.constant(mask))
            leaks.append(leak)
    for axis, weights in found.items():
        r = xp.scatter_add(r, weights.argmax(axis=1), axis, weights.shape[1])
    return Flow({0: r}, tuple(leaks))


def _signed(found: Matrices) -> tuple[list[Matrices], list[Matrices]]:
    """The positive and the negative weights of the whole map, each as a sum of products over the axes."""
    halves = [
        [(a, sign, np.maximum(sign * m, 0)) for sign in (1, -1) if (sign * m > 0).any()] for a, m in found.items()
    ]
    plus: list[Matrices] = []
    minus: list[Matrices] = []
    for choice in itertools.product(*halves):
        sign = math.prod(s for _, s, _ in choice)
        term = {a: m for a, _, m in choice}
        if sign < 0:  # the sign of the product, on one of its factors
            first = next(iter(term))
            term[first] = -term[first]
        (plus if sign > 0 else minus).append(term)
    return plus, minus


def _along(x: Array, matrices: Matrices, xp: Verbs) -> Array:
    """Each matrix [out, in] applied along its axis."""
    for axis, weights in matrices.items():
        shape = xp.shape(x)
        last = axis == len(shape) - 1
        flat = xp.reshape(x, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
        if last:
            flat = xp.matmul(xp.reshape(x, (-1, shape[axis])), xp.constant(np.ascontiguousarray(weights.T)))
        else:
            flat = xp.matmul(xp.constant(weights), flat)
        x = xp.reshape(flat, (*shape[:axis], weights.shape[0], *shape[axis + 1 :]))
    return x


@gradient(sends=_first, refuses=_refuses, **RESIZE)
def derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """g [n, ...] -> the input's shape: the transposed matrices."""
    return Flow({0: _along(r, {a: m.T for a, m in _matrices(node).items()}, xp)})
