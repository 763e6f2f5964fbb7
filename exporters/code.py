"""``package.module:factory``: a function of the user's own code, found as ``python -m`` would find it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from fgcam_onnx.errors import ExportError, OptionError, nearest
from fgcam_onnx.exporters.packages import brief

__all__ = ["call"]


def call(word: str) -> Any:
    """What the factory returns. Modules are also looked for in the current folder. This runs the user's code.

    Raises:
        OptionError: the word is not ``package.module:factory``, or there is no such module or function.
        ExportError: the factory itself fails.
    """
    factory = _find(word)
    try:
        return factory()
    except Exception as error:
        raise ExportError(f"{word}() fails", known=brief(error), next="it is called without arguments") from error


def _find(word: str) -> Callable[[], Any]:
    module_name, colon, name = word.partition(":")
    if not (colon and module_name and name):
        raise OptionError(f"{word!r} names no function", next="write package.module:factory")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise OptionError(
            f"the module {module_name!r} cannot be imported", known=brief(error), next=f"it is looked for in {here} too"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        what = f"{module_name!r} has no function {name!r}"
        raise OptionError(what, known=", ".join(names[:12]) or None, next=nearest(name, names) or None)
    return found  # type: ignore[no-any-return]
