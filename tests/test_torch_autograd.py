"""Gradients and relevance of an ONNX file are those of the PyTorch model it came from, in float64, by torch autograd.

The head of every network here, everything behind the tensor a CAM works on, is walked with the gradient rule: pooling,
fully connected layers, whole residual and inception blocks, squeeze-and-excitation. ``relevance`` is raw and signed:
Grad-CAM sum_k w_k A_k with w_k = mean(g_k), Layer-CAM sum_k max(g_k, 0) A_k, no ReLU on the sum, no normalisation.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import backends
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the second opinion is PyTorch's autograd")

from torch import Tensor, nn  # noqa: E402
from torch_reference import (  # noqa: E402
    RelevanceResNet,
    export,
    fg_grad_cam_resnet,
    import_torchvision,
    live,
    margin,
    relative_error,
    smooth_images,
)

from fgcam_onnx import Explainer  # noqa: E402

TARGET = [3, 11]  # one class for each of the two images; not the most likely ones
SMALL = (64, 96)  # not square
BOUND = 1e-5


@dataclass(frozen=True)
class Case:
    """A torchvision classifier; the modules whose outputs are L and a shallower tensor; the pictures."""

    arch: str
    exporter: Any
    l_module: str
    shallow: str
    seed: int
    size: tuple[int, int] = SMALL

    def __str__(self) -> str:
        return f"{self.arch}-{self.exporter}"


CASES = [
    Case("vgg11_bn", "legacy", "features.28", "features.21", 8, (224, 224)),  # pools to 7 x 7, so 224 it is
    Case("resnet18", "legacy", "layer4", "layer2", 9),
    Case("resnet18", "dynamo", "layer4", "layer2", 9),
    Case("mobilenet_v2", "legacy", "features.18", "features.13", 25),
    Case("mobilenet_v3_small", "legacy", "features.12", "features.6", 5),
    Case("mobilenet_v3_small", "dynamo", "features.12", "features.6", 5),
    Case("densenet121", "legacy", "relu", "features.transition3", 8),
    Case("squeezenet1_1", "legacy", "features.12", "features.7", 5),
    Case("googlenet", "legacy", "inception5b", "inception4a", 10),
    Case("efficientnet_b0", "legacy", "features.8", "features.4", 5),
    Case("regnet_y_400mf", "legacy", "trunk_output", "trunk_output.block3", 6),
    Case("shufflenet_v2_x0_5", "dynamo", "conv5", "stage3", 5),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small inputs gain nothing from threads that wait for each other, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def network(arch: str, size: tuple[int, int]) -> nn.Module:
    models = import_torchvision().models
    if arch == "googlenet":
        model = models.googlenet(weights=None, init_weights=False, aux_logits=False)
    elif arch == "densenet121":
        dense = models.densenet121(weights=None)
        # the same network; torchvision's applies the last ReLU as a function, which leaves no module to read it from
        head = [("relu", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        model = nn.Sequential(OrderedDict([("features", dense.features), *head, ("classifier", dense.classifier)]))
    else:
        model = getattr(models, arch)(weights=None)
    if arch == "vgg11_bn":  # the published classifier has 124 million weights and proves nothing more
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 20))
    return live(model, seed=3, size=size, images=4 if arch == "vgg11_bn" else 16)


@cache
def images(case: Case) -> Tensor:
    return smooth_images(2, case.size, case.seed)


@cache
def onnx_file(case: Case) -> bytes:
    return export(network(case.arch, case.size), images(case), exporter=case.exporter)


@cache
def explainer(case: Case, backend: str) -> Explainer:
    return Explainer(onnx_file(case), backend=backends.chosen(backend), threads=1)


def run_onnx(case: Case, names: list[str]) -> list[NDArray[np.float32]]:
    """Tensors of the ONNX graph, as onnxruntime computes them for ``images``."""
    model = onnx.load_from_string(onnx_file(case))
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values: list[NDArray[np.float32]] = session.run(names, {"image": images(case).numpy()})
    return values


@cache
def onnx_tensors(case: Case) -> dict[str, NDArray[np.float32]]:
    """Every spatial tensor of the ONNX graph, in its order."""
    graph = onnx.load_from_string(onnx_file(case)).graph
    names = [name for node in graph.node for name in node.output if name and node.op_type != "Constant"]
    return {name: value for name, value in zip(names, run_onnx(case, names), strict=True) if np.ndim(value) == 4}


@cache
def onnx_name(case: Case, module: str) -> str:
    """The tensor of the ONNX graph that is the output of a torch module, known by its values."""
    kept: list[Tensor] = []
    model = copy.deepcopy(network(case.arch, case.size)).double()
    model.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        model(images(case).double())
    alike = (n for n, v in onnx_tensors(case).items() if v.shape == kept[0].shape and relative_error(v, kept[0]) < 1e-4)
    return next(alike)


@cache
def activation_and_gradient(case: Case, module: str) -> tuple[Tensor, Tensor]:
    """A = output of ``module`` and g = d y_c / d A, for the classes of TARGET, by autograd in float64.

    A is the one onnxruntime computed. Fifty random layers multiply float32's rounding by a hundred: on mobilenet_v2,
    A of torch in float32 is 2e-5 from A of torch in float64. That is the forward pass's noise and no matter of CAMs.
    """
    model = copy.deepcopy(network(case.arch, case.size)).double()
    a = torch.from_numpy(run_onnx(case, [onnx_name(case, module)])[0]).double().requires_grad_()
    # a copy, since what follows may work in place
    model.get_submodule(module).register_forward_hook(lambda _module, _inputs, _output: a.clone())
    (gradient,) = torch.autograd.grad(model(images(case).double())[range(2), TARGET].sum(), a)
    return a.detach(), gradient


def cam(method: str, a: Tensor, g: Tensor) -> Tensor:
    weights = g.mean(dim=(2, 3), keepdim=True) if method == "grad-cam" else g.clamp(min=0)
    return (weights * a).sum(dim=1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l_is_where_the_literature_puts_it(case: Case) -> None:
    """Last max-pool of VGG, last block of ResNet, last activation before the pooling of a head (methods 2.2)."""
    default = [stage.name for stage in explainer(case, "ort").layers() if stage.default]
    assert default == [onnx_name(case, case.l_module)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_pictures_are_decided(case: Case) -> None:
    """No ReLU or max-pool behind either tensor is so near to its kink that rounding decides what the gradient is."""
    for module in (case.l_module, case.shallow):
        a, _ = activation_and_gradient(case, module)
        assert margin(network(case.arch, case.size), images(case), start=module, value=a) > 4


@pytest.mark.parametrize("backend", backends.words("ort", "numpy", "cupy"))
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cam_at_l(case: Case, method: str, backend: str) -> None:
    found = explainer(case, backend).explain(images(case).numpy(), method=method, target=TARGET)
    assert relative_error(found.relevance, cam(method, *activation_and_gradient(case, case.l_module))) <= BOUND


@pytest.mark.parametrize("backend", backends.words("ort", "numpy", "cupy"))
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cam_at_a_shallower_tensor(case: Case, method: str, backend: str) -> None:
    """The gradient through the blocks behind it: residual Adds, Concats, gates, pooling with overlap and ceil mode."""
    found = explainer(case, backend).explain(
        images(case).numpy(), method=method, layer=onnx_name(case, case.shallow), target=TARGET
    )
    assert relative_error(found.relevance, cam(method, *activation_and_gradient(case, case.shallow))) <= BOUND


# ------------------------------------------------------------------------------------ fine-grained maps of a ResNet


@pytest.mark.parametrize("backend", backends.words("ort", "numpy", "cupy"))
@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_fg_grad_cam_of_resnet18(exporter: str, backend: str) -> None:
    """z+ with z+ shares at the Adds, z^B at the first conv: against autograd functions with the same rules."""
    case = next(case for case in CASES if str(case) == f"resnet18-{exporter}")
    model, x = copy.deepcopy(network("resnet18", SMALL)).double(), images(case)
    expected = fg_grad_cam_resnet(model, x.double(), torch.tensor(TARGET))
    found = explainer(case, backend).explain(x.numpy(), method="fg-grad-cam", layer="input", target=TARGET)
    assert relative_error(found.relevance, expected) <= 2e-5


def test_the_reference_conserves_and_computes_the_same_network() -> None:
    """The autograd functions' forward is the network's own, and sum(relevance) = sum(I_L) up to dead Adds."""
    model = copy.deepcopy(network("resnet18", SMALL)).double()
    x, target = smooth_images(2, SMALL, seed=5).double(), torch.tensor(TARGET)
    reference = RelevanceResNet(model)
    a = reference.features(x).detach().requires_grad_()
    logits = model.get_submodule("fc")(a.mean(dim=(2, 3)))
    torch.testing.assert_close(logits, model(x), rtol=1e-9, atol=1e-9)
    (g,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), a)
    total = cam("grad-cam", a, g).detach().sum(dim=(1, 2))
    torch.testing.assert_close(reference.explain(x, target).sum(dim=(1, 2)), total, rtol=1e-9, atol=1e-12)
