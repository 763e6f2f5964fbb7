"""Pictures of every form, several inputs, preprocessing inside the graph: each against the same network put plainly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
import dense_models
import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, numpy_helper
from tiny_models import CLASSES, Net

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import OrtBackend
from fgcam_onnx.errors import InputError, ModelError, OptionError

RNG = np.random.default_rng


def close(have: Any, want: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * np.abs(want).max())


def fast(model: onnx.ModelProto, **options: Any) -> Explainer:
    return Explainer(model, backend="ort", threads=1, **options)


def balanced(e: Explanation) -> None:
    """Every node closes, and what was put on L arrived, leaked or went to another input."""
    assert e.ledger.residual < 1e-5
    leaked = np.sum([row.leaked for row in e.ledger.rows], axis=0)
    aside = np.sum(list(e.ledger.aside.values()), axis=0)
    whole = e.ledger.start_absolute.max()
    np.testing.assert_allclose(e.ledger.arrived + leaked + aside, e.ledger.start, rtol=0, atol=1e-5 * whole)
    space = tuple(range(1, e.relevance.ndim))
    np.testing.assert_allclose(e.ledger.arrived, e.relevance.sum(space), rtol=0, atol=1e-5 * whole)


# --- models -------------------------------------------------------------------------------------------------


def channels(c: int, *, layout: str = "NCHW") -> onnx.ModelProto:
    """conv, relu, a convolution to 3 channels, conv with those: 3 channels in mid-network are no picture."""
    net = Net(("n", c, 12, 10) if layout == "NCHW" else ("n", 12, 10, c))
    x = "image" if layout == "NCHW" else net.node("Transpose", "to_nchw", "image", perm=[0, 3, 1, 2])
    x = net.relu("relu1", net.conv("conv1", x, c, 3))
    x = net.relu("relu2", net.conv("conv2", x, 3, 6, strides=[2, 2]))
    return net.model(net.head(x, 6))


def prepared(inside: bool) -> onnx.ModelProto:
    """A network on normalised [n, 3, 16, 12]; ``inside`` it takes bytes [n, 8, 6, 3] and prepares them itself."""
    net = Net(("n", 8, 6, 3) if inside else ("n", 3, 16, 12))
    x = "image"
    if inside:
        net.inputs[0].type.tensor_type.elem_type = TensorProto.UINT8
        x = net.node("Cast", "cast", x, to=TensorProto.FLOAT)
        x = net.node("Div", "div", net.node("Sub", "sub", x, MEAN), STD)
        x = net.node("Transpose", "to_nchw", x, perm=[0, 3, 1, 2])
        x = net.node("Resize", "grow", x, None, np.array([1, 1, 2, 2], np.float32), mode="nearest")
    x = net.max_pool("pool", net.relu("relu1", net.conv("conv1", x, 3, 6)))
    return net.model(net.node("Softmax", "softmax", net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8), axis=1))


MEAN, STD = np.array([120, 110, 100], np.float32), np.array([60, 55, 50], np.float32)


def line(rank: int) -> onnx.ModelProto:
    """One network of rows: as a signal [n, 2, 24], as a picture of height 1, as a volume of depth and height 1."""
    net = Net(("n", 2, *[1] * (rank - 1), 24), seed=7)
    ones, pads = [1] * (rank - 1), [0] * (rank - 1)

    def conv(name: str, x: str, ci: int, co: int) -> str:
        weight = net.random(co, ci, 3).reshape(co, ci, *ones, 3)
        return net.node("Conv", name, x, weight, net.random(co, scale=0.1), pads=[*pads, 1, *pads, 1])

    x = net.relu("relu1", conv("conv1", "image", 2, 6))
    x = net.node("MaxPool", "pool", x, kernel_shape=[*ones, 2], strides=[*ones, 2])
    return net.model(net.head(net.relu("relu2", conv("conv2", x, 6, 8)), 8))


def joined(op: str, shape: Sequence[int | str], *, constant: np.ndarray | None = None) -> onnx.ModelProto:
    """conv, relu, ``op`` with another input "side" (or that constant), conv, relu, head."""
    net = Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    side: Any = net.input("side", shape) if constant is None else constant
    x = net.node(op, "join", x, side)
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))


def with_depth(inside: bool) -> onnx.ModelProto:
    """A picture and a depth map, joined before the first convolution; ``inside`` False: one input of 4 channels."""
    net = Net(("n", 3 if inside else 4, 12, 10))
    x = net.node("Concat", "join", "image", net.input("depth", ("n", 1, 12, 10)), axis=1) if inside else "image"
    x = net.relu("relu1", net.conv("conv1", x, 4, 6))
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8, strides=[2, 2])), 8))


# --- every form, on both backends ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    model: Callable[[], onnx.ModelProto]
    layout: str
    target: Any = 1
    named: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


FORMS = {
    "1 channel": Form(lambda: channels(1), "NCHW"),
    "4 channels": Form(lambda: channels(4), "NCHW"),
    "1 channel last": Form(lambda: channels(1, layout="NHWC"), "NHWC"),
    "4 channels last": Form(lambda: channels(4, layout="NHWC"), "NHWC"),
    "bytes": Form(lambda: prepared(True), "NHWC"),
    "signal": Form(lambda: line(1), "NCW"),
    "volume": Form(lambda: line(3), "NCDHW"),
    "free size": Form(tiny_models.free_size, "NCHW"),
    "fixed batch": Form(lambda: tiny_models.fixed_batch(3), "NCHW"),
    "free size, dense": Form(lambda: dense_models.segmenter(shape=("n", 3, "h", "w")), "NCHW", (2, 3, None)),
    "dense signal": Form(dense_models.signals, "NCW", (0, slice(3, 9))),
    "dense volume": Form(dense_models.volumes, "NCDHW", (1, None, 3, 2)),
    "detector": Form(dense_models.detector, "NCHW", (50, 7)),
    "u-net": Form(dense_models.unet, "NCHW", (0, None, None)),
    "two inputs": Form(tiny_models.two_inputs, "NCHW", inputs={"facts": (2, 2)}),
    "depth": Form(lambda: with_depth(True), "NCHW", named={"input": "image"}, inputs={"depth": (2, 1, 12, 10)}),
    "added": Form(lambda: joined("Add", (6, 1, 1)), "NCHW", named={"input": "image"}, inputs={"side": (6, 1, 1)}),
}


@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-layer-cam"])
@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_on_both_backends(name: str, method: str) -> None:
    """float32 [n, *space], all of it accounted for, the same from the definition in float64 and the compiled graph."""
    form = FORMS[name]
    model = form.model()
    x = tiny_models.pictures(model, 2)
    if name == "bytes":
        x = RNG(0).integers(0, 256, x.shape, dtype=np.uint8)
    inputs = {key: RNG(1).normal(size=shape).astype(np.float32) for key, shape in form.inputs.items()}
    found = [
        Explainer(model, backend=backend, **form.named).explain(x, target=form.target, method=method, inputs=inputs)
        for backend in (OrtBackend(threads=1), NumpyBackend(np.dtype(np.float64)))
    ]
    space = tuple(d for d, axis in zip(x.shape, form.layout, strict=True) if axis not in "NC")
    for e in found:
        assert (e.relevance.shape, e.relevance.dtype.name) == ((2, *space), "float32")
        assert e.relevance.any()
        balanced(e)
    close(found[0].relevance, found[1].relevance)
    assert list(found[0].ledger.aside) == list(found[1].ledger.aside)
    for key, amount in found[1].ledger.aside.items():
        np.testing.assert_allclose(found[0].ledger.aside[key], amount, rtol=1e-4)


@backends.needs_gxx
@pytest.mark.parametrize("name", ["added", "free size, dense", "detector", "dense signal"])
def test_the_cuda_program_too(name: str) -> None:
    """Gradient, components and walk as one program on the kernels: dense seeds, and the books of other inputs."""
    form = FORMS[name]
    model = form.model()
    x = tiny_models.pictures(model, 2)
    inputs = {key: RNG(1).normal(size=shape).astype(np.float32) for key, shape in form.inputs.items()}
    e, expected = (
        Explainer(model, backend=backend, **form.named).explain(x, target=form.target, inputs=inputs)
        for backend in (backends.cuda_on_cpu(), NumpyBackend(np.dtype(np.float64)))
    )
    balanced(e)
    close(e.relevance, expected.relevance)
    assert list(e.ledger.aside) == list(expected.ledger.aside) == list(form.inputs)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    form = FORMS[name]
    model = form.model()
    x = tiny_models.pictures(model, 2)
    if name == "bytes":
        x = RNG(0).integers(0, 256, x.shape, dtype=np.uint8)
    inputs = {key: RNG(1).normal(size=shape).astype(np.float32) for key, shape in form.inputs.items()}
    explainer = fast(model, **form.named)
    both = explainer.explain(x, target=form.target, inputs=inputs)
    for i in range(2):
        own = {key: a[i : i + 1] if len(a) == 2 else a for key, a in inputs.items()}
        one = explainer.explain(x[i : i + 1], target=form.target, inputs=own)
        close(both.relevance[i], one.relevance[0])
        for key, amount in one.ledger.aside.items():
            np.testing.assert_allclose(both.ledger.aside[key][i], amount[0], rtol=1e-4)


@pytest.mark.parametrize("c", [1, 3, 4])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_z_box_is_for_the_picture_s_layer_alone(c: int, layout: str) -> None:
    """However many channels the picture has; 3 channels in mid-network get z+."""
    model = channels(c, layout=layout)
    e = fast(model).explain(tiny_models.pictures(model, 1))
    assert {row.node: row.rule for row in e.ledger.rows if row.op == "Conv"} == {"conv1": "z_box", "conv2": "z_plus"}


@pytest.mark.parametrize("c", [1, 3, 4])
@pytest.mark.parametrize("method", ["fg-grad-cam", "layer-cam", "score-cam"])
def test_channels_last_is_channels_first(c: int, method: str) -> None:
    first, last = channels(c), channels(c, layout="NHWC")
    x = tiny_models.pictures(first, 2)
    one = fast(first).explain(x, method=method)
    other = fast(last).explain(x.transpose(0, 2, 3, 1), method=method)
    close(other.relevance, one.relevance)
    assert fast(last).layout == "NHWC"


@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-layer-cam", "grad-cam", "fg-score-cam"])
def test_a_signal_is_a_picture_of_one_row_and_a_volume_of_one_plane(method: str) -> None:
    """The same weights and numbers with one, two and three axes of space: the same map."""
    x = RNG(3).normal(size=(2, 2, 24)).astype(np.float32)
    signal = fast(line(1)).explain(x, method=method).relevance
    picture = fast(line(2)).explain(x[:, :, None], method=method).relevance
    volume = fast(line(3)).explain(x[:, :, None, None], method=method).relevance
    close(picture[:, 0], signal)
    close(volume[:, 0, 0], signal)
    assert signal.any()


@pytest.mark.parametrize("name", ["signal", "volume", "dense volume"])
def test_pictures_of_signals_and_volumes(name: str, tmp_path: Path) -> None:
    """A heatmap of their own size, no overlay, and a folder with the map and the manifest."""
    form = FORMS[name]
    model = form.model()
    e = fast(model).explain(tiny_models.pictures(model, 2), target=form.target, method="layer-cam")
    heat = e.heatmap()
    assert heat.shape == (2, *e.input_size)
    assert heat.min() >= 0
    assert heat.max() == 1
    for images in (None, np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="only a map over height and width can be laid over images"):
            e.overlay(images)
    folder = e.save(tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "relevance.npy"]
    np.testing.assert_array_equal(np.load(folder / "relevance.npy"), e.relevance)


@pytest.mark.parametrize("name", ["free size", "free size, dense"])
def test_several_sizes_through_one_explainer(name: str) -> None:
    """Each as from a file in which that size is fixed."""
    free = FORMS[name].model()
    explainer = fast(free)
    for n, h, w in ((1, 14, 10), (3, 8, 22), (2, 14, 10), (1, 8, 22)):
        fixed = onnx.ModelProto()
        fixed.CopyFrom(free)
        for axis, size in enumerate((n, 3, h, w)):
            fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        fixed.graph.output[0].type.tensor_type.ClearField("shape")
        x = RNG(n).normal(size=(n, 3, h, w)).astype(np.float32)
        e, expected = (each.explain(x, target=FORMS[name].target) for each in (explainer, fast(fixed)))
        assert e.relevance.shape == (n, h, w)
        assert e.start == expected.start
        close(e.relevance, expected.relevance)


# --- preprocessing inside the graph -------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["per_image", (-3, 3)], ids=str)
def test_preprocessing_inside_the_graph(bounds: Any) -> None:
    """Cast, Sub, Div, Transpose and Resize hand all relevance through: the map is that of the network behind them."""
    pixels = RNG(5).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    x = np.repeat(np.repeat(((pixels - MEAN) / STD).transpose(0, 3, 1, 2), 2, axis=2), 2, axis=3).astype(np.float32)
    inside, outside = fast(prepared(True)), fast(prepared(False))
    assert (inside.input_dtype, inside.layout) == ("uint8", "NHWC")
    e = inside.explain(pixels, zb_bounds=bounds)
    expected = outside.explain(x, zb_bounds=bounds)
    close(e.logits, expected.logits)
    close(e.relevance, expected.relevance.reshape(2, 8, 2, 6, 2).sum(axis=(2, 4)))
    rules = {row.node: row.rule for row in e.ledger.rows}
    assert rules["conv1"] == "z_box"
    assert {"cast", "sub", "div", "to_nchw", "grow"} <= set(rules)
    balanced(e)


def test_bytes_are_bytes() -> None:
    """Numbers that an integer input cannot hold are refused, not cut off: 0.5 would be black, 300 would be 44."""
    explainer = fast(prepared(True))
    pixels = RNG(5).integers(0, 256, (1, 8, 6, 3), dtype=np.uint8)
    expected = explainer.explain(pixels).relevance
    np.testing.assert_array_equal(explainer.explain(pixels.astype(np.float64)).relevance, expected)
    for wrong in (pixels / 255.0, pixels.astype(np.int32) + 200, pixels - 300.0):
        with pytest.raises(InputError, match=r"the input holds \d+ numbers that uint8 cannot"):
            explainer.explain(wrong)
    x = np.zeros((1, 3, 16, 12))
    x[0, 0, 0, 0] = 1e300
    with pytest.raises(InputError, match="the input holds 1 numbers that float32 cannot"):
        fast(tiny_models.vgg()).explain(x)


# --- several inputs -----------------------------------------------------------------------------------------


def test_the_picture_among_several_inputs() -> None:
    """The only spatial one, with a note; else by name."""
    explainer = fast(tiny_models.two_inputs())
    assert (explainer.input_name, explainer.other_inputs) == ("image", {"facts": ("n", 2)})
    assert explainer.notes == ["the model takes inputs image [n, 3, 16, 12], facts [n, 2]: the picture is 'image'"]
    named = fast(with_depth(True), input="depth")
    assert (named.input_name, named.other_inputs, named.notes) == ("depth", {"image": ("n", 3, 12, 10)}, [])


def test_logits_with_other_inputs_are_the_network_s_own() -> None:
    """A row for each image; one row for all; a row without its batch axis."""
    model = tiny_models.two_inputs()
    explainer = fast(model)
    x, facts = tiny_models.pictures(model, 3), RNG(2).normal(size=(3, 2)).astype(np.float32)
    session = runtime_session(model)
    for given, rows in ((facts, facts), (facts[:1], facts[[0, 0, 0]]), (facts[1], facts[[1, 1, 1]])):
        e = explainer.explain(x, inputs={"facts": given})
        np.testing.assert_allclose(e.logits, session.run(None, {"image": x, "facts": rows})[0], rtol=1e-4, atol=1e-5)
    found = explainer.activations(x, ["join"], inputs={"facts": facts})["join"]
    np.testing.assert_array_equal(found[:, 6:], facts)


def runtime_session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-layer-cam", "score-cam"])
@pytest.mark.parametrize("batch", ["n", 4])
def test_an_input_that_gets_no_relevance_is_a_constant(batch: str | int, method: str) -> None:
    """Facts that join in the head: each map is that of the network with those facts written into the file."""
    model = tiny_models.two_inputs()
    for entry in model.graph.input:
        if batch != "n":
            entry.type.tensor_type.shape.dim[0].dim_value = int(batch)
    x, facts = tiny_models.pictures(tiny_models.two_inputs(), 5), RNG(2).normal(size=(5, 2)).astype(np.float32)
    e = fast(model).explain(x, inputs={"facts": facts}, method=method, target=3, batch_size=2 if batch == "n" else None)
    assert e.ledger.aside == {}
    for i in range(5):
        fixed = tiny_models.two_inputs()
        del fixed.graph.input[1]
        fixed.graph.initializer.append(numpy_helper.from_array(facts[i : i + 1], "facts"))
        one = fast(fixed).explain(x[i : i + 1], method=method, target=3, batch_size=1)
        close(e.relevance[i], one.relevance[0])
        close(e.logits[i], one.logits[0])


def test_shares_of_an_input_by_hand() -> None:
    """relu(x) + side = (1, 3) + (1, 1): of the relevance (8, 4) the side gets 4 and 1, and the ledger says so."""
    net = Net(("n", 1, 2))
    x = net.node(
        "Add", "add", net.max_pool("relu", net.relu("first", "image"), 1, rank=1), net.input("side", ("n", 1, 2))
    )
    model = net.model(net.node("MatMul", "fc", net.node("Flatten", "flat", x), np.array([[8.0], [1.0]])))
    for backend in ("numpy", "ort"):
        explainer = Explainer(model, input="image", backend=backend)
        e = explainer.explain(
            np.array([[[1, 3]], [[1, 3]]], np.float32), inputs={"side": np.array([[[1, 1]], [[-1, 1]]], np.float32)},
            method="fg-layer-cam", start="add.y", layer="relu.y",
        )  # fmt: skip
        # Layer-CAM puts g A on the sum: (8, 1) times (2, 4), and (8, 1) times (0, 4).
        np.testing.assert_allclose(e.relevance, [[8, 3], [0, 3]], rtol=1e-6)
        np.testing.assert_allclose(e.ledger.start, [20, 4])
        np.testing.assert_allclose(e.ledger.aside["side"], [9, 1], rtol=1e-6)
        assert e.ledger.elsewhere["side"] == pytest.approx(9 / 20)
        (row,) = e.ledger.rows
        np.testing.assert_allclose(row.relevance_out, [20, 4], rtol=1e-6)
        assert e.ledger.leaked == 0


@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-layer-cam"])
def test_a_picture_and_its_depth_map(method: str) -> None:
    """The channels of one picture as two inputs: both maps add up to its map, and each ledger names the other."""
    whole, parts = with_depth(False), with_depth(True)
    x = tiny_models.pictures(whole, 2)
    inputs = {"image": x[:, :3], "depth": x[:, 3:]}
    expected = fast(whole).explain(x, method=method, target=2)
    found = {}
    for name, other in (("image", "depth"), ("depth", "image")):
        explainer = fast(parts, input=name)
        found[name] = e = explainer.explain(inputs[name], inputs={other: inputs[other]}, method=method, target=2)
        again = explainer.explain(
            inputs[name], inputs={other: inputs[other]}, method=method, target=2, batchnorm="identity"
        )
        close(again.relevance, e.relevance)  # there is none: the second view of the file has the same picture
        assert [row.rule for row in e.ledger.rows if row.node == "conv1"] == ["z_box"]
        assert list(e.ledger.aside) == [other]
        balanced(e)
    close(found["image"].relevance + found["depth"].relevance, expected.relevance)
    np.testing.assert_allclose(found["image"].ledger.aside["depth"], found["depth"].ledger.arrived, rtol=1e-3)


def test_bounds_of_a_first_layer_that_reads_two_inputs() -> None:
    """One bound a channel of the layer, the depth map's included; another number is an error that says where."""
    x = tiny_models.pictures(with_depth(False), 2)
    low, high = (-9, -8, -7, -6), (9, 8, 7, 6)
    options: dict[str, Any] = {"inputs": {"depth": x[:, 3:]}, "target": 1}
    parts, whole = fast(with_depth(True), input="image"), fast(with_depth(False))
    e = parts.explain(x[:, :3], zb_bounds=(low, high), **options)
    expected = whole.explain(x, zb_bounds=(low, high), target=1)
    np.testing.assert_allclose(e.ledger.arrived + e.ledger.aside["depth"], expected.ledger.arrived, rtol=1e-4)
    with pytest.raises(OptionError) as caught:
        parts.explain(x[:, :3], zb_bounds=(low[:3], high[:3]), **options)
    assert str(caught.value) == (
        "option zb_bounds has 3 numbers, and the first layer reads 4 channels\n"
        "  at      node 'conv1'\n"
        "  next    give one number for all, or one for each of these channels"
    )


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("shape", [("n", 6, 16, 12), ("m", 6, 16, 12), (1, 6, 16, 12), (6, 16, 12), (6, 1, 1)], ids=str)
def test_relevance_that_goes_to_an_input_is_accounted_for(shape: Sequence[Any], op: str) -> None:
    """A row for each image or shared by all, with a batch axis or without: the books are those of single images."""
    model = joined(op, shape)
    x = tiny_models.pictures(model, 3)
    side = RNG(4).normal(size=[3 if isinstance(d, str) else d for d in shape]).astype(np.float32)
    explainer = fast(model, input="image")
    e = explainer.explain(x, inputs={"side": side}, target=1)
    balanced(e)
    assert list(e.ledger.aside) == ["side"]
    assert (e.ledger.aside_absolute["side"] >= np.abs(e.ledger.aside["side"])).all()
    assert 0.01 < e.ledger.elsewhere["side"] < 1
    assert e.provenance["inputs"]["side"]["rows"] == ("one an image" if isinstance(shape[0], str) else "shared")
    for i in range(3):
        own = side[i : i + 1] if isinstance(shape[0], str) else side
        one = explainer.explain(x[i : i + 1], inputs={"side": own}, target=1)
        close(e.relevance[i], one.relevance[0])
        assert e.ledger.aside["side"][i] == pytest.approx(one.ledger.aside["side"][0], rel=1e-4)


