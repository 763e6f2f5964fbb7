"""From a picture to the array that the model takes, and where that recipe came from.

One formula for all of them, ``v`` the pixel in 0..255, channel by channel in the stated colour order::

    x = (v * scale - mean) / std

Sources, first found first taken; single fields given as options replace those of the source:

1. options: ``--size --resize --short-side --interpolation --color --scale --mean --std``
2. the model's own metadata: the key ``preprocessing`` (a JSON object with the fields of :class:`Preprocessing`), or the
   ``Image.*`` keys of the ONNX metadata standard
3. ``preprocessor_config.json`` beside the model file (Hugging Face)
4. the published ImageNet recipe: stretched to the model's size, bilinear with antialias, /255, ImageNet mean and std

Whatever the source says, a height and width that are fixed in the model win. Nothing here is evaluated or unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fgcam_onnx.errors import InputError, ModelError, OptionError, nearest

__all__ = ["COLORS", "IMAGENET_MEAN", "IMAGENET_STD", "INTERPOLATIONS", "RESIZES", "Preprocessing", "choose"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZES = ("stretch", "short_side_then_center_crop", "stretch_then_center_crop")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
COLORS = ("RGB", "BGR", "GRAY")
LARGEST_SIDE = 8192
LARGEST_FILE = 1 << 20
T = TypeVar("T")
Picture = Image.Image | npt.NDArray[np.uint8]
_IGNORED_KEYS = ("formula", "dtype", "source", "comment")


@dataclass(frozen=True)
class Preprocessing:
    """A recipe. Build one through :func:`choose`; the constructor checks every field.

    ``size`` is (height, width) in pixels. ``short_side`` is the picture's shorter side before the crop, in pixels; for
    ``stretch_then_center_crop`` both sides become that long. ``mean`` and ``std`` hold a value for each channel, in the
    order of ``color``. ``layout`` is the model's, "NCHW" or "NHWC".

    Raises :class:`OptionError` naming the field that is out of range.
    """

    size: tuple[int, int] = (224, 224)
    resize: str = "stretch"
    short_side: int | None = None
    interpolation: str = "bilinear"
    color: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    layout: str = "NCHW"
    source: str = "options"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "size", _pair("size", self.size))
        for name, known in (("resize", RESIZES), ("interpolation", INTERPOLATIONS), ("color", COLORS)):
            put(self, name, _choice(name, getattr(self, name), known))
        _choice("layout", self.layout, ("NCHW", "NHWC"))
        channels = 1 if self.color == "GRAY" else 3
        put(self, "scale", _number("scale", self.scale, zero=False))
        put(self, "mean", _numbers("mean", self.mean, channels))
        put(self, "std", _numbers("std", self.std, channels, zero=False))
        if self.resize == "stretch":
            put(self, "short_side", None)
        else:
            put(self, "short_side", min(self.size) if self.short_side is None else _side("short_side", self.short_side))

    @property
    def channels(self) -> int:
        """1 for GRAY, else 3."""
        return 1 if self.color == "GRAY" else 3

    def apply(self, picture: Picture) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """``x``, float32 ``[c, h, w]`` or ``[h, w, c]`` as the layout says, and what it shows, uint8 RGB ``[h, w, 3]``.

        Takes a Pillow picture of any mode, or a uint8 array ``[H, W, 3]``. Raises :class:`InputError` for another
        array, and for a picture so long and thin that it would have to grow beyond all measure before the crop.
        """
        image = _as_image(picture)
        image = self._resized(image, self.size) if self.resize == "stretch" else self._cropped(image)
        shown = np.asarray(image)
        if self.color == "GRAY":
            grey = np.asarray(image.convert("L"))[..., None]
            pixels, shown = grey, np.repeat(grey, 3, axis=-1)
        else:
            pixels = shown[..., ::-1] if self.color == "BGR" else shown
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x if self.layout == "NHWC" else x.transpose(2, 0, 1)), shown

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.size == (size[1], size[0]):
            return image
        return image.resize((size[1], size[0]), Image.Resampling[self.interpolation.upper()])

    def view(self, picture: Picture, side: int = 672) -> npt.NDArray[np.uint8]:
        """What the model sees of a picture, in the picture's own proportions and sharpness: uint8 RGB ``[h, w, 3]``.

        A map stretched over this lies where it belongs. The longer side is at most ``side`` pixels, and no pixel is
        made up: a small picture stays small.
        """
        image = _as_image(picture)
        box = (0.0, 0.0, float(image.width), float(image.height))
        if self.resize != "stretch":
            new_h, new_w, top, left = self._crop_of(image.height, image.width)
            sx, sy = image.width / new_w, image.height / new_h
            box = (left * sx, top * sy, (left + self.size[1]) * sx, (top + self.size[0]) * sy)
        width, height = box[2] - box[0], box[3] - box[1]
        share = min(1.0, side / max(width, height))
        size = (max(1, round(width * share)), max(1, round(height * share)))
        inside = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        image = image.resize(size, Image.Resampling.LANCZOS, box=inside)
        return np.asarray(image.convert("L").convert("RGB") if self.color == "GRAY" else image)

    def _cropped(self, image: Image.Image) -> Image.Image:
        new_h, new_w, top, left = self._crop_of(image.height, image.width)
        image = self._resized(image, (new_h, new_w))
        return image.crop((left, top, left + self.size[1], top + self.size[0]))

    def _crop_of(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Height and width to resize to, then top and left of the crop."""
        assert self.short_side is not None
        side = self.short_side
        if self.resize == "stretch_then_center_crop":
            new_h = new_w = side
        else:  # the longer side is cut to a whole pixel, as torchvision does
            new_h, new_w = (side, side * w // h) if h <= w else (side * h // w, side)
        grow = max(self.size[0] / new_h, self.size[1] / new_w, 1.0)  # the crop must fit into what it is cut from
        if grow > 1:
            new_h, new_w = math.ceil(new_h * grow - 1e-9), math.ceil(new_w * grow - 1e-9)
        if new_h * new_w > LARGEST_SIDE**2:
            raise InputError(
                f"a picture of {h} x {w} pixels would grow to {new_h} x {new_w} before its centre is cut out",
                next='stretch it instead: resize="stretch"',
            )
        return new_h, new_w, round((new_h - self.size[0]) / 2), round((new_w - self.size[1]) / 2)

    def describe(self) -> str:
        """One line for people: geometry, colour order, arithmetic, source."""
        h, w = self.size
        how = {
            "stretch": f"stretched to {h}x{w}",
            "short_side_then_center_crop": f"shorter side to {self.short_side}, centre {h}x{w}",
            "stretch_then_center_crop": f"stretched to {self.short_side}x{self.short_side}, centre {h}x{w}",
        }[self.resize]
        known = {1.0: "v", 1 / 255: "v/255", 1 / 127.5: "v/127.5"}
        scale = next((text for value, text in known.items() if math.isclose(self.scale, value, rel_tol=1e-4)), None)
        scale = scale or f"v*{self.scale:.6g}"
        plain = not any(self.mean) and all(s == 1 for s in self.std)
        sum_ = scale if plain else f"({scale} - {_list(self.mean)}) / {_list(self.std)}"
        return f"{how} ({self.interpolation}), {self.color}, {sum_}, {self.layout}; from {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; as the metadata key ``preprocessing`` they give the same recipe back."""
        out = asdict(self)
        out.update(size=list(self.size), mean=list(self.mean), std=list(self.std))
        return out


def choose(
    options: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    input_shape: Sequence[int | str | None] = (None, 3, None, None),
    layout: str = "NCHW",
    input_dtype: str = "float32",
) -> Preprocessing:
    """The recipe for a model: the first source that there is, single fields replaced by ``options`` (None = not given).

    ``path`` is the model file, ``metadata`` its ``metadata_props``, ``input_shape`` and ``layout`` the model's.

    Raises :class:`OptionError` for an option that is unknown, out of range, or against the model's fixed size;
    :class:`ModelError` for metadata or a configuration file that is malformed, naming file and key;
    :class:`InputError` for a model that does not take pictures.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    known = [field.name for field in fields(Preprocessing) if field.name not in ("layout", "source")]
    for key in given:
        if key not in known:
            near = nearest(key, known)
            raise OptionError(f"no preprocessing option {key!r}", known=", ".join(known), next=near or None)

    channels, fixed = _picture_axes(input_shape, layout)
    found, source = _from_sources(metadata or {}, Path(path) if path is not None else None)
    if not found:
        found, source = _default(channels, input_dtype)
    if "size" in given:
        wanted = _pair("size", given["size"])
        if any(side is not None and side != want for side, want in zip(fixed, wanted, strict=True)):
            raise OptionError(
                f"size {wanted[0]}x{wanted[1]} does not fit the model",
                known=_axes(input_shape, layout),
                next="leave --size out: the model's own size is taken",
            )
    if "color" not in {**found, **given} and channels is not None:
        found["color"] = "GRAY" if channels == 1 else "RGB"

    recipe = _sized(Preprocessing(**{**_checked(found, source), "layout": layout, "source": source}), fixed, found)
    if given:
        asked = ", ".join(given)
        if "size" in given and "short_side" not in given and recipe.short_side is not None:
            given["short_side"] = _rescaled(recipe.short_side, recipe.size, _pair("size", given["size"]))
        if "short_side" in given and "resize" not in given and recipe.resize == "stretch":
            given["resize"] = "short_side_then_center_crop"
        recipe = _with_options(recipe, given, asked)
    if channels is not None and recipe.channels != channels:
        raise OptionError(
            f"color {recipe.color} gives {_channels(recipe.channels)}, the model takes {channels}",
            known=f"{_axes(input_shape, layout)}; the recipe is from {recipe.source}",
            next="--color GRAY" if channels == 1 else "--color RGB or --color BGR",
        )
    return recipe


def _sized(recipe: Preprocessing, fixed: tuple[int | None, int | None], found: Mapping[str, Any]) -> Preprocessing:
    """The recipe at the size that is fixed in the model."""
    size = (fixed[0] or recipe.size[0], fixed[1] or recipe.size[1])
    if size == recipe.size:
        return recipe
    short = None if recipe.short_side is None else _rescaled(recipe.short_side, recipe.size, size)
    had = f" (size {size[0]}x{size[1]} from the model)" if "size" in found else ""
    return replace(recipe, size=size, short_side=short, source=recipe.source + had)


def _with_options(recipe: Preprocessing, given: Mapping[str, Any], asked: str) -> Preprocessing:
    changed = dict(given)
    if (color := changed.get("color")) is not None:
        channels = 1 if _choice("color", color, COLORS) == "GRAY" else 3
        for name in ("mean", "std"):
            have = getattr(recipe, name)
            if name not in changed and len(have) != channels:
                if len(set(have)) > 1:
                    raise OptionError(
                        f"color {color} makes {_channels(channels)}, and {name} has {len(have)} values",
                        known=f"{name} is from {recipe.source}",
                        next=f"give --{name} too",
                    )
                changed[name] = have[:1]
    return replace(recipe, **changed, source=f"options ({asked}) over {recipe.source}")


def _picture_axes(shape: Sequence[int | str | None], layout: str) -> tuple[int | None, tuple[int | None, int | None]]:
    """Channels and (height, width) of the model's input; None where the model leaves them open."""
    if layout not in ("NCHW", "NHWC") or len(shape) != 4:
        raise InputError(
            "the model does not take pictures",
            known=_axes(shape, layout),
            next="make the array yourself and call Explainer.explain",
        )
    axis = {name: shape[layout.index(name)] for name in "CHW"}
    c, h, w = (side if isinstance(side, int) and side > 0 else None for side in (axis["C"], axis["H"], axis["W"]))
    if c not in (None, 1, 3):
        raise InputError(
            f"the model takes {c} channels, and a picture has 1 or 3",
            known=_axes(shape, layout),
            next="make the array yourself and call Explainer.explain",
        )
    return c, (h, w)


def _default(channels: int | None, input_dtype: str) -> tuple[dict[str, Any], str]:
    if "int" in input_dtype:  # the model scales inside its graph
        return {"scale": 1.0, "mean": 0.0, "std": 1.0}, f"the {input_dtype} input of the model"
    if channels == 1:
        return {"color": "GRAY", "mean": 0.0, "std": 1.0}, "the plain default for one channel"
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, "the ImageNet default"


# ---------------------------------------------------------------------------------------------------- sources


def _from_sources(metadata: Mapping[str, str], path: Path | None) -> tuple[dict[str, Any], str]:
    if "preprocessing" in metadata:
        return _from_own_key(metadata["preprocessing"]), "the model's metadata"
    if any(key in metadata for key in ("Image.BitmapPixelFormat", "Image.NominalPixelRange")):
        return _from_image_keys(metadata), "the model's Image metadata"
    if path is not None:
        file = path.parent / "preprocessor_config.json"
        if file.is_file():
            return _from_hugging_face(_load(file), str(file)), file.name
    return {}, ""


def _from_own_key(text: str) -> dict[str, Any]:
    where = "the model's metadata key 'preprocessing'"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not JSON", known=str(error)) from None
    if not isinstance(record, dict):
        raise ModelError(f"{where} is not a JSON object", known=f"it is a {type(record).__name__}")
    known = [field.name for field in fields(Preprocessing)]
    for key in record:
        if key not in known and key not in _IGNORED_KEYS:
            near = nearest(key, known)
            raise ModelError(f"{where} has an unknown field {key!r}", known=", ".join(known), next=near or None)
    return {key: value for key, value in record.items() if key in known and key not in ("layout", "source")}


def _from_image_keys(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The ``Image.*`` keys of ONNX's own metadata standard (docs/MetadataProps.md)."""
    out: dict[str, Any] = {}
    if (pixel := metadata.get("Image.BitmapPixelFormat")) is not None:
        colors = {"Gray8": "GRAY", "Rgb8": "RGB", "Bgr8": "BGR"}
        out["color"] = colors[_choice_in_model("Image.BitmapPixelFormat", pixel, colors)]
    span = metadata.get("Image.NominalPixelRange", "NominalRange_0_255")
    ranges = {"NominalRange_0_255": (1.0, 0.0), "Normalized_0_1": (1 / 255, 0.0), "Normalized_1_1": (2 / 255, 1.0)}
    out["scale"], out["mean"] = ranges[_choice_in_model("Image.NominalPixelRange", span, ranges)]
    out["std"] = 1.0
    return out


def _choice_in_model(key: str, value: str, known: Mapping[str, Any]) -> str:
    if value not in known:
        what = f"the model's metadata key {key!r} is {value!r}"
        raise ModelError(what, known=", ".join(known), next="give the options")
    return value


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{str(file)!r} is too large for a configuration", known=f"{file.stat().st_size} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{str(file)!r} cannot be read", known=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{str(file)!r} is not JSON", known=str(error)) from None
    if not isinstance(record, dict):
        raise ModelError(f"{str(file)!r} is not a JSON object", known=f"it is a {type(record).__name__}")
    return record


def _from_hugging_face(record: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The fields of a Hugging Face image processor. ``file`` stands in the errors."""
    config = _Config(record, file)
    out = _hugging_face_geometry(config)
    code = config.number("resample", 2)
    if code not in range(len(_RESAMPLE)):
        known = ", ".join(f"{code} {name}" for code, name in enumerate(_RESAMPLE))
        raise ModelError(f"'resample' in {file!r} is {code:g}", known=known)
    out["interpolation"] = _RESAMPLE[int(code)]

    out["scale"] = config.number("rescale_factor", 1 / 255) if config.flag("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.flag("do_normalize", True):
        mean, std = config.numbers("image_mean", IMAGENET_MEAN), config.numbers("image_std", IMAGENET_STD)
    if config.flag("rescale_offset", False):  # EfficientNet: v * scale - 1
        mean = tuple(m + 1 for m in mean)
    if config.flag("include_top", False):  # EfficientNet: divided by the deviation a second time
        std = tuple(s * s for s in std)
    out.update(mean=mean, std=std)
    if config.flag("do_flip_channel_order", False):
        out["color"] = "BGR"
    return out


_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as Pillow numbers them


def _hugging_face_geometry(config: _Config) -> dict[str, Any]:
    """``size`` is an int (a square), a shortest edge, or height and width; a centre crop may follow."""
    kind, size = config.sides("size")
    crop = config.sides("crop_size")[1] if config.flag("do_center_crop", False) else None
    if size is None or not config.flag("do_resize", True):
        return {"size": crop} if crop else {}
    short = min(size)
    if crop is not None:
        if kind != "height and width":
            return {"size": crop, "resize": "short_side_then_center_crop", "short_side": short}
        if crop == size:
            return {"size": crop}
        if size[0] != size[1]:
            raise ModelError(f"'size' in {config.file!r} is not square, and a crop follows", next="give the options")
        return {"size": crop, "resize": "stretch_then_center_crop", "short_side": short}
    if config.record.get("crop_pct") is not None or config.name.startswith("ConvNext"):
        if short >= 384:  # ConvNeXT's processor: large sizes are stretched, small ones enlarged and cut
            return {"size": size}
        share = config.number("crop_pct", 224 / 256)
        if not 0.1 <= share <= 1:
            raise ModelError(f"'crop_pct' in {config.file!r} is {share}", known="a share from 0.1 to 1")
        return {"size": size, "resize": "short_side_then_center_crop", "short_side": int(short / share)}
    if kind == "shortest edge":
        return {"size": size, "resize": "short_side_then_center_crop", "short_side": short}
    return {"size": size}


@dataclass(frozen=True)
class _Config:
    """Reads one field after the other, and names file and key where a value makes no sense."""

    record: Mapping[str, Any]
    file: str

    @property
    def name(self) -> str:
        return str(self.record.get("image_processor_type") or self.record.get("feature_extractor_type") or "")

    def flag(self, key: str, default: bool) -> bool:
        value = self.record.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        value = self.record.get(key)
        return default if value is None else self._tried(key, lambda: _number(key, value))

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self.record.get(key)
        if value is None:
            return default
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, 3):
            raise self._error(key, value, "one number, or one for each of three channels")
        return tuple(self._tried(key, lambda: [_number(key, v) for v in values]))

    def sides(self, key: str) -> tuple[str, tuple[int, int] | None]:
        value = self.record.get(key)
        if value is None:
            return "", None
        kind = "square"
        if isinstance(value, dict):
            kind = "shortest edge" if "shortest_edge" in value else "height and width"
            value = value["shortest_edge"] if "shortest_edge" in value else (value.get("height"), value.get("width"))
        elif isinstance(value, list):
            kind = "height and width"
        return kind, self._tried(key, lambda: _pair(key, value))

    def _tried(self, key: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except OptionError as error:
            raise self._error(key, self.record[key], error.known or error.what) from None

    def _error(self, key: str, value: Any, known: str) -> ModelError:
        text = json.dumps(value)
        return ModelError(
            f"{key!r} in {self.file!r} is {text if len(text) <= 80 else text[:77] + '...'}",
            known=known,
            next="correct it, or give the options",
        )


def _checked(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of a source; an error in one of them names the source instead of an option."""
    try:
        Preprocessing(**found)
    except OptionError as error:
        raise ModelError(f"{source}: {error.what}", known=error.known, next="correct it, or give the options") from None
    return dict(found)


# ---------------------------------------------------------------------------------------------------- checks


def _choice(name: str, value: Any, known: Sequence[str]) -> str:
    if isinstance(value, str):
        for word in known:
            if word.lower() == value.lower().replace("-", "_"):
                return word
    raise OptionError(f"{name} is {value!r}", known=", ".join(known), next=nearest(str(value), known) or None)


def _side(name: str, value: Any) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE:
        return int(value)
    raise OptionError(f"{name} is {value!r}", known=f"a number of pixels from 1 to {LARGEST_SIDE}")


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        value = (value, value)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return _side(name, value[0]), _side(name, value[1])
    raise OptionError(f"{name} is {value!r}", known="one number of pixels, or height and width")


def _number(name: str, value: Any, *, zero: bool = True) -> float:
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and (zero or number != 0):
            return number
    raise OptionError(f"{name} is {value!r}", known="a finite number" if zero else "a finite number other than 0")


def _numbers(name: str, value: Any, channels: int, *, zero: bool = True) -> tuple[float, ...]:
    values = list(value) if isinstance(value, (tuple, list, np.ndarray)) else [value]
    numbers = tuple(_number(name, v, zero=zero) for v in values)
    if len(numbers) == 1:
        numbers *= channels
    if len(numbers) != channels:
        raise OptionError(f"{name} has {len(numbers)} values for {_channels(channels)}")
    return numbers


def _rescaled(short: int, old: Sequence[int], new: Sequence[int]) -> int:
    """The shorter side before the crop keeps its proportion to the crop."""
    return max(1, round(short * min(new) / min(old)))


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.size:
        return Image.fromarray(np.ascontiguousarray(picture))
    raise InputError(
        f"a picture has to be uint8 [H, W, 3], this array is {picture.dtype} {list(picture.shape)}",
        next="fgcam_onnx.imaging.read opens a file",
    )


def _axes(shape: Sequence[int | str | None], layout: str) -> str:
    sides = ", ".join("?" if side is None else str(side) for side in shape)
    return f"its input [{', '.join(layout.lower())}] = [{sides}]"


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _list(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.6g}"
    return f"[{', '.join(f'{v:.6g}' for v in values)}]"
