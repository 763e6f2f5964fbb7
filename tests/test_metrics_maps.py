"""Metrics of maps alone: sparseness, complexity, completeness, similarity. Against scipy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

from fgcam_onnx import Explainer
from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics import (
    Completeness,
    Complexity,
    Similarity,
    Sparseness,
    completeness,
    complexity,
    pearson,
    similarity,
    sparseness,
    spearman,
    ssim,
)

MODEL = tiny_models.vgg()
RNG = np.random.default_rng(3)
MAPS = RNG.normal(size=(4, 20, 17)).astype(np.float32)
OTHERS = (MAPS + RNG.normal(size=MAPS.shape)).astype(np.float32)
EQUAL, SPIKE = np.ones((1, 5, 8)), np.zeros((1, 5, 8))
SPIKE[0, 3, 4] = -2


# --- sparseness, complexity -------------------------------------------------------------------------------------------


def test_the_ends_of_both_scales() -> None:
    """methods 9.3: equal cells have Gini 0 and entropy ln n, one spike 1 - 1/n and 0."""
    assert sparseness(np.concatenate([EQUAL, SPIKE])) == pytest.approx([0, 1 - 1 / 40], abs=1e-15)
    assert complexity(np.concatenate([EQUAL, SPIKE])) == pytest.approx([np.log(40), 0], abs=1e-14)


def test_by_hand() -> None:
    """|E| = 1, 3 of two cells: Gini (-1 + 3) / (2 4) = 1/4; entropy of a quarter and three quarters."""
    e = np.array([[-3.0, 1.0]])
    assert sparseness(e) == pytest.approx([0.25])
    assert complexity(e) == pytest.approx([np.log(4) - 0.75 * np.log(3)])


@pytest.mark.parametrize("metric", [sparseness, complexity])
def test_scale_sign_and_order_do_not_matter(metric) -> None:
    want = metric(MAPS)
    assert metric(-1e-30 * MAPS.astype(np.float64)) == pytest.approx(want, rel=1e-12)
    assert metric(MAPS[:, ::-1]) == pytest.approx(want, rel=1e-12)
    assert metric(MAPS.astype(np.float64) * 1e307) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("metric", [sparseness, complexity])
def test_a_map_of_zeros_is_undefined(metric) -> None:
    assert np.isnan(metric(np.zeros((1, 3, 3)))).all()


@pytest.mark.parametrize("kind", [Sparseness, Complexity])
def test_accumulators_count_maps(kind) -> None:
    metric = kind()
    (name,) = metric.figures
    first = metric.update(MAPS[:3])[name]
    metric.update(MAPS[3:])
    metric.update(np.zeros((1, 2, 2)))
    assert metric.values[name][:3] == pytest.approx(first)
    found = metric.summary()[name]
    assert (found.n, found.undefined) == (4, 1)
    assert found.mean == pytest.approx(metric.values[name][:4].mean())


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (np.zeros(3), "maps have to be numbers [n, ...]\n  known   they are float64 [3]"),
        (np.zeros((0, 3)), "maps have to be numbers [n, ...]\n  known   they are float64 [0, 3]"),
        (np.full((1, 3), True), "maps have to be numbers [n, ...]\n  known   they are bool [1, 3]"),
        (np.array([[1, np.nan, np.inf]]), "maps have to be finite\n  known   2 cells are not"),
    ],
)
@pytest.mark.parametrize("metric", [sparseness, complexity])
def test_what_is_no_map(metric, maps, said: str) -> None:
    with pytest.raises(InputError) as caught:
        metric(maps)
    assert str(caught.value) == said


# --- completeness -----------------------------------------------------------------------------------------------------


def test_the_gap_by_hand() -> None:
    found = completeness(np.array([[1.0, 2.0], [1.0, -1.0], [0.5, 0.5]]), [5.0, 0.0, -1.0])
    assert found["gap"] == pytest.approx([2, 0, 2])
    assert found["relative"] == pytest.approx([0.4, np.nan, 2], nan_ok=True)


def test_of_an_explanation() -> None:
    """Integrated gradients of many steps keep their promise; of two steps they do not."""
    explainer = Explainer(MODEL)
    x = tiny_models.pictures(MODEL)
    metric = Completeness()
    fine, rough = (explainer.explain(x, method="integrated-gradients", steps=s) for s in (256, 2))
    close = metric.update(fine)
    assert close["gap"] == pytest.approx(np.abs(fine.relevance.sum((1, 2), dtype=np.float64) - fine.promised))
    assert close["gap"].max() < completeness(rough)["gap"].max()
    assert metric.update(fine.relevance, fine.promised)["gap"] == pytest.approx(close["gap"])
    assert metric.summary()["gap"].n == 2 * len(x)


def test_several_classes_count_each() -> None:
    e = Explainer(MODEL).explain(tiny_models.pictures(MODEL), method="integrated-gradients", target="top3", steps=8)
    found = completeness(e)["gap"]
    assert found == pytest.approx(np.abs(e.relevance.sum((2, 3), dtype=np.float64) - e.promised).ravel())


def test_a_method_without_a_promise() -> None:
    e = Explainer(MODEL).explain(tiny_models.pictures(MODEL)[:1])
    with pytest.raises(InputError) as caught:
        completeness(e)
    assert str(caught.value) == (
        "method 'fg-grad-cam' promises no sum, so it has no completeness gap\n"
        "  next    give promised=, or a method that shares out a difference, as integrated-gradients"
    )
    assert completeness(e, [0.0])["gap"] == pytest.approx(np.abs(e.relevance.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("promised", "known"),
    [(None, "None"), ([1.0], "float64 [1]"), ([1.0, np.nan], "float64 [2]"), (["a", "b"], "<U1 [2]")],
)
def test_sums_that_do_not_fit(promised, known: str) -> None:
    with pytest.raises(InputError) as caught:
        completeness(np.ones((2, 3)), promised)
    assert str(caught.value) == f"promised has to be a finite number for each of 2 maps\n  known   it is {known}"


# --- similarity -------------------------------------------------------------------------------------------------------


def test_equal_and_opposite() -> None:
    found = similarity(MAPS, MAPS)
    assert all(found[name] == pytest.approx(np.ones(4)) for name in found)
    assert pearson(MAPS, -MAPS) == pytest.approx(-np.ones(4))
    assert spearman(MAPS, -MAPS) == pytest.approx(-np.ones(4))


def test_what_a_transform_leaves() -> None:
    """Pearson stays under a x + b, Spearman under any increasing transform."""
    assert pearson(3 * MAPS.astype(np.float64) - 7, OTHERS) == pytest.approx(pearson(MAPS, OTHERS), abs=1e-12)
    assert spearman(np.exp(MAPS.astype(np.float64)), OTHERS) == pytest.approx(spearman(MAPS, OTHERS), abs=1e-15)
    assert np.abs(pearson(np.exp(MAPS), OTHERS) - pearson(MAPS, OTHERS)).max() > 0.01


def test_ties_share_their_rank() -> None:
    """Ranks 2.5 2.5 1 4 against 1 2 3 4: covariance 1.5 of sqrt(4.5 5)."""
    assert spearman([[5, 5, 1, 9]], [[1, 2, 3, 4]]) == pytest.approx([1.5 / np.sqrt(4.5 * 5)])


def test_a_constant_map_is_undefined() -> None:
    flat = np.full((4, 20, 17), 0.1, np.float32)
    assert np.isnan(pearson(flat, MAPS)).all()
    assert np.isnan(spearman(MAPS, flat)).all()
    assert np.isnan(pearson([[0.1 + 0.2, 0.3, 0.3]], [[1, 2, 3]])).all()  # but for rounding
    assert np.isnan(ssim(flat, flat)).all()
    assert ssim(flat, flat, data_range=1) == pytest.approx(np.ones(4))
    assert np.isnan(ssim(MAPS[:, :2], OTHERS[:, :2])).all()


def test_against_scipy_and_scikit_image() -> None:
    from scipy import stats
    from skimage.metrics import structural_similarity

    a, b = np.round(MAPS.astype(np.float64), 1), np.round(OTHERS.astype(np.float64), 1)  # with ties
    found = similarity(a, b)
    for i in range(len(a)):
        assert found["pearson"][i] == pytest.approx(stats.pearsonr(a[i].ravel(), b[i].ravel())[0], abs=1e-12)
        assert found["spearman"][i] == pytest.approx(stats.spearmanr(a[i].ravel(), b[i].ravel())[0], abs=1e-12)
        span = max(a[i].max(), b[i].max()) - min(a[i].min(), b[i].min())
        assert found["ssim"][i] == pytest.approx(structural_similarity(a[i], b[i], data_range=span), abs=1e-12)
        want = structural_similarity(a[i], b[i], data_range=2.5, win_size=11)
        assert ssim(a[i : i + 1], b[i : i + 1], window=11, data_range=2.5) == pytest.approx([want], abs=1e-12)


@pytest.mark.parametrize(("shape", "window"), [((6, 9), 5), ((4, 3), 3), ((3, 30), 3), ((12,), 7), ((8, 9, 10), 7)])
def test_small_maps_and_other_ranks(shape: tuple[int, ...], window: int) -> None:
    """The largest odd window that fits, and maps of signals and volumes."""
    from skimage.metrics import structural_similarity

    a, b = RNG.normal(size=(2, *shape))
    want = structural_similarity(a, b, data_range=8.0, win_size=window)
    assert ssim(a[None], b[None], data_range=8.0) == pytest.approx([want], abs=1e-12)


def test_scale_of_both_leaves_ssim() -> None:
    assert ssim(1e-20 * MAPS.astype(np.float64), 1e-20 * OTHERS.astype(np.float64)) == pytest.approx(ssim(MAPS, OTHERS))


def test_batches_equal_one_by_one() -> None:
    metric = Similarity(window=5)
    whole = metric.update(MAPS, OTHERS)
    alone = Similarity(window=5)
    for i in range(len(MAPS)):
        alone.update(MAPS[i : i + 1], OTHERS[i : i + 1])
    for name in metric.figures:
        assert alone.values[name] == pytest.approx(whole[name], abs=1e-15)
    assert metric.summary()["ssim"].n == 4


def test_bad_pairs() -> None:
    for call in (pearson, spearman, ssim):
        with pytest.raises(InputError) as caught:
            call(MAPS, MAPS[:2])
        assert str(caught.value) == (
            "two maps are compared cell by cell\n  known   they are [4, 20, 17] and [2, 20, 17]"
        )
    for window in (4, 1, True, 7.0):
        with pytest.raises(OptionError, match="option window cannot be"):
            ssim(MAPS, MAPS, window=window)
    for span in (0, -1, np.inf, np.nan):
        with pytest.raises(OptionError, match="option data_range cannot be"):
            ssim(MAPS, MAPS, data_range=span)