def test_what_goes_aside_has_the_name_of_its_input() -> None:
    """However far from it the branches part, and added up over several; the tensor's own where two inputs meet."""
    net = Net()
    one, two = (net.input(name, ("n", 6, 16, 12)) for name in ("one", "two"))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    x = net.node("Add", "add1", x, net.relu("relu.one", one))
    x = net.node("Add", "add2", x, net.node("Sigmoid", "sigmoid.one", one))
    x = net.node("Add", "add3", x, net.relu("both", net.node("Add", "mixed", one, two)))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    sides = {name: RNG(i).normal(size=(2, 6, 16, 12)).astype(np.float32) for i, name in enumerate(("one", "two"))}
    e = fast(model, input="image").explain(tiny_models.pictures(model, 2), inputs=sides, target=1)
    balanced(e)
    assert sorted(e.ledger.aside) == ["both.y", "one"]
    rows = {row.node: row for row in e.ledger.rows}
    assert not {"relu.one", "sigmoid.one", "mixed"} & set(rows)
    added = rows["add2"].relevance_out - rows["add1"].relevance_in
    added += rows["add1"].relevance_out - rows["relu1"].relevance_in
    np.testing.assert_allclose(e.ledger.aside["one"], added, rtol=1e-3, atol=1e-5)


def test_as_many_images_as_a_shared_input_has_channels() -> None:
    """Six images and a side of shape (6, 1, 1): its first axis is no batch, though it has the batch's length."""
    model = joined("Add", (6, 1, 1))
    x, side = tiny_models.pictures(model, 6), RNG(4).normal(size=(6, 1, 1)).astype(np.float32)
    explainer = fast(model, input="image")
    e = explainer.explain(x, inputs={"side": side}, target=1)
    balanced(e)
    assert e.provenance["inputs"]["side"]["rows"] == "shared"
    for i in range(6):
        one = explainer.explain(x[i : i + 1], inputs={"side": side}, target=1)
        close(e.relevance[i], one.relevance[0])
        assert e.ledger.aside["side"][i] == pytest.approx(one.ledger.aside["side"][0], rel=1e-4)


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_books_of_a_fixed_batch_with_another_input(n: int) -> None:
    """A batch of 4 that is filled up, rows and all: what was filled up is in no book."""
    model, free = joined("Add", (4, 6, 16, 12)), joined("Add", ("n", 6, 16, 12))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    x, side = tiny_models.pictures(free, n), RNG(4).normal(size=(n, 6, 16, 12)).astype(np.float32)
    e, expected = (fast(each, input="image").explain(x, inputs={"side": side}, target=1) for each in (model, free))
    balanced(e)
    close(e.relevance, expected.relevance)
    np.testing.assert_allclose(e.ledger.aside["side"], expected.ledger.aside["side"], rtol=1e-4)
    np.testing.assert_allclose(e.ledger.aside_absolute["side"], expected.ledger.aside_absolute["side"], rtol=1e-4)


