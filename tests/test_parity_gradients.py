"""Gradient-type methods against captum, and RISE against a plain loop, on torchvision's networks at random weights.

Differences that are meant: captum guides and rescales ``nn.ReLU`` and not ``nn.ReLU6``, and its DeepLIFT is wrong at
max-pools behind an activation or with overlapping windows (parity/captum_methods.py). The engine's maps are sums over
colour channels. Pictures are chosen such that no ReLU is in doubt: at a kink two correct programs differ by 1e-3. They
are chosen by torch alone: every unit is 3 times float32's noise away from another decision (torch_reference.margin).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references are written in PyTorch")
if importlib.util.find_spec("captum") is None:
    pytest.skip("captum is not installed: gradient-type methods are compared with it", allow_module_level=True)

from parity import captum_methods, plain_loops  # noqa: E402
from parity.networks import network, onnx_file  # noqa: E402
from torch_reference import relative_error  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402
from fgcam_onnx.attributions.rise import random_masks  # noqa: E402
from fgcam_onnx.attributions.smooth_grad import standard_noise  # noqa: E402

FLOAT32, FLOAT64 = 1e-4, 1e-5
NAMES = ("resnet18", "mobilenet_v2", "vgg11_bn")
STEPS, SAMPLES, NOISE, MASKS = 2, 2, 0.1, 24


def smooth_grad(model: Any, x: Any, target: Any) -> Any:
    e = torch.from_numpy(standard_noise(range(SAMPLES), x.shape[1:])).to(x)
    return captum_methods.smooth_grad(model, x, target, NOISE * (x.max() - x.min()) * e[None])


def rise(model: Any, x: Any, target: Any) -> Any:
    masks = random_masks(range(MASKS), x.shape[2:])
    return plain_loops.rise(model, x, target, masks, keep=0.5)[:, None]


Reference = Callable[[Any, Any, Any], Any]
CASES: dict[str, tuple[str, dict[str, Any], Reference]] = {
    "gradient": ("gradient", {}, captum_methods.gradient),
    "gradient-x-input": ("gradient-x-input", {}, captum_methods.gradient_x_input),
    "guided-backprop": ("guided-backprop", {}, lambda m, x, t: captum_methods.guided_backprop(m, x, t, relu6=True)),
    "guided-backprop, ReLU alone": ("guided-backprop", {"guide": "relu"}, captum_methods.guided_backprop),
    "deeplift": ("deeplift", {}, captum_methods.deep_lift),
    "integrated-gradients, Gauss-Legendre": (
        "integrated-gradients", {"steps": STEPS},
        lambda m, x, t: captum_methods.integrated_gradients(m, x, t, STEPS, "gausslegendre"),
    ),
    "integrated-gradients, right Riemann": (
        "integrated-gradients", {"steps": STEPS, "quadrature": "riemann_right"},
        lambda m, x, t: captum_methods.integrated_gradients(m, x, t, STEPS, "riemann_right"),
    ),
    "smooth-grad": ("smooth-grad", {"samples": SAMPLES, "noise": NOISE}, smooth_grad),
    "rise": ("rise", {"masks": MASKS}, rise),
}  # fmt: skip
# Methods that look at several pictures need others than the one in which a single forward pass has no kink.
SEEDS = {
    ("mobilenet_v2", "integrated-gradients, Gauss-Legendre"): 26,
    ("mobilenet_v2", "integrated-gradients, right Riemann"): 35,
    ("mobilenet_v2", "smooth-grad"): 24,
    ("resnet18", "smooth-grad"): 11,
    ("vgg11_bn", "integrated-gradients, Gauss-Legendre"): 12,
    ("vgg11_bn", "smooth-grad"): 15,
}


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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_captum(name: str, case: str) -> None:
    net, (method, options, reference) = network(name), CASES[case]
    net = replace(net, seed=SEEDS.get((name, case), net.seed))
    x, target = net.pictures(), net.targets()
    expected = reference(net.exact(), x.double(), target).sum(1)
    # DeepLIFT divides by differences of activations, which are onnxruntime's, in float32, whatever computes the rest.
    # What that costs is seen of the reference: 1e-5 after the 52 layers of a MobileNet.
    rounding = relative_error(reference(net.exact().float(), x, target).sum(1), expected) if case == "deeplift" else 0
    if name == "vgg11_bn" and rounding > FLOAT32 / 2:
        # A max-pool's share is over x - x0, which is as small as it likes where the winner moves.
        pytest.skip(f"captum's own float32 is {rounding:.0e} from its float64: such a picture says nothing")
    assert rounding <= FLOAT32 / 2
    for backend, bound in (("ort", FLOAT32), ("numpy", max(FLOAT64, 2 * rounding))):
        e = explainer(name, backend).explain(x.numpy(), method=method, target=target.tolist(), **options)
        assert relative_error(e.relevance, expected) <= bound, backend


def test_captums_gradient_is_autograds() -> None:
    net = network("resnet18")
    x, target = net.pictures().double(), net.targets()
    np.testing.assert_allclose(
        captum_methods.gradient(net.exact(), x, target), plain_loops.gradient(net.exact(), x, target), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_deep_lift_that_is_compared_closes(name: str) -> None:
    """The reference promises y(x) - y(0); mended it keeps the promise, and on a MobileNet captum itself does not."""
    net = network(name)
    model, x, target = net.exact(), net.pictures().double(), net.targets()
    with torch.no_grad():
        promised = (model(x) - model(torch.zeros_like(x))).gather(1, target[:, None])[:, 0].numpy()
    mended = captum_methods.deep_lift(model, x, target).sum((1, 2, 3))
    np.testing.assert_allclose(mended, promised, rtol=1e-8)
    if name == "mobilenet_v2":
        raw = captum_methods.deep_lift(model, x, target, mended=False).sum((1, 2, 3))
        assert not np.allclose(raw, promised, rtol=0.1)


def test_a_relu6_that_is_not_guided_is_noticed() -> None:
    net = network("mobilenet_v2")
    model, x, target = net.exact(), net.pictures().double(), net.targets()
    guided, plain = (captum_methods.guided_backprop(model, x, target, relu6=relu6).sum(1) for relu6 in (True, False))
    assert relative_error(guided, plain) > 0.1
