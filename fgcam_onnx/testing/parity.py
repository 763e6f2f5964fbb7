"""Backends: the rule gives the same through each of them, and the oracle is what is deployed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fgcam_onnx import backends as known
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.errors import BackendError
from fgcam_onnx.registry import Rule
from fgcam_onnx.testing.case import STYLES, Case
from fgcam_onnx.testing.compare import Row, close, named
from fgcam_onnx.testing.derivative import off_the_kinks
from fgcam_onnx.testing.forward import OrtOperator
from fgcam_onnx.testing.run import Result, run
from fgcam_onnx.testing.run import rule as rule_of

__all__ = ["CANCELS", "check_backends", "check_forward", "chosen_backends", "conditioned", "same"]

ALLOWED = 1e-5


def chosen_backends(given: Sequence[Backend] | None) -> tuple[Sequence[Backend], tuple[Row, ...]]:
    """The given backends, or the compiled ones that this machine has; and a row for what is not compared, with why."""
    if given is not None:
        return given, () if given else (Row("backends", skipped="none is given"),)
    here: list[Backend] = []
    missing: list[Row] = []
    for name in known.BACKENDS:
        if name not in ("auto", "numpy"):
            try:
                here.append(known.make(name))
            except BackendError as error:
                missing.append(Row(f"backend {name}", skipped=(error.known or error.what).partition(":")[0]))
    return tuple(here), tuple(missing)


def check_backends(
    case: Case,
    rule: str | Rule,
    backends: Sequence[Backend] | None = None,
    *,
    styles: Collection[str] | None = None,
    kinks: Collection[float] = (),
) -> tuple[Row, ...]:
    """Each backend gives what NumPy gives in float32: parts to 1e-5, and the sums of the ledger to 1e-4.

    ``backends``: those of this machine if None; one that it has not gets a row that says so. ``styles``: all if None,
    for a gradient x of mixed sign, with values near ``kinks`` moved off them.
    """
    chosen = conditioned(rule if isinstance(rule, Rule) else rule_of(case, rule))
    if chosen is None:
        return (Row("backends", "zero", skipped=CANCELS),)
    backends, missing = chosen_backends(backends)
    if styles is None:
        styles = ("mixed",) if chosen.name == "gradient" else STYLES
    worst = dict.fromkeys(range(len(backends)), 0.0)
    for style in styles:
        x = off_the_kinks(case.values(style), kinks)
        r = case.relevance(x)
        plain = run(case, chosen, x, r, NumpyBackend(np.float32))
        for k, backend in enumerate(backends):
            with named(f"backend {backend.name}", f"rule {chosen.name!r} on {case.id}, x {style}"):
                worst[k] = max(worst[k], same(run(case, chosen, x, r, backend), plain))
    return (*(Row(f"backend {b.name}", chosen.name, worst[k], ALLOWED) for k, b in enumerate(backends)), *missing)


CANCELS = "its denominators cancel, and rounding decides how far; epsilon is the same computation"


def conditioned(rule: Rule) -> Rule | None:
    """The rule as float32 can be asked to agree on: LRP-epsilon with an epsilon that counts, and no LRP-0."""
    if rule.name == "epsilon":
        return replace(rule, options={**rule.options, "epsilon": max(1.0, float(rule.options["epsilon"]))})
    return None if rule.name == "zero" else rule


def same(compiled: Result, plain: Result) -> float:
    """The largest deviation of the parts. The books are compared as well."""
    if set(compiled.parts) != set(plain.parts):
        raise AssertionError(f"operands {sorted(compiled.parts)} get relevance, {sorted(plain.parts)} in NumPy")
    worst = 0.0
    for i, part in plain.parts.items():
        worst = max(worst, close(compiled.parts[i], part, ALLOWED, f"the relevance of operand {i}"))
    for column, expected in plain.books.items():
        away = np.abs(compiled.books[column] - expected) - 1e-4 * (1 + np.abs(expected))
        k = int(away.argmax())
        if not away[k] <= 0:
            raise AssertionError(
                f"the ledger's {column} of image {k} is {compiled.books[column][k]:.9g}, {expected[k]:.9g} in NumPy"
            )
    return worst


def check_forward(case: Case) -> Row:
    """The oracle that everything is measured against is what onnxruntime deploys, in float32."""
    if case.domain == "fgcam":
        return Row("forward", skipped="a layer of the view, and no node of a file")
    if not case.operator.exact:
        return Row("forward", skipped="onnxruntime is the oracle here")
    x, worst = case.values(), 0.0
    try:
        deployed = OrtOperator(case.model()).run(x)
    except Exception as error:  # its exception classes are not public
        return Row("forward", skipped=f"onnxruntime does not run it: {' '.join(str(error).split())[:80]}")
    with named("forward", f"{case.operator.name} on {case.id}"):
        for k, (mine, theirs) in enumerate(zip(case.forward(x), deployed, strict=True)):
            worst = max(worst, close(mine, theirs, ALLOWED, f"output {k}, against onnxruntime,"))
    return Row("forward", "", worst, ALLOWED)
