"""Guided backpropagation: the gradient, without what is negative at a ReLU.

    g_in = g_out * 1[x > 0] * 1[g_out > 0]          at every ReLU;  E = sum over channels of g [rows, c, ...]

A Clip from 0 (ReLU6) counts as a ReLU: 1[0 < x < 6]. ``guide="relu"`` leaves it its derivative.

Conserves: nothing. It is known to change little from class to class.

Differs: captum and pytorch-grad-cam guide ReLU modules only, as ``guide="relu"`` does.

Source: methods 6; Springenberg et al. 2015, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.composite import Composite, GradientComposite

OPTIONS: dict[str, Any] = {"guide": ("relu_and_clip", "relu")}


def composite(options: Mapping[str, Any]) -> Composite:
    """The derivative of every operator but the guided ones."""
    return GradientComposite(guided=("Relu",) if options["guide"] == "relu" else ("Relu", "Clip"))


def attribute(
    walked: np.ndarray, activation: np.ndarray, reference: np.ndarray | None, options: Mapping[str, Any]
) -> np.ndarray:
    """[rows, c, ...]."""
    return walked
