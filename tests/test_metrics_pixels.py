"""What the metrics do to a picture: baselines, rankings, pixels put in and taken out."""

from __future__ import annotations

import itertools
from typing import Any

import metrics_replica as by_hand
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.metrics import pixels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 40, 30))


# --- baselines --------------------------------------------------------------------------------------------------------


def test_axes_of_space() -> None:
    assert pixels.space_of("NCHW") == (2, 3)
    assert pixels.space_of("NHWC") == (1, 2)
    assert pixels.space_of("NCW") == (2,)
    assert pixels.space_of("NCDHW") == (2, 3, 4)


@pytest.mark.parametrize(("kernel", "sigma"), [(51, 50.0), (11, 5.0), (1, 1.0)])
def test_blur_is_a_convolution_with_a_mirrored_border(kernel: int, sigma: float) -> None:
    t = torch.arange(kernel).double() - kernel // 2
    w = torch.exp(-(t**2) / (2 * sigma**2))
    w = torch.outer(w / w.sum(), w / w.sum())
    padded = functional.pad(torch.tensor(X), [kernel // 2] * 4, mode="reflect")
    expected = functional.conv2d(padded, w.expand(3, 1, -1, -1), groups=3)
    found = pixels.baseline_of(X, "NCHW", kernel=kernel, sigma=sigma)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_blur_of_a_picture_smaller_than_the_kernel() -> None:
    small = RNG.normal(size=(1, 2, 7, 1))
    np.testing.assert_allclose(
        pixels.baseline_of(small, "NCHW")[0], by_hand.blurred(small[0], 51, 50.0), rtol=0, atol=1e-12
    )


def test_blur_of_a_constant_is_the_constant() -> None:
    x = np.full((1, 3, 40, 30), 0.7)
    np.testing.assert_allclose(pixels.baseline_of(x, "NCHW"), x, rtol=0, atol=1e-15)


def test_blur_commutes_with_normalisation() -> None:
    mean, std = np.array([0.4, 0.5, 0.6])[:, None, None], np.array([0.2, 0.3, 0.25])[:, None, None]
    before = pixels.baseline_of((X - mean) / std, "NCHW")
    np.testing.assert_allclose(before, (pixels.baseline_of(X, "NCHW") - mean) / std, rtol=0, atol=1e-12)


def test_weight_at_the_edge_of_the_kernel() -> None:
    """exp(-25^2 / (2 50^2)) = exp(-0.125) of the centre; beyond it nothing."""
    impulse = np.zeros((1, 1, 1, 121))
    impulse[..., 60] = 1
    spread = pixels.baseline_of(impulse, "NCHW")[0, 0, 0]
    assert spread[35] / spread[60] == pytest.approx(0.882497, abs=5e-7)
    assert (spread[34], spread[86]) == (0, 0)
    assert spread[85] == pytest.approx(spread[35], rel=1e-12)
    assert spread.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("baseline", ["blur", "mean", "zero", 0.3])
def test_layouts_have_the_same_baseline(baseline: Any) -> None:
    last = pixels.baseline_of(np.ascontiguousarray(X.transpose(0, 2, 3, 1)), "NHWC", baseline)
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2), pixels.baseline_of(X, "NCHW", baseline), atol=1e-13)


def test_words_numbers_and_arrays() -> None:
    assert np.array_equal(pixels.baseline_of(X, "NCHW", "zero"), np.zeros_like(X))
    assert np.array_equal(pixels.baseline_of(X, "NCHW", 2), np.full_like(X, 2))
    mean = pixels.baseline_of(X, "NCHW", "mean")
    assert mean.shape == X.shape
    for n, c in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(mean[n, c], X[n, c].mean(), rtol=1e-12)
    colour = np.array([1.0, 2, 3])[:, None, None]
    assert np.array_equal(pixels.baseline_of(X, "NCHW", colour), np.broadcast_to(colour, X.shape))
    other = RNG.normal(size=X.shape)
    assert np.array_equal(pixels.baseline_of(X, "NCHW", other), other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("baseline", ["blur", "mean", "zero", 0.5])
def test_dtype_is_kept(dtype: Any, baseline: Any) -> None:
    found = pixels.baseline_of(X.astype(dtype), "NCHW", baseline)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, pixels.baseline_of(X, "NCHW", baseline), atol=3e-3)


