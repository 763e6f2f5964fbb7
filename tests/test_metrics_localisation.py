"""Relevance inside boxes and masks: worked by hand, invariants, and plain loops."""

from __future__ import annotations

from typing import Any

import metrics_replica as by_hand
import numpy as np
import pytest
from torch import tensor
from torch.nn import functional

from fgcam_onnx import models
from fgcam_onnx.errors import InputError
from fgcam_onnx.metrics import Localisation, box_mask, localisation

RNG = np.random.default_rng(0)
E = RNG.normal(size=(4, 7, 5))
MASKS = RNG.uniform(size=(4, 7, 5)) > 0.6
CENTRE = box_mask([(1, 1, 3, 3)], (4, 4), (4, 4))


def worked() -> np.ndarray:
    """2 in the central 2 x 2 box, 1 in a corner, -5 in the opposite corner."""
    e = np.zeros((1, 4, 4))
    e[0, 1:3, 1:3], e[0, 0, 0], e[0, 3, 3] = 2, 1, -5
    return e


# --- known maps -------------------------------------------------------------------------------------------------------


def test_worked_by_hand() -> None:
    found = localisation(worked(), CENTRE[None])
    assert found["proportion"].tolist() == [8 / 9]
    assert found["pointing_game"].tolist() == found["rank_accuracy"].tolist() == [1]
    assert found["empty"].tolist() == [0]
    signed = worked()[0]
    assert signed[CENTRE].sum() / signed.sum() == 2.0  # what it would be without the relu


def test_plain_loops() -> None:
    found = localisation(E, MASKS)
    for i in range(4):
        inside = [max(0.0, float(E[i, y, x])) for y in range(7) for x in range(5) if MASKS[i, y, x]]
        outside = [max(0.0, float(E[i, y, x])) for y in range(7) for x in range(5) if not MASKS[i, y, x]]
        assert found["proportion"][i] == pytest.approx(sum(inside) / (sum(inside) + sum(outside)), rel=1e-12)
        ranked = by_hand.order(E[i])
        assert found["pointing_game"][i] == MASKS[i][ranked[0]]
        top = [MASKS[i][place] for place in ranked[: len(inside)]]
        assert found["rank_accuracy"][i] == pytest.approx(sum(top) / len(top), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 0.1, 3.0, 1e30])
def test_positive_scale_changes_nothing(scale: float) -> None:
    plain, scaled = localisation(E, MASKS), localisation(scale * E, MASKS)
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name], values, rtol=1e-12)


def test_box_of_the_whole_picture() -> None:
    whole = box_mask([(0, 0, 50, 70)], (70, 50), (7, 5))
    assert whole.all()
    found = localisation(E, np.stack([whole] * 4))
    for name in ("proportion", "pointing_game", "rank_accuracy"):
        np.testing.assert_allclose(found[name], 1, rtol=1e-12)


def test_a_uniform_map_has_the_share_of_the_area() -> None:
    found = localisation(np.full((4, 7, 5), 0.3), MASKS)
    np.testing.assert_allclose(found["proportion"], MASKS.mean((1, 2)), rtol=1e-12)


def test_a_map_that_is_the_mask() -> None:
    found = localisation(MASKS.astype(float), MASKS)
    for name in ("proportion", "pointing_game", "rank_accuracy"):
        assert found[name].tolist() == [1] * 4
    against = localisation(-MASKS.astype(float) + 0.5, MASKS)
    assert against["proportion"].tolist() == [0] * 4


def test_nothing_positive_counts_as_zero_and_is_told() -> None:
    found = localisation(np.stack([-np.ones((7, 5)), np.ones((7, 5))]), MASKS[:2])
    assert found["proportion"][0] == 0
    assert found["empty"].tolist() == [1, 0]
    metric = Localisation()
    metric.update(np.stack([-np.ones((7, 5)), np.ones((7, 5))]), MASKS[:2])
    assert metric.summary()["proportion"].n == 2
    assert metric.summary()["empty"].mean == 0.5


def test_an_empty_region_has_no_figure() -> None:
    found = localisation(E[:2], np.stack([np.zeros((7, 5), bool), MASKS[1]]))
    for values in found.values():
        assert np.isnan(values).tolist() == [True, False]


