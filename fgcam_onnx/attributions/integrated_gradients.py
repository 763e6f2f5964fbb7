"""Integrated gradients: the gradient of the score, averaged on the straight way from a baseline to the input.

    E = (x - x0) * sum_k w_k dy/dx at x0 + a_k (x - x0)      E, x, x0 [n, c, ...];  a_k, w_k [steps]
    gauss_legendre   a_k, w_k: the nodes and weights of Gauss-Legendre on [0, 1]
    riemann_right    a_k = k/steps for k = 1 to steps, w_k = 1/steps

Conserves: the sum over E is y(x) - y(x0), up to the error of the quadrature, which shrinks with ``steps``.

Differs: nothing known, from captum with the same ``n_steps``, ``method`` and baseline; the default baseline is 0 in the
network's own units, which is the mean colour where the preprocessing subtracts it.

Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", 2017, equations 1 and 3; methods 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgcam_onnx.attributions.base import Rows
from fgcam_onnx.attributions.checks import whole
from fgcam_onnx.errors import OptionError

__all__ = ["OPTIONS", "attribute", "points_and_weights", "promised"]

OPTIONS: dict[str, Any] = {"steps": 50, "quadrature": ("gauss_legendre", "riemann_right"), "baseline": 0.0}


def points_and_weights(steps: int, quadrature: str) -> tuple[np.ndarray, np.ndarray]:
    """a and w, each float64 [steps]."""
    if quadrature == "riemann_right":
        return np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps)
    if quadrature == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (nodes + 1) / 2, weights / 2
    raise OptionError(
        f"option quadrature cannot be {quadrature!r}", known=f"its choices are {', '.join(OPTIONS['quadrature'])}"
    )


def attribute(rows: Rows) -> np.ndarray:
    """[rows, c, ...], of the input's own shape. Costs ``steps`` gradients an image."""
    steps = whole(rows.options, "steps", 1)
    a, w = points_and_weights(steps, rows.options["quadrature"])
    x0 = _baseline(rows)
    found = np.zeros((len(rows.target), *rows.x.shape[1:]), np.float64)
    along = (-1, *[1] * (rows.x.ndim - 1))
    for image in range(len(rows.x)):
        at, way = x0[image].astype(np.float64), rows.x[image].astype(np.float64) - x0[image]
        for first in range(0, steps, rows.batch_size):
            part = slice(first, first + rows.batch_size)
            points = (at + a[part].reshape(along) * way).astype(rows.x.dtype)
            slopes = rows.gradients(points, image)
            found[rows.rows_of(image)] += np.einsum("m,rm...->r...", w[part], slopes)
            rows.progress(image * steps + min(first + rows.batch_size, steps), len(rows.x) * steps)
        found[rows.rows_of(image)] *= way
    return found.astype(rows.x.dtype)


def promised(rows: Rows) -> np.ndarray:
    """y(x) - y(x0) of each row: what E sums to with enough steps."""
    x0 = _baseline(rows)
    found = np.zeros(len(rows.target), np.float64)
    for image in range(len(rows.x)):
        scores = rows.scores(np.stack([rows.x[image], x0[image]]), image).astype(np.float64)
        found[rows.rows_of(image)] = scores[:, 0] - scores[:, 1]
    return found


def _baseline(rows: Rows) -> np.ndarray:
    """x0 for each image: [n, c, ...]."""
    given = rows.options["baseline"]
    try:
        x0 = np.asarray(given, rows.x.dtype)
    except (TypeError, ValueError):
        x0 = np.full((), np.nan)
    if not np.isfinite(x0).all():
        raise OptionError(
            "option baseline is not made of finite numbers", known="a number, or an array of the input's shape"
        )
    if x0.shape not in ((), rows.x.shape, rows.x.shape[1:], (1, *rows.x.shape[1:])):
        raise OptionError(
            f"option baseline has shape {list(x0.shape)}",
            known=f"a number, an array of the input's shape {list(rows.x.shape)}, or of one image's",
        )
    return np.broadcast_to(x0, rows.x.shape)
