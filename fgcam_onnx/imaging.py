"""Pictures in, pictures out: reading, resizing, colour, overlays, and the panels that people look at.

Pillow and NumPy only. Pictures are arrays ``uint8 [H, W, 3]`` in RGB order, maps are ``float32 [n, h, w]``. How a map
is shown stands here once: ReLU, then bilinear, then min-max (:func:`heat`), or the signed map over its largest
magnitude (:func:`signed`). Nothing here changes a relevance that is reported as a number.
"""

from __future__ import annotations

import functools
import io
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from fgcam_onnx.errors import ImageError, InputError, OptionError, nearest

__all__ = [
    "COLORMAPS",
    "PICTURE_ENDINGS",
    "Bar",
    "Cell",
    "Drawing",
    "Row",
    "colorize",
    "draw",
    "fit",
    "grid",
    "heat",
    "overlay",
    "panel",
    "read",
    "resize",
    "shade",
    "signed",
]

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


# ---------------------------------------------------------------------------------------------------- reading


def read(path: str | Path, content: bytes | None = None) -> Image.Image:
    """The picture in a file, upright and in RGB, 8 bits a channel.

    ``content``: the bytes of the file, where they are at hand; ``path`` is then its name in errors and not opened.

    The EXIF orientation is applied; grey, palette and CMYK pictures become RGB; 16-bit grey is divided by 257. An
    alpha channel is dropped, as the usual ``convert("RGB")`` of a serving pipeline does. Of several frames the first.

    Raises :class:`ImageError`, naming the file and the reason: missing, a folder, not a picture, cut short, too large
    (Pillow's ``MAX_IMAGE_PIXELS``), or of a kind without a fixed range (32-bit float or integer).
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path if content is None else io.BytesIO(content)) as picture:
                _refuse_bomb(path, picture.size)
                picture.load()
                return _to_rgb(path, ImageOps.exif_transpose(picture))
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError(f"there is no picture {str(path)!r}", next="check the path") from None
        except IsADirectoryError:
            raise ImageError(f"{str(path)!r} is a folder, not a picture") from None
        except UnidentifiedImageError:
            raise ImageError(
                f"{str(path)!r} is not a picture that Pillow can read",
                known=f"{_bytes(path) if content is None else len(content)} bytes",
            ) from None
        except Image.DecompressionBombError:
            raise _bomb(path, "") from None
        except Exception as error:  # a decoder meeting a hostile or broken file may raise anything
            raise ImageError(
                f"{str(path)!r} cannot be read to its end", known=f"{type(error).__name__}: {error}"
            ) from error


def _bytes(path: Path) -> str:
    return f"{path.stat().st_size}" if path.exists() else "?"


def _refuse_bomb(path: Path, size: tuple[int, int]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise _bomb(path, f" of {size[0]} x {size[1]} pixels")


def _bomb(path: Path, size: str) -> ImageError:
    return ImageError(
        f"{str(path)!r} claims to be a picture{size}: too large to open safely",
        known=f"the limit is {Image.MAX_IMAGE_PIXELS} pixels",
        next="shrink it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
    )


def _to_rgb(path: Path, picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode == "RGB":
        return picture if type(picture) is Image.Image else picture.copy()
    if mode.startswith("I;16"):
        return _from_16_bit(np.asarray(picture))
    if mode == "I":  # how some Pillow versions open a 16-bit PNG or PGM
        values = np.asarray(picture)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise _rangeless(path, "32-bit integers")
        return _from_16_bit(values)
    if mode == "F":
        raise _rangeless(path, "32-bit floats")
    if mode in ("P", "PA"):  # a palette with transparency has to pass through RGBA
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _from_16_bit(values: npt.NDArray[Any]) -> Image.Image:
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _rangeless(path: Path, kind: str) -> ImageError:
    return ImageError(
        f"{str(path)!r} holds {kind}, whose range for black and white is unknown",
        next="convert it to 8 or 16 bits a channel first",
    )


# ---------------------------------------------------------------------------------------------------- resizing


def resize(values: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[Any]:
    """Bilinear, half-pixel centres, edges clamped, no antialias: ``[n, *space] -> [n, *size]``.

    The same numbers as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``, for one, two or three
    axes of space. Written as ``a + t (b - a)``, so that a constant stays exactly constant.
    """
    for axis, length in reversed(list(enumerate(size, start=1))):
        have = values.shape[axis]
        if have == length:
            continue
        position = np.clip((np.arange(length) + 0.5) * (have / length) - 0.5, 0, have - 1)
        low = np.floor(position).astype(np.intp)
        high = np.minimum(low + 1, have - 1)
        weight = (position - low).astype(values.dtype).reshape([-1] + [1] * (values.ndim - axis - 1))
        a, b = values.take(low, axis), values.take(high, axis)
        values = a + weight * (b - a)
    return values


def heat(relevance: npt.NDArray[Any], size: Sequence[int]) -> Map:
    """ReLU, bilinear to ``size``, min-max per map: ``[n, *space] -> float32 [n, *size]`` in [0, 1]; constant: 0."""
    values = resize(np.maximum(relevance, 0, dtype=np.float32), size)
    space = tuple(range(1, values.ndim))
    low = values.min(axis=space, keepdims=True)
    span = values.max(axis=space, keepdims=True) - low
    out: Map = np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)
    return out


def signed(relevance: npt.NDArray[Any], size: Sequence[int]) -> Map:
    """Bilinear to ``size``, over the largest magnitude: float32 ``[n, *size]`` in [-1, 1]; a map of zeros stays."""
    values = resize(relevance.astype(np.float32, copy=False), size)
    peak = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    out: Map = np.divide(values, peak, out=np.zeros_like(values), where=peak > 0)
    return out


# ---------------------------------------------------------------------------------------------------- colour


def _jet(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([1.5 - np.abs(4 * v - centre) for centre in (3, 2, 1)], axis=-1).clip(0, 1)


def _gray(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([v, v, v], axis=-1)


def _bwr(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([2 * v, 1 - np.abs(2 * v - 1), 2 - 2 * v], axis=-1).clip(0, 1)


def _ember(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Black through violet and orange to pale yellow, its OKLab lightness a straight line: equal steps look equal.

    OKLab and its matrices: Bjoern Ottosson, "A perceptual color space for image processing" (2020).
    """
    lightness = 0.12 + 0.83 * v
    hue = np.deg2rad(-65 + 165 * v)
    chroma = 0.155 * np.sin(np.pi * np.clip(0.06 + 0.88 * v, 0, 1)) ** 0.8
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    out: npt.NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return out


