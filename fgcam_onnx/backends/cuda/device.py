"""What is asked of a GPU. ``fgcam_onnx.backends.cupy`` answers with CuPy; the tests answer with a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import CudaStream

__all__ = ["Address", "Device", "Kernel"]


@dataclass(frozen=True)
class Address:
    """A place in the device's memory, as an argument of a kernel. 0 is the null pointer."""

    pointer: int


# kernel(grid, block, arguments): returns at once, the work is done in the order of the calls.
Kernel = Callable[[tuple[int, int, int], tuple[int, int, int], Sequence[Any]], None]


class Device(ABC):
    """One GPU and one stream on it: everything asked here happens in the order in which it is asked.

    ``name``: for people. ``architecture``: 90 for sm_90. ``multiprocessors``: how many blocks run side by side.
    ``stream``: for others who work on the same device.
    """

    name: str
    architecture: int
    multiprocessors: int
    stream: CudaStream | None = None

    def active(self) -> AbstractContextManager[None]:
        """Inside the with, kernels are launched on this device and stream."""
        return nullcontext()

    def release(self) -> None:  # noqa: B027 - a device may keep none
        """Give back memory that nobody uses."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Any:
        """Memory, given back when the object is collected; its ``pointer`` is the address.

        Raises:
            DeviceMemoryError: there is not enough.
        """

    def wait(self) -> None:  # noqa: B027 - a device may do everything at once
        """Return when everything asked before is done."""

    @abstractmethod
    def write(self, pointer: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the address; it must be there until :meth:`wait` or :meth:`read` has returned."""

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
            self.wait()  # the array may be gone when this returns
        return memory
