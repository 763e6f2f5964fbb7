"""What has to hold of a network that is explained: one function, whatever library the network comes from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch_reference.compare import relative_error

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.errors import FgcamError, UnsupportedOpError
from fgcam_onnx.forward import Forward

FORWARD = 1e-4  # logits and L: what float32 rounding leaves of a hundred random layers
MAP = 1e-4
LEDGER = 1e-4

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Truth:
    """What the source network, not the file, says about two pictures.

    ``x`` [n, c, h, w]; ``target``: a class for each; ``logits`` [n, classes]; ``at_l`` [n, c, h, w], the tensor that
    methods 2.2 names; ``relevance`` [n, h, w], the map of an independent implementation, where there is one.
    """

    x: NDArray[np.float32]
    target: list[int]
    logits: Array
    at_l: Array
    relevance: Array | None = None


@dataclass(frozen=True)
class Proof:
    """What was found on the way. ``error``: of the map, relative to the independent one's."""

    library: str
    model: str
    exporter: str
    size: tuple[int, int]
    layer: str
    shape: tuple[int, ...]
    nodes: int
    leaked: float
    error: float | None

    def record(self) -> None:
        """Into the folder that FGCAM_ARCHITECTURES names, for the table in the docs."""
        if folder := os.environ.get("FGCAM_ARCHITECTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            path = Path(folder) / f"{self.library}.{self.model}.{self.exporter}.json"
            path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def prove(explainer: Explainer, truth: Truth, library: str, model: str, exporter: str) -> Proof:
    """All of it, or an AssertionError that says which part does not hold."""
    coverage = explainer.coverage()
    assert coverage.complete, f"no rule for {[(row.node, row.reason) for row in coverage.gaps]}"

    layer = explainer.default_layer
    images = [truth.x[i : i + 1] for i in range(len(truth.x))]
    at_l = np.concatenate([channels_first(explainer, layer, explainer.activations(x, [layer])[layer]) for x in images])
    assert at_l.shape == truth.at_l.shape, f"L is {layer!r} {at_l.shape}, methods 2.2 says {truth.at_l.shape}"
    wrong = relative_error(at_l, truth.at_l)
    assert wrong <= FORWARD, f"L is {layer!r}, {wrong:.1e} from the tensor of methods 2.2"

    found = explainer.explain(truth.x, target=truth.target)
    wrong = relative_error(found.logits, truth.logits)
    assert wrong <= FORWARD, f"the logits are {wrong:.1e} from those of the source model"
    check_accounts(found)
    for i, (x, target) in enumerate(zip(images, truth.target, strict=True)):
        one = explainer.explain(x, target=target)
        wrong = relative_error(one.relevance, found.relevance[i : i + 1])
        assert wrong <= MAP, f"picture {i} alone has a map {wrong:.1e} from its map in the batch"

    error = None if truth.relevance is None else relative_error(found.relevance, truth.relevance)
    assert error is None or error <= MAP, f"the map is {error:.1e} from that of the independent implementation"
    size = (truth.x.shape[2], truth.x.shape[3])
    return Proof(library, model, exporter, size, layer, at_l.shape[1:], len(coverage.rows), found.ledger.leaked, error)


def check_accounts(found: Explanation) -> None:
    """The map is finite and says something of each picture; every row closes, and so does the whole."""
    assert np.isfinite(found.relevance).all(), "the map is not finite"
    assert found.relevance.any(axis=(1, 2)).all(), "a map is empty"
    assert found.ledger.residual <= LEDGER, f"a row of the ledger is open by {found.ledger.residual:.1e}"
    scale = found.ledger.start_absolute
    expected = found.ledger.start - sum(row.leaked for row in found.ledger.rows)
    for what, total in (("ledger", found.ledger.arrived), ("map", found.relevance.sum(axis=(1, 2), dtype=np.float64))):
        open_by = float(np.max(np.abs(total - expected) / scale))
        assert open_by <= LEDGER, f"the {what}'s total is {open_by:.1e} from what was put on L less what leaked"


def refuse(file: bytes, x: NDArray[np.float32]) -> FgcamError:
    """The error in place of a map: of the right kind, naming a node of the file, raised before anything ran."""
    explainer = Explainer(file, backend="ort", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "run", _ran)
        with pytest.raises(FgcamError) as caught:
            explainer.explain(x)
    assert isinstance(caught.value, UnsupportedOpError), f"refused, but as {caught.value!r}"
    nodes = {repr(node.name) for node in onnx.load_from_string(file).graph.node if node.name}
    named = caught.value.at or ""
    assert any(node in named for node in nodes), f"no node of the file is named: {named}"
    assert not explainer.coverage().complete, "coverage promises a map"
    return caught.value


def _ran(*_arguments: Any) -> None:
    raise RuntimeError("the network ran before it was refused")


def channels_first(explainer: Explainer, name: str, value: Array) -> Array:
    """A tensor of the graph as [n, c, h, w]."""
    layout = explainer.graph.tensor(name).layout or "NCHW"
    order = [layout.index(axis) for axis in "NCHW"]
    return value.transpose(order)
