"""The verbs: everything a relevance rule may ask of a backend.

A rule is written once, over these. ``numpy.py`` defines what each verb means by computing it plainly; ``ort.py`` emits
ONNX nodes for it; a CUDA backend launches a kernel. Arrays are opaque to the rules: only a backend looks inside.

Shapes in the docstrings: n batch, c channels, ``...`` the spatial axes (one to three), activations channels first.

Several rows of one image, its relevance for several classes: there an activation has a batch of 1 where the relevance
has one of n, and stands for n equal ones. What depends on activations alone is so computed once. Elementwise verbs
broadcast anyhow; ``share``, ``keep`` and ``max_route`` take it so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TINY", "Array", "Backend", "Convolution", "CudaStream", "Leak", "Program", "Verbs", "Window"]

Array = Any

# The zero rule of all backends: a denominator below the smallest normal float32 counts as 0. GPUs flush denormals,
# so a looser rule would give other maps there.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Convolution:
    """A convolution with every size explicit; one entry a spatial axis.

    ``begins`` is the padding before the first cell. What stands behind the last one follows from the sizes: a cell
    that no window reads gets nothing, a window that reaches over the end reads zeros.
    """

    strides: tuple[int, ...]
    begins: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1


@dataclass(frozen=True)
class Window:
    """A pooling window, as :class:`Convolution`."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    dilations: tuple[int, ...]

    def ends(self, spatial: Sequence[int], out: Sequence[int]) -> list[int]:
        """Padding behind the last cell, per axis, for these sizes; negative where cells stay unread."""
        axes = zip(out, self.kernel, self.strides, self.begins, self.dilations, spatial, strict=True)
        return [(o - 1) * s + (k - 1) * d + 1 - size - b for o, k, s, b, d, size in axes]


@dataclass(frozen=True)
class Leak:
    """Relevance that a rule dropped: signed and absolute sums, each [n]."""

    signed: Array
    absolute: Array