COLORMAPS = {"jet": _jet, "ember": _ember, "gray": _gray, "bwr": _bwr}
SIGNED_COLORMAPS = ("bwr",)


@functools.cache
def _table(name: str) -> Pixels:
    """``uint8 [511, 3]``: an odd length, so that the middle of a signed map is exactly white."""
    if name not in COLORMAPS:
        raise OptionError(f"no colormap {name!r}", known=", ".join(COLORMAPS), next=nearest(name, COLORMAPS) or None)
    table: Pixels = np.rint(COLORMAPS[name](np.linspace(0, 1, 511)) * 255).astype(np.uint8)
    return table


def colorize(values: npt.ArrayLike, colormap: str = "jet") -> Pixels:
    """Values in [0, 1], any shape, to ``uint8 [..., 3]``. Outside [0, 1] they are clipped.

    Raises :class:`OptionError` on an unknown colormap.
    """
    table = _table(colormap)
    out: Pixels = table[np.rint(np.clip(values, 0, 1) * 510).astype(np.intp)]
    return out


def shade(relevance: npt.NDArray[Any], size: Sequence[int], colormap: str = "jet") -> Pixels:
    """The map in colour, ``[n, h, w] -> uint8 [n, H, W, 3]``: :func:`heat`, or :func:`signed` for a two-ended one."""
    _table(colormap)
    if colormap in SIGNED_COLORMAPS:
        return colorize(0.5 + 0.5 * signed(relevance, size), colormap)
    return colorize(heat(relevance, size), colormap)


