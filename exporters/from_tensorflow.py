"""TensorFlow SavedModels, through tf2onnx. The layout stays the model's own, NHWC.

Loading a SavedModel runs no Python from the folder; its graph is executed by TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import packages
from fgcam_onnx.exporters.base import Source, in_batches

__all__ = ["load_saved_model"]

NEEDS = ("tensorflow", "tf2onnx")
SIGNATURE = "serving_default"


def load_saved_model(
    folder: Path,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a folder with ``saved_model.pb``: its signature ``serving_default``, or the only one it has.

    ``size`` fixes height and width where the signature leaves them free.

    Raises:
        ExportError: no such signature, or one that does not take one picture ``[n, h, w, c]`` and give one array.
        OptionError: ``size`` against the signature; weights or classes, which the folder has.
    """
    tf = packages.load("tensorflow")
    tf2onnx = packages.load("tf2onnx", beside="tensorflow")
    if weights is not None or classes is not None:
        raise OptionError("weights and classes are for networks of a catalogue", known=f"{str(folder)!r} has its own")
    model, signature = _signature(tf, folder)
    name, spec = _picture(signature, folder)
    batch, *sides = spec.shape
    if size is not None:
        for side, wanted in zip(sides, size, strict=False):
            if side is not None and side != wanted:
                what = f"size {size[0]}x{size[1]} does not fit the model"
                raise OptionError(what, known=f"its input is {list(spec.shape)}")
        sides = [*size, sides[-1]]
    fixed = tf.TensorSpec((batch, *sides), spec.dtype, name="image")
    (answer,) = signature.structured_outputs
    function = tf.function(lambda image: signature(**{name: image})[answer], input_signature=[fixed])
    function.model = model  # a function does not keep the variables alive that it reads

    def run(x: Any) -> Any:
        return in_batches(lambda part: np.asarray(function(tf.constant(part))), x, batch)

    def convert(path: Path) -> Sequence[str]:
        tf2onnx.convert.from_function(function, input_signature=[fixed], opset=opset, output_path=str(path))
        return ()

    return Source(str(folder), run, convert, tuple(sides), "NHWC", NEEDS)


def _signature(tf: Any, folder: Path) -> tuple[Any, Any]:
    try:
        with packages.captured():
            model = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises OSError, ValueError and errors of its own
        raise ExportError(f"TensorFlow cannot load {str(folder)!r}", known=packages.brief(error)) from error
    found = dict(model.signatures)
    if SIGNATURE not in found and len(found) != 1:
        known = f"it has {', '.join(found) or 'none'}"
        raise ExportError(f"the SavedModel {str(folder)!r} has no signature {SIGNATURE!r}", known=known)
    return model, found.get(SIGNATURE) or next(iter(found.values()))


def _picture(signature: Any, folder: Path) -> tuple[str, Any]:
    """Name and spec of the one input."""
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    specs = list(inputs.items())
    if len(specs) == 1 and len(outputs) == 1 and specs[0][1].shape.rank == 4:
        return specs[0]
    ends = (
        [f"{name} {each.shape}" for name, each in specs],
        [f"{name} {each.shape}" for name, each in sorted(outputs.items())],
    )
    raise ExportError(
        f"the SavedModel {str(folder)!r} does not take one picture and give one array",
        known=f"takes {', '.join(ends[0])}; gives {', '.join(ends[1])}",
    )
