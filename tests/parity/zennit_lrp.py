"""LRP by zennit: its composites, its canonizers, relevance 1 at the class.

zennit keeps the bias in the denominators of z+, alpha-beta and gamma; ``bias=False`` takes it out of these, and leaves
it to epsilon, which has it in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_reference import import_torchvision
from zennit.attribution import Gradient
from zennit.canonizers import AttributeCanonizer, Canonizer, SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
)
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Gamma, Pass, ZPlus
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import Activation, Convolution, Linear

from parity.networks import array, plain

__all__ = ["COMPOSITES", "attributor", "lrp"]

TINY = 1e-12  # zennit's stabilizer, where fgcam_onnx divides by what is there


class ExactMergeBatchNorm(SequentialMergeBatchNorm):
    """zennit's own, and epsilon 0 in the norm that is left: else each one still divides by sqrt(1 + 1e-5).

    Over the 52 norms of a MobileNetV2 that is 2e-3 of the map.
    """

    def register(self, linears: Any, batch_norm: Any) -> None:
        super().register(linears, batch_norm)
        self.epsilon = batch_norm.eps
        batch_norm.eps = 0.0

    def remove(self) -> None:
        self.batch_norm.eps = self.epsilon
        super().remove()


class InvertedResidualCanonizer(AttributeCanonizer):
    """torchvision's MobileNetV2, for which zennit has none: ``x + conv(x)`` through a Sum, the mean through a module.

    Without it the Add hands all relevance to both operands, and the map doubles at every block.
    """

    def __init__(self) -> None:
        super().__init__(self._attributes)

    @classmethod
    def _attributes(cls, _name: str, module: nn.Module) -> dict[str, Any] | None:
        models = import_torchvision().models.mobilenetv2
        if isinstance(module, models.InvertedResidual) and module.use_res_connect:
            return {"forward": cls._block.__get__(module), "canonizer_sum": Sum()}
        if isinstance(module, models.MobileNetV2):
            return {"forward": cls._whole.__get__(module), "canonizer_pool": nn.AdaptiveAvgPool2d(1)}
        return None

    @staticmethod
    def _block(self: Any, x: Tensor) -> Tensor:
        summed: Tensor = self.canonizer_sum(torch.stack([x, self.conv(x)], dim=-1))
        return summed

    @staticmethod
    def _whole(self: Any, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.canonizer_pool(self.features(x)).flatten(1))
        return logits

    def copy(self) -> InvertedResidualCanonizer:
        return InvertedResidualCanonizer()


CANONIZERS: dict[str, Callable[[], list[Canonizer]]] = {
    "VGG": lambda: [ExactMergeBatchNorm()],
    "ResNet": lambda: [ExactMergeBatchNorm(), ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()],
    "MobileNetV2": lambda: [ExactMergeBatchNorm(), InvertedResidualCanonizer()],
}


def _unbiased(kind: Any, rule: Any, **parameters: Any) -> list[tuple[Any, Any]]:
    return [(kind, rule(stabilizer=TINY, zero_params="bias", **parameters))]


def _epsilon_plus(x: Tensor, bias: bool, **common: Any) -> Composite:
    return EpsilonPlus(layer_map=[] if bias else _unbiased(Convolution, ZPlus), **common)


def _epsilon_plus_flat(x: Tensor, bias: bool, **common: Any) -> Composite:
    return EpsilonPlusFlat(layer_map=[] if bias else _unbiased(Convolution, ZPlus), **common)


def _epsilon_alpha2_beta1(x: Tensor, bias: bool, **common: Any) -> Composite:
    unbiased = [] if bias else _unbiased(Convolution, AlphaBeta, alpha=2, beta=1)
    return EpsilonAlpha2Beta1(layer_map=unbiased, **common)


def _epsilon_alpha2_beta1_flat(x: Tensor, bias: bool, **common: Any) -> Composite:
    unbiased = [] if bias else _unbiased(Convolution, AlphaBeta, alpha=2, beta=1)
    return EpsilonAlpha2Beta1Flat(layer_map=unbiased, **common)


def _epsilon_gamma_box(x: Tensor, bias: bool, **common: Any) -> Composite:
    """In the box between each picture's least and greatest value."""
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    unbiased = [] if bias else _unbiased(Convolution, Gamma, gamma=0.25)
    return EpsilonGammaBox(low=low, high=high, layer_map=unbiased, **common)


def _excitation(x: Tensor, bias: bool, **common: Any) -> Composite:
    """Activations hand on all they got: zennit's composite has their derivative, which is 0 of a ReLU6 at its end."""
    unbiased = [] if bias else _unbiased(Linear, ZPlus)
    return ExcitationBackprop(layer_map=[(Activation, Pass()), *unbiased], **common)


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "epsilon_plus": _epsilon_plus,
    "epsilon_alpha2_beta1": _epsilon_alpha2_beta1,
    "epsilon_plus_flat": _epsilon_plus_flat,
    "epsilon_alpha2_beta1_flat": _epsilon_alpha2_beta1_flat,
    "epsilon_gamma_box": _epsilon_gamma_box,
    "excitation": _excitation,
}


def attributor(model: nn.Module, x: Tensor, composite: str, *, bias: bool = False) -> Gradient:
    """zennit's attributor, not yet registered with the model: enter it to register hooks and fold BatchNorms."""
    canonizers = CANONIZERS[type(model).__name__]()
    made = COMPOSITES[composite](x, bias, stabilizer=TINY, canonizers=canonizers)
    return Gradient(model, made)


def lrp(model: nn.Module, x: Tensor, target: Tensor, composite: str, *, bias: bool = False) -> NDArray[np.float64]:
    """Relevance of every input value, [n, c, h, w], that started as 1 at the class."""
    model = plain(model)
    with attributor(model, x, composite, bias=bias) as gradient:
        logits = model(x)
        start = torch.nn.functional.one_hot(target, logits.shape[1]).to(logits)
        _, relevance = gradient(x, start)
    return array(relevance)
