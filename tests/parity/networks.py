"""The architectures that parity is shown on: torchvision's own modules under random live weights, and their files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch_reference import export, import_torchvision, live, smooth_images

__all__ = ["NETWORKS", "Network", "network", "onnx_file", "unrolled"]

CLASSES = 20
SHIFT = 0.5  # the mean beta of every BatchNorm: see torch_reference.live


@dataclass(frozen=True, eq=False)
class Network:
    """``model``: float32, eval mode. ``size``: (h, w). ``layers``: submodules whose outputs are L and two shallower
    stages; ``stages``: the places of these tensors in ``Explainer.layers()``."""

    name: str
    model: nn.Module
    size: tuple[int, int]
    layers: tuple[str, str, str]
    stages: tuple[int, int, int]
    seed: int

    def pictures(self, n: int = 1) -> Tensor:
        """[n, 3, h, w], float32."""
        return smooth_images(n, self.size, self.seed)

    def exact(self) -> nn.Module:
        """A copy in float64 whose activations overwrite nothing: what hooks and graphs of torch need."""
        return plain(self.model).double()

    def targets(self, n: int = 1) -> Tensor:
        """The predicted class of each picture, int64 [n]."""
        with torch.no_grad():
            predicted: Tensor = self.model(self.pictures(n)).argmax(dim=1)
        return predicted


def plain(model: nn.Module) -> nn.Module:
    """A copy without in-place activations."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def unrolled(model: nn.Module) -> nn.Module:
    """A copy in which every call has a module of its own; torchvision's residual blocks call one ReLU twice.

    Tools that keep a call's input on its module need this.
    """
    traced = fx.symbolic_trace(plain(model))
    seen: set[str] = set()
    for number, node in enumerate(traced.graph.nodes):
        if node.op != "call_module":
            continue
        if node.target in seen:
            again = f"call_{number}"
            traced.add_submodule(again, copy.deepcopy(traced.get_submodule(node.target)))
            node.target = again
        seen.add(node.target)
    traced.recompile()
    return traced


def _vgg11_bn(size: tuple[int, int], hidden: int) -> nn.Module:
    """torchvision's network for smaller pictures, and with narrower layers in its classifier.

    At full width these are nine tenths of the file. ``avgpool`` gives what the last max-pool gave, as at 224 x 224.
    """
    model = import_torchvision().models.vgg11_bn(weights=None, num_classes=CLASSES)
    pooled = (size[0] // 32, size[1] // 32)
    model.avgpool = nn.AdaptiveAvgPool2d(pooled)
    first, last = nn.Linear(512 * pooled[0] * pooled[1], hidden), nn.Linear(hidden, CLASSES)
    model.classifier = nn.Sequential(
        first, nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(), last
    )
    return live(model, seed=1, size=size, images=4, shift=SHIFT)


def _resnet18(size: tuple[int, int]) -> nn.Module:
    model = import_torchvision().models.resnet18(weights=None, num_classes=CLASSES)
    return live(model, seed=2, size=size, images=4, shift=SHIFT)


def _mobilenet_v2(size: tuple[int, int]) -> nn.Module:
    model = import_torchvision().models.mobilenet_v2(weights=None, num_classes=CLASSES)
    return live(model, seed=3, size=size, images=4, shift=SHIFT)


VGG_LAYERS = ("features.28", "features.21", "features.14")
RESNET_LAYERS = ("layer4", "layer3", "layer2")
MOBILENET_LAYERS = ("features.18", "features.14.conv.0", "features.7.conv.0")

NETWORKS: dict[str, Callable[[], Network]] = {
    "vgg11_bn": lambda: Network("vgg11_bn", _vgg11_bn((32, 64), 64), (32, 64), VGG_LAYERS, (5, 4, 3), 11),
    "resnet18": lambda: Network("resnet18", _resnet18((64, 96)), (64, 96), RESNET_LAYERS, (5, 4, 3), 12),
    "mobilenet_v2": lambda: Network("mobilenet_v2", _mobilenet_v2((64, 96)), (64, 96), MOBILENET_LAYERS, (5, 4, 3), 16),
}


@cache
def network(name: str) -> Network:
    """One of :data:`NETWORKS`, made once."""
    return NETWORKS[name]()


@cache
def onnx_file(name: str) -> bytes:
    """Its ONNX file, from TorchScript's exporter, which is the quick one; both give the same maps."""
    made = network(name)
    return export(made.model, made.pictures(2), exporter="legacy")


def array(tensor: Tensor) -> NDArray[np.float64]:
    """A tensor as an array of float64."""
    return np.asarray(tensor.detach().double())
