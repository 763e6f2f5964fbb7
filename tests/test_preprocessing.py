"""From a picture to the model's input: the arithmetic, the sources in their order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgcam_onnx.errors import InputError, ModelError, OptionError
from fgcam_onnx.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, choose

RNG = np.random.default_rng(3)
CORRECT = "\n  next    correct it, or say it yourself: --preprocess imagenet"
KNOWN = "size, resize, short_side, interpolation, color, scale, mean, std, layout, crop_rounding, fill"
PICTURE = Image.fromarray(RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8))


# ---------------------------------------------------------------------------------------------------- arithmetic


def test_the_published_recipe_is_torchvisions() -> None:
    """Stretch, bilinear with antialias as PIL does it, /255, mean and deviation: by hand."""
    x, shown = choose().apply(PICTURE)
    want = np.asarray(PICTURE.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(shown, want)
    by_hand = (want.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert (str(x.dtype), x.shape, x.flags["C_CONTIGUOUS"]) == ("float32", (3, 224, 224), True)
    np.testing.assert_allclose(x, by_hand.transpose(2, 0, 1), atol=1e-6)


def test_every_field_off_its_default() -> None:
    recipe = Preprocessing(
        size=(20, 30), resize="stretch", interpolation="nearest", color="BGR", scale=0.5, mean=(1, 2, 3), std=(4, 5, 6),
        layout="NHWC",
    )  # fmt: skip
    x, shown = recipe.apply(PICTURE)
    assert (x.shape, shown.shape) == ((20, 30, 3), (20, 30, 3))
    np.testing.assert_allclose(x, (shown[..., ::-1] * 0.5 - [1, 2, 3]) / [4, 5, 6], rtol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(300, 400), (400, 300), (256, 256), (511, 333), (100, 1000)])
def test_short_side_and_crop_are_torchvisions(h: int, w: int) -> None:
    """Resize(256) and CenterCrop(224), as torchvision computes them."""
    picture = Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8))
    new = (int(256 * w / h), 256) if h <= w else (256, int(256 * h / w))
    left, top = round((new[0] - 224) / 2), round((new[1] - 224) / 2)
    want = picture.resize(new, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    recipe = Preprocessing(resize="short_side_then_center_crop", short_side=256)
    assert np.array_equal(recipe.apply(picture)[1], np.asarray(want))


def test_stretch_then_crop() -> None:
    recipe = Preprocessing(size=(24, 24), resize="stretch_then_center_crop", short_side=32)
    want = PICTURE.resize((32, 32), Image.Resampling.BILINEAR).crop((4, 4, 28, 28))
    assert np.array_equal(recipe.apply(PICTURE)[1], np.asarray(want))


def test_a_crop_never_leaves_the_picture() -> None:
    recipe = Preprocessing(size=(64, 20), resize="short_side_then_center_crop", short_side=24)
    picture = Image.new("RGB", (53, 37), (9, 9, 9))
    assert recipe.apply(picture)[1].shape == (64, 20, 3)
    assert (recipe.apply(picture)[1] == 9).all()


def test_a_thread_of_a_picture_is_refused_before_it_grows() -> None:
    recipe = Preprocessing(resize="short_side_then_center_crop", short_side=256)
    with pytest.raises(InputError) as error:
        recipe.apply(Image.new("RGB", (2_000_000, 1)))
    assert str(error.value) == (
        "a picture of 1 x 2000000 pixels would grow to 256 x 512000000 before its centre is cut out\n"
        '  next    stretch it instead: resize="stretch"'
    )


def test_grey_from_colour() -> None:
    recipe = Preprocessing(size=(28, 28), color="GRAY", scale=1 / 255, mean=(0.5,), std=(0.25,))
    x, shown = recipe.apply(PICTURE)
    assert (x.shape, shown.shape) == ((1, 28, 28), (28, 28, 3))
    assert (shown[..., 0] == shown[..., 2]).all()
    np.testing.assert_allclose(x[0], (shown[..., 0] / 255 - 0.5) / 0.25, atol=1e-6)


def test_takes_arrays_and_says_what_it_does_not_take() -> None:
    pixels = np.asarray(PICTURE)
    assert np.array_equal(choose().apply(pixels)[0], choose().apply(PICTURE)[0])
    with pytest.raises(InputError) as error:
        choose().apply(pixels.astype(np.float32))
    assert str(error.value) == (
        "a picture has to be uint8 [H, W, 3], this array is float32 [37, 53, 3]\n"
        "  next    fgcam_onnx.imaging.read opens a file"
    )


def test_cover_fit_and_no_resizing() -> None:
    """53 wide and 37 high: covering 40 x 20 needs 57 x 40, fitting into it 20 x 14."""
    cover = Preprocessing(size=(38, 18), resize="cover_then_center_crop", short_side=(40, 20))
    want = PICTURE.resize((57, 40), Image.Resampling.BILINEAR).crop((20, 1, 38, 39))
    assert np.array_equal(cover.apply(PICTURE)[1], np.asarray(want))
    fit = Preprocessing(size=(38, 18), resize="fit_then_pad", short_side=(40, 20), fill=(7, 8, 9))
    want = Image.new("RGB", (18, 38), (7, 8, 9))
    want.paste(PICTURE.resize((20, 14), Image.Resampling.BILINEAR).crop((1, 0, 19, 14)), (0, 12))
    assert np.array_equal(fit.apply(PICTURE)[1], np.asarray(want))
    as_it_is = Preprocessing(size=(31, 21), resize="center_crop")
    assert np.array_equal(as_it_is.apply(PICTURE)[1], np.asarray(PICTURE.crop((16, 3, 37, 34))))
    assert as_it_is.describe().startswith("not resized, centre 31x21 (bilinear)")
    assert cover.describe().startswith("resized to cover 40x20, centre 38x18")
    assert fit.describe().startswith("resized to fit 40x20, padded to 38x18 with [7, 8, 9]")


@pytest.mark.parametrize(("rounding", "starts"), [("half_even", [0, 0, 1, 2, 2]), ("down", [0, 0, 1, 1, 2])])
def test_where_a_crop_starts(rounding: str, starts: list[int]) -> None:
    """Of 0 to 4 pixels too many, an odd one goes to the left or the right as the library has it."""
    row = Image.fromarray(np.arange(5, dtype=np.uint8).repeat(3).reshape(1, 5, 3))
    for extra, start in enumerate(starts):
        recipe = Preprocessing(size=(1, 5 - extra), resize="center_crop", crop_rounding=rounding)
        assert recipe.apply(row)[1][0, 0, 0] == start


def test_a_picture_too_small_grows_or_is_padded() -> None:
    dot = Image.new("RGB", (4, 2), (100, 100, 100))
    grown = Preprocessing(size=(4, 4), resize="center_crop").apply(dot)[1]
    assert (grown == 100).all()
    padded = Preprocessing(size=(4, 4), resize="center_crop", fill=(1, 2, 3)).apply(dot)[1]
    assert (padded[[0, 3]] == (1, 2, 3)).all()
    assert (padded[1:3] == 100).all()
    assert Preprocessing(fill=7).fill == (7, 7, 7)
    assert choose({"fill": 7}).to_dict()["fill"] == [7, 7, 7]


def test_the_view_of_a_padded_picture_has_its_edges() -> None:
    """A map lies where it belongs on the edges too, and a picture keeps its sharpness between them."""
    recipe = Preprocessing(size=(20, 20), resize="fit_then_pad", fill=(9, 9, 9))
    view = recipe.view(Image.new("RGB", (200, 100), (100, 100, 100)), side=160)
    assert view.shape == (160, 160, 3)
    assert (view[:40] == 9).all()
    assert (view[120:] == 9).all()
    assert (view[40:120] == 100).all()
    upright = Preprocessing(size=(150, 20), resize="center_crop", fill=0)
    cut = upright.view(Image.new("RGB", (200, 100), (100, 100, 100)))
    assert cut.shape == (150, 20, 3)
    assert [int(cut[row, 0, 0]) for row in (24, 25, 124, 125)] == [0, 100, 100, 0]


@pytest.mark.parametrize(
    "resize",
    ["stretch", "short_side_then_center_crop", "stretch_then_center_crop", "cover_then_center_crop", "center_crop"],
)
def test_the_view_is_what_the_model_sees(resize: str) -> None:
    """A smooth picture: the view, brought to the model's size, is the model's picture."""
    yy, xx = np.mgrid[:600, :900]
    pixels = np.stack([xx / 900 * 255, yy / 600 * 255, 128 + 100 * np.sin(xx / 90)], -1).astype(np.uint8)
    side = 200 if "_then_" in resize else None
    recipe = Preprocessing(size=(160, 120), resize=resize, short_side=side)
    view = recipe.view(Image.fromarray(pixels), side=500)
    assert max(view.shape) <= 500
    small = np.asarray(Image.fromarray(view).resize((120, 160), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(small - recipe.apply(pixels)[1]).mean() < 2
    if resize == "stretch":
        assert view.shape[:2] == (333, 500)


def test_the_view_makes_no_pixels_up() -> None:
    assert choose().view(PICTURE).shape == (37, 53, 3)
    assert np.array_equal(choose().view(PICTURE), np.asarray(PICTURE))


# ---------------------------------------------------------------------------------------------------- sources


def hugging_face(tmp_path: Path, **fields: Any) -> Preprocessing:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    return choose(path=tmp_path / "model.onnx")


def test_the_order_of_the_sources(tmp_path: Path) -> None:
    own = {"preprocessing": json.dumps({"mean": [1, 1, 1], "formula": "x = ..."})}
    assert choose(path=tmp_path / "m.onnx").source == "the ImageNet default"
    assert hugging_face(tmp_path, image_mean=[0.5, 0.5, 0.5]).source == "preprocessor_config.json"
    from_metadata = choose(path=tmp_path / "m.onnx", metadata=own)
    assert (from_metadata.source, from_metadata.mean) == ("the model's metadata", (1, 1, 1))
    with_options = choose({"mean": 2, "std": None, "scale": 1}, path=tmp_path / "m.onnx", metadata=own)
    assert (with_options.mean, with_options.scale, with_options.std) == ((2, 2, 2), 1, IMAGENET_STD)
    assert with_options.source == "options (mean, scale) over the model's metadata"


def test_to_dict_as_metadata_gives_the_recipe_back() -> None:
    recipe = choose(
        {"size": (60, 80), "resize": "short-side-then-center-crop", "short_side": 90, "color": "bgr", "mean": [1, 2, 3]}
    )
    again = choose(metadata={"preprocessing": json.dumps(recipe.to_dict())})
    assert again.to_dict() | {"source": ""} == recipe.to_dict() | {"source": ""}
    assert again.source == "the model's metadata"


def test_describe() -> None:
    assert choose().describe() == (
        "stretched to 224x224 (bilinear), RGB, (v/255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], NCHW; "
        "from the ImageNet default"
    )
    recipe = choose({"short_side": 259, "size": 227, "color": "BGR", "scale": 1, "mean": (104, 117, 123), "std": 1})
    assert recipe.describe() == (
        "shorter side to 259, centre 227x227 (bilinear), BGR, (v - [104, 117, 123]) / 1, NCHW; "
        "from options (short_side, size, color, scale, mean, std) over the ImageNet default"
    )
    assert choose(input_shape=(1, 28, 28, 1), layout="NHWC").describe() == (
        "stretched to 28x28 (bilinear), GRAY, v/255, NHWC; from the plain default for one channel"
    )
    assert choose(input_shape=(1, 3, 96, 64), input_dtype="uint8").describe() == (
        "stretched to 96x64 (bilinear), RGB, v, NCHW; from the uint8 input of the model"
    )


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
             "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2},
            {"resize": "short_side_then_center_crop", "short_side": 256, "size": (224, 224), "mean": (0.5,) * 3},
        ),
        (
            {"size": 224, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3},
            {"resize": "short_side_then_center_crop", "short_side": 256, "interpolation": "bicubic"},
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.95}, {"resize": "stretch", "size": (384, 384)}),
        ({"size": {"height": 96, "width": 128}}, {"resize": "stretch", "size": (96, 128), "mean": IMAGENET_MEAN}),
        ({"size": 192}, {"resize": "stretch", "size": (192, 192)}),
        ({"size": [192, 160]}, {"resize": "stretch", "size": (192, 160)}),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, {"short_side": 256, "size": (224, 224)}),
        (
            {"size": {"height": 346, "width": 346}, "do_center_crop": True, "crop_size": {"height": 289, "width": 289}},
            {"resize": "stretch_then_center_crop", "short_side": 346, "size": (289, 289)},
        ),
        ({"do_rescale": False, "do_normalize": False}, {"scale": 1, "mean": (0, 0, 0), "std": (1, 1, 1)}),
        (
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
            {"scale": 1 / 127.5, "mean": (1,) * 3},
        ),
        ({"include_top": True, "image_std": [0.5, 0.5, 0.5]}, {"std": (0.25,) * 3}),
        ({"do_flip_channel_order": True, "do_normalize": False}, {"color": "BGR"}),
        ({"do_resize": False, "size": {"shortest_edge": 999}}, {"resize": "stretch", "size": (224, 224)}),
        ({"image_mean": 0.5, "image_std": 0.25}, {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
    ],
    ids=lambda v: json.dumps(v)[:60],
)  # fmt: skip
def test_hugging_face_fields(fields: dict[str, Any], want: dict[str, Any], tmp_path: Path) -> None:
    recipe = hugging_face(tmp_path, **fields)
    assert {key: getattr(recipe, key) for key in want} == want


@pytest.mark.parametrize(
    ("pixel", "span", "want"),
    [
        ("Bgr8", "NominalRange_0_255", ("BGR", 1.0, 0.0)),
        ("Rgb8", "Normalized_0_1", ("RGB", 1 / 255, 0.0)),
        ("Rgb8", "Normalized_1_1", ("RGB", 2 / 255, 1.0)),
    ],
)
def test_the_onnx_image_metadata(pixel: str, span: str, want: tuple[str, float, float]) -> None:
    recipe = choose(metadata={"Image.BitmapPixelFormat": pixel, "Image.NominalPixelRange": span})
    assert (recipe.color, recipe.scale, recipe.mean[0]) == want
    assert recipe.std == (1, 1, 1)
    low, high = recipe.apply(np.array([[[0] * 3, [255] * 3]], np.uint8).repeat(2, 0))[0][0, 0, [0, -1]]
    assert (round(float(low), 5), round(float(high), 5)) == {
        "NominalRange_0_255": (0, 255), "Normalized_0_1": (0, 1), "Normalized_1_1": (-1, 1)
    }[span]  # fmt: skip


def test_the_models_own_size_wins(tmp_path: Path) -> None:
    own = {"preprocessing": json.dumps({"size": 224, "resize": "short_side_then_center_crop", "short_side": 256})}
    recipe = choose(metadata=own, input_shape=(1, 3, 112, 112))
    assert (recipe.size, recipe.short_side) == ((112, 112), 128)
    assert recipe.source == "the model's metadata (size 112x112 from the model)"
    assert choose({"size": (96, 64)}, input_shape=(1, 3, 96, None)).size == (96, 64)
    assert choose(input_shape=("n", 3, 96, "w")).size == (96, 224)
    assert choose({"size": 448}, metadata=own).short_side == 512
    assert choose({"size": 448, "short_side": 450}, metadata=own).short_side == 450
    assert choose({"short_side": 259}, input_shape=(1, 3, 227, 227)).short_side == 259
    with pytest.raises(OptionError) as error:
        choose({"size": (64, 96)}, input_shape=("n", 96, 64, 3), layout="NHWC")
    assert str(error.value) == (
        "size 64x96 does not fit the model\n"
        "  known   its input [n, h, w, c] = [n, 96, 64, 3]\n"
        "  next    leave --size out: the model's own size is taken"
    )


def test_channels_have_to_fit() -> None:
    with pytest.raises(OptionError) as error:
        choose({"color": "GRAY"}, input_shape=(1, 3, 8, 8), metadata={"preprocessing": '{"mean": 0, "std": 1}'})
    assert str(error.value) == (
        "color GRAY gives 1 channel, the model takes 3\n"
        "  known   its input [n, c, h, w] = [1, 3, 8, 8]; "
        "the recipe is from options (color) over the model's metadata\n"
        "  next    --color RGB or --color BGR"
    )
    with pytest.raises(OptionError) as error:
        choose({"color": "gray"})
    assert str(error.value) == (
        "color gray makes 1 channel, and mean has 3 values\n"
        "  known   mean is from the ImageNet default\n"
        "  next    give --mean too"
    )
    assert choose({"color": "gray", "mean": 0.5, "std": 0.5}, input_shape=(None, 1, 8, 8)).mean == (0.5,)
    with pytest.raises(OptionError, match="mean has 2 values for 3 channels"):
        choose({"mean": [1, 2]})


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        (
            (1, 4, 8, 8), "NCHW",
            "the model takes 4 channels, and a picture has 1 or 3\n  known   its input [n, c, h, w] = [1, 4, 8, 8]",
        ),
        ((1, 1, 100), "NCW", "the model does not take pictures\n  known   its input [n, c, w] = [1, 1, 100]"),
        (
            (1, 3, None, 8, 8), "NCDHW",
            "the model does not take pictures\n  known   its input [n, c, d, h, w] = [1, 3, ?, 8, 8]",
        ),
    ],
)  # fmt: skip
def test_models_that_take_no_pictures(shape: tuple[int | None, ...], layout: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        choose(input_shape=shape, layout=layout)
    assert str(error.value) == message + "\n  next    make the array yourself and call Explainer.explain"


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sizes": 3}, f"no preprocessing option 'sizes'\n  known   {KNOWN}\n  next    did you mean 'size', 'resize'?"),
        ({"resize": "strech"}, "resize is 'strech'\n  known   stretch, short_side_then_center_crop, "
                               "stretch_then_center_crop, cover_then_center_crop, fit_then_pad, center_crop\n"
                               "  next    did you mean 'stretch'?"),
        ({"size": 0}, "size is 0\n  known   a number of pixels from 1 to 8192"),
        ({"size": (1, 2, 3)}, "size is (1, 2, 3)\n  known   one number of pixels, or height and width"),
        ({"scale": 0}, "scale is 0\n  known   a finite number other than 0"),
        ({"std": [1, 0, 1]}, "std is 0\n  known   a finite number other than 0"),
        ({"mean": float("nan")}, "mean is nan\n  known   a finite number"),
        ({"short_side": True}, "short_side is True\n  known   a number of pixels from 1 to 8192"),
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        choose(option)
    assert str(error.value) == message
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the model's metadata key 'preprocessing' is not JSON\n"
              "  known   Expecting property name enclosed in double quotes: line 1 column 2 (char 1)" + CORRECT),
        ("[1]", "the model's metadata key 'preprocessing' is not a JSON object\n  known   it is a list" + CORRECT),
        ('{"maen": 1}', "the model's metadata key 'preprocessing' has an unknown field 'maen'\n"
                        f"  known   {KNOWN}, source, file, sha256, notes\n"
                        "  next    did you mean 'mean'?"),
        (
            '{"size": [99999, 99999]}',
            "the model's metadata: size is 99999\n  known   a number of pixels from 1 to 8192" + CORRECT,
        ),
        ('{"mean": {"a": 1}}', "the model's metadata: mean is {'a': 1}\n  known   a finite number" + CORRECT),
        ('{"color": ["RGB"]}', "the model's metadata: color is ['RGB']\n  known   RGB, BGR, GRAY" + CORRECT),
    ],
)  # fmt: skip
def test_metadata_that_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        choose(metadata={"preprocessing": text})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "{file} is not JSON\n  known   Expecting property name enclosed in double quotes: "
              "line 1 column 2 (char 1)" + CORRECT),
        ("3", "{file} is not a JSON object\n  known   it is a int" + CORRECT),
        ('{"image_mean": ["a", 1, 2]}', '\'image_mean\' in {file} is ["a", 1, 2]\n  known   a finite number' + CORRECT),
        ('{"image_std": [1, 0, 2]}', "the recipe"),
        ('{"do_rescale": 1}', "'do_rescale' in {file} is 1\n  known   true or false" + CORRECT),
        ('{"size": {"w": 3}}', "'size' in {file} is {\"w\": 3}\n"
                            "  known   height and width, or shortest_edge alone, are what a recipe can do" + CORRECT),
        ('{"resample": 17}', "'resample' in {file} is 17\n"
                             "  known   0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming" + CORRECT),
        ('{"size": 200, "crop_pct": 0}', "'crop_pct' in {file} is 0\n  known   a share from 0.1 to 1" + CORRECT),
        ("[" * 100_000, "is not JSON"),
    ],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(text)
    with pytest.raises(ModelError) as error:
        choose(path=tmp_path / "model.onnx")
    if message == "the recipe":
        message = "preprocessor_config.json: std is 0.0\n  known   a finite number other than 0" + CORRECT
    if message.startswith("is not"):
        assert message in str(error.value)
    else:
        assert str(error.value) == message.replace("{file}", repr(str(file)))


def test_a_configuration_too_large(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ModelError, match="too large for a configuration"):
        choose(path=tmp_path / "model.onnx")
