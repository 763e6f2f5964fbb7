"""The result: signed relevance first, pictures of it second, and a folder that says where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx import imaging
from fgcam_onnx.errors import InputError, OptionError, OutputError

if TYPE_CHECKING:
    from fgcam_onnx.ledger import Ledger

__all__ = ["SCHEMA_VERSION", "Explanation", "Folder"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network saw in n images.

    ``relevance``   float32 ``[n, h, w]``: signed, not normalised, at ``layer`` (``[n, w]`` and ``[n, d, h, w]`` for
                    models of signals and volumes)
    ``logits``      float ``[n, classes]``, before any softmax; of a dense output in its own shape ``[n, ...]``
    ``target``      int64 ``[n]``: the class that was explained; where it was no class, for each image its place, a
                    tuple of an entry for each axis of the logits after the batch (":", "2:5" for a sum), or "function"
    ``score``       float32 ``[n]``: the number that was explained, the logit of the class or the weighted sum of logits
    ``against``     int64 like ``target``: the class that it is held against, None if there is none
    ``promised``    float64 like ``target``: what ``relevance`` should sum to, of methods that share out a difference
                    (integrated gradients, DeepLIFT); None of others
    ``weights_sha256``   of the weights that a target function gave each image; else empty
    ``method``, ``layer``, ``start``   the method's name, where the map is, and the tensor L that it started from
    ``ledger``      the account of the relevance, node by node
    ``input_size``  (H, W) of the model's input
    ``images``      uint8 ``[n, H, W, 3]``: what was shown to the model, where known
    ``options``     the options of the method; ``provenance``: model hash, versions, providers and the like

    Explained for several classes at once, ``relevance`` is ``[n, k, h, w]``, and ``target``, ``score``, ``against`` and
    ``promised`` are ``[n, k]``; in the ledger a row stands for an image and a class, the classes of an image together.

    Raises :class:`InputError` where the shapes do not belong together or the relevance is not finite.
    """

    relevance: npt.NDArray[np.float32]
    logits: npt.NDArray[np.floating[Any]]
    target: npt.NDArray[np.int64] | tuple[Any, ...]
    method: str
    layer: str
    start: str
    ledger: Ledger
    input_size: tuple[int, ...]
    images: npt.NDArray[np.uint8] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    score: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    weights_sha256: tuple[str, ...] = ()
    against: npt.NDArray[np.int64] | None = None
    promised: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        rank = len(self.input_size)
        axes = _axes(rank)
        known = self.relevance.ndim - rank in (1, 2)
        if not known or self.relevance.dtype != np.float32 or not self.relevance.size:
            _wrong(f"relevance has to be float32 [n, {axes}], or [n, k, {axes}] of k classes", self.relevance)
        n, shape = len(self.relevance), self.rows
        classes = self.classes
        if classes is not None:
            self._check_classes(classes, shape)
        elif self.logits.ndim < 2 or len(self.logits) != n:
            _wrong(f"logits have to be [n, ...] with n = {n}", self.logits)
        elif len(self.target) != n or self.score.shape != shape:
            raise InputError(
                f"a target that is no class needs a place or 'function', and a score, for each of n = {n} images",
                known=f"there are {len(self.target)} targets, scores {list(self.score.shape)}",
            )
        if not np.isfinite(self.relevance).all():
            bad = np.argwhere(~np.isfinite(self.relevance))
            raise InputError(
                f"the relevance is not finite in {len(bad)} of {self.relevance.size} places",
                at=f"first at [{'n' if len(shape) == 1 else 'n, k'}, {axes}] = {bad[0].tolist()}",
                known=f"{self.method} at layer {self.layer!r}",
            )
        if self.images is not None:
            _pictures(self.images, n)

    def _check_classes(self, classes: npt.NDArray[np.int64], shape: tuple[int, ...]) -> None:
        n = shape[0]
        if self.logits.ndim != 2 or len(self.logits) != n:
            _wrong(f"logits have to be [n, classes] with n = {n}", self.logits)
        if classes.shape != shape or classes.dtype != np.int64:
            wanted = f"[n] with n = {n}" if len(shape) == 1 else f"[n, k] with n, k = {shape}"
            _wrong(f"target has to be int64 {wanted}", classes)
        if classes.min() < 0 or classes.max() >= self.logits.shape[1]:
            raise InputError(
                f"target {int(classes.max() if classes.min() >= 0 else classes.min())} is not a class",
                known=f"logits [n, classes] = {list(self.logits.shape)}",
            )
        score = self._of(classes, self.logits)
        if self.against is not None:
            score = score - self._of(self.against, self.logits)
        object.__setattr__(self, "score", score.astype(np.float32))

    @staticmethod
    def _of(classes: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``values`` [n, classes] at ``classes`` [n] or [n, k]."""
        found: npt.NDArray[Any] = np.take_along_axis(values, classes.reshape(len(classes), -1), axis=1)
        return found.reshape(classes.shape)

    @property
    def rows(self) -> tuple[int, ...]:
        """(n,), or (n, k) of several classes at once."""
        return self.relevance.shape[: self.relevance.ndim - len(self.input_size)]

    def __len__(self) -> int:
        return len(self.relevance)

    @property
    def classes(self) -> npt.NDArray[np.int64] | None:
        """``target`` where it is a class, else None."""
        return self.target if isinstance(self.target, np.ndarray) else None

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits, float64 ``[n, classes]``; sigmoid where the model ends in one, or has one class.

        Raises :class:`InputError` for a dense output, whose logits do not say which of them compete.
        """
        if self.logits.ndim != 2:
            raise InputError(
                "a dense output has no probability of a class",
                known=f"logits [n, ...] = {list(self.logits.shape)}",
                next="take .logits, and .score for the number that was explained",
            )
        z = self.logits.astype(np.float64)
        if self.provenance.get("head") == "Sigmoid" or z.shape[1] == 1:
            e = np.exp(-np.abs(z))
            p: npt.NDArray[np.float64] = np.where(z >= 0, 1, e) / (1 + e)
        else:
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        return p

    def heatmap(self, size: int | Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """float32 ``[n, H, W]`` in [0, 1]: ReLU, bilinear to ``size`` (default: the input's), min-max for each map.

        Bilinear with half-pixel centres and without antialias; a constant map gives zeros. Raises :class:`OptionError`
        for a size that is not a positive number of pixels for each axis.
        """
        wanted = self._size(size)
        return imaging.heat(self._flat, wanted).reshape(*self.rows, *wanted)

    @property
    def _flat(self) -> npt.NDArray[np.float32]:
        """[rows, h, w]"""
        return self.relevance.reshape(-1, *self.relevance.shape[len(self.rows) :])

    def overlay(
        self, images: npt.ArrayLike | None = None, alpha: float = 0.5, colormap: str = "jet"
    ) -> npt.NDArray[np.uint8]:
        """uint8 ``[n, H, W, 3]`` (``[n, k, H, W, 3]``): the map in colour over the images, at the images' own size.

        ``images``: uint8 or floats in [0, 1], ``[n, H, W, 3]``, grey ``[n, H, W]``, or one alone without n; default:
        what the model was shown. ``alpha`` is the weight of the map. ``colormap``: jet, ember or gray show
        :meth:`heatmap`; bwr shows the signed map, blue below zero, white at zero, red above.

        Raises :class:`InputError` for images that do not fit, :class:`OptionError` for alpha or colormap.
        """
        if len(self.input_size) != 2:
            raise InputError(
                "only a map over height and width can be laid over images",
                known=f"relevance [n, {_axes(len(self.input_size))}] = {list(self.relevance.shape)}",
                next="take .relevance or .heatmap(): a slice of a volume, relevance[:, z], has height and width",
            )
        if images is None and self.images is None:
            raise InputError("there are no images to lay the map over", next="give them: overlay(images)")
        pictures = _pictures(self.images if images is None else images, len(self))
        if len(self.rows) > 1:
            pictures = np.repeat(pictures, self.rows[1], axis=0)
        laid = imaging.overlay(pictures, imaging.shade(self._flat, pictures.shape[1:3], colormap), alpha)
        return laid.reshape(*self.rows, *laid.shape[1:])

    def manifest(self) -> dict[str, Any]:
        """What was explained, of which model, with what; plain JSON values only."""
        classes = self.classes
        p = None if classes is None else self.probabilities
        each: list[dict[str, Any]] = []
        for index in np.ndindex(self.rows):
            i = index[0]
            r = self.relevance[index].astype(np.float64)
            entry: dict[str, Any] = {"target": self._target(index)}
            if len(index) > 1:
                entry = {"image": i, **entry}
            if self.against is not None:
                entry["against"] = self.against[index]
            if classes is not None and p is not None:
                logit = self.logits[i, classes[index]]
                entry |= {"logit": logit, "probability": p[i, classes[index]], "argmax": self.logits[i].argmax()}
            if classes is None or self.against is not None:
                entry |= {"score": self.score[index]}
            if self.promised is not None:
                entry["promised_sum"] = self.promised[index]
            if self.weights_sha256:
                entry["weights_sha256"] = self.weights_sha256[i]
            entry["relevance"] = {
                "sum": r.sum(), "positive": np.maximum(r, 0).sum(), "max": r.max(), "min": r.min()
            }  # fmt: skip
            each.append(entry)
        record = {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "layer": self.layer,
            "start": self.start,
            "options": dict(self.options),
            "relevance_shape": list(self.relevance.shape),
            "input_size": list(self.input_size),
            "images": each,
            "ledger": {
                "leaked": self.ledger.leaked,
                "residual": self.ledger.residual,
                "start": self.ledger.start,
                "start_absolute": self.ledger.start_absolute,
                "arrived": self.ledger.arrived,
                "aside": self.ledger.aside,
                "rows": self.ledger.table(),
            },
            "provenance": dict(self.provenance),
        }
        plain: dict[str, Any] = plain_json(record)
        return plain

    def _target(self, index: tuple[int, ...]) -> Any:
        if isinstance(self.target, np.ndarray):
            return self.target[index]
        return self.target[index[0]] if len(index) == 1 else self.target[index[0]][index[1]]

    def save(self, folder: str | Path, images: npt.ArrayLike | None = None) -> Path:
        """Write ``relevance.npy``, an overlay PNG for each image where there are images, and last ``manifest.json``.

        Every file appears whole or not at all, and a folder without a manifest is one that was not finished. Returns
        the folder. Raises :class:`OutputError` where it cannot be written; then nothing of this call remains. Maps of
        signals and volumes have no overlay: ``images`` for them are an :class:`InputError`.
        """
        files: dict[str, bytes] = {"relevance.npy": npy(self.relevance)}
        if images is not None or (self.images is not None and len(self.input_size) == 2):
            laid = self.overlay(images)
            n, digits = len(laid), len(str(len(laid) - 1))
            for index in np.ndindex(self.rows):
                name = "overlay" if n == 1 else f"overlay_{index[0]:0{digits}}"
                if len(index) > 1:
                    name += f"_{index[1] + 1}" if self.classes is None else f"_class{int(self.classes[index])}"
                files[f"{name}.png"] = png(laid[index])
        with Folder(folder) as out:
            out.write(files)
            out.finish(self.manifest())
        return out.path

    def _size(self, size: int | Sequence[int] | None) -> tuple[int, ...]:
        rank = len(self.input_size)
        if size is None:
            return self.input_size
        sides = [size] * rank if isinstance(size, (int, np.integer)) else list(size)
        if len(sides) != rank or not all(isinstance(s, (int, np.integer)) and s > 0 for s in sides):
            raise OptionError(
                f"size is {size!r}", known=f"a positive number of pixels for each of ({_axes(rank).upper()})"
            )
        return tuple(int(s) for s in sides)


class Folder:
    """A folder of results in which every file appears whole: written beside its place, renamed, the manifest last.

    A context manager. Entering makes the folder and takes away the manifest of an earlier run, which would speak of
    files that are being replaced. If the block ends by an exception, what this run wrote in full stays only when
    ``keep`` is true; half-written files never stay. Raises :class:`OutputError`, naming path and reason.
    """

    def __init__(self, path: str | Path, *, keep: bool = False) -> None:
        self.path = Path(path)
        self.keep = keep
        self.hashes: dict[str, str] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Folder:
        try:
            for parent in (self.path, *self.path.parents):
                if parent.exists():
                    break
                self._made.append(parent)
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "manifest.json").unlink(missing_ok=True)
        except OSError as error:
            self._undo()
            raise self._error(error) from None
        return self

    def write(self, files: Mapping[str, bytes]) -> None:
        """All of these files, or none of them."""
        staged = {name: self.path / f".{name}.part{os.getpid()}" for name in files}
        done: list[Path] = []
        try:
            for name, content in files.items():
                staged[name].write_bytes(content)
            for name in files:
                os.replace(staged[name], self.path / name)
                done.append(self.path / name)
        except BaseException as error:
            for path in (*staged.values(), *done):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._error(error) from None
            raise
        self.hashes.update({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """The manifest, with the sha256 of every file written before it."""
        record = {**manifest, "files": dict(self.hashes)}
        self.write({"manifest.json": (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.keep:
            for name in self.hashes:
                with contextlib.suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
        if kind is not None:
            self._undo()

    def _undo(self) -> None:
        for path in self._made:  # only what was made here, and only while it is empty
            with contextlib.suppress(OSError):
                path.rmdir()

    def _error(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write to {str(self.path)!r}: {error.strerror or error}",
            next="choose another folder: -o DIR",
        )


def npy(array: npt.NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def png(picture: Any) -> bytes:
    """The bytes of a PNG: of a uint8 array ``[H, W, 3]`` or a Pillow picture."""
    from PIL import Image

    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(out, format="PNG")
    return out.getvalue()


def plain_json(value: Any) -> Any:
    """Arrays, NumPy numbers, paths and tuples as JSON has them; NaN and Inf as null."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def _axes(rank: int) -> str:
    return {1: "w", 2: "h, w", 3: "d, h, w"}.get(rank, "...")


def _wrong(what: str, array: npt.NDArray[Any]) -> None:
    raise InputError(what, known=f"it is {array.dtype} {list(array.shape)}")


def _pictures(images: npt.ArrayLike | None, n: int) -> npt.NDArray[np.uint8]:
    """Checked and as uint8 ``[n, H, W, 3]``."""
    try:
        array = np.asarray(images)
    except ValueError:
        raise InputError("the images differ in size", next="lay the maps over them one image at a time") from None
    if n == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)):
        array = array[None]
    if array.ndim == 3 and len(array) == n:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 4 or array.shape[-1] != 3 or len(array) != n or not array.size:
        channels_first = array.ndim == 4 and array.shape[1] == 3
        raise InputError(
            f"images have to be [n, H, W, 3] or [n, H, W] with n = {n}",
            known=f"they are {array.dtype} {list(array.shape)}",
            next="move the channels last: images.transpose(0, 2, 3, 1)" if channels_first else None,
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        span = f", values {array.min():.4g} to {array.max():.4g}" if array.dtype.kind in "fiu" else ""
        raise InputError("images have to be uint8, or floats from 0 to 1", known=f"they are {array.dtype}{span}")
    out: npt.NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return out