class Verbs(ABC):
    """The operations that rules are written in."""

    def rounding(self, *, one_sign: bool) -> None:  # noqa: B027 - most backends need not know
        """About the products that follow: do all their terms have one sign (z+, z^B)?

        Then a small sum is a sum of small terms and not a cancellation, and a backend that was allowed to may round the
        operands. Said by the descent before each rule.
        """

    # --- sources ------------------------------------------------------------------------------------------------

    @abstractmethod
    def constant(self, value: np.ndarray | float) -> Array:
        """A weight or number, in the backend's dtype."""

    @abstractmethod
    def shape(self, x: Array) -> tuple[int, ...]: ...

    # --- elementwise, broadcasting as NumPy does ------------------------------------------------------------------

    @abstractmethod
    def add(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def sub(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def mul(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def div(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def power(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def maximum(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def minimum(self, a: Array, b: Array) -> Array: ...
    @abstractmethod
    def absolute(self, x: Array) -> Array: ...
    @abstractmethod
    def exp(self, x: Array) -> Array: ...
    @abstractmethod
    def log(self, x: Array) -> Array: ...
    @abstractmethod
    def tanh(self, x: Array) -> Array: ...
    @abstractmethod
    def sigmoid(self, x: Array) -> Array: ...
    @abstractmethod
    def erf(self, x: Array) -> Array: ...

    @abstractmethod
    def greater(self, a: Array, b: Array) -> Array:
        """1 where a > b, else 0, in the backend's dtype."""

    @abstractmethod
    def nonzero(self, x: Array) -> Array:
        """1 where x != 0, else 0, in the backend's dtype."""

    def positive(self, x: Array) -> Array:
        """max(x, 0)"""
        return self.maximum(x, self.constant(0.0))

    def negative(self, x: Array) -> Array:
        """min(x, 0)"""
        return self.minimum(x, self.constant(0.0))

    # --- the two steps in which relevance can be lost -----------------------------------------------------------

    @abstractmethod
    def share(self, r: Array, z: Array, *, nonnegative: bool = False) -> tuple[Array, Leak]:
        """r / z, and what was dropped: 0 where |z| < TINY, clamped to the largest finite number elsewhere.

        r [n, ...], z broadcasts to it; what leaked is [n]. The leak sums r over the dropped cells, not a difference
        of totals.
        ``nonnegative``: the rule knows that z >= 0, which spares a backend the absolute value.
        """

    @abstractmethod
    def keep(self, r: Array, mask: Array) -> tuple[Array, Leak]:
        """r where mask = 1, 0 where mask = 0, and what that dropped. mask broadcasts to r."""

    # --- linear maps ----------------------------------------------------------------------------------------------

    @abstractmethod
    def conv(self, x: Array, w: Array, how: Convolution, out: tuple[int, ...]) -> Array:
        """x [n, ci, ...], w [co, ci / group, k...] -> [n, co, *out], without bias."""

    @abstractmethod
    def conv_adjoint(self, s: Array, w: Array, how: Convolution, spatial: tuple[int, ...]) -> Array:
        """The adjoint of ``conv``: s [n, co, ...] -> [n, ci, *spatial]."""

    @abstractmethod
    def matmul(self, a: Array, b: Array) -> Array:
        """As numpy.matmul."""

    @abstractmethod
    def window_sum(self, x: Array, window: Window, out: tuple[int, ...]) -> Array:
        """Sum over each window: [n, c, ...] -> [n, c, *out]."""

    @abstractmethod
    def window_spread(self, s: Array, window: Window, spatial: tuple[int, ...]) -> Array:
        """The adjoint of ``window_sum``: each cell to all cells of its window, [n, c, ...] -> [n, c, *spatial]."""

    @abstractmethod
    def max_route(self, x: Array, r: Array, window: Window) -> Array:
        """Each r [n, c, ...] to the first maximum of its window of x, row-major; overlaps add; padding never wins.

        x [n, c, ...], or [1, c, ...] for all.
        """

    # --- reductions -------------------------------------------------------------------------------------------------

    @abstractmethod
    def reduce_sum(self, x: Array, axes: Sequence[int]) -> Array:
        """Sum over ``axes``, which stay as size 1."""

    @abstractmethod
    def reduce_max(self, x: Array, axes: Sequence[int]) -> Array: ...
    @abstractmethod
    def reduce_min(self, x: Array, axes: Sequence[int]) -> Array: ...

    @abstractmethod
    def total(self, r: Array) -> Array:
        """Sum per image: [n, ...] -> [n]."""

    # --- index moves ----------------------------------------------------------------------------------------------

    @abstractmethod
    def reshape(self, x: Array, shape: Sequence[int]) -> Array: ...
    @abstractmethod
    def transpose(self, x: Array, perm: Sequence[int]) -> Array: ...
    @abstractmethod
    def expand(self, x: Array, shape: Sequence[int]) -> Array:
        """Broadcast to ``shape``."""

    @abstractmethod
    def concat(self, xs: Sequence[Array], axis: int) -> Array: ...

    @abstractmethod
    def pad(self, x: Array, begins: Sequence[int], ends: Sequence[int]) -> Array:
        """Zeros around x, per axis; a negative amount crops."""

    @abstractmethod
    def gather(self, x: Array, indices: np.ndarray, axis: int) -> Array:
        """x at the constant ``indices`` (1-D, non-negative) along ``axis``."""

    @abstractmethod
    def scatter_add(self, r: Array, indices: np.ndarray, axis: int, size: int) -> Array:
        """The adjoint of ``gather``: zeros of ``size`` along ``axis``, r added at ``indices``."""

    # --- composed -------------------------------------------------------------------------------------------------

    def sum_to(self, x: Array, shape: Sequence[int]) -> Array:
        """Undo a broadcast: sum x over the axes along which an array of ``shape`` was repeated."""
        shape, have = tuple(shape), self.shape(x)
        extra = len(have) - len(shape)
        padded = (1,) * extra + shape
        axes = [i for i, (big, small) in enumerate(zip(have, padded, strict=True)) if small == 1 and big != 1]
        if axes:
            x = self.reduce_sum(x, axes)
        return self.reshape(x, shape) if extra else x


@dataclass(frozen=True)
class Program:
    """A computation written in verbs: ``run(verbs, inputs)`` returns named arrays.

    ``key`` identifies it, weights and shapes included, so that a backend can keep what it compiled and serve several
    Explainers.
    """

    key: str
    run: Callable[[Verbs, Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class CudaStream:
    """The stream on which a GPU backend works: what else works there waits its turn. ``handle``: cudaStream_t."""

    device_id: int
    handle: int


class Backend(ABC):
    """Executes programs. ``inputs`` are onnxruntime OrtValues or NumPy arrays; results are NumPy arrays.

    ``providers``: what does the work, for people and manifests. ``precision``: "float32", "float64", or "fast" where
    products of one sign may be rounded. ``dtype``: of arrays that are handed in. ``batch``: images at a time that suit
    it. ``resident``: its arrays lie on a device of their own, so what can be one program should be. ``stream``: where
    the forward pass should leave its activations for it, None if on the host. ``notes``: what the user must know about
    the choice of it.
    """

    name: str
    providers: tuple[str, ...]
    precision: str = "float32"
    dtype: np.dtype[Any] = np.dtype(np.float32)
    batch: int = 8
    resident: bool = False
    stream: CudaStream | None = None
    notes: tuple[str, ...] = ()

    def release(self) -> None:  # noqa: B027 - most keep none
        """Give back memory that is only kept for the next call."""

    @abstractmethod
    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]: ...
