"""Methods that are one walk by derivatives or multipliers: gradient, gradient x input, guided backprop, DeepLIFT.

Each lives in ``fgcam_onnx.attributions``: ``composite(options)`` says how it walks from the score to ``layer``,
``attribute(walked, activation, reference, options)`` what the map is made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgcam_onnx.descent import RESULT
from fgcam_onnx.engine import Engine, Tape, moved_first
from fgcam_onnx.errors import OptionError
from fgcam_onnx.families.base import Ask, Batch, Found, Job, own_options, without_rows
from fgcam_onnx.feeds import as_dtype, filled
from fgcam_onnx.node import REFERENCE

__all__ = ["plan", "run"]

WALK = "walk"


def plan(engine: Engine, ask: Ask) -> Job:
    """From the logits to ``layer``, the input by default."""
    options = own_options(ask)
    graph = engine.graph
    if ask.start is not None or ask.denoise:
        what = "start=" if ask.start is not None else "denoise=True"
        raise OptionError(f"{ask.method.name} walks from the logits, and {what} belongs to a method with an L")
    target = engine.tensor(ask.layer if ask.layer is not None else "input", graph)
    engine.need_space(graph, target)
    composite = ask.method.module.composite(options)
    plans = {WALK: engine.plan(graph, graph.logits, target, composite)}
    return Job(ask.method, graph, graph.logits, target, plans, (target,), options)


def run(engine: Engine, job: Job, batch: Batch) -> Found:
    """One walk, and one forward pass more where there is a reference."""
    first, _ = moved_first(engine.layout_of(job.graph, job.target))
    options = batch.cut(job.options)
    tape, reference, promised = batch.tape, None, None
    if "reference" in job.method.needs:
        x0 = _reference(engine, batch, options["baseline"])
        at_rest = _forward(engine, job, batch, x0)
        # One reference for all images is kept as one.
        size = len(x0)
        values = {REFERENCE + name: _rows(value, size) for name, value in at_rest.values.items()}
        tape = Tape({**tape.values, **values}, tape.shapes)
        reference = _rows(at_rest.values[job.target], size)
        logits = _rows(at_rest.values[job.graph.logits], size).reshape(size, -1)
        change = batch.logits.reshape(len(batch.x), -1).astype(np.float64) - logits
        promised = (batch.weights * change).sum(axis=1)
    walked = engine.run(job.plans[WALK], tape, batch.seed, keep_books=False)[RESULT].transpose(first)
    activation = tape.array(job.target).transpose(first)
    parts = job.method.module.attribute(
        walked, activation, None if reference is None else reference.transpose(first), options
    )
    relevance = parts.sum(axis=1, dtype=np.float64)
    if not np.isfinite(relevance).all():
        raise engine.not_finite(job.graph, batch.tape, job.source, job.target)
    return Found(relevance, without_rows(relevance), promised)


def _reference(engine: Engine, batch: Batch, baseline: Any) -> np.ndarray:
    """x0, with a batch of 1 where it is the same for all images."""
    try:
        x0 = np.asarray(baseline, np.float32)
    except (TypeError, ValueError):
        x0 = np.full((), np.nan, np.float32)
    if not np.isfinite(x0).all():
        raise OptionError("option baseline is not made of finite numbers", known="a number, or an array")
    one = batch.x.shape[1:]
    if x0.shape in ((), one):
        x0 = np.broadcast_to(x0, (1, *one))
    if x0.shape not in ((1, *one), batch.x.shape):
        raise OptionError(
            f"option baseline has shape {list(x0.shape)}",
            known=f"a number, an array of the input's shape {list(batch.x.shape)}, or of one image's",
        )
    return as_dtype(np.ascontiguousarray(x0), engine.graph.tensor(engine.graph.image).dtype, "option baseline")


def _forward(engine: Engine, job: Job, batch: Batch, x0: np.ndarray) -> Tape:
    if engine.other_inputs and len(x0) != len(batch.x):
        x0 = np.repeat(x0, len(batch.x), axis=0)  # beside other inputs the same picture is not the same input
    size = engine.fixed_batch or len(x0)
    others = batch.feeds.rows(0, len(x0), size)
    plan = job.plans[WALK]
    read = [name.removeprefix(REFERENCE) for name in plan.reads]
    return engine.tape(job.graph, filled(x0, size), others, (), (*read, job.target))


def _rows(value: Any, size: int) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return array if array.shape[0] == size else array[:size]
