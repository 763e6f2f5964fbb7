"""What holds for every relevance rule (methods 9.1), asked in float64.

Each check takes a case and a rule, by name or as it is, and returns its row of the report. It tries x of mixed sign and
x >= 0 with zeros, and raises AssertionError where the rule breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.graph.rows import shares_batch
from fgcam_onnx.registry import Rule
from fgcam_onnx.testing.case import Case
from fgcam_onnx.testing.compare import Floats, Row, close, flatten, named
from fgcam_onnx.testing.derivative import off_the_kinks
from fgcam_onnx.testing.parity import conditioned, same
from fgcam_onnx.testing.run import Result, run
from fgcam_onnx.testing.run import rule as rule_of

__all__ = [
    "INVARIANTS",
    "PROMISES",
    "Trial",
    "check_batch",
    "check_conservation",
    "check_contraction",
    "check_dead_inputs",
    "check_denormals",
    "check_linearity",
    "check_parts",
    "check_rows",
    "check_shortcuts",
    "check_sign",
    "check_zeros",
    "tried",
]

EXACT = 1e-9
# Relevances of one image that are walked down together: as many as tell a batch of 1 and of k apart.
ROWS = 3
WORDS = {"mixed": "x of mixed sign", "positive": "x >= 0", "zero": "x = 0", "denormal": "denormal x"}


@dataclass(frozen=True)
class Trial:
    """A rule, and the activations and relevance that it is tried on."""

    case: Case
    rule: Rule
    style: str
    x: dict[str, Floats]
    r: list[Floats]

    def run(
        self,
        r: list[Floats] | None = None,
        x: dict[str, Floats] | None = None,
        backend: Backend | None = None,
        *,
        nonnegative: bool = False,
        masked: bool = False,
    ) -> Result:
        """The rule's answer: to other relevance, other activations, through another backend, if given."""
        x, r = self.x if x is None else x, self.r if r is None else r
        return run(self.case, self.rule, x, r, backend, nonnegative=nonnegative, masked=masked)

    @property
    def size(self) -> Floats:
        """sum |r|, per image."""
        return np.asarray(np.abs(flatten(self.r)).sum(axis=1))


def tried(
    check: str,
    case: Case,
    rule: str | Rule,
    ask: Callable[[Trial], float | None],
    allowed: float | None = None,
    styles: tuple[str, ...] = ("mixed", "positive"),
) -> Row:
    """``ask`` a trial of each style; the row holds the largest deviation. A failure names check, rule and case."""
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    worst = None if allowed is None else 0.0
    for style in styles:
        with named(check, f"rule {chosen.name!r} on {case.id}, {WORDS[style]}"):
            x = case.values(style)
            found = ask(Trial(case, chosen, style, x, case.relevance(x)))
            if worst is not None and found is not None:
                worst = max(worst, found)
    return Row(check, chosen.name, worst, allowed)


def check_parts(case: Case, rule: str | Rule) -> Row:
    """Exactly the operands that the rule ``sends`` to get a part, each of its own shape and finite."""

    def ask(trial: Trial) -> None:
        parts, layer = trial.run().parts, case.layer
        sent = {i for i in trial.rule.sends(layer, case.graph) if i in layer.operands}
        if set(parts) != sent:
            raise AssertionError(
                f"operands {sorted(parts)} get a part, and it declares that it sends to {sorted(sent)}"
            )
        for i, part in parts.items():
            shape = trial.x[case.names[i]].shape
            if part.shape != shape:
                raise AssertionError(f"operand {i} gets shape {list(part.shape)}, and its own is {list(shape)}")
            if not np.isfinite(part).all():
                raise AssertionError(f"operand {i} gets NaN or Inf")

    return tried("parts", case, rule, ask)


def check_conservation(case: Case, rule: str | Rule) -> Row:
    """in = out + leaked, where leaked was summed over the dropped cells and not taken as a difference."""
    return tried("conservation", case, rule, _accounted, EXACT)


