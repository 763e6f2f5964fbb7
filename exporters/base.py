"""Write a model's ONNX file, and prove it before anybody can pick it up.

A source, one of the modules beside this one, brings four things: how to run the model in its own framework, how to have
it converted, its input, and what it knows of preprocessing and labels. :func:`write` does the rest:

1. runs the source model on pictures, and checks labels and preprocessing against its shapes
2. lets the converter write into a folder of its own beside the target
3. runs that file in onnxruntime on the same pictures and compares
4. records where the file comes from, and moves it to its place

Whatever fails, nothing is left at the target but what was there before.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import fgcam_onnx
from fgcam_onnx import presets, runtime
from fgcam_onnx.errors import ExportError, FgcamError, OptionError, OutputError
from fgcam_onnx.exporters import packages
from fgcam_onnx.exporters.proof import compare, pictures
from fgcam_onnx.labels import read_labels
from fgcam_onnx.preprocessing import Preprocessing, choose

__all__ = ["IMAGES", "TOLERANCE", "Exported", "Source", "in_batches", "write"]

Array = npt.NDArray[Any]
Asked = Preprocessing | Mapping[str, Any] | str | os.PathLike[str] | None
TOLERANCE = 1e-4
# The converters trace with one or two pictures; three show a batch that was taken for a constant.
IMAGES = 3
# A protobuf holds 2 GiB, and the graph needs room beside the weights.
INSIDE = 1_900_000_000
# Scores that lie closer together than this many tolerances would hide a mistranslated layer.
TELLING = 100


@dataclass(frozen=True)
class Source:
    """A model in its framework, ready for the converter.

    ``name``: the words it was asked for with. ``run``: float32 ``[n, ...]`` to scores ``[n, classes]``. ``convert``:
    writes the ONNX file to a path and returns notes for the user. ``input_shape``: of a picture's array without the
    batch, ``(c, h, w)`` or ``(h, w, c)`` as ``layout`` says, None where a size is free. ``packages``: of the table in
    :mod:`fgcam_onnx.exporters.packages`, the converter last. ``recipe``: fields of
    :class:`~fgcam_onnx.preprocessing.Preprocessing`, or None if the framework knows none.
    """

    name: str
    run: Callable[[Array], Any]
    convert: Callable[[Path], Sequence[str]]
    input_shape: tuple[int | None, ...]
    layout: str
    packages: tuple[str, ...]
    recipe: Mapping[str, Any] | None = None
    labels: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What :func:`write` wrote.

    ``difference``: the largest seen, max|source - file| / max|source|. ``input_shape`` and ``output_shape`` as the file
    states them, None where a size is free. ``preprocessing`` and ``labels``: None where nobody knows them.
    """

    path: Path
    source: str
    difference: float
    tolerance: float
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    layout: str
    opset: int
    versions: dict[str, str]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    notes: tuple[str, ...] = field(default=())


