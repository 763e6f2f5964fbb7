"""Average Drop and Increase: on models whose scores are known, against plain loops, and against pytorch-grad-cam."""

from __future__ import annotations

from typing import Any

import metrics_replica as by_hand
import numpy as np
import onnx
import pytest
import tiny_models
import torch
from torch.nn import functional

from fgcam_onnx import Explainer, models
from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics import AverageDrop, Scorer, average_drop

RNG = np.random.default_rng(0)
SHARES = (0, 0.25, 0.5, 0.75, 1)


def odds(values: np.ndarray) -> np.ndarray:
    """Two logits whose softmax is (v, 1 - v)."""
    return np.stack([np.log(values), np.log1p(-values)], axis=1)


def mean_of(x: np.ndarray) -> np.ndarray:
    """p of class 0 is the mean of the pixels, which lie between 0 and 1."""
    return odds(x.reshape(len(x), -1).mean(axis=1))


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


def figures(found: dict[str, np.ndarray]) -> list[list[float]]:
    return [found["average_drop"].tolist(), found["average_increase"].tolist()]


# --- known scores -----------------------------------------------------------------------------------------------------

FOUR = np.array([[[[0.2, 0.8], [0.6, 0.0]]]])  # mean 0.4; hidden pixels are 0.1


@pytest.mark.parametrize(
    ("e", "share", "left"),
    [
        ([[1, 4], [3, 2]], 0.5, (0.8 + 0.6 + 0.1 + 0.1) / 4),  # an increase is no drop below 0
        ([[4, 1], [2, 3]], 0.5, (0.2 + 0.0 + 0.1 + 0.1) / 4),
        ([[4, 1], [2, 3]], 0.25, (0.2 + 0.1 + 0.1 + 0.1) / 4),
        ([[4, 1], [2, 3]], 0.26, (0.2 + 0.0 + 0.1 + 0.1) / 4),  # rounded up
        ([[4, 1], [2, 3]], 1, 0.4),
        ([[4, 1], [2, 3]], 0, 0.1),
        ([[1, 1], [1, 1]], 0.5, (0.2 + 0.8 + 0.1 + 0.1) / 4),  # ties in row-major order
        ([[-1, -4], [5, -2]], 0.5, (0.6 + 0.1 + 0.1 + 0.1) / 4),  # signs: only what is positive is kept
        ([[-1, 0], [-3, -2]], 0.5, 0.1),  # nothing is
    ],
)
def test_worked_by_hand(e: Any, share: float, left: float) -> None:
    found = average_drop(mean_of, FOUR, np.array([e], float), 0, fraction=share, baseline=0.1)
    assert figures(found) == [
        pytest.approx([100 * max(0, 0.4 - left) / 0.4], abs=1e-12),
        [100.0 * (left > 0.4 + 1e-12)],
    ]


def test_a_map_without_signs_keeps_half_whatever_its_values() -> None:
    """``signed=False``, or a map of a lower resolution: what is not positive still fills up the half."""
    e = np.array([[[-1, -4], [5, -2.0]]])
    kept = (0.6 + 0.2 + 0.1 + 0.1) / 4  # all that is negative becomes 0, and the first of these comes next
    found = average_drop(mean_of, FOUR, e, 0, baseline=0.1, signed=False)
    assert found["average_drop"] == pytest.approx([100 * (0.4 - kept) / 0.4])
    coarse = average_drop(mean_of, FOUR, np.array([[[-3.0]]]), 0, baseline=0.1)
    assert coarse["average_drop"] == pytest.approx([100 * (0.4 - (0.2 + 0.8 + 0.1 + 0.1) / 4) / 0.4])
    stretched = average_drop(mean_of, FOUR, np.array([[[-3.0]]]), 0, baseline=0.1, signed=True)
    assert stretched["average_drop"] == pytest.approx([75])


def test_whole_picture_drops_nothing() -> None:
    x = RNG.uniform(0.1, 0.9, (5, 2, 6, 7))
    found = average_drop(mean_of, x, RNG.normal(size=(5, 6, 7)), 0, fraction=1, signed=False)
    assert figures(found) == [[0] * 5, [0] * 5]
    assert figures(average_drop(mean_of, x, RNG.uniform(1, 2, (5, 6, 7)), 0, fraction=1)) == [[0] * 5, [0] * 5]


