"""BatchNormalization that could not be folded, and LRN: the identity.

Conserved exactly. A BatchNormalization behind a linear layer never gets here: the view folds it into the weights.
Source: methods 3.1. Their derivatives, with the statistics as constants:

    BatchNormalization   g gamma / sqrt(var + epsilon)
    LRN                  with d = bias + alpha/size sum of x^2 over the window, y = x d^-beta:
                         g_i d_i^-beta - 2 alpha beta/size x_i sum over the windows that hold i of g_j x_j d_j^(-beta-1)

and DeepLIFT's multipliers of LRN, those of the product x d^-beta, of the power and of the squares, exact (ours):

    m_i (d_i^-beta + d0_i^-beta)/2 + alpha/size (x_i + x0_i) sum over the windows that hold i of
                                     m_j (x_j + x0_j)/2 (d_j^-beta - d0_j^-beta)/(d_j - d0_j)
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale
from fgcam_onnx.rules.rescaled import over_difference

BATCH = {"BatchNormalization": (7, 9, 14, 15)}
LRN = {"LRN": (1, 13)}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _training(layer: Layer, graph: LayerGraph) -> str | None:
    if layer.attributes.get("training_mode"):
        return "it runs in training mode: its statistics depend on the batch"
    if any(layer.constant(i) is None for i in (1, 2, 3, 4)):
        return "its parameters are computed in the graph"
    return None


@relevance("identity", sends=_first, refuses=_training, **BATCH)
def batch_norm(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> r."""
    return Flow({0: r})


@relevance("identity", **LRN)
def lrn(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> r."""
    return Flow({0: r})


@gradient(sends=_first, refuses=_training, **BATCH)
def batch_norm_derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """g [n, c, ...] scaled channel by channel."""
    gamma, var = (node.layer.constants[i].astype(np.float64) for i in (1, 4))
    scale = gamma / np.sqrt(var + node.attributes["epsilon"])
    return Flow({0: xp.mul(r, xp.constant(scale.reshape(-1, *[1] * (len(node.in_shape()) - 2))))})


def _band(node: Node) -> np.ndarray:
    """Sums over the window as a banded matrix: sum_j band_ij v_j over channels."""
    c, size = node.in_shape()[1], int(node.attributes["size"])
    reach = np.arange(c)[None] - np.arange(c)[:, None]
    return ((reach >= -((size - 1) // 2)) & (reach <= size // 2)).astype(np.float64)


@gradient(reads="x", **LRN)
def lrn_derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """g [n, c, ...]; the window slides over channels, which become the last spatial axis of a [n, 1, c, rest]."""
    shape = node.in_shape()
    c, band = shape[1], _band(node)
    alpha, beta = node.attributes["alpha"] / int(node.attributes["size"]), node.attributes["beta"]
    x, g = (xp.reshape(v, (xp.shape(v)[0], c, -1)) for v in (node.x(), r))
    d = xp.add(
        xp.mul(xp.matmul(xp.constant(band), xp.mul(x, x)), xp.constant(alpha)), xp.constant(node.attributes["bias"])
    )
    direct = xp.mul(g, xp.power(d, xp.constant(-beta)))
    inner = xp.mul(xp.mul(g, x), xp.power(d, xp.constant(-beta - 1)))
    spread = xp.mul(xp.matmul(xp.constant(band.T), inner), xp.mul(x, xp.constant(2 * alpha * beta)))
    return Flow({0: xp.reshape(xp.sub(direct, spread), shape)})


@rescale(reads="x", **LRN)
def lrn_multipliers(node: Node, r: Array, xp: Verbs) -> Flow:
    """m [n, c, ...]; cells as in :func:`lrn_derivative`."""
    shape, band = node.in_shape(), _band(node)
    x, x0, m = (xp.reshape(v, (xp.shape(v)[0], shape[1], -1)) for v in (node.x(), node.x0(), r))
    alpha, half = xp.constant(node.attributes["alpha"] / int(node.attributes["size"])), xp.constant(0.5)
    beta = float(node.attributes["beta"])

    def sums(x: Array) -> Array:
        squares = xp.matmul(xp.constant(band), xp.mul(x, x))
        return xp.add(xp.mul(squares, alpha), xp.constant(node.attributes["bias"]))

    d, d0, both = sums(x), sums(x0), xp.add(x, x0)
    p, p0 = (xp.power(v, xp.constant(-beta)) for v in (d, d0))
    tangent = xp.mul(xp.power(d, xp.constant(-beta - 1)), xp.constant(-beta))
    chord = over_difference(xp.sub(p, p0), xp.sub(d, d0), tangent, xp)
    spread = xp.matmul(xp.constant(band.T), xp.mul(xp.mul(m, half), xp.mul(both, chord)))
    direct = xp.mul(m, xp.mul(xp.add(p, p0), half))
    return Flow({0: xp.reshape(xp.add(direct, xp.mul(xp.mul(spread, both), alpha)), shape)})
