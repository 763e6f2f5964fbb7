"""``preprocessor_config.json``: the pixels are those of the processors of transformers, or a word says why not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers_pixels as expected
from PIL import Image

from fgcam_onnx.errors import ModelError
from fgcam_onnx.huggingface import PROCESSORS
from fgcam_onnx.preprocessing import IMAGENET_MEAN, Preprocessing, choose

# float32 and float64 in another order: the pixels themselves are the same integers. Of values up to 255 a part of 1e-6.
TOLERANCE = {"atol": 4e-6, "rtol": 1e-6}
CORRECT = "\n  next    correct it, or say it yourself: --preprocess imagenet"


def recipe(tmp_path: Path, record: dict[str, Any], **beside: Any) -> Preprocessing:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    if beside:
        (tmp_path / "config.json").write_text(json.dumps(beside))
    return choose(path=tmp_path / "model.onnx")


def named(case: str) -> dict[str, Any]:
    name, record = expected.CASES[case]
    return {"image_processor_type": f"{name}ImageProcessor", **record}


@pytest.mark.parametrize("case", expected.CASES)
def test_the_pixels_of_transformers(case: str, tmp_path: Path) -> None:
    """Some pixels of two pictures, as stored: ``python tests/transformers_pixels.py``."""
    ours = recipe(tmp_path, named(case))
    assert ours.notes == ()
    for image, want in zip(expected.pictures(), json.loads(expected.STORE.read_text())[case], strict=True):
        x = ours.apply(image)[0]
        assert list(x.shape) == want["shape"]
        np.testing.assert_allclose([x[at] for at in expected.places(x.shape)], want["pixels"], **TOLERANCE)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_every_pixel_beside_transformers(
    tmp_path: Path, test_data: Path, record_property: Callable[[str, object], None]
) -> None:
    """The same on photographs, pixel by pixel, and what is stored is what transformers computes."""
    photos = [Image.open(path).convert("RGB") for path in sorted((test_data / "images").iterdir())[:4]]
    store = json.loads(expected.STORE.read_text())
    worst: dict[str, float] = {}
    for case, (name, record) in expected.CASES.items():
        ours = recipe(tmp_path, named(case))
        for image in [*expected.pictures(), *photos]:
            x, want = ours.apply(image)[0], expected.processed(name, record, image)
            np.testing.assert_allclose(x, want, err_msg=case, **TOLERANCE)
            worst[name] = max(worst.get(name, 0.0), float(np.abs(x - want).max() / max(1, np.abs(want).max())))
        for image, stored in zip(expected.pictures(), store[case], strict=True):
            want = expected.processed(name, record, image)
            assert list(want.shape) == stored["shape"]
            np.testing.assert_allclose([want[at] for at in expected.places(want.shape)], stored["pixels"], atol=1e-6)
    figures = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    record_property("summary", f"largest difference to transformers, as a part of the largest pixel: {figures}")


def test_every_processor_has_a_case() -> None:
    assert {name for name, _ in expected.CASES.values()} == set(PROCESSORS)


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "stated",
    [
        {"image_processor_type": "ConvNextImageProcessor"},
        {"image_processor_type": "ConvNextImageProcessorFast"},
        {"image_processor_type": "ConvNextImageProcessorPil"},
        {"feature_extractor_type": "ConvNextFeatureExtractor"},
        {"image_processor_type": None, "feature_extractor_type": "ConvNextFeatureExtractor", "size": None},
    ],
    ids=str,
)
def test_a_processor_by_its_names(stated: dict[str, Any], tmp_path: Path) -> None:
    found = recipe(tmp_path, stated)
    assert (found.size, found.interpolation, found.mean) == ((384, 384), "bicubic", (0.5, 0.5, 0.5))
    assert found.source == "preprocessor_config.json (ConvNextImageProcessor)"


def test_a_processor_by_the_model_in_config_json(tmp_path: Path) -> None:
    """Old files name no processor, and transformers takes the one of the model."""
    found = recipe(tmp_path, {"size": 224}, model_type="resnet")
    assert (found.short_side, found.interpolation, found.notes) == (256, "bicubic", ())
    assert recipe(tmp_path, {"size": 224}, model_type=["resnet"]).interpolation == "bilinear"


def test_file_and_hash_are_recorded(tmp_path: Path) -> None:
    found = recipe(tmp_path, {"image_processor_type": "ViTImageProcessor"}).to_dict()
    assert found["file"] == str(tmp_path / "preprocessor_config.json")
    assert len(found["sha256"]) == 64


# ---------------------------------------------------------------------------------------------------- never silent


@pytest.mark.parametrize(
    ("record", "notes"),
    [
        (
            {"size": {"height": 96, "width": 128}},
            ["preprocessor_config.json names no processor and does not say resample, image_mean, image_std: the "
             "ImageNet default is taken for them"],
        ),
        (
            {"image_processor_type": "OddImageProcessor", "size": 8, "resample": 2, "image_mean": 0.5, "image_std": 0.5,
             "size_divisor": 32, "_private": 1, "do_sharpen": False, "do_reduce_labels": True},
            ["preprocessor_config.json: OddImageProcessor is not known here, its keys are read as most processors read "
             "them", "preprocessor_config.json: size_divisor passed over; compare the pixels if an answer looks wrong"],
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 50}},
            ["preprocessor_config.json cuts nothing out, so that pictures keep their proportions: here the centre of "
             "the shorter side's length is cut out"],
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "do_resize": False},
            ["preprocessor_config.json resizes nothing (do_resize): pictures are stretched to the model's size"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_a_note(record: dict[str, Any], notes: list[str], tmp_path: Path) -> None:
    assert list(recipe(tmp_path, record).notes) == notes


VIT = {"image_processor_type": "ViTImageProcessor"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"do_thumbnail": True},
            "'do_thumbnail' in {file} is true, and no recipe has such a step\n  known   do_resize, do_center_crop, "
            "do_rescale, do_normalize, do_flip_channel_order\n  next    prepare the array yourself and call "
            "Explainer.explain, or leave the step out: --preprocess FILE",
        ),
        (
            {**VIT, "do_pad": True},
            "'do_pad' in {file} is true, and no recipe has such a step\n  known   do_resize, do_center_crop, "
            "do_rescale, do_normalize, do_flip_channel_order\n  next    prepare the array yourself and call "
            "Explainer.explain, or leave the step out: --preprocess FILE",
        ),
        (
            {**VIT, "size": {"shortest_edge": 32, "longest_edge": 64}},
            "'size' in {file} is {\"shortest_edge\": 32, \"longest_edge\": 64}\n"
            "  known   height and width, or shortest_edge alone, are what a recipe can do" + CORRECT,
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 24, "width": 24}},
            "'size' in {file} is {\"height\": 24, \"width\": 24}\n"
            "  known   this processor takes a shortest_edge" + CORRECT,
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 24, "do_center_crop": True, "crop_size": 20},
            "'crop_size' in {file} is 20\n  known   this processor has cut 24 x 24 pixels by then" + CORRECT,
        ),
        (
            {**VIT, "do_center_crop": True},
            "'do_center_crop' in {file} is true, and there is no 'crop_size'\n  known   height and width" + CORRECT,
        ),
        (
            {**VIT, "do_center_crop": True, "crop_size": {"shortest_edge": 3}},
            "'crop_size' in {file} is {\"shortest_edge\": 3}\n  known   height and width" + CORRECT,
        ),
        (
            {**VIT, "image_mean": [0.1, 0.2, 0.3, 0.4]},
            "'image_mean' in {file} is [0.1, 0.2, 0.3, 0.4]\n  known   one number, or one for each of three channels"
            + CORRECT,
        ),
        ({"image_processor_type": 3}, "'image_processor_type' in {file} is 3\n  known   a word" + CORRECT),
        ({**VIT, "size": "224"}, "'size' in {file} is \"224\"\n  known   one number of pixels, or height and width"
         + CORRECT),
        ({**VIT, "resample": 2.5}, "'resample' in {file} is 2.5\n"
         "  known   0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming" + CORRECT),
        ({**VIT, "rescale_factor": 10**400}, "'rescale_factor' in {file} is 1" + 76 * "0" + "...\n"
         "  known   a finite number" + CORRECT),
    ],
    ids=lambda v: json.dumps(v)[:70] if isinstance(v, dict) else "",
)  # fmt: skip
def test_what_a_file_may_not_say(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        recipe(tmp_path, record)
    assert str(error.value) == message.replace("{file}", repr(str(tmp_path / "preprocessor_config.json")))


def test_the_user_can_go_on_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        choose(path=tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="is not JSON"):
        choose(path=tmp_path / "model.onnx", preprocess="size=20")
    found = choose(path=tmp_path / "model.onnx", preprocess="imagenet,size=20")
    assert (found.size, found.mean) == ((20, 20), IMAGENET_MEAN)
    (note,) = found.notes
    assert note == f"preprocessing passed over: {str(tmp_path / 'preprocessor_config.json')!r} is not JSON"
