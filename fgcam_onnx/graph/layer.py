"""The layer graph: what the rules see of a model.

A :class:`Layer` is one node of the deployed graph, or several folded into one (a Conv with its
BatchNormalization). Its weights are plain arrays; its input and output tensors keep the names they have in the
model, so that a relevance can always be traced to the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["SATURATE", "STANDARDISE", "STRIDED", "Layer", "LayerGraph", "Refusal", "Shape", "Tensor"]

# The view's own operator: the value clamped to [low, high], the range of a quantised tensor.
SATURATE = "fgcam::Saturate"
# And another: a normalisation that the model writes out, (x - mean) / sqrt(var + epsilon) over ``axes``.
STANDARDISE = "fgcam::Standardise"
# And a third: cells picked by their position in the whole batch, seen as one axis.
STRIDED = "fgcam::Strided"

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Tensor:
    """What is known of an activation before anything runs.

    ``shape``: None where unknown, a dimension an int, a name or None. ``layout``: one letter an axis, "NCHW",
    None where the axes have no such meaning. ``nonnegative``: provably >= 0. ``from_image``: reached from the
    graph input by index moves and affine constants only, so a linear layer that reads it reads pixels. ``scale``: of a
    quantised tensor, whose integers q stand for (q - zero_point) scale; both are the names of tensors where the model
    computes them as it runs.
    """

    name: str
    shape: Shape | None = None
    dtype: str = "float32"
    layout: str | None = None
    nonnegative: bool = False
    from_image: bool = False
    scale: float | str | None = None
    zero_point: int | str = 0

    @property
    def spatial(self) -> tuple[int | str | None, ...]:
        """Sizes of the spatial axes, () if the layout has none or is unknown."""
        if self.layout is None or self.shape is None:
            return ()
        return tuple(d for d, axis in zip(self.shape, self.layout, strict=True) if axis not in "NC")


@dataclass(frozen=True)
class Layer:
    """One operator of the view.

    ``inputs``: the node's operands in ONNX's order, "" for an omitted one; ``constants``: the values of those
    operands that are constant, by position. ``attributes`` are complete, defaults filled in. ``nodes``: the names of
    the model's nodes this layer stands for, first the one that names it. ``sizes``: positions of operands that follow
    from the shapes of tensors: constants as soon as the size of the picture is known (``graph.sizes``).
    """

    name: str
    op: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, np.ndarray] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    sizes: frozenset[int] = frozenset()

    @property
    def operands(self) -> tuple[int, ...]:
        """Positions of the inputs that are activations."""
        return tuple(
            i for i, name in enumerate(self.inputs) if name and i not in self.constants and i not in self.sizes
        )

    @property
    def output(self) -> str:
        return self.outputs[0]

    def constant(self, position: int) -> np.ndarray | None:
        """The value of operand ``position``, None if it is omitted."""
        return self.constants.get(position)

    def unknown(self, position: int) -> bool:
        """Is operand ``position`` there, and neither constant nor known from the sizes?"""
        return self.given(position) and position not in self.constants and position not in self.sizes

    def given(self, position: int) -> bool:
        """Is operand ``position`` there at all, constant or not?"""
        return position < len(self.inputs) and (bool(self.inputs[position]) or position in self.constants)


@dataclass(frozen=True)
class Refusal:
    """Why a folding pass left a node as it is."""

    node: str
    reason: str


@dataclass(frozen=True)
class LayerGraph:
    """Layers in topological order, and what is known of each tensor.

    ``image`` is the graph input that is explained, ``logits`` the tensor in which the explanation starts.
    ``gates``: for a Mul layer by name, the position of the operand that is a gate (methods 3.2).
    ``notes``: sentences that a user should read (a stripped Softmax, negative BatchNormalization scales).
    ``head``: the op between the logits and the scores that the model gives (Softmax, Sigmoid), None if it gives logits.
    ``measures``: layers that compute with shapes alone. ``opset``: of ONNX's own operators in the model.
    ``refusals``: what the folding passes left alone, and why.
    """

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    image: str
    logits: str
    gates: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    head: str | None = None
    opset: int = 0
    measures: tuple[Layer, ...] = ()

    @property
    def quantised(self) -> bool:
        """Are some of its tensors integers with a scale?"""
        return any(tensor.scale is not None for tensor in self.tensors.values())

    @cached_property
    def dynamic(self) -> bool:
        """Are some of them scaled by the range of the batch that they come from?"""
        return any(isinstance(tensor.scale, str) for tensor in self.tensors.values())

    @cached_property
    def _producers(self) -> dict[str, Layer]:
        return {name: layer for layer in self.layers for name in layer.outputs if name}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Layer, ...]]:
        table: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in dict.fromkeys(layer.inputs[i] for i in layer.operands):
                table.setdefault(name, []).append(layer)
        return {name: tuple(found) for name, found in table.items()}

    def producer(self, tensor: str) -> Layer | None:
        """The layer that computes ``tensor``, None for a graph input."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Layer, ...]:
        return self._consumers.get(tensor, ())

    def tensor(self, name: str) -> Tensor:
        return self.tensors.get(name) or Tensor(name)

    def in_model(self, name: str) -> str:
        """A tensor of the model with the shape of ``name``: itself, but for those that only the view has."""
        behind = self.consumers(name)
        return behind[0].output if len(behind) == 1 and behind[0].op == SATURATE else name

    def ancestors(self, tensor: str) -> set[str]:
        """Every tensor that ``tensor`` depends on, itself included."""
        return self._reach([tensor], lambda t: self._inputs_of(t))

    def descendants(self, tensor: str) -> set[str]:
        """Every tensor that depends on ``tensor``, itself included."""
        return self._reach([tensor], lambda t: (o for c in self.consumers(t) for o in c.outputs if o))

    def _inputs_of(self, tensor: str) -> Iterable[str]:
        layer = self.producer(tensor)
        return (layer.inputs[i] for i in layer.operands) if layer else ()

    @staticmethod
    def _reach(seeds: list[str], step: Any) -> set[str]:
        seen, stack = set(seeds), list(seeds)
        while stack:
            for name in step(stack.pop()):
                if name not in seen:
                    seen.add(name)
                    stack.append(name)
        return seen
