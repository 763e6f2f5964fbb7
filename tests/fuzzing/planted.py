"""Faults planted in a worker, to see that the pool notices them."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import replace
from typing import Any

from fgcam_onnx import Explainer
from fuzzing.examine import Finding, examine, forget_peak, peak
from fuzzing.mutants import Mutant

__all__ = ["MARK", "run"]

MARK = "planted:"


class _Wrong(Explainer):
    """Answers that are off by a thousandth, in the field that ``fault`` names."""

    fault = ""

    def explain(self, x: Any, **options: Any) -> Any:
        found = super().explain(x, **options)
        if self.fault == "map":
            return replace(found, relevance=found.relevance * 1.001)
        if self.fault == "sign":
            return replace(found, relevance=found.relevance[..., ::-1].copy())
        if self.fault == "nan":
            object.__setattr__(found, "relevance", found.relevance * float("nan"))  # replace() would refuse it
            return found
        if self.fault == "books":
            rows = [replace(row, leaked=row.leaked + 0.001 * found.ledger.start_absolute) for row in found.ledger.rows]
            return replace(found, ledger=replace(found.ledger, rows=tuple(rows)))
        return replace(found, logits=found.logits * 1.001)


def run(name: str) -> Finding:
    """Do what the name says: segfault, abort, exit, hang, memory, raise, or a wrong answer."""
    fault = name.removeprefix(MARK)
    if fault == "segfault":
        ctypes.string_at(8)
    elif fault == "abort":
        os.abort()
    elif fault == "exit":
        os._exit(0)
    elif fault == "hang":
        time.sleep(10_000)
    elif fault == "memory":
        forget_peak()
        block = bytearray(1200 << 20)
        del block
        return Finding("refused", "planted", "", peak())
    elif fault == "raise":
        return examine(_honest(), explainer_of=_raise)
    elif fault == "none":
        return examine(_honest())
    return examine(_honest(), explainer_of=type("Planted", (_Wrong,), {"fault": fault}))


def _raise(*given: Any, **options: Any) -> Any:
    raise KeyError("planted")


def _honest() -> Mutant:
    from fuzzing import corpus

    return Mutant("vgg", 0, (), corpus.read("vgg"), as_path=False)
