"""What is asked of a GPU. ``fgcam_onnx.backends.cupy`` answers with CuPy; the tests answer with a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Address", "Device", "Kernel", "OutOfMemory"]


class OutOfMemory(MemoryError):
    """The device has no memory left for an array."""


@dataclass(frozen=True)
class Address:
    """A place in the device's memory, as an argument of a kernel. 0 is the null pointer."""

    pointer: int


# kernel(grid, block, arguments): returns at once, the work is done in the order of the calls.
Kernel = Callable[[tuple[int, int, int], tuple[int, int, int], Sequence[Any]], None]


class Device(ABC):
    """One GPU and one stream on it: everything asked here happens in the order in which it is asked.

    ``name``: for people. ``architecture``: 90 for sm_90. ``multiprocessors``: how many blocks run side by side.
    """

    name: str
    architecture: int
    multiprocessors: int

    @abstractmethod
    def allocate(self, nbytes: int) -> Any:
        """Memory, given back when the object is collected; its ``pointer`` is the address.

        Raises:
            OutOfMemory: there is none.
        """

    @abstractmethod
    def write(self, pointer: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the address."""

    @abstractmethod
    def read(self, pointer: int, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """Copy memory to the host, once everything asked before is done."""

    @abstractmethod
    def adopt(self, value: Any) -> int | None:
        """The address of an OrtValue that lies on this device, None if it lies elsewhere."""

    @abstractmethod
    def kernel(self, name: str, source: str) -> Kernel:
        """A compiled kernel; compiled once for each source."""

    @abstractmethod
    def capture(self, launches: Callable[[], None]) -> Callable[[], None] | None:
        """What ``launches`` asks for, recorded and not done: calling the result does it. None if it cannot be."""

    def upload(self, array: np.ndarray) -> Any:
        """Memory with a copy of ``array``."""
        array = np.ascontiguousarray(array)
        memory = self.allocate(array.nbytes)
        if array.nbytes:
            self.write(memory.pointer, array)
        return memory
