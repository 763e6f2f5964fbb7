"""``config.json`` as timm writes it: the pixels of timm's own transform for evaluation, and its class names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers_pixels
from PIL import Image

from fgcam_onnx import models
from fgcam_onnx.errors import ModelError
from fgcam_onnx.labels import find_labels
from fgcam_onnx.preprocessing import Preprocessing, choose

CORRECT = "\n  next    correct it, or say it yourself: --preprocess imagenet"
BASE = {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
CASES: dict[str, dict[str, Any]] = {
    "nothing said": {"architecture": "resnet18"},
    "resnet": {
        **BASE,
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bilinear",
    },
    "no crop": {**BASE, "crop_pct": 1.0},
    "odd crops": {**BASE, "input_size": [3, 61, 61], "crop_pct": 0.9},
    "not square": {**BASE, "input_size": [3, 60, 96], "crop_pct": 0.875},
    "not square, upright": {**BASE, "input_size": [3, 97, 50], "crop_pct": 0.77, "interpolation": "bilinear"},
    "squash": {**BASE, "crop_mode": "squash", "crop_pct": 0.9},
    "squash, not square": {**BASE, "input_size": [3, 50, 80], "crop_mode": "squash", "crop_pct": 0.83},
    "border": {**BASE, "crop_mode": "border", "crop_pct": 1.0},
    "border, cut": {**BASE, "crop_mode": "border", "crop_pct": 0.8},
    "border, not square": {**BASE, "input_size": [3, 51, 80], "crop_mode": "border", "crop_pct": 0.95},
    "nearest": {**BASE, "interpolation": "nearest"},
    "lanczos": {**BASE, "interpolation": "lanczos", "crop_pct": 0.7},
}


def written(tmp_path: Path, cfg: dict[str, Any], **top: Any) -> Path:
    record = {"architecture": "resnet18", "num_classes": 3, **top, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(record))
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def timm_data() -> Any:
    sys.path.insert(0, str(Path(__file__).parent / "torch_reference"))
    try:
        pytest.importorskip("torch")
        from torchvision_import import import_torchvision

        import_torchvision()
        pytest.importorskip("timm")
        from timm import data

        return data
    finally:
        sys.path.pop(0)


def test_every_pixel_beside_timm(
    timm_data: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """``create_transform(**resolve_data_config(pretrained_cfg), is_training=False)``."""
    photo = Image.open(models.path("pictures/fish-sailboat.png")).convert("RGB")
    images = [*transformers_pixels.pictures(), photo, photo.resize((641, 427))]
    worst = 0.0
    for case, cfg in CASES.items():
        ours = choose(path=written(tmp_path, cfg))
        assert (ours.source, ours.notes) == ("config.json (timm)", ())
        theirs = timm_data.create_transform(**timm_data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
        for image in images:
            want = theirs(image).numpy()
            x = ours.apply(image)[0]
            np.testing.assert_allclose(x, want, atol=2e-6, rtol=1e-6, err_msg=case)
            worst = max(worst, float(np.abs(x - want).max()))
    record_property("summary", f"largest difference to timm's transforms: {worst:.1e}")


def test_the_old_form(tmp_path: Path) -> None:
    """Everything beside ``architecture``, as timm wrote it before pretrained_cfg."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "num_features": 8, **BASE, "crop_pct": 1}))
    found = choose(path=tmp_path / "model.onnx")
    assert (found.size, found.short_side, found.mean) == ((64, 64), 64, (0.5, 0.4, 0.3))
    assert found.file == str(tmp_path / "config.json")


