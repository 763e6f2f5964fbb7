"""``fgcam_onnx.testing`` as a user has it: each check goes red on a rule, or a model, that is wrong by 0.1 %.

The checks of rules are also shown to fail in test_rules_invariants, test_rules_replica and test_rules_gradient.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from backends import cuda_on_cpu, needs_gxx
from onnx import helper
from single_op import changed, larger, new_rules
from test_readme import run_page
from tiny_models import Net, fixed_batch, residual, softmax_end, vgg

from fgcam_onnx import registry, testing
from fgcam_onnx.backends.base import Array, Leak, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import OrtBackend
from fgcam_onnx.descent import RESULT
from fgcam_onnx.errors import FgcamError, MissingRuntimeError, OptionError, UnsupportedOpError
from fgcam_onnx.explainer import Explainer
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.testing import Case, Floats, X, parity
from fgcam_onnx.testing import forward as oracle

HOME = Path(testing.__file__).parent
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
BEND = "test::Bend"
ORT = [OrtBackend(threads=1)]


# --- what importing it loads ------------------------------------------------------------------------------------------


def test_importing_it_loads_no_framework() -> None:
    code = "import sys, fgcam_onnx.testing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fgcam_onnx.testing.model" in loaded
    assert not {"pytest", "_pytest", "torch", "onnxruntime", "cupy", "hypothesis"} & set(loaded)


def test_nothing_is_an_assert_statement() -> None:
    """python -O removes those, and every check would pass."""
    for file in HOME.glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)], file


def test_public_names() -> None:
    assert len(set(testing.__all__)) == len(testing.__all__)
    assert all(getattr(testing, name) is not None for name in testing.__all__)


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Its snippets run and print what it says, and it tells of every check."""
    with new_rules():
        run_page(PAGE, capsys)
    checks = {name for name in testing.__all__ if name.startswith("check_")} - {"check_invariants"}
    assert checks == set(re.findall(r"check_\w+", PAGE))


# --- an operator of one's own -----------------------------------------------------------------------------------------


def bend(x: Floats, a: float) -> Floats:
    return x / (1 + a * np.abs(x))


def identity(node: Node, r: Array, xp: Verbs) -> Flow:
    return Flow({0: r})


def derivative(node: Node, r: Array, xp: Verbs) -> Flow:
    """1 / (1 + a |x|)^2."""
    one, a = xp.constant(1.0), xp.constant(node.attributes["a"])
    slope = xp.div(one, xp.add(one, xp.mul(a, xp.absolute(node.x()))))
    return Flow({0: xp.mul(r, xp.mul(slope, slope))})


@pytest.fixture
def registered() -> Iterator[Callable[..., None]]:
    """Registers rules for the operator, for the time of a test."""

    def register(rule: Any = identity, slope: Any = derivative, reads: str = "x", **fields: Any) -> None:
        registry.relevance("identity", **fields, **{BEND: (1,)})(rule)
        registry.gradient(reads=reads, **{BEND: (1,)})(slope)

    with new_rules():
        yield register


def check(**more: Any) -> testing.Report:
    given: dict[str, Any] = {"forward": bend, "backends": ORT, "a": 0.7, **more}
    return testing.check_operator(BEND, [X((2, 3, 4, 5))], **given)


def handed_through(case: Case, x: dict[str, Floats], r: list[Floats]) -> testing.Answer:
    return {0: r[0]}, np.zeros_like(r[0])


def test_a_right_rule(registered: Callable[..., None]) -> None:
    registered()
    report = check(replicas={"identity": handed_through})
    assert {(row.rule, row.check) for row in report.ran} == {
        *(("identity", name) for name in ("parts", "conservation", "linearity", "sign", "contraction", "batch")),
        *(("identity", name) for name in ("shortcuts", "zeros", "denormals", "replica", "backend ort")),
        ("gradient", "gradient"),
        ("gradient", "backend ort"),
    }
    assert {row.check: row.skipped for row in report.skipped} == {
        "forward": "onnxruntime does not run it: "
        + next(r for r in report.skipped if r.check == "forward").skipped[29:],
        "adjoint": "no linear map is registered for it",
        "dead inputs": "it declares dead_inputs='never'",
        "rows": "its rows are walked one by one",
    }
    assert all(row.worst <= row.allowed for row in report.ran if row.worst is not None and row.allowed is not None)