def test_whole_numbers_are_rounded() -> None:
    x = RNG.integers(0, 256, (1, 3, 9, 8)).astype(np.uint8)
    for word in ("blur", "mean"):
        found = pixels.baseline_of(x, "NCHW", word)
        assert found.dtype == np.uint8
        exact = pixels.baseline_of(x.astype(np.float64), "NCHW", word)
        assert np.abs(found - exact).max() <= 0.5 + 1e-4
    assert (pixels.baseline_of(x, "NCHW", 2.6) == 3).all()


def test_one_channel() -> None:
    x = RNG.normal(size=(1, 1, 8, 6))
    np.testing.assert_allclose(pixels.baseline_of(x, "NCHW")[0], by_hand.blurred(x[0], 51, 50), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("baseline", "error", "text"),
    [
        (
            "black",
            OptionError,
            "option baseline cannot be 'black'\n  known   blur, mean, zero, a number or an array",
        ),
        (
            np.zeros((4, 4)),
            InputError,
            "the baseline has shape [4, 4]\n  known   the pictures have [2, 3, 40, 30]",
        ),
        (np.nan, InputError, "the baseline has to be finite numbers\n  known   it is float64"),
        (True, InputError, "the baseline has to be finite numbers\n  known   it is bool"),
    ],
)
def test_what_is_no_baseline(baseline: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        pixels.baseline_of(X, "NCHW", baseline)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("dtype", "baseline", "text"),
    [
        (np.uint8, 300, "the baseline goes from 300 to 300\n  known   the pictures are uint8"),
        (np.uint8, -1.0, "the baseline goes from -1 to -1\n  known   the pictures are uint8"),
        (np.float16, 1e6, "the baseline goes from 1e+06 to 1e+06\n  known   the pictures are float16"),
    ],
)
def test_a_baseline_that_the_type_cannot_hold(dtype: Any, baseline: float, text: str) -> None:
    with pytest.raises(InputError) as caught:
        pixels.baseline_of(np.zeros((1, 3, 4, 4), dtype), "NCHW", baseline)
    assert str(caught.value) == text


def test_what_is_no_blur() -> None:
    with pytest.raises(OptionError, match="option kernel cannot be 50"):
        pixels.baseline_of(X, "NCHW", kernel=50)
    with pytest.raises(OptionError, match="option sigma cannot be 0"):
        pixels.baseline_of(X, "NCHW", sigma=0)


# --- maps and rankings ------------------------------------------------------------------------------------------------


def test_a_map_of_the_inputs_size_keeps_its_signs() -> None:
    e = RNG.normal(size=(2, 6, 5))
    assert np.array_equal(pixels.at_input(e, (6, 5)), e)
    assert np.array_equal(pixels.at_input(e, (6, 5), signed=True), e)
    assert np.array_equal(pixels.at_input(e, (6, 5), signed=False), e.clip(0))


def test_a_coarse_map_is_rectified_then_stretched() -> None:
    e = RNG.normal(size=(2, 3, 2)).astype(np.float32)
    stretch = {"size": (12, 10), "mode": "bilinear", "align_corners": False}
    up = functional.interpolate(torch.tensor(e.clip(0)).double()[:, None], **stretch)[:, 0]
    np.testing.assert_allclose(pixels.at_input(e, (12, 10)), up, rtol=0, atol=1e-12)
    raw = functional.interpolate(torch.tensor(e).double()[:, None], **stretch)[:, 0]
    np.testing.assert_allclose(pixels.at_input(e, (12, 10), signed=True), raw, rtol=0, atol=1e-12)
    assert float((raw - up).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (np.zeros((4, 4)), "maps have to be [n, ...] with 2 axes of space\n  known   they are [4, 4]"),
        (np.zeros((0, 4, 4)), "maps have to be [n, ...] with 2 axes of space\n  known   they are [0, 4, 4]"),
        (np.array([[[0, np.nan], [np.inf, 1]]]), "maps have to be finite\n  known   2 cells are not"),
    ],
)
def test_what_is_no_map(e: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        pixels.at_input(e, (4, 4))
    assert str(caught.value) == text


def test_ranking_falls_and_ties_keep_their_order() -> None:
    e = np.array([[[1.0, 3, 2], [3, 0, -1]], [[0, 0, 0], [0, 0, 0]]])
    assert pixels.ranking(e).tolist() == [[1, 3, 2, 0, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert pixels.ranking(np.array([[0.0, -0.0, 0.0]])).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.float32, np.float64])
def test_ranking_of_many_ties_is_that_of_plain_sorting(dtype: Any) -> None:
    e = RNG.integers(0, 4, (1, 13, 7)).astype(dtype)
    assert pixels.ranking(e)[0].tolist() == [y * 7 + x for y, x in by_hand.order(e[0])]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=30))
