"""The public contract: names, defaults, shapes and dtypes, batches, options, backends; and what a call may not cost."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models

import fgcam_onnx
from fgcam_onnx import Explainer, Explanation, runtime
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import KEPT, OrtBackend
from fgcam_onnx.composite import CHOICES
from fgcam_onnx.errors import FgcamError
from fgcam_onnx.methods import METHODS

SAME: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def residual() -> tuple[Explainer, np.ndarray]:
    model = tiny_models.residual()
    return Explainer(model, backend="ort"), tiny_models.pictures(model, 3)


# --- names and defaults -------------------------------------------------------------------------------------


def test_signatures() -> None:
    """Names, order, kinds and defaults of design 6, so that other people's scripts can rely on them."""
    explain = inspect.signature(Explainer.explain).parameters
    assert list(explain)[:2] == ["self", "x"]
    defaults = {
        "method": "fg-grad-cam", "layer": None, "start": None, "target": None, "denoise": False, "inputs": None
    }  # fmt: skip
    assert {name: explain[name].default for name in defaults} == defaults
    assert all(explain[name].kind is inspect.Parameter.KEYWORD_ONLY for name in defaults)
    assert explain["options"].kind is inspect.Parameter.VAR_KEYWORD
    init = inspect.signature(Explainer.__init__).parameters
    assert init["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {n: init[n].default for n in ("backend", "providers", "input", "output")} == {
        "backend": "auto", "providers": None, "input": None, "output": None
    }  # fmt: skip
    heatmap = inspect.signature(Explanation.heatmap).parameters
    overlay = inspect.signature(Explanation.overlay).parameters
    assert heatmap["size"].default is None
    assert {n: overlay[n].default for n in ("alpha", "colormap")} == {"alpha": 0.5, "colormap": "jet"}


@pytest.mark.parametrize("name", [*sorted(tiny_models.by_layers()), "one_d", "three_d"])
def test_shapes_and_types(name: str) -> None:
    """Every model: float32 [n, h, w] signed, logits [n, classes], int64 targets, heat in [0, 1], a closed ledger."""
    model = getattr(tiny_models, name)()
    x = tiny_models.pictures(model)
    explainer = Explainer(model)
    e = explainer.explain(x)
    space = tuple(d for d, axis in zip(x.shape, explainer.layout, strict=True) if axis not in "NC")
    assert (e.relevance.shape, e.relevance.dtype.name) == ((len(x), *space), "float32")
    assert (e.logits.shape, e.target.shape, e.target.dtype.name) == ((len(x), 5), (len(x),), "int64")
    assert (e.method, e.layer, e.start) == ("fg-grad-cam", "input", explainer.default_layer)
    np.testing.assert_array_equal(e.target, e.logits.argmax(1))
    assert 0 <= e.ledger.leaked <= 1
    assert e.ledger.residual < 1e-4
    heat = e.heatmap()
    assert (heat.shape, heat.dtype.name) == (e.relevance.shape, "float32")
    assert heat.min() >= 0
    assert heat.max() <= 1


