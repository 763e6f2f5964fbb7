"""A program for one device: traced, grouped, lowered, laid out, and then run as often as wanted."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Program
from fgcam_onnx.backends.cuda.device import Address, Device
from fgcam_onnx.backends.cuda.launch import Argument, Constant, Launch, Pointer, Scratch
from fgcam_onnx.backends.cuda.lower import Lowering, Target
from fgcam_onnx.backends.cuda.memory import Layout, lay_out, lifetimes
from fgcam_onnx.backends.cuda.operations import Buffer, Value
from fgcam_onnx.backends.cuda.schedule import schedule
from fgcam_onnx.backends.cuda.trace import CudaVerbs

__all__ = ["Compiled", "Constants", "lower"]

# A program with no more memory than this keeps it, and is captured as a graph: its launches would otherwise take longer
# to ask for than to do.
SMALL = 256 << 20
# Graphs that are captured for other addresses of the inputs before it is given up.
CAPTURES = 4


class Constants:
    """Weights and tables on the device, each once, whichever programs use them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()

    def place(self, array: np.ndarray) -> Any:
        """Memory that holds ``array``; the same for equal arrays while anyone holds it."""
        array = np.ascontiguousarray(array)
        key = hashlib.blake2b(array.tobytes() if array.ndim == 0 else array.data, digest_size=16).digest()
        memory = self._held.get(key)
        if memory is None:
            self._held[key] = memory = self._device.upload(array)
        return memory


def lower(
    program: Program, inputs: Mapping[str, Sequence[int]], target: Target
) -> tuple[list[Launch], dict[str, Buffer], dict[str, Value], Buffer | None]:
    """Launches of a program, its input buffers, its outputs, and the buffer of its books (None without any).

    ``inputs``: the shapes of what is fed.
    """
    verbs = CudaVerbs(target.dtype)
    fed = {name: verbs.input(name, shape) for name, shape in inputs.items()}
    outputs = verbs.outputs(program.run(verbs, fed))
    lowering = Lowering(target)
    for group in schedule(verbs.operations, outputs, lowering.is_split):
        lowering.group(group)
    tallies = list(dict.fromkeys(value.buffer for value in outputs.values() if value.buffer.kind == "tally"))
    books = None
    if tallies:
        starts = np.cumsum([0, *(tally.size for tally in tallies)])
        books = Buffer((int(starts[-1]),), "computed")
        lowering.books(tallies, books)
        for start, tally in zip(starts, tallies, strict=False):
            outputs |= {
                name: Value(books, value.shape, (1,), int(start))
                for name, value in outputs.items()
                if value.buffer is tally
            }
    return lowering.launches, {name: value.buffer for name, value in fed.items()}, outputs, books


