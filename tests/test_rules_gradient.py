"""The gradient rule of every operator is the derivative of the operator.

Expected values are central differences of the ONNX operator itself in float64, so no formula is shared; where the
operator has a kink or ties, points are chosen off the kink, and ties are compared with torch. Tolerance 1e-6.
"""

from __future__ import annotations

import backends
import numpy as np
import pytest
import single_op
import torch
from operator_cases import grid
from single_op import Case, X, changed, close, larger, linear_ops, rule
from torch.nn import functional as F  # noqa: N812

from fgcam_onnx import registry, testing

TIES = "ties"
# Where the operator has a kink, the slope beside it is not the slope there.
KINKS: dict[str, tuple[float, ...]] = dict.fromkeys(
    ("Relu", "LeakyRelu", "PRelu", "Abs", "Elu", "Selu", "Celu"), (0.0,)
)
KINKS |= {"Clip": (-1.0, 2.5, 0.0, 6.0, -0.5, 0.25, 0.5, 1.0), "HardSwish": (-3.0, 3.0)}
# Differences of a Cast would measure its rounding; the derivative of Saturate is not that of what it computes.
APART = ("Cast", "fgcam::Saturate")
CASES = [case for case in grid() if TIES not in case.id and case.op not in APART]


def kinks(case: Case) -> tuple[float, ...]:
    if case.op == "HardSigmoid":
        alpha, beta = case.layer.attributes["alpha"], case.layer.attributes["beta"]
        return (-beta / alpha, (1 - beta) / alpha)
    return KINKS.get(case.op, ())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_derivative(case: Case) -> None:
    testing.check_gradient(case, kinks=kinks(case))


@pytest.mark.parametrize("case", [c for c in grid() if c.op not in linear_ops()], ids=str)
def test_compiled_backends_agree_with_numpy(case: Case) -> None:
    """Linear maps are compared in test_rules_replica."""
    testing.check_backends(case, "gradient", list(backends.compiled()), kinks=kinks(case))


@pytest.mark.parametrize("case", [c for c in grid() if c.op == "Cast"], ids=str)
def test_cast_passes_the_gradient(case: Case) -> None:
    """To a float, it is the identity."""
    x = case.values()
    r = case.relevance(x)
    close(single_op.run(case, rule(case, "gradient"), x, r).parts[0], r[0])


def test_saturate_is_a_relu_or_nothing() -> None:
    """1[y > 0] where a range that starts at 0 stands for a ReLU; else 1, also on the ends of the range."""
    centred, relu6 = (case for case in grid() if case.op == "fgcam::Saturate")
    x = centred.values()
    (r,) = centred.relevance(x)
    close(single_op.run(centred, rule(centred, "gradient"), x, [r]).parts[0], r)
    x = relu6.values()
    assert (x["x0"] > 6).any()
    close(single_op.run(relu6, rule(relu6, "gradient"), x, [r]).parts[0], np.where(x["x0"] > 0, r, 0))
    x = relu6.values("positive")
    close(single_op.run(relu6, rule(relu6, "gradient"), x, [r], nonnegative=True).parts[0], r)


def test_every_operator_has_a_gradient() -> None:
    missing = [row.op for row in registry.table() if "gradient" not in row.rules]
    assert missing == []
    assert {row.op for row in registry.table()} == {case.op for case in grid()}


def test_ties_go_to_the_first_maximum_as_in_torch() -> None:
    """An integer-valued picture; torch sends the gradient to one cell of a tied window, the first, as we do."""
    case = next(c for c in grid() if c.op == "MaxPool" and TIES in c.id and c.attributes["kernel_shape"] == [3, 3])
    x = case.values()
    (r,) = case.relevance(x)
    leaf = torch.tensor(x["x0"], requires_grad=True)
    F.max_pool2d(leaf, 3, stride=2, padding=1).backward(torch.tensor(r))
    assert leaf.grad is not None
    close(single_op.run(case, rule(case, "gradient"), x, [r]).parts[0], leaf.grad.numpy())


TORCH = {
    "Relu": torch.relu,
    "LeakyRelu": lambda t: F.leaky_relu(t, 0.01),
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Elu": F.elu,
    "Celu": F.celu,
    "Selu": F.selu,
    "Erf": torch.erf,
    "Gelu": F.gelu,
}


@pytest.mark.parametrize("op", TORCH)
def test_activations_as_torch_has_them(op: str) -> None:
    """A second opinion, also at 0, where Relu and LeakyRelu have a kink."""
    case = Case(f"torch {op}", op, (X(values=np.linspace(-7, 7, 113).reshape(1, -1)),), opset=22)
    x = case.values()
    (r,) = case.relevance(x)
    leaf = torch.tensor(x["x0"], requires_grad=True)
    TORCH[op](leaf).backward(torch.tensor(r))
    assert leaf.grad is not None
    close(single_op.run(case, rule(case, "gradient"), x, [r]).parts[0], leaf.grad.numpy(), 1e-6)


@pytest.mark.parametrize("op", ["Softplus", "Mish", "Sigmoid", "Swish", "Gelu", "Tanh"])
def test_far_from_zero_nothing_overflows(op: str) -> None:
    case = Case(f"far {op}", op, (X(values=[[-300.0, -90, 90, 300]]),), opset=24)
    x = case.values()
    for backend in single_op.run_float32(case, rule(case, "gradient"), x, [np.ones((1, 4))]):
        assert np.isfinite(backend.parts[0]).all()


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_a_permille_is_noticed(op: str) -> None:
    case = next(c for c in CASES if c.op == op)
    wrong = changed(rule(case, "gradient"), larger)
    with pytest.raises(
        AssertionError, match=r"gradient of rule 'gradient' on .* the derivative by operand \d is off by"
    ):
        testing.check_gradient(case, wrong, kinks(case))
