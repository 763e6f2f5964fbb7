"""The engine: a loaded model with its forward pass and its backend, and what every method asks of them.

It knows graphs, shapes and plans, and nothing of methods; ``fgcam_onnx.families`` knows methods.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import helper

from fgcam_onnx import descent
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.composite import Composite
from fgcam_onnx.descent import START, Plan
from fgcam_onnx.errors import ActivationError, DeviceMemoryError, LayerError, ModelError, nearest
from fgcam_onnx.feeds import Feeds, filled, free_axes_at
from fgcam_onnx.forward import Forward
from fgcam_onnx.graph.bfloat16 import with_bfloat16_rounded
from fgcam_onnx.graph.branches import with_branches_chosen
from fgcam_onnx.graph.dense import is_dense
from fgcam_onnx.graph.layer import LayerGraph, Tensor
from fgcam_onnx.graph.load import LoadedModel
from fgcam_onnx.graph.piece import cut_piece
from fgcam_onnx.graph.shapes import concrete_shapes, view_shapes
from fgcam_onnx.graph.sizes import complete_shapes
from fgcam_onnx.graph.stages import Stage, find_stages
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.node import REFERENCE

__all__ = ["Engine", "Tape", "by_image", "moved_first"]

LOG = logging.getLogger("fgcam_onnx")
# Arrays that cost many forward passes and may be asked for again: so many, of so many bytes together.
KEPT, LARGE = 8, 1 << 28


@dataclass(frozen=True, eq=False)
class Tape:
    """What a forward pass gave: ``values`` as the rules read them, and the ``shapes`` of the tensors on the way."""

    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def array(self, name: str) -> np.ndarray:
        return _numpy(self.values[name])


class Engine:
    """``output``: the tensor to explain, ``image``: the input that is the picture; None for what the file suggests."""

    def __init__(
        self,
        model: LoadedModel,
        backend: Backend,
        providers: Sequence[str] | None,
        *,
        image: str | None = None,
        output: str | None = None,
        threads: int | None = None,
    ) -> None:
        model, notes = with_bfloat16_rounded(with_branches_chosen(model))
        self.model, self.backend = model, backend
        self._image, self._output, self._threads = image, output, threads
        self.graph = build_view(model, output, image=image)
        self.notes: list[str] = [*self.graph.notes, *notes, *backend.notes]
        self._providers = None if providers is None else list(providers)
        self.forward = Forward(model, self.graph, self._providers, threads, backend, self.notes)
        self._plain_graph: LayerGraph | None = None
        self._shapes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self.plans: dict[tuple[Any, ...], Plan] = {}
        self._behind: dict[tuple[str, ...], Behind] = {}
        self._kept: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()

    # --- the model ----------------------------------------------------------------------------------------------------

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        return self.graph.tensor(self.graph.image).shape or ()

    @property
    def layout(self) -> str:
        """One letter an axis of the input: "NCHW", "NHWC"."""
        known = self.graph.tensor(self.graph.image).layout
        return known or {3: "NCW", 4: "NCHW", 5: "NCDHW"}.get(len(self.input_shape), "")

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the file insists on, None if it is free.

        1 where the model quantises by the range of its batch: each picture is to be seen as if it came alone.
        """
        first = self.input_shape[0] if self.input_shape else None
        if isinstance(first, int) and first > 0:
            return first
        return 1 if self.graph.dynamic else None

    @property
    def other_inputs(self) -> tuple[str, ...]:
        return tuple(name for name in self.graph.inputs if name != self.graph.image)

    @cached_property
    def output_shape(self) -> tuple[int | str | None, ...]:
        """Of the logits, as the file states it; of free sizes for one size of the input. () if unknown."""
        shape = self.graph.tensor(self.graph.logits).shape
        if shape and all(isinstance(d, int) for d in shape[1:]):
            return shape
        known = self.shapes_for(self.some_shape(), self.some_others()).get(self.graph.logits)
        if known or self.other_inputs:
            return known or shape or ()
        x = np.zeros(self.some_shape(), self.graph.tensor(self.graph.image).dtype)
        return _shape(self.forward.run({self.graph.image: x}, [self.graph.logits])[self.graph.logits])

    @property
    def dense(self) -> bool:
        """Is the output more than one score a class?"""
        return is_dense(self.output_shape, self.graph.tensor(self.graph.logits).layout)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        sizes = self.shapes_for(self.some_shape(), self.some_others()) if self.dense else {}
        return find_stages(self.graph, dense=self.dense, shapes=sizes)

    @property
    def default_layer(self) -> str:
        """L: the tensor that methods start from (methods 2.2)."""
        return next(stage.name for stage in self.stages if stage.default)

    def graph_for(self, batchnorm: str | None) -> LayerGraph:
        """The view, with BatchNormalization folded or as layers of its own."""
        if batchnorm in (None, "fold"):
            return self.graph
        if self._plain_graph is None:
            self._plain_graph = build_view(self.model, self._output, image=self._image, fold_norms=False)
        return self._plain_graph

    def layout_of(self, graph: LayerGraph, name: str) -> str:
        return graph.tensor(name).layout or self.layout

    def tensor(self, name: str, graph: LayerGraph) -> str:
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

    def need_space(self, graph: LayerGraph, name: str) -> None:
        """Raise LayerError if the tensor has no height and width."""
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
            return [stage.name for stage in self.stages]
        except ModelError:
            return [self.graph.image]

    def plan(
        self, graph: LayerGraph, source: str, target: str, composite: Composite, *, dead_start: bool = False
    ) -> Plan:
        """The way from ``source`` down to ``target``; made once."""
        key = (id(graph), source, target, composite.key, dead_start)
        if key not in self.plans:
            made = descent.plan(graph, source, target, composite, dead_start=dead_start)
            # A backend keeps what it compiled by this key and may serve several models: names and shapes do not tell
            # their weights apart.
            view = "folded" if graph is self.graph else "plain"
            key_text = f"{self.model.sha256}|{graph.image}|{self._output}|{view}|{made.key}"
            self.plans[key] = replace(made, key=key_text)
        return self.plans[key]

    # --- shapes -------------------------------------------------------------------------------------------------------

    def some_shape(self) -> tuple[int, ...]:
        """A shape that the model could take."""
        defaults = {"N": 1, "C": 3}
        return tuple(
            d if isinstance(d, int) and d > 0 else defaults.get(axis, 224)
            for d, axis in zip(self.input_shape, self.layout, strict=False)
        )

    def some_others(self) -> dict[str, tuple[int, ...]]:
        """Shapes that the other inputs could have beside :meth:`some_shape`, where their rank is known."""
        pairs = zip(self.input_shape, self.some_shape(), strict=False)
        known = {stated: size for stated, size in pairs if isinstance(stated, str)}
        found = {name: free_axes_at(self.graph.tensor(name), known) for name in self.other_inputs}
        return {name: shape for name, shape in found.items() if shape is not None}

    def shapes_for(self, shape: tuple[int, ...], others: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Of every tensor that can be inferred, for a shape of the input."""
        key = (shape, *sorted(others.items()))
        if key not in self._shapes:
            given: dict[str, Any] = {self.graph.image: shape, **others}
            if self.graph.quantised:
                found = view_shapes(self.graph, given)
                known: dict[str, Any] = {n: s for n, s in found.items() if all(isinstance(d, int) for d in s)}
                self._shapes[key] = known
            else:
                self._shapes[key] = complete_shapes(self.graph, concrete_shapes(self.model, given))
        return self._shapes[key]

    # --- running ------------------------------------------------------------------------------------------------------

    def tape(
        self,
        graph: LayerGraph,
        x: np.ndarray,
        others: Mapping[str, np.ndarray],
        plans: Iterable[Plan],
        names: Iterable[str] = (),
    ) -> Tape:
        """One forward pass: what the plans read, ``names``, the logits, and every shape the plans need."""
        plans = list(plans)
        shapes = dict(self.shapes_for(x.shape, {name: array.shape for name, array in others.items()}))
        # What rules of DeepLIFT read on the reference is put on the tape by who knows the reference.
        reads = {n for plan in plans for n in plan.reads if not n.startswith(REFERENCE)}
        reads |= {*names, graph.logits}
        unknown = {name: graph.in_model(name) for plan in plans for name in plan.tensors if name not in shapes}
        raw = self.forward.run({graph.image: x, **others}, sorted(_with_scales(graph, reads) | set(unknown.values())))
        values = {name: _as_float(name, raw, graph) for name in sorted(reads)}
        shapes.update({name: _shape(value) for name, value in raw.items()})
        shapes.update({name: shapes[known] for name, known in unknown.items()})
        return Tape(values, shapes)

    def run(self, plan: Plan, tape: Tape, start: np.ndarray, *, keep_books: bool) -> dict[str, np.ndarray]:
        """Walk the plan from ``start``."""
        inputs = {name: tape.values[name] for name in plan.reads}
        program = descent.program(plan, tape.shapes, keep_books=keep_books)
        # Compiled for its inputs: a batch that several rows share, or a reference of one picture, is another program.
        batches = {_shape(value)[:1] for value in inputs.values()}
        if len(batches) > 1 or batches != {start.shape[:1]}:
            sizes = ";".join(str(_shape(inputs[name])[:1]) for name in plan.reads)
            program = replace(program, key=f"{program.key}|{sizes}")
        inputs[START] = np.ascontiguousarray(start, self.backend.dtype)
        return self.backend.execute(program, inputs)

    def logits(self, x: np.ndarray, feeds: Feeds) -> np.ndarray:
        """Logits [m, classes] of inputs, in pieces of the model's fixed batch if it has one.

        ``feeds``: the other inputs of one image, which are those of all.
        """
        dtype, name = self.graph.tensor(self.graph.image).dtype, self.graph.logits
        if np.dtype(dtype).kind in "iu":
            x = np.rint(x)
        size = self.fixed_batch or len(x)
        found: list[np.ndarray] = []
        first = 0
        while first < len(x):
            piece = x[first : first + size].astype(dtype, copy=False)
            given = len(piece)
            whole = piece if self.fixed_batch is None else filled(piece, size)
            others = feeds.rows(0, 1, len(whole))
            try:
                values = self.forward.run({self.graph.image: whole, **others}, _with_scales(self.graph, {name}))
            except DeviceMemoryError as error:
                size = self.smaller(size, given, error)
                continue
            logits = by_image(_numpy(_as_float(name, values, self.graph)), len(whole), name)
            found.append(logits.reshape(len(whole), -1)[:given].astype(np.float32))
            first += given
        return np.concatenate(found)

    def kept(self, key: tuple[Any, ...], made: Callable[[], np.ndarray]) -> np.ndarray:
        """What was made for this key, if it is among the last KEPT arrays; else it is made."""
        if key not in self._kept:
            self._kept[key] = made()
            while len(self._kept) > KEPT or (
                len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > LARGE
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def smaller(self, size: int, images: int, error: DeviceMemoryError) -> int:
        """Half of a batch that did not fit; said in the log. A batch that cannot be halved is the user's to know."""
        if images <= 1 or self.fixed_batch is not None:
            raise error
        half = -(-min(size, images) // 2)
        LOG.warning("%s: %d images at a time are too many, going on with %d", error.what, images, half)
        self.backend.release()
        return half

    def behind(self, source: str, names: Iterable[str] = ()) -> Behind:
        """The model from ``source`` on, which gives the logits and the named tensors."""
        outputs = tuple(dict.fromkeys((self.graph.logits, *names)))
        key = (source, *outputs)
        if key not in self._behind:
            self._behind[key] = Behind(self, source, outputs, self._providers, self._threads)
        return self._behind[key]

    def not_finite(self, graph: LayerGraph, tape: Tape, source: str, target: str) -> ActivationError:
        """Name the first tensor, in the order of the graph, that is not finite."""
        order = [o for layer in graph.layers for o in layer.outputs]
        for name in [n for n in order if n in tape.values]:
            array = tape.array(name)
            if not np.isfinite(array).all():
                producer = graph.producer(name)
                return ActivationError(
                    f"the network computed NaN or Inf: {int((~np.isfinite(array)).sum())} of {array.size} values",
                    at=f"tensor {name!r} of node {producer.name!r} ({producer.op})" if producer else f"tensor {name!r}",
                    known="earlier tensors that were read are finite",
                    next="the model overflows on this input: check its weights, its precision and the preprocessing",
                )
        return ActivationError(
            "the descent overflowed: all activations are finite, the relevance is not",
            at=f"from {source!r} to {target!r}",
            next="Explainer(..., backend='numpy', precision='float64') has the range",
        )


class Behind:
    """The model from one tensor on, run on other values of that tensor."""

    def __init__(
        self, engine: Engine, source: str, outputs: tuple[str, ...], providers: list[str] | None, threads: int | None
    ) -> None:
        self._engine, self._source = engine, engine.graph.tensor(source)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self._source.dtype))
        piece = cut_piece(engine.model.proto, helper.make_tensor_value_info(source, kind, None), outputs)
        for name in piece.others:
            piece.proto.graph.input.append(engine.forward.typed(name))
        read = {tensor.name for tensor in piece.proto.graph.initializer}
        weights = {name: array for name, array in engine.model.weights.items() if name in read}
        model = replace(engine.model, proto=piece.proto, weights=weights)
        self.others, self.outputs = piece.others, outputs
        made = {name for node in piece.proto.graph.node for name in node.output}
        scales = _with_scales(engine.graph, (source, *outputs)) - {source, *outputs}
        self._read = sorted({*outputs, *(scales & made)})
        self._held_names = sorted({*piece.others, *(scales - made)})
        self._forward = Forward(model, engine.graph, providers, threads, engine.backend, [])
        self._held: tuple[bytes, dict[str, np.ndarray]] | None = None

    def run(self, a: np.ndarray, image: np.ndarray, feeds: Feeds) -> Tape:
        """``a`` [m, ...] in the tensor's own layout; ``image`` [1, ...] gives what else this part reads.

        ``feeds``: the other inputs of that image.
        """
        size = self._engine.fixed_batch or len(a)
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, len(a), size):
            piece = a[first : first + size]
            beside = self._beside(size, image, feeds)
            whole = filled(_as_stored(piece, self._source, beside), size)
            others = {name: beside[name] for name in self.others}
            found = self._forward.run({self._source.name: whole, **others}, self._read)
            found = {**beside, **found}  # a scale that stands before this part is that of the image
            graph = self._engine.graph
            arrays = {n: _numpy(_as_float(n, found, graph)) for n in self.outputs}
            parts.append({n: by_image(v, size, n)[: len(piece)] for n, v in arrays.items()})
        values = parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in self.outputs}
        return Tape(values, {name: array.shape for name, array in values.items()})

    def _beside(self, size: int, image: np.ndarray, feeds: Feeds) -> dict[str, np.ndarray]:
        """The other inputs of the piece, and scales, as the whole model has them on ``size`` copies of the image."""
        if not self._held_names:
            return {}
        key = image.tobytes() + size.to_bytes(8, "little")
        if self._held is None or self._held[0] != key:
            x = filled(image, size)
            given = {self._engine.graph.image: x, **feeds.rows(0, 1, size)}
            found = self._engine.forward.run(given, self._held_names)
            self._held = (key, {name: _numpy(value) for name, value in found.items()})
        return self._held[1]