def test_the_report_is_a_table(registered: Callable[..., None]) -> None:
    registered()
    lines = str(check()).splitlines()
    assert lines[0] == "test::Bend-1  x0 [2, 3, 4, 5], a=0.7"
    assert lines[1] == "rule      check         off by   allowed"
    assert "identity  parts         holds" in lines
    assert "identity  conservation  0        1e-09" in lines
    assert "identity  replica       not checked: a rule of its own, and no replica= is given" in lines
    assert lines[-1] == "12 checks passed, 6 not made"


def lost(node: Node, r: Array, xp: Verbs) -> Flow:
    return Flow({0: xp.mul(r, xp.constant(0.999))})


def leaked_without_a_word(node: Node, r: Array, xp: Verbs) -> Flow:
    kept, _ = xp.keep(r, xp.greater(node.x(), xp.constant(0.0)))
    return Flow({0: kept})


def squared(node: Node, r: Array, xp: Verbs) -> Flow:
    return Flow({0: r}, (Leak(xp.mul(xp.total(r), xp.constant(0.0)), xp.total(xp.mul(r, r))),))


def mirrored(node: Node, r: Array, xp: Verbs) -> Flow:
    return Flow({0: xp.gather(r, np.arange(5)[::-1].copy(), 3)})


def averaged(node: Node, r: Array, xp: Verbs) -> Flow:
    """0.1 % of each image's relevance comes from the mean over the batch."""
    mean = xp.mul(xp.reduce_sum(r, (0,)), xp.constant(0.001 / xp.shape(r)[0]))
    return Flow({0: xp.add(xp.mul(r, xp.constant(0.999)), xp.expand(mean, xp.shape(r)))})


def steep(node: Node, r: Array, xp: Verbs) -> Flow:
    return larger(derivative(node, r, xp), xp)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rule": lost}, r"conservation of rule 'identity' on test::Bend-a=0\.7, x of mixed sign: image \d: in .* out"),
        ({"rule": leaked_without_a_word, "fields": "x"}, "conservation of rule 'identity' on .* is not accounted for"),
        ({"rule": averaged}, r"batch of rule 'identity' .* the relevance of image 0 by itself is off by 0\.00"),
        (
            {"rule": mirrored},
            r"replica of rule 'identity' .* the relevance of operand 0 is off by .* expected",
        ),
        ({"rule": lambda node, r, xp: Flow({})}, r"parts of .* operands \[\] get a part, and it .* sends to \[0\]"),
        ({"rule": lambda node, r, xp: Flow({0: xp.reduce_sum(r, (1,))})}, "parts of .* operand 0 gets shape"),
        ({"rule": lambda node, r, xp: Flow({0: node.x()})}, "it reads the activation x0, and declares reads=''"),
        ({"dead_inputs": "always"}, r"dead inputs of .* x >= 0: it declares dead_inputs='always', and operand 0 gets"),
        ({"slope": steep}, r"gradient of rule 'gradient' .* the derivative by operand 0 is off by 0\.001"),
        ({"slope": identity}, "gradient of rule 'gradient' .* the derivative by operand 0 is off by"),
        ({"slope": derivative, "reads": "y"}, "gradient of .* it reads the activation x0, and declares reads='y'"),
    ],
)
def test_a_wrong_rule(registered: Callable[..., None], wrong: dict[str, Any], says: str) -> None:
    wrong = dict(wrong)
    reads = wrong.pop("fields", "")
    if reads:
        rule = wrong.pop("rule")
        registry.relevance("identity", reads=reads, **{BEND: (1,)})(rule)
        registry.gradient(reads="x", **{BEND: (1,)})(derivative)
    else:
        registered(**wrong)
    with pytest.raises(AssertionError, match=says) as caught:
        check(replicas={"identity": handed_through})
    assert " checks failed: test::Bend-1  x0 [2, 3, 4, 5], a=0.7\n" in str(caught.value)


def test_every_failure_is_told(registered: Callable[..., None]) -> None:
    """A rule that loses 0.1 % breaks four promises; a derivative that is right is not among them."""
    registered(lost)
    with pytest.raises(AssertionError) as caught:
        check(replicas={"identity": handed_through})
    first, *others = str(caught.value).splitlines()
    assert first == "4 of 13 checks failed: test::Bend-1  x0 [2, 3, 4, 5], a=0.7"
    assert [line.partition(" of ")[0] for line in others] == ["conservation", "zeros", "denormals", "replica"]


