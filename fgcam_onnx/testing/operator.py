"""Every check that applies to every rule of an operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from onnx import defs

from fgcam_onnx import registry
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.errors import OptionError, UnsupportedOpError, nearest
from fgcam_onnx.testing.case import Case, Operand, X
from fgcam_onnx.testing.compare import Report, Row
from fgcam_onnx.testing.derivative import check_gradient
from fgcam_onnx.testing.invariants import INVARIANTS, PROMISES, check_rows
from fgcam_onnx.testing.matrix import Replica, check_adjoint, check_replica
from fgcam_onnx.testing.parity import check_backends, check_forward, chosen_backends
from fgcam_onnx.testing.run import rule as rule_of
from fgcam_onnx.testing.run import rules

__all__ = ["UNBOUNDED", "check_case", "check_invariants", "check_operator"]

# Rules that divide terms of both signs by their sum: neither sign nor contraction is promised (methods 9.1.3, 9.1.4).
UNBOUNDED = ("norm", "epsilon", "zero", "alpha_beta", "gamma")
Made = Row | tuple[Row, ...]


def check_operator(
    op: str,
    operands: Sequence[Operand],
    *,
    opset: int | None = None,
    outputs: int = 1,
    forward: Callable[..., Any] | None = None,
    replicas: Mapping[str, Replica] | None = None,
    kinks: Collection[float] = (),
    unbounded: Collection[str] = UNBOUNDED,
    backends: Sequence[Backend] | None = None,
    **attributes: Any,
) -> Report:
    """Every check on every rule that is registered for an operator.

        testing.check_operator("my.domain::QuickGelu", [testing.X((2, 3, 4, 5))], alpha=1.702)

    ``operands``: by position, an :class:`X`, an array for a constant, None for an omitted one. ``opset``: the version
    of its domain, the newest with a rule if None. ``forward``: the operator in NumPy, of its operands and attributes;
    needed where neither onnx nor onnxruntime knows it. ``replicas``: rules a second time, by name
    (:func:`check_replica`). ``kinks``: values of x where the operator has a kink. ``unbounded``: rules that promise
    neither sign nor contraction. ``backends``: those of this machine if None.

    Raises:
        AssertionError: checks failed; one sentence for each.
        OptionError: an operand that is none, or a replica of a rule that the operator has not.
        UnsupportedOpError: nothing could be checked, and why.
    """
    rules(op)
    if opset is None:
        newest = 1 << 30 if "::" in op else defs.onnx_opset_version()
        opset = max((version for version in registry.versions(op) if version <= newest), default=1)
    words = [op, *(f"{name}={value}" for name, value in attributes.items())]
    fixed = tuple(operands)
    case = Case("-".join(words), op, fixed, attributes, opset, outputs, forward)
    return check_case(case, replicas=replicas, kinks=kinks, unbounded=unbounded, backends=backends)


def check_case(
    case: Case,
    *,
    replicas: Mapping[str, Replica] | None = None,
    kinks: Collection[float] = (),
    unbounded: Collection[str] = UNBOUNDED,
    backends: Sequence[Backend] | None = None,
) -> Report:
    """:func:`check_operator` for a :class:`Case`."""
    names, served, refused = rules(case.op), [], []
    for name in replicas or {}:
        if name not in names:
            raise OptionError(
                f"replicas= names the rule {name!r}, which {case.op} has not",
                known=", ".join(names),
                next=nearest(name, names) or None,
            )
    for name in names:
        try:
            rule_of(case, name)
            served.append(name)
        except UnsupportedOpError as error:
            refused.append(Row("all", name, skipped=error.what))
    if not served:
        raise UnsupportedOpError(
            f"nothing could be checked of {case.op}", at=f"case {case.id!r}",
            known="; ".join(dict.fromkeys(row.skipped for row in refused)),
        )  # fmt: skip
    backends, missing = chosen_backends(backends)
    checks: list[Callable[[], Made]] = [partial(check_forward, case), partial(check_adjoint, case)]
    for name in served:
        linear = registry.find_linear(case.op) is not None
        if name != "gradient":
            checks += _invariants(case, name, unbounded)
        if name != "gradient" or linear:
            checks.append(partial(check_replica, case, name, (replicas or {}).get(name)))
        if name == "gradient":
            checks.append(partial(check_gradient, case, name, kinks))
            checks.append(partial(check_rows, case, name, kinks=kinks))
        if backends:
            checks.append(partial(check_backends, case, name, backends, kinks=kinks if name == "gradient" else ()))
    if "gradient" not in names:
        refused.append(Row("gradient", skipped="no gradient rule is registered: the operator cannot stand behind L"))
    return _made(_subject(case), checks, (*refused, *missing))


def check_invariants(case: Case, rule: str, *, unbounded: Collection[str] = UNBOUNDED) -> Report:
    """What holds for every relevance rule: conservation, linearity, sign, contraction, dead inputs, batch, rows, 0s."""
    return _made(_subject(case), _invariants(case, rule, unbounded), [])


def _invariants(case: Case, rule: str, unbounded: Collection[str]) -> list[Callable[[], Made]]:
    def none_promised(check: str) -> Row:
        return Row(check, rule, skipped="its shares are unbounded")

    checks: list[Callable[[], Made]] = []
    for check in INVARIANTS:
        if check in PROMISES and rule in unbounded:
            checks.append(partial(none_promised, check.__name__.removeprefix("check_")))
        else:
            checks.append(partial(check, case, rule))
    return checks


def _made(subject: str, checks: Sequence[Callable[[], Made]], rows: Sequence[Row]) -> Report:
    """Make all checks, and fail with every sentence at once."""
    found: list[Row] = []
    failures = []
    for check in checks:
        try:
            made = check()
            found += [made] if isinstance(made, Row) else made
        except AssertionError as error:
            failures.append(str(error))
    if failures:
        made_in_all = len(failures) + sum(not row.skipped for row in found)
        raise AssertionError("\n".join([f"{len(failures)} of {made_in_all} checks failed: {subject}", *failures]))
    return Report(subject, (*found, *rows))


def _subject(case: Case) -> str:
    sizes = [
        f"{name} {'values ' if isinstance(operand, X) and operand.values is not None else ''}"
        f"{list(case.shape_of(name) if name in case.inputs else operand.shape)}"
        for name, operand in dict(zip(case.names, case.operands, strict=True)).items()
        if operand is not None
    ]
    given = [f"{name}={value}" for name, value in case.attributes.items()]
    return f"{case.op}-{case.layer.version}  {', '.join([*sizes, *given])}"
