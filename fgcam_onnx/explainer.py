"""Explainer: a model file in, maps out. Ties graph, forward pass, base CAM and descent together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fgcam_onnx import backends, descent
from fgcam_onnx.backends.base import Array, Backend, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.cams.base import Context
from fgcam_onnx.composite import GradientComposite, RelevanceComposite
from fgcam_onnx.coverage import Coverage, cover
from fgcam_onnx.denoise import denoise as denoise_components
from fgcam_onnx.descent import RESULT, START, Plan
from fgcam_onnx.errors import (
    ActivationError,
    DeviceMemoryError,
    InputError,
    LayerError,
    MethodError,
    ModelError,
    OptionError,
    nearest,
)
from fgcam_onnx.explanation import Explanation
from fgcam_onnx.feeds import Feeds, as_dtype, check_feeds, filled, free_axes_at
from fgcam_onnx.forward import Forward
from fgcam_onnx.graph.dense import axis_names, is_dense
from fgcam_onnx.graph.layer import LayerGraph, Tensor
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.shapes import concrete_shapes, view_shapes
from fgcam_onnx.graph.sizes import complete_shapes
from fgcam_onnx.graph.stages import Stage, find_stages, is_cut
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.labels import find_labels
from fgcam_onnx.ledger import Ledger
from fgcam_onnx.methods import Method
from fgcam_onnx.methods import method as find_method
from fgcam_onnx.targets import aim_at

__all__ = ["Explainer", "explain"]

Progress = Callable[[int, int], None]
DENOISE_OPTIONS = ("ratio", "add_mean_back", "support_mask")
LOG = logging.getLogger("fgcam_onnx")
SEED = "gradient_of_logits"
# Rounding leaves 1e-7 of the relevance unexplained, a few 1e-4 at worst. More is a wrong map, and no map.
OPEN_BOOKS = 1e-2
# Relevance that is itself too small for the numbers that hold it: its books are noise.
FAINT = 1e-30


class Explainer:
    """Explains one ONNX model.

    ``model``: path, bytes or ModelProto. ``backend``: "auto" (cupy where there is a GPU, else ort), "cupy", "ort" or
    "numpy", or a Backend. ``providers``: onnxruntime execution providers of the forward pass; if None CUDA's beside the
    cupy backend, if it works here, else the CPU's. ``input``: which graph input is the picture; if None the only one,
    or the only spatial one (of three to five axes) that feeds the output. ``output``: which graph output to explain,
    the first if None.
    ``precision``: "float32"; "float64" with the numpy and cupy backends, for audits; "fast" with the cupy backend:
    products of z+ and z^B on tensor cores, rounded to TF32. ``threads``: of every session, all cores if None.

    Raises:
        ModelError: the file is no ONNX model, is damaged, or has no input or output to explain.
        MissingRuntimeError: onnxruntime is not installed.
        BackendError, OptionError: a backend, provider or precision that is not to be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        backend: str | Backend = "auto",
        providers: Sequence[str] | None = None,
        input: str | None = None,
        output: str | None = None,
        precision: str = "float32",
        threads: int | None = None,
    ) -> None:
        self._model = load(model)
        self._input, self._output = input, output
        self.graph = build_view(self._model, output, image=input)
        self._backend = backend if isinstance(backend, Backend) else backends.make(backend, precision, threads)
        self.notes: list[str] = [*self.graph.notes, *self._backend.notes]
        self._forward = Forward(
            self._model, self.graph, None if providers is None else list(providers), threads, self._backend, self.notes
        )
        self._plain_graph: LayerGraph | None = None
        self._shapes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        classes = self.num_classes
        found = find_labels(self.path, self.metadata, classes, self.notes) if classes else None
        self.labels: list[str] | None = found[0] if found else None
        self.labels_source: str | None = found[1] if found else None

    # --- what the model is --------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The model file, None if it was given as bytes or ModelProto."""
        return self._model.path

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own ``metadata_props``."""
        return self._model.metadata

    @property
    def sha256(self) -> str:
        """Of the model file and all its external data."""
        return self._model.sha256

    @property
    def backend(self) -> str:
        return self._backend.name

    @property
    def precision(self) -> str:
        """Of the descent: "float32", "float64" or "fast"."""
        return self._backend.precision

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run the forward pass."""
        return self._forward.providers

    @property
    def input_name(self) -> str:
        return self.graph.image

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """As the file states it: a name or None where a size is free."""
        return self.graph.tensor(self.graph.image).shape or ()

    @property
    def input_dtype(self) -> str:
        return self.graph.tensor(self.graph.image).dtype

    @property
    def layout(self) -> str:
        """One letter an axis of the input: "NCHW", "NHWC"."""
        known = self.graph.tensor(self.graph.image).layout
        return known or {3: "NCW", 4: "NCHW", 5: "NCDHW"}.get(len(self.input_shape), "")

    @property
    def other_inputs(self) -> dict[str, tuple[int | str | None, ...] | None]:
        """The inputs beside the picture that ``explain(inputs=...)`` must be given, with their shapes.

        An input with an initializer of its name is none of them: its value is in the file.
        """
        return {name: self.graph.tensor(name).shape for name in self.graph.inputs if name != self.graph.image}

    @property
    def outputs(self) -> dict[str, tuple[int | str | None, ...] | None]:
        """The outputs of the model with their shapes: what ``output=`` takes, beside any tensor."""
        return {name: self.graph.tensor(name).shape for name in self.graph.outputs}

    @property
    def output_name(self) -> str:
        """The tensor that is explained: the output, or what a final Softmax or ArgMax reads."""
        return self.graph.logits

    @cached_property
    def output_shape(self) -> tuple[int | str | None, ...]:
        """Of that tensor, as the file states it; of free sizes for one size of the input. () if unknown."""
        shape = self.graph.tensor(self.graph.logits).shape
        if shape and all(isinstance(d, int) for d in shape[1:]):
            return shape
        known = self._shapes_for(self._some_shape(), self._some_others()).get(self.graph.logits)
        if known or self.other_inputs:
            return known or shape or ()
        x = np.zeros(self._some_shape(), self.input_dtype)
        return _shape(self._forward.run({self.graph.image: x}, [self.graph.logits])[self.graph.logits])

    @property
    def output_axes(self) -> tuple[str, ...]:
        """What the axes of the output after the batch are: "class", "y", "x", or "axis 1" where nothing is known."""
        return axis_names(self.output_shape, self.graph.tensor(self.graph.logits).layout)

    @property
    def dense(self) -> bool:
        """Is the output more than one score a class? Then ``target`` is a place of it, or a function."""
        return is_dense(self.output_shape, self.graph.tensor(self.graph.logits).layout)

    @cached_property
    def num_classes(self) -> int:
        """How many classes the model scores; 0 where the axes of a dense output do not tell."""
        sizes = self.output_shape[1:]
        if self.dense:
            sizes = tuple(d for d, axis in zip(sizes, self.output_axes, strict=True) if axis == "class") or (0,)
        return int(np.prod([d if isinstance(d, int) else 0 for d in sizes])) if sizes else 0

    @property
    def default_layer(self) -> str:
        """L: the tensor that methods start from (methods 2.2).

        Raises:
            ModelError: the model has no such tensor.
        """
        return next(stage.name for stage in self.layers() if stage.default)

    def layers(self) -> tuple[Stage, ...]:
        """The spatial stages from the input to L. ``layer=`` takes their names, "input", and any tensor or node name.

        Raises:
            ModelError: the model is no convolutional classifier.
        """
        return self._stages

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        sizes = self._shapes_for(self._some_shape(), self._some_others()) if self.dense else {}
        return find_stages(self.graph, dense=self.dense, shapes=sizes)

    def coverage(self, **options: Any) -> Coverage:
        """Each node on the path with its rule, or why it has none. Nothing is run. Options as in :meth:`explain`."""
        return cover(self._graph_for(options), self.default_layer, self._composite(options))

    # --- explaining -----------------------------------------------------------------------------------------------

    def explain(
        self,
        x: Any,
        *,
        method: str = "fg-grad-cam",
        layer: str | None = None,
        start: str | None = None,
        target: Any = None,
        denoise: bool = False,
        inputs: Mapping[str, Any] | Feeds | None = None,
        progress: Progress | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Explanation:
        """Where the network saw the evidence for a class.

        ``x``: a batch as the model takes it, [n, c, h, w] or [n, h, w, c], preprocessed. ``layer``: where the map is
        wanted; "input" by default for fine-grained methods, L for CAMs. ``start``: another L; one that not all evidence
        passes shows the evidence through it alone, and a note says so. ``denoise``: keep the strongest directions of
        the components at L (``ratio``, ``add_mean_back``, ``support_mask``). ``inputs``: arrays for the inputs beside
        the picture, by name; with a row for each image where the first axis is the batch. ``batch_size``: images at a
        time; a batch that does not fit a GPU's memory is split, and a log line says so.

        ``target``: None for the predicted class, an index, a label, or a list of one of these for each image. Of a
        dense output a place: a tuple with an entry for each axis of the output after the batch, in the output's own
        order, ``(class, y, x)`` or ``(y, x, class)``; an entry is an index, or None or a slice for the sum over the
        axis. Or a function of the logits that returns how much each of them counts: it is called with the logits of one
        image, [1, ...], and the weighted sum of the logits is explained.

        Options of the descent (methods 2.6): ``first_layer`` zB | z+ | flat, ``zb_bounds`` "per_image" or (low, high),
        ``batchnorm`` fold | identity, ``relu`` mask | identity, ``add`` zplus | norm, ``mul`` signal | uniform,
        ``maxpool`` winner | winner_positive.

        Raises:
            InputError: ``x`` does not fit the model, or holds NaN or Inf.
            MethodError, LayerError, TargetError, OptionError: a name that does not exist; the nearest is suggested.
            UnsupportedOpError: a node on the path has no rule; found before anything runs.
            ModelError: the model has no layer to start from, or its output no batch.
            ActivationError: the network itself computed NaN or Inf.
            DeviceMemoryError: a single image does not fit the GPU's memory.
        """
        chosen = find_method(method)
        job = self._job(chosen, layer, start, denoise, options)
        x = self._checked(x)
        feeds = self.feeds(inputs, len(x))
        report = progress or (lambda done, total: None)
        size = self._batch(len(x), batch_size)
        if feeds.per_image and not chosen.differentiates:
            size = 1  # such a method asks for scores of changed pictures, each beside its own image's other inputs
        parts: list[_Part] = []
        first = 0
        while first < len(x):
            last = min(first + size, len(x))
            call = _Call(target, first, last, len(x), feeds)
            try:
                part = self._batch_explained(job, x[first:last], call, _offset(report, first, len(x), size), batch_size)
            except DeviceMemoryError as error:
                size = self._smaller(size, last - first, error)
                continue
            except _SharedError as shared:
                size = self._one_by_one(shared)
                continue
            parts.append(part)
            first = last
        return self._explanation(job, x, parts, options, feeds)

    def feeds(self, inputs: Mapping[str, Any] | Feeds | None, n: int) -> Feeds:
        """What :meth:`explain` makes of ``inputs`` beside ``n`` images: checked, with a row for each image or shared.

        Raises:
            InputError: one is missing, unknown, of a wrong shape or type, or holds NaN.
        """
        return inputs if isinstance(inputs, Feeds) else check_feeds(self.graph, self._defaults, inputs, n)

    def _one_by_one(self, shared: _SharedError) -> int:
        """Relevance goes to a tensor that the images of a batch share: one at a time, or the books would be mixed."""
        fixed = self.input_shape[0] if self.input_shape else None
        if isinstance(fixed, int) and fixed > 1:
            raise ModelError(
                "relevance of several images would meet in one tensor, and could not be told apart",
                at=f"tensor {shared.name!r}, which has no batch axis",
                known=f"the model's batch is fixed at {fixed}",
                next="export the model with a free batch, or choose layer= behind the place where the tensor comes in",
            )
        return 1

    def _smaller(self, size: int, images: int, error: DeviceMemoryError) -> int:
        """Half of a batch that did not fit; said in the log. A batch that cannot be halved is the user's to know."""
        fixed = self.input_shape[0] if self.input_shape else None
        if images <= 1 or (isinstance(fixed, int) and fixed > 0):
            raise error
        half = -(-min(size, images) // 2)
        LOG.warning("%s: %d images at a time are too many, going on with %d", error.what, images, half)
        self._backend.release()
        return half

    def _job(
        self, chosen: Method, layer: str | None, start: str | None, denoise: bool, options: dict[str, Any]
    ) -> _Job:
        composite = self._composite(options, f"method {chosen.name!r}", DENOISE_OPTIONS)
        graph = self._graph_for(options)
        if chosen.fine:
            source = self._tensor(start, graph) if start is not None else self.default_layer
            target = self._tensor(layer if layer is not None else "input", graph)
        else:
            if layer is not None and start is not None and layer != start:
                raise OptionError(
                    f"{chosen.name} works at one layer, and layer={layer!r} and start={start!r} are two",
                    next=f"give one of them, or use fg-{chosen.name} to walk from one to the other",
                )
            named = layer if layer is not None else start
            source = target = self._tensor(named, graph) if named is not None else self.default_layer
        for name in (source, target):
            self._need_space(graph, name)
        cleaning = {k: v for k, v in options.items() if k in DENOISE_OPTIONS}
        if cleaning and not denoise:
            raise OptionError(f"option {next(iter(cleaning))} belongs to denoising", next="add denoise=True")
        dead_start = not denoise or bool(cleaning.get("support_mask", True))
        head = self._plan(graph, graph.logits, source, GradientComposite(), False) if chosen.differentiates else None
        body = self._plan(graph, source, target, composite, dead_start)
        _check_bounds(composite, body)
        notes: tuple[str, ...] = ()
        if source != graph.image and not is_cut(graph, source):
            notes = (f"not all evidence passes {source!r}: the map shows what went through it, and nothing else",)
        return _Job(chosen, graph, source, target, head, body, denoise, cleaning, notes)

    def _composite(
        self, options: Mapping[str, Any], owner: str = "coverage()", others: tuple[str, ...] = ()
    ) -> RelevanceComposite:
        known = [f.name for f in fields(RelevanceComposite) if f.init]
        for name in options:
            if name not in (*known, *others):
                raise OptionError(
                    f"{owner} has no option {name!r}",
                    known=", ".join((*known, *others)),
                    next=nearest(name, (*known, *others)) or None,
                )
        composite = RelevanceComposite(**{k: v for k, v in options.items() if k in known})
        bounds = () if isinstance(composite.zb_bounds, str) else composite.zb_bounds
        channels = dict(zip(self.layout, self.input_shape, strict=False)).get("C")
        for bound in bounds:
            if isinstance(channels, int) and np.size(bound) not in (1, channels) and not self.other_inputs:
                raise OptionError(
                    f"option zb_bounds has {np.size(bound)} numbers", known=f"the image has {channels} channels"
                )
        return composite

    def _graph_for(self, options: Mapping[str, Any]) -> LayerGraph:
        if options.get("batchnorm", "fold") == "fold":
            return self.graph
        if self._plain_graph is None:
            self._plain_graph = build_view(self._model, self._output, image=self._input, fold_norms=False)
        return self._plain_graph

    def _plan(self, graph: LayerGraph, source: str, target: str, composite: Any, dead_start: bool) -> Plan:
        key = (id(graph), source, target, composite.key, dead_start)
        if key not in self._plans:
            made = descent.plan(graph, source, target, composite, dead_start=dead_start)
            # A backend keeps what it compiled by this key and may serve several models: names and shapes do not tell
            # their weights apart.
            view = "folded" if graph is self.graph else "plain"
            self._plans[key] = replace(made, key=f"{self.sha256}|{graph.image}|{self._output}|{view}|{made.key}")
        return self._plans[key]

    def _tensor(self, name: str, graph: LayerGraph) -> str:
        """A tensor by its name, its node's name, or "input"."""
        tensors = {o for each in graph.layers for o in each.outputs if o} | set(graph.inputs)
        if name in tensors:
            return name
        if name == "input":
            return graph.image
        nodes = {node: each for each in graph.layers for node in (each.name, *each.nodes)}
        if name in nodes:
            return nodes[name].output
        raise LayerError(
            f"the model has no layer {name!r}",
            known=f"{len(tensors)} tensors; the stages are {', '.join(['input', *self._stage_names[1:]])}",
            next=nearest(name, ["input", *tensors, *nodes]) or "fgcam inspect lists them",
        )

    def _need_space(self, graph: LayerGraph, name: str) -> None:
        layout = graph.tensor(name).layout or (self.layout if name == graph.image else None)
        if layout is None or "C" not in layout or len(layout) < 3:
            shape = graph.tensor(name).shape
            raise LayerError(
                f"tensor {name!r} has no space: no map can be drawn there",
                known=f"its shape is {'unknown' if shape is None else list(shape)}",
                next=f"choose one of {', '.join(self._stage_names)}",
            )

    @property
    def _stage_names(self) -> list[str]:
        """For errors: the image alone where there is no L."""
        try:
            return [stage.name for stage in self.layers()]
        except ModelError:
            return [self.graph.image]

    @cached_property
    def _defaults(self) -> frozenset[str]:
        """Inputs whose value is in the file."""
        return frozenset(value.name for value in self._model.proto.graph.input) - frozenset(self.graph.inputs)

    def _checked(self, x: Any) -> np.ndarray:
        """``x`` as an array of the model's dtype, if it fits."""
        try:
            array = np.asarray(x)
        except Exception as error:
            raise InputError(f"the input is no array: {error}") from error
        shape, layout = self.input_shape, self.layout
        axes = ", ".join(axis.lower() for axis in layout)
        wanted = f"[{axes}] = [{', '.join(str(d) if isinstance(d, int) else 'any' for d in shape)}]"
        if array.dtype.kind not in "fiu" or array.dtype == object:
            raise InputError(
                f"the input has dtype {array.dtype}, the model takes {self.input_dtype} {wanted}",
                next="give an array of numbers",
            )
        if array.ndim != len(shape) or any(
            isinstance(d, int) and axis and d != have
            for axis, (d, have) in enumerate(zip(shape, array.shape, strict=False))
        ):
            hint = None
            if array.ndim == len(shape) - 1:
                hint = "add the batch axis: x[None]"
            elif array.ndim == 4 and layout in ("NCHW", "NHWC"):
                move = (0, 3, 1, 2) if layout == "NCHW" else (0, 2, 3, 1)
                moved = tuple(array.shape[m] for m in move)
                if all(not isinstance(d, int) or d == h for d, h in zip(shape[1:], moved[1:], strict=True)):
                    hint = f"the axes are in another order: x.transpose{move}"
            raise InputError(
                f"the input has shape {list(array.shape)}, the model takes {wanted}",
                at=f"input {self.input_name!r}, layout {layout}",
                next=hint or "preprocess the image to this size",
            )
        if 0 in array.shape:
            raise InputError(f"the input is empty: shape {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise InputError(
                f"the input holds {len(bad)} NaN or Inf",
                at=f"first at [{axes}] = {bad[0].tolist()}",
                next="clean the picture before it is explained",
            )
        return as_dtype(array, self.input_dtype, "the input")

    def _batch(self, n: int, wanted: int | None) -> int:
        fixed = self.input_shape[0] if self.input_shape else None
        if isinstance(fixed, int) and fixed > 0:
            return fixed
        if wanted is not None and wanted < 1:
            raise OptionError(f"option batch_size cannot be {wanted}", known="images at a time, at least 1")
        size = wanted or self._backend.batch
        return -(-n // -(-n // size))  # even pieces: fewer shapes to compile for

    def _some_shape(self) -> tuple[int, ...]:
        """A shape that the model could take."""
        defaults = {"N": 1, "C": 3}
        return tuple(
            d if isinstance(d, int) and d > 0 else defaults.get(axis, 224)
            for d, axis in zip(self.input_shape, self.layout, strict=False)
        )

    def _some_others(self) -> dict[str, tuple[int, ...]]:
        """Shapes that the other inputs could have beside :meth:`_some_shape`, where their rank is known."""
        pairs = zip(self.input_shape, self._some_shape(), strict=False)
        known = {stated: size for stated, size in pairs if isinstance(stated, str)}
        found = {name: free_axes_at(self.graph.tensor(name), known) for name in self.other_inputs}
        return {name: shape for name, shape in found.items() if shape is not None}

    def _shapes_for(self, shape: tuple[int, ...], others: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        key = (shape, *sorted(others.items()))
        if key not in self._shapes:
            given: dict[str, Any] = {self.graph.image: shape, **others}
            if self.graph.quantised:
                found = view_shapes(self.graph, given)
                known: dict[str, Any] = {n: s for n, s in found.items() if all(isinstance(d, int) for d in s)}
                self._shapes[key] = known
            else:
                self._shapes[key] = complete_shapes(self.graph, concrete_shapes(self._model, given))
        return self._shapes[key]

    def _score(self, x: np.ndarray, feeds: Feeds) -> np.ndarray:
        """Logits [m, classes] of inputs, in pieces of the model's fixed batch if it has one.

        ``feeds``: the other inputs of one image, which are those of all.
        """
        if np.dtype(self.input_dtype).kind in "iu":
            x = np.rint(x)
        fixed = self.input_shape[0] if self.input_shape else None
        free = not (isinstance(fixed, int) and fixed > 0)
        size = len(x) if free else int(fixed or 1)
        found: list[np.ndarray] = []
        first = 0
        while first < len(x):
            piece = x[first : first + size].astype(self.input_dtype, copy=False)
            given = len(piece)
            whole = piece if free else filled(piece, size)
            others = feeds.rows(0, 1, len(whole))
            try:
                values = self._forward.run({self.graph.image: whole, **others}, [self.graph.logits])
            except DeviceMemoryError as error:
                size = self._smaller(size, given, error)
                continue
            found.append(_numpy(values[self.graph.logits]).reshape(len(whole), -1)[:given].astype(np.float32))
            first += given
        return np.concatenate(found)

    def _batch_explained(
        self, job: _Job, x: np.ndarray, call: _Call, progress: Progress, batch_size: int | None
    ) -> _Part:
        fixed = self.input_shape[0] if self.input_shape else None
        given = len(x)
        x = filled(x, fixed if isinstance(fixed, int) and fixed > 0 else given)
        others = call.feeds.rows(call.first, call.last, len(x))

        shapes = dict(self._shapes_for(x.shape, {name: array.shape for name, array in others.items()}))
        plans = [plan for plan in (job.head, job.body) if plan is not None]
        reads = {name for plan in plans for name in plan.reads} | {job.source, job.graph.logits}
        unknown = {name: job.graph.in_model(name) for plan in plans for name in plan.tensors if name not in shapes}
        raw = self._forward.run({job.graph.image: x, **others}, sorted(reads | set(unknown.values())))
        tape = {name: _as_float(raw[name], job.graph.tensor(name)) for name in sorted(reads)}
        shapes.update({name: _shape(value) for name, value in raw.items()})
        shapes.update({name: shapes[known] for name, known in unknown.items()})
        if len(x) > 1 and (shared := job.body.shared(shapes)) is not None:
            raise _SharedError(shared)

        logits = _by_image(_numpy(tape[job.graph.logits]), len(x), job.graph.logits).astype(np.float32)
        if not np.isfinite(logits).all():
            raise self._not_finite(job, tape)
        layout = job.graph.tensor(job.graph.logits).layout
        aim = aim_at(call.target, logits[:given], self.labels, layout, first=call.first, images=call.images)
        if aim.classes is None and not job.method.differentiates:
            raise MethodError(
                f"{job.method.name} weighs channels by the probability of a class, and this target is none",
                known=f"the output {job.graph.logits!r} has the shape {list(logits.shape)}",
                next="take fg-grad-cam or fg-layer-cam, which explain any weighted sum of logits",
            )
        classes = None if aim.classes is None else filled(aim.classes, len(x))
        seed = filled(aim.weights, len(x)).reshape(shapes[job.graph.logits])
        batch = _Batch(x, shapes, tape, seed, classes, call.feeds.part(call.first, call.last))
        if self._backend.resident and job.method.differentiates and not job.denoise:
            result = self._in_one_program(job, batch)
        else:
            result = self._step_by_step(job, batch, progress, batch_size)
        ledger = descent.ledger_of(job.body, {k: v for k, v in result.items() if k != RESULT})
        if not (np.isfinite(ledger.arrived).all() and np.isfinite(ledger.residual)):
            raise self._not_finite(job, tape)
        if ledger.residual > OPEN_BOOKS and float(ledger.start_absolute.max()) > FAINT:
            raise ActivationError(
                f"the books do not close: {ledger.residual:.2g} of the relevance is unaccounted for",
                at=f"from {job.source!r} to {job.target!r}",
                known=f"{self.precision} cannot hold numbers as large or as small as this network's",
                next="Explainer(..., backend='numpy', precision='float64') has the range",
            )
        goal = job.graph.tensor(job.target).layout or self.layout
        summed = result[RESULT].sum(axis=goal.index("C"), dtype=np.float64)[:given]
        logits = logits[:given]
        return _Part(
            np.ascontiguousarray(summed, np.float32),
            logits if aim.classes is None and logits.ndim > 2 else logits.reshape(given, -1),
            aim.classes,
            aim.said,
            aim.score(logits),
            aim.hashes(),
            ledger.first(given) if given < len(x) else ledger,
        )

    def _step_by_step(
        self, job: _Job, batch: _Batch, progress: Progress, batch_size: int | None
    ) -> dict[str, np.ndarray]:
        """Gradient, components, denoising and descent one after the other, with arrays of the host in between."""
        channel = (job.graph.tensor(job.source).layout or self.layout).index("C")
        activations = np.moveaxis(_numpy(batch.tape[job.source]), channel, 1)

        def differentiate() -> np.ndarray:
            if job.head is None:
                raise TypeError("this method declared that it needs no gradient")
            result = self._run(job.head, batch, batch.seed, keep_books=False)
            return np.moveaxis(result[RESULT], channel, 1)

        xp = NumpyVerbs(self._backend.dtype)
        context = self._context(batch, xp, activations, differentiate, progress, batch_size)
        components = job.method.components(context)
        if not np.isfinite(components).all():
            raise self._not_finite(job, batch.tape)
        if job.denoise:
            components = denoise_components(components, activations, **job.cleaning)
        return self._run(job.body, batch, np.moveaxis(components, 1, channel), keep_books=True)

    def _in_one_program(self, job: _Job, batch: _Batch) -> dict[str, np.ndarray]:
        """The same as one program: nothing but the sum over channels and the books comes back from the device."""
        head, body = job.head, job.body
        if head is None:
            raise TypeError("a method that differentiates has a plan for the head")
        channel = (job.graph.tensor(job.source).layout or self.layout).index("C")
        goal = (job.graph.tensor(job.target).layout or self.layout).index("C")
        rank = len(batch.shapes[job.source])
        first = (0, channel, *(a for a in range(1, rank) if a != channel))  # channels first, and back again
        back = tuple(first.index(a) for a in range(rank))

        def run(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
            def differentiate() -> Array:
                walked = descent.descend(head, batch.shapes, xp, {**inputs, START: inputs[SEED]}, False)
                return xp.transpose(walked[RESULT], first)

            activations = xp.transpose(inputs[job.source], first)
            context = self._context(batch, xp, activations, differentiate, lambda done, total: None, None)
            components = xp.transpose(job.method.components(context), back)
            found = descent.descend(body, batch.shapes, xp, {**inputs, START: components}, True)
            return {**found, RESULT: xp.reduce_sum(found[RESULT], (goal,))}

        parts = (descent.program(head, batch.shapes, keep_books=False), descent.program(body, batch.shapes))
        program = Program("|".join([job.method.name, *(part.key for part in parts)]), run)
        names = dict.fromkeys((job.source, *head.reads, *body.reads))
        return self._backend.execute(program, {**{name: batch.tape[name] for name in names}, SEED: batch.seed})

    def _context(
        self, batch: _Batch, xp: Verbs, activations: Array, differentiate: Callable[[], Array], progress: Progress,
        batch_size: int | None,
    ) -> Context:  # fmt: skip
        return Context(
            xp=xp,
            activations=activations,
            target=np.zeros(0, np.int64) if batch.classes is None else batch.classes,
            x=batch.x,
            channel_axis=self.layout.index("C"),
            differentiate=differentiate,
            score=lambda x: self._score(x, batch.feeds),
            progress=progress,
            batch_size=batch_size or 16,
            head=self.graph.head,
        )

    def _run(self, plan: Plan, batch: _Batch, start: np.ndarray, *, keep_books: bool) -> dict[str, np.ndarray]:
        inputs = {name: batch.tape[name] for name in plan.reads}
        inputs[START] = np.ascontiguousarray(start, self._backend.dtype)
        return self._backend.execute(descent.program(plan, batch.shapes, keep_books=keep_books), inputs)

    def _not_finite(self, job: _Job, tape: Mapping[str, Any]) -> ActivationError:
        """Name the first tensor, in the order of the graph, that is not finite."""
        order = [o for layer in job.graph.layers for o in layer.outputs]
        for name in [n for n in order if n in tape]:
            array = _numpy(tape[name])
            if not np.isfinite(array).all():
                producer = job.graph.producer(name)
                return ActivationError(
                    f"the network computed NaN or Inf: {int((~np.isfinite(array)).sum())} of {array.size} values",
                    at=f"tensor {name!r} of node {producer.name!r} ({producer.op})" if producer else f"tensor {name!r}",
                    known="earlier tensors that were read are finite",
                    next="the model overflows on this input: check its weights, its precision and the preprocessing",
                )
        return ActivationError(
            "the descent overflowed: all activations are finite, the relevance is not",
            at=f"from {job.source!r} to {job.target!r}",
            next="Explainer(..., backend='numpy', precision='float64') has the range",
        )

    def _explanation(
        self, job: _Job, x: np.ndarray, parts: list[_Part], options: Mapping[str, Any], feeds: Feeds
    ) -> Explanation:
        layout = self.layout
        space = tuple(d for d, axis in zip(x.shape, layout, strict=True) if axis not in "NC")
        classes = [p.classes for p in parts if p.classes is not None]
        provenance = self._provenance()
        provenance["inputs"] = feeds.record()
        provenance["notes"] += [*job.notes, *self._notes_on(job, parts)]
        return Explanation(
            relevance=np.concatenate([p.relevance for p in parts]),
            logits=np.concatenate([p.logits for p in parts]),
            target=np.concatenate(classes) if classes else tuple(said for p in parts for said in p.said),
            method=job.method.name,
            layer="input" if job.target == job.graph.image else job.target,
            start=job.source,
            ledger=Ledger.join([p.ledger for p in parts]) if len(parts) > 1 else parts[0].ledger,
            input_size=space,
            images=_displayable(x, layout),
            options={"denoise": job.denoise, **options},
            provenance=provenance,
            score=np.concatenate([p.score for p in parts]),
            weights_sha256=tuple(digest for p in parts for digest in p.hashes),
        )

    def _notes_on(self, job: _Job, parts: list[_Part]) -> list[str]:
        """What Grad-CAM makes of a target that is one place of the picture."""
        names = axis_names(parts[0].logits.shape, job.graph.tensor(job.graph.logits).layout)
        places = [said for part in parts for said in part.said if isinstance(said, tuple)]
        local = any(e != ":" for place in places for e, name in zip(place, names, strict=True) if name != "class")
        if not local or not job.method.name.endswith("grad-cam"):
            return []
        return [
            "grad-cam weighs a channel by its mean gradient over the whole picture, so the map of one place may look "
            "like that of another: layer-cam weighs each cell"
        ]

    def _provenance(self) -> dict[str, Any]:
        from fgcam_onnx import __version__
        from fgcam_onnx.runtime import onnxruntime

        return {
            "model": self.path.name if self.path else None,
            "sha256": self.sha256,
            "fgcam_onnx": __version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime().__version__,
            "numpy": np.__version__,
            "backend": self.backend,
            "backend_providers": list(self._backend.providers),
            "precision": self.precision,
            "providers": self.providers,
            "input": self.graph.image,
            "output": self.graph.logits,
            "head": self.graph.head,
            "notes": list(self.notes),
        }

    def activations(
        self, x: Any, names: Sequence[str], *, inputs: Mapping[str, Any] | Feeds | None = None
    ) -> dict[str, np.ndarray]:
        """The activations of tensors or nodes, by the names given. ``inputs`` as in :meth:`explain`.

        Raises:
            InputError, LayerError: as :meth:`explain`.
            ModelError: the batch is fixed at another number of images, and a tensor has no batch axis.
        """
        tensors = {name: self._tensor(name, self.graph) for name in names}
        x = self._checked(x)
        feeds = self.feeds(inputs, len(x))
        fixed = self.input_shape[0] if self.input_shape else None
        size = fixed if isinstance(fixed, int) and fixed > 0 else len(x)
        pieces: list[dict[str, np.ndarray]] = []
        for first in range(0, len(x), size):
            piece = x[first : first + size]
            others = feeds.rows(first, first + len(piece), size)
            found = self._forward.run({self.graph.image: filled(piece, size), **others}, tensors.values())
            arrays = {tensor: found[tensor].numpy() for tensor in tensors.values()}
            if len(x) != size:
                arrays = {name: _by_image(array, size, name)[: len(piece)] for name, array in arrays.items()}
            pieces.append(arrays)
        whole = pieces[0] if len(pieces) == 1 else {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
        return {name: whole[tensor] for name, tensor in tensors.items()}


@dataclass(frozen=True, eq=False)
class _Job:
    """What one call of explain() does to each batch."""

    method: Method
    graph: LayerGraph
    source: str
    target: str
    head: Plan | None
    body: Plan
    denoise: bool
    cleaning: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Call:
    """What one call of explain() says of the images first..last of all its ``images``."""

    target: Any
    first: int
    last: int
    images: int
    feeds: Feeds


class _SharedError(Exception):
    """Relevance reaches a tensor that has no batch axis."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images with what the forward pass gave. ``seed``: how much each logit counts, of the logits' shape.

    ``classes``: None where the target is no class. ``feeds``: the inputs beside these images.
    """

    x: np.ndarray
    shapes: Mapping[str, tuple[int, ...]]
    tape: Mapping[str, Any]
    seed: np.ndarray
    classes: np.ndarray | None
    feeds: Feeds


@dataclass(frozen=True, eq=False)
class _Part:
    relevance: np.ndarray
    logits: np.ndarray
    classes: np.ndarray | None
    said: tuple[Any, ...]
    score: np.ndarray
    hashes: tuple[str, ...]
    ledger: Ledger


def _check_bounds(composite: RelevanceComposite, body: Plan) -> None:
    """Bounds a channel are for the channels that a first layer reads, which the graph may have joined or rearranged."""
    sizes = {np.size(b) for b in composite.zb_bounds} - {1} if not isinstance(composite.zb_bounds, str) else set()
    for step in body.steps if sizes else ():
        if step.rule.name != "z_box":
            continue
        weight, shape = step.layer.constant(1), body.graph.tensor(step.layer.inputs[0]).shape or ()
        if step.layer.op == "Conv" and weight is not None:
            channels: Any = weight.shape[1] * int(step.layer.attributes.get("group", 1))
        else:
            channels = shape[1] if len(shape) > 1 else None
        if isinstance(channels, int) and sizes != {channels}:
            raise OptionError(
                f"option zb_bounds has {max(sizes)} numbers, and the first layer reads {channels} channels",
                at=f"node {step.layer.name!r}",
                next="give one number for all, or one for each of these channels",
            )


def _by_image(logits: np.ndarray, n: int, name: str) -> np.ndarray:
    """[n, ...]. For a single image an output without a batch axis is this image's."""
    if logits.shape[:1] == (n,):
        return logits
    if n == 1:
        return logits[None]
    raise ModelError(
        f"the first axis of the output is not the batch: its shape is {list(logits.shape)} for {n} images",
        at=f"tensor {name!r}",
        next="explain one image at a time: batch_size=1",
    )


def _offset(progress: Progress, first: int, n: int, size: int) -> Progress:
    """Progress within a piece -> progress of the whole."""

    def report(done: int, total: int) -> None:
        each = total // max(1, min(size, n - first))
        progress(first * each + done, n * each)

    return report


def _displayable(x: np.ndarray, layout: str) -> np.ndarray | None:
    """The input as pictures, uint8 [n, H, W, 3], each stretched to its own range; None if it is none.

    The preprocessing is not known here: the command line knows it, and shows the photo itself.
    """
    if layout not in ("NCHW", "NHWC") or x.shape[layout.index("C")] not in (1, 3):
        return None
    # Channels are moved last: of bytes, a quarter of the work.
    low = x.min(axis=(1, 2, 3), keepdims=True).astype(np.float32)
    span = x.max(axis=(1, 2, 3), keepdims=True).astype(np.float32) - low
    stretched = (x - low) * (255 / np.where(span > 0, span, 1))
    shown = np.moveaxis(np.rint(stretched, out=stretched).astype(np.uint8), layout.index("C"), -1)
    return np.ascontiguousarray(shown) if shown.shape[-1] == 3 else np.repeat(shown, 3, axis=-1)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, np.ndarray) else value.shape())


def _numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _as_float(value: Any, tensor: Tensor) -> Any:
    """float32 as it is, integers of a quantised tensor by their scale, anything else as a float32 array."""
    if tensor.scale is not None:
        return (_numpy(value).astype(np.int32) - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)
    if not isinstance(value, np.ndarray) and value.data_type() == "tensor(float)":
        return value
    value = _numpy(value)
    if value.dtype.kind in "iu" and not tensor.from_image:
        raise ActivationError(
            f"tensor {tensor.name!r} holds integers, and the graph does not say what they stand for",
            known="its scale is not stated by the quantised operators around it",
            next="this way of quantising is not understood yet: explain the float model that this one was made from",
        )
    return value.astype(np.float32, copy=False)


def explain(model: Any, x: Any, *, input: str | None = None, output: str | None = None, **options: Any) -> Explanation:
    """One shot: ``Explainer(model).explain(x, ...)``. For several calls make an Explainer: it keeps its sessions."""
    return Explainer(model, input=input, output=output).explain(x, **options)