def overlay(pictures: Pixels, colours: Pixels, alpha: float = 0.5) -> Pixels:
    """``(1 - alpha) * pictures + alpha * colours``, rounded. Both ``uint8 [..., H, W, 3]``.

    Raises :class:`OptionError` where ``alpha`` is outside [0, 1], :class:`InputError` where the shapes differ.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha is {alpha}", known="0 shows the picture alone, 1 the map alone")
    if pictures.shape != colours.shape:
        raise InputError(
            "pictures and maps differ in shape",
            known=f"pictures [..., H, W, 3] = {list(pictures.shape)}, maps [..., H, W, 3] = {list(colours.shape)}",
        )
    mixed = pictures * np.float32(1 - alpha) + colours * np.float32(alpha)
    out: Pixels = np.rint(mixed).astype(np.uint8)
    return out


# ---------------------------------------------------------------------------------------------------- panels

_PAPER, _INK, _SOFT, _FAINT, _EDGE = "#fbfaf7", "#1d1d1f", "#5c5c63", "#8e8e96", "#d9d7d0"
_MARGIN, _GAP = 36, 22
_GLYPHS = frozenset(map(chr, range(32, 127))) | frozenset("·…±“”")


@dataclass(frozen=True)
class Bar:
    """A colour scale under a map: the colormap and what is written at its left and right end."""

    colormap: str
    low: str
    high: str


@dataclass(frozen=True)
class Cell:
    """One tile: a picture ``uint8 [H, W, 3]``, the words under it, perhaps a colour scale.

    The first line of a caption of several lines stands out. ``space``: pixels to the left of the tile's column, besides
    the usual gap.
    """

    picture: Pixels
    caption: str = ""
    bar: Bar | None = None
    space: int = 0


@dataclass(frozen=True)
class Row:
    """Tiles side by side under a heading and a line of text."""

    cells: Sequence[Cell]
    heading: str = ""
    text: str = ""


@dataclass(frozen=True)
class Drawing:
    """A map made visible: its colours, those over the picture (both ``uint8 [H, W, 3]``), and its colour scale."""

    colours: Pixels
    overlay: Pixels
    bar: Bar


def draw(
    picture: Pixels,
    relevance: npt.NDArray[Any],
    *,
    colormap: str = "ember",
    alpha: float | None = None,
    cap: float = 99.5,
) -> Drawing:
    """One signed map ``[h, w]`` at the size of a picture ``uint8 [H, W, 3]``.

    A fine-grained map holds a few cells that outshine all others, so the colour scale ends at the ``cap``-th percentile
    of the map's cells; the scale says so, and 100 means the largest. Over the picture the colours glow: the picture
    turns grey, and the hotter a cell, the more of its colour is seen. With ``alpha`` it is :func:`overlay` instead.

    Raises :class:`OptionError` for a colormap, alpha or cap that makes no sense.
    """
    if not 50 <= cap <= 100:
        raise OptionError(f"cap is {cap}", known="a percentile from 50 to 100")
    _table(colormap)
    two_ended = colormap in SIGNED_COLORMAPS
    shown = np.abs(relevance) if two_ended else np.maximum(relevance, 0)
    peak = shown.max()
    top = np.percentile(shown, cap) or peak
    size = picture.shape[:2]
    clipped = np.clip(relevance, -top if two_ended else 0, top).astype(np.float32)[None]
    values = resize(clipped, size)[0]
    more = " or more" if top < peak else ""
    if two_ended:
        weight = np.abs(signed(clipped, size)[0])
        bar = Bar(colormap, f"{-np.abs(values).max():.3g}", f"{np.abs(values).max():.3g}{more}")
    else:
        weight = heat(clipped, size)[0]
        bar = Bar(colormap, f"{values.min():.3g}", f"{values.max():.3g}{more}")
    colours = shade(clipped, size, colormap)[0]
    over = _glow(picture, colours, weight) if alpha is None else overlay(picture, colours, alpha)
    return Drawing(colours, over, bar)


def _glow(picture: Pixels, colours: Pixels, weight: npt.NDArray[Any]) -> Pixels:
    """Colours over the greyed picture, the more of them the larger the weight in [0, 1]."""
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    share = weight[..., None] ** 0.8
    out: Pixels = np.rint((1 - share) * (24 + 0.75 * grey) + share * colours).astype(np.uint8)
    return out


def panel(
    picture: Pixels,
    relevance: npt.NDArray[Any],
    *,
    title: str,
    lines: Sequence[str] = (),
    footer: str = "",
    colormap: str = "ember",
    alpha: float | None = None,
    cap: float = 99.5,
    tile: int = 336,
) -> Image.Image:
    """Picture, map and overlay side by side, with a title, lines of text, a colour scale and a footer.

    ``picture`` is ``uint8 [H, W, 3]``, ``relevance`` one signed map ``[h, w]``; ``colormap``, ``alpha`` and ``cap`` as
    in :func:`draw`. The ends of the colour scale are relevance as it is in the array, per cell of the map.
    """
    shown = fit(picture, tile)
    drawn = draw(shown, relevance, colormap=colormap, alpha=alpha, cap=cap)
    cells = [Cell(shown, "picture"), Cell(drawn.colours, "relevance", drawn.bar), Cell(drawn.overlay, "overlay")]
    return grid([Row(cells)], title=title, lines=lines, footer=footer, tile=tile)


def grid(
    rows: Sequence[Row],
    *,
    title: str,
    lines: Sequence[str] = (),
    footer: str = "",
    tile: int = 240,
    width: int = 0,
) -> Image.Image:
    """Rows of tiles on light paper. ``tile`` is the longer side of a picture, in pixels; ``width`` a least width.

    Text that is too long for its line is broken (title, lines, headings, footer) or ends in an ellipsis (captions).
    """
    tiles = [[fit(cell.picture, tile) for cell in row.cells] for row in rows]
    columns = max((len(row) for row in tiles), default=0)
    widths = [max([t.shape[1] for row in tiles for t in row[c : c + 1]] + [96]) for c in range(columns)]
    spaces = [max(cell.space for row in rows for cell in row.cells[c : c + 1]) for c in range(columns)]
    inner = max(sum(widths) + sum(spaces) + _GAP * max(columns - 1, 0), width - 2 * _MARGIN, 480)

    pen = _Pen(inner)
    pen.text(title, 26, _INK, weight=0.45)
    pen.skip(2)
    for line in lines:
        pen.text(line, 15, _SOFT)
    for row, pictures in zip(rows, tiles, strict=True):
        pen.skip(20)
        if row.heading:
            pen.text(row.heading, 18, _INK, weight=0.35)
        if row.text:
            pen.text(row.text, 14, _SOFT)
        if row.heading or row.text:
            pen.skip(8)
        pen.tiles(row.cells, pictures, widths, spaces)
    if footer:
        pen.skip(16)
        pen.text(footer, 12, _FAINT)
    return pen.paint()


def fit(picture: Pixels, tile: int) -> Pixels:
    """Scaled so that the longer side is ``tile``: whole pixels for a tiny picture, smooth for all others."""
    h, w = picture.shape[:2]
    scale = tile / max(h, w)
    if scale == 1:
        return picture
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    how = Image.Resampling.NEAREST if max(h, w) <= 64 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, how))


def _plain(text: str) -> str:
    """Only the glyphs that Pillow's own font has: accents go, the rest becomes a question mark."""
    out = []
    for glyph in text:
        if glyph in _GLYPHS:
            out.append(glyph)
        else:
            bare = "".join(c for c in unicodedata.normalize("NFKD", glyph) if c in _GLYPHS)
            out.append(bare or ("" if unicodedata.combining(glyph) else " " if glyph.isspace() else "?"))
    return "".join(out)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow built without FreeType
        raise ImageError("this Pillow cannot draw text", next="install a Pillow built with FreeType, such as the wheel")
    return font


