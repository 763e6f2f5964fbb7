"""``preprocessor_config.json``: the image processors of Hugging Face transformers, as recipes.

A processor is a class with defaults of its own, and the file states what differs from them; so a file without
``resample`` means another filter for ConvNext than for ViT. The defaults here are those of transformers 5; the tests
compare the pixels with its processors on Pillow. Its processors on torchvision round otherwise when they resize: by at
most 2 of 255 levels, on average by less than 0.06.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgcam_onnx.errors import ModelError
from fgcam_onnx.recipe import CROP, IMAGENET_MEAN, IMAGENET_STD, SHORT_SIDE, STRETCH_CROP, Side
from fgcam_onnx.sidecars import NEXT, Config, Found

__all__ = ["PROCESSORS", "find"]

HALF = {"image_mean": 0.5, "image_std": 0.5}
IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BILINEAR, BICUBIC = {"resample": 2}, {"resample": 3}
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as Pillow numbers them


def _square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}, "default_to_square": True}


def _short(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "default_to_square": False}


def _crop(side: int, do: bool = True) -> dict[str, Any]:
    return {"do_center_crop": do, "crop_size": {"height": side, "width": side}}


# What each processor does where its file says nothing.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": _square(224) | BILINEAR | HALF,
    "DeiT": _square(256) | _crop(224) | BICUBIC | HALF,
    "Beit": _square(224) | _crop(224, False) | BICUBIC | HALF,
    "CLIP": _short(224) | _crop(224) | BICUBIC | CLIP,
    "Siglip": _square(224) | {"default_to_square": False} | BICUBIC | HALF,
    "Bit": _short(224) | _crop(224) | BICUBIC | CLIP,
    "ConvNext": _short(384) | {"crop_pct": 224 / 256} | BICUBIC | HALF,
    "EfficientNet": _square(346) | _crop(289, False) | {"include_top": True} | BICUBIC | HALF,
    "MobileNetV1": _short(256) | _crop(224) | BILINEAR | HALF,
    "MobileNetV2": _short(256) | _crop(224) | BILINEAR | HALF,
    "MobileViT": _short(224) | _crop(256) | {"do_flip_channel_order": True} | BICUBIC | HALF,
    "PoolFormer": _short(224) | _crop(224) | {"crop_pct": 0.9} | BICUBIC | IMAGENET,
    "Levit": _short(224) | _crop(224) | BICUBIC | IMAGENET,
    "Pvt": _square(224) | BICUBIC | IMAGENET,
    "Segformer": _square(512) | BILINEAR | IMAGENET,
}
# The processor of a model whose file names none: config.json's model_type.
_OF_MODEL = {
    "vit": "ViT", "swin": "ViT", "swinv2": "ViT", "dinat": "ViT", "swiftformer": "ViT", "deit": "DeiT", "beit": "Beit",
    "data2vec-vision": "Beit", "clip": "CLIP", "siglip": "Siglip", "bit": "Bit", "focalnet": "Bit", "dinov2": "Bit",
    "convnext": "ConvNext", "convnextv2": "ConvNext", "resnet": "ConvNext", "regnet": "ConvNext", "cvt": "ConvNext",
    "van": "ConvNext", "efficientnet": "EfficientNet", "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT", "mobilevitv2": "MobileViT", "poolformer": "PoolFormer", "levit": "Levit", "pvt": "Pvt",
    "pvt_v2": "Pvt", "segformer": "Segformer",
}  # fmt: skip
# Keys of steps that every processor has, and keys that do nothing to a picture.
_STEPS = (
    "do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale",
    "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std", "include_top",
    "do_flip_channel_order",
)  # fmt: skip
_IDLE = (
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_convert_rgb",
    "do_reduce_labels", "reduce_labels", "do_convert_annotations", "data_format", "input_data_format",
    "return_tensors", "disable_grouping", "device", "model_input_names",
)  # fmt: skip
# Keys that only these processors read: in another's file they do nothing there, so they do nothing here.
_OWN = {
    "crop_pct": ("ConvNext", "PoolFormer"),
    "include_top": ("EfficientNet",),
    "rescale_offset": ("EfficientNet",),
    "do_flip_channel_order": ("MobileViT",),
}
# Keys whose absence is told where nobody says which processor is meant: processors differ in them.
_TOLD = ("size", "resample", "image_mean", "image_std")


def find(record: Mapping[str, Any], file: Path, sha256: str | None = None, model_type: str | None = None) -> Found:
    """The recipe of a ``preprocessor_config.json``; ``model_type`` is what ``config.json`` beside it says.

    Raises :class:`ModelError` naming file and key for a value that makes no sense, and for a step that no recipe has.
    """
    stated = Config(record, str(file))
    words = [stated.word("image_processor_type"), stated.word("feature_extractor_type")]
    full = next((word for word in words if word), "")
    name = _plain(full) or _OF_MODEL.get(model_type or "", "")
    notes: list[str] = []
    if name in PROCESSORS:
        own = {key: value for key, value in record.items() if name in _OWN.get(key, (name,)) and value is not None}
        config = Config({**PROCESSORS[name], **own}, str(file))
    else:
        config = stated
        notes += _unknown(record, file.name, full)
    _refuse(config, name)
    fields = {**_geometry(config, name, notes), **_arithmetic(config, name)}
    source = f"{file.name} ({name}ImageProcessor)" if name in PROCESSORS else file.name
    return Found(fields, source, file, sha256, tuple(notes), whole=True)


def _plain(name: str) -> str:
    """ConvNextImageProcessorFast, ConvNextFeatureExtractor: ConvNext."""
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    return name


def _unknown(record: Mapping[str, Any], file: str, full: str) -> list[str]:
    """What is to be said about a file of a processor that is not in the table."""
    notes = []
    if full:
        notes.append(f"{file}: {full} is not known here, its keys are read as most processors read them")
    absent = [key for key in _TOLD if record.get(key) is None]
    if absent:
        who = "names no processor" if not full else f"is of {full}"
        notes.append(f"{file} {who} and does not say {', '.join(absent)}: the ImageNet default is taken for them")
    strange = sorted(key for key, value in record.items() if value and key not in (*_STEPS, *_IDLE))
    strange = [key for key in strange if not key.startswith(("_", "do_"))]
    if strange:
        notes.append(f"{file}: {', '.join(strange[:8])} passed over; compare the pixels if an answer looks wrong")
    return notes


def _refuse(config: Config, name: str) -> None:
    """A step that changes pixels and that no recipe has."""
    for key in config.record:
        known = key in (*_STEPS, *_IDLE) or (name in PROCESSORS and key != "do_pad")  # others' keys do nothing
        if key.startswith("do_") and not known and config.flag(key):
            raise ModelError(
                f"{key!r} in {config.file!r} is true, and no recipe has such a step",
                known=", ".join(key for key in _STEPS if key.startswith("do_")),
                next="prepare the array yourself and call Explainer.explain, or leave the step out: --preprocess FILE",
            )


# ---------------------------------------------------------------------------------------------------- arithmetic


def _arithmetic(config: Config, name: str) -> dict[str, Any]:
    code = config.number("resample", 2)
    if code not in range(len(_RESAMPLE)):
        raise config.error("resample", ", ".join(f"{code} {name}" for code, name in enumerate(_RESAMPLE)))
    rescale = config.flag("do_rescale", True)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    deviation = config.numbers("image_std", IMAGENET_STD)
    if config.flag("do_normalize", True) and name != "MobileViT":  # whose processor has no such step
        mean, std = config.numbers("image_mean", IMAGENET_MEAN), deviation
    if rescale and config.flag("rescale_offset"):  # EfficientNet: v * scale - 1
        mean = tuple(m + 1 for m in mean)
    if config.flag("include_top"):  # EfficientNet: divided by the deviation, once more if it was before
        n = max(len(std), len(deviation))
        std = tuple(a * b for a, b in zip(_each(std, n), _each(deviation, n), strict=True))
    fields: dict[str, Any] = {
        "interpolation": _RESAMPLE[int(code)],
        "scale": config.number("rescale_factor", 1 / 255) if rescale else 1.0,
        "mean": mean,
        "std": std,
    }
    if config.flag("do_flip_channel_order"):
        fields["color"] = "BGR"
    return fields


def _each(values: tuple[float, ...], n: int) -> tuple[float, ...]:
    return values * n if len(values) == 1 else values


# ---------------------------------------------------------------------------------------------------- geometry


def _geometry(config: Config, name: str, notes: list[str]) -> dict[str, Any]:
    """What happens before the arithmetic. transformers rounds crops down, and pads with black what is too small."""
    plain = {"crop_rounding": "down", "fill": (0, 0, 0)}
    crop = _crop_size(config) if config.flag("do_center_crop") else None
    if not config.flag("do_resize", True):
        if crop is not None:
            return {"size": crop, "resize": CROP, **plain}
        notes.append(
            f"{Path(config.file).name} resizes nothing (do_resize): pictures are stretched to the model's size"
        )
        return {}
    if config.get("size") is None:
        return {"size": crop} if crop else {}
    kind, size = _size(config, crop is not None)
    if name == "ConvNext" or (not name and crop is None and config.get("crop_pct") is not None):
        return {**_conv_next(config, kind, size, crop), **plain}
    before: Side | None = None
    if kind == "short":
        before = size[0]
        if name == "Levit":
            before = int(256 / 224 * before)
    if config.get("crop_pct") is not None:  # PoolFormer
        kind, before = _before_share(config, kind, size)
    if crop is None:
        if kind == "short":
            what = f"{Path(config.file).name} cuts nothing out, so that pictures keep their proportions"
            notes.append(f"{what}: here the centre of the shorter side's length is cut out")
            return {"size": size, "resize": SHORT_SIDE, "short_side": before, **plain}
        return {"size": size}
    if kind == "short":
        return {"size": crop, "resize": SHORT_SIDE, "short_side": before, **plain}
    if crop == size:
        return {"size": crop}
    return {"size": crop, "resize": STRETCH_CROP, "short_side": before or size, **plain}


def _conv_next(config: Config, kind: str, size: tuple[int, int], crop: tuple[int, int] | None) -> dict[str, Any]:
    """Large sizes are stretched, small ones enlarged by 1 / crop_pct and cut."""
    if size[0] != size[1] or (kind == "exact" and isinstance(config.get("size"), dict)):
        raise config.error("size", "this processor takes a shortest_edge")
    if crop not in (None, size):
        raise config.error("crop_size", f"this processor has cut {size[0]} x {size[1]} pixels by then")
    if size[0] >= 384:
        return {"size": size}
    return {"size": size, "resize": SHORT_SIDE, "short_side": int(size[0] / _share(config))}


def _before_share(config: Config, kind: str, size: tuple[int, int]) -> tuple[str, Side]:
    """PoolFormer: what comes before the crop is larger by 1 / crop_pct; a square size means the shorter side."""
    h, w = (int(side / _share(config)) for side in size)
    return ("short", h) if kind == "short" or h == w else ("exact", (h, w))


def _share(config: Config) -> float:
    share = config.number("crop_pct", 224 / 256)
    if not 0.1 <= share <= 1:
        raise config.error("crop_pct", "a share from 0.1 to 1")
    return share


def _size(config: Config, crops: bool) -> tuple[str, tuple[int, int]]:
    """ "short" and the side twice, or "exact" and height and width.

    One number is a square or a shorter side, as the processor has it; of one unknown a shorter side if a crop follows.
    """
    value = config.get("size")
    if isinstance(value, dict):
        keys = {key for key, side in value.items() if side is not None}
        if keys == {"shortest_edge"}:
            return "short", config.pair("size", value["shortest_edge"])
        if keys == {"height", "width"}:
            return "exact", config.pair("size", [value["height"], value["width"]])
        raise config.error("size", "height and width, or shortest_edge alone, are what a recipe can do")
    if isinstance(value, list) and len(value) == 2:
        return "exact", config.pair("size", value)
    square = config.flag("default_to_square", not crops)
    return "exact" if square else "short", config.pair("size", value)


def _crop_size(config: Config) -> tuple[int, int]:
    value = config.get("crop_size")
    if value is None:
        raise ModelError(
            f"'do_center_crop' in {config.file!r} is true, and there is no 'crop_size'",
            known="height and width",
            next=NEXT,
        )
    if isinstance(value, dict):
        if {"height", "width"} - value.keys():
            raise config.error("crop_size", "height and width")
        value = [value["height"], value["width"]]
    return config.pair("crop_size", value)
