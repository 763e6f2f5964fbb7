"""onnxruntime, imported when first used: sessions, options and zero-copy values."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from fgcam_onnx.errors import BackendError, MissingRuntimeError

__all__ = ["onnxruntime", "session", "session_options", "value"]

EXTRAS = 'pip install "fgcam_onnx[cpu]" without a GPU, "fgcam_onnx[gpu]" (CUDA 13) or "fgcam_onnx[gpu-cuda12]" with one'


@functools.cache
def onnxruntime() -> Any:
    """The module.

    Raises:
        MissingRuntimeError: it is not installed, or broken.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise MissingRuntimeError(
            "onnxruntime is not installed: nothing can run the model", known=str(error), next=EXTRAS
        ) from error
    if not hasattr(module, "InferenceSession"):
        raise MissingRuntimeError(
            "onnxruntime is installed but broken: it has no InferenceSession",
            known="onnxruntime and onnxruntime-gpu share one folder and break each other when both are installed",
            next="uninstall both, then " + EXTRAS,
        )
    module.set_default_logger_severity(3)
    return module


def session_options(threads: int | None = None) -> Any:
    """Options of every session here: all optimisations, warnings off, ``threads`` or FGCAM_THREADS or all cores."""
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 3
    wanted = threads or int(os.environ.get("FGCAM_THREADS", "0") or 0)
    if wanted:
        options.intra_op_num_threads = wanted
    return options


def session(model: bytes, options: Any, providers: list[str]) -> Any:
    """A session that runs on the given providers and on no other.

    Raises:
        BackendError: onnxruntime refuses the model, or would silently fall back to another provider.
    """
    ort = onnxruntime()
    missing = [p for p in providers if p not in ort.get_available_providers()]
    if missing:
        raise BackendError(
            f"execution provider {missing[0]} is not in this onnxruntime",
            known=f"it has {', '.join(ort.get_available_providers())}",
            next="choose one of these, or install the build that has it: " + EXTRAS,
        )
    try:
        made = ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exception classes are not public
        reason = " ".join(str(error).split())
        raise BackendError("onnxruntime cannot load the model", known=reason[:400]) from error
    if providers and providers[0] not in made.get_providers():
        raise BackendError(
            f"execution provider {providers[0]} does not work here: onnxruntime fell back to {made.get_providers()[0]}",
            known="its libraries or its device are missing",
            next="check the driver and CUDA libraries, or choose providers=['CPUExecutionProvider']",
        )
    return made


def value(array: Any) -> Any:
    """An OrtValue over a NumPy array's own memory; an OrtValue as it is."""
    if not isinstance(array, np.ndarray):
        return array
    return onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
