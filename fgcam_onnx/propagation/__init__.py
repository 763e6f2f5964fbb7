"""Propagation rules: one formula each, over any linear map.

A formula sees an operator only as ``apply`` and ``adjoint`` (:class:`fgcam_onnx.registry.LinearMap`), so it holds for
Conv, ConvTranspose, Gemm and pooling alike, with any stride, padding, dilation, group and rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation.alpha_beta import alpha_beta
from fgcam_onnx.propagation.epsilon import epsilon, zero
from fgcam_onnx.propagation.flat import flat
from fgcam_onnx.propagation.gamma import gamma
from fgcam_onnx.propagation.gradient import gradient
from fgcam_onnx.propagation.w_square import w_square
from fgcam_onnx.propagation.z_box import z_box
from fgcam_onnx.propagation.z_plus import z_plus
from fgcam_onnx.registry import DeadInputs, LinearMap

__all__ = ["FORMULAS", "Formula", "checked", "formula"]

FormulaFunction = Callable[[Node, type[LinearMap], Array, Verbs], Flow]


@dataclass(frozen=True)
class Formula:
    """A propagation rule. The fields are those of :class:`fgcam_onnx.registry.Rule`.

    ``one_sign``: all terms of a denominator have one sign, so that its products may be rounded (Verbs.rounding).
    ``unbounded``: shares may exceed 1 in size. ``parameters``: their names and defaults.
    """

    name: str
    function: FormulaFunction
    reads: str
    dead_inputs: DeadInputs
    leaks: str
    one_sign: bool = False
    unbounded: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


DROPPED = "relevance of outputs whose denominator is 0"
BIAS = "; what the bias absorbs, if it is counted"
FORMULAS = {
    f.name: f
    for f in (
        Formula("z_plus", z_plus, reads="x", dead_inputs="always", leaks=DROPPED + BIAS, one_sign=True,
                parameters={"bias": False, "negate": False}),
        Formula("z_box", z_box, reads="x", dead_inputs="never", leaks=DROPPED, one_sign=True),
        Formula("flat", flat, reads="", dead_inputs="never", leaks=DROPPED),
        Formula("gradient", gradient, reads="", dead_inputs="never", leaks="not conserved"),
        Formula("epsilon", epsilon, reads="x", dead_inputs="always", leaks="what bias and epsilon absorb",
                unbounded=True, parameters={"epsilon": 1e-6, "bias": True}),
        Formula("zero", zero, reads="x", dead_inputs="always", leaks=DROPPED + "; what the bias absorbs",
                unbounded=True),
        Formula("alpha_beta", alpha_beta, reads="x", dead_inputs="always",
                leaks="the half of outputs where P or N is 0" + BIAS, unbounded=True,
                parameters={"alpha": 2.0, "beta": 1.0, "bias": False}),
        Formula("gamma", gamma, reads="x", dead_inputs="always", leaks=DROPPED + BIAS, unbounded=True,
                parameters={"gamma": 0.25, "form": "general", "bias": False}),
        Formula("w_square", w_square, reads="", dead_inputs="never", leaks=DROPPED),
    )
}  # fmt: skip
# The values of a parameter that is a word.
WORDS = {"form": ("general", "nonnegative")}


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


def checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a formula, defaults filled in.

    Raises:
        OptionError: it has no such parameter, or the value is none of its.
    """
    defaults = formula(name).parameters
    for key in given:
        if key not in defaults:
            raise OptionError(
                f"rule {name!r} has no parameter {key!r}",
                known=f"its parameters are {', '.join(defaults)}" if defaults else "it has none",
                next=nearest(key, defaults) or None,
            )
    found = {key: _value(name, key, given.get(key, default), default) for key, default in defaults.items()}
    if name == "alpha_beta" and abs(found["alpha"] - found["beta"] - 1) > 1e-12:
        raise OptionError(
            f"rule 'alpha_beta' cannot have alpha={found['alpha']:g} and beta={found['beta']:g}",
            known="alpha - beta = 1, else relevance is created or lost at every layer",
            next=f"alpha={found['beta'] + 1:g}, beta={found['beta']:g}",
        )
    return found


def _value(name: str, key: str, value: Any, default: Any) -> Any:
    """The value of a parameter: a word, true or false, or a number that is at least 0; by what its default is."""
    what = f"parameter {key} of rule {name!r} cannot be {value!r}"
    if isinstance(default, str):
        if value not in WORDS[key]:
            raise OptionError(what, known=", ".join(WORDS[key]), next=nearest(str(value), WORDS[key]) or None)
        return value
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise OptionError(what, known="true or false")
        return bool(value)
    number = not isinstance(value, (bool, np.bool_)) and isinstance(value, (int, float, np.integer, np.floating))
    if not number or not isfinite(value) or value < 0:
        raise OptionError(what, known="a number, at least 0")
    return float(value)
