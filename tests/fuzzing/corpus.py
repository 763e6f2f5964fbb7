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


def quantised_dynamically() -> onnx.ModelProto:
    """ConvInteger twice, each on integers whose scale is computed from the batch."""
    net = tiny_models.Net()

    def conv(name: str, x: str, *shape: int) -> str:
        q = net.node("DynamicQuantizeLinear", f"{name}.q", x, outputs=3)
        weight, scale, zero = _integers(net, name, *shape)
        total = net.node("ConvInteger", name, q, weight, f"{name}.q.y2", zero, pads=[1] * 4)
        factor = net.node("Mul", f"{name}.factor", f"{name}.q.y1", scale)
        y = net.node("Mul", f"{name}.scaled", net.node("Cast", f"{name}.float", total, to=TensorProto.FLOAT), factor)
        bias = net.random(1, shape[0], 1, 1, scale=0.1)
        return net.relu(f"{name}.relu", net.node("Add", f"{name}.bias", y, bias))

    return net.model(net.head(conv("conv2", net.max_pool("pool1", conv("conv1", "image", 6, 3, 3, 3)), 8, 6, 3, 3), 8))


def decided() -> onnx.ModelProto:
    """free_size with an If whose condition is a constant, and one whose condition follows from a shape."""
    net = tiny_models.Net()
    branches = [
        helper.make_graph([helper.make_node(op, ["relu1.y"], [f"{op}.inner"])], op, [],
                          [helper.make_tensor_value_info(f"{op}.inner", TensorProto.FLOAT, None)])
        for op in ("Sigmoid", "Neg")
    ]  # fmt: skip
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    size = net.node("Gather", "size", net.node("Shape", "shape", x), np.array(1))
    asked = (net.weight("yes", np.array(True)), net.node("Equal", "equal", size, np.array(7)))
    a, b = (
        net.node("If", f"if{i}", condition, then_branch=branches[0], else_branch=branches[1])
        for i, condition in enumerate(asked)
    )
    return net.model(net.head(net.relu("relu2", net.conv("conv2", net.node("Add", "add", a, b), 6, 8)), 8))


def narrow() -> onnx.ModelProto:
    """half in bfloat16, which nothing here computes in."""
    model = half()
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = onnx.numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


@cache
def _sources() -> dict[str, Callable[[], bytes]]:
    made = {**tiny_models.by_layers(), "quantised_pairs": quantised_pairs(), "half": half()}
    made["quantised_operators"] = quantised_operators()
    made |= {"quantised_dynamically": quantised_dynamically(), "decided": decided(), "narrow": narrow()}
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
