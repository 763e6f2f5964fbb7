"""Class-blind CAM: the bare activations, every channel with weight 1.

    components A_k          [rows, c, ...]

A control: the same for every class. What a metric gives this map, the network's features are worth before any class is
asked about; only what a method scores beyond it is about the class. ``fg-class-blind`` walks it down by FG-CAM's rules.

Conserves: the components sum to the sum of the activations.

Differs: from FG-CAM in w_k = 1; it is nobody's method.

Source: methods 2.1; Qiu, Jin, Zhang 2024, eq. 3, with the weights taken out.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array
from fgcam_onnx.cams.base import Context

DESCENDS = True


def components(context: Context) -> Array:
    """[rows, c, ...], signed as the activations are; for several classes the same again."""
    xp, a = context.xp, context.activations
    return xp.expand(a, (len(context.target), *xp.shape(a)[1:]))
