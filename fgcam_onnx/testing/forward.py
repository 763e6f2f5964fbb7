"""The operator itself: what every expected value comes from. Nothing of the rules is used here.

In this order: a NumPy function that the case brings; a few operators as their specification reads, where no runtime has
them right in float64; onnx's reference evaluator in float64; onnxruntime in float64, and in float32 where it knows the
operator in nothing else. For operators of other domains, and a few of ONNX's, onnxruntime comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fgcam_onnx.errors import FgcamError, UnsupportedOpError
from fgcam_onnx.graph.layer import SATURATE, STANDARDISE, STRIDED
from fgcam_onnx.runtime import onnxruntime
from fgcam_onnx.testing.compare import Floats

if TYPE_CHECKING:
    from fgcam_onnx.testing.case import Case

__all__ = ["Operator", "OrtOperator", "operator_of"]

# Operators that onnx's reference evaluator gets wrong: negative pads, the statistics of an old BatchNormalization,
# groups and a given output shape of ConvTranspose, corners and old versions of Resize (which onnxruntime has in float32
# only). Those in PLAIN it gets wrong too, or rounds to float32.
ONNXRUNTIME_DECIDES = ("BatchNormalization", "Pad", "ConvTranspose", "Resize", "Upsample")


class Operator:
    """Runs one node. ``exact``: in float64, else its values are rounded to float32. ``name``: for messages."""

    exact = True
    name = "forward="

    def run(self, x: Mapping[str, Floats]) -> list[Any]:
        raise TypeError("an operator defines run")


class FunctionOperator(Operator):
    """A function of the operands by position, None for an omitted one, and of the attributes by name."""

    def __init__(self, case: Case, function: Callable[..., Any], attributes: Mapping[str, Any]) -> None:
        self.case, self.function, self.attributes = case, function, attributes

    def run(self, x: Mapping[str, Floats]) -> list[Any]:
        pairs = zip(self.case.names, self.case.operands, strict=True)
        found = self.function(*[x.get(name, value) for name, value in pairs], **self.attributes)
        return list(found) if isinstance(found, (list, tuple)) else [found]


class ReferenceOperator(Operator):
    """onnx's reference evaluator."""

    name = "onnx.reference"

    def __init__(self, model: onnx.ModelProto) -> None:
        self.evaluator: Any = ReferenceEvaluator(model)

    def run(self, x: Mapping[str, Floats]) -> list[Any]:
        return list(self.evaluator.run(None, dict(x)))


class OrtOperator(Operator):
    """onnxruntime without optimisations, in the precision of the model."""

    name = "onnxruntime"

    def __init__(self, model: onnx.ModelProto) -> None:
        module = onnxruntime()
        options = module.SessionOptions()
        options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        self.exact = self.dtype == np.float64
        self.session = module.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, x: Mapping[str, Floats]) -> list[Any]:
        return list(self.session.run(None, {name: array.astype(self.dtype) for name, array in x.items()}))


def operator_of(case: Case) -> Operator:
    """Who computes the case's operator.

    Raises:
        UnsupportedOpError: nobody here knows it, and the case brings no function.
    """
    if case.function is not None:
        return FunctionOperator(case, case.function, case.attributes)
    if case.op in PLAIN:
        return FunctionOperator(case, PLAIN[case.op], case.layer.attributes)
    reference: list[Callable[[], Operator]] = [lambda: ReferenceOperator(case.model(np.float64))]
    runtime: list[Callable[[], Operator]] = [
        lambda: OrtOperator(case.model(np.float64)),
        lambda: OrtOperator(case.model(np.float32)),
    ]
    reasons = []
    for make in runtime + reference if case.op in ONNXRUNTIME_DECIDES or case.domain else reference + runtime:
        try:
            return make()
        except FgcamError:  # onnxruntime is missing: it says so itself, unless another knows the operator
            raise
        except Exception as error:  # neither has public classes for an operator that it does not know
            reasons.append(" ".join(str(error).split())[:120])
    raise UnsupportedOpError(
        f"nothing here can run {case.op}, so there is nothing to compare its rules with",
        known="; ".join(dict.fromkeys(reasons)),
        next="give forward=, the operator as a NumPy function of its operands and attributes",
    )


# --- as the specification reads ---------------------------------------------------------------------------------------


def _lrn(x: Floats, size: int, alpha: float, beta: float, bias: float) -> Floats:
    """The window holds channels c - floor((size - 1)/2) to c + ceil((size - 1)/2)."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + math.ceil((size - 1) / 2) + 1]
        y[:, c] = x[:, c] / (bias + alpha / size * (window**2).sum(axis=1)) ** beta
    return y


def _erf(x: Floats) -> Floats:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _gelu(x: Floats, approximate: str = "none") -> Floats:
    if approximate == "tanh":
        return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x / 2 * (1 + _erf(x / math.sqrt(2))))


def _global_max_pool(x: Floats) -> Floats:
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


def _saturate(x: Floats, low: float, high: float) -> Floats:
    return np.asarray(np.clip(x, low, high))


def _mean_variance(x: Floats, axes: list[int]) -> Floats:
    return _standardise(x, axes, 1e-9, 1)


def _standardise(x: Floats, axes: list[int], epsilon: float, centred: int) -> Floats:
    v = x - x.mean(axis=tuple(axes), keepdims=True) if centred else x
    return np.asarray(v / np.sqrt((v * v).mean(axis=tuple(axes), keepdims=True) + epsilon))


def _strided(x: Floats, positions: np.ndarray) -> Floats:
    """Each image reads what the first one reads."""
    own = positions[0].ravel()
    return np.asarray(x.reshape(len(x), -1)[:, own].reshape(len(x), *positions.shape[1:]))


PLAIN: dict[str, Callable[..., Floats]] = {
    SATURATE: _saturate,
    STANDARDISE: _standardise,
    STRIDED: _strided,
    "LRN": _lrn,
    "Erf": _erf,
    "Gelu": _gelu,
    "GlobalMaxPool": _global_max_pool,
    "MeanVarianceNormalization": _mean_variance,
}
