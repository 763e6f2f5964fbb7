"""The descent: what is summed where relevance meets, what the ledger writes, and what the plan refuses.

Each network is small enough that the expected numbers stand in the test, worked out by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import backends
import numpy as np
import onnx
import pytest
from backends import Named
from single_op import Descent, Floats, close, descend, tape
from tiny_models import Net, attention, squeeze_excite, vgg

from fgcam_onnx.backends.base import Array, Program
from fgcam_onnx.backends.numpy import NumpyBackend, NumpyVerbs
from fgcam_onnx.composite import Composite, GradientComposite, RelevanceComposite
from fgcam_onnx.descent import plan
from fgcam_onnx.errors import LayerError, UnsupportedOpError
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.ledger import Ledger

each_backend = pytest.mark.parametrize("on", backends.named())


def line(*values: float) -> Floats:
    """A one-channel signal [1, 1, cells]."""
    return np.array([[values]], np.float64)


def signal_net(cells: int = 2, channels: int = 1) -> Net:
    return Net(("n", channels, cells))


# --- what meets is added ----------------------------------------------------------------------------------------------


@each_backend
def test_a_fan_out_is_summed(on: Named) -> None:
    """x -> relu -> two slices that share the middle cell -> Concat: the middle gets both."""
    net = signal_net(3)
    x = net.relu("relu", "image")
    left = net.node("Slice", "left", x, np.array([0]), np.array([2]), np.array([2]))
    right = net.node("Slice", "right", x, np.array([1]), np.array([3]), np.array([2]))
    model = net.model(net.node("Concat", "join", left, right, axis=2))
    found = descend(model, line(1, 2, 3), "join.y", "relu.y", line(10, 20, 30, 40), backend=on.backend)
    assert found.relevance.tolist() == [[[10, 50, 40]]]
    assert [row.node for row in found.ledger.rows] == ["join", "right", "left"]


@each_backend
def test_a_tensor_read_twice_by_one_node(on: Named) -> None:
    """Add(x, x), Concat(x, x), Mul(x, x): both parts return to the one tensor."""
    for op, attributes, start, expected in (
        ("Add", {}, line(6, 8), line(6, 8)),
        ("Concat", {"axis": 2}, line(1, 2, 3, 4), line(4, 6)),
        ("Mul", {}, line(6, 8), line(6, 8)),
    ):
        net = signal_net()
        x = net.relu("relu", "image")
        model = net.model(net.node(op, "twice", x, x, **attributes))
        found = descend(model, line(1, 2), "twice.y", "relu.y", start, backend=on.backend)
        close(found.relevance, expected, on.tolerance)
        (row,) = found.ledger.rows
        close(row.relevance_out, row.relevance_in, on.tolerance)


@each_backend
def test_an_add_of_a_tensor_to_its_own_branch(on: Named) -> None:
    """relu + pool(relu): shares by value, then the pool's part comes back and is added."""
    net = signal_net()
    x = net.relu("relu", "image")
    model = net.model(net.node("Add", "add", x, net.node("MaxPool", "pool", x, kernel_shape=[1])))
    found = descend(model, line(1, 3), "add.y", "relu.y", line(8, 4), backend=on.backend)
    close(found.relevance, line(8, 4), on.tolerance)
    assert [row.node for row in found.ledger.rows] == ["add", "pool"]


# --- where it goes, and where it does not -----------------------------------------------------------------------------


def test_a_target_that_is_no_cut() -> None:
    """Of two branches only one passes the target: it gets that branch's share, the account closes row by row."""
    net = signal_net()
    x = net.relu("relu", "image")
    a = net.node("Mul", "double", x, np.float32(2))
    model = net.model(net.node("Add", "add", a, x))
    found = descend(model, line(1, 3), "add.y", "double.y", line(9, 3))
    assert found.relevance.tolist() == [[[6, 2]]]
    (row,) = found.ledger.rows
    assert (row.relevance_in, row.relevance_out, row.leaked) == ([12], [12], [0])
    assert found.ledger.arrived.tolist() == [8]
    whole = descend(model, line(1, 3), "add.y", "relu.y", line(9, 3))
    close(whole.relevance, line(9, 3))


