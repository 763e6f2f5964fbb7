"""What the view claims about tensors: never negative, which operand is a gate, which axis is which, what is picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import Net

from fgcam_onnx import Explainer
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view


def view(model: onnx.ModelProto) -> LayerGraph:
    return build_view(load(model))


# --- signs --------------------------------------------------------------------------------------------------


def check_signs(model: onnx.ModelProto, seed: int) -> set[str]:
    """No tensor that is claimed >= 0 is ever negative, on normal and on extreme input; the claimed names."""
    graph = view(model)
    claimed = sorted(name for name, tensor in graph.tensors.items() if tensor.nonnegative)
    x = tiny_models.pictures(model, seed=seed)
    for scale in (1.0, 100.0):
        for name, value in zip(claimed, tiny_models.run(model, x * scale, *claimed) if claimed else [], strict=True):
            assert not (value < 0).any(), f"{name} reaches {np.nanmin(value)}"  # NaN, of overflow, has no sign
    return set(claimed)


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("vgg", {"relu1.y", "pool1.y", "relu2.y", "pool2.y", "flat.y", "relu3.y"}),
        ("residual", {"relu0.y", "b1.relu1.y", "b1.relu2.y", "b2.relu1.y", "b2.relu2.y", "gap.y", "flat.y"}),
        ("squeeze_excite", {"silu.sigmoid.y", "se.relu.y", "se.sigmoid.y", "hs.clip.y"}),
        ("concat", {"relu1.y", "relu2a.y", "relu2b.y", "join.y", "pool.y", "relu3.y", "gap.y", "flat.y"}),
        ("nhwc", {"relu1.y", "relu2.y", "to_nhwc.y", "gap.y"}),
    ],
)
def test_signs_of_known_networks(name: str, claims: set[str]) -> None:
    """Exactly the tensors behind a ReLU, a Sigmoid or a Clip at 0, through pools, joins and reshapes."""
    assert check_signs(getattr(tiny_models, name)(), 3) == claims


# One random operator on x, or on x and another tensor of its shape: (name, how).
STEPS: dict[str, Callable[[Net, str, str, str], str]] = {
    "Relu": lambda n, k, x, y: n.node("Relu", k, x),
    "LeakyRelu": lambda n, k, x, y: n.node("LeakyRelu", k, x, alpha=-0.3),
    "PRelu": lambda n, k, x, y: n.node("PRelu", k, x, np.float32(-0.5).reshape(1)),
    "Elu": lambda n, k, x, y: n.node("Elu", k, x, alpha=-1.5),
    "Celu": lambda n, k, x, y: n.node("Celu", k, x, alpha=2.0),
    "Selu": lambda n, k, x, y: n.node("Selu", k, x, gamma=-1.0),
    "Sigmoid": lambda n, k, x, y: n.node("Sigmoid", k, x),
    "HardSigmoid": lambda n, k, x, y: n.node("HardSigmoid", k, x, alpha=-0.4, beta=-0.1),
    "HardSwish": lambda n, k, x, y: n.node("HardSwish", k, x),
    "Softplus": lambda n, k, x, y: n.node("Softplus", k, x),
    "ThresholdedRelu": lambda n, k, x, y: n.node("ThresholdedRelu", k, x, alpha=-1.0),
    "Tanh": lambda n, k, x, y: n.node("Tanh", k, x),
    "Erf": lambda n, k, x, y: n.node("Erf", k, x),
    "Abs": lambda n, k, x, y: n.node("Abs", k, x),
    "Neg": lambda n, k, x, y: n.node("Neg", k, x),
    "Pow2": lambda n, k, x, y: n.node("Pow", k, x, np.float32(2)),
    "Pow3": lambda n, k, x, y: n.node("Pow", k, x, np.float32(3)),
    "Clip": lambda n, k, x, y: n.node("Clip", k, x, np.float32(-1), np.float32(1)),
    "Clip0": lambda n, k, x, y: n.node("Clip", k, x, np.float32(0)),
    "ClipMax": lambda n, k, x, y: n.node("Clip", k, x, None, np.float32(-1)),
    "Add": lambda n, k, x, y: n.node("Add", k, x, y),
    "Sub": lambda n, k, x, y: n.node("Sub", k, x, y),
    "Mul": lambda n, k, x, y: n.node("Mul", k, x, y),
    "Square": lambda n, k, x, y: n.node("Mul", k, x, x),
    "Max": lambda n, k, x, y: n.node("Max", k, x, y),
    "Min": lambda n, k, x, y: n.node("Min", k, x, y),
    "MulBy": lambda n, k, x, y: n.node("Mul", k, x, np.float32(-2)),
    "AddTo": lambda n, k, x, y: n.node("Add", k, x, np.float32(-0.5)),
    "From": lambda n, k, x, y: n.node("Sub", k, np.float32(1), x),
    "AddMore": lambda n, k, x, y: n.node("Add", k, x, np.float32(0.5)),
    "AvgPool": lambda n, k, x, y: n.node("AveragePool", k, x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "MaxPool": lambda n, k, x, y: n.node("MaxPool", k, x, kernel_shape=[3, 3], pads=[1] * 4),
    "LRN": lambda n, k, x, y: n.node("LRN", k, x, size=3),
    "BatchNorm": lambda n, k, x, y: n.batch_norm(k, x, 4),
    "Conv": lambda n, k, x, y: n.conv(k, x, 4, 4),
    "Pad": lambda n, k, x, y: n.node(
        "Slice", k, n.node("Pad", f"{k}.p", x, np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.float32(-3)),
        np.array([0, 0]), np.array([6, 5]), np.array([2, 3])),
    "Concat": lambda n, k, x, y: n.node(
        "Slice", k, n.node("Concat", f"{k}.c", y, x, axis=1), np.array([2]), np.array([6]), np.array([1])),
    "Resize": lambda n, k, x, y: n.node(
        "Resize", k, x, None, None, np.array([2, 4, 6, 5]), mode="cubic", cubic_coeff_a=-0.75),
    "SoftMax": lambda n, k, x, y: n.node("Softmax", k, x, axis=1),
    "LogSoft": lambda n, k, x, y: n.node("LogSoftmax", k, x, axis=1),
    "ReduceMin": lambda n, k, x, y: n.node("Add", k, x, n.node("ReduceMin", f"{k}.r", y, axes=[2, 3])),
    "ReduceL2": lambda n, k, x, y: n.node("Mul", k, x, n.node("ReduceL2", f"{k}.r", y, axes=[2, 3])),
}  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_signs_are_sound(steps: list[tuple[str, int]], seed: int) -> None:
    """On random chains of operators, slopes and offsets negative: a claim is never wrong on random input."""
    net = Net((2, 4, 6, 5), seed=seed)
    made = ["image", net.relu("start", net.conv("first", "image", 4, 4))]
    for i, (op, other) in enumerate(steps):
        made.append(STEPS[op](net, f"s{i}", made[-1], made[other % len(made)]))
    check_signs(net.model(net.head(net.node("Add", "last", made[-1], net.conv("c", made[-1], 4, 4)), 4)), seed)


@pytest.mark.parametrize("op", sorted(STEPS))
@pytest.mark.parametrize("positive", [True, False])
def test_signs_of_each_operator(op: str, positive: bool) -> None:
    """Each operator on its own, behind a ReLU and behind a bare convolution."""
    net = Net((2, 4, 6, 5), seed=7)
    x = net.conv("first", "image", 4, 4)
    x = net.relu("start", x) if positive else x
    check_signs(net.model(net.head(STEPS[op](net, "op", x, x), 4)), 1)


def test_clip_of_opset_10() -> None:
    """Before opset 11 the bounds of a Clip are attributes."""
    for low, claimed in ((0.0, True), (-1.0, False)):
        net = Net(opset=10)
        x = net.node("Clip", "clip", net.conv("conv", "image", 3, 4), min=low, max=6.0)
        graph = view(net.model(net.head(x, 4)))
        assert graph.tensor("clip.y").nonnegative is claimed


# --- gates --------------------------------------------------------------------------------------------------


def gates(build: Callable[[Net, str], str], opset: int = 17) -> dict[str, str]:
    """For each Mul with a gate: the gate's tensor. ``build`` gets a feature map of 4 channels and gives one back."""
    net = Net(opset=opset)
    graph = view(net.model(net.head(build(net, net.conv("conv", "image", 3, 4)), 4)))
    layers = {layer.name: layer for layer in graph.layers}
    return {name: layers[name].inputs[position] for name, position in graph.gates.items()}


