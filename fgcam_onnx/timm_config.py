"""``config.json`` as timm writes it: the recipe of ``timm.data.create_transform`` for evaluation, and the class names.

Two forms: everything about the picture under ``pretrained_cfg``, or, in old files, beside ``architecture``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgcam_onnx.recipe import (
    COVER_CROP,
    FIT_PAD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    SHORT_SIDE,
    STRETCH_CROP,
)
from fgcam_onnx.sidecars import Config, Found, as_record

__all__ = ["find", "is_timm", "labels"]

MODES = ("center", "squash", "border")
_OLD_FORM = ("input_size", "mean", "std", "crop_pct", "interpolation")


def is_timm(record: Mapping[str, Any]) -> bool:
    """Is this a ``config.json`` of timm, with a recipe in it?"""
    return "pretrained_cfg" in record or ("architecture" in record and any(key in record for key in _OLD_FORM))


def _inner(record: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    if record.get("pretrained_cfg") is None:
        return record
    return as_record(record["pretrained_cfg"], f"'pretrained_cfg' in {file!r}")


def find(
    record: Mapping[str, Any],
    file: Path,
    sha256: str | None = None,
    fixed: tuple[int | None, int | None] = (None, None),
) -> Found:
    """The recipe. ``fixed``: height and width of the model; if they are ``test_input_size``, timm's share for tests.

    Raises :class:`ModelError` naming file and key.
    """
    config = Config(_inner(record, str(file)), str(file))
    channels, *size = _input_size(config, "input_size") if config.get("input_size") is not None else (3, 224, 224)
    share = _share(config, "crop_pct", 0.875)
    if config.get("test_input_size") is not None:
        _, *tested = _input_size(config, "test_input_size")
        if fixed != tuple(size) and fixed == tuple(tested):
            size, share = tested, _share(config, "test_crop_pct", share)
    mode = config.word("crop_mode") or "center"
    if mode not in MODES:
        raise config.error("crop_mode", ", ".join(MODES))
    interpolation = config.word("interpolation") or "bicubic"
    if interpolation not in INTERPOLATIONS:
        raise config.error("interpolation", ", ".join(INTERPOLATIONS))
    mean = config.numbers("mean", IMAGENET_MEAN, (1, channels)) or IMAGENET_MEAN
    fields: dict[str, Any] = {
        "size": tuple(size),
        "interpolation": interpolation,
        "color": "GRAY" if channels == 1 else "RGB",
        "scale": 1 / 255,
        "mean": mean,
        "std": config.numbers("std", IMAGENET_STD, (1, channels)),
        "fill": (0, 0, 0),
    }
    before = tuple(math.floor(side / share) for side in size)
    if mode == "squash":
        fields |= {"resize": STRETCH_CROP, "short_side": before}
    elif mode == "border":
        colour = tuple(min(255, max(0, round(255 * m))) for m in mean)
        fields |= {"resize": FIT_PAD, "short_side": before, "fill": colour}
    elif before[0] == before[1]:
        fields |= {"resize": SHORT_SIDE, "short_side": before[0]}
    else:
        fields |= {"resize": COVER_CROP, "short_side": before}
    return Found(fields, f"{file.name} (timm)", file, sha256, whole=True)


def _input_size(config: Config, key: str) -> tuple[int, int, int]:
    """Channels, height and width."""
    value = config.get(key)
    known = "channels, height and width: 3, 224, 224"
    if not isinstance(value, list) or len(value) != 3 or isinstance(value[0], bool) or value[0] not in (1, 3):
        raise config.error(key, known)
    return (int(value[0]), *config.pair(key, value[1:]))


def _share(config: Config, key: str, default: float) -> float:
    share = config.number(key, default) or default
    if not 0.1 <= share <= 1:
        raise config.error(key, "a share from 0.1 to 1")
    return share


# ---------------------------------------------------------------------------------------------------- labels


def labels(record: Mapping[str, Any], file: str) -> Any:
    """``label_names``, a list or a mapping of indices, with their ``label_descriptions``; None where there are none.

    What comes back may still be of any type: :mod:`fgcam_onnx.labels` checks it.
    """
    inner = _inner(record, file)
    keys = ("label_names", "labels")
    names = next((where[key] for where in (record, inner) for key in keys if where.get(key)), None)
    told = record.get("label_descriptions") or inner.get("label_descriptions")
    if not isinstance(told, Mapping):
        return names
    if isinstance(names, Mapping):
        return {index: _described(name, told) for index, name in names.items()}
    return [_described(name, told) for name in names] if isinstance(names, list) else names


def _described(name: Any, told: Mapping[str, Any]) -> Any:
    """A synset stands before its words, another name after them: the first word is the one that is shown."""
    words = told.get(name) if isinstance(name, str) else None
    if not isinstance(words, str) or not words or words == name:
        return name
    return f"{name} {words}" if len(name) == 9 and name[0] == "n" and name[1:].isdigit() else f"{words}, {name}"
