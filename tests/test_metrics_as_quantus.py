"""Against quantus, where it computes the same: with the same maps, settings and draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_reference.torchvision_import import import_torchvision  # noqa: E402

import_torchvision()
quantus = pytest.importorskip("quantus")

from quantus.functions import complexity_func, similarity_func  # noqa: E402

from fgcam_onnx.metrics import (  # noqa: E402
    complexity,
    max_sensitivity,
    random_logit,
    sensitivity_n,
    similarity,
    sparseness,
    ssim,
)
from fgcam_onnx.metrics.random_logit import other_classes  # noqa: E402
from fgcam_onnx.metrics.randomisation import histogram_entropy  # noqa: E402
from fgcam_onnx.metrics.sensitivity_n import pixel_sets  # noqa: E402

RNG = np.random.default_rng(3)
MAPS = np.abs(RNG.normal(size=(4, 20, 17)))
OTHERS = MAPS + RNG.normal(size=MAPS.shape)
# One channel: what quantus removes are numbers of the input, what this package removes are pixels.
X = RNG.normal(size=(4, 1, 20, 17)).astype(np.float32)
CLASSES = np.array([2, 0, 1, 2])
SETTINGS: dict[str, Any] = {
    "abs": False, "normalise": False, "return_aggregate": False, "disable_warnings": True, "display_progressbar": False,
}  # fmt: skip


class Net(torch.nn.Module):  # type: ignore[misc]
    """tanh of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = torch.nn.Linear(340, 3)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.last(x.flatten(1)))


NET = Net().eval()


def logits(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = NET(torch.tensor(x)).numpy()
    return found


def called(metric: Any, a: np.ndarray, **more: Any) -> np.ndarray:
    return np.array(
        metric(
            model=NET, x_batch=X, y_batch=CLASSES, a_batch=a, channel_first=True, softmax=False, device="cpu", **more
        )
    )


def test_complexity_and_sparseness() -> None:
    for e, gini, nats in zip(MAPS, sparseness(MAPS), complexity(MAPS), strict=True):
        shape = np.zeros((1, *e.shape))
        # quantus adds 1e-7 to every cell before it sorts them, so that a map of zeros has an index: 0
        assert sparseness(e[None] + 1e-7) == pytest.approx([complexity_func.gini_coeffiient(e, shape)], rel=1e-12)
        assert gini == pytest.approx(complexity_func.gini_coeffiient(e, shape), abs=1e-6)
        assert nats == pytest.approx(complexity_func.entropy(e, shape), rel=1e-12)


def test_entropy_of_a_histogram() -> None:
    for e, found in zip(OTHERS, histogram_entropy(OTHERS), strict=True):  # of the efficient randomisation
        assert found == pytest.approx(complexity_func.discrete_entropy(e, e, n_bins=100), rel=1e-12)


def test_similarity() -> None:
    found = similarity(MAPS, OTHERS)
    for i, (a, b) in enumerate(zip(MAPS, OTHERS, strict=True)):
        flat = a.ravel(), b.ravel()
        assert found["pearson"][i] == pytest.approx(similarity_func.correlation_pearson(*flat), abs=1e-12)
        assert found["spearman"][i] == pytest.approx(similarity_func.correlation_spearman(*flat), abs=1e-12)
        assert found["ssim"][i] == pytest.approx(similarity_func.ssim(a, b), abs=1e-12)


def test_sensitivity_n_is_its_faithfulness_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random sets of one size. (What it calls SensitivityN walks down the ranking instead, and draws nothing.)"""
    sets = iter([each for each in pixel_sets(340, size=50, samples=30) for _ in range(4)])
    monkeypatch.setattr(np.random, "choice", lambda *args, **options: next(sets))
    metric = quantus.FaithfulnessCorrelation(nr_runs=30, subset_size=50, perturb_baseline=0.0, **SETTINGS)
    theirs = called(metric, OTHERS[:, None])
    assert sensitivity_n(logits, X, OTHERS, CLASSES, size=50, samples=30) == pytest.approx(theirs, abs=1e-6)
    assert next(sets, None) is None


def test_max_sensitivity() -> None:
    """(By default it leaves out copies of which the network predicts another class; here none is left out.)"""
    draws = np.random.default_rng(0).uniform(-0.02, 0.02, (10, *X.shape[1:]))
    left = iter(draws)

    def moved(arr: np.ndarray, indices: Any, **options: Any) -> np.ndarray:
        return (arr + next(left).ravel()).astype(np.float32)

    def explained(model: Any, inputs: np.ndarray, targets: Any, **options: Any) -> np.ndarray:
        return np.asarray(inputs).sum(axis=1, keepdims=True) ** 3

    metric = quantus.MaxSensitivity(
        nr_samples=10, perturb_func=moved, return_nan_when_prediction_changes=False, **SETTINGS
    )
    theirs = called(metric, explained(None, X, None), explain_func=explained)
    assert max_sensitivity(lambda x: x.sum(axis=1) ** 3, X) == pytest.approx(theirs, rel=1e-5)


def test_random_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SSIM has windows of 7 along the flattened map; the windows of this package have 7 x 7 cells."""
    patterns = RNG.normal(size=(3, 20, 17))
    others = other_classes(X, CLASSES, 3)

    def explained(model: Any, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
        return patterns[np.asarray(targets)][:, None]

    below = [sorted({0, 1, 2} - {int(c)}).index(int(k)) for c, k in zip(CLASSES, others, strict=True)]
    monkeypatch.setattr(np.random, "randint", lambda *args, **options: np.array(below))
    metric = quantus.RandomLogit(num_classes=3, **SETTINGS)
    theirs = called(metric, patterns[CLASSES][:, None], explain_func=explained)
    own, other = patterns[CLASSES], patterns[others]
    assert ssim(own.reshape(4, -1), other.reshape(4, -1)) == pytest.approx(theirs, abs=1e-6)
    found = random_logit(lambda x, target: patterns[target], X, CLASSES, classes=3)
    assert found == pytest.approx(ssim(own, other))
    assert np.abs(found - theirs).max() > 0.01
