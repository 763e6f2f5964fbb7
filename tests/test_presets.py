"""``--preprocess``: presets, words and files, what they lie over, and what they may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgcam_onnx.errors import FgcamError, ModelError, OptionError
from fgcam_onnx.preprocessing import IMAGENET_MEAN, IMAGENET_STD, choose
from fgcam_onnx.presets import PRESETS, in_words, read

PIXELS = np.random.default_rng(8).integers(0, 256, (9, 7, 3), dtype=np.uint8)
OWN = {"preprocessing": json.dumps({"size": 64, "resize": "short_side_then_center_crop", "short_side": 80,
                                    "color": "BGR", "scale": 1, "mean": [1, 2, 3], "std": [4, 5, 6]})}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "by_hand"),
    [
        ("torch", lambda v: (v / 255 - IMAGENET_MEAN) / IMAGENET_STD),
        ("imagenet", lambda v: (v / 255 - IMAGENET_MEAN) / IMAGENET_STD),
        ("tf", lambda v: v / 127.5 - 1),
        ("inception", lambda v: v / 127.5 - 1),
        ("caffe", lambda v: v[..., ::-1] - [103.939, 116.779, 123.68]),
        ("unit", lambda v: v / 255),
        ("none", lambda v: v),
    ],
)
def test_presets_by_hand(preset: str, by_hand: Any) -> None:
    recipe = choose(preprocess=preset, input_shape=(1, 9, 7, 3), layout="NHWC")
    want = by_hand(PIXELS.astype(np.float64))
    np.testing.assert_allclose(recipe.apply(PIXELS)[0], want, atol=2e-5)
    assert recipe.source == f"--preprocess {preset} over the ImageNet default"


def test_every_preset_is_tested() -> None:
    assert list(PRESETS) == ["imagenet", "torch", "tf", "inception", "caffe", "unit", "none"]


def test_a_preset_leaves_the_geometry_and_imagenet_does_not() -> None:
    kept = choose(preprocess="tf", metadata=OWN)
    assert (kept.size, kept.short_side, kept.color, kept.mean) == ((64, 64), 80, "BGR", (1, 1, 1))
    assert kept.source == "--preprocess tf over the model's metadata"
    whole = choose(preprocess="ImageNet", metadata=OWN)
    assert (whole.size, whole.resize, whole.short_side, whole.color) == ((64, 64), "stretch", None, "RGB")


def test_another_kind_of_resizing_over_a_source_that_states_both_sides() -> None:
    both = {"size": [20, 30], "resize": "stretch_then_center_crop", "short_side": [24, 40]}
    told = {"preprocessing": json.dumps(both)}
    kind = "short_side_then_center_crop"
    assert choose(preprocess=f"resize={kind}", metadata=told).short_side == 24
    assert choose(preprocess=f"resize={kind},size=10x15", metadata=told).short_side == 12
    assert choose(preprocess="resize=stretch", metadata=told).short_side is None
    assert choose(preprocess="size=10x15", metadata=told).short_side == (12, 20)
    with pytest.raises(OptionError, match=r"short_side is \[1, 2\]"):
        choose(preprocess=f"resize={kind},short_side=1,2", metadata=told)


def test_presets_for_one_channel() -> None:
    grey = {"input_shape": ("n", 1, 28, 28)}
    assert choose(preprocess="tf", **grey).mean == (1.0,)
    for preset in ("torch", "caffe"):
        with pytest.raises(OptionError, match=r"gives 3 channels, the model takes 1"):
            choose(preprocess=preset, **grey)


# ---------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("size=224", {"size": 224}),
        ("size=224x320", {"size": [224, 320]}),
        ("size=224,320", {"size": [224, 320]}),
        ("mean=0.485,0.456,0.406,std=0.5", {"mean": [0.485, 0.456, 0.406], "std": 0.5}),
        ("scale=1/255", {"scale": 1 / 255}),
        ("scale=2/255, mean=-1", {"scale": 2 / 255, "mean": -1}),
        ("crop=224", {"size": 224, "resize": "short_side_then_center_crop"}),
        ("short_side=256,crop=224", {"size": 224, "resize": "short_side_then_center_crop", "short_side": 256}),
        ("resize=256,crop=224", {"size": 224, "resize": "short_side_then_center_crop", "short_side": 256}),
        ("resize=256x300,crop=224", {"size": 224, "resize": "stretch_then_center_crop", "short_side": [256, 300]}),
        ("resize=stretch,crop=8", {"size": 8, "resize": "stretch"}),
        ("short-side=9,Interpolation=bicubic", {"short_side": 9, "interpolation": "bicubic"}),
        ("color=bgr", {"color": "bgr"}),
        ("channel_order=BGR", {"color": "BGR"}),
        ("order=GRAY,fill=1,2,3", {"color": "GRAY", "fill": [1, 2, 3]}),
        ("layout=channels_last", {"layout": "NHWC"}),
        ("layout=NHWC,crop_rounding=down", {"layout": "NHWC", "crop_rounding": "down"}),
        ("tf,size=299", {**PRESETS["tf"], "size": 299}),
        ("preset=tf,std=2", {**PRESETS["tf"], "std": 2}),
        ("size=9,preset=tf", {**PRESETS["tf"], "size": 9}),
    ],
)
def test_words(text: str, want: dict[str, Any]) -> None:
    assert in_words(text) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caff", "--preprocess is 'caff'\n  known   a preset (imagenet, torch, tf, inception, caffe, unit, none), "
                 "key=value words, or a JSON file\n  next    did you mean 'caffe'?"),
        ("", "--preprocess is ''\n  known   a preset (imagenet, torch, tf, inception, caffe, unit, none), "
             "key=value words, or a JSON file\n  next    for example: --preprocess size=224,mean=0.5,std=0.5"),
        ("caff,size=3", "--preprocess has no preset 'caff'\n"
                        "  known   imagenet, torch, tf, inception, caffe, unit, none\n  next    did you mean 'caffe'?"),
        ("maen=3", "--preprocess has no field 'maen'\n  known   size, resize, short_side, interpolation, color, scale, "
                   "mean, std, layout, crop_rounding, fill, crop, preset\n  next    did you mean 'mean'?"),
        ("mean=a,b", "--preprocess mean is 'a,b'\n  known   numbers with commas between them"),
        ("mean=1,mean=2", "--preprocess has 'mean' twice\n  at      mean=1,mean=2"),
        ("mean=", "--preprocess has 'mean' without a value\n  at      mean="),
        ("mean=1,2,3,4", "mean has 4 values for 3 channels"),
        ("scale=1/0", "scale is '1/0'\n  known   a finite number other than 0"),
        ("size=abc", "size is 'abc'\n  known   one number of pixels, or height and width"),
        ("layout=HWCN", "layout is 'HWCN'\n  known   NCHW, NHWC\n  next    did you mean 'NHWC', 'NCHW'?"),
        ("fill=300", "fill is 300\n  known   one number from 0 to 255, or three for red, green and blue"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        choose(preprocess=text)
    assert str(error.value) == message
    assert error.value.exit_code == 2


# ---------------------------------------------------------------------------------------------------- files


def test_a_file_lies_over_the_source_and_options_over_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"preset": "unit", "mean": [0.1, 0.2, 0.3], "comment": "ours", "std": None}))
    found = choose({"scale": 2}, preprocess=file, metadata=OWN)
    assert (found.scale, found.mean, found.std, found.short_side) == (2, (0.1, 0.2, 0.3), (1, 1, 1), 80)
    assert found.source == f"options (scale) over --preprocess {file} over the model's metadata"
    assert (found.file, len(found.sha256 or "")) == (str(file), 64)
    assert read(str(file)).sha256 == found.sha256


def test_a_manifest_is_a_recipe(tmp_path: Path) -> None:
    """What a run recorded gives the same pixels again, whatever the next model says of itself, and in its layout."""
    first = choose(preprocess="caffe,interpolation=box", metadata=OWN)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({"method": "fg-grad-cam", "preprocessing": first.to_dict()}))
    again = choose(preprocess=file, input_shape=(1, None, None, 3), layout="NHWC", metadata={"preprocessing": "{}"})
    image = Image.fromarray(PIXELS)
    assert np.array_equal(again.apply(image)[0], first.apply(image)[0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "record",
    [
        {"image_processor_type": "ViTImageProcessor", "size": 32},
        {"architecture": "x", "pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "squash", "crop_pct": 1,
                                                 "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}},
    ],
    ids=["transformers", "timm"],
)  # fmt: skip
def test_a_foreign_file_is_a_whole_recipe(record: dict[str, Any], tmp_path: Path) -> None:
    """Nothing of the model's own recipe shines through."""
    file = tmp_path / "any.json"
    file.write_text(json.dumps(record))
    found = choose(preprocess=file, metadata=OWN)
    assert (found.size, found.mean, found.std, found.color) == ((32, 32), (0.5,) * 3, (0.5,) * 3, "RGB")
    assert np.array_equal(found.apply(PIXELS)[1].shape, (32, 32, 3))
    assert found.source.startswith("any.json (")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ModelError, "{file} is not JSON"),
        ("[1]", ModelError, "{file} is not a JSON object"),
        ('{"preprocessing": [1]}', ModelError, "'preprocessing' in {file} is not a JSON object"),
        ('{"maen": 1}', OptionError, "--preprocess {path} has no field 'maen'"),
        ('{"mean": [1, 2]}', OptionError, "mean has 2 values for 3 channels"),
        ('{"size": {"height": 3}}', OptionError, "size is {'height': 3}"),
        ('{"preset": ["tf"]}', OptionError, "--preprocess has no preset \"['tf']\""),
        ('{"layout": 3}', OptionError, "layout is 3"),
    ],
)  # fmt: skip
def test_files_that_make_no_sense(content: str, error: type[FgcamError], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(error) as caught:
        choose(preprocess=file)
    assert caught.value.what == message.replace("{file}", repr(str(file))).replace("{path}", str(file))
    if "values" in message or "height" in message:
        assert caught.value.at == str(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.json' cannot be read: No such file"):
        choose(preprocess=tmp_path / "none.json")


def test_a_preset_wins_over_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tf").write_text('{"mean": 9}')
    assert choose(preprocess="tf").mean == (1, 1, 1)
    assert choose(preprocess="./tf").mean == (9, 9, 9)


# ---------------------------------------------------------------------------------------------------- the model's shape


def test_a_layout_that_the_model_can_have() -> None:
    free = {"input_shape": ("n", None, None, None)}
    x = choose(preprocess="layout=NHWC,size=8", **free).apply(PIXELS)[0]
    assert x.shape == (8, 8, 3)
    assert choose(preprocess="layout=NHWC", **free).notes == (
        "layout NHWC is as stated; the graph reads its input as NCHW",
    )
    assert choose(preprocess="layout=nchw", **free).notes == ()
    assert choose({"layout": "NHWC"}, preprocess="layout=NCHW", **free).layout == "NHWC"


def test_a_layout_that_contradicts_the_model() -> None:
    with pytest.raises(OptionError) as error:
        choose(preprocess="layout=NHWC", input_shape=(1, 3, 224, 224))
    assert str(error.value) == (
        "layout NHWC contradicts the model, whose input is NCHW\n"
        "  known   its input [n, c, h, w] = [1, 3, 224, 224]; as NHWC it would have 224 channels\n"
        "  next    leave layout out: the model's own is taken"
    )


def test_a_layout_in_a_source_that_contradicts_the_model_is_a_note() -> None:
    told = {"preprocessing": json.dumps({"layout": "NCHW", "mean": 0, "std": 1})}
    found = choose(metadata=told, input_shape=(1, 8, 8, 3), layout="NHWC")
    assert (found.layout, found.notes) == (
        "NHWC", ("the model's metadata says layout NCHW, the model's input is NHWC: NHWC is taken",),
    )  # fmt: skip


def test_size_and_channels_that_contradict_the_model() -> None:
    with pytest.raises(OptionError) as error:
        choose(preprocess="size=200", input_shape=(1, 3, 224, 224))
    assert str(error.value) == (
        "size 200x200 does not fit the model\n  known   its input [n, c, h, w] = [1, 3, 224, 224]\n"
        "  next    leave size out: the model's own size is taken"
    )
    with pytest.raises(OptionError, match=r"color GRAY gives 1 channel, the model takes 3"):
        choose(preprocess="color=GRAY,mean=0,std=1", input_shape=(1, 3, 8, 8))
