"""FG-CAM through ONNX is the published FG-CAM: the same maps as its procedure on the PyTorch modules of VGG-16-BN.

Weights are random with gamma > 0, where identity-BatchNorm (published) and folded BatchNorm (here) are the same. The
published procedure runs in float64, so that a difference is the engine's; the engine runs in float32 and must be within
1e-5 relative, before any normalisation; and, given the same activations, in float64 within the rounding of the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import backends
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the published procedure is written in PyTorch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch_reference import (  # noqa: E402
    PublishedFGCAM,
    RelevanceVGG,
    ThinVGG16BN,
    export,
    import_torchvision,
    live,
    margin,
    relative_error,
    smooth_images,
    spotlit_images,
)
from torch_reference.margin import POOL  # noqa: E402
from torch_reference.published_fgcam import denoise as published_denoise  # noqa: E402
from torch_reference.relevance_autograd import PassRelu, ZBoxConv, ZPlusConv, fold  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402

FLOAT32 = 1e-5
FLOAT64 = 1e-7  # relevance is handed over in float32, whose rounding is about 3e-8 of a map
STAGE_OF_MODULE = {-1: 0, 13: 2, 23: 3, 33: 4}  # published module number -> place in explainer.layers()
THIN_SIZE = (160, 224)  # last max-pool 5 x 7: denoising keeps 3 of 35 directions
Maps = dict[int, NDArray[np.float64]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small nets gain nothing from threads that wait for each other, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def thin() -> nn.Module:
    return live(ThinVGG16BN(THIN_SIZE), seed=1, size=THIN_SIZE)


@cache
def thin_procedure() -> PublishedFGCAM:
    return PublishedFGCAM.of(copy.deepcopy(thin()).double())


@cache
def thin_onnx(exporter: Any) -> bytes:
    return export(thin(), smooth_images(2, THIN_SIZE, seed=0), exporter=exporter)


@cache
def thin_explainer(exporter: str, backend: str, precision: str = "float32") -> Explainer:
    return Explainer(thin_onnx(exporter), backend=backends.chosen(backend), precision=precision, threads=1)


@cache
def thin_images(denoise: bool) -> Tensor:
    """Two pictures that are not square; where float32 must follow a denoised map, pictures with a subject."""
    return spotlit_images(2, THIN_SIZE, seed=129) if denoise else smooth_images(2, THIN_SIZE, seed=14)


def maps_of(procedure: PublishedFGCAM, x: Tensor, base: Any, denoise: bool) -> Maps:
    """The published maps at every module of STAGE_OF_MODULE, from one descent."""
    importance, activations, winners = procedure.components(x, base, noise_free=denoise)
    start, maps = len(procedure.features) - 1, {}
    for module in sorted(STAGE_OF_MODULE, reverse=True):
        importance = procedure.descend(importance, activations, winners, start, module)
        start, maps[module] = module, np.asarray(importance.sum(dim=1))
    return maps


@cache
def published(base: Any, denoise: bool) -> Maps:
    """The published maps of ``thin_images`` on the thin net, in float64."""
    return maps_of(thin_procedure(), thin_images(denoise).double(), base, denoise)


def explain(explainer: Explainer, x: Tensor, base: str, denoise: bool, module: int) -> NDArray[np.float32]:
    """The engine's raw map at the tensor that is the output of the published module."""
    stage = explainer.layers()[STAGE_OF_MODULE[module]]
    return explainer.explain(x.numpy(), method=f"fg-{base}", layer=stage.name, denoise=denoise).relevance


# ---------------------------------------------------------------------------------- the engine against the procedure


@pytest.mark.parametrize("denoise", [False, True], ids=["smooth", "spotlit"])
def test_the_pictures_are_decided(denoise: bool) -> None:
    """No max-pool's winner is so near to the second that rounding decides which pixel the importance goes to."""
    assert margin(thin(), thin_images(denoise), only=POOL) > 4


@pytest.mark.parametrize("module", [13, 23, 33, -1])
@pytest.mark.parametrize("denoise", [False, True], ids=["plain", "denoised"])
@pytest.mark.parametrize("base", ["grad-cam", "score-cam"])
def test_thin_vgg_on_onnxruntime(base: str, denoise: bool, module: int) -> None:
    found = explain(thin_explainer("dynamo", "ort"), thin_images(denoise), base, denoise, module)
    assert relative_error(found, published(base, denoise)[module]) <= FLOAT32


@pytest.mark.parametrize("module", [13, -1])
@pytest.mark.parametrize("base", ["grad-cam", "score-cam"])
def test_thin_vgg_from_the_legacy_exporter(base: str, module: int) -> None:
    found = explain(thin_explainer("legacy", "ort"), thin_images(False), base, False, module)
    assert relative_error(found, published(base, False)[module]) <= FLOAT32