def _accounted(trial: Trial, tolerance: float = EXACT, backend: Backend | None = None) -> float:
    result = trial.run(backend=backend)
    arrived, out = result.books["in"], result.relevance.sum(axis=1)
    if not np.isfinite(out).all():
        raise AssertionError("the relevance that went on is not finite")
    residual = np.abs(arrived - out - result.leaked)
    share = residual / np.maximum(trial.size, 1e-30)
    k = int(share.argmax())
    if not share[k] <= tolerance:
        raise AssertionError(
            f"image {k}: in {arrived[k]:.9g}, out {out[k]:.9g} + leaked {result.leaked[k]:.9g}: "
            f"{share[k]:.3g} of sum |r| is not accounted for (allowed {tolerance:.2g})"
        )
    more = np.abs(result.leaked) - result.books["dropped"]
    if not (more <= 1e-12 + tolerance * trial.size).all():
        raise AssertionError(f"the signed leak {result.leaked[more.argmax()]:.9g} is larger than the absolute one")
    close(result.books["out"], out, 1e-12 if backend is None else 1e-4, "what the ledger writes as out")
    return float(share[k])


def check_linearity(case: Case, rule: str | Rule) -> Row:
    """2 r - 3 r' goes where 2 r and -3 r' go, and leaks as they do."""

    def ask(trial: Trial) -> float:
        other = case.relevance(trial.x, seed=8)
        both = trial.run([2 * p - 3 * q for p, q in zip(trial.r, other, strict=True)])
        one, two = trial.run(), trial.run(other)
        return max(
            close(both.relevance, 2 * one.relevance - 3 * two.relevance, EXACT, "the relevance of 2 r - 3 r'"),
            close(both.leaked, 2 * one.leaked - 3 * two.leaked, EXACT, "the leak of 2 r - 3 r'"),
        )

    return tried("linearity", case, rule, ask, EXACT)


def check_sign(case: Case, rule: str | Rule) -> Row:
    """r >= 0 makes relevance >= 0."""

    def ask(trial: Trial) -> None:
        for i, part in trial.run([np.abs(p) for p in trial.r]).parts.items():
            cell = np.unravel_index(part.argmin(), part.shape) if part.size else ()
            if not part[cell].min(initial=0.0) >= 0:
                raise AssertionError(f"r >= 0, and operand {i} gets {part[cell]:.3g} at {[int(c) for c in cell]}")

    return tried("sign", case, rule, ask)


def check_contraction(case: Case, rule: str | Rule) -> Row:
    """sum |R_in| <= sum |R_out|, for r of mixed sign and for r >= 0, where nothing cancels."""

    def ask(trial: Trial) -> None:
        for r in (trial.r, [np.abs(p) for p in trial.r]):
            grown = np.abs(trial.run(r).relevance).sum(axis=1) / np.maximum(trial.size, 1e-30)
            k = int(grown.argmax())
            if not grown[k] <= 1 + 1e-12:
                raise AssertionError(f"image {k}: sum |R| grows to {grown[k]:.9g} of itself")

    return tried("contraction", case, rule, ask)


def check_dead_inputs(case: Case, rule: str | Rule) -> Row:
    """x_i = 0 gets nothing: always, or (where the rule inherits that) if no dead output has relevance."""
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    says = chosen.dead_inputs_of(case.layer, case.graph)
    if says == "never":
        return Row("dead inputs", chosen.name, skipped="it declares dead_inputs='never'")

    def ask(trial: Trial) -> None:
        r = trial.r
        if says == "inherits":
            r = [np.where(y == 0, 0, p) for y, p in zip(case.forward(trial.x), r, strict=True)]
        for i, part in trial.run(r).parts.items():
            wrong = (trial.x[case.names[i]] == 0) & (part != 0)
            if wrong.any():
                raise AssertionError(
                    f"it declares dead_inputs={says!r}, and operand {i} gets {part[wrong][0]:.3g} "
                    f"at {np.argwhere(wrong)[0].tolist()}, where x = 0"
                )

    return tried("dead inputs", case, chosen, ask)


def check_shortcuts(case: Case, rule: str | Rule) -> Row:
    """The answer is the same if the rule is told that x >= 0, or that no relevance lies on outputs that are 0."""

    def ask(trial: Trial) -> float:
        living = [np.where(y == 0, 0, p) for y, p in zip(case.forward(trial.x), trial.r, strict=True)]
        pairs = (
            ("x >= 0", trial.run(), trial.run(nonnegative=True)),
            ("dead outputs have no relevance", trial.run(living), trial.run(living, masked=True)),
        )
        worst = 0.0
        for word, plain, told in pairs:
            worst = max(
                worst,
                close(told.relevance, plain.relevance, EXACT, f"told that {word}, the relevance"),
                close(told.leaked, plain.leaked, EXACT, f"told that {word}, the leak"),
            )
        return worst

    return tried("shortcuts", case, rule, ask, EXACT, ("positive",))


