"""Explainer: a model file in, maps out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fgcam_onnx import backends
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.cams import layer_cam
from fgcam_onnx.coverage import Coverage, cover
from fgcam_onnx.engine import Engine, Tape, by_image
from fgcam_onnx.errors import (
    ActivationError,
    DeviceMemoryError,
    InputError,
    ModelError,
    OptionError,
    nearest,
)
from fgcam_onnx.explanation import Explanation
from fgcam_onnx.families.base import (
    COMPOSITE_OPTIONS,
    Ask,
    Batch,
    Found,
    Job,
    composite_of,
    shapes_of_rows,
)
from fgcam_onnx.feeds import Feeds, as_dtype, check_feeds, filled
from fgcam_onnx.folder import others_in
from fgcam_onnx.graph.dense import axis_names
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.precision import model_precision
from fgcam_onnx.graph.stages import Stage
from fgcam_onnx.labels import find_labels
from fgcam_onnx.ledger import Ledger
from fgcam_onnx.methods import method as find_method
from fgcam_onnx.targets import Aim, against_class, aim_at, aims_at

__all__ = ["Explainer", "explain"]

Progress = Callable[[int, int], None]
# Rounding leaves 1e-7 of the relevance unexplained, a few 1e-4 at worst. More is a wrong map, and no map.
OPEN_BOOKS = 1e-2
# Relevance that is itself too small for the numbers that hold it: its books are noise.
FAINT = 1e-30
# An option that is an array of more numbers than these is recorded by its hash.
LARGE = 64


class Explainer:
    """Explains one ONNX model.

    ``model``: path, bytes or ModelProto; of a folder the ``model.onnx`` in it, or its only model. ``backend``: "auto"
    (cupy where there is a GPU, else ort), "cupy", "ort" or "numpy", or a Backend. ``providers``: onnxruntime execution
    providers of the forward pass; if None CUDA's beside the cupy backend, if it works here, else the CPU's. ``input``:
    which graph input is the picture; if None the only one, or the only spatial one (of three to five axes) that feeds
    the output. ``output``: which graph output to explain, the first if None.
    ``precision``: "float32"; "float64" with the numpy and cupy backends, for audits; "fast" with the cupy backend:
    products of z+ and z^B on tensor cores, rounded to TF32. ``threads``: of every session, all cores if None.

    Raises:
        ModelError: the file is no ONNX model, is damaged, or has no input or output to explain; the folder holds no
            model, or several and none is called ``model.onnx``.
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
        self._output = output
        self._backend = backend if isinstance(backend, Backend) else backends.make(backend, precision, threads)
        self._engine = Engine(self._model, self._backend, providers, image=input, output=output, threads=threads)
        self.graph: LayerGraph = self._engine.graph
        self.notes: list[str] = self._engine.notes
        if isinstance(model, (str, os.PathLike)) and self.path is not None and Path(model) != self.path:
            self.notes += filter(None, [others_in(self.path)])
        self._forward = self._engine.forward
        self._plans = self._engine.plans
        classes = self.num_classes
        found = find_labels(self.path, self.metadata, classes, self.notes) if classes else None
        self.labels: list[str] | None = found[0] if found else None
        self.labels_source: str | None = found[1] if found else None

    # --- what the model is --------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The model file, in a folder the one that was taken; None if it was given as bytes or ModelProto."""
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

    @cached_property
    def model_precision(self) -> str:
        """Of the model itself, in words: "float16", "int8 (QDQ, weights int8 per channel, activations uint8)"."""
        return model_precision(self._model)

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
        return self._engine.input_shape

    @property
    def fixed_batch(self) -> int | None:
        """Images that run at a time, whatever you give: the file's batch; 1 if it quantises by its batch's range."""
        return self._engine.fixed_batch

    @property
    def input_dtype(self) -> str:
        return self.graph.tensor(self.graph.image).dtype

    @property
    def layout(self) -> str:
        """One letter an axis of the input: "NCHW", "NHWC"."""
        return self._engine.layout

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
        return self._engine.output_shape

    @property
    def output_axes(self) -> tuple[str, ...]:
        """What the axes of the output after the batch are: "class", "y", "x", or "axis 1" where nothing is known."""
        return axis_names(self.output_shape, self.graph.tensor(self.graph.logits).layout)

    @property
    def dense(self) -> bool:
        """Is the output more than one score a class? Then ``target`` is a place of it, or a function."""
        return self._engine.dense

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
        return self._engine.default_layer

    def layers(self) -> tuple[Stage, ...]:
        """The spatial stages from the input to L. ``layer=`` takes their names, "input", and any tensor or node name.

        Raises:
            ModelError: the model is no convolutional classifier.
        """
        return self._engine.stages

    def tensor_name(self, name: str) -> str:
        """The tensor of a layer's name, a node's name, or "input".

        Raises:
            LayerError: there is none; the nearest names are suggested.
        """
        return self._engine.tensor(name, self.graph)

    def coverage(self, **options: Any) -> Coverage:
        """Each node on the path with its rule, or why it has none. Nothing is run. Options as in :meth:`explain`."""
        for name in options:
            if name not in COMPOSITE_OPTIONS:
                raise OptionError(
                    f"coverage() has no option {name!r}",
                    known=", ".join(COMPOSITE_OPTIONS),
                    next=nearest(name, COMPOSITE_OPTIONS) or None,
                )
        ask = Ask(find_method("fg-grad-cam"), None, None, False, options, False)
        composite = composite_of(self._engine, ask)
        return cover(self._engine.graph_for(composite.batchnorm), self.default_layer, composite)

    # --- explaining -----------------------------------------------------------------------------------------------

    def explain(
        self,
        x: Any,
        *,
        method: str = "fg-grad-cam",
        layer: str | Sequence[str] | None = None,
        start: str | None = None,
        target: Any = None,
        against: Any = None,
        denoise: bool = False,
        inputs: Mapping[str, Any] | Feeds | None = None,
        progress: Progress | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Explanation:
        """Where the network saw the evidence for a class.

        ``x``: a batch as the model takes it, [n, c, h, w] or [n, h, w, c], preprocessed. ``method``: a name of
        ``fgcam_onnx.methods.METHODS``. ``layer``: where the map is wanted; for CAMs L by default, for all others
        "input". A list of layers fuses the maps of layer-cam. ``start``: another L; one that not all evidence passes
        shows the evidence through it alone, and a note says so. ``denoise``: keep the strongest directions of the
        components at L (``ratio``, ``add_mean_back``, ``support_mask``). ``inputs``: arrays for the inputs beside the
        picture, by name; with a row for each image where the first axis is the batch. ``batch_size``: images at a time;
        a batch that does not fit a GPU's memory is split, and a log line says so.

        ``target``: None for the predicted class, an index, a label, or a list of one of these for each image. Several
        classes at once: "top3", or a list of lists, one for each image; the relevance is then [n, k, h, w], and the
        classes of an image share its forward pass and every denominator. Of a dense output a place: a tuple with an
        entry for each axis of the output after the batch, in the output's own order, ``(class, y, x)`` or
        ``(y, x, class)``; an entry is an index, or None or a slice for the sum over the axis. Or a function of the
        logits that returns how much each of them counts: it is called with the logits of one image, [1, ...], and the
        weighted sum of the logits is explained. ``against``: another class; the difference of the two scores is
        explained, "why this and not that".

        Options of the descent, for fine-grained methods and the LRP family (methods 2.6 and 4): ``composite``,
        ``rules`` (a mapping of selectors to rules, see ``fgcam_onnx.selectors``), ``bias``, ``epsilon``,
        ``first_layer`` zB | z+ | flat | same, ``zb_bounds`` "per_image" or (low, high), ``batchnorm`` fold | identity,
        ``relu`` mask | identity, ``add`` zplus | norm, ``mul`` signal | uniform, ``maxpool`` winner | winner_positive.
        Others belong to single methods: ``fgcam methods`` lists them.

        Raises:
            InputError: ``x`` does not fit the model, or holds NaN or Inf.
            MethodError: a method that does not exist, or cannot serve this model; those that can are named.
            LayerError, TargetError, OptionError: a name that does not exist; the nearest is suggested.
            UnsupportedOpError: a node on the path has no rule; found before anything runs.
            ModelError: the model has no layer to start from, or its output no batch.
            ActivationError: the network itself computed NaN or Inf.
            DeviceMemoryError: a single image does not fit the GPU's memory.
        """
        chosen = find_method(method)
        if layer is not None and not isinstance(layer, str):
            return self._fused(x, method, list(layer), start=start, target=target, against=against, denoise=denoise,
                               inputs=inputs, progress=progress, batch_size=batch_size, **options)  # fmt: skip
        job = chosen.family.plan(self._engine, Ask(chosen, layer, start, denoise, options, against is not None))
        x = self._checked(x)
        feeds = self.feeds(inputs, len(x))
        report = progress or (lambda done, total: None)
        size = self._batch(len(x), batch_size)
        if feeds.per_image and chosen.many_passes:
            size = 1  # such a method asks for scores of changed pictures, each beside its own image's other inputs
        if _names_several(target) and self._backend.resident:
            size = 1  # rows of one image are cut from the batch, which lies on the device
        parts: list[_Part] = []
        first = 0
        while first < len(x):
            last = min(first + size, len(x))
            call = _Call(target, against, first, last, len(x), feeds, batch_size)
            try:
                part = self._batch_explained(job, x[first:last], call, _offset(report, first, len(x), size))
            except DeviceMemoryError as error:
                size = self._engine.smaller(size, last - first, error)
                continue
            except _SharedError as shared:
                size = self._one_by_one(shared)
                continue
            parts.append(part)
            first = last
        return self._explanation(job, x, parts, options, feeds)

    def check(
        self,
        *,
        method: str = "fg-grad-cam",
        layer: str | None = None,
        start: str | None = None,
        denoise: bool = False,
        **options: Any,
    ) -> None:
        """Can :meth:`explain` be asked for this? Nothing is run.

        Raises:
            MethodError, LayerError, OptionError, UnsupportedOpError, ModelError: why not, as :meth:`explain` says it.
        """
        chosen = find_method(method)
        chosen.family.plan(self._engine, Ask(chosen, layer, start, denoise, options, False))

    def _fused(self, x: Any, method: str, layers: list[str], **options: Any) -> Explanation:
        """Layer-CAM of several layers as one map, at the size of the input."""
        if method != "layer-cam":
            raise OptionError(
                f"a list of layers fuses the maps of layer-cam, and method is {method!r}",
                next="method='layer-cam', or one call for each layer",
            )
        order = {name: i for i, name in enumerate(o for each in self.graph.layers for o in each.outputs)}
        names = sorted({self._engine.tensor(name, self.graph) for name in layers}, key=lambda name: order.get(name, -1))
        if len(names) < 2:
            raise OptionError(f"a fusion needs several layers, and {layers!r} names {len(names)}")
        found = [self.explain(x, method=method, layer=name, **options) for name in names]
        fused = layer_cam.fuse([e.relevance for e in found], found[0].input_size)
        ledger = Ledger((), *(fused.reshape(len(fused), -1).sum(1, dtype=np.float64) for _ in range(3)))
        layer = " + ".join(names)
        return replace(found[-1], relevance=fused.astype(np.float32), layer=layer, start=layer, ledger=ledger)

    def feeds(self, inputs: Mapping[str, Any] | Feeds | None, n: int) -> Feeds:
        """What :meth:`explain` makes of ``inputs`` beside ``n`` images: checked, with a row for each image or shared.

        Raises:
            InputError: one is missing, unknown, of a wrong shape or type, or holds NaN.
        """
        return inputs if isinstance(inputs, Feeds) else check_feeds(self.graph, self._defaults, inputs, n)

    def _one_by_one(self, shared: _SharedError) -> int:
        """Relevance goes to a tensor that the images of a batch share: one at a time, or the books would be mixed."""
        fixed = self._engine.fixed_batch
        if fixed is not None and fixed > 1:
            raise ModelError(
                "relevance of several images would meet in one tensor, and could not be told apart",
                at=f"tensor {shared.name!r}, which has no batch axis",
                known=f"the model's batch is fixed at {fixed}",
                next="export the model with a free batch, or choose layer= behind the place where the tensor comes in",
            )
        return 1

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
        if self._engine.fixed_batch is not None:
            return self._engine.fixed_batch
        if wanted is not None and wanted < 1:
            raise OptionError(f"option batch_size cannot be {wanted}", known="images at a time, at least 1")
        size = wanted or self._backend.batch
        return -(-n // -(-n // size))  # even pieces: fewer shapes to compile for

    def _batch_explained(self, job: Job, x: np.ndarray, call: _Call, progress: Progress) -> _Part:
        engine, given = self._engine, len(x)
        x = filled(x, engine.fixed_batch or given)
        others = call.feeds.rows(call.first, call.last, len(x))
        tape = engine.tape(job.graph, x, others, job.plans.values(), job.names)
        if len(x) > 1:
            for plan in job.plans.values():
                if (shared := plan.shared(tape.shapes)) is not None:
                    raise _SharedError(shared)
        logits = by_image(tape.array(job.graph.logits), len(x), job.graph.logits).astype(np.float32)
        if not np.isfinite(logits).all():
            raise engine.not_finite(job.graph, tape, job.source, job.target)
        aims = self._aims(job, logits[:given], call)
        several = aims is not None
        aims = aims if aims is not None else [self._aim(job, logits[:given], call)]
        classes = None if aims[0].classes is None else np.stack([filled(_classes(a), len(x)) for a in aims])
        against = None if aims[0].against is None else np.stack([filled(_against(a), len(x)) for a in aims])
        batch = Batch(
            x=x,
            tape=tape,
            seed=np.empty(0),
            classes=None,
            against=None,
            logits=logits,
            feeds=call.feeds.part(call.first, call.last),
            progress=progress,
            batch_size=call.batch_size or 16,
            first=call.first,
            images=call.images,
        )
        seeds = np.stack([filled(aim.weights, len(x)).reshape(tape.shapes[job.graph.logits]) for aim in aims])
        if several and len(aims) > 1:
            found = [self._rows_of_image(job, batch, seeds, classes, against, image) for image in range(given)]
            parts = [each for image in found for each in image]
        else:
            mine = None if classes is None else classes[0]
            other = None if against is None else against[0]
            parts = [job.method.family.run(
                engine, job, replace(batch, seed=seeds[0], classes=mine, against=other)
            )]  # fmt: skip
        for part in parts:
            self._check(job, tape, part.ledger)
        rows = given * len(aims)
        ledger = Ledger.join([part.ledger for part in parts]) if len(parts) > 1 else parts[0].ledger
        relevance = np.concatenate([part.relevance for part in parts])[:rows]
        promised = [part.promised for part in parts if part.promised is not None]
        shape = (given, len(aims)) if several else (given,)
        logits = logits[:given]
        score = np.stack([aim.score(logits) for aim in aims], axis=1).reshape(shape)
        own = None if classes is None else classes.T[:given].reshape(shape)
        said = tuple(zip(*(aim.said for aim in aims), strict=True)) if several else aims[0].said
        return _Part(
            np.ascontiguousarray(relevance.reshape(*shape, *relevance.shape[1:]), np.float32),
            logits if own is None and logits.ndim > 2 else logits.reshape(given, -1),
            own,
            None if against is None else against.T[:given].reshape(shape),
            said,
            score,
            () if several else aims[0].hashes(),
            ledger.first(rows),
            None if not promised else np.concatenate(promised)[:rows].reshape(shape).astype(np.float64),
        )

    def _aims(self, job: Job, logits: np.ndarray, call: _Call) -> list[Aim] | None:
        """Of a target that names several classes for each image."""
        layout = job.graph.tensor(job.graph.logits).layout
        aims = aims_at(call.target, logits, self.labels, layout, first=call.first, images=call.images)
        return None if aims is None else [self._held_against(aim, logits, layout, call) for aim in aims]

    def _aim(self, job: Job, logits: np.ndarray, call: _Call) -> Aim:
        layout = job.graph.tensor(job.graph.logits).layout
        aim = aim_at(call.target, logits, self.labels, layout, first=call.first, images=call.images)
        return self._held_against(aim, logits, layout, call)

    def _held_against(self, aim: Aim, logits: np.ndarray, layout: str | None, call: _Call) -> Aim:
        if call.against is None:
            return aim
        return against_class(aim, call.against, logits, self.labels, layout, first=call.first, images=call.images)

    def _rows_of_image(
        self,
        job: Job,
        batch: Batch,
        seeds: np.ndarray,
        classes: np.ndarray | None,
        against: np.ndarray | None,
        image: int,
    ) -> list[Found]:
        """An image for several classes: together where they can share its denominators, else one after the other."""
        n, k = len(batch.x), len(seeds)
        whole = replace(
            batch,
            seed=seeds[:, image],
            classes=None if classes is None else classes[:, image],
            against=None if against is None else against[:, image],
        )
        together = job.shares_batch(batch.tape, n)
        groups = [list(range(k))] if together else [[row] for row in range(k)]
        found = []
        for rows in groups:
            shapes = shapes_of_rows(batch.tape.shapes, n, len(rows))
            found.append(job.method.family.run(self._engine, job, whole.of_image(image, rows, shapes)))
        return found

    def _check(self, job: Job, tape: Tape, ledger: Ledger) -> None:
        """Books that do not close are a wrong map, and no map."""
        if not (np.isfinite(ledger.arrived).all() and np.isfinite(ledger.residual)):
            raise self._engine.not_finite(job.graph, tape, job.source, job.target)
        if ledger.residual > OPEN_BOOKS and float(ledger.start_absolute.max()) > FAINT:
            raise ActivationError(
                f"the books do not close: {ledger.residual:.2g} of the relevance is unaccounted for",
                at=f"from {job.source!r} to {job.target!r}",
                known=f"{self.precision} cannot hold numbers as large or as small as this network's",
                next="Explainer(..., backend='numpy', precision='float64') has the range",
            )

    def _explanation(
        self, job: Job, x: np.ndarray, parts: list[_Part], options: Mapping[str, Any], feeds: Feeds
    ) -> Explanation:
        layout = self.layout
        space = tuple(d for d, axis in zip(x.shape, layout, strict=True) if axis not in "NC")
        classes = [p.classes for p in parts if p.classes is not None]
        against = [p.against for p in parts if p.against is not None]
        promised = [p.promised for p in parts if p.promised is not None]
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
            options={"denoise": job.denoise, **_recorded(options)},
            provenance=provenance,
            score=np.concatenate([p.score for p in parts]),
            weights_sha256=tuple(digest for p in parts for digest in p.hashes),
            against=np.concatenate(against) if against else None,
            promised=np.concatenate(promised) if promised else None,
        )

    def _notes_on(self, job: Job, parts: list[_Part]) -> list[str]:
        """What Grad-CAM makes of a target that is one place of the picture."""
        names = axis_names(parts[0].logits.shape, job.graph.tensor(job.graph.logits).layout)
        told = [said for part in parts for said in part.said]
        if parts[0].score.ndim > 1:
            told = [each for said in told for each in said]
        places = [said for said in told if isinstance(said, tuple)]
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
            "model_precision": self.model_precision,
            "notes": list(self.notes),
        }

    def scores(
        self, x: Any, *, inputs: Mapping[str, Any] | Feeds | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """The logits of pictures, float32 [n, classes], without a map: one forward pass, nothing else.

        ``inputs``: for the inputs beside the picture, one row that serves every picture. ``batch_size``: pictures at a
        time, all at once if None.

        Raises:
            InputError: as :meth:`explain`.
        """
        x = self._checked(x)
        feeds = self.feeds(inputs, 1)
        size = batch_size or len(x)
        parts = [self._engine.logits(x[first : first + size], feeds) for first in range(0, len(x), size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def activations(
        self, x: Any, names: Sequence[str], *, inputs: Mapping[str, Any] | Feeds | None = None
    ) -> dict[str, np.ndarray]:
        """The activations of tensors or nodes, by the names given. ``inputs`` as in :meth:`explain`.

        Raises:
            InputError, LayerError: as :meth:`explain`.
            ModelError: the batch is fixed at another number of images, and a tensor has no batch axis.
        """
        tensors = {name: self._engine.tensor(name, self.graph) for name in names}
        x = self._checked(x)
        feeds = self.feeds(inputs, len(x))
        size = self._engine.fixed_batch or len(x)
        pieces: list[dict[str, np.ndarray]] = []
        for first in range(0, len(x), size):
            piece = x[first : first + size]
            others = feeds.rows(first, first + len(piece), size)
            found = self._forward.run({self.graph.image: filled(piece, size), **others}, tensors.values())
            arrays = {tensor: found[tensor].numpy() for tensor in tensors.values()}
            if len(x) != size:
                arrays = {name: by_image(array, size, name)[: len(piece)] for name, array in arrays.items()}
            pieces.append(arrays)
        whole = pieces[0] if len(pieces) == 1 else {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
        return {name: whole[tensor] for name, tensor in tensors.items()}


@dataclass(frozen=True, eq=False)
class _Call:
    """What one call of explain() says of the images first..last of all its ``images``."""

    target: Any
    against: Any
    first: int
    last: int
    images: int
    feeds: Feeds
    batch_size: int | None


class _SharedError(Exception):
    """Relevance reaches a tensor that has no batch axis."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, eq=False)
class _Part:
    """The answer for one batch; of several classes an image with an axis of them behind that of the images."""

    relevance: np.ndarray
    logits: np.ndarray
    classes: np.ndarray | None
    against: np.ndarray | None
    said: tuple[Any, ...]
    score: np.ndarray
    hashes: tuple[str, ...]
    ledger: Ledger
    promised: np.ndarray | None


def _classes(aim: Aim) -> np.ndarray:
    return np.zeros(0, np.int64) if aim.classes is None else aim.classes


def _against(aim: Aim) -> np.ndarray:
    return np.zeros(0, np.int64) if aim.against is None else aim.against


def _names_several(target: Any) -> bool:
    """May the target name several classes for each image?"""
    return isinstance(target, str) or (isinstance(target, list) and any(not np.isscalar(each) for each in target))


def _recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the record of a map keeps them: large arrays by their hash."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        large = isinstance(value, np.ndarray) and value.size > LARGE
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() if large else ""
        found[name] = {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest} if large else value
    return found


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


def explain(model: Any, x: Any, *, input: str | None = None, output: str | None = None, **options: Any) -> Explanation:
    """One shot: ``Explainer(model).explain(x, ...)``. For several calls make an Explainer: it keeps its sessions."""
    return Explainer(model, input=input, output=output).explain(x, **options)