class Compiled:
    """Launches with a place for every array.

    ``launches`` and ``layout`` can be read without a device; :meth:`run` needs one.
    """

    def __init__(
        self,
        device: Device,
        constants: Constants,
        program: Program,
        inputs: Mapping[str, Sequence[int]],
        target: Target,
    ) -> None:
        self.device, self.target = device, target
        self.launches, self.inputs, self.outputs, self.books = lower(program, inputs, target)
        self.layout = plan(self.launches, self.outputs, target.dtype)
        found = {a.buffer for launch in self.launches for a in launch.arguments if isinstance(a, Pointer)}
        self._constants: dict[Any, Any] = {}
        for buffer in found:
            array = _constant_array(buffer)
            if array is not None:
                dtype = target.dtype if isinstance(buffer, Buffer) else array.dtype
                self._constants[buffer] = constants.place(array.astype(dtype, copy=False))
        self._kernels = [device.kernel(launch.name, launch.source) for launch in self.launches]
        self._block: Any = None
        self._held: dict[str, Any] = {}
        self._graphs: dict[tuple[int, ...], Callable[[], None]] = {}
        self._last: tuple[int, ...] | None = None
        self._captures = 0

    @property
    def small(self) -> bool:
        return self.layout.nbytes <= SMALL

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs by name. ``inputs``: addresses on the device, or arrays to copy there, by name.

        Raises:
            DeviceMemoryError: the device has not enough memory.
        """
        block = self._block if self._block is not None else self.device.allocate(self.layout.nbytes)
        fed = {name: self._place(name, value) for name, value in inputs.items()}
        if self.small:
            self._block = block
        self._launch(block, fed)
        found = self._fetch(block)
        if not self.small:
            self._held.clear()
        return found

    def _place(self, name: str, value: int | np.ndarray) -> int:
        """The address of an input; an array goes to the same place in every call."""
        if not isinstance(value, np.ndarray):
            return value
        if name not in self._held:
            self._held[name] = self.device.allocate(value.nbytes)
        pointer: int = self._held[name].pointer
        self.device.write(pointer, value)
        return pointer

    def _launch(self, block: Any, inputs: Mapping[str, int]) -> None:
        key = (block.pointer, *(inputs[name] for name in self.inputs))
        # Captured when the same addresses come a second time: by then every kernel is loaded, and it will pay.
        if key == self._last and key not in self._graphs and self.small and self._captures < CAPTURES:
            graph = self.device.capture(lambda: self._ask(block, inputs))
            self._captures = self._captures + 1 if graph is not None else CAPTURES
            if graph is not None:
                self._graphs[key] = graph
        self._last = key
        if key in self._graphs:
            self._graphs[key]()
        else:
            self._ask(block, inputs)

    def bound(self, block: Any, inputs: Mapping[str, int]) -> list[tuple[Any, Launch, list[Any]]]:
        """Each kernel with its launch and its arguments, addresses filled in."""
        places: dict[Any, int] = {buffer: inputs[name] for name, buffer in self.inputs.items()}
        places |= {buffer: memory.pointer for buffer, memory in self._constants.items()}
        places |= {buffer: block.pointer + offset for buffer, offset in self.layout.offsets.items()}

        def filled(argument: Argument) -> Any:
            if not isinstance(argument, Pointer):
                return argument
            buffer = argument.buffer
            if isinstance(buffer, (Buffer, Scratch)) and buffer.size == 0:
                return Address(block.pointer)  # no launch wrote it, and none reads a cell of it
            return Address(0 if buffer is None else places[buffer] + argument.offset)

        return [
            (kernel, launch, [filled(argument) for argument in launch.arguments])
            for kernel, launch in zip(self._kernels, self.launches, strict=True)
        ]

    def _ask(self, block: Any, inputs: Mapping[str, int]) -> None:
        for kernel, launch, arguments in self.bound(block, inputs):
            kernel(launch.grid, (launch.threads, 1, 1), arguments)

    def _fetch(self, block: Any) -> dict[str, np.ndarray]:
        dtype = self.target.dtype
        books = None
        if self.books is not None and self.books.size:
            books = self.device.read(block.pointer + self.layout.offsets[self.books], self.books.shape, dtype)
        found = {}
        for name, value in self.outputs.items():
            if value.size == 0:
                found[name] = np.zeros(value.shape, dtype)
            elif value.buffer is self.books and books is not None:
                found[name] = books[value.offset : value.offset + value.size].reshape(value.shape)
            else:
                found[name] = self.device.read(block.pointer + self.layout.offsets[value.buffer], value.shape, dtype)
        return found


def plan(launches: Sequence[Launch], outputs: Mapping[str, Value], dtype: np.dtype[Any]) -> Layout:
    """The memory of a program: a place for everything that its launches write."""
    kept = {value.buffer for value in outputs.values()}
    lives = lifetimes(launches, kept)
    sizes = {b: b.nbytes if isinstance(b, Scratch) else b.size * dtype.itemsize for b in lives}
    return lay_out(sizes, lives)


def _constant_array(buffer: Any) -> np.ndarray | None:
    return buffer.array if isinstance(buffer, (Buffer, Constant)) else None
