"""Packages that only some functions need: imported where they are used, and named with their extra where they are not.

scipy = need("scipy.sparse", "evaluate", "ROAD solves a sparse system")
"""

from __future__ import annotations

import importlib
from types import ModuleType

from fgcam_onnx.errors import MissingPackageError

__all__ = ["need"]


def need(name: str, extra: str, purpose: str) -> ModuleType:
    """The module ``name``, also a submodule. ``extra``: of this package, which installs it. ``purpose``: what for.

    Raises:
        MissingPackageError: it is not installed or cannot be imported; the text has the pip command.
    """
    command = f'pip install "fgcam_onnx[{extra}]"'
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == package:
            raise MissingPackageError(f"{package} is not installed: {purpose}", next=command) from error
        known: ImportError = error
    except ImportError as error:
        known = error
    raise MissingPackageError(
        f"{package} is installed and cannot be imported: {purpose}",
        known=" ".join(f"{type(known).__name__}: {known}".split())[:300],
        next=f"{command}, or mend the installation",
    ) from known
