"""FG-Grad-CAM of any torchvision classifier: the rules of methods 2 and 3 over the model's own torch.fx graph.

A second implementation, from the specification alone: it sees modules and functions where fgcam_onnx sees the operators
of a file, so nothing that an exporter does to a network can hide in it. It is written to be read. ``adjoint(f, x, s)``,
torch's own derivative, hands s back through f: that is all there is to index maps and the winners of a max-pool, and
the linear half of every share.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

Function = Callable[[Tensor], Tensor]
SMALLEST = torch.finfo(torch.float32).tiny  # a denominator below it counts as zero

# What a node does: the class of its module, the function it calls, or the name of its method.
IDENTITY = {nn.BatchNorm2d, nn.LayerNorm, F.layer_norm, nn.Dropout, nn.Identity, "stochastic_depth"}
IDENTITY |= {nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU}
MASKED = {nn.ReLU, nn.ReLU6, F.relu}
INDEX = {torch.cat, operator.getitem, torch.flatten, nn.Flatten, torch.permute, torch.transpose, torch.unsqueeze}
INDEX |= {"view", "reshape", "flatten", "permute", "transpose", "contiguous"}
WINNER = {nn.MaxPool2d, F.max_pool2d}
POOL = {nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d}


def adjoint(f: Function, x: Tensor, s: Tensor) -> Tensor:
    """d<s, f(x)>/dx, of x's shape."""
    x = x.detach().requires_grad_()
    (back,) = torch.autograd.grad(f(x), x, s)
    return back


def divide(r: Tensor, z: Tensor) -> Tensor:
    """r / z where z >= 0 is not zero; relevance of a zero is lost."""
    return torch.where(z >= SMALLEST, r / z.clamp(min=SMALLEST), torch.zeros_like(z))


def shares(terms: list[tuple[Tensor, Function]], r: Tensor) -> Tensor:
    """r of z = sum f(a) >= 0 back to the cells, in proportion to what each of them put into z.

    terms: [(a, f), ...], parts a of one tensor and the linear maps f that carry them into z.
    """
    s = divide(r, sum((f(a) for a, f in terms), torch.zeros_like(r)))
    return sum((a * adjoint(f, a, s) for a, f in terms), torch.zeros_like(terms[0][0]))


