"""Parameter randomisation: what is drawn and what stays, in every form in which a file holds a weight."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from deployed import made
from onnx import numpy_helper
from tiny_models import Net

from fgcam_onnx import Explainer, models
from fgcam_onnx.errors import ActivationError, InputError, LayerError, ModelError, OptionError
from fgcam_onnx.metrics import (
    EfficientRandomisation,
    Randomisation,
    efficient_randomisation,
    randomisation,
    randomised,
    spearman,
    ssim,
    weight_layers,
)
from fgcam_onnx.metrics.randomisation import histogram_entropy

# The package has a function of the module's name.
MODULE: Any = importlib.import_module("fgcam_onnx.metrics.randomisation")
VGG = tiny_models.vgg()
X = tiny_models.pictures(VGG, 2)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(VGG)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """The names of the initializers that differ."""
    old, new = weights(before), weights(after)
    assert list(old) == list(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_the_layers_from_the_picture_to_the_logits(explainer: Explainer) -> None:
    assert weight_layers(explainer) == ("conv1", "conv2", "fc1", "fc2")
    assert weight_layers(Explainer(tiny_models.nhwc())) == ("conv1", "conv2", "fc")


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["conv2"], {"conv2.1"}),
        (["fc2", "conv1"], {"fc2.1", "conv1.1"}),
        (None, {"conv1.1", "conv2.1", "fc1.1", "fc2.1"}),
    ],
)
def test_only_these_weights_change(layers: list[str] | None, names: set[str]) -> None:
    """Biases, the BatchNormalization and the graph stay as they are; the given model too."""
    given = VGG.SerializeToString()
    found = randomised(VGG, layers)
    assert VGG.SerializeToString() == given
    assert changed(VGG, found) == names
    assert [n.SerializeToString() for n in found.graph.node] == [n.SerializeToString() for n in VGG.graph.node]
    onnx.checker.check_model(found, full_check=True)


def test_the_draw_has_the_mean_and_deviation_of_the_tensor() -> None:
    net = Net()
    w = net.rng.normal(0.3, 0.02, (64, 3, 3, 3)) ** 3  # far from normal
    x = net.node("Conv", "conv1", "image", w, pads=[1] * 4)
    model = net.model(net.head(net.relu("relu1", x), 64))
    drawn = weights(randomised(model, ["conv1"]))["conv1.1"]
    n = drawn.size
    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(w.mean(), abs=4 * w.std() / np.sqrt(n))
    assert drawn.std() == pytest.approx(w.std(), rel=4 / np.sqrt(2 * n))
    assert abs(np.corrcoef(drawn.ravel(), w.ravel())[0, 1]) < 4 / np.sqrt(n)
    assert np.mean(np.abs(drawn - drawn.mean()) < drawn.std()) == pytest.approx(0.683, abs=0.05)  # normal


def test_seeds_and_names_make_the_draw() -> None:
    """The same draw alone and among others, so that a cascade adds up; another for another seed or layer."""
    alone, among, other = randomised(VGG, ["fc1"]), randomised(VGG), randomised(VGG, ["fc1"], seed=1)
    assert changed(alone, among) == {"conv1.1", "conv2.1", "fc2.1"}
    assert changed(alone, other) == {"fc1.1"}
    twins = Net()
    x = twins.relu("relu1", twins.node("Conv", "a", "image", np.ones((3, 3, 1, 1)) + np.eye(3)[..., None, None]))
    x = twins.relu("relu2", twins.node("Conv", "b", x, np.ones((3, 3, 1, 1)) + np.eye(3)[..., None, None]))
    found = weights(randomised(twins.model(twins.head(x, 3)), None))
    assert (found["a.1"] != found["b.1"]).all()


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_integers_stay_within_their_type(dtype: str, low: int, high: int) -> None:
    """Of a tensor of both extremes a third of the draws lies beyond them: at the limits, not wrapped around."""
    drawn = MODULE._drawn(np.array([low, high] * 5000, dtype), "w", 0)
    assert drawn.dtype == dtype
    assert np.mean((drawn == low) | (drawn == high)) == pytest.approx(0.317, abs=0.03)
    few = MODULE._drawn(np.array([low, low + 1] * 5000, dtype), "w", 0)  # N(low + 0.5, 0.5^2), rounded
    assert np.mean(few == low + 1) == pytest.approx(0.477, abs=0.04)


def test_a_shared_weight_is_drawn_once() -> None:
    net = Net()
    w = net.weight("w", net.random(3, 3, 3, 3))
    x = net.relu("relu1", net.node("Conv", "a", "image", w, pads=[1] * 4))
    x = net.relu("relu2", net.node("Conv", "b", x, w, pads=[1] * 4))
    model = net.model(net.head(x, 3))
    assert changed(model, randomised(model, ["a"])) == {"w"}
    assert changed(randomised(model, ["a"]), randomised(model, ["a", "b"])) == set()


# --- where a file holds a weight --------------------------------------------------------------------------------------


def behind(op: str | None, **attributes: Any) -> onnx.ModelProto:
    """A convolution whose weight comes through a node ``op``, or out of a Constant node."""
    net = Net()
    w = net.random(6, 3, 3, 3)
    if op == "Constant":
        name = net.node(op, "w", value=numpy_helper.from_array(w))
    elif op == "Transpose":
        name = net.node(op, "w", net.weight("kept", w.transpose(1, 0, 2, 3)), perm=[1, 0, 2, 3])
    elif op == "Reshape":
        name = net.node(op, "w", net.weight("kept", w.reshape(6, -1)), np.array([6, 3, 3, 3]))
    elif op == "Cast":
        name = net.node(op, "w", net.weight("kept", w, np.float16), to=onnx.TensorProto.FLOAT)
    elif op == "Mul":
        name = net.node(op, "w", net.weight("kept", w), np.float32(2))
    else:
        name = net.node("Identity", "w", net.weight("kept", w))
    x = net.relu("relu1", net.node("Conv", "conv1", "image", name, pads=[1] * 4))
    return net.model(net.head(x, 6))


@pytest.mark.parametrize("op", ["Constant", "Transpose", "Reshape", "Cast", "Identity"])
def test_a_weight_behind_another_node(op: str) -> None:
    model = behind(op)
    found = randomised(model, ["conv1"])
    if op == "Constant":
        assert changed(model, found) == set()
        old, new = (
            numpy_helper.to_array(next(n for n in m.graph.node if n.op_type == op).attribute[0].t)
            for m in (model, found)
        )
        assert (old != new).all()
        assert new.std() == pytest.approx(old.std(), rel=0.3)
    else:
        assert changed(model, found) == {"kept"}
    x = tiny_models.pictures(model)
    assert np.abs(Explainer(found).scores(x) - Explainer(model).scores(x)).max() > 1e-3


def test_a_weight_that_is_computed_is_refused() -> None:
    model = behind("Mul")
    with pytest.raises(ModelError) as caught:
        randomised(model)
    assert str(caught.value) == (
        "the weight of a layer is not a tensor of the file, and cannot be drawn anew\n"
        "  at      layer 'conv1' (Conv)\n"
        "  known   initializers and Constant nodes can, also behind Identity, Transpose, Cast, Reshape, Squeeze, "
        "Unsqueeze, Flatten, QuantizeLinear, DequantizeLinear\n"
        "  next    layers= takes the names of others, or export the model with its constants folded"
    )
    assert changed(model, randomised(model, ["fc"])) == {"fc.1"}


def test_a_type_that_cannot_be_drawn() -> None:
    with pytest.raises(ModelError) as caught:
        MODULE._drawn(np.array([True]), "w", 0)
    assert str(caught.value) == (
        "the weight 'w' cannot be drawn anew\n  known   it is bool\n  next    export it as float32"
    )


@pytest.mark.parametrize("form", ["QDQ", "QDQ, per channel", "QOperator", "dynamic", "float16"])
def test_deployed_forms(form: str) -> None:
    """Integers are drawn as integers of their type, with their own mean and deviation; scales and zero points stay."""
    model = onnx.load_model_from_string(made(form, tiny_models.residual(), tiny_models.pictures(VGG, 4)))
    explainer, found = Explainer(model), randomised(model)
    names = changed(model, found)
    assert len(names) == len(weight_layers(explainer)) == 7
    old, new = weights(model), weights(found)
    kinds = {new[name].dtype.name for name in names}
    assert kinds == {{"dynamic": "uint8", "float16": "float16"}.get(form, "int8")}
    for name in names:
        assert old[name].shape == new[name].shape
        spread = old[name].astype(np.float64).std()
        assert new[name].astype(np.float64).std() == pytest.approx(spread, rel=0.5)
    e = randomisation(explainer, X, method="grad-cam", layers=weight_layers(explainer)[-2:])
    assert np.isfinite(e.spearman).all()


def test_a_side_file(tmp_path: Path) -> None:
    path = tiny_models.external(VGG, tmp_path)
    assert changed(VGG, randomised(path)) == {"conv1.1", "conv2.1", "fc1.1", "fc2.1"}
    assert changed(randomised(path), randomised(VGG)) == set()
    assert changed(randomised(path), randomised(Explainer(path))) == set()
    assert randomisation(Explainer(path), X).spearman == pytest.approx(randomisation(Explainer(VGG), X).spearman)


def test_more_than_a_protobuf_holds(monkeypatch: pytest.MonkeyPatch, explainer: Explainer) -> None:
    """The metric itself never writes a ModelProto."""
    want = randomisation(explainer, X, layers=["fc2"]).ssim
    monkeypatch.setattr(MODULE, "MOST", 3000)
    with pytest.raises(ModelError, match=r"a ModelProto cannot hold [0-9,]+ bytes of weights"):
        randomised(explainer)
    assert randomisation(explainer, X, layers=["fc2"]).ssim == pytest.approx(want)


def test_nodes_without_names_and_with_the_same() -> None:
    for name in ("", "same"):
        model = tiny_models.vgg()
        for node in model.graph.node:
            node.name = name
        assert len(weight_layers(Explainer(model))) == 4
        assert changed(model, randomised(model)) == {"conv1.1", "conv2.1", "fc1.1", "fc2.1"}
        last = weight_layers(Explainer(model))[-1]
        assert changed(model, randomised(model, [last])) == {"fc2.1"}


def test_transposed_convolutions_and_matmul() -> None:
    net = Net()
    up = net.node("ConvTranspose", "up", "image", net.random(3, 4, 2, 2), strides=[2, 2])
    x = net.node("ReduceMean", "gap", net.relu("relu1", up), axes=[2, 3], keepdims=0)
    model = net.model(net.node("MatMul", "fc", x, net.random(4, 5)))
    assert weight_layers(Explainer(model)) == ("up", "fc")
    assert changed(model, randomised(model, ["up"])) == {"up.1"}


# --- the metric -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_by_hand(explainer: Explainer, order: str) -> None:
    """Each step with its own model, Explainer and maps; the class is that of the file's network."""
    c = [int(k) for k in explainer.scores(X).argmax(axis=1)]
    own = explainer.explain(X, target=c).relevance
    found = randomisation(explainer, X, order=order, seed=3)
    assert found.layers == ("fc2", "fc1", "conv2", "conv1")
    for k, name in enumerate(found.layers):
        layers = list(found.layers[: k + 1]) if order == "cascading" else [name]
        e = Explainer(randomised(VGG, layers, seed=3)).explain(X, target=c).relevance
        assert found.spearman[:, k] == pytest.approx(spearman(np.abs(own), np.abs(e)), abs=1e-6)
        scaled = [each / np.abs(each).max(axis=(1, 2), keepdims=True) for each in (own, e)]
        assert found.ssim[:, k] == pytest.approx(ssim(*scaled), abs=1e-5)


