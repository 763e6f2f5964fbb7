"""Each quantised operator alone: the float layers of the view compute what onnxruntime computes in integers.

The view is written out as a float model (a Saturate is a Clip) and run beside the integer one, on a picture that lies
on the steps of its quantisation: what is left between them is the rounding of the result, half a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_quantised import saturates

from fgcam_onnx.graph.layer import SATURATE, LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view

MS = "com.microsoft"
SHAPE = (2, 4, 6, 5)
STEP, ZERO = np.float32(0.05), 120
RNG = np.random.default_rng(0)


class Integer:
    """A graph of integer operators behind one QuantizeLinear, and a DequantizeLinear at its end."""

    def __init__(self, dtype: Any = np.uint8, shape: Sequence[int] = SHAPE) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.zero = ZERO if self.dtype.kind == "u" else ZERO - 128
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.x = self.node("QuantizeLinear", ["image", *self.scale("x", STEP, self.zero)], domain="")

    def weight(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scale(self, name: str, step: Any, zero: Any, dtype: Any = None) -> list[str]:
        zeros = np.asarray(zero, dtype or self.dtype)
        return [self.weight(f"{name}.scale", np.asarray(step, np.float32)), self.weight(f"{name}.zero", zeros)]

    def node(self, op: str, inputs: Sequence[str], *, domain: str = MS, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{op}{len(self.nodes)}.y{k}" for k in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, f"{op}{len(self.nodes)}", domain=domain, **attributes)
        )
        return names[0]

    def again(self, name: str = "x2") -> str:
        """A second integer tensor: the first, turned upside down and finer, and so cut off at both ends."""
        flat = self.node("DequantizeLinear", [self.x, "x.scale", "x.zero"], domain="")
        return self.node(
            "QuantizeLinear",
            [self.node("Neg", [flat], domain=""), *self.scale(name, STEP / 2, self.zero)],
            domain="",
        )

    def read(self, y: str) -> str:
        return self.node("DequantizeLinear", [y, "y.scale", "y.zero"], domain="")

    def model(self, y: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)
        output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "integer", [image], [output], self.weights)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def picture(self) -> np.ndarray:
        """Every value a whole number of steps, over all of the range."""
        limits = np.iinfo(self.dtype)
        q = np.random.default_rng(3).integers(limits.min, limits.max + 1, self.shape)
        return ((q - self.zero) * STEP).astype(np.float32)


def written_out(graph: LayerGraph, shape: Sequence[int | None]) -> onnx.ModelProto:
    """The view as a float model of standard operators; what computes with shapes comes last, for the reader to sort."""
    nodes, weights = [], []
    for layer in (*graph.layers, *graph.measures):
        op, attributes, names = layer.op.split("::")[-1], dict(layer.attributes), list(layer.inputs)
        constants: Mapping[int, np.ndarray] = layer.constants
        if layer.op == SATURATE:
            constants = {1: np.float32(attributes.pop("low")), 2: np.float32(attributes.pop("high"))}
            op, names = "Clip", [layer.inputs[0], "", ""]
        for i, value in constants.items():
            names[i] = f"{layer.name}/{i}"
            weights.append(numpy_helper.from_array(np.asarray(value), names[i]))
        given = {k: v for k, v in attributes.items() if v is not None and v != []}
        nodes.append(helper.make_node(op, names, list(layer.outputs), layer.name, **given))
    image = helper.make_tensor_value_info(graph.image, TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info(graph.logits, TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "view", [image], [output], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"image": x})[0]
    return found


def conv(net: Integer, *, per_channel: bool = False, bias: bool = True, group: int = 1, weight: Any = np.int8) -> str:
    q = RNG.integers(-100, 100, (8, 4 // group, 3, 3)) + (0 if np.dtype(weight).kind == "i" else 100)
    steps = RNG.uniform(0.002, 0.01, 8) if per_channel else 0.005
    points = np.zeros(8) if per_channel else 3
    inputs = [net.x, "x.scale", "x.zero", net.weight("w", q.astype(weight)), *net.scale("w", steps, points, weight)]
    inputs += net.scale("y", 0.3, net.zero)
    if bias:
        inputs.append(net.weight("b", RNG.integers(-9000, 9000, 8).astype(np.int32)))
    return net.node("QLinearConv", inputs, domain="", pads=[1, 0, 1, 0], strides=[1, 2], group=group)


def flat(net: Integer) -> str:
    return net.node("Flatten", [net.x], domain="")


def matmul(net: Integer, *, per_channel: bool = False) -> str:
    w = RNG.integers(-100, 100, (120, 7)).astype(np.int8)
    steps, points = (RNG.uniform(0.001, 0.004, 7), np.zeros(7)) if per_channel else (0.002, -4)
    inputs = [flat(net), "x.scale", "x.zero", net.weight("w", w), *net.scale("w", steps, points, np.int8)]
    return net.node("QLinearMatMul", [*inputs, *net.scale("y", 0.3, net.zero)], domain="")


def gemm(net: Integer, *, transposed: bool) -> str:
    w = RNG.integers(-100, 100, (7, 120) if transposed else (120, 7)).astype(np.int8)
    inputs = [flat(net), "x.scale", "x.zero", net.weight("w", w), *net.scale("w", 0.002, 0, np.int8)]
    inputs += [net.weight("c", RNG.integers(-9000, 9000, 7).astype(np.int32)), *net.scale("y", 0.3, net.zero)]
    return net.node("QGemm", inputs, transB=int(transposed), alpha=0.5)


def binary(op: str) -> Callable[[Integer], str]:
    def make(net: Integer) -> str:
        inputs = [net.x, "x.scale", "x.zero", net.again(), "x2.scale", "x2.zero", *net.scale("y", 0.4, net.zero)]
        return net.node(op, inputs)

    return make


def constant_operand(net: Integer) -> str:
    c = net.weight("c", RNG.integers(0, 100, (1, 4, 1, 1)).astype(net.dtype))
    inputs = [net.x, "x.scale", "x.zero", c, *net.scale("c", 0.02, 7), *net.scale("y", 0.1, net.zero)]
    return net.node("QLinearMul", inputs)


def concat(net: Integer) -> str:
    inputs = [*net.scale("y", 0.07, net.zero), net.x, "x.scale", "x.zero", net.again(), "x2.scale", "x2.zero"]
    return net.node("QLinearConcat", inputs, axis=1)


def where(net: Integer) -> str:
    yes = net.weight("yes", RNG.integers(0, 2, (1, 1, 6, 5)).astype(bool))
    inputs = [yes, net.x, "x.scale", "x.zero", net.again(), "x2.scale", "x2.zero", *net.scale("y", 0.08, net.zero)]
    return net.node("QLinearWhere", inputs)


def constants_joined(op: str) -> Callable[[Integer], str]:
    """The second operand is a constant."""

    def make(net: Integer) -> str:
        c = net.weight("c", RNG.integers(0, 100, SHAPE).astype(net.dtype))
        operands = [net.x, "x.scale", "x.zero", c, *net.scale("c", 0.09, 7)]
        if op == "QLinearConcat":
            return net.node(op, [*net.scale("y", 0.07, net.zero), *operands], axis=1)
        yes = net.weight("yes", RNG.integers(0, 2, (1, 1, 6, 5)).astype(bool))
        return net.node(op, [yes, *operands, *net.scale("y", 0.08, net.zero)])

    return make


def unary(op: str, step: float, zero: int | None = None, **attributes: Any) -> Callable[[Integer], str]:
    def make(net: Integer) -> str:
        point = net.zero if zero is None else zero - (0 if net.dtype.kind == "u" else 128)
        return net.node(op, [net.x, "x.scale", "x.zero", *net.scale("y", step, point)], **attributes)

    return make


def pooled(net: Integer) -> str:
    """Integers that move through a MaxPool keep their scale."""
    net.scale("y", STEP, net.zero)
    return net.node("MaxPool", [net.x], domain="", kernel_shape=[2, 2], strides=[1, 2])


CASES: dict[str, Callable[[Integer], str]] = {
    "conv": conv,
    "conv, per channel": lambda net: conv(net, per_channel=True),
    "conv, no bias, grouped": lambda net: conv(net, bias=False, group=2),
    "matmul": matmul,
    "matmul, per channel": lambda net: matmul(net, per_channel=True),
    "gemm": lambda net: gemm(net, transposed=False),
    "gemm, transposed": lambda net: gemm(net, transposed=True),
    "add": binary("QLinearAdd"),
    "mul": binary("QLinearMul"),
    "mul by a constant": constant_operand,
    "concat": concat,
    "where": where,
    "concat of a constant": constants_joined("QLinearConcat"),
    "where of a constant": constants_joined("QLinearWhere"),
    "global average pool": unary("QLinearGlobalAveragePool", 0.02),
    "average pool": unary("QLinearAveragePool", 0.05, kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[2, 1]),
    "average pool, padding counts": unary(
        "QLinearAveragePool", 0.05, kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[2, 1], count_include_pad=1
    ),
    "leaky relu": unary("QLinearLeakyRelu", 0.05, 60, alpha=0.2),
    "sigmoid": unary("QLinearSigmoid", 1 / 256, 0),
    "max pool": pooled,
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_the_view_computes_what_the_integers_do(name: str, dtype: Any) -> None:
    if saturates() and ("conv" in name or "m" in name):
        pytest.skip("onnxruntime's integer convolutions overflow on this processor: they are not what the file says")
    net = Integer(dtype)
    model = net.model(net.read(CASES[name](net)))
    # a sigmoid at the end would be stripped, as it is for every model
    graph = build_view(load(model)) if name != "sigmoid" else build_view(load(model), model.graph.node[-1].output[0])
    if name == "sigmoid":
        assert graph.head == "Sigmoid"
        return
    assert not graph.refusals
    assert not any(layer.op.startswith(MS) or "QLinear" in layer.op for layer in graph.layers)
    x = net.picture()
    expected, found = run(model, x), run(written_out(graph, SHAPE), x)
    step = float(numpy_helper.to_array(next(t for t in net.weights if t.name == "y.scale")))
    assert np.ptp(expected) > 3 * step, "the case says nothing"
    assert np.abs(expected - found).max() <= 0.501 * step + 1e-6


def test_a_gemm_that_gives_floats() -> None:
    """Without a scale of its output it rounds nothing."""
    net = Integer()
    gemm(net, transposed=True)
    del net.nodes[-1].input[7:]
    model = net.model(net.nodes[-1].output[0])
    graph = build_view(load(model))
    assert [layer.op for layer in graph.layers] == ["Identity", "Flatten", "Gemm"]
    x = net.picture()
    expected = run(model, x)
    np.testing.assert_allclose(run(written_out(graph, SHAPE), x), expected, atol=1e-5 * np.abs(expected).max())


def test_a_zero_point_that_is_left_out() -> None:
    """It is 0, of the type that opset 21's ``output_dtype`` names: the range of the integers depends on it."""
    for dtype, low in ((TensorProto.INT8, -128), (TensorProto.INT16, -(2**15)), (0, 0)):
        net = Integer()
        floats = net.node("Neg", ["image"], domain="")
        given = {"output_dtype": dtype} if dtype else {}
        q = net.node("QuantizeLinear", [floats, net.weight("y.scale", np.float32(0.1))], domain="", **given)
        model = net.model(net.node("DequantizeLinear", [q, "y.scale"], domain=""))
        model.opset_import[0].version = 21
        model.ir_version = 10
        (clamp,) = (layer for layer in build_view(load(model)).layers if layer.op == SATURATE)
        assert clamp.attributes["low"] == pytest.approx(low * 0.1, rel=1e-6)


