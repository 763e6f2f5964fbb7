"""``export("torchvision:resnet18", "resnet18.onnx")``: which exporter a word, a path or an object is for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fgcam_onnx.errors import ExportError, OptionError, nearest
from fgcam_onnx.exporters import base
from fgcam_onnx.exporters import weights as weight_words

__all__ = ["KINDS", "export", "find"]

# What may stand before the colon: the module beside this one, its function, and an example.
KINDS = {
    "torchvision": ("from_torchvision", "load", "torchvision:resnet18"),
    "timm": ("from_timm", "load", "timm:resnet18"),
    "keras": ("from_keras", "load", "keras:MobileNetV2"),
    "paddle": ("from_paddle", "load", "paddle:resnet18"),
    "torch": ("from_torch", "load_factory", "torch:package.module:factory"),
    "jax": ("from_jax", "load_factory", "jax:package.module:factory"),
}
FILES = {".keras": "from_keras", ".h5": "from_keras", ".json": "from_paddle", ".pdmodel": "from_paddle"}
# Objects are told by where a class of theirs was defined.
OBJECTS = {"torch": "from_torch", "keras": "from_keras", "paddle": "from_paddle", "flax": "from_jax"}


def export(
    source: Any,
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    opset: int | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    preprocessing: base.Asked = None,
    tolerance: float = base.TOLERANCE,
    seed: int = 0,
) -> base.Exported:
    """Export a model to an ONNX file that is proved to compute the same scores.

    ``source``: ``torchvision:NAME``, ``timm:NAME``, ``keras:NAME``, ``paddle:NAME``; ``torch:package.module:factory``,
    ``jax:package.module:factory``; the path of a Keras file, a SavedModel folder or a Paddle inference model; or a
    model object of torch, Keras, Paddle or flax.nnx. ``weights``: see the source's module. ``size``: height and width
    of the input where the model leaves them free. ``classes``: of weights with another classifier. ``opset``: of the
    file, the converter's own choice if None. The rest as in :func:`fgcam_onnx.exporters.base.write`.

    Random weights, ``weights="none"``, are those of ``seed``.

    Raises:
        OptionError: a word that nobody knows, or an option that this source has no use for.
        MissingFrameworkError, ExportError, OutputError: as :func:`~fgcam_onnx.exporters.base.write`.
    """
    sides = (size, size) if isinstance(size, int) else size
    made = find(source, weights=weights, size=sides, classes=classes, opset=opset, seed=seed)
    return base.write(made, output, labels=labels, preprocessing=preprocessing, tolerance=tolerance, seed=seed)


def find(source: Any, *, seed: int = 0, **options: Any) -> base.Source:
    """The source for a word, a path or an object, with the options that were given (None = not given)."""
    if isinstance(source, os.PathLike):
        return _from_path(Path(source), options)
    if not isinstance(source, str):
        return _from_object(source, options)
    kind, colon, name = source.partition(":")
    if colon and kind in KINDS:
        if not name:
            raise OptionError(f"{source!r} names no model", next=f"for example {KINDS[kind][2]}")
        file, function, _ = KINDS[kind]
        if weight_words.random(options.get("weights")):
            import_module(f"fgcam_onnx.exporters.{file}").seed(seed)
        return _call(file, function, name, options)
    path = Path(source)
    if path.exists() or path.suffix or "/" in source:
        return _from_path(path, options)
    examples = ", ".join(example for *_, example in KINDS.values())
    near = nearest(kind if colon else source, KINDS)
    raise OptionError(f"no source {source!r}", known=f"{examples}, or a path", next=near or None)


def _call(file: str, function: str, what: Any, options: Mapping[str, Any]) -> base.Source:
    module = import_module(f"fgcam_onnx.exporters.{file}")
    given = {key: value for key, value in options.items() if value is not None}
    found = getattr(module, function)(what, **given)
    assert isinstance(found, base.Source)
    return found


def _from_path(path: Path, options: Mapping[str, Any]) -> base.Source:
    known = "a Keras file (.keras, .h5), a SavedModel folder, a Paddle inference model (.json or .pdmodel)"
    if not path.exists():
        raise ExportError(f"there is no file or folder {str(path)!r}", known=known, next="check the path")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return _call("from_tensorflow", "load_saved_model", path, options)
        raise ExportError(f"the folder {str(path)!r} is no SavedModel", known="it has no saved_model.pb")
    suffix = path.suffix.lower()
    if suffix == ".pdiparams":
        path = next((p for end in (".json", ".pdmodel") if (p := path.with_suffix(end)).is_file()), path)
        suffix = path.suffix.lower()
    if suffix in FILES:
        return _call(FILES[suffix], "load_file", path, options)
    if suffix == ".onnx":
        raise ExportError(f"{str(path)!r} is an ONNX file already", next=f"fgcam explain {path} picture.jpg")
    if weight_words.is_file(path.name):
        way = f"fgcam export torchvision:NAME --weights {path}, or timm:NAME, or torch:package.module:factory"
        raise ExportError(f"{str(path)!r} holds weights without their network", next=way)
    raise ExportError(f"{str(path)!r} is no model that can be exported", known=known)


def _from_object(model: Any, options: Mapping[str, Any]) -> base.Source:
    homes = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    file = next((file for home, file in OBJECTS.items() if home in homes), None)
    if file is None:
        raise OptionError(f"a {type(model).__name__} is no model of {', '.join(OBJECTS)}")
    return _call(file, "load_object", model, options)