def test_orders_differ_behind_the_first_step(explainer: Explainer) -> None:
    one, other = (randomisation(explainer, X, order=order).ssim for order in ("cascading", "independent"))
    assert one[:, 0] == pytest.approx(other[:, 0])
    assert (np.abs(one[:, 1:] - other[:, 1:]) > 1e-3).any()


def test_a_method_that_ignores_the_weights_scores_one() -> None:
    """A network of which one layer makes no difference to the map: the gradient does not see it."""
    net = Net()
    net.conv("idle", "image", 3, 4)
    model = net.model(net.head(net.relu("relu1", net.conv("conv1", "image", 3, 6)), 6))
    assert weight_layers(Explainer(model)) == ("conv1", "fc")  # the idle one is on no way to the logits
    constant = Net()
    w = np.full((6, 3, 3, 3), 0.1)
    x = constant.relu("relu1", constant.node("Conv", "conv1", "image", w, pads=[1] * 4))
    flat = constant.model(constant.head(x, 6))
    found = randomisation(Explainer(flat), tiny_models.pictures(flat), layers=["conv1"])
    assert found.spearman == pytest.approx(np.ones((2, 1)))  # a deviation of 0: the draw is the weight
    assert found.ssim == pytest.approx(np.ones((2, 1)))


def test_methods_options_and_a_chosen_class(explainer: Explainer) -> None:
    found = randomisation(explainer, X, 2, layers=["conv1"], method="layer-cam", layer="relu1.y", window=3)
    own = explainer.explain(X, target=2, method="layer-cam", layer="relu1.y").relevance
    e = Explainer(randomised(VGG, ["conv1"])).explain(X, target=2, method="layer-cam", layer="relu1.y").relevance
    assert found.spearman[:, 0] == pytest.approx(spearman(np.abs(own), np.abs(e)), abs=1e-6)
    scaled = [each / np.abs(each).max(axis=(1, 2), keepdims=True) for each in (own, e)]
    assert found.ssim[:, 0] == pytest.approx(ssim(*scaled, window=3), abs=1e-5)


