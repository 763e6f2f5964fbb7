"""Deletion and insertion: exact curves of models that can be read, identities, and plain loops on real networks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import metrics_replica as by_hand
import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from fgcam_onnx import Explainer, models
from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics import DeletionInsertion, Scorer, deletion_insertion
from fgcam_onnx.metrics.deletion_insertion import area

RNG = np.random.default_rng(0)


def explainer(model: Any) -> Explainer:
    return Explainer(model, backend="ort", threads=1)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def smooth(x: np.ndarray) -> np.ndarray:
    """Three logits that depend on every pixel in its own way."""
    w = np.sin(np.arange(x[0].size) * 1.7)[None]
    flat = x.reshape(len(x), -1)
    return np.stack([(flat * w).sum(1), (flat**2 * np.roll(w, 3)).sum(1), np.tanh(flat @ w[0])], axis=1)


# --- the area ---------------------------------------------------------------------------------------------------------


def test_area_worked_by_hand() -> None:
    assert area([0.9, 0.5, 0.1]) == pytest.approx(0.5, abs=1e-15)
    assert area([1, 0]) == 0.5
    assert area([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("steps", [1, 2, 3, 112])
def test_area_of_a_constant_and_of_a_line(steps: int) -> None:
    assert area(np.full(steps + 1, 0.37)) == pytest.approx(0.37, abs=1e-15)
    assert area(np.linspace(0.2, 0.8, steps + 1)) == pytest.approx(0.5, abs=1e-15)


def test_area_is_the_trapezoid_rule() -> None:
    s = RNG.uniform(size=(4, 23))
    np.testing.assert_allclose(area(s), [by_hand.trapezoid(row) for row in s.tolist()], rtol=1e-13)
    np.testing.assert_allclose(area(s), np.trapezoid(s, axis=1) / 22, rtol=1e-13)


# --- a model that reads one pixel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 5, 11, 12, 40])
@pytest.mark.parametrize("rank", [0, 1, 4, 5, 10, 11])
def test_one_pixel_alone_matters(step: int, rank: int) -> None:
    """Deletion falls, and insertion rises, with the step that takes this pixel; no other step changes anything."""
    high, low, pixels = sigmoid(2), sigmoid(-1), 12
    e = np.empty(pixels)
    e[np.roll(np.arange(pixels), 5)] = -np.arange(pixels)  # the pixels in another order than row-major
    place = int(np.argsort(-e)[rank])
    x, b = np.full((1, 1, 3, 4), 7.0), np.full((1, 1, 3, 4), 7.0)
    x.reshape(-1)[place], b.reshape(-1)[place] = 2, -1
    model = Scorer(lambda pictures: pictures.reshape(len(pictures), -1)[:, [place]])
    found = deletion_insertion(model, x, e.reshape(1, 3, 4), 0, step=step, baseline=b)
    n, taken = math.ceil(pixels / step), rank // step + 1
    np.testing.assert_allclose(found.deletion, [[high] * taken + [low] * (n + 1 - taken)], rtol=1e-12)
    np.testing.assert_allclose(found.insertion, [[low] * taken + [high] * (n + 1 - taken)], rtol=1e-12)
    exact = (high * (taken - 0.5) + low * (n - taken + 0.5)) / n
    assert found.deletion_auc[0] == pytest.approx(exact, rel=1e-12)
    assert found.insertion_auc[0] == pytest.approx(high + low - exact, rel=1e-12)
    assert found.overall[0] == pytest.approx(high + low - 2 * exact, rel=1e-9, abs=1e-12)


def test_a_constant_model() -> None:
    model = Scorer(lambda x: np.zeros((len(x), 4)))
    found = deletion_insertion(model, RNG.normal(size=(2, 3, 5, 7)), RNG.normal(size=(2, 5, 7)), 1, step=4)
    np.testing.assert_allclose(found.deletion_auc, 0.25, rtol=1e-14)
    np.testing.assert_allclose(found.insertion_auc, 0.25, rtol=1e-14)
    np.testing.assert_allclose(found.overall, 0, atol=1e-15)


# --- a linear model ---------------------------------------------------------------------------------------------------


def test_the_best_and_the_worst_of_all_maps() -> None:
    """Of all 720 rankings of six pixels the contributions w x are best in both areas, and their reverse is worst."""
    w, x = np.array([1.0, -2, 0.5, 3, -1, 0.25]), np.array([2.0, 1, 1, 0.5, -1, 3])
    rankings = np.array(list(itertools.permutations(range(6))), float).reshape(-1, 2, 3)
    maps = np.concatenate([(w * x).reshape(1, 2, 3), -(w * x).reshape(1, 2, 3), rankings])
    pictures = np.broadcast_to(x.reshape(1, 2, 3), (len(maps), 1, 2, 3))
    scorer = Scorer(lambda p: (p.reshape(len(p), -1) @ w)[:, None])
    found = deletion_insertion(scorer, pictures, maps, 0, step=1, baseline="zero")
    falls = np.sort(w * x)[::-1].cumsum()
    np.testing.assert_allclose(found.deletion[0], sigmoid((w * x).sum() - np.concatenate([[0], falls])), rtol=1e-12)
    np.testing.assert_allclose(found.insertion[0], sigmoid(np.concatenate([[0], falls])), rtol=1e-12)
    for best, worst, areas in ((0, 1, -found.deletion_auc), (0, 1, found.insertion_auc), (0, 1, found.overall)):
        assert areas[best] == pytest.approx(areas[2:].max(), rel=1e-12)
        assert areas[worst] == pytest.approx(areas[2:].min(), rel=1e-12)


# --- identities -------------------------------------------------------------------------------------------------------

X, E = RNG.normal(size=(3, 2, 6, 8)), RNG.permutation(144).reshape(3, 6, 8).astype(float)


@pytest.mark.parametrize("step", [1, 4, 7, 48, 50])
def test_ends_are_the_picture_and_the_baseline(step: int) -> None:
    scorer = Scorer(smooth)
    found = deletion_insertion(scorer, X, E, [0, 1, 2], step=step, baseline="mean")
    y = scorer.probabilities(X, [0, 1, 2])
    b = scorer.probabilities(np.broadcast_to(X.mean((2, 3), keepdims=True), X.shape), [0, 1, 2])
    assert found.deletion.shape == found.insertion.shape == (3, math.ceil(48 / step) + 1)
    for curve, first, last in ((found.deletion, y, b), (found.insertion, b, y)):
        np.testing.assert_allclose(curve[:, 0], first, rtol=1e-10)
        np.testing.assert_allclose(curve[:, -1], last, rtol=1e-10)
    assert np.array_equal(found.deletion[:, 0], found.insertion[:, -1])
    assert np.array_equal(found.deletion[:, -1], found.insertion[:, 0])


@pytest.mark.parametrize("step", [1, 2, 6, 12, 16, 24, 48])
def test_insertion_backward_is_deletion_of_the_negative(step: int) -> None:
    found = deletion_insertion(smooth, X, E, 0, step=step)
    negative = deletion_insertion(smooth, X, -E, 0, step=step)
    np.testing.assert_allclose(found.insertion[:, ::-1], negative.deletion, rtol=1e-9)
    np.testing.assert_allclose(found.insertion_auc, negative.deletion_auc, rtol=1e-9)
    np.testing.assert_allclose(found.overall, -negative.overall, atol=1e-9)


def test_a_strictly_increasing_transform_changes_nothing() -> None:
    plain = deletion_insertion(smooth, X, E, 1, step=5)
    for transform in (lambda v: 3 * v - 1, np.cbrt, np.log1p, lambda v: v**3, lambda v: np.float32(v)):
        found = deletion_insertion(smooth, X, transform(E), 1, step=5)
        assert np.array_equal(found.deletion, plain.deletion)
        assert np.array_equal(found.insertion, plain.insertion)


def test_ties_go_in_row_major_order() -> None:
    flat = deletion_insertion(smooth, X, np.zeros((3, 6, 8)), 0, step=5)
    falling = deletion_insertion(smooth, X, np.broadcast_to(-np.arange(48.0).reshape(6, 8), (3, 6, 8)), 0, step=5)
    assert np.array_equal(flat.deletion, falling.deletion)
    assert np.array_equal(flat.insertion, falling.insertion)


def test_signs_count_at_the_size_of_the_input() -> None:
    e = E - 60
    rectified = deletion_insertion(smooth, X, e, 0, step=5, signed=False)
    assert np.array_equal(rectified.deletion, deletion_insertion(smooth, X, e.clip(0), 0, step=5).deletion)
    assert not np.array_equal(rectified.deletion, deletion_insertion(smooth, X, e, 0, step=5).deletion)


# --- networks, against plain loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "baseline"),
    [
        ("vgg", 48, "zero"),
        ("vgg", 50, "mean"),
        ("residual", 7, "mean"),
        ("squeeze_excite", 64, "mean"),
        ("concat", 191, 0.5),
        ("nhwc", 25, "mean"),
        ("softmax_end", 40, "zero"),
        ("fixed_batch", 50, "mean"),
        ("free_size", 40, "blur"),
    ],
)
def test_network(name: str, step: int, baseline: Any) -> None:
    model = getattr(tiny_models, name)()
    network, n = explainer(model), 4 if name == "fixed_batch" else 2
    nhwc, x = name == "nhwc", tiny_models.pictures(model, n)
    size = (14, 14) if name == "free_size" else (16, 12)
    e = RNG.normal(size=(n, *size)).round(1)  # with ties
    found = deletion_insertion(network, x, e, [3, 1, 0, 2][:n], step=step, baseline=baseline, kernel=9, sigma=3)
    for i in range(n):
        picture = x[i].transpose(2, 0, 1) if nhwc else x[i]
        hidden = {
            "zero": np.zeros_like(picture),
            "mean": np.broadcast_to(picture.mean((1, 2), keepdims=True, dtype=np.float64), picture.shape).astype("f4"),
            "blur": by_hand.blurred(picture, 9, 3),
            0.5: np.full_like(picture, 0.5),
        }[baseline]
        score = by_hand.scores_of(model, network.output_name, [3, 1, 0, 2][i], nhwc=nhwc)
        if name == "fixed_batch":
            score = in_fours(score)
        deletion = by_hand.curve(picture, hidden, e[i], step, score)
        insertion = by_hand.curve(hidden, picture, e[i], step, score)
        np.testing.assert_allclose(found.deletion[i], deletion, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.insertion[i], insertion, rtol=0, atol=1e-6)
        assert found.deletion_auc[i] == pytest.approx(by_hand.trapezoid(deletion), abs=1e-6)
        assert found.insertion_auc[i] == pytest.approx(by_hand.trapezoid(insertion), abs=1e-6)


def in_fours(score: by_hand.Score) -> by_hand.Score:
    """For a network that takes four pictures at a time."""

    def scores(pictures: list[np.ndarray]) -> list[float]:
        filled = pictures + pictures[:1] * (-len(pictures) % 4)
        parts = [score(filled[i : i + 4]) for i in range(0, len(filled), 4)]
        return [p for part in parts for p in part][: len(pictures)]

    return scores


def test_the_demo_model_and_its_own_maps() -> None:
    path = models.path("demo_honest.onnx")
    network = explainer(path)
    x = RNG.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    e = network.explain(x)
    found = deletion_insertion(network, x, e.relevance, step=1500)
    score = by_hand.scores_of(onnx.load(path), network.output_name, int(e.logits.argmax()))
    hidden = widely_blurred(x[0])
    np.testing.assert_allclose(
        found.deletion[0], by_hand.curve(x[0], hidden, e.relevance[0], 1500, score), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        found.insertion[0], by_hand.curve(hidden, x[0], e.relevance[0], 1500, score), rtol=0, atol=1e-5
    )


def widely_blurred(x: np.ndarray) -> np.ndarray:
    """51 x 51, sigma 50: sums of shifted pictures."""
    weights = [math.exp(-(t**2) / 5000) for t in range(-25, 26)]
    padded = np.pad(x.astype(np.float64), ((0, 0), (25, 25), (25, 25)), mode="reflect")
    columns = sum(w * padded[:, :, i : i + x.shape[2]] for i, w in enumerate(weights))
    whole = sum(w * columns[:, i : i + x.shape[1]] for i, w in enumerate(weights))
    return np.asarray(whole / sum(weights) ** 2, np.float32)


def test_one_channel_of_a_network_with_a_sigmoid() -> None:
    net = tiny_models.Net(("n", 1, 9, 7))
    x = net.head(net.relu("relu1", net.conv("conv1", "image", 1, 6)), 6, 1)
    model = net.model(net.node("Sigmoid", "end", x))
    network = explainer(model)
    assert network.graph.head == "Sigmoid"
    x, e = tiny_models.pictures(model, 1), RNG.normal(size=(1, 9, 7))
    found = deletion_insertion(network, x, e, step=10, baseline="zero")
    score = by_hand.scores_of(model, network.output_name, 0, sigmoid=True)
    np.testing.assert_allclose(
        found.deletion[0], by_hand.curve(x[0], np.zeros_like(x[0]), e[0], 10, score), rtol=0, atol=1e-6
    )


def test_bytes() -> None:
    """The blurred picture of a network that takes bytes is of bytes."""
    net = tiny_models.Net()
    net.inputs[0].type.tensor_type.elem_type = TensorProto.UINT8
    x = net.node("Mul", "scale", net.node("Cast", "cast", "image", to=TensorProto.FLOAT), np.float32(1 / 255))
    model = net.model(net.head(net.relu("relu1", net.conv("conv1", x, 3, 6)), 6))
    x8, e = RNG.integers(0, 256, (1, 3, 16, 12)).astype(np.uint8), RNG.normal(size=(1, 16, 12))
    network = explainer(model)
    found = deletion_insertion(network, x8, e, 2, step=50, kernel=9, sigma=3)
    hidden = np.rint(by_hand.blurred(x8[0].astype(np.float64), 9, 3)).astype(np.uint8)
    score = by_hand.scores_of(model, network.output_name, 2)
    np.testing.assert_allclose(found.deletion[0], by_hand.curve(x8[0], hidden, e[0], 50, score), rtol=0, atol=1e-5)
    wide = deletion_insertion(network, x8.astype(np.float32), e, 2, step=50, kernel=9, sigma=3)
    assert np.array_equal(wide.deletion, found.deletion)


@pytest.mark.filterwarnings("ignore")
def test_float16() -> None:
    plain = tiny_models.vgg()
    half = explainer(convert_float_to_float16(plain))
    assert half.input_dtype == "float16"
    x, e = tiny_models.pictures(plain, 2).astype(np.float16), RNG.normal(size=(2, 16, 12))
    found = deletion_insertion(half, x, e, 1, step=20)
    expected = deletion_insertion(explainer(plain), x.astype(np.float32), e, 1, step=20)
    np.testing.assert_allclose(found.deletion, expected.deletion, rtol=0, atol=5e-3)
    np.testing.assert_allclose(found.insertion, expected.insertion, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("name", "shape"), [("one_d", (40,)), ("three_d", (6, 8, 4))])
def test_signals_and_volumes(name: str, shape: tuple[int, ...]) -> None:
    network = explainer(getattr(tiny_models, name)())
    x, e = tiny_models.pictures(getattr(tiny_models, name)(), 2), RNG.normal(size=(2, *shape))
    scorer = Scorer(network)
    found = deletion_insertion(scorer, x, e, 0, step=10, baseline="zero")
    top = np.argsort(-e.reshape(2, -1))[:, :10]
    for i in range(2):
        changed = x[i : i + 1].copy()
        changed.reshape(2, -1)[:, top[i]] = 0
        assert found.deletion[i, 1] == pytest.approx(scorer.probabilities(changed, 0)[0], abs=1e-6)


# --- batches and cost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 11, 64])
def test_any_batch_gives_the_same_curves(batch_size: int) -> None:
    plain = deletion_insertion(smooth, X, E, step=9)
    found = deletion_insertion(Scorer(smooth, batch_size=batch_size), X, E, step=9)
    np.testing.assert_allclose(found.deletion, plain.deletion, rtol=1e-10)
    np.testing.assert_allclose(found.insertion, plain.insertion, rtol=1e-10)


def test_batches_are_the_pictures_one_by_one() -> None:
    model = tiny_models.residual()
    network = Scorer(explainer(model), batch_size=5)
    x, e = tiny_models.pictures(model, 4), RNG.normal(size=(4, 8, 6))
    together, metric = deletion_insertion(network, x, e, step=30), DeletionInsertion(network, step=30)
    for i in range(4):
        alone = metric.update(x[i : i + 1], e[i : i + 1])
        assert alone["deletion"][0] == pytest.approx(together.deletion_auc[i], abs=1e-6)
        assert alone["overall"][0] == pytest.approx(together.overall[i], abs=1e-6)
    summary = metric.summary()
    assert summary["insertion"].mean == pytest.approx(together.insertion_auc.mean(), abs=1e-6)
    assert summary["overall"].mean == pytest.approx(summary["insertion"].mean - summary["deletion"].mean, abs=1e-12)
    assert summary["overall"].n == 4


def test_forward_passes_of_a_picture() -> None:
    """113 scores a curve at 224 x 224. Both curves end in the same two pictures, and these run once: 224, not 226."""
    scorer = Scorer(lambda x: x[:, :, 0, :2].sum(axis=1), batch_size=16)
    x, e = RNG.normal(size=(1, 1, 224, 224)).astype(np.float32), RNG.normal(size=(1, 224, 224))
    found = deletion_insertion(scorer, x, e, 1, baseline="zero")
    assert found.deletion.shape == found.insertion.shape == (1, 113)
    assert scorer.forwards == 2 * 113 - 2
    deletion_insertion(scorer, x, e, baseline="zero")  # the predicted class costs one more
    assert scorer.forwards == 224 + 225


@pytest.mark.parametrize(("step", "forwards"), [(48, 2), (47, 4), (24, 4), (23, 6), (1, 96)])
def test_forward_passes_where_the_last_step_is_short(step: int, forwards: int) -> None:
    scorer = Scorer(smooth)
    deletion_insertion(scorer, X[:1], E[:1], 0, step=step)
    assert scorer.forwards == forwards


def test_pictures_and_maps_are_left_as_they_are() -> None:
    x, e = X.copy(), E.copy()
    x.flags.writeable = e.flags.writeable = False
    deletion_insertion(smooth, x, e, step=9)
    assert np.array_equal(x, X)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, -1, 2.5, True, "many", None])
def test_what_is_no_step(step: Any) -> None:
    with pytest.raises(OptionError) as caught:
        deletion_insertion(smooth, X, E, 0, step=step)
    assert str(caught.value) == f"option step cannot be {step!r}\n  known   pixels at a time, at least 1"


def test_a_step_of_numpy() -> None:
    assert deletion_insertion(smooth, X, E, 0, step=np.int64(24)).deletion.shape == (3, 3)


def test_what_is_no_map() -> None:
    with pytest.raises(InputError) as caught:
        deletion_insertion(smooth, X, E[:2], 0)
    assert str(caught.value) == "2 maps for 3 pictures\n  next    give a map for each picture"
    with pytest.raises(InputError) as caught:
        deletion_insertion(smooth, X, np.where(E == 7, np.nan, E), 0, step=9)
    assert str(caught.value) == "maps have to be finite\n  known   1 cells are not"
