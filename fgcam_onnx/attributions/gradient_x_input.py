"""Gradient x input: the derivative times the value, at the picture or any layer.

    E = sum over channels of x dy/dx          x, dy/dx [rows, c, ...]

Conserves: the score, in a network of ReLUs, pools and linear layers without biases; else nothing.

Differs: nothing known, from captum's InputXGradient. At L it is HiRes-CAM.

Source: methods 6; Shrikumar et al. 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.composite import Composite, GradientComposite


def composite(options: Mapping[str, Any]) -> Composite:
    """The derivative of every operator."""
    return GradientComposite()


def attribute(
    walked: np.ndarray, activation: np.ndarray, reference: np.ndarray | None, options: Mapping[str, Any]
) -> np.ndarray:
    """[rows, c, ...]."""
    product: np.ndarray = walked * activation
    return product
