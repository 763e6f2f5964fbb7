"""What passes between ``explain()`` and a family of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fgcam_onnx import descent
from fgcam_onnx.composite import RelevanceComposite
from fgcam_onnx.descent import Plan
from fgcam_onnx.engine import Engine, Tape
from fgcam_onnx.errors import MethodError, OptionError, nearest
from fgcam_onnx.feeds import Feeds, filled
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.rows import shares_batch
from fgcam_onnx.ledger import Ledger

if TYPE_CHECKING:
    from fgcam_onnx.methods import Method

__all__ = ["COMPOSITE_OPTIONS", "DENOISE_OPTIONS", "Ask", "Batch", "Found", "Job"]
__all__ += [
    "check_bounds",
    "composite_of",
    "ledger_of",
    "need_classes",
    "own_options",
    "shapes_of_rows",
    "without_rows",
]

DENOISE_OPTIONS = ("ratio", "add_mean_back", "support_mask")
COMPOSITE_OPTIONS = tuple(f.name for f in fields(RelevanceComposite) if f.init)


@dataclass(frozen=True, eq=False)
class Ask:
    """What one call of explain() asks for. ``options`` as the user gave them."""

    method: Method
    layer: str | None
    start: str | None
    denoise: bool
    options: Mapping[str, Any]
    against: bool


@dataclass(frozen=True, eq=False)
class Job:
    """What is done to each batch. ``source``: where it starts, ``target``: where the map is.

    ``plans`` by what they are for; ``names``: tensors beside those that the plans read. ``options``: the method's own,
    defaults filled in.
    """

    method: Method
    graph: LayerGraph
    source: str
    target: str
    plans: Mapping[str, Plan] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    denoise: bool = False
    cleaning: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def shares_batch(self, tape: Tape, n: int) -> bool:
        """Can the rows of one image share its activations and denominators?

        Every tensor on the way must have the batch, of size ``n``, as its first axis, and nothing may be sent beside
        the way.
        """
        for plan in self.plans.values():
            if plan.aside or not all(shares_batch(step.layer, self.graph) for step in plan.steps):
                return False
            layers = [step.layer for step in plan.steps]
            on_way = [t for one in layers for t in (*(one.inputs[i] for i in one.operands), *one.outputs)]
            if any(tape.shapes[name][:1] != (n,) for name in (plan.source, plan.target, *on_way) if name):
                return False
        return True


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with what the forward pass gave.

    A row is one image explained for one class: one for each image, or several for a single image, whose tape then has
    a batch of 1 and the shapes of the relevance. ``seed``: how much each logit counts, [rows, ...] in the shape of the
    logits. ``classes``, ``against``: int64 [rows], None where the target is no class. ``feeds``: the inputs beside
    these images. ``first``: their place among the ``images`` of the call.
    """

    x: np.ndarray
    tape: Tape
    seed: np.ndarray
    classes: np.ndarray | None
    against: np.ndarray | None
    logits: np.ndarray
    feeds: Feeds
    progress: Callable[[int, int], None]
    batch_size: int
    first: int = 0
    images: int = 1

    @property
    def rows(self) -> int:
        return len(self.seed)

    @property
    def several(self) -> bool:
        """Do several rows explain one image?"""
        return len(self.seed) != len(self.x)

    @cached_property
    def weights(self) -> np.ndarray:
        """``seed`` as [rows, classes]."""
        return self.seed.reshape(self.rows, -1)

    def of_image(self, image: int, rows: Sequence[int], shapes: Mapping[str, tuple[int, ...]]) -> Batch:
        """Some rows of one image as a batch of their own."""
        n = len(self.x)
        values = {name: _slice(value, image, n) for name, value in self.tape.values.items()}
        picked = np.asarray(rows)
        return replace(
            self,
            x=self.x[image : image + 1],
            tape=Tape(values, shapes),
            seed=self.seed[picked],
            classes=None if self.classes is None else self.classes[picked],
            against=None if self.against is None else self.against[picked],
            logits=self.logits[image : image + 1],
            feeds=self.feeds.part(image, image + 1),
            first=self.first + image,
        )

    def cut(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the call for these images: of an array with a row for each image of the call, theirs."""
        n = len(self.x)
        return {
            name: filled(value[self.first : self.first + n], n)
            if isinstance(value, np.ndarray) and value.shape[:1] == (self.images,) and value.ndim > 1
            else value
            for name, value in options.items()
        }


def shapes_of_rows(shapes: Mapping[str, tuple[int, ...]], n: int, rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes with a batch of ``rows`` in place of ``n``."""
    return {name: (rows, *shape[1:]) if shape[:1] == (n,) else shape for name, shape in shapes.items()}


def _slice(value: Any, image: int, n: int) -> Any:
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return array[image : image + 1] if array.shape[:1] == (n,) and n > 1 else array


@dataclass(frozen=True, eq=False)
class Found:
    """``relevance``: [rows, ...] at the target, channels summed. ``promised``: [rows], what its sum should be."""

    relevance: np.ndarray
    ledger: Ledger
    promised: np.ndarray | None = None


def without_rows(relevance: np.ndarray) -> Ledger:
    """The ledger of a map that was not walked by rules of relevance: it has a sum, and no rows."""
    flat = relevance.reshape(len(relevance), -1).astype(np.float64)
    return Ledger((), flat.sum(1), np.abs(flat).sum(1), flat.sum(1))


def composite_of(engine: Engine, ask: Ask, **defaults: Any) -> RelevanceComposite:
    """The composite that the options choose, over a method's ``defaults``."""
    given = {k: v for k, v in ask.options.items() if k in COMPOSITE_OPTIONS}
    composite = RelevanceComposite(**{**defaults, **given})
    bounds = () if isinstance(composite.zb_bounds, str) else composite.zb_bounds
    channels = dict(zip(engine.layout, engine.input_shape, strict=False)).get("C")
    for bound in bounds:
        if isinstance(channels, int) and np.size(bound) not in (1, channels) and not engine.other_inputs:
            raise OptionError(
                f"option zb_bounds has {np.size(bound)} numbers", known=f"the image has {channels} channels"
            )
    return composite


def own_options(ask: Ask, *others: str) -> dict[str, Any]:
    """The method's own options, defaults filled in.

    Raises:
        OptionError: one that neither the method nor ``others`` know, or a value of the wrong kind.
    """
    own = ask.method.options
    for name in ask.options:
        if name not in (*own, *others):
            known = (*own, *others)
            raise OptionError(
                f"method {ask.method.name!r} has no option {name!r}",
                known=", ".join(known) if known else "it has none",
                next=nearest(name, known) or None,
            )
    found: dict[str, Any] = {}
    for name, default in own.items():
        value = ask.options.get(name, default[0] if _is_choice(default) else default)
        if isinstance(value, list):
            value = np.asarray(value)
        found[name] = value
        if _is_choice(default):
            if value not in default:
                raise OptionError(
                    f"option {name} cannot be {value!r}",
                    known=f"its choices are {', '.join(default)}",
                    next=nearest(str(value), default) or None,
                )
        elif isinstance(default, bool):
            if not isinstance(value, (bool, np.bool_)):
                raise OptionError(f"option {name} cannot be {value!r}", known="true or false")
        elif isinstance(default, int) and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise OptionError(f"option {name} cannot be {value!r}", known="a whole number")
        elif isinstance(default, float) and (
            isinstance(value, (str, bool)) or np.asarray(value).dtype.kind not in "fiu"
        ):
            raise OptionError(f"option {name} cannot be {value!r}", known="a number")
    return found


def _is_choice(default: Any) -> bool:
    return isinstance(default, tuple) and bool(default) and all(isinstance(each, str) for each in default)


def need_classes(job: Job, batch: Batch, what: str) -> np.ndarray:
    """The classes of a method that cannot explain any weighted sum of logits.

    Raises:
        MethodError: the target is no class, or one against another.
    """
    if batch.classes is not None and batch.against is None:
        return batch.classes
    target = "a target held against another class is none" if batch.against is not None else "this target is none"
    raise MethodError(
        f"{job.method.name} {what}, and {target}",
        known=f"the output {job.graph.logits!r} has the shape {list(batch.logits.shape)}",
        next="take fg-grad-cam or fg-layer-cam, which explain any weighted sum of logits",
    )


def check_bounds(composite: RelevanceComposite, body: Plan) -> None:
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


def ledger_of(plan: Plan, result: Mapping[str, np.ndarray]) -> Ledger:
    """The ledger from what a walk with books returned."""
    return descent.ledger_of(plan, {k: v for k, v in result.items() if k != descent.RESULT})
