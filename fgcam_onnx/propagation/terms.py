"""What the formulas share: sums of contributions, their way back, and what a denominator absorbs.

A term is a part of x with the weights it meets, (x^+, W^+) say. Where x is provably >= 0 its negative part makes no
term: what is known to be 0 is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgcam_onnx.backends.base import Array, Leak, Verbs
from fgcam_onnx.node import Node
from fgcam_onnx.registry import LinearMap

__all__ = ["Term", "absorbed", "applied", "bias_of", "dropped", "parts", "returned"]

Term = tuple[Array, Array | None]


def parts(node: Node, xp: Verbs) -> tuple[Array, Array | None]:
    """x^+ and x^-; x and None where x is provably >= 0."""
    x = node.x()
    return (x, None) if node.nonnegative() else (xp.positive(x), xp.negative(x))


def applied(node: Node, op: type[LinearMap], terms: Sequence[Term], xp: Verbs, bias: np.ndarray | None = None) -> Array:
    """sum over the terms of op(part, weights), and a bias: at the batch of x."""
    z = None
    for part, weight in terms:
        term = op.apply(node, part, weight, xp)
        z = term if z is None else xp.add(z, term)
    return z if bias is None else xp.add(z, xp.constant(bias))


def returned(node: Node, op: type[LinearMap], ways: Sequence[tuple[Array, Sequence[Term]]], xp: Verbs) -> Array:
    """sum over the ways (s, terms) of part * op^T(s, weights): each part multiplies what returns to it once."""
    found: list[tuple[Array, Array]] = []
    for s, terms in ways:
        for part, weight in terms:
            back = op.adjoint(node, s, weight, xp)
            k = next((k for k, (other, _) in enumerate(found) if other is part), None)
            if k is None:
                found.append((part, back))
            else:
                found[k] = (part, xp.add(found[k][1], back))
    result = None
    for part, back in found:
        term = xp.mul(part, back)
        result = term if result is None else xp.add(result, term)
    return result


def bias_of(node: Node, op: type[LinearMap], wanted: bool = True) -> np.ndarray | None:
    """b in float64, broadcasting to the output; None if there is none, or it is not ``wanted``."""
    b = op.bias(node.layer) if wanted else None
    return None if b is None else np.asarray(b, np.float64)


def absorbed(s: Array, amount: Array, xp: Verbs) -> Leak:
    """s_j a_j: what the part a_j of a denominator, a bias or a stabiliser, keeps for itself."""
    return dropped(xp.mul(s, amount), xp)


def dropped(r: Array, xp: Verbs) -> Leak:
    """All of r."""
    return Leak(xp.total(r), xp.total(xp.absolute(r)))
