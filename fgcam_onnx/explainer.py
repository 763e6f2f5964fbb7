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
    ModelError,
    OptionError,
    nearest,
)
from fgcam_onnx.explanation import Explanation
from fgcam_onnx.forward import Forward
from fgcam_onnx.graph.layer import LayerGraph, Tensor
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.shapes import concrete_shapes, view_shapes
from fgcam_onnx.graph.stages import Stage, find_stages
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.labels import find_labels, resolve_target
from fgcam_onnx.ledger import Ledger
from fgcam_onnx.methods import Method
from fgcam_onnx.methods import method as find_method

__all__ = ["Explainer", "explain"]

Progress = Callable[[int, int], None]
DENOISE_OPTIONS = ("ratio", "add_mean_back", "support_mask")
LOG = logging.getLogger("fgcam_onnx")
SEED = "gradient_of_logits"


class Explainer:
    """Explains one ONNX model.

    ``model``: path, bytes or ModelProto. ``backend``: "auto" (cupy where there is a GPU, else ort), "cupy", "ort" or
    "numpy", or a Backend. ``providers``: onnxruntime execution providers of the forward pass; if None CUDA's beside the
    cupy backend, if it works here, else the CPU's. ``output``: which graph output to explain, the first if None.
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
        output: str | None = None,
        precision: str = "float32",
        threads: int | None = None,
    ) -> None:
        self._model = load(model)
        self._output = output
        self.graph = build_view(self._model, output)
        self._backend = backend if isinstance(backend, Backend) else backends.make(backend, precision, threads)
        self.notes: list[str] = [*self.graph.notes, *self._backend.notes]
        self._forward = Forward(
            self._model, self.graph, None if providers is None else list(providers), threads, self._backend, self.notes
        )
        self._plain_graph: LayerGraph | None = None
        self._shapes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        found = find_labels(self.path, self.metadata, self.num_classes, self.notes)
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

    @cached_property
    def num_classes(self) -> int:
        """How many scores the model gives."""
        for shape in (
            self.graph.tensor(self.graph.logits).shape,
            self._shapes_for(self._some_shape()).get(self.graph.logits),
        ):
            if shape and all(isinstance(d, int) for d in shape[1:]):
                return int(np.prod(shape[1:]))  # type: ignore[arg-type]
        x = np.zeros(self._some_shape(), self.input_dtype)
        return int(self._score(x).shape[1])

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
        return find_stages(self.graph)

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
        progress: Progress | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Explanation:
        """Where the network saw the evidence for a class.

        ``x``: a batch as the model takes it, [n, c, h, w] or [n, h, w, c], preprocessed. ``layer``: where the map is
        wanted; "input" by default for fine-grained methods, L for CAMs. ``start``: another L. ``target``: None for the
        predicted class, an index, a label, or one of these an image. ``denoise``: keep the strongest directions of the
        components at L (``ratio``, ``add_mean_back``, ``support_mask``). ``batch_size``: images at a time; a batch that
        does not fit a GPU's memory is split, and a log line says so.

        Options of the descent (methods 2.6): ``first_layer`` zB | z+ | flat, ``zb_bounds`` "per_image" or (low, high),
        ``batchnorm`` fold | identity, ``relu`` mask | identity, ``add`` zplus | norm, ``mul`` signal | uniform,
        ``maxpool`` winner | winner_positive.

        Raises:
            InputError: ``x`` does not fit the model, or holds NaN or Inf.
            MethodError, LayerError, TargetError, OptionError: a name that does not exist; the nearest is suggested.
            UnsupportedOpError: a node on the path has no rule; found before anything runs.
            ModelError: the output is not one score a class, or the model has no layer to start from.
            ActivationError: the network itself computed NaN or Inf.
            DeviceMemoryError: a single image does not fit the GPU's memory.
        """
        chosen = find_method(method)
        job = self._job(chosen, layer, start, denoise, options)
        x = self._checked(x)
        report = progress or (lambda done, total: None)
        size = self._batch(len(x), batch_size)
        parts: list[_Part] = []
        first = 0
        while first < len(x):
            piece = x[first : first + size]
            wanted = target[first : first + size] if _one_each(target, len(x)) else target
            try:
                part = self._batch_explained(job, piece, wanted, _offset(report, first, len(x), size), batch_size)
            except DeviceMemoryError as error:
                size = self._smaller(size, len(piece), error)
                continue
            parts.append(part)
            first += len(piece)
        return self._explanation(job, x, parts, options)

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
        return _Job(chosen, graph, source, target, head, body, denoise, cleaning)

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
            if isinstance(channels, int) and np.size(bound) not in (1, channels):
                raise OptionError(
                    f"option zb_bounds has {np.size(bound)} numbers", known=f"the image has {channels} channels"
                )
        return composite

    def _graph_for(self, options: Mapping[str, Any]) -> LayerGraph:
        if options.get("batchnorm", "fold") == "fold":
            return self.graph
        if self._plain_graph is None:
            self._plain_graph = build_view(self._model, self._output, fold_norms=False)
        return self._plain_graph

    def _plan(self, graph: LayerGraph, source: str, target: str, composite: Any, dead_start: bool) -> Plan:
        key = (id(graph), source, target, composite.key, dead_start)
        if key not in self._plans:
            made = descent.plan(graph, source, target, composite, dead_start=dead_start)
            # A backend keeps what it compiled by this key and may serve several models: names and shapes do not tell
            # their weights apart.
            view = "folded" if graph is self.graph else "plain"
            self._plans[key] = replace(made, key=f"{self.sha256}|{self._output}|{view}|{made.key}")
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
        stages = [stage.name for stage in self.layers()]
        raise LayerError(
            f"the model has no layer {name!r}",
            known=f"{len(tensors)} tensors; the stages are {', '.join(['input', *stages[1:]])}",
            next=nearest(name, ["input", *tensors, *nodes]) or "fgcam inspect lists them",
        )

    def _need_space(self, graph: LayerGraph, name: str) -> None:
        layout = graph.tensor(name).layout or (self.layout if name == graph.image else None)
        if layout is None or "C" not in layout or len(layout) < 3:
            shape = graph.tensor(name).shape
            raise LayerError(
                f"tensor {name!r} has no space: no map can be drawn there",
                known=f"its shape is {'unknown' if shape is None else list(shape)}",
                next=f"choose one of {', '.join(stage.name for stage in self.layers())}",
            )

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
        return np.ascontiguousarray(array.astype(self.input_dtype, copy=False))

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

    def _shapes_for(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if shape not in self._shapes:
            others = {name: self.graph.tensor(name).shape for name in self.graph.inputs if name != self.graph.image}
            fixed = {n: s for n, s in others.items() if s and all(isinstance(d, int) for d in s)}
            given: dict[str, Any] = {self.graph.image: shape, **fixed}
            if self.graph.quantised:
                found = view_shapes(self.graph, given)
                known: dict[str, Any] = {n: s for n, s in found.items() if all(isinstance(d, int) for d in s)}
                self._shapes[shape] = known
            else:
                self._shapes[shape] = concrete_shapes(self._model, given)
        return self._shapes[shape]

    def _score(self, x: np.ndarray) -> np.ndarray:
        """Logits [m, classes] of inputs, in pieces of the model's fixed batch if it has one."""
        fixed = self.input_shape[0] if self.input_shape else None
        free = not (isinstance(fixed, int) and fixed > 0)
        size = len(x) if free else int(fixed or 1)
        found: list[np.ndarray] = []
        first = 0
        while first < len(x):
            piece = x[first : first + size].astype(self.input_dtype, copy=False)
            given = len(piece)
            whole = piece if free else _filled(piece, size)
            try:
                values = self._forward.run({self.graph.image: whole}, [self.graph.logits])
            except DeviceMemoryError as error:
                size = self._smaller(size, given, error)
                continue
            found.append(_numpy(values[self.graph.logits]).reshape(len(whole), -1)[:given].astype(np.float32))
            first += given
        return np.concatenate(found)

    def _batch_explained(
        self, job: _Job, x: np.ndarray, target: Any, progress: Progress, batch_size: int | None
    ) -> _Part:
        fixed = self.input_shape[0] if self.input_shape else None
        given = len(x)
        x = _filled(x, fixed if isinstance(fixed, int) and fixed > 0 else given)
        if given < len(x) and _one_each(target, given):
            target = [*target, *[target[-1]] * (len(x) - given)]

        shapes = dict(self._shapes_for(x.shape))
        plans = [plan for plan in (job.head, job.body) if plan is not None]
        reads = {name for plan in plans for name in plan.reads} | {job.source, job.graph.logits}
        unknown = {name: job.graph.in_model(name) for plan in plans for name in plan.tensors if name not in shapes}
        raw = self._forward.run({job.graph.image: x}, sorted(reads | set(unknown.values())))
        tape = {name: _as_float(raw[name], job.graph.tensor(name)) for name in sorted(reads)}
        shapes.update({name: _shape(value) for name, value in raw.items()})
        shapes.update({name: shapes[known] for name, known in unknown.items()})

        _refuse_dense(job.graph.logits, shapes[job.graph.logits])
        logits = _numpy(tape[job.graph.logits]).reshape(len(x), -1).astype(np.float32)
        if not np.isfinite(logits).all():
            raise self._not_finite(job, tape)
        classes = resolve_target(target, self.labels, logits.shape[1], logits)
        seed = np.zeros(logits.shape, np.float32)
        seed[np.arange(len(x)), classes] = 1
        batch = _Batch(x, shapes, tape, seed.reshape(shapes[job.graph.logits]), classes)
        if self._backend.resident and job.method.differentiates and not job.denoise:
            result = self._in_one_program(job, batch)
        else:
            result = self._step_by_step(job, batch, progress, batch_size)
        ledger = descent.ledger_of(job.body, {k: v for k, v in result.items() if k != RESULT})
        if not (np.isfinite(ledger.arrived).all() and np.isfinite(ledger.residual)):
            raise self._not_finite(job, tape)
        goal = job.graph.tensor(job.target).layout or self.layout
        summed = result[RESULT].sum(axis=goal.index("C"), dtype=np.float64)
        return _Part(
            np.ascontiguousarray(summed[:given], np.float32), logits[:given], classes[:given], ledger.first(given)
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
            target=batch.classes,
            x=batch.x,
            channel_axis=self.layout.index("C"),
            differentiate=differentiate,
            score=self._score,
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

    def _explanation(self, job: _Job, x: np.ndarray, parts: list[_Part], options: Mapping[str, Any]) -> Explanation:
        layout = self.layout
        space = tuple(d for d, axis in zip(x.shape, layout, strict=True) if axis not in "NC")
        return Explanation(
            relevance=np.concatenate([p.relevance for p in parts]),
            logits=np.concatenate([p.logits for p in parts]),
            target=np.concatenate([p.target for p in parts]).astype(np.int64),
            method=job.method.name,
            layer="input" if job.target == job.graph.image else job.target,
            start=job.source,
            ledger=Ledger.join([p.ledger for p in parts]),
            input_size=space,
            images=_displayable(x, layout),
            options={"denoise": job.denoise, **options},
            provenance=self._provenance(),
        )

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
            "output": self.graph.logits,
            "head": self.graph.head,
            "notes": list(self.notes),
        }

    def activations(self, x: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The activations of tensors or nodes, by the names given.

        Raises:
            InputError, LayerError: as :meth:`explain`.
        """
        tensors = {name: self._tensor(name, self.graph) for name in names}
        found = self._forward.run({self.graph.image: self._checked(x)}, tensors.values())
        return {name: found[tensor].numpy() for name, tensor in tensors.items()}


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


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images with what the forward pass gave. ``seed``: 1 at the explained class of each, of the logits' shape."""

    x: np.ndarray
    shapes: Mapping[str, tuple[int, ...]]
    tape: Mapping[str, Any]
    seed: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, eq=False)
