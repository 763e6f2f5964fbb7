"""CAMs and FG-CAMs: a base puts components on L, and a fine-grained method walks them down.

    logits --gradient--> L: components = base(A, gradient, scores of other inputs ...) [--denoise-->] --relevance-->
    target

Source: methods 2.1 and 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fgcam_onnx import descent
from fgcam_onnx.backends.base import Array, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.cams.base import Context
from fgcam_onnx.composite import GradientComposite, RelevanceComposite, RescaleComposite
from fgcam_onnx.denoise import denoise as denoise_components
from fgcam_onnx.descent import RESULT, START
from fgcam_onnx.engine import Engine, Tape, moved_first
from fgcam_onnx.errors import MethodError, OptionError
from fgcam_onnx.families.base import (
    COMPOSITE_OPTIONS,
    DENOISE_OPTIONS,
    Ask,
    Batch,
    Found,
    Job,
    check_bounds,
    composite_of,
    ledger_of,
    need_classes,
    own_options,
)
from fgcam_onnx.graph.stages import is_cut
from fgcam_onnx.node import REFERENCE

__all__ = ["plan", "run"]

HEAD, BODY, TO_L, RESCALED = "head", "body", "relevance of L", "multipliers of L"
SEED = "gradient_of_logits"


def plan(engine: Engine, ask: Ask) -> Job:
    """L, the target, and the ways between them."""
    method = ask.method
    options = own_options(ask, *COMPOSITE_OPTIONS, *DENOISE_OPTIONS)
    composite = composite_of(engine, ask)
    graph = engine.graph_for(composite.batchnorm)
    composite.check(graph)
    if method.fine:
        source = engine.tensor(ask.start, graph) if ask.start is not None else engine.default_layer
        target = engine.tensor(ask.layer if ask.layer is not None else "input", graph)
    else:
        if ask.layer is not None and ask.start is not None and ask.layer != ask.start:
            raise OptionError(
                f"{method.name} works at one layer, and layer={ask.layer!r} and start={ask.start!r} are two",
                next=f"give one of them, or use fg-{method.name} to walk from one to the other",
            )
        named = ask.layer if ask.layer is not None else ask.start
        source = target = engine.tensor(named, graph) if named is not None else engine.default_layer
    for name in (source, target):
        engine.need_space(graph, name)
    refuses = getattr(method.module, "refuses", None)
    if refuses is not None:
        shape = graph.tensor(source).shape or engine.shapes_for(engine.some_shape(), engine.some_others()).get(source)
        reason = refuses(graph, source, shape or (), options)
        if reason is not None:
            what, _, instead = reason.partition("; ")
            raise MethodError(what, at=f"L is {source!r}", next=instead or None)
    cleaning = {k: v for k, v in ask.options.items() if k in DENOISE_OPTIONS}
    if cleaning and not ask.denoise:
        raise OptionError(f"option {next(iter(cleaning))} belongs to denoising", next="add denoise=True")

    dead_start = method.masked and (not ask.denoise or bool(cleaning.get("support_mask", True)))
    plans = {BODY: engine.plan(graph, source, target, composite, dead_start=dead_start)}
    if "gradient" in method.needs:
        plans[HEAD] = engine.plan(graph, graph.logits, source, GradientComposite())
    if "relevance" in method.needs:
        plans[TO_L] = engine.plan(graph, graph.logits, source, RelevanceComposite())
    if "contributions" in method.needs:
        plans[RESCALED] = engine.plan(graph, graph.logits, source, RescaleComposite())
    check_bounds(composite, plans[BODY])
    notes: tuple[str, ...] = ()
    if source != graph.image and not is_cut(graph, source):
        notes = (f"not all evidence passes {source!r}: the map shows what went through it, and nothing else",)
    return Job(method, graph, source, target, plans, (source,), options, ask.denoise, cleaning, notes)


def run(engine: Engine, job: Job, batch: Batch) -> Found:
    """Components at L, and where they come from."""
    if job.method.by_class:
        need_classes(job, batch, "weighs channels by scores of one class")
    in_verbs = engine.backend.resident and job.method.in_verbs and not job.denoise
    result = _in_one_program(engine, job, batch) if in_verbs else _step_by_step(engine, job, batch)
    axis = engine.layout_of(job.graph, job.target).index("C")
    return Found(result[RESULT].sum(axis=axis, dtype=np.float64), ledger_of(job.plans[BODY], result))


def _step_by_step(engine: Engine, job: Job, batch: Batch) -> dict[str, np.ndarray]:
    """Gradient, components, denoising and descent one after the other, with arrays of the host in between."""
    first, back = moved_first(engine.layout_of(job.graph, job.source))
    activations = batch.tape.array(job.source).transpose(first)

    def differentiate() -> np.ndarray:
        walked = engine.run(job.plans[HEAD], batch.tape, batch.seed, keep_books=False)
        return walked[RESULT].transpose(first)

    def relevance(start: np.ndarray) -> np.ndarray:
        seed = start.reshape(batch.seed.shape)
        return engine.run(job.plans[TO_L], batch.tape, seed, keep_books=False)[RESULT].transpose(first)

    def contributions() -> np.ndarray:
        plan = job.plans[RESCALED]
        read = [n.removeprefix(REFERENCE) for n in plan.reads if n.startswith(REFERENCE)]
        behind = job.graph.descendants(job.source)
        nothing = np.zeros_like(batch.tape.array(job.source)[:1])
        rest = engine.behind(job.source, [n for n in read if n in behind and n != job.source])
        # What else this part of the network reads may differ from image to image.
        images = range(len(batch.x) if rest.others else 1)
        at_zero = [rest.run(nothing, batch.x[i : i + 1], batch.feeds.part(i, i + 1)) for i in images]
        given: dict[str, Any] = {**batch.tape.values, REFERENCE + job.source: nothing}
        for name in (n for n in read if n != job.source):
            found = [zero.array(name) for zero in at_zero] if name in behind else []
            given[REFERENCE + name] = np.concatenate(found) if found else batch.tape.values[name]
        walked = engine.run(plan, Tape(given, batch.tape.shapes), batch.seed, keep_books=False)[RESULT]
        parts: np.ndarray = walked.transpose(first) * activations
        return parts

    def behind(a: np.ndarray, image: int) -> np.ndarray:
        feeds = batch.feeds.part(image, image + 1)
        found = engine.behind(job.source).run(a.transpose(back), batch.x[image : image + 1], feeds)
        return found.array(job.graph.logits).reshape(len(a), -1)

    xp = NumpyVerbs(engine.backend.dtype)
    context = _context(engine, job, batch, xp, activations, differentiate)
    context = replace(context, behind=behind, relevance=relevance, contributions=contributions)
    components = _kept(engine, job, batch, lambda: job.method.components(context))
    if not np.isfinite(components).all():
        raise engine.not_finite(job.graph, batch.tape, job.source, job.target)
    if job.denoise:
        components = denoise_components(components, activations, **job.cleaning)
    return engine.run(job.plans[BODY], batch.tape, components.transpose(back), keep_books=True)


def _kept(engine: Engine, job: Job, batch: Batch, made: Callable[[], np.ndarray]) -> np.ndarray:
    """Components that cost many forward passes are those of every layer that they are walked down to: kept a while."""
    if not job.method.many_passes:
        return made()
    digest = hashlib.sha256()
    for array in (batch.x, batch.seed, *batch.feeds.arrays.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    what = (job.method.module.__name__, repr(sorted(job.options.items())), id(job.graph), job.source)
    return engine.kept((*what, batch.x.shape, batch.batch_size, digest.hexdigest()), made)


def _in_one_program(engine: Engine, job: Job, batch: Batch) -> dict[str, np.ndarray]:
    """The same as one program: nothing but the sum over channels and the books comes back from the device."""
    head, body, shapes = job.plans[HEAD], job.plans[BODY], batch.tape.shapes
    first, back = moved_first(engine.layout_of(job.graph, job.source))
    goal = engine.layout_of(job.graph, job.target).index("C")

    def run(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        def differentiate() -> Array:
            walked = descent.descend(head, shapes, xp, {**inputs, START: inputs[SEED]}, False)
            return xp.transpose(walked[RESULT], first)

        activations = xp.transpose(inputs[job.source], first)
        context = _context(engine, job, batch, xp, activations, differentiate)
        components = xp.transpose(job.method.components(context), back)
        found = descent.descend(body, shapes, xp, {**inputs, START: components}, True)
        return {**found, RESULT: xp.reduce_sum(found[RESULT], (goal,))}

    parts = (descent.program(head, shapes, keep_books=False), descent.program(body, shapes))
    rows = f"{batch.rows} rows of {len(batch.x)}"
    program = Program(
        "|".join([job.method.name, repr(sorted(job.options.items())), rows, *(p.key for p in parts)]), run
    )
    names = dict.fromkeys((job.source, *head.reads, *body.reads))
    return engine.backend.execute(program, {**{name: batch.tape.values[name] for name in names}, SEED: batch.seed})


def _context(
    engine: Engine, job: Job, batch: Batch, xp: Verbs, activations: Array, differentiate: Callable[[], Array]
) -> Context:
    return Context(
        xp=xp,
        activations=activations,
        target=np.zeros(batch.rows, np.int64) if batch.classes is None else batch.classes,
        x=batch.x,
        channel_axis=engine.layout.index("C"),
        differentiate=differentiate,
        score=lambda x: engine.logits(x, batch.feeds),
        progress=batch.progress,
        batch_size=batch.batch_size,
        head=job.graph.head,
        logits=batch.logits.reshape(len(batch.x), -1),
        options=job.options,
    )