def by_image(values: np.ndarray, n: int, name: str) -> np.ndarray:
    """[n, ...]. For a single image an output without a batch axis is this image's."""
    if values.shape[:1] == (n,):
        return values
    if n == 1:
        return values[None]
    raise ModelError(
        f"the first axis of the output is not the batch: its shape is {list(values.shape)} for {n} images",
        at=f"tensor {name!r}",
        next="explain one image at a time: batch_size=1",
    )


def moved_first(layout: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The permutations that bring the channels of a layout to axis 1, and back."""
    channel = layout.index("C")
    first = (0, channel, *(a for a in range(1, len(layout)) if a != channel))
    return first, tuple(first.index(a) for a in range(len(layout)))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, np.ndarray) else value.shape())


def _numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _with_scales(graph: LayerGraph, names: Iterable[str]) -> set[str]:
    """The tensors, and those that hold the scales of some of them."""
    found = set(names)
    for tensor in [graph.tensor(name) for name in found]:
        if isinstance(tensor.scale, str):
            found |= {tensor.scale, str(tensor.zero_point)}
    return found


def _as_float(name: str, raw: Mapping[str, Any], graph: LayerGraph) -> Any:
    """float32 as it is, integers of a quantised tensor by their scale, anything else as a float32 array.

    ``raw``: what the forward pass gave for :func:`_with_scales` of it.
    """
    value, tensor = raw[name], graph.tensor(name)
    if tensor.scale is not None:
        step, point = _scale(tensor, raw)
        return (_numpy(value).astype(np.int32) - point).astype(np.float32) * step
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


def _scale(tensor: Tensor, raw: Mapping[str, Any]) -> tuple[np.float32, np.int32]:
    """Scale and zero point, as numbers or as the forward pass computed them."""
    step, point = (raw[each] if isinstance(each, str) else each for each in (tensor.scale, tensor.zero_point))
    return np.float32(_number(step)), np.int32(_number(point))


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else _numpy(value).item()


def _as_stored(value: np.ndarray, tensor: Tensor, raw: Mapping[str, Any]) -> np.ndarray:
    """The inverse: what the model's own tensor would hold. ``raw``: its scale, where the model computes it."""
    dtype = np.dtype(tensor.dtype)
    if tensor.scale is None:
        return value.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    step, point = _scale(tensor, raw)
    q = np.rint(value / step) + point
    stored: np.ndarray = np.clip(q, limits.min, limits.max).astype(dtype)
    return stored
