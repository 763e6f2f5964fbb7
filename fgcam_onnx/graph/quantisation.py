"""What the integers of a quantised tensor stand for, and how the passes that decode them say so.

    value = (q - zero_point) scale

Scale and zero point are constants of the file, or, in a dynamically quantised model, tensors that it computes as it
runs. Source: ONNX QuantizeLinear-10, DequantizeLinear-10, DynamicQuantizeLinear-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.layer import SATURATE, Layer, Tensor

__all__ = ["KeepError", "Scale", "constant", "decoded", "note", "note_computed", "pair", "saturate", "saturated"]

# Scale and zero point.
Scale = tuple[np.ndarray, np.ndarray]
Tensors = dict[str, Tensor]


class KeepError(Exception):
    """Why a layer stays an integer one."""


def decoded(q: np.ndarray, scale: Scale, axis: int = 0) -> np.ndarray:
    """(q - zero_point) scale, float32; a vector of scales runs along ``axis``."""
    step, point = scale
    if step.size > 1:
        if not -q.ndim <= axis < q.ndim or step.size != q.shape[axis]:  # else each cell would meet each step
            raise ModelError(f"{step.size} quantisation steps along axis {axis} of a tensor of shape {list(q.shape)}")
        column = [1] * q.ndim
        column[axis] = -1
        step, point = step.reshape(column), np.broadcast_to(point.reshape(-1), step.size).reshape(column)
    elif q.ndim:
        step, point = step.reshape(()), point.reshape(())
    values: np.ndarray = (q.astype(np.int32) - point.astype(np.int32)).astype(np.float32) * step
    return values


def constant(layer: Layer, position: int) -> np.ndarray:
    """The value of an operand that has to be one."""
    value = layer.constant(position)
    if value is None:
        raise KeepError(f"operand {position} is computed in the graph")
    return value


def pair(layer: Layer, scale: int, zero_point: int) -> Scale:
    """The operands at these positions; the default zero point is 0, of an unsigned byte where nothing else is said."""
    if layer.given(zero_point):
        point = constant(layer, zero_point)
    else:
        stated = layer.attributes.get("output_dtype")
        point = np.zeros((), helper.tensor_dtype_to_np_dtype(stated) if stated else np.uint8)
    if point.dtype.kind not in "iu":
        raise KeepError(f"its zero point has type {point.dtype}")
    step = constant(layer, scale).astype(np.float32)
    odd = step[~(np.isfinite(step) & (step >= 0))]
    if odd.size:
        raise ModelError(
            f"{layer.name} has a quantisation step that is none: {float(odd[0])}",
            next="a step is a positive number: quantise the model again",
        )
    return step, point


def note(tensors: Tensors, name: str, scale: Scale) -> None:
    """The integers of ``name`` have this scale."""
    if scale[0].size != 1:
        raise KeepError(f"activation {name!r} has a scale for each channel")
    _write(tensors, name, scale[1].dtype, scale=float(scale[0].reshape(())), zero_point=int(scale[1].reshape(())))


def note_computed(tensors: Tensors, name: str, scale: str, zero_point: str) -> None:
    """The integers of ``name`` have the scale that the model computes into these tensors."""
    _write(tensors, name, np.dtype(np.uint8), scale=scale, zero_point=zero_point)


def _write(tensors: Tensors, name: str, dtype: np.dtype[Any], **values: Any) -> None:
    """Integers have the type of their zero point, also where onnx does not know the operator and infers none."""
    known = tensors.get(name) or Tensor(name, dtype="unknown")
    values["dtype"] = str(dtype) if known.dtype == "unknown" else known.dtype
    tensors[name] = replace(known, **values)


def saturated(layer: Layer, scale: Scale, tensors: Tensors, op: str, version: int) -> list[Layer]:
    """``layer`` as ``op`` in float, and the Saturate that gives its output the range of the integer type."""
    name = layer.output
    free = f"{name} before saturation"
    tensors[free] = Tensor(free, tensors[name].shape if name in tensors else None)
    value = replace(layer, op=op, version=version, outputs=(free,))
    clamp = Layer(f"{layer.name} saturation", layer.op, 1, (free,), (name,))
    return [value, saturate(clamp, free, name, scale, tensors)]


def saturate(layer: Layer, source: str, name: str, scale: Scale, tensors: Tensors) -> Layer:
    """The layer that clamps ``source`` to what the integers of ``name`` can state."""
    note(tensors, name, scale)
    limits = np.iinfo(scale[1].dtype)
    low, high = (float(decoded(np.asarray(bound, scale[1].dtype), scale)) for bound in (limits.min, limits.max))
    attributes: Mapping[str, Any] = {"low": low, "high": high}
    return replace(layer, op=SATURATE, version=1, inputs=(source,), attributes=attributes, constants={})
