"""BatchNormalization that could not be folded, and LRN: the identity.

Conserved exactly. A BatchNormalization behind a linear layer never gets here: the view folds it into the weights.
Source: methods 3.1. Their derivatives, with the statistics as constants:

    BatchNormalization   g gamma / sqrt(var + epsilon)
    LRN                  with d = bias + alpha/size sum of x^2 over the window, y = x d^-beta:
                         g_i d_i^-beta - 2 alpha beta/size x_i sum over the windows that hold i of g_j x_j d_j^(-beta-1)
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

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


@gradient(reads="x", **LRN)
def lrn_derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """g [n, c, ...]; the window slides over channels, which become the last spatial axis of a [n, 1, c, rest]."""
    shape = node.in_shape()
    n, c, size = shape[0], shape[1], int(node.attributes["size"])
    alpha, beta = node.attributes["alpha"] / size, node.attributes["beta"]
    # Sums over the window as a banded matrix: sum_j band_ij v_j over channels.
    reach = np.arange(c)[None] - np.arange(c)[:, None]
    band = ((reach >= -((size - 1) // 2)) & (reach <= size // 2)).astype(np.float64)
    x, g = (xp.reshape(v, (n, c, -1)) for v in (node.x(), r))
    d = xp.add(
        xp.mul(xp.matmul(xp.constant(band), xp.mul(x, x)), xp.constant(alpha)), xp.constant(node.attributes["bias"])
    )
    direct = xp.mul(g, xp.power(d, xp.constant(-beta)))
    inner = xp.mul(xp.mul(g, x), xp.power(d, xp.constant(-beta - 1)))
    spread = xp.mul(xp.matmul(xp.constant(band.T), inner), xp.mul(x, xp.constant(2 * alpha * beta)))
    return Flow({0: xp.reshape(xp.sub(direct, spread), shape)})
