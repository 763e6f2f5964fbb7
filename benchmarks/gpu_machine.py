"""What gpu.py asks of the machine it runs on: a GPU, or this processor playing one in a rehearsal."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fgcam_onnx.backends.cuda.device import Device
from fgcam_onnx.backends.cupy import CupyBackend

__all__ = ["Gpu", "Machine", "Rehearsal", "tf32"]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's matrix products and cuDNN's convolutions, rounded to TF32 or not; cuDNN tries its algorithms out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of PyTorch advertise another spelling
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    yield


class Machine(ABC):
    """``device``: where the descent runs. ``torch_device``: where PyTorch does. ``l2_bytes``: of the last cache."""

    rehearsal: bool
    name: str
    torch_device: str
    device: Device
    l2_bytes: int
    # The matrix product of the ceiling: size x size x size; and the bytes of the copy, each way.
    matrix: int
    copied: int

    def backend(self, precision: str) -> CupyBackend:
        """A backend with nothing compiled yet; kernels that the device has loaded stay loaded."""
        return CupyBackend(precision, device=self.device)

    def timed(self, action: Callable[[], object], repeats: int, *, cold: bool) -> list[float]:
        """Seconds on the device of each of several runs of ``action``, which asks for work on the descent's stream.

        ``cold``: a large copy goes before each run, so that nothing it reads is left in the cache. Otherwise one goes
        before all of them. Either way the device is still busy with it while the host asks for what is timed: the host
        is not in the figure.
        """
        marks = []
        with self.device.active():
            if not cold:
                self.flush()
                action()
            for _ in range(repeats):
                if cold:
                    self.flush()
                begin = self.mark()
                action()
                marks.append((begin, self.mark()))
            self.synchronize()
        return [self.between(begin, end) for begin, end in marks]

    def products(self, allowed: bool) -> dict[str, Any]:
        """Floating-point operations per second of torch.matmul on random float32 matrices."""
        n = self.matrix
        a, b = (torch.randn(n, n, device=self.torch_device) for _ in range(2))
        out = torch.empty_like(a)
        with tf32(allowed):
            seconds = self.timed_torch(lambda: torch.matmul(a, b, out=out), 10)
        return {"contains": f"torch.matmul {n}^3, TF32 {'on' if allowed else 'off'}", "seconds": seconds,
                "flops_per_second": 2 * n**3 / statistics.median(seconds)}  # fmt: skip

    def copies(self) -> dict[str, Any]:
        """Bytes per second of a copy on the device, read and written bytes added."""
        seconds = self.timed(lambda: self.copy(self.copied), 10, cold=False)
        return {"contains": f"copy of {self.copied} bytes on the device; bytes read + bytes written",
                "seconds": seconds, "bytes_per_second": 2 * self.copied / statistics.median(seconds)}  # fmt: skip

    @abstractmethod
    def alive(self) -> bool:
        """Can the device still be asked for anything? After an illegal access it cannot, in this process."""

    @abstractmethod
    def flush(self) -> None:
        """Ask for a copy that fills the cache with something else."""

    @abstractmethod
    def copy(self, nbytes: int) -> None:
        """Ask for a copy on the device, on the descent's stream."""

    @abstractmethod
    def mark(self) -> Any:
        """Ask for the time, on the descent's stream."""

    @abstractmethod
    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, once they are passed."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for everything that was asked for, PyTorch's work too."""

    @abstractmethod
    def timed_torch(self, action: Callable[[], object], repeats: int) -> list[float]:
        """Seconds on the device of PyTorch's work, warm."""

    @abstractmethod
    def free(self) -> tuple[int, int]:
        """Bytes of memory that are free on the device, and all of it."""

    @abstractmethod
    def pool(self) -> int:
        """Bytes that CuPy's pool holds."""

    @abstractmethod
    def release(self) -> None:
        """Give back all memory that is only kept for the next call."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Driver, runtime and versions."""


