"""The descent as CUDA kernels, launched through CuPy on the activations where they lie.

A program is traced once for each key (which holds every shape), grouped into kernels and laid out in one block of
memory (fgcam_onnx.backends.cuda); then it is a list of launches, which for small batches is replayed as one CUDA graph.
CuPy compiles the kernels and keeps them on disk (CUPY_CACHE_DIR).
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Backend, CudaStream, Program
from fgcam_onnx.backends.cuda.check import check
from fgcam_onnx.backends.cuda.device import Address, Device, Kernel
from fgcam_onnx.backends.cuda.lower import Target
from fgcam_onnx.backends.cuda.program import Compiled, Constants
from fgcam_onnx.errors import BackendError, DeviceMemoryError

__all__ = ["CupyBackend", "CupyDevice", "status"]

# Programs kept: the descents of a few methods at a few shapes.
KEPT = 8
# The first architecture whose tensor cores multiply TF32.
FIRST_TF32 = 80
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class CupyBackend(Backend):
    """Traces, compiles and runs programs on a GPU.

    ``precision``: "float32"; "fast": products whose terms have one sign (z+, z^B) on tensor cores, rounded to TF32;
    "float64" for audits. ``device``: the current one, through CuPy, if None. Before the first program a small one of
    known answer is run (fgcam_onnx.backends.cuda.check).

    Raises:
        BackendError: no GPU that CuPy can use, or one that has no TF32 for "fast".
    """

    name = "cupy"
    resident = True
    batch = 32

    def __init__(self, precision: str = "float32", device: Device | None = None) -> None:
        self.device = device if device is not None else CupyDevice()
        self.precision = precision
        self.providers = (self.device.name,)
        self.stream = self.device.stream
        self.dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
        if precision == "fast" and self.device.architecture < FIRST_TF32:
            raise BackendError(
                f"precision 'fast' needs TF32 tensor cores, and {self.device.name} has none",
                known=f"they came with sm_{FIRST_TF32}; this device is sm_{self.device.architecture}",
                next="precision='float32' computes the same maps without them",
            )
        self.target = Target(self.dtype, self.device.multiprocessors, precision == "fast")
        self._constants = Constants(self.device)
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = threading.Lock()  # one stream, and memory that a program keeps between its launches
        self._checked = False

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run a program.

        Raises:
            BackendError: this GPU failed the self-check.
            DeviceMemoryError: its memory is full.
        """
        with self._lock, self.device.active():
            if not self._checked:
                check(self._run, self.precision, self.device.name)
                self._compiled.clear()
                self._checked = True
            try:
                return self._run(program, inputs)
            except DeviceMemoryError:
                if set(self._compiled) <= {program.key}:
                    raise
            # What other programs keep for their next call may have been in the way.
            self._compiled.clear()
            self.device.release()
            return self._run(program, inputs)

    def _run(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return self.compiled(program, inputs).run({name: self._fed(value) for name, value in inputs.items()})

    def compiled(self, program: Program, inputs: Mapping[str, Any]) -> Compiled:
        """The program's launches; made when it is first run."""
        found = self._compiled.get(program.key)
        if found is None:
            shapes = {name: _shape(value) for name, value in inputs.items()}
            found = Compiled(self.device, self._constants, program, shapes, self.target)
            self._compiled[program.key] = found
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(program.key)
        return found

    def _fed(self, value: Any) -> int | np.ndarray:
        """The address of what lies on the device already, else an array to copy there."""
        if self.dtype == np.float32:
            address = self.device.adopt(value)
            if address is not None:
                return address
        array: np.ndarray = value if isinstance(value, np.ndarray) else value.numpy()
        return np.ascontiguousarray(array, self.dtype)

    def release(self) -> None:
        """Give back all memory but that of weights that compiled programs hold."""
        with self._lock:
            self._compiled.clear()
            self.device.release()


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape() if callable(value.shape) else value.shape)


@dataclass(frozen=True)
class _Memory:
    """Memory of CuPy's pool: goes back there when this is collected."""

    pointer: int
    owner: Any


