"""Gradient: the derivative of the score with respect to the picture, or any layer.

    E = sum over channels of dy/dx          dy/dx [rows, c, ...]
    channels="max_abs": the largest |dy/dx| of the channels, as saliency maps are drawn

Conserves: nothing; it says what a change would do, not what the score is made of.

Differs: captum's Saliency is the absolute value of each channel.

Source: methods 6; Simonyan, Vedaldi, Zisserman 2014, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.composite import Composite, GradientComposite

OPTIONS: dict[str, Any] = {"channels": ("sum", "max_abs")}


def composite(options: Mapping[str, Any]) -> Composite:
    """The derivative of every operator."""
    return GradientComposite()


def attribute(
    walked: np.ndarray, activation: np.ndarray, reference: np.ndarray | None, options: Mapping[str, Any]
) -> np.ndarray:
    """[rows, c, ...]; of "max_abs" [rows, 1, ...]."""
    if options["channels"] == "max_abs":
        largest: np.ndarray = np.abs(walked).max(axis=1, keepdims=True)
        return largest
    return walked
