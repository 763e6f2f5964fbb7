"""Composites: which rule serves which layer.

:class:`RelevanceComposite` is the descent of FG-CAM and of LRP: rules by selector, a named composite, and the options
of methods 2.6. :class:`GradientComposite` walks by derivatives: the head, for CAMs, and gradient methods down to the
picture. :class:`RescaleComposite` walks by DeepLIFT's multipliers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgcam_onnx import registry
from fgcam_onnx.backends.base import Verbs
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.graph.affine import BY_DERIVATIVE
from fgcam_onnx.graph.layer import SATURATE, Layer, LayerGraph
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.propagation import FORMULAS, checked, formula
from fgcam_onnx.registry import LinearMap, Rule
from fgcam_onnx.selectors import matches, number_matched

__all__ = ["CHOICES", "NAMED", "Composite", "Gap", "GradientComposite", "Named", "RelevanceComposite"]
__all__ += ["RescaleComposite", "split_rule"]

# Options of the descent: default first (methods 2.6).
CHOICES: dict[str, tuple[str, ...]] = {
    "first_layer": ("zB", "z+", "flat", "same"),
    "batchnorm": ("fold", "identity"),
    "relu": ("mask", "identity"),
    "add": ("zplus", "norm"),
    "mul": ("signal", "uniform"),
    "maxpool": ("winner", "winner_positive"),
}
# The first-layer option's values are the paper's names; the formulas have those of the files. "same": as other layers.
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

    parameters = {k: v for k, v in options.items() if k in chosen.parameters}
    options = {**options, **checked(chosen.name, parameters)}
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
        unbounded=chosen.unbounded,
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
    """Every operator by its derivative; ``guided``: these operators by the derivative of guided backpropagation."""

    guided: tuple[str, ...] = ()
    kind: str = field(default="gradient", init=False)

    @property
    def key(self) -> str:  # type: ignore[override]
        return "gradient" if not self.guided else f"gradient guided at {', '.join(self.guided)}"

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        if _works_on_tokens(layer, graph):
            return Gap("it works on tokens, cells that are a picture no longer: this is no convolutional network")
        linear = _linear_rule(layer, graph, "gradient", {})
        if linear is not None:
            return linear
        guided = layer.op in self.guided and "guided" in registry.names("gradient", layer.op)
        return _own_rule(layer, graph, "gradient", "guided" if guided else None)


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
class RescaleComposite(Composite):
    """DeepLIFT with the rescale rule: what is affine by its derivative, all else by its multiplier."""

    kind = "rescale"
    key = "rescale"

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        linear = _linear_rule(layer, graph, "gradient", {})
        if linear is not None:
            return linear
        return _own_rule(layer, graph, "gradient" if layer.op in BY_DERIVATIVE else "rescale", None)


@dataclass(frozen=True)
class Named:
    """A named composite: rules by selector, the first that matches, and its own defaults of the options."""

    rules: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)


# Activations and folded norms pass relevance on, sums and average pools share it by signed parts.
_USUAL = {"first_layer": "same", "relu": "identity", "add": "norm"}
_DENSE = {"dense": "epsilon", "pool": "epsilon"}
NAMED: dict[str, Named] = {
    "paper": Named({}),
    "epsilon_plus": Named({"conv": "z_plus", **_DENSE}, _USUAL),
    "epsilon_alpha2_beta1": Named({"conv": "alpha_beta(alpha=2, beta=1)", **_DENSE}, _USUAL),
    "epsilon_plus_flat": Named({"conv": "z_plus", **_DENSE}, _USUAL | {"first_layer": "flat"}),
    "epsilon_alpha2_beta1_flat": Named(
        {"conv": "alpha_beta(alpha=2, beta=1)", **_DENSE}, _USUAL | {"first_layer": "flat"}
    ),
    "epsilon_gamma_box": Named({"conv": "gamma(gamma=0.25)", **_DENSE}, _USUAL | {"first_layer": "zB"}),
    "excitation": Named(
        {"pool": "epsilon"},
        {"first_layer": "same", "add": "norm", "batchnorm": "identity"},
    ),
}


@dataclass(frozen=True)
class RelevanceComposite(Composite):
    """Rules of relevance. The defaults are FG-CAM's descent: z+ everywhere, z^B where the image comes in.

    For each layer the first of: ``rules``, pairs of a selector (``fgcam_onnx.selectors``) and a rule; the named
    ``composite``; z+, or the operator's own rule, as the options of methods 2.6 choose it. An option that is None is
    the named composite's. A rule is the name of a formula with its parameters, "gamma(gamma=0.5)", or of a rule of the
    operator, "norm". ``bias``: whether z+, alpha-beta and gamma count the bias in their denominators, and so lose its
    share; ``epsilon``: the stabiliser of LRP-epsilon. ``zb_bounds``: "per_image", or (low, high), each a number or one
    per channel.

    Raises:
        OptionError: a value outside an option's choices, a rule or a composite that nobody knows.
    """

    composite: str = "paper"
    rules: tuple[tuple[str, str], ...] = ()
    bias: bool = False
    epsilon: float = 1e-6
    first_layer: str | None = None
    zb_bounds: Any = "per_image"
    batchnorm: str | None = None
    relu: str | None = None
    add: str | None = None
    mul: str | None = None
    maxpool: str | None = None
    kind: str = field(default="relevance", init=False)

    def __post_init__(self) -> None:
        if self.composite not in NAMED:
            raise OptionError(
                f"there is no composite {self.composite!r}",
                known=", ".join(NAMED),
                next=nearest(str(self.composite), NAMED) or None,
            )
        if not isinstance(self.bias, (bool, np.bool_)):
            raise OptionError(f"option bias cannot be {self.bias!r}", known="true or false")
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, (int, float)) or not self.epsilon >= 0:
            raise OptionError(f"option epsilon cannot be {self.epsilon!r}", known="a number, at least 0")
        pairs = self.rules.items() if isinstance(self.rules, Mapping) else self.rules
        object.__setattr__(self, "rules", tuple((str(selector), _checked(rule)) for selector, rule in pairs))
        for option, choices in CHOICES.items():
            value = getattr(self, option)
            if value is None:
                value = NAMED[self.composite].options.get(option, choices[0])
                object.__setattr__(self, option, value)
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

    def check(self, graph: LayerGraph) -> None:
        """Raise OptionError if a selector of the user's means no layer."""
        for selector, _ in self.rules:
            number_matched(selector, graph)

    def rule_for(self, layer: Layer, graph: LayerGraph) -> Rule | Gap:
        for selector, rule in self.rules:
            if matches(selector, layer, graph):
                return self.named(layer, graph, rule)
        if self.first_layer != "same" and matches("first", layer, graph):
            return self.named(layer, graph, FIRST_LAYER[str(self.first_layer)])
        for selector, rule in NAMED[self.composite].rules.items():
            if matches(selector, layer, graph):
                return self.named(layer, graph, rule)
        if registry.find_linear(layer.op) is not None:
            return self.named(layer, graph, "z_plus")
        option = CHOSEN_BY.get(layer.op)
        return _own_rule(layer, graph, "relevance", None if option is None else getattr(self, option))

    def named(self, layer: Layer, graph: LayerGraph, text: str) -> Rule | Gap:
        """The rule that a text names, for this layer.

        Raises:
            OptionError: the layer's operator has no such rule.
        """
        name, given = split_rule(text)
        if registry.find_linear(layer.op) is not None:
            if name not in FORMULAS:
                raise OptionError(
                    f"rule {name!r} cannot serve {layer.op}",
                    at=f"node {layer.name!r}",
                    known=f"it is a linear map, its rules are {', '.join(FORMULAS)}",
                    next=nearest(name, FORMULAS) or None,
                )
            defaults = {"bias": bool(self.bias), "epsilon": float(self.epsilon), "bounds": self.zb_bounds}
            own = {k: v for k, v in defaults.items() if k in formula(name).parameters or k == "bounds"}
            if name == "epsilon":
                own.pop("bias", None)  # LRP-epsilon has the bias in z_j by its definition
            found = _linear_rule(layer, graph, name, {**own, **given})
            return found if found is not None else Gap(f"{layer.op} is no linear map here")
        if given:
            raise OptionError(f"rule {text!r}: the rules of {layer.op} have no parameters", at=f"node {layer.name!r}")
        kind = "gradient" if name == "gradient" else "relevance"
        known = registry.names("relevance", layer.op)
        if kind == "relevance" and name not in known:
            raise OptionError(
                f"rule {name!r} cannot serve {layer.op}",
                at=f"node {layer.name!r}",
                known=f"its rules are {', '.join(known)}" if known else f"{layer.op} has no relevance rule",
                next=nearest(name, known) or None,
            )
        return _own_rule(layer, graph, kind, None if kind == "gradient" else name)


