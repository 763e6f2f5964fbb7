"""Channels in blocks: the layout in which onnxruntime's convolutions work on a CPU.

An activation [n, c, h, w] is stored as [n, c / B, h, w, B] under its old shape; B is 16 with AVX-512, 8 without.
onnxruntime turns activations in front of every convolution and back behind it. A descent is convolutions with two or
three elementwise passes in between, to which the order of cells is all the same: left in blocks, they need no turning.

The operators are onnxruntime's own (domain ``com.microsoft.nchwc``) and nobody promises them. So a probe runs each of
them once on small integers, where every sum is exact; where one is missing or answers otherwise, nothing is blocked.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx import runtime
from fgcam_onnx.backends.base import Convolution
from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.errors import BackendError

__all__ = ["DOMAIN", "VERSION", "block_size", "blocked_channels", "blocked_kernel"]

DOMAIN, VERSION = "com.microsoft.nchwc", 1
PROVIDERS = ("CPUExecutionProvider",)


def blocked_channels(x: np.ndarray, block: int) -> np.ndarray:
    """[n, c, h, w] -> its cells in blocked order, under the same shape. c is a multiple of ``block``."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2)).reshape(x.shape)


def blocked_kernel(w: np.ndarray, block: int, *, inputs: bool) -> np.ndarray:
    """[co, ci, kh, kw] -> co in blocks, innermost; ``inputs``: ci in blocks as well. Both are filled up with zeros.

    Not ``inputs``: for depthwise convolutions (ci = 1), and for images, whose channels fill no block.
    """
    co, ci, kh, kw = w.shape
    w = np.pad(w, ((0, -co % block), (0, -ci % block if inputs else 0), (0, 0), (0, 0)))
    if not inputs:
        return np.ascontiguousarray(w.reshape(-1, block, ci, kh, kw).transpose(0, 2, 3, 4, 1)).reshape(w.shape)
    split = w.reshape(w.shape[0] // block, block, -1, block, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1)).reshape(w.shape)


@functools.cache
def block_size() -> int | None:
    """B, or None where onnxruntime has no such layout or answers otherwise than expected."""
    try:
        block = _found()
        return block if block is not None and _answers(block) else None
    except BackendError:
        return None


def _found() -> int | None:
    x = np.arange(2 * 64 * 2 * 3, dtype=np.float32).reshape(2, 64, 2, 3)
    turn = helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    (y,) = _run([turn], {"x": x}, {}, ["y"])
    return next((b for b in (8, 16, 32) if np.array_equal(y.reshape(x.shape), blocked_channels(x, b))), None)


def _answers(block: int) -> bool:
    """Do all kinds of convolution that are used give the very numbers of the definition?"""
    random, plain = np.random.default_rng(0), NumpyVerbs(np.float32)

    def integers(*shape: int) -> np.ndarray:
        return random.integers(-4, 5, shape).astype(np.float32)

    c = 2 * block
    for x, w, group, step in (
        (integers(2, c, 5, 4), integers(3 * block, c, 3, 2), 1, 1),
        (integers(2, c, 5, 4), integers(block + 3, c, 1, 1), 1, 1),
        (integers(2, c, 5, 6), integers(c, 1, 3, 3), c, 2),
        (integers(2, 2 * c, 5, 4), integers(2 * c, c, 2, 2), 2, 1),
        (integers(2, 3, 7, 6), integers(block, 3, 3, 3), 1, 2),
    ):
        kernel, inputs = w.shape[2:], w.shape[1] > 1 and x.shape[1] >= block
        how = Convolution((step, step), (1, 0), (1, 1), group)
        out = tuple((size + 1 - k) // step + 1 for size, k in zip((x.shape[2], x.shape[3] - 1), kernel, strict=True))
        expected = plain.conv(x, w, how, out)
        sources = {"x": x, "w": blocked_kernel(w, block, inputs=inputs)}
        nodes = [helper.make_node("ReorderInput", ["x"], ["b"], domain=DOMAIN)] if x.shape[1] >= block else []
        first = "b" if nodes else "x"
        whole = -(-w.shape[0] // block) * block
        more = integers(2, whole, *out)
        nodes += [
            helper.make_node("Conv", [first, "w", "", "more"], ["z"], domain=DOMAIN,
                             **attributes(kernel, how, (1, 0, 0, 0))),
            helper.make_node("ReorderOutput", ["z"], ["y"], domain=DOMAIN, channels=w.shape[0]),
        ]  # fmt: skip
        (y,) = _run(nodes, {"x": x, "more": blocked_channels(more, block)}, {"w": sources["w"]}, ["y"])
        if not np.array_equal(y, expected + more[:, : w.shape[0]]):
            return False
    return True


def attributes(kernel: Sequence[int], how: Convolution, pads: Sequence[int]) -> dict[str, Any]:
    """Of a blocked Conv."""
    return {
        "kernel_shape": list(kernel),
        "strides": list(how.strides),
        "pads": list(pads),
        "dilations": list(how.dilations),
        "group": how.group,
        "auto_pad": "NOTSET",
    }


def _run(
    nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray],
    outputs: Sequence[str],
) -> list[np.ndarray]:  # fmt: skip
    graph = helper.make_graph(
        list(nodes),
        "probe",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in feeds.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = runtime.session(model.SerializeToString(), runtime.session_options(1), list(PROVIDERS))
    try:
        found: list[np.ndarray] = session.run(list(outputs), dict(feeds))
    except Exception as error:  # onnxruntime's exception classes are not public
        raise BackendError("onnxruntime's blocked layout does not work here", known=str(error)) from error
    return found
