"""Import torchvision also where its compiled operators cannot be loaded.

torchvision's wheel links its compiled operators (nms, roi_align, ...) against one build of torch. Beside another build,
for instance torch's CPU wheel, the library does not load, and ``import torchvision`` then fails with "operator
torchvision::nms does not exist", because the package registers meta kernels for operators nobody has defined. No
classifier uses these operators, so declaring their signatures is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

import torch

_SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dil_h, SymInt dil_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask) -> Tensor",
)

_declared: torch.library.Library | None = None  # the declarations last as long as this object


def _compiled_operators_load() -> bool:
    """Whether torchvision's own library of operators loads beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install 'fgcam_onnx[test]'", name="torchvision")
    for library in sorted(Path(spec.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue
        return True
    return False


@cache
def import_torchvision() -> ModuleType:
    """Return the torchvision module; declare its operators first where the compiled ones do not load."""
    global _declared
    if "torchvision" not in sys.modules and not _compiled_operators_load():
        _declared = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _declared.define(schema)
    return importlib.import_module("torchvision")