def test_pairs_of_the_other_domain() -> None:
    """com.microsoft has QuantizeLinear too, for 16 bits before opset 21."""
    net = Integer()
    q = net.node("QuantizeLinear", [net.node("Neg", ["image"], domain=""), *net.scale("y", 0.001, 0, np.int16)])
    w = net.node("DequantizeLinear", [net.weight("w", np.arange(4, dtype=np.int16).reshape(1, 4, 1, 1)),
                                      *net.scale("w", [0.1, 0.2, 0.3, 0.4], [0] * 4, np.int16)], axis=1)  # fmt: skip
    model = net.model(net.node("Mul", [net.node("DequantizeLinear", [q, "y.scale", "y.zero"]), w], domain=""))
    graph = build_view(load(model))
    assert [layer.op for layer in graph.layers if layer.op != "Identity"] == ["Neg", SATURATE, "Mul"]
    np.testing.assert_allclose(graph.layers[-1].constants[1].ravel(), [0, 0.2, 0.6, 1.2], rtol=1e-6)
    x = net.picture()
    np.testing.assert_allclose(run(written_out(graph, SHAPE), x), run(model, x), atol=0.51e-3)


def test_what_is_not_decoded_says_why() -> None:
    """A scale for each channel of an activation, channels-last pools, and weights that are computed."""
    net = Integer()
    q = net.node(
        "QuantizeLinear", ["image", *net.scale("c", [0.1] * 4, [0] * 4)], domain="", axis=1
    )  # fmt: skip
    graph = build_view(load(net.model(net.node("DequantizeLinear", [q, "c.scale", "c.zero"], domain="", axis=1))))
    assert any("has a scale for each channel" in refusal.reason for refusal in graph.refusals)

    net = Integer()
    y = unary("QLinearGlobalAveragePool", 0.02, channels_last=1)(net)
    graph = build_view(load(net.model(net.read(y))))
    assert [refusal.reason for refusal in graph.refusals] == ["it works on channels-last tensors"]

    net = Integer()
    y = conv(net)
    net.nodes[-1].input[3] = net.x
    graph = build_view(load(net.model(net.read(y))))
    assert [refusal.reason for refusal in graph.refusals] == ["operand 3 is computed in the graph"]


