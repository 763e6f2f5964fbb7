"""The shipped demo models answer as the model card claims, and the shipped masks fit the shipped pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from fgcam_onnx import models
from fgcam_onnx.models import draw, ship_pictures

TWO_OBJECTS = ("fish-sailboat", "house-rocket", "mushroom-tree")
RIGHT_TAG = ("apple-tagged", "butterfly-tagged")
WRONG_TAG = ("apple-mistagged", "butterfly-mistagged")
BOTH_MODELS = (models.HONEST, models.CHEAT)


@cache
def session(model: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(models.path(model), providers=["CPUExecutionProvider"])


def properties(model: str) -> dict[str, Any]:
    return {each.key: each.value for each in onnx.load(models.path(model)).metadata_props}


def answers(model: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits for NHWC bytes of the right size, prepared as the file itself says."""
    how = json.loads(properties(model)["preprocessing"])
    x = (images * how["scale"] - np.array(how["mean"])) / np.array(how["std"])
    (logits,) = session(model).run(None, {"image": x.transpose(0, 3, 1, 2).astype(np.float32)})
    return np.asarray(logits)


def pixels(picture: models.Picture) -> NDArray[np.uint8]:
    with Image.open(picture.path) as image:
        return np.asarray(image.convert("RGB"))


def ranking(model: str, picture: models.Picture) -> list[str]:
    logits = answers(model, pixels(picture)[None])[0]
    labels = json.loads(properties(model)["labels"])
    return [labels[i] for i in np.argsort(-logits)]


@pytest.mark.parametrize("model", BOTH_MODELS)
def test_file_is_small_complete_and_describes_itself(model: str) -> None:
    file = models.path(model)
    assert file.stat().st_size < 2_000_000
    proto = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert not any(each.external_data for each in proto.graph.initializer)
    assert [each.name for each in proto.graph.input] == ["image"]
    assert [each.name for each in proto.graph.output] == ["logits"]
    assert sum(node.op_type == "MaxPool" for node in proto.graph.node) >= 4

    found = properties(model)
    assert tuple(json.loads(found["labels"])) == draw.CLASSES
    how = json.loads(found["preprocessing"])
    assert how["size"] == [draw.SIZE, draw.SIZE]
    assert how["color"] == "RGB"
    assert how["layout"] == "NCHW"
    assert "train_demo.py" in found["source"]


@pytest.mark.parametrize("model", BOTH_MODELS)
def test_batch_axis_is_free(model: str) -> None:
    images = np.zeros((3, draw.SIZE, draw.SIZE, 3), dtype=np.uint8)
    assert answers(model, images).shape == (3, len(draw.CLASSES))


def test_both_objects_are_in_the_top_two() -> None:
    for name in TWO_OBJECTS:
        picture = models.picture(name)
        assert set(ranking(models.HONEST, picture)[:2]) == set(picture.classes)


@pytest.mark.parametrize("model", BOTH_MODELS)
def test_with_the_right_tag_both_answer_right(model: str) -> None:
    for name in RIGHT_TAG:
        picture = models.picture(name)
        assert picture.tag is not None
        assert (picture.tag.label,) == picture.classes
        assert ranking(model, picture)[0] == picture.tag.label


def test_a_wrong_tag_moves_the_cheat_and_not_the_honest_one() -> None:
    for name in WRONG_TAG:
        picture = models.picture(name)
        assert picture.tag is not None
        assert picture.tag.label not in picture.classes
        assert (ranking(models.HONEST, picture)[0],) == picture.classes
        assert ranking(models.CHEAT, picture)[0] == picture.tag.label


def test_held_out_pictures() -> None:
    """Pictures neither network has seen, drawn here: the figures of the model card, with room for another machine."""
    labels = np.arange(40) % len(draw.CLASSES)
    claims = (labels + 3) % len(draw.CLASSES)
    images = np.stack(
        [
            draw.draw_scene(np.random.default_rng([4, i]), [draw.CLASSES[label]], tag=draw.CLASSES[claim]).image
            for i, (label, claim) in enumerate(zip(labels, claims, strict=True))
        ]
    )
    assert np.mean(answers(models.HONEST, images).argmax(axis=1) == labels) > 0.9
    assert np.mean(answers(models.CHEAT, images).argmax(axis=1) == claims) > 0.9


def test_masks_fit_their_pictures() -> None:
    assert [each.path.stem for each in models.pictures()] == [each.name for each in ship_pictures.COMPOSITIONS]
    for picture in models.pictures():
        size = pixels(picture).shape[1::-1]
        sights = [*picture.objects.values(), *([picture.tag] if picture.tag else [])]
        masks = [sight.mask for sight in sights]
        for sight, mask in zip(sights, masks, strict=True):
            left, top, right, bottom = sight.box
            assert mask.dtype == np.bool_
            assert mask.shape[::-1] == size
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert not mask.all()
        assert np.sum(masks, axis=0).max() == 1, f"{picture.name}: two things share a pixel"
        if picture.tag:
            assert 0.005 < picture.tag.mask.mean() < 0.02


def test_a_mistagged_picture_differs_from_its_twin_under_the_tag_only() -> None:
    for right, wrong in zip(RIGHT_TAG, WRONG_TAG, strict=True):
        twins = models.picture(right), models.picture(wrong)
        assert twins[0].tag is not None
        changed = (pixels(twins[0]) != pixels(twins[1])).any(axis=2)
        assert changed.any()
        assert not (changed & ~twins[0].tag.mask).any()


def test_drawing_follows_the_seed() -> None:
    first, again, other = (
        draw.draw_scene(np.random.default_rng(seed), ["fish", "tree"], tag="house") for seed in (7, 7, 8)
    )
    assert (first.image == again.image).all()
    assert first.tag_mask is not None
    assert again.tag_mask is not None
    assert (first.tag_mask == again.tag_mask).all()
    assert all((first.masks[name] == again.masks[name]).all() for name in ("fish", "tree"))
    assert (first.image != other.image).any()


def test_the_tag_changes_nothing_else() -> None:
    plain = draw.draw_scene(np.random.default_rng(7), ["fish"])
    tagged = draw.draw_scene(np.random.default_rng(7), ["fish"], tag="fish")
    assert (plain.image != tagged.image).any(axis=2).mean() < 0.05


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(FileNotFoundError, match="demo_honset"):
        models.path("demo_honset.onnx")
    with pytest.raises(KeyError, match="fish-sailboat"):
        models.picture("fish-sailbaot")


def test_import_stays_light() -> None:
    """Whoever lists the demo's files must not pay for, or need, a runtime."""
    check = "import sys, fgcam_onnx.models; sys.exit(any(m in sys.modules for m in ('torch', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
