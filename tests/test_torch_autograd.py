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
    relative_error,
    smooth_images,
)

from fgcam_onnx import Explainer  # noqa: E402

TARGET = [3, 11]  # one class for each of the two images; not the most likely ones
SMALL = (64, 96)  # not square


@dataclass(frozen=True)
class Case:
    """A torchvision classifier; the modules whose outputs are L and a shallower tensor; height and width of the input."""

    arch: str
    exporter: Any
    l_module: str
    shallow: str
    size: tuple[int, int] = SMALL

    def __str__(self) -> str:
        return f"{self.arch}-{self.exporter}"


CASES = [
    Case("vgg11_bn", "legacy", "features.28", "features.14", (224, 224)),  # pools to 7 x 7, so 224 it is
    Case("resnet18", "legacy", "layer4", "layer2"),
    Case("resnet18", "dynamo", "layer4", "layer2"),
    Case("mobilenet_v2", "legacy", "features.18", "features.13"),
    Case("mobilenet_v3_small", "legacy", "features.12", "features.6"),
    Case("mobilenet_v3_small", "dynamo", "features.12", "features.6"),
    Case("densenet121", "legacy", "relu", "features.transition2"),
    Case("squeezenet1_1", "legacy", "features.12", "features.7"),
    Case("googlenet", "legacy", "inception5b", "inception4a"),
    Case("efficientnet_b0", "legacy", "features.8", "features.4"),
    Case("shufflenet_v2_x0_5", "dynamo", "conv5", "stage3"),
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
def images(size: tuple[int, int]) -> Tensor:
    return smooth_images(2, size, seed=5)


@cache
def onnx_file(case: Case) -> bytes:
    return export(network(case.arch, case.size), images(case.size), exporter=case.exporter)


@cache
def explainer(case: Case, backend: str) -> Explainer:
    return Explainer(onnx_file(case), backend=backend, threads=1)


@cache
def onnx_tensors(case: Case) -> dict[str, NDArray[np.float32]]:
    """Every spatial tensor of the ONNX graph for ``images``, in the order of the graph."""
    model = onnx.load_from_string(onnx_file(case))
    names = [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    graph_outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in graph_outputs
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(names, {"image": images(case.size).numpy()})
    return {name: value for name, value in zip(names, values, strict=True) if np.ndim(value) == 4}


@cache
def activation_and_gradient(case: Case, module: str) -> tuple[Tensor, Tensor]:
    """A = output of ``module`` and g = d y_c / d A, in float64, for the classes of TARGET."""
    model = copy.deepcopy(network(case.arch, case.size)).double()
    kept: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what follows may work in place

    model.get_submodule(module).register_forward_hook(cut)
    logits = model(images(case.size).double())
    (gradient,) = torch.autograd.grad(logits[range(2), TARGET].sum(), kept[0])
    return kept[0].detach(), gradient


def cam(method: str, a: Tensor, g: Tensor) -> Tensor:
    weights = g.mean(dim=(2, 3), keepdim=True) if method == "grad-cam" else g.clamp(min=0)
    return (weights * a).sum(dim=1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l_is_where_the_literature_puts_it(case: Case) -> None:
    """Default L: last max-pool of VGG, last block of ResNet, last activation before the head's pooling (methods 2.2)."""
    a, _ = activation_and_gradient(case, case.l_module)
    default = [stage.name for stage in explainer(case, "ort").layers() if stage.default]
    assert len(default) == 1
    assert relative_error(onnx_tensors(case)[default[0]], a) <= 1e-4


@pytest.mark.parametrize("backend", ["ort", "numpy"])
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cam_at_l(case: Case, method: str, backend: str) -> None:
    found = explainer(case, backend).explain(images(case.size).numpy(), method=method, target=TARGET)
    assert relative_error(found.relevance, cam(method, *activation_and_gradient(case, case.l_module))) <= 1e-5


@pytest.mark.parametrize("backend", ["ort", "numpy"])
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cam_at_a_shallower_tensor(case: Case, method: str, backend: str) -> None:
    """The gradient through the blocks behind it: residual Adds, Concats, gates, pooling with overlap and ceil mode."""
    a, g = activation_and_gradient(case, case.shallow)
    layer = next(
        name
        for name, value in onnx_tensors(case).items()
        if value.shape == a.shape and relative_error(value, a) <= 1e-4
    )
    found = explainer(case, backend).explain(images(case.size).numpy(), method=method, layer=layer, target=TARGET)
    assert relative_error(found.relevance, cam(method, a, g)) <= 1e-5


# ------------------------------------------------------------------------------------ fine-grained maps of a ResNet


@pytest.mark.parametrize("backend", ["ort", "numpy"])
@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_fg_grad_cam_of_resnet18(exporter: str, backend: str) -> None:
    """z+ with z+ shares at the Adds, z^B at the first conv: against autograd functions with the same rules."""
    case = next(case for case in CASES if str(case) == f"resnet18-{exporter}")
    model, x = copy.deepcopy(network("resnet18", SMALL)).double(), images(SMALL)
    expected = fg_grad_cam_resnet(model, x.double(), torch.tensor(TARGET))
    found = explainer(case, backend).explain(x.numpy(), method="fg-grad-cam", layer="input", target=TARGET)
    assert relative_error(found.relevance, expected) <= 1e-4


def test_the_reference_conserves_and_computes_the_same_network() -> None:
    """The autograd functions' forward is the network's own, and sum(relevance) = sum(I_L) up to dead Adds."""
    model, x = copy.deepcopy(network("resnet18", SMALL)).double(), images(SMALL).double()
    reference, target = RelevanceResNet(model), torch.tensor(TARGET)
    a, g = activation_and_gradient(CASES[1], "layer4")
    torch.testing.assert_close(reference.features(x).detach(), a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        reference.explain(x, target).sum(dim=(1, 2)), cam("grad-cam", a, g).sum(dim=(1, 2)), rtol=1e-9, atol=1e-12
    )
