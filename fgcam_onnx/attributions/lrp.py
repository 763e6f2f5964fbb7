"""LRP: the score of a class, handed back layer by layer.

    R at the logits: |z_t| at the class t, 0 elsewhere          [rows, classes]
    R_i = sum_j share_ij R_j at every layer;  E = sum over channels of R          [rows, c, ...]

The ``composite`` says which rule gives the shares: z^B at the picture and z+ elsewhere ("paper"), or one of the usual
names, epsilon_plus, epsilon_alpha2_beta1, epsilon_plus_flat, epsilon_alpha2_beta1_flat, epsilon_gamma_box; ``rules``
sets single layers. ``start_relevance`` [images, classes] puts other relevance on the logits. Held against another class
(``against``), it starts from 1 and -1.

Conserves: the start, but for the leaks in the ledger: biases and epsilon absorb relevance, zero denominators drop it.

Differs: zennit and captum start from 1 and not from the logit; their z+, alpha-beta and gamma have the bias in the
denominator (``bias=True``). In zennit the bounds of z^B are given by the user, here they are those of the image.

Source: methods 4; Bach et al. 2015; Montavon et al. 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.attributions import starts
from fgcam_onnx.attributions.passes import Answer, Walks, Way
from fgcam_onnx.errors import OptionError

OPTIONS: dict[str, Any] = {"start_relevance": None}
COMPOSITE = "paper"


def ways(options: Mapping[str, Any], logits: str, target: str, default_layer: str | None) -> dict[str, Way]:
    """From the logits to the map."""
    return {"down": Way(logits, target)}


def attribute(walks: Walks) -> Answer:
    """One pass."""
    given = walks.options["start_relevance"]
    if given is not None:
        start = _checked(given, walks.logits.shape)
    elif walks.against is not None:
        start = starts.contrast(walks.logits, walks.target, walks.against)
    else:
        start = starts.score(walks.logits, walks.weights)
    (answer,) = walks.walk("down", start)
    return answer


def _checked(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """[rows, classes]: a row for each image, or one for all."""
    try:
        start = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        start = np.full((), np.nan)
    wanted = f"finite numbers [{', '.join(map(str, shape))}], [images, classes], or one row for all"
    if not np.isfinite(start).all():
        raise OptionError("option start_relevance is not made of finite numbers", known=wanted)
    if start.shape not in (shape, shape[1:], (1, *shape[1:])):
        raise OptionError(f"option start_relevance has shape {list(start.shape)}", known=wanted)
    return np.broadcast_to(start, shape)
