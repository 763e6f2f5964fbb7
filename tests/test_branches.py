"""If whose condition is known: the branch that runs is part of the graph, and the network answers as before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper
from tiny_models import Net

from fgcam_onnx import Explainer
from fgcam_onnx.graph.branches import with_branches_chosen
from fgcam_onnx.graph.load import load


def body(nodes: Sequence[onnx.NodeProto], output: str, weights: Sequence[TensorProto] = ()) -> onnx.GraphProto:
    """A branch of one output."""
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [value], list(weights))


def scaled(factor: float, name: str = "scaled") -> onnx.GraphProto:
    """relu1.y times ``factor``, through a weight of its own and a tensor in between."""
    weight = numpy_helper.from_array(np.full((1, 6, 1, 1), factor, np.float32), f"{name}.w")
    nodes = [
        helper.make_node("Mul", ["relu1.y", weight.name], [f"{name}.m"]),
        helper.make_node("Relu", [f"{name}.m"], [name]),
    ]
    return body(nodes, name, [weight])


def classifier(then: onnx.GraphProto, other: onnx.GraphProto, condition: str, **shape: tuple[int | str, ...]) -> Net:
    """conv-relu, the If, conv-relu, GAP head. ``condition``: how it is known."""
    net = Net(**shape)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    if condition == "shape":  # as PyTorch's exporter asks whether an axis can be squeezed
        size = net.node("Gather", "size", net.node("Shape", "shape", x), np.array(1))
        yes = net.node("Equal", "yes", size, np.array(6))
    elif condition == "constant node":
        yes = net.node("Constant", "yes", value=numpy_helper.from_array(np.array(True)))
    else:
        yes = net.weight("yes", np.array(condition == "true"))
    x = net.node("If", "if", yes, then_branch=then, else_branch=other)
    net.weights.append(numpy_helper.from_array(net.random(8, 6, 3, 3), "conv2.w"))
    x = net.relu("relu2", net.node("Conv", "conv2", x, "conv2.w", pads=[1, 1, 1, 1]))
    return net


def same_answers(model: onnx.ModelProto) -> Explainer:
    """Explained without a gap, from the logits that onnxruntime has for the file as it is."""
    explainer = Explainer(model)
    assert explainer.coverage().complete
    x = tiny_models.pictures(model, 2)
    found = explainer.explain(x)
    np.testing.assert_allclose(found.logits, tiny_models.run(model, x)[0], rtol=1e-5, atol=1e-5)
    assert found.ledger.residual < 1e-4
    return explainer


@pytest.mark.parametrize("condition", ["true", "false", "constant node", "shape"])
def test_the_branch_that_runs_is_walked(condition: str) -> None:
    """By an initializer, a Constant node or a fixed shape; the layers of the other branch are gone."""
    net = classifier(scaled(2.0), scaled(-1.0, "other"), condition)
    explainer = same_answers(net.model(net.head("relu2.y", 8)))
    ops = [layer.op for layer in explainer.graph.layers]
    assert "If" not in ops
    assert ops.count("Mul") == 1
    assert ("other.m" in explainer.graph.tensors) == (condition == "false")


def test_the_map_is_that_of_the_graph_without_the_choice() -> None:
    net = classifier(scaled(2.0), scaled(-1.0, "other"), "true")
    chosen = net.model(net.head("relu2.y", 8))
    plain = Net()
    x = plain.relu("relu1", plain.conv("conv1", "image", 3, 6))
    x = plain.relu("mid", plain.node("Mul", "mul", x, np.full((1, 6, 1, 1), 2, np.float32)))
    x = plain.relu("relu2", plain.node("Conv", "conv2", x, plain.random(8, 6, 3, 3), pads=[1, 1, 1, 1]))
    without = plain.model(plain.head(x, 8))
    x_in = tiny_models.pictures(without, 2)
    a, b = (Explainer(model).explain(x_in, target=1).relevance for model in (chosen, without))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_branch_that_gives_a_weight() -> None:
    """An output that no node of the branch computes: added to the picture's own way, it is a constant."""
    weight = numpy_helper.from_array(np.full((1, 6, 1, 1), 0.25, np.float32), "w")
    net = Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    yes = net.weight("yes", np.array(True))
    b = net.node("If", "if", yes, then_branch=body([], "w", [weight]), else_branch=body([], "w", [weight]))
    x = net.relu("relu2", net.conv("conv2", net.node("Add", "add", x, b), 6, 8))
    explainer = same_answers(net.model(net.head(x, 8)))
    assert next(layer for layer in explainer.graph.layers if layer.op == "Add").constants[1].shape == (1, 6, 1, 1)


def test_branches_within_branches_and_the_same_names_twice() -> None:
    """An If in a branch is decided in its turn; two branches may call their tensors alike."""
    inner = helper.make_node("If", ["yes"], ["deep"], then_branch=scaled(3.0), else_branch=scaled(1.0))
    outer = body([inner, helper.make_node("Relu", ["deep"], ["out"])], "out")
    net = Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    net.weight("yes", np.array(True))
    a = net.node("If", "if1", "yes", then_branch=outer, else_branch=scaled(5.0))
    b = net.node("If", "if2", "yes", then_branch=scaled(0.5), else_branch=scaled(7.0))
    x = net.node("Add", "add", a, b)
    explainer = same_answers(net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8)))
    assert [layer.op for layer in explainer.graph.layers].count("Mul") == 2


def test_a_weight_of_a_branch_is_held_once() -> None:
    """A large one lies beside the graph, as every other weight does."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(6, 6, 5, 5)).astype(np.float32), "w")
    conv = body([helper.make_node("Conv", ["relu1.y", "w"], ["c"], pads=[2, 2, 2, 2])], "c", [weight])
    net = classifier(conv, scaled(1.0), "true")
    model = net.model(net.head("relu2.y", 8))
    chosen = with_branches_chosen(load(model))
    assert "w" in chosen.weights
    same_answers(model)


def test_a_condition_that_is_not_known_stays_a_choice() -> None:
    """Of a free size, or of the picture itself: which branch runs is the input's to say."""
    net = classifier(scaled(2.0), scaled(-1.0, "other"), "true")
    model = net.model(net.head("relu2.y", 8))
    free = onnx.ModelProto()
    free.CopyFrom(model)
    free.graph.input.append(helper.make_tensor_value_info("ask", TensorProto.BOOL, []))
    next(node for node in free.graph.node if node.op_type == "If").input[0] = "ask"
    explainer = Explainer(free)
    assert [gap.op for gap in explainer.coverage().gaps] == ["If"]


def test_what_the_runtime_refuses_is_not_made_to_run() -> None:
    """A condition that is no bool, a name that two nodes have: writing the branch out would hide the mistake."""
    for fault in ("type", "name"):
        model = classifier(scaled(2.0), scaled(-1.0, "other"), "true").model("relu2.y")
        if fault == "type":
            yes = next(tensor for tensor in model.graph.initializer if tensor.name == "yes")
            yes.CopyFrom(numpy_helper.from_array(np.array(1, np.uint32), "yes"))
        else:
            model.graph.node[-1].name = "if"
        assert "If" in [node.op_type for node in with_branches_chosen(load(model)).proto.graph.node]