def test_pixels_are_those_of_the_picture() -> None:
    """What both inputs have a part in is read by a first layer; a copy of the other input alone is no picture."""
    net = Net(("n", 3, 12, 10))
    side = net.node("Cast", "side.cast", net.input("side", ("n", 1, 12, 10)), to=TensorProto.FLOAT)
    both = net.node("Concat", "both", net.node("Mul", "scaled", "image", np.float32(2)), side, axis=1)
    model = net.model(net.head(net.relu("relu", net.conv("conv", both, 4, 6)), 6))
    graph = fast(model, input="image").graph
    pixels = {name: graph.tensor(name).from_image for name in ("image", "scaled.y", "side", "side.cast.y", "both.y")}
    assert pixels == {"image": True, "scaled.y": True, "side": False, "side.cast.y": False, "both.y": True}


def test_relevance_of_a_fixed_batch_cannot_be_told_apart_in_a_shared_input() -> None:
    net = Net((4, 3, 16, 12))
    x = net.node("Add", "join", net.relu("relu1", net.conv("conv1", "image", 3, 6)), net.input("side", (6, 16, 12)))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    with pytest.raises(ModelError) as caught:
        fast(model, input="image").explain(tiny_models.pictures(model, 2), inputs={"side": np.ones((6, 16, 12))})
    assert str(caught.value) == (
        "relevance of several images would meet in one tensor, and could not be told apart\n"
        "  at      tensor 'side', which has no batch axis\n"
        "  known   the model's batch is fixed at 4\n"
        "  next    export the model with a free batch, or choose layer= behind the place where the tensor comes in"
    )


