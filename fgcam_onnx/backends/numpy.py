"""The definition: every verb computed plainly, in float32 or float64.

Written to be read, not to be fast; the other backends are tested against it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import TINY, Backend, Convolution, Leak, Program, Verbs, Window

__all__ = ["NumpyBackend", "NumpyVerbs"]

# Any and not ndarray: NumPy's own types do not know an index that is built as a tuple.
Array = Any


class NumpyBackend(Backend):
    """Runs programs with :class:`NumpyVerbs`. ``dtype``: float32, or float64 for audits."""

    name = "numpy"
    providers = ("NumPy",)

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self.precision = self.dtype.name

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = {name: self._array(value) for name, value in inputs.items()}
        with np.errstate(all="ignore"):  # NaN and Inf are found and named by the caller
            return dict(program.run(NumpyVerbs(self.dtype), arrays))

    def _array(self, value: Any) -> Array:
        array = value if isinstance(value, np.ndarray) else value.numpy()
        return array.astype(self.dtype, copy=False)


class NumpyVerbs(Verbs):
    """Each verb on numpy.ndarray."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)

    def constant(self, value: np.ndarray | float) -> Array:
        return np.asarray(value).astype(self.dtype, copy=False)

    def shape(self, x: Array) -> tuple[int, ...]:
        return tuple(x.shape)

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def sub(self, a: Array, b: Array) -> Array:
        return a - b

    def mul(self, a: Array, b: Array) -> Array:
        return a * b

    def div(self, a: Array, b: Array) -> Array:
        return a / b

    def power(self, a: Array, b: Array) -> Array:
        return np.power(a, b)

    def maximum(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def minimum(self, a: Array, b: Array) -> Array:
        return np.minimum(a, b)

    def absolute(self, x: Array) -> Array:
        return np.abs(x)

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def log(self, x: Array) -> Array:
        return np.log(x)

    def tanh(self, x: Array) -> Array:
        return np.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return np.exp(-np.logaddexp(0, -x)).astype(self.dtype)

    def erf(self, x: Array) -> Array:
        return np.vectorize(math.erf, otypes=[self.dtype])(x)

    def greater(self, a: Array, b: Array) -> Array:
        return (a > b).astype(self.dtype)

    def nonzero(self, x: Array) -> Array:
        return (x != 0).astype(self.dtype)

    def share(self, r: Array, z: Array, *, nonnegative: bool = False) -> tuple[Array, Leak]:
        dead = np.abs(z) < TINY
        largest = np.finfo(self.dtype).max
        s = np.where(dead, 0, r / np.where(dead, 1, z))
        return np.clip(s, -largest, largest).astype(self.dtype), self._leak(np.where(dead, r, 0))

    def keep(self, r: Array, mask: Array) -> tuple[Array, Leak]:
        kept = np.broadcast_to(mask, r.shape) != 0
        return np.where(kept, r, 0).astype(self.dtype), self._leak(np.where(kept, 0, r))

    def _leak(self, dropped: Array) -> Leak:
        return Leak(self.total(dropped), self.total(np.abs(dropped)))

    def conv(self, x: Array, w: Array, how: Convolution, out: tuple[int, ...]) -> Array:
        n, co, g = x.shape[0], w.shape[0], how.group
        window = Window(w.shape[2:], how.strides, how.begins, how.dilations)
        z = np.zeros((n, g, co // g, math.prod(out)), self.dtype)
        padded = _padded(x, window, out)
        for offset, cells in _cells(window, out):
            block = padded[(..., *cells)].reshape(n, g, x.shape[1] // g, -1)
            z += w[(..., *offset)].reshape(g, co // g, -1) @ block
        return z.reshape(n, co, *out)

    def conv_adjoint(self, s: Array, w: Array, how: Convolution, spatial: tuple[int, ...]) -> Array:
        n, co, g, out = s.shape[0], s.shape[1], how.group, s.shape[2:]
        ci = w.shape[1] * g
        window = Window(w.shape[2:], how.strides, how.begins, how.dilations)
        padded = _padded(np.zeros((n, ci, *spatial), self.dtype), window, out)
        for offset, cells in _cells(window, out):
            block = w[(..., *offset)].reshape(g, co // g, -1).swapaxes(1, 2) @ s.reshape(n, g, co // g, -1)
            padded[(..., *cells)] += block.reshape(n, ci, *out)
        return _unpadded(padded, window, spatial)

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    def window_sum(self, x: Array, window: Window, out: tuple[int, ...]) -> Array:
        padded = _padded(x, window, out)
        z = np.zeros((*x.shape[:2], *out), self.dtype)
        for _, cells in _cells(window, out):
            z += padded[(..., *cells)]
        return z

    def window_spread(self, s: Array, window: Window, spatial: tuple[int, ...]) -> Array:
        padded = _padded(np.zeros((*s.shape[:2], *spatial), self.dtype), window, s.shape[2:])
        for _, cells in _cells(window, s.shape[2:]):
            padded[(..., *cells)] += s
        return _unpadded(padded, window, spatial)

    def max_route(self, x: Array, r: Array, window: Window) -> Array:
        out = r.shape[2:]
        padded = _padded(x, window, out, fill=-np.inf)
        best = np.full((*x.shape[:2], *out), -np.inf, self.dtype)
        winner = np.full(best.shape, -1)
        for k, (_, cells) in enumerate(_cells(window, out)):
            value = padded[(..., *cells)]
            better = value > best  # strictly: the first maximum stays
            best[better] = value[better]
            winner[better] = k
        routed: Array = np.zeros((r.shape[0], *padded.shape[1:]), self.dtype)
        for k, (_, cells) in enumerate(_cells(window, out)):
            routed[(..., *cells)] += np.where(winner == k, r, 0)
        return _unpadded(routed, window, x.shape[2:])

    def reduce_sum(self, x: Array, axes: Sequence[int]) -> Array:
        return x.sum(axis=tuple(axes), keepdims=True)

    def reduce_max(self, x: Array, axes: Sequence[int]) -> Array:
        return x.max(axis=tuple(axes), keepdims=True)

    def reduce_min(self, x: Array, axes: Sequence[int]) -> Array:
        return x.min(axis=tuple(axes), keepdims=True)

    def total(self, r: Array) -> Array:
        return r.reshape(r.shape[0], -1).sum(axis=1, dtype=np.float64)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def transpose(self, x: Array, perm: Sequence[int]) -> Array:
        return x.transpose(tuple(perm))

    def expand(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, tuple(shape))

    def concat(self, xs: Sequence[Array], axis: int) -> Array:
        return np.concatenate(list(xs), axis=axis)

    def pad(self, x: Array, begins: Sequence[int], ends: Sequence[int]) -> Array:
        x = x[tuple(slice(max(0, -b), d - max(0, -e)) for b, e, d in zip(begins, ends, x.shape, strict=True))]
        return np.pad(x, [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)])

    def gather(self, x: Array, indices: np.ndarray, axis: int) -> Array:
        return np.take(x, indices, axis=axis)

    def scatter_add(self, r: Array, indices: np.ndarray, axis: int, size: int) -> Array:
        x: Array = np.zeros((*r.shape[:axis], size, *r.shape[axis + 1 :]), self.dtype)
        cells: Any = (*[slice(None)] * axis, indices)
        np.add.at(x, cells, r)
        return x


def _padded(x: Array, window: Window, out: Sequence[int], fill: float = 0.0) -> Array:
    amounts = [(b, max(0, e)) for b, e in zip(window.begins, window.ends(x.shape[2:], out), strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *amounts], constant_values=fill)


def _unpadded(x: Array, window: Window, spatial: Sequence[int]) -> Array:
    return x[(..., *(slice(b, b + size) for b, size in zip(window.begins, spatial, strict=True)))]


def _cells(window: Window, out: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """For each position in the kernel, row-major: the cells it reads, one for each output."""
    for offset in itertools.product(*(range(k) for k in window.kernel)):
        yield (
            offset,
            tuple(
                slice(k * d, k * d + (o - 1) * s + 1, s)
                for k, d, s, o in zip(offset, window.dilations, window.strides, out, strict=True)
            ),
        )
