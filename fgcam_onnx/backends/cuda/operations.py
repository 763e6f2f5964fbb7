"""What a program is made of once it is traced: values, and the operations that compute them.

A :class:`Value` is a view of a :class:`Buffer`, as a NumPy array is of its memory: transposing, cropping and
broadcasting cost nothing until a kernel needs the cells in order. A buffer is written by one operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fgcam_onnx.backends.base import Convolution, Window

__all__ = [
    "Buffer",
    "Concat",
    "Contraction",
    "Gather",
    "Map",
    "MatMul",
    "MaxRoute",
    "Operation",
    "Place",
    "Reduce",
    "ScatterAdd",
    "Settle",
    "Total",
    "Value",
    "WindowSpread",
    "WindowSum",
    "contiguous_strides",
]


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each axis, row-major."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(eq=False)
class Buffer:
    """Contiguous memory of ``shape``, in the program's dtype.

    ``kind``: "input" is fed under ``name``; "constant" holds ``array``; "computed" is written by ``writer``; "tally" is
    a sum per image, [n], that the books add up from ``totals``.
    """

    shape: tuple[int, ...]
    kind: Literal["input", "constant", "computed", "tally"]
    name: str = ""
    array: np.ndarray | None = None
    writer: Operation | None = None
    totals: tuple[Total, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def number(self) -> float | None:
        """The value of a constant of one cell: it becomes an argument of the kernel."""
        return float(self.array.reshape(-1)[0]) if self.array is not None and self.array.size == 1 else None


@dataclass(frozen=True)
class Value:
    """Cells of ``buffer``: cell (i, j, ...) lies at offset + i strides[0] + j strides[1] + ..."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def whole(buffer: Buffer) -> Value:
        return Value(buffer, buffer.shape, contiguous_strides(buffer.shape))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def packed(self) -> bool:
        """Do its cells lie one behind the other, in order?"""
        expected = contiguous_strides(self.shape)
        return all(d == 1 or s == e for d, s, e in zip(self.shape, self.strides, expected, strict=True))

    @property
    def direct(self) -> bool:
        """Is it all of its buffer in the buffer's own order, whatever the shape is called?"""
        return self.offset == 0 and self.size == self.buffer.size and self.packed


@dataclass(eq=False, kw_only=True)
class Operation:
    """``inputs`` -> ``output``. ``one_sign``: every term of its sums has the sign of the relevance it carries, so that
    products may be rounded to TF32 where that was allowed."""

    inputs: tuple[Value, ...]
    output: Buffer = field(init=False)
    one_sign: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        raise TypeError("an operation knows its shape")

    @property
    def size(self) -> int:
        """Cells of the result."""
        return math.prod(self.shape)


@dataclass(eq=False, kw_only=True)
class Map(Operation):
    """An elementwise ``function`` (a key of text.FUNCTIONS), inputs broadcast as in NumPy."""

    function: str

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(value.shape for value in self.inputs))


@dataclass(eq=False, kw_only=True)
class Contraction(Operation):
    """Convolution or its adjoint, with constant weights [co, ci / group, k...]; a product with a matrix is one too.

    ``inputs``: one or two arrays [n, c, ...] of one shape, each met by its own of ``weights``; the products add up.
    ``spatial``: sizes of the result.
    """

    how: Convolution
    weights: tuple[np.ndarray, ...]
    spatial: tuple[int, ...]
    adjoint: bool

    @property
    def channels(self) -> int:
        w = self.weights[0]
        return int(w.shape[1] * self.how.group if self.adjoint else w.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs[0].shape[0], self.channels, *self.spatial)


@dataclass(eq=False, kw_only=True)
class MatMul(Operation):
    """numpy.matmul of any two arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        a, b = (value.shape for value in self.inputs)
        return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


@dataclass(eq=False, kw_only=True)
class WindowSum(Operation):
    """Sums over ``window``; ``spatial``: sizes of the result."""

    window: Window
    spatial: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inputs[0].shape[:2], *self.spatial)


@dataclass(eq=False, kw_only=True)
class WindowSpread(WindowSum):
    """The adjoint of :class:`WindowSum`."""


@dataclass(eq=False, kw_only=True)
class MaxRoute(Operation):
    """``inputs``: x and r, which may have several images for the one of x."""

    window: Window

    @property
    def shape(self) -> tuple[int, ...]:
        x, r = self.inputs
        return (r.shape[0], *x.shape[1:])


@dataclass(eq=False, kw_only=True)
class Reduce(Operation):
    """``kind`` 0 sum, 1 maximum, 2 minimum over the middle axis of [outer, length, inner] -> [outer, inner]."""

    kind: int
    outer: int
    length: int
    inner: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outer, self.inner)


@dataclass(eq=False, kw_only=True)
class Gather(Operation):
    """x at ``indices`` along ``axis``."""

    indices: np.ndarray
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        x = self.inputs[0].shape
        return (*x[: self.axis], len(self.indices), *x[self.axis + 1 :])


@dataclass(eq=False, kw_only=True)
class ScatterAdd(Operation):
    """The adjoint of :class:`Gather`; ``length`` along ``axis``."""

    indices: np.ndarray
    axis: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        r = self.inputs[0].shape
        return (*r[: self.axis], self.length, *r[self.axis + 1 :])


@dataclass(eq=False, kw_only=True)
class Concat(Operation):
    """The inputs one behind the other along ``axis``."""

    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        x = self.inputs[0].shape
        return (*x[: self.axis], sum(value.shape[self.axis] for value in self.inputs), *x[self.axis + 1 :])


@dataclass(eq=False, kw_only=True)
class Place(Operation):
    """Zeros of ``placed`` cells with x at ``begins``; what falls outside is cut off."""

    begins: tuple[int, ...]
    placed: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.placed


@dataclass(eq=False, kw_only=True)
class Total(Operation):
    """Sum per image, [n]: an entry of the books. Its output is a tally, complete once the program has run."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape[:1]


@dataclass(eq=False, kw_only=True)
class Settle(Operation):
    """A tally that another operation reads: added up at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape
