"""A run: everything that says what an evaluation computes, as plain data that any process can begin from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgcam_onnx import Explainer
from fgcam_onnx.errors import FgcamError, LayerError, MethodError, OptionError, UnsupportedOpError
from fgcam_onnx.evaluation.contenders import CLASS_BLIND, Cell, cells_of, contenders_of, layers_of
from fgcam_onnx.evaluation.evaluator import Evaluator, columns
from fgcam_onnx.evaluation.settings import Settings
from fgcam_onnx.metrics.scorer import Scorer
from fgcam_onnx.recipe import Preprocessing

__all__ = ["Run", "facts_of", "plan"]

FORMAT = 1
# What stops a cell and not the others: this method cannot serve this layer, or this model.
CANNOT = (MethodError, LayerError, OptionError, UnsupportedOpError)
# What may differ between one start of a run and the next.
FREE = ("limit", "pictures", "boxes")


@dataclass(frozen=True)
class Run:
    """``engine``: what :class:`fgcam_onnx.Explainer` is made with beside the model.

    ``facts``: model, versions, backend. ``notes``: who is not measured, and why.
    """

    model: Path
    engine: Mapping[str, Any]
    recipe: Preprocessing
    cells: tuple[Cell, ...]
    settings: Settings
    labels: tuple[str, ...] | None
    batch_size: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def evaluator(self, explainer: Explainer | None = None) -> Evaluator:
        """A worker of this run, with an Explainer of its own if none is given."""
        explainer = explainer or Explainer(self.model, **self.engine)
        return Evaluator(
            explainer, self.recipe, self.cells, self.settings, labels=self.labels, batch_size=self.batch_size
        )

    @property
    def columns(self) -> dict[str, str]:
        """Of its rows."""
        return columns(self.settings)

    def spec(self, **more: Any) -> dict[str, Any]:
        """What the rows depend on, plain JSON: a folder of results belongs to one spec."""
        recipe = self.recipe.to_dict()
        return {
            "format": FORMAT,
            **self.facts,
            "cells": [[cell.contender.name, cell.layer] for cell in self.cells],
            "settings": dict(self.settings.record()),
            "preprocessing": {k: v for k, v in recipe.items() if k not in ("source", "file", "notes")},
            "batch_size": self.batch_size,
            **more,
            "free": list(FREE),
        }


def plan(
    explainer: Explainer,
    recipe: Preprocessing,
    *,
    engine: Mapping[str, Any] | None = None,
    methods: str | Sequence[str] = "quick",
    layers: str | Sequence[str] | None = None,
    controls: bool = True,
    settings: Settings | None = None,
    labels: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> Run:
    """The run of a model. Words as of :mod:`fgcam_onnx.evaluation.contenders`.

    Raises:
        MethodError, LayerError, OptionError: a word that means nothing; the nearest is suggested.
    """
    import numpy as np

    if explainer.path is None:
        raise ValueError("an evaluation needs a model file, from which other processes can load it")
    contenders = contenders_of(methods, controls=controls)
    cells, left_out = cells_of(explainer, contenders, layers_of(explainer, layers))
    cells, refused = _served(explainer, cells)
    scorer = Scorer(explainer, batch_size=batch_size)
    shape = recipe.size
    picture = np.zeros((recipe.channels, *shape), explainer.input_dtype)
    return Run(
        explainer.path.resolve(),
        dict(engine or {}),
        recipe,
        tuple(cells),
        settings or Settings(),
        None if labels is None else tuple(labels),
        scorer.fits(picture),
        facts_of(explainer),
        (*left_out, *refused),
    )


def facts_of(explainer: Explainer) -> dict[str, Any]:
    """What rows and maps depend on beside their settings: model, output, versions and backend; plain JSON."""
    import fgcam_onnx
    from fgcam_onnx.runtime import onnxruntime

    return {
        "model": explainer.sha256,
        "output": explainer.output_name,
        "backend": explainer.backend,
        "precision": explainer.precision,
        "providers": explainer.providers,
        "fgcam_onnx": fgcam_onnx.__version__,
        "onnxruntime": onnxruntime().__version__,
    }


def _served(explainer: Explainer, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells that the model can serve, and a sentence for each that it cannot; found before anything runs.

    Raises:
        FgcamError: none of the methods can serve the model: what the first of them says.
    """
    served: list[Cell] = []
    refused: list[tuple[Cell, FgcamError]] = []
    for cell in cells:
        try:
            if cell.contender.method is not None:
                explainer.check(method=cell.contender.method, layer=cell.layer, denoise=cell.contender.denoise)
            served.append(cell)
        except CANNOT as error:
            refused.append((cell, error))
    methods = [cell for cell in served if cell.contender.method is not None]
    if refused and not any(cell.contender.method not in CLASS_BLIND for cell in methods):
        raise refused[0][1]
    return served, [f"{cell.contender.name} at {cell.layer} is left out: {error.what}" for cell, error in refused]
