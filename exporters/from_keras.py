"""Keras models, through Keras' own ``model.export(format="onnx")``, on its TensorFlow backend.

The layout stays the model's own, NHWC unless Keras is set to channels_first. The converter beneath is tf2onnx.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgcam_onnx.errors import ExportError, OptionError, nearest
from fgcam_onnx.exporters import packages
from fgcam_onnx.exporters import weights as weight_words
from fgcam_onnx.exporters.base import Source

__all__ = ["load", "load_file", "load_object", "seed"]

NEEDS = ("keras", "tensorflow", "tf2onnx")


def load(
    name: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a name of ``keras.applications`` such as ``MobileNetV2``, with its Softmax.

    ``weights``: None, ``DEFAULT`` or ``imagenet`` for the published ones, ``none`` for random ones, or a file
    ``.weights.h5`` of this architecture. ``classes``: of a file with another classifier. ``size``: Keras' own if None;
    published weights have their size.

    Preprocessing is that of the application's ``preprocess_input``, stretched and bilinear.

    Raises:
        OptionError: a name that Keras does not have, or a size or a number of classes that it does not take.
        ExportError: weights that cannot be fetched or do not fit.
    """
    keras = _keras()
    applications = keras.applications
    known = [each for each in dir(applications) if each[0].isupper()]
    if name not in known:
        raise OptionError(
            f"keras.applications has no {name!r}",
            known=packages.brief(", ".join(known), 120),
            next=nearest(name, known) or None,
        )
    own = weight_words.random(weights) or weight_words.is_file(weights)
    if not own and weights is not None and weights.lower() not in ("default", "imagenet"):
        raise OptionError(f"keras:{name} has no weights {weights!r}", known="imagenet, none, or a file .weights.h5")
    build = getattr(applications, name)
    options: dict[str, Any] = {"weights": None if own else "imagenet"}
    if size is not None:
        options["input_shape"] = (*size, 3) if _layout(keras) == "NHWC" else (3, *size)
    if classes is not None:
        options["classes"] = classes
    with weight_words.downloading(f"imagenet of keras:{name}"):
        try:
            model = build(**options)
        except ValueError as error:  # Keras checks size and classes before it fetches
            raise OptionError(f"Keras cannot build {name} so", known=packages.brief(error)) from error
    word = "imagenet"
    if weight_words.is_file(weights):
        assert weights is not None
        _load_weights(model, Path(weights))
        word = Path(weights).name
    home = getattr(applications, inspect.unwrap(build).__module__.rpartition(".")[2])
    labels, notes = (None, ()) if own else _labels(home)
    return load_object(
        model,
        opset=opset,
        name=f"keras:{name} weights={'none' if weight_words.random(weights) else word}",
        recipe=_recipe(home.preprocess_input, f"keras {home.__name__.rpartition('.')[2]}.preprocess_input"),
        labels=labels,
        notes=notes,
    )


