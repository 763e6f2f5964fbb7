"""The demo models and pictures that ship with the package: where they are, and what is seen on each picture.

Two networks of one architecture, `demo_honest.onnx` and `demo_cheat.onnx`, and a handful of pictures with the exact
pixels of every object and tag, so that "the map lies on the fish" is a number and not an impression. How they were
made is in README.md, draw.py, ship_pictures.py and train_demo.py beside this file. Importing this module needs numpy
and Pillow, never torch or onnxruntime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["HONEST", "CHEAT", "Box", "Mask", "Picture", "Sight", "path", "picture", "pictures"]  # noqa: RUF022

HONEST = "demo_honest.onnx"
CHEAT = "demo_cheat.onnx"

Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[int, int, int, int]

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Sight:
    """One thing seen on a picture, an object or a tag: its class, its box (left, top, right, bottom) and its pixels."""

    label: str
    box: Box
    mask_path: Path

    @property
    def mask(self) -> Mask:
        """The pixels it covers, as an array of the picture's height and width; read from disk when asked for."""
        with Image.open(self.mask_path) as stored:
            return np.asarray(stored.convert("L")) > 127


@dataclass(frozen=True)
class Picture:
    """A shipped picture: the objects on it by class, and its tag if it carries one (`tag.label` is what it claims)."""

    path: Path
    objects: Mapping[str, Sight]
    tag: Sight | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes seen on the picture; none of them comes first, they are in the order of the alphabet."""
        return tuple(self.objects)


def path(name: str) -> Path:
    """Where a shipped file lies: "demo_honest.onnx", "pictures/fish-sailboat.png", "README.md" and so on."""
    found = _FOLDER / name
    if not found.is_file():
        raise FileNotFoundError(f"no file {name!r} ships with the demo models; look in {_FOLDER}")
    return found


def pictures() -> list[Picture]:
    """Every shipped picture, in the order in which the demo tells its story."""
    return [_picture(entry) for entry in json.loads(path("pictures.json").read_text(encoding="utf-8"))]


def picture(name: str) -> Picture:
    """The shipped picture of that file name, with or without ".png"."""
    known = {each.path.stem: each for each in pictures()}
    try:
        return known[name.removesuffix(".png")]
    except KeyError:
        raise KeyError(f"no picture {name!r} ships with the demo models; there are {', '.join(known)}") from None


def _picture(entry: Mapping[str, object]) -> Picture:
    match entry:
        case {"file": str(file), "objects": list(objects), "tag": None | dict() as tag}:
            sights = [_sight(each) for each in objects]
            return Picture(path(file), {sight.label: sight for sight in sights}, _sight(tag) if tag else None)
    raise ValueError(f"pictures.json: not the description of a picture: {entry!r}")


def _sight(entry: Mapping[str, object]) -> Sight:
    match entry:
        case {"class": str(label), "box": [int(left), int(top), int(right), int(bottom)], "mask": str(file)}:
            return Sight(label, (left, top, right, bottom), path(file))
    raise ValueError(f"pictures.json: not the description of an object or tag: {entry!r}")