class _Pen:
    """Collects what to draw from the top down, then paints it on paper of the height that came out."""

    def __init__(self, inner: int) -> None:
        self.inner = inner
        self.y: float = _MARGIN - 6
        self.strokes: list[tuple[str, tuple[Any, ...]]] = []

    def skip(self, pixels: float) -> None:
        self.y += pixels

    def text(self, text: str, size: int, colour: str, *, weight: float = 0.0) -> None:
        for line in _wrap(_plain(text), _font(size), self.inner):
            self._write(_MARGIN, self.y, line, size, colour, weight)
            self.y += round(size * 1.36)

    def _write(self, x: float, y: float, text: str, size: int, colour: str, weight: float = 0.0) -> None:
        self.strokes.append(("text", (x, y, text, size, colour, weight)))

    def tiles(
        self, cells: Sequence[Cell], pictures: Sequence[Pixels], widths: Sequence[int], spaces: Sequence[int]
    ) -> None:
        tallest = max((p.shape[0] for p in pictures), default=0)
        x, bottom = _MARGIN, self.y + tallest
        for cell, picture, width, space in zip(cells, pictures, widths, spaces, strict=False):
            x += space
            h, w = picture.shape[:2]
            top = round(self.y + (tallest - h) / 2)
            self.strokes.append(("picture", (x, top, picture)))
            y: float = round(self.y) + tallest + 8
            paragraphs = cell.caption.split("\n") if cell.caption else []
            for i, paragraph in enumerate(paragraphs):
                first = i == 0 and len(paragraphs) > 1
                for line in _wrap(_plain(paragraph), _font(14 if first else 13), width)[:3]:
                    self._write(x, y, line, 14 if first else 13, _INK if first else _SOFT)
                    y += 18
            if cell.bar:
                y += 4
                self.strokes.append(("bar", (x, y, max(w, 96), cell.bar)))
                y += 9 + 4 + 14
            x, bottom = x + width + _GAP, max(bottom, y)
        self.y = bottom

    def paint(self) -> Image.Image:
        sheet = Image.new("RGB", (self.inner + 2 * _MARGIN, round(self.y) + _MARGIN - 6), _PAPER)
        draw = ImageDraw.Draw(sheet)
        for kind, stroke in self.strokes:
            if kind == "text":
                x, y, text, size, colour, weight = stroke
                draw.text((x, y), text, font=_font(size), fill=colour, stroke_width=weight, stroke_fill=colour)
            elif kind == "picture":
                x, y, picture = stroke
                h, w = picture.shape[:2]
                draw.rectangle((x - 1, y - 1, x + w, y + h), outline=_EDGE)
                sheet.paste(Image.fromarray(picture), (x, y))
            else:
                x, y, width, bar = stroke
                ramp = np.broadcast_to(colorize(np.linspace(0, 1, width), bar.colormap), (9, width, 3))
                draw.rectangle((x - 1, y - 1, x + width, y + 9), outline=_EDGE)
                sheet.paste(Image.fromarray(np.ascontiguousarray(ramp)), (round(x), round(y)))
                draw.text((x, y + 12), _plain(bar.low), font=_font(12), fill=_FAINT)
                draw.text((x + width, y + 12), _plain(bar.high), font=_font(12), fill=_FAINT, anchor="ra")
        return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Broken at spaces; a single word that is too long is cut with an ellipsis."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while len(word) > 1 and font.getlength(word) > width:
            word = word[:-2] + "…"
        if lines[-1]:
            lines.append(word)
        else:
            lines[-1] = word
    return lines
