"""Is the relevance where the object is? Against boxes or masks; the network is not run.

    proportion      sum of relu(E) inside / sum of relu(E)                higher is better; 0 where relu(E) is all 0
    pointing game   1[the largest E lies inside]                          the first of equal ones
    rank accuracy   share of the top K pixels inside, K = pixels inside

The proportion is the energy-based pointing game; against a mask it is the relevance mass accuracy. relu for every
method. Undefined where the region is empty.

Source: methods 7.5 and 7.6; Wang et al. 2020 (Score-CAM), Zhang et al. 2016, Arras et al. 2022 (CLEVR-XAI).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError
from fgcam_onnx.metrics.base import Accumulator, Array
from fgcam_onnx.metrics.pixels import at_input, ranking

__all__ = ["Localisation", "box_mask", "localisation"]


def box_mask(boxes: Iterable[Sequence[float]], picture: tuple[int, int], size: tuple[int, int]) -> Array:
    """bool [h, w]: the boxes (x1, y1, x2, y2), in pixels of a picture (H, W), squashed to ``size``: E[y1:y2, x1:x2].

    Corners are rounded to the nearest pixel; a box keeps at least one. Raises :class:`InputError` for a box without
    area or outside the picture.
    """
    mask = np.zeros(size, bool)
    high, wide = picture
    for box in boxes:
        if len(box) != 4:
            raise InputError(f"a box has {len(box)} numbers", known="(x1, y1, x2, y2), in pixels")
        x1, y1, x2, y2 = (float(v) for v in box)
        if not (0 <= x1 < x2 <= wide and 0 <= y1 < y2 <= high):
            raise InputError(
                f"the box (x1, y1, x2, y2) = {tuple(box)} is not inside its picture",
                known=f"the picture is {wide} pixels wide and {high} high",
            )
        left, right = (round(x * size[1] / wide) for x in (x1, x2))
        top, bottom = (round(y * size[0] / high) for y in (y1, y2))
        left, top = min(left, size[1] - 1), min(top, size[0] - 1)
        mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def localisation(relevance: Any, masks: Any) -> dict[str, Array]:
    """``proportion``, ``pointing_game`` and ``rank_accuracy`` of each map, float64 [n] from 0 to 1.

    ``relevance`` [n, ...]; ``masks`` bool [n, H, W]: maps of a lower resolution are stretched to them.

    Raises:
        InputError: masks that do not fit the maps, or are no masks.
    """
    maps, regions = np.asarray(relevance), np.asarray(masks)
    if regions.dtype != bool or len(regions) != len(maps):
        raise InputError(
            f"masks have to be bool, one for each of {len(maps)} maps",
            known=f"they are {regions.dtype} {list(regions.shape)}",
        )
    values = at_input(maps, regions.shape[1:]).reshape(len(maps), -1).astype(np.float64)
    regions = regions.reshape(len(maps), -1)
    positive, inside = np.maximum(values, 0), regions.sum(axis=1)
    whole = positive.sum(axis=1)
    share = np.divide((positive * regions).sum(axis=1), whole, out=np.zeros(len(maps)), where=whole > 0)
    rows = np.arange(len(maps))
    order = ranking(values)
    hits = np.take_along_axis(regions, order, axis=1)
    ranks = np.arange(values.shape[1])[None] < inside[:, None]
    ranked = np.divide((hits & ranks).sum(axis=1), inside, out=np.zeros(len(maps)), where=inside > 0)
    found = {
        "proportion": share,
        "pointing_game": regions[rows, order[:, 0]].astype(np.float64),
        "rank_accuracy": ranked,
        "empty": (whole == 0).astype(np.float64),
    }
    return {name: np.where(inside > 0, each, np.nan) for name, each in found.items()}


class Localisation(Accumulator):
    """``empty`` is the share of maps without any positive relevance, which count as 0."""

    figures = ("proportion", "pointing_game", "rank_accuracy", "empty")

    def measure(self, relevance: Any, masks: Any) -> Mapping[str, Array]:
        return localisation(relevance, masks)
