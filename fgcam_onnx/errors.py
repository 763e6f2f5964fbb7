"""The exception tree: what happened, where in the graph, what is known, what to do next.

Every error of this package is a :class:`FgcamError`. Its text fits one screen:

    UnsupportedOpError: no relevance rule for Softplus-1
      at      node 'features/act3'   (features/conv3 -> features/act3 -> features/pool3)
      known   Relu, LeakyRelu, Clip, Sigmoid and 31 more: fgcam ops
      next    add rules/softplus.py
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ActivationError",
    "BackendError",
    "DeviceMemoryError",
    "ExportError",
    "FgcamError",
    "ImageError",
    "InputError",
    "LayerError",
    "MethodError",
    "MissingFrameworkError",
    "MissingPackageError",
    "MissingRuntimeError",
    "ModelError",
    "OptionError",
    "OutputError",
    "RegistryError",
    "TargetError",
    "UnsupportedOpError",
    "nearest",
]


class FgcamError(Exception):
    """Root of the tree.

    ``what`` is one sentence; ``at``, ``known`` and ``next`` are the place, the facts and the way out.
    ``exit_code`` is what the command line ends with: 1 for a failure, 2 for a wrong word in the command.
    """

    exit_code = 1

    def __init__(self, what: str, *, at: str | None = None, known: str | None = None, next: str | None = None) -> None:
        self.what, self.at, self.known, self.next = what, at, known, next
        rows = (("at", at), ("known", known), ("next", next))
        super().__init__("\n".join([what, *(f"  {label:<8}{text}" for label, text in rows if text)]))


class ModelError(FgcamError):
    """The model file cannot be read, is not valid ONNX, or is not a network that can be explained."""


class UnsupportedOpError(FgcamError):
    """A node on the path has no relevance rule."""


class RegistryError(FgcamError):
    """A rule is registered twice, or for an operator that ONNX does not know."""


class InputError(FgcamError):
    """The input array does not fit the model: shape, dtype, NaN."""


class ActivationError(FgcamError):
    """The forward pass produced NaN or Inf."""


class BackendError(FgcamError):
    """The chosen backend or execution provider cannot work here."""


class DeviceMemoryError(BackendError, MemoryError):
    """The device has not enough memory for this batch."""


class MissingRuntimeError(BackendError, ImportError):
    """onnxruntime is not installed."""


class MissingPackageError(FgcamError, ImportError):
    """A package that only some functions need is not installed, or is broken."""


class ImageError(FgcamError):
    """A picture cannot be read."""


class OutputError(FgcamError):
    """Results cannot be written."""


class ExportError(FgcamError):
    """A model cannot be exported, or the exported file does not compute what the model computes."""


class MissingFrameworkError(ExportError, ImportError):
    """The framework of a source, or its converter, is not installed."""


class LayerError(FgcamError):
    """A layer name that the graph does not have, or that cannot serve as asked."""

    exit_code = 2


class TargetError(FgcamError):
    """A class that the model does not have."""

    exit_code = 2


class MethodError(FgcamError):
    """A method name nobody knows, or a method that cannot serve this model."""

    exit_code = 2


class OptionError(FgcamError):
    """An option that does not exist or a value outside its choices."""

    exit_code = 2


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """``did you mean 'a', 'b'?``, or an empty string when nothing is near."""
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), list(lower), n=n, cutoff=0.5)
    return f"did you mean {', '.join(repr(lower[f]) for f in found)}?" if found else ""
