"""Methods of relevance that starts on the logits: LRP, CLRP, SGLRP, excitation backpropagation.

Each lives in ``fgcam_onnx.attributions``: ``ways(options, ...)`` names the walks, ``attribute(walks)`` says what starts
on the logits and what becomes of the maps. Source: methods 4.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.attributions.passes import Answer, Walks
from fgcam_onnx.descent import RESULT, Plan
from fgcam_onnx.engine import Engine, Tape
from fgcam_onnx.errors import ModelError, OptionError
from fgcam_onnx.families.base import (
    COMPOSITE_OPTIONS,
    Ask,
    Batch,
    Found,
    Job,
    check_bounds,
    composite_of,
    ledger_of,
    need_classes,
    own_options,
    shapes_of_rows,
)

__all__ = ["plan", "run"]


def plan(engine: Engine, ask: Ask) -> Job:
    """The ways from the logits to ``layer``, the input by default."""
    method = ask.method
    options = own_options(ask, *COMPOSITE_OPTIONS)
    composite = composite_of(engine, ask, composite=method.module.COMPOSITE)
    graph = engine.graph_for(composite.batchnorm)
    composite.check(graph)
    if ask.start is not None or ask.denoise:
        what = "start=" if ask.start is not None else "denoise=True"
        raise OptionError(f"{method.name} starts on the logits, and {what} belongs to a method with an L")
    target = engine.tensor(ask.layer if ask.layer is not None else "input", graph)
    engine.need_space(graph, target)
    try:
        default_layer = engine.default_layer
    except ModelError:
        default_layer = None
    if options.get("contrast_layer") is not None:
        options["contrast_layer"] = engine.tensor(options["contrast_layer"], graph)
    plans: dict[str, Plan] = {}
    for name, way in method.module.ways(options, graph.logits, target, default_layer).items():
        chosen = replace(composite, rules=(*way.rules, *composite.rules))
        plans[name] = engine.plan(graph, way.source, way.target, chosen)
        check_bounds(composite, plans[name])
    return Job(method, graph, graph.logits, target, plans, (), options)


def run(engine: Engine, job: Job, batch: Batch) -> Found:
    """The walks, and what the method makes of them."""
    z = batch.logits.reshape(len(batch.x), -1)
    z = np.repeat(z, batch.rows, axis=0) if batch.several else z
    if job.method.by_class:
        target = need_classes(job, batch, "holds a class against the others")
    else:
        target = np.zeros(batch.rows, np.int64) if batch.classes is None else batch.classes
        if batch.classes is None and job.method.name != "lrp":
            need_classes(job, batch, "starts from a class")
    shared = len(batch.x) == 1 and job.shares_batch(batch.tape, batch.rows)

    def walk(way: str, *starts: np.ndarray) -> list[Answer]:
        plan = job.plans[way]
        shape = batch.tape.shapes[plan.source]
        seeds = [np.reshape(start, (batch.rows, *shape[1:]) if len(shape) else shape) for start in starts]
        if len(seeds) == 1 or not shared:
            return [_answer(plan, engine.run(plan, batch.tape, seed, keep_books=True)) for seed in seeds]
        shapes = shapes_of_rows(batch.tape.shapes, batch.rows, batch.rows * len(seeds))
        found = engine.run(plan, Tape(batch.tape.values, shapes), np.concatenate(seeds), keep_books=True)
        whole = _answer(plan, found)
        cuts = [slice(i * batch.rows, (i + 1) * batch.rows) for i in range(len(seeds))]
        return [Answer(whole.relevance[cut], whole.ledger.part(cut)) for cut in cuts]

    walks = Walks(z, batch.weights, target, batch.against, batch.cut(job.options), walk)
    answer = job.method.module.attribute(walks)
    axis = engine.layout_of(job.graph, job.target).index("C")
    relevance = answer.relevance.sum(axis=axis, dtype=np.float64)
    finish = getattr(job.method.module, "finish", None)
    return Found(relevance if finish is None else finish(relevance, job.options), answer.ledger)


def _answer(plan: Plan, found: dict[str, np.ndarray]) -> Answer:
    return Answer(found[RESULT], ledger_of(plan, found))