def test_the_twin_computes_as_the_explainer_does() -> None:
    explainer = Explainer(tiny_models.two_inputs(), backend="numpy", precision="float64", output="gap.y", threads=1)
    twin = MODULE.random_twin(explainer, ["conv1"], 0)
    assert (twin.backend, twin.precision, twin.output_name) == ("numpy", "float64", "gap.y")
    assert twin.providers == explainer.providers
    assert twin.sha256 != explainer.sha256
    assert twin.sha256 == MODULE.random_twin(explainer, ["conv1"], 0).sha256
    assert twin.sha256 not in (
        MODULE.random_twin(explainer, ["conv1"], 1).sha256,
        MODULE.random_twin(explainer, [], 0).sha256,
    )


def test_further_inputs() -> None:
    explainer = Explainer(tiny_models.two_inputs())
    x = tiny_models.pictures(tiny_models.two_inputs())
    facts = {"facts": np.ones((1, 2), np.float32)}
    found = randomisation(explainer, x, inputs=facts, layers=["conv1"])
    assert np.isfinite(found.spearman).all()
    assert np.isfinite(efficient_randomisation(explainer, x, inputs=facts)).all()


def test_a_network_that_overflows_is_undefined(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*args: object, **options: object) -> None:
        raise ActivationError("the network computed Inf")

    real = MODULE.maps_of
    monkeypatch.setattr(
        MODULE, "maps_of", lambda given, options: real(given, options) if given is explainer else overflow
    )
    metric = Randomisation(explainer)
    assert np.isnan(metric.update(X)["ssim"]).all()
    assert np.isnan(efficient_randomisation(explainer, X)).all()
    assert metric.summary()["spearman"].undefined == 2