def check_batch(case: Case, rule: str | Rule) -> Row:
    """n images together are n images one by one."""
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    if len(case.values()[next(iter(case.inputs))]) < 2:
        return Row("batch", chosen.name, skipped="the case is one image: give it a batch of two")

    def ask(trial: Trial) -> float:
        together, worst = trial.run(), 0.0
        for k in range(len(trial.r[0])):
            alone = trial.run([p[k : k + 1] for p in trial.r], {i: array[k : k + 1] for i, array in trial.x.items()})
            for what, one, all_ in (
                ("relevance", alone.relevance, together.relevance),
                ("leak", alone.leaked, together.leaked),
            ):
                worst = max(worst, close(one[0], all_[k], 1e-12, f"the {what} of image {k} by itself"))
        return worst

    return tried("batch", case, chosen, ask, 1e-12)


def check_rows(case: Case, rule: str | Rule, backends: Sequence[Backend] = (), *, kinks: Collection[float] = ()) -> Row:
    """Several relevances of one image over its activations, which have a batch of 1, are each of them by itself.

    ``backends``: each gives for them what NumPy gives in float32, a gradient for x of mixed sign alone. Values of x
    near ``kinks`` are moved off them.
    """
    chosen = rule if isinstance(rule, Rule) else rule_of(case, rule)
    if not shares_batch(case.layer, case.graph):
        return Row("rows", chosen.name, skipped="its rows are walked one by one")
    first = {name: array[:1] for name, array in case.values().items()}
    if any(len(array) != 1 for array in (*first.values(), *case.forward(first))):
        return Row("rows", chosen.name, skipped="its rows are walked one by one: the first axis is not the batch")

    def ask(trial: Trial) -> float:
        x = off_the_kinks({name: array[:1] for name, array in trial.x.items()}, kinks)
        rows = [case.relevance(x, seed) for seed in range(ROWS)]
        stacked = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        together, worst = trial.run(stacked, x), 0.0
        for k, r in enumerate(rows):
            alone = trial.run(r, x)
            for i, part in alone.parts.items():
                what = f"the relevance of operand {i} in row {k}"
                worst = max(worst, close(together.parts[i][k : k + 1], part, 1e-12, what))
            for column, expected in alone.books.items():
                close(together.books[column][k : k + 1], expected, EXACT, f"the ledger's {column} of row {k}")
        known = conditioned(chosen)
        if known is None or (chosen.name == "gradient" and trial.style != "mixed"):
            return worst
        alike = replace(trial, rule=known)
        for backend in backends:
            with named(f"backend {backend.name}", f"{ROWS} rows"):
                same(alike.run(stacked, x, backend), alike.run(stacked, x, NumpyBackend(np.float32)))
        return worst

    return tried("rows", case, chosen, ask, 1e-12)


def check_zeros(case: Case, rule: str | Rule) -> Row:
    """All activations 0: the relevance is finite, and accounted for."""
    return tried("zeros", case, rule, _accounted, EXACT, ("zero",))


def check_denormals(case: Case, rule: str | Rule) -> Row:
    """Activations of +-1e-42 in float32, so that every sum is denormal: finite, and accounted for."""

    def ask(trial: Trial) -> float:
        return _accounted(trial, 1e-4, NumpyBackend(np.float32))

    return tried("denormals", case, rule, ask, 1e-4, ("denormal",))


Check = Callable[[Case, str | Rule], Row]
# What holds only for rules whose shares are bounded: not where terms of both signs are divided by their sum.
PROMISES: tuple[Check, ...] = (check_sign, check_contraction)
INVARIANTS: tuple[Check, ...] = (
    check_parts,
    check_conservation,
    check_linearity,
    *PROMISES,
    check_dead_inputs,
    check_shortcuts,
    check_batch,
    check_rows,
    check_zeros,
    check_denormals,
)