def test_what_reached_the_target_goes_no_further() -> None:
    """relu1 is read again below the target's own branch; target = relu1 stops there."""
    model, image = vgg(), np.random.default_rng(0).normal(size=(1, 3, 16, 12))
    found = descend(model, image, "pool2.y", "pool1.y")
    assert [row.node for row in found.ledger.rows] == ["pool2", "relu2", "conv2"]


def test_source_and_target_may_be_one() -> None:
    found = descend(vgg(), np.ones((1, 3, 16, 12)), "pool2.y", "pool2.y")
    assert found.ledger.rows == ()
    close(found.relevance, tape(vgg(), np.ones((1, 3, 16, 12)))["pool2.y"])


@each_backend
@pytest.mark.parametrize("used", [0, 1, 2])
def test_a_split_with_one_used_output(used: int, on: Named) -> None:
    """Unused pieces get zeros of their own size."""
    net = signal_net(6)
    x = net.relu("relu", "image")
    net.node("Split", "split", x, np.array([1, 2, 3]), outputs=3, axis=2)
    piece = f"split.y{used or ''}"
    model = net.model(net.relu("after", piece))
    start = line(*np.arange(1.0, 2 + used))
    found = descend(model, line(1, 2, 3, 4, 5, 6), "after.y", "relu.y", start, backend=on.backend)
    expected = np.zeros(6)
    begin = (0, 1, 3)[used]
    expected[begin : begin + 1 + used] = start.ravel()
    assert found.relevance.ravel().tolist() == expected.tolist()


@each_backend
def test_a_split_with_two_used_outputs(on: Named) -> None:
    """Pieces come back in order, whichever way they were joined; a piece that is the target keeps its own."""
    net = signal_net(4)
    x = net.relu("relu", "image")
    first = net.node("Split", "split", x, np.array([1, 3]), outputs=2, axis=2)
    model = net.model(net.node("Concat", "join", "split.y1", first, axis=2))
    found = descend(model, line(1, 2, 3, 4), "join.y", "relu.y", line(20, 30, 40, 10), backend=on.backend)
    assert found.relevance.ravel().tolist() == [10, 20, 30, 40]
    piece = descend(model, line(1, 2, 3, 4), "join.y", "split.y1", line(20, 30, 40, 10), backend=on.backend)
    assert piece.relevance.ravel().tolist() == [20, 30, 40]


def test_a_gate_gets_nothing() -> None:
    """The branch of a squeeze-and-excitation has no step at all, and its tensors need not be read."""
    model, image = squeeze_excite(), np.random.default_rng(0).normal(size=(1, 3, 16, 12))
    found = descend(model, image, "hs.div.y", "image")
    nodes = {row.node for row in found.ledger.rows}
    assert {"hs.mul", "conv2", "se.scale", "silu", "conv1"} <= nodes
    assert not nodes & {"se.pool", "se.relu", "se.sigmoid", "silu.sigmoid", "hs.add", "hs.clip"}
    assert not {"se.sigmoid.y", "silu.sigmoid.y", "hs.clip.y"} & set(found.plan.reads)
    uniform = descend(model, image, "hs.div.y", "image", None, RelevanceComposite(mul="uniform"))
    assert {"se.pool", "se.sigmoid", "hs.clip"} <= {row.node for row in uniform.ledger.rows}
    assert uniform.ledger.residual < 1e-9


# --- the ledger -------------------------------------------------------------------------------------------------------


def two_layers() -> onnx.ModelProto:
    """image (3, -2) -> conv1 (1; -1) -> (3, -2; -3, 2) -> relu -> (3, 0; 0, 2) -> conv2 (1, 1) -> (3, 2)."""
    net = signal_net()
    x = net.relu("relu", net.node("Conv", "conv1", "image", np.array([1.0, -1]).reshape(2, 1, 1)))
    return net.model(net.node("Conv", "conv2", x, np.ones((1, 2, 1))))


