"""Activations: elementwise functions hand their relevance through.

    identity:  R_in = R                                     exactly conserved
    mask:      R_in = R 1[y != 0]   for Relu and Clip        leaks the R that sits on zero outputs

In a plain chain of convolutions and pools the mask changes nothing: a cell with x = 0 gets no relevance from the
layer behind it (methods 9.1.5). Source: methods 3.2.

The derivatives below are written from the output y where that is enough, since it is what the next layer reads too.

    guided:    g_in = g^+ f'(x)   for Relu, and a Clip from 0      guided backpropagation
    rescale:   m_in = m (y - y0)/(x - x0), m f'(x) where |x - x0| < 1e-10      DeepLIFT

Every other activation has its plain derivative in guided backpropagation. The chord of ``rescale`` is exact: m_in
(x - x0) = m (y - y0), but for the curvature within 1e-10. In float32 it carries the rounding of y over |x - x0|, so
a multiplier is coarse where input and reference differ in their last digits only; its product with x - x0 is not.
Source: methods 6; Springenberg et al. 2015, section 3.4; Shrikumar et al. 2017, section 3.5.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance, rescale
from fgcam_onnx.rules.rescaled import NEAR, over_difference

SATURATE = {"fgcam::Saturate": (1,)}  # the view's own: where the range of a quantised tensor ends
ZEROING = {"Relu": (6, 13, 14), "Clip": (6, 11, 12, 13)}
MASKED = "relevance on outputs that are 0"
SMOOTH = {
    "LeakyRelu": (6, 16),
    "PRelu": (7, 9, 16),
    "Elu": (6, 22),
    "Selu": (6, 22),
    "Celu": (12, 28),
    "Softplus": (1, 22),
    "Softsign": (1, 22),
    "ThresholdedRelu": (10, 22),
    "Tanh": (6, 13),
    "Sigmoid": (6, 13),
    "HardSigmoid": (6, 22),
    "HardSwish": (14, 22),
    "Swish": (24,),
    "Mish": (18, 22),
    "Gelu": (20,),
    "Erf": (9, 13),
    "Exp": (6, 13),
    "Log": (6, 13),
    "Sqrt": (6, 13),
    "Pow": (7, 12, 13, 15),
    "Abs": (6, 13),
    "Neg": (6, 13),
}


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _constant_parameters(layer: Layer, graph: LayerGraph) -> str | None:
    for i in range(1, len(layer.inputs)):
        if layer.unknown(i):
            return f"its operand {layer.inputs[i]!r} is computed in the graph"
    return None


@relevance("mask", reads="y", sends=_first, leaks=MASKED, dead_inputs="always", Relu=ZEROING["Relu"])
@relevance("mask", reads="y", sends=_first, leaks=MASKED, **SATURATE)
@relevance("mask", reads="y", sends=_first, leaks=MASKED, Clip=ZEROING["Clip"])  # a Clip may map 0 to something else
def mask(node: Node, r: Array, xp: Verbs) -> Flow:
    """r where the output is not 0. Skipped where the layers behind guarantee it (``node.options["masked"]``)."""
    if node.options.get("masked"):
        return Flow({0: r})
    kept, leak = xp.keep(r, xp.nonzero(node.y))
    return Flow({0: kept}, (leak,))


@relevance("identity", sends=_first, **ZEROING, **SMOOTH, **SATURATE)
def identity(node: Node, r: Array, xp: Verbs) -> Flow:
    """r -> r."""
    return Flow({0: r})


Slope = Callable[[Node, Verbs], Array]


def _register(reads: str, slope: Slope, **ops: tuple[int, ...]) -> None:
    @gradient(reads=reads, sends=_first, refuses=_constant_parameters, **ops)
    def derivative(node: Node, r: Array, xp: Verbs) -> Flow:
        return Flow({0: xp.mul(r, slope(node, xp))})


def _register_chord(slope: Slope, **ops: tuple[int, ...]) -> None:
    @rescale(reads="xy", sends=_first, refuses=_constant_parameters, **ops)
    def chord(node: Node, r: Array, xp: Verbs) -> Flow:
        dx, dy = xp.sub(node.x(), node.x0()), xp.sub(node.y, node.y0)
        return Flow({0: xp.mul(r, over_difference(dy, dx, slope(node, xp), xp))})


def _above(x: Array, xp: Verbs, bound: float = 0.0) -> Array:
    return xp.greater(x, xp.constant(bound))


def _mix(where: Array, a: Array, b: Array, xp: Verbs) -> Array:
    """a where ``where`` is 1, b where it is 0."""
    return xp.add(xp.mul(where, a), xp.mul(xp.sub(xp.constant(1.0), where), b))


def _relu(node: Node, xp: Verbs) -> Array:
    """1[y > 0]"""
    return _above(node.y, xp)


def clip_bounds(node: Node) -> tuple[float, float]:
    """min and max of a Clip: attributes before opset 11, operands since."""
    if node.layer.version < 11:
        return float(node.attributes.get("min", -math.inf)), float(node.attributes.get("max", math.inf))
    low, high = node.layer.constant(1), node.layer.constant(2)
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _clip(node: Node, xp: Verbs) -> Array:
    """1[min < x < max], read from y"""
    low, high = clip_bounds(node)
    inside = xp.constant(1.0)
    if low > -math.inf:
        inside = _above(node.y, xp, low)
    if high < math.inf:
        inside = xp.mul(inside, xp.greater(xp.constant(high), node.y))
    return inside


def _saturate(node: Node, xp: Verbs) -> Array:
    """1[y > low] where a range that starts at 0 cuts negative values off: there the quantiser absorbed a ReLU; else 1.

    The other ends of the range are where calibration happened to stop, not part of the function that was trained. The
    winning logit often sits on the upper one: a derivative of 0 there would make the whole map vanish.
    """
    absorbed = node.attributes["low"] >= 0 and not node.nonnegative()
    return _above(node.y, xp) if absorbed else xp.constant(1.0)


def _leaky(node: Node, xp: Verbs) -> Array:
    """1 where x > 0, else the slope"""
    alpha = node.x(1) if node.layer.op == "PRelu" else xp.constant(node.attributes["alpha"])
    return _mix(_above(node.x(), xp), xp.constant(1.0), alpha, xp)


def _elu(node: Node, xp: Verbs) -> Array:
    """1 where x > 0, else y + alpha"""
    return _mix(_above(node.y, xp), xp.constant(1.0), xp.add(node.y, xp.constant(node.attributes["alpha"])), xp)


def _selu(node: Node, xp: Verbs) -> Array:
    """gamma where x > 0, else y + gamma alpha"""
    alpha, gamma = node.attributes["alpha"], node.attributes["gamma"]
    return _mix(_above(node.y, xp), xp.constant(gamma), xp.add(node.y, xp.constant(gamma * alpha)), xp)


def _celu(node: Node, xp: Verbs) -> Array:
    """1 where x > 0, else y / alpha + 1"""
    below = xp.add(xp.mul(node.y, xp.constant(1 / node.attributes["alpha"])), xp.constant(1.0))
    return _mix(_above(node.y, xp), xp.constant(1.0), below, xp)


def _softplus(node: Node, xp: Verbs) -> Array:
    """sigmoid(x)"""
    return xp.sigmoid(node.x())


def _softsign(node: Node, xp: Verbs) -> Array:
    """(1 - |y|)^2"""
    rest = xp.sub(xp.constant(1.0), xp.absolute(node.y))
    return xp.mul(rest, rest)


def _thresholded(node: Node, xp: Verbs) -> Array:
    """1[x > alpha]"""
    return _above(node.x(), xp, node.attributes["alpha"])


def _tanh(node: Node, xp: Verbs) -> Array:
    """1 - y^2"""
    return xp.sub(xp.constant(1.0), xp.mul(node.y, node.y))


def _sigmoid(node: Node, xp: Verbs) -> Array:
    """y (1 - y)"""
    return xp.mul(node.y, xp.sub(xp.constant(1.0), node.y))


def _hard_sigmoid(node: Node, xp: Verbs) -> Array:
    """alpha 1[0 < y < 1]"""
    inside = xp.mul(_above(node.y, xp), xp.greater(xp.constant(1.0), node.y))
    return xp.mul(inside, xp.constant(node.attributes["alpha"]))


def _hard_swish(node: Node, xp: Verbs) -> Array:
    """0 below -3, 1 above 3, (2x + 3)/6 between"""
    x = node.x()
    between = xp.mul(xp.add(xp.mul(x, xp.constant(2.0)), xp.constant(3.0)), xp.constant(1 / 6))
    below_three = xp.greater(xp.constant(3.0), x)
    return _mix(below_three, xp.mul(_above(x, xp, -3.0), between), xp.constant(1.0), xp)


def _swish(node: Node, xp: Verbs) -> Array:
    """s + alpha x s (1 - s), s = sigmoid(alpha x)"""
    alpha, x = xp.constant(node.attributes["alpha"]), node.x()
    s = xp.sigmoid(xp.mul(alpha, x))
    return xp.add(s, xp.mul(xp.mul(alpha, x), xp.mul(s, xp.sub(xp.constant(1.0), s))))


def _mish(node: Node, xp: Verbs) -> Array:
    """t + x (1 - t^2) sigmoid(x), t = tanh(softplus(x)), softplus(x) = max(x, 0) + log(1 + exp(-|x|))"""
    x, one = node.x(), xp.constant(1.0)
    shrunk = xp.exp(xp.mul(xp.absolute(x), xp.constant(-1.0)))
    t = xp.tanh(xp.add(xp.positive(x), xp.log(xp.add(one, shrunk))))
    return xp.add(t, xp.mul(xp.mul(x, xp.sub(one, xp.mul(t, t))), xp.sigmoid(x)))


def _gelu(node: Node, xp: Verbs) -> Array:
    """Phi(x) + x phi(x), or the derivative of the tanh form"""
    x, one, half = node.x(), xp.constant(1.0), xp.constant(0.5)
    if node.attributes.get("approximate", "none") == "tanh":
        k, a = math.sqrt(2 / math.pi), 0.044715
        square = xp.mul(x, x)
        t = xp.tanh(xp.mul(xp.mul(x, xp.add(one, xp.mul(square, xp.constant(a)))), xp.constant(k)))
        inner = xp.add(xp.constant(k), xp.mul(square, xp.constant(3 * k * a)))
        bump = xp.mul(xp.mul(x, half), xp.mul(xp.sub(one, xp.mul(t, t)), inner))
        return xp.add(xp.mul(half, xp.add(one, t)), bump)
    phi = xp.mul(xp.exp(xp.mul(xp.mul(x, x), xp.constant(-0.5))), xp.constant(1 / math.sqrt(2 * math.pi)))
    cdf = xp.mul(half, xp.add(one, xp.erf(xp.mul(x, xp.constant(1 / math.sqrt(2))))))
    return xp.add(cdf, xp.mul(x, phi))


def _erf(node: Node, xp: Verbs) -> Array:
    """2/sqrt(pi) exp(-x^2)"""
    x = node.x()
    return xp.mul(xp.exp(xp.mul(xp.mul(x, x), xp.constant(-1.0))), xp.constant(2 / math.sqrt(math.pi)))


def _exp(node: Node, xp: Verbs) -> Array:
    """y"""
    return node.y


def _log(node: Node, xp: Verbs) -> Array:
    """1/x"""
    return xp.div(xp.constant(1.0), node.x())


def _sqrt(node: Node, xp: Verbs) -> Array:
    """1 / (2 y)"""
    return xp.div(xp.constant(0.5), node.y)


def _pow(node: Node, xp: Verbs) -> Array:
    """p x^(p - 1)"""
    p = np.asarray(node.layer.constants[1], np.float64)
    return xp.mul(xp.power(node.x(), xp.constant(p - 1)), xp.constant(p))


def _abs(node: Node, xp: Verbs) -> Array:
    """sign(x)"""
    return xp.sub(_above(node.x(), xp), xp.greater(xp.constant(0.0), node.x()))


def _neg(node: Node, xp: Verbs) -> Array:
    """-1"""
    return xp.constant(-1.0)


_register("y", _relu, Relu=ZEROING["Relu"])
_register("y", _clip, Clip=ZEROING["Clip"])
_register("y", _saturate, **SATURATE)
for _op, _reads, _slope in (
    ("LeakyRelu", "x", _leaky),
    ("PRelu", "x", _leaky),
    ("Elu", "y", _elu),
    ("Selu", "y", _selu),
    ("Celu", "y", _celu),
    ("Softplus", "x", _softplus),
    ("Softsign", "y", _softsign),
    ("ThresholdedRelu", "x", _thresholded),
    ("Tanh", "y", _tanh),
    ("Sigmoid", "y", _sigmoid),
    ("HardSigmoid", "y", _hard_sigmoid),
    ("HardSwish", "x", _hard_swish),
    ("Swish", "x", _swish),
    ("Mish", "x", _mish),
    ("Gelu", "x", _gelu),
    ("Erf", "x", _erf),
    ("Exp", "y", _exp),
    ("Log", "x", _log),
    ("Sqrt", "y", _sqrt),
    ("Pow", "x", _pow),
    ("Abs", "x", _abs),
    ("Neg", "", _neg),
):
    _register(_reads, _slope, **{_op: SMOOTH[_op]})
    if _op not in ("Sqrt", "Pow", "Neg"):
        _register_chord(_slope, **{_op: SMOOTH[_op]})
_register_chord(_relu, Relu=ZEROING["Relu"])
_register_chord(_clip, Clip=ZEROING["Clip"])


@rescale(reads="y", sends=_first, Sqrt=SMOOTH["Sqrt"])
def sqrt_chord(node: Node, r: Array, xp: Verbs) -> Flow:
    """r / (y + y0): the chord and, where x = x0, the derivative; finite where one of them is 0."""
    return Flow({0: xp.div(r, xp.add(node.y, node.y0))})


@rescale(reads="xy", sends=_first, refuses=_constant_parameters, Pow=SMOOTH["Pow"])
def pow_chord(node: Node, r: Array, xp: Verbs) -> Flow:
    """r times the chord. Its tangent is taken at 1 where it is not used: the one of x^p, p < 1, is infinite at 0."""
    p, dx = np.asarray(node.layer.constants[1], np.float64), xp.sub(node.x(), node.x0())
    x = _mix(xp.greater(xp.absolute(dx), xp.constant(NEAR)), xp.constant(1.0), node.x(), xp)
    tangent = xp.mul(xp.power(x, xp.constant(np.where(p == 0, 0, p - 1))), xp.constant(p))
    return Flow({0: xp.mul(r, over_difference(xp.sub(node.y, node.y0), dx, tangent, xp))})


@gradient(name="guided", reads="y", sends=_first, Relu=ZEROING["Relu"])
def guided_relu(node: Node, r: Array, xp: Verbs) -> Flow:
    """r^+ 1[y > 0]"""
    return Flow({0: xp.mul(xp.positive(r), _relu(node, xp))})


@gradient(name="guided", reads="y", sends=_first, refuses=_constant_parameters, Clip=ZEROING["Clip"])
def guided_clip(node: Node, r: Array, xp: Verbs) -> Flow:
    """r^+ 1[0 < y < max] where the lower bound is 0, as in ReLU6; the plain derivative of any other Clip."""
    rectifies = clip_bounds(node)[0] == 0
    return Flow({0: xp.mul(xp.positive(r) if rectifies else r, _clip(node, xp))})


@gradient(name="guided", reads="y", sends=_first, **SATURATE)
def guided_saturate(node: Node, r: Array, xp: Verbs) -> Flow:
    """r^+ 1[y > low] where the quantiser absorbed a ReLU, else r."""
    absorbed = node.attributes["low"] >= 0 and not node.nonnegative()
    return Flow({0: xp.mul(xp.positive(r), _above(node.y, xp)) if absorbed else r})
