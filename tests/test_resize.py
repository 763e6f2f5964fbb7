"""Resize inside a network, where its input is an activation and not the picture: z+ with its own weights.

The cases of ``operator_cases`` read the picture (z^B). The matrix here is the operator's own, in onnxruntime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
from single_op import close, descend, tape
from tiny_models import Net

from fgcam_onnx.rules.interpolation import matrix
from fgcam_onnx.testing.matrix import z_plus

WAYS: dict[str, dict[str, Any]] = {
    "linear": {"mode": "linear"},
    "linear, corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    "cubic": {"mode": "cubic"},
    "cubic, no outside": {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
}


@pytest.mark.parametrize("relu", [True, False], ids=["nonnegative", "mixed"])
@pytest.mark.parametrize("way", WAYS)
def test_an_activation_is_shared_by_z_plus(way: str, relu: bool) -> None:
    scales = np.asarray([1, 1, 1.6, 0.8], np.float32)
    net = Net(("n", 2, 4, 5))
    source = net.conv("conv", "image", 2, 2)
    source = net.relu("relu", source) if relu else source
    model = net.model(net.node("Resize", "resize", source, None, scales, **WAYS[way]))
    A = weights_of(scales, WAYS[way])
    image = np.random.default_rng(0).normal(size=(2, 2, 4, 5)).astype(np.float32).astype(np.float64)
    x = tape(model, image)[source]
    start = np.random.default_rng(1).normal(size=(2, len(A)))
    found = descend(model, image, "resize.y", source, start.reshape(2, 2, 6, 4))
    expected, lost = z_plus(A, x.reshape(2, -1), start)
    close(found.relevance.reshape(2, -1), expected, 1e-4)
    close(found.ledger.rows[0].leaked, lost.sum(axis=1), 1e-4)
    assert found.ledger.residual < 1e-9


def weights_of(scales: np.ndarray, way: dict[str, Any]) -> np.ndarray:
    """[outputs, inputs], by a unit picture for each input."""
    net = Net(("n", 2, 4, 5))
    model = net.model(net.node("Resize", "resize", "image", None, scales, **way))
    units = np.eye(40, dtype=np.float32).reshape(40, 2, 4, 5)
    A = np.asarray(tiny_models.run(model, units)[0], np.float64).reshape(40, -1).T
    return np.where(np.abs(A) < 1e-6, 0, A)


def test_a_coordinate_on_a_cell_reads_that_cell_alone() -> None:
    """In float32 (o + 0.5) / 0.7 - 0.5 may miss a cell by 1e-8: its neighbour must not get a share for that."""
    for size, out in ((5, 3), (10, 7), (7, 10), (14, 5), (224, 160), (100, 30)):
        weights = matrix(size, out, out / size, (0.0, 1.0), {"mode": "linear"})
        seen = weights[weights != 0]
        assert seen.min() >= 1e-5
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=2e-5)
