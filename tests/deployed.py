"""One network in the forms in which it is deployed, and how far its maps and activations move from one to another."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from fgcam_onnx import Explainer

STATIC: dict[str, dict[str, Any]] = {
    "QDQ": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8},
    "QDQ, per channel": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8, "per_channel": True},
    "QOperator": {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8},
    "QOperator, per channel": {
        "quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8, "per_channel": True,
    },
}  # fmt: skip
FORMS = ("float16", *STATIC, "dynamic")
TOP = 0.05
# Behind the names of the tensors that onnxruntime's quantiser adds.
SUFFIXES = ("_QuantizeLinear_Output", "_DequantizeLinear_Output", "_quantized")


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, x: np.ndarray) -> None:
        self.left = iter([{name: x[i : i + 1]} for i in range(len(x))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def made(form: str, model: onnx.ModelProto, pictures: np.ndarray) -> bytes:
    """``model`` in this form. ``pictures`` [n, ...], as the model takes them: what a static quantiser calibrates on."""
    logging.disable(logging.WARNING)
    try:
        if form == "float16":
            half: bytes = convert_float_to_float16(model, keep_io_types=True).SerializeToString()
            return half
        with tempfile.TemporaryDirectory() as folder:
            source, ready, target = (str(Path(folder) / f"{name}.onnx") for name in ("float", "ready", "int8"))
            onnx.save(model, source)
            quant_pre_process(source, ready, skip_symbolic_shape=True)
            if form == "dynamic":
                quantize_dynamic(ready, target, weight_type=QuantType.QUInt8)
            else:
                reader = _Pictures(model.graph.input[0].name, pictures)
                quantize_static(ready, target, reader, weight_type=QuantType.QInt8, **STATIC[form])
            return Path(target).read_bytes()
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Distance:
    """Between two maps of each picture, [n]."""

    pearson: np.ndarray
    spearman: np.ndarray
    overlap: np.ndarray  # of the 5 % of cells with the most relevance, the share that is in both

    @classmethod
    def between(cls, a: np.ndarray, b: np.ndarray) -> Distance:
        """Of maps [n, h, w]."""
        pairs = [(u.ravel(), v.ravel()) for u, v in zip(a, b, strict=True)]
        pearson = [np.corrcoef(u, v)[0, 1] for u, v in pairs]
        spearman = [np.corrcoef(_ranks(u), _ranks(v))[0, 1] for u, v in pairs]
        return cls(np.array(pearson), np.array(spearman), np.array([_shared(u, v) for u, v in pairs]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, back, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts + 1) / 2)[back]
    return ranks


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    count = max(1, int(TOP * a.size))
    first, second = (set(np.argpartition(each, -count)[-count:]) for each in (a, b))
    return len(first & second) / count


def drift(plain: Explainer, integer: Explainer, x: np.ndarray) -> dict[str, float]:
    """Relative error of the decoded activations, by the float model's tensor, in the order of the graph.

    Of every tensor that both graphs have, as ``|decoded - float| / |float|`` over the batch. A ReLU that the quantiser
    absorbed into the range of a tensor is applied to the float one.
    """
    twins = dict(_twins(plain, integer))
    found: dict[str, float] = {}
    engine = integer._engine
    names = sorted(twins.values())
    feed = x.astype(integer.input_dtype)
    pieces = [engine.tape(integer.graph, feed[i : i + 1], {}, [], names) for i in range(len(feed))]
    floats = plain.activations(x, list(twins))
    for name, twin in twins.items():
        a = floats[name].astype(np.float64)
        a = np.maximum(a, 0) if integer.graph.tensor(twin).nonnegative else a
        b = np.concatenate([piece.array(twin) for piece in pieces]).astype(np.float64)
        if a.shape == b.shape and np.linalg.norm(a) > 0:
            found[name] = float(np.linalg.norm(a - b) / np.linalg.norm(a))
    return found


def _twins(plain: Explainer, integer: Explainer) -> Iterable[tuple[str, str]]:
    graph = integer.graph
    # A tensor, its integers and those decoded: the last of them is what the network goes on with.
    have = [name for layer in graph.layers for name in layer.outputs if graph.in_model(name) == name]
    by_origin: Mapping[str, str] = {_origin(name): name for name in have}
    for layer in plain.graph.layers:
        if layer.output in by_origin:
            yield layer.output, by_origin[layer.output]


def _origin(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