def test_a_strictly_increasing_transform_ranks_alike(values: list[int]) -> None:
    e = np.array([values], np.float64)
    ranks = pixels.ranking(e)
    for transform in (lambda v: 3 * v + 1, np.exp, np.cbrt, lambda v: v**3, np.arctan):
        assert np.array_equal(pixels.ranking(transform(e)), ranks)


# --- pixels in and out ------------------------------------------------------------------------------------------------


def test_replaced_takes_all_channels_and_leaves_the_picture() -> None:
    x, b = RNG.normal(size=(2, 3, 4, 5))
    before = x.copy()
    found = pixels.replaced(x, b, np.array([0, 7, 19]), "NCHW")
    assert np.array_equal(found, by_hand.mixed(x, b, [(0, 0), (1, 2), (3, 4)]))
    assert np.array_equal(x, before)
    mask = np.zeros(20, bool)
    mask[[0, 7, 19]] = True
    assert np.array_equal(pixels.replaced(x, b, mask, "NCHW"), found)


def test_channels_last_and_views() -> None:
    """Pictures need not lie in memory as they are indexed."""
    x, b = RNG.normal(size=(2, 3, 4, 5))
    expected = pixels.replaced(x, b, np.array([0, 7, 19]), "NCHW")
    view = pixels.replaced(x.transpose(1, 2, 0), b.transpose(1, 2, 0), np.array([0, 7, 19]), "NHWC")
    assert np.array_equal(view.transpose(2, 0, 1), expected)
    flipped = pixels.replaced(x[:, ::-1], b[:, ::-1], np.array([15, 12, 4]), "NCHW")
    assert np.array_equal(flipped[:, ::-1], expected)


def test_channels_between_axes_of_space() -> None:
    with pytest.raises(InputError) as caught:
        pixels.positions(np.zeros((4, 3, 5)), "NHCW")
    assert str(caught.value) == "pictures of layout NHCW have their channels between axes of space\n  next    move them"


@pytest.mark.parametrize(("step", "seen"), [(1, 19), (3, 6), (4, 4), (7, 2), (19, 1), (20, 0), (50, 0)])
def test_walk_shows_what_lies_between(step: int, seen: int) -> None:
    x, b = RNG.normal(size=(2, 3, 4, 5))
    e = RNG.normal(size=(4, 5))
    order = pixels.ranking(e[None])[0]
    states = [state.copy() for state in pixels.walk(x, b, order, step, "NCHW")]
    assert len(states) == seen
    for i, state in enumerate(states, 1):
        assert np.array_equal(state, by_hand.mixed(x, b, by_hand.order(e)[: step * i]))


def test_walk_works_in_one_array() -> None:
    x, b = RNG.normal(size=(2, 3, 4, 5))
    before = x.copy(), b.copy()
    found = list(pixels.walk(x, b, np.arange(20), 4, "NCHW"))
    assert all(state is found[0] for state in found)
    assert np.array_equal(x, before[0])
    assert np.array_equal(b, before[1])


def test_one_and_three_axes_of_space() -> None:
    for layout, shape in (("NCW", (2, 6)), ("NCDHW", (2, 2, 3, 4)), ("NDHWC", (2, 3, 4, 2))):
        x, b = RNG.normal(size=(2, *shape))
        size = x.size // 2
        last = list(pixels.walk(x, b, np.arange(size), size - 1, layout))[-1]
        changed = np.argwhere(last == x)
        assert len(changed) == 2  # the last pixel, in both channels
        assert (last == b).sum() == 2 * (size - 1)