def test_of_equal_maxima_the_first_points() -> None:
    e = np.zeros((2, 2, 3))
    e[:, 0, 2] = e[:, 1, 0] = 4
    masks = np.zeros((2, 2, 3), bool)
    masks[0, 0, 2] = masks[1, 1, 0] = True
    assert localisation(e, masks)["pointing_game"].tolist() == [1, 0]


def test_coarse_maps_are_rectified_and_stretched_to_the_masks() -> None:
    e = RNG.normal(size=(4, 3, 2)).astype(np.float32)
    up = functional.interpolate(tensor(e.clip(0)).double()[:, None], (7, 5), mode="bilinear")[:, 0].numpy()
    for name, values in localisation(up, MASKS).items():
        np.testing.assert_allclose(localisation(e, MASKS)[name], values, rtol=1e-9)


def test_batches_are_the_maps_one_by_one() -> None:
    together, metric = localisation(E, MASKS), Localisation()
    for i in range(4):
        alone = metric.update(E[i : i + 1], MASKS[i : i + 1])
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[i], rel=1e-12)
    assert metric.summary()["rank_accuracy"].mean == pytest.approx(together["rank_accuracy"].mean())


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_is_half_open() -> None:
    """E[y1:y2, x1:x2]."""
    mask = box_mask([(1, 2, 4, 3)], (5, 6), (5, 6))
    assert mask.shape == (5, 6)
    assert np.argwhere(mask).tolist() == [[2, 1], [2, 2], [2, 3]]


def test_a_box_is_squashed_with_its_picture() -> None:
    mask = box_mask([(100, 50, 300, 150)], (200, 400), (224, 224))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (56, 168, 56, 168)
    assert mask.sum() == 112 * 112


def test_several_boxes_are_one_region() -> None:
    mask = box_mask([(0, 0, 2, 2), (1, 1, 3, 3)], (4, 4), (4, 4))
    assert mask.sum() == 7
    assert not box_mask([], (4, 4), (4, 4)).any()


@pytest.mark.parametrize("box", [(99, 99, 100, 100), (0, 0, 1, 1), (50.2, 50.2, 50.3, 50.3), (99.9, 0, 100, 0.1)])
def test_a_box_keeps_at_least_one_pixel(box: tuple[float, ...]) -> None:
    assert box_mask([box], (100, 100), (7, 7)).sum() == 1


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 2), (3, 0, 2, 2), (0, 0, 7, 2), (-1, 0, 2, 2), (0, 0, 2, 5), (float("nan"), 0, 2, 2)]
)
def test_a_box_outside(box: tuple[float, ...]) -> None:
    with pytest.raises(InputError) as caught:
        box_mask([box], (4, 6), (4, 6))
    assert str(caught.value) == (
        f"the box (x1, y1, x2, y2) = {box} is not inside its picture\n  known   the picture is 6 pixels wide and 4 high"
    )


def test_a_box_of_three_numbers() -> None:
    with pytest.raises(InputError) as caught:
        box_mask([(0, 0, 2)], (4, 6), (4, 6))
    assert str(caught.value) == "a box has 3 numbers\n  known   (x1, y1, x2, y2), in pixels"


def test_boxes_of_the_demo_pictures_hold_their_masks() -> None:
    for picture in models.pictures():
        for sight in picture.objects.values():
            size = sight.mask.shape
            assert not (sight.mask & ~box_mask([sight.box], size, size)).any()


@pytest.mark.parametrize(
    ("masks", "known"),
    [(MASKS.astype(float), "float64 [4, 7, 5]"), (MASKS[:2], "bool [2, 7, 5]"), (MASKS.astype(int), "int64 [4, 7, 5]")],
)
def test_what_is_no_mask(masks: Any, known: str) -> None:
    with pytest.raises(InputError) as caught:
        localisation(E, masks)
    assert str(caught.value) == f"masks have to be bool, one for each of 4 maps\n  known   they are {known}"


def test_masks_of_other_axes_than_the_maps() -> None:
    with pytest.raises(InputError) as caught:
        localisation(E, MASKS[:, 0])
    assert str(caught.value) == "maps have to be [n, ...] with 1 axes of space\n  known   they are [4, 7, 5]"
