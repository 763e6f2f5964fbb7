"""What an evaluation measures, and how: the defaults are the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.metrics.pixels import BASELINES

__all__ = ["BOXES", "TARGETS", "Settings"]

TARGETS = ("predicted", "label")
BOXES = ("paper", "any")


@dataclass(frozen=True)
class Settings:
    """``metrics``: names of :data:`fgcam_onnx.evaluation.measures.MEASURES`.

    ``target``: the class that is explained and scored, "predicted" (of the unchanged picture) or "label".
    ``fraction``: share of pixels that Average Drop keeps. ``step``: pixels a step of deletion and insertion.
    ``baseline``, ``kernel``, ``sigma``: what hides a pixel (:func:`fgcam_onnx.metrics.pixels.baseline_of`). ``boxes``:
    "paper" measures localisation where a picture has one box of at most half its area, "any" wherever it has boxes.
    ``seed``: of all that is random.

    Raises:
        OptionError: a value out of range.
    """

    metrics: tuple[str, ...] = ("average-drop", "deletion-insertion", "localisation")
    target: str = "predicted"
    fraction: float = 0.5
    step: int = 448
    baseline: str | float = "blur"
    kernel: int = 51
    sigma: float = 50.0
    boxes: str = "paper"
    seed: int = 0

    def __post_init__(self) -> None:
        from fgcam_onnx.evaluation.measures import MEASURES

        for name in self.metrics:
            if name not in MEASURES:
                raise OptionError(
                    f"there is no metric {name!r}", known=", ".join(MEASURES), next=nearest(name, MEASURES) or None
                )
        if not self.metrics:
            raise OptionError("no metric is named", known=", ".join(MEASURES))
        for name, value, known in (("target", self.target, TARGETS), ("boxes", self.boxes, BOXES)):
            if value not in known:
                raise OptionError(f"option {name} cannot be {value!r}", known=", ".join(known))
        if not 0 < self.fraction < 1:
            raise OptionError(
                f"option fraction cannot be {self.fraction!r}", known="a share of the pixels, above 0, below 1"
            )
        if self.step < 1:
            raise OptionError(f"option step cannot be {self.step!r}", known="pixels at a time, at least 1")
        if isinstance(self.baseline, str) and self.baseline not in BASELINES:
            raise OptionError(f"option baseline cannot be {self.baseline!r}", known=f"{', '.join(BASELINES)}, a number")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise OptionError(f"option kernel cannot be {self.kernel!r}", known="an odd number of pixels, 1 or more")
        if not self.sigma > 0:
            raise OptionError(f"option sigma cannot be {self.sigma!r}", known="pixels, above 0")

    def record(self) -> Mapping[str, Any]:
        """Plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
