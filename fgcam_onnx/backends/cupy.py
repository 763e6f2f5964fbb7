"""The descent as CUDA kernels, launched through CuPy on the activations where they lie."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Backend, Program
from fgcam_onnx.backends.cuda.device import Device
from fgcam_onnx.backends.cuda.lower import Target
from fgcam_onnx.backends.cuda.program import Compiled, Constants

__all__ = ["CupyBackend"]

KEPT = 8


class CupyBackend(Backend):
    name = "cupy"

    def __init__(self, precision: str = "float32", device: Device | None = None) -> None:
        self.device = device
        self.precision = precision
        self.providers = (device.name,)
        self.target = Target(np.dtype("float64" if precision == "float64" else "float32"), device.multiprocessors, precision == "fast")
        self._constants = Constants(device)
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = {n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in inputs.items()}
        compiled = self._compiled.get(program.key)
        if compiled is None:
            compiled = Compiled(self.device, self._constants, program, {n: a.shape for n, a in arrays.items()}, self.target)
            self._compiled[program.key] = compiled
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        held = {n: self.device.upload(a.astype(self.target.dtype)) for n, a in arrays.items()}
        return compiled.run({n: m.pointer for n, m in held.items()})