class CupyDevice(Device):
    """A GPU through CuPy, with a stream of its own: not the default one, whose handle 0 others read as "none".

    Raises:
        BackendError: CuPy cannot use a GPU here.
    """

    def __init__(self) -> None:
        usable, words = status()
        if not usable:
            raise BackendError(
                "the cupy backend cannot work here",
                known=words,
                next='it needs a CUDA GPU and pip install "fgcam_onnx[gpu]" (CUDA 13) or "fgcam_onnx[gpu-cuda12]"; '
                "backend='ort' runs on the CPU",
            )
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(self._device.id)
        self.architecture = 10 * properties["major"] + properties["minor"]
        self.multiprocessors = properties["multiProcessorCount"]
        self.name = words
        self.cuda_stream = cupy.cuda.Stream(non_blocking=True)
        self.stream = CudaStream(self._device.id, self.cuda_stream.ptr)
        self._kernels: dict[str, Kernel] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._device, self.cuda_stream:
            yield

    def allocate(self, nbytes: int) -> _Memory:
        # From the pool of this stream: what is given back is only used again in its order.
        try:
            with self.active():
                memory = self._cupy.cuda.alloc(max(1, nbytes))
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceMemoryError(
                "the descent does not fit the GPU's memory",
                known=str(error),
                next="fewer images at a time (batch_size=), or a smaller picture",
            ) from error
        return _Memory(memory.ptr, memory)

    def write(self, pointer: int, array: np.ndarray) -> None:
        self._copy(pointer, array.ctypes.data, array.nbytes, HOST_TO_DEVICE)

    def wait(self) -> None:
        self.cuda_stream.synchronize()

    def read(self, pointer: int, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        found = np.empty(tuple(shape), dtype)
        self._copy(found.ctypes.data, pointer, found.nbytes, DEVICE_TO_HOST)
        self.cuda_stream.synchronize()
        return found

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        self._cupy.cuda.runtime.memcpyAsync(to, source, nbytes, kind, self.cuda_stream.ptr)

    def adopt(self, value: Any) -> int | None:
        device_name = getattr(value, "device_name", None)
        if device_name is None or device_name() != "cuda":
            return None
        return int(value.data_ptr())

    def kernel(self, name: str, source: str) -> Kernel:
        if source not in self._kernels:
            module = self._cupy.RawModule(code=source, options=("--std=c++17",))
            function = module.get_function(name)

            def launch(grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[Any]) -> None:
                # An address is eight bytes, whatever it points to.
                function(grid, block, tuple(np.uint64(a.pointer) if isinstance(a, Address) else a for a in arguments))

            self._kernels[source] = launch
        return self._kernels[source]

    def capture(self, launches: Callable[[], None]) -> Callable[[], None] | None:
        runtime_error = self._cupy.cuda.runtime.CUDARuntimeError
        stream = self.cuda_stream
        try:
            stream.begin_capture()
            try:
                launches()
            finally:
                graph = stream.end_capture()
        except runtime_error:
            return None  # a driver that cannot: the launches are asked for one by one
        return lambda: graph.launch(stream)

    def release(self) -> None:
        with self._device:  # the pool frees what it has on the current device
            self.cuda_stream.synchronize()
            self._cupy.get_default_memory_pool().free_all_blocks()


@functools.cache
def status() -> tuple[bool, str]:
    """Is CuPy usable here? True and the device in words, or False and the reason. Asked by running one kernel.

    ``cupy.cuda.is_available()`` says nothing about NVRTC, without which no kernel can be compiled.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns when several of its wheels are installed
            import cupy
    except Exception as error:  # not only ImportError: a missing library raises others
        return False, f"CuPy cannot be imported: {_line(error)}"
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return False, "CuPy sees no CUDA device"
        probe = cupy.RawKernel('extern "C" __global__ void probe(int* x) { x[0] = 42; }', "probe")
        answer = cupy.zeros(1, cupy.int32)
        probe((1,), (1,), (answer,))
        if int(answer[0]) != 42:
            return False, "a probe kernel gave a wrong answer"
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    except Exception as error:  # CUDA's, NVRTC's and the driver's own classes
        return False, f"CuPy {cupy.__version__} cannot run a kernel: {_line(error)}"
    architecture = f"sm_{properties['major']}{properties['minor']}"
    return True, f"{properties['name'].decode()} ({architecture}), CuPy {cupy.__version__}"


def _line(error: Exception) -> str:
    words = str(error).splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
