"""LRP from the logits, in plain torch over the model's own graph: composites rule by rule, and the contrastive starts.

Built on ``torch_reference.GraphRelevance``, which walks down from L with the rules of FG-CAM. A second opinion on
zennit, and the only one on CLRP, SGLRP and Relevance-CAM, which no library has.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812
from torch_reference.relevance_graph import MASKED, POOL, GraphRelevance, adjoint, divide

from parity.networks import array

__all__ = ["Composite", "CompositeRelevance", "LogitRelevance"]


Rule = Literal["epsilon", "z_plus", "alpha2_beta1", "gamma", "flat", "z_box"]
Variant = Literal["1", "abs", "2", "relevance-cam"]
EPSILON, GAMMA = 1e-6, 0.25


class LogitRelevance(GraphRelevance):
    """z+ at every layer, linear ones too; z^B at those that read the picture: the paper's LRP."""

    def __init__(self, model: nn.Module) -> None:
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        super().__init__(model, last)
        self.negated = False

    def walk(self, start: Tensor, until: str | None = None) -> Tensor:
        """``start`` [n, classes] on the logits -> relevance of the input, or of the output of the submodule ``until``.

        After :meth:`forward`. What several readers send to one tensor is added.
        """
        goal = self.nodes[0] if until is None else self._output_of(until)
        relevance: dict[fx.Node, Tensor] = {self.layer: start.to(self.dtype)}
        for node in reversed(self.nodes[1 : self.nodes.index(self.layer) + 1]):
            if node in relevance and node is not goal:
                for source, part in self._parts(node, relevance.pop(node)).items():
                    relevance[source] = relevance[source] + part if source in relevance else part
            if node is goal:
                break
        return relevance[goal]

    def _output_of(self, module: str) -> fx.Node:
        inside = [n for n in self.nodes if n.op == "call_module" and f"{n.target}.".startswith(f"{module}.")]
        made_in = [n for n in self.nodes if module in (n.meta.get("nn_module_stack") or {})]
        return (made_in or inside)[-1]

    def _weight(self, node: fx.Node) -> Tensor:
        """CLRP's second variant walks the layer of the logits with -W."""
        weight = super()._weight(node)
        return -weight if self.negated and node is self.layer else weight

    def lrp(self, x: Tensor, target: Tensor, until: str | None = None) -> NDArray[np.float64]:
        """[n, c, ...], from |z_t| at the class."""
        score = self.forward(x).gather(1, target[:, None]).abs()
        return array(self.walk(score * _one_hot(target, self._classes), until))

    def sglrp(self, x: Tensor, target: Tensor, until: str | None = None) -> NDArray[np.float64]:
        """From 1 at the class t, -exp(z_n) / sum over m != t of exp(z_m) at the others: 0 in all."""
        z, here = self.forward(x), _one_hot(target, self._classes).bool()
        others = z.masked_fill(here, -torch.inf).softmax(dim=1)
        return array(self.walk(here.to(z) - others, until))

    def clrp(self, x: Tensor, target: Tensor, variant: Variant = "1") -> NDArray[np.float64]:
        """E = R / sum R - R_dual / sum R_dual at the input, channels summed, [n, h, w]; one for "relevance-cam"."""
        z, here = self.forward(x), _one_hot(target, self._classes)
        classes = self._classes
        score = z.gather(1, target[:, None])
        if variant == "relevance-cam":
            return array(self.walk(here - (1 - here) / classes).sum(dim=1))
        first = self.walk(score.abs() * here).sum(dim=1)
        if variant == "2":
            self.negated = True
            dual = self.walk(score.abs() * here).sum(dim=1)
            self.negated = False
        else:
            start = score.abs() / (classes - 1) if variant == "1" else z.abs()
            dual = self.walk(start * (1 - here)).sum(dim=1)
        return array(first / first.sum(dim=(1, 2), keepdim=True) - dual / dual.sum(dim=(1, 2), keepdim=True))

    @property
    def _classes(self) -> int:
        return int(self.values[self.nodes[-1]].shape[1])


def _one_hot(target: Tensor, classes: int) -> Tensor:
    return F.one_hot(target, classes).double()


@dataclass(frozen=True)
class Composite:
    """Which rule serves the convolutions, the linear layers, and the layer that reads the picture.

    ``bias``: b enters the denominators.
    """

    conv: Rule
    dense: Rule
    first: Rule | None = None
    bias: bool = False