def rows(found: Descent) -> list[tuple[str, str, float, float, float, float]]:
    columns = ("relevance_in", "relevance_out", "leaked", "dropped")
    return [(r.node, r.rule, *(float(getattr(r, c)[0]) for c in columns)) for r in found.ledger.rows]  # type: ignore[misc]


@each_backend
def test_the_ledger_by_hand(on: Named) -> None:
    """Relevance (1, -5; 7, 4) on the ReLU: -5 and 7 sit on dead cells. z^B hands 1 and 4 to the pixels."""
    start = np.array([[[1.0, -5], [7, 4]]])
    found = descend(two_layers(), line(3, -2), "relu.y", "image", start, backend=on.backend)
    assert rows(found) == [("relu", "mask", 7, 5, 2, 12), ("conv1", "z_box", 5, 5, 0, 0)]
    close(found.relevance, line(1, 4), on.tolerance)
    assert found.ledger.start.tolist() == [7]
    assert found.ledger.start_absolute.tolist() == [17]
    assert found.ledger.arrived.tolist() == [5]
    assert found.ledger.leaked == pytest.approx(12 / 17)
    assert found.ledger.residual == 0


@each_backend
def test_without_the_mask_the_next_layer_leaks(on: Named) -> None:
    """The same cells have z = 0 under z^B: the pixel that made them sits at its bound."""
    start = np.array([[[1.0, -5], [7, 4]]])
    composite = RelevanceComposite(relu="identity")
    found = descend(two_layers(), line(3, -2), "relu.y", "image", start, composite, backend=on.backend)
    assert rows(found) == [("relu", "identity", 7, 7, 0, 0), ("conv1", "z_box", 7, 5, 2, 12)]


@each_backend
def test_a_whole_chain_by_hand(on: Named) -> None:
    """From conv2 the ReLU's mask has nothing to drop, and is not even run."""
    found = descend(two_layers(), line(3, -2), "conv2.y", "image", line(3, 2), backend=on.backend)
    assert rows(found) == [
        ("conv2", "z_plus", 5, 5, 0, 0),
        ("relu", "mask", 5, 5, 0, 0),
        ("conv1", "z_box", 5, 5, 0, 0),
    ]
    close(found.relevance, line(3, 2), on.tolerance)
    assert [step.masked for step in found.plan.steps] == [False, True, True]


def test_a_ledger_of_several_images() -> None:
    """Rows are per image; totals are the worst image's; first and join cut and put together."""
    start = np.array([[[1.0, -5], [7, 4]], [[0, 0], [0, 4]]])
    image = np.concatenate([line(3, -2), line(3, -2)])
    ledger = descend(two_layers(), image, "relu.y", "image", start).ledger
    assert ledger.rows[0].leaked.tolist() == [2, 0]
    assert ledger.leaked == pytest.approx(12 / 17)
    assert ledger.first(1).rows[0].leaked.tolist() == [2]
    again = Ledger.join([ledger.first(1), ledger])
    assert again.rows[0].dropped.tolist() == [12, 12, 0]
    assert again.start.tolist() == [7, 7, 4]
    assert again.arrived.tolist() == [5, 5, 4]
    assert ledger.table()[0] == {
        "node": "relu", "op": "Relu", "rule": "mask", "relevance_in": [7, 4], "relevance_out": [5, 4],
        "leaked": [2, 0], "dropped": [12, 0],
    }  # fmt: skip


def test_a_row_that_does_not_close_shows() -> None:
    """The residual is in - out - leaked, over the start: 1 of 17 missing is seen as such."""
    start = np.array([[[1.0, -5], [7, 4]]])
    ledger = descend(two_layers(), line(3, -2), "relu.y", "image", start).ledger
    wrong = replace(ledger.rows[0], relevance_out=ledger.rows[0].relevance_out - 1)
    assert Ledger((wrong,), ledger.start, ledger.start_absolute, ledger.arrived).residual == pytest.approx(1 / 17)


