"""Methods that try many inputs: integrated gradients, SmoothGrad, RISE. Their maps are at the input.

Each lives in ``fgcam_onnx.attributions`` as ``attribute(rows)`` and asks for gradients, scores or probabilities at the
inputs that it chooses. The classes of an image share the forward passes.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.attributions.base import Rows
from fgcam_onnx.cams.probability import probability
from fgcam_onnx.composite import GradientComposite
from fgcam_onnx.descent import RESULT
from fgcam_onnx.engine import Engine
from fgcam_onnx.errors import LayerError, OptionError
from fgcam_onnx.families.base import Ask, Batch, Found, Job, need_classes, own_options, without_rows
from fgcam_onnx.feeds import filled

__all__ = ["plan", "run"]

HEAD = "gradient"


def plan(engine: Engine, ask: Ask) -> Job:
    """The gradient from the logits to the input, where the method needs one."""
    options = own_options(ask)
    graph = engine.graph
    if ask.start is not None or ask.denoise:
        what = "start=" if ask.start is not None else "denoise=True"
        raise OptionError(f"{ask.method.name} has no L, and {what} belongs to one")
    target = engine.tensor(ask.layer if ask.layer is not None else "input", graph)
    if target != graph.image:
        raise LayerError(
            f"{ask.method.name} explains the input, and layer={ask.layer!r} is another tensor",
            next="layer='input', or a method with maps at any layer: gradient-x-input, lrp, fg-grad-cam",
        )
    plans = {}
    if "gradient" in ask.method.needs:
        plans = {HEAD: engine.plan(graph, graph.logits, graph.image, GradientComposite())}
    return Job(ask.method, graph, graph.logits, target, plans, (), options)


def run(engine: Engine, job: Job, batch: Batch) -> Found:
    """What the method makes of its samples."""
    if job.method.by_class:
        need_classes(job, batch, "asks for the probability of a class")

    def gradients(points: np.ndarray, image: int) -> np.ndarray:
        size = engine.fixed_batch or len(points)
        own = rows.rows_of(image)
        parts: list[np.ndarray] = []
        for first in range(0, len(points), size):
            piece = points[first : first + size]
            others = batch.feeds.part(image, image + 1).rows(0, 1, size)
            tape = engine.tape(job.graph, filled(piece.astype(_dtype(engine)), size), others, job.plans.values())
            walked = [
                engine.run(job.plans[HEAD], tape, np.repeat(batch.seed[row : row + 1], size, axis=0), keep_books=False)
                for row in own
            ]
            parts.append(np.stack([each[RESULT][: len(piece)] for each in walked]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def logits(points: np.ndarray, image: int) -> np.ndarray:
        return engine.logits(points, batch.feeds.part(image, image + 1))

    def scores(points: np.ndarray, image: int) -> np.ndarray:
        found: np.ndarray = batch.weights[rows.rows_of(image)] @ logits(points, image).T
        return found

    def probabilities(points: np.ndarray, image: int) -> np.ndarray:
        classes = np.zeros(0, np.int64) if batch.classes is None else batch.classes[rows.rows_of(image)]
        return probability(logits(points, image), classes, job.graph.head)

    rows = Rows(
        x=batch.x.astype(np.float32, copy=False),
        channel_axis=engine.layout.index("C"),
        target=np.zeros(batch.rows, np.int64) if batch.classes is None else batch.classes,
        logits=batch.logits.reshape(len(batch.x), -1),
        gradients=gradients,
        scores=scores,
        probabilities=probabilities,
        progress=batch.progress,
        batch_size=batch.batch_size,
        head=job.graph.head,
        options=batch.cut(job.options),
    )
    relevance = job.method.module.attribute(rows).sum(axis=rows.channel_axis, dtype=np.float64)
    if not np.isfinite(relevance).all():
        raise engine.not_finite(job.graph, batch.tape, job.source, job.target)
    promised = getattr(job.method.module, "promised", None)
    return Found(relevance, without_rows(relevance), None if promised is None else promised(rows))


def _dtype(engine: Engine) -> np.dtype[np.generic]:
    return np.dtype(engine.graph.tensor(engine.graph.image).dtype)
