"""A stand-in for the part of CuPy that fgcam_onnx.backends.cupy uses: kernels run on this machine's processor.

It is stricter than a GPU. A kernel that is launched outside of its stream, an address that no allocation holds, an
allocation or a wait while a stream is captured: each is an error at once and not a wrong number later. Memory is NaN
until somebody writes to it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu.module import CpuModule

__all__ = ["CUDARuntimeError", "FakeGpu", "Misuse", "OutOfMemoryError", "installed", "registered"]

VERSION = "14.2.0"
ALIGNMENT = 512  # to which CuPy's pool rounds
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class Misuse(AssertionError):  # noqa: N818 - a mistake of the caller's
    """Something that on a real GPU would be a wrong number, a crash or a race."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class OutOfMemoryError(MemoryError):
    """As CuPy's, with its words."""

    def __init__(self, size: int, total: int) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


CAPTURING = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"


@dataclass(eq=False)
class _Chunk:
    """Memory of the pool. ``stream``: whose free list it belongs to."""

    nbytes: int
    stream: int
    array: np.ndarray = field(init=False)
    pointer: int = field(init=False)

    def __post_init__(self) -> None:
        self.array = np.empty(self.nbytes + ALIGNMENT, np.uint8)
        self.pointer = -(-self.array.ctypes.data // ALIGNMENT) * ALIGNMENT


class _Pool:
    """CuPy's memory pool on one device: given back memory is kept for the stream that used it."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.used: dict[int, _Chunk] = {}
        self.free: list[_Chunk] = []

    def used_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in list(self.used.values()))

    def total_bytes(self) -> int:
        return self.used_bytes() + sum(chunk.nbytes for chunk in self.free)

    def free_all_blocks(self, stream: Any = None) -> None:
        self.free = [] if stream is None else [chunk for chunk in self.free if chunk.stream != stream.ptr]

    def malloc(self, nbytes: int, stream: int) -> _Memory:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        for chunk in self.free:
            if chunk.nbytes == size and chunk.stream == stream:
                self.free.remove(chunk)
                break
        else:
            if self.total_bytes() + size > self.gpu.memory:
                self.free_all_blocks()
            if self.total_bytes() + size > self.gpu.memory:
                raise OutOfMemoryError(size, self.total_bytes())
            chunk = _Chunk(size, stream)
        ctypes.memset(chunk.pointer, 0xFF, size)
        self.used[chunk.pointer] = chunk
        self.gpu.most_used = max(self.gpu.most_used, self.used_bytes())
        return _Memory(self, chunk)

    def give_back(self, chunk: _Chunk) -> None:
        del self.used[chunk.pointer]
        self.free.append(chunk)

    def holds(self, address: int, nbytes: int) -> bool:
        return any(c.pointer <= address and address + nbytes <= c.pointer + c.nbytes for c in list(self.used.values()))


class _Memory:
    """As CuPy's MemoryPointer: goes back to the pool when it is collected."""

    def __init__(self, pool: _Pool, chunk: _Chunk) -> None:
        self.ptr = chunk.pointer
        weakref.finalize(self, pool.give_back, chunk)


class _Device:
    """``with`` makes it the current one of this thread. Without a number: the one that is current now."""

    def __init__(self, gpu: FakeGpu, number: int | None = None) -> None:
        self._gpu = gpu
        self.id = gpu.current_device if number is None else number

    def __enter__(self) -> _Device:
        self._gpu.here.devices.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        self._gpu.here.devices.pop()


class _Stream:
    """``with`` makes it the current one of this thread; work is done at once, unless it is captured."""

    def __init__(self, gpu: FakeGpu, non_blocking: bool = False) -> None:
        if not non_blocking:
            raise Misuse("a stream that waits for the default stream waits for everybody")
        gpu.streams += 1
        self._gpu = gpu
        self.ptr = 0x5000 + gpu.streams
        self.device_id = gpu.current_device
        self.recorded: list[Callable[[], None]] | None = None
        self.spoilt = False

    def __enter__(self) -> _Stream:
        if self._gpu.current_device != self.device_id:
            raise RuntimeError("the device that the stream is created on does not match with the current device")
        self._gpu.here.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._gpu.here.streams.pop()

    def synchronize(self) -> None:
        self.not_while_capturing()
        self._gpu.synchronisations += 1

    def not_while_capturing(self) -> None:
        if self.recorded is not None:
            self.spoilt = True
            raise CUDARuntimeError(CAPTURING)

    def begin_capture(self, mode: int | None = None) -> None:
        if self._gpu.capture_fails == "begin":
            raise CUDARuntimeError("cudaErrorNotSupported: operation not supported")
        self.not_while_capturing()
        self.recorded, self.spoilt = [], False

    def end_capture(self) -> _Graph:
        recorded, self.recorded = self.recorded, None
        if recorded is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        if self.spoilt:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        if self._gpu.capture_fails == "end":
            raise CUDARuntimeError("cudaErrorNotSupported: operation not supported")
        self._gpu.captures += 1
        return _Graph(self._gpu, recorded)

    def do(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)


class _Graph:
    def __init__(self, gpu: FakeGpu, recorded: list[Callable[[], None]]) -> None:
        self._gpu, self._recorded = gpu, recorded

    def launch(self, stream: _Stream) -> None:
        stream.not_while_capturing()
        self._gpu.replays += 1
        for work in self._recorded:
            work()


@functools.cache
def _module(code: str) -> CpuModule:
    """Of all fakes in this process: the preprocessor alone takes a tenth of a second."""
    return CpuModule(code, flush_denormals="#define REAL double" not in code)


class _RawModule:
    """As CuPy's; compiled when the first kernel is asked for."""

    def __init__(self, gpu: FakeGpu, *, code: str, options: tuple[str, ...] = ()) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("code is a str and options are a tuple")
        if "--std=c++17" not in options:
            raise Misuse("the kernels are C++17, and CuPy compiles C++14 unless it is told")
        self._gpu, self._code = gpu, code

    def get_function(self, name: str) -> Callable[..., None]:
        gpu = self._gpu
        for stream in gpu.here.streams:
            stream.not_while_capturing()
        gpu.compiled.append(name)
        kernel = _module(self._code).get_function(name)

        def call(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            if not (isinstance(grid, tuple) and isinstance(block, tuple) and isinstance(args, tuple)):
                raise TypeError("grid, block and args are tuples")
            if not gpu.here.streams:
                raise Misuse(f"{name} is launched on the default stream: nobody waits for it")
            stream = gpu.here.streams[-1]
            if stream.device_id != gpu.current_device:
                raise Misuse(f"{name} is launched on a stream of another device")
            if len(args) != len(kernel.parameters):
                raise Misuse(f"{name} has {len(kernel.parameters)} parameters, not {len(args)}")
            values = [
                gpu.address(name, value) if parameter.kind == "p" else _by_value(name, value)
                for parameter, value in zip(kernel.parameters, args, strict=True)
            ]

            def work() -> None:
                for value in values:
                    if isinstance(value, SimpleNamespace) and value.pointer:
                        gpu.must_hold(value.pointer, 1, name)
                gpu.launched.append(name)
                kernel(grid, block, values)

            stream.do(work)

        return call


def _by_value(kernel: str, value: Any) -> Any:
    if not isinstance(value, np.generic):
        raise Misuse(f"{kernel}: CuPy chooses the width of a {type(value).__name__}; a NumPy scalar has its own")
    return value


class FakeGpu:
    """A machine with a GPU, or without: ``cupy`` is the module, the rest is what a test wants to know or to spoil.

    ``memory``: bytes of each device. ``capture_fails``: "begin" or "end". ``trouble``: raised by every call that asks
    which devices there are. ``answer``: of the probe kernel.
    """

    def __init__(self, *, memory: int = 1 << 34, architecture: int = 90, devices: int = 1) -> None:
        self.memory, self.architecture = memory, architecture
        self.capture_fails: str | None = None
        self.trouble: Exception | None = None
        self.compile_trouble: Exception | None = None
        self.answer = 42
        self.devices = devices
        self.pools = [_Pool(self) for _ in range(devices)]
        self.launched: list[str] = []
        self.compiled: list[str] = []
        self.copies: list[tuple[str, int]] = []
        self.streams = self.captures = self.replays = self.synchronisations = self.most_used = 0
        self.here = _Here()
        self.others: dict[int, int] = {}  # memory of others on the device: address, bytes
        self.cupy = self._module()

    @property
    def current_device(self) -> int:
        return self.here.devices[-1]

    @property
    def pool(self) -> _Pool:
        return self.pools[self.current_device]

    def must_hold(self, address: int, nbytes: int, who: str) -> None:
        others = any(a <= address and address + nbytes <= a + size for a, size in list(self.others.items()))
        if not others and not any(pool.holds(address, nbytes) for pool in self.pools):
            raise Misuse(f"{who}: nobody holds the {nbytes} bytes at {address:#x}")

    def address(self, kernel: str, value: Any) -> SimpleNamespace:
        if type(value) is not np.uint64:
            raise Misuse(f"{kernel}: an address is eight bytes, and this is a {type(value).__name__}")
        return SimpleNamespace(pointer=int(value))

    def _alloc(self, nbytes: int) -> _Memory:
        for stream in self.here.streams:
            stream.not_while_capturing()
        return self.pool.malloc(nbytes, self.here.streams[-1].ptr if self.here.streams else 0)

    def _copy(self, to: int, source: int, nbytes: int, kind: int, handle: int) -> None:
        if not any(stream.ptr == handle for stream in self.here.streams):
            raise Misuse("a copy outside of its stream")
        self.here.streams[-1].not_while_capturing()
        word, device = {HOST_TO_DEVICE: ("write", to), DEVICE_TO_HOST: ("read", source)}[kind]
        self.must_hold(device, nbytes, word)
        self.copies.append((word, nbytes))
        ctypes.memmove(to, source, nbytes)

    def _count(self) -> int:
        if self.trouble is not None:
            raise self.trouble
        return self.devices

    def _properties(self, number: int) -> dict[str, Any]:
        major, minor = divmod(self.architecture, 10)
        assert 0 <= number < self.devices
        return {"name": b"Fake GPU", "major": major, "minor": minor, "multiProcessorCount": 4}

    def _probe(self, code: str, name: str) -> Callable[..., None]:
        def call(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            if self.compile_trouble is not None:
                raise self.compile_trouble
            CpuModule(code).get_function(name)(grid, block, args)
            args[0][0] += self.answer - 42

        return call

    def _module(self) -> ModuleType:
        module: Any = ModuleType("cupy")
        module.__spec__ = ModuleSpec("cupy", None)
        module.__version__ = VERSION
        module.int32 = np.int32
        module.zeros = np.zeros
        module.RawKernel = self._probe
        module.RawModule = functools.partial(_RawModule, self)
        module.get_default_memory_pool = lambda: self.pool
        module.cuda = SimpleNamespace(
            Device=functools.partial(_Device, self),
            Stream=functools.partial(_Stream, self),
            alloc=self._alloc,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=self._count,
                getDeviceProperties=self._properties,
                memcpyAsync=self._copy,
            ),
        )
        found: ModuleType = module
        return found


class _Here(threading.local):
    """What is current in this thread."""

    def __init__(self) -> None:
        self.devices = [0]
        self.streams: list[_Stream] = []


@contextmanager
def installed(module: ModuleType | None) -> Iterator[None]:
    """``import cupy`` gives this module inside the with; None: it is not installed."""
    from fgcam_onnx.backends.cupy import status

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", module)
        status.cache_clear()
        try:
            yield
        finally:
            status.cache_clear()


def registered(gpu: FakeGpu, address: int, nbytes: int, owner: Any) -> None:
    """Memory of somebody else on the device, as long as ``owner`` lives."""
    gpu.others[address] = nbytes
    weakref.finalize(owner, gpu.others.pop, address, None)