def test_a_start_of_nothing_has_an_empty_account() -> None:
    found = descend(two_layers(), line(3, -2), "relu.y", "image", np.zeros((1, 2, 2)))
    assert not found.relevance.any()
    assert (found.ledger.leaked, found.ledger.residual) == (0.0, 0.0)


def test_the_mask_is_left_out_where_the_start_is_dead_too() -> None:
    """From the ReLU itself: with dead_start the plan trusts that the start is 0 on dead cells."""
    start = np.array([[[1.0, 0], [0, 4]]])
    trusting = descend(two_layers(), line(3, -2), "relu.y", "image", start, dead_start=True)
    checking = descend(two_layers(), line(3, -2), "relu.y", "image", start)
    assert (trusting.plan.reads, checking.plan.reads) == (("image",), ("relu.y", "image"))
    close(trusting.relevance, checking.relevance)


def test_the_gradient_is_a_descent_too() -> None:
    """dy/dx of (x^+ + (-x)^+) at (3, -2): (1, -1)."""
    found = descend(two_layers(), line(3, -2), "conv2.y", "image", line(1, 1), GradientComposite())
    assert found.relevance.tolist() == [[[1, -1]]]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_layer_without_a_rule_is_named() -> None:
    graph = build_view(load(attention()))
    with pytest.raises(UnsupportedOpError) as caught:
        plan(graph, "relu2.y", "image", RelevanceComposite())
    from fgcam_onnx import registry

    assert str(caught.value) == (
        "no relevance rule for Softmax-13: inside the path: relevance starts at the logits, before any Softmax\n"
        "  at      node 'middle'   (conv1 -> middle -> conv2)\n"
        f"  known   Abs, Add, AveragePool, BatchNormalization and {len(registry.table()) - 4} more: fgcam ops\n"
        "  next    a map may be had behind it: layer= a tensor between this node and the scores (fgcam inspect)"
    )


def test_two_layers_without_a_rule() -> None:
    """The first on the way down is named, the others are counted; a refusal gives its reason."""
    net = Net(("n", 3, 6, 5))
    x = net.node("Softmax", "below", net.conv("conv1", "image", 3, 4), axis=1)
    x = net.node("ReduceMean", "above", net.conv("conv2", x, 4, 4), axes=[0, 2])
    graph = build_view(load(net.model(x)))
    with pytest.raises(UnsupportedOpError) as caught:
        plan(graph, "above.y", "image", RelevanceComposite())
    first, place = str(caught.value).splitlines()[:2]
    assert first == (
        "no relevance rule for ReduceMean-13: it reduces over the batch"
        " (and 1 more nodes without a rule: fgcam inspect)"
    )
    assert place == "  at      node 'above'   (conv2 -> above -> above.y)"


ATTENTION = "it multiplies two activations (attention): there is no relevance rule for that"


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "reason"),
    [
        ("Gemm", ["image", np.ones((2, 3))], {"transA": 1}, "transA: its rows are features and its columns images"),
        ("MatMul", ["image", "t.y"], {}, ATTENTION),
        ("MatMul", [np.ones((4, 2)), "image"], {}, "its first operand is the constant one"),
        ("MatMul", ["image", np.ones(5)], {}, "its weight has one axis"),
        ("Gather", ["image", np.array([0])], {}, "it gathers along the batch"),
        ("ReduceMean", ["image"], {}, "it reduces over all axes, the batch included"),
        ("Transpose", ["image"], {"perm": [1, 0]}, "it moves the batch axis"),
        ("Transpose", ["image"], {}, "it moves the batch axis"),
    ],
)  # fmt: skip
def test_what_a_rule_refuses(op: str, operands: list[str | Floats], attributes: dict[str, int], reason: str) -> None:
    net = Net((2, 5))
    net.node("Transpose", "t", "image", perm=[1, 0])
    graph = build_view(load(net.model(net.node(op, "refused", *operands, **attributes))))
    with pytest.raises(UnsupportedOpError) as caught:
        plan(graph, "refused.y", "image", RelevanceComposite())
    said = str(caught.value).splitlines()[0].split(": ", 1)[1]
    assert said.removesuffix(" (and 1 more nodes without a rule: fgcam inspect)") == reason


