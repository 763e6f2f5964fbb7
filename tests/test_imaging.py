"""Reading, resizing, colour and panels, each against a second opinion or a closed form."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgcam_onnx import imaging
from fgcam_onnx.errors import ImageError, InputError, OptionError

RNG = np.random.default_rng(7)


# ---------------------------------------------------------------------------------------------------- reading


def test_reads_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: the camera lay on its side, so 4 x 2 becomes 2 x 4."""
    pixels = RNG.integers(0, 256, (2, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(imaging.read(tmp_path / "a.png")), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert("L" if mode == "LA" else "RGB")
    picture = picture.convert("RGBA").convert("PA") if mode == "PA" else picture.convert(mode)
    file = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    picture.save(file)
    read = imaging.read(file)
    assert (read.mode, read.size) == ("RGB", (7, 5))
    if mode in ("L", "RGB", "RGBA"):
        assert np.array_equal(np.asarray(read), np.asarray(picture.convert("RGB")))


def test_palette_with_transparency_warns_nobody(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 20] + [0] * 750)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(imaging.read(tmp_path / "a.png"))[0, 0].tolist() == [200, 10, 20]


def test_16_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(imaging.read(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "32-bit floats"), (np.int32, "32-bit integers")])
def test_values_without_a_range_are_refused(dtype: type, kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70000, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError) as error:
        imaging.read(tmp_path / "a.tif")
    assert str(error.value) == (
        f"{str(tmp_path / 'a.tif')!r} holds {kind}, whose range for black and white is unknown\n"
        "  next    convert it to 8 or 16 bits a channel first"
    )


def test_missing_and_folder_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not a picture")
    for name, message in (
        ("b.jpg", f"there is no picture {str(tmp_path / 'b.jpg')!r}\n  next    check the path"),
        (".", f"{str(tmp_path)!r} is a folder, not a picture"),
        ("a.jpg", f"{str(tmp_path / 'a.jpg')!r} is not a picture that Pillow can read\n  known   13 bytes"),
    ):
        with pytest.raises(ImageError) as error:
            imaging.read(tmp_path / name)
        assert str(error.value) == message


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_a_file_cut_short_is_an_image_error(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=r"cannot be read to its end|is not a picture"):
                imaging.read(file)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 2_000_000_000])
