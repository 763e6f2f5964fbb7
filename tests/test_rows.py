"""Several relevances of one image over its activations, which have a batch of 1: each is what it is by itself.

One test reads the registry: every rule of every operator of the grid, three rows at once against one at a time, on
NumPy in float64 and on the compiled backends. Layers for which that would be wrong are told apart by ``shares_batch``;
each kind of them is shown. The second half walks whole networks, and counts what is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import backends
import numpy as np
import onnx
import pytest
import tiny_models
from backends import Named, needs_gxx
from operator_cases import distinct
from single_op import Case, Floats, X, changed, close, rule, rules, tape
from tiny_models import Net

from fgcam_onnx import descent, registry, testing
from fgcam_onnx.backends.base import Array, Backend, Convolution, Verbs, Window
from fgcam_onnx.backends.numpy import NumpyBackend, NumpyVerbs
from fgcam_onnx.backends.ort import OrtBackend
from fgcam_onnx.composite import Composite, GradientComposite, RelevanceComposite
from fgcam_onnx.descent import Plan
from fgcam_onnx.errors import UnsupportedOpError
from fgcam_onnx.graph import rows
from fgcam_onnx.graph.layer import LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.rows import shares_batch
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.node import Flow

ROWS = 3

# --- every rule -------------------------------------------------------------------------------------------------------

# Of the grid, the cases that are walked one row after the other, with the reason.
APART = {
    "Slice": "their axes begin with the first one, for none is named",
    "Squeeze": "the batch is squeezed away",
}
# Grids hold values with kinks in the derivative, where float32 may fall to the other side.
KINKS = {"HardSwish": (-3.0, 3.0), "HardSigmoid": (-2.5, 2.5), "ThresholdedRelu": (1.0,)}


def _operators() -> list[str]:
    return sorted({case.op for case in distinct()})


@pytest.mark.parametrize("op", _operators())
def test_every_rule_of(op: str) -> None:
    """On NumPy in float64, and in onnxruntime."""
    compiled, checked = [OrtBackend(threads=1)], 0
    for case, name in _served(op):
        row = testing.check_rows(case, name, compiled, kinks=KINKS.get(op, ()) if name == "gradient" else ())
        checked += not row.skipped
        assert not row.skipped or op in APART, f"{case.id}: {row.skipped}"
    assert checked


def _served(op: str) -> list[tuple[Case, str]]:
    found = []
    for case in distinct():
        for name in rules(case.op) if case.op == op else ():
            try:
                rule(case, name)
                found.append((case, name))
            except UnsupportedOpError:
                continue
    return found


@needs_gxx
def test_every_rule_that_reads_activations_in_cuda() -> None:
    """The first case of each: the others meet the same kernels."""
    seen = set()
    for op in _operators():
        for case, name in _served(op):
            if (op, name) not in seen and rule(case, name).reads and shares_batch(case.layer, case.graph):
                seen.add((op, name))
                testing.check_rows(case, name, [backends.cuda_on_cpu()], kinks=KINKS.get(op, ()))
    assert len(seen) > 60


def _first_row_for_all(flow: Flow, xp: Verbs) -> Flow:
    """What a rule does that forgets that there are several rows."""
    parts = {i: xp.expand(xp.gather(p, np.zeros(1, np.int64), 0), xp.shape(p)) for i, p in flow.parts.items()}
    return Flow(parts, flow.leaks)


def _leaks_of_first_row(flow: Flow, xp: Verbs) -> Flow:
    def first(a: Array) -> Array:
        return xp.expand(xp.gather(a, np.zeros(1, np.int64), 0), xp.shape(a))

    return Flow(flow.parts, tuple(replace(leak, signed=first(leak.signed)) for leak in flow.leaks))


@pytest.mark.parametrize("change", [_first_row_for_all, _leaks_of_first_row])
def test_the_check_fails_where_rows_are_mixed(change: Any) -> None:
    case = next(case for case in distinct() if case.op == "Relu")
    wrong = changed(rule(case, "mask"), change)
    with pytest.raises(AssertionError, match="row 1"):
        testing.check_rows(case, wrong)


def test_the_check_fails_where_activations_are_read_in_the_shape_of_the_relevance() -> None:
    case = next(case for case in distinct() if case.op == "LRN")
    right = rule(case, "gradient")

    def function(node: Any, r: Array, xp: Verbs) -> Flow:
        return Flow({0: xp.mul(r, xp.reshape(node.x(), node.in_shape()))})

    with pytest.raises(ValueError, match="reshape") as caught:
        testing.check_rows(case, replace(right, function=function))
    assert "while checking the rows of rule 'gradient'" in caught.value.__notes__[0]


class _ForgetsRows(NumpyBackend):
    """Gives every row the relevance of the first one."""

    name = "forgetful"

    def execute(self, program: Any, inputs: Mapping[str, Any]) -> dict[str, Floats]:
        found = super().execute(program, inputs)
        return {name: np.repeat(v[:1], len(v), axis=0) if name.startswith("part") else v for name, v in found.items()}


def test_the_check_fails_where_a_backend_mixes_rows() -> None:
    case = next(case for case in distinct() if case.op == "Conv")
    with pytest.raises(AssertionError, match="backend forgetful of 3 rows"):
        testing.check_rows(case, "z_plus", [_ForgetsRows()])


# --- which layers can share -------------------------------------------------------------------------------------------


def test_no_operator_is_forgotten() -> None:
    """Each built-in operator is in one of the three groups, and the groups hold no other."""
    groups = (rows.IMAGE_BY_IMAGE, rows.BROADCAST, frozenset(rows.BY_ATTRIBUTE))
    listed = [op for group in groups for op in group]
    assert len(set(listed)) == len(listed)
    known = {row.op for row in registry.table() if "::" not in row.op or row.op.startswith("fgcam::")}
    assert known == set(listed)


def _weight(*shape: int) -> Floats:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


SHARES: tuple[tuple[str, bool, Case], ...] = (
    ("by default", True, Case("a", "Concat", (X((1, 2, 3)), X((1, 1, 3))), {"axis": 1})),
    ("from the end", True, Case("a", "Concat", (X((1, 2, 3)), X((1, 2, 1))), {"axis": -1})),
    ("images", False, Case("a", "Concat", (X((1, 2, 3)), X((1, 2, 3))), {"axis": 0})),
    ("images, from the end", False, Case("a", "Concat", (X((1, 2, 3)), X((1, 2, 3))), {"axis": -3})),
    ("images", False, Case("a", "Split", (X((2, 3)), _ints(1, 1)), {"axis": 0}, outputs=2)),
    ("channels", True, Case("a", "Split", (X((1, 4)), _ints(1, 3)), {"axis": 1}, outputs=2)),
    ("images", False, Case("a", "Slice", (X((1, 4)), _ints(0), _ints(1), _ints(0)))),
    ("images, from the end", False, Case("a", "Slice", (X((1, 4)), _ints(0), _ints(1), _ints(-2)))),
    ("no axes", False, Case("a", "Slice", (X((1, 4)), _ints(0, 1), _ints(1, 3)))),
    ("channels", True, Case("a", "Slice", (X((1, 4)), _ints(1), _ints(3), _ints(1)))),
    ("images", False, Case("a", "Pad", (X((2, 4)), _ints(-1, 0, 1, 0)))),
    ("channels", True, Case("a", "Pad", (X((1, 4)), _ints(0, 1, 0, 2)))),
    ("images", False, Case("a", "Transpose", (X((1, 4, 3)),), {"perm": [1, 0, 2]})),
    ("reversed", False, Case("a", "Transpose", (X((1, 4, 3)),))),
    ("cells", True, Case("a", "Transpose", (X((1, 4, 3)),), {"perm": [0, 2, 1]})),
    ("columns", False, Case("a", "Gemm", (X((4, 1)), _weight(4, 2)), {"transA": 1})),
    ("rows", True, Case("a", "Gemm", (X((1, 4)), _weight(4, 2)))),
    ("a matrix an image", False, Case("a", "MatMul", (X((2, 3, 4)), _weight(2, 4, 5)))),
    ("more axes", False, Case("a", "MatMul", (X((1, 4)), _weight(1, 4, 5)))),
    ("one matrix for all", True, Case("a", "MatMul", (X((1, 3, 4)), _weight(1, 4, 5)))),
    ("a matrix a channel", True, Case("a", "MatMul", (X((1, 3, 2, 4)), _weight(3, 4, 5)))),
    ("fewer axes", False, Case("a", "Add", (X((1, 4, 3)), X((4, 1))))),
    ("a constant an image", False, Case("a", "Add", (X((2, 4)), _weight(2, 4)))),
    ("a constant that widens", False, Case("a", "Mul", (X((4, 1)), _weight(1, 4, 3)))),
    ("a constant for all", True, Case("a", "Mul", (X((1, 4)), _weight(1, 4)))),
    ("a slope an image", False, Case("a", "PRelu", (X((2, 4)), _weight(2, 4)))),
    ("axes in front", False, Case("a", "Expand", (X((4, 3)), _ints(1, 4, 3)))),
    ("channels", True, Case("a", "Expand", (X((1, 1, 3)), _ints(1, 4, 3)))),
    ("one ratio", False, Case("a", "Resize", (X((1, 1, 4, 4)), None, None, _ints(1, 1, 8, 6)),
                              {"keep_aspect_ratio_policy": "not_larger"}, 18)),
    ("one ratio for space", True, Case("a", "Resize", (X((1, 1, 4, 4)), None, None, _ints(8, 6)),
                                       {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3]}, 18)),
)  # fmt: skip


@pytest.mark.parametrize(("shares", "case"), [pytest.param(s, c, id=f"{c.op}, {words}") for words, s, c in SHARES])
def test_which_layers_share(shares: bool, case: Case) -> None:
    assert shares_batch(case.layer, case.graph) is shares


def test_operators_of_other_packages_do_not_share() -> None:
    case = Case("a", "Relu", (X((1, 4)),))
    assert shares_batch(case.layer, case.graph)
    assert not shares_batch(replace(case.layer, op="my.domain::Bend"), case.graph)


def test_numbers_from_the_count_of_all_cells_do_not_share() -> None:
    """x / Size(x): of three rows of one image the count would be three times that of the image."""
    net = Net(("n", 3, 6, "w"))
    count = net.node("Cast", "float", net.node("Size", "size", "image"), to=onnx.TensorProto.FLOAT)
    graph = build_view(load(net.model(net.node("Div", "mean", net.relu("relu", "image"), count))))
    division = graph.producer("mean.y")
    assert division is not None
    assert division.sizes
    assert not shares_batch(division, graph)


# --- whole networks ---------------------------------------------------------------------------------------------------


def _blocks() -> onnx.ModelProto:
    """Enough channels for onnxruntime's blocked layout; dead channels, and a strided shortcut; pools that overlap."""
    net = Net(("n", 3, 12, 12))
    x = net.relu("relu0", net.node("Conv", "stem", "image", net.random(32, 3, 3, 3), np.repeat([0.1, -9], 16),
                                   pads=[1, 1, 1, 1]))  # fmt: skip
    x = net.node("MaxPool", "pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.conv("conv2", net.relu("relu1", net.conv("conv1", x, 32, 32)), 32, 32, strides=[2, 2])
    y = net.node("Add", "add", y, net.conv("down", x, 32, 32, 1, strides=[2, 2]))
    a, b = (net.relu(f"relu{k}", net.conv(f"conv{k}", y, 32, 16, 1)) for k in (3, 4))
    return net.model(net.head(net.node("Concat", "join", a, b, axis=1), 32))


def _normed() -> onnx.ModelProto:
    """Normalisations that take their statistics from the activation, an LRN, Max, and a pool over channels."""
    net = Net(("n", 3, 8, 8))
    x = net.conv("conv1", "image", 3, 8)
    x = net.node("InstanceNormalization", "norm", x, np.ones(8), np.zeros(8))
    x = net.node("LRN", "lrn", net.relu("relu1", x), size=3)
    x = net.node("Max", "max", net.conv("conv2", x, 8, 8), net.conv("conv3", x, 8, 8))
    top = net.node("ReduceMax", "top", x, axes=[1], keepdims=1)
    x = net.node("Where", "where", net.node("Greater", "better", x, np.zeros((1, 1, 1))), x, top)
    return net.model(net.head(net.node("GlobalMaxPool", "gmp", x), 8))


NETS = {
    "vgg": tiny_models.vgg,
    "residual": tiny_models.residual,
    "squeeze_excite": tiny_models.squeeze_excite,
    "concat": tiny_models.concat,
    "nhwc": tiny_models.nhwc,
    "three_d": tiny_models.three_d,
    "blocks": _blocks,
    "normed": _normed,
}
COMPOSITES: dict[str, Composite] = {
    "paper": RelevanceComposite(),
    "other options": RelevanceComposite(
        first_layer="flat", add="norm", mul="uniform", maxpool="winner_positive", relu="mask"
    ),
    "given bounds": RelevanceComposite(zb_bounds=(-3.0, 3.0)),
    "gradient": GradientComposite(),
}


def _way(model: onnx.ModelProto, composite: Composite) -> Plan:
    graph = build_view(load(model))
    return descent.plan(graph, graph.logits, graph.image, composite)


def _walk(plan: Plan, activations: Mapping[str, Floats], start: Floats, backend: Backend) -> dict[str, Floats]:
    """The descent of the rows of ``start`` over activations of one image."""
    shapes = {name: (len(start), *value.shape[1:]) for name, value in activations.items()}
    program = descent.program(plan, shapes)
    feeds = {name: activations[name] for name in plan.reads} | {descent.START: start}
    return backend.execute(program, {name: np.asarray(v, backend.dtype) for name, v in feeds.items()})


def _of_one_image(name: str) -> tuple[onnx.ModelProto, dict[str, Floats]]:
    model = NETS[name]()
    return model, tape(model, tiny_models.pictures(model, 1))


def _starts(activations: Mapping[str, Floats], graph: LayerGraph) -> Floats:
    """Rows of other classes; the last one is a difference of two."""
    logits = activations[graph.logits]
    seeds = np.zeros((ROWS, *logits.shape[1:]))
    for k in range(ROWS):
        seeds[k, k] = logits[0, k] if k else 1
    seeds[-1, 0] = -0.5
    return seeds


@pytest.mark.parametrize("entry", backends.named())
@pytest.mark.parametrize("name", NETS)
def test_rows_of_a_network(name: str, entry: Named) -> None:
    """Three classes at once are three classes one by one: the map and every line of the books."""
    model, activations = _of_one_image(name)
    for words, composite in COMPOSITES.items():
        plan = _way(model, composite)
        assert all(shares_batch(step.layer, plan.graph) for step in plan.steps)
        starts = _starts(activations, plan.graph)
        together = _walk(plan, activations, starts, entry.backend)
        assert np.abs(together[descent.RESULT]).max() > 0
        for k in range(ROWS):
            alone = _walk(plan, activations, starts[k : k + 1], NumpyBackend(np.float64))
            tolerance = 1e-9 if entry.id.endswith("64") else 1e-4
            size = np.abs(alone["start_absolute"]).max() or 1.0
            what = f"{name}, {words}, row {k}"
            close(together[descent.RESULT][k : k + 1], alone[descent.RESULT], tolerance, what)
            for column, expected in alone.items():
                if column != descent.RESULT and not (words == "gradient" and column != "start"):
                    away = np.abs(together[column][k : k + 1] - expected).max()
                    assert away <= tolerance * size, f"{what}: the books' {column} is off by {away:.3g}"


class _Counting(NumpyVerbs):
    """Notes the batch of each convolution, and of what is divided by."""

    def __init__(self) -> None:
        super().__init__(np.float64)
        self.forward: list[int] = []
        self.back: list[int] = []
        self.divisors: list[int] = []

    def conv(self, x: Floats, w: Floats, how: Convolution, out: tuple[int, ...]) -> Floats:
        self.forward.append(len(x))
        return super().conv(x, w, how, out)

    def conv_adjoint(self, s: Floats, w: Floats, how: Convolution, spatial: tuple[int, ...]) -> Floats:
        self.back.append(len(s))
        return super().conv_adjoint(s, w, how, spatial)

    def share(self, r: Floats, z: Floats, *, nonnegative: bool = False) -> Any:
        self.divisors.append(len(z))
        return super().share(r, z, nonnegative=nonnegative)

    def max_route(self, x: Floats, r: Floats, window: Window) -> Floats:
        self.divisors.append(len(x))
        return super().max_route(x, r, window)


@pytest.mark.parametrize("words", ["paper", "other options"])
def test_denominators_are_computed_once(words: str) -> None:
    model, activations = _of_one_image("blocks")
    plan = _way(model, COMPOSITES[words])
    starts = _starts(activations, plan.graph)
    shapes = {name: (ROWS, *value.shape[1:]) for name, value in activations.items()}
    verbs = _Counting()
    program = descent.program(plan, shapes)
    program.run(verbs, {**{name: activations[name] for name in plan.reads}, descent.START: starts})
    assert min(len(verbs.forward), len(verbs.back), len(verbs.divisors)) >= 7
    assert set(verbs.forward) == set(verbs.divisors) == {1}
    assert set(verbs.back) == {ROWS}