def test_what_only_a_replica_sees(registered: Callable[..., None]) -> None:
    """A rule that sends everything to the wrong cell keeps every promise; the report says that nobody looked."""
    registered(mirrored)
    assert ("replica", "identity") in {(row.check, row.rule) for row in check().skipped}
    with pytest.raises(AssertionError, match=r"1 of 13 checks failed: .*\nreplica of rule 'identity'"):
        check(replicas={"identity": handed_through})


def test_an_error_of_the_rule_says_where(registered: Callable[..., None]) -> None:
    registered(lambda node, r, xp: xp.no_such_verb(r))
    with pytest.raises(AttributeError, match="no_such_verb") as caught:
        check()
    assert caught.value.__notes__ == [
        "while checking the parts of rule 'identity' on test::Bend-a=0.7, x of mixed sign"
    ]


def test_a_rule_without_bounds(registered: Callable[..., None]) -> None:
    """Terms of both signs over their sum: only what is promised is checked, and the report says so."""
    names = {"sign", "contraction"}

    def shifted(node: Node, r: Array, xp: Verbs) -> Flow:
        """Conserved by moving twice the relevance of the first cell to it and back from the second one."""
        first, second = (xp.constant(row) for row in ([1.0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0]))
        much = xp.mul(xp.reduce_sum(xp.mul(r, first), (3,)), xp.constant(2.0))
        return Flow({0: xp.add(r, xp.sub(xp.mul(much, first), xp.mul(much, second)))})

    registered(shifted)
    with pytest.raises(AssertionError, match="2 of 12 checks failed") as caught:
        check()
    assert names == {line.partition(" of ")[0] for line in str(caught.value).splitlines()[1:]}
    report = check(unbounded=["identity"])
    assert names < {row.check for row in report.skipped}


def test_a_wrong_forward_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle itself is compared with onnxruntime, where that knows the operator."""

    def gelu(x: Floats, alpha: float) -> Floats:
        return x / (1 + np.exp(-alpha * x))

    with new_rules():
        registry.relevance("identity", **{"com.microsoft::QuickGelu": (1,)})(identity)
        case = Case("gelu", "com.microsoft::QuickGelu", (X((2, 3)),), {"alpha": 1.5}, 1)
        assert testing.check_forward(replace(case, function=gelu)).worst is not None
        with pytest.raises(
            AssertionError, match=r"forward of forward= on gelu: output 0, against onnxruntime, is off by"
        ):
            testing.check_forward(replace(case, function=lambda x, alpha: 1.001 * gelu(x, alpha)))


def test_an_operator_in_float32_only(registered: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its derivative is found through larger steps, and 0.1 % is still noticed; so it is by a linear map's replica."""

    class Rounded(oracle.FunctionOperator):
        exact = False

        def run(self, x: Mapping[str, Floats]) -> list[Any]:
            return [y.astype(np.float32) for y in super().run({n: v.astype(np.float32) for n, v in x.items()})]

    monkeypatch.setattr(oracle, "FunctionOperator", Rounded)
    registered()
    case = Case("bend", BEND, (X((2, 3, 4, 5)),), {"a": 0.7}, 1, function=bend)
    row = testing.check_gradient(case, kinks=[0.0])
    assert (row.allowed, case.operator.exact) == (2e-4, False)
    assert row.worst is not None
    assert row.worst > 1e-6
    with pytest.raises(AssertionError, match=r"the derivative by operand 0 is off by 0\.00"):
        testing.check_gradient(case, changed(testing.rule(case, "gradient"), larger), [0.0])

    w = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    case = Case("product", "MatMul", (X((2, 5)), w), opset=13, function=lambda x, w: x @ w)
    row = testing.check_replica(case, "z_plus")
    assert row.allowed == 1e-5
    with pytest.raises(AssertionError, match=r"the relevance of operand 0 is off by 0\.001"):
        testing.check_replica(case, changed(testing.rule(case, "z_plus"), larger))


def test_kinks() -> None:
    """Beside a kink the differences measure another slope: say where it is."""
    values = np.array([[-1.0, 0.0, 0.5, 2.0]])
    with pytest.raises(AssertionError, match="gradient of rule 'gradient' on Relu: the derivative by operand 0 is off"):
        testing.check_operator("Relu", [X(values=values)], backends=[])
    assert testing.check_operator("Relu", [X(values=values)], backends=[], kinks=[0.0]).ran


