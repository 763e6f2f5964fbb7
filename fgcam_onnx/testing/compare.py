"""How far two arrays are apart, in a sentence; and the report of what was checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Floats", "Report", "Row", "close", "flatten", "named"]

Floats = np.ndarray


@dataclass(frozen=True)
class Row:
    """One check of one rule that passed, or why it could not be made.

    ``worst``: the largest deviation that was seen, ``allowed``: what it had to stay below; None where a check asks for
    yes or no. ``skipped``: why nothing was checked, "" if it was.
    """

    check: str
    rule: str = ""
    worst: float | None = None
    allowed: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Report:
    """What was checked on ``subject``, and what was not. Printed as a table."""

    subject: str
    rows: tuple[Row, ...]

    @property
    def ran(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.skipped)

    @property
    def skipped(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.skipped)

    def __str__(self) -> str:
        head = ("rule", "check", "off by", "allowed")
        lines = [(row.rule or "-", row.check, *_figures(row)) for row in self.rows]
        widths = [max(len(word) for word in column) for column in zip(head, *lines, strict=True)]
        table = ["  ".join(f"{word:<{width}}" for word, width in zip(head, widths, strict=True)).rstrip()]
        for row, words in zip(self.rows, lines, strict=True):
            shown = (*words[:2], f"not checked: {row.skipped}") if row.skipped else words
            table.append("  ".join(f"{word:<{width}}" for word, width in zip(shown, widths, strict=False)).rstrip())
        return "\n".join([self.subject, *table, f"{len(self.ran)} checks passed, {len(self.skipped)} not made"])


def _figures(row: Row) -> tuple[str, str]:
    if row.worst is None or row.allowed is None:
        return "holds", ""
    return f"{row.worst:.2g}", f"{row.allowed:.2g}"


def close(found: Any, expected: Any, tolerance: float = 1e-9, what: str = "it") -> float:
    """The largest deviation of ``found``, as a share of the largest expected value.

    Raises:
        AssertionError: it is above ``tolerance``, the shapes differ, or ``found`` is not finite; says in which cell.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise AssertionError(f"{what} has shape {list(found.shape)}, not {list(expected.shape)}")
    if not found.size:
        return 0.0
    bad = ~np.isfinite(found)
    if bad.any():
        raise AssertionError(f"{what} is {found[bad][0]} at {_cell(bad)}")
    scale = max(float(np.abs(expected).max()), 1e-30)
    away = np.abs(found - expected) / scale
    worst = float(away.max())
    if not worst <= tolerance:
        cell = _cell(away == worst)
        raise AssertionError(
            f"{what} is off by {worst:.3g} of its largest value (allowed {tolerance:.2g}): "
            f"{found[tuple(cell)]:.9g} at {cell}, {expected[tuple(cell)]:.9g} expected"
        )
    return worst


def _cell(where: Floats) -> list[int]:
    """The first cell of a mask."""
    found: list[int] = np.argwhere(where)[0].tolist() if where.ndim else []
    return found


def flatten(arrays: Sequence[Floats]) -> Floats:
    """Each [n, ...] -> side by side [n, cells]."""
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


@contextmanager
def named(check: str, subject: str) -> Iterator[None]:
    """An AssertionError inside says which check of what it is; another error gets that as a note."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{check} of {subject}: {error}") from error
    except Exception as error:
        error.add_note(f"while checking the {check} of {subject}")
        raise
