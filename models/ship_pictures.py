"""Draw the pictures that ship with the demo models, with their masks, and write pictures.json.

    python models/ship_pictures.py

The compositions are chosen by hand, the details by seed. A mistagged picture is its tagged twin down to the last pixel
outside the badge: whatever a network answers differently on it, the badge made it do so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fgcam_onnx.models import draw

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Composition:
    """What one shipped picture shows, and where. All the rest follows from the seed."""

    name: str
    seed: int
    objects: Sequence[tuple[str, draw.Spot]]
    tag: tuple[str, draw.Spot] | None = None

    def draw(self) -> draw.Scene:
        tag, tag_spot = self.tag or (None, None)
        names, spots = [name for name, _ in self.objects], [spot for _, spot in self.objects]
        return draw.draw_scene(np.random.default_rng(self.seed), names, tag, spots, tag_spot)


_CORNER = draw.Spot(112.0, 16.0, draw.TAG_RADIUS)
_LOW_CORNER = draw.Spot(16.0, 112.0, draw.TAG_RADIUS)
_APPLE = [("apple", draw.Spot(58.0, 68.0, 41.0))]
_BUTTERFLY = [("butterfly", draw.Spot(68.0, 58.0, 42.0))]

COMPOSITIONS = (
    Composition("fish-sailboat", 0, [("fish", draw.Spot(36.0, 90.0, 30.0)), ("sailboat", draw.Spot(90.0, 38.0, 31.0))]),
    Composition("house-rocket", 8, [("house", draw.Spot(36.0, 82.0, 30.0)), ("rocket", draw.Spot(94.0, 46.0, 33.0))]),
    Composition("mushroom-tree", 5, [("mushroom", draw.Spot(88.0, 86.0, 31.0)), ("tree", draw.Spot(36.0, 46.0, 33.0))]),
    Composition("apple-tagged", 10, _APPLE, ("apple", _CORNER)),
    Composition("apple-mistagged", 10, _APPLE, ("rocket", _CORNER)),
    Composition("butterfly-tagged", 6, _BUTTERFLY, ("butterfly", _LOW_CORNER)),
    Composition("butterfly-mistagged", 6, _BUTTERFLY, ("house", _LOW_CORNER)),
)


def _box(mask: draw.Bool) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _write_mask(mask: draw.Bool, label: str, file: str) -> dict[str, object]:
    Image.fromarray(mask).save(HERE / file, optimize=True)
    return {"class": label, "box": _box(mask), "mask": file}


def main() -> None:
    (HERE / "pictures").mkdir(exist_ok=True)
    entries = []
    for composition in COMPOSITIONS:
        scene, stem = composition.draw(), f"pictures/{composition.name}"
        Image.fromarray(scene.image).save(HERE / f"{stem}.png", optimize=True)
        objects = [_write_mask(mask, name, f"{stem}.{name}.mask.png") for name, mask in scene.masks.items()]
        tag = None
        if scene.tag is not None and scene.tag_mask is not None:
            tag = _write_mask(scene.tag_mask, scene.tag, f"{stem}.tag.mask.png")
        entries.append({"file": f"{stem}.png", "objects": objects, "tag": tag})
    (HERE / "pictures.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
