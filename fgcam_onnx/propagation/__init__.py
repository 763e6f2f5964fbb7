"""Propagation rules: one formula each, over any linear map.

A formula sees an operator only as ``apply`` and ``adjoint`` (:class:`fgcam_onnx.registry.LinearMap`), so it holds for
Conv, ConvTranspose, Gemm and pooling alike, with any stride, padding, dilation, group and rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.flat import flat
from fgcam_onnx.propagation.gradient import gradient
from fgcam_onnx.propagation.z_box import z_box
from fgcam_onnx.propagation.z_plus import z_plus
from fgcam_onnx.registry import DeadInputs, LinearMap

__all__ = ["FORMULAS", "Formula", "formula"]

FormulaFunction = Callable[[Node, type[LinearMap], Array, Verbs], Flow]


@dataclass(frozen=True)
class Formula:
    """A propagation rule. The fields are those of :class:`fgcam_onnx.registry.Rule`.

    ``one_sign``: all terms of a denominator have one sign, so that its products may be rounded (Verbs.rounding).
    """

    name: str
    function: FormulaFunction
    reads: str
    dead_inputs: DeadInputs
    leaks: str
    one_sign: bool = False


DROPPED = "relevance of outputs whose denominator is 0"
FORMULAS = {
    f.name: f
    for f in (
        Formula("z_plus", z_plus, reads="x", dead_inputs="always", leaks=DROPPED, one_sign=True),
        Formula("z_box", z_box, reads="x", dead_inputs="never", leaks=DROPPED, one_sign=True),
        Formula("flat", flat, reads="", dead_inputs="never", leaks=DROPPED),
        Formula("gradient", gradient, reads="", dead_inputs="never", leaks="not conserved"),
    )
}


def formula(name: str) -> Formula:
    """The propagation rule of that name.

    Raises:
        OptionError: nobody knows it.
    """
    if name not in FORMULAS:
        raise OptionError(
            f"there is no propagation rule {name!r}", known=", ".join(FORMULAS), next=nearest(name, FORMULAS) or None
        )
    return FORMULAS[name]
