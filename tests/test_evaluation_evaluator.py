"""A picture becomes rows: figures against the plain functions, controls, boxes through the crop, who stands where."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image

from fgcam_onnx import Explainer, imaging, models
from fgcam_onnx.errors import (
    ActivationError,
    BackendError,
    ImageError,
    LayerError,
    MethodError,
    OptionError,
    OutputError,
    TargetError,
)
from fgcam_onnx.evaluation import local
from fgcam_onnx.evaluation.boxes import Box
from fgcam_onnx.evaluation.contenders import QUICK, contenders_of, layers_of
from fgcam_onnx.evaluation.controls import center_gaussian, edges, random_map
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.measures import MEASURES
from fgcam_onnx.evaluation.run import Run, plan
from fgcam_onnx.evaluation.settings import Settings
from fgcam_onnx.evaluation.store import open_store
from fgcam_onnx.metrics import (
    average_drop,
    completeness,
    complexity,
    deletion_insertion,
    efficient_randomisation,
    infidelity,
    localisation,
    max_sensitivity,
    mu_fidelity,
    random_logit,
    road,
    sensitivity_n,
    sparseness,
    spearman,
)
from fgcam_onnx.metrics.pixels import baseline_of
from fgcam_onnx.metrics.randomisation import random_twin
from fgcam_onnx.preprocessing import choose

Row = dict[str, Any]
PICTURE = models.path("pictures/fish-sailboat.png")
BOX = Box(54, 7, 114, 72, "sailboat")
L = "max_pool2d_3"


@cache
def explainer() -> Explainer:
    return Explainer(models.path("demo_honest.onnx"), threads=1)


def recipe(**fields: Any) -> Any:
    e = explainer()
    return choose(fields, metadata=e.metadata, input_shape=e.input_shape, layout=e.layout)


def planned(settings: Settings | None = None, **asked: Any) -> Run:
    asked = {"methods": "grad-cam,fg-grad-cam+denoise,lrp", "layers": "max_pool2d_2,input", **asked}
    return plan(explainer(), asked.pop("recipe", recipe()), settings=settings or Settings(step=4096), **asked)


def rows_of(sample: Sample | None = None, **asked: Any) -> list[Row]:
    sample = sample or Sample("fish-sailboat.png", PICTURE, "sailboat", (BOX,))
    return planned(**asked).evaluator(explainer())(sample)


def by_cell(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row["method"], row["layer"]): row for row in rows}


# --- figures ------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_plain_functions() -> None:
    """Each map on its own, with its own forward passes, gives what the evaluation gives in its batches."""
    e, x = explainer(), recipe().apply(imaging.read(PICTURE))[0][None]
    target = int(e.scores(x)[0].argmax())
    mask = np.zeros((128, 128), bool)
    mask[7:72, 54:114] = True
    found = by_cell(rows_of())
    asked: dict[tuple[str, str], dict[str, Any]] = {
        ("grad-cam", "max_pool2d_2"): {"method": "grad-cam", "layer": "max_pool2d_2"},
        ("fg-grad-cam+denoise", "max_pool2d_2"): {"method": "fg-grad-cam", "layer": "max_pool2d_2", "denoise": True},
        ("fg-grad-cam+denoise", "input"): {"method": "fg-grad-cam", "denoise": True},
        ("class-blind", "max_pool2d_2"): {"method": "class-blind", "layer": "max_pool2d_2"},
        ("fg-class-blind", "input"): {"method": "fg-class-blind"},
        ("lrp", "input"): {"method": "lrp"},
    }
    for key, how in asked.items():
        relevance = e.explain(x, target=target, **how).relevance
        curves = deletion_insertion(e, x, relevance, target, step=4096)
        expected = {
            **average_drop(e, x, relevance, target),
            **localisation(relevance, mask[None]),
            "deletion": curves.deletion_auc,
            "insertion": curves.insertion_auc,
            "overall": curves.overall,
        }
        for figure, values in expected.items():
            assert found[key][figure] == pytest.approx(float(values[0]), rel=1e-6, abs=1e-9), (key, figure)
        np.testing.assert_allclose(found[key]["deletion_scores"], curves.deletion[0], rtol=1e-6)
        np.testing.assert_allclose(found[key]["insertion_scores"], curves.insertion[0], rtol=1e-6)
        assert (found[key]["height"], found[key]["width"]) == relevance.shape[1:]
    assert found["lrp", "input"]["leaked"] is not None
    assert found["grad-cam", "max_pool2d_2"]["leaked"] is None


def test_every_row_says_what_was_measured() -> None:
    e, x = explainer(), recipe().apply(imaging.read(PICTURE))[0][None]
    p = np.exp(e.scores(x)[0].astype(np.float64))
    hidden = np.exp(e.scores(baseline_of(x, "NCHW"))[0].astype(np.float64))
    target = int(p.argmax())
    assert e.labels is not None
    for row in rows_of():
        assert row["image"] == "fish-sailboat.png"
        assert len(row["sha256"]) == 64
        assert row["target"] == target
        assert e.labels[row["label"]] == "sailboat"
        assert row["p"] == pytest.approx(p[target] / p.sum(), rel=1e-6)
        assert row["p_baseline"] == pytest.approx(hidden[target] / hidden.sum(), rel=1e-6)
        assert row["deletion_scores"][0] == row["p"] == row["insertion_scores"][-1]
        assert row["deletion_scores"][-1] == row["p_baseline"] == row["insertion_scores"][0]


def test_the_same_again_bit_for_bit_whatever_was_measured_before() -> None:
    worker = planned().evaluator(explainer())
    sample = Sample("a", PICTURE, None)
    first = worker(sample)
    worker(Sample("b", models.path("pictures/house-rocket.png"), None))
    assert worker(sample) == first == planned().evaluator(Explainer(models.path("demo_honest.onnx"), threads=1))(sample)


def test_the_label_may_be_the_target() -> None:
    rows = rows_of(settings=Settings(step=4096, target="label", metrics=("average-drop",)))
    assert {row["target"] for row in rows} == {row["label"] for row in rows}
    with pytest.raises(TargetError, match=r"^'x' has no label, and the label is what is explained$"):
        rows_of(Sample("x", PICTURE, None), settings=Settings(target="label"))
    for label, text in (("99", "the label of 'x': there is no class 99"), ("cat", "no class is called 'cat'")):
        with pytest.raises(TargetError, match=text):
            rows_of(Sample("x", PICTURE, label))


def test_a_map_that_cannot_be_made_is_a_note_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Explainer.explain

    def explain(self: Explainer, x: Any, **how: Any) -> Any:
        if how["method"] == "lrp":
            raise ActivationError("the books do not close")
        return real(self, x, **how)

    def broken(self: Explainer, x: Any, **how: Any) -> Any:
        raise BackendError("the device is gone")

    monkeypatch.setattr(Explainer, "explain", broken)
    with pytest.raises(BackendError, match="the device is gone"):  # no row says that this was measured
        rows_of()
    monkeypatch.setattr(Explainer, "explain", explain)
    found = by_cell(rows_of())
    assert found["lrp", "input"]["note"] == "ActivationError: the books do not close"
    assert found["lrp", "input"]["overall"] is None
    assert found["grad-cam", "max_pool2d_2"]["note"] is None
    assert found["grad-cam", "max_pool2d_2"]["overall"] is not None


# --- boxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "which", "note"),
    [
        ((BOX,), "paper", None),
        ((), "paper", None),
        ((BOX, Box(6, 67, 65, 114)), "paper", "2 boxes"),
        ((BOX, Box(6, 67, 65, 114)), "any", None),
        ((Box(0, 0, 128, 100),), "paper", "the box covers 78%"),
        ((Box(0, 0, 128, 100),), "any", None),
        ((Box(100, 10, 300, 20),), "any", "reaches out of its picture"),
    ],
)
def test_which_boxes_count(boxes: tuple[Box, ...], which: str, note: str | None) -> None:
    settings = Settings(metrics=("localisation",), boxes=which)
    row = rows_of(Sample("x", PICTURE, None, boxes), settings=settings)[0]
    assert (row["proportion"] is None) == (note is not None or not boxes)
    assert (row["note"] is None) if note is None else (note in row["note"])


def test_boxes_go_through_the_crop() -> None:
    """A picture of twice the size, its centre cut out: the box is where the object is in the input."""
    picture = Image.new("RGB", (400, 300))
    white = (150, 80, 250, 240)
    picture.paste((255, 255, 255), white)
    for fields in ({"resize": "stretch"}, {"resize": "short_side_then_center_crop", "short_side": 150},
                   {"resize": "center_crop"}, {"resize": "fit_then_pad"}):  # fmt: skip
        made = recipe(**fields)
        seen = made.apply(picture)[1][..., 0] > 127
        ((x1, y1, x2, y2),) = made.boxes([white], 300, 400)
        inside = np.zeros_like(seen)
        inside[round(y1) : round(y2), round(x1) : round(x2)] = True
        rim = 2 * (seen.sum(0).max() + seen.sum(1).max())
        assert (inside != seen).sum() <= rim, fields
    assert recipe(resize="center_crop").boxes([(0, 0, 100, 50)], 300, 400) == []


def test_a_box_is_measured_where_the_crop_put_it(tmp_path: Path) -> None:
    """The centre of a picture of twice the size: its box moves by 64 pixels, and the figure is of the moved one."""
    imaging.read(PICTURE).resize((256, 256)).save(tmp_path / "large.png")
    made = recipe(resize="center_crop")
    sample = Sample("large", tmp_path / "large.png", None, (Box(100, 90, 180, 170),))
    settings = Settings(metrics=("localisation",))
    row = by_cell(rows_of(sample, recipe=made, methods="lrp", controls=False, settings=settings))["lrp", "input"]
    x = made.apply(imaging.read(sample.path))[0][None]
    mask = np.zeros((1, 128, 128), bool)
    mask[0, 26:106, 36:116] = True
    expected = localisation(explainer().explain(x, method="lrp").relevance, mask)
    assert row["proportion"] == pytest.approx(float(expected["proportion"][0]), rel=1e-6)


# --- controls -----------------------------------------------------------------------------------------------


def test_controls_stand_beside_each_layer() -> None:
    found = by_cell(rows_of())
    for name in ("center-gaussian", "edges"):
        here, there = found[name, "max_pool2d_2"], found[name, "input"]
        assert {k: v for k, v in here.items() if k != "layer"} == {k: v for k, v in there.items() if k != "layer"}
    assert found["random", "max_pool2d_2"]["height"] == 16
    assert found["random", "input"]["height"] == 128
    assert found["random", "input"]["overall"] != found["random", "max_pool2d_2"]["overall"]
    other = by_cell(rows_of(settings=Settings(step=4096, seed=1)))
    assert found["random", "input"]["overall"] != other["random", "input"]["overall"]
    assert found["edges", "input"] == other["edges", "input"]
    assert ("class-blind", "input") not in found
    assert not {"random", "edges", "class-blind"} & {row["method"] for row in rows_of(controls=False)}


def test_control_maps() -> None:
    """By hand: the same key gives the same cells, the middle is the middle, a step is an edge along its line alone."""
    assert (random_map((3, 4), 0, "a") == random_map((3, 4), 0, "a")).all()
    assert (random_map((3, 4), 0, "a") != random_map((3, 4), 0, "b")).all()
    assert 0.4 < random_map((64, 64), 1).mean() < 0.6
    g = center_gaussian((5, 9))
    assert g[2, 4] == g.max() == 1
    assert g[0, 4] == pytest.approx(np.exp(-((2 / (5 / 4)) ** 2) / 2))
    assert (g == g[::-1, ::-1]).all()
    step = np.zeros((3, 5, 6), np.float32)
    step[:, :, 3:] = 1
    assert (edges(step, "NCHW") == np.array([0, 0, 4, 4, 0, 0])).all()
    assert (edges(step.transpose(1, 2, 0), "NHWC") == edges(step, "NCHW")).all()
    assert (edges(step.transpose(0, 2, 1), "NCHW") == edges(step, "NCHW").T).all()


# --- words --------------------------------------------------------------------------------------------------


def test_sets_of_methods() -> None:
    names = [c.name for c in contenders_of("quick")]
    assert names == [*QUICK, "class-blind", "fg-class-blind", "random", "center-gaussian", "edges"]
    assert [c.name for c in contenders_of("lrp,lrp,grad-cam", controls=False)] == ["lrp", "grad-cam"]
    everything = contenders_of("all", controls=False)
    assert {"score-cam", "rise", "fg-lift-cam"} <= {c.name for c in everything}
    assert "class-blind" not in {c.name for c in everything}


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ("gradcam", MethodError, "there is no method 'gradcam'"),
        (" , ", MethodError, "no method is named"),
        ("lrp+denoise", OptionError, "lrp starts on the logits, and +denoise belongs to a method with an L"),
        ("fg-eigen-cam", MethodError, "there is no method 'fg-eigen-cam'"),
    ],
)
def test_words_that_mean_nothing(words: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        contenders_of(words)
    assert str(error.value).split("\n")[0] == text


def test_layers_from_l_to_the_input() -> None:
    e = explainer()
    all_of_them = [L, "max_pool2d_2", "max_pool2d_1", "max_pool2d", "input"]
    assert layers_of(e, "all") == all_of_them
    assert layers_of(e, None) == layers_of(e, "paper") == all_of_them[1:]
    assert layers_of(e, "L,paper") == all_of_them
    assert layers_of(e, "input, L,max_pool2d_1") == [L, "max_pool2d_1", "input"]
    assert layers_of(e, "image,node_max_pool2d_2") == ["max_pool2d_2", "input"]
    with pytest.raises(LayerError, match="did you mean"):
        layers_of(e, "max_pool2d_9")


def test_who_stands_where() -> None:
    cells = planned(methods="grad-cam,fg-grad-cam,fg-grad-cam+denoise,lrp", layers=f"{L},max_pool2d_2,input").cells
    at = {layer: [c.contender.name for c in cells if c.layer == layer] for layer in (L, "max_pool2d_2", "input")}
    controls = ["random", "center-gaussian", "edges"]
    assert at[L] == ["grad-cam", "fg-grad-cam+denoise", "class-blind", *controls]
    middle = ["grad-cam", "fg-grad-cam", "fg-grad-cam+denoise", "class-blind", "fg-class-blind", *controls]
    assert at["max_pool2d_2"] == middle
    assert at["input"] == ["fg-grad-cam", "fg-grad-cam+denoise", "lrp", "fg-class-blind", *controls]
    assert planned(methods="lrp,grad-cam", layers=L).notes == (f"lrp is measured at the input, and not at {L}",)
    with pytest.raises(LayerError, match="grad-cam is measured at a layer that is not the input, and not at input"):
        planned(methods="grad-cam", layers="input")


def test_a_method_that_the_model_cannot_serve_is_left_out_before_anything_runs() -> None:
    """The head of this network is no pooling and one linear layer, which cam needs."""
    e = Explainer(tiny_models.vgg(), threads=1)
    e._model = replace(e._model, path=Path("vgg.onnx"))
    asked: dict[str, Any] = {"layers": "L,input", "controls": False}
    made = choose({}, input_shape=e.input_shape, layout=e.layout)
    run = plan(e, made, methods="cam,lrp", **asked)
    assert [c.contender.name for c in run.cells] == ["lrp"]
    assert run.notes[0].startswith(f"cam at {e.default_layer} is left out: cam needs a head of global average pooling")
    with pytest.raises(MethodError, match="cam needs a head"):
        plan(e, made, methods="cam", **{**asked, "controls": True})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"metrics": ("overall",)}, "there is no metric 'overall'"),
        ({"metrics": ()}, "no metric is named"),
        ({"target": "true"}, "option target cannot be 'true'"),
        ({"fraction": 1.0}, "option fraction cannot be 1.0"),
        ({"step": 0}, "option step cannot be 0"),
        ({"baseline": "black"}, "option baseline cannot be 'black'"),
        ({"kernel": 50}, "option kernel cannot be 50"),
        ({"sigma": 0.0}, "option sigma cannot be 0.0"),
        ({"boxes": "one"}, "option boxes cannot be 'one'"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as error:
        Settings(**fields)
    assert str(error.value).split("\n")[0] == text


def test_a_run_is_plain_data() -> None:
    """Another process begins from a pickle of it, and a folder of results from its spec as JSON."""
    run = planned()
    again = pickle.loads(pickle.dumps(run))
    assert again.spec() == run.spec() == json.loads(json.dumps(run.spec()))
    assert again.spec(limit=5)["limit"] == 5
    sample = Sample("a", PICTURE, None)
    assert again.evaluator()(sample) == run.evaluator(explainer())(sample)
    assert planned(settings=Settings(step=448)).spec() != run.spec()


# --- the engine of one machine ------------------------------------------------------------------------------


def test_what_cannot_be_read_is_listed_and_the_run_goes_on(tmp_path: Path) -> None:
    run = planned(settings=Settings(metrics=("average-drop",)), methods="lrp", layers="input", controls=False)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    samples = [
        Sample("broken.jpg", broken, None),
        Sample("a", PICTURE, None),
        Sample("gone.jpg", tmp_path / "gone.jpg", None),
        Sample("b", PICTURE, "77"),
        Sample("c", PICTURE, "3"),
    ]
    seen: list[tuple[float, str]] = []
    with open_store(tmp_path / "out", run.spec(), columns=run.columns, form="csv") as store:
        failures = local.evaluate(run.evaluator(explainer()), samples, store, lambda done, id: seen.append((done, id)))
        assert [(f.id, f.error) for f in failures] == [
            ("broken.jpg", "ImageError"), ("gone.jpg", "ImageError"), ("b", "TargetError"),
        ]  # fmt: skip
        assert store.done == {"a", "c"}
        broken.write_bytes(PICTURE.read_bytes())
        again = local.evaluate(run.evaluator(explainer()), samples, store)
        assert [f.id for f in again] == ["gone.jpg", "b"]
        assert [row["image"] for row in store.rows()] == ["a", "c", "broken.jpg"]
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 5


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(settings=Settings(metrics=("average-drop",)), methods="lrp", layers="input", controls=False)
    samples = [Sample(name, PICTURE, None) for name in "abc"]
    with open_store(tmp_path, run.spec(), columns=run.columns) as store:
        real = type(store).append

        def append(self: Any, id: str, rows: Any) -> None:
            if id == "b":
                raise OutputError("no space left")
            real(self, id, rows)

        monkeypatch.setattr(type(store), "append", append)
        with pytest.raises(OutputError, match="no space left"):
            local.evaluate(run.evaluator(explainer()), samples, store)
        monkeypatch.undo()
    with open_store(tmp_path, run.spec(), columns=run.columns) as store:
        assert store.done == {"a"}
        assert local.evaluate(run.evaluator(explainer()), samples, store) == []
        assert store.done == {"a", "b", "c"}


def test_a_folder_that_cannot_be_read_as_a_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        rows_of(Sample("folder", tmp_path, None))


# --- every metric -------------------------------------------------------------------------------------------


def test_every_measure_fills_its_columns() -> None:
    """Of a method at the input: each figure is the plain function's."""
    e, x = explainer(), recipe().apply(imaging.read(PICTURE))[0][None]
    target = int(e.scores(x)[0].argmax())
    names = tuple(name for name in MEASURES if name != "deletion-insertion")
    settings = Settings(metrics=names, seed=3)
    asked = {"methods": "deeplift,edges", "layers": "input", "settings": settings, "controls": False}
    found = by_cell(rows_of(**asked))
    row, control = found["deeplift", "input"], found["edges", "input"]
    explained = e.explain(x, method="deeplift", target=target)
    maps, how = explained.relevance, {"method": "deeplift", "layer": "input"}
    twin = random_twin(e, None, 3).explain(x, method="deeplift", target=target).relevance
    faithless = infidelity(e, x, maps, target, seed=3)
    gap = completeness(explained)
    expected = {
        "road": road(e, x, maps, target, seed=3).combined[0],
        "sensitivity_n": sensitivity_n(e, x, maps, target, seed=3)[0],
        "mu_fidelity": mu_fidelity(e, x, maps, target, seed=3)[0],
        "infidelity": faithless["infidelity"][0],
        "infidelity_normalised": faithless["normalised"][0],
        "max_sensitivity": max_sensitivity(e, x, target, seed=3, **how)[0],
        "random_logit": random_logit(e, x, target, seed=3, **how)[0],
        "randomisation_spearman": spearman(np.abs(maps), np.abs(twin))[0],
        "randomisation_entropy": efficient_randomisation(e, x, target, seed=3, **how)[0],
        "sparseness": sparseness(maps)[0],
        "complexity": complexity(maps)[0],
        "completeness_gap": gap["gap"][0],
        "completeness_relative": gap["relative"][0],
    }
    for figure, value in expected.items():
        assert row[figure] == pytest.approx(float(value), rel=1e-5, abs=1e-7), figure
    assert -1 <= row["randomisation_ssim"] <= 1
    columns = {figure for name in names for figure in MEASURES[name].figures}
    assert all(row[figure] is not None for figure in columns)
    of_methods = {f for m in MEASURES.values() if "explain" in m.needs for f in m.figures}
    of_methods |= {"completeness_gap", "completeness_relative"}
    assert {figure for figure in columns if control[figure] is None} == of_methods
    assert not any(row["note"] for row in found.values())


def test_nothing_is_compiled_for_the_second_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walks of the paper's methods at all their layers fit among the compiled programs that are kept."""
    e = Explainer(models.path("demo_honest.onnx"), threads=1)
    run = plan(e, recipe(), methods="paper", layers="L,paper", settings=Settings(metrics=("sparseness",)))
    made: list[str] = []
    backend: Any = e._backend
    compile_ = backend._compile
    monkeypatch.setattr(
        backend, "_compile", lambda program, inputs: made.append(program.key) or compile_(program, inputs)
    )
    worker = run.evaluator(e)
    worker(Sample("a", PICTURE, None))
    first = len(made)
    worker(Sample("b", models.path("pictures/house-rocket.png"), None))
    assert 0 < first == len(made)
