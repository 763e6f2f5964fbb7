"""PaddlePaddle layers and inference models, through paddle2onnx. Layout NCHW.

paddle2onnx is called with its optimiser off: Polygraphy, its default, installs packages while it runs. Constants that
it would have folded are folded when the file is read here.
"""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fgcam_onnx.errors import ExportError, OptionError, nearest
from fgcam_onnx.exporters import packages
from fgcam_onnx.exporters import weights as weight_words
from fgcam_onnx.exporters.base import Source, in_batches

__all__ = ["load", "load_file", "load_object", "seed"]

NEEDS = ("paddle", "paddle2onnx")
# The lowest opset that paddle2onnx is asked for; it takes a higher one where an operator needs that.
OPSET = 9


def load(
    name: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a name of ``paddle.vision.models`` such as ``resnet18``.

    ``weights``: None or ``DEFAULT`` for the published ones, ``none`` for random ones, or a file ``.pdparams``.
    ``classes``: of a file with another classifier. ``size``: 224x224 if None. Paddle states no preprocessing for its
    weights: give it.

    Raises:
        OptionError: a name that Paddle does not have.
        ExportError: weights that cannot be fetched or do not fit.
    """
    _paddle()
    models = import_module("paddle.vision.models")
    known = [each for each in dir(models) if each[0].islower() and inspect.isfunction(getattr(models, each))]
    if name not in known:
        raise OptionError(
            f"paddle.vision.models has no {name!r}",
            known=packages.brief(", ".join(known), 120),
            next=nearest(name, known) or None,
        )
    own = weight_words.random(weights) or weight_words.is_file(weights)
    if not own and weights is not None and weights.upper() != "DEFAULT":
        raise OptionError(f"paddle:{name} has no weights {weights!r}", known="DEFAULT, none, or a file .pdparams")
    options = {} if classes is None else {"num_classes": classes}
    if own:
        layer = getattr(models, name)(pretrained=False, **options)
    else:
        with weight_words.downloading(f"of paddle:{name}"):
            layer = getattr(models, name)(pretrained=True, **options)
    word = "none" if weight_words.random(weights) else "DEFAULT"
    if weight_words.is_file(weights):
        assert weights is not None
        _load_weights(layer, Path(weights))
        word = Path(weights).name
    return load_object(layer, size=size, opset=opset, name=f"paddle:{name} weights={word}")


def load_object(
    layer: Any,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
    name: str | None = None,
    channels: int | None = None,
) -> Source:
    """A source from an ``nn.Layer``, put into evaluation mode; the channels are those of its first convolution."""
    paddle = _paddle()
    if classes is not None or weights not in (None, "none"):
        raise OptionError("weights and classes are for networks of a catalogue", known="this layer has its own")
    layer.eval()
    if channels is None:
        first = next((m for m in layer.sublayers() if isinstance(m, paddle.nn.Conv2D)), None)
        channels = 3 if first is None else int(first._in_channels)
    shape = (channels, *(size or (224, 224)))

    def run(x: Any) -> Any:
        with paddle.no_grad():
            out = layer(paddle.to_tensor(x))
        return out.numpy() if isinstance(out, paddle.Tensor) else out

    def convert(path: Path) -> Sequence[str]:
        prefix = path.parent / "paddle" / "model"
        spec = paddle.static.InputSpec([None, *shape], "float32", name=_argument(layer))
        paddle.jit.save(layer, str(prefix), input_spec=[spec])
        _convert(_program(prefix), path, opset)
        return ()

    return Source(name or f"paddle:{type(layer).__name__}", run, convert, shape, "NCHW", NEEDS)


def load_file(
    file: Path,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from an inference model: ``model.json`` (``model.pdmodel`` of Paddle 2) beside ``model.pdiparams``.

    Raises:
        ExportError: a part is missing, or Paddle cannot load it, or it takes more than a picture.
        OptionError: ``size`` against the model's own; weights or classes, which the file has.
    """
    paddle = _paddle()
    if weights is not None or classes is not None:
        raise OptionError("weights and classes are for networks of a catalogue", known=f"{str(file)!r} has its own")
    if not file.with_suffix(".pdiparams").is_file():
        raise ExportError(
            f"{str(file)!r} is no Paddle inference model",
            known=f"there is no {file.with_suffix('.pdiparams').name} beside it",
            next="paddle.jit.save writes both",
        )
    try:
        with packages.captured():
            layer = paddle.jit.load(str(file.with_suffix("")))
        (spec,) = layer._input_spec()
    except Exception as error:  # Paddle raises RuntimeError, ValueError and errors of its own
        raise ExportError(
            f"Paddle cannot load {str(file)!r} as a model of one picture", known=packages.brief(error)
        ) from error
    batch, *sides = (None if side < 0 else int(side) for side in spec.shape)
    if size is not None and any(a not in (None, b) for a, b in zip(sides[1:], size, strict=False)):
        raise OptionError(f"size {size[0]}x{size[1]} does not fit the model", known=f"its input is {list(spec.shape)}")
    layer.eval()

    def run(x: Any) -> Any:
        return in_batches(lambda part: layer(paddle.to_tensor(part)).numpy(), x, batch)

    def convert(path: Path) -> Sequence[str]:
        _convert(file, path, opset)
        return ()

    return Source(str(file), run, convert, tuple(sides), "NCHW", NEEDS)


def seed(number: int) -> None:
    """Make the random weights of the layers that are built next those of ``number``."""
    _paddle().seed(number)


def _paddle() -> Any:
    paddle = packages.load("paddle")
    packages.load("paddle2onnx", beside="paddle")
    return paddle


def _argument(layer: Any) -> str:
    """The name of the picture in ``forward``: Paddle's tracer matches inputs by it."""
    names = [name for name in inspect.signature(layer.forward).parameters if name != "self"]
    return names[0] if names else "image"


def _program(prefix: Path) -> Path:
    """What jit.save wrote: Paddle 3 a .json, before it, or with its new representation off, a .pdmodel."""
    return next((f for end in (".json", ".pdmodel") if (f := prefix.with_suffix(end)).is_file()), prefix)


def _convert(program: Path, path: Path, opset: int | None) -> None:
    """paddle2onnx ends the process where it meets an operator that it does not know: so it gets one of its own.

    Where it only prints what went wrong, the missing file is the sign.
    """
    options = {
        "opset_version": OPSET if opset is None else opset,
        "auto_upgrade_opset": opset is None,
        "optimize_tool": "None",
    }
    files = [str(program), str(program.with_suffix(".pdiparams")), str(path)]
    code = f"import paddle2onnx; paddle2onnx.export(*{files!r}, **{options!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not path.is_file():
        raise RuntimeError(_reason(done.stdout + done.stderr) or f"it ended with code {done.returncode}")


def _reason(said: str) -> str:
    """The lines that name the operator or the error, without colours and time stamps."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in said.splitlines()]
    telling = [line for line in lines if re.search(r"not support|unsupported|error|oops|failed|assert", line, re.I)]
    return " ".join(dict.fromkeys(telling or lines[-3:]))


class _Arrays(pickle.Unpickler):
    """Reads the pickled dict of arrays that ``paddle.save(layer.state_dict(), file)`` writes; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
            if name == "_reconstruct":
                return import_module("numpy._core.multiarray" if hasattr(np, "_core") else module)._reconstruct
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ExportError(f"there is no file of weights {str(file)!r}", next="check the path")
    try:
        with open(file, "rb") as stream:
            state = _Arrays(stream).load()
        return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    except Exception as error:  # a broken pickle may raise anything
        raise ExportError(
            f"the weights in {str(file)!r} cannot be read without running code from the file",
            known=packages.brief(error, 160),
            next="save the state dict alone: paddle.save(layer.state_dict(), file)",
        ) from error


def _load_weights(layer: Any, file: Path) -> None:
    state = _state(file)
    wanted = layer.state_dict()
    missing = [key for key in wanted if key not in state]
    other = [
        f"{key} is {list(np.shape(state[key]))}, the network has {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and list(np.shape(state[key])) != list(value.shape)
    ]
    if missing or other:
        known = "; ".join([*(["missing " + ", ".join(missing[:3])] if missing else []), *other[:3]])
        way = "another number of classes is --classes N" if other and not missing else "is this the architecture?"
        raise ExportError(f"the weights in {str(file)!r} are not those of this network", known=known, next=way)
    layer.set_state_dict(state)
