"""The formulas of LRP with their parameters: against the dense matrix, against each other, against zennit."""

from __future__ import annotations

from typing import Any

import backends
import numpy as np
import pytest
from operator_cases import distinct

from fgcam_onnx import registry, testing
from fgcam_onnx.composite import RelevanceComposite, split_rule
from fgcam_onnx.errors import OptionError
from fgcam_onnx.propagation import FORMULAS, checked
from fgcam_onnx.testing.case import Case
from fgcam_onnx.testing.run import rule, run

LINEAR = [case for case in distinct() if registry.find_linear(case.op) is not None]
LEARNED = [case for case in LINEAR if not registry.find_linear(case.op)[0].fixed_nonnegative]  # type: ignore[index]
PARAMETERS = [
    "z_plus(bias=True)",
    "z_plus(negate=True)",
    "z_plus(bias=True, negate=True)",
    "epsilon(epsilon=0.3, bias=False)",
    "epsilon(epsilon=0.3)",
    "alpha_beta(alpha=1, beta=0)",
    "alpha_beta(alpha=3, beta=2, bias=True)",
    "gamma(gamma=2, bias=True)",
    "gamma(form='nonnegative')",
    "gamma(gamma=0)",
]


# Their denominators may cancel: they are compared where the operator is known in float64.
CANCEL = ("gamma(form='nonnegative')", "gamma(gamma=0)")


# Every run has each set of parameters on every other operator, and each operator with every other set.
@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case}-{name}", marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
        for i, case in enumerate(LINEAR)
        for j, name in enumerate(PARAMETERS)
        if case.operator.exact or name not in CANCEL
    ],
)
def test_parameters_on_the_matrix(case: Case, name: str) -> None:
    assert not testing.check_replica(case, name).skipped


@pytest.mark.parametrize("name", PARAMETERS[1:5] + PARAMETERS[6:8])
@pytest.mark.parametrize("case", LEARNED[::3], ids=str)
def test_parameters_on_compiled_backends(case: Case, name: str) -> None:
    testing.check_backends(case, name, list(backends.compiled()), styles=["mixed", "positive"])


def test_every_parameter_is_among_them() -> None:
    given = {(split_rule(text)[0], key) for text in PARAMETERS for key in split_rule(text)[1]}
    assert given == {(f.name, key) for f in FORMULAS.values() for key in f.parameters}


def parts(case: Case, name: str, style: str = "mixed") -> np.ndarray:
    x = case.values(style)
    found: np.ndarray = next(iter(run(case, rule(case, name), x, case.relevance(x)).parts.values()))
    return found


@pytest.mark.parametrize("case", LEARNED, ids=str)
def test_formulas_meet_at_their_limits(case: Case) -> None:
    np.testing.assert_allclose(parts(case, "alpha_beta(alpha=1, beta=0)"), parts(case, "z_plus"), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts(case, "epsilon(epsilon=0)"), parts(case, "zero"), rtol=1e-12)


def test_gamma_tends_to_z_plus() -> None:
    """Where every output has a positive contribution: where none has, z+ drops and gamma shares among the negative."""
    rng = np.random.default_rng(5)
    w = rng.standard_normal((6, 40))
    case = Case("limit", "Gemm", (testing.X((2, 40)), w), {"transB": 1}, 13)
    limit = parts(case, "z_plus", "positive")
    away = [
        np.abs(parts(case, f"gamma(gamma={g}, form='nonnegative')", "positive") - limit).max() / np.abs(limit).max()
        for g in (10.0, 1e3, 1e5)
    ]
    assert away[0] > 10 * away[1] > 100 * away[2]
    assert away[2] < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama", "rule 'gama' cannot serve Conv"),
        ("gamma(gama=1)", "rule 'gamma' has no parameter 'gama'"),
        ("gamma(gamma=-1)", "parameter gamma of rule 'gamma' cannot be -1"),
        ("gamma(form=1)", "parameter form of rule 'gamma' cannot be 1"),
        ("alpha_beta(alpha=2, beta=2)", "rule 'alpha_beta' cannot have alpha=2 and beta=2"),
        ("z_plus(bias=1)", "parameter bias of rule 'z_plus' cannot be 1"),
        ("epsilon(1)", "'epsilon(1)' is no rule"),
        ("epsilon(", "'epsilon(' is no rule"),
        (("epsilon", 3), "('epsilon', 3) is no rule"),
    ],
)
def test_a_rule_that_nobody_knows(text: Any, message: str) -> None:
    conv = next(case for case in LEARNED if case.op == "Conv")
    with pytest.raises(OptionError) as caught:
        RelevanceComposite(rules={"conv": text}).rule_for(conv.layer, conv.graph)
    assert caught.value.what == message


