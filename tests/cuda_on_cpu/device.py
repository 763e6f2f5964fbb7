"""A device of the CUDA backend that is this machine's processor: kernels run through cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cuda_on_cpu.module import CpuModule
from fgcam_onnx.backends.cuda.device import Device, Kernel
from fgcam_onnx.errors import DeviceMemoryError

__all__ = ["CpuDevice"]


# Around each piece of memory, so that a kernel with a mistake in it spoils nobody else's; NaN next to the piece.
NO_MANS_LAND, NAN_BORDER = 4 << 20, 4 << 10


class Memory:
    """Bytes at an aligned address. All ones at first, which is NaN: what nobody wrote shows."""

    def __init__(self, owner: CpuDevice, nbytes: int) -> None:
        self.owner, self.nbytes = owner, nbytes
        self.array = np.empty(nbytes + 2 * NO_MANS_LAND, np.uint8)
        self.pointer = -(-(self.array.ctypes.data + NO_MANS_LAND) // 256) * 256
        ctypes.memset(self.pointer - NAN_BORDER, 0xFF, nbytes + 2 * NAN_BORDER)
        owner.used += nbytes
        owner.most_used = max(owner.most_used, owner.used)

    def __del__(self) -> None:
        self.owner.used -= self.nbytes


class CpuDevice(Device):
    """``memory``: bytes before it says that there are no more. ``multiprocessors``: of the GPU it plays."""

    name = "CUDA on a CPU"
    architecture = 80

    def __init__(self, memory: int = 1 << 34, multiprocessors: int = 4, captures: bool = False) -> None:
        self.memory, self.multiprocessors, self.captures = memory, multiprocessors, captures
        self.used = self.most_used = 0
        self.launched: list[str] = []
        self.graphs = 0
        self._kernels: dict[str, Kernel] = {}

    def allocate(self, nbytes: int) -> Memory:
        if self.used + nbytes > self.memory:
            raise DeviceMemoryError("the descent does not fit the GPU's memory", known=f"{nbytes} bytes were asked for")
        return Memory(self, nbytes)

    def write(self, pointer: int, array: np.ndarray) -> None:
        ctypes.memmove(pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def read(self, pointer: int, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        found = np.empty(tuple(shape), dtype)
        ctypes.memmove(found.ctypes.data, pointer, found.nbytes)
        return found

    def adopt(self, value: Any) -> int | None:
        return None

    def kernel(self, name: str, source: str) -> Kernel:
        if source not in self._kernels:
            function = CpuModule(source, flush_denormals="#define REAL double" not in source).get_function(name)

            def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[Any]) -> None:
                self.launched.append(name)
                function(grid, block, arguments)

            self._kernels[source] = kernel
        return self._kernels[source]

    def capture(self, launches: Callable[[], None]) -> Callable[[], None] | None:
        if not self.captures:
            return None
        self.graphs += 1
        return launches
