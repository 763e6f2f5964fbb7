"""Checks of one's own model: the forward pass, the map, its books, the batch and the backends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import onnx

from fgcam_onnx.backends.base import Backend
from fgcam_onnx.composite import RelevanceComposite
from fgcam_onnx.explainer import Explainer
from fgcam_onnx.explanation import Explanation
from fgcam_onnx.forward import CUDA
from fgcam_onnx.ledger import Ledger, LedgerRow
from fgcam_onnx.runtime import onnxruntime
from fgcam_onnx.testing.compare import Floats, Report, Row, close
from fgcam_onnx.testing.parity import chosen_backends

__all__ = ["LEDGER", "check_model"]

# Of the absolute relevance at L.
LEDGER = 1e-4
Model = str | os.PathLike[str] | bytes | onnx.ModelProto


def check_model(
    model: Model,
    x: Any,
    *,
    target: Any = None,
    backends: Sequence[Backend] | None = None,
    forward: float = 1e-5,
    tolerance: float = 1e-4,
    **options: Any,
) -> Report:
    """Is this model explained as it should be? ``x``: a few preprocessed images, as for :meth:`Explainer.explain`.

    - coverage: every node on the path has a rule.
    - forward: the session with further outputs gives what a bare onnxruntime session gives, up to ``forward`` of the
      largest value of an output (they keep onnxruntime from fusing some nodes); 0 in the report means bit for bit.
    - map: not zero everywhere (one that is not finite is an error of its own).
    - ledger: each row closes to 1e-4 of the absolute relevance at L, and so does the whole.
    - batch: the images together give the maps that they give one by one, up to ``tolerance`` of their norm.
    - backend: each of ``backends`` (those of this machine if None) gives NumPy's map of the first image, likewise.
      NumPy is slow.

    ``target`` and ``options`` as in :meth:`Explainer.explain`.

    Raises:
        AssertionError: the first check that fails; names the node.
        FgcamError: the model or ``x`` cannot be used at all.
    """
    backends, missing = chosen_backends(backends)
    explainer = Explainer(model, backend=backends[0] if backends else "numpy")
    rows = [_coverage(explainer, options)]
    together = explainer.explain(x, target=target, **options)
    array = np.asarray(x)
    rows += [
        _forward(explainer, model, array, forward),
        _map(together),
        *_books(together.ledger),
        _batch(explainer, array, together, tolerance, options),
        *_backends(model, array, together, backends, tolerance, options),
        *missing,
    ]
    what = f"x {list(array.shape)}, {together.method} from {together.start} to {together.layer} by {explainer.backend}"
    return Report(f"{explainer.path or 'the given model'}  {what}", tuple(rows))


def _coverage(explainer: Explainer, options: dict[str, Any]) -> Row:
    known = {field.name for field in fields(RelevanceComposite)}
    gaps = explainer.coverage(**{name: value for name, value in options.items() if name in known}).gaps
    if gaps:
        reasons = "\n".join(f"  node {gap.node!r}: {gap.reason}" for gap in gaps)
        raise AssertionError(f"coverage: nodes on the path have no rule\n{reasons}")
    return Row("coverage")


# --- the forward pass -------------------------------------------------------------------------------------------------


def _forward(explainer: Explainer, model: Model, x: Floats, allowed: float) -> Row:
    """Every output of the file: from the session that gives the activations as well, and from one that does not."""
    module = onnxruntime()
    settings = module.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = int(os.environ.get("FGCAM_THREADS", "0") or 0)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    source = source if isinstance(source, bytes) else os.fspath(source)
    # Products rounded to TF32 are onnxruntime's default on a GPU, and not what an Explainer explains.
    providers = [(p, {"use_tf32": "0"}) if p == CUDA else p for p in explainer.providers]
    bare = module.InferenceSession(source, settings, providers=providers)
    tensors = [output.name for output in bare.get_outputs() if output.type.startswith("tensor(")]
    names = [name for name in tensors if explainer.graph.producer(name) is not None]
    if not names:
        return Row("forward", skipped="no output of the file is a tensor that a node of the view computes")
    worst = 0.0
    for piece in _pieces(explainer, x):
        mine = explainer.activations(piece, names)
        for name, expected in zip(names, bare.run(names, {explainer.input_name: piece}), strict=True):
            producer = explainer.graph.producer(name)
            node = producer.name if producer is not None else ""
            what = f"forward: output {name!r} of node {node!r}, against a bare session,"
            worst = max(worst, close(mine[name], expected, allowed, what))
    return Row("forward", "", worst, allowed)


def _pieces(explainer: Explainer, x: Floats) -> Iterator[Floats]:
    """x as the model takes it: whole, or in pieces of its fixed batch of which the last is filled up."""
    x = x.astype(explainer.input_dtype, copy=False)
    size = explainer.fixed_batch or len(x)
    for first in range(0, len(x), size):
        piece = x[first : first + size]
        yield np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])


# --- the map and its books --------------------------------------------------------------------------------------------


def _map(found: Explanation) -> Row:
    """An Explanation that is not finite does not come into being; one of zeros does, where everything leaked."""
    for k, image in enumerate(found.relevance):
        if not image.any():
            raise AssertionError(f"map: image {k}: all zeros; {_where_it_went(found.ledger, k)}")
    return Row("map")


def _where_it_went(ledger: Ledger, k: int) -> str:
    if not ledger.start_absolute[min(k, len(ledger.start_absolute) - 1)]:
        return "nothing was put on L"
    row = max(ledger.rows, key=lambda row: float(row.dropped[k]))
    if not row.dropped[k]:
        return "and no node says that it dropped anything"
    share = 100 * row.dropped[k] / ledger.start_absolute[k]
    return f"{_place(row)} dropped the most, {share:.3g} % of what was put on L"


def _place(row: LedgerRow) -> str:
    return f"node {row.node!r} ({row.op}, rule {row.rule})"


def _books(ledger: Ledger) -> list[Row]:
    """Each row; and the whole: what was put on L arrived, but for what the rows say leaked."""
    if not ledger.rows:
        return [Row("ledger", skipped="this method does not walk")]
    whole = np.where(ledger.start_absolute > 0, ledger.start_absolute, 1.0)
    row = max(ledger.rows, key=lambda row: float((row.residual / whole).max()))
    share = row.residual / whole
    k = int(share.argmax())
    if not share[k] <= LEDGER:
        raise AssertionError(
            f"ledger: {_place(row)}, image {k}: in {row.relevance_in[k]:.6g}, out {row.relevance_out[k]:.6g} "
            f"+ leaked {row.leaked[k]:.6g}: {share[k]:.3g} of the relevance at L is not accounted for "
            f"(allowed {LEDGER:.2g})"
        )
    leaked = np.sum([row.leaked for row in ledger.rows], axis=0)
    away = np.abs(ledger.start - leaked - ledger.arrived) / whole
    j = int(away.argmax())
    if not away[j] <= LEDGER:
        raise AssertionError(
            f"ledger: image {j}: {ledger.start[j]:.6g} was put on L, {leaked[j]:.6g} leaked "
            f"and {ledger.arrived[j]:.6g} arrived, though each node closes"
        )
    return [Row("ledger by node", "", float(share[k]), LEDGER), Row("ledger", "", float(away[j]), LEDGER)]


# --- the same another way ---------------------------------------------------------------------------------------------


def _batch(explainer: Explainer, x: Floats, together: Explanation, allowed: float, options: dict[str, Any]) -> Row:
    if len(x) < 2:
        return Row("batch", skipped="x is one image: give two or more")
    worst = 0.0
    for k in range(len(x)):
        alone = explainer.explain(x[k : k + 1], target=[int(together.target[k])], **options)
        worst = max(worst, _apart(f"batch: image {k} by itself", alone, together, k, allowed))
    return Row("batch", "", worst, allowed)


def _backends(
    model: Model,
    x: Floats,
    together: Explanation,
    backends: Sequence[Backend],
    allowed: float,
    options: dict[str, Any],
) -> list[Row]:
    if not backends:
        return []
    target = [int(together.target[0])]
    plain = Explainer(model, backend="numpy").explain(x[:1], target=target, **options)
    rows = []
    for backend in backends:
        found = Explainer(model, backend=backend).explain(x[:1], target=target, **options)
        worst = _apart(f"backend {backend.name}, against NumPy", found, plain, 0, allowed)
        rows.append(Row(f"backend {backend.name}", "", worst, allowed))
    return rows


def _apart(what: str, one: Explanation, other: Explanation, k: int, allowed: float) -> float:
    """The distance of the one map to map ``k`` of the other, over its norm."""
    theirs = other.relevance[k].astype(np.float64)
    away = float(np.linalg.norm(one.relevance[0] - theirs)) / max(float(np.linalg.norm(theirs)), 1e-30)
    if not away <= allowed:
        where = _parting(one.ledger, other.ledger, k)
        raise AssertionError(f"{what}: the map is off by {away:.3g} of its norm (allowed {allowed:.2g}); {where}")
    return away


def _parting(one: Ledger, other: Ledger, k: int) -> str:
    """The first node on the way down whose row of the ledger differs."""
    whole = float(other.start_absolute[k]) or 1.0
    for mine, theirs in zip(one.rows, other.rows, strict=False):
        for column in ("relevance_in", "relevance_out", "leaked", "dropped"):
            a, b = float(getattr(mine, column)[0]), float(getattr(theirs, column)[k])
            if not abs(a - b) <= LEDGER * whole:
                return f"first at {_place(mine)}: {column} is {a:.6g}, and {b:.6g} there"
    return "no sum of the ledger differs: the relevance lies in other places"
