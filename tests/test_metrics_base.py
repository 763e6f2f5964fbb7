"""What the metrics share: pictures with their classes, sums over many pictures, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tiny_models
from scipy import stats

from fgcam_onnx import Explainer
from fgcam_onnx.errors import InputError, TargetError
from fgcam_onnx.metrics import Accumulator, Scorer, interval, summarise
from fgcam_onnx.metrics.base import each_pair, subjects

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 6, 5))
W = RNG.normal(size=(90, 7))


def linear(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) @ W


# --- subjects ---------------------------------------------------------------------------------------------------------


def test_both_ends_are_computed_once() -> None:
    scorer = Scorer(linear)
    subject = subjects(scorer, X, 2, "zero")[1]
    assert scorer.forwards == 0
    assert subject.original == pytest.approx(scorer.probabilities(X[1:2], 2)[0], rel=1e-12)
    assert subject.hidden == pytest.approx(1 / 7, rel=1e-12)
    count = scorer.forwards
    assert (subject.original, subject.hidden, subject.size) == (subject.original, subject.hidden, (6, 5))
    assert scorer.forwards == count == 3  # one of them is this test's


def test_targets() -> None:
    scorer = Scorer(linear)
    predicted = linear(X).argmax(1).tolist()
    assert [s.target for s in subjects(scorer, X, None)] == predicted
    assert [s.target for s in subjects(scorer, X, 3)] == [3] * 4
    assert [s.target for s in subjects(scorer, X, [3])] == [3] * 4
    assert [s.target for s in subjects(scorer, X, np.array([0, 6, 1, 2]))] == [0, 6, 1, 2]


def test_each_picture_has_its_own_baseline() -> None:
    found = subjects(Scorer(linear), X, 0, "mean")
    for subject, x in zip(found, X, strict=True):
        np.testing.assert_allclose(subject.baseline, np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape))


def test_pictures_get_the_models_type() -> None:
    """Whole numbers given to a network of float32 are not rounded when they are blurred."""
    e = Explainer(tiny_models.vgg(), backend="ort", threads=1)
    x = RNG.integers(0, 2, (1, 3, 16, 12))
    (subject,) = subjects(Scorer(e), x, 0)
    assert subject.x.dtype == subject.baseline.dtype == np.float32
    assert 0.3 < subject.baseline.mean() < 0.7
    assert len(np.unique(subject.baseline)) > 100
    whole = Scorer(lambda x: x[:, :, 0, 0].astype(np.float64))  # a function takes what it is given
    assert subjects(whole, x, 0)[0].x.dtype == x.dtype


@pytest.mark.parametrize(
    ("x", "known"),
    [
        (X[0, 0], "float64 [6, 5]"),
        (X[:0], "float64 [0, 3, 6, 5]"),
        (X * np.nan, "float64 [4, 3, 6, 5]"),
        (X.astype(str), "<U32 [4, 3, 6, 5]"),
    ],
)
def test_what_is_no_picture(x: Any, known: str) -> None:
    with pytest.raises(InputError) as caught:
        subjects(Scorer(linear), x, 0)
    assert str(caught.value) == f"pictures have to be finite numbers [n, ...]\n  known   they are {known}"


@pytest.mark.parametrize(
    ("target", "known"),
    [(0.5, "float64 [1]"), ("dog", "<U3 [1]"), ([0, 1], "int64 [2]"), ([[0, 1, 2, 3]], "int64 [1, 4]")],
)
def test_what_is_no_class(target: Any, known: str) -> None:
    with pytest.raises(TargetError) as caught:
        subjects(Scorer(linear), X, target)
    assert str(caught.value) == (
        f"targets have to be whole numbers, one for all or one for each of 4 pictures\n  known   they are {known}"
    )


def test_a_picture_without_its_batch_axis() -> None:
    scorer = Scorer(Explainer(tiny_models.vgg(), backend="ort", threads=1))
    with pytest.raises(InputError) as caught:
        subjects(scorer, np.zeros((3, 16, 12)), 0)
    assert str(caught.value) == "pictures have shape [3, 16, 12]\n  known   the model takes 4 axes, NCHW"


def test_numbers_that_the_model_cannot_take() -> None:
    scorer = Scorer(Explainer(tiny_models.vgg(), backend="ort", threads=1))
    with pytest.raises(InputError, match="the pictures holds 576 numbers that float32 cannot"):
        subjects(scorer, np.full((1, 3, 16, 12), 1e300), 0)


def test_a_map_for_each_picture() -> None:
    found = subjects(Scorer(linear), X, 0)
    assert [(s is f, e) for (s, e), f in zip(each_pair(found, np.arange(4)), found, strict=True)] == [
        (True, i) for i in range(4)
    ]
    with pytest.raises(InputError) as caught:
        each_pair(found, np.zeros((3, 6, 5)))
    assert str(caught.value) == "3 maps for 4 pictures\n  next    give a map for each picture"


# --- summing up -------------------------------------------------------------------------------------------------------


def test_summary_of_known_values() -> None:
    found = summarise([1, 2, np.nan, 3, 6])
    assert (found.mean, found.n, found.undefined) == (3, 4, 1)
    assert found.standard_error == pytest.approx(np.sqrt(14 / 3) / 2, rel=1e-12)
    assert found.low < 3 < found.high
    assert found.low > 1
    assert found.high < 6


def test_summary_of_one_and_of_none() -> None:
    one = summarise([0.25])
    assert (one.mean, one.n, one.low, one.high, one.undefined) == (0.25, 1, 0.25, 0.25, 0)
    assert np.isnan(one.standard_error)
    for values in ([], [np.nan, np.nan]):
        none = summarise(values)
        assert (none.n, none.undefined) == (0, len(values))
        assert np.isnan([none.mean, none.standard_error, none.low, none.high]).all()


def test_interval_is_that_of_scipy() -> None:
    """The percentile bootstrap; both draw at random."""
    values = RNG.gamma(2, size=60)
    low, high = interval(values)
    known = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = known.high - known.low
    assert abs(low - known.low) < 0.05 * width
    assert abs(high - known.high) < 0.05 * width
    narrow = interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_never_changes() -> None:
    values = RNG.normal(size=30)
    assert interval(values) == interval(values)
    assert interval([2.0, 2.0, 2.0]) == (2, 2)
    assert np.isnan(interval([])).all()


def test_interval_in_pieces() -> None:
    """Many values are resampled a piece at a time."""
    values = RNG.normal(size=3000)
    low, high = interval(values)
    error = values.std() / np.sqrt(3000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


class Doubled(Accumulator):
    figures = ("one", "two")

    def measure(self, values: Any) -> Mapping[str, np.ndarray]:
        return {"one": np.asarray(values), "two": 2 * np.asarray(values), "aside": np.zeros(len(values))}


def test_accumulator() -> None:
    metric = Doubled()
    assert metric.values["one"].tolist() == []
    assert metric.summary()["one"].n == 0
    assert metric.update([1, 2])["two"].tolist() == [2, 4]
    metric.update([3])
    assert metric.values == {"one": pytest.approx([1, 2, 3]), "two": pytest.approx([2, 4, 6])}
    assert (metric.summary()["two"].mean, metric.summary()["two"].n) == (4, 3)
    metric.reset()
    assert metric.values["two"].tolist() == []


def test_a_batch_that_fails_counts_nothing() -> None:
    metric = Doubled()
    metric.update([1])
    with pytest.raises(TypeError):
        metric.update(None)
    assert {name: len(v) for name, v in metric.values.items()} == {"one": 1, "two": 1}