def test_defaults_are_filled_in() -> None:
    assert checked("gamma", {"gamma": 1}) == {"gamma": 1.0, "form": "general", "bias": False}


# --- zennit ---------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
import parity  # noqa: E402, F401 - declares what torchvision needs, which zennit imports

zennit_rules = pytest.importorskip("zennit.rules")
STABILISER = 1e-12
LAYERS: dict[str, Any] = {
    "plain": lambda: torch.nn.Conv2d(3, 4, 3),
    "padded": lambda: torch.nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(2, 1)),
    "grouped": lambda: torch.nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=1),
    "linear": lambda: torch.nn.Linear(7, 5),
}
SIZES = {"plain": (2, 3, 6, 5), "padded": (2, 3, 6, 5), "grouped": (2, 4, 6, 7), "linear": (2, 7)}
RULES: dict[str, Any] = {
    "epsilon(epsilon=0.01)": lambda: zennit_rules.Epsilon(epsilon=0.01),
    "z_plus": lambda: zennit_rules.ZPlus(stabilizer=STABILISER, zero_params="bias"),
    "z_plus(bias=True)": lambda: zennit_rules.ZPlus(stabilizer=STABILISER),
    "alpha_beta": lambda: zennit_rules.AlphaBeta(2, 1, stabilizer=STABILISER, zero_params="bias"),
    "alpha_beta(bias=True)": lambda: zennit_rules.AlphaBeta(2, 1, stabilizer=STABILISER),
    "gamma(gamma=0.25, bias=True)": lambda: zennit_rules.Gamma(0.25, stabilizer=STABILISER),
    "flat": lambda: zennit_rules.Flat(stabilizer=STABILISER),
    "w_square": lambda: zennit_rules.WSquare(stabilizer=STABILISER, zero_params="bias"),
}


def by_zennit(layer: Any, name: str, x: Any, r: Any) -> np.ndarray:
    handle = RULES[name]().register(layer)
    try:
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(layer(x), x, r)
    finally:
        handle.remove()
    result: np.ndarray = found.numpy()
    return result


def ours(layer: Any, name: str, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    operands = (testing.X(x.shape), w, b)
    if x.ndim == 2:
        case = Case("linear", "Gemm", operands, {"transB": 1}, 13)
    else:
        how = {"strides": list(layer.stride), "pads": [*layer.padding, *layer.padding], "group": layer.groups,
               "dilations": list(layer.dilation)}  # fmt: skip
        case = Case("conv", "Conv", operands, how, 11)
    (first,) = case.inputs
    found: np.ndarray = run(case, rule(case, name), {first: x}, [r]).parts[0]
    return found


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", LAYERS)
def test_zennit_gives_the_same(kind: str, name: str) -> None:
    """Inputs of both signs, a bias, padding, strides, groups; in float64."""
    torch.manual_seed(3)
    layer = LAYERS[kind]().double()
    x = torch.randn(SIZES[kind], dtype=torch.float64)
    r = torch.randn_like(layer(x)).detach()
    theirs, mine = by_zennit(layer, name, x, r), ours(layer, name, x.numpy(), r.numpy())
    assert np.linalg.norm(mine - theirs) <= 1e-8 * np.linalg.norm(theirs)


def test_a_bias_more_is_noticed() -> None:
    torch.manual_seed(3)
    layer = LAYERS["plain"]().double()
    x = torch.randn(SIZES["plain"], dtype=torch.float64)
    r = torch.randn_like(layer(x)).detach()
    theirs, mine = by_zennit(layer, "z_plus(bias=True)", x, r), ours(layer, "z_plus", x.numpy(), r.numpy())
    assert np.linalg.norm(mine - theirs) > 1e-3 * np.linalg.norm(theirs)