def test_overlay_and_sizes(residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    e = explainer.explain(x, method="grad-cam")
    assert e.relevance.shape == (3, 8, 6)
    assert e.heatmap().shape == (3, 16, 12)
    assert e.heatmap((5, 9)).shape == (3, 5, 9)
    images = np.zeros((3, 40, 30, 3), np.uint8)
    assert (e.overlay(images).shape, e.overlay(images).dtype.name) == ((3, 40, 30, 3), "uint8")


def test_logits_are_the_network_s_own(residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    np.testing.assert_allclose(
        explainer.explain(x).logits, tiny_models.run(tiny_models.residual(), x)[0], rtol=1e-5, atol=1e-5
    )


def test_logits_are_taken_before_a_softmax() -> None:
    """The scores of a model that ends in Softmax are those before it, and a note says so."""
    model = tiny_models.softmax_end()
    x = tiny_models.pictures(model)
    e = Explainer(model).explain(x)
    np.testing.assert_allclose(e.logits, tiny_models.run(model, x, "fc.y")[0], rtol=1e-5, atol=1e-6)
    assert "the model ends in Softmax: explaining the tensor before it, 'fc.y'" in e.provenance["notes"]


def test_properties(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(tiny_models.free_size(maker="me"), path)
    e = Explainer(path, backend="ort")
    assert (e.path, e.metadata["maker"], e.input_name, e.layout) == (path, "me", "image", "NCHW")
    assert (e.input_shape, e.input_dtype, e.num_classes) == (("n", 3, "h", "w"), "float32", 5)
    assert e.backend == "ort"
    assert e.providers == ["CPUExecutionProvider"]
    assert (e.labels, e.labels_source) == (None, None)


def test_one_shot() -> None:
    model = tiny_models.vgg()
    x = tiny_models.pictures(model)
    one = fgcam_onnx.explain(model, x, target=2)
    np.testing.assert_array_equal(one.relevance, Explainer(model).explain(x, target=2).relevance)


def cheap(method: str) -> dict[str, Any]:
    """Options with which a method suits a small network."""
    return {"rise": {"masks": 64}, "group-cam": {"groups": 4}}.get(method.removeprefix("fg-"), {})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_on_a_network(method: str, residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    e = explainer.explain(x, method=method, **cheap(method))
    assert np.isfinite(e.relevance).all()
    assert e.relevance.any()
    assert e.method == method


def test_save_and_provenance(tmp_path: Path, residual: tuple[Explainer, np.ndarray]) -> None:
    """The record names model, versions, backend and the providers that really ran."""
    explainer, x = residual
    e = explainer.explain(x, add="norm")
    assert e.provenance["sha256"] == explainer.sha256
    assert e.provenance["providers"] == ["CPUExecutionProvider"]
    assert e.provenance["backend_providers"] == ["CPUExecutionProvider"]
    assert e.provenance["backend"] == "ort"
    assert {"onnx", "onnxruntime", "numpy", "fgcam_onnx"} <= e.provenance.keys()
    assert e.options == {"denoise": False, "add": "norm"}
    e.save(tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "relevance.npy"), e.relevance)
    assert (tmp_path / "out" / "manifest.json").is_file()


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(tiny_models.by_layers()), "one_d", "three_d"])
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    """Also with z^B's bounds, which are per image: one image is twenty times brighter than the other."""
    model = getattr(tiny_models, name)()
    x = tiny_models.pictures(model)
    x[0] *= 20
    explainer = Explainer(model)
    both = explainer.explain(x)
    for i in range(len(x)):
        one = explainer.explain(x[i : i + 1])
        assert one.relevance.shape[0] == 1
        tolerance = 1e-5 * np.abs(one.relevance).max()
        np.testing.assert_allclose(one.relevance[0], both.relevance[i], rtol=2e-3, atol=tolerance)
        assert one.target[0] == both.target[i]


@pytest.mark.parametrize("n", [1, 3, 4, 6])
@pytest.mark.parametrize("method", ["fg-grad-cam", "grad-cam", "score-cam"])
def test_a_model_with_a_fixed_batch(n: int, method: str) -> None:
    """A model that takes exactly 4 images explains any number, as the same model without that limit does."""
    fixed, free = tiny_models.fixed_batch(), tiny_models.free_size()
    x = tiny_models.pictures(fixed, n, seed=3)
    targets = [i % 5 for i in range(n)]
    e = Explainer(fixed).explain(x, method=method, target=targets)
    expected = Explainer(free).explain(x, method=method, target=targets)
    np.testing.assert_allclose(e.relevance, expected.relevance, **SAME)
    np.testing.assert_allclose(e.logits, expected.logits, **SAME)
    assert e.target.tolist() == targets
    assert e.ledger.start.shape == (n,)
    assert e.ledger.leaked == pytest.approx(expected.ledger.leaked, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_changes_nothing(batch_size: int, residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    expected = explainer.explain(x, target=[0, 1, 2])
    e = explainer.explain(x, target=[0, 1, 2], batch_size=batch_size)
    np.testing.assert_allclose(e.relevance, expected.relevance, **SAME)
    assert [row.node for row in e.ledger.rows] == [row.node for row in expected.ledger.rows]
    assert all(row.relevance_in.shape == (3,) for row in e.ledger.rows)


def test_many_images_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty images: pieces of at most eight, one result, progress that ends at the end."""
    model = tiny_models.vgg()
    x = tiny_models.pictures(model, 20)
    explainer = Explainer(model)
    run, sizes = explainer._forward.run, []

    def counted(feeds: Any, names: Any) -> Any:
        sizes.append(len(feeds["image"]))
        return run(feeds, names)

    monkeypatch.setattr(explainer._forward, "run", counted)
    e = explainer.explain(x, target=list(range(5)) * 4)
    assert len(e) == sum(sizes) == 20
    assert max(sizes) <= 8
    np.testing.assert_allclose(e.relevance[17], explainer.explain(x[17:18], target=2).relevance[0], **SAME)
    steps: list[tuple[int, int]] = []
    explainer.explain(x[:3], method="score-cam", batch_size=2, progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_free_height_and_width() -> None:
    """One Explainer, several sizes, each as from a fresh Explainer."""
    model = tiny_models.free_size()
    explainer = Explainer(model)
    for size in ((14, 10), (9, 21), (14, 10)):
        x = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
        np.testing.assert_allclose(
            explainer.explain(x).relevance, Explainer(model).explain(x).relevance, rtol=1e-6, atol=1e-8
        )


# --- target, layer, start -----------------------------------------------------------------------------------


def test_targets() -> None:
    """None is the predicted class; an index, a label, a numpy integer, or one of these for each image."""
    model = tiny_models.free_size(labels='["ant", "bee", "crow", "dog", "eel"]')
    x = tiny_models.pictures(model, 2)
    explainer = Explainer(model)
    assert explainer.labels == ["ant", "bee", "crow", "dog", "eel"]
    for target, expected in (
        (3, [3, 3]),
        ("crow", [2, 2]),
        (np.int64(1), [1, 1]),
        ([4, 0], [4, 0]),
        (["eel", 1], [4, 1]),
        (np.array([2, 3]), [2, 3]),
    ):
        assert explainer.explain(x, target=target).target.tolist() == expected
    assert explainer.explain(x).target.tolist() == explainer.explain(x).logits.argmax(1).tolist()


def test_the_target_matters() -> None:
    model = tiny_models.vgg()
    x = tiny_models.pictures(model)
    explainer = Explainer(model)
    assert not np.allclose(explainer.explain(x, target=0).relevance, explainer.explain(x, target=1).relevance)


def test_layer_by_tensor_node_and_input(residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    by_tensor = explainer.explain(x, layer="b1.relu2.y")
    by_node = explainer.explain(x, layer="b1.relu2")
    np.testing.assert_array_equal(by_tensor.relevance, by_node.relevance)
    assert by_tensor.layer == by_node.layer == "b1.relu2.y"
    assert by_tensor.relevance.shape == (3, 16, 12)
    for name in ("input", "image"):
        assert explainer.explain(x, layer=name).layer == "input"
    np.testing.assert_array_equal(explainer.explain(x, layer="image").relevance, explainer.explain(x).relevance)


def test_a_folded_node_s_name_is_understood() -> None:
    """bn1 is folded into conv1: its name, its tensor and conv1's name all mean the layer that stands for both."""
    model = tiny_models.vgg()
    explainer = Explainer(model)
    x = tiny_models.pictures(model)
    maps = [explainer.explain(x, layer=name).relevance for name in ("bn1", "bn1.y", "conv1")]
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


@pytest.mark.parametrize("name", ["vgg", "residual", "squeeze_excite", "nhwc"])
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "fg-grad-cam", "fg-layer-cam"])
def test_every_stage(name: str, method: str) -> None:
    """A map at every stage that layers() lists, of that stage's own size, the image included."""
    model = getattr(tiny_models, name)()
    explainer = Explainer(model)
    x = tiny_models.pictures(model)
    for stage in explainer.layers():
        e = explainer.explain(x, method=method, layer=stage.name)
        layout = explainer.graph.tensor(stage.name).layout
        assert layout is not None
        assert e.relevance.shape == (2, *(d for d, a in zip(stage.shape, layout, strict=True) if a not in "NC"))
        assert np.isfinite(e.relevance).all()


def test_start_overrides_l(residual: tuple[Explainer, np.ndarray]) -> None:
    """From an earlier tensor the descent is shorter; a CAM can start there too."""
    explainer, x = residual
    e = explainer.explain(x, start="b1.relu2.y")
    assert (e.start, e.layer) == ("b1.relu2.y", "input")
    assert "b2.conv1" not in {row.node for row in e.ledger.rows}
    cam = explainer.explain(x, method="grad-cam", start="b1.relu2")
    assert (cam.start, cam.layer, cam.relevance.shape) == ("b1.relu2.y", "b1.relu2.y", (3, 16, 12))
    np.testing.assert_array_equal(cam.relevance, explainer.explain(x, method="grad-cam", layer="b1.relu2.y").relevance)
    leaked = np.sum([row.leaked for row in e.ledger.rows], axis=0)
    np.testing.assert_allclose(e.ledger.start, cam.relevance.sum((1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(e.relevance.sum((1, 2)), e.ledger.start - leaked, rtol=1e-3, atol=1e-5)


def test_another_output() -> None:
    """``output`` names the graph output, or any tensor, to explain."""
    net = tiny_models.Net()
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    first = net.head(x, 4)
    second = net.node("Gemm", "other", "flat.y", net.random(4, 2), net.random(2))
    model = net.model(first, second)
    plain, named = (Explainer(model, output=name, backend="ort") for name in (None, "other.y"))
    assert (plain.num_classes, named.num_classes) == (5, 2)
    assert plain.notes == ["the model has outputs fc.y [n, 5], other.y [n, 2]: explaining 'fc.y'"]
    assert named.notes == []
    assert named.explain(tiny_models.pictures(model)).logits.shape == (2, 2)


# --- options of methods 2.6 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in CHOICES.items() for v in values])
@pytest.mark.parametrize("name", ["vgg", "squeeze_excite", "residual"])
def test_every_value_of_every_option(name: str, option: str, value: Any) -> None:
    """Each value runs, is recorded, closes the ledger; the default's value changes nothing."""
    model = getattr(tiny_models, name)()
    explainer = Explainer(model)
    x = tiny_models.pictures(model)
    e = explainer.explain(x, **{option: value})
    assert e.options[option] == value
    assert np.isfinite(e.relevance).all()
    assert e.ledger.residual < 1e-4
    assert explainer.coverage(**{option: value}).complete
    if value == CHOICES[option][0]:
        np.testing.assert_array_equal(e.relevance, explainer.explain(x).relevance)


@pytest.mark.parametrize(
    ("name", "option", "value", "changes"),
    [
        ("vgg", "first_layer", "z+", True),
        ("vgg", "first_layer", "flat", True),
        ("vgg", "relu", "identity", False),
        ("residual", "add", "norm", True),
        ("residual", "relu", "identity", False),
        ("squeeze_excite", "mul", "uniform", True),
    ],
)
def test_options_do_something(name: str, option: str, value: Any, changes: bool) -> None:
    """Where the option matters the map is another; where methods 9.1.5 says it cannot matter, it is the same."""
    model = getattr(tiny_models, name)()
    explainer = Explainer(model)
    x = tiny_models.pictures(model)
    default, other = explainer.explain(x).relevance, explainer.explain(x, **{option: value}).relevance
    assert np.allclose(default, other, rtol=1e-3, atol=1e-5 * np.abs(default).max()) != changes


def test_batchnorm_identity_is_folding_where_gamma_is_positive() -> None:
    """methods 9.1.7, through the whole Explainer; the rules differ, the maps agree."""
    model = tiny_models.vgg()
    explainer = Explainer(model)
    x = tiny_models.pictures(model)
    fold, identity = explainer.explain(x), explainer.explain(x, batchnorm="identity")
    np.testing.assert_allclose(fold.relevance, identity.relevance, rtol=1e-3, atol=1e-5 * np.abs(fold.relevance).max())
    assert {row.op for row in identity.ledger.rows} - {row.op for row in fold.ledger.rows} == {"BatchNormalization"}


@pytest.mark.parametrize("bounds", ["per_image", (-5, 5), ((-5, -4, -6), (5, 4, 6)), (np.full(3, -9.0), 9.0)], ids=str)
def test_bounds_of_the_first_layer(bounds: Any) -> None:
    model = tiny_models.vgg()
    e = Explainer(model).explain(tiny_models.pictures(model), zb_bounds=bounds)
    assert np.isfinite(e.relevance).all()
    assert e.ledger.residual < 1e-4


def test_the_support_mask_keeps_denoised_mass_off_dead_cells(residual: tuple[Explainer, np.ndarray]) -> None:
    """Without it part of the start lies where nothing is active, and the descent drops that at once."""
    explainer, x = residual
    masked = explainer.explain(x, denoise=True).ledger
    plain = explainer.explain(x, denoise=True, support_mask=False).ledger
    assert (masked.start_absolute < plain.start_absolute).all()
    assert masked.leaked < 0.01 < plain.leaked


def test_denoise_options(residual: tuple[Explainer, np.ndarray]) -> None:
    """The ratio, the mean and the mask reach the denoising; the whole rank with its mean changes nothing."""
    explainer, x = residual
    plain = explainer.explain(x)
    whole = explainer.explain(x, denoise=True, ratio=1.0, add_mean_back=True)
    np.testing.assert_allclose(whole.relevance, plain.relevance, rtol=1e-3, atol=1e-5 * np.abs(plain.relevance).max())
    for options in ({}, {"ratio": 0.5}, {"support_mask": False}, {"add_mean_back": True}):
        e = explainer.explain(x, denoise=True, **options)
        assert e.options == {"denoise": True, **options}
        assert not np.allclose(e.relevance, plain.relevance, rtol=1e-2)


# --- backends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(tiny_models.by_layers()), "one_d", "three_d"])
@pytest.mark.parametrize("denoise", [False, True])
def test_numpy_in_float64_agrees_with_ort(name: str, denoise: bool) -> None:
    """The definition in double precision, and the compiled graph in single: one map, one ledger."""
    model = getattr(tiny_models, name)()
    x = tiny_models.pictures(model)
    fast = Explainer(model).explain(x, denoise=denoise, target=1)
    plain = Explainer(model, backend="numpy", precision="float64").explain(x, denoise=denoise, target=1)
    # Denoising turns rounding errors by the gap between singular values, which random weights leave small.
    tolerance = (1e-3 if denoise else 2e-5) * np.abs(plain.relevance).max()
    np.testing.assert_allclose(fast.relevance, plain.relevance, atol=tolerance)
    assert (fast.provenance["backend"], plain.provenance["backend"]) == ("ort", "numpy")
    for a, b in zip(fast.ledger.rows, plain.ledger.rows, strict=True):
        assert (a.node, a.rule) == (b.node, b.rule)
        np.testing.assert_allclose(a.leaked, b.leaked, atol=1e-3 * plain.ledger.start_absolute.max())


def test_the_same_call_gives_the_same_bits(residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    for options in ({}, {"denoise": True}, {"method": "score-cam"}):
        one, two = explainer.explain(x, **options), explainer.explain(x, **options)
        np.testing.assert_array_equal(one.relevance, two.relevance)
        np.testing.assert_array_equal(one.logits, two.logits)


def test_the_input_is_not_changed(residual: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = residual
    before = x.copy()
    for method in METHODS:
        explainer.explain(x, method=method, **cheap(method))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8])
def test_other_number_types_are_converted(dtype: type) -> None:
    model = tiny_models.vgg()
    x: np.ndarray = (np.abs(tiny_models.pictures(model)) * 20).astype(dtype)
    explainer = Explainer(model)
    expected = explainer.explain(x.astype(np.float32)).relevance
    np.testing.assert_array_equal(explainer.explain(x).relevance, expected)
    np.testing.assert_array_equal(explainer.explain(x.tolist()).relevance, expected)


def test_strided_input(residual: tuple[Explainer, np.ndarray]) -> None:
    """A view with any strides is read as the array it shows."""
    explainer, x = residual
    turned = np.asfortranarray(x)[::-1]
    np.testing.assert_array_equal(
        explainer.explain(turned).relevance, explainer.explain(np.ascontiguousarray(turned)).relevance
    )


# --- what a call may not cost -------------------------------------------------------------------------------


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The output names of every session that is made from here on."""
    made: list[list[str]] = []
    original: Callable[..., Any] = runtime.session

    def counted(*args: Any, **kwargs: Any) -> Any:
        session = original(*args, **kwargs)
        made.append([output.name for output in session.get_outputs()])
        return session

    monkeypatch.setattr(runtime, "session", counted)
    return made


def test_sessions_are_kept(sessions: list[list[str]]) -> None:
    """One forward pass, one head and one descent are compiled; further calls of the kind compile nothing."""
    model = tiny_models.residual()
    x = tiny_models.pictures(model)
    explainer = Explainer(model)
    explainer.explain(x)
    assert len(sessions) == 3
    plans = list(explainer._plans.values())
    for target in (0, 1, [2, 3]):
        explainer.explain(x, target=target)
        explainer.explain(x, target=target, denoise=True)
    assert len(sessions) == 3
    explainer.explain(x, method="grad-cam")
    explainer.explain(x, method="layer-cam")
    assert len(sessions) <= 5
    count = len(sessions)
    explainer.explain(x, method="grad-cam")
    explainer.explain(x)
    assert len(sessions) == count
    assert all(a is b for a, b in zip(plans, explainer._plans.values(), strict=False))


@pytest.mark.parametrize("name", ["vgg", "residual", "squeeze_excite", "nhwc"])
def test_only_what_the_rules_read_is_fetched(name: str, sessions: list[list[str]]) -> None:
    """The forward session gives the tensors in the plans, L and the logits; no convolution's own output besides."""
    model = getattr(tiny_models, name)()
    explainer = Explainer(model)
    explainer.explain(tiny_models.pictures(model))
    own = {value.name for value in model.graph.output}
    plans = {tensor for plan in explainer._plans.values() for tensor in plan.reads}
    wanted = plans | {explainer.default_layer, explainer.graph.logits} - {explainer.graph.image}
    assert set(sessions[0]) == (wanted | own) - {explainer.graph.image}
    linear = {n.output[0] for n in model.graph.node if n.op_type in ("Conv", "BatchNormalization")}
    if name in ("vgg", "nhwc"):
        assert not linear & set(sessions[0])


def test_memory_stays_flat() -> None:
    """Fifty calls on one Explainer, and twenty Explainers: the process does not grow."""
    psutil = pytest.importorskip("psutil")
    model = tiny_models.vgg()
    x = tiny_models.pictures(model)
    process = psutil.Process()

    def grown(call: Callable[[], object], times: int) -> int:
        for _ in range(times):  # what is kept, and what allocators hold back, is there after the first round
            call()
        gc.collect()
        before = process.memory_info().rss
        for _ in range(times):
            call()
        gc.collect()
        grown: int = process.memory_info().rss - before
        return grown

    explainer = Explainer(model, threads=1)
    assert grown(lambda: explainer.explain(x, denoise=True), 50) < 4 << 20
    assert grown(lambda: Explainer(model, threads=1).explain(x), 20) < 16 << 20


def test_plans_and_programs_do_not_grow_with_calls() -> None:
    model = tiny_models.free_size()
    explainer = Explainer(model)
    for size in range(8, 30):
        explainer.explain(np.zeros((1, 3, size, size), np.float32))
    assert len(explainer._plans) == 2
    assert len(explainer._backend._compiled) == KEPT < 22  # type: ignore[attr-defined]


def test_activations(residual: tuple[Explainer, np.ndarray]) -> None:
    """By tensor or node name, as onnxruntime alone computes them."""
    explainer, x = residual
    found = explainer.activations(x, ["stem", "b1.add.y"])
    expected = tiny_models.run(tiny_models.residual(), x, "stem.y", "b1.add.y")
    np.testing.assert_allclose(found["stem"], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["b1.add.y"], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_activations_of_a_fixed_batch(n: int) -> None:
    """Any number of images, as explain() takes them; what was filled up is cut off again."""
    fixed, free = tiny_models.fixed_batch(), tiny_models.free_size()
    x = tiny_models.pictures(fixed, n, seed=3)
    names = ["relu2.y", "fc"]
    found, expected = (Explainer(model, backend="ort").activations(x, names) for model in (fixed, free))
    for name in names:
        assert len(found[name]) == n
        np.testing.assert_allclose(found[name], expected[name], **SAME)


# --- edge cases of methods 9.2 ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_flat_image(value: float) -> None:
    """l = h = x: an all-zero map, no NaN, everything leaked at the first layer; the heatmap is zero too."""
    model = tiny_models.vgg()
    e = Explainer(model).explain(np.full((1, 3, 16, 12), value, np.float32))
    assert not e.relevance.any()
    assert not e.heatmap().any()
    assert e.ledger.residual < 1e-4


def test_one_and_four_channels() -> None:
    """z^B at the first convolution, however many channels the picture has."""
    for channels in (1, 4):
        net = tiny_models.Net(("n", channels, 10, 8))
        model = net.model(net.head(net.relu("relu", net.conv("conv", "image", channels, 4)), 4))
        e = Explainer(model).explain(tiny_models.pictures(model))
        assert e.relevance.shape == (2, 10, 8)
        assert [row.rule for row in e.ledger.rows if row.node == "conv"] == ["z_box"]


def test_an_l_of_few_channels_and_cells_is_denoised_to_rank_one() -> None:
    net = tiny_models.Net(("n", 3, 4, 4))
    x = net.max_pool("pool", net.relu("relu", net.conv("conv", "image", 3, 3)))
    model = net.model(net.head(x, 3))
    e = Explainer(model).explain(tiny_models.pictures(model), denoise=True)
    assert e.relevance.any()


def test_dead_activations_give_a_zero_map() -> None:
    """Nothing is active at L: a zero map and a heatmap of zeros, no NaN."""
    net = tiny_models.Net()
    c = net.node("Conv", "conv", "image", net.random(4, 3, 3, 3), np.full(4, -1e6, np.float32), pads=[1] * 4)
    model = net.model(net.head(net.relu("relu", c), 4))
    e = Explainer(model).explain(tiny_models.pictures(model), denoise=True)
    assert not e.relevance.any()
    assert not e.heatmap().any()
    assert (e.ledger.leaked, e.ledger.residual) == (0, 0)


@pytest.mark.parametrize("backend", [OrtBackend(threads=1), NumpyBackend()], ids=["ort", "numpy"])
@pytest.mark.parametrize("batchnorm", ["fold", "identity"])
def test_a_backend_shared_by_two_models_keeps_them_apart(backend: Backend, batchnorm: str) -> None:
    """Same names and shapes, other weights: what was compiled for the first must not serve the second."""
    first, second = (tiny_models.vgg(seed=seed) for seed in (0, 1))
    x = tiny_models.pictures(first, 2)
    Explainer(first, backend=backend).explain(x, target=0, batchnorm=batchnorm)
    shared = Explainer(second, backend=backend).explain(x, target=0, batchnorm=batchnorm).relevance
    alone = Explainer(second, backend="numpy", precision="float64").explain(x, target=0, batchnorm=batchnorm).relevance
    assert np.linalg.norm(shared - alone) <= 1e-5 * np.linalg.norm(alone)


def test_check_says_what_explain_would_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = tiny_models.vgg()
    e = Explainer(proto, threads=1)
    x = tiny_models.pictures(proto, 1)
    asked: list[dict[str, Any]] = [
        {"method": "cam"}, {"method": "fg-cam"}, {"method": "grad-camm"}, {"layer": "pool99"}, {"ratio": 0.2},
        {"method": "lrp", "denoise": True}, {"method": "rise", "masks": "many"},
    ]  # fmt: skip
    told = []
    for how in asked:
        with pytest.raises(FgcamError) as error:
            e.explain(x, **how)
        told.append((type(error.value), str(error.value)))
    monkeypatch.setattr(e._engine, "tape", None)
    monkeypatch.setattr(e._forward, "run", None)
    for how, (kind, text) in zip(asked, told, strict=True):
        with pytest.raises(kind) as error:
            e.check(**how)
        assert str(error.value) == text
    e.check()
    e.check(method="score-cam", layer=e.layers()[1].name, denoise=True)
