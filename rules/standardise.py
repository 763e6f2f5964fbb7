"""InstanceNormalization, GroupNormalization, LayerNormalization and kin: the identity.

They subtract a mean and divide by a deviation that they take from the activation itself. Conserved exactly. Source:
methods 3.1. Their derivative, mean and deviation included, over the cells S that are normalised together:

    y = gamma v + beta,  v = (x - mean_S x) / d,  d = sqrt(var_S x + epsilon)
    dx = (h - mean_S h - v mean_S(h v)) / d,      h = gamma g

RMSNormalization takes no mean off x, and its dx lacks mean_S h. DeepLIFT's multipliers are those of the operators that
it is made of, a mean, a square, a chord and two products, and exact (ours): with c = x - mean_S x, q = mean_S c^2,
s = 1/sqrt(q + epsilon), so y = gamma c s + beta, and with c0, s0 on the reference,

    m_q = -(s s0)^2/(s + s0) sum_S h (c + c0)/2,            h = gamma m
    m_c = h (s + s0)/2 + m_q (c + c0)/|S|,                  m_x = m_c - mean_S m_c

``fgcam::Standardise`` is the view's own: one of these,
written by an exporter in elementary operators (``graph.passes.fold_standardise``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale

INSTANCE = {"InstanceNormalization": (6, 22)}
GROUP = {"GroupNormalization": (21,)}
LAYER = {"LayerNormalization": (17,)}
RMS = {"RMSNormalization": (23,)}
MEAN_VARIANCE = {"MeanVarianceNormalization": (9, 13)}
WRITTEN_OUT = {"fgcam::Standardise": (1,)}
ALL = INSTANCE | GROUP | LAYER | RMS | MEAN_VARIANCE | WRITTEN_OUT


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _refuses(layer: Layer, graph: LayerGraph) -> str | None:
    if any(layer.unknown(i) for i in range(1, len(layer.inputs))):
        return "its parameters are computed in the graph"
    rank = len(graph.tensor(layer.inputs[0]).shape or ())
    axes = _axes_of(layer, rank or None)
    if 0 in axes or (rank and -rank in axes):
        return "it normalises over the batch"
    return None


@relevance("identity", sends=_first, refuses=_refuses, **ALL)
def identity(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> r."""
    return Flow({0: r})


def _axes_of(layer: Layer, rank: int | None) -> list[int]:
    """The axes that are normalised together; GroupNormalization's are seen in :func:`_grouped`."""
    if layer.op in MEAN_VARIANCE or layer.op in WRITTEN_OUT:
        return [int(a) for a in layer.attributes.get("axes") or (0, 2, 3)]
    if layer.op in LAYER or layer.op in RMS:
        axis = int(layer.attributes.get("axis", -1))
        return [axis] if rank is None else list(range(axis % rank, rank))
    return []


def _register(ops: dict[str, tuple[int, ...]]) -> Callable[[Layout], None]:
    def register(layout: Layout) -> None:
        @gradient(reads="x", sends=_first, refuses=_refuses, **ops)
        def derivative(node: Node, r: Array, xp: Verbs) -> Flow:
            shape, axes, gamma = layout(node)
            x, h = xp.reshape(node.x(), (xp.shape(node.x())[0], *shape[1:])), xp.reshape(r, node.in_shape())
            if gamma is not None:
                h = xp.mul(h, xp.constant(gamma))
            h = xp.reshape(h, shape)
            return Flow({0: xp.reshape(_derivative(node, x, h, axes, xp), node.in_shape())})

        @rescale(reads="x", sends=_first, refuses=_refuses, **ops)
        def multipliers(node: Node, r: Array, xp: Verbs) -> Flow:
            shape, axes, gamma = layout(node)
            h = r if gamma is None else xp.mul(r, xp.constant(gamma))
            x, x0 = (xp.reshape(v, (xp.shape(v)[0], *shape[1:])) for v in (node.x(), node.x0()))
            return Flow({0: xp.reshape(_multipliers(node, x, x0, xp.reshape(h, shape), axes, xp), node.in_shape())})

    return register


