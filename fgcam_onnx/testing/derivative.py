"""The gradient rule is the derivative of the operator: central differences of the operator itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fgcam_onnx.registry import Rule
from fgcam_onnx.testing.case import Case
from fgcam_onnx.testing.compare import Floats, Row, close, named
from fgcam_onnx.testing.run import rule as rule_of
from fgcam_onnx.testing.run import run

__all__ = ["check_gradient", "numeric_gradient", "off_the_kinks"]

# (step, allowed deviation): of an operator in float64, and of one whose values are rounded to float32.
DOUBLE, SINGLE = (1e-5, 1e-6), (2.0**-5, 2e-4)


def check_gradient(case: Case, rule: str | Rule = "gradient", kinks: Collection[float] = ()) -> Row:
    """The rule against differences of the operator, summed by tensor: one that is read twice has one derivative.

    ``kinks``: where the operator has a kink or a jump. Values near one are moved off it, since the slope beside it is
    not the slope there.
    """
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    step, allowed = DOUBLE if case.operator.exact else SINGLE
    worst = 0.0
    with named("gradient", f"rule {chosen.name!r} on {case.id}"):
        x = off_the_kinks(case.values(), kinks, 3 * step)
        r = case.relevance(x)
        parts = run(case, chosen, x, r).parts
        for name in x:
            positions = [i for i, other in enumerate(case.names) if other == name]
            if not set(positions) <= set(parts):
                raise AssertionError(f"operand {positions[0]} gets no derivative")
            total = np.sum([parts[i] for i in positions], axis=0)
            expected = numeric_gradient(case, x, r, name)
            worst = max(worst, close(total, expected, allowed, f"the derivative by operand {positions[0]}"))
    return Row("gradient", chosen.name, worst, allowed)


def off_the_kinks(x: Mapping[str, Floats], kinks: Collection[float], reach: float = 0.0) -> dict[str, Floats]:
    """``x``, with the values near a kink moved to beside it."""
    near = max(1e-3, reach)
    found = dict(x)
    for kink in kinks:
        found = {name: np.where(np.abs(v - kink) < near, kink + max(0.01, 2 * near), v) for name, v in found.items()}
    return found


def numeric_gradient(
    case: Case, x: Mapping[str, Floats], r: Sequence[Floats], name: str, step: float | None = None
) -> Floats:
    """Central differences of <r, op(x)> by one activation, one cell at a time, all cells and images in one batch.

    Of an operator in float32 the differences of two steps, which cancel the third derivative: the step has to be large
    there, since the values are rounded.
    """
    if case.operator.exact:
        return _difference(case, x, r, name, step or DOUBLE[0])
    h = step or SINGLE[0]
    return np.asarray((4 * _difference(case, x, r, name, h) - _difference(case, x, r, name, 2 * h)) / 3)


def _difference(case: Case, x: Mapping[str, Floats], r: Sequence[Floats], name: str, step: float) -> Floats:
    base = x[name]
    n, cells = len(base), math.prod(base.shape[1:])
    nudges = np.concatenate([np.eye(cells), -np.eye(cells)]) * step  # [2 cells, cells]

    def repeated(array: Floats) -> Floats:
        return np.repeat(array, 2 * cells, axis=0)

    feeds = {other: repeated(array) for other, array in x.items()}
    feeds[name] = feeds[name] + np.tile(nudges, (n, 1)).reshape(n * 2 * cells, *base.shape[1:])
    outputs = case.forward(feeds)
    value = sum((y * repeated(part)).reshape(n, 2 * cells, -1).sum(axis=2) for y, part in zip(outputs, r, strict=True))
    plus, minus = np.asarray(value)[:, :cells], np.asarray(value)[:, cells:]
    return np.asarray((plus - minus) / (2 * step)).reshape(base.shape)
