"""Methods by name: what is put on L, and whether it is walked down from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fgcam_onnx.cams import grad_cam, layer_cam, score_cam
from fgcam_onnx.cams.base import Context
from fgcam_onnx.errors import MethodError, nearest

__all__ = ["METHODS", "Method", "method"]


@dataclass(frozen=True)
class Method:
    """``components`` at L; ``fine``: descend from there (the map is at ``layer``, by default the input).

    ``differentiates``: it needs the gradient at L, and nothing but it and the activations.
    """

    name: str
    summary: str
    paper: str
    components: Callable[[Context], Any]
    fine: bool
    differentiates: bool


BASES = (
    ("grad-cam", "channels weighted by their mean gradient", "Selvaraju et al., ICCV 2017", grad_cam.components, True),
    ("score-cam", "channels weighted by the score of the image seen through them", "Wang et al., CVPRW 2020",
     score_cam.components, False),
    ("layer-cam", "each cell weighted by its positive gradient", "Jiang et al., TIP 2021", layer_cam.components, True),
)  # fmt: skip
FG = "Qiu, Jin, Zhang, AAAI 2024"
METHODS: dict[str, Method] = {
    m.name: m
    for name, summary, paper, components, differentiates in BASES
    for m in (
        Method(f"fg-{name}", f"fine-grained: {summary}, walked down to the pixels", FG, components, True,
               differentiates),
        Method(name, summary, paper, components, False, differentiates),
    )
}  # fmt: skip


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: there is none; the nearest names are suggested.
    """
    found = METHODS.get(name)
    if found is None:
        raise MethodError(f"there is no method {name!r}", known=", ".join(METHODS), next=nearest(name, METHODS) or None)
    return found
