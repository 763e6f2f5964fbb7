"""The verbs, written down: every call adds an operation, and a value stands for its result.

Equal calls are one operation: the total of what a node handed on and of what the next one received is taken once. Two
convolutions of one geometry that are added up are one contraction with two terms. What depends on constants alone is
computed here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Convolution, Leak, Verbs, Window
from fgcam_onnx.backends.cuda.operations import (
    Buffer,
    Concat,
    Contraction,
    Gather,
    Map,
    MatMul,
    MaxRoute,
    Operation,
    Place,
    Reduce,
    ScatterAdd,
    Settle,
    Total,
    Value,
    WindowSpread,
    WindowSum,
    contiguous_strides,
)
from fgcam_onnx.backends.numpy import NumpyVerbs

__all__ = ["CudaVerbs"]

# A product with a matrix is a convolution over one cell.
PRODUCT = Convolution((1,), (0,), (1,))


class CudaVerbs(Verbs):
    """Each verb as an operation on :class:`Value`. ``dtype``: float32 or float64, of the whole program."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self.operations: list[Operation] = []
        self._one_sign = False
        self._known: dict[Hashable, Value] = {}
        self._arrays: dict[int, tuple[Any, Value]] = {}  # constants by the identity of the array, which is kept alive

    # --- building -------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int]) -> Value:
        """A fed array."""
        return Value.whole(Buffer(tuple(shape), "input", name))

    def rounding(self, *, one_sign: bool) -> None:
        self._one_sign = one_sign

    def _do(self, operation: Operation, *key: Hashable) -> Value:
        """The result of ``operation``; of an equal one that is there already. ``key``: its parameters."""
        known = (type(operation).__name__, operation.inputs, operation.one_sign, *key)
        if known not in self._known:
            operation.output = Buffer(operation.shape, "computed", writer=operation)
            self.operations.append(operation)
            self._known[known] = Value.whole(operation.output)
        return self._known[known]

    def _map(self, function: str, *values: Value) -> Value:
        if all(value.buffer.kind == "constant" for value in values):
            folded = getattr(NumpyVerbs(self.dtype), function)(*(self._array(value) for value in values))
            return self.constant(folded)
        settled = tuple(self._settled(value) for value in values)
        return self._do(Map(inputs=settled, function=function), function)

    def _settled(self, value: Value) -> Value:
        return self._do(Settle(inputs=(value,))) if value.buffer.kind == "tally" else value

    def _packed(self, value: Value) -> Value:
        """The same cells in order, in a buffer of their own if they are not."""
        value = self._settled(value)
        if value.buffer.kind == "constant":
            return self.constant(np.ascontiguousarray(self._array(value)))
        return value if value.direct else self._do(Map(inputs=(value,), function="copy"), "copy")

    def _array(self, value: Value) -> np.ndarray:
        if value.buffer.array is None:
            raise TypeError("the weights of a linear map are constants")
        return value.buffer.array

    # --- sources --------------------------------------------------------------------------------------------------

    def constant(self, value: np.ndarray | float) -> Value:
        found = self._arrays.get(id(value))
        if found is None:
            array = np.asarray(value).astype(self.dtype, copy=False)
            key = ("number", array.shape, array.tobytes()) if array.size == 1 else None
            if key is not None and key in self._known:
                return self._known[key]
            found = (value, Value(Buffer(array.shape, "constant", array=array), array.shape,
                                  contiguous_strides(array.shape)))  # fmt: skip
            self._arrays[id(value)] = found
            if key is not None:
                self._known[key] = found[1]
        return found[1]

    def shape(self, x: Value) -> tuple[int, ...]:
        return x.shape

    # --- elementwise ----------------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        if a.buffer.kind == b.buffer.kind == "tally" and a.shape == b.shape:
            return Value.whole(Buffer(a.shape, "tally", totals=a.buffer.totals + b.buffer.totals))
        return self._added_products(a, b) or self._map("add", a, b)

    def _added_products(self, a: Value, b: Value) -> Value | None:
        """Two products of one geometry as one with two terms; None if they are not that."""
        one, other = a.buffer.writer, b.buffer.writer
        if not (isinstance(one, Contraction) and isinstance(other, Contraction) and a.direct and b.direct):
            return None
        same = (one.how, one.adjoint, one.spatial, one.one_sign) == (
            other.how, other.adjoint, other.spatial, other.one_sign,
        )  # fmt: skip
        shapes = [x.shape for x in (*one.inputs, *other.inputs)]
        kernels = [w.shape for w in (*one.weights, *other.weights)]
        if not same or a.shape != b.shape or len(shapes) != 2 or len(set(shapes)) > 1 or len(set(kernels)) > 1:
            return None
        inputs, weights = one.inputs + other.inputs, one.weights + other.weights
        both = self._contract(inputs, weights, one.how, one.spatial, one.adjoint, one_sign=one.one_sign)
        return self.reshape(both, a.shape)

    def sub(self, a: Value, b: Value) -> Value:
        return self._map("sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self._map("mul", a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self._map("div", a, b)

    def power(self, a: Value, b: Value) -> Value:
        return self._map("power", a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        return self._map("maximum", a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        return self._map("minimum", a, b)

    def absolute(self, x: Value) -> Value:
        return self._map("absolute", x)

    def exp(self, x: Value) -> Value:
        return self._map("exp", x)

    def log(self, x: Value) -> Value:
        return self._map("log", x)

    def tanh(self, x: Value) -> Value:
        return self._map("tanh", x)

    def sigmoid(self, x: Value) -> Value:
        return self._map("sigmoid", x)

    def erf(self, x: Value) -> Value:
        return self._map("erf", x)

    def greater(self, a: Value, b: Value) -> Value:
        return self._map("greater", a, b)

    def nonzero(self, x: Value) -> Value:
        return self._map("nonzero", x)

    # --- the two steps in which relevance can be lost -------------------------------------------------------------

    def share(self, r: Value, z: Value, *, nonnegative: bool = False) -> tuple[Value, Leak]:
        """The leak is read off s: where s is 0 and r is not, r was dropped; a quotient that underflowed is, too."""
        s = self._shared(r, z)
        return s, self._leak(self._chosen("where_zero", r, s))

    def _shared(self, r: Value, z: Value) -> Value:
        if r.buffer.kind == z.buffer.kind == "constant":
            return self.constant(NumpyVerbs(self.dtype).share(self._array(r), self._array(z))[0])
        return self._map("share", r, z)

    def keep(self, r: Value, mask: Value) -> tuple[Value, Leak]:
        return self._chosen("where_nonzero", r, mask), self._leak(self._chosen("where_zero", r, mask))

    def _chosen(self, function: str, r: Value, mask: Value) -> Value:
        """r where the mask is (not) zero; no verb of its own, so constants are not folded by name."""
        r, mask = self._settled(r), self._settled(mask)
        return self._do(Map(inputs=(r, mask), function=function), function)

    def _leak(self, dropped: Value) -> Leak:
        return Leak(self.total(dropped), self.total(self._do(Map(inputs=(dropped,), function="absolute"), "absolute")))

    # --- linear maps ----------------------------------------------------------------------------------------------

    def conv(self, x: Value, w: Value, how: Convolution, out: tuple[int, ...]) -> Value:
        return self._contract((self._packed(x),), (self._array(w),), how, out, False, one_sign=self._one_sign)

    def conv_adjoint(self, s: Value, w: Value, how: Convolution, spatial: tuple[int, ...]) -> Value:
        return self._contract((self._packed(s),), (self._array(w),), how, spatial, True, one_sign=self._one_sign)

    def _contract(
        self, inputs: tuple[Value, ...], weights: tuple[np.ndarray, ...], how: Convolution, spatial: tuple[int, ...],
        adjoint: bool, *, one_sign: bool,
    ) -> Value:  # fmt: skip
        operation = Contraction(
            inputs=inputs, weights=weights, how=how, spatial=tuple(spatial), adjoint=adjoint, one_sign=one_sign
        )
        return self._do(operation, how, tuple(spatial), adjoint, tuple(id(w) for w in weights))

    def matmul(self, a: Value, b: Value) -> Value:
        matrix = b.buffer.array
        if matrix is None or matrix.ndim != 2 or a.buffer.kind == "constant" or len(a.shape) < 2:
            return self._do(MatMul(inputs=(self._packed(a), self._packed(b))))
        rows = self.reshape(self._packed(a), (math.prod(a.shape[:-1]), a.shape[-1], 1))
        # The weights of the convolution are a view of the matrix, made once: its identity tells equal calls apart.
        kernel = self._known.setdefault(("matrix", id(matrix)), self.constant(matrix.T[:, :, None]))
        product = self._contract((rows,), (self._array(kernel),), PRODUCT, (1,), False, one_sign=self._one_sign)
        return self.reshape(product, (*a.shape[:-1], matrix.shape[1]))

    def window_sum(self, x: Value, window: Window, out: tuple[int, ...]) -> Value:
        return self._do(WindowSum(inputs=(self._packed(x),), window=window, spatial=tuple(out)), window, tuple(out))

    def window_spread(self, s: Value, window: Window, spatial: tuple[int, ...]) -> Value:
        spread = WindowSpread(inputs=(self._packed(s),), window=window, spatial=tuple(spatial))
        return self._do(spread, window, tuple(spatial))

    def max_route(self, x: Value, r: Value, window: Window) -> Value:
        return self._do(MaxRoute(inputs=(self._packed(x), self._packed(r)), window=window), window)

    # --- reductions -----------------------------------------------------------------------------------------------

    def _reduce(self, kind: int, x: Value, axes: Sequence[int]) -> Value:
        rank = len(x.shape)
        named = sorted({axis % rank for axis in axes})
        long = [axis for axis in named if x.shape[axis] != 1]
        shape = [1 if axis in named else size for axis, size in enumerate(x.shape)]
        if not long:
            return self.reshape(x, shape)
        between = range(long[0], long[-1] + 1)
        if any(axis not in long and x.shape[axis] != 1 for axis in between):  # not neighbours: to the end with them
            kept = [axis for axis in range(rank) if axis not in long]
            x = self.transpose(x, (*kept, *long))
            first, last = len(kept), rank
        else:
            first, last = long[0], long[-1] + 1
        x = self._packed(x)
        outer, length, inner = (
            int(np.prod(part, dtype=np.int64)) for part in (x.shape[:first], x.shape[first:last], x.shape[last:])
        )
        operation = Reduce(inputs=(x,), kind=kind, outer=outer, length=length, inner=inner)
        return self.reshape(self._do(operation, kind, outer, length, inner), shape)

    def reduce_sum(self, x: Value, axes: Sequence[int]) -> Value:
        return self._reduce(0, x, axes)

    def reduce_max(self, x: Value, axes: Sequence[int]) -> Value:
        return self._reduce(1, x, axes)

    def reduce_min(self, x: Value, axes: Sequence[int]) -> Value:
        return self._reduce(2, x, axes)

    def total(self, r: Value) -> Value:
        if r.buffer.kind == "tally":
            return r
        found = self._do(Total(inputs=(r,)))
        if found.buffer.kind != "tally":
            writer = found.buffer.writer
            assert isinstance(writer, Total)
            found.buffer.kind, found.buffer.totals = "tally", (writer,)
        return found

    # --- index moves ----------------------------------------------------------------------------------------------

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        wanted = list(shape)
        if -1 in wanted:
            known = int(np.prod([size for size in wanted if size != -1], dtype=np.int64))
            wanted[wanted.index(-1)] = x.size // known if known else 0
        if tuple(wanted) == x.shape:
            return x
        if x.buffer.kind == "constant":
            return self.constant(self._array(x).reshape(wanted))
        if not x.packed:
            x = self._packed(x)
        x = self._settled(x)
        return Value(x.buffer, tuple(wanted), contiguous_strides(wanted), x.offset)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if x.buffer.kind == "constant":
            key = ("transposed", id(x.buffer), tuple(perm))
            return self._known.setdefault(key, self.constant(self._array(x).transpose(tuple(perm))))
        return Value(x.buffer, tuple(x.shape[p] for p in perm), tuple(x.strides[p] for p in perm), x.offset)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        extra = len(shape) - len(x.shape)
        if x.buffer.kind == "constant":
            return self.constant(np.broadcast_to(self._array(x), tuple(shape)))
        x = self._settled(x)
        strides = [
            0 if have == 1 and size != 1 else stride
            for have, stride, size in zip(x.shape, x.strides, shape[extra:], strict=True)
        ]
        return Value(x.buffer, tuple(shape), (*[0] * extra, *strides), x.offset)

    def concat(self, xs: Sequence[Value], axis: int) -> Value:
        axis %= len(xs[0].shape)
        return self._do(Concat(inputs=tuple(self._packed(x) for x in xs), axis=axis), axis)

    def pad(self, x: Value, begins: Sequence[int], ends: Sequence[int]) -> Value:
        shape = tuple(b + size + e for b, size, e in zip(begins, x.shape, ends, strict=True))
        if not any(begins) and not any(ends):
            return x
        if x.buffer.kind != "constant" and max(*begins, *ends) <= 0:
            x = self._settled(x)
            skipped = -sum(begin * stride for begin, stride in zip(begins, x.strides, strict=True))
            return Value(x.buffer, shape, x.strides, x.offset + skipped)
        return self._do(Place(inputs=(self._packed(x),), begins=tuple(begins), placed=shape), tuple(begins), shape)

    def gather(self, x: Value, indices: np.ndarray, axis: int) -> Value:
        axis %= len(x.shape)
        operation = Gather(inputs=(self._packed(x),), indices=np.asarray(indices, np.int32), axis=axis)
        return self._do(operation, axis, operation.indices.tobytes())

    def scatter_add(self, r: Value, indices: np.ndarray, axis: int, size: int) -> Value:
        axis %= len(r.shape)
        operation = ScatterAdd(inputs=(self._packed(r),), indices=np.asarray(indices, np.int32), axis=axis, length=size)
        return self._do(operation, axis, size, operation.indices.tobytes())

    # --- the end --------------------------------------------------------------------------------------------------

    def outputs(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """What the program returns, in arrays of its own where it is not a tally."""
        found = {}
        for name, value in named.items():
            fresh = value.buffer.kind == "computed" and value.direct
            if fresh or value.buffer.kind == "tally":
                found[name] = value
            else:
                found[name] = self._do(Map(inputs=(value,), function="copy"), "copy")
        return found
