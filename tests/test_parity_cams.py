"""CAMs against pytorch-grad-cam before any normalisation, and the exact relations between methods, on real networks.

At L and two shallower stages. Differences that are meant: pytorch-grad-cam resizes Score-CAM's masks with aligned
corners, and is made to do it half-pixel; Eigen-CAM's sign is free there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the references are written in PyTorch")
if importlib.util.find_spec("pytorch_grad_cam") is None:
    pytest.skip("pytorch_grad_cam is not installed: CAMs are compared with it", allow_module_level=True)

from parity import grad_cam_maps  # noqa: E402
from parity.logit_relevance import LogitRelevance  # noqa: E402
from parity.networks import network, onnx_file  # noqa: E402
from torch import nn  # noqa: E402
from torch_reference import relative_error  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402

FLOAT32, FLOAT64 = 1e-4, 1e-5
NAMES = ("resnet18", "mobilenet_v2", "vgg11_bn")
POOLED = ("resnet18", "mobilenet_v2")  # their head: a global average and one linear layer
CHEAP = ("grad-cam", "grad-cam++", "xgrad-cam", "layer-cam", "hires-cam", "eigen-cam")


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


def stage(name: str, place: int) -> str:
    """The tensor of the network's place-th layer: L, and two before it."""
    return explainer(name, "ort").layers()[network(name).stages[place]].name


def found(name: str, method: str, backend: str = "ort", **options: Any) -> NDArray[Any]:
    net = network(name)
    return explainer(name, backend).explain(
        net.pictures().numpy(), method=method, target=net.targets().tolist(), **options
    ).relevance  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_are_the_same_tensors(name: str) -> None:
    """torch's submodules and the file's tensors: a map of the wrong layer could only agree by accident."""
    net = network(name)
    assert stage(name, 0) == explainer(name, "ort").default_layer
    kept: list[Any] = []
    for layer in net.layers:
        net.model.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o.detach().clone()))
    with torch.no_grad():
        net.model(net.pictures())
    names = [stage(name, place) for place in range(3)]
    tensors = explainer(name, "ort").activations(net.pictures().numpy(), names)
    for module in net.model.modules():
        module._forward_hooks.clear()
    for tensor, value in zip(names, reversed(kept), strict=True):
        assert relative_error(tensors[tensor], value.numpy()) <= 1e-5


@pytest.mark.parametrize("place", range(3), ids=["L", "above", "higher"])
@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize("name", NAMES)
def test_pytorch_grad_cam(name: str, method: str, place: int) -> None:
    net = network(name)
    expected = grad_cam_maps.coarse(method, net.exact(), net.layers[place], net.pictures().double(), net.targets())
    for backend, bound in (("ort", FLOAT32), ("numpy", FLOAT64)):
        relevance = found(name, method, backend, layer=stage(name, place))
        if method == "eigen-cam":  # the sign is free
            expected = expected * np.sign((expected * relevance).sum())
        assert relative_error(relevance, expected) <= bound, backend


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("score-cam", {"weights": "softmax"}), ("ablation-cam", {})])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_pytorch_grad_cam_with_a_pass_for_each_channel(name: str, method: str, options: dict[str, Any]) -> None:
    """In float32 on both sides; the library ablates to 0 where the layer's least value is 0, as at L it is."""
    net = network(name)
    expected = grad_cam_maps.coarse(method, net.exact(), net.layers[0], net.pictures().double(), net.targets())
    assert relative_error(found(name, method, **options), expected) <= 1e-3


# ------------------------------------------------------------------------------------------------- relations, methods 5


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_head_makes_cams_one(name: str) -> None:
    """GAP + linear: XGrad-CAM, HiRes-CAM and CAM / (h w) are Grad-CAM, and its sum is the logit without bias."""
    net = network(name)
    grad = found(name, "grad-cam")
    cells = grad.shape[1] * grad.shape[2]
    for method, scale in (("xgrad-cam", 1), ("hires-cam", 1), ("cam", cells)):
        assert relative_error(found(name, method) / scale, grad) <= FLOAT32, method
    head = [m for m in net.model.modules() if isinstance(m, nn.Linear)][-1]
    e = explainer(name, "ort").explain(net.pictures().numpy(), method="grad-cam", target=net.targets().tolist())
    bias = head.bias.detach().numpy()[net.targets().numpy()]
    np.testing.assert_allclose(e.relevance.sum((1, 2)), e.score - bias, rtol=1e-4)


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_head_makes_lift_ablation_and_layer_cam_known(name: str) -> None:
    """LIFT-CAM w_k = FC_k <A_k>, Ablation-CAM the same over y, Layer-CAM sum FC_k^+ A_k / (h w)."""
    net = network(name)
    fc = [m for m in net.model.modules() if isinstance(m, nn.Linear)][-1].weight.detach().numpy()
    w = fc[net.targets().numpy()][:, :, None, None].astype(np.float64)
    e = explainer(name, "ort")
    a = e.activations(net.pictures().numpy(), [e.default_layer])[e.default_layer].astype(np.float64)
    lift = (w * a.mean((2, 3), keepdims=True) * a).sum(1)
    score = e.explain(net.pictures().numpy(), method="grad-cam", target=net.targets().tolist()).score
    assert relative_error(found(name, "lift-cam"), lift) <= FLOAT32
    assert relative_error(found(name, "ablation-cam") * score[:, None, None], lift) <= 1e-3  # small differences of y
    layer = (np.maximum(w, 0) * a).mean(axis=1) * a.shape[1] / (a.shape[2] * a.shape[3])
    assert relative_error(found(name, "layer-cam"), layer) <= FLOAT32


# ---------------------------------------------------------------------------------------------- the cut, methods 9.1.8


@pytest.mark.parametrize("name", NAMES)
def test_lrp_may_be_cut_at_l(name: str) -> None:
    """LRP from the logit to L is what the reference walks there, and to the pixels it is that, walked on: FG's walk."""
    net = network(name)
    at_l = LogitRelevance(net.model).lrp(net.pictures(), net.targets(), until=net.layers[0]).sum(1)
    assert relative_error(found(name, "lrp", layer=stage(name, 0)), at_l) <= FLOAT32


@pytest.mark.parametrize("name", POOLED)
def test_lrp_is_fg_layer_cam_behind_a_pooled_head(name: str) -> None:
    """Corollary of 9.1.8: the same map up to one positive factor an image."""
    lrp, fine = found(name, "lrp").astype(np.float64), found(name, "fg-layer-cam").astype(np.float64)
    factor = (lrp * fine).sum() / (fine * fine).sum()
    assert factor > 0
    assert relative_error(lrp, factor * fine) <= FLOAT32


def test_the_corollary_needs_the_head() -> None:
    """A check of the check: behind VGG's three linear layers the two maps are not proportional."""
    lrp, fine = found("vgg11_bn", "lrp").astype(np.float64), found("vgg11_bn", "fg-layer-cam").astype(np.float64)
    factor = (lrp * fine).sum() / (fine * fine).sum()
    assert relative_error(lrp, factor * fine) > 10 * FLOAT32
