"""The view's folding passes: what they fold computes the same, what they leave alone they explain, word by word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper
from tiny_models import Net

from fgcam_onnx import Explainer
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view

TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def view(model: onnx.ModelProto, **options: Any) -> LayerGraph:
    onnx.checker.check_model(model, full_check=True)
    return build_view(load(model), **options)


def ops(graph: LayerGraph) -> list[str]:
    return [layer.op for layer in graph.layers]


def refusals(graph: LayerGraph) -> dict[str, str]:
    return {refusal.node: refusal.reason for refusal in graph.refusals}


def recompute(layer: Layer, x: np.ndarray) -> np.ndarray:
    """The layer alone, with the weights and attributes the view gives it, in onnxruntime."""
    keep = {k: v for k, v in layer.attributes.items() if not (k == "auto_pad" and layer.attributes.get("pads"))}
    attributes = {k: v for k, v in keep.items() if v not in ("", None)}
    inputs = ["x", *(f"c{i}" for i in sorted(layer.constants))]
    node = helper.make_node(layer.op, inputs, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v, f"c{i}") for i, v in sorted(layer.constants.items())],
    )
    return tiny_models.run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), x)[0]


def check_folded(model: onnx.ModelProto, *, into: str) -> Layer:
    """Every layer ``into`` of the view, fed with its own input, gives the original tensor it stands for. Batch of 3."""
    graph = view(model)
    x = tiny_models.pictures(model, 3, seed=5)
    folded = [layer for layer in graph.layers if layer.op == into]
    assert folded
    for layer in folded:
        source, expected = layer.inputs[0], layer.output
        values = dict(zip((source, expected), tiny_models.run(model, x, source, expected), strict=True))
        np.testing.assert_allclose(recompute(layer, values[source]), values[expected], **TIGHT)
    return folded[0]


# --- BatchNormalization -------------------------------------------------------------------------------------


def conv_bn(**attributes: Any) -> Net:
    net = Net(("n", 4, 9, 8))
    c = net.conv("conv", "image", 4, 6, **attributes)
    net.batch_norm("bn", c, 6, negative=2, epsilon=0.01)
    return net


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"bias": False},
        {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 2]},
        {"dilations": [2, 1], "bias": False},
        {"k": 1},
    ],
    ids=str,
)
def test_batch_norm_folds_into_conv(attributes: dict[str, Any]) -> None:
    """Scaled weights and shifted bias give the BatchNormalization's own output, negative scales included."""
    net = conv_bn(**attributes)
    layer = check_folded(net.model(net.head(net.relu("relu", "bn.y"), 6)), into="Conv")
    assert (layer.name, layer.output, layer.nodes) == ("conv", "bn.y", ("conv", "bn"))


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_folds_into_conv_transpose(group: int) -> None:
    """ConvTranspose keeps its output channels in the second axis, group-major: the scales land there."""
    net = Net(("n", 4, 9, 8))
    w = net.random(4, 6 // group, 3, 3)
    c = net.node("ConvTranspose", "up", "image", w, net.random(6), group=group, strides=[2, 2], output_padding=[1, 0])
    x = net.relu("relu", net.batch_norm("bn", c, 6))
    layer = check_folded(net.model(net.head(x, 6)), into="ConvTranspose")
    assert layer.nodes == ("up", "bn")


@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 0.25}, {"beta": 3.0, "transB": 1}], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_folds_into_gemm(attributes: dict[str, Any], bias: bool) -> None:
    """alpha stays, beta is worked into the bias, transB turns the axis that is scaled."""
    net = Net()
    x = net.node(
        "Flatten", "flat", net.node("GlobalAveragePool", "gap", net.relu("relu", net.conv("c", "image", 3, 4)))
    )
    w = net.random(4, 6)
    operands = [w.T.copy() if "transB" in attributes else w] + [net.random(6)] * bias
    g = net.node("Gemm", "fc", x, *operands, **attributes)
    b = net.batch_norm("bn", g, 6)
    model = net.model(net.node("Gemm", "out", net.relu("relu2", b), net.random(6, 5)))
    layer = next(each for each in view(model).layers if each.name == "fc")
    assert layer.nodes == ("fc", "bn")
    assert layer.attributes["beta"] == 1.0
    values = tiny_models.run(model, tiny_models.pictures(model, 3), "flat.y", "bn.y")
    np.testing.assert_allclose(recompute(layer, values[0]), values[1], **TIGHT)


