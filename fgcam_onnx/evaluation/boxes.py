"""Where the objects are: boxes from CSV lists, Pascal VOC files and the Kaggle lists of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Box", "check", "read_boxes"]


@dataclass(frozen=True)
class Box:
    """Corners in pixels of the picture's own size, as the list has them. ``label``: whose box, as it is written."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2), as :func:`fgcam_onnx.metrics.localisation.box_mask` takes them."""
        return self.x1, self.y1, self.x2, self.y2


def read_boxes(path: str | Path) -> Mapping[str, tuple[Box, ...]]:
    """The boxes of each picture, by its stem or file name."""
    raise NotImplementedError


def check(boxes: tuple[Box, ...], size: tuple[int, int]) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """The boxes that can be used in a picture of ``size`` (height, width), and why the others cannot."""
    raise NotImplementedError