def test_the_newest_version_with_a_rule_is_taken() -> None:
    report = testing.check_operator("MaxPool", [X((2, 1, 4, 4))], backends=[], kernel_shape=[2, 2])
    assert report.subject == "MaxPool-22  x0 [2, 1, 4, 4], kernel_shape=[2, 2]"
    old = testing.check_operator("MaxPool", [X((2, 1, 4, 4))], backends=[], opset=8, kernel_shape=[2, 2])
    assert old.subject.startswith("MaxPool-8 ")
    assert {row.rule for row in old.ran} == {"", "winner", "winner_positive", "gradient"}


def test_one_image_is_no_batch(registered: Callable[..., None]) -> None:
    registered()
    report = testing.check_operator(BEND, [X((1, 3))], forward=bend, backends=[], a=1.0)
    assert [row.skipped for row in report.rows if row.check == "batch"] == [
        "the case is one image: give it a batch of two"
    ]


def test_without_a_gradient_rule() -> None:
    with new_rules():
        registry.relevance("identity", **{BEND: (1,)})(identity)
        report = check()
        assert [row.skipped for row in report.rows if row.check == "gradient"] == [
            "no gradient rule is registered: the operator cannot stand behind L"
        ]
    with new_rules():
        registry.gradient(reads="x", **{BEND: (1,)})(derivative)
        assert {row.rule for row in check().ran} == {"gradient"}


# --- nothing to check is an error -------------------------------------------------------------------------------------


def test_no_rule_is_registered() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        testing.check_operator("Convv", [X((1, 2))])
    assert str(caught.value).startswith("no rule is registered for Convv\n  known   Abs, Add, ")
    assert str(caught.value).partition("  next    ")[2].startswith("did you mean 'Conv'")
    with pytest.raises(UnsupportedOpError, match="next    import the module that registers it first"):
        testing.check_operator(BEND, [X((1, 2))])


@pytest.mark.parametrize(
    ("operands", "says"),
    [
        ([(2, 3)], r"operand 0 of Conv is \(2, 3\)\n  known   an operand is an X for an activation, a NumPy array"),
        ([X((1, 1, 3)), [[1.0]]], r"operand 1 of Conv is \[\[1\.0\]\]"),
        ([np.ones((1, 1, 3)), np.ones((1, 1, 1))], "no operand of Conv is an activation"),
    ],
)
def test_operands_that_are_none(operands: list[Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        testing.check_operator("Conv", operands)


def test_a_replica_of_no_rule(registered: Callable[..., None]) -> None:
    registered()
    with pytest.raises(OptionError, match="replicas= names the rule 'identiy', which test::Bend has not"):
        check(replicas={"identiy": handed_through})


def test_no_backend_is_given(registered: Callable[..., None]) -> None:
    registered()
    for report in (check(backends=[]), testing.check_model(vgg(), images(1), backends=[])):
        assert ("backends", "none is given") in {(row.check, row.skipped) for row in report.skipped}


def test_no_rule_serves_it(registered: Callable[..., None]) -> None:
    registered()
    with pytest.raises(UnsupportedOpError) as caught:
        check(opset=2)
    assert caught.value.what == "nothing could be checked of test::Bend"
    assert caught.value.known is not None
    assert "its version 2 is not among 1" in caught.value.known


def test_a_rule_that_refuses_is_told_of(registered: Callable[..., None]) -> None:
    registered(refuses=lambda layer, graph: "a is not 1" if layer.attributes["a"] != 1 else None)
    assert "rule identity does not serve this test::Bend: a is not 1" in {row.skipped for row in check().skipped}
    assert "parts" in {row.check for row in check(a=1.0).ran}


def test_nobody_can_run_it(registered: Callable[..., None]) -> None:
    registered()
    with pytest.raises(UnsupportedOpError) as caught:
        check(forward=None)
    assert caught.value.what == "nothing here can run test::Bend, so there is nothing to compare its rules with"
    assert caught.value.next == "give forward=, the operator as a NumPy function of its operands and attributes"


def test_a_backend_that_is_not_here_gets_a_row(
    registered: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity.known.make

    def make(name: str, *more: Any) -> Any:
        if name == "numpy":
            return real(name, *more)
        raise MissingRuntimeError(f"no {name}", known="it is not installed: why")

    registered()
    monkeypatch.setattr(parity.known, "make", make)
    rows = {row.check: row.skipped for row in check(backends=None).skipped}
    assert {name: rows[name] for name in rows if name.startswith("backend")} == {
        "backend cupy": "it is not installed",
        "backend ort": "it is not installed",
    }
    report = testing.check_model(vgg(), images())
    assert {row.check: row.skipped for row in report.skipped}.items() <= rows.items()
    assert [row.check for row in report.ran] == CHECKS[:-1]


@needs_gxx
def test_any_backend_can_be_given(registered: Callable[..., None]) -> None:
    registered()
    report = check(backends=[cuda_on_cpu(), *ORT])
    assert [row.check for row in report.ran if row.rule == "gradient"] == ["gradient", "backend cupy", "backend ort"]


# --- a model of one's own ---------------------------------------------------------------------------------------------


def images(n: int = 3) -> Floats:
    return np.random.default_rng(1).normal(size=(n, 3, 16, 12)).astype(np.float32)


CHECKS = ["coverage", "forward", "map", "ledger by node", "ledger", "batch", "backend ort"]


@pytest.mark.parametrize("make", [vgg, residual, softmax_end, fixed_batch])
def test_a_right_model(make: Callable[[], onnx.ModelProto]) -> None:
    report = testing.check_model(make(), images(), backends=ORT)
    assert [row.check for row in report.ran] == CHECKS
    assert all(row.worst <= row.allowed for row in report.ran if row.worst is not None and row.allowed is not None)
    assert not report.skipped


def test_a_model_from_a_file(tmp_path: Path) -> None:
    onnx.save_model(vgg(), tmp_path / "m.onnx")
    for model in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), (tmp_path / "m.onnx").read_bytes()):
        report = testing.check_model(model, images(1), backends=ORT, target=2, add="norm", layer="pool1.y")
        assert [row.check for row in report.skipped] == ["batch"]
    assert testing.check_model(tmp_path / "m.onnx", images(), backends=[]).subject == (
        f"{tmp_path / 'm.onnx'}  x [3, 3, 16, 12], fg-grad-cam from pool2.y to input by numpy"
    )


def test_a_method_that_does_not_walk() -> None:
    report = testing.check_model(vgg(), images(), backends=ORT, method="grad-cam")
    assert [(row.check, row.skipped) for row in report.skipped] == [("ledger", "this method does not walk")]


@pytest.fixture
def wrong_relu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Flow, Verbs], Flow]], None]:
    """Changes the answer of the rule of every Relu."""

    def change(how: Callable[[Flow, Verbs], Flow]) -> None:
        right = registry.find("relevance", "Relu", "mask")
        assert right is not None
        monkeypatch.setitem(registry._RULES, ("relevance", "Relu", "mask"), changed(right, how))

    return change