# --- sums that the graph scales itself ------------------------------------------------------------------------------


class Summed(Integer):
    """ConvInteger or MatMulInteger on dynamically or statically quantised integers."""

    def __init__(self, *, dynamic: bool) -> None:
        super().__init__()
        self.dynamic = dynamic
        if dynamic:
            self.nodes.clear()
            self.node("DynamicQuantizeLinear", ["image"], domain="", outputs=3)
            self.q, self.step, self.point = self.nodes[0].output
        else:
            self.q, self.step, self.point = self.x, "x.scale", "x.zero"

    def sum(self, *, matrix: bool = False, zeros: Any = 3) -> str:
        shape = (120, 7) if matrix else (8, 4, 3, 3)
        inputs = [self.node("Flatten", [self.q], domain="") if matrix else self.q]
        inputs += [self.weight("w", RNG.integers(-100, 100, shape).astype(np.int8)), self.point]
        inputs.append(self.weight("w.zero", np.asarray(zeros, np.int8)))
        if matrix:
            return self.node("MatMulInteger", inputs, domain="")
        return self.node("ConvInteger", inputs, domain="", pads=[1, 1, 1, 1], strides=[1, 2])

    def cast(self, y: str) -> str:
        return self.node("Cast", [y], domain="", to=TensorProto.FLOAT)

    def mul(self, a: str, b: Any) -> str:
        return self.node("Mul", [a, self.operand(b)], domain="")

    def add(self, a: str, b: Any) -> str:
        return self.node("Add", [a, self.operand(b)], domain="")

    def operand(self, b: Any) -> str:
        return b if isinstance(b, str) else self.weight(f"c{len(self.weights)}", b)


