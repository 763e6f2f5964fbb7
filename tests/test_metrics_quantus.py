"""Quantus on our maps and networks; and its metrics, and those of pytorch-grad-cam, where they compute what ours do."""

from __future__ import annotations

import builtins
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch_reference import import_torchvision

from fgcam_onnx import Explainer, metrics
from fgcam_onnx.errors import InputError, MissingPackageError, OptionError
from fgcam_onnx.metrics import Scorer, average_drop, deletion_insertion, localisation, pixels
from fgcam_onnx.metrics import quantus as ours

RNG = np.random.default_rng(0)
QUIET: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
# Ranks without ties, none of them all negative: Quantus refuses such maps.
RANKS = RNG.permutation(2 * 192).reshape(2, 16, 12).astype(np.float32) - 100
CLASSES = np.array([3, 1])


@pytest.fixture(scope="module")
def quantus() -> ModuleType:
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("quantus")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def grey() -> tuple[Explainer, np.ndarray]:
    """One channel: what Quantus flips, a number of the input, is a pixel."""
    net = tiny_models.Net(("n", 1, 16, 12))
    x = net.max_pool("pool", net.relu("relu1", net.conv("conv1", "image", 1, 6)))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    return Explainer(model, backend="ort", threads=1), tiny_models.pictures(model, 2)


@pytest.fixture(scope="module")
def colour() -> tuple[Explainer, np.ndarray]:
    model = tiny_models.vgg()
    return Explainer(model, backend="ort", threads=1), tiny_models.pictures(model, 2)


# --- the same figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 8, 48])
def test_pixel_flipping(quantus: ModuleType, grey: tuple[Explainer, np.ndarray], step: int) -> None:
    explainer, x = grey
    metric = quantus.PixelFlipping(features_in_step=step, perturb_baseline=0.25, **QUIET)
    theirs = metric(ours.module(explainer), x, CLASSES, RANKS[:, None], batch_size=2)
    found = deletion_insertion(explainer, x, RANKS, CLASSES, step=step, baseline=0.25)
    np.testing.assert_allclose(found.deletion[:, 1:], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [8, 16])
def test_pixel_flipping_in_colour(quantus: ModuleType, colour: tuple[Explainer, np.ndarray], step: int) -> None:
    """It ranks single numbers; those of a pixel have the same rank, so three times the features are whole pixels."""
    explainer, x = colour
    metric = quantus.PixelFlipping(features_in_step=3 * step, perturb_baseline=0.0, **QUIET)
    theirs = ours.evaluate(metric, explainer, x, CLASSES, a_batch=RANKS[:, None])
    found = deletion_insertion(explainer, x, RANKS, CLASSES, step=step, baseline="zero")
    np.testing.assert_allclose(found.deletion[:, 1:], theirs, rtol=0, atol=1e-6)


def test_insertion_is_pixel_flipping_of_the_negative_backward(
    quantus: ModuleType, grey: tuple[Explainer, np.ndarray]
) -> None:
    explainer, x = grey
    metric = quantus.PixelFlipping(features_in_step=16, perturb_baseline=0.0, **QUIET)
    theirs = ours.evaluate(metric, explainer, x, CLASSES, a_batch=-RANKS[:, None])
    found = deletion_insertion(explainer, x, RANKS, CLASSES, step=16, baseline="zero")
    np.testing.assert_allclose(found.insertion[:, ::-1][:, 1:], theirs, rtol=0, atol=1e-6)


