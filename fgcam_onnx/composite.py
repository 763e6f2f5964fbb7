"""Composites: which rule serves which layer.

Two families. :class:`RelevanceComposite` is the descent of FG-CAM with the options of methods 2.6; the
:class:`GradientComposite` walks the head, and gives CAMs their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgcam_onnx import registry
from fgcam_onnx.backends.base import Verbs
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.graph.layer import SATURATE, Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation import formula
from fgcam_onnx.registry import LinearMap, Rule

__all__ = ["CHOICES", "Composite", "Gap", "GradientComposite", "RelevanceComposite"]

# Options of the descent: default first (methods 2.6).
CHOICES: dict[str, tuple[str, ...]] = {
    "first_layer": ("zB", "z+", "flat"),
    "batchnorm": ("fold", "identity"),
    "relu": ("mask", "identity"),
    "add": ("zplus", "norm"),
    "mul": ("signal", "uniform"),
    "maxpool": ("winner", "winner_positive"),
}
# The first-layer option's values are the paper's names; the formulas have those of the files.
FIRST_LAYER = {"zB": "z_box", "z+": "z_plus", "flat": "flat"}
# Which option chooses the rule of an operator.
CHOSEN_BY = {"Relu": "relu", "Clip": "relu", SATURATE: "relu", "Add": "add", "Sum": "add", "Mean": "add", "Sub": "add"}
CHOSEN_BY |= {"Mul": "mul", "MaxPool": "maxpool", "GlobalMaxPool": "maxpool"}

Bounds = str | tuple[Sequence[float] | float, Sequence[float] | float]


@dataclass(frozen=True)
class Gap:
    """Why a layer has no rule."""

    reason: str


class Composite:
    """Chooses rules. ``key`` tells composites apart in caches."""

    kind: str
    key: str

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        raise TypeError("a composite defines rule_for")


def _linear_rule(layer: Layer, graph: LayerGraph, name: str, options: Mapping[str, Any]) -> Rule | Gap | None:
    """The propagation formula ``name`` over the layer's linear map, None if it is no linear map."""
    found = registry.find_linear(layer.op)
    if found is None:
        return None
    cls, since = found
    if layer.version not in since:
        return Gap(_too_new(layer, since))
    refusal = cls.refuses(layer, graph)
    if refusal is not None:
        return Gap(refusal)
    chosen = formula("z_plus" if name == "z_box" and cls.fixed_nonnegative else name)

    def function(node: Node, r: Any, xp: Verbs, cls: type[LinearMap] = cls) -> Flow:
        return chosen.function(node, cls, r, xp)

    return Rule(
        chosen.name,
        layer.op,
        since,
        function,
        reads=chosen.reads,
        sends=_first,
        leaks=chosen.leaks,
        dead_inputs=chosen.dead_inputs,
        options=options,
        # Bounds that the user gives are a word, not a fact: a pixel outside them makes terms of both signs.
        one_sign=chosen.one_sign and (chosen.name != "z_box" or isinstance(options.get("bounds", "per_image"), str)),
    )


def _first(layer: Layer, graph: LayerGraph) -> tuple[int, ...]:
    return (0,)


def _own_rule(layer: Layer, graph: LayerGraph, kind: str, name: str | None) -> Rule | Gap:
    rule = registry.find(kind, layer.op, name)
    if rule is None:
        return Gap(registry.reason_against(kind, layer.op) or f"no {kind} rule for {layer.op}-{layer.version}")
    if layer.version not in rule.since:
        return Gap(_too_new(layer, rule.since))
    refusal = rule.refuses(layer, graph)
    return rule if refusal is None else Gap(refusal)


def _too_new(layer: Layer, since: Sequence[int]) -> str:
    return f"{layer.op}-{layer.version} is not among the versions with a rule ({', '.join(map(str, since))})"


@dataclass(frozen=True)
class GradientComposite(Composite):
    """Every operator by its derivative."""

    kind = "gradient"
    key = "gradient"

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        if _works_on_tokens(layer, graph):
            return Gap("it works on tokens, cells that are a picture no longer: this is no convolutional network")
        return _linear_rule(layer, graph, "gradient", {}) or _own_rule(layer, graph, "gradient", None)


def _works_on_tokens(layer: Layer, graph: LayerGraph) -> bool:
    """Does a learned layer between the scores and L read more than features, and no picture?

    L is the last tensor with space. Where its cells go on as a list, as in an MLP-Mixer, most of the network lies
    behind it, and a map from there would say little. A fully connected layer behind a pooling reads features: [n, c].
    """
    found = registry.find_linear(layer.op)
    shape, image = graph.tensor(layer.inputs[0]).shape, graph.tensor(graph.image).shape
    if found is None or found[0].fixed_nonnegative or shape is None or image is None:
        return False
    return len(shape) > 2 and len(shape) != len(image) and any(size != 1 for size in shape[1:-1])


@dataclass(frozen=True)
class RelevanceComposite(Composite):
    """FG-CAM's descent: z+ everywhere, z^B where the image comes in, the operators' own rules elsewhere.

    Options as in methods 2.6. ``zb_bounds``: "per_image", or (low, high), each a number or one per channel.

    Raises:
        OptionError: a value outside an option's choices.
    """

    first_layer: str = "zB"
    zb_bounds: Any = "per_image"
    batchnorm: str = "fold"
    relu: str = "mask"
    add: str = "zplus"
    mul: str = "signal"
    maxpool: str = "winner"
    kind: str = field(default="relevance", init=False)

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            value = getattr(self, option)
            if value not in choices:
                raise OptionError(
                    f"option {option} cannot be {value!r}",
                    known=f"its choices are {', '.join(choices)}",
                    next=nearest(str(value), choices) or None,
                )
        if isinstance(self.zb_bounds, str):
            if self.zb_bounds != "per_image":
                raise OptionError(
                    f"option zb_bounds cannot be {self.zb_bounds!r}",
                    known="'per_image', or a pair (low, high) of numbers or of one number a channel",
                )
        elif not _is_pair(self.zb_bounds):
            raise OptionError(
                f"option zb_bounds cannot be {self.zb_bounds!r}", known="a pair (low, high) with low <= high"
            )

    @property
    def key(self) -> str:  # type: ignore[override]
        return repr(self)

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        first = bool(layer.inputs) and graph.tensor(layer.inputs[0]).from_image
        name = FIRST_LAYER[self.first_layer] if first else "z_plus"
        linear = _linear_rule(layer, graph, name, {"bounds": self.zb_bounds})
        if linear is not None:
            return linear
        option = CHOSEN_BY.get(layer.op)
        return _own_rule(layer, graph, "relevance", None if option is None else getattr(self, option))


def _is_pair(bounds: Any) -> bool:
    """(low, high) with low <= high, each a number or one a channel?"""
    try:
        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        return low.ndim < 2 and high.ndim < 2 and bool(np.all(low <= high))
    except (TypeError, ValueError):
        return False
