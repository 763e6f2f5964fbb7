"""fgcam_onnx: what did this deployed network look at?

    from fgcam_onnx import Explainer

    e = Explainer("model.onnx").explain(x)      # x as the model takes it, [n, c, h, w]
    e.relevance                                 # float32 [n, h, w], signed, accounted for in e.ledger

Importing this package loads no runtime and no framework.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgcam_onnx.explainer import Explainer, explain
    from fgcam_onnx.explanation import Explanation

__all__ = ["Explainer", "Explanation", "__version__", "explain"]

_HOMES = {"Explainer": "explainer", "explain": "explainer", "Explanation": "explanation"}


def __getattr__(name: str) -> Any:
    # Resolved on first use: `import fgcam_onnx` stays a matter of milliseconds.
    if name == "__version__":
        try:
            found = metadata.version("fgcam_onnx")
        except metadata.PackageNotFoundError:
            found = "0+unknown"
        globals()["__version__"] = found  # every map's record names it, and looking it up takes milliseconds
        return found
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"fgcam_onnx.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fgcam_onnx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