class GraphRelevance:
    """``model``: a torchvision classifier. ``layer``: its L, by the name of a module or of a node of the graph.

    ``dtype`` float32 shows what rounding alone does to a map.
    """

    def __init__(self, model: nn.Module, layer: str, dtype: torch.dtype = torch.float64) -> None:
        model = copy.deepcopy(model).eval().to(dtype).requires_grad_(False)
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # operands are read after the forward pass
        self.dtype = dtype
        self.traced = fx.symbolic_trace(model)
        self.modules = dict(self.traced.named_modules())
        self.nodes = list(self.traced.graph.nodes)
        for node in self.nodes:
            if "inplace" in node.kwargs:
                node.kwargs = {**node.kwargs, "inplace": False}
        made_in = [node for node in self.nodes if layer in (node.meta.get("nn_module_stack") or {})]
        self.layer = made_in[-1] if made_in else next(node for node in self.nodes if node.name == layer)
        self.values: dict[fx.Node, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The logits [n, classes]; keeps the value of every node for the walk."""
        runner = fx.Interpreter(self.traced, garbage_collect_values=False)
        with torch.no_grad():
            logits: Tensor = runner.run(x.to(self.dtype))
        self.values = runner.env
        return logits

    def explain(self, x: Tensor, target: Tensor) -> Tensor:
        """x [n, c, h, w], target [n] -> signed map [n, h, w]."""
        self.forward(x)
        a, last = self.values[self.layer], self.nodes.index(self.layer)
        chosen = F.one_hot(target, self.values[self.nodes[-1]].shape[1]).to(a)
        gradient = adjoint(self._head, a, chosen)
        relevance: dict[fx.Node, Tensor] = {self.layer: gradient.mean(dim=(2, 3), keepdim=True) * a}
        image = self.nodes[0]
        for node in reversed(self.nodes[1 : last + 1]):
            if node in relevance:
                for source, part in self._parts(node, relevance.pop(node)).items():
                    relevance[source] = relevance[source] + part if source in relevance else part
        assert set(relevance) == {image}, "relevance was left on the way"
        return relevance[image].sum(dim=1)

    def _head(self, a: Tensor) -> Tensor:
        """From L to the logits."""
        runner = self._runner({self.layer: a})
        for node in self.nodes[self.nodes.index(self.layer) + 1 :]:
            runner.env[node] = runner.run_node(node)
        logits: Tensor = runner.env[self.nodes[-1]]
        return logits

    def _runner(self, changed: dict[fx.Node, Tensor]) -> fx.Interpreter:
        runner = fx.Interpreter(self.traced, garbage_collect_values=False)
        runner.env = {**self.values, **changed}
        return runner

    def _function(self, node: fx.Node, source: fx.Node) -> Function:
        """``node`` as a function of one of the activations that it reads."""
        return lambda value: self._runner({source: value}).run_node(node)

    def _kind(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return type(self.modules[str(node.target)])
        return "stochastic_depth" if getattr(node.target, "__name__", "") == "stochastic_depth" else node.target

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The activations that a node reads; parameters and sizes are none."""
        return [s for s in node.all_input_nodes if s.op != "get_attr" and isinstance(self.values[s], Tensor | tuple)]

    def _parts(self, node: fx.Node, r: Tensor) -> dict[fx.Node, Tensor]:
        """The rule of one node: what each activation that it reads gets of r."""
        kind, (source, *others) = self._kind(node), self._sources(node)
        if isinstance(self.values[source], tuple):  # one piece of a chunk
            (whole,) = self._sources(source)
            pieces = self._function(source, whole)
            return {whole: adjoint(lambda x: pieces(x)[node.args[1]], self.values[whole], r)}
        if kind in INDEX | WINNER:
            return {s: adjoint(self._function(node, s), self.values[s], r) for s in (source, *others)}
        if kind in MASKED:
            return {source: r * (self.values[node] != 0)}
        if kind in POOL:
            return {source: shares([(self.values[source].clamp(min=0), self._function(node, source))], r)}
        if kind in (nn.Conv2d, nn.Linear):
            return {source: self._weighted(node, source, r)}
        if kind is operator.add and others:
            positive = {s: self.values[s].clamp(min=0) for s in (source, *others)}
            share = divide(r, sum(positive.values(), torch.zeros_like(r)))
            return {s: a * share for s, a in positive.items()}
        if kind is operator.mul and others:  # of a signal and a gate, which is 1 x 1, the signal takes all
            (signal,) = (s for s in (source, *others) if self.values[s].shape[2:] != (1, 1))
            return {signal: r}
        if kind in IDENTITY or kind in (operator.add, operator.mul):
            return {source: r}
        raise NotImplementedError(f"no rule for {node.format_node()}")

    def _weighted(self, node: fx.Node, source: fx.Node, r: Tensor) -> Tensor:
        """z+; or z^B where the layer reads the image, in the box between its least and its greatest value."""
        x, w = self.values[source], self._weight(node)
        if self._is_image(source):
            parts = x - x.amin(dim=(1, 2, 3), keepdim=True), x - x.amax(dim=(1, 2, 3), keepdim=True)
        else:
            parts = x.clamp(min=0), x.clamp(max=0)
        weights = w.clamp(min=0), w.clamp(max=0)
        return shares([(a, self._map(node, half)) for a, half in zip(parts, weights, strict=True)], r)

    def _map(self, node: fx.Node, w: Tensor) -> Function:
        """The layer with weights w and no bias."""
        layer = self.modules[str(node.target)]
        if isinstance(layer, nn.Linear):
            return lambda a: F.linear(a, w)
        assert layer.padding_mode == "zeros"
        return lambda a: F.conv2d(a, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def _weight(self, node: fx.Node) -> Tensor:
        """The weights, with a BatchNorm folded in that nothing but this layer feeds."""
        w: Tensor = self.modules[str(node.target)].weight
        (reader, *more) = node.users
        if not more and self._kind(reader) is nn.BatchNorm2d:
            norm = self.modules[str(reader.target)]
            w = w * (norm.weight / torch.sqrt(norm.running_var + norm.eps))[:, None, None, None]
        return w

    def _is_image(self, node: fx.Node) -> bool:
        """The image itself, or what constant scaling, shifting and rearranging make of it."""
        if node.op == "placeholder":
            return True
        affine = self._kind(node) in INDEX | {operator.add, operator.mul}
        return affine and all(self._is_image(source) for source in self._sources(node))
