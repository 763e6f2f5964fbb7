"""The forward pass: the deployed graph itself, with the tensors that the rules read as further outputs.

Nothing is rewritten. A session is made when first needed and made anew only when a rule asks for a tensor that the
present one does not give: every extra output can break a fusion, so none is added in advance.

Beside a backend that works on a GPU the pass runs there too, on the same stream, and leaves its outputs where they are.
It never rounds to TF32: that would flip winners of ReLU and max-pooling.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fgcam_onnx import runtime
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.errors import BackendError, DeviceMemoryError
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.load import LoadedModel

__all__ = ["Forward"]

LOG = logging.getLogger("fgcam_onnx")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# How onnxruntime says that the GPU's memory is full.
FULL = re.compile(r"out of memory|failed to allocate memory|_ALLOC_FAILED", re.IGNORECASE)


class Forward:
    """One onnxruntime session over a loaded model.

    ``providers``: the user's choice; None for CUDA's beside a ``backend`` on a GPU and the CPU's elsewhere. If CUDA's
    does not work here the pass runs on the CPU: ``notes`` gets a line about it, and the log.
    """

    def __init__(
        self,
        model: LoadedModel,
        graph: LayerGraph,
        providers: list[str] | None,
        threads: int | None,
        backend: Backend,
        notes: list[str],
    ) -> None:
        self.model, self.graph = model, graph
        self.stream, self.notes, self.threads = backend.stream, notes, threads
        self._tries_cuda = providers is None and self.stream is not None
        self.requested = [CUDA, CPU] if self._tries_cuda else providers or [CPU]
        self._session: Any = None
        self._given: set[str] = set()
        self._fed: dict[str, Any] = {}
        self._values = {name: runtime.value(array) for name, array in model.weights.items()}

    @property
    def providers(self) -> list[str]:
        """What really runs, asked of the session."""
        self.require(())
        return list(self._session.get_providers())

    def require(self, names: Iterable[str]) -> None:
        """Make sure the session gives these tensors."""
        wanted = set(names) | {self.graph.logits}
        if self._session is not None and wanted <= self._given:
            return
        self._given |= wanted
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        present = {value.name for value in proto.graph.output}
        inputs = {value.name for value in proto.graph.input}
        for name in sorted(self._given - present - inputs):
            proto.graph.output.append(self.typed(name))
        self._session = None  # the old one gives its memory back before the new one is made
        try:
            self._session = self._made(proto)
        except BackendError as error:
            if not self._tries_cuda:
                raise
            self._tries_cuda, self.requested = False, [CPU]
            reason = error.what + (f" ({error.known})" if error.known else "")
            self.notes.append(f"the forward pass runs on the CPU and only the descent on the GPU: {reason}")
            LOG.warning(self.notes[-1])
            self._session = self._made(proto)

    def _made(self, proto: onnx.ModelProto) -> Any:
        """A session on the requested providers."""
        options = runtime.session_options(self.threads)
        # Weights that are fed would be copied to a GPU in every call.
        fed = {} if CUDA in self.requested else runtime.fed_weights(proto, self.model.weights)
        self._fed = {name: self._values[name] for name in fed}
        held = {name: v for name, v in self._values.items() if name not in self._fed}
        if held:
            options.add_external_initializers(list(held), list(held.values()))
        chosen: list[Any] = [(p, self._cuda_options()) if p == CUDA else p for p in self.requested]
        return runtime.session(proto.SerializeToString(), options, chosen)

    def _cuda_options(self) -> dict[str, str]:
        # The arena grows by what is asked for, not by powers of two: the descent needs memory as well. An exhaustive
        # search for convolution algorithms would choose by the clock, and two processes might differ in bits.
        options = {
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        if self.stream is not None:
            options |= {"device_id": str(self.stream.device_id), "user_compute_stream": str(self.stream.handle)}
        return options

    def typed(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.dtype == "unknown":
            return onnx.ValueInfoProto(name=name)  # onnxruntime infers the type
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return helper.make_tensor_value_info(name, kind, None)

    def run(self, feeds: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, Any]:
        """OrtValues of the named tensors, no copy made: beside a GPU backend they lie on the GPU.

        Raises:
            DeviceMemoryError: the GPU's memory is full.
            BackendError: onnxruntime failed on this input.
        """
        wanted = list(dict.fromkeys(names))
        self.require(name for name in wanted if name not in feeds)
        values = {name: runtime.value(array) for name, array in feeds.items()}
        computed = [name for name in wanted if name not in feeds]
        try:
            results = self._results(computed, {**self._fed, **values})
        except Exception as error:  # onnxruntime's exception classes are not public
            reason = " ".join(str(error).split())
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            if CUDA in self.requested and FULL.search(reason):
                raise DeviceMemoryError(
                    "the forward pass does not fit the GPU's memory", at=f"input {shapes}", known=reason[:400],
                    next="fewer images at a time (batch_size=), or providers=['CPUExecutionProvider']",
                ) from error  # fmt: skip
            raise BackendError(
                "the forward pass failed",
                at=f"input {shapes}",
                known=reason[:400],
                next="does the model run in onnxruntime alone at this input size?",
            ) from error
        return {**{n: values[n] for n in wanted if n in feeds}, **dict(zip(computed, results, strict=True))}

    def _results(self, names: list[str], values: Mapping[str, Any]) -> list[Any]:
        if self.stream is None or CUDA not in self.requested:
            found: list[Any] = self._session.run_with_ort_values(names, dict(values), runtime.run_options())
            return found
        # A new binding each time: a second run of one would write over the outputs of the first.
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cuda", self.stream.device_id)
        self._session.run_with_iobinding(binding)
        outputs: list[Any] = binding.get_outputs()
        return outputs
