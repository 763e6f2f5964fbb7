"""``--preprocess``: a recipe in the user's own words. A preset, ``key=value,key=value``, or a JSON file.

    caffe
    tf,size=299
    size=224,short_side=256,mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255
    recipe.json

A value with commas is a list: a word without ``=`` belongs to the key before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fgcam_onnx import huggingface, timm_config
from fgcam_onnx.errors import ModelError, OptionError, nearest
from fgcam_onnx.folder import is_there
from fgcam_onnx.recipe import IMAGENET_MEAN, IMAGENET_STD, SHORT_SIDE, STRETCH_CROP, Preprocessing
from fgcam_onnx.sidecars import Found, as_record, read_record

__all__ = ["ABOUT", "FIELDS", "PRESETS", "in_words", "read"]

# Fields of a recipe that say something about pixels, and those that say where it is from.
ABOUT = ("source", "file", "sha256", "notes")
FIELDS = tuple(field.name for field in fields(Preprocessing) if field.name not in ABOUT)
# Keys of a JSON record that people add for readers.
REMARKS = ("formula", "dtype", "comment")

_TORCH = {"color": "RGB", "scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_TF = {"scale": 1 / 127.5, "mean": 1.0, "std": 1.0}
# The arithmetic by the names that people know, with the colour order where the mean differs between colours; "imagenet"
# states the geometry too.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {**_TORCH, "resize": "stretch", "interpolation": "bilinear"},
    "torch": _TORCH,
    "tf": _TF,
    "inception": _TF,
    "caffe": {"color": "BGR", "scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": 1.0},
    "unit": {"scale": 1 / 255, "mean": 0.0, "std": 1.0},
    "none": {"scale": 1.0, "mean": 0.0, "std": 1.0},
}
_ALIASES = {"channel_order": "color", "channels": "color", "order": "color", "colour": "color"}
_LAYOUTS = {"channels_first": "NCHW", "channels_last": "NHWC"}


def read(said: str | os.PathLike[str] | Mapping[str, Any]) -> Found:
    """The fields that are said: a mapping of fields, a preset, words with ``=``, or the path of a JSON file.

    A file may be a recipe of ours (``recipe.to_dict()``), a manifest of ``fgcam explain``, ``preprocessor_config.json``
    or timm's ``config.json``.

    Raises:
        OptionError: a word that is none of these, or a field that does not exist.
        ModelError: a file that cannot be read, or makes no sense.
    """
    if isinstance(said, Mapping):
        return Found(_normal(dict(said), "preprocess"), f"preprocess ({', '.join(map(str, said))})")
    text = os.fspath(said).strip()
    first = text.split(",")[0].strip()
    is_file = bool(text) and is_there(Path(text)) and first.lower() not in PRESETS
    if not is_file and (first.lower() in PRESETS or "=" in text):
        return Found(in_words(text), f"--preprocess {text}")
    if is_file or text.lower().endswith(".json"):
        return _from_file(Path(text))
    raise OptionError(
        f"--preprocess is {text!r}",
        known=f"a preset ({', '.join(PRESETS)}), key=value words, or a JSON file",
        next=nearest(first, PRESETS) or "for example: --preprocess size=224,mean=0.5,std=0.5",
    )


def _from_file(file: Path) -> Found:
    try:
        record, sha256 = read_record(file)
    except ModelError as error:  # the user's own file: nothing to put in its place
        raise ModelError(error.what, known=error.known, next="correct the file of --preprocess") from None
    if timm_config.is_timm(record):
        return timm_config.find(record, file, sha256)
    if any(key in record for key in ("image_processor_type", "feature_extractor_type", "do_normalize", "do_resize")):
        return huggingface.find(record, file, sha256)
    name = f"--preprocess {file}"
    if "preprocessing" in record:  # a manifest: its layout was that model's
        record = dict(as_record(record["preprocessing"], f"'preprocessing' in {str(file)!r}"))
        record.pop("layout", None)
    return Found(_normal({k: v for k, v in record.items() if k not in (*ABOUT, *REMARKS)}, name), name, file, sha256)


def in_words(text: str) -> dict[str, Any]:
    """``caffe,size=227`` as fields.

    Raises :class:`OptionError`.
    """
    said: dict[str, Any] = {}
    key = ""
    values: dict[str, list[str]] = {}
    for word in (word.strip() for word in text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if equals:
            key = name.lower().replace("-", "_")
            if key in values or not value:
                raise OptionError(f"--preprocess has {key!r} " + ("twice" if value else "without a value"), at=text)
            values[key] = [value]
        elif key:
            values[key].append(word)
        elif word:
            said |= _preset(word)
    named = values.pop("preset", None)
    if named is not None:
        said |= _preset(",".join(named))
    return said | _normal({key: _value(key, words) for key, words in values.items()}, "--preprocess")


def _preset(word: str) -> Mapping[str, Any]:
    if word.lower() not in PRESETS:
        raise OptionError(
            f"--preprocess has no preset {word!r}", known=", ".join(PRESETS), next=nearest(word, PRESETS) or None
        )
    return PRESETS[word.lower()]


def _value(key: str, words: list[str]) -> Any:
    """Numbers where all words are numbers, fractions included; ``224x320`` as two; else the word."""
    if len(words) == 1 and "x" in words[0].lower():
        sides = words[0].lower().split("x")
        if all(side.strip().isdecimal() for side in sides):
            words = sides
    numbers = [_number(word) for word in words]
    if any(number is None for number in numbers):
        if len(words) > 1:
            raise OptionError(f"--preprocess {key} is {','.join(words)!r}", known="numbers with commas between them")
        return words[0]
    return numbers[0] if len(numbers) == 1 else numbers


def _number(word: str) -> float | int | None:
    try:
        above, slash, below = word.partition("/")
        if slash:
            return float(above) / float(below)
        return int(word) if word.strip().lstrip("+-").isdecimal() else float(word)
    except (ValueError, ZeroDivisionError):
        return None


def _normal(said: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields under their own names.

    ``crop``: what is cut out of the centre. ``resize`` as a number: the shorter side before that; as two: both sides.
    """
    out: dict[str, Any] = {}
    if (preset := said.pop("preset", None)) is not None:
        out |= _preset(str(preset))
    for key, value in said.items():
        key = _ALIASES.get(str(key).lower().replace("-", "_"), str(key).lower().replace("-", "_"))
        if value is None:
            continue
        if key == "crop":
            out |= {"size": value} | ({} if "resize" in said else {"resize": SHORT_SIDE})
        elif key == "resize" and not isinstance(value, str):
            one = not isinstance(value, (list, tuple))
            out |= {"resize": SHORT_SIDE if one else STRETCH_CROP, "short_side": value}
        elif key == "layout" and isinstance(value, str):
            out[key] = _LAYOUTS.get(value.lower().replace("-", "_"), value)
        elif key in FIELDS:
            out[key] = value
        else:
            known = (*FIELDS, "crop", "preset")
            raise OptionError(f"{where} has no field {key!r}", known=", ".join(known), next=nearest(key, known) or None)
    return out
