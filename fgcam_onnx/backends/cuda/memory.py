"""Where each array of a program lies: one block of memory, places used again when their array is no longer read.

Two arrays may share a place if no launch needs both. Large arrays are placed first, each at the lowest free offset:
what a network needs is then close to the largest sum of arrays alive at one moment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ALIGNMENT", "Layout", "lay_out", "lifetimes"]

ALIGNMENT = 256


@dataclass(frozen=True)
class Layout:
    """Bytes from the start of the block to each array, and the size of the block."""

    offsets: dict[Any, int]
    nbytes: int


def lifetimes(launches: Sequence[Any], kept: Collection[Any]) -> dict[Any, tuple[int, int]]:
    """For each array that a launch writes: the first and the last launch that touch it; ``kept`` lives to the end."""
    found: dict[Any, tuple[int, int]] = {}
    for time, launch in enumerate(launches):
        for buffer in launch.writes:
            found.setdefault(buffer, (time, time))
        for buffer in launch.buffers:
            if buffer in found:
                found[buffer] = (found[buffer][0], time)
    end = len(launches)
    return {buffer: (first, end if buffer in kept else last) for buffer, (first, last) in found.items()}


def lay_out(sizes: dict[Any, int], lives: dict[Any, tuple[int, int]]) -> Layout:
    """A place for each array of ``sizes`` (bytes), by its life (first and last moment, both included)."""
    offsets: dict[Any, int] = {}
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for array in sorted(sizes, key=lambda a: (-sizes[a], lives[a])):
        size = -(-max(1, sizes[array]) // ALIGNMENT) * ALIGNMENT
        first, last = lives[array]
        offset = 0
        for begin, end, other_first, other_last in sorted(placed):
            if other_last < first or last < other_first:
                continue
            if begin - offset >= size:
                break
            offset = max(offset, end)
        offsets[array] = offset
        placed.append((offset, offset + size, first, last))
    return Layout(offsets, max((end for _, end, _, _ in placed), default=0))
