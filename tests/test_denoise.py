"""Denoising (methods 2.4) against a plain singular value decomposition, and its invariants (9.1.12)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fgcam_onnx.denoise import denoise
from fgcam_onnx.errors import OptionError

Floats = np.ndarray
SHAPES = [(1, 512, 7, 7), (3, 40, 5, 4), (2, 16, 9, 11), (2, 9, 3, 3), (2, 5, 6, 6), (1, 3, 2, 2)]
SHAPES += [(2, 30, 1, 1), (2, 1, 4, 4), (2, 24, 31), (1, 12, 3, 4, 2)]


def components(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def activations(*shape: int) -> Floats:
    """A ReLU's output: half of the cells are dead."""
    return np.maximum(components(*shape, seed=1), 0)


def plain(
    given: Floats, A: Floats, ratio: float = 0.1, add_mean_back: bool = False, support_mask: bool = True
) -> Floats:
    """One image at a time, by numpy.linalg.svd, as methods 2.4 reads."""
    result = np.empty_like(given)
    for n, image in enumerate(given):
        M = image.reshape(len(image), -1)
        mean = M.mean(axis=1, keepdims=True)
        U, S, Vt = np.linalg.svd(M - mean, full_matrices=False)
        d = max(1, math.floor(ratio * min(M.shape)))
        M = U[:, :d] @ np.diag(S[:d]) @ Vt[:d]
        if add_mean_back:
            M = M + mean
        result[n] = M.reshape(image.shape)
    return np.where(A != 0, result, 0) if support_mask else result


def check(found: Floats, expected: Floats) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-9 * max(1e-30, np.abs(expected).max())


@pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("mean", [True, False], ids=["mean_back", "centred"])
@pytest.mark.parametrize("ratio", [0.1, 0.35])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_truncated_svd(shape: tuple[int, ...], ratio: float, mean: bool, mask: bool) -> None:
    """More channels than cells and fewer, 1-D to 3-D, 3 x 3, fewer than 10 channels, one cell, one channel; batches."""
    given, A = components(*shape), activations(*shape)
    options = {"ratio": ratio, "add_mean_back": mean, "support_mask": mask}
    if shape[2:] == (1, 1) or shape[1] == 1:
        given = given + 1  # one cell: every centred row is 0
    check(denoise(given, A, **options), plain(given, A, **options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_sums_to_zero_and_the_rank_is_d(shape: tuple[int, ...]) -> None:
    """9.1.12; and the floor of the rank: one direction is kept where a tenth of them is none (9.2)."""
    found = denoise(components(*shape), activations(*shape), support_mask=False)
    cells = math.prod(shape[2:])
    d = max(1, math.floor(0.1 * min(shape[1], cells)))
    assert np.abs(found.reshape(*shape[:2], -1).sum(axis=2)).max() < 1e-10
    for image in found:
        rank = np.linalg.matrix_rank(image.reshape(shape[1], -1), tol=1e-10)
        assert rank == (0 if cells == 1 else d)


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_all_directions_and_the_mean_give_the_components_back(shape: tuple[int, ...]) -> None:
    """9.1.12: add_mean_back restores the row sums; with every direction nothing changes."""
    given, A = components(*shape), activations(*shape)
    back = denoise(given, A, add_mean_back=True, support_mask=False)
    flat = (*shape[:2], -1)
    check(back.reshape(flat).sum(axis=2), given.reshape(flat).sum(axis=2))
    check(denoise(given, A, ratio=1.0, add_mean_back=True, support_mask=False), given)


def test_the_support_mask_leaves_live_cells_as_they_are() -> None:
    """Dead positions get 0; the mass that stays is the mass on live ones."""
    given, A = components(2, 20, 5, 4), activations(2, 20, 5, 4)
    masked, whole = denoise(given, A), denoise(given, A, support_mask=False)
    assert not masked[A == 0].any()
    np.testing.assert_array_equal(masked[A != 0], whole[A != 0])
    assert np.abs(whole[A == 0]).sum() > 0.1 * np.abs(whole).sum()
    negative = -A  # a LeakyRelu's output is alive below 0
    np.testing.assert_array_equal(denoise(given, negative), masked)


def test_a_batch_is_its_images_one_by_one() -> None:
    given, A = components(3, 40, 5, 4), activations(3, 40, 5, 4)
    whole = denoise(given, A)
    for n in range(3):
        check(denoise(given[n : n + 1], A[n : n + 1]), whole[n : n + 1])


def test_float32_stays_float32_and_is_near() -> None:
    given, A = components(2, 64, 7, 7), activations(2, 64, 7, 7)
    found = denoise(given.astype(np.float32), A.astype(np.float32))
    assert found.dtype == np.float32
    assert np.abs(found - plain(given, A)).max() < 1e-4 * np.abs(given).max()


def test_nothing_in_nothing_out() -> None:
    """All components zero, or constant in every channel: a zero map without NaN."""
    A = activations(2, 12, 4, 4)
    assert not denoise(np.zeros_like(A), A).any()
    assert np.abs(denoise(np.ones_like(A), A)).max() < 1e-12


def test_it_changes_no_input() -> None:
    given, A = components(1, 12, 4, 4), activations(1, 12, 4, 4)
    before = given.copy()
    denoise(given, A)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    given = components(1, 12, 4, 4)
    with pytest.raises(OptionError) as caught:
        denoise(given, given, ratio=ratio)
    assert str(caught.value) == (
        f"option ratio cannot be {ratio!r}\n  known   a share of the directions, above 0 and up to 1"
    )


def test_a_permille_is_noticed() -> None:
    given, A = components(2, 40, 5, 4), activations(2, 40, 5, 4)
    with pytest.raises(AssertionError):
        check(1.001 * denoise(given, A), plain(given, A))
    with pytest.raises(AssertionError):
        check(denoise(given, A, ratio=0.1), plain(given, A, ratio=0.15))  # three directions instead of two