@pytest.mark.parametrize("module", [13, 23, 33, -1])
@pytest.mark.parametrize("denoise", [False, True], ids=["plain", "denoised"])
def test_thin_vgg_on_numpy(denoise: bool, module: int) -> None:
    found = explain(thin_explainer("dynamo", "numpy"), thin_images(denoise), "grad-cam", denoise, module)
    assert relative_error(found, published("grad-cam", denoise)[module]) <= FLOAT32


@pytest.mark.parametrize("denoise", [False, True], ids=["plain", "denoised"])
def test_thin_vgg_score_cam_on_numpy(denoise: bool) -> None:
    found = explain(thin_explainer("dynamo", "numpy"), thin_images(denoise), "score-cam", denoise, -1)
    assert relative_error(found, published("score-cam", denoise)[-1]) <= FLOAT32


def onnx_activations(x: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
    """What onnxruntime computes for the thin net, in float64, in the places where the published procedure keeps it."""
    model = onnx.load_from_string(thin_onnx("dynamo"))
    names = [node.output[0] for node in model.graph.node if node.op_type in ("Relu", "MaxPool")]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = iter(session.run(names, {"image": x.numpy()}))
    activations, winners = [x.double()], {}
    for i, module in enumerate(thin_procedure().features):
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            if isinstance(module, nn.MaxPool2d):
                _, winners[i] = F.max_pool2d(activations[-1], module.kernel_size, module.stride, return_indices=True)
            activations.append(torch.from_numpy(next(values)).double())
        else:
            activations.append(torch.full((), torch.nan))  # between conv and ReLU: the descent reads nothing there
    return activations, winners


@pytest.mark.parametrize("denoise", [False, True], ids=["plain", "denoised"])
def test_from_the_same_activations_in_float64(denoise: bool) -> None:
    """Given onnxruntime's activations and float64 on both sides, nothing but the rounding of the result is left."""
    x = thin_images(denoise)
    activations, winners = onnx_activations(x)
    a = activations[-1]
    weights, _ = thin_procedure().grad_cam_weights(a, None)
    importance = weights[:, :, None, None] * a
    if denoise:
        importance = published_denoise(importance, a)
    expected = thin_procedure().descend(importance, activations, winners, len(activations) - 2, -1).sum(dim=1)
    found = explain(thin_explainer("dynamo", "numpy", "float64"), x, "grad-cam", denoise, -1)
    assert relative_error(found, expected) <= FLOAT64


@pytest.mark.parametrize("backend", backends.words("ort", "numpy", "cupy"))
def test_chosen_classes_one_per_image(backend: str) -> None:
    """A class that is not the most likely one, another for each image."""
    x, target = thin_images(False), [3, 8]
    explainer = thin_explainer("dynamo", backend)
    expected = thin_procedure().explain(x.double(), target=torch.tensor(target))
    found = explainer.explain(x.numpy(), method="fg-grad-cam", layer="input", target=target).relevance
    assert relative_error(found, expected) <= FLOAT32


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Maps]:
    """torchvision's vgg16_bn at full width: its ONNX file, a picture, and its published maps.

    Its 224 x 224 have a million and a half windows of max-pools, and hardly a picture of which none is in doubt. Seed 1
    at this size is decided on every processor: float32's noise is twice as large where vectors are half as long.
    """
    size = (96, 128)
    model = import_torchvision().models.vgg16_bn(weights=None)
    model.avgpool, model.classifier[0] = nn.Identity(), nn.Linear(512 * 3 * 4, 4096)
    live(model, seed=0, size=size, images=2)
    path = tmp_path_factory.mktemp("vgg16_bn") / "vgg16_bn.onnx"
    export(model, smooth_images(2, size, seed=0), path)
    x = smooth_images(1, size, seed=1)
    assert margin(model.get_submodule("features"), x, only=POOL) > 3
    return path, x, maps_of(PublishedFGCAM.of(model.double()), x.double(), "grad-cam", False)


def test_full_width_vgg(full: tuple[Path, Tensor, Maps]) -> None:
    path, x, expected = full
    explainer = Explainer(path, backend="ort")
    stages = explainer.layers()
    sizes = [(64, 48, 64), (128, 24, 32), (256, 12, 16), (512, 6, 8), (512, 3, 4)]
    assert [stage.shape[-3:] for stage in stages[1:]] == sizes
    assert [stage.default for stage in stages] == [False] * 5 + [True]
    errors = {m: relative_error(explain(explainer, x, "grad-cam", False, m), expected[m]) for m in expected}
    assert max(errors.values()) <= FLOAT32, errors


