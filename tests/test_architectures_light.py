"""The nine "light" graphs of the model zoo inside the onnx package: operators as exporters wrote them in 2018.

The files hold one image, so two pictures are explained one at a time. As published their weights are nearly all 0.02;
each is explained so, and again with random weights in their place; those of the largest not in every run::

    pytest -m "slow or not slow" tests/test_architectures_light.py
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the pictures are made with it")

from architectures.light_models import FOLDER, LIGHT, Light, alive, ramp, truth
from architectures.proof import check_accounts, prove
from torch_reference import relative_error, smooth_images

from fgcam_onnx import Explainer

ALIVE = [pytest.param(light, marks=() if light.quick else pytest.mark.slow, id=light.name) for light in LIGHT]


def test_the_list_is_the_folder() -> None:
    assert sorted(light.path for light in LIGHT) == sorted(FOLDER.glob("*.onnx"))


@pytest.mark.parametrize("light", LIGHT, ids=lambda light: light.name)
def test_as_published(light: Light) -> None:
    """The published output; L; coverage; the books. Of the map no more: all classes have the same one."""
    explainer = Explainer(light.path, backend="ort", threads=1)
    coverage = explainer.coverage()
    assert coverage.complete, coverage.gaps
    assert explainer.default_layer == light.layer
    assert explainer.graph.tensor(light.layer).shape == (1, *light.shape)
    found = explainer.explain(ramp())
    scores = found.probabilities if light.softmax else found.logits
    assert relative_error(scores, light.expected) <= 1e-4
    check_accounts(found)


@pytest.mark.parametrize("light", ALIVE)
def test_alive(light: Light) -> None:
    model = alive(light)
    x = smooth_images(2, (224, 224), 0).numpy()
    found = prove(Explainer(model, backend="ort", threads=1), truth(light, model, x), "light", light.name, "caffe2")
    assert found.layer == light.layer
    assert found.shape == light.shape
    found.record()
