"""The metrics once more, in plain loops over pixels: slow, and right by inspection. Pictures are [c][y][x].

Networks are run by onnxruntime alone, unoptimised, one call for all pictures: nothing of the package takes part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import tiny_models

Array = np.ndarray
Score = Callable[[list[Array]], list[float]]


def scores_of(model: onnx.ModelProto, logits: str, target: int, *, nhwc: bool = False, sigmoid: bool = False) -> Score:
    """Pictures [c, y, x] -> p_c of each."""

    def score(pictures: list[Array]) -> list[float]:
        x = np.stack(pictures)
        found = tiny_models.run(model, np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if nhwc else x, logits)[0]
        return [p_of(row.reshape(-1).tolist(), target, sigmoid) for row in found]

    return score


def p_of(logits: list[float], target: int, sigmoid: bool = False) -> float:
    if sigmoid:
        return 1 / (1 + math.exp(-logits[target]))
    return math.exp(logits[target]) / sum(math.exp(z) for z in logits)


def mirrored(i: int, n: int) -> int:
    while not 0 <= i < n and n > 1:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i if n > 1 else 0


def blurred(x: Array, kernel: int, sigma: float) -> Array:
    """Rows first, then columns."""
    reach = kernel // 2
    weights = [math.exp(-t * t / (2 * sigma * sigma)) for t in range(-reach, reach + 1)]
    c, h, w = x.shape
    rows, result = np.zeros(x.shape), np.zeros(x.shape)
    for k in range(c):
        for y in range(h):
            for j in range(w):
                taken = [float(x[k, y, mirrored(j + t, w)]) for t in range(-reach, reach + 1)]
                rows[k, y, j] = sum(a * b for a, b in zip(weights, taken, strict=True)) / sum(weights)
    for k in range(c):
        for y in range(h):
            for j in range(w):
                taken = [rows[k, mirrored(y + t, h), j] for t in range(-reach, reach + 1)]
                result[k, y, j] = sum(a * b for a, b in zip(weights, taken, strict=True)) / sum(weights)
    return result.astype(x.dtype)


def order(e: Array) -> list[tuple[int, int]]:
    """Pixels (y, x) from the most relevant down; of equal ones the upper left first."""
    cells = [(-float(e[y, j]), y, j) for y in range(e.shape[0]) for j in range(e.shape[1])]
    return [(y, j) for _, y, j in sorted(cells)]


def mixed(first: Array, second: Array, pixels: list[tuple[int, int]]) -> Array:
    """``first`` with these pixels of ``second``."""
    result: Array = first.copy()
    for y, j in pixels:
        for k in range(len(first)):
            result[k, y, j] = second[k, y, j]
    return result


def curve(start: Array, goal: Array, e: Array, step: int, score: Score) -> list[float]:
    """Each step made anew from ``start``."""
    pixels = order(e)
    steps = math.ceil(len(pixels) / step)
    return score([mixed(start, goal, pixels[: step * i]) for i in range(steps + 1)])


def trapezoid(scores: list[float]) -> float:
    n = len(scores) - 1
    return sum((a + b) / 2 for a, b in itertools.pairwise(scores)) / n


def drop(x: Array, hidden: Array, e: Array, score: Score, share: float = 0.5, signed: bool = True) -> dict[str, Any]:
    pixels = order(e)
    keep = math.ceil(share * len(pixels))
    if signed:
        keep = min(keep, sum(1 for y, j in pixels if e[y, j] > 0))
    y, o = score([x, mixed(hidden, x, pixels[:keep])])
    return {"average_drop": 100 * max(0.0, y - o) / y, "average_increase": 100.0 if y < o else 0.0}