def test_a_chain_folds_from_the_front() -> None:
    """Pad, Conv and two BatchNormalizations become one layer with the first input and the last output."""
    net = Net()
    x = net.node("Pad", "pad", "image", np.array([0, 0, 1, 0, 0, 0, 2, 1]))
    x = net.batch_norm("bn2", net.batch_norm("bn1", net.conv("conv", x, 3, 6), 6), 6)
    layer = check_folded(net.model(net.head(net.relu("relu", x), 6)), into="Conv")
    assert (layer.inputs[0], layer.output) == ("image", "bn2.y")
    assert layer.nodes == ("conv", "pad", "bn1", "bn2")
    assert layer.attributes["pads"] == [2, 1, 3, 2]


def test_negative_scales_are_counted() -> None:
    """methods 9.2: negative gamma is folded, with a warning that has the count."""
    net = conv_bn()
    graph = view(net.model(net.head("bn.y", 6)))
    assert graph.notes == (
        "2 channels in 1 BatchNormalization layers have a negative scale (first: bn): folded, which differs there "
        "from treating BatchNormalization as identity",
    )


def test_fold_norms_off_keeps_them_apart() -> None:
    graph = view(tiny_models.vgg(), fold_norms=False)
    assert ops(graph).count("BatchNormalization") == 2
    assert [layer.name for layer in graph.layers if layer.op == "Conv"] == ["conv1", "conv2"]


def shared_output() -> Net:
    net = conv_bn()
    net.node("Add", "add", "bn.y", "conv.y")
    return net


def training() -> Net:
    net = Net(("n", 4, 9, 8))
    c = net.conv("conv", "image", 4, 6)
    net.node("BatchNormalization", "bn", c, *np.ones((4, 6), np.float32), outputs=3, training_mode=1)
    return net


def computed_norm() -> Net:
    net = Net(("n", 4, 9, 8))
    c = net.conv("conv", "image", 4, 6)
    net.node("BatchNormalization", "bn", c, net.input("gamma", (6,)), *np.ones((3, 6), np.float32))
    return net


def computed_weight() -> Net:
    net = Net(("n", 4, 9, 8))
    w = net.node("Mul", "scaled", net.input("factor", (1,)), net.random(6, 4, 3, 3))
    net.batch_norm("bn", net.node("Conv", "conv", "image", w), 6)
    return net


def computed_bias() -> Net:
    net = Net(("n", 4, 9, 8))
    c = net.node("Conv", "conv", "image", net.random(6, 4, 3, 3), net.input("bias", (6,)))
    net.batch_norm("bn", c, 6)
    return net