def _centred(node: Node) -> bool:
    return bool(node.attributes.get("centred", node.layer.op not in RMS))


def _epsilon(node: Node) -> float:
    """MeanVarianceNormalization states none: 1e-9 stands in the specification's function body."""
    return float(node.attributes.get("epsilon", 1e-9 if node.layer.op in MEAN_VARIANCE else 1e-5))


def _multipliers(node: Node, x: Array, x0: Array, h: Array, axes: Sequence[int], xp: Verbs) -> Array:
    count = float(np.prod([xp.shape(x)[a] for a in axes]))

    def mean(v: Array) -> Array:
        return xp.mul(xp.reduce_sum(v, axes), xp.constant(1 / count))

    def parts(x: Array) -> tuple[Array, Array]:
        c = xp.sub(x, mean(x)) if _centred(node) else x
        return c, xp.power(xp.add(mean(xp.mul(c, c)), xp.constant(_epsilon(node))), xp.constant(-0.5))

    (c, s), (c0, s0) = parts(x), parts(x0)
    half, sum_s, sum_c, both = xp.constant(0.5), xp.add(s, s0), xp.add(c, c0), xp.mul(s, s0)
    chord = xp.mul(xp.div(xp.mul(both, both), sum_s), xp.constant(-1.0))
    m_q = xp.mul(chord, mean(xp.mul(xp.mul(h, half), sum_c)))  # over |S|
    m_c = xp.add(xp.mul(h, xp.mul(sum_s, half)), xp.mul(m_q, sum_c))
    return xp.sub(m_c, mean(m_c)) if _centred(node) else m_c


def _derivative(node: Node, x: Array, h: Array, axes: Sequence[int], xp: Verbs) -> Array:
    centred = _centred(node)
    count = float(np.prod([xp.shape(x)[a] for a in axes]))

    def mean(v: Array) -> Array:
        return xp.mul(xp.reduce_sum(v, axes), xp.constant(1 / count))

    v = xp.sub(x, mean(x)) if centred else x
    inverse = xp.power(xp.add(mean(xp.mul(v, v)), xp.constant(_epsilon(node))), xp.constant(-0.5))
    v = xp.mul(v, inverse)
    result = xp.sub(h, xp.mul(v, mean(xp.mul(h, v))))
    return xp.mul(xp.sub(result, mean(h)) if centred else result, inverse)


# How a node's cells are laid out: the shape to see them in, the axes normalised together there, and gamma as it
# broadcasts to the input's own shape.
Layout = Callable[[Node], tuple[tuple[int, ...], tuple[int, ...], np.ndarray | None]]


def _column(values: np.ndarray, rank: int) -> np.ndarray:
    return values.reshape(-1, *[1] * (rank - 2))


def _instance(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray | None]:
    """Each channel of each image."""
    shape = node.in_shape()
    return shape, tuple(range(2, len(shape))), _column(node.layer.constants[1], len(shape))


def _grouped(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray | None]:
    """Channels in groups. (Version 18, which had one gamma a group, is deprecated: onnx's checker refuses it.)"""
    shape, groups = node.in_shape(), int(node.attributes["num_groups"])
    cells = int(np.prod(shape[1:])) // groups
    return (shape[0], groups, cells), (2,), _column(node.layer.constants[1], len(shape))


def _along_axes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray | None]:
    """The axes that the node names, or all from ``axis`` on."""
    shape = node.in_shape()
    axes = tuple(sorted(a % len(shape) for a in _axes_of(node.layer, len(shape))))
    return shape, axes, node.layer.constant(1)


_register(INSTANCE)(_instance)
_register(GROUP)(_grouped)
_register(LAYER | RMS | MEAN_VARIANCE | WRITTEN_OUT)(_along_axes)