def test_region_perturbation_and_selectivity(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    """Patches of 4 x 4: a map that is constant on each takes them whole, 16 pixels a step."""
    explainer, x = colour
    patches = RNG.permutation(24).reshape(2, 4, 3).astype(np.float32) - 5
    e = patches.repeat(4, 1).repeat(4, 2)
    found = deletion_insertion(explainer, x, e, CLASSES, step=16, baseline="zero")
    options: dict[str, Any] = {"patch_size": 4, "perturb_baseline": 0.0, **QUIET}
    selectivity = ours.evaluate(quantus.Selectivity(**options), explainer, x, CLASSES, a_batch=e[:, None])
    np.testing.assert_allclose(found.deletion[:, 1:], selectivity, rtol=0, atol=1e-6)
    for order, curve in (("morf", found.deletion), ("lerf", found.insertion[:, ::-1])):
        region = quantus.RegionPerturbation(regions_evaluation=12, order=order, **options)
        theirs = ours.evaluate(region, explainer, x, CLASSES, a_batch=e[:, None])
        np.testing.assert_allclose(curve[:, :1] - curve[:, 1:], theirs, rtol=0, atol=1e-6)


def test_localisation(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    e, masks = RANKS.clip(0) + 0.5, RNG.uniform(size=(2, 16, 12)) > 0.7
    found = localisation(e, masks)
    given: dict[str, Any] = {"a_batch": e[:, None].copy(), "s_batch": masks[:, None]}
    for name, figure in (
        ("RelevanceMassAccuracy", "proportion"),
        ("AttributionLocalisation", "proportion"),
        ("RelevanceRankAccuracy", "rank_accuracy"),
        ("PointingGame", "pointing_game"),
    ):
        theirs = ours.evaluate(getattr(quantus, name)(**QUIET), explainer, x, CLASSES, **given)
        np.testing.assert_allclose(found[figure], np.asarray(theirs, float), rtol=0, atol=1e-6)
    assert 0.1 < found["rank_accuracy"].mean() < 0.5


def test_blur_is_torchvisions() -> None:
    """With the defaults: 51 pixels wide, sigma 50."""
    x = RNG.normal(size=(2, 3, 40, 30))
    vision = import_torchvision().transforms.GaussianBlur(51, 50.0)
    np.testing.assert_allclose(pixels.baseline_of(x, "NCHW"), vision(torch.tensor(x)), rtol=0, atol=1e-6)


def test_pytorch_grad_cam(colour: tuple[Explainer, np.ndarray]) -> None:
    """Its metrics multiply the picture with the map: with a map of zeros and ones and a baseline of 0 that is the same.

    It gives the drop itself, not its share of Y.
    """
    import_torchvision()
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    explainer, _ = colour
    x, classes = tiny_models.pictures(tiny_models.vgg(), 6), [0, 1, 2, 3, 4, 0]
    e = (RNG.uniform(size=(6, 16, 12)) > 0.7).astype(np.float32)  # fewer than half are ones: those are what is kept
    given = torch.from_numpy(x), e, [ClassifierOutputSoftmaxTarget(c) for c in classes], ours.module(explainer)
    found = average_drop(explainer, x, e, classes, baseline="zero")
    y = Scorer(explainer).probabilities(x, classes)
    np.testing.assert_allclose(found["average_drop"] / 100 * y, DropInConfidence()(*given), rtol=0, atol=1e-6)
    rises = IncreaseInConfidence()(*given)
    assert (found["average_increase"] / 100).tolist() == rises.tolist()
    assert 0 < rises.sum() < 6


# --- maps in Quantus' form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fg-grad-cam", "grad-cam", "lrp"])
def test_maps(colour: tuple[Explainer, np.ndarray], method: str) -> None:
    explainer, x = colour
    found = ours.a_batch(explainer, x, CLASSES, method=method)
    relevance = explainer.explain(x, method=method, target=[3, 1]).relevance
    assert found.shape == (2, 1, 16, 12)
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_allclose(found[:, 0], pixels.at_input(relevance, (16, 12)), rtol=1e-6, atol=1e-7)
    same = ours.explain_func(explainer, method=method)(object(), x, CLASSES, device="cpu")
    assert np.array_equal(same, found)
    assert np.array_equal(
        ours.a_batch(explainer, x, 3, method=method), ours.a_batch(explainer, x, [3, 3], method=method)
    )


def test_maps_of_the_predicted_class(colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    predicted = explainer.scores(x).argmax(1)
    assert np.array_equal(ours.a_batch(explainer, x), ours.a_batch(explainer, x, predicted))


def test_a_changed_network_is_the_one_that_is_explained(colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    other = Explainer(tiny_models.vgg(seed=1), backend="ort", threads=1)
    explain = ours.explain_func(explainer)
    expected = ours.a_batch(other, x, CLASSES)
    assert np.array_equal(explain(other, x, CLASSES), expected)
    assert np.array_equal(explain(ours.module(other), x, CLASSES), expected)
    assert not np.array_equal(explain(None, x, CLASSES), expected)


# --- Quantus' own call, and ours without PyTorch ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fg-grad-cam", "layer-cam"])
def test_its_own_call(quantus: ModuleType, colour: tuple[Explainer, np.ndarray], method: str) -> None:
    explainer, x = colour
    metric = quantus.PixelFlipping(features_in_step=48, **QUIET)
    options: dict[str, Any] = {"explain_func": ours.explain_func(explainer), "explain_func_kwargs": {"method": method}}
    theirs = metric(model=ours.module(explainer), x_batch=x, y_batch=CLASSES, a_batch=None, **options)
    without = ours.evaluate(quantus.PixelFlipping(features_in_step=48, **QUIET), explainer, x, CLASSES, method=method)
    np.testing.assert_allclose(without, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Sparseness", {}),
        ("Complexity", {}),
        ("EffectiveComplexity", {}),
        ("FaithfulnessCorrelation", {"nr_runs": 5, "subset_size": 20}),
        ("SensitivityN", {"features_in_step": 48}),
        ("Infidelity", {"n_perturb_samples": 2, "perturb_patch_sizes": [4]}),
        ("Completeness", {}),
        ("MaxSensitivity", {"nr_samples": 2, "lower_bound": 0.02}),
        ("ROAD", {"percentages": [10, 50], "noise": 0}),
        ("RelativeOutputStability", {"nr_samples": 2}),
        ("RelativeRepresentationStability", {"nr_samples": 2}),
        ("RandomLogit", {"num_classes": 5, "similarity_func": lambda a, b, **_: ((a - b) ** 2).mean(axis=1)}),
        ("EfficientMPRT", {}),
        ("MPRT", {"return_last_correlation": True}),
    ],
)
def test_its_metrics_run_without_a_model_of_pytorch(
    quantus: ModuleType,
    colour: tuple[Explainer, np.ndarray],
    grey: tuple[Explainer, np.ndarray],
    name: str,
    options: dict[str, Any],
) -> None:
    explainer, x = grey if name == "ROAD" else colour  # its ROAD counts channels twice
    np.random.seed(0)
    metric = getattr(quantus, name)(**options, **QUIET)
    # Quantus refuses maps that are negative everywhere, as those of a small random network may be.
    method = "integrated-gradients" if "MPRT" in name else "fg-grad-cam"
    found = ours.evaluate(metric, explainer, x, CLASSES, method=method)
    flat = np.hstack([np.ravel(v) for v in found.values()] if isinstance(found, dict) else np.ravel(found))
    assert np.isfinite(flat.astype(float)).all()
    assert "custom_preprocess" not in vars(metric)  # the metric is left as it was


@pytest.mark.parametrize("name", ["Sparseness", "Complexity"])
def test_figures_of_maps(quantus: ModuleType, colour: tuple[Explainer, np.ndarray], name: str) -> None:
    """They differ by the small numbers that Quantus adds."""
    explainer, x = colour
    theirs = ours.evaluate(getattr(quantus, name)(**QUIET), explainer, x, CLASSES)
    found = ours.by_quantus_name(name)(ours.a_batch(explainer, x, CLASSES)[:, 0])
    found = found[name.lower()] if isinstance(found, dict) else found
    np.testing.assert_allclose(found, theirs, rtol=1e-4)


def test_channels_last(quantus: ModuleType) -> None:
    model = tiny_models.nhwc()
    explainer, x = Explainer(model, backend="ort", threads=1), tiny_models.pictures(model, 2)
    metric = quantus.PixelFlipping(features_in_step=48, perturb_baseline=0.0, **QUIET)
    theirs = ours.evaluate(metric, explainer, x, CLASSES, a_batch=RANKS[:, None])
    found = deletion_insertion(explainer, x, RANKS, CLASSES, step=16, baseline="zero")
    np.testing.assert_allclose(found.deletion[:, 1:], theirs, rtol=0, atol=1e-6)
    assert np.shape(ours.evaluate(quantus.Sparseness(**QUIET), explainer, x, CLASSES)) == (2,)


# --- the interface ----------------------------------------------------------------------------------------------------


def test_predictions(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    logits, p = ours.interface(explainer).predict(x), ours.interface(explainer, softmax=True).predict(x)
    assert np.array_equal(logits, explainer.scores(x))
    scorer = Scorer(explainer)
    for c in range(5):
        np.testing.assert_allclose(p[:, c], scorer.probabilities(x, c), rtol=1e-6)
    net = tiny_models.Net()
    fc = net.head(net.relu("relu1", net.conv("conv1", "image", 3, 6)), 6)
    alone = Explainer(net.model(net.node("Sigmoid", "end", fc)), backend="ort", threads=1)
    np.testing.assert_allclose(
        ours.interface(alone, softmax=True).predict(x)[:, 2], Scorer(alone).probabilities(x, 2), rtol=1e-6
    )
    np.testing.assert_allclose(ours.module(explainer)(torch.from_numpy(x)).numpy(), logits, rtol=1e-6)


def test_shapes(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    model = ours.interface(explainer)
    assert np.array_equal(model.shape_input(x.ravel(), x.shape, channel_first=True, batched=True), x)
    assert model.shape_input(x[0], x[0].shape).shape == (1, 3, 16, 12)
    last = ours.interface(Explainer(tiny_models.nhwc(), backend="ort", threads=1))
    assert np.array_equal(last.shape_input(x, x.shape, channel_first=True, batched=True), x.transpose(0, 2, 3, 1))
    assert np.array_equal(model.shape_input(x.transpose(0, 2, 3, 1), (2, 16, 12, 3), False, True), x)


def test_random_layers(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    model = ours.interface(explainer)
    names = list(metrics.weight_layers(explainer))
    assert model.random_layer_generator_length == len(names) == 4
    own = explainer.scores(x)
    for order, expected in (("top_down", names[::-1]), ("bottom_up", names), ("independent", names)):
        steps = list(model.get_random_layer_generator(order, seed=3))
        assert [name for name, _ in steps] == expected
        assert all(not np.allclose(twin.scores(x), own) for _, twin in steps)
    whole = list(model.get_random_layer_generator("top_down", seed=3))[-1][1].scores(x)
    assert np.array_equal(whole, list(model.get_random_layer_generator("bottom_up", seed=3))[-1][1].scores(x))
    with pytest.raises(OptionError) as caught:
        next(model.get_random_layer_generator("sideways"))
    assert str(caught.value) == "option order cannot be 'sideways'\n  known   top_down, bottom_up, independent"


def test_hidden_representations(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    explainer, x = colour
    model = ours.interface(explainer)
    found = model.get_hidden_representations(x, ["relu1.y", "relu3.y"])
    assert found.shape == (2, 6 * 16 * 12 + 10)
    assert np.array_equal(found[:, -10:], explainer.activations(x, ["relu3.y"])["relu3.y"])
    stages = [stage.name for stage in explainer.layers()]
    assert np.array_equal(
        model.get_hidden_representations(x, layer_indices=[-1]), model.get_hidden_representations(x, stages[-1:])
    )
    assert len(model.get_hidden_representations(x)) == 2


def test_what_an_onnx_model_does_not_have(quantus: ModuleType, colour: tuple[Explainer, np.ndarray]) -> None:
    model = ours.interface(colour[0])
    assert model.get_model() is model.get_softmax_arg_model() is colour[0]
    with pytest.raises(NotImplementedError, match="has no state_dict"):
        model.state_dict()
    with pytest.raises(NotImplementedError, match="InputInvariance"):
        model.add_mean_shift_to_first_layer(1, (1, 3, 16, 12))


def test_dense_outputs() -> None:
    net = tiny_models.Net()
    model = net.model(net.conv("conv2", net.relu("relu1", net.conv("conv1", "image", 3, 6)), 6, 5, 1))
    with pytest.raises(InputError) as caught:
        ours.interface(Explainer(model, backend="ort", threads=1))
    assert str(caught.value) == (
        "Quantus asks for one score a class, and a dense output has more\n"
        "  known   output 'conv2.y' is ['n', 5, 16, 12]"
    )


def test_without_quantus(monkeypatch: pytest.MonkeyPatch, colour: tuple[Explainer, np.ndarray]) -> None:
    """Maps and names work; what runs Quantus says what is missing."""
    explainer, x = colour
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "quantus":
            raise ModuleNotFoundError("No module named 'quantus'", name="quantus")
        return load(name, *args, **kwargs)

    real = importlib.import_module
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *a: refuse(name) if "quantus" in name else real(name, *a)
    )
    ours._interface_class.cache_clear()
    assert ours.a_batch(explainer, x, 1).shape == (2, 1, 16, 12)
    assert ours.by_quantus_name("ROAD") is metrics.road
    with pytest.raises(MissingPackageError) as caught:
        ours.interface(explainer)
    assert str(caught.value) == (
        'quantus is not installed: its metrics run in Quantus\n  next    pip install "fgcam_onnx[test]"'
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_name_is_a_metric_of_both(quantus: ModuleType) -> None:
    for name, equivalent in ours.METRICS.items():
        assert hasattr(quantus, name), name
        assert ours.by_quantus_name(name) is getattr(metrics, equivalent.ours)
        assert 10 < len(equivalent.differs) < 250
        assert "\n" not in equivalent.differs
    assert ours.by_quantus_name("PixelFlipping") is deletion_insertion
    assert ours.by_quantus_name("EfficientMPRT") is metrics.efficient_randomisation


def test_a_name_that_has_none() -> None:
    with pytest.raises(OptionError) as caught:
        ours.by_quantus_name("PixelFliping")
    text = str(caught.value)
    assert text.startswith("no metric here for 'PixelFliping' of Quantus\n  known   PixelFlipping, Selectivity, ")
    assert text.endswith("\n  next    did you mean 'PixelFlipping'?")
    with pytest.raises(OptionError) as caught:
        ours.by_quantus_name("Focus")
    assert str(caught.value).endswith("\n  next    run Quantus' own: fgcam_onnx.metrics.quantus.evaluate")