def test_a_target_that_is_not_upstream_is_refused() -> None:
    graph = build_view(load(vgg()))
    with pytest.raises(LayerError) as caught:
        plan(graph, "pool1.y", "pool2.y", RelevanceComposite())
    assert str(caught.value) == (
        "no relevance can reach 'pool2.y' from 'pool1.y'\n"
        "  known   the first is not upstream of the second\n"
        "  next    choose layer= upstream of start=: fgcam inspect lists both"
    )


def test_a_target_behind_gates_alone_is_refused() -> None:
    graph = build_view(load(squeeze_excite()))
    with pytest.raises(LayerError) as caught:
        plan(graph, "hs.div.y", "se.sigmoid.y", RelevanceComposite())
    assert str(caught.value).splitlines()[:2] == [
        "no relevance can reach 'se.sigmoid.y' from 'hs.div.y'",
        "  known   every way between them is a gate, which gets no relevance",
    ]


def test_a_gap_off_the_path_is_no_gap() -> None:
    """The Softmax lies below the target, or in the branch of a gate: nobody asks for its rule."""
    graph = build_view(load(attention()))
    assert [s.layer.name for s in plan(graph, "relu2.y", "middle.y", RelevanceComposite()).steps] == ["relu2", "conv2"]


def test_a_plan_says_in_its_key_what_it_depends_on() -> None:
    """A backend keeps what it compiled by this key: options, ends and dead_start are all in it."""
    graph = build_view(load(vgg()))
    keys = {
        plan(graph, source, target, composite, dead_start=dead).key
        for source, target in (("pool2.y", "image"), ("pool2.y", "pool1.y"), ("relu2.y", "image"))
        for composite in (
            RelevanceComposite(),
            RelevanceComposite(relu="identity"),
            RelevanceComposite(zb_bounds=(-1, 2)),
        )
        for dead in (False, True)
    }
    assert len(keys) == 18


# --- what may be rounded ----------------------------------------------------------------------------------------------


class Listening(NumpyVerbs):
    """Remembers of each product whether its terms were said to have one sign."""

    def __init__(self) -> None:
        super().__init__(np.float64)
        self.products: list[bool] = []

    def rounding(self, *, one_sign: bool) -> None:
        self.said = one_sign

    def conv(self, *given: Any) -> Array:
        self.products.append(self.said)
        return super().conv(*given)

    def conv_adjoint(self, *given: Any) -> Array:
        self.products.append(self.said)
        return super().conv_adjoint(*given)

    def matmul(self, *given: Any) -> Array:
        self.products.append(self.said)
        return super().matmul(*given)


class Listener(NumpyBackend):
    def __init__(self) -> None:
        super().__init__(np.float64)
        self.verbs = Listening()

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, Floats]:
        return dict(program.run(self.verbs, inputs))


@pytest.mark.parametrize(
    ("composite", "source", "target", "expected"),
    [
        # conv2 by z+, whose input is >= 0: there and back; conv1 by z^B: two halves there and two back
        (RelevanceComposite(), "pool2.y", "image", [True, True, True, True, True, True]),
        (RelevanceComposite(zb_bounds=(-9, 9)), "pool2.y", "image", [True, True, False, False, False, False]),
        (RelevanceComposite(first_layer="flat"), "pool2.y", "image", [True, True, False, False]),
        (GradientComposite(), "pool2.y", "image", [False, False]),
        (GradientComposite(), "fc2.y", "pool2.y", [False, False]),
    ],
    ids=["zB", "given_bounds", "flat", "gradient", "gradient_of_the_head"],
)
def test_only_products_of_one_sign_may_be_rounded(
    composite: Composite, source: str, target: str, expected: list[bool]
) -> None:
    """z+ and z^B, and nothing else: a gradient's terms cancel, and bounds that a user gives are a word, not a fact."""
    model, listener = vgg(), Listener()
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 12))
    descend(model, x, source, target, composite=composite, backend=listener)
    assert listener.verbs.products == expected
