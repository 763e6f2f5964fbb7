"""onnxruntime with a CUDA provider on a machine without: its CPU session computes, in the memory of a FakeGpu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cupy import FakeGpu, Misuse, registered

__all__ = ["CPU", "CUDA", "FakeCuda"]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SIZES = {"tensor(float)": 4, "tensor(int64)": 8, "tensor(uint8)": 1, "tensor(int8)": 1}


class _Value:
    """An OrtValue on the device."""

    def __init__(self, owner: FakeCuda, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        nbytes = math.prod(value.shape()) * SIZES[value.data_type()]
        registered(owner.gpu, value.data_ptr(), nbytes, self)

    def device_name(self) -> str:
        return "cuda"

    def data_ptr(self) -> int:
        return int(self._value.data_ptr())

    def data_type(self) -> str:
        return str(self._value.data_type())

    def shape(self) -> list[int]:
        return list(self._value.shape())

    def numpy(self) -> np.ndarray:
        self._owner.read.append(self._name)
        found: np.ndarray = self._value.numpy()
        return found


class _Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: list[str] = []
        self.results: list[_Value] | None = None

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str, number: int) -> None:
        if (device, number) != ("cuda", 0):
            raise Misuse(f"output {name} is asked for on {device}:{number}")
        self.outputs.append(name)

    def get_outputs(self) -> list[_Value]:
        if self.results is None:
            raise Misuse("outputs are asked for before the run")
        return self.results


class _Session:
    """What fgcam_onnx uses of a session that has a CUDA provider."""

    def __init__(self, owner: FakeCuda, model: bytes, options: Any) -> None:
        self._owner = owner
        self._real = owner.real(model, options, providers=[CPU])

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def io_binding(self) -> _Binding:
        binding = _Binding()
        self._owner.bindings.append(binding)
        return binding

    def run_with_iobinding(self, binding: _Binding) -> None:
        if binding.results is not None:
            raise Misuse("a second run of one binding writes over the outputs of the first")
        images = max(value.shape()[0] for value in binding.inputs.values())
        self._owner.batches.append(images)
        if self._owner.trouble is not None and images > self._owner.images:
            raise self._owner.trouble
        found = self._real.run_with_ort_values(binding.outputs, binding.inputs)
        binding.results = [_Value(self._owner, name, v) for name, v in zip(binding.outputs, found, strict=True)]


class FakeCuda:
    """The patched onnxruntime. ``trouble``: raised by a run of more than ``images`` images; ``works``: can a session
    be made? False: it falls back to the CPU without a word, as the real one. ``refuses``: raised by making one.
    """

    def __init__(self, gpu: FakeGpu, patch: pytest.MonkeyPatch) -> None:
        self.gpu = gpu
        self.real = onnxruntime.InferenceSession
        self.works = True
        self.refuses: Exception | None = None
        self.trouble: Exception | None = None
        self.images = 0
        self.options: list[dict[str, str]] = []
        self.bindings: list[_Binding] = []
        self.batches: list[int] = []
        self.read: list[str] = []
        patch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        patch.setattr(onnxruntime, "InferenceSession", self.session)

    def session(self, model: bytes, options: Any, providers: Sequence[Any]) -> Any:
        chosen = dict(p if isinstance(p, tuple) else (p, {}) for p in providers)
        if CUDA not in chosen:
            return self.real(model, options, providers=list(providers))
        if self.refuses is not None:
            raise self.refuses
        if not self.works:
            return self.real(model, options, providers=[CPU])
        self.options.append(chosen[CUDA])
        return _Session(self, model, options)
