"""LRP against zennit and captum, and CLRP and SGLRP against plain torch, on torchvision's networks at random weights.

The references compute in float64. The engine's activations come from onnxruntime in float32 whatever computes the
descent, so both backends are held to what float32 gives; ``test_parity_every_method`` has the stricter bound.

Differences that are meant: zennit starts from 1 and the engine from the logit, so a map is compared times |z_t|; zennit
keeps b in the denominators of z+, alpha-beta and gamma, which is the engine's ``bias=True``, and both are compared;
zennit's z^B gets the bounds of each picture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the references are written in PyTorch")
if not all(importlib.util.find_spec(tool) for tool in ("zennit", "captum")):
    pytest.skip("zennit and captum are not installed: LRP is compared with them", allow_module_level=True)

from parity import captum_methods, zennit_lrp  # noqa: E402
from parity.logit_relevance import Composite, CompositeRelevance, LogitRelevance  # noqa: E402
from parity.networks import Network, network, onnx_file  # noqa: E402
from torch_reference import relative_error  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402

FLOAT32, FLOAT64 = 1e-4, 1e-5
SECOND_OPINION = 1e-6  # two float64 programs, of which zennit's divides by z + 1e-12
QUICK, SLOW = ("resnet18", "mobilenet_v2"), ("vgg11_bn",)

COMPOSITES = {
    "epsilon_plus": Composite("z_plus", "epsilon"),
    "epsilon_alpha2_beta1": Composite("alpha2_beta1", "epsilon"),
    "epsilon_plus_flat": Composite("z_plus", "epsilon", "flat"),
    "epsilon_alpha2_beta1_flat": Composite("alpha2_beta1", "epsilon", "flat"),
    "epsilon_gamma_box": Composite("gamma", "epsilon", "z_box"),
    "excitation": Composite("z_plus", "z_plus"),
}
# What every run compares of VGG, which has no operator that the others lack; the rest is compared with -m slow.
OF_VGG = {("epsilon_plus", False), ("epsilon_alpha2_beta1", True), ("epsilon_gamma_box", True)}
# Without the bias gamma's denominators come as near to 0 as they like: sum |R| is 1e5 of a ResNet's, 1e36 of a
# MobileNet's start, and no digits are left of float32's activations. Given the same activations it is compared all the
# same, of the references below and on small networks.
ILL_CONDITIONED = ("epsilon_gamma_box", False)


def cases() -> Iterator[Any]:
    for name in (*QUICK, *SLOW):
        for composite in COMPOSITES:
            for bias in (False, True):
                if (composite, bias) == ILL_CONDITIONED:
                    continue
                slow = name in SLOW and (composite, bias) not in OF_VGG
                yield pytest.param(name, composite, bias, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def explainer(name: str, backend: str) -> Explainer:
    precision = "float64" if backend == "numpy" else "float32"
    return Explainer(onnx_file(name), backend=backend, precision=precision, threads=1)


@cache
def by_zennit(name: str, composite: str, bias: bool) -> NDArray[np.float64]:
    """[1, c, h, w], from 1 at the class."""
    net = network(name)
    return zennit_lrp.lrp(net.exact(), net.pictures().double(), net.targets(), composite, bias=bias)


def found(of: str | Network, backend: str, method: str = "lrp", **options: Any) -> tuple[NDArray[Any], float]:
    """The engine's map, and |z_t|, for the class that torch predicts."""
    net = network(of) if isinstance(of, str) else of
    e = explainer(net.name, backend).explain(
        net.pictures().numpy(), method=method, target=net.targets().tolist(), **options
    )
    return e.relevance, abs(float(e.score[0]))


# ------------------------------------------------------------------------------------ the references with one another


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", QUICK)
def test_zennit_is_the_formulas(name: str, composite: str, bias: bool) -> None:
    """zennit, its canonizers and our own of MobileNetV2 compute what the formulas say: a reference that is right."""
    net = network(name)
    replica = CompositeRelevance(net.model, replace(COMPOSITES[composite], bias=bias))
    logits = replica.forward(net.pictures())
    expected = replica.walk(torch.nn.functional.one_hot(net.targets(), logits.shape[1])).numpy()
    assert relative_error(by_zennit(name, composite, bias), expected) <= SECOND_OPINION


