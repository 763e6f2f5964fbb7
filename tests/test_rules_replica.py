"""Every rule a second time: plainer, slower, on the operator's dense matrix.

The matrix comes from the ONNX operator itself, one unit input at a time, so nothing here knows about strides, pads or
groups; those of linear maps are in ``fgcam_onnx.testing``. What is proved: each relevance rule of each registered
operator is the formula of methods 2.1, 3 and 4.1, in float64 to 1e-9, with the leak it reports; onnxruntime's float32
answer is NumPy's float32 answer to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import backends
import numpy as np
import pytest
import single_op
from operator_cases import grid
from single_op import (
    Case,
    Floats,
    X,
    changed,
    close,
    dense,
    flatten,
    larger,
    leaking_more,
    linear_ops,
    new_rules,
    rule,
    rules,
)

from fgcam_onnx import registry, testing
from fgcam_onnx.backends.base import Array, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.graph.layer import Layer
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.shapes import concrete_shapes
from fgcam_onnx.graph.sizes import complete_shapes
from fgcam_onnx.node import Node
from fgcam_onnx.testing import Answer, Replica
from fgcam_onnx.testing.forward import ONNXRUNTIME_DECIDES
from fgcam_onnx.testing.matrix import compare, on_the_matrix, z_box

# --- rules of their own -----------------------------------------------------------------------------------------------


def moved(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    """Index maps: back to the cell that was read; what nobody's cell feeds is lost."""
    relevance = flatten(r)
    read = np.zeros(relevance.shape[1], bool)
    parts = {}
    for i, name in enumerate(case.names):
        if name in x:
            A = dense(case, name)
            assert set(np.unique(A)) <= {0.0, 1.0, 2.0}
            read |= A.any(axis=1)
            parts[i] = (relevance @ A).reshape(x[name].shape)
    return parts, np.where(read, 0, relevance)