def test_an_input_with_a_value_in_the_file() -> None:
    """It is optional: left out, the initializer serves, and the walk takes it for the constant that it is."""
    shape = (1, 6, 16, 12)
    value = RNG(4).normal(size=shape).astype(np.float32)
    model = joined("Add", shape)
    model.graph.initializer.append(numpy_helper.from_array(value, "side"))
    explainer = fast(model)
    assert (explainer.input_name, explainer.other_inputs, explainer.notes) == ("image", {}, [])
    x = tiny_models.pictures(model, 2)
    e = explainer.explain(x, target=1)
    expected = fast(joined("Add", shape, constant=value)).explain(x, target=1)
    close(e.relevance, expected.relevance)
    close(e.logits, expected.logits)
    assert e.ledger.aside == {}


def test_other_inputs_are_recorded(tmp_path: Path) -> None:
    """By shape and value, or by hash where the value is long."""
    model = tiny_models.two_inputs()
    x = tiny_models.pictures(model, 2)
    facts = np.array([[1, 2], [3, 4]], np.float32)
    folder = fast(model).explain(x, inputs={"facts": facts}).save(tmp_path / "short")
    provenance = json.loads((folder / "manifest.json").read_text())["provenance"]
    assert provenance["input"] == "image"
    assert provenance["inputs"] == {
        "facts": {"shape": [2, 2], "dtype": "float32", "rows": "one an image", "values": [[1, 2], [3, 4]]}
    }
    e = fast(with_depth(True), input="image").explain(
        np.ones((1, 3, 12, 10)), inputs={"depth": np.ones((1, 1, 12, 10))}
    )
    record = json.loads((e.save(tmp_path / "long") / "manifest.json").read_text())
    assert len(record["provenance"]["inputs"]["depth"]["sha256"]) == 64
    assert record["ledger"]["aside"]["depth"] == pytest.approx(e.ledger.aside["depth"].tolist())