@pytest.mark.parametrize(
    ("make", "outputs", "reason"),
    [
        (shared_output, ["add.y"], "conv's output is also read by add"),
        (conv_bn, ["bn.y", "conv.y"], "conv's output 'conv.y' is a graph output"),
        (training, ["bn.y"], "it runs in training mode: its scale depends on the batch"),
    ],
    ids=["shared", "graph output", "training"],
)
def test_batch_norm_refusals(make: Callable[[], Net], outputs: list[str], reason: str) -> None:
    """Each reason, in the words a user reads; the layers stay two."""
    net = make()
    graph = view(net.model(net.head(outputs[0], 6), *outputs[1:]))
    assert refusals(graph) == {"bn": reason}
    assert ops(graph)[:2] == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (computed_norm, "its parameters are computed in the graph"),
        (computed_weight, "the weight of conv is computed in the graph"),
        (computed_bias, "the bias of conv is computed in the graph"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_batch_norm_of_computed_parameters(make: Callable[[], Net], reason: str) -> None:
    """Weights that come from activations are left alone. (Asked of the pass: such models take several inputs.)"""
    from fgcam_onnx.graph.passes.fold_batch_norm import fold_batch_norm

    net = make()
    graph = unfolded(net.model(net.head("bn.y", 6)))
    result = fold_batch_norm(graph)
    assert not result.modified
    assert result.graph is graph
    assert [(r.node, r.reason) for r in result.refused] == [("bn", reason)]


def unfolded(model: onnx.ModelProto) -> LayerGraph:
    """The layers with their constants filled in, before any other pass."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = tuple(
        Layer(
            node.name,
            node.op_type,
            17,
            tuple(node.input),
            tuple(node.output),
            {"epsilon": 1e-5, "auto_pad": "NOTSET"} | {a.name: helper.get_attribute_value(a) for a in node.attribute},
            {i: constants[name] for i, name in enumerate(node.input) if name in constants},
            (node.name,),
        )
        for node in model.graph.node
    )
    return LayerGraph(
        layers, {}, tuple(v.name for v in model.graph.input), tuple(v.name for v in model.graph.output), "image", ""
    )


def test_a_weight_shared_by_two_layers() -> None:
    """Two convolutions share one initializer; each gets its own folded copy, and both are right."""
    net = Net(("n", 4, 9, 8))
    w = net.weight("shared", net.random(4, 4, 3, 3))
    a = net.batch_norm("bn1", net.node("Conv", "conv1", "image", w, pads=[1] * 4), 4)
    b = net.batch_norm("bn2", net.node("Conv", "conv2", net.relu("relu", a), w, pads=[1] * 4), 4)
    model = net.model(net.head(b, 4))
    check_folded(model, into="Conv")
    one, two = [layer for layer in view(model).layers if layer.op == "Conv"]
    assert not np.allclose(one.constants[1], two.constants[1])
    assert np.array_equal(load(model).proto.graph.initializer[0].raw_data, model.graph.initializer[0].raw_data)


def test_batch_norm_elsewhere_stays() -> None:
    """Behind a Relu there is nothing to fold into, and nothing to refuse."""
    net = Net()
    x = net.batch_norm("bn", net.relu("relu", net.conv("conv", "image", 3, 6)), 6)
    graph = view(net.model(net.head(x, 6)))
    assert "BatchNormalization" in ops(graph)
    assert graph.refusals == ()


# --- Pad ----------------------------------------------------------------------------------------------------


def padded(conv: dict[str, Any] | None = None, *operands: np.ndarray | None, pads: list[int] | None = None,
           opset: int = 17, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    net = Net(opset=opset)
    amounts = np.array(pads or [0, 0, 0, 1, 0, 0, 2, 1])
    x = net.node("Pad", "pad", "image", amounts, *operands, **attributes)
    channels = 3 + int(amounts[1] + amounts[5]) if len(amounts) == 8 else 3
    x = net.conv("conv", x, channels, 6, **(conv or {}))
    return net.model(net.head(net.relu("relu", x), 6))


@pytest.mark.parametrize(
    "model",
    [
        lambda: padded(),
        lambda: padded({"pads": [0, 0, 0, 0], "strides": [2, 2]}),
        lambda: padded({"pads": [0, 1, 2, 3], "dilations": [2, 2]}),
        lambda: padded(None, np.zeros((), np.float32)),
        lambda: padded(None, None, np.array([-1, -2]), pads=[1, 0, 2, 3], opset=18),
        lambda: padded(None, np.zeros((), np.float32), np.array([2]), pads=[1, 4], opset=19),
    ],
)
def test_zero_pad_folds_into_conv(model: Callable[[], onnx.ModelProto]) -> None:
    """The amounts become the Conv's own pads, on top of those it has; since opset 18 for named axes only."""
    layer = check_folded(model(), into="Conv")
    assert (layer.inputs[0], layer.nodes) == ("image", ("conv", "pad"))


def test_pad_of_opset_10_has_its_amounts_as_attributes() -> None:
    net = Net(opset=10)
    x = net.node("Pad", "pad", "image", pads=[0, 0, 0, 1, 0, 0, 2, 1])
    model = net.model(net.head(net.relu("relu", net.conv("conv", x, 3, 6)), 6))
    assert check_folded(model, into="Conv").attributes["pads"] == [1, 2, 3, 2]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: padded(mode="reflect"), "pad pads by 'reflect', a Conv pads with zeros"),
        (lambda: padded(mode="edge"), "pad pads by 'edge', a Conv pads with zeros"),
        (lambda: padded(None, np.array(-2.5, np.float32)), "pad fills with -2.5, a Conv with 0"),
        (lambda: padded(pads=[0, 1, 0, 0, 0, 0, 0, 0]), "pad pads the batch or channel axis, or crops"),
        (lambda: padded(pads=[0, 0, -1, 0, 0, 0, 0, 0]), "pad pads the batch or channel axis, or crops"),
        (lambda: padded({"auto_pad": "SAME_UPPER", "pads": None}), "the Conv pads by auto_pad SAME_UPPER already"),
    ],
    ids=["reflect", "edge", "value", "channels", "crop", "auto_pad"],
)
def test_pad_refusals(model: Callable[[], onnx.ModelProto], reason: str) -> None:
    """Each reason, in the words a user reads; Pad and Conv stay two layers."""
    graph = view(model())
    assert refusals(graph) == {"conv": reason}
    assert ops(graph)[:2] == ["Pad", "Conv"]


