"""What the image processors of Hugging Face transformers make of two pictures, for machines that do not have it.

    python tests/transformers_pixels.py

writes ``tests/sidecars/transformers_pixels.json``: of each case the shape and some pixels, as its processors on Pillow
compute them. ``tests/test_huggingface.py`` compares ours with them, and, where transformers is installed, with every
pixel of more pictures.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

STORE = Path(__file__).parent / "sidecars" / "transformers_pixels.json"
SMALL = {"size": {"shortest_edge": 64}, "crop_size": {"height": 49, "width": 49}}
# Processor and what its file says: nothing, what real files say, and every key off its default.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    "vit, an int": ("ViT", {"size": 96, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "vit, not square": ("ViT", {"size": {"height": 60, "width": 90}, "resample": 3}),
    "vit, a crop": ("ViT", {"do_center_crop": True, "crop_size": {"height": 160, "width": 171}}),
    "vit, no arithmetic": ("ViT", {"do_rescale": False, "do_normalize": False}),
    "vit, not rescaled": ("ViT", {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]}),
    "vit, lanczos": ("ViT", {"resample": 1, "rescale_factor": 0.00392156862745098}),
    "deit": ("DeiT", {}),
    "deit, an odd crop": ("DeiT", {"size": {"height": 100, "width": 120}, "crop_size": {"height": 81, "width": 87}}),
    "beit": ("Beit", {}),
    "beit, cut": ("Beit", {"do_center_crop": True, "size": 256}),
    "clip": ("CLIP", {}),
    "clip, an int": ("CLIP", {"size": 96, "crop_size": 96}),
    "siglip": ("Siglip", {}),
    "bit": ("Bit", {}),
    "bit, real": ("Bit", {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}, "resample": 2}),
    "bit, a crop too large": ("Bit", {"size": {"shortest_edge": 40}, "crop_size": {"height": 63, "width": 55}}),
    "bit, not resized": ("Bit", {"do_resize": False, "crop_size": {"height": 71, "width": 400}}),
    "convnext": ("ConvNext", {}),
    "convnext, small": ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "convnext, an int": ("ConvNext", {"size": 224}),
    "convnext, an odd share": ("ConvNext", {"size": {"shortest_edge": 217}, "crop_pct": 0.92}),
    "convnext, just large": ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.5}),
    "efficientnet": ("EfficientNet", {}),
    "efficientnet, real": (
        "EfficientNet",
        {"size": {"height": 224, "width": 224}, "resample": 0, "include_top": True, "do_center_crop": False,
         "image_std": [0.47853944, 0.4732864, 0.47434163], "image_mean": [0.485, 0.456, 0.406]},
    ),
    "efficientnet, offset": (
        "EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
    ),
    "efficientnet, cut": ("EfficientNet", {"do_center_crop": True, "do_normalize": False}),
    "efficientnet, offset and top": ("EfficientNet", {"rescale_offset": True, "do_center_crop": True, "resample": 2}),
    "mobilenet v1": ("MobileNetV1", {}),
    "mobilenet v2": ("MobileNetV2", {}),
    "mobilenet v2, odd": ("MobileNetV2", SMALL),
    "mobilevit": ("MobileViT", {}),
    "mobilevit, real": ("MobileViT", {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}),
    "mobilevit, not flipped": ("MobileViT", {"do_flip_channel_order": False, "size": 260, "do_normalize": True}),
    "poolformer": ("PoolFormer", {}),
    "poolformer, a share": ("PoolFormer", {"crop_pct": 0.95, "size": {"shortest_edge": 112}, "crop_size": 112}),
    "poolformer, a square": ("PoolFormer", {"size": {"height": 120, "width": 120}, "crop_size": 111}),
    "poolformer, not square": ("PoolFormer", {"size": {"height": 120, "width": 140}, "crop_size": 101}),
    "levit": ("Levit", {}),
    "levit, odd": ("Levit", SMALL),
    "levit, a square": ("Levit", {"size": {"height": 130, "width": 150}, "crop_size": 121}),
    "pvt": ("Pvt", {}),
    "segformer": ("Segformer", {"size": {"height": 128, "width": 128}}),
    "unread keys": ("ViT", {"crop_pct": 0.5, "include_top": True, "do_flip_channel_order": True}),
}  # fmt: skip


def picture(h: int, w: int) -> Image.Image:
    """Waves and a little noise, the same on every machine."""
    y, x = np.mgrid[:h, :w].astype(np.float64)
    waves = np.stack([np.sin(x / 9 + y / 31), np.cos(y / 7), np.sin((x - y) / 13) * np.cos(x / 40)], -1)
    noise = np.random.default_rng(h * 1000 + w).integers(-20, 21, (h, w, 3))
    return Image.fromarray(np.clip(128 + 100 * waves + noise, 0, 255).astype(np.uint8))


def pictures() -> list[Image.Image]:
    return [picture(167, 250), picture(301, 199)]


def places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The corners and some cells between."""
    c, h, w = shape
    corners = [(k, y, x) for k in range(c) for y in (0, h - 1) for x in (0, w - 1)]
    rng = np.random.default_rng(h * w)
    return corners + [(int(rng.integers(c)), int(rng.integers(h)), int(rng.integers(w))) for _ in range(12)]


def processed(name: str, record: dict[str, Any], image: Image.Image) -> npt.NDArray[Any]:
    """``[c, h, w]`` by transformers itself, on Pillow."""
    transformers = importlib.import_module("transformers")
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return np.asarray(kind(**record)(image)["pixel_values"][0])


def main() -> None:
    found = {}
    for case, (name, record) in CASES.items():
        arrays = [processed(name, record, image) for image in pictures()]
        found[case] = [
            {"shape": list(x.shape), "pixels": [round(float(x[place]), 6) for place in places(x.shape)]} for x in arrays
        ]
    version = importlib.import_module("transformers").__version__
    STORE.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(value)}" for case, value in found.items())
    STORE.write_text(f'{{\n  "transformers": {json.dumps(version)},\n{lines}\n}}\n', encoding="utf-8")
    sys.stdout.write(f"{len(found)} cases by transformers {version} in {STORE}\n")


if __name__ == "__main__":
    main()
