"""SGLRP: LRP that starts from the gradient of the softmax.

    R_t = 1,  R_n = -exp(z_n) / sum over m != t of exp(z_m)          [rows, classes], walked down as LRP

Free of scale: the published start p_t (1 - p_t), -p_t p_n, divided by p_t (1 - p_t), which underflows where the network
is sure.

Conserves: the start sums to 0, its halves to 1 and -1; the map too, but for the leaks in the ledger.

Differs: from the paper by that factor for each image, and by z^B at the picture, which is that of the LRP here.

Source: methods 4.2; Iwana, Kuroki, Uchida 2019, eq. 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgcam_onnx.attributions import starts
from fgcam_onnx.attributions.passes import Answer, Walks, Way

COMPOSITE = "paper"


def ways(options: Mapping[str, Any], logits: str, target: str, default_layer: str | None) -> dict[str, Way]:
    """From the logits to the map."""
    return {"down": Way(logits, target)}


def attribute(walks: Walks) -> Answer:
    """One pass."""
    (answer,) = walks.walk("down", starts.softmax_gradient(walks.logits, walks.target))
    return answer
