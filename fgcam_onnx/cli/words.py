"""Words of a command line that stand for numbers."""

from __future__ import annotations

from fgcam_onnx.errors import OptionError

__all__ = ["number", "sides"]


def sides(text: str) -> tuple[int, int]:
    """``224`` or ``224x320``: height and width."""
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.strip().isdecimal() and len(word) < 9 for word in words):
        raise OptionError(f"--size is {text!r}", known="one number of pixels, or height x width: 224 or 224x320")
    return int(words[0]), int(words[-1])


def number(name: str, text: str) -> float:
    """A number or a fraction, such as 1/255."""
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below) if below else float(text)
    except (ValueError, ZeroDivisionError):
        raise OptionError(f"--{name} is {text!r}", known="a number or a fraction, several with commas") from None