def test_accumulators(explainer: Explainer) -> None:
    for make in (Randomisation, EfficientRandomisation):
        whole, alone = make(explainer, seed=2), make(explainer, seed=2)
        whole.update(X)
        for i in range(2):
            alone.update(X[i : i + 1])
        for name in whole.figures:
            assert alone.values[name] == pytest.approx(whole.values[name], abs=1e-4)
            assert whole.summary()[name].n == 2
    steps = randomisation(explainer, X, seed=2)
    metric = Randomisation(explainer, seed=2)
    assert metric.update(X)["ssim"] == pytest.approx(steps.ssim.mean(axis=1), abs=1e-6)
    assert metric.values["spearman"] == pytest.approx(steps.spearman.mean(axis=1), abs=1e-6)


def test_steps_that_are_undefined_are_left_out_of_the_mean() -> None:
    steps = np.array([[0.2, np.nan, 0.4], [np.nan] * 3])
    assert MODULE._mean(steps) == pytest.approx([0.3, np.nan], nan_ok=True)


def test_the_shipped_network() -> None:
    explainer = Explainer(models.path("demo_honest.onnx"))
    x = np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)
    layers = weight_layers(explainer)
    assert len(layers) == 8
    found = randomisation(explainer, x, method="grad-cam", layers=[layers[0], layers[-1]])
    assert found.layers == (layers[-1], layers[0])
    assert (found.spearman < 0.99).all()