def test_a_share_is_not_rounded_up_by_its_last_bit() -> None:
    """0.07 * 100 is 7.000000000000001."""
    x, e = np.zeros((1, 1, 10, 10)), np.arange(100.0, 0, -1).reshape(1, 10, 10)
    seen: list[int] = []

    def model(pictures: np.ndarray) -> np.ndarray:
        seen.extend(int((p == 0).sum()) for p in pictures)
        return mean_of(np.full_like(pictures, 0.5))

    for share, count in ((0.07, 7), (0.14, 14), (0.071, 8), (0.001, 1), (0.55, 55)):
        seen.clear()
        average_drop(model, x, e, 0, fraction=share, baseline=1)
        assert count in seen
        assert set(seen) <= {count, 100, 0}


def test_no_drop_is_defined_where_the_score_is_zero() -> None:
    x = RNG.normal(size=(2, 1, 3, 3))
    found = average_drop(Scorer(lambda x: np.full((len(x), 1), -1000.0)), x, np.ones((2, 3, 3)), 0)
    assert np.isnan([found["average_drop"], found["average_increase"]]).all()
    metric = AverageDrop(lambda x: np.where(x[:, 0, :1, 0] > 0, 0.0, -1000.0))
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1, -1
    metric.update(x, np.ones((2, 3, 3)), 0)
    assert (metric.summary()["average_drop"].n, metric.summary()["average_drop"].undefined) == (1, 1)


def test_the_best_and_the_worst_map_of_a_linear_model() -> None:
    """Contributions w x against a baseline of 0: none drops less than their own ranking, none more than its reverse."""
    w, x = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))
    scorer = Scorer(lambda pictures: (pictures[:, 0] * w).sum((1, 2))[:, None])
    y = sigmoid((w * x).sum())

    def of(e: np.ndarray) -> float:
        found = average_drop(scorer, x[None, None], e[None], 0, baseline="zero", signed=False)
        return float(found["average_drop"][0])

    contributions = w * x - (w * x).min()  # without signs: they would keep fewer
    best, worst = of(contributions), of(-contributions + contributions.max())
    assert best == pytest.approx(100 * max(0, y - sigmoid(np.sort((w * x).ravel())[6:].sum())) / y, abs=1e-9)
    assert worst == pytest.approx(100 * max(0, y - sigmoid(np.sort((w * x).ravel())[:6].sum())) / y, abs=1e-9)
    assert all(best <= of(RNG.uniform(size=(3, 4))) <= worst for _ in range(30))


def test_a_transform_that_fixes_zero_changes_nothing() -> None:
    x, e = RNG.uniform(0.1, 0.9, (4, 1, 5, 6)), RNG.normal(size=(4, 5, 6))
    model = Scorer(lambda x: odds((x[:, 0] ** 2).mean((1, 2))))
    plain = figures(average_drop(model, x, e, 0))
    assert np.any(plain)
    for transform in (lambda v: 7 * v, np.cbrt, np.arctan, lambda v: v**3):
        assert figures(average_drop(model, x, transform(e), 0)) == plain
    assert figures(average_drop(model, x, e - 1, 0)) != plain  # one that does not fix 0


# --- networks, against plain loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "residual", "nhwc", "softmax_end", "fixed_batch", "concat"])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_network(name: str, share: float) -> None:
    model = getattr(tiny_models, name)()
    explainer = Explainer(model, backend="ort", threads=1)
    nhwc, x = name == "nhwc", tiny_models.pictures(model, 3)
    e = RNG.normal(size=(3, 16, 12)).round(1)
    e[0] -= 2  # hardly anything positive
    e[1] += 2
    targets = [4, 0, 2]
    found = average_drop(Scorer(explainer, batch_size=2), x, e, targets, fraction=share, baseline="mean")
    for i in range(3):
        picture = x[i].transpose(2, 0, 1) if nhwc else x[i]
        hidden = np.broadcast_to(picture.mean((1, 2), keepdims=True, dtype=np.float64), picture.shape).astype("f4")
        if name == "fixed_batch":

            def score(pictures: list[np.ndarray]) -> list[float]:
                return by_hand.scores_of(model, explainer.output_name, targets[i])([*pictures, *pictures])[:2]  # noqa: B023
        else:
            score = by_hand.scores_of(model, explainer.output_name, targets[i], nhwc=nhwc)
        expected = by_hand.drop(picture, hidden, e[i], score, share)
        assert found["average_drop"][i] == pytest.approx(expected["average_drop"], abs=1e-4)
        assert found["average_increase"][i] == expected["average_increase"]


