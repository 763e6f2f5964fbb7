"""The inputs beside the picture: what a call gives for them, checked, and cut to each batch.

An input is *per image* if its first axis is the batch: then it has a row for each image, or one row that serves all.
Any other input is shared: it is handed on whole. The first axis is the batch where the file says so, by the name or the
number that the picture's first axis has, and where it is free and there is a row for each image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgcam_onnx.errors import InputError, nearest
from fgcam_onnx.graph.layer import LayerGraph, Tensor

__all__ = ["Feeds", "as_dtype", "check_feeds", "filled", "free_axes_at", "numbers"]

# An input of at most this many numbers is recorded as it is, a larger one by its hash.
TINY = 16


@dataclass(frozen=True, eq=False)
class Feeds:
    """Checked arrays by input name; ``per_image`` names those with a row for each image."""

    arrays: Mapping[str, np.ndarray]
    per_image: frozenset[str]

    def rows(self, first: int, last: int, size: int) -> dict[str, np.ndarray]:
        """What the network gets beside images first..last, filled up to a batch of ``size`` by the last row."""
        return {
            name: filled(array[first:last], size) if name in self.per_image else array
            for name, array in self.arrays.items()
        }

    def part(self, first: int, last: int) -> Feeds:
        """The feeds of images first..last alone."""
        cut = {n: a[first:last] if n in self.per_image else a for n, a in self.arrays.items()}
        return Feeds(cut, self.per_image)

    def record(self) -> dict[str, Any]:
        """For the manifest: shapes, and the values themselves or their sha256."""
        return {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "rows": "one an image" if name in self.per_image else "shared",
                **(
                    {"values": array.tolist()}
                    if array.size <= TINY
                    else {"sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}
                ),
            }
            for name, array in self.arrays.items()
        }


def check_feeds(graph: LayerGraph, defaults: Iterable[str], given: Mapping[str, Any] | None, n: int) -> Feeds:
    """The arrays for every input but the picture, for ``n`` images.

    ``defaults``: names of the inputs whose value the file holds.

    Raises:
        InputError: one is missing, unknown, of a wrong shape or type, or holds NaN.
    """
    wanted = [name for name in graph.inputs if name != graph.image]
    for name in given or {}:
        if name not in wanted:
            raise _unexpected(graph, defaults, wanted, name)
    missing = [name for name in wanted if name not in (given or {})]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"input {missing[0]!r} is missing{more}: the model takes it beside the picture",
            known="; ".join(_described(graph.tensor(name)) for name in missing),
            next=f"explain(x, inputs={{{', '.join(f'{name!r}: array' for name in missing)}}}); --inputs NAME=FILE.npy",
        )
    batch = (graph.tensor(graph.image).shape or (None,))[0]
    arrays: dict[str, np.ndarray] = {}
    per_image: set[str] = set()
    for name, value in (given or {}).items():
        tensor = graph.tensor(name)
        array = numbers(value, tensor.dtype, f"input {name!r}")
        has_batch = _has_batch(tensor, batch, array, n)
        arrays[name] = _fitting(tensor, array, n, has_batch)
        if has_batch:
            per_image.add(name)
    return Feeds(arrays, frozenset(per_image))


def _unexpected(graph: LayerGraph, defaults: Iterable[str], wanted: list[str], name: str) -> InputError:
    if name == graph.image:
        return InputError(f"input {name!r} is the picture", next="give it as x: inputs= takes the others")
    if name in set(defaults):
        return InputError(
            f"input {name!r} has its value in the file, and the walk reads that value as a constant",
            next="leave it out; to explain another value, change or delete this initializer in the file",
        )
    return InputError(
        f"the model has no input {name!r}",
        known=f"beside the picture {graph.image!r} it takes {', '.join(wanted) or 'nothing'}",
        next=nearest(name, wanted) or None,
    )


def _described(tensor: Tensor) -> str:
    shape = "of any shape" if tensor.shape is None else f"[{', '.join(_size(d) for d in tensor.shape)}]"
    return f"{tensor.name} {shape} {tensor.dtype}"


def _size(size: int | str | None) -> str:
    return "any" if size is None else str(size)


def _has_batch(tensor: Tensor, batch: int | str | None, array: np.ndarray, n: int) -> bool:
    """Is the first axis of this input the batch? ``batch``: the picture's first axis, as the file states it."""
    if tensor.shape == ():
        return False
    first = tensor.shape[0] if tensor.shape is not None else None
    if tensor.shape is not None and first == batch:
        return True
    return not isinstance(first, int) and array.ndim > 0 and len(array) == n