def silu(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.node("Sigmoid", "sigmoid", x))


def silu_the_other_way(net: Net, x: str) -> str:
    return net.node("Mul", "mul", net.node("Sigmoid", "sigmoid", x), x)


def hard_swish(net: Net, x: str) -> str:
    g = net.node("Clip", "clip", net.node("Add", "add", x, np.float32(3)), np.float32(0), np.float32(6))
    return net.node("Div", "div", net.node("Mul", "mul", x, g), np.float32(6))


def hard_swish_scaled_first(net: Net, x: str) -> str:
    g = net.node("Clip", "clip", net.node("Add", "add", x, np.float32(3)), np.float32(0), np.float32(6))
    return net.node("Mul", "mul", x, net.node("Div", "div", g, np.float32(6)))


def hard_swish_by_hard_sigmoid(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.node("HardSigmoid", "hs", x, alpha=1 / 6, beta=0.5))


def gelu(net: Net, x: str) -> str:
    e = net.node("Erf", "erf", net.node("Div", "div", x, np.float32(np.sqrt(2))))
    return net.node("Mul", "half", net.node("Mul", "mul", x, net.node("Add", "add", e, np.float32(1))), np.float32(0.5))


def gelu_by_tanh(net: Net, x: str) -> str:
    inner = net.node(
        "Add", "inner", x, net.node("Mul", "k", net.node("Pow", "cube", x, np.float32(3)), np.float32(0.04))
    )
    t = net.node("Tanh", "tanh", net.node("Mul", "s", inner, np.float32(0.8)))
    return net.node("Mul", "mul", net.node("Add", "add", t, np.float32(1)), net.node("Mul", "half", x, np.float32(0.5)))


