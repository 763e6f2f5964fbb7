"""RISE: the average of random masks, each weighted by the probability of the class in the picture seen through it.

    E = 1/(masks keep) sum_i p_c(x * m_i) m_i      E, m_i [...], the space of x [n, c, ...]
    m_i: a grid of cells x cells values, each 1 with probability keep, else 0; bilinear to (cells + 1) steps in each
         direction, a step = ceil(size / cells); cut to the size of x at a random offset from 0 to a step - 1

The masks depend on ``seed``, i and the size alone: they are the same for each image of a batch, for each class, and for
any size of the pieces in which they are computed. :func:`random_masks` draws them for other tools. What a mask hides
becomes 0 in the network's own units, which is the mean colour where the preprocessing subtracts it.

Conserves: nothing; E is an estimate of the probability of the class given that a pixel is seen, and positive. Its noise
falls with the square root of ``masks``.

Differs: from the published code at the edge of a mask, where its resize mirrors the grid and ours repeats the last
value; and in the numbers that are drawn. One value for a pixel, not one for a channel.

Source: Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018, equation 6
and section 3.2; methods 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.attributions.base import Rows
from fgcam_onnx.attributions.checks import number, whole
from fgcam_onnx.imaging import resize

__all__ = ["OPTIONS", "attribute", "random_masks"]

OPTIONS: dict[str, Any] = {"masks": 4000, "cells": 7, "keep": 0.5, "seed": 0}


def random_masks(
    masks: Iterable[int], size: Sequence[int], cells: int = 7, keep: float = 0.5, seed: int = 0
) -> np.ndarray:
    """m_i for these mask numbers: float32 [masks, *size], from 0 to 1."""
    steps = [-(-length // cells) for length in size]
    found = []
    for i in masks:
        rng = np.random.default_rng([seed, i])
        grid = (rng.random([cells] * len(steps)) < keep).astype(np.float32)
        whole_mask = resize(grid[None], [(cells + 1) * step for step in steps])[0]
        offsets = [int(rng.integers(step)) for step in steps]
        found.append(whole_mask[tuple(slice(o, o + length) for o, length in zip(offsets, size, strict=True))])
    return np.stack(found)


def attribute(rows: Rows) -> np.ndarray:
    """[rows, 1, ...]: the channel axis has size 1. Costs ``masks`` forward passes an image, a batch at a time."""
    count, cells = whole(rows.options, "masks", 1), whole(rows.options, "cells", 1)
    keep, seed = number(rows.options, "keep", 0, 1, above=True), whole(rows.options, "seed", 0)
    images, axis = len(rows.x), rows.channel_axis
    size = [length for i, length in enumerate(rows.x.shape) if i not in (0, axis)]
    found = np.zeros((len(rows.target), *size), np.float64)
    for first in range(0, count, rows.batch_size):
        chunk = range(first, min(first + rows.batch_size, count))
        drawn = random_masks(chunk, size, cells, keep, seed)
        for image in range(images):
            seen = rows.x[image] * np.expand_dims(drawn, axis)
            p = rows.probabilities(seen, image).astype(np.float64)
            found[rows.rows_of(image)] += np.einsum("rm,m...->r...", p, drawn)
            rows.progress(first * images + len(chunk) * (image + 1), count * images)
    return np.expand_dims((found / (count * keep)).astype(rows.x.dtype), axis)
