"""Rules a second time: plainer, slower, on the operator's dense matrix.

The matrix comes from the operator itself, one unit input at a time, so nothing here knows about strides, pads or
groups. A linear map gets its replica from it: every propagation formula (methods 2.1, 3, 4.1). A rule of its own gets
the replica that its author writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fgcam_onnx import registry
from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import LinearMap, Rule
from fgcam_onnx.testing.case import Case
from fgcam_onnx.testing.compare import Floats, Row, close, flatten, named
from fgcam_onnx.testing.invariants import EXACT, Trial, tried
from fgcam_onnx.testing.parity import CANCELS, conditioned
from fgcam_onnx.testing.run import Result, run
from fgcam_onnx.testing.run import rule as rule_of

__all__ = [
    "Answer",
    "Replica",
    "check_adjoint",
    "check_replica",
    "compare",
    "dense",
    "flat",
    "gradient",
    "on_the_matrix",
    "z_box",
    "z_plus",
]

Answer = tuple[dict[int, Floats], Floats]  # relevance by operand, and the relevance that was dropped, per output cell
Replica = Callable[[Case, dict[str, Floats], list[Floats]], Answer]
# Where the oracle is rounded to float32.
ROUNDED = 1e-5


def dense(case: Case, name: str | None = None) -> Floats:
    """The operator's dependence on one activation as a dense matrix [outputs, inputs] for one image.

    One run of the operator itself, whose batch holds every unit input; the run on zeros is taken off (the bias).
    Other activations are 0; several outputs stand one below the other.
    """
    name = name or next(iter(case.inputs))
    size = math.prod(case.shape_of(name)[1:])

    def outputs(units: Floats) -> Floats:
        n = len(units)
        feeds = {other: np.zeros((n, *case.shape_of(other)[1:])) for other in case.inputs}
        feeds[name] = units.reshape(n, *case.shape_of(name)[1:])
        return np.concatenate([y.reshape(n, -1) for y in case.forward(feeds)], axis=1)

    A = np.asarray((outputs(np.eye(size)) - outputs(np.zeros((1, size)))).T)
    return A if case.operator.exact else np.where(np.abs(A) < 1e-6 * np.abs(A).max(initial=0.0), 0, A)


# --- the formulas on a matrix: x [n, inputs], r [n, outputs] -> relevance, and what was dropped -----------------------


def z_plus(A: Floats, x: Floats, r: Floats) -> tuple[Floats, Floats]:
    """R_i = sum_j (x_i^+ A_ji^+ + x_i^- A_ji^-) / z_j R_j, z_j the sum of these over i."""
    P, N, up, down = A.clip(min=0), A.clip(max=0), x.clip(min=0), x.clip(max=0)
    z = up @ P.T + down @ N.T
    s = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
    return up * (s @ P) + down * (s @ N), np.where(z == 0, r, 0)


def z_box(A: Floats, x: Floats, r: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """R_i = sum_j ((x_i - l_i) A_ji^+ + (x_i - h_i) A_ji^-) / z_j R_j."""
    P, N = A.clip(min=0), A.clip(max=0)
    z = (x - low) @ P.T + (x - high) @ N.T
    s = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
    return (x - low) * (s @ P) + (x - high) * (s @ N), np.where(z == 0, r, 0)


def flat(A: Floats, x: Floats, r: Floats) -> tuple[Floats, Floats]:
    """R_j in equal shares to the inputs that output j reads."""
    reads = (A != 0).astype(float)
    count = reads.sum(axis=1)
    s = np.divide(r, count, out=np.zeros_like(r), where=count != 0)
    return s @ reads, np.where(count == 0, r, 0)


def gradient(A: Floats, x: Floats, r: Floats) -> tuple[Floats, Floats]:
    """A^T r."""
    return r @ A, np.zeros_like(r)


def w_square(A: Floats, x: Floats, r: Floats) -> tuple[Floats, Floats]:
    """R_i = sum_j A_ji^2 / (sum_i A_ji^2) R_j."""
    squares = A**2
    total = squares.sum(axis=1)
    s = np.divide(r, total, out=np.zeros_like(r), where=total != 0)
    return s @ squares, np.where(total == 0, r, 0)


def epsilon(A: Floats, x: Floats, r: Floats, b: Floats, size: float) -> tuple[Floats, Floats]:
    """R_i = x_i sum_j A_ji R_j / (z_j + size sign z_j), z = A x + b; b and size keep their shares."""
    z = x @ A.T + b
    stabiliser = np.where(z < 0, -size, size)
    whole = z + stabiliser
    s = np.divide(r, whole, out=np.zeros_like(r), where=whole != 0)
    return x * (s @ A), np.where(whole == 0, r, s * (b + stabiliser))


def alpha_beta(A: Floats, x: Floats, r: Floats, b: Floats, alpha: float, beta: float) -> tuple[Floats, Floats]:
    """R_i = sum_j (alpha P_ij / P_j - beta N_ij / N_j) R_j, contribution by contribution; two leaks a cell."""
    parts = A[None] * x[:, None, :]  # [n, outputs, inputs]
    found, lost = np.zeros_like(x), []
    for factor, terms, rest in ((alpha, parts.clip(min=0), b.clip(min=0)), (-beta, parts.clip(max=0), b.clip(max=0))):
        z = terms.sum(axis=2) + rest
        s = factor * np.divide(r, z, out=np.zeros_like(r), where=z != 0)
        found += np.einsum("nj,nji->ni", s, terms)
        lost.append(np.where(z == 0, factor * r, s * rest))
    return found, np.concatenate(lost, axis=1)


def gamma(A: Floats, x: Floats, r: Floats, b: Floats, size: float, form: str) -> tuple[Floats, Floats]:
    """Shares by contribution + gamma times those of the sign of z_j ("nonnegative": times those by w^+)."""
    parts = A[None] * x[:, None, :]
    if form == "nonnegative":
        terms, rest = parts + size * A.clip(min=0)[None] * x[:, None, :], b + size * b.clip(min=0)
        z = terms.sum(axis=2) + rest
    else:
        sign = np.sign(parts.sum(axis=2) + b)
        favoured = np.where(sign[:, :, None] > 0, parts.clip(min=0), parts.clip(max=0))
        terms = parts + size * favoured
        rest = b + size * np.where(sign > 0, b.clip(min=0), b.clip(max=0))
        z = np.where(sign == 0, 0, terms.sum(axis=2) + rest)
    s = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
    return np.einsum("nj,nji->ni", s, terms), np.where(z == 0, r, s * rest)


def on_the_matrix(
    name: str, case: Case, x: Mapping[str, Floats], r: list[Floats], options: Mapping[str, Any] | None = None
) -> Answer:
    """The formula ``name`` for the linear map of a case; the bounds of z^B are those of each image.

    ``options``: the parameters of the formula. The bias is what the operator gives for zeros.
    """
    (first,) = case.inputs
    A, rows, relevance = dense(case), flatten([x[first]]), flatten(r)
    given = options or {}
    counted = name == "zero" or bool(given.get("bias", False))
    b = flatten(case.forward({first: np.zeros_like(x[first])})) if counted else np.zeros_like(relevance)
    if name == "z_box":
        low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        found, lost = z_box(A, rows, relevance, low, high)
    elif name == "z_plus" and (counted or given.get("negate")):
        sign = -1 if given.get("negate") else 1
        found, lost = alpha_beta(sign * A, rows, relevance, sign * b, 1, 0)
        lost = lost[:, : relevance.shape[1]]
    elif name in ("epsilon", "zero"):
        found, lost = epsilon(A, rows, relevance, b, float(given.get("epsilon", 0.0)))
    elif name == "alpha_beta":
        found, lost = alpha_beta(A, rows, relevance, b, given["alpha"], given["beta"])
    elif name == "gamma":
        found, lost = gamma(A, rows, relevance, b, given["gamma"], given["form"])
    else:
        plain = {"z_plus": z_plus, "flat": flat, "w_square": w_square, "gradient": gradient}
        found, lost = plain[name](A, rows, relevance)
    return {case.names.index(first): found.reshape(x[first].shape)}, lost


# --- the checks -------------------------------------------------------------------------------------------------------


def check_replica(case: Case, rule: str | Rule, replica: Replica | None = None) -> Row:
    """The rule gives what its replica gives, leaks included; also where x >= 0 is known beforehand.

    ``replica``: ``(case, x, r) -> ({operand: relevance}, dropped)``, x by the names x0, x1, ..., r and dropped of the
    outputs' shapes. A linear map needs none: its formulas are computed on the dense matrix, and the operator is shown
    to be what that matrix says.
    """
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    linear = registry.find_linear(case.op) is not None
    if replica is None and not linear:
        return Row("replica", chosen.name, skipped="a rule of its own, and no replica= is given")
    allowed = EXACT if case.operator.exact else ROUNDED
    if linear and not case.operator.exact:
        known = conditioned(chosen)
        if known is None:
            return Row("replica", chosen.name, skipped=CANCELS)
        chosen = known

    def ask(trial: Trial) -> float:
        x, r = trial.x, trial.r
        if replica is not None:
            answer = replica(case, x, r)
        else:
            _check_linear(case, x)
            answer = on_the_matrix(chosen.name, case, x, r, chosen.options)
        worst = compare(trial.run(), answer, allowed)
        if trial.style == "positive":
            known = run(case, chosen, x, r, nonnegative=True)
            worst = max(worst, compare(known, answer, allowed))
        return worst

    return tried("replica", case, chosen, ask, allowed)


def _check_linear(case: Case, x: Mapping[str, Floats]) -> None:
    """op(x) = A x + op(0)."""
    (first,) = case.inputs
    bias = flatten(case.forward({first: np.zeros_like(x[first])}))
    found = flatten([x[first]]) @ dense(case).T + bias
    close(found, flatten(case.forward(x)), EXACT if case.operator.exact else ROUNDED, "A x + b, as of a linear map,")


def compare(found: Result, answer: Answer, tolerance: float = EXACT) -> float:
    """The largest deviation of a rule's answer from its replica's: parts, signed and absolute leak."""
    parts, lost = answer
    if set(found.parts) != set(parts):
        raise AssertionError(f"operands {sorted(found.parts)} get relevance, the replica gives it to {sorted(parts)}")
    lost = flatten([np.asarray(lost)])
    pairs = [(found.parts[i], part, f"the relevance of operand {i}") for i, part in parts.items()]
    pairs += [(found.leaked, lost.sum(axis=1), "the leak")]
    pairs += [(found.books["dropped"], np.abs(lost).sum(axis=1), "the absolute leak")]
    return max(close(mine, other, tolerance, what) for mine, other, what in pairs)


def check_adjoint(case: Case) -> Row:
    """<A x, s> = <x, A^T s> for the ``apply`` and ``adjoint`` of a linear map, and ``apply`` is the operator.

    With the layer's weights and with their positive part, as z+ uses them.
    """
    found = registry.find_linear(case.op)
    if found is None:
        return Row("adjoint", skipped="no linear map is registered for it")
    cls = found[0]
    weight = cls.weight(case.layer)
    allowed = EXACT if case.operator.exact else ROUNDED
    worst = 0.0
    with named("adjoint", f"the linear map {cls.__name__} on {case.id}"):
        x, plain = case.values(), rule_of(case, "gradient")
        (first,) = case.inputs
        s = case.relevance(x)
        for w in (weight,) if weight is None else (weight, np.maximum(weight, 0)):
            forth = _applied(case, plain, cls, w, x, s)
            back = _adjoined(case, plain, cls, w, x, s)
            if forth.shape != s[0].shape:
                raise AssertionError(f"apply gives shape {list(forth.shape)}, and the output's is {list(s[0].shape)}")
            if back.shape != x[first].shape:
                raise AssertionError(
                    f"adjoint gives shape {list(back.shape)}, and the input's is {list(x[first].shape)}"
                )
            one, two = (flatten([a * b]).sum(axis=1) for a, b in ((forth, s[0]), (x[first], back)))
            norms = [np.linalg.norm(flatten([array]), axis=1) for array in (forth, s[0])]
            away = np.abs(one - two) / np.maximum(norms[0] * norms[1], 1e-30)
            k = int(away.argmax())
            if not away[k] <= EXACT:
                raise AssertionError(f"image {k}: <A x, s> = {one[k]:.9g}, <x, A^T s> = {two[k]:.9g}")
            worst = max(worst, float(away[k]))
            if w is weight:
                (bias,) = case.forward({first: np.zeros_like(x[first])})
                worst = max(worst, close(forth, case.forward(x)[0] - bias, allowed, "apply, against the operator,"))
    return Row("adjoint", plain.name, worst, allowed)


def _applied(
    case: Case, rule: Rule, cls: type[LinearMap], w: Floats | None, x: dict[str, Floats], s: list[Floats]
) -> Floats:
    def function(node: Node, r: Array, xp: Verbs) -> Flow:
        return Flow({0: cls.apply(node, node.x(), None if w is None else xp.constant(w), xp)})

    return run(case, replace(rule, function=function, reads="x"), x, s).parts[0]


def _adjoined(
    case: Case, rule: Rule, cls: type[LinearMap], w: Floats | None, x: dict[str, Floats], s: list[Floats]
) -> Floats:
    def function(node: Node, r: Array, xp: Verbs) -> Flow:
        return Flow({0: cls.adjoint(node, r, None if w is None else xp.constant(w), xp)})

    return run(case, replace(rule, function=function), x, s).parts[0]