def test_pad_of_computed_amounts_and_fill() -> None:
    from fgcam_onnx.graph.passes.fold_pad import fold_pad

    for operands, reason in (
        (("image", "amounts"), "the amounts of pad are computed in the graph"),
        (("image", np.zeros(8, np.int64), "fill"), "the fill value of pad is computed in the graph"),
    ):
        net = Net()
        net.input("amounts", (8,), TensorProto.INT64)
        net.input("fill", ())
        x = net.conv("conv", net.node("Pad", "pad", *operands), 3, 6)
        result = fold_pad(unfolded(net.model(net.head(x, 6))))
        assert [(r.node, r.reason) for r in result.refused] == [("conv", reason)]
    net = Net()
    x = net.node("Pad", "pad", "image", np.zeros(8, np.int64))
    x = net.node("Conv", "conv", x, net.node("Mul", "w", net.input("factor", (1,)), net.random(6, 3, 3, 3)))
    result = fold_pad(unfolded(net.model(net.head(x, 6))))
    assert [(r.node, r.reason) for r in result.refused] == [("conv", "its weight is computed in the graph")]


# --- MatMul + Add -------------------------------------------------------------------------------------------


def linear(bias: np.ndarray, *, first: bool = False, axes: int = 2) -> onnx.ModelProto:
    net = Net()
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    x = net.node("ReduceMean", "gap", x, axes=[2, 3] if axes == 2 else [3], keepdims=0)
    m = net.node("MatMul", "matmul", x, net.random(4 if axes == 2 else 16, 5))
    return net.model(net.node("Add", "add", *((bias, m) if first else (m, bias))))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), ()], ids=str)
