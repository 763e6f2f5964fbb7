"""Who is measured where: methods by the words of a command, and the cells of methods and layers.

A word is a method's name, with ``+denoise`` for FG-CAM with denoising; a set of methods (``paper``, ``quick``,
``all``); or a control. CAMs stand at each layer but the input, fine-grained methods at each layer that L is walked down
to and at the input, all others at the input, as in the paper's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgcam_onnx.errors import LayerError, MethodError, OptionError, nearest
from fgcam_onnx.evaluation.controls import CONTROLS
from fgcam_onnx.evaluation.published import recognise
from fgcam_onnx.methods import METHODS, method

if TYPE_CHECKING:
    from fgcam_onnx import Explainer

__all__ = ["CLASS_BLIND", "DENOISE", "SETS", "Cell", "Contender", "cells_of", "contenders_of", "layers_of"]

DENOISE = "+denoise"
CLASS_BLIND = ("class-blind", "fg-class-blind")
QUICK = ("grad-cam", "layer-cam", "fg-grad-cam", "fg-grad-cam+denoise", "lrp", "clrp", "sglrp")
PAPER = (
    "grad-cam", "fg-grad-cam", "fg-grad-cam+denoise", "score-cam", "fg-score-cam", "fg-score-cam+denoise", "layer-cam",
    "lrp", "clrp", "sglrp",
)  # fmt: skip
SETS = {"quick": QUICK, "paper": PAPER}


@dataclass(frozen=True)
class Contender:
    """``name`` as rows have it; ``method`` None for a control that no network makes; ``kind`` as of the method."""

    name: str
    method: str | None
    denoise: bool = False
    kind: str = "control"

    @property
    def many_passes(self) -> bool:
        """Does a map cost many forward passes?"""
        return self.method is not None and METHODS[self.method].many_passes


@dataclass(frozen=True)
class Cell:
    """A contender at a layer: "input", or a tensor."""

    contender: Contender
    layer: str


def contenders_of(words: str | Sequence[str], *, controls: bool = True) -> list[Contender]:
    """The contenders of ``a,b,paper``; with ``controls`` those that every table needs come last.

    Raises:
        MethodError: a word that is no method; the nearest is suggested.
        OptionError: ``+denoise`` behind a method without an L.
    """
    if isinstance(words, str):
        words = words.split(",")
    names: list[str] = []
    for word in (each.strip() for each in words):
        if word == "all":
            names += [m.name for m in METHODS.values() if m.name not in CLASS_BLIND]
        elif word:
            names += SETS.get(word, (word,))
    if not names:
        raise MethodError("no method is named", known=f"{', '.join(SETS)}, all, or names of fgcam methods")
    found = {name: _contender(name) for name in names}
    if controls:
        found |= {name: _contender(name) for name in (*CLASS_BLIND, *CONTROLS)}
    return list(found.values())


def _contender(name: str) -> Contender:
    if name in CONTROLS:
        return Contender(name, None)
    base = name.removesuffix(DENOISE)
    if base not in METHODS and base not in (f"fg-{each}" for each in METHODS):
        known = (*SETS, "all", *METHODS, *CONTROLS)
        raise MethodError(f"there is no method {base!r}", known=", ".join(known), next=nearest(base, known) or None)
    found = method(base)
    if name != base and found.kind not in ("fine-grained", "cam"):
        raise OptionError(f"{base} starts on the logits, and {DENOISE} belongs to a method with an L")
    return Contender(name, base, name != base, found.kind)


def layers_of(explainer: Explainer, words: str | Sequence[str] | None) -> list[str]:
    """Tensors from L down to "input". ``words``: "paper", "all", "L", "input", or names of tensors and nodes.

    "paper", also None: the three stages next to L and the input; of VGG-16 layers 33, 23 and 13, as published.

    Raises:
        LayerError: a layer that the model does not have.
    """
    if isinstance(words, str):
        words = [word.strip() for word in words.split(",") if word.strip()]
    stages = [stage.name for stage in reversed(explainer.layers())]
    sets = {
        "all": [*stages[:-1], "input"],
        "paper": [*(recognise(explainer.graph) or stages[1:-1][:3]), "input"],
        "L": [explainer.default_layer],
    }
    found: dict[str, None] = {}
    for word in ("paper",) if words is None else words:
        for each in sets.get(word, (word,)):
            name = explainer.tensor_name(each)
            found["input" if name == explainer.input_name else name] = None
    order = {o: i for i, layer in enumerate(explainer.graph.layers) for o in layer.outputs}
    return sorted(found, key=lambda name: -order.get(name, -1))


def cells_of(
    explainer: Explainer, contenders: Sequence[Contender], layers: Sequence[str]
) -> tuple[list[Cell], list[str]]:
    """Which contender stands where, layer by layer; and a sentence for each that stands nowhere.

    Raises:
        LayerError: no method stands at any of these layers.
    """
    cells = [Cell(c, layer) for layer in layers for c in contenders if _stands(c, layer, explainer.default_layer)]
    placed = {cell.contender for cell in cells}
    left_out = [
        f"{c.name} is measured {_PLACES.get(c.kind, 'at the input')}, and not at {', '.join(layers)}"
        for c in contenders
        if c not in placed and c.method not in CLASS_BLIND
    ]
    if not any(c.method is not None and c.method not in CLASS_BLIND for c in placed):
        raise LayerError(
            left_out[0] if left_out else "nothing is measured but controls",
            known=f"--layers {','.join(layers)}",
            next="add input" if "input" not in layers else "add a layer of fgcam inspect",
        )
    return cells, left_out


_PLACES = {"cam": "at a layer that is not the input", "fine-grained": "below L, where it is walked down to"}


def _stands(contender: Contender, layer: str, start: str) -> bool:
    if contender.method is None:
        return True
    if contender.kind == "cam":
        return layer != "input"
    if contender.kind == "fine-grained":
        return layer != start or contender.denoise
    return layer == "input"