def test_a_bomb_is_refused_without_a_warning(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too large to open safely"):
            imaging.read(tmp_path / "a.png")


@pytest.mark.parametrize("seed", range(30))
def test_noise_in_a_file_gives_a_picture_or_an_image_error(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    kind = ["PNG", "JPEG", "GIF", "TIFF", "WEBP"][seed % 5]
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(out, kind)
    data = bytearray(out.getvalue())
    for place in rng.integers(0, len(data), 12):
        data[place] = rng.integers(0, 256)
    (tmp_path / "a").write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(ImageError):
            assert imaging.read(tmp_path / "a").mode == "RGB"


# ---------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ((7, 7), (224, 224)),
        ((7, 5), (13, 31)),
        ((14, 9), (5, 4)),
        ((1, 1), (3, 2)),
        ((1, 6), (6, 1)),
        ((224, 160), (223, 161)),
        ((6,), (17,)),
        ((3, 4, 5), (6, 9, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_resize_is_torch_interpolate(
    space: tuple[int, ...], size: tuple[int, ...], dtype: type, tolerance: float
) -> None:
    """Against torch in float64: in float32 torch rounds the positions themselves, and is off by up to 5e-5."""
    torch = pytest.importorskip("torch")
    values: np.ndarray = RNG.normal(size=(2, *space)).astype(dtype)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(space)]
    exact = torch.from_numpy(values.astype(np.float64))[:, None]
    want = torch.nn.functional.interpolate(exact, size, mode=mode, align_corners=False)
    have = imaging.resize(values, size)
    assert have.dtype == dtype
    np.testing.assert_allclose(have, want[:, 0].numpy(), rtol=0, atol=tolerance)


def test_a_constant_stays_exactly_constant() -> None:
    assert np.unique(imaging.resize(np.full((1, 7, 5), 0.3, np.float32), (31, 224))).tolist() == [np.float32(0.3)]


def test_heat_by_hand() -> None:
    """[-3, 0, 4] to 6: ReLU first, then halves between the centres, then over the span."""
    have = imaging.heat(np.array([[[-3, 0, 4]]], np.float32), (1, 6))
    np.testing.assert_allclose(have[0, 0], [0, 0, 0, 0.25, 0.75, 1])


def test_heat_is_per_image_and_a_constant_gives_zeros() -> None:
    maps = np.stack([np.full((3, 3), 5.0), np.arange(9.0).reshape(3, 3), -np.ones((3, 3))]).astype(np.float32)
    have = imaging.heat(maps, (3, 3))
    assert not have[0].any()
    assert not have[2].any()
    np.testing.assert_allclose(have[1], np.arange(9).reshape(3, 3) / 8)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 3e38])
def test_heat_spans_0_to_1_at_any_magnitude(size: float) -> None:
    have = imaging.heat((np.array([[[0, 1], [0.5, -1]]]) * size).astype(np.float32), (2, 2))
    assert (have.min(), have.max()) == (0, 1)
    assert np.isfinite(have).all()


def test_signed_keeps_zero_in_the_middle() -> None:
    have = imaging.signed(np.array([[[-4, 0, 2]]], np.float32), (1, 3))
    assert have.tolist() == [[[-1, 0, 0.5]]]
    assert not imaging.signed(np.zeros((1, 2, 2), np.float32), (2, 2)).any()


# ---------------------------------------------------------------------------------------------------- colour


def test_colormap_ends_and_middles() -> None:
    for name, value, colour in (
        ("jet", 0.0, [0, 0, 128]),
        ("jet", 0.5, [128, 255, 128]),
        ("jet", 1.0, [128, 0, 0]),
        ("gray", 0.2, [51, 51, 51]),
        ("bwr", 0.0, [0, 0, 255]),
        ("bwr", 0.5, [255, 255, 255]),
        ("bwr", 1.0, [255, 0, 0]),
        ("bwr", 7.0, [255, 0, 0]),
    ):
        assert imaging.colorize(value, name).tolist() == colour, (name, value)


def test_bwr_mirrors_about_zero() -> None:
    values = np.arange(511) / 510
    assert np.array_equal(imaging.colorize(values, "bwr"), imaging.colorize(1 - values, "bwr")[..., ::-1])


def test_ember_climbs_in_even_steps_of_lightness() -> None:
    """OKLab lightness, computed back from the 8-bit colours: a straight line."""
    srgb = imaging.colorize(np.linspace(0, 1, 64), "ember") / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms.append([0.0883024619, 0.2817188376, 0.6299787005])
    lightness = np.cbrt(linear @ np.array(to_lms).T) @ [0.2104542553, 0.7936177850, -0.0040720468]
    steps = np.diff(lightness)
    assert steps.min() > 0
    line = np.linspace(lightness[0], lightness[-1], 64)
    assert np.abs(lightness - line).max() < 0.02


def test_unknown_colormap() -> None:
    with pytest.raises(OptionError) as error:
        imaging.colorize(np.zeros(2), "jets")
    assert str(error.value) == "no colormap 'jets'\n  known   jet, ember, gray, bwr\n  next    did you mean 'jet'?"
    assert error.value.exit_code == 2


def test_overlay_mixes_and_rounds() -> None:
    picture, colour = np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 201, np.uint8)
    assert imaging.overlay(picture, colour, 0.0).tolist() == [[[10, 10, 10]]]
    assert imaging.overlay(picture, colour, 1.0).tolist() == [[[201, 201, 201]]]
    assert imaging.overlay(picture, colour, 0.25).tolist() == [[[58, 58, 58]]]
    with pytest.raises(OptionError) as error:
        imaging.overlay(picture, colour, 1.5)
    assert str(error.value) == "alpha is 1.5\n  known   0 shows the picture alone, 1 the map alone"
    with pytest.raises(InputError, match="pictures and maps differ in shape"):
        imaging.overlay(picture, colour[:, :0])


def test_shade_shows_the_sign_only_where_the_colormap_can() -> None:
    r = np.array([[[-2.0, 0.0, 1.0]]], np.float32)
    assert imaging.shade(r, (1, 3), "bwr")[0, 0].tolist() == [[0, 0, 255], [255, 255, 255], [255, 128, 128]]
    assert imaging.shade(r, (1, 3), "gray")[0, 0, :, 0].tolist() == [0, 0, 255]


# ---------------------------------------------------------------------------------------------------- panels


