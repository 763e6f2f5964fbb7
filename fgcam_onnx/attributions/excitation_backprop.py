"""Excitation backpropagation: how a winning class hands its win down, along positive weights.

    R_t = 1;  R_i = sum_j x_i w_ij^+ / (sum_i' x_i' w_i'j^+) R_j          [rows, c, ...]

For x >= 0; negative inputs share by x^- w^-, as z+. Sums share by signed parts, activations and BatchNormalization hand
on all they got (``batchnorm="fold"`` folds the latter), a max-pool gives to its winners. ``contrastive=True``: at
``contrast_layer`` (L by default) the same with -W in the last learned layer is subtracted, and what is positive of the
map is kept.

Conserves: the start of 1, but for the leaks in the ledger and what sums hand to branches of opposite sign.

Differs: zennit merges BatchNormalization first (``batchnorm="fold"``); the authors' networks have none. zennit hands an
activation's derivative on, so that a ReLU6 at its upper end loses what it got; nothing is lost here.

Source: methods 6; Zhang et al. 2016, eq. 3 and section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.attributions import starts
from fgcam_onnx.attributions.passes import Answer, Walks, Way, minus
from fgcam_onnx.errors import ModelError

OPTIONS: dict[str, Any] = {"contrastive": False, "contrast_layer": None}
COMPOSITE = "excitation"
NEGATED = (("last", "z_plus(negate=True)"),)


def ways(options: Mapping[str, Any], logits: str, target: str, default_layer: str | None) -> dict[str, Way]:
    """From the logits to the map; contrastive: to the layer of the contrast, twice, and on from there."""
    if not options["contrastive"]:
        return {"down": Way(logits, target)}
    layer = options["contrast_layer"] or default_layer
    if layer is None:
        raise ModelError("the model has no L for the contrast", next="name a layer: contrast_layer=")
    return {"own": Way(logits, layer), "dual": Way(logits, layer, NEGATED), "on": Way(layer, target)}


def attribute(walks: Walks) -> Answer:
    """One pass, or two to the layer of the contrast and one from there."""
    start = starts.one(walks.logits, walks.target)
    if walks.against is not None:
        start = starts.contrast(walks.logits, walks.target, walks.against)
    if not walks.options["contrastive"]:
        (answer,) = walks.walk("down", start)
        return answer
    (own,), (dual,) = walks.walk("own", start), walks.walk("dual", start)
    contrast = minus(own, dual)
    (on,) = walks.walk("on", contrast.relevance)
    return Answer(on.relevance, contrast.ledger.then(on.ledger))


def finish(relevance: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """max(0, map) of the contrastive variant, after the sum over channels."""
    return np.maximum(relevance, 0) if options["contrastive"] else relevance
