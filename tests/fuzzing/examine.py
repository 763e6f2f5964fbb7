"""What runs on a mutant, and what is asked of the answer.

A mutant may be refused with a FgcamError, or explained correctly; nothing else. "Correctly" is checked and not assumed:
onnxruntime alone gives the same logits, the map is finite, the books close, and now and then the NumPy backend in
float64 has to give the same map.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.errors import FgcamError
from fuzzing.mutants import Mutant

__all__ = ["GOOD", "Finding", "examine", "forget_peak", "peak"]

# Inputs of more elements are not made: an honest model may ask for them, but not in a test.
MOST_INPUT = 1 << 19
# Relevance below this is nothing: its parts are smaller than the smallest normal float32, which counts as zero.
FAINT = 1e-30
# Rounding a hair above or below the half of a quantiser's step is another integer, and this is what it does to logits.
A_STEP = 1e-2
TWIN = 5  # one answer in so many is compared with NumPy's
GOOD = ("refused", "explained", "read")


class WrongError(AssertionError):
    """An answer, but not the right one."""


@dataclass(frozen=True)
class Finding:
    """What came of a mutant.

    ``outcome``: refused (a FgcamError), explained (a map that was checked), read (sound, but its input is too large to
    be made here); or else what must not be: escaped (another exception), wrong. The pool adds crash, hang and memory.
    ``peak``: the most memory that this process held until the answer came, before it was checked, in bytes.
    """

    outcome: str
    stage: str
    detail: str
    peak: int = 0


def peak() -> int:
    """The most memory that this process has held since :func:`forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def forget_peak() -> None:
    """Begin the count anew; where this is not allowed the peak is that of the whole life of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def examine(mutant: Mutant, explainer_of: Any = Explainer) -> Finding:
    """Run everything on one mutant."""
    forget_peak()
    with _written(mutant) as model:
        held: list[int] = []
        found = _examined(mutant, model, explainer_of, held)
    return replace(found, peak=held[0] if held else peak())


def _examined(mutant: Mutant, model: bytes | Path, explainer_of: Any, held: list[int]) -> Finding:
    stage = "load"
    try:
        explainer = explainer_of(model, backend="ort", threads=1)
        stage = "coverage"
        explainer.coverage()
        explainer.layers()
        stage = "num_classes"
        if explainer.num_classes < 0:
            raise WrongError(f"{explainer.num_classes} classes")
        shape = _input_shape(explainer)
        if int(np.prod(shape, dtype=object)) > MOST_INPUT:
            return Finding("read", "explain", f"input {shape}")
        stage = "explain"
        x = _picture(explainer, shape, mutant.seed)
        found = explainer.explain(x)
        stage = "check"
        held.append(peak())
        _check(explainer, model, x, found, mutant)
    except FgcamError as error:
        if stage == "check":
            return Finding("wrong", stage, f"NumPy in float64 refuses what was explained: {error}")
        if not error.what or len(str(error).splitlines()) > 4:
            return Finding("escaped", stage, f"an error of more than one screen: {error}")
        return Finding("refused", stage, f"{type(error).__name__}: {error.what}"[:200])
    except WrongError as error:
        return Finding("wrong", stage, str(error))
    except Exception:
        return Finding("escaped", stage, traceback.format_exc()[-3000:])
    return Finding("explained", stage, "")


@contextmanager
def _written(mutant: Mutant) -> Iterator[bytes | Path]:
    """The mutant as bytes, or as a file in a folder of its own with what lies beside it."""
    if not mutant.as_path:
        yield mutant.content
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in mutant.beside.items():
            (folder / file).write_bytes(content)
        for link, target in mutant.links.items():
            os.symlink(target, folder / link)
        (folder / "model.onnx").write_bytes(mutant.content)
        yield folder / "model.onnx"


def _input_shape(explainer: Explainer) -> list[int]:
    shape = []
    for axis, size in enumerate(explainer.input_shape):
        free = 1 if axis == 0 else 3 if explainer.layout[axis : axis + 1] == "C" else 14
        shape.append(size if isinstance(size, int) and size > 0 else free)
    return shape


def _picture(explainer: Explainer, shape: list[int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    kind = explainer.input_dtype
    return x * 40 + 100 if kind.startswith(("int", "uint")) else x


def _check(explainer: Explainer, model: bytes | Path, x: np.ndarray, found: Explanation, mutant: Mutant) -> None:
    if not np.isfinite(found.relevance).all():
        raise WrongError("the map is not finite")
    whole = float(np.abs(found.ledger.start_absolute).max())
    if not found.ledger.residual * whole <= 1e-4 * max(whole, FAINT):
        raise WrongError(f"the books are off by {found.ledger.residual}")
    tolerance = 1e-4 * max(whole, FAINT)
    gone = [*(row.leaked for row in found.ledger.rows), *found.ledger.aside.values()]
    expected = found.ledger.start - sum(gone)
    if not np.allclose(found.ledger.arrived, expected, rtol=0, atol=tolerance):
        raise WrongError(f"arrived {found.ledger.arrived}, expected {expected}")
    sums = found.relevance.reshape(len(x), -1).sum(axis=1, dtype=np.float64)
    if found.layer == "input" and not np.allclose(sums, found.ledger.arrived, rtol=0, atol=tolerance):
        raise WrongError(f"the map sums to {found.relevance.sum()}, arrived {found.ledger.arrived}")
    logits = found.logits.astype(np.float64)
    quantised = any("QuantizeLinear" in node.op_type for node in explainer._model.proto.graph.node)
    # onnxruntime alone runs no bfloat16.
    ways = () if any("rounded to bfloat16" in note for note in explainer.notes) else (True, False)
    for optimised in ways:  # where integers are fused to other integers both are right
        alone = _alone(explainer, model, x, optimised).reshape(len(x), -1)
        if alone.shape != logits.shape:
            raise WrongError(f"logits {logits.shape}, by onnxruntime alone {alone.shape}")
        error, scale = float(np.abs(alone - logits).max()), max(float(np.abs(alone).max()), 1e-30)
        if error <= (A_STEP if quantised else 1e-4) * scale:
            break
    if ways and not error <= (A_STEP if quantised else 1e-4) * scale:  # also a NaN
        raise WrongError(f"logits are off by {error} of {scale}: onnxruntime alone says {alone}, we {logits}")
    if mutant.seed % TWIN == 0:
        exact = Explainer(model, backend="numpy", precision="float64", threads=1).explain(x)
        norm = float(np.linalg.norm(exact.relevance))
        off = float(np.linalg.norm(exact.relevance.astype(np.float64) - found.relevance))
        if not off <= 1e-4 * max(norm, tolerance):
            raise WrongError(f"NumPy in float64 gives another map: off by {off} of {norm}")


def _alone(explainer: Explainer, model: bytes | Path, x: np.ndarray, optimised: bool) -> np.ndarray:
    """The logits of the file in a plain session of onnxruntime, which is told nothing but to show them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = onnx.ModelProto.FromString(model if isinstance(model, bytes) else model.read_bytes())
    name = explainer.graph.logits
    try:
        session = _session(proto, name, model, options)
    except Exception:
        if optimised:  # optimisations can fail on a graph that runs well without them
            return _alone(explainer, model, x, optimised=False)
        if not proto.functions:
            raise
        # Its own inlining of functions asks for more than the file needs: calls no deeper than 100, domains imported.
        session = _session(onnx.inliner.inline_local_functions(proto), name, model, options)
    feed = x.astype(explainer.input_dtype)
    size = explainer.fixed_batch or len(feed)
    if missing := -len(feed) % size:
        feed = np.concatenate([feed, np.repeat(feed[-1:], missing, axis=0)])
    pieces = [session.run([name], {explainer.input_name: feed[i : i + size]})[0] for i in range(0, len(feed), size)]
    result: np.ndarray = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return result[: len(x)].astype(np.float64)


def _session(proto: onnx.ModelProto, name: str, model: bytes | Path, options: Any) -> Any:
    """A session that shows the tensor ``name``, made of nothing but the file and what lies beside it."""
    import onnxruntime as ort

    if name not in [value.name for value in proto.graph.output]:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    if isinstance(model, bytes):
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shown = model.with_name("shown.onnx")
    shown.write_bytes(proto.SerializeToString())
    return ort.InferenceSession(str(shown), options, providers=["CPUExecutionProvider"])