class _Part:
    relevance: np.ndarray
    logits: np.ndarray
    target: np.ndarray
    ledger: Ledger


def _refuse_dense(name: str, shape: tuple[int, ...]) -> None:
    """Scores for each place or box, flattened, would pass for classes: index 3 would be a pixel."""
    if sum(d > 1 for d in shape[1:]) > 1:
        raise ModelError(
            f"the output is not one score a class: its shape is {list(shape)}",
            at=f"tensor {name!r}",
            known="segmentation and detection heads are not supported",
            next="name an output of class scores, if the model has one: Explainer(model, output='name')",
        )


def _one_each(target: Any, n: int) -> bool:
    return isinstance(target, (list, tuple, np.ndarray)) and np.ndim(target) == 1 and len(target) == n


def _offset(progress: Progress, first: int, n: int, size: int) -> Progress:
    """Progress within a piece -> progress of the whole."""

    def report(done: int, total: int) -> None:
        each = total // max(1, min(size, n - first))
        progress(first * each + done, n * each)

    return report


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """x repeated at its end up to a fixed batch."""
    missing = size - len(x)
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing > 0 else x


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


def explain(model: Any, x: Any, **options: Any) -> Explanation:
    """One shot: ``Explainer(model).explain(x, ...)``. For several calls make an Explainer: it keeps its sessions."""
    return Explainer(model).explain(x, **options)