def mish(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.node("Tanh", "tanh", net.node("Softplus", "sp", x)))


def se(net: Net, x: str) -> str:
    s = net.node("Sigmoid", "sigmoid", net.conv("gate.fc", net.node("GlobalAveragePool", "pool", x), 4, 4, 1))
    return net.node("Mul", "mul", x, s)


def se_without_sigmoid(net: Net, x: str) -> str:
    """Any 1 x 1 map times a larger one: spatial size decides."""
    return net.node("Mul", "mul", net.conv("gate.fc", net.node("GlobalAveragePool", "pool", x), 4, 4, 1), x)


def spatial_attention(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.node("Sigmoid", "sigmoid", net.conv("att", x, 4, 1)))


def se_on_a_bounded_map(net: Net, x: str) -> str:
    """Both operands are bounded: being 1 x 1 in space decides."""
    x = net.node("Tanh", "tanh", x)
    s = net.node("Sigmoid", "sigmoid", net.conv("gate.fc", net.node("GlobalAveragePool", "pool", x), 4, 4, 1))
    return net.node("Mul", "mul", x, s)


@pytest.mark.parametrize(
    ("build", "gate"),
    [
        (silu, "sigmoid.y"),
        (silu_the_other_way, "sigmoid.y"),
        (hard_swish, "clip.y"),
        (hard_swish_scaled_first, "div.y"),
        (hard_swish_by_hard_sigmoid, "hs.y"),
        (gelu, "add.y"),
        (gelu_by_tanh, "add.y"),
        (mish, "tanh.y"),
        (se, "sigmoid.y"),
        (se_without_sigmoid, "gate.fc.y"),
        (spatial_attention, "sigmoid.y"),
        (se_on_a_bounded_map, "sigmoid.y"),
    ],
)
def test_gates(build: Callable[[Net, str], str], gate: str) -> None:
    """methods 3.2: SiLU, HardSwish, GELU, Mish and squeeze-and-excitation, in the forms exporters write them."""
    assert gates(build) == {"mul": gate}


def product(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.conv("other", x, 4, 4))


def square(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, x)


def two_sigmoids(net: Net, x: str) -> str:
    return net.node("Mul", "mul", net.node("Sigmoid", "a", x), net.node("Tanh", "b", x))


def relu_times(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, net.relu("relu", x))


def half_open_clip(net: Net, x: str) -> str:
    """A Clip without an upper bound is no interval."""
    return net.node("Mul", "mul", x, net.node("Clip", "clip", x, np.float32(0)))


def by_constant(net: Net, x: str) -> str:
    return net.node("Mul", "mul", x, np.float32(2))


def conv_of_sigmoid(net: Net, x: str) -> str:
    """A convolution is no constant scale: what comes out of it is a feature again."""
    return net.node("Mul", "mul", x, net.conv("after", net.node("Sigmoid", "sigmoid", x), 4, 4))


@pytest.mark.parametrize(
    "build", [product, square, two_sigmoids, relu_times, half_open_clip, by_constant, conv_of_sigmoid]
)
def test_no_gates(build: Callable[[Net, str], str]) -> None:
    """Two features, or two of a kind: neither says only how much."""
    assert gates(build) == {}


def test_clip_of_opset_10_is_a_gate() -> None:
    def build(low: float | None, high: float | None) -> Callable[[Net, str], str]:
        bounds: dict[str, Any] = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        return lambda net, x: net.node("Mul", "mul", x, net.node("Clip", "clip", x, **bounds))

    assert gates(build(0.0, 6.0), opset=10) == {"mul": "clip.y"}
    assert gates(build(0.0, None), opset=10) == {}
    assert gates(build(-3.4e38, 6.0), opset=10) == {}