def test_a_gap() -> None:
    net = Net()
    x = net.node("QuickGelu", "gelu", net.conv("conv1", "image", 3, 4), domain="com.microsoft")
    model = net.model(net.head(net.relu("relu", net.conv("conv2", x, 4, 4)), 4))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    says = "coverage: nodes on the path have no rule\n  node 'gelu': no .* rule for com.microsoft::QuickGelu-1"
    with pytest.raises(AssertionError, match=says):
        testing.check_model(model, images(), backends=ORT)


def test_a_forward_pass_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Explainer.activations

    def wrong(self: Explainer, x: Any, names: Any) -> dict[str, Floats]:
        return {name: 1.001 * array for name, array in right(self, x, names).items()}

    monkeypatch.setattr(Explainer, "activations", wrong)
    says = r"forward: output 'fc2.y' of node 'fc2', against a bare session, is off by 0\.001"
    with pytest.raises(AssertionError, match=says):
        testing.check_model(vgg(), images(), backends=ORT)
    assert testing.check_model(vgg(), images(), backends=ORT, forward=0.01).rows[1].worst == pytest.approx(
        1e-3, rel=0.01
    )


def test_a_node_that_does_not_close(wrong_relu: Callable[..., None]) -> None:
    wrong_relu(larger)  # a backend that has compiled nothing yet
    with pytest.raises(
        AssertionError, match=r"ledger: node 'relu\d' \(Relu, rule mask\), image \d: in .* out .* leaked"
    ):
        testing.check_model(vgg(), images(), backends=[OrtBackend(threads=1)])


