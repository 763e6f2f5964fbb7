"""Dense outputs: logits that are more than one score a class, and what their axes are called."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["axis_names", "is_dense"]

AXES = {"C": "class", "D": "z", "H": "y", "W": "x"}


def is_dense(shape: Sequence[int | str | None], layout: str | None) -> bool:
    """Is a tensor of logits more than one score a class? A size that is free counts as more than 1.

    Where the axes are known, it is dense if it has space; else if more than one axis beside the batch is long.
    """
    if layout is not None and len(layout) == len(shape):
        return any(size != 1 for size, axis in zip(shape, layout, strict=True) if axis not in "NC")
    return sum(size != 1 for size in shape[1:]) > 1


def axis_names(shape: Sequence[object], layout: str | None) -> tuple[str, ...]:
    """What to call the axes after the batch: "class", "y", "x", or their number where nothing is known."""
    if layout is not None and len(layout) == len(shape) and layout[0] == "N":
        return tuple(AXES[axis] for axis in layout[1:])
    return tuple(f"axis {i}" for i in range(1, len(shape)))
