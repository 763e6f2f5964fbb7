"""Methods by name: which family runs them, and with what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from fgcam_onnx.attributions import (
    clrp,
    deeplift,
    excitation_backprop,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    lrp,
    rise,
    sglrp,
    smooth_grad,
)
from fgcam_onnx.cams import (
    ablation_cam,
    cam,
    class_blind,
    eigen_cam,
    fd_cam,
    grad_cam,
    grad_cam_plus_plus,
    group_cam,
    hires_cam,
    layer_cam,
    lift_cam,
    relevance_cam,
    score_cam,
    xgrad_cam,
)
from fgcam_onnx.errors import MethodError, nearest
from fgcam_onnx.families import cam as cam_family
from fgcam_onnx.families import derivative, relevance, sampling

__all__ = ["METHODS", "Method", "method"]


@dataclass(frozen=True)
class Method:
    """``module``: where its formula is, and its documentation. ``family``: how it is planned and run.

    ``fine``: it walks from L down to ``layer``, by default the input. ``needs``: what beside the forward pass:
    "gradient", "relevance", "contributions" (of L), "scores" (of many changed inputs), "reference" (a second input).
    ``by_class``: it needs a class, and cannot explain any weighted sum of logits. ``in_verbs``: its components are
    written in verbs. ``masked``: they are 0 wherever the activation is.
    """

    name: str
    summary: str
    paper: str
    family: ModuleType
    module: ModuleType
    fine: bool = False
    needs: frozenset[str] = frozenset()
    by_class: bool = False
    in_verbs: bool = False
    masked: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> Callable[..., Any]:
        """Of a CAM: what it puts on L."""
        found: Callable[..., Any] = self.module.components
        return found

    @property
    def kind(self) -> str:
        """ "fine-grained", "cam", "relevance", "derivative" or "sampling"."""
        family = self.family.__name__.rpartition(".")[2]
        return "fine-grained" if self.fine else family

    @property
    def many_passes(self) -> bool:
        """Does it cost many forward passes an image?"""
        return "scores" in self.needs


def _needs(*what: str) -> frozenset[str]:
    return frozenset(what)


GRADIENT = {"needs": _needs("gradient"), "in_verbs": True}
FG = "Qiu, Jin, Zhang, AAAI 2024"
# The CAM family: methods 5.
CAMS: tuple[tuple[str, str, str, ModuleType, dict[str, Any]], ...] = (
    ("cam", "channels weighted by the last linear layer", "Zhou et al., CVPR 2016", cam, GRADIENT),
    ("grad-cam", "channels weighted by their mean gradient", "Selvaraju et al., ICCV 2017", grad_cam, GRADIENT),
    ("grad-cam++", "channels weighted by a weighted mean of positive gradients", "Chattopadhay et al., WACV 2018",
     grad_cam_plus_plus, GRADIENT),
    ("xgrad-cam", "channels weighted by their gradient where they are active", "Fu et al., BMVC 2020", xgrad_cam,
     GRADIENT),
    ("layer-cam", "each cell weighted by its positive gradient", "Jiang et al., TIP 2021", layer_cam, GRADIENT),
    ("hires-cam", "each cell weighted by its gradient", "Draelos and Carin, 2020", hires_cam, GRADIENT),
    ("score-cam", "channels weighted by the score of the image seen through them", "Wang et al., CVPRW 2020", score_cam,
     {"needs": _needs("scores"), "by_class": True}),
    ("ablation-cam", "channels weighted by what the score loses without them", "Desai and Ramaswamy, WACV 2020",
     ablation_cam, {"needs": _needs("scores"), "by_class": True}),
    ("lift-cam", "channels weighted by their DeepLIFT contribution", "Jung and Oh, ICCV 2021", lift_cam,
     {"needs": _needs("contributions")}),
    ("relevance-cam", "channels weighted by their mean relevance", "Lee et al., CVPR 2021", relevance_cam,
     {"needs": _needs("relevance"), "by_class": True}),
    ("eigen-cam", "the strongest direction of the activations, of no class", "Muhammad and Yeasin, IJCNN 2020",
     eigen_cam, {"masked": False}),
    ("class-blind", "the bare activations: the control, of no class", "FG-CAM (AAAI 2024) with w_k = 1", class_blind,
     {"in_verbs": True}),
    ("group-cam", "groups of channels weighted by the score of what they show", "Zhang et al., 2021", group_cam,
     {"needs": _needs("gradient", "scores"), "by_class": True}),
    ("fd-cam", "channels weighted by gradient and by the score of channels alike", "Li et al., ICPR 2022", fd_cam,
     {"needs": _needs("gradient", "scores"), "by_class": True}),
)  # fmt: skip
# The others: methods 4 and 6.
OTHERS: tuple[tuple[str, str, str, ModuleType, ModuleType, dict[str, Any]], ...] = (
    ("lrp", "the score handed back layer by layer", "Bach et al., PLoS ONE 2015", relevance, lrp, {}),
    ("clrp", "LRP of the class less LRP of the others", "Gu, Yang, Tresp, ACCV 2018", relevance, clrp,
     {"by_class": True}),
    ("sglrp", "LRP from the gradient of the softmax", "Iwana et al., ICCVW 2019", relevance, sglrp, {"by_class": True}),
    ("excitation-backprop", "a class's win handed down along positive weights", "Zhang et al., ECCV 2016", relevance,
     excitation_backprop, {}),
    ("gradient", "the derivative of the score", "Simonyan et al., ICLRW 2014", derivative, gradient, {}),
    ("gradient-x-input", "the derivative times the value", "Shrikumar et al., 2016", derivative, gradient_x_input, {}),
    ("integrated-gradients", "the gradient averaged on the way from a baseline", "Sundararajan et al., ICML 2017",
     sampling, integrated_gradients, {"needs": _needs("gradient", "scores")}),
    ("smooth-grad", "the gradient averaged over noisy copies", "Smilkov et al., 2017", sampling, smooth_grad,
     {"needs": _needs("gradient", "scores")}),
    ("guided-backprop", "the gradient without negative signals at ReLUs", "Springenberg et al., ICLRW 2015", derivative,
     guided_backprop, {}),
    ("deeplift", "the difference from a reference, shared by the rescale rule", "Shrikumar et al., ICML 2017",
     derivative, deeplift, {"needs": _needs("reference")}),
    ("rise", "random masks weighted by the score they leave", "Petsiuk et al., BMVC 2018", sampling, rise,
     {"needs": _needs("scores"), "by_class": True}),
)  # fmt: skip


def _all() -> dict[str, Method]:
    fine: list[Method] = []
    plain: list[Method] = []
    for name, summary, paper, module, how in CAMS:
        options = getattr(module, "OPTIONS", {})
        plain.append(Method(name, summary, paper, cam_family, module, options=options, **how))
        if module.DESCENDS:
            walked = f"fine-grained: {summary}, walked down to the pixels"
            fine.append(Method(f"fg-{name}", walked, FG, cam_family, module, fine=True, options=options, **how))
    others = [
        Method(name, summary, paper, family, module, options=getattr(module, "OPTIONS", {}), **how)
        for name, summary, paper, family, module, how in OTHERS
    ]
    return {m.name: m for m in (*fine, *plain, *others)}


METHODS = _all()


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: there is none; the nearest names are suggested, or the reason why a CAM has no fine-grained form.
    """
    found = METHODS.get(name)
    if found is not None:
        return found
    base = METHODS.get(str(name).removeprefix("fg-"))
    if base is not None and base.family is cam_family:
        raise MethodError(
            f"there is no method {name!r}", known=base.module.NO_DESCENT, next=f"{base.name}, or fg-grad-cam"
        )
    raise MethodError(f"there is no method {name!r}", known=", ".join(METHODS), next=nearest(name, METHODS) or None)