def test_a_whole_that_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node closes, and 0.1 % of what arrives comes from nowhere."""

    class Wrong(NumpyBackend):
        def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, Floats]:
            found = super().execute(program, inputs)
            return {name: 1.001 * array if name == "arrived" else array for name, array in found.items()}

    with pytest.raises(AssertionError, match=r"ledger: image \d: .* was put on L, .* arrived, though each node closes"):
        testing.check_model(vgg(), images(), backends=[Wrong()])


def test_a_map_that_depends_on_the_batch(wrong_relu: Callable[..., None]) -> None:
    """Every sum is right, per image and node: a permille of the relevance is mirrored where images come together."""

    def mirrored(flow: Flow, xp: Verbs) -> Flow:
        n, *_, width = xp.shape(flow.parts[0])
        r = xp.mul(flow.parts[0], xp.constant(0.001 if n > 1 else 0.0))
        moved = xp.sub(xp.gather(r, np.arange(width)[::-1].copy(), 3), r)
        return Flow({0: xp.add(flow.parts[0], moved)}, flow.leaks)

    wrong_relu(mirrored)
    with pytest.raises(AssertionError, match=r"batch: image 0 by itself: the map is off by .* of its norm"):
        testing.check_model(vgg(), images(), backends=[NumpyBackend(np.float32)])


class Off(NumpyBackend):
    """Changes what the descent returns: the map, and columns of the ledger."""

    def __init__(self, factor: float, *names: str) -> None:
        super().__init__(np.float32)
        self.factor, self.names = factor, names

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, Floats]:
        found = super().execute(program, inputs)
        if "arrived" not in found:  # the gradient of the head
            return found
        return {n: self.factor * a if n.partition(":")[0] in self.names else a for n, a in found.items()}


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (Off(0, RESULT), "map: image 0: all zeros; and no node says that it dropped anything"),
        (Off(1.001, RESULT), r"backend numpy, against NumPy: the map is off by 0\.001 of its norm .*; no sum of the"),
        (
            Off(1.001, RESULT, "start", "start_absolute", "in", "out", "leaked", "dropped", "arrived"),
            r"backend numpy, .*; first at node 'pool2' \(MaxPool, rule winner\): relevance_in is ",
        ),
    ],
    ids=["nothing", "the map", "the map and its books"],
)
def test_a_backend_that_differs(backend: Off, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        testing.check_model(vgg(), images(1), backends=[backend])


def test_a_map_of_zeros_says_where_it_went() -> None:
    """A convolution without a positive weight behind a ReLU: its bias alone speaks, and everything leaks there."""
    net = Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    x = net.relu("relu2", net.node("Conv", "conv2", x, -np.ones((4, 4, 1, 1)), np.full(4, 90.0)))
    says = r"map: image 0: all zeros; node 'conv2' \(Conv, rule z_plus\) dropped the most, 100 % of what was put on L"
    with pytest.raises(AssertionError, match=says):
        testing.check_model(net.model(net.head(x, 4)), images(2), backends=ORT)


def test_a_map_that_is_not_finite_is_an_error_by_itself() -> None:
    with pytest.raises(FgcamError, match="not finite"):
        testing.check_model(vgg(), images(1), backends=[Off(np.nan, RESULT)])


# --- how far two arrays are apart -------------------------------------------------------------------------------------


def test_close_says_where() -> None:
    expected = np.array([[1.0, -4], [2, 3]])
    assert testing.close(expected * (1 + 1e-12), expected) == pytest.approx(1e-12, rel=1e-3)
    for found, says in (
        (
            np.add(expected, [[0, 0], [0, 0.004]]),
            r"it is off by 0\.001 of its largest value .*: 3\.004 at \[1, 1\], 3 expected",
        ),
        (expected[0], r"it has shape \[2\], not \[2, 2\]"),
        (np.where(expected == 2, np.nan, expected), r"it is nan at \[1, 0\]"),
        (np.where(expected == 3, -np.inf, expected), r"it is -inf at \[1, 1\]"),
    ):
        with pytest.raises(AssertionError, match=says):
            testing.close(found, expected)
    assert testing.close(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    with pytest.raises(AssertionError, match=r"the leak is off by .* at \[\], 1 expected"):
        testing.close(1.001, 1.0, what="the leak")


def test_a_batch_of_one_that_the_operator_states() -> None:
    """Its matrix is found image by image where a constant fixes the batch."""
    joined = Case("joined", "Concat", (X((1, 2, 3)), np.ones((1, 1, 3), np.float32)), {"axis": 1}, 13)
    assert testing.dense(joined).tolist() == np.eye(9)[:, :6].tolist()
    sized = Case("sized", "Reshape", (X((1, 2, 3)), np.array([1, 3, 2])), opset=13)
    assert testing.dense(sized).tolist() == np.eye(6).tolist()
