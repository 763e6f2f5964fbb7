"""FG-Grad-CAM through torch autograd for any torchvision classifier: the functions of ``relevance_autograd``, put in
the place of its modules by torch.fx.

The contestant of ``benchmarks/architectures.py``: what a PyTorch user would write who wants these rules and speed.
BatchNorm is folded where a convolution precedes it; where none does it hands relevance through, as activations do, and
a squeeze-and-excitation gate gets none.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F  # noqa: N812

from torch_reference.relevance_autograd import Relevance, ShareAdd, ZBoxConv, ZPlusConv, divide

POINTWISE = (nn.BatchNorm2d, nn.SiLU, nn.Hardswish)
ZEROING = (nn.ReLU, nn.ReLU6)


class Pass(Function):
    """An elementwise function forward; relevance goes back unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any) -> Tensor:
        y: Tensor = function(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0], None


class MaskZeros(Function):
    """A ReLU forward; relevance goes back where the output is not 0.

    It matters where a BatchNorm follows that nothing folds: that hands relevance to zeros, and convolutions do not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any) -> Tensor:
        y: Tensor = function(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return torch.where(ctx.saved_tensors[0] != 0, grad_outputs[0], 0.0), None


class PassGate(Function):
    """signal * gate forward; all relevance goes back to the signal."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, gate: Tensor) -> Tensor:
        return signal * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0], None


class ShareAverage(Function):
    """The mean of each k x k tile forward; back x+ / sum of x+ in the tile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.k = k
        return F.avg_pool2d(x, k)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,), k = ctx.saved_tensors, ctx.k
        x = x.clamp(min=0)
        s = divide(grad_outputs[0], F.avg_pool2d(x, k, divisor_override=1))
        return x * F.interpolate(s, scale_factor=float(k)), None


class RelevanceTraced(Relevance):
    """``model``: a torchvision classifier that ends in an average over space. L is what is averaged."""

    def __init__(self, model: nn.Module) -> None:
        model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # operands are read again on the way back
        self.traced = fuse(model)
        self.modules = dict(self.traced.named_modules())
        nodes = list(self.traced.graph.nodes)
        averages = [n for n in nodes if self._is_average(n)]
        self.nodes, self.top = nodes, averages[-1].args[0]
        self.place = nodes.index(self.top)

    def _is_average(self, node: fx.Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d

    def features(self, x: Tensor) -> Tensor:
        values = {self.nodes[0]: x}
        for node in self.nodes[1 : self.place + 1]:
            values[node] = self._handing_back(node, values)
        found: Tensor = values[self.top]
        return found

    def head(self, a: Tensor) -> Tensor:
        values = {self.top: a}
        for node in self.nodes[self.place + 1 : -1]:
            values[node] = self._plain(node, values)
        logits: Tensor = values[self.nodes[-2]]
        return logits

    def _plain(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.traced)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _handing_back(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The node's own value, from a function that hands relevance back by its rule."""
        args = fx.node.map_arg(node.args, values.__getitem__)
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            return (ZBoxConv if node.args[0] is self.nodes[0] else ZPlusConv).apply(args[0], module)
        if isinstance(module, POINTWISE):
            return Pass.apply(args[0], module)
        if isinstance(module, ZEROING):
            return MaskZeros.apply(args[0], module)
        if node.target in (F.relu, torch.relu):
            return MaskZeros.apply(args[0], torch.relu)
        if isinstance(module, nn.AvgPool2d):
            return ShareAverage.apply(args[0], int(module.kernel_size))
        if node.target is operator.add:
            return ShareAdd.apply(*args)
        if node.target is operator.mul:
            gate, signal = sorted(args, key=lambda a: a.shape[2])
            return PassGate.apply(signal, gate.detach())
        return self._plain(node, values)