def load_file(
    file: Path,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a ``.keras`` or ``.h5`` file of a whole model. Code inside the file (a Lambda) is not run.

    Raises:
        ExportError: the file cannot be read, or has layers of its own that are not registered here.
    """
    keras = _keras()
    if weights is not None or classes is not None:
        raise OptionError("weights and classes are for networks of a catalogue", known=f"{str(file)!r} has its own")
    try:
        with packages.captured():
            model = keras.saving.load_model(str(file), compile=False, safe_mode=True)
    except Exception as error:  # Keras raises ValueError, TypeError, OSError and its own
        raise ExportError(
            f"Keras cannot load {str(file)!r}",
            known=packages.brief(error),
            next="with layers of its own: load it in Python and give the model to fgcam_onnx.exporters.export",
        ) from error
    return load_object(model, size=size, opset=opset, name=str(file))


def load_object(
    model: Any,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
    name: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """A source from a Keras model of one input. ``size`` fixes height and width where the model leaves them free."""
    keras = _keras()
    if weights is not None or classes is not None:
        raise OptionError("weights and classes are for networks of a catalogue", known="this model has its own")
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs) or "none that Keras can tell"
        raise ExportError("the Keras model has to take one picture", known=f"inputs {shapes}")
    (picture,) = inputs
    layout = _layout(keras)
    shape = _sized(tuple(picture.shape[1:]), layout, size)

    def run(x: Any) -> Any:
        out = model(x, training=False)
        return np.asarray(keras.ops.convert_to_numpy(out)) if keras.ops.is_tensor(out) else out

    def convert(path: Path) -> Sequence[str]:
        # Keras exports only a model that has been called; the proof's first half has done so.
        spec = keras.InputSpec(shape=(None, *shape), dtype=picture.dtype, name="image")
        model.export(str(path), format="onnx", verbose=False, input_signature=[spec], opset_version=opset)
        return ()

    return Source(name or f"keras:{model.name}", run, convert, shape, layout, NEEDS, recipe, labels, notes)


def seed(number: int) -> None:
    """Make the random weights of the models that are built next those of ``number``."""
    _keras().utils.set_random_seed(number)


def _keras() -> Any:
    keras = packages.load("keras")  # first: its extra brings the others
    packages.load("tensorflow", beside="keras")
    packages.load("tf2onnx", beside="tensorflow")
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Keras runs on {keras.backend.backend()} here, the exporter is made for its TensorFlow backend",
            next="set KERAS_BACKEND=tensorflow",
        )
    return keras


def _layout(keras: Any) -> str:
    return "NCHW" if keras.config.image_data_format() == "channels_first" else "NHWC"


def _sized(shape: tuple[int | None, ...], layout: str, size: tuple[int, int] | None) -> tuple[int | None, ...]:
    """The input's shape with the size that was asked for where it is free."""
    if size is None:
        return shape
    first = 1 if layout == "NCHW" else 0
    for side, wanted in zip(shape[first : first + 2], size, strict=True):
        if side is not None and side != wanted:
            raise OptionError(f"size {size[0]}x{size[1]} does not fit the model", known=f"its input is {list(shape)}")
    return (*shape[:first], *size, *shape[first + 2 :])


def _load_weights(model: Any, file: Path) -> None:
    if not file.is_file():
        raise ExportError(f"there is no file of weights {str(file)!r}", next="check the path")
    try:
        with packages.captured():
            model.load_weights(str(file))
    except Exception as error:  # h5py's and Keras' own
        raise ExportError(
            f"the weights in {str(file)!r} are not those of {model.name}",
            known=packages.brief(error),
            next="another number of classes is --classes N",
        ) from error


def _recipe(preprocess: Any, source: str) -> dict[str, Any]:
    """The fields of Preprocessing, measured: what ``preprocess_input`` makes of black and of the three pure colours."""
    pixels = np.zeros((1, 1, 4, 3))
    pixels[0, 0, 1:] = 255 * np.eye(3)
    black, *colours = np.asarray(preprocess(pixels, data_format="channels_last"), np.float64)[0, 0]
    slope = (np.stack(colours) - black) / 255  # [channel of the picture, channel of the input]
    color = "BGR" if slope[0, 0] == 0 else "RGB"
    slope = slope[::-1].diagonal() if color == "BGR" else slope.diagonal()
    scale = 1.0 if np.allclose(slope, 1) else 1 / 255
    std = scale / slope
    return {
        "resize": "stretch",
        "interpolation": "bilinear",
        "color": color,
        "scale": scale,
        "mean": tuple(float(m) for m in np.round(-black * std, 6) + 0.0),
        "std": tuple(float(s) for s in np.round(std, 6)),
        "source": source,
    }


def _labels(home: Any) -> tuple[list[str] | None, tuple[str, ...]]:
    """Names of the thousand classes, from the table that ``decode_predictions`` fetches."""
    try:
        with packages.captured():
            rows = home.decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    except Exception as error:  # the names are worth a note, not an error
        return None, (f"class names could not be fetched: {packages.brief(error, 120)}",)
    return [f"{synset} {name}" for ((synset, name, _),) in rows], ()