def test_a_file_of_timm_wrapped_by_transformers(tmp_path: Path) -> None:
    """TimmWrapperImageProcessor keeps the same record under another name."""
    record = {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": BASE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    assert choose(path=tmp_path / "model.onnx").source == "preprocessor_config.json (timm)"


def test_a_model_of_the_size_for_tests_has_the_share_for_tests(tmp_path: Path) -> None:
    cfg = {**BASE, "crop_pct": 0.8, "test_input_size": [3, 96, 96], "test_crop_pct": 1.0}

    def fixed(side: int | None) -> Preprocessing:
        return choose(path=written(tmp_path, cfg), input_shape=(1, 3, side, side))

    assert [fixed(side).short_side for side in (None, 64, 96, 32)] == [80, 80, 96, 40]
    assert fixed(96).source == "config.json (timm)"
    assert fixed(32).source == "config.json (timm) (size 32x32 from the model)"


def test_one_channel(tmp_path: Path) -> None:
    path = written(tmp_path, {"input_size": [1, 28, 28], "mean": [0.1], "std": [0.3]})
    assert choose(path=path, input_shape=("n", 1, 28, 28)).color == "GRAY"
    with pytest.raises(ModelError, match=r"'mean' in .* is \[0\.1, 0\.2, 0\.3\]\n  known   one number\n"):
        choose(path=written(tmp_path, {"input_size": [1, 28, 28], "mean": [0.1, 0.2, 0.3]}), input_shape=(1, 1, 28, 28))


def test_what_stands_before_it(tmp_path: Path) -> None:
    path = written(tmp_path, BASE)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    assert choose(path=path).source == "preprocessor_config.json (ViTImageProcessor)"
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "architectures": ["ResNet"]}')
    assert choose(path=path).source == "the ImageNet default"


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ([1], "'pretrained_cfg' in {file} is not a JSON object\n  known   it is a list"),
        ({"input_size": 224}, "'input_size' in {file} is 224\n  known   channels, height and width: 3, 224, 224"),
        ({"input_size": [4, 8, 8]}, "'input_size' in {file} is [4, 8, 8]\n"
                                    "  known   channels, height and width: 3, 224, 224"),
        ({"input_size": [3, 8, 0]}, "'input_size' in {file} is [3, 8, 0]\n  known   a number of pixels from 1 to 8192"),
        ({"crop_mode": "circle"}, "'crop_mode' in {file} is \"circle\"\n  known   center, squash, border"),
        ({"crop_pct": 7}, "'crop_pct' in {file} is 7\n  known   a share from 0.1 to 1"),
        ({"interpolation": "random"}, "'interpolation' in {file} is \"random\"\n"
                                      "  known   nearest, box, bilinear, hamming, bicubic, lanczos"),
        ({"mean": "0.5"}, "'mean' in {file} is \"0.5\"\n  known   a finite number"),
        ({"mean": [0.1, 0.2, 0.3, 0.4]}, "'mean' in {file} is [0.1, 0.2, 0.3, 0.4]\n"
                                         "  known   one number, or one for each of three channels"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(cfg: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        choose(path=written(tmp_path, cfg))
    assert str(error.value) == message.replace("{file}", repr(str(tmp_path / "config.json"))) + CORRECT


# ---------------------------------------------------------------------------------------------------- labels

SYNSETS = {"n01440764": "tench, Tinca tinca", "n02085620": "Chihuahua"}


@pytest.mark.parametrize(
    ("top", "want"),
    [
        ({"label_names": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"labels": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"label_names": {"2": "c", "0": "a", "1": "b"}}, ["a", "b", "c"]),
        (
            {"label_names": ["n01440764", "n02085620", "x"], "label_descriptions": SYNSETS},
            ["n01440764 tench, Tinca tinca", "n02085620 Chihuahua", "x"],
        ),
        (
            {"label_names": ["/m/1", "/m/2", "cat"], "label_descriptions": {"/m/1": "Person", "cat": "cat"}},
            ["Person, /m/1", "/m/2", "cat"],
        ),
        ({"id2label": {"0": "x", "1": "y", "2": "z"}, "label_names": ["a", "b", "c"]}, ["x", "y", "z"]),
    ],
    ids=lambda v: json.dumps(v)[:50],
)
def test_the_names_of_timm(top: dict[str, Any], want: list[str], tmp_path: Path) -> None:
    notes: list[str] = []
    assert find_labels(written(tmp_path, BASE, **top), {}, 3, notes) == (want, "config.json")
    assert notes == []


def test_names_inside_pretrained_cfg(tmp_path: Path) -> None:
    assert find_labels(written(tmp_path, {**BASE, "label_names": ["a", "b", "c"]}), {}, 3) == (
        ["a", "b", "c"], "config.json",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ({}, None),
        ({"label_names": {"0": "a", "2": "c", "3": "d"}}, "does not number its labels 0, 1, 2 and on"),
        ({"label_names": ["a", "b"]}, "has 2 labels, the model has 3 classes"),
        ({"label_names": "abc"}, "is not a list of labels"),
        ({"label_names": [1, 2, 3], "label_descriptions": {"1": "x"}}, "is not a list of labels"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_a_note(top: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    notes: list[str] = []
    assert find_labels(written(tmp_path, BASE, **top), {}, 3, notes) is None
    file = repr(str(tmp_path / "config.json"))
    assert notes == ([f"labels passed over: {file} {said}"] if said else [])