def test_full_width_vgg_on_numpy(full: tuple[Path, Tensor, Maps]) -> None:
    path, x, expected = full
    found = explain(Explainer(path, backend="numpy"), x, "grad-cam", False, -1)
    assert relative_error(found, expected[-1]) <= FLOAT32


# ------------------------------------------------------------------------------------------ the procedure by itself


def by_autograd(vgg: nn.Module, x: Tensor, importance: Callable[[Tensor], Tensor]) -> Tensor:
    """The descent through a VGG written a second time: autograd functions, BatchNorm folded, pooling's own gradient."""
    x = x.requires_grad_()
    modules, y = list(vgg.get_submodule("features")), x
    for i, module in enumerate(modules):
        if isinstance(module, nn.Conv2d):
            rule = ZBoxConv if i == 0 else ZPlusConv
            norm = modules[i + 1]
            assert isinstance(norm, nn.BatchNorm2d)
            y = rule.apply(y, fold(module, norm))  # type: ignore[no-untyped-call]
        elif isinstance(module, nn.ReLU):
            y = PassRelu.apply(y)  # type: ignore[no-untyped-call]
        elif isinstance(module, nn.MaxPool2d):
            y = F.max_pool2d(y, module.kernel_size, module.stride)
    (relevance,) = torch.autograd.grad(y, x, grad_outputs=importance(y.detach()))
    summed: Tensor = relevance.sum(dim=1)
    return summed


def test_two_writings_of_the_procedure_agree() -> None:
    model, x = copy.deepcopy(thin()).double(), thin_images(False).double()
    procedure = PublishedFGCAM.of(model)
    expected, _, _ = procedure.components(x)
    found = by_autograd(model, x, lambda a: expected)
    assert relative_error(found, procedure.explain(x)) <= 1e-12
    assert relative_error(RelevanceVGG(model).explain(x), procedure.explain(x)) <= 1e-12


def test_the_procedure_conserves_importance() -> None:
    """Signed total at every layer = signed total on L: with these activations no denominator is 0."""
    procedure, x = thin_procedure(), thin_images(False).double()
    total = procedure.components(x)[0].sum(dim=(1, 2, 3))
    for module in STAGE_OF_MODULE:
        torch.testing.assert_close(procedure.explain(x, layer=module).sum(dim=(1, 2)), total, rtol=1e-9, atol=0)


def test_worked_example() -> None:
    """x = (2, -1, 3), w = (1, -2, -1), I = 8: z+ gives (4, 4, 0); z^B with l = -1, h = 3 gives (24/11, 64/11, 0)."""
    conv = nn.Conv2d(1, 1, (1, 3), dtype=torch.float64)
    conv.weight.data = torch.tensor([[[[1.0, -2.0, -1.0]]]], dtype=torch.float64)
    procedure = PublishedFGCAM(nn.Sequential(conv), nn.Identity())
    x, importance = torch.tensor([[[[2.0, -1.0, 3.0]]]], dtype=torch.float64), torch.full((1, 1, 1, 1), 8.0)
    np.testing.assert_allclose(procedure.undo_conv(0, x, importance.double()).flatten(), [4, 4, 0], rtol=1e-12)
    box = procedure.undo_first_conv(0, x, importance.double()).flatten()
    np.testing.assert_allclose(box, [24 / 11, 64 / 11, 0], rtol=1e-12)


def test_the_comparison_notices() -> None:
    """A per mille off, one map of the batch off, a NaN, a map of another shape: each is seen."""
    maps = published("grad-cam", False)[33]
    assert relative_error(maps, maps) == 0
    assert relative_error(1.001 * maps, maps) > 50 * FLOAT32
    one_off = maps.copy()
    one_off[1] *= 1.001
    assert relative_error(one_off, maps) > 50 * FLOAT32
    assert not relative_error(np.full_like(maps, np.nan), maps) <= FLOAT32
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(maps[:1], maps)


def test_bounds_belong_to_one_image() -> None:
    """z^B takes l and h from each image: a brighter neighbour in the batch changes nothing; and it is not plain z+."""
    x = thin_images(False).double()
    procedure = thin_procedure()
    conv_output = procedure.forward(x)[0][3]
    alone = procedure.undo_first_conv(0, x, conv_output)
    beside = procedure.undo_first_conv(0, torch.cat([x, 3 * x]), torch.cat([conv_output, conv_output]))
    assert relative_error(beside[: len(x)], alone) <= 1e-12
    assert relative_error(procedure.undo_conv(0, x, conv_output), alone) > 1e-2
