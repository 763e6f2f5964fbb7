"""Options that are numbers: said to be wrong before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.errors import OptionError

__all__ = ["number", "whole"]


def whole(options: Mapping[str, Any], name: str, least: int) -> int:
    """The option ``name``, a whole number of at least ``least``.

    Raises:
        OptionError: it is none.
    """
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OptionError(f"option {name} cannot be {value!r}", known=f"a whole number, at least {least}")
    return int(value)


def number(options: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float:
    """The option ``name``, a number from ``low`` (``above``: and not ``low`` itself) to ``high``.

    Raises:
        OptionError: it is none.
    """
    value = options[name]
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not numeric or not low <= value <= high or (above and value == low):
        words = f"above {low:g}" if above else f"at least {low:g}"
        known = f"a number, {words}" + (f" and up to {high:g}" if np.isfinite(high) else "")
        raise OptionError(f"option {name} cannot be {value!r}", known=known)
    return float(value)