def test_the_scale_of_a_drawing_tells_its_ends() -> None:
    """One hot cell of 401: the scale ends below it, and says so."""
    relevance = np.linspace(-1, 2, 401, dtype=np.float32).reshape(1, 401)
    relevance[0, -1] = 50
    black = np.zeros((1, 401, 3), np.uint8)
    assert imaging.draw(black, relevance).bar == imaging.Bar("ember", "0", "1.99 or more")
    assert imaging.draw(black, relevance, cap=100).bar == imaging.Bar("ember", "0", "50")
    assert imaging.draw(black, relevance, colormap="bwr").bar == imaging.Bar("bwr", "-1.99", "1.99 or more")
    assert imaging.draw(black, 1 + np.abs(relevance), cap=100).bar == imaging.Bar("ember", "1", "51")
    assert imaging.draw(black, 0 * relevance).bar == imaging.Bar("ember", "0", "0")
    alone = np.zeros((1, 401), np.float32)
    alone[0, 7] = 3
    assert imaging.draw(black, alone).bar == imaging.Bar("ember", "0", "3")
    with pytest.raises(OptionError) as error:
        imaging.draw(black, relevance, cap=12)
    assert str(error.value) == "cap is 12\n  known   a percentile from 50 to 100"


def test_a_drawing_without_cap_is_the_heatmap() -> None:
    picture = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    relevance = RNG.normal(size=(5, 6)).astype(np.float32)
    for colormap in imaging.COLORMAPS:
        drawn = imaging.draw(picture, relevance, cap=100, colormap=colormap, alpha=0.3)
        colours = imaging.shade(relevance[None], (20, 30), colormap)[0]
        if colormap != "bwr":
            colours = imaging.shade(np.maximum(relevance, 0)[None], (20, 30), colormap)[0]
        assert np.array_equal(drawn.colours, colours)
        assert np.array_equal(drawn.overlay, imaging.overlay(picture, colours, 0.3))


def test_a_glow_leaves_the_cold_grey_and_shows_the_hot_in_full() -> None:
    picture = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    drawn = imaging.draw(picture, np.array([[0, 1]], np.float32))
    assert np.array_equal(drawn.overlay[0, 1], drawn.colours[0, 1])
    assert np.ptp(drawn.overlay[0, 0].astype(int)) < 6


@pytest.mark.parametrize(
    "shape", [(1, 1), (8, 8), (28, 28), (224, 224), (500, 375), (40, 900), (900, 40), (1500, 2000)]
)
@pytest.mark.parametrize("colormap", ["jet", "bwr"])
def test_panel_of_any_shape(shape: tuple[int, int], colormap: str) -> None:
    picture = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    relevance = RNG.normal(size=(14, 14)).astype(np.float32)
    sheet = imaging.panel(picture, relevance, title="281 · tabby", lines=["one", "two"], footer="f", colormap=colormap)
    assert sheet.mode == "RGB"
    assert 480 <= sheet.width <= 1400
    assert 200 <= sheet.height <= 700


def test_panel_holds_picture_map_and_overlay_to_the_pixel() -> None:
    picture = RNG.integers(0, 256, (336, 336, 3), dtype=np.uint8)
    relevance = RNG.normal(size=(336, 336)).astype(np.float32)
    sheet = np.asarray(imaging.panel(picture, relevance, title="t"))
    drawn = imaging.draw(picture, relevance)
    top = next(y for y in range(300) if np.array_equal(sheet[y : y + 336, 36:372], picture))
    for place, tile in enumerate((picture, drawn.colours, drawn.overlay)):
        x = 36 + place * (336 + 22)
        assert np.array_equal(sheet[top : top + 336, x : x + 336], tile), place


@pytest.mark.parametrize("words", ["x" * 400, "long words " * 60, "", "ネコ naïve Łódź 🐈"])
def test_no_text_runs_off_the_paper(words: str) -> None:
    cell = imaging.Cell(np.zeros((20, 20, 3), np.uint8), words, imaging.Bar("jet", "0", words[:6]))
    row = imaging.Row([cell] * 3, heading=words, text=words)
    sheet = np.asarray(imaging.grid([row], title=words, lines=[words], footer=words, tile=120))
    paper = sheet[0, 0]
    assert (sheet[:, :12] == paper).all()
    assert (sheet[:, -12:] == paper).all()
    assert (sheet[-8:] == paper).all()


def test_glyphs_that_the_font_lacks() -> None:
    assert imaging._plain("naïve · café – ネコ") == "naive · cafe ? ??"


def test_rows_of_unequal_length_and_none() -> None:
    cell = imaging.Cell(np.zeros((20, 40, 3), np.uint8), "a")
    assert imaging.grid([imaging.Row([cell] * 3), imaging.Row([cell]), imaging.Row([])], title="t").height > 200
    assert imaging.grid([], title="t", width=900).width == 900
