"""Several classes at once, one class against another, fused layers, selectors and starts of LRP: through explain()."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models

from fgcam_onnx import Explainer
from fgcam_onnx.attributions import starts
from fgcam_onnx.composite import NAMED, RelevanceComposite
from fgcam_onnx.errors import LayerError, MethodError, OptionError, TargetError
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.imaging import resize
from fgcam_onnx.methods import METHODS
from fgcam_onnx.selectors import matches, number_matched

METHOD_SAMPLE = ["fg-grad-cam", "layer-cam", "fg-score-cam", "lrp", "clrp", "deeplift", "integrated-gradients"]


def explainer_of(make: Any, backend: str = "ort") -> tuple[Explainer, np.ndarray]:
    model = make(seed=3)
    return Explainer(model, backend=backend), tiny_models.pictures(model, 3 if make is not fixed else 4, seed=1)


def fixed(seed: int = 0) -> onnx.ModelProto:
    return tiny_models.fixed_batch(4, seed)


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(np.abs(b).max(), 1e-12))


# --- several classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SAMPLE)
@pytest.mark.parametrize("make", [tiny_models.vgg, tiny_models.residual, tiny_models.nhwc, fixed, tiny_models.one_d])
def test_each_class_is_as_alone(make: Any, method: str) -> None:
    explainer, x = explainer_of(make)
    e = explainer.explain(x, method=method, target="top2")
    assert e.rows == (len(x), 2)
    order = np.argsort(-e.logits, axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(e.target, order)
    for j in range(2):
        one = explainer.explain(x, method=method, target=order[:, j].tolist())
        close(e.relevance[:, j], one.relevance)
        close(e.score[:, j], one.score)
        np.testing.assert_allclose(e.ledger.arrived.reshape(-1, 2)[:, j], one.ledger.arrived, rtol=1e-4, atol=1e-6)
        if one.promised is not None:
            assert e.promised is not None
            close(e.promised[:, j], one.promised)


def test_the_classes_of_an_image_are_walked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One descent an image, whose activations have a batch of 1 and whose start has a row for each class."""
    explainer, x = explainer_of(tiny_models.residual)
    explainer.explain(x, target="top3")
    seen = []
    execute = explainer._backend.execute

    def counted(program: Any, inputs: Any) -> Any:
        arrays = {name: v if isinstance(v, np.ndarray) else v.numpy() for name, v in inputs.items()}
        seen.append({name: len(array) for name, array in arrays.items()})
        return execute(program, inputs)

    monkeypatch.setattr(explainer._backend, "execute", counted)
    explainer.explain(x, target="top3")
    assert len(seen) == 2 * len(x)  # the head and the body
    for sizes in seen:
        assert sizes.pop("relevance_at_start") == 3
        assert set(sizes.values()) <= {1}
    assert any(seen)


def test_lists_of_classes_and_labels(tmp_path: Path) -> None:
    model = tiny_models.vgg(seed=3)
    onnx.save_model(model, tmp_path / "model.onnx")
    classes = Explainer(model).num_classes
    (tmp_path / "labels.txt").write_text("\n".join(f"thing {i}" for i in range(classes)))
    explainer, x = Explainer(tmp_path / "model.onnx"), tiny_models.pictures(model, 2, seed=1)
    e = explainer.explain(x, target=[["thing 1", 0], [2, "thing 0"]])
    np.testing.assert_array_equal(e.target, [[1, 0], [2, 0]])
    assert e.heatmap().shape == (2, 2, *e.input_size)
    assert e.overlay().shape == (2, 2, *e.input_size, 3)
    e.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"relevance.npy", "manifest.json", "overlay_0_class1.png", "overlay_0_class0.png",
                     "overlay_1_class2.png", "overlay_1_class0.png"}  # fmt: skip
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(each["image"], each["target"]) for each in record["images"]] == [(0, 1), (0, 0), (1, 2), (1, 0)]
    assert np.load(tmp_path / "out" / "relevance.npy").shape == e.relevance.shape


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("top0", "target 'top0': the model has 5 classes"),
        ("top6", "target 'top6': the model has 5 classes"),
        ([[0, 1]], "1 lists of targets for 3 images"),
        ([[0, 1], [0], [1, 2]], "each image needs equally many targets, at least one"),
        ([[0, 1], [0, 2], [3, 3]], "target 3 is given twice"),
        ([[0, 1], [0, 2], [3, 9]], "there is no class 9"),
    ],
)
def test_targets_that_cannot_be(target: Any, what: str) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    assert explainer.num_classes == 5
    with pytest.raises(TargetError) as caught:
        explainer.explain(x, target=target)
    assert caught.value.what.startswith(what)


