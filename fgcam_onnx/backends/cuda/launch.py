"""A kernel launch before addresses are known."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgcam_onnx.backends.cuda.operations import Buffer

__all__ = ["Argument", "Constant", "Launch", "Pointer", "Scratch", "kernel_file", "kernel_source"]

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
THREADS = 256


@dataclass(eq=False)
class Scratch:
    """Memory between two launches."""

    nbytes: int

    @property
    def size(self) -> int:
        return self.nbytes


@dataclass(eq=False)
class Constant:
    """A weight, a table or a struct, as the kernel reads it."""

    array: np.ndarray


@dataclass(frozen=True)
class Pointer:
    """An argument that is an address, ``offset`` bytes in; None is the null pointer."""

    buffer: Buffer | Scratch | Constant | None
    offset: int = 0


Argument = Pointer | np.generic


@dataclass(frozen=True, eq=False)
class Launch:
    """``source``: all of the CUDA C, with ``name`` in it. ``writes``: which of the pointed-to buffers it writes.

    ``flops`` and ``nbytes``: the arithmetic and the memory traffic that cannot be avoided, for benchmarks.
    """

    name: str
    source: str
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    writes: tuple[Any, ...]
    label: str = ""
    flops: int = 0
    nbytes: int = 0
    threads: int = THREADS

    @property
    def buffers(self) -> list[Any]:
        """Everything it points to."""
        found = [a.buffer for a in self.arguments if isinstance(a, Pointer) and a.buffer is not None]
        return list(dict.fromkeys(found))


@functools.cache
def kernel_file(name: str) -> str:
    """The text of a file of kernels/."""
    return (KERNELS / name).read_text(encoding="utf-8")


def kernel_source(dtype: np.dtype[Any], *, wide: bool, defines: Sequence[tuple[str, int]] = (), text: str = "",
                  file: str | None = None) -> str:  # fmt: skip
    """The source of one kernel: #defines, the prelude, generated ``text``, and a file of kernels/."""
    lines = [
        f"#define REAL {'double' if dtype == np.float64 else 'float'}",
        f"#define WIDE {int(wide)}",
        *(f"#define {name} {value}" for name, value in defines),
    ]
    return "\n".join([*lines, kernel_file("prelude.cu"), text, kernel_file(file) if file else ""])