def test_a_bias_more_is_noticed() -> None:
    """A check of the check: the two variants are not nearly the same map."""
    with_it, without = (by_zennit("resnet18", "epsilon_plus", bias).sum(1) for bias in (True, False))
    assert relative_error(with_it, without) > 0.1


def test_an_add_that_doubles_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its canonizer a residual Add hands all it got to both operands: the map grows block by block."""
    net = network("mobilenet_v2")
    right = by_zennit("mobilenet_v2", "epsilon_plus", False)  # kept by a cache: before the canonizer is out
    monkeypatch.setitem(zennit_lrp.CANONIZERS, "MobileNetV2", lambda: [zennit_lrp.ExactMergeBatchNorm()])
    doubled = zennit_lrp.lrp(net.exact(), net.pictures().double(), net.targets(), "epsilon_plus")
    assert relative_error(doubled, right) > 1


# ------------------------------------------------------------------------------------------------- the engine against


@pytest.mark.parametrize("backend", ["ort", "numpy"])
@pytest.mark.parametrize(("name", "composite", "bias"), list(cases()))
def test_zennit(name: str, composite: str, bias: bool, backend: str) -> None:
    relevance, score = found(name, backend, composite=composite, bias=bias)
    expected = score * by_zennit(name, composite, bias).sum(1)
    assert relative_error(relevance, expected) <= (FLOAT32 if backend == "ort" else FLOAT64)


@pytest.mark.parametrize("name", QUICK)
def test_excitation_backprop_starts_from_one(name: str) -> None:
    relevance, _ = found(name, "ort", "excitation-backprop")
    assert relative_error(relevance, by_zennit(name, "excitation", False).sum(1)) <= FLOAT32


@pytest.mark.parametrize(
    ("conv", "rules"),
    [
        ("epsilon", {"Conv": "epsilon(epsilon=1e-9)"}),
        ("z_plus", {"first": "epsilon(epsilon=1e-9)", "Conv": "z_plus"}),
        ("gamma", {"first": "epsilon(epsilon=1e-9)", "Conv": "gamma(gamma=0.25, form='nonnegative')"}),
    ],
    ids=["epsilon", "z_plus", "gamma"],
)
def test_captum_lrp_of_a_chain(conv: str, rules: dict[str, str]) -> None:
    """captum starts from the logit, sign and all; its linear layers have epsilon 1e-9. It refuses residual networks."""
    net = replace(network("vgg11_bn"), seed=35)  # of which captum's own float32 is 8e-6 from its float64 with gamma
    expected = captum_methods.lrp(net.exact(), net.pictures().double(), net.targets(), conv).sum(1)
    relevance, _ = found(net, "ort", composite="epsilon_plus", epsilon=1e-9, rules=rules)
    assert relative_error(relevance, expected) <= FLOAT32


@pytest.mark.parametrize("name", [*QUICK, pytest.param("vgg11_bn", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lrp", {}),
        ("sglrp", {}),
        ("clrp", {"variant": "1"}),
        ("clrp", {"variant": "abs"}),
        ("clrp", {"variant": "2"}),
        ("clrp", {"variant": "relevance-cam"}),
    ],
    ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else v,
)
def test_the_papers_lrp_and_contrasts(name: str, method: str, options: dict[str, Any]) -> None:
    """z^B at the picture and z+ elsewhere, from the starts of methods 4.2, which no library has."""
    net = network(name)
    reference = LogitRelevance(net.model)
    x, t = net.pictures(), net.targets()
    expected = getattr(reference, method)(x, t, **options)
    expected = expected if expected.ndim == 3 else expected.sum(1)
    for backend, bound in (("ort", FLOAT32), ("numpy", FLOAT64)):
        relevance, _ = found(name, backend, method, **options)
        assert relative_error(relevance, expected) <= bound