def _fitting(tensor: Tensor, array: np.ndarray, n: int, has_batch: bool) -> np.ndarray:
    """``array`` as the file states the input: for one with a batch axis a row for each of ``n`` images."""
    shape = tensor.shape
    if shape is None:
        return array
    if has_batch and array.ndim == len(shape) - 1:
        array = array[None]
    sizes = list(zip(shape, array.shape, strict=False))[has_batch:]
    if array.ndim != len(shape) or any(isinstance(d, int) and d != have for d, have in sizes):
        raise InputError(
            f"input {tensor.name!r} has shape {list(array.shape)}",
            known=f"the model takes {_described(tensor)}" + (", the first axis is the batch" if has_batch else ""),
        )
    if not has_batch:
        return array
    if len(array) not in (1, n):
        raise InputError(
            f"input {tensor.name!r} has {len(array)} rows for {n} image{'s' * (n != 1)}",
            known=f"the model takes {_described(tensor)}, the first axis is the batch",
            next="give a row for each image, or one row for all",
        )
    return filled(array, n)


def numbers(value: Any, dtype: str, what: str) -> np.ndarray:
    """``value`` as an array of the model's type; ``what`` names it in errors.

    Raises:
        InputError: no array of numbers, NaN or Inf, or numbers that the type cannot hold.
    """
    try:
        array = np.asarray(value)
    except Exception as error:
        raise InputError(f"{what} is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} has dtype {array.dtype}, the model takes {dtype}", next="give an array of numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise InputError(f"{what} holds {len(bad)} NaN or Inf", at=f"first at {bad[0].tolist()}")
    return as_dtype(array, dtype, what)


def as_dtype(array: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Finite numbers in the model's type. A fraction that is cut off, or 300 as a uint8, would be another picture.

    Raises:
        InputError: numbers that the type cannot hold.
    """
    if dtype == "unknown" or np.dtype(dtype).kind not in "fiub":
        stated = "a type that the file does not state" if dtype == "unknown" else f"{dtype}, which is no number"
        raise InputError(f"{what} would have to be {stated}", next="only inputs of numbers can be given")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype, copy=False)
    if cast is not array:
        kept = cast == array if cast.dtype.kind in "iub" else np.isfinite(cast)
        if not kept.all():
            bad = np.argwhere(~kept)
            raise InputError(
                f"{what} holds {len(bad)} numbers that {dtype} cannot",
                at=f"first at {bad[0].tolist()}: {array[tuple(bad[0])]}",
                next=f"the model takes {dtype}: check the preprocessing, or round and clip the numbers yourself",
            )
    return np.asarray(cast, order="C")


def free_axes_at(tensor: Tensor, known: Mapping[str, int]) -> tuple[int, ...] | None:
    """A shape that the input may have: named axes at their ``known`` size, others at 1; None if its rank is unknown."""
    if tensor.shape is None:
        return None
    return tuple(known.get(d, 1) if isinstance(d, str) else d if d is not None and d > 0 else 1 for d in tensor.shape)


def filled(x: np.ndarray, size: int) -> np.ndarray:
    """x repeated at its end up to a fixed batch."""
    missing = size - len(x)
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing > 0 else x
