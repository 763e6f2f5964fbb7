"""A zero Pad of the spatial axes before a Conv: the Conv's own ``pads``.

TensorFlow exports pad outside the convolution. Folded, the first layer's z^B rule pads its *shifted* inputs with
zeros, as methods 3.1 asks, instead of letting relevance fall on pixels that no photo has.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs, refuse


def fold_pad(graph: LayerGraph) -> PassResult:
    """Fold each constant zero Pad into the Conv behind it."""
    return fuse_pairs(graph, lambda first, second: first.op == "Pad" and second.op == "Conv", _fuse)


def pad_amounts(pad: Layer, rank: int) -> np.ndarray | None:
    """[2, rank] begins and ends of a Pad layer, None if they are computed in the graph."""
    pads = pad.attributes.get("pads", pad.attributes.get("paddings")) if pad.version < 11 else pad.constant(1)
    if pads is None:
        return None
    amounts = np.asarray(pads, np.int64).reshape(2, -1)
    if not pad.given(3) or pad.version < 18:
        return amounts
    axes = pad.constant(3)
    if axes is None:
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, [int(a) % rank for a in axes.ravel()]] = amounts
    return full


def _fuse(graph: LayerGraph, pad: Layer, conv: Layer) -> Layer | Refusal:
    mode = pad.attributes.get("mode", "constant")
    if mode != "constant":
        return refuse(conv, f"{pad.name} pads by {mode!r}, a Conv pads with zeros")
    fill = pad.attributes.get("value", 0.0) if pad.version < 11 else pad.constant(2)
    if pad.version >= 11 and pad.given(2) and fill is None:
        return refuse(conv, f"the fill value of {pad.name} is computed in the graph")
    if fill is not None and np.any(np.asarray(fill) != 0):
        return refuse(conv, f"{pad.name} fills with {float(np.asarray(fill).ravel()[0])}, a Conv with 0")
    weight = conv.constant(1)
    if weight is None:
        return refuse(conv, "its weight is computed in the graph")
    amounts = pad_amounts(pad, weight.ndim)
    if amounts is None or amounts.shape[1] != weight.ndim:
        return refuse(conv, f"the amounts of {pad.name} are computed in the graph")
    if np.any(amounts[:, :2]) or np.any(amounts < 0):
        return refuse(conv, f"{pad.name} pads the batch or channel axis, or crops")
    if conv.attributes["auto_pad"] not in ("NOTSET", "VALID"):
        return refuse(conv, f"the Conv pads by auto_pad {conv.attributes['auto_pad']} already")
    own = np.asarray(conv.attributes.get("pads") or [0] * 2 * (weight.ndim - 2)).reshape(2, -1)
    attributes = {**conv.attributes, "auto_pad": "NOTSET", "pads": [int(p) for p in (own + amounts[:, 2:]).ravel()]}
    return replace(
        conv, inputs=(pad.inputs[0], *conv.inputs[1:]), attributes=attributes, nodes=(*conv.nodes, *pad.nodes)
    )
