"""How a picture becomes the input: the options of every command that reads or records a recipe, and their words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fgcam_onnx.errors import OptionError

__all__ = ["PANEL", "Color", "Interpolation", "Mean", "Preprocess", "Resize", "Scale", "ShortSide", "Std", "fields",
           "sides"]  # fmt: skip

PANEL = "How the picture becomes the input"


def _option(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=PANEL, show_default=False)


Preprocess = Annotated[
    str | None,
    _option(
        "All of it at once: a preset (imagenet, torch, tf, caffe, unit, none), words (tf,size=299 or "
        "short_side=256,crop=224,mean=0.5,std=0.5,layout=NHWC), or a JSON file. The options below win over it.",
        "RECIPE",
    ),
]
Resize = Annotated[
    str | None, _option("stretch, short_side_then_center_crop, stretch_then_center_crop or center_crop.")
]
ShortSide = Annotated[int | None, _option("Pixels before the crop.")]
Interpolation = Annotated[str | None, _option("bilinear, bicubic, ...")]
Color = Annotated[str | None, _option("RGB, BGR or GRAY.")]
Scale = Annotated[str | None, _option("x = (v * scale - mean) / std: 1, 1/255 ...")]
Mean = Annotated[str | None, _option("0.485,0.456,0.406")]
Std = Annotated[str | None, _option("0.229,0.224,0.225")]


def fields(
    resize: str | None,
    short_side: int | None,
    interpolation: str | None,
    color: str | None,
    scale: str | None,
    mean: str | None,
    std: str | None,
) -> dict[str, Any]:
    """The options as fields of a recipe, None where one is not given."""
    return {
        "resize": resize,
        "short_side": short_side,
        "interpolation": interpolation,
        "color": color,
        "scale": None if scale is None else _number("scale", scale),
        "mean": None if mean is None else [_number("mean", word) for word in mean.split(",")],
        "std": None if std is None else [_number("std", word) for word in std.split(",")],
    }


def sides(text: str) -> tuple[int, int]:
    """``224`` or ``224x320``: height and width."""
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.strip().isdecimal() and len(word) < 9 for word in words):
        raise OptionError(f"--size is {text!r}", known="one number of pixels, or height x width: 224 or 224x320")
    return int(words[0]), int(words[-1])


def _number(name: str, text: str) -> float:
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below) if below else float(text)
    except (ValueError, ZeroDivisionError):
        known = "a number or a fraction" if name == "scale" else "numbers with commas between them"
        raise OptionError(f"--{name} is {text!r}", known=known) from None
