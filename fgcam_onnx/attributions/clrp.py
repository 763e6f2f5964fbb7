"""CLRP: the evidence for a class less the evidence for the others.

    R: start |z_t| at the class;   D: the dual start;   both walked down as LRP
    E = R / sum R - D / sum D          [rows, c, ...], sums over the map
    variant="1": D_n = z_t / (N - 1) for n != t      "abs": D_n = |z_n| for n != t
    variant="2": D as R, but -W in the last learned layer, x^+ (-w)^+ + x^- (-w)^-
    variant="relevance-cam": one walk, R_t = 1 and R_n = -1/N

Conserves: each half sums to 1, the map to 0 ("relevance-cam": 1/N of the start, in theory).

Differs: the authors' code is variant "abs"; their pictures show max(0, E), and here E keeps its signs.

Source: methods 4.2; Gu, Yang, Tresp 2018, eq. 5 to 8; Lee et al. 2021 ("relevance-cam").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgcam_onnx.attributions import starts
from fgcam_onnx.attributions.passes import Answer, Walks, Way, minus, per_total

OPTIONS: dict[str, Any] = {"variant": ("1", "abs", "2", "relevance-cam")}
COMPOSITE = "paper"


def ways(options: Mapping[str, Any], logits: str, target: str, default_layer: str | None) -> dict[str, Way]:
    """From the logits to the map, of variant 2 a second time with the last layer's weights negated."""
    down = {"down": Way(logits, target)}
    if options["variant"] == "2":
        down["dual"] = Way(logits, target, (("last", "z_plus(negate=True)"),))
    return down


def attribute(walks: Walks) -> Answer:
    """Two passes, or one."""
    variant, z, t = walks.options["variant"], walks.logits, walks.target
    if variant == "relevance-cam":
        (answer,) = walks.walk("down", starts.uniform_rest(z, t))
        return answer
    start = starts.score(z, walks.weights)
    if variant == "2":
        (own,), (dual,) = walks.walk("down", start), walks.walk("dual", start)
    else:
        others = starts.uniform_dual if variant == "1" else starts.uniform_dual_absolute
        own, dual = walks.walk("down", start, others(z, t))
    return minus(per_total(own), per_total(dual))
