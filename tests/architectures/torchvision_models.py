"""Every CNN classifier of torchvision: as the library builds it, ten classes, random weights under which it lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch_reference import import_torchvision, live, relative_error, smooth_images
from torch_reference.relevance_graph import GraphRelevance

from architectures.proof import Truth

CLASSES = 10
SHAKE = 3e-7
DECIDED = 1e-4


@dataclass(frozen=True)
class Family:
    """Models of one file of the library.

    ``layer``: the module whose output methods 2.2 calls L; DenseNet's last ReLU is a function, named by its graph node.
    ``quick``: the members that every run proves, from one exporter at least; the others have the same operators more
    often, and are proved by ``pytest -m slow``. ``size``: as small as the family allows, and never square. ``pool``:
    the size that the head pools to, where it is not the library's. ``dtype`` of the independent implementation.
    """

    models: tuple[str, ...]
    layer: str
    quick: tuple[str, ...]
    size: tuple[int, int] = (64, 96)
    pool: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = field(default_factory=dict)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# AlexNet and VGG pool to a fixed size, which torch's older exporter only writes where that size is the map's own. Hence
# AlexNet's 224 x 240, a map of 6 x 6. VGG's 7 x 7 would ask for as much, and two pictures then have three million
# windows of max-pools, some of them in doubt: it pools to the map of a smaller picture. GoogLeNet and Inception shift
# and scale their input inside the model, as they do with the published weights.
FAMILIES = (
    Family(("alexnet",), "features", ("alexnet",), (224, 240), dtype=torch.float32),
    Family(
        _names("vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn"),
        "features",
        ("vgg11_bn",),
        (64, 96),
        pool=(2, 3),
    ),
    Family(
        _names(
            "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d"
            " wide_resnet50_2 wide_resnet101_2"
        ),
        "layer4",
        ("resnet18", "resnext50_32x4d"),
    ),
    Family(_names("densenet121 densenet161 densenet169 densenet201"), "relu", ("densenet121",)),
    Family(("googlenet",), "inception5b", ("googlenet",), options={"init_weights": False, "transform_input": True}),
    Family(
        ("inception_v3",),
        "Mixed_7c",
        ("inception_v3",),
        (96, 128),
        options={"init_weights": False, "transform_input": True},
    ),
    Family(_names("squeezenet1_0 squeezenet1_1"), "features", ("squeezenet1_1",), (65, 97)),
    Family(
        _names("mobilenet_v2 mobilenet_v3_small mobilenet_v3_large"), "features", ("mobilenet_v2", "mobilenet_v3_small")
    ),
    Family(_names("mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3"), "layers", ("mnasnet0_5",)),
    Family(
        _names("shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
        "conv5",
        ("shufflenet_v2_x0_5",),
    ),
    Family(
        _names(
            "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5"
            " efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"
        ),
        "features",
        ("efficientnet_b0",),
    ),
    Family(
        _names(
            "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf"
            " regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf"
            " regnet_y_128gf"
        ),
        "trunk_output",
        ("regnet_x_400mf", "regnet_y_400mf"),
    ),
    Family(_names("convnext_tiny convnext_small convnext_base convnext_large"), "features", ("convnext_tiny",)),
)
MODELS = tuple(name for family in FAMILIES for name in family.models)
QUICK = frozenset(name for family in FAMILIES for name in family.quick)

# Of the quick ones, those that every run proves from torch's newer exporter too, which takes longer than the proof.
QUICK_FROM_BOTH = frozenset(_names("resnet18 mobilenet_v3_small convnext_tiny"))

# More than one file holds: its weights lie beside it. Its slow test takes more than 24 GB of memory.
LARGE = ("regnet_y_128gf",)

# Pictures on which the network is decided (Network.decided), where the first ones are not.
SEEDS = dict.fromkeys(_names("mobilenet_v2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_v2_l"), 1)

# No convolutional classifiers. The first of each family is tried, and refused.
TRANSFORMERS = (
    _names("vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32"),
    _names("swin_t swin_s swin_b"),
    _names("swin_v2_t swin_v2_s swin_v2_b"),
    _names("maxvit_t"),
)


@dataclass(frozen=True)
class Refusal:
    """``reason``: what the message has to say."""

    name: str
    reason: str
    size: tuple[int, int] = (64, 96)
    options: dict[str, Any] = field(default_factory=dict)


REFUSED = (
    Refusal("vit_b_16", "tokens", (64, 64), {"image_size": 64}),
    Refusal("swin_t", "tokens"),
    Refusal("swin_v2_t", "tokens"),
    Refusal("maxvit_t", "attention", (224, 224), {"input_size": (224, 224)}),
)


def family_of(name: str) -> Family:
    return next(family for family in FAMILIES if name in family.models)


def build(name: str) -> nn.Module:
    family = family_of(name)
    model = import_torchvision().models.get_model(name, weights=None, num_classes=CLASSES, **family.options)
    if family.pool is not None:
        first = model.classifier[0]
        model.avgpool = nn.AdaptiveAvgPool2d(family.pool)
        model.classifier[0] = nn.Linear(512 * prod(family.pool), first.out_features)
    return live(model, 0, family.size, images=4, shift=0.5)


class Network:
    """A model, and what its own PyTorch code says about two pictures."""

    def __init__(self, name: str) -> None:
        self.name, self.family, self.model = name, family_of(name), build(name)

    def truth(self, seed: int | None = None) -> Truth:
        """Of the first picture the most likely class is explained, of the second the next."""
        exact = GraphRelevance(self.model, self.family.layer, self.family.dtype)
        x = smooth_images(2, self.family.size, SEEDS.get(self.name, 0) if seed is None else seed)
        order = exact.forward(x).argsort(dim=1, descending=True)
        target = order[[0, 1], [0, 1]]
        relevance = exact.explain(x, target)
        logits, at_l = exact.values[exact.nodes[-1]], exact.values[exact.layer]
        return Truth(x.numpy(), target.tolist(), logits.numpy(), at_l.numpy(), relevance.numpy())

    def decided(self, truth: Truth) -> float:
        """How far the map moves when every weight does by what rounding to float32 could do to it, and a little more.

        Where a unit sits on its kink, or two candidates of a max-pool are all but equal, it moves by a lot, and two
        correct programs differ. A property of network and pictures in float64, and so the same on every machine.
        """
        g = torch.Generator().manual_seed(0)
        shaken = GraphRelevance(self.model, self.family.layer, self.family.dtype)
        for parameter in shaken.traced.parameters():
            parameter.mul_((1 + SHAKE * torch.randn(parameter.shape, generator=g, dtype=torch.float64)).to(parameter))
        found = shaken.explain(torch.from_numpy(truth.x), torch.tensor(truth.target))
        assert truth.relevance is not None
        return relative_error(found.numpy(), truth.relevance)