# --- one class against another --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fg-grad-cam", "hires-cam", "gradient-x-input", "deeplift", "integrated-gradients"])
def test_against_is_the_difference(method: str) -> None:
    """Of methods that are linear in the weights of the logits."""
    explainer, x = explainer_of(tiny_models.vgg)
    e = explainer.explain(x, method=method, target=1, against=3)
    a, b = (explainer.explain(x, method=method, target=c) for c in (1, 3))
    close(e.relevance, a.relevance - b.relevance)
    close(e.score, a.score - b.score)
    assert e.manifest()["images"][0]["against"] == 3


def test_lrp_against_another_class_starts_from_one_and_minus_one() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    e = explainer.explain(x, method="lrp", target=1, against=3)
    start = np.zeros((3, 5))
    start[:, 1], start[:, 3] = 1, -1
    close(e.relevance, explainer.explain(x, method="lrp", start_relevance=start).relevance)
    assert np.abs(e.ledger.start).max() < 1e-6
    np.testing.assert_allclose(e.ledger.start_absolute, 2)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.by_class])
def test_methods_of_one_class_refuse(method: str) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    options = {"groups": 4} if "group" in method else {}
    with pytest.raises(MethodError, match="a target held against another class is none"):
        explainer.explain(x, method=method, target=1, against=3, **options)


def test_a_class_against_itself() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    with pytest.raises(TargetError, match="class 2 is held against itself"):
        explainer.explain(x, target=2, against=2)
    with pytest.raises(TargetError, match="only a class can be held against another"):
        explainer.explain(x, target=lambda z: np.ones_like(z), against=2)


# --- layers ---------------------------------------------------------------------------------------------------------


def test_fused_layer_cams() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    shallow, deep = "pool1.y", "pool2.y"
    e = explainer.explain(x, method="layer-cam", layer=[deep, shallow], target=1)
    assert e.layer == f"{shallow} + {deep}"
    assert e.relevance.shape == (3, *e.input_size)
    maps = [explainer.explain(x, method="layer-cam", layer=name, target=1).relevance for name in (shallow, deep)]
    ups = []
    for k, m in enumerate(maps):
        up = np.maximum(m, 0)
        up = up / np.maximum(up.max(axis=(1, 2), keepdims=True), 1e-30)
        ups.append(resize(np.tanh(2 * up) if k == 0 else up, e.input_size))
    close(e.relevance, np.maximum(*ups))
    with pytest.raises(OptionError, match="fuses the maps of layer-cam"):
        explainer.explain(x, method="grad-cam", layer=[deep, shallow])
    with pytest.raises(OptionError, match="a fusion needs several layers"):
        explainer.explain(x, method="layer-cam", layer=[deep, deep])


@pytest.mark.parametrize("method", ["rise", "smooth-grad", "integrated-gradients"])
def test_sampling_is_at_the_input(method: str) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    with pytest.raises(LayerError, match="explains the input"):
        explainer.explain(x, method=method, layer="pool1.y")


def test_gradient_x_input_at_l_is_hires_cam() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    here = explainer.explain(x, method="gradient-x-input", layer=explainer.default_layer)
    close(here.relevance, explainer.explain(x, method="hires-cam").relevance)


@pytest.mark.parametrize("method", ["lrp", "gradient", "rise"])
@pytest.mark.parametrize("more", [{"start": "pool2.y"}, {"denoise": True}])
def test_what_belongs_to_an_l(method: str, more: dict[str, Any]) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    with pytest.raises(OptionError, match="belongs to"):
        explainer.explain(x, method=method, **more)


