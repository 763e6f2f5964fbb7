"""The forward pass: the deployed graph itself, with the tensors that the rules read as further outputs.

Nothing is rewritten. A session is made when first needed and made anew only when a rule asks for a tensor that the
present one does not give: every extra output can break a fusion, so none is added in advance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fgcam_onnx import runtime
from fgcam_onnx.errors import BackendError
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.load import LoadedModel

__all__ = ["Forward"]


class Forward:
    """One onnxruntime session over a loaded model."""

    def __init__(self, model: LoadedModel, graph: LayerGraph, providers: list[str], threads: int | None = None) -> None:
        self.model, self.graph = model, graph
        self.requested, self.threads = providers, threads
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
            proto.graph.output.append(self._typed(name))
        options = runtime.session_options(self.threads)
        self._fed = {name: self._values[name] for name in runtime.fed_weights(proto, self.model.weights)}
        held = {name: v for name, v in self._values.items() if name not in self._fed}
        if held:
            options.add_external_initializers(list(held), list(held.values()))
        if "CUDAExecutionProvider" in self.requested:
            chosen: list[Any] = [(p, {"use_tf32": "0"}) if p == "CUDAExecutionProvider" else p for p in self.requested]
        else:
            chosen = list(self.requested)
        self._session = None  # the old one gives its memory back before the new one is made
        self._session = runtime.session(proto.SerializeToString(), options, chosen)

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.dtype == "unknown":
            return onnx.ValueInfoProto(name=name)  # onnxruntime infers the type
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return helper.make_tensor_value_info(name, kind, None)

    def run(self, feeds: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, Any]:
        """OrtValues of the named tensors, no copy made.

        Raises:
            BackendError: onnxruntime failed on this input.
        """
        wanted = list(dict.fromkeys(names))
        self.require(name for name in wanted if name not in feeds)
        values = {name: runtime.value(array) for name, array in feeds.items()}
        computed = [name for name in wanted if name not in feeds]
        try:
            results = self._session.run_with_ort_values(computed, {**self._fed, **values})
        except Exception as error:  # onnxruntime's exception classes are not public
            reason = " ".join(str(error).split())
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise BackendError(
                "the forward pass failed",
                at=f"input {shapes}",
                known=reason[:400],
                next="does the model run in onnxruntime alone at this input size?",
            ) from error
        return {**{n: values[n] for n in wanted if n in feeds}, **dict(zip(computed, results, strict=True))}
