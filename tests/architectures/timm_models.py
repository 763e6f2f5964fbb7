"""CNN classifiers of timm, a family for each file of its models: ten classes, random weights under which they live."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch_reference import import_torchvision, live, smooth_images

from architectures.proof import Truth

CLASSES = 10


@dataclass(frozen=True)
class Member:
    """One model of a family. ``quick``: every run proves it; the others are proved by ``pytest -m slow``.

    L is what the model's ``forward_features`` returns, the documented tensor before pooling (methods 2.2).
    ``channels_last``: it returns [n, h, w, c].
    """

    family: str
    name: str
    size: tuple[int, int] = (64, 96)
    quick: bool = True
    channels_last: bool = False


def _family(family: str, quick: str, slow: str = "", **facts: Any) -> tuple[Member, ...]:
    first = [Member(family, name, **facts) for name in quick.split()]
    return (*first, *(Member(family, name, quick=False, **facts) for name in slow.split()))


MEMBERS = (
    *_family(
        "byobnet", "repvgg_a0", "gernet_s mobileone_s0 regnetz_b16 resnext26ts eca_resnext26ts seresnext26ts resnet51q"
    ),
    *_family("convmixer", "", "convmixer_1024_20_ks9_p14"),
    *_family("convnext", "", "convnext_atto convnextv2_atto"),
    *_family("cspnet", "darknet17", "cs3darknet_focus_s cspresnet50"),
    *_family("cspnext", "", "cspnext_tiny"),
    *_family("densenet", "", "densenet121 densenetblur121d"),
    *_family("dla", "", "dla46_c dla34"),
    *_family("dpn", "", "dpn48b"),
    *_family(
        "efficientnet",
        "",
        "tf_efficientnet_b0 efficientnet_lite0 mixnet_s efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s mnasnet_small"
        " semnasnet_075 fbnetc_100 spnasnet_100 tinynet_e efficientnet_es efficientnet_b0_gn mobilenetv2_035",
    ),
    *_family("fasternet", "", "fasternet_t0"),
    *_family("fastvit", "fastvit_t8"),
    *_family("focalnet", "", "focalnet_tiny_srf"),
    *_family("ghostnet", "", "ghostnet_050 ghostnetv2_100 ghostnetv3_050"),
    *_family("hardcorenas", "", "hardcorenas_a"),
    *_family("hgnet", "", "hgnetv2_b0 hgnet_tiny"),
    *_family("hrnet", "", "hrnet_w18_small"),
    *_family("inception_next", "", "inception_next_atto"),
    *_family("inception_resnet_v2", "", "inception_resnet_v2", size=(96, 128)),
    *_family("inception_v3", "", "inception_v3", size=(96, 128)),
    *_family("inception_v4", "", "inception_v4", size=(96, 128)),
    *_family("lcnetv2", "", "lcnetv2_small"),
    *_family("mambaout", "mambaout_femto", channels_last=True),
    *_family("metaformer", "poolformerv2_s12", "poolformer_s12 convformer_s18"),
    *_family(
        "mobilenetv3",
        "",
        "tf_mobilenetv3_small_minimal_100 lcnet_035 mobilenetv4_conv_small_035 mobilenetv3_small_050 fbnetv3_b",
    ),
    *_family("nasnet", "", "nasnetalarge"),
    *_family("nfnet", "nf_resnet26", "nf_regnet_b0 nfnet_l0 eca_nfnet_l0 dm_nfnet_f0"),
    *_family("pnasnet", "", "pnasnet5large"),
    *_family("rdnet", "", "rdnet_tiny"),
    *_family("regnet", "", "regnety_002 regnetx_002 regnetz_005 regnetv_040"),
    *_family("repghost", "", "repghostnet_050"),
    *_family("repvit", "", "repvit_m0_9"),
    *_family("res2net", "", "res2net50_14w_8s res2next50"),
    *_family("resnest", "resnest14d"),
    *_family("resnet", "", "resnet10t resnet18 seresnet18 ecaresnet26t resnetblur18 resnetaa34d resnet50_gn"),
    *_family("resnetv2", "", "resnetv2_18 resnetv2_50x1_bit"),
    *_family("rexnet", "", "rexnet_100 rexnetr_100"),
    *_family("selecsls", "", "selecsls42"),
    *_family("senet", "", "legacy_seresnet18"),
    *_family("sknet", "skresnet18"),
    *_family("starnet", "starnet_s050"),
    *_family("tresnet", "", "tresnet_m"),
    *_family("vgg", "", "vgg11_bn", size=(224, 240)),
    *_family("vovnet", "ese_vovnet19b_slim_dw", "vovnet39a"),
    *_family("xception", "", "legacy_xception"),
    *_family("xception_aligned", "", "xception41 xception41p"),
)


@dataclass(frozen=True)
class Refusal:
    """A model that no map is made of. ``reason``: what the message has to say. ``quick``: tried by every run."""

    family: str
    name: str
    reason: str = "attention"
    size: tuple[int, int] = (64, 96)
    quick: bool = True


# Attention on the path; layers that work on tokens, attention among them; a normalisation by 1 / sqrt(mean(x^2)).
REFUSED = (
    Refusal("byoanet", "halonet26t", size=(256, 256), quick=False),
    Refusal("byobnet", "gcresnext26ts", quick=False),
    Refusal("convnext", "convnext_zepto_rms", "Reciprocal"),
    Refusal("cpubone", "cpubone_nano", quick=False),
    Refusal("deit", "deit_tiny_patch16_224", "tokens", (224, 224), quick=False),
    Refusal("edgenext", "edgenext_xx_small", quick=False),
    Refusal("efficientvit_mit", "efficientvit_b0", quick=False),
    Refusal("levit", "levit_128s", "tokens", (224, 224), quick=False),
    Refusal("mlp_mixer", "mixer_s32_224", "tokens", (224, 224), quick=False),
    Refusal("mobilevit", "mobilevit_xxs", size=(64, 64), quick=False),
    Refusal("pvt_v2", "pvt_v2_b0", "tokens", quick=False),
    Refusal("resnetv2", "resnetv2_50d_frn", "Reciprocal", quick=False),
    Refusal("shvit", "shvit_s1", quick=False),
    Refusal("swin_transformer", "swin_tiny_patch4_window7_224", "tokens", (224, 224), quick=False),
    Refusal("visformer", "visformer_tiny", size=(224, 224), quick=False),
    Refusal("vision_transformer", "vit_tiny_patch16_224", "tokens", (224, 224)),
    Refusal("xcit", "xcit_nano_12_p16_224", quick=False),
)

# Further files of the library, of attention, state spaces or recurrent layers. Nothing is claimed of them.
UNTRIED = [
    "beit",
    "cait",
    "coat",
    "convit",
    "crossvit",
    "csatv2",
    "davit",
    "deepseek_vit",
    "efficientformer",
    "efficientformer_v2",
    "efficientvim",
    "efficientvit_msra",
    "eva",
    "gcvit",
    "gemma4_vit",
    "hiera",
    "hieradet_sam2",
    "iformer",
    "lowformer",
    "maxxvit",
    "mobilenetv5",
    "mvitv2",
    "naflexvit",
    "nest",
    "nextvit",
    "pit",
    "qwen3_vit",
    "sequencer",
    "swiftformer",
    "swin_transformer_v2",
    "swin_transformer_v2_cr",
    "tiny_vit",
    "tnt",
    "twins",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "vitamin",
    "volo",
]


def library() -> ModuleType:
    """timm, which imports torchvision."""
    import_torchvision()
    import timm

    return timm


def build(name: str, size: tuple[int, int]) -> nn.Module:
    return live(library().create_model(name, pretrained=False, num_classes=CLASSES), 0, size, images=4, shift=0.5)


def truth(member: Member, model: nn.Module, seed: int = 0) -> Truth:
    """What the model says, in float64. The first picture's most likely class is explained, and the second's next."""
    x = smooth_images(2, member.size, seed)
    model = model.double()
    with torch.no_grad():
        at_l, logits = model.forward_features(x.double()), model(x.double())
    model.float()
    order = logits.argsort(dim=1, descending=True)
    if member.channels_last:
        at_l = at_l.permute(0, 3, 1, 2)
    return Truth(x.numpy(), order[[0, 1], [0, 1]].tolist(), logits.numpy(), at_l.numpy())