def test_matmul_and_add_fold_into_gemm(first: bool, shape: tuple[int, ...]) -> None:
    """A bias on either side, of any shape that broadcasts along the rows."""
    model = linear(np.asarray(np.random.default_rng(1).normal(size=shape), np.float32), first=first)
    layer = check_folded(model, into="Gemm")
    assert (layer.name, layer.output, layer.nodes) == ("matmul", "add.y", ("matmul", "add"))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: linear(np.ones(5, np.float32), axes=3), "matmul works on 3 axes, a Gemm on two"),
        (lambda: linear(np.ones((1, 1, 5), np.float32)), "the constant has shape [1, 1, 5], a bias has [5]"),
        (lambda: linear(np.ones((2, 5), np.float32)), "the constant has shape [2, 5], a bias has [5]"),
    ],
    ids=["three axes", "rank 3", "a row an image"],
)
def test_matmul_refusals(model: Callable[[], onnx.ModelProto], reason: str) -> None:
    graph = view(model())
    assert refusals(graph) == {"add": reason}
    assert ops(graph)[-2:] == ["MatMul", "Add"]


@pytest.mark.parametrize("order", ["Max, Min", "Min, Max"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_bounds_are_a_clip(shape: tuple[int, ...], first: bool, order: str) -> None:
    """A ReLU6 as JAX's converter writes it; the number on either side, the bounds in either order."""
    net = Net()
    x = net.conv("conv1", "image", 3, 6)
    for op in order.split(", "):
        bound = np.full(shape, 0.0 if op == "Max" else 0.5, np.float32)
        x = net.node(op, op, *((bound, x) if first else (x, bound)))
    layer = check_folded(net.model(net.head(x, 6)), into="Clip")
    assert layer.nodes == tuple(order.split(", "))
    assert (layer.constants[1], layer.constants[2]) == (0.0, 0.5)


def test_the_map_of_a_written_out_relu6_is_that_of_a_clip() -> None:
    def network(*ops: str) -> onnx.ModelProto:
        net = Net()
        x = net.conv("conv1", "image", 3, 6)
        if ops:
            x = net.node("Min", "low", net.node("Max", "high", x, np.float32(0)), np.float32(0.5))
        else:
            x = net.node("Clip", "clip", x, np.float32(0), np.float32(0.5))
        return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))

    x = tiny_models.pictures(network(), 2)
    a, b = (Explainer(model).explain(x, target=1) for model in (network(), network("Max", "Min")))
    np.testing.assert_allclose(b.relevance, a.relevance, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b.ledger.leaked, a.ledger.leaked, rtol=1e-6)


def test_what_is_no_bound_stays_an_extreme() -> None:
    """A number for each channel, one that would give the tensor an axis more, three operands, two tensors."""
    for bounds in ([np.zeros((6, 1, 1))], [np.zeros((1, 1, 1, 1, 1))], [np.zeros(()), np.ones(())], ["conv2.y"]):
        net = Net()
        x, _ = net.conv("conv1", "image", 3, 6), net.conv("conv2", "image", 3, 6)
        operands = [b if isinstance(b, str) else b.astype(np.float32) for b in bounds]
        assert "Max" in ops(view(net.model(net.node("Max", "max", x, *operands))))


def test_bounds_without_room_between_them_stay_two() -> None:
    """ONNX's Clip gives the upper bound where the lower one is above it: the order would matter."""
    net = Net()
    x = net.node("Max", "low", net.conv("conv1", "image", 3, 6), np.float32(0.5))
    assert ops(view(net.model(net.node("Min", "high", x, np.float32(-0.5))))) == ["Conv", "Clip", "Clip"]


BIASES = {
    "[1, C, 1, 1]": lambda c: (1, c, 1, 1),
    "[C, 1, 1]": lambda c: (c, 1, 1),
    "one number": lambda c: (),
    "[1, 1, 1, 1]": lambda c: (1, 1, 1, 1),
}