COLUMN = (8, 1, 1)


def product_of_scales(net: Summed) -> str:
    """As onnxruntime's quantize_dynamic writes it."""
    factor = net.mul(net.step, np.float32(0.01))
    return net.add(net.mul(net.cast(net.sum()), factor), RNG.normal(size=(1, *COLUMN)).astype(np.float32))


def one_scale_after_the_other(net: Summed) -> str:
    weights = RNG.uniform(0.005, 0.01, COLUMN).astype(np.float32)
    return net.mul(net.mul(net.cast(net.sum()), weights), net.step)


def scale_per_channel(net: Summed) -> str:
    weights = RNG.uniform(0.005, 0.01, (1, *COLUMN)).astype(np.float32)
    return net.mul(net.mul(net.step, weights), net.cast(net.sum()))


def zero_point_per_column(net: Summed) -> str:
    total = net.sum(matrix=True, zeros=np.arange(7) - 3)
    return net.mul(net.cast(total), net.mul(net.step, np.float32(0.01)))


def matrix(net: Summed) -> str:
    y = net.mul(net.cast(net.sum(matrix=True)), net.mul(net.step, RNG.uniform(0.001, 0.01, 7).astype(np.float32)))
    return net.add(y, RNG.normal(size=7).astype(np.float32))


def float_of_the_sum(net: Summed) -> str:
    """As onnxruntime fuses it when it saves an optimised model."""
    flat = net.node("Flatten", [net.q], domain="")
    w = net.weight("w", RNG.integers(-100, 100, (120, 7)).astype(np.int8))
    scale = net.weight("w.scale", RNG.uniform(0.001, 0.01, 7).astype(np.float32))
    zero = net.weight("w.zero", np.zeros(7, np.int8))
    bias = net.weight("b", RNG.normal(size=7).astype(np.float32))
    return net.node("MatMulIntegerToFloat", [flat, w, net.step, scale, net.point, zero, bias])


def fixed_factor(net: Summed) -> str:
    return net.mul(net.cast(net.sum()), np.float32(0.0007))


