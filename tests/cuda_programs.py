"""Small programs lowered for the CUDA backend, tiles and widths of offsets forced: for the tests of its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from cuda_on_cpu.device import CpuDevice

import fgcam_onnx.backends.cuda.lower as lowering
from fgcam_onnx.backends.base import Array, Program, Verbs
from fgcam_onnx.backends.cuda import contraction
from fgcam_onnx.backends.cuda.contraction import Tile
from fgcam_onnx.backends.cuda.launch import Launch, Scratch
from fgcam_onnx.backends.cuda.program import Compiled, Constants, lower

__all__ = ["DEVICE", "FEW", "forced", "launches", "run", "target"]

DEVICE = CpuDevice()
# Multiprocessors of a device that is always busy: nothing is split for its sake.
FEW = 4
_KEYS = itertools.count()

Body = Callable[..., Any]


def target(dtype: Any, *, tf32: bool = False, multiprocessors: int = FEW) -> lowering.Target:
    return lowering.Target(np.dtype(dtype), multiprocessors, tf32)


@contextmanager
def forced(tile: Tile | None = None, wide: bool | None = None) -> Iterator[None]:
    """Every contraction with this tile, every kernel with offsets of this width; None leaves the choice."""
    with ExitStack() as stack:
        if tile is not None:
            stack.enter_context(mock.patch.object(contraction, "choose_tile", return_value=tile))
        if wide is not None:
            stack.enter_context(mock.patch.object(lowering, "NARROW", 0 if wide else 1 << 62))
        yield


def program(body: Body) -> Program:
    """``body(verbs, *inputs)`` returns an array or several; they are named "0", "1", ..."""

    def named(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = body(xp, *inputs.values())
        return {f"{k}": array for k, array in enumerate(found if isinstance(found, tuple) else (found,))}

    return Program(f"kernel test {next(_KEYS)}", named)


def launches(
    body: Body, *shapes: Sequence[int], dtype: Any = np.float32, tile: Tile | None = None, wide: bool | None = None,
    multiprocessors: int = FEW,
) -> list[Launch]:  # fmt: skip
    """What ``body`` is lowered to, for inputs of these shapes."""
    named = {f"i{k}": tuple(shape) for k, shape in enumerate(shapes)}
    with forced(tile, wide):
        return lower(program(body), named, target(dtype, multiprocessors=multiprocessors))[0]


def run(
    body: Body, *inputs: np.ndarray, dtype: Any = np.float32, tile: Tile | None = None, wide: bool | None = None,
    multiprocessors: int = FEW, names: list[str] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """What ``body`` returns, computed by its kernels on the CPU, each of which may write to its results alone.

    The memory of the program is NaN before; inputs have no padding behind them that a kernel could mistake for data.
    ``names``: filled with the names of the kernels.
    """
    arrays = {f"i{k}": np.ascontiguousarray(array, dtype) for k, array in enumerate(inputs)}
    shapes = {name: array.shape for name, array in arrays.items()}
    with forced(tile, wide):
        compiled = Compiled(
            DEVICE, Constants(DEVICE), program(body), shapes, target(dtype, multiprocessors=multiprocessors)
        )
    held = {name: DEVICE.upload(array) for name, array in arrays.items()}
    block = DEVICE.allocate(compiled.layout.nbytes)
    block.array.view(np.uint16)[:] = 0xFFFE  # another NaN than the one that lies behind the inputs
    start = block.pointer - block.array.ctypes.data
    for kernel, launch, arguments in compiled.bound(block, {name: memory.pointer for name, memory in held.items()}):
        before = block.array.copy()
        kernel(launch.grid, (launch.threads, 1, 1), arguments)
        for written in launch.writes:
            offset = start + compiled.layout.offsets[written]
            size = written.nbytes if isinstance(written, Scratch) else written.size * np.dtype(dtype).itemsize
            before[offset : offset + size] = block.array[offset : offset + size]
        assert np.array_equal(before, block.array), f"{launch.name} writes outside of its results"
        if names is not None:
            names.append(launch.name)
    for name, memory in held.items():
        assert DEVICE.read(memory.pointer, shapes[name], arrays[name].dtype).tobytes() == arrays[name].tobytes()
    return list(compiled._fetch(block).values())