def write(
    source: Source,
    output: str | os.PathLike[str],
    *,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    preprocessing: Asked = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Exported:
    """Convert, prove, record: the file at ``output`` computes what the source computes, or there is none.

    The proof: ``IMAGES`` random pictures (``seed``) go through both; max|source - file| / max|source| over all scores
    has to be at most ``tolerance``. It is recorded in the file's metadata key ``proof``.

    ``labels``: names or a file of them, instead of the source's own. ``preprocessing``: a whole recipe, single
    fields that replace those of the source, or what ``--preprocess`` takes: a preset, words, a JSON file.

    Raises:
        ExportError: the model does not run, the converter fails, or the file computes something else.
        OptionError, ModelError: preprocessing or labels that contradict the model.
        OutputError: ``output`` cannot be written.
    """
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < math.inf):
        raise OptionError(f"tolerance is {tolerance!r}", known="a finite number above 0, a share of the largest score")
    target = _target(output)
    recipe = _recipe(source, preprocessing)
    x = pictures(IMAGES, _drawn(source, recipe), source.layout, recipe, seed)
    expected = _scores(source, x)
    names = _labels(labels, source, expected)
    notes = [*source.notes, *_doubts(expected, tolerance)]
    if recipe is None:
        notes.append("no preprocessing is known: give it here, or to fgcam explain")
    else:
        notes += recipe.notes

    # In the target's own folder: a rename within a file system is one step, a copy to another is not.
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model = _converted(source, work / target.name, notes)
        shapes = _ends(model, source, x.dtype)
        difference = compare(expected, _run_file(work / target.name, x, shapes[0], source), tolerance, source.name)
        used = packages.versions(*source.packages, "fgcam_onnx", "onnx", "onnxruntime")
        used["fgcam_onnx"] = fgcam_onnx.__version__
        proof = {"tolerance": tolerance, "difference": difference, "images": len(x), "seed": seed}
        record = {
            "source": source.name,
            "versions": json.dumps(used),
            "proof": json.dumps(proof),
            "preprocessing": None if recipe is None else json.dumps(_fields(recipe)),
            "labels": None if names is None else json.dumps(names, ensure_ascii=False),
        }
        _save(model, record, work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    kept = None if names is None else tuple(names)
    return Exported(
        target, source.name, difference, tolerance, *shapes, source.layout, opset, used, recipe, kept, tuple(notes)
    )


# ---------------------------------------------------------------------------------------------------- before


def _target(output: str | os.PathLike[str]) -> Path:
    target = Path(output).absolute()
    if target.is_dir():
        raise OutputError(f"{str(output)!r} is a folder", next="name a file: -o model.onnx")
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {str(target.parent)!r} to write into", next="make it, or choose another")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"the folder {str(target.parent)!r} cannot be written to")
    return target


def _recipe(source: Source, asked: Asked) -> Preprocessing | None:
    """The source's recipe with the fields that were asked for, checked against the model's input."""
    given, origin = _asked(asked)
    layout = given.pop("layout", source.layout)
    if layout != source.layout:
        what = f"the preprocessing is for {layout}, the model takes {source.layout}"
        raise OptionError(what, known=f"its input is {_axes(source)}")
    if source.recipe is None and not given:
        return None
    found = dict(source.recipe or {})
    name = str(found.pop("source", source.name))
    metadata = {"preprocessing": json.dumps(found)} if found else {}
    recipe = choose(given, metadata=metadata, input_shape=(None, *source.input_shape), layout=source.layout)
    if given:
        name = f"{name}, with {', '.join(given)} as given" if found else origin
    return replace(recipe, source=name, file=None, sha256=None)


def _asked(asked: Asked) -> tuple[dict[str, Any], str]:
    """Fields of a recipe, and where they are from."""
    if isinstance(asked, Preprocessing):
        return {key: value for key, value in asked.to_dict().items() if key not in presets.ABOUT}, asked.source
    if isinstance(asked, (str, os.PathLike)):
        found = presets.read(asked)
        return dict(found.fields), found.source
    return {key: value for key, value in (asked or {}).items() if value is not None}, "options"


def _axes(source: Source) -> str:
    return f"{source.layout} [n, {', '.join('?' if side is None else str(side) for side in source.input_shape)}]"


def _drawn(source: Source, recipe: Preprocessing | None) -> tuple[int, ...]:
    """A picture's shape for the proof: free sides are those of the recipe, or 224."""
    channels, *_ = source.input_shape if source.layout == "NCHW" else source.input_shape[::-1]
    size = recipe.size if recipe is not None else (224, 224)
    free = (channels or 3, *size) if source.layout == "NCHW" else (*size, channels or 3)
    return tuple(side or instead for side, instead in zip(source.input_shape, free, strict=True))


def _scores(source: Source, x: Array) -> Array:
    """The source model's answer, float ``[n, classes]`` or dense; one output, finite."""
    try:
        with packages.captured():
            out = source.run(x)
    except FgcamError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ExportError(
            f"{source.name} does not run on {_axes(source)}",
            known=packages.brief(error),
            next="another --size, or a mistake in the model itself",
        ) from error
    if not isinstance(out, np.ndarray) or out.ndim < 2 or len(out) != len(x):
        what = f"an array {list(out.shape)}" if isinstance(out, np.ndarray) else f"a {type(out).__name__}"
        raise ExportError(
            f"{source.name} answers with {what}, a classifier gives one array [n, classes]",
            known=f"n is {len(x)}",
            next="wrap it in a module that returns the scores alone",
        )
    if not np.isfinite(out).all():
        bad = int(np.count_nonzero(~np.isfinite(out)))
        raise ExportError(
            f"{source.name} itself answers with NaN or infinity: {bad} of {out.size} scores",
            known="nothing can be proved against such numbers",
            next="check its weights, or the preprocessing",
        )
    return out


def _labels(given: Sequence[str] | str | os.PathLike[str] | None, source: Source, scores: Array) -> list[str] | None:
    """Class names, as many as there are classes. A dense output has its classes on the axis of the channels."""
    classes = scores.shape[1 if source.layout == "NCHW" else -1]
    if isinstance(given, (str, os.PathLike)):
        return read_labels(Path(given), classes)
    names = source.labels if given is None else given
    if names is None:
        return None
    if len(names) != classes:
        count = "1 label" if len(names) == 1 else f"{len(names)} labels"
        raise ExportError(
            f"{count} for {classes} classes",
            known=f"{'given' if given is not None else 'from ' + source.name}; the scores are {list(scores.shape)}",
            next="correct the list of labels, or leave it out",
        )
    return [str(name) for name in names]


def _doubts(scores: Array, tolerance: float) -> list[str]:
    """What makes the proof say little: scores that hardly depend on the picture."""
    largest = float(np.abs(scores).max())
    spread = float(np.ptp(scores, axis=0).max())
    if spread > TELLING * tolerance * largest:
        return []
    share = f"{spread / largest:.1e} of the largest score" if largest else "nothing, all scores are 0"
    return [f"pictures change the scores by {share}: equal scores prove little for such weights"]


# ---------------------------------------------------------------------------------------------------- the file


def _converted(source: Source, path: Path, notes: list[str]) -> onnx.ModelProto:
    """The converter's file, with the weights in it or beside it, read back."""
    converter = source.packages[-1]
    with packages.captured() as said:
        try:
            notes += source.convert(path)
        except FgcamError:
            raise
        except Exception as error:  # converters raise what they like
            raise _not_converted(source, packages.brief(error)) from error
    if not path.is_file():
        lines = [line for line in said.text().splitlines() if "error" in line.lower() or "fail" in line.lower()]
        raise _not_converted(source, packages.brief(" ".join(lines[:4]) or f"{converter} wrote no file"))
    try:
        model = onnx.load_model(path)
        if not model.graph.node:
            raise ValueError("the graph is empty")
    except Exception as error:  # protobuf's exception classes depend on its implementation
        raise _not_converted(source, f"its file cannot be read: {packages.brief(error)}") from error
    return model


def _not_converted(source: Source, reason: str) -> ExportError:
    used = ", ".join(f"{name} {version}" for name, version in packages.versions(*source.packages).items())
    return ExportError(
        f"{source.packages[-1]} cannot convert {source.name}", at=used, known=reason, next="another --opset or version"
    )


def _ends(model: onnx.ModelProto, source: Source, dtype: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """The shapes of the file's one input and one output, as far as they are fixed."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in stored]
    if len(inputs) != 1:
        raise ExportError(
            f"the exported file takes {len(inputs)} inputs, {source.name} takes one picture",
            known=", ".join(each.name for each in inputs) or "none",
        )
    if len(model.graph.output) != 1:
        outputs = ", ".join(each.name for each in model.graph.output)
        raise ExportError(f"the exported file has {len(model.graph.output)} outputs", known=outputs)
    shape = _shape(inputs[0])
    kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type)
    fixed = zip(shape[1:], source.input_shape, strict=False)
    if len(shape) != 1 + len(source.input_shape) or any(a is not None and b is not None and a != b for a, b in fixed):
        raise ExportError(f"the exported file takes {list(shape)}, {source.name} takes {_axes(source)}")
    if kind != dtype:
        raise ExportError(f"the exported file takes {kind}, {source.name} takes {dtype}")
    return shape, _shape(model.graph.output[0])


def _fields(recipe: Preprocessing) -> dict[str, Any]:
    return {key: value for key, value in recipe.to_dict().items() if key in (*presets.FIELDS, "source")}


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _run_file(path: Path, x: Array, shape: tuple[int | None, ...], source: Source) -> Array:
    """The file's output for all of ``x``."""
    ort = runtime.onnxruntime()
    try:
        session = ort.InferenceSession(str(path), runtime.session_options(), providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        return in_batches(lambda part: session.run(None, {feed: part})[0], x, shape[0])
    except Exception as error:  # onnxruntime's exception classes are not public
        raise ExportError(
            f"onnxruntime cannot run the exported file of {source.name} on {len(x)} pictures",
            known=packages.brief(error),
            next="another --opset",
        ) from error


def in_batches(run: Callable[[Array], Any], x: Array, batch: int | None) -> Array:
    """``run`` over all of ``x``, ``batch`` pictures at a time; all at once if None. The last ones are filled up."""
    if batch is None:
        return np.asarray(run(x))
    found = []
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        missing = batch - len(part)
        part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
        found.append(np.asarray(run(part))[: batch - missing])
    return np.concatenate(found)


def _save(model: onnx.ModelProto, record: Mapping[str, str | None], work: Path, target: Path) -> None:
    """Metadata in, then to its place: weights that do not fit inside first, the file that names them last."""
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key not in record}
    kept.update({key: value for key, value in record.items() if value is not None})
    onnx.helper.set_model_props(model, kept)
    beside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > INSIDE
    done = work / "done"
    done.mkdir()
    try:
        onnx.save_model(
            model, done / target.name, save_as_external_data=beside, location=f"{target.name}.data" if beside else None
        )
        for file in sorted(done.iterdir(), key=lambda each: each.name == target.name):
            os.replace(file, target.parent / file.name)
    except OSError as error:
        raise OutputError(f"{str(target)!r} cannot be written", known=error.strerror or str(error)) from error