_RULE = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def split_rule(rule: Any) -> tuple[str, dict[str, Any]]:
    """The name and parameters of a rule: "gamma(gamma=0.5)", or a pair ("gamma", {"gamma": 0.5}).

    Raises:
        OptionError: it is written in another way, or its formula has no such parameter.
    """
    if not isinstance(rule, str):
        name, given = rule if isinstance(rule, (tuple, list)) and len(rule) == 2 else (rule, None)
        if not isinstance(name, str) or not isinstance(given, Mapping):
            raise OptionError(f"{rule!r} is no rule", known=RULE_FORMS)
        return name, dict(given)
    found = _RULE.fullmatch(rule)
    if found is None:
        raise OptionError(f"{rule!r} is no rule", known=RULE_FORMS)
    given = {}
    for part in (found[2] or "").split(",") if found[2] else []:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise OptionError(f"{rule!r} is no rule", at=f"{part.strip()!r}", known=RULE_FORMS)
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = {"true": True, "false": False}.get(value, value)
    return found[1], given


RULE_FORMS = "a name, or one with parameters: 'epsilon', 'gamma(gamma=0.5)', 'alpha_beta(alpha=2, beta=1)'"


def _checked(rule: Any) -> str:
    """A rule as text, its parameters known to its formula."""
    name, given = split_rule(rule)
    if name in FORMULAS:
        checked(name, given)
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" if given else name


def _is_pair(bounds: Any) -> bool:
    """(low, high) with low <= high, each a number or one a channel?"""
    try:
        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        return low.ndim < 2 and high.ndim < 2 and bool(np.all(low <= high))
    except (TypeError, ValueError):
        return False