def test_a_gate_gets_no_relevance() -> None:
    """The whole of the relevance goes to the signal: squeeze-and-excite branches have no row in the ledger."""
    model = tiny_models.squeeze_excite()
    nodes = {row.node for row in Explainer(model).explain(tiny_models.pictures(model)).ledger.rows}
    assert "se.scale" in nodes
    assert not nodes & {"se.pool", "se.down", "se.relu", "se.up", "se.sigmoid", "silu.sigmoid", "hs.add", "hs.clip"}


# --- layouts ------------------------------------------------------------------------------------------------


def layouts(model: onnx.ModelProto) -> dict[str, str | None]:
    return {name: tensor.layout for name, tensor in view(model).tensors.items()}


def test_nhwc_is_understood_without_being_told() -> None:
    found = layouts(tiny_models.nhwc())
    assert found["image"] == found["to_nhwc.y"] == "NHWC"
    assert found["to_nchw.y"] == found["conv1.y"] == found["relu2.y"] == "NCHW"
    assert found["gap.y"] is None
    assert Explainer(tiny_models.nhwc()).layout == "NHWC"


def test_one_and_three_dimensions() -> None:
    one, three = layouts(tiny_models.one_d()), layouts(tiny_models.three_d())
    assert one["image"] == one["pool.y"] == one["relu2.y"] == "NCW"
    assert three["image"] == three["pool.y"] == three["relu2.y"] == "NCDHW"
    assert one["fc.y"] is three["fc.y"] is None


def test_preprocessing_before_the_transpose() -> None:
    """Scaling, casting and padding in NHWC, then a Transpose: the letters travel back to the image."""
    net = Net(("n", 16, 12, 3))
    x = net.node("Sub", "minus", net.node("Div", "scale", "image", np.float32(127.5)), np.float32(1))
    x = net.node("Transpose", "turn", net.node("Pad", "pad", x, np.array([0, 1, 1, 0, 0, 1, 1, 0])), perm=[0, 3, 1, 2])
    model = net.model(net.head(net.relu("relu", net.conv("conv", x, 3, 4)), 4))
    found = layouts(model)
    assert {found[name] for name in ("image", "scale.y", "minus.y", "pad.y")} == {"NHWC"}
    assert found["turn.y"] == "NCHW"


@pytest.mark.parametrize("name", ["nhwc", "one_d", "three_d", "vgg"])
def test_the_map_has_the_image_s_own_space(name: str) -> None:
    """The relevance has the sizes of the input without its batch and channels, whatever their order."""
    model = getattr(tiny_models, name)()
    x = tiny_models.pictures(model)
    explainer = Explainer(model)
    space = [d for d, axis in zip(x.shape, explainer.layout, strict=True) if axis not in "NC"]
    assert explainer.explain(x).relevance.shape == (len(x), *space)


def test_nhwc_is_the_transposed_nchw() -> None:
    """One network, exported both ways: the same map."""
    plain = Net(seed=3)
    plain.model(plain.head(plain.relu("relu", plain.conv("conv", "image", 3, 4)), 4))
    turned = Net(("n", 16, 12, 3), seed=3)
    x = turned.node("Transpose", "turn", "image", perm=[0, 3, 1, 2])
    models = plain.model("fc.y"), turned.model(turned.head(turned.relu("relu", turned.conv("conv", x, 3, 4)), 4))
    image = tiny_models.pictures(models[0])
    one = Explainer(models[0]).explain(image).relevance
    two = Explainer(models[1]).explain(image.transpose(0, 2, 3, 1)).relevance
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


# --- what is still the picture ------------------------------------------------------------------------------


def test_from_image_follows_index_moves_and_affine_constants() -> None:
    """methods 9.2: the first convolution behind preprocessing in the graph gets z^B, one in mid-network never."""
    net = Net(("n", 16, 12, 3))
    x = net.node("Div", "scale", net.node("Sub", "mean", "image", np.float32(100)), np.float32(58))
    x = net.node("Transpose", "turn", x, perm=[0, 3, 1, 2])
    c = net.relu("relu", net.conv("conv", x, 3, 3))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", c, 3, 4)), 4))
    graph = view(model)
    assert {name for name, t in graph.tensors.items() if t.from_image} == {"image", "mean.y", "scale.y", "turn.y"}
    rows = {row.node: row.rule for row in Explainer(model).explain(tiny_models.pictures(model)).ledger.rows}
    assert (rows["conv"], rows["conv2"]) == ("z_box", "z_plus")


def test_two_convolutions_fed_by_the_image() -> None:
    """z^B at each of them."""
    net = Net()
    a, b = net.conv("conv1", "image", 3, 4), net.conv("conv2", "image", 3, 4, 1)
    x = net.relu("relu", net.node("Add", "add", a, b))
    model = net.model(net.head(x, 4))
    rows = {row.node: row.rule for row in Explainer(model).explain(tiny_models.pictures(model)).ledger.rows}
    assert rows["conv1"] == rows["conv2"] == "z_box"
