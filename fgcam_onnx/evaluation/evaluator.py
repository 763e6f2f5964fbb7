"""One picture in, its rows out: the unit of work of every engine.

The rows of a picture depend on the picture, the model and the settings alone, so whoever computes them, in whatever
order, gets the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx import Explainer, imaging
from fgcam_onnx.errors import ActivationError, TargetError
from fgcam_onnx.evaluation.boxes import check
from fgcam_onnx.evaluation.contenders import Cell
from fgcam_onnx.evaluation.controls import center_gaussian, edges, random_map
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.measures import MEASURES, Case
from fgcam_onnx.evaluation.settings import Settings
from fgcam_onnx.evaluation.store import Row
from fgcam_onnx.feeds import as_dtype
from fgcam_onnx.labels import resolve_class
from fgcam_onnx.metrics.base import Subject
from fgcam_onnx.metrics.localisation import box_mask
from fgcam_onnx.metrics.pixels import baseline_of
from fgcam_onnx.metrics.randomisation import random_twin
from fgcam_onnx.metrics.scorer import Scorer
from fgcam_onnx.recipe import Preprocessing

__all__ = ["Evaluator", "columns"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
# The largest share of a picture that the paper's box may cover.
HALF = 0.5
# Controls that no layer changes.
EVERYWHERE = ("center-gaussian", "edges")


def columns(settings: Settings) -> dict[str, str]:
    """The columns of a row and what each holds, as :func:`fgcam_onnx.evaluation.store.open_store` takes them."""
    found = {
        "image": "string", "sha256": "string", "label": "int64", "target": "int64", "p": "float64",
        "p_baseline": "float64", "method": "string", "layer": "string", "height": "int64", "width": "int64",
        "leaked": "float64", "note": "string",
    }  # fmt: skip
    for name in settings.metrics:
        measure = MEASURES[name]
        found |= dict.fromkeys(measure.figures, "float64") | dict.fromkeys(measure.curves, "floats")
    return found


class Evaluator:
    """A model with its preprocessing, the cells to measure and the settings.

    ``labels``: class names, for labels that are words. ``batch_size``: changed pictures at a time, None for what fits.
    """

    def __init__(
        self,
        explainer: Explainer,
        recipe: Preprocessing,
        cells: Sequence[Cell],
        settings: Settings,
        *,
        labels: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.explainer, self.recipe, self.cells, self.settings = explainer, recipe, list(cells), settings
        self.labels = labels if labels is not None else explainer.labels
        self.scorer = Scorer(explainer, batch_size=batch_size)
        self._sizes: dict[str, tuple[int, ...]] = {}

    def __call__(self, sample: Sample, progress: Progress | None = None) -> list[Row]:
        """The rows of a picture, one a cell, in the order of the cells.

        ``progress(done, total)`` is called after each cell.

        Raises:
            ImageError: the picture cannot be read.
            TargetError: its label is no class of the model, or it has none and the label is the target.
        """
        content = sample.content()
        digest = hashlib.sha256(content).hexdigest()
        picture = imaging.read(sample.path, content)
        x, _ = self.recipe.apply(picture)
        x = as_dtype(x, self.explainer.input_dtype, "the input")
        label = self._label(sample)
        if self.settings.target == "label":
            if label is None:
                raise TargetError(f"{sample.id!r} has no label, and the label is what is explained")
            target = label
        else:
            target = int(self.scorer.logits(x[None])[0].argmax())
        subject = Subject(self.scorer, x, self.explainer.layout, target, self._baseline(x))
        mask, note = self._mask(sample, (picture.height, picture.width))
        common = {
            "image": sample.id, "sha256": digest, "label": label, "target": target, "p": subject.original,
            "p_baseline": subject.hidden,
        }  # fmt: skip
        rows: list[Row] = []
        everywhere: dict[str, Row] = {}  # what is the same at each layer is measured once
        for i, cell in enumerate(self.cells):
            name = cell.contender.name
            row = everywhere.get(name) or self._cell(cell, subject, mask, digest)
            if name in EVERYWHERE:
                everywhere[name] = row
            rows.append({**dict.fromkeys(columns(self.settings)), **common, **row, "layer": cell.layer})
            if note and rows[-1]["note"] is None:
                rows[-1]["note"] = note
            if progress is not None:
                progress(i + 1, len(self.cells))
        return rows

    # --- the picture --------------------------------------------------------------------------------------------------

    def _baseline(self, x: Array) -> Array:
        s = self.settings
        found: Array = baseline_of(x[None], self.explainer.layout, s.baseline, kernel=s.kernel, sigma=s.sigma)[0]
        return found

    def _label(self, sample: Sample) -> int | None:
        if sample.label is None:
            return None
        try:
            return resolve_class(sample.label, self.labels, self.explainer.num_classes)
        except TargetError as error:
            raise TargetError(f"the label of {sample.id!r}: {error.what}", known=error.known, next=error.next) from None

    def _mask(self, sample: Sample, size: tuple[int, int]) -> tuple[Array | None, str | None]:
        """The object in the model's input, and why there is none where the picture has boxes."""
        if not sample.boxes or not any("boxes" in MEASURES[name].needs for name in self.settings.metrics):
            return None, None
        usable, reasons = check(sample.boxes, size)
        if reasons:
            return None, "; ".join(reasons)
        if self.settings.boxes == "paper" and len(usable) != 1:
            return None, f"{len(usable)} boxes"
        seen = self.recipe.boxes([box.corners for box in usable], *size)
        if not seen:
            return None, "the box is outside what the model sees"
        mask = box_mask(seen, self.recipe.size, self.recipe.size)
        if self.settings.boxes == "paper" and mask.mean() > HALF:
            return None, f"the box covers {mask.mean():.0%}"
        return mask, None

    # --- a cell -------------------------------------------------------------------------------------------------------

    def _cell(self, cell: Cell, subject: Subject, mask: Array | None, digest: str) -> Row:
        try:
            relevance, leaked, promised = self._map(cell, subject, digest)
        except ActivationError as error:  # this map of this picture; the others go on
            return {"method": cell.contender.name, "layer": cell.layer, "note": f"{type(error).__name__}: {error.what}"}
        row: Row = {
            "method": cell.contender.name, "layer": cell.layer, "height": relevance.shape[0],
            "width": relevance.shape[-1], "leaked": leaked,
        }  # fmt: skip
        case = Case(subject, relevance, mask, self.settings, promised=promised)
        if cell.contender.method is not None:
            case = replace(
                case, explainer=self.explainer, options=_options(cell), random=lambda: self._random,
            )  # fmt: skip
        measures = [MEASURES[name] for name in self.settings.metrics]
        wanted = [measure.shown(case) if measure.shown is not None else (0, ()) for measure in measures]
        total = sum(count for count, _ in wanted)
        p = np.zeros(0)
        if total:
            logits = self.scorer.of(chain.from_iterable(pictures for _, pictures in wanted), total)
            p = self.scorer.probability(logits, subject.target)
        first = 0
        for measure, (count, _) in zip(measures, wanted, strict=True):
            figures = measure.read(case, p[first : first + count])
            row |= {name: _none(value) for name, value in figures.items()}
            first += count
        return row

    def _map(self, cell: Cell, subject: Subject, digest: str) -> tuple[Array, float | None, float | None]:
        """The map [h, w], what its walk leaked, and the sum that its method promises."""
        name = cell.contender.name
        if name == "random":
            return random_map(self._size(cell.layer, subject), self.settings.seed, digest, cell.layer), None, None
        if name == "center-gaussian":
            return center_gaussian(subject.size), None, None
        if name == "edges":
            return edges(subject.x, subject.layout), None, None
        e = self.explainer.explain(subject.x[None], target=[subject.target], **_options(cell))
        promised = None if e.promised is None else float(e.promised[0])
        return e.relevance[0], e.ledger.leaked if e.ledger.rows else None, promised

    @cached_property
    def _random(self) -> Explainer:
        """The network with every weight drawn anew."""
        return random_twin(self.explainer, None, self.settings.seed)

    def _size(self, layer: str, subject: Subject) -> tuple[int, ...]:
        """Of space, at a layer."""
        if layer == "input":
            return subject.size
        if layer not in self._sizes:
            found = self.explainer.activations(subject.x[None], [layer])[layer].shape
            layout = self.explainer.graph.tensor(layer).layout or "NCHW"
            self._sizes[layer] = tuple(n for n, axis in zip(found, layout, strict=True) if axis not in "NC")
        return self._sizes[layer]


def _options(cell: Cell) -> dict[str, Any]:
    """What ``explain`` is asked for."""
    found: dict[str, Any] = {"method": cell.contender.method, "layer": cell.layer}
    return {**found, "denoise": True} if cell.contender.denoise else found


def _none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
