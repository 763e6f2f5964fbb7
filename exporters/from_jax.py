"""JAX functions and flax.nnx modules, through jax2onnx. The layout stays the model's own, NHWC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import code, packages
from fgcam_onnx.exporters.base import Source

__all__ = ["load", "load_factory", "load_object", "seed"]

NEEDS = ("jax", "flax", "jax2onnx")
CHANNELS = 3


def load(
    apply: Any, *, input_shape: Sequence[int], opset: int | None = None, name: str = "jax", notes: tuple[str, ...] = ()
) -> Source:
    """A source from a function of ``[n, *input_shape]`` = ``[n, h, w, c]`` to ``[n, classes]``, weights inside it.

    A flax.nnx module is such a function once its ``eval()`` was called. Of flax.linen:
    ``lambda x: model.apply(variables, x, train=False)``. ``opset``: the converter's own choice if None.

    Raises:
        MissingFrameworkError, ExportError: jax or jax2onnx is missing, or not of a version that serves.
    """
    jax = packages.load("jax")
    jax2onnx = packages.load("jax2onnx", beside="jax")
    compiled = jax.jit(apply)

    def run(x: Any) -> Any:
        out = compiled(x)
        return np.asarray(out) if isinstance(out, jax.Array) else out

    def convert(path: Path) -> Sequence[str]:
        jax2onnx.to_onnx(
            apply,
            [("n", *input_shape)],
            return_mode="file",
            output_path=str(path),
            input_names=["image"],
            output_names=["logits"],
            **({} if opset is None else {"opset": opset}),
        )
        return ()

    return Source(name, run, convert, tuple(input_shape), "NHWC", NEEDS, notes=notes)


def load_object(
    made: Any,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
    name: str | None = None,
) -> Source:
    """A source from what a factory of :func:`load_factory` may return: a callable, or a pair of it and ``(h, w, c)``.

    An nnx module is put into evaluation mode.
    """
    if classes is not None or weights not in (None, "none"):
        raise OptionError("weights and classes are for networks of a catalogue", known="this function has its own")
    apply, shape = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not callable(apply):
        raise ExportError(
            f"{name or 'this'} is a {type(apply).__name__}, not a function of pictures",
            next="return an nnx.Module, a function, or a pair of a function and the shape (h, w, c)",
        )
    if shape is None:
        shape = (*(size or (224, 224)), CHANNELS)
    elif size is not None and tuple(shape[:2]) != size:
        raise OptionError(f"size {size[0]}x{size[1]} does not fit the model", known=f"its input is {list(shape)}")
    if callable(evaluate := getattr(apply, "eval", None)):
        evaluate()
    return load(apply, input_shape=tuple(shape), opset=opset, name=name or f"jax:{type(apply).__name__}")


def load_factory(
    word: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from ``package.module:factory``: a function without arguments that returns a flax.nnx module, a function
    of pictures, or a pair of one of them and the input's shape ``(h, w, c)``; without it ``size``, 224x224 if None, and
    3 channels."""
    packages.load("jax")
    made = code.call(word)
    return load_object(made, weights=weights, size=size, opset=opset, classes=classes, name=f"jax:{word}")


def seed(number: int) -> None:
    """JAX has no global randomness: a factory's weights are the factory's own."""
