"""SmoothGrad: the gradient of the score, averaged over noisy copies of the input.

    E = 1/samples sum_k dy/dx at x + s e_k      E, x [n, c, ...];  e_k ~ N(0, 1) for each value of x
    s = noise (max x - min x), of each image

The noise e_k depends on ``seed``, k and the shape of one image alone: it is the same for each image of a batch, and for
any size of the pieces in which it is computed. :func:`standard_noise` draws it for other tools.

Conserves: nothing; E is a gradient, in score per unit of input, and is not multiplied with the input.

Differs: nothing known, from captum's NoiseTunnel over Saliency(abs=False) with ``nt_type="smoothgrad"`` at the same
noise; captum states the deviation s itself.

Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 3; methods 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fgcam_onnx.attributions.base import Rows
from fgcam_onnx.attributions.checks import number, whole

__all__ = ["OPTIONS", "attribute", "standard_noise"]

OPTIONS: dict[str, Any] = {"samples": 25, "noise": 0.1, "seed": 0}


def standard_noise(samples: Iterable[int], shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """e_k for these sample numbers: float32 [samples, *shape], ``shape`` that of one image."""
    drawn = [np.random.default_rng([seed, k]).standard_normal(tuple(shape), np.float32) for k in samples]
    return np.stack(drawn)


def attribute(rows: Rows) -> np.ndarray:
    """[rows, c, ...], of the input's own shape. Costs ``samples`` gradients an image."""
    samples, seed = whole(rows.options, "samples", 1), whole(rows.options, "seed", 0)
    noise = number(rows.options, "noise", 0, np.inf)
    images, shape = len(rows.x), rows.x.shape[1:]
    spread = noise * (rows.x.reshape(images, -1).max(axis=1) - rows.x.reshape(images, -1).min(axis=1))
    found = np.zeros((len(rows.target), *shape), np.float64)
    for first in range(0, samples, rows.batch_size):
        chunk = range(first, min(first + rows.batch_size, samples))
        drawn = standard_noise(chunk, shape, seed)
        for image in range(images):
            slopes = rows.gradients((rows.x[image] + spread[image] * drawn).astype(rows.x.dtype), image)
            found[rows.rows_of(image)] += slopes.sum(axis=1, dtype=np.float64)
            rows.progress(first * images + len(chunk) * (image + 1), samples * images)
    return (found / samples).astype(rows.x.dtype)
