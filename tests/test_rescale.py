"""DeepLIFT-rescale and guided backpropagation: the multipliers of every operator, and of whole small networks.

What is expected: the changes of the ONNX operator itself, which the multipliers have to add up to; captum, on networks;
formulas on a few numbers. Tolerance 1e-9 in float64.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import backends
import numpy as np
import onnx
import pytest
import single_op
import torch
from operator_cases import distinct, grid
from single_op import Case, Floats, X, changed, close, larger
from torch import Tensor, nn
from torch_reference import export, import_torchvision

from fgcam_onnx import registry, testing
from fgcam_onnx.backends.base import Array, Backend, Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend, NumpyVerbs
from fgcam_onnx.composite import Gap, GradientComposite
from fgcam_onnx.graph.affine import AFFINE, BY_DERIVATIVE, INDEX_MOVES
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.node import REFERENCE, Flow, Node
from fgcam_onnx.registry import Rule

_KEYS = itertools.count()


def multiplier_rule(layer: Layer, graph: LayerGraph) -> Rule | Gap:
    """The rule of kind "rescale", else the derivative where that is exact."""
    rule = registry.find("rescale", layer.op)
    if rule is not None:
        reason = rule.refuses(layer, graph)
        return rule if reason is None else Gap(reason)
    if registry.find_linear(layer.op) is not None or layer.op in BY_DERIVATIVE:
        return GradientComposite().rule_for(layer, graph)
    return Gap(registry.reason_against("rescale", layer.op) or f"nothing is said of {layer.op}")


@functools.cache
def served(cases: tuple[Case, ...]) -> list[Case]:
    return [case for case in cases if isinstance(multiplier_rule(case.layer, case.graph), Rule)]


def rule_of(case: Case) -> Rule:
    found = multiplier_rule(case.layer, case.graph)
    assert isinstance(found, Rule)
    return found


def own(cases: tuple[Case, ...]) -> list[Case]:
    """Those with a rule of kind "rescale"."""
    return [case for case in served(cases) if registry.find("rescale", case.op) is not None]


# --- one operator -----------------------------------------------------------------------------------------------------


def references(case: Case) -> list[dict[str, Floats]]:
    """Far from the input; equal to it in half of the cells, and a hair beside it in some."""
    x = case.values()
    rng = np.random.default_rng(3)
    far = replace(case, id=f"{case.id} reference").values()
    for name, operand in case.inputs.items():
        if operand.values is not None:
            far[name] = np.roll(far[name], 1, axis=-1)
    near = {}
    for name, value in x.items():
        some = np.where(rng.random(value.shape) < 0.5, value, far[name])
        near[name] = some + np.where(rng.random(value.shape) < 0.3, 1e-12, 0)
    return [far, near]


def multipliers(
    case: Case,
    rule: Rule,
    x: Mapping[str, Floats],
    x0: Mapping[str, Floats],
    m: Sequence[Floats],
    backend: Backend | None = None,
) -> dict[int, Floats]:
    """The multipliers of a case's operands. Shapes follow the batch of m, activations may have a batch of one."""
    backend = backend or NumpyBackend(np.float64)
    y, y0 = case.forward(x), case.forward(x0)
    names = case.output_names
    n = len(m[0])
    shapes = {name: (n, *a.shape[1:]) for name, a in (*x.items(), *zip(names, y, strict=True))}
    feeds = {f"m{k}": part for k, part in enumerate(m)}
    if "x" in rule.reads:
        feeds |= {**x, **{REFERENCE + name: value for name, value in x0.items()}}
    if "y" in rule.reads:
        feeds |= {names[0]: y[0], REFERENCE + names[0]: y0[0]}

    def run(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
        node = Node(case.layer, case.graph, xp, inputs, shapes, rule.options)
        received = [inputs[f"m{k}"] for k in range(case.outputs)]
        flow = rule.function(node, received if case.outputs > 1 else received[0], xp)
        return {str(i): part for i, part in flow.parts.items()}

    feeds = {name: np.ascontiguousarray(a, backend.dtype) for name, a in feeds.items()}
    answer = backend.execute(Program(f"rescale {next(_KEYS)}", run), feeds)
    return {int(i): part for i, part in answer.items()}


def rows(array: Floats) -> Floats:
    return array.reshape(len(array), -1).sum(axis=1)


def check_completeness(case: Case, rule: Rule, x: Mapping[str, Floats], x0: Mapping[str, Floats]) -> None:
    """sum m_in (x - x0) = sum m (y - y0), for each image."""
    m = case.relevance(x)
    parts = multipliers(case, rule, x, x0, m)
    assert parts or not case.layer.operands
    arrived, sizes = np.zeros(len(m[0])), np.zeros(len(m[0]))
    for i, part in parts.items():
        assert part.shape == x[case.names[i]].shape
        assert np.isfinite(part).all(), f"operand {i} has multipliers that are not finite"
        given = part * (x[case.names[i]] - x0[case.names[i]])
        arrived, sizes = arrived + rows(given), sizes + rows(np.abs(given))
    changes = [part * (a - b) for part, a, b in zip(m, case.forward(x), case.forward(x0), strict=True)]
    expected = sum(rows(change) for change in changes)
    tolerance = 1e-9 if case.operator.exact else 1e-5
    assert np.abs(arrived - expected).max() <= tolerance * max(1.0, float(sizes.max())), (arrived, expected)


@pytest.mark.parametrize("case", served(grid()), ids=str)
def test_multipliers_add_up_to_the_change_of_the_output(case: Case) -> None:
    for x0 in references(case):
        check_completeness(case, rule_of(case), case.values(), x0)


@pytest.mark.parametrize("op", sorted({case.op for case in served(grid())}))
def test_a_permille_is_noticed(op: str) -> None:
    case = next(c for c in served(grid()) if c.op == op)
    with pytest.raises(AssertionError):
        check_completeness(case, changed(rule_of(case), larger), case.values(), references(case)[0])


@pytest.mark.parametrize("op", sorted({case.op for case in own(grid())} - {"Where"}))
def test_a_derivative_in_its_place_is_noticed(op: str) -> None:
    """A case of each operator with a rule of its own for which the derivative does not add up."""
    noticed = []
    for case in (c for c in own(grid()) if c.op == op and len(c.layer.operands)):
        derivative = GradientComposite().rule_for(case.layer, case.graph)
        assert isinstance(derivative, Rule)
        try:
            check_completeness(case, derivative, case.values(), references(case)[0])
        except AssertionError:
            noticed.append(case.id)
    assert noticed


@pytest.mark.parametrize("case", own(distinct()), ids=str)
def test_where_nothing_changed_it_is_the_derivative(case: Case) -> None:
    """x = x0, ties included: exactly. A millionth apart, off the kinks: to a thousandth."""
    x = case.values()
    m = case.relevance(x)
    derivative = GradientComposite().rule_for(case.layer, case.graph)
    assert isinstance(derivative, Rule)
    expected = single_op.run(case, derivative, x, m).parts
    found = multipliers(case, rule_of(case), x, x, m)
    assert set(found) == set(expected)
    for i, part in found.items():
        close(part, expected[i], 1e-12)
    if "ties" in case.id:
        return
    x = testing.off_the_kinks(x, KINKS.get(case.op, ()), 1e-3)
    nearby = {name: value + 1e-6 for name, value in x.items()}
    expected = single_op.run(case, derivative, x, m).parts
    for i, part in multipliers(case, rule_of(case), x, nearby, m).items():
        close(part, expected[i], 1e-3)


KINKS = {
    "Clip": (-1.0, 2.5, 0.0, 6.0, -0.5, 0.25, 0.5, 1.0),
    "HardSwish": (-3.0, 3.0),
    "HardSigmoid": (-4 / 3, 2.0, -2.5, 2.5),
    "ThresholdedRelu": (0.4,),
}
KINKS |= dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Abs", "Elu", "Selu", "Celu"), (0.0,))


@pytest.mark.parametrize("case", own(distinct()), ids=str)
def test_compiled_backends_agree_with_numpy(case: Case) -> None:
    x, m = case.values(), case.relevance(case.values())
    for x0 in references(case):
        x0 = {name: value.astype(np.float32).astype(np.float64) for name, value in x0.items()}
        plain = multipliers(case, rule_of(case), x, x0, m, NumpyBackend(np.float32))
        for backend in backends.compiled():
            found = multipliers(case, rule_of(case), x, x0, m, backend)
            assert set(found) == set(plain)
            for i, part in plain.items():
                close(found[i], part, 1e-5, f"operand {i} of {backend.name}")


@pytest.mark.parametrize("case", own(distinct()), ids=str)
def test_one_reference_for_all_and_one_image_for_several_classes(case: Case) -> None:
    """A reference of batch 1 against images of batch 2; images of batch 1 against m of batch 3."""
    x, x0 = case.values(), references(case)[0]
    one = {name: value[:1] for name, value in x0.items()}
    m = case.relevance(x)
    n = len(m[0])
    repeated = {name: np.repeat(value, n, axis=0) for name, value in one.items()}
    rule = rule_of(case)
    expected = multipliers(case, rule, x, repeated, m)
    for i, part in multipliers(case, rule, x, one, m).items():
        close(part, expected[i], 1e-12)
    image = {name: value[:1] for name, value in x.items()}
    several = [np.concatenate([part[:1], 2 * part[:1], -part[:1]]) for part in m]
    single = multipliers(case, rule, image, one, [part[:1] for part in m])
    for i, part in multipliers(case, rule, image, one, several).items():
        close(part, np.concatenate([single[i], 2 * single[i], -single[i]]), 1e-12)


# --- which operator has what ------------------------------------------------------------------------------------------


def test_every_operator_is_decided() -> None:
    """Linear, or with a rule of its own, or served by its derivative, or refused with a reason: one of them."""
    for row in registry.table():
        ways = [
            registry.find_linear(row.op) is not None,
            registry.find("rescale", row.op) is not None,
            row.op in BY_DERIVATIVE,
            registry.reason_against("rescale", row.op) is not None,
        ]
        assert sum(ways) == 1, (row.op, ways)
    assert not INDEX_MOVES & AFFINE
    assert set(BY_DERIVATIVE) <= {row.op for row in registry.table()}


def test_what_is_refused_and_why() -> None:
    found = [(case.op, multiplier_rule(case.layer, case.graph)) for case in grid()]
    gaps = {(op, gap.reason) for op, gap in found if isinstance(gap, Gap)}
    assert gaps == {
        ("fgcam::Saturate", "a quantised model does not keep the values that it clamps, and a chord needs them")
    }


def test_operands_that_choose_or_bend_are_refused_when_computed() -> None:
    picked = Case("picked", "Where", (np.ones((2, 3), bool), X((2, 3)), X((2, 3))))
    layer = replace(picked.layer, inputs=("c", *picked.layer.inputs[1:]), constants={})
    gap = multiplier_rule(layer, picked.graph)
    assert isinstance(gap, Gap)
    assert gap.reason == "what it chooses depends on the input, and DeepLIFT has no multiplier for that"
    power = Case("power", "Pow", (X((2, 3), low=0.5), X((2, 3))))
    gap = multiplier_rule(power.layer, power.graph)
    assert isinstance(gap, Gap)
    assert gap.reason == "its operand 'x1' is computed in the graph"


# --- numbers by hand --------------------------------------------------------------------------------------------------


def by_hand(op: str, x: Any, x0: Any, m: Any, *constants: Any, opset: int = 22, **attributes: Any) -> Floats:
    operands = (X(values=x), *(np.asarray(c, np.float32) for c in constants))
    case = Case(f"by hand {op}", op, operands, attributes, opset)
    found = multipliers(case, rule_of(case), {"x0": np.asarray(x, float)}, {"x0": np.asarray(x0, float)}, [np.array(m)])
    return found[0]


def test_relu_by_hand() -> None:
    """Rising from below 0 by the share above it; both below: 0; no change: the derivative."""
    found = by_hand("Relu", [[3.0, -1.0, -1.0, 2.0, -2.0]], [[-1.0, 3.0, -2.0, 2.0, -2.0]], [[1.0, 1.0, 1.0, 5.0, 5.0]])
    close(found, [[0.75, 0.75, 0, 5, 0]], 1e-12)


def test_max_pool_by_hand() -> None:
    """A window that rose gives to the winner on the input, one that fell to the winner on the reference."""
    x, x0 = [[[1.0, 5, 0, 2]]], [[[2.0, 1, 4, 3]]]
    found = by_hand("MaxPool", x, x0, [[[6.0, 6.0]]], kernel_shape=[2], strides=[2])
    close(found, [[[0, 6 * 3 / 4, 6 * 2 / 4, 0]]], 1e-12)


def test_a_winner_that_did_not_change_gives_nothing_away() -> None:
    """The window fell from 4 to 1, its winner on the input was 1 before: all is the fallen cell's."""
    found = by_hand("MaxPool", [[[1.0, 0]]], [[[1.0, 4]]], [[[2.0]]], kernel_shape=[2], strides=[2])
    close(found, [[[0, 2 * 3 / 4]]], 1e-12)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_an_operand_that_did_not_change_gives_nothing_away(op: str) -> None:
    """The same between tensors; a Min is the Max of what is mirrored."""
    sign = 1.0 if op == "Max" else -1.0
    case = Case(f"by hand {op}", op, (X((1, 1)), X((1, 1))), {}, 13)
    x, x0 = ({"x0": np.array([[sign * 1.0]]), "x1": np.array([[sign * b]])} for b in (0.0, 4.0))
    found = multipliers(case, rule_of(case), x, x0, [np.array([[2.0]])])
    close(found[0], [[0.0]], 1e-12)
    close(found[1], [[2 * 3 / 4]], 1e-12)


def test_infinite_slopes_do_not_reach_a_chord() -> None:
    close(by_hand("Sqrt", [[0.0, 4.0, 1.0]], [[4.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]), [[0.5, 0.5, 1.0]], 1e-12)
    close(by_hand("Pow", [[0.0, 4.0]], [[4.0, 0.0]], [[1.0, 1.0]], 0.5, opset=15), [[0.5, 0.5]], 1e-12)
    close(by_hand("Pow", [[0.0, 4.0]], [[0.0, 2.0]], [[1.0, 1.0]], 0.0, opset=15), [[0.0, 0.0]], 1e-12)


# --- whole networks, against captum -----------------------------------------------------------------------------------


def walk(model: onnx.ModelProto, x: Floats, x0: Floats, start: Floats) -> Floats:
    """Multipliers of the picture: each layer's rule, from the logits back, sums at fan-out."""
    graph = build_view(load(model))
    at, at0 = single_op.tape(model, x), single_op.tape(model, x0)
    tape = {**at, **{REFERENCE + name: value for name, value in at0.items()}}
    shapes = {name: value.shape for name, value in at.items()}
    found: dict[str, Floats] = {graph.logits: start}
    for layer in reversed(graph.layers):
        if layer.output not in found:
            continue
        rule = multiplier_rule(layer, graph)
        assert isinstance(rule, Rule), rule
        xp = NumpyVerbs(np.float64)
        flow: Flow = rule.function(Node(layer, graph, xp, tape, shapes, rule.options), found[layer.output], xp)
        for i, part in flow.parts.items():
            name = layer.inputs[i]
            found[name] = found.get(name, 0) + part
    return found[graph.image]


class Apart(nn.Module):
    """A new tensor. Where a MaxPool touches a ReLU, captum 0.9 takes the gradient of its output for the multiplier."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Plain(nn.Sequential):
    """VGG's kind: ReLU, MaxPool, fully connected."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Apart(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3), nn.ReLU(), Apart(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(8 * 1 * 2, 10), nn.ReLU(), nn.Linear(10, 4)),
        )


class Curved(nn.Sequential):
    """Smooth activations, and pools after them."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 6, 3), nn.ELU(), Apart(), nn.MaxPool2d(2, 2, 1)),
            *(nn.Conv2d(6, 6, 3, padding=1), nn.Sigmoid(), nn.Conv2d(6, 6, 3, 2), nn.Tanh()),
            *(nn.Conv2d(6, 6, 1), nn.Softplus(), nn.Conv2d(6, 6, 1), nn.LeakyReLU(0.25)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )


class Residual(nn.Module):
    """Two paths that meet, before a ReLU and before a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool, self.last = nn.MaxPool2d(3, 3), nn.Linear(6 * 2 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.stem(x))
        x = self.relu3(self.two(self.relu2(self.one(x))) + x)
        return self.last(self.pool(x.clone()).flatten(1))


BASELINES: dict[str, Callable[[Floats], Floats]] = {
    "zero": np.zeros_like,
    "other": lambda x: np.random.default_rng(9).normal(size=x.shape).astype(np.float32),
    "half the same": lambda x: np.where(np.arange(x.shape[-1]) < x.shape[-1] // 2, x, 0.0),
}


def pictures(n: int = 2) -> Floats:
    return np.random.default_rng(4).normal(size=(n, 3, 10, 14)).astype(np.float32)


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return kind().eval()


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kind", [Plain, Curved, Residual], ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")
def test_networks_as_captum_has_them(kind: type[nn.Module], baseline: str) -> None:
    """Contributions m (x - x0) of each pixel, in float64, and their sum y(x) - y(x0)."""
    import_torchvision()
    from captum.attr import DeepLift

    model, x, target = network(kind), pictures(), [3, 1]
    x0 = BASELINES[baseline](x)
    file = onnx.load_from_string(export(model, torch.tensor(x), exporter="legacy"))
    found = walk(file, x, x0, np.eye(4)[target]) * (x.astype(np.float64) - x0)
    model = model.double()
    at, at0 = torch.tensor(x).double(), torch.tensor(x0).double()
    expected = DeepLift(model).attribute(at, at0, target=torch.tensor(target))
    close(found, expected.detach().numpy(), 1e-9)
    with torch.no_grad():  # as an oracle captum has to be complete itself
        change = (model(at) - model(at0))[range(2), target].numpy()
    close(rows(expected.detach().numpy()), change, 1e-9)
    close(rows(found), change, 1e-9)


# --- guided backpropagation -------------------------------------------------------------------------------------------


def guided(op: str, x: Any, r: Any, *constants: Any, opset: int = 13) -> Floats:
    operands = (X(values=x), *(None if c is None else np.asarray(c, np.float32) for c in constants))
    case = Case(f"guided {op}", op, operands, {}, opset)
    rule = registry.find("gradient", op, "guided")
    assert rule is not None
    answers = [single_op.run(case, rule, case.values(), [np.array(r)]).parts[0]]
    answers += [a.parts[0] for a in single_op.run_float32(case, rule, case.values(), [np.array(r)])]
    for other in answers[1:]:
        close(other, answers[0], 1e-6)
    return answers[0]


def test_guided_relu_passes_what_is_positive_twice() -> None:
    close(guided("Relu", [[2.0, 2, -1, -1, 0]], [[3.0, -3, 3, -3, 3]]), [[3, 0, 0, 0, 0]])


def test_guided_clip_from_zero_is_a_relu_with_an_end() -> None:
    x, r = [[2.0, 2, -1, 7, 6, 0]], [[3.0, -3, 3, 3, 3, 3]]
    close(guided("Clip", x, r, 0.0, 6.0), [[3, 0, 0, 0, 0, 0]])
    close(guided("Clip", x, r, 0.0), [[3, 0, 0, 3, 3, 0]])


def test_guided_clip_from_elsewhere_is_the_derivative() -> None:
    close(guided("Clip", [[2.0, 2, -1, 7]], [[3.0, -3, -3, 3]], -2.0, 6.0), [[3, -3, -3, 0]])
    close(guided("Clip", [[2.0, 2, -1, 7]], [[3.0, -3, -3, 3]], None, 6.0), [[3, -3, -3, 0]])


def test_guided_saturate_where_a_relu_was_absorbed() -> None:
    rule = registry.find("gradient", "fgcam::Saturate", "guided")
    assert rule is not None
    centred, relu6 = (case for case in grid() if case.op == "fgcam::Saturate")
    x = relu6.values()
    (r,) = relu6.relevance(x)
    close(single_op.run(relu6, rule, x, [r]).parts[0], np.where((x["x0"] > 0) & (r > 0), r, 0))
    close(single_op.run(relu6, rule, relu6.values("positive"), [r], nonnegative=True).parts[0], r)
    (r,) = centred.relevance(centred.values())
    close(single_op.run(centred, rule, centred.values(), [r]).parts[0], r)


def test_guided_is_never_the_default() -> None:
    named = [row.op for row in registry.table() if registry.find("gradient", row.op, "guided") is not None]
    assert named == ["Clip", "Relu", "fgcam::Saturate"]
    for op in named:
        assert registry.find("gradient", op).name == "gradient"  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore")
def test_guided_networks_as_captum_has_them() -> None:
    import_torchvision()
    from captum.attr import GuidedBackprop

    model, x, target = network(Residual), pictures(), [3, 1]
    file = onnx.load_from_string(export(model, torch.tensor(x), exporter="legacy"))
    graph = build_view(load(file))
    tape = single_op.tape(file, x)
    shapes = {name: value.shape for name, value in tape.items()}
    found: dict[str, Floats] = {graph.logits: np.eye(4)[target]}
    xp = NumpyVerbs(np.float64)
    for layer in reversed(graph.layers):
        rule = registry.find("gradient", layer.op, "guided") or GradientComposite().rule_for(layer, graph)
        assert isinstance(rule, Rule)
        flow = rule.function(Node(layer, graph, xp, tape, shapes, rule.options), found[layer.output], xp)
        for i, part in flow.parts.items():
            found[layer.inputs[i]] = found.get(layer.inputs[i], 0) + part
    expected = GuidedBackprop(model.double()).attribute(torch.tensor(x).double(), target=torch.tensor(target))
    close(found[graph.image], expected.detach().numpy(), 1e-9)