@pytest.mark.parametrize("shape", BIASES)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Conv, BatchNormalization"])
@pytest.mark.parametrize("first", [False, True])
def test_a_bias_folds_into_the_convolution(op: str, shape: str, first: bool) -> None:
    """As a constant on either side of an Add, beside a bias or alone, before a BatchNormalization or not."""
    net = Net()
    if op == "ConvTranspose":
        x, channels = net.node("ConvTranspose", "conv1", "image", net.random(3, 2, 3, 3), group=3), 6
    else:
        x, channels = net.conv("conv1", "image", 3, 6, bias=first), 6
    bias = net.rng.normal(size=BIASES[shape](channels)).astype(np.float32)
    x = net.node("Add", "bias", *((bias, x) if first else (x, bias)))
    if "Batch" in op:
        x = net.batch_norm("bn", x, channels)
    layer = check_folded(net.model(net.head(net.relu("relu", x), channels)), into=op.split(",")[0])
    assert layer.nodes[:2] == ("conv1", "bias")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 1, 16, 12), "the constant has shape [1, 1, 16, 12], and is not one number for each channel"),
        ((12,), "the constant has shape [12], and is not one number for each channel"),
        ((1, 1, 1, 1, 1), "the constant has shape [1, 1, 1, 1, 1], and is not one number for each channel"),
    ],
)
def test_a_constant_that_is_no_bias(shape: tuple[int, ...], reason: str) -> None:
    """One that differs from place to place stays an Add."""
    net = Net()
    x = net.node("Add", "add", net.conv("conv1", "image", 3, 6), np.ones(shape, np.float32))
    graph = view(net.model(net.node("Relu", "relu", x)))
    assert ops(graph) == ["Conv", "Add", "Relu"]
    assert refusals(graph)["add"] == reason


def test_matmul_of_two_activations_is_left_alone() -> None:
    net = Net(("n", 3, 12, 12))
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    m = net.node("Add", "add", net.node("MatMul", "matmul", x, x), np.float32(1))
    graph = view(net.model(net.head(m, 4)))
    assert refusals(graph) == {"add": "weight or bias is computed in the graph"}


# --- constants ----------------------------------------------------------------------------------------------


