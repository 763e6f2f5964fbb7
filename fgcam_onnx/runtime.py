"""onnxruntime, imported when first used: sessions, options and zero-copy values."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fgcam_onnx import memory
from fgcam_onnx.errors import BackendError, MissingRuntimeError

__all__ = ["fed_weights", "onnxruntime", "run_options", "session", "session_options", "value"]

# A fully connected weight of at least this many bytes is fed to sessions instead of being copied into them.
FED = 1 << 23
# onnxruntime's share of a memory limit; the rest is for Python, the file and its weights.
ARENA = 0.5
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
    module.set_default_logger_severity(4)
    return module


def session_options(threads: int | None = None) -> Any:
    """Options of every session here: all optimisations, warnings off, ``threads`` or FGCAM_THREADS or all cores."""
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 4  # its errors reach the user as ours, once
    # A planned block for all activations of one shape would stand beside the arena that already holds them.
    options.enable_mem_pattern = False
    # Several sessions take turns on the same cores: threads that spin after one has run would slow the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = threads or int(os.environ.get("FGCAM_THREADS", "0") or 0)
    if wanted:
        options.intra_op_num_threads = wanted
    stated = memory.limit()
    if stated is not None:
        _bounded_arena(stated)
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@functools.cache
def _bounded_arena(stated: int) -> None:
    """One arena for all sessions of this process, which refuses to grow beyond its share of the memory limit.

    No look at a graph foresees all that its operators will allocate. onnxruntime keeps the first arena of a process:
    a limit that is changed later has no effect.
    """
    ort = onnxruntime()
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grows_as_asked = 1
    settings = ort.OrtArenaCfg({"max_mem": int(stated * ARENA), "arena_extend_strategy": grows_as_asked})
    ort.create_and_register_allocator(place, settings)


def run_options() -> Any:
    """Options of a run: under a memory limit the arena gives back what it does not need any more."""
    options = onnxruntime().RunOptions()
    if memory.limit() is not None:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def session(model: bytes, options: Any, providers: Sequence[Any]) -> Any:
    """A session that runs on the given providers and on no other.

    Raises:
        BackendError: onnxruntime refuses the model, or would silently fall back to another provider.
    """
    ort = onnxruntime()
    names = [p if isinstance(p, str) else p[0] for p in providers]  # a provider may come with its options
    missing = [name for name in names if name not in ort.get_available_providers()]
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
    if names and names[0] not in made.get_providers():
        raise BackendError(
            f"execution provider {names[0]} does not work here: onnxruntime fell back to {made.get_providers()[0]}",
            known="its libraries or its device are missing",
            next="check the driver and CUDA libraries, or choose providers=['CPUExecutionProvider']",
        )
    return made


def fed_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn the largest weights of fully connected layers from initializers into inputs of ``model``; their arrays.

    onnxruntime copies every initializer into each session. The fully connected layers of a VGG are 494 MB, and the
    forward pass and the head's gradient both read them: fed as inputs, they stay one array. Nothing is lost, since no
    graph optimisation reshapes these weights and a batch of a few images reads each of them once.
    """
    positions: dict[str, set[tuple[str, int]]] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            positions.setdefault(name, set()).add((node.op_type, position))
    large = {name: array for name, array in weights.items() if array.nbytes >= FED and array.ndim == 2}
    fed = {name: array for name, array in large.items() if positions.get(name, set()) <= {("Gemm", 1), ("MatMul", 1)}}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in fed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    known = {entry.name for entry in model.graph.input}
    for name, array in fed.items():
        if name not in known:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    return fed


def value(array: Any) -> Any:
    """An OrtValue over a NumPy array's own memory; an OrtValue as it is."""
    if not isinstance(array, np.ndarray):
        return array
    return onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