def read_by_scale(net: Summed) -> str:
    return net.node("DequantizeLinear", [net.sum(), net.weight("s", np.float32(0.0007))], domain="")


def read_by_scales(net: Summed) -> str:
    steps = net.weight("s", RNG.uniform(0.0005, 0.001, 8).astype(np.float32))
    return net.node("DequantizeLinear", [net.sum(), steps], domain="", axis=1)


def bias_before_the_scale(net: Summed) -> str:
    bias = RNG.integers(-9000, 9000, (1, *COLUMN)).astype(np.int32)
    return net.mul(net.cast(net.add(net.sum(), bias)), np.float32(0.0007))


EITHER = [product_of_scales, scale_per_channel, zero_point_per_column, matrix]
CHAINS = [(True, make) for make in (*EITHER, one_scale_after_the_other, float_of_the_sum)]
CHAINS += [(False, make) for make in (*EITHER, float_of_the_sum, fixed_factor, read_by_scale, read_by_scales)]
CHAINS += [(False, bias_before_the_scale)]


@pytest.mark.parametrize(("dynamic", "make"), CHAINS, ids=lambda v: v.__name__ if callable(v) else ("static", "dyn")[v])
def test_a_sum_and_its_scale_are_one_float_layer(dynamic: bool, make: Callable[[Summed], str]) -> None:
    """Nothing is rounded behind the sum: the float layer agrees to float32's own rounding."""
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor: they are not what the file says")
    net = Summed(dynamic=dynamic)
    y = make(net)
    model = net.model(net.node("Relu", [y], domain=""))
    graph = build_view(load(model))
    assert graph.dynamic == dynamic
    linear = [layer for layer in graph.layers if layer.op in ("Conv", "MatMul", "Gemm")]
    assert len(linear) == 1
    assert {layer.op for layer in graph.layers} <= {"Identity", "Flatten", "Conv", "MatMul", "Gemm", "Relu"}
    known = [name for layer in graph.layers for name in layer.nodes if layer.op != "Flatten"]
    scaling = [node.name for node in behind(model, linear[0].nodes[0])]
    assert set(scaling) <= set(known), "each node on the way has its place in the view"
    x = net.picture()
    x[0, 0, 0, :2] = [(0 - ZERO) * STEP, (255 - ZERO) * STEP]  # the range that gives the dynamic step
    expected, found = run(model, x), run(written_out(graph, SHAPE), x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def behind(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The node and those that read what it computes."""
    found: list[onnx.NodeProto] = []
    names: set[str] = set()
    for node in model.graph.node:
        if node.name == name or names.intersection(node.input):
            found.append(node)
            names.update(node.output)
    return found


def another_zero_point(net: Summed) -> str:
    net.point = net.weight("other.zero", np.uint8(7))
    return net.mul(net.cast(net.sum()), net.step)


def another_scale(net: Summed) -> str:
    net.node("DynamicQuantizeLinear", [net.node("Neg", ["image"], domain="")], domain="", outputs=3)
    other = net.nodes[-1].output[1]
    return net.mul(net.cast(net.sum()), other)


def read_twice(net: Summed) -> str:
    y = net.cast(net.sum())
    return net.add(net.mul(y, net.step), y)


def scale_of_the_picture(net: Summed) -> str:
    """A factor that is an activation."""
    return net.mul(net.cast(net.sum()), net.node("ReduceMax", ["image"], domain="", keepdims=1))


def scale_along_the_width(net: Summed) -> str:
    return net.mul(net.cast(net.sum()), net.mul(net.step, np.float32([0.1, 0.2, 0.3])))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (another_zero_point, "its zero point is not the one that its operand was quantised with"),
        (another_scale, "which is not the scale of its operand"),
        (read_twice, "is read by 2 layers before it is scaled"),
        (scale_of_the_picture, "which is no product of scales"),
        (scale_along_the_width, "is not one for each output channel"),
    ],
)
def test_a_sum_of_unknown_scale_stays_an_integer_layer(make: Callable[[Summed], str], reason: str) -> None:
    """A wrong scale would be a wrong map: the view says why, and nothing is explained through it."""
    net = Summed(dynamic=True)
    graph = build_view(load(net.model(net.node("Relu", [make(net)], domain=""))))
    assert [layer.op for layer in graph.layers if "Integer" in layer.op] == ["ConvInteger"]
    assert any(reason in refusal.reason for refusal in graph.refusals), graph.refusals