def as_constants(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    """The same model with its weights in Constant nodes, or behind Identity as a de-duplicating exporter has them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    made = []
    for tensor in model.graph.initializer:
        if how == "Constant":
            made.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            next(t for t in proto.graph.initializer if t.name == tensor.name).name = f"{tensor.name}/one"
            made.append(helper.make_node("Identity", [f"{tensor.name}/one"], [tensor.name]))
    if how == "Constant":
        del proto.graph.initializer[:]
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@pytest.mark.parametrize("how", ["Constant", "Identity"])
@pytest.mark.parametrize("name", ["vgg", "residual", "squeeze_excite", "nhwc"])
def test_constants_by_any_name(how: str, name: str) -> None:
    """Constant nodes and shared initializers behind Identity give the very layers that plain initializers give."""
    model = getattr(tiny_models, name)()
    plain, other = view(model), view(as_constants(model, how))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in other.layers]
    for a, b in zip(plain.layers, other.layers, strict=True):
        assert (a.op, a.inputs, a.outputs, a.attributes) == (b.op, b.inputs, b.outputs, b.attributes)
        assert a.constants.keys() == b.constants.keys()
        assert all(np.array_equal(a.constants[i], b.constants[i]) for i in a.constants)


@pytest.mark.parametrize(
    "kind", [{"value_float": 2.5}, {"value_floats": [2.5]}, {"value_int": 2}, {"value_ints": [2]}], ids=str
)
def test_every_kind_of_constant_node(kind: dict[str, Any]) -> None:
    net = Net()
    net.nodes.append(helper.make_node("Constant", [], ["raw"], name="raw", **kind))
    x = net.node("Mul", "scale", net.conv("conv", "image", 3, 4), net.node("Cast", "two", "raw", to=TensorProto.FLOAT))
    graph = view(net.model(net.head(net.relu("relu", x), 4)))
    (scale,) = [layer for layer in graph.layers if layer.op == "Mul"]
    assert float(scale.constants[1].ravel()[0]) == (2.5 if "float" in next(iter(kind)) else 2)


def test_a_shape_chain_is_a_constant_where_the_shape_is_known() -> None:
    """Shape -> Gather -> Concat -> Reshape, as exporters flatten: the sizes fold, the batch stays open."""
    net = Net()
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    size = net.node("Gather", "size", net.node("Shape", "shape", x, start=1, end=3), np.array(0), axis=0)
    target = net.node("Concat", "target", net.node("Unsqueeze", "un", size, np.array([0])), np.array([-1]), axis=0)
    full = net.node("Concat", "full", np.array([0]), target, axis=0)
    x = net.node("Reshape", "reshape", x, full)
    graph = view(net.model(net.node("ReduceMean", "gap", x, axes=[2], keepdims=0)))
    assert ops(graph) == ["Conv", "Relu", "Reshape", "ReduceMean"]
    assert graph.layers[2].constants[1].tolist() == [0, 4, -1]


def test_the_known_part_of_a_shape_is_a_constant() -> None:
    """The channels of a batch of any size, picked from its Shape and joined again; the batch itself is not."""
    net = Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    shape = net.node("Shape", "shape", x)
    channels = net.node(
        "Gather", "channels", net.node("Slice", "tail", shape, np.array([1]), np.array([4])), np.array([0])
    )
    rest = net.node("Concat", "rest", np.array([-1]), channels, np.array([16 * 12]), axis=0)
    flat = net.node("Reshape", "flat", x, rest)
    batch = net.node("Gather", "batch", shape, np.array([0]))
    whole = net.node("Reshape", "whole", flat, net.node("Concat", "sizes", batch, np.array([-1]), axis=0))
    graph = view(net.model(whole))
    reshapes = [layer for layer in graph.layers if layer.op == "Reshape"]
    assert reshapes[0].constants[1].tolist() == [-1, 6, 192]
    assert 1 not in reshapes[1].constants
    assert reshapes[1].sizes == {1}


def test_random_numbers_are_no_constant() -> None:
    net = Net()
    noise = net.node("RandomNormal", "noise", shape=[1, 4, 1, 1])
    x = net.node("Add", "add", net.conv("conv", "image", 3, 4), noise)
    assert "RandomNormal" in ops(view(net.model(net.head(x, 4))))


def test_the_domain_may_be_called_ai_onnx() -> None:
    """Opset domain "ai.onnx", and nodes that say so, are ONNX's own operators."""
    model = tiny_models.vgg()
    plain = view(model)
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    named = build_view(load(model))
    assert ops(named) == ops(plain)
    assert [layer.version for layer in named.layers] == [layer.version for layer in plain.layers]


def test_nodes_without_names_get_some() -> None:
    """Names are optional and need not be unique in ONNX; in the view they are both."""
    model = tiny_models.vgg()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Conv" else "same"
    names = [layer.name for layer in view(model).layers]
    assert len(set(names)) == len(names)
    assert "" not in names


def test_the_graph_that_runs_is_untouched() -> None:
    """Folding lives in the view: the loaded proto has every node of the file."""
    model = tiny_models.vgg()
    loaded = load(model)
    build_view(loaded)
    assert [n.SerializeToString() for n in loaded.proto.graph.node] == [n.SerializeToString() for n in model.graph.node]


@pytest.mark.parametrize("name", sorted(tiny_models.by_layers()))
def test_every_layer_of_every_model_keeps_its_tensors(name: str) -> None:
    """Layers read and write tensors of the original graph only, in topological order."""
    model = tiny_models.by_layers()[name]
    graph = view(model)
    original = {o for node in model.graph.node for o in node.output} | {v.name for v in model.graph.input}
    known = set(graph.inputs)
    for layer in graph.layers:
        assert set(layer.outputs) <= original
        for i in layer.operands:
            assert layer.inputs[i] in known, (layer.name, layer.inputs[i])
        known |= set(layer.outputs)
