"""What holds for every rule (methods 9.1), asked of every registered rule of every registered operator.

The checks are those of ``fgcam_onnx.testing``. One parametrised test reads the registry: an operator, a rule or a
version without a case in the grid is a failure, so none can be added and forgotten. The second half holds the
invariants of whole networks. Every check is shown to fail on a rule, or a network, that breaks it by 0.1 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import backends
import numpy as np
import onnx
import pytest
import single_op
from onnx import defs
from operator_cases import distinct, grid
from single_op import (
    Case,
    Change,
    Floats,
    changed,
    close,
    descend,
    flatten,
    larger,
    leaking_more,
    linear_ops,
    rule,
    rules,
    tape,
)
from tiny_models import Net, vgg

from fgcam_onnx import registry, testing
from fgcam_onnx.backends.base import Array, Leak, Verbs
from fgcam_onnx.composite import RelevanceComposite
from fgcam_onnx.node import Flow, Node

# --- every rule -------------------------------------------------------------------------------------------------------


def relevance_rules(cases: Iterable[Case]) -> list[tuple[Case, str]]:
    return [(case, name) for case in cases for name in rules(case.op) if name != "gradient"]


@pytest.mark.parametrize(("case", "name"), relevance_rules(distinct()), ids=str)
def test_every_rule(case: Case, name: str) -> None:
    """All checks; and of zeros alone everything leaks where every share has a zero denominator."""
    testing.check_invariants(case, name)
    if name in ("z_plus", "z_box") or (name in ("zplus", "norm") and len(case.layer.operands) > 1):
        x = case.values("zero")
        r = case.relevance(x)
        close(single_op.run(case, rule(case, name), x, r).leaked, flatten(r).sum(axis=1))


def _first_case_of_each_rule() -> list[tuple[Case, str]]:
    found: dict[tuple[str, str], tuple[Case, str]] = {}
    for case, name in relevance_rules(distinct()):
        found.setdefault((case.op, name), (case, name))
    return list(found.values())


@pytest.mark.parametrize(("case", "name"), _first_case_of_each_rule(), ids=str)
@pytest.mark.parametrize("style", ["zero", "denormal"])
def test_dead_denominators_on_compiled_backends(case: Case, name: str, style: str) -> None:
    testing.check_backends(case, name, list(backends.compiled()), styles=[style])


def test_no_operator_is_forgotten() -> None:
    """Every registered operator, each of its rules, and every version in force from opset 7 on has a case."""
    newest = defs.onnx_opset_version()
    for row in registry.table():
        cases = [case for case in grid() if case.op == row.op]
        assert cases, f"{row.op} has no case in operator_cases.grid()"
        named = set(row.rules["relevance"].split(" | ")) if row.op not in linear_ops() else {"z_plus", "flat"}
        assert named <= {name for case in cases for name in rules(case.op)}
        in_force = {v for v in row.since if 7 <= v <= newest} | {max((v for v in row.since if v <= 7), default=0)} - {0}
        assert {case.layer.version for case in cases} == in_force, row.op


class TestTheChecks:
    """Each check fails on a rule that breaks it by 0.1 %."""

    case = next(c for c in grid() if c.id.startswith("Conv") and "depthwise" in c.id)

    def fails(self, check: Callable[..., Any], change: Change, says: str) -> None:
        right = rule(self.case, "z_plus")
        check(self.case, right)

        with pytest.raises(AssertionError, match=says):
            check(self.case, changed(right, change))

    def test_parts(self) -> None:
        says = "parts of rule 'z_plus' on Conv.* x of mixed sign: "
        self.fails(testing.check_parts, lambda f, xp: Flow({}, f.leaks), says + r"operands \[\] get a part")
        self.fails(
            testing.check_parts,
            lambda f, xp: Flow({0: xp.reduce_sum(f.parts[0], (1,))}, f.leaks),
            says + r"operand 0 gets shape \[2, 1, 7, 6\], and its own is \[2, 4, 7, 6\]",
        )

    def test_conservation(self) -> None:
        says = "conservation of .* is not accounted for"
        self.fails(testing.check_conservation, larger, says)
        self.fails(testing.check_conservation, leaking_more, says)
        self.fails(testing.check_conservation, lambda f, xp: Flow(f.parts), says)

    def test_the_absolute_leak(self) -> None:
        def halved(f: Flow, xp: Verbs) -> Flow:
            (leak,) = f.leaks
            return Flow(f.parts, (Leak(leak.signed, xp.mul(leak.signed, xp.constant(0.999))),))

        self.fails(testing.check_conservation, halved, "the signed leak .* is larger than the absolute one")

    def test_linearity(self) -> None:
        def bent(f: Flow, xp: Verbs) -> Flow:
            return Flow({0: xp.add(f.parts[0], xp.mul(xp.absolute(f.parts[0]), xp.constant(0.001)))}, f.leaks)

        self.fails(testing.check_linearity, bent, "linearity of .* the relevance of 2 r - 3 r'")

    def test_sign(self) -> None:
        def lower(f: Flow, xp: Verbs) -> Flow:
            return Flow({0: xp.sub(f.parts[0], xp.constant(1e-3))}, f.leaks)

        self.fails(testing.check_sign, lower, "sign of .* r >= 0, and operand 0 gets -0.001 at")

    def test_contraction(self) -> None:
        def grown(f: Flow, xp: Verbs) -> Flow:
            """0.1 % more than what did not leak, and what leaked on top."""
            part = f.parts[0]
            kept, (leak,) = xp.total(xp.absolute(part)), f.leaks
            whole = xp.mul(xp.add(kept, leak.absolute), xp.constant(1.001))
            return Flow({0: xp.mul(part, xp.reshape(xp.div(whole, kept), (-1, 1, 1, 1)))}, f.leaks)

        self.fails(testing.check_contraction, grown, r"contraction of .* grows to 1\.001")

    def test_dead_inputs(self) -> None:
        def lifted(f: Flow, xp: Verbs) -> Flow:
            return Flow({0: xp.add(f.parts[0], xp.constant(1e-9))}, f.leaks)

        self.fails(testing.check_dead_inputs, lifted, "dead inputs of .* x >= 0: .* operand 0 gets 1e-09 at")

    @pytest.mark.parametrize(("told", "says"), [("nonnegative", "x >= 0"), ("masked", "dead outputs")])
    def test_shortcuts(self, told: str, says: str) -> None:
        right = rule(self.case, "z_plus")

        def function(node: Node, r: Array, xp: Verbs) -> Flow:
            hears = node.options["masked"] if told == "masked" else node.nonnegative(0)
            return larger(right.function(node, r, xp), xp) if hears else right.function(node, r, xp)

        with pytest.raises(
            AssertionError, match=rf"shortcuts of .*: told that {says}.*, the relevance is off by 0\.001"
        ):
            testing.check_shortcuts(self.case, replace(right, function=function))

    def test_batch(self) -> None:
        def by_batch(f: Flow, xp: Verbs) -> Flow:
            n = xp.shape(f.parts[0])[0]
            return Flow({0: xp.mul(f.parts[0], xp.constant(1 + 0.001 * n))}, f.leaks)

        self.fails(testing.check_batch, by_batch, "batch of .* the relevance of image 0 by itself is off by 0.000998")

    @pytest.mark.parametrize("check", [testing.check_zeros, testing.check_denormals])
    def test_dead_denominators(self, check: Callable[..., Any]) -> None:
        def more(f: Flow, xp: Verbs) -> Flow:
            (leak,) = f.leaks
            return Flow(f.parts, (Leak(xp.mul(leak.signed, xp.constant(1.001)), leak.absolute),))

        def unguarded(f: Flow, xp: Verbs) -> Flow:
            zero = xp.constant(0.0)
            return Flow({0: xp.add(f.parts[0], xp.div(zero, zero))}, f.leaks)

        self.fails(check, more, "(zeros of .* x = 0|denormals of .* denormal x): .* is not accounted for")
        self.fails(check, unguarded, "is not finite")


# --- whole networks ---------------------------------------------------------------------------------------------------


def picture(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def weights(model: onnx.ModelProto) -> dict[str, Floats]:
    return {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def with_weights(model: onnx.ModelProto, **changed: Floats) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        key = tensor.name.replace(".", "_")
        if key in changed:
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed[key].astype(np.float32), tensor.name))
    return copy


def chain(**attributes: object) -> onnx.ModelProto:
    """conv-relu, max-pool, conv-relu, average pool: no bias."""
    net = Net(("n", 3, 10, 8))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6, bias=False, **attributes))
    x = net.relu("relu2", net.conv("conv2", net.max_pool("pool1", x), 6, 4, bias=False))
    return net.model(net.node("AveragePool", "pool2", x, kernel_shape=[2, 3], strides=[1, 2]))


def differ(p: Floats, q: Floats) -> None:
    with pytest.raises(AssertionError):
        close(p, q, 1e-3)


def test_scale_of_activations_changes_nothing() -> None:
    """9.1.6: z+ from the same start, the picture times 4 (and every activation with it)."""
    model, x = chain(), picture(2, 3, 10, 8)
    zplus = RelevanceComposite(first_layer="z+")
    start = tape(model, x)["pool2.y"]
    once = descend(model, x, "pool2.y", "image", start, zplus).relevance
    close(descend(model, 4 * x, "pool2.y", "image", start, zplus).relevance, once)
    differ(descend(model, x + 0.1, "pool2.y", "image", start, zplus).relevance, once)


def test_scale_of_a_neuron_changes_nothing() -> None:
    """9.1.6: the weights of output j times a_j > 0."""
    model, x = chain(), picture(2, 3, 10, 8)
    start = tape(model, x)["relu2.y"]
    w = weights(model)["conv2.1"]
    once = descend(model, x, "relu2.y", "image", start).relevance
    scaled = with_weights(model, conv2_1=w * np.array([0.5, 2, 1, 4]).reshape(4, 1, 1, 1))
    close(descend(scaled, x, "relu2.y", "image", start).relevance, once)
    per_input = with_weights(model, conv2_1=w * np.linspace(0.5, 2, 6).reshape(1, 6, 1, 1))
    differ(descend(per_input, x, "relu2.y", "image", start).relevance, once)


def normed(gamma: list[float]) -> onnx.ModelProto:
    net = Net(("n", 3, 8, 7))
    x = net.conv("conv1", "image", 3, 4, bias=False)
    x = net.relu("relu1", net.node("BatchNormalization", "bn1", x, np.array(gamma), np.array([0.3, 0.5, 0.4, 0.6]),
                                   np.array([0.1, -0.2, 0.3, 0]), np.array([0.5, 1, 2, 1.5])))  # fmt: skip
    return net.model(net.conv("conv2", x, 4, 3))


@pytest.mark.parametrize("first", ["zB", "z+"])
@pytest.mark.parametrize(
    ("gamma", "agree"), [([0.5, 1, 2, 0.3], True), ([0.5, -1, 2, 0.3], False), ([0.5, 0, 2, 0.3], False)],
    ids=["positive", "negative", "zero"],
)  # fmt: skip
def test_folding_a_batch_norm_is_identity_iff_gamma_is_positive(gamma: list[float], agree: bool, first: str) -> None:
    """9.1.7: a positive factor cancels, a negative one swaps the parts, a zero one drops the channel."""
    model, x = normed(gamma), picture(2, 3, 8, 7)
    composite = RelevanceComposite(first_layer=first)
    folded = descend(model, x, "conv2.y", "image", None, composite)
    kept = descend(model, x, "conv2.y", "image", None, composite, fold_norms=False)
    assert [row.op for row in folded.ledger.rows] == ["Conv", "Relu", "Conv"]
    assert [row.op for row in kept.ledger.rows] == ["Conv", "Relu", "BatchNormalization", "Conv"]
    if agree:
        close(folded.relevance, kept.relevance, 1e-6)  # the folded weights are float32
    else:
        differ(folded.relevance, kept.relevance)
    if 0 in gamma:
        assert folded.ledger.rows[-1].dropped.min() > 0
        assert kept.ledger.rows[-1].dropped.max() == 0


def test_the_relu_mask_changes_nothing_in_a_chain() -> None:
    """9.1.5: in conv/pool chains a cell with x = 0 gets nothing from behind; where a bias is added it does."""
    model, x = vgg(), picture(2, 3, 16, 12)
    mask = descend(model, x, "pool2.y", "image")
    identity = descend(model, x, "pool2.y", "image", None, RelevanceComposite(relu="identity"))
    close(mask.relevance, identity.relevance, 1e-12)
    assert np.abs(mask.relevance).sum() > 0


@pytest.mark.parametrize("between", ["Add", "Sub", "LeakyRelu", "Sigmoid", "none"])
def test_a_mask_is_skipped_only_where_it_does_nothing(between: str) -> None:
    """The plan leaves a mask out where the layers behind leave dead cells alone: never behind an Add of a constant."""
    net = Net(("n", 3, 6, 5))
    x = net.relu("relu", net.conv("conv1", "image", 3, 4))
    if between in ("Add", "Sub"):
        x = net.node(between, "shift", x, np.full((4, 1, 1), 0.5 if between == "Add" else -0.5))
    elif between != "none":
        x = net.node(between, "between", x)
    model, image = net.model(net.conv("conv2", x, 4, 3)), picture(1, 3, 6, 5)
    found = descend(model, image, "conv2.y", "conv1.y")
    dead = tape(model, image)["relu.y"] == 0
    assert dead.any()
    assert not found.relevance[dead].any()
    row = next(row for row in found.ledger.rows if row.op == "Relu")
    assert (row.dropped.max() > 0) == (between in ("Add", "Sub", "Sigmoid"))


def test_a_grouped_convolution_is_its_block_diagonal_one() -> None:
    """9.1.10, at the image (z^B) and inside (z+)."""

    def make(group: int) -> onnx.ModelProto:
        net = Net(("n", 4, 7, 6))
        blocks = [net.random(3, 2, 3, 3), net.random(3, 2, 3, 3), net.random(2, 3, 3, 3), net.random(2, 3, 3, 3)]
        if group == 2:
            first, second = np.concatenate(blocks[:2]), np.concatenate(blocks[2:])
        else:
            first, second = np.zeros((6, 4, 3, 3)), np.zeros((4, 6, 3, 3))
            first[:3, :2], first[3:, 2:] = blocks[:2]
            second[:2, :3], second[2:, 3:] = blocks[2:]
        x = net.relu("relu1", net.node("Conv", "conv1", "image", first, group=group, pads=[1, 0, 1, 2]))
        return net.model(net.node("Conv", "conv2", x, second, group=group, strides=[2, 1]))

    x = picture(2, 4, 7, 6)
    grouped, dense = (descend(make(g), x, "conv2.y", "image") for g in (2, 1))
    close(grouped.relevance, dense.relevance)
    swapped = weights(make(2))["conv1.1"][::-1]
    differ(descend(with_weights(make(2), conv1_1=swapped), x, "conv2.y", "image").relevance, dense.relevance)


def test_permuting_channels_and_weights_changes_nothing() -> None:
    """9.1.9: hidden channels in another order, the weights before and behind with them."""
    model, x = chain(), picture(2, 3, 10, 8)
    order = np.array([3, 0, 5, 1, 4, 2])
    w = weights(model)
    moved = with_weights(model, conv1_1=w["conv1.1"][order], conv2_1=w["conv2.1"][:, order])
    once = descend(model, x, "pool2.y", "image").relevance
    close(descend(moved, x, "pool2.y", "image").relevance, once)
    inside = descend(moved, x, "pool2.y", "pool1.y").relevance
    close(inside, descend(model, x, "pool2.y", "pool1.y").relevance[:, order])
    half = with_weights(model, conv1_1=w["conv1.1"][order])
    differ(descend(half, x, "pool2.y", "image").relevance, once)


def test_mirroring_picture_and_kernels_mirrors_the_map() -> None:
    """9.1.9: every size is such that no window is cut at one side."""
    net = Net(("n", 3, 10, 8))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6, bias=False))
    model = net.model(net.conv("conv2", net.max_pool("pool1", x), 6, 4, bias=False))
    w = weights(model)
    mirrored = with_weights(model, conv1_1=w["conv1.1"][..., ::-1], conv2_1=w["conv2.1"][..., ::-1])
    image = picture(2, 3, 10, 8)
    once = descend(model, image, "conv2.y", "image").relevance
    close(descend(mirrored, image[..., ::-1], "conv2.y", "image").relevance[..., ::-1], once)
    differ(descend(model, image[..., ::-1], "conv2.y", "image").relevance[..., ::-1], once)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_a_constant_image_gives_an_empty_z_box_map(value: float) -> None:
    """9.2: l = h = x, so every denominator is 0: a zero map without NaN, all of it leaked."""
    net = Net(("n", 3, 6, 5))
    model = net.model(net.relu("relu", net.conv("conv", "image", 3, 4)))
    found = descend(model, np.full((2, 3, 6, 5), value), "relu.y", "image", picture(2, 4, 6, 5))
    assert not found.relevance.any()
    close(found.ledger.rows[-1].leaked, found.ledger.rows[-1].relevance_in)
    assert found.ledger.residual < 1e-9
    one_pixel = np.full((2, 3, 6, 5), value)
    one_pixel[:, 0, 2, 2] += 1
    assert descend(model, one_pixel, "relu.y", "image", picture(2, 4, 6, 5)).relevance.any()


def test_preprocessing_inside_the_graph() -> None:
    """9.2: Transpose, Cast, Sub, Div: the map of the plain network on the prepared picture, carried back."""
    mean, std = np.array([0.4, 0.5, 0.3]).reshape(3, 1, 1), np.array([0.2, 0.25, 0.3]).reshape(3, 1, 1)

    def make(inside: bool) -> onnx.ModelProto:
        net = Net(("n", 8, 7, 3) if inside else ("n", 3, 8, 7))
        w = net.random(4, 3, 3, 3)
        x = "image"
        if inside:
            x = net.node("Transpose", "move", net.node("Cast", "cast", "image", to=1), perm=[0, 3, 1, 2])
            x = net.node("Div", "std", net.node("Sub", "mean", x, mean), std)
        return net.model(net.relu("relu", net.node("Conv", "conv", x, w, pads=[1, 1, 0, 0])))

    x = np.random.default_rng(0).uniform(size=(2, 8, 7, 3)).astype(np.float32).astype(np.float64)
    prepared = tape(make(True), x)["std.y"]
    inside = descend(make(True), x, "relu.y", "image")
    outside = descend(make(False), prepared, "relu.y", "image")
    assert [row.rule for row in inside.ledger.rows][1] == "z_box"
    close(inside.relevance.transpose(0, 3, 1, 2), outside.relevance)
    unprepared = descend(make(False), x.transpose(0, 3, 1, 2), "relu.y", "image")
    differ(inside.relevance.transpose(0, 3, 1, 2), unprepared.relevance)


def test_two_convolutions_fed_by_the_image() -> None:
    """9.2: z^B at each; the map is the sum of the two."""
    net = Net(("n", 3, 6, 5))
    a, b = net.conv("a", "image", 3, 4), net.conv("b", "image", 3, 2, 1)
    model, x = net.model(net.node("Concat", "join", net.relu("ra", a), net.relu("rb", b), axis=1)), picture(2, 3, 6, 5)
    both = descend(model, x, "join.y", "image")
    assert sorted(row.rule for row in both.ledger.rows if row.op == "Conv") == ["z_box", "z_box"]
    values = tape(model, x)
    one, other = descend(model, x, "ra.y", "image"), descend(model, x, "rb.y", "image")
    close(both.relevance, one.relevance + other.relevance)
    assert values["join.y"].sum() > 0


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_layer_is_what_the_image_feeds(channels: int) -> None:
    """9.2: one or four channels get z^B all the same; three channels in mid-network get z+."""
    net = Net(("n", channels, 6, 5))
    x = net.relu("relu1", net.conv("conv1", "image", channels, 3))
    model = net.model(net.conv("conv2", x, 3, 2))
    found = descend(model, picture(1, channels, 6, 5), "conv2.y", "image")
    assert [row.rule for row in found.ledger.rows] == ["z_plus", "mask", "z_box"]


def test_lrp_from_the_logit_is_the_descent_from_l() -> None:
    """9.1.8: any cut may be L."""
    model, x = vgg(), picture(2, 3, 16, 12)
    whole = descend(model, x, "fc2.y", "image")
    to_l = descend(model, x, "fc2.y", "pool2.y")
    close(descend(model, x, "pool2.y", "image", to_l.relevance).relevance, whole.relevance)
    differ(descend(model, x, "pool2.y", "image").relevance, whole.relevance)


def test_where_the_bias_alone_drives_the_leak_is_that_cell() -> None:
    """9.1.11: x >= 0, Z_j = 0, y_j > 0."""
    net = Net(("n", 3, 4, 3))
    x = net.relu("relu1", net.node("Conv", "conv1", "image", net.random(2, 3, 1, 1)))
    w = np.array([[1, 2], [-1, -0.5], [0.5, -1]]).reshape(3, 2, 1, 1)
    model = net.model(net.relu("relu2", net.node("Conv", "conv2", x, w, np.array([0.0, 9, 0]))))
    image = picture(2, 3, 4, 3)
    values = tape(model, image)
    z = np.einsum("oi,nihw->nohw", w[:, :, 0, 0].clip(min=0), values["relu1.y"])
    leak = descend(model, image, "relu2.y", "relu1.y").ledger.rows[-1].leaked
    driven = (z == 0) & (values["relu2.y"] > 0)
    assert driven[:, 1].any()
    assert not driven[:, 0].any()
    close(leak, np.where(driven, values["relu2.y"], 0).sum(axis=(1, 2, 3)))


def test_the_account_holds_over_a_network() -> None:
    """9.1.1: what starts arrives, but for the leaks; for the picture, which is a cut. Also on compiled backends."""
    model, x = vgg(), picture(3, 3, 16, 12)
    for backend, tolerance in ((None, 1e-9), *((backend, 1e-4) for backend in backends.compiled())):
        ledger = descend(model, x, "pool2.y", "image", backend=backend).ledger
        leaked = np.sum([row.leaked for row in ledger.rows], axis=0)
        assert (np.abs(ledger.start - leaked - ledger.arrived) <= tolerance * ledger.start_absolute).all()
        assert ledger.residual <= tolerance


def test_six_is_alive() -> None:
    """9.2: the mask of a ReLU6 lets saturated cells through."""
    net = Net(("n", 2, 4, 3))
    x = net.node("Conv", "conv1", "image", 9 * net.random(3, 2, 1, 1))
    x = net.node("Clip", "relu6", x, np.asarray(0.0), np.asarray(6.0))
    model = net.model(net.conv("conv2", x, 3, 2))
    image = picture(1, 2, 4, 3)
    y = tape(model, image)["relu6.y"]
    assert (y == 6).any()
    found, behind = descend(model, image, "conv2.y", "conv1.y"), descend(model, image, "conv2.y", "relu6.y")
    close(found.relevance, np.where(y == 0, 0, behind.relevance))
    assert found.relevance[y == 6].any()


def test_every_version_in_force_is_listed() -> None:
    """From opset 7 to the newest that the installed onnx knows; what is missing is named here, with the reason."""
    missing = {
        "GatherND": {11},  # had no batch_dims: it always gathered along the batch
        "GroupNormalization": {18},  # deprecated: onnx's checker refuses models with it
        "Upsample": {10},  # deprecated likewise
    }
    for row in registry.table():
        if "::" not in row.op:
            in_force = {version_in_force(row.op, opset) for opset in range(7, defs.onnx_opset_version() + 1)} - {0}
            assert in_force - set(row.since) == missing.get(row.op, set()), row.op


def version_in_force(op: str, opset: int) -> int:
    """0 where the operator is not defined yet."""
    try:
        return int(defs.get_schema(op, opset, "").since_version)
    except defs.SchemaError:
        return 0