def joined_with_itself(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    """Concat(x, x): the first half to operand 0, the second to operand 1."""
    first, second = np.split(r[0], 2, axis=case.attributes["axis"])
    return {0: first, 1: second}, np.zeros_like(flatten(r))


def handed_through(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    return {0: r[0]}, np.zeros_like(flatten(r))


def masked(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    dead = case.forward(x)[0] == 0
    return {0: np.where(dead, 0, r[0])}, flatten([np.where(dead, r[0], 0)])


def operands(case: Case, x: dict[str, Floats]) -> dict[int, Floats]:
    return {i: x[name] for i, name in enumerate(case.names) if name in x}


def gathered(part: Floats, shape: tuple[int, ...]) -> Floats:
    """Undo a broadcast cell by cell."""
    source = np.broadcast_to(np.arange(np.prod(shape)).reshape(shape), part.shape)
    return np.bincount(source.ravel(), weights=part.ravel(), minlength=int(np.prod(shape))).reshape(shape)


def shared(case: Case, x: dict[str, Floats], r: list[Floats], keep: Callable[[Floats], Floats]) -> Answer:
    """r_i = t_i / sum of t, t = keep(the term with its sign); one operand alone takes all."""
    values = operands(case, x)
    if len(values) == 1:
        ((i, value),) = values.items()
        return {i: gathered(r[0], value.shape)}, np.zeros_like(flatten(r))
    signs = {i: -1.0 if case.op == "Sub" and i == 1 else 1.0 for i in values}
    terms = {i: keep(signs[i] * np.broadcast_to(value, r[0].shape)) for i, value in values.items()}
    z = np.sum(list(terms.values()), axis=0)
    share = {i: np.divide(t, z, out=np.zeros_like(z), where=z != 0) for i, t in terms.items()}
    parts = {i: gathered(share[i] * r[0], value.shape) for i, value in values.items()}
    return parts, flatten([np.where(z == 0, r[0], 0)])


def zplus(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    return shared(case, x, r, lambda t: t.clip(min=0))


def norm(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    return shared(case, x, r, lambda t: t)


def equally(case: Case, x: dict[str, Floats], r: list[Floats], takers: Mapping[int, Floats]) -> Answer:
    parts = {i: gathered(r[0] / len(takers), value.shape) for i, value in takers.items()}
    return parts, np.zeros_like(flatten(r))


def signal(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    gate = 0 if "gate_first" in case.id else 1 if "gate" in case.id else None
    return equally(case, x, r, {i: value for i, value in operands(case, x).items() if i != gate})


def uniform(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    return equally(case, x, r, operands(case, x))


def numerator(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    values = operands(case, x)
    first = min(values)
    return equally(case, x, r, {first: values[first]})


def windows(case: Case, shape: tuple[int, ...]) -> Floats:
    """[outputs, inputs]: does the window hold the cell? The operator is asked: one spike on a plain at a time."""
    cells = int(np.prod(shape[1:]))
    spikes = (2 * np.eye(cells) - 1).reshape(cells, *shape[1:])
    return np.asarray(case.forward({"x0": spikes})[0].reshape(cells, -1).T == 1)


def winner(case: Case, x: dict[str, Floats], r: list[Floats], above: float = -np.inf) -> Answer:
    value, relevance = flatten([x["x0"]]), flatten(r)
    inside = windows(case, x["x0"].shape)
    found, lost = np.zeros_like(value), np.zeros_like(relevance)
    for image, output in np.ndindex(relevance.shape):
        cells = np.flatnonzero(inside[output])
        first = cells[np.argmax(value[image, cells])]  # argmax takes the first
        if value[image, first] > above:
            found[image, first] += relevance[image, output]
        else:
            lost[image, output] = relevance[image, output]
    return {0: found.reshape(x["x0"].shape)}, lost


def winner_positive(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    return winner(case, x, r, above=0.0)


def decider(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    """The first operand that equals the output takes the cell; what a constant takes is lost."""
    values = [x.get(name, value) for name, value in zip(case.names, case.operands, strict=True)]
    whole = np.stack([np.broadcast_to(np.asarray(value, np.float64), r[0].shape) for value in values])
    first = whole.argmax(axis=0) if case.op == "Max" else whole.argmin(axis=0)
    takes = {i: np.where(first == i, r[0], 0) for i in range(len(values))}
    parts = {i: gathered(takes[i], x[name].shape) for i, name in enumerate(case.names) if name in x}
    return parts, flatten([np.asarray(sum((takes[i] for i in takes if i not in parts), np.zeros_like(r[0])))])


def chosen(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    """To the operand that the condition, a constant here, says."""
    holds = np.broadcast_to(case.operands[0], r[0].shape)
    takes = {1: np.where(holds, r[0], 0), 2: np.where(holds, 0, r[0])}
    parts = {i: gathered(takes[i], x[name].shape) for i, name in enumerate(case.names) if name in x}
    return parts, flatten([np.asarray(sum((takes[i] for i in takes if i not in parts), np.zeros_like(r[0])))])


def resize(case: Case, x: dict[str, Floats], r: list[Floats]) -> Answer:
    """Copies go back to their cell; interpolated cells by z+ on the matrix of the operator, on z^B at the picture."""
    if case.attributes.get("mode", "nearest") == "nearest":
        return moved(case, x, r)
    return on_the_matrix("z_box" if case.graph.tensor("x0").from_image else "z_plus", case, x, r)


REPLICAS: dict[str, Replica] = {
    "chosen": chosen,
    "crop": moved,
    "decider": decider,
    "gather": moved,
    "identity": handed_through,
    "join": moved,
    "mask": masked,
    "norm": norm,
    "numerator": numerator,
    "pass": moved,
    "reshape": moved,
    "resize": resize,
    "scatter": moved,
    "signal": signal,
    "split": moved,
    "to_depth": moved,
    "to_space": moved,
    "transpose": moved,
    "uniform": uniform,
    "unslice": moved,
    "winner": winner,
    "winner_positive": winner_positive,
    "zplus": zplus,
}


def replica(case: Case, name: str) -> Replica | None:
    """Linear maps have theirs on the matrix."""
    if case.op in linear_ops():
        return None
    if name == "split" and "itself" in case.id:
        return joined_with_itself
    return REPLICAS[name]


# --- the comparison ---------------------------------------------------------------------------------------------------

PAIRS = [
    pytest.param(case, name, id=f"{case.id}-{name}")
    for case in grid()
    for name in rules(case.op)
    if name != "gradient" or case.op in linear_ops()
]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_the_rule_is_its_replica(case: Case, name: str) -> None:
    """x of mixed sign; x >= 0 with zeros; and x >= 0 where the sign analysis has proved it."""
    row = testing.check_replica(case, name, replica(case, name))
    assert not row.skipped or (name == "zero" and not case.operator.exact)


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_compiled_backends_agree_with_numpy(case: Case, name: str) -> None:
    """All in float32, parts and books; x >= 0 has dead denominators, mixed x mostly has none."""
    testing.check_backends(case, name, list(backends.compiled()), styles=["mixed", "positive"])


@pytest.mark.parametrize("case", [case for case in grid() if case.op in linear_ops()], ids=str)
def test_the_adjoint(case: Case) -> None:
    assert testing.check_adjoint(case).worst is not None


@pytest.mark.parametrize(
    "bounds", [(-2.5, 3.0), (np.array([-2.0, -3, -4]), np.array([3.0, 2.5, 2]))], ids=["numbers", "channels"]
)
def test_z_box_with_given_bounds(bounds: tuple[Floats, Floats]) -> None:
    """One number for all, or one a channel; also where a pixel lies outside them, so that z may be negative."""
    case = next(c for c in grid() if "first_layer" in c.id)
    x = case.values()
    x = {"x0": np.clip(x["x0"], -2, 2)}
    low, high = (np.broadcast_to(np.reshape(b, (-1, 1, 1)), x["x0"].shape[1:]).ravel() for b in bounds)
    for values in (x, {"x0": -30 + x["x0"]}):
        r = case.relevance(values)
        z = (flatten([values["x0"]]) - low) @ dense(case).clip(min=0).T
        assert (z < 0).any() == (values is not x)
        found, lost = z_box(dense(case), flatten([values["x0"]]), flatten(r), low, high)
        compare(single_op.run(case, rule(case, "z_box", bounds), values, r), ({0: found.reshape(x["x0"].shape)}, lost))
        plain, *others = single_op.run_float32(case, rule(case, "z_box", bounds), values, r)
        for compiled in others:
            close(compiled.parts[0], plain.parts[0], 1e-3)


# --- the oracle, and the tests themselves -----------------------------------------------------------------------------

# onnxruntime has no even LRN window and no dilation under auto_pad; Saturate is the view's own.
NOT_IN_ONNXRUNTIME = (
    "LRN-opset13-size=2",
    "LRN-opset13-size=4",
    "Conv-opset17-auto_pad=SAME_LOWER-dilations",
    "fgcam::",
)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_the_oracle_is_what_runs(case: Case) -> None:
    """The float64 values that everything here is measured against are the deployed operator's."""
    row = testing.check_forward(case)
    expected = case.id.startswith(NOT_IN_ONNXRUNTIME) or case.op in ONNXRUNTIME_DECIDES
    assert not row.skipped or expected, row.skipped
    if row.skipped:
        pytest.skip(row.skipped)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_the_inferred_shapes_are_what_runs(case: Case) -> None:
    """The rules are told sizes that shape inference found, before anything ran."""
    if "::" in case.op:
        pytest.skip("the view's own layer: no ONNX node")
    if "ceil_mode=1-pads=1111" in case.id:
        pytest.xfail("before opset 22 onnx's inference counts a window that starts in the padding behind the picture")
    x = case.values()
    sizes = {name: array.shape for name, array in x.items()}
    found = complete_shapes(case.graph, concrete_shapes(load(case.model()), sizes))
    assert [found[name] for name in case.output_names] == [y.shape for y in case.forward(x)]


def test_every_rule_has_a_replica() -> None:
    own = {name for case in grid() if case.op not in linear_ops() for name in rules(case.op)} - {"gradient"}
    assert own == set(REPLICAS)


def _one_each() -> list[tuple[Case, str]]:
    found: dict[str, tuple[Case, str]] = {}
    for parameter in PAIRS:
        case, name = parameter.values
        assert isinstance(case, Case)
        found.setdefault(str(name), (case, str(name)))
    return list(found.values())


@pytest.mark.parametrize(("case", "name"), _one_each(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_permille_is_noticed(case: Case, name: str) -> None:
    """A rule or a backend that is 0.1 % too large somewhere, or leaks that much more, fails the comparison."""
    right, other = rule(case, name), replica(case, name)
    for change in (larger, leaking_more):
        wrong = changed(right, change)
        with pytest.raises(AssertionError, match=f"replica of rule '{name}' on .* is off by"):
            testing.check_replica(case, wrong, other)
    for column in ("part:", "in:") if name != "zero" else ():  # of LRP-0 backends are not compared
        with pytest.raises(AssertionError, match=f"backend numpy of rule '{name}' on "):
            testing.check_backends(case, name, [Off(column)])


class Off(NumpyBackend):
    """Its results of one kind are 0.1 % too large."""

    def __init__(self, column: str) -> None:
        super().__init__(np.float32)
        self.column = column

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, Floats]:
        found = super().execute(program, inputs)
        return {name: 1.001 * array if name.startswith(self.column) else array for name, array in found.items()}


def test_an_operator_that_is_no_matrix_is_noticed() -> None:
    """A ReLU that is registered as a linear map: on unit inputs it is the identity."""

    class Ramp(registry.LinearMap):
        fixed_nonnegative = True

        @staticmethod
        def weight(layer: Layer) -> None:
            return None

        @staticmethod
        def apply(node: Node, x: Array, w: Array | None, xp: Verbs) -> Array:
            return x

        adjoint = apply

    case = Case("ramp", "test::Ramp", (X((2, 3, 4)),), opset=1, function=lambda x: np.maximum(x, 0))
    with new_rules():
        registry.linear_map(**{"test::Ramp": (1,)})(Ramp)
        with pytest.raises(AssertionError, match="A x \\+ b, as of a linear map, is off by"):
            testing.check_replica(case, "z_plus")


@pytest.mark.parametrize("op", sorted({case.op for case in grid() if case.op in linear_ops()}))
def test_a_permille_of_the_adjoint_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in grid() if case.op == op)
    found = registry.find_linear(op)
    assert found is not None
    testing.check_adjoint(case)
    cls = found[0]

    def scaled(right: Callable[..., Array]) -> Any:
        return staticmethod(lambda node, x, w, xp: xp.mul(right(node, x, w, xp), xp.constant(1.001)))

    monkeypatch.setattr(cls, "adjoint", scaled(cls.adjoint))
    with pytest.raises(AssertionError, match=f"adjoint of the linear map {cls.__name__} on .*<A x, s> = "):
        testing.check_adjoint(case)
    monkeypatch.setattr(cls, "apply", scaled(cls.apply))  # both: adjoint to each other, and not the operator
    with pytest.raises(AssertionError, match=r"apply, against the operator, is off by 0\.001"):
        testing.check_adjoint(case)


def test_the_windows_of_a_pool_are_seen() -> None:
    """The spikes find a 2 x 2 window, so the winner's replica knows which cells compete."""
    case = Case("tiny", "MaxPool", (X((1, 1, 3, 3)),), {"kernel_shape": [2, 2]})
    cells = [list(np.flatnonzero(row)) for row in windows(case, (1, 1, 3, 3))]
    assert cells == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