# --- the efficient variant --------------------------------------------------------------------------------------------


def test_histogram_entropy() -> None:
    """Of values spread evenly ln 100; of one spike that of 1 and n - 1; of a constant map 0. Scale and shift go."""
    even = np.arange(1000.0).reshape(1, 20, 50)
    spike = np.zeros((1, 100))
    spike[0, 3] = 5
    assert histogram_entropy(even) == pytest.approx([np.log(100)])
    assert histogram_entropy(spike) == pytest.approx([-0.99 * np.log(0.99) - 0.01 * np.log(0.01)])
    assert histogram_entropy(np.full((1, 50), 3.0)) == pytest.approx([0])
    assert histogram_entropy(-3 * even + 7) == pytest.approx([np.log(100)])
    assert histogram_entropy(even, bins=10) == pytest.approx([np.log(10)])


def test_the_rise_by_hand(explainer: Explainer) -> None:
    c = [int(k) for k in explainer.scores(X).argmax(axis=1)]
    own = histogram_entropy(explainer.explain(X, target=c).relevance)
    other = histogram_entropy(Explainer(randomised(VGG, seed=4)).explain(X, target=c).relevance)
    assert efficient_randomisation(explainer, X, seed=4) == pytest.approx((other - own) / own, abs=1e-6)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_what_does_not_fit(explainer: Explainer) -> None:
    with pytest.raises(LayerError) as layer:
        randomised(VGG, ["conv3"])
    assert str(layer.value) == (
        "there is no layer 'conv3' with a weight\n  known   conv1, conv2, fc1, fc2\n"
        "  next    did you mean 'conv2', 'conv1'?"
    )
    with pytest.raises(LayerError, match="there is no layer 'relu1' with a weight"):
        randomisation(explainer, X, layers=["relu1", "fc2"])
    with pytest.raises(LayerError) as layer:
        randomisation(explainer, X, layers=[])
    assert str(layer.value) == "layers= names no layer\n  known   conv1, conv2, fc1, fc2"
    with pytest.raises(OptionError) as option:
        randomisation(explainer, X, order="upwards")
    assert str(option.value) == "option order cannot be 'upwards'\n  known   cascading, independent"
    with pytest.raises(OptionError) as option:
        efficient_randomisation(explainer, X, bins=1)
    assert str(option.value) == "option bins cannot be 1\n  known   of the histogram, at least 2"
    for call in (randomisation, efficient_randomisation):
        with pytest.raises(InputError) as wrong:
            call(lambda x: x, X)  # type: ignore[arg-type]
        assert str(wrong.value) == (
            "parameter randomisation draws the weights of a model anew, and asks an Explainer for them\n"
            "  known   it is function"
        )
    net = Net(("n", 3, 4, 4))
    bare = Explainer(net.model(net.node("Flatten", "flat", net.node("GlobalAveragePool", "gap", "image"))))
    with pytest.raises(LayerError, match="no layer of this model has a weight to draw anew"):
        randomisation(bare, np.ones((1, 3, 4, 4), np.float32))
