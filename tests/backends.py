"""The backends that one test body runs on: the definition, the compiled graph, the CUDA kernels on this processor."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from cuda_on_cpu.device import CpuDevice

from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.cupy import CupyBackend
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import OrtBackend

__all__ = [
    "COMPILED",
    "EVERY",
    "Named",
    "available",
    "chosen",
    "compiled",
    "cuda_on_cpu",
    "named",
    "needs_gxx",
    "words",
]

needs_gxx = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: the CUDA kernels run on the CPU through it"
)


@functools.cache
def cuda_on_cpu(precision: str = "float32") -> CupyBackend:
    """The cupy backend, its kernels compiled by g++ and run through cuda_on_cpu.h."""
    return CupyBackend(precision, CpuDevice())


@dataclass(frozen=True)
class Named:
    """A backend that is made when a test asks for it. ``tolerance``: of a rule or two, relative."""

    id: str
    tolerance: float

    @functools.cached_property
    def backend(self) -> Backend:
        match self.id:
            case "cupy":
                return cuda_on_cpu()
            case "cupy64":
                return cuda_on_cpu("float64")
            case "ort":
                return OrtBackend(threads=1)
        return NumpyBackend(np.dtype(self.id))

    def __str__(self) -> str:
        return self.id


EVERY = (
    Named("float64", 1e-9),
    Named("float32", 1e-6),
    Named("ort", 1e-6),
    Named("cupy", 1e-6),
    Named("cupy64", 1e-9),
)

COMPILED = EVERY[2:]


def named(entries: tuple[Named, ...] = EVERY) -> list[object]:
    """For pytest.mark.parametrize: those on CUDA are skipped, with the reason, where they cannot be compiled."""
    return [pytest.param(e, id=e.id, marks=[needs_gxx] if e.id.startswith("cupy") else []) for e in entries]


def available(entries: tuple[Named, ...] = EVERY) -> Iterator[Named]:
    """Those that work here: without g++ none on CUDA."""
    return (e for e in entries if not e.id.startswith("cupy") or shutil.which("g++") is not None)


def compiled() -> Iterator[Backend]:
    """The backends that are compared with NumPy in float32."""
    return (e.backend for e in available((Named("ort", 1e-6), Named("cupy", 1e-6))))


def words(*names: str) -> list[object]:
    """Names of backends for pytest.mark.parametrize, "cupy" among them only where its kernels can be run on the CPU."""
    return [pytest.param(name, id=name, marks=[needs_gxx] if name == "cupy" else []) for name in names]


def chosen(name: str) -> str | Backend:
    """What Explainer takes for that name: "cupy" is its kernels on this processor."""
    return cuda_on_cpu() if name == "cupy" else name