def test_integers_and_truth_values_beside_the_picture() -> None:
    """A number of another type reaches the network as that type, and a wrong one does not."""
    net = Net()
    factor = net.node("Cast", "cast", net.input("level", (), TensorProto.INT64), to=TensorProto.FLOAT)
    switch = net.node("Where", "where", net.input("on", (), TensorProto.BOOL), factor, np.float32(0))
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    flat = net.node("Flatten", "flat", net.node("GlobalAveragePool", "gap", x))
    score = net.node("Gemm", "fc", flat, net.random(CLASSES, 4), transB=1)
    model = net.model(net.node("Mul", "scale", score, switch))
    explainer = fast(model)
    x = tiny_models.pictures(model, 2)
    plain = explainer.explain(x, inputs={"level": 1, "on": True}, target=1)
    tripled = explainer.explain(x, inputs={"level": np.int32(3), "on": np.array(True)}, target=1)
    close(tripled.relevance, 3 * plain.relevance)
    assert not explainer.explain(x, inputs={"level": 3, "on": False}, target=1).relevance.any()
    for level in (2.5, [1, 2], "high"):
        with pytest.raises(InputError, match=r"input 'level' ha|holds"):
            explainer.explain(x, inputs={"level": level, "on": True})


def test_a_backend_shared_by_two_views_of_one_file() -> None:
    """The same file, another input as the picture: what was compiled for the one does not serve the other."""
    model = with_depth(True)
    x = tiny_models.pictures(with_depth(False), 1)
    inputs = {"image": x[:, :3], "depth": x[:, 3:]}
    backend = OrtBackend(threads=1)
    for name, other in (("image", "depth"), ("depth", "image"), ("image", "depth")):
        e = Explainer(model, input=name, backend=backend).explain(inputs[name], inputs={other: inputs[other]})
        alone = fast(model, input=name).explain(inputs[name], inputs={other: inputs[other]})
        np.testing.assert_array_equal(e.relevance, alone.relevance)


