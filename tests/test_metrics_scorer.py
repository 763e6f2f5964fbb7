"""Scores of many pictures in batches: the same numbers whatever the batch, and never more pictures than one holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_models
from onnx import TensorProto

from fgcam_onnx import Explainer
from fgcam_onnx.errors import ActivationError, InputError, OptionError, TargetError
from fgcam_onnx.metrics import Scorer
from fgcam_onnx.metrics.scorer import MOST, scorer_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 2, 3, 4))
W = RNG.normal(size=(24, 5))


def linear(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) @ W


def explainer(model: Any) -> Explainer:
    return Explainer(model, backend="ort", threads=1)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 10, 11, 12, 100])
def test_any_batch_gives_the_same_logits(batch_size: int | None) -> None:
    seen: list[int] = []

    def model(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return linear(x)

    scorer = Scorer(model, batch_size=batch_size)
    np.testing.assert_allclose(scorer.logits(X), linear(X), rtol=0, atol=1e-12)
    size = min(batch_size or MOST, 11)
    assert seen == [size] * (11 // size) + [11 % size] * (11 % size > 0)
    assert scorer.forwards == 11


def test_no_more_pictures_live_than_a_batch_holds() -> None:
    """A picture is asked for when there is room for it, copied, and let go before the next."""
    drawn, run, alive = 0, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def pictures() -> Iterator[np.ndarray]:
        nonlocal drawn, alive
        for i in range(50):
            assert drawn - run < 4
            assert alive <= 1  # the last one, which the loop still holds
            picture = np.full((2, 3, 4), float(i)) + 0
            alive += 1
            weakref.finalize(picture, gone)
            drawn += 1
            yield picture
            del picture

    def model(x: np.ndarray) -> np.ndarray:
        nonlocal run
        run += len(x)
        assert drawn == run, "a picture was drawn before there was room for it"
        assert len(x) <= 4
        return x[:, 0, 0]

    found = Scorer(model, batch_size=4).of(pictures(), 50)
    assert np.array_equal(found[:, 0], np.arange(50))


def test_the_same_array_may_come_again_changed() -> None:
    state = np.zeros((1, 2, 2))

    def pictures() -> Iterator[np.ndarray]:
        for i in range(7):
            state[...] = i
            yield state

    assert Scorer(lambda x: x.reshape(len(x), -1), batch_size=3).of(pictures(), 7)[:, 0].tolist() == list(range(7))


def test_logits_may_be_a_view_of_the_pictures() -> None:
    """A function that only picks pixels returns a view of the buffer, which the next batch overwrites."""
    scorer = Scorer(lambda x: x[:, 0, 0, :], batch_size=2)
    assert np.array_equal(scorer.logits(X), X[:, 0, 0, :])


@pytest.mark.parametrize(("announced", "came"), [(5, 3), (3, 5), (2, 0)])
def test_what_was_announced_has_to_come(announced: int, came: int) -> None:
    with pytest.raises(ValueError, match=f"{announced} pictures were announced, and {came} came"):
        Scorer(linear, batch_size=2).of(X[:came], announced)


def test_memory_bounds_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def model(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return linear(x)

    monkeypatch.setenv("FGCAM_MEMORY", str(8 * 2 * X[0].nbytes * 3))  # an eighth of it: three pictures, held twice
    Scorer(model).logits(X)
    assert seen == [3, 3, 3, 2]
    monkeypatch.setenv("FGCAM_MEMORY", "1")
    seen.clear()
    Scorer(model).logits(X)
    assert seen == [1] * 11
    monkeypatch.setenv("FGCAM_MEMORY", "1G")
    seen.clear()
    Scorer(model).logits(np.zeros((MOST + 1, 2, 3, 4)))
    assert seen == [MOST, 1]


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_probability_is_softmax_or_sigmoid() -> None:
    z = np.array([[1.0, 2, 4], [0, -3, 900], [5, 5, 5]])
    softmax = np.exp(z - z.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    plain, sigmoid = Scorer(linear), Scorer(linear, head="Sigmoid")
    for c in range(3):
        np.testing.assert_allclose(plain.probability(z, c), softmax[:, c], rtol=1e-14)
        np.testing.assert_allclose(sigmoid.probability(z, c), 1 / (1 + np.exp(-z[:, c])), rtol=1e-14)
    np.testing.assert_allclose(plain.probability(z, [2, 0, 1]), softmax[[0, 1, 2], [2, 0, 1]], rtol=1e-14)
    assert plain.probability(z.astype(np.float32), 0).dtype == np.float64
    np.testing.assert_allclose(plain.probability(z[:, :1], 0), 1 / (1 + np.exp(-z[:, 0])), rtol=1e-14)
    assert np.array_equal(plain.probabilities(X, 3), plain.probability(linear(X), 3))


@pytest.mark.parametrize("batch_size", [1, 3, 11, 40])
@pytest.mark.parametrize("head", [None, "Sigmoid"])
def test_each_picture_has_its_own_class(batch_size: int, head: str | None) -> None:
    classes = RNG.integers(0, 5, 11)
    scorer = Scorer(linear, batch_size=batch_size, head=head)
    found = scorer.probabilities_of(iter(X), classes)
    expected = [scorer.probabilities(X[i : i + 1], int(c))[0] for i, c in enumerate(classes)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(scorer.probabilities(X, classes), expected, rtol=1e-9)


def test_more_pictures_than_a_batch_each_of_a_class() -> None:
    z, classes = RNG.normal(size=(3 * MOST + 1, 5)), RNG.integers(0, 5, 3 * MOST + 1)
    found = Scorer(linear).probability(z, classes)
    np.testing.assert_allclose(found, [Scorer(linear).probability(z, c)[i] for i, c in enumerate(classes)], rtol=1e-12)


@pytest.mark.parametrize("target", [5, -1, [0, 5, 0]])
def test_a_class_that_does_not_exist(target: Any) -> None:
    with pytest.raises(TargetError) as caught:
        Scorer(linear).probabilities(X[:3], target)
    wrong = max(target) if isinstance(target, list) else target
    assert str(caught.value) == f"there is no class {wrong}\n  known   the model has 5 classes, 0 to 4"


# --- what is no model -------------------------------------------------------------------------------------------------


def test_batches_below_one() -> None:
    with pytest.raises(OptionError) as caught:
        Scorer(linear, batch_size=0)
    assert str(caught.value) == "option batch_size cannot be 0\n  known   copies at a time, at least 1"


@pytest.mark.parametrize("shape", [(11,), (11, 5, 1), (10, 5)])
def test_a_function_that_gives_no_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        Scorer(lambda x: np.zeros(shape)).logits(X)
    assert str(caught.value) == (
        f"the model has to give logits [m, classes]\n  known   for 11 pictures it gave {list(shape)}"
    )


def test_nan_is_no_score() -> None:
    """It would pass for a figure that does not exist, and drop out of the mean."""
    with pytest.raises(ActivationError) as caught:
        Scorer(lambda x: np.where(np.arange(len(x))[:, None] > 8, np.nan, linear(x))).logits(X)
    assert str(caught.value) == (
        "the model gave NaN for a changed picture\n"
        "  known   2 of a batch of 11\n"
        "  next    choose another baseline: the numbers of this one may be too large for the model"
    )
    below = Scorer(lambda x: np.where(W[:1] > 0, -np.inf, 0.0).repeat(len(x), 0))  # a class that is ruled out may be so
    assert np.isfinite(below.probabilities(X, 0)).all()


def test_dense_outputs() -> None:
    net = tiny_models.Net()
    model = net.model(net.conv("conv2", net.relu("relu1", net.conv("conv1", "image", 3, 6)), 6, 5, 1))
    with pytest.raises(InputError) as caught:
        Scorer(explainer(model))
    assert str(caught.value) == (
        "metrics ask for the probability of a class, and a dense output has none\n"
        "  known   output 'conv2.y' is ['n', 5, 16, 12]"
    )


# --- of an Explainer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*tiny_models.by_layers(), "one_d", "three_d"])
def test_an_explainers_logits(name: str) -> None:
    model = getattr(tiny_models, name)()
    e = explainer(model)
    x = tiny_models.pictures(model, 5)
    if e.fixed_batch:
        expected = np.concatenate([tiny_models.run(model, part, e.output_name)[0] for part in (x[:4], x[1:])])
        expected = expected[[0, 1, 2, 3, 7]]
    else:
        expected = tiny_models.run(model, x, e.output_name)[0]
    for batch_size in (None, 1, 2, 7):
        scorer = Scorer(e, batch_size=batch_size)
        np.testing.assert_allclose(scorer.logits(x), expected.reshape(5, -1), rtol=1e-5, atol=1e-6)
        assert scorer.forwards == 5
    assert scorer.layout(x) == e.layout


def test_a_fixed_batch_is_filled() -> None:
    scorer = Scorer(explainer(tiny_models.fixed_batch(4)))
    assert scorer.batch_size == 4


def test_other_inputs_serve_every_picture() -> None:
    model = tiny_models.two_inputs()
    x, facts = tiny_models.pictures(model, 3), np.array([[0.5, -2]], np.float32)
    e = explainer(model)
    found = Scorer(e, inputs={"facts": facts}, batch_size=2).logits(x)
    single = [e.scores(each[None], inputs={"facts": facts})[0] for each in x]
    np.testing.assert_allclose(found, single, rtol=1e-5, atol=1e-6)
    other = Scorer(e, inputs={"facts": -facts}).logits(x)
    assert np.abs(other - found).max() > 0.1


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax"])
def test_probability_is_what_the_model_ends_in(op: str) -> None:
    net = tiny_models.Net()
    x = net.head(net.relu("relu1", net.conv("conv1", "image", 3, 6)), 6)
    model = net.model(net.node(op, "end", x, **({"axis": 1} if op == "Softmax" else {})))
    pictures = tiny_models.pictures(model, 3)
    whole = tiny_models.run(model, pictures)[0]
    for target in range(5):
        found = Scorer(explainer(model)).probabilities(pictures, target)
        np.testing.assert_allclose(found, whole[:, target], rtol=1e-5)


def test_a_network_of_linear_layers_alone() -> None:
    net = tiny_models.Net(("n", 1, 4, 4))
    model = net.model(net.node("Gemm", "fc", net.node("Flatten", "flat", "image"), net.random(5, 16), transB=1))
    x = tiny_models.pictures(model, 3)
    np.testing.assert_allclose(Scorer(explainer(model)).logits(x), tiny_models.run(model, x)[0], rtol=1e-5)


def test_bytes() -> None:
    net = tiny_models.Net()
    net.inputs[0].type.tensor_type.elem_type = TensorProto.UINT8
    x = net.node("Cast", "cast", "image", to=TensorProto.FLOAT)
    x = net.node("Mul", "scale", x, np.float32(1 / 255))
    model = net.model(net.head(net.relu("relu1", net.conv("conv1", x, 3, 6)), 6))
    x8 = RNG.integers(0, 256, (5, 3, 16, 12)).astype(np.uint8)
    found = Scorer(explainer(model), batch_size=2)
    np.testing.assert_allclose(found.logits(x8), tiny_models.run(model, x8)[0], rtol=1e-5, atol=1e-6)
    assert found.dtype == "uint8"


def test_a_scorer_serves_several_metrics() -> None:
    scorer = Scorer(linear)
    assert scorer_of(scorer) is scorer
    assert isinstance(scorer_of(linear), Scorer)


def test_layouts() -> None:
    scorer = Scorer(linear)
    assert [scorer.layout(np.zeros((1,) * axes)) for axes in (3, 4, 5)] == ["NCW", "NCHW", "NCDHW"]
    assert Scorer(linear, layout="NHWC").layout(X) == "NHWC"
