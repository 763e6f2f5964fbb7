"""Backends by name; each is imported when it is first asked for."""

from __future__ import annotations

import numpy as np

from fgcam_onnx.backends.base import Backend
from fgcam_onnx.errors import BackendError, OptionError, nearest

__all__ = ["BACKENDS", "make"]

BACKENDS = ("auto", "ort", "numpy")
PRECISIONS = ("float32", "float64")


def make(name: str, precision: str = "float32", threads: int | None = None) -> Backend:
    """The backend of that name. "auto" is "ort", the compiled graph on the CPU.

    Raises:
        OptionError: no such backend or precision.
        BackendError: the backend cannot work in this precision.
    """
    if name not in BACKENDS:
        raise OptionError(
            f"there is no backend {name!r}", known=", ".join(BACKENDS), next=nearest(name, BACKENDS) or None
        )
    if precision not in PRECISIONS:
        raise OptionError(f"there is no precision {precision!r}", known=", ".join(PRECISIONS))
    if name == "numpy":
        from fgcam_onnx.backends.numpy import NumpyBackend

        return NumpyBackend(np.dtype(precision))
    if precision != "float32":
        raise BackendError(
            f"backend {name!r} computes in float32 only", next="backend='numpy' computes in float64, slowly"
        )
    from fgcam_onnx.backends.ort import OrtBackend

    return OrtBackend(threads)