def test_a_cam_that_is_not_fine_grained_says_why() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    with pytest.raises(MethodError) as caught:
        explainer.explain(x, method="fg-eigen-cam")
    assert "explains no class" in str(caught.value)
    with pytest.raises(MethodError) as caught:
        explainer.explain(x, method="group-cam")
    assert "32 groups" in str(caught.value)


# --- LRP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["ort", "numpy"])
@pytest.mark.parametrize("composite", NAMED)
@pytest.mark.parametrize("make", [tiny_models.vgg, tiny_models.residual, tiny_models.squeeze_excite])
def test_composites_account_for_all_relevance(make: Any, composite: str, backend: str) -> None:
    explainer, x = explainer_of(make, backend)
    e = explainer.explain(x, method="lrp", composite=composite)
    ledger = e.ledger
    assert ledger.residual < 1e-5
    leaked = sum(row.leaked for row in ledger.rows)
    aside = sum(ledger.aside.values(), np.zeros(len(x)))
    scale = max(float(np.max(row.passed)) for row in ledger.rows) or float(ledger.start_absolute.max())
    np.testing.assert_allclose(ledger.start, ledger.arrived + leaked + aside, atol=1e-4 * max(scale, 1))


def test_lrp_starts_from_the_size_of_the_score() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    for c in range(5):
        e = explainer.explain(x, method="lrp", target=c)
        np.testing.assert_allclose(e.ledger.start, np.abs(e.logits[:, c]), rtol=1e-6)


def test_start_relevance() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    z = explainer.explain(x).logits
    start = np.random.default_rng(0).standard_normal(z.shape)
    whole = explainer.explain(x, method="lrp", start_relevance=start)
    pieces = explainer.explain(x, method="lrp", start_relevance=start, batch_size=2)
    close(pieces.relevance, whole.relevance)
    same = explainer.explain(x, method="lrp", start_relevance=start[:1])
    close(same.relevance[0], whole.relevance[0])
    listed = explainer.explain(x, method="lrp", start_relevance=start.tolist())
    close(listed.relevance, whole.relevance)
    for bad in (start[:, :2], np.full_like(start, np.nan), "x"):
        with pytest.raises(OptionError, match="start_relevance"):
            explainer.explain(x, method="lrp", start_relevance=bad)


def test_rules_by_selector() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    e = explainer.explain(
        x, method="lrp",
        rules={"first": "flat", "node:conv*": "gamma(gamma=0.5)", "last": "epsilon", "dense & after:pool2.y": "zero"},
    )  # fmt: skip
    rules = {row.node: row.rule for row in e.ledger.rows}
    assert rules["conv1"] == "flat"
    assert rules["conv2"] == "gamma"
    assert rules["fc2"] == "epsilon"
    assert rules["fc1"] == "zero"
    again = explainer.explain(x, method="lrp", rules={"MaxPool": "winner_positive", "Relu": "identity"})
    assert {row.rule for row in again.ledger.rows if row.op in ("MaxPool", "Relu")} == {"winner_positive", "identity"}
    assert e.manifest()["options"]["rules"]["first"] == "flat"


@pytest.mark.parametrize(
    ("selector", "matched"),
    [
        ("Conv", ["conv1", "conv2"]),
        ("conv", ["conv1", "conv2"]),
        ("dense", ["fc1", "fc2"]),
        ("first", ["conv1"]),
        ("last", ["fc2"]),
        ("node:pool?", ["pool1", "pool2"]),
        ("before:pool1.y", ["conv1", "relu1", "pool1"]),
        ("after:pool1.y & conv", ["conv2"]),
        ("conv & first", ["conv1"]),
    ],
)
def test_selectors(selector: str, matched: list[str]) -> None:
    graph = build_view(load(tiny_models.vgg()))
    assert [layer.name for layer in graph.layers if matches(selector, layer, graph)] == matched
    assert number_matched(selector, graph) == len(matched)


