"""A model's folder: which model of it is meant, where the files beside a model lie, and how they are read.

These files come from anywhere. Only fixed names are looked up, so that no path in a file leads out of the folder; only
regular files are opened, and no more is read than such a file may have.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fgcam_onnx.errors import ModelError

__all__ = ["Text", "beside", "is_there", "model_in", "others_in", "read"]

# What exporters call the model of a folder, and the subfolder that some put it in.
MODEL, SUBFOLDER = "model.onnx", "onnx"
# Sidecars that describe a model wherever it lies in its folder; other names belong to the file beside them.
SHARED = ("config.json", "preprocessor_config.json")


def model_in(folder: Path) -> Path:
    """The model that a folder stands for: ``model.onnx``, else its only ``.onnx`` file; else the same in ``onnx/``.

    Raises :class:`ModelError` for a folder without a model, and for one in which several could be meant.
    """
    for place in (folder, folder / SUBFOLDER):
        found = _models(place)
        if not found:
            continue
        if (place / MODEL) in found:
            return place / MODEL
        if len(found) == 1:
            return found[0]
        raise ModelError(
            f"{folder} holds {len(found)} models, and none is called {MODEL}",
            known=_some([str(path.relative_to(folder)) for path in found]),
            next=f"give the file: {found[0]}",
        )
    try:
        inside = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"the folder {folder} cannot be read: {error.strerror}", next="check its permissions"
        ) from None
    raise ModelError(
        f"{folder} is a folder without a model",
        known=f"it holds {_some(inside)}" if inside else "it is empty",
        next="give a folder with a model.onnx, or the path of an .onnx file",
    )


def others_in(model: Path) -> str | None:
    """A sentence for the user where further models lie beside the one that was taken from a folder."""
    others = [path.name for path in _models(model.parent) if path != model]
    return f"{model} is taken; beside it lie {_some(others)}" if others else None


def _models(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.glob("*.onnx") if not p.name.startswith(".") and p.is_file())
    except OSError:
        return []


def _some(names: list[str], n: int = 8) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def beside(model: Path, name: str) -> Path | None:
    """The sidecar ``name`` of a model file, or None. The configuration of ``onnx/`` may lie in the folder above."""
    places = [model.parent]
    if name in SHARED and model.absolute().parent.name == SUBFOLDER:
        places.append(model.parent.parent if model.parent.name else model.absolute().parent.parent)
    return next((place / name for place in places if is_there(place / name)), None)


def is_there(file: Path) -> bool:
    """Does the folder list this name? Also true of a link that leads nowhere: it is told, not passed over."""
    return os.path.lexists(file)


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Text:
    """What a file says, and the hash of its bytes."""

    text: str
    sha256: str


def read(file: Path, limit: int, what: str) -> Text:
    """The text of a regular file of at most ``limit`` bytes; ``what`` it should be stands in the errors.

    Raises :class:`ModelError` where it cannot be read, is larger, or no UTF-8.
    """
    name = repr(str(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for, a device never end
            raise ModelError(f"{name} cannot be read: not a regular file", next=f"put {what} there, or remove it")
        with open(file, "rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{name} cannot be read: {reason}", next="check the path and its permissions") from None
    if len(content) > limit:
        raise ModelError(f"{name} is too large for {what}", known=f"more than {limit:,} bytes")
    try:
        return Text(content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest())
    except UnicodeDecodeError:
        raise ModelError(f"{name} cannot be read: not text in UTF-8", next=f"put {what} there") from None
