"""The published FG-CAM procedure for VGG, plainly in torch from the formulas: an oracle, and a baseline for speed.

Source: Qiu, Jin, Zhang, "Empowering CAM-Based Methods with Capability to Generate Fine-Grained and High-Faithfulness
Explanations", AAAI 2024. Nothing here is shared with fgcam_onnx. It does what an implementation on PyTorch modules
does: one forward pass whose activations are kept, Grad-CAM weights from autograd, then module by module backwards.
Every conv multiplies both sign halves of its input with both sign halves of its weight, as the formula is written,
although behind a ReLU one pair is zero.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Base = Literal["grad-cam", "score-cam"]


def divide(r: Tensor, z: Tensor) -> Tensor:
    """r / z, and 0 where z is exactly 0."""
    zero = z == 0
    return torch.where(zero, torch.zeros_like(r), r / torch.where(zero, torch.ones_like(z), z))


def denoise(importance: Tensor, activation: Tensor, ratio: float = 0.1) -> Tensor:
    """Keep the strongest singular directions of I, one image at a time.

        M = I as [c, h w], each row minus its mean;  M = U S V^T
        d = max(1, floor(ratio * min(c, h w)));      I <- (U_d S_d V_d^T) * 1[A != 0]

    The row means are not added back. The mask takes the importance off dead positions.
    """
    out = torch.empty_like(importance)
    for i, components in enumerate(torch.nan_to_num(importance)):
        rows = components.flatten(1)
        rows = rows - rows.mean(dim=1, keepdim=True)
        u, s, vt = torch.linalg.svd(rows, full_matrices=False)
        d = max(1, int(ratio * min(rows.shape)))
        out[i] = ((u[:, :d] * s[:d]) @ vt[:d]).reshape(components.shape)
    return out * (activation != 0)


class PublishedFGCAM:
    """FG-CAM on a VGG: ``features`` (Conv2d, BatchNorm2d, ReLU, MaxPool2d in a row, ending in a max-pool) and a head.

    L is the output of the last max-pool. ``layer`` counts modules of ``features`` as the paper does: 13, 23 and 33 are
    the 2nd, 3rd and 4th max-pool of vgg16_bn, -1 is the input.
    """

    def __init__(self, features: nn.Sequential, head: nn.Module) -> None:
        self.features = list(features)
        self.head = head
        self.halves = {i: self._halves(m) for i, m in enumerate(self.features) if isinstance(m, nn.Conv2d)}

    @classmethod
    def of(cls, vgg: nn.Module) -> PublishedFGCAM:
        """From torchvision's VGG, or any module with ``features`` and, optionally, ``avgpool``, and ``classifier``."""
        features = vgg.get_submodule("features")
        assert isinstance(features, nn.Sequential)
        pool = getattr(vgg, "avgpool", nn.Identity())
        return cls(features, nn.Sequential(pool, nn.Flatten(), vgg.get_submodule("classifier")).eval())

    @staticmethod
    def _halves(conv: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
        """Two copies of a conv without bias: one has W+ = max(W, 0), the other W- = min(W, 0)."""
        positive, negative = copy.deepcopy(conv), copy.deepcopy(conv)
        for half in (positive, negative):
            half.bias = None
            half.requires_grad_(False)
        positive.weight.clamp_(min=0)
        negative.weight.clamp_(max=0)
        return positive, negative

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Inputs of every module of ``features``, then its output; and the winners' indices of the max-pools."""
        activations, winners = [x], {}
        for i, module in enumerate(self.features):
            if isinstance(module, nn.MaxPool2d):
                x, winners[i] = F.max_pool2d(x, module.kernel_size, module.stride, module.padding, return_indices=True)
            elif isinstance(module, nn.ReLU):
                x = F.relu(x)  # in a VGG the module is in place, and its input is still needed
            else:
                x = module(x)
            activations.append(x)
        return activations, winners

    def grad_cam_weights(self, a: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """w_k = mean over the positions of d y_c / d A_k, by autograd; and the class it was for."""
        a = a.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.head(a)
            target = logits.argmax(dim=1) if target is None else target
            score = logits.gather(1, target[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, a)
        return gradient.mean(dim=(2, 3)), target

    @torch.no_grad()
    def score_cam_weights(self, x: Tensor, a: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """w_k = softmax probability of class c for x * minmax(upsampled A_k), 0 for a constant A_k; and the class."""
        target = self.head(a).argmax(dim=1) if target is None else target
        weights = torch.zeros(a.shape[:2], dtype=x.dtype, device=x.device)
        upsampled = F.interpolate(a, x.shape[2:], mode="bilinear", align_corners=False)
        for i, c in enumerate(target.tolist()):
            low, high = upsampled[i].amin(dim=(1, 2)), upsampled[i].amax(dim=(1, 2))
            alive = torch.nonzero(high > low).flatten()
            for channels in alive.split(16):
                m = (upsampled[i, channels] - low[channels, None, None]) / (high - low)[channels, None, None]
                activations, _ = self.forward(x[i] * m[:, None])
                weights[i, channels] = self.head(activations[-1]).softmax(dim=1)[:, c]
        return weights, target

    @torch.no_grad()
    def undo_conv(self, i: int, x: Tensor, importance: Tensor) -> Tensor:
        """z+ : Z = conv(x+, W+) + conv(x-, W-);  S = I / Z;  I_in = x+ * convT(S, W+) + x- * convT(S, W-)."""
        positive, negative = self.halves[i]
        x_positive, x_negative = x.clamp(min=0), x.clamp(max=0)
        s = divide(importance, positive(x_positive) + negative(x_negative))
        return x_positive * self._adjoint(positive, s, x) + x_negative * self._adjoint(negative, s, x)

    @torch.no_grad()
    def undo_first_conv(self, i: int, x: Tensor, importance: Tensor) -> Tensor:
        """z^B: as z+ with x - l at W+ and x - h at W-; l, h = least and greatest value of each image."""
        positive, negative = self.halves[i]
        above, below = x - x.amin(dim=(1, 2, 3), keepdim=True), x - x.amax(dim=(1, 2, 3), keepdim=True)
        s = divide(importance, positive(above) + negative(below))
        return above * self._adjoint(positive, s, x) + below * self._adjoint(negative, s, x)

    @staticmethod
    def _adjoint(conv: nn.Conv2d, s: Tensor, x: Tensor) -> Tensor:
        return F.conv_transpose2d(s, conv.weight, stride=conv.stride, padding=conv.padding, groups=conv.groups)

    @torch.no_grad()
    def components(
        self, x: Tensor, base: Base = "grad-cam", target: Tensor | None = None, noise_free: bool = False
    ) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
        """I_L[k, i, j] = w_k A[k, i, j], signed, denoised if asked; with what the forward pass left behind."""
        activations, winners = self.forward(x)
        a = activations[-1]
        if base == "grad-cam":
            weights, _ = self.grad_cam_weights(a, target)
        else:
            weights, _ = self.score_cam_weights(x, a, target)
        importance = weights[:, :, None, None] * a
        return (denoise(importance, a) if noise_free else importance), activations, winners

    @torch.no_grad()
    def descend(
        self, importance: Tensor, activations: list[Tensor], winners: dict[int, Tensor], start: int, layer: int
    ) -> Tensor:
        """Importance of the output of module ``start`` handed down to the output of module ``layer``, channels apart.

        BatchNorm passes importance on unchanged, which is the same as folding it into the conv as long as gamma > 0.
        ReLU does too. A max-pool gives all to the winner of the window.
        """
        for i in range(start, layer, -1):
            module, x = self.features[i], activations[i]
            if isinstance(module, nn.MaxPool2d):
                size, stride, padding = module.kernel_size, module.stride, module.padding
                importance = F.max_unpool2d(importance, winners[i], size, stride, padding, output_size=x.shape[2:])
            elif isinstance(module, nn.Conv2d):
                undo = self.undo_first_conv if i == 0 else self.undo_conv
                importance = undo(i, x, importance)
            elif not isinstance(module, nn.BatchNorm2d | nn.ReLU):
                raise NotImplementedError(f"no published rule for {module}")
        return importance

    def explain(
        self,
        x: Tensor,
        base: Base = "grad-cam",
        layer: int = -1,
        target: Tensor | None = None,
        noise_free: bool = False,
    ) -> Tensor:
        """The raw signed map [n, h, w] at the output of module ``layer``: importance summed over the channels."""
        importance, activations, winners = self.components(x, base, target, noise_free)
        return self.descend(importance, activations, winners, len(self.features) - 1, layer).sum(dim=1)