@pytest.mark.parametrize(
    ("selector", "hint"),
    [("Convv", "did you mean 'conv'?"), ("frist", "did you mean 'first'?"), ("before:pool1", "did you mean 'pool1.y'"),
     ("node:x*", "fgcam inspect lists them"), ("conv & dense", "fgcam inspect lists them")],
)  # fmt: skip
def test_a_selector_that_means_nothing(selector: str, hint: str) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    with pytest.raises(OptionError) as caught:
        explainer.explain(x, method="lrp", rules={selector: "epsilon"})
    assert hint in str(caught.value)


def test_options_of_composites() -> None:
    with pytest.raises(OptionError, match="there is no composite 'epsilon_pluss'"):
        RelevanceComposite(composite="epsilon_pluss")
    with pytest.raises(OptionError, match="option epsilon cannot be -1"):
        RelevanceComposite(epsilon=-1)
    with pytest.raises(OptionError, match="option bias cannot be 2"):
        RelevanceComposite(bias=2)  # type: ignore[arg-type]
    assert RelevanceComposite(composite="epsilon_plus").add == "norm"
    assert RelevanceComposite(composite="epsilon_plus", add="zplus").add == "zplus"


def test_contrastive_excitation_backprop() -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    e = explainer.explain(x, method="excitation-backprop", contrastive=True, target=1)
    assert (e.relevance >= 0).all()
    plain = explainer.explain(x, method="excitation-backprop", target=1)
    assert not np.allclose(e.relevance, plain.relevance)
    at_l = explainer.default_layer
    ours = [explainer.explain(x, method="excitation-backprop", target=1, layer=at_l, rules=rules).relevance
            for rules in ({}, {"last": "z_plus(negate=True)"})]  # fmt: skip
    there = explainer.explain(x, method="excitation-backprop", contrastive=True, target=1, layer=at_l)
    close(there.relevance, np.maximum(ours[0] - ours[1], 0))


# --- starts ---------------------------------------------------------------------------------------------------------

Z = np.array([[2.0, 1.0, 0.0], [-3.0, 500.0, 0.0]])
T = np.array([0, 1])


def test_sglrp_is_free_of_scale() -> None:
    """methods 9.4, and a softmax that is 1 to rounding."""
    found = starts.softmax_gradient(Z, T)
    np.testing.assert_allclose(found[0], [1, -0.731059, -0.268941], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)
    assert found[1, 1] == 1
    assert found[1, 2] < -0.9
    np.testing.assert_array_equal(starts.softmax_gradient(np.ones((1, 1)), np.zeros(1, int)), [[1]])


def test_duals_of_clrp() -> None:
    np.testing.assert_allclose(starts.uniform_dual(Z, T), [[0, 1, 1], [250, 0, 250]])
    np.testing.assert_allclose(starts.uniform_dual_absolute(Z, T), [[0, 1, 0], [3, 0, 0]])
    np.testing.assert_allclose(starts.uniform_rest(Z, T), [[1, -1 / 3, -1 / 3], [-1 / 3, 1, -1 / 3]])


def test_the_score_is_made_positive() -> None:
    weights = np.eye(3)[[0, 0]]
    np.testing.assert_allclose(starts.score(Z, weights), [[2, 0, 0], [3, 0, 0]])


@pytest.mark.parametrize("variant", ["1", "abs", "2"])
def test_clrp_is_two_halves(variant: str) -> None:
    explainer, x = explainer_of(tiny_models.vgg)
    e = explainer.explain(x, method="clrp", variant=variant, target=1)
    np.testing.assert_allclose(e.relevance.sum(axis=(1, 2)), 0, atol=1e-5)
    assert e.ledger.residual < 1e-5
    if variant != "2":
        z = e.logits
        t = np.full(len(x), 1)
        own = explainer.explain(x, method="lrp", target=1).relevance
        dual = getattr(starts, "uniform_dual" if variant == "1" else "uniform_dual_absolute")(z, t)
        other = explainer.explain(x, method="lrp", start_relevance=dual).relevance
        close(e.relevance, own / own.sum(axis=(1, 2), keepdims=True) - other / other.sum(axis=(1, 2), keepdims=True))
