"""DeepLIFT: the difference from a reference picture, shared out by the rescale rule.

    m = W^T m behind a linear map;   m (f(x) - f(x0)) / (x - x0) behind f, f'(x) where |x - x0| < 1e-10
    E = sum over channels of m (x - x0)          m, x, x0 [rows, c, ...]

Max-pooling hands the part of the change up to the larger of the two maxima to the winner on the picture, the rest to
the winner on the reference. Products share symmetrically: m_a = m (b + b0) / 2.

Conserves: the sum over E is y(x) - y(x0).

Normalisations that take their statistics from the activation, and products, have multipliers with which the sum closes.

Differs: captum's DeepLift skips its max-pooling rule behind an activation, and differentiates ReLU6, products and
normalisations: there its sum does not close, here it does.

Source: methods 6; Shrikumar, Greenside, Kundaje 2017, section 3.5.2 (Rescale).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.composite import Composite, RescaleComposite

OPTIONS: dict[str, Any] = {"baseline": 0.0}


def composite(options: Mapping[str, Any]) -> Composite:
    """The multiplier of every operator."""
    return RescaleComposite()


def attribute(
    walked: np.ndarray, activation: np.ndarray, reference: np.ndarray | None, options: Mapping[str, Any]
) -> np.ndarray:
    """[rows, c, ...]."""
    parts: np.ndarray = walked * (activation - (0 if reference is None else reference))
    return parts
