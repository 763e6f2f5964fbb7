"""A recipe: how a picture becomes the array that a model takes. Where recipes come from: ``fgcam_onnx.preprocessing``.

One formula for all of them, ``v`` the pixel in 0..255, channel by channel in the stated colour order::

    x = (v * scale - mean) / std
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fgcam_onnx.errors import InputError, OptionError, nearest

__all__ = [
    "COLORS",
    "CROP_ROUNDINGS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "LAYOUTS",
    "RESIZES",
    "Picture",
    "Preprocessing",
    "channels_of",
    "choice",
    "number",
    "pair",
    "rescaled",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRETCH, SHORT_SIDE, STRETCH_CROP = "stretch", "short_side_then_center_crop", "stretch_then_center_crop"
COVER_CROP, FIT_PAD, CROP = "cover_then_center_crop", "fit_then_pad", "center_crop"
RESIZES = (STRETCH, SHORT_SIDE, STRETCH_CROP, COVER_CROP, FIT_PAD, CROP)
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
COLORS = ("RGB", "BGR", "GRAY")
LAYOUTS = ("NCHW", "NHWC")
CROP_ROUNDINGS = ("half_even", "down")
LARGEST_SIDE = 8192
Picture = Image.Image | npt.NDArray[np.uint8]
Side = int | tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """A recipe. Build one through :func:`fgcam_onnx.preprocessing.choose`; the constructor checks every field.

    ``size`` is (height, width) in pixels. ``resize`` is what comes before it, and ``short_side`` how large the picture
    is then, in pixels: one number, or height and width:

    - ``stretch``: to ``size``, whatever the picture's proportions
    - ``short_side_then_center_crop``: the shorter side becomes ``short_side``, the centre is cut out
    - ``stretch_then_center_crop``: to ``short_side`` (height and width), the centre is cut out
    - ``cover_then_center_crop``: as small as it can be and still cover ``short_side``, the centre is cut out
    - ``fit_then_pad``: as large as it can be and still fit into ``short_side``, edges of colour ``fill`` around it
    - ``center_crop``: not resized, the centre is cut out

    ``crop_rounding``: where the crop starts if an odd number of pixels goes: "half_even" as in torchvision, "down" as
    in transformers. ``fill``: the colour around a picture smaller than its crop, RGB from 0 to 255; None lets the
    picture grow until the crop fits. ``mean`` and ``std`` hold a value for each channel, in the order of ``color``.
    ``layout`` is the array's, "NCHW" or "NHWC". ``source``, ``file``, ``sha256`` and ``notes``: where the recipe is
    from, and what is to be said about it.

    Raises :class:`OptionError` naming the field that is out of range.
    """

    size: tuple[int, int] = (224, 224)
    resize: str = STRETCH
    short_side: Side | None = None
    interpolation: str = "bilinear"
    color: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    layout: str = "NCHW"
    crop_rounding: str = "half_even"
    fill: tuple[int, ...] | None = None
    source: str = "options"
    file: str | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "size", pair("size", self.size))
        for name, known in _CHOICES.items():
            put(self, name, choice(name, getattr(self, name), known))
        put(self, "scale", number("scale", self.scale, zero=False))
        put(self, "mean", _numbers("mean", self.mean, self.channels))
        put(self, "std", _numbers("std", self.std, self.channels, zero=False))
        put(self, "short_side", self._before(self.short_side))
        put(self, "fill", _fill(self.fill, default=(0, 0, 0) if self.resize == FIT_PAD else None))
        put(self, "notes", tuple(self.notes))

    def _before(self, side: Any) -> Side | None:
        """``short_side`` as the kind of resizing takes it."""
        if self.resize in (STRETCH, CROP):
            return None
        if self.resize == SHORT_SIDE:
            return min(self.size) if side is None else _side("short_side", side)
        h, w = self.size if side is None else pair("short_side", side)
        return h if h == w else (h, w)

    @property
    def channels(self) -> int:
        """1 for GRAY, else 3."""
        return 1 if self.color == "GRAY" else 3

    # --- from a picture to x ------------------------------------------------------------------------------------

    def apply(self, picture: Picture) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """``x``, float32 ``[c, h, w]`` or ``[h, w, c]`` as the layout says, and what it shows, uint8 RGB ``[h, w, 3]``.

        Takes a Pillow picture of any mode, or a uint8 array ``[H, W, 3]``. Raises :class:`InputError` for another
        array, and for a picture so long and thin that it would have to grow beyond all measure before the crop.
        """
        image = _as_image(picture)
        new_h, new_w, top, left = self._frame(image.height, image.width)
        if image.size != (new_w, new_h):
            image = image.resize((new_w, new_h), Image.Resampling[self.interpolation.upper()])
        if (top, left, new_h, new_w) != (0, 0, *self.size):
            image = self._cut(image, top, left, *self.size)
        shown = np.asarray(image)
        if self.color == "GRAY":
            grey = np.asarray(image.convert("L"))[..., None]
            pixels, shown = grey, np.repeat(grey, 3, axis=-1)
        else:
            pixels = shown[..., ::-1] if self.color == "BGR" else shown
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x if self.layout == "NHWC" else x.transpose(2, 0, 1)), shown

    def view(self, picture: Picture, side: int = 672) -> npt.NDArray[np.uint8]:
        """What the model sees of a picture, in the picture's own proportions and sharpness: uint8 RGB ``[h, w, 3]``.

        A map stretched over this lies where it belongs. The longer side is at most ``side`` pixels, and no pixel is
        made up: a small picture stays small.
        """
        image = _as_image(picture)
        new_h, new_w, top, left = self._frame(image.height, image.width)
        sx, sy = image.width / new_w, image.height / new_h  # pixels of the picture in one of the resized picture
        width, height = self.size[1] * sx, self.size[0] * sy
        share = min(1.0, side / max(width, height))
        w, h = max(1, round(width * share)), max(1, round(height * share))
        # the part of the window that lies on the picture, in pixels of the picture and then in pixels of the view
        x0, x1 = max(0.0, left * sx), min(float(image.width), left * sx + width)
        y0, y1 = max(0.0, top * sy), min(float(image.height), top * sy + height)
        u0, u1 = (round((x - left * sx) / width * w) for x in (x0, x1))
        v0, v1 = (round((y - top * sy) / height * h) for y in (y0, y1))
        part = image.resize((max(1, u1 - u0), max(1, v1 - v0)), Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))
        if part.size != (w, h):
            part = self._cut(part, -v0, -u0, h, w)
        return np.asarray(part.convert("L").convert("RGB") if self.color == "GRAY" else part)

    def boxes(self, boxes: Iterable[Sequence[float]], h: int, w: int) -> list[tuple[float, float, float, float]]:
        """Boxes (x1, y1, x2, y2) of a picture of ``h`` x ``w`` pixels where they are in the model's input.

        Cut at the edges of what the model sees; a box that it does not see at all is left out.
        """
        new_h, new_w, top, left = self._frame(h, w)
        found = []
        for x1, y1, x2, y2 in boxes:
            u1, u2 = (min(max(x * new_w / w - left, 0.0), float(self.size[1])) for x in (x1, x2))
            v1, v2 = (min(max(y * new_h / h - top, 0.0), float(self.size[0])) for y in (y1, y2))
            if u1 < u2 and v1 < v2:
                found.append((u1, v1, u2, v2))
        return found

    def _cut(self, image: Image.Image, top: int, left: int, h: int, w: int) -> Image.Image:
        """``h`` x ``w`` pixels from (top, left) on, which may lie outside the picture."""
        if top >= 0 and left >= 0 and top + h <= image.height and left + w <= image.width:
            return image.crop((left, top, left + w, top + h))
        canvas = Image.new("RGB", (w, h), self.fill or (0, 0, 0))
        canvas.paste(image, (-left, -top))
        return canvas

    def _frame(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Height and width to resize a picture to, then top and left of the part that the model sees.

        Top or left is negative where that part is larger than the resized picture.
        """
        new_h, new_w = self._resized(h, w)
        grow = max(self.size[0] / new_h, self.size[1] / new_w)
        if grow > 1 and self.fill is None:  # the crop must fit into what it is cut from
            new_h, new_w = math.ceil(new_h * grow - 1e-9), math.ceil(new_w * grow - 1e-9)
        if new_h * new_w > max(LARGEST_SIDE**2, h * w):
            raise InputError(
                f"a picture of {h} x {w} pixels would grow to {new_h} x {new_w} before its centre is cut out",
                next='stretch it instead: resize="stretch"',
            )
        return new_h, new_w, self._start(new_h, self.size[0]), self._start(new_w, self.size[1])

    def _resized(self, h: int, w: int) -> tuple[int, int]:
        if self.resize == STRETCH:
            return self.size
        if self.resize == CROP:
            return h, w
        assert self.short_side is not None
        if isinstance(self.short_side, int) and self.resize == SHORT_SIDE:
            side = self.short_side  # the longer side is cut to a whole pixel, as torchvision and transformers do
            return (side, max(1, side * w // h)) if h <= w else (max(1, side * h // w), side)
        to = pair("short_side", self.short_side)
        if self.resize == STRETCH_CROP:
            return to
        ratios = (h / to[0], w / to[1])
        ratio = min(ratios) if self.resize == COVER_CROP else max(ratios)
        return max(1, round(h / ratio)), max(1, round(w / ratio))

    def _start(self, have: int, want: int) -> int:
        """The first pixel of a centred window of ``want`` pixels."""
        extra = have - want
        if self.crop_rounding == "down":
            return extra // 2
        return round(extra / 2) if extra >= 0 else -(-extra // 2)

    # --- in words -----------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """One line for people: geometry, colour order, arithmetic, source."""
        known = {1.0: "v", 1 / 255: "v/255", 1 / 127.5: "v/127.5"}
        scale = next((text for value, text in known.items() if math.isclose(self.scale, value, rel_tol=1e-4)), None)
        scale = scale or f"v*{self.scale:.6g}"
        plain = not any(self.mean) and all(s == 1 for s in self.std)
        sum_ = scale if plain else f"({scale} - {_list(self.mean)}) / {_list(self.std)}"
        return f"{self._geometry()} ({self.interpolation}), {self.color}, {sum_}, {self.layout}; from {self.source}"

    def _geometry(self) -> str:
        to = "x".join(map(str, self.size))
        side = self.short_side
        before = "" if side is None else "x".join(map(str, pair("short_side", side)))
        return {
            STRETCH: f"stretched to {to}",
            SHORT_SIDE: f"shorter side to {side}, centre {to}",
            STRETCH_CROP: f"stretched to {before}, centre {to}",
            COVER_CROP: f"resized to cover {before}, centre {to}",
            FIT_PAD: f"resized to fit {before}, padded to {to} with {_list(self.fill or (0,))}",
            CROP: f"not resized, centre {to}",
        }[self.resize]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; as the metadata key ``preprocessing`` they give the same recipe back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_CHOICES = {
    "resize": RESIZES,
    "interpolation": INTERPOLATIONS,
    "color": COLORS,
    "layout": LAYOUTS,
    "crop_rounding": CROP_ROUNDINGS,
}


# ---------------------------------------------------------------------------------------------------- checks


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """The word of ``known`` that ``value`` is, whatever its letter case.

    Raises :class:`OptionError` where it is none of them.
    """
    if isinstance(value, str):
        for word in known:
            if word.lower() == value.lower().replace("-", "_"):
                return word
    raise OptionError(f"{name} is {value!r}", known=", ".join(known), next=nearest(str(value), known) or None)


def _side(name: str, value: Any) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE:
        return int(value)
    raise OptionError(f"{name} is {value!r}", known=f"a number of pixels from 1 to {LARGEST_SIDE}")


def pair(name: str, value: Any) -> tuple[int, int]:
    """Height and width from one number of pixels or two.

    Raises :class:`OptionError`.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        value = (value, value)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return _side(name, value[0]), _side(name, value[1])
    raise OptionError(f"{name} is {value!r}", known="one number of pixels, or height and width")


def number(name: str, value: Any, *, zero: bool = True) -> float:
    """A finite number.

    Raises :class:`OptionError`.
    """
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # an int of 400 digits
            found = math.inf
        if math.isfinite(found) and (zero or found != 0):
            return found
    raise OptionError(f"{name} is {value!r}", known="a finite number" if zero else "a finite number other than 0")


def _numbers(name: str, value: Any, channels: int, *, zero: bool = True) -> tuple[float, ...]:
    values = list(value) if isinstance(value, (tuple, list, np.ndarray)) else [value]
    numbers = tuple(number(name, v, zero=zero) for v in values)
    if len(numbers) == 1:
        numbers *= channels
    if len(numbers) != channels:
        raise OptionError(f"{name} has {len(numbers)} values for {channels_of(channels)}")
    return numbers


def _fill(value: Any, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is None:
        return default
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    known = "one number from 0 to 255, or three for red, green and blue"
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and 0 <= v <= 255 for v in values)
    if not whole or len(values) not in (1, 3):
        raise OptionError(f"fill is {value!r}", known=known)
    return tuple(int(v) for v in values) * (3 if len(values) == 1 else 1)


def rescaled(side: Side, old: Sequence[int], new: Sequence[int]) -> Side:
    """What comes before the crop keeps its proportion to the crop, where that changes from ``old`` to ``new``."""
    if isinstance(side, int):
        return max(1, round(side * min(new) / min(old)))
    h, w = (max(1, round(s * n / o)) for s, n, o in zip(side, new, old, strict=True))
    return h, w


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.size:
        return Image.fromarray(np.ascontiguousarray(picture))
    raise InputError(
        f"a picture has to be uint8 [H, W, 3], this array is {picture.dtype} {list(picture.shape)}",
        next="fgcam_onnx.imaging.read opens a file",
    )


def channels_of(count: int) -> str:
    """``3 channels``, ``1 channel``."""
    return "1 channel" if count == 1 else f"{count} channels"


def _list(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.6g}"
    return f"[{', '.join(f'{v:.6g}' for v in values)}]"