def test_the_demo_model_and_its_own_maps() -> None:
    """Blurred 51 x 51, predicted class, maps at the input and at L."""
    path = models.path("demo_honest.onnx")
    explainer = Explainer(path, backend="ort", threads=1)
    x = RNG.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    fine, coarse = explainer.explain(x), explainer.explain(x, method="grad-cam")
    target = int(fine.logits.argmax())
    score = by_hand.scores_of(onnx.load(path), explainer.output_name, target)
    t = torch.exp(-((torch.arange(51).double() - 25) ** 2) / 5000)
    kernel = (torch.outer(t, t) / t.sum() ** 2).expand(3, 1, -1, -1)
    padded = functional.pad(torch.tensor(x).double(), [25] * 4, mode="reflect")
    hidden = functional.conv2d(padded, kernel, groups=3)[0].float().numpy()
    found = average_drop(explainer, x, fine.relevance)
    assert found["average_drop"][0] == pytest.approx(
        by_hand.drop(x[0], hidden, fine.relevance[0], score)["average_drop"], abs=1e-3
    )
    shown = functional.interpolate(
        torch.tensor(coarse.relevance).clamp(min=0).double()[:, None], (128, 128), mode="bilinear"
    )[0, 0].numpy()
    found = average_drop(explainer, x, coarse.relevance)
    expected = by_hand.drop(x[0], hidden, shown, score, signed=False)
    assert found["average_drop"][0] == pytest.approx(expected["average_drop"], abs=1e-3)


def test_batches_are_the_pictures_one_by_one() -> None:
    x, e = RNG.uniform(0.1, 0.9, (5, 3, 6, 7)), RNG.normal(size=(5, 6, 7))
    model = Scorer(lambda x: odds((x**2).mean((1, 2, 3))), batch_size=2)
    together, metric = average_drop(model, x, e), AverageDrop(model)
    for i in range(5):
        alone = metric.update(x[i : i + 1], e[i : i + 1])
        for name in AverageDrop.figures:
            assert alone[name][0] == pytest.approx(together[name][i], abs=1e-10)
    assert metric.summary()["average_drop"].mean == pytest.approx(together["average_drop"].mean())
    assert metric.summary()["average_increase"].n == 5


def test_accumulator_takes_the_options_of_the_function() -> None:
    x, e = RNG.uniform(0.1, 0.9, (2, 1, 6, 7)), RNG.normal(size=(2, 6, 7))
    options: dict[str, Any] = {"fraction": 0.2, "baseline": "mean", "signed": False}
    assert figures(AverageDrop(mean_of, **options).update(x, e, 1)) == figures(
        average_drop(mean_of, x, e, 1, **options)
    )
    with pytest.raises(TypeError, match="fractions"):
        AverageDrop(mean_of, fractions=0.2).update(x, e)


# --- what does not fit ------------------------------------------------------------------------------------------------


MAPS = np.ones((2, 6, 7))


@pytest.mark.parametrize(
    ("e", "fraction", "text"),
    [
        (MAPS, 1.5, "option fraction cannot be 1.5\n  known   the share of pixels to keep, 0 to 1"),
        (MAPS, -0.1, "option fraction cannot be -0.1\n  known   the share of pixels to keep, 0 to 1"),
        (MAPS[:1], 0.5, "1 maps for 2 pictures\n  next    give a map for each picture"),
        (MAPS[:, None], 0.5, "maps have to be [n, ...] with 2 axes of space\n  known   they are [1, 1, 6, 7]"),
        (MAPS * np.inf, 0.5, "maps have to be finite\n  known   42 cells are not"),
    ],
)
def test_what_does_not_fit(e: Any, fraction: float, text: str) -> None:
    with pytest.raises((InputError, OptionError)) as caught:
        average_drop(mean_of, np.full((2, 1, 6, 7), 0.5), e, 0, fraction=fraction)
    assert str(caught.value) == text
