"""From a model in its framework to an ONNX file that is proved to compute the same: :func:`export`, ``fgcam export``.

Frameworks and converters are imported by the exporter that needs them, when it is called.
"""

from __future__ import annotations

from fgcam_onnx.exporters.base import Exported, Source, write
from fgcam_onnx.exporters.dispatch import export

__all__ = ["Exported", "Source", "export", "write"]
