"""DeepLIFT-rescale: what its rules share.

    multiplier of an operand x_i:   m_i with  sum_i m_i (x_i - x0_i) = m (y - y0)        x0, y0 on the reference

What is linear in its operands for fixed weights has the derivative for a multiplier, and the sum is exact
(``fgcam_onnx.graph.affine``, and every linear map). The others have a rule of kind "rescale" beside their
derivative, or are refused: a derivative in place of a chord would break the sum, and nothing would show it.
Source: methods 6; Shrikumar et al. 2017, section 3.5.2 (Rescale).
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.affine import BY_DERIVATIVE
from fgcam_onnx.graph.layer import SATURATE
from fgcam_onnx.registry import no_rule

__all__ = ["BY_DERIVATIVE", "NEAR", "over_difference"]

# Below this difference a chord is the tangent. methods 6.
NEAR = 1e-10

no_rule("rescale", "a quantised model does not keep the values that it clamps, and a chord needs them", SATURATE)


def over_difference(change: Array, dx: Array, tangent: Array, xp: Verbs) -> Array:
    """change / dx, and ``tangent`` where |dx| < 1e-10. All broadcast; ``tangent`` has to be finite."""
    apart = xp.greater(xp.absolute(dx), xp.constant(NEAR))
    near = xp.sub(xp.constant(1.0), apart)
    return xp.add(xp.mul(apart, xp.div(change, xp.add(dx, near))), xp.mul(near, tangent))
