"""The honest models that mutants are made of: small ones in numbers, trained ones wherever the test data lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import tiny_models
from onnx import TensorProto, helper

from fgcam_onnx import models

__all__ = ["HEAVY", "LIGHT", "entries", "read"]

DATA = Path(os.environ.get("FGCAM_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
# Graphs of the onnx package whose weights are made by a node each, so that the files are small.
LIGHT = ("light_squeezenet", "light_inception_v1", "light_shufflenet")
# Of these one mutant takes as long as twenty of the others.
HEAVY = (
    *LIGHT,
    "dog19_mobilenetv2_keras",
    "efficientnet_lite0_pytorch",
    "mobilenetv2-12-int8",
    "squeezenet_v1.0_caffe",
)


def _scaled(net: tiny_models.Net, name: str, step: float, zero: np.generic) -> tuple[str, str]:
    """Two initializers: how a quantised tensor is scaled."""
    net.weights.append(onnx.numpy_helper.from_array(np.asarray(zero), f"{name}.zero"))
    return net.weight(f"{name}.scale", step), f"{name}.zero"


def _integers(net: tiny_models.Net, name: str, *shape: int) -> tuple[str, str, str]:
    values = np.clip(np.rint(net.random(*shape) * 60), -127, 127).astype(np.int8)
    return net.weight(f"{name}.w", values), *_scaled(net, f"{name}.w", 1 / 60, np.int8(0))


def quantised_pairs() -> onnx.ModelProto:
    """conv-relu-conv with QuantizeLinear and DequantizeLinear around it, as a quantiser writes float models."""
    net = tiny_models.Net()

    def pair(name: str, x: str, step: float, zero: int) -> str:
        scaled = _scaled(net, name, step, np.uint8(zero))
        return net.node("DequantizeLinear", f"{name}.d", net.node("QuantizeLinear", f"{name}.q", x, *scaled), *scaled)

    def conv(name: str, x: str, *shape: int) -> str:
        weight = net.node("DequantizeLinear", f"{name}.weight", *_integers(net, name, *shape))
        return net.relu(f"{name}.relu", net.node("Conv", name, x, weight, pads=[1] * 4))

    x = pair("q1", conv("conv1", pair("q0", "image", 0.05, 128), 6, 3, 3, 3), 0.03, 0)
    x = conv("conv2", net.max_pool("pool1", x), 8, 6, 3, 3)
    return net.model(net.head(pair("q2", x, 0.05, 0), 8))


def quantised_operators() -> onnx.ModelProto:
    """QLinearConv twice and a float head: integers from end to end of the body."""
    net = tiny_models.Net()
    first, second, third = (
        _scaled(net, name, step, np.uint8(zero))
        for name, step, zero in (("a", 0.05, 128), ("b", 0.03, 0), ("c", 0.05, 0))
    )

    def conv(name: str, x: str, given: tuple[str, str], made: tuple[str, str], *shape: int) -> str:
        return net.node("QLinearConv", name, x, *given, *_integers(net, name, *shape), *made, pads=[1] * 4)

    x = conv("conv1", net.node("QuantizeLinear", "q", "image", *first), first, second, 6, 3, 3, 3)
    x = conv("conv2", net.max_pool("pool1", x), second, third, 8, 6, 3, 3)
    return net.model(net.head(net.node("DequantizeLinear", "d", x, *third), 8))


def half() -> onnx.ModelProto:
    """free_size with weights and activations of float16 behind a Cast."""
    net = tiny_models.Net()
    x = net.node("Cast", "half", "image", to=TensorProto.FLOAT16)
    w, b = net.random(6, 3, 3, 3).astype(np.float16), net.random(6, scale=0.1).astype(np.float16)
    conv = helper.make_node("Conv", [x, "w", "b"], ["conv1.y"], name="conv1", pads=[1] * 4)
    net.weights += [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")]
    net.nodes.append(conv)
    x = net.node("Cast", "float", net.relu("relu1", "conv1.y"), to=TensorProto.FLOAT)
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8, strides=[2, 2])), 8))


@cache
def _sources() -> dict[str, Callable[[], bytes]]:
    made = {**tiny_models.by_layers(), "quantised_pairs": quantised_pairs(), "half": half()}
    made["quantised_operators"] = quantised_operators()
    found: dict[str, Callable[[], bytes]] = {name: model.SerializeToString for name, model in made.items()}
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    files = [Path(models.path(f"{name}.onnx")) for name in ("demo_honest", "demo_cheat")]
    files += [light / f"{name}.onnx" for name in LIGHT] + sorted((DATA / "models").glob("*.onnx"))
    return found | {path.stem: path.read_bytes for path in files if path.is_file()}


def entries() -> tuple[str, ...]:
    """The names of all models that are there."""
    return tuple(_sources())


@cache
def read(entry: str) -> bytes:
    """The file's bytes."""
    return _sources()[entry]()
