"""Methods and layers as a reader of the paper knows them.

    method_name("fg-grad-cam+denoise")     FG-Grad-CAM^D
    layer_labels(["hardtanh_22", "input"]) {"hardtanh_22": "hardtanh_22", "input": "input"}

The baselines know nothing of the network; the class-blind control knows the network and not the class. Both are
controls: what a method should beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["BASELINES", "CLASS_BLIND", "INPUT", "family", "is_control", "layer_labels", "method_name"]

# The layer of maps at the resolution of the picture.
INPUT = "input"
BASELINES = ("random", "center-gaussian", "edges")
CLASS_BLIND = ("class-blind", "fg-class-blind", "fg-class-blind+denoise")
DENOISE = "+denoise"

_WORDS: Mapping[str, str] = {
    "cam": "CAM",
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "xgrad-cam": "XGrad-CAM",
    "layer-cam": "Layer-CAM",
    "hires-cam": "HiRes-CAM",
    "score-cam": "Score-CAM",
    "ablation-cam": "Ablation-CAM",
    "lift-cam": "LIFT-CAM",
    "relevance-cam": "Relevance-CAM",
    "eigen-cam": "Eigen-CAM",
    "group-cam": "Group-CAM",
    "fd-cam": "FD-CAM",
    "lrp": "LRP",
    "clrp": "CLRP",
    "sglrp": "SGLRP",
    "excitation-backprop": "Excitation Backprop",
    "gradient": "Gradient",
    "gradient-x-input": "Gradient x Input",
    "integrated-gradients": "Integrated Gradients",
    "smooth-grad": "SmoothGrad",
    "guided-backprop": "Guided Backprop",
    "deeplift": "DeepLIFT",
    "rise": "RISE",
    "random": "Random",
    "center-gaussian": "Centre Gaussian",
    "edges": "Edges",
    "class-blind": "Class-blind",
}
# Longer names of layers would make columns that no screen holds.
_LONGEST = 14


def method_name(method: str) -> str:
    """As the paper writes it; ``^D`` is its mark of denoising. A method that is not known keeps its own name."""
    base, denoised = method.removesuffix(DENOISE), method.endswith(DENOISE)
    plain = base.removeprefix("fg-")
    name = _WORDS.get(plain, base if plain == base else plain)
    return ("FG-" if plain != base else "") + name + ("^D" if denoised else "")


def family(method: str) -> str:
    """The method without ``fg-`` and ``+denoise``: what its variants have in common."""
    return method.removesuffix(DENOISE).removeprefix("fg-")


def is_control(method: str) -> bool:
    """Is it a baseline or the class-blind control, in any variant?"""
    return family(method) in (*BASELINES, "class-blind")


def layer_labels(layers: Sequence[str], published: Mapping[str, int] | None = None) -> dict[str, str]:
    """A short name for each layer: L33, L23, L13 where the paper has it, its own name, or ``layer 1`` for the deepest.

    ``layers``: the deepest first. Names are numbered as soon as one of them is longer than 14 letters.
    """
    published = published or {}
    own = [name for name in layers if name != INPUT and name not in published]
    numbered = any(len(name) > _LONGEST for name in own)
    labels = {}
    for number, name in enumerate(layers, start=1):
        if name in published:
            labels[name] = f"L{published[name]}"
        else:
            labels[name] = f"layer {number}" if numbered and name != INPUT else name
    return labels
