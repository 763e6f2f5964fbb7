"""Backends by name; each is imported when it is first asked for."""

from __future__ import annotations

import importlib.util

import numpy as np

from fgcam_onnx.backends.base import Backend
from fgcam_onnx.errors import BackendError, OptionError, nearest

__all__ = ["BACKENDS", "PRECISIONS", "make"]

BACKENDS = ("auto", "cupy", "ort", "numpy")
PRECISIONS = ("float32", "fast", "float64")


def make(name: str, precision: str = "float32", threads: int | None = None) -> Backend:
    """The backend of that name. "auto" is "cupy" where CuPy can run a kernel, else "ort".

    Raises:
        OptionError: no such backend or precision.
        BackendError: the backend cannot work here, or not in this precision.
    """
    if name not in BACKENDS:
        raise OptionError(
            f"there is no backend {name!r}", known=", ".join(BACKENDS), next=nearest(name, BACKENDS) or None
        )
    if precision not in PRECISIONS:
        raise OptionError(f"there is no precision {precision!r}", known=", ".join(PRECISIONS))
    if name == "numpy":
        from fgcam_onnx.backends.numpy import NumpyBackend

        if precision == "fast":
            raise BackendError("backend 'numpy' has nothing to round", next="precision='fast' is for backend='cupy'")
        return NumpyBackend(np.dtype(precision))
    notes: tuple[str, ...] = ()
    if name == "cupy" or (name == "auto" and importlib.util.find_spec("cupy") is not None):
        from fgcam_onnx.backends.cupy import CupyBackend, status

        usable, words = status()
        if name == "cupy" or usable:
            return CupyBackend(precision)
        notes = (f"the descent runs on the CPU: {words}",)
    if precision != "float32":
        raise BackendError(
            f"backend {name!r} {'is ort here and ' if name == 'auto' else ''}computes in float32 only",
            known=notes[0] if notes else None,
            next="backend='numpy' computes in float64, slowly"
            if precision == "float64"
            else "precision='fast' is for backend='cupy'",
        )
    from fgcam_onnx.backends.ort import OrtBackend

    backend = OrtBackend(threads)
    backend.notes = notes
    return backend