class CompositeRelevance(LogitRelevance):
    """A named composite: activations pass, Add and averages by x / sum of x, BatchNorm folded."""

    def __init__(self, model: nn.Module, composite: Composite) -> None:
        super().__init__(model)
        self.composite = composite

    def _parts(self, node: fx.Node, r: Tensor) -> dict[fx.Node, Tensor]:
        kind, (source, *others) = self._kind(node), self._sources(node)
        if kind in MASKED:
            return {source: r}
        if kind in POOL:
            f, x = self._function(node, source), self.values[source]
            return {source: x * adjoint(f, x, divide_signed(r, f(x)))}
        if kind in (operator.add, torch.add) and others:
            a, b = self.values[source], self.values[others[0]]
            share = divide_signed(r, a + b)
            return {source: a * share, others[0]: b * share}
        return super()._parts(node, r)

    def _weighted(self, node: fx.Node, source: fx.Node, r: Tensor) -> Tensor:
        composite = self.composite
        rule = composite.conv if self._kind(node) is nn.Conv2d else composite.dense
        if composite.first is not None and self._is_image(source):
            rule = composite.first
        w, b = self._weight(node), self._per_channel(node, self._bias(node))
        return share(rule, lambda weight: self._map(node, weight), self.values[source], w, b, r, composite.bias)

    def _bias(self, node: fx.Node) -> Tensor:
        """The bias [co], with a BatchNorm folded in as :meth:`_weight` does."""
        layer = self.modules[str(node.target)]
        b: Tensor = torch.zeros(len(layer.weight), dtype=self.dtype) if layer.bias is None else layer.bias
        (reader, *more) = node.users
        if not more and self._kind(reader) is nn.BatchNorm2d:
            norm = self.modules[str(reader.target)]
            b = (b - norm.running_mean) * norm.weight / torch.sqrt(norm.running_var + norm.eps) + norm.bias
        return b

    def _per_channel(self, node: fx.Node, b: Tensor) -> Tensor:
        return b if self._kind(node) is nn.Linear else b[:, None, None]


def divide_signed(r: Tensor, z: Tensor) -> Tensor:
    """r / z, 0 where z is 0."""
    return torch.where(z == 0, torch.zeros_like(z), r / torch.where(z == 0, torch.ones_like(z), z))


def share(rule: Rule, carry: Callable[[Tensor], Any], x: Tensor, w: Tensor, b: Tensor, r: Tensor, bias: bool) -> Tensor:
    """Relevance r of z = w x + b back to x, by one rule of methods 4.1. ``carry(w)``: the layer with weights w alone.

    ``bias``: is b in the denominators of z+, alpha-beta and gamma? In epsilon's, and in gamma's sign of z, it always
    is.
    """
    xp, xn, wp, wn = x.clamp(min=0), x.clamp(max=0), w.clamp(min=0), w.clamp(max=0)
    offset = b if bias else torch.zeros_like(b)
    bp, bn = offset.clamp(min=0), offset.clamp(max=0)

    def back(terms: list[tuple[Tensor, Tensor]], s: Tensor) -> Tensor:
        return sum((a * adjoint(carry(v), a, s) for a, v in terms), torch.zeros_like(x))

    def total(terms: list[tuple[Tensor, Tensor]], constant: Tensor) -> Tensor:
        return sum((carry(v)(a) for a, v in terms), torch.zeros_like(r)) + constant

    if rule == "epsilon":
        z = total([(x, w)], b)
        return back([(x, w)], r / (z + EPSILON * torch.where(z < 0, -1.0, 1.0)))
    if rule == "z_plus":
        terms = [(xp, wp), (xn, wn)]
        return back(terms, divide(r, total(terms, bp)))
    if rule == "alpha2_beta1":
        helping, hindering = [(xp, wp), (xn, wn)], [(xp, wn), (xn, wp)]
        gained = back(helping, divide(r, total(helping, bp)))
        return 2 * gained - back(hindering, divide(-r, -total(hindering, bn)))
    if rule == "gamma":
        up = [(xp, w + GAMMA * wp), (xn, w + GAMMA * wn)]
        down = [(xp, w + GAMMA * wn), (xn, w + GAMMA * wp)]
        z = total([(x, w)], b)
        rising = back(up, divide_signed(r * (z > 0), total(up, offset + GAMMA * bp)))
        return rising + back(down, divide_signed(r * (z < 0), total(down, offset + GAMMA * bn)))
    if rule == "flat":
        ones = torch.ones_like(x)
        return back([(ones, torch.ones_like(w))], divide(r, carry(torch.ones_like(w))(ones)))
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    boxed = [(x - low, wp), (x - high, wn)]
    return back(boxed, divide(r, total(boxed, torch.zeros_like(b))))
