"""What a rule sees: one layer with its activations, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgcam_onnx.backends.base import Array, Leak, Verbs
from fgcam_onnx.graph.layer import Layer, LayerGraph

__all__ = ["REFERENCE", "Flow", "Node"]

# Before the name of an activation on the tape: its value on the reference input (DeepLIFT).
REFERENCE = "reference:"


@dataclass(frozen=True)
class Node:
    """A layer during the descent. A rule reads it, and nothing else.

    ``tape`` holds the activations that the rule declared in ``reads``; ``shapes`` the concrete shape of every tensor
    of the layer. ``options``: values the composite hands to its rules (the bounds of z^B).
    """

    layer: Layer
    graph: LayerGraph
    xp: Verbs
    tape: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.layer.attributes

    def x(self, position: int = 0) -> Array:
        """Operand ``position``: an activation, or a constant in the backend's dtype."""
        value = self.layer.constant(position)
        return self.xp.constant(value) if value is not None else self.tape[self.layer.inputs[position]]

    @property
    def y(self) -> Array:
        """The activation of the (first) output."""
        return self.tape[self.layer.output]

    def x0(self, position: int = 0) -> Array:
        """Operand ``position`` on the reference input; for rules of kind "rescale"."""
        value = self.layer.constant(position)
        return self.xp.constant(value) if value is not None else self.tape[REFERENCE + self.layer.inputs[position]]

    @property
    def y0(self) -> Array:
        """The (first) output on the reference input."""
        return self.tape[REFERENCE + self.layer.output]

    def in_shape(self, position: int = 0) -> tuple[int, ...]:
        value = self.layer.constant(position)
        return value.shape if value is not None else self.shapes[self.layer.inputs[position]]

    def out_shape(self, position: int = 0) -> tuple[int, ...]:
        return self.shapes[self.layer.outputs[position]]

    def nonnegative(self, position: int = 0) -> bool:
        """Is operand ``position`` provably >= 0?"""
        value = self.layer.constant(position)
        if value is not None:
            return bool(np.all(value >= 0))
        return self.graph.tensor(self.layer.inputs[position]).nonnegative

    @property
    def gate(self) -> int | None:
        """Position of a Mul's operand that is a gate, None if neither or both are."""
        return self.graph.gates.get(self.layer.name)


@dataclass(frozen=True)
class Flow:
    """A rule's answer: relevance of each operand by position, and what was dropped on the way."""

    parts: Mapping[int, Array]
    leaks: tuple[Leak, ...] = ()
