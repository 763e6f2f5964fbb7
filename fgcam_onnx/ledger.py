"""The ledger: where relevance went, node by node.

A rule reports what it dropped by summing the dropped cells, never as a difference, so that a row that closes

    relevance in = relevance out + leaked

is evidence, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Ledger", "LedgerRow"]

Floats = np.ndarray


@dataclass(frozen=True)
class LedgerRow:
    """One node; every number per image, [n]. ``leaked`` is signed, ``dropped`` the sum of absolute values.

    ``passed``: the sum of absolute relevance that came in, where rules on the way may make it grow; else 0.
    """

    node: str
    op: str
    rule: str
    relevance_in: Floats
    relevance_out: Floats
    leaked: Floats
    dropped: Floats
    passed: Floats = field(default_factory=lambda: np.zeros(1))

    @property
    def residual(self) -> Floats:
        """|in - out - leaked|: what nobody accounts for."""
        unexplained: Floats = np.abs(self.relevance_in - self.relevance_out - self.leaked)
        return unexplained


@dataclass(frozen=True)
class Ledger:
    """Rows from L to the target. ``start`` and ``start_absolute``: signed and absolute sum at L, [n].

    ``arrived``: the signed sum at the target, [n]. A method that does not descend has no rows.

    ``aside``, ``aside_absolute``: what went to another input of the model, by its name, or past a target that is no
    cut, by the name of the tensor, each [n]. Nothing else can become of relevance:

        start = arrived + the leaks of all rows + aside
    """

    rows: tuple[LedgerRow, ...] = ()
    start: Floats = field(default_factory=lambda: np.zeros(1))
    start_absolute: Floats = field(default_factory=lambda: np.zeros(1))
    arrived: Floats = field(default_factory=lambda: np.zeros(1))
    aside: Mapping[str, Floats] = field(default_factory=dict)
    aside_absolute: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def leaked(self) -> float:
        """Share of the start's sum of absolute relevance that was dropped; of several images the largest."""
        dropped = sum((row.dropped for row in self.rows), np.zeros_like(self.start_absolute))
        return self._share(dropped)

    @property
    def residual(self) -> float:
        """The largest unexplained part of a node, over the start's sum of absolute relevance.

        Rules with shares above 1, as LRP-epsilon's, can make that sum grow a thousandfold on the way: there it is the
        part of what passed through the node.
        """
        return max((self._share(row.residual, row.passed) for row in self.rows), default=0.0)

    @property
    def elsewhere(self) -> dict[str, float]:
        """Of each name in ``aside`` the share of the start's sum of absolute relevance; the largest of the images."""
        return {name: self._share(amount) for name, amount in self.aside_absolute.items()}

    def _share(self, amount: Floats, passed: Floats | float = 0.0) -> float:
        whole = np.maximum(self.start_absolute, passed)
        whole = np.where(whole > 0, whole, 1.0)
        return float(np.max(amount / whole)) if amount.size else 0.0

    def table(self) -> list[dict[str, object]]:
        """Rows as plain values, for JSON: lists of one number an image."""
        return [
            {
                "node": row.node,
                "op": row.op,
                "rule": row.rule,
                "relevance_in": row.relevance_in.tolist(),
                "relevance_out": row.relevance_out.tolist(),
                "leaked": row.leaked.tolist(),
                "dropped": row.dropped.tolist(),
            }
            for row in self.rows
        ]

    @staticmethod
    def join(parts: Sequence[Ledger]) -> Ledger:
        """One ledger of several batches, in order."""
        rows = tuple(
            LedgerRow(group[0].node, group[0].op, group[0].rule, *(_stack(group, name) for name in COLUMNS))
            for group in zip(*(part.rows for part in parts), strict=True)
        )
        signed = {name: np.concatenate([p.aside[name] for p in parts]) for name in parts[0].aside}
        absolute = {name: np.concatenate([p.aside_absolute[name] for p in parts]) for name in parts[0].aside}
        start, start_absolute, arrived = (_stack(parts, name) for name in TOTALS)
        return Ledger(rows, start, start_absolute, arrived, signed, absolute)

    def first(self, n: int) -> Ledger:
        """The ledger of the first n images."""
        return self.part(slice(n))

    def part(self, images: slice) -> Ledger:
        """The ledger of some of the images."""
        return self._mapped(lambda column, name: column[images])

    def scaled(self, factor: Floats) -> Ledger:
        """The ledger of the relevance times ``factor`` [n]: all that it says is linear in the relevance."""
        return self._mapped(lambda column, name: column * (np.abs(factor) if name in SIZES else factor))

    def __add__(self, other: Ledger) -> Ledger:
        """The ledger of the sum of two relevances that took the same way.

        Sums of absolute values add up to no less than that of the sum: what is said of them is an upper bound.
        """
        rows = tuple(
            LedgerRow(mine.node, mine.op, mine.rule, *(getattr(mine, n) + getattr(theirs, n) for n in COLUMNS))
            for mine, theirs in zip(self.rows, other.rows, strict=True)
        )
        signed = {name: amount + other.aside[name] for name, amount in self.aside.items()}
        absolute = {name: amount + other.aside_absolute[name] for name, amount in self.aside_absolute.items()}
        start, start_absolute, arrived = (getattr(self, name) + getattr(other, name) for name in TOTALS)
        return Ledger(rows, start, start_absolute, arrived, signed, absolute)

    def then(self, other: Ledger) -> Ledger:
        """The ledger of a way in two parts: ``other`` begins where this one arrives."""
        signed, absolute = dict(self.aside), dict(self.aside_absolute)
        for name, amount in other.aside.items():
            signed[name] = signed.get(name, 0) + amount
            absolute[name] = absolute.get(name, 0) + other.aside_absolute[name]
        return Ledger((*self.rows, *other.rows), self.start, self.start_absolute, other.arrived, signed, absolute)

    def _mapped(self, change: Callable[[Floats, str], Floats]) -> Ledger:
        rows = tuple(
            LedgerRow(row.node, row.op, row.rule, *(change(getattr(row, n), n) for n in COLUMNS)) for row in self.rows
        )
        signed = {name: change(amount, "aside") for name, amount in self.aside.items()}
        absolute = {name: change(amount, "aside_absolute") for name, amount in self.aside_absolute.items()}
        start, start_absolute, arrived = (change(getattr(self, name), name) for name in TOTALS)
        return Ledger(rows, start, start_absolute, arrived, signed, absolute)


COLUMNS = ("relevance_in", "relevance_out", "leaked", "dropped", "passed")
# Those that are sums of absolute values.
SIZES = ("dropped", "passed", "start_absolute", "aside_absolute")
TOTALS = ("start", "start_absolute", "arrived")


def _stack(items: Sequence[object], name: str) -> Floats:
    return np.concatenate([getattr(item, name) for item in items])