def test_a_first_layer_is_one_of_the_picture_alone() -> None:
    """A tensor of pixels as the target, in two views of one file: z^B where they are the picture's, z+ where not."""
    net = Net()
    twice = net.node("Mul", "twice", "image", np.float32(2))
    side = net.conv("conv2", net.input("side", ("n", 3, 16, 12)), 3, 4)
    x = net.relu("relu1", net.node("Add", "add", net.conv("conv1", twice, 3, 4), side))
    model = net.model(net.head(net.relu("relu3", net.conv("conv3", x, 4, 6)), 6))
    x, y = (RNG(i).normal(size=(1, 3, 16, 12)).astype(np.float32) for i in (0, 1))
    backend = OrtBackend(threads=1)
    for _ in range(2):
        for picture, given, other, rule in (("image", x, {"side": y}, "z_box"), ("side", y, {"image": x}, "z_plus")):
            e, alone = (
                Explainer(model, input=picture, backend=b).explain(given, inputs=other, layer="twice.y", target=1)
                for b in (backend, OrtBackend(threads=1))
            )
            assert {row.node: row.rule for row in e.ledger.rows}["conv1"] == rule
            np.testing.assert_array_equal(e.relevance, alone.relevance)


def test_that_the_books_notice_a_lost_share() -> None:
    """The check of the total is awake: without what went aside it does not close."""
    model = joined("Add", ("n", 6, 16, 12))
    side = RNG(4).normal(size=(2, 6, 16, 12)).astype(np.float32)
    e = fast(model, input="image").explain(tiny_models.pictures(model, 2), inputs={"side": side}, target=1)
    object.__setattr__(e.ledger, "aside", {})
    with pytest.raises(AssertionError):
        balanced(e)
