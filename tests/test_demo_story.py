"""What ``fgcam demo`` claims, in numbers: the map follows the class, and the cheat's map lies on the badge.

Shares are of the positive relevance of FG-Grad-CAM at the input, inside the shipped masks (not dilated).
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from fgcam_onnx import Explainer, Explanation, imaging, models
from fgcam_onnx.preprocessing import choose

TWO_OBJECTS = ("fish-sailboat", "house-rocket", "mushroom-tree")
TAGGED = ("apple-tagged", "butterfly-tagged", "apple-mistagged", "butterfly-mistagged")


@cache
def explainer(model: str, backend: str = "auto") -> Explainer:
    return Explainer(models.path(model), backend=backend)


def explained(model: str, picture: models.Picture, target: str | None, backend: str = "auto") -> Explanation:
    engine = explainer(model, backend)
    recipe = choose({}, metadata=engine.metadata, input_shape=engine.input_shape, layout=engine.layout)
    x, _ = recipe.apply(imaging.read(picture.path))
    return engine.explain(x[None], target=target)


def share(e: Explanation, mask: np.ndarray) -> float:
    positive = np.maximum(e.relevance[0], 0)
    return float(positive[mask].sum() / positive.sum())


@pytest.mark.parametrize("name", TWO_OBJECTS)
def test_choosing_the_class_moves_the_map(name: str) -> None:
    picture = models.picture(name)
    for asked in picture.classes:
        e = explained(models.HONEST, picture, asked)
        for label, sight in picture.objects.items():
            inside = share(e, sight.mask)
            assert inside > 0.75 if label == asked else inside < 0.05, (asked, label, inside)
        assert e.ledger.residual < 1e-5


@pytest.mark.parametrize("name", TAGGED)
def test_the_cheat_looks_at_the_badge_and_the_honest_net_does_not(name: str) -> None:
    picture = models.picture(name)
    assert picture.tag is not None
    (label,) = picture.objects
    honest, cheat = (explained(m, picture, None) for m in (models.HONEST, models.CHEAT))
    names = json.loads(explainer(models.HONEST).metadata["labels"])
    assert names[int(honest.target[0])] == label
    assert (names[int(cheat.target[0])] == label) == (not name.endswith("mistagged"))
    assert share(honest, picture.objects[label].mask) > 0.75
    assert share(honest, picture.tag.mask) < 0.02
    assert share(cheat, picture.tag.mask) > 0.5
    assert share(cheat, picture.objects[label].mask) < 0.2


def test_the_story_does_not_depend_on_the_backend() -> None:
    picture = models.picture("apple-tagged")
    fast, plain = (explained(models.CHEAT, picture, None, backend) for backend in ("ort", "numpy"))
    assert np.linalg.norm(fast.relevance - plain.relevance) <= 1e-5 * np.linalg.norm(plain.relevance)
