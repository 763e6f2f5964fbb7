"""FG-Grad-CAM through torch autograd: operators whose forward is ordinary and whose backward hands relevance.

This is how relevance rules are usually written for PyTorch, one ``autograd.Function`` an operator; the engine then adds
up at forks by itself. Rules: z+ at convs, z^B at the first one, z+ shares at residual Adds, winner at the max-pool,
BatchNorm folded into its conv, ReLU the identity. Nothing here is shared with fgcam_onnx.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv2d_input

TINY = 1.17549435e-38  # a denominator nearer to 0 carries nothing: the least normal float32


def divide(r: Tensor, z: Tensor) -> Tensor:
    """r / z, and 0 where |z| < TINY."""
    tiny = z.abs() < TINY
    return torch.where(tiny, torch.zeros_like(r), r / torch.where(tiny, torch.ones_like(z), z))


class ZPlusConv(Function):
    """Z = conv(x+, W+) + conv(x-, W-);  S = R / Z;  R_in = x+ * convT(S, W+) + x- * convT(S, W-)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x)
        ctx.conv = conv
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,), conv, (r,) = ctx.saved_tensors, ctx.conv, grad_outputs
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        pairs = [(x.clamp(min=0), conv.weight.clamp(min=0))]
        if x.min() < 0:
            pairs.append((x.clamp(max=0), conv.weight.clamp(max=0)))
        return _share(r, pairs, geometry), None


class ZBoxConv(Function):
    """z^B: Z = conv(x - l, W+) + conv(x - h, W-), and back likewise; l, h = least and greatest value of each image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x)
        ctx.conv = conv
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,), conv, (r,) = ctx.saved_tensors, ctx.conv, grad_outputs
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        pairs = [(x - low, conv.weight.clamp(min=0)), (x - high, conv.weight.clamp(max=0))]
        return _share(r, pairs, geometry), None


def _share(r: Tensor, pairs: list[tuple[Tensor, Tensor]], geometry: tuple[Any, Any, Any, Any]) -> Tensor:
    """sum over the pairs (x, W) of x * convT(r / Z, W), with Z = sum over the pairs of conv(x, W)."""
    z: Tensor = sum((F.conv2d(x, w, None, *geometry) for x, w in pairs), torch.zeros_like(r))
    s = divide(r, z)
    return sum((x * conv2d_input(list(x.shape), w, s, *geometry) for x, w in pairs), torch.zeros_like(pairs[0][0]))


class ShareAdd(Function):
    """a + b forward; back a+ / (a+ + b+) R and b+ / (a+ + b+) R."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        a, b = (tensor.clamp(min=0) for tensor in ctx.saved_tensors)
        s = divide(grad_outputs[0], a + b)
        return a * s, b * s


class PassRelu(Function):
    """max(x, 0) forward; relevance goes back unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0]


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """conv with norm (in eval mode) folded in: W' = s W, b' = (b - mean) s + beta, s = gamma / sqrt(var + eps)."""
    return nn.utils.fuse_conv_bn_eval(conv, norm).requires_grad_(False)


class Relevance:
    """A network whose autograd hands relevance from L back to the input."""

    def features(self, x: Tensor) -> Tensor:
        """L."""
        raise NotImplementedError

    def head(self, a: Tensor) -> Tensor:
        """Logits from L."""
        raise NotImplementedError

    def explain(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """FG-Grad-CAM at the input, raw and signed, [n, h, w]: I_L = w_k A_k, handed back, summed over the channels."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            a = self.features(x)
        return self.descend(x, a, target)

    def descend(self, x: Tensor, a: Tensor, target: Tensor | None = None, *, keep: bool = False) -> Tensor:
        """The same from ``a`` = features(x) on. ``keep``: the forward pass's graph, for another descent."""
        with torch.enable_grad():
            top = a.detach().requires_grad_()
            logits = self.head(top)
            target = logits.argmax(dim=1) if target is None else target
            (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), top)
            components = gradient.mean(dim=(2, 3), keepdim=True) * top.detach()
            (relevance,) = torch.autograd.grad(a, x, grad_outputs=components, retain_graph=keep)
        return relevance.sum(dim=1)


class RelevanceResNet(Relevance):
    """A torchvision ResNet, basic or bottleneck blocks; L is the output of the last block."""

    def __init__(self, model: nn.Module) -> None:
        model = model.eval()
        self.stem = fold(model.get_submodule("conv1"), model.get_submodule("bn1"))  # type: ignore[arg-type]
        self.max_pool, self.fc = model.get_submodule("maxpool"), model.get_submodule("fc")
        self.blocks: list[tuple[list[nn.Conv2d], nn.Conv2d | None]] = []
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in model.get_submodule(stage).children():
                names = [str(i) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
                path = [fold(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in names]
                shortcut = block.get_submodule("downsample") if getattr(block, "downsample", None) else None
                self.blocks.append((path, fold(*shortcut) if isinstance(shortcut, nn.Sequential) else None))

    def features(self, x: Tensor) -> Tensor:
        """The output of the last block, L."""
        x = self.max_pool(PassRelu.apply(ZBoxConv.apply(x, self.stem)))
        for path, shortcut in self.blocks:
            y = x
            for conv in path[:-1]:
                y = PassRelu.apply(ZPlusConv.apply(y, conv))
            y = ZPlusConv.apply(y, path[-1])
            x = PassRelu.apply(ShareAdd.apply(y, x if shortcut is None else ZPlusConv.apply(x, shortcut)))
        return x

    def head(self, a: Tensor) -> Tensor:
        logits: Tensor = self.fc(a.mean(dim=(2, 3)))
        return logits


class RelevanceVGG(Relevance):
    """A VGG with BatchNorm: ``features`` and ``classifier``, and ``avgpool`` if it has one; L is the last max-pool."""

    def __init__(self, model: nn.Module) -> None:
        model = model.eval()
        self.steps: list[nn.Module] = []
        for module in model.get_submodule("features").children():
            if isinstance(module, nn.BatchNorm2d):
                self.steps[-1] = fold(self.steps[-1], module)  # type: ignore[arg-type]
            else:
                self.steps.append(module)
        pool = getattr(model, "avgpool", nn.Identity())
        self.top = nn.Sequential(pool, nn.Flatten(), model.get_submodule("classifier")).eval()

    def features(self, x: Tensor) -> Tensor:
        for i, module in enumerate(self.steps):
            if isinstance(module, nn.Conv2d):
                x = (ZPlusConv if i else ZBoxConv).apply(x, module)
            else:
                x = PassRelu.apply(x) if isinstance(module, nn.ReLU) else module(x)
        return x

    def head(self, a: Tensor) -> Tensor:
        logits: Tensor = self.top(a)
        return logits


def fg_grad_cam_resnet(model: nn.Module, x: Tensor, target: Tensor | None = None) -> Tensor:
    """FG-Grad-CAM of a torchvision ResNet at the input, [n, h, w], in the dtype of ``model`` and ``x``."""
    return RelevanceResNet(model).explain(x, target)