class Gpu(Machine):
    """The current CUDA device, for CuPy and for PyTorch."""

    rehearsal = False
    torch_device = "cuda"
    matrix = 8192
    copied = 1 << 30

    def __init__(self) -> None:
        import cupy

        from fgcam_onnx.backends.cupy import CupyDevice

        self._cupy = cupy
        self.device: Any = CupyDevice()
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.name = properties["name"].decode()
        self.l2_bytes = int(properties.get("l2CacheSize", 64 << 20))
        self._buffers: list[Any] = []
        self._size = 0
        self._flushed = max(256 << 20, 4 * self.l2_bytes)

    def alive(self) -> bool:
        try:
            self._cupy.cuda.runtime.deviceSynchronize()
            torch.cuda.synchronize()
        except Exception:
            return False
        return True

    def flush(self) -> None:
        self.copy(self._flushed)

    def copy(self, nbytes: int) -> None:
        if not self._buffers or self._size < nbytes:
            self._buffers, self._size = [], nbytes
            self._buffers = [self.device.allocate(nbytes) for _ in range(2)]
            # Random bytes: data that switches few bits can be faster than real data.
            noise = np.frombuffer(np.random.default_rng(0).bytes(min(nbytes, 64 << 20)), np.uint8)
            for first in range(0, nbytes, noise.size):
                self.device.write(self._buffers[0].pointer + first, noise[: nbytes - first])
            self.device.cuda_stream.synchronize()
        source, target = self._buffers
        runtime = self._cupy.cuda.runtime
        stream = self.device.cuda_stream.ptr
        runtime.memcpyAsync(target.pointer, source.pointer, nbytes, runtime.memcpyDeviceToDevice, stream)

    def mark(self) -> Any:
        event = self._cupy.cuda.Event()
        event.record(self.device.cuda_stream)
        return event

    def between(self, begin: Any, end: Any) -> float:
        return 1e-3 * float(self._cupy.cuda.get_elapsed_time(begin, end))

    def synchronize(self) -> None:
        self.device.cuda_stream.synchronize()
        torch.cuda.synchronize()

    def timed_torch(self, action: Callable[[], object], repeats: int) -> list[float]:
        for _ in range(3):
            action()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in marks:
            begin.record()
            action()
            end.record()
        torch.cuda.synchronize()
        return [1e-3 * begin.elapsed_time(end) for begin, end in marks]

    def free(self) -> tuple[int, int]:
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def pool(self) -> int:
        return int(self._cupy.get_default_memory_pool().total_bytes())

    def release(self) -> None:
        self._buffers.clear()
        self.device.release()
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        found: dict[str, Any] = {
            "architecture": self.device.architecture,
            "multiprocessors": self.device.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "memory_bytes": self.free()[1],
            "cuda_runtime_of_cupy": runtime.runtimeGetVersion(),
            "cuda_of_driver": runtime.driverGetVersion(),
            "cupy": self._cupy.__version__,
            "torch_sees": torch.cuda.get_device_name(),
        }
        if shutil.which("nvidia-smi"):  # it only answers: nothing is set
            asked = "driver_version,power.limit,clocks.max.sm,clocks.max.memory,clocks.sm,temperature.gpu"
            command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            found["nvidia_smi"] = {"asked": asked, "answer": done.stdout.strip().splitlines()}
        return found


class Rehearsal(Machine):
    """This processor, on which the same kernels run slowly; times are the host's and mean nothing."""

    rehearsal = True
    torch_device = "cpu"
    name = "rehearsal without a GPU"
    l2_bytes = 1 << 14
    matrix = 64
    copied = 1 << 20

    def __init__(self) -> None:
        from cuda_on_cpu.device import CpuDevice

        self.broken = False  # for tests of what is done then
        torch.set_num_threads(1)  # tiny arrays: threads would only wait for each other
        self.device: Any = CpuDevice(captures=True)
        self._buffers = (np.random.default_rng(0).random(self.copied), np.empty(self.copied))

    def alive(self) -> bool:
        return not self.broken

    def flush(self) -> None:
        self.copy(1 << 10)

    def copy(self, nbytes: int) -> None:
        source, target = (buffer.view(np.uint8)[:nbytes] for buffer in self._buffers)
        target[...] = source

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def synchronize(self) -> None:
        pass

    def timed_torch(self, action: Callable[[], object], repeats: int) -> list[float]:
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def free(self) -> tuple[int, int]:
        return self.device.memory - self.device.used, self.device.memory

    def pool(self) -> int:
        return int(self.device.used)

    def release(self) -> None:
        self.device.release()

    def describe(self) -> dict[str, Any]:
        return {"architecture": self.device.architecture, "multiprocessors": self.device.multiprocessors}
