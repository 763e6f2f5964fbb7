"""What PyTorch's exporters make of activations and blocks: hand on, take all, and differentiate as they should.

Both exporters. The gradient's oracle is torch autograd; relevance is checked for what methods 3.2 says of the whole
block, not of the nodes that it was written out in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch_reference.export import Exporter, export, live, smooth_images

from fgcam_onnx import Explainer, descent
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.composite import Composite, GradientComposite, RelevanceComposite

CHANNELS, SIZE = 6, (10, 8)


class Block(nn.Module):
    """A module from an expression on the output of a convolution, [n, 6, h, w]."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.modules_ = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(3, CHANNELS, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 1.5, CHANNELS).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def glu(x: Tensor) -> Tensor:
    a, b = torch.cat([x, x.flip(1)], dim=1).chunk(2, dim=1)
    return a * torch.sigmoid(b)


IDENTITY: dict[str, Callable[[], nn.Module]] = {
    "SiLU": nn.SiLU,
    "Hardswish": nn.Hardswish,
    "GELU": nn.GELU,
    "GELU tanh": lambda: nn.GELU(approximate="tanh"),
    "Mish": nn.Mish,
    "ELU": lambda: nn.ELU(0.7),
    "SELU": nn.SELU,
    "CELU": lambda: nn.CELU(0.6),
    "PReLU": lambda: nn.PReLU(CHANNELS, init=0.2),
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "Hardsigmoid": nn.Hardsigmoid,
    "quick GELU": lambda: Block(lambda x: x * torch.sigmoid(1.702 * x)),
    "layer scale": LayerScale,
    "squeeze and excitation": lambda: SqueezeExcite(nn.Sigmoid()),
    "squeeze and excitation, hard": lambda: SqueezeExcite(nn.Hardsigmoid()),
    "stochastic depth": lambda: Block(lambda x: F.dropout(x, 0.5, training=False) / 1.0),
    "InstanceNorm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(3, CHANNELS),
    "LayerNorm over channels": lambda: Block(
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,)).permute(0, 3, 1, 2)
    ),
}
MASKED: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardtanh": nn.Hardtanh,
    "clamp": lambda: Block(lambda x: x.clamp(0, 1)),
}
MOVED: dict[str, tuple[Callable[[], nn.Module], Callable[[np.ndarray], np.ndarray]]] = {
    "channel shuffle": (
        lambda: nn.ChannelShuffle(2),
        lambda r: r.reshape(-1, 3, 2, *SIZE).swapaxes(1, 2).reshape(r.shape),
    ),
    "channel shuffle, written out": (
        lambda: Block(lambda x: x.view(x.shape[0], 2, 3, *SIZE).transpose(1, 2).reshape(x.shape)),
        lambda r: r.reshape(-1, 3, 2, *SIZE).swapaxes(1, 2).reshape(r.shape),
    ),
    "flip": (lambda: Block(lambda x: x.flip(3)), lambda r: r[..., ::-1]),
    "pixel shuffle and back": (lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2), Mean4()),
                               lambda r: r),
    "gated linear unit": (lambda: Block(glu), lambda r: r),
}  # fmt: skip


class Mean4(nn.Module):
    """The four copies of each pixel, which PixelUnshuffle made channels, as one again."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], CHANNELS, 4, *SIZE)[:, :, 0]


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, CHANNELS, 3, padding=1), middle
        self.second, self.fc = nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.second(self.middle(self.first(x)))).mean((2, 3)))  # type: ignore[no-any-return]


# Forms that an exporter does not write.
NOT_WRITTEN = {("channel shuffle", "legacy")}
EVERY = [
    pytest.param(name, exporter, id=f"{name}-{exporter}")
    for name in (*IDENTITY, *MASKED, *MOVED)
    for exporter in ("dynamo", "legacy")
    if (name, exporter) not in NOT_WRITTEN
]


@cache
def built(name: str, exporter: Exporter) -> tuple[Net, Explainer]:
    make = {**IDENTITY, **MASKED, **{key: value[0] for key, value in MOVED.items()}}[name]
    torch.manual_seed(0)
    net = live(Net(make()), seed=1, size=SIZE)
    assert isinstance(net, Net)
    return net, Explainer(export(net, smooth_images(2, SIZE, seed=0), exporter=exporter), backend="numpy")


def walked(name: str, exporter: Exporter, composite: Composite) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relevance at the second convolution's input and at the first one's output, and the block's output."""
    _, explainer = built(name, exporter)
    graph = explainer.graph
    convs = [layer for layer in graph.layers if layer.op == "Conv"]
    first, last = convs[0].output, convs[-1]
    x = smooth_images(2, SIZE, seed=7).numpy()
    found = {}
    for target in (last.inputs[0], first):
        plan = descent.plan(graph, last.output, target, composite)
        names = [*plan.reads, last.output, last.inputs[0]]
        values = {key: np.asarray(v) for key, v in explainer.activations(x, names).items()}
        shapes = {key: np.shape(v) for key, v in explainer.activations(x, plan.tensors).items()}
        start = np.random.default_rng(0).normal(size=values[last.output].shape)
        program = descent.program(plan, shapes)
        answer = NumpyBackend(np.float64).execute(program, {**values, descent.START: start})
        assert isinstance(composite, GradientComposite) or descent.ledger_of(plan, answer).residual < 1e-9
        found[target] = answer[descent.RESULT]
    return found[last.inputs[0]], found[first], values[last.inputs[0]]


@pytest.mark.parametrize(("name", "exporter"), EVERY)
def test_relevance_of_the_block(name: str, exporter: Exporter) -> None:
    """Handed on as it is; masked where the output is 0; moved with the cells."""
    assert built(name, exporter)[1].coverage().complete
    behind, before, y = walked(name, exporter, RelevanceComposite())
    assert np.abs(behind).max() > 0
    expected = behind
    if name in MASKED:
        expected = np.where(y == 0, 0, behind)
    elif name in MOVED:
        expected = MOVED[name][1](behind)
    np.testing.assert_allclose(before, expected, atol=1e-9 * np.abs(behind).max())


@pytest.mark.parametrize(("name", "exporter"), EVERY)
def test_derivative_of_the_block(name: str, exporter: Exporter) -> None:
    """Against torch autograd, through the block and the convolution behind it."""
    net, _ = built(name, exporter)
    _, before, _ = walked(name, exporter, GradientComposite())
    x = smooth_images(2, SIZE, seed=7)
    a = net.first(x).detach().requires_grad_()
    y = net.second(net.middle(a))
    start = np.random.default_rng(0).normal(size=tuple(y.shape)).astype(np.float32)
    (expected,) = torch.autograd.grad((y * torch.from_numpy(start)).sum(), a)
    np.testing.assert_allclose(before, expected, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "exporter"), EVERY)
def test_l_is_behind_the_last_convolution(name: str, exporter: Exporter) -> None:
    """The block has the shape of the tensors around it, and hides nothing from the search for L."""
    net, explainer = built(name, exporter)
    x = smooth_images(2, SIZE, seed=7)
    with torch.no_grad():
        expected = F.relu(net.second(net.middle(net.first(x))))
    found = explainer.activations(x.numpy(), [explainer.default_layer])[explainer.default_layer]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class NormedLast(nn.Module):
    """A normalisation and an activation behind the last convolution."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, CHANNELS, 3, padding=1), norm, nn.Linear(CHANNELS, 5)

    def features(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm", "LayerNorm over channels"])
def test_l_is_behind_a_normalisation(name: str, exporter: Exporter) -> None:
    """And not inside: torch writes GroupNorm as InstanceNormalization of [n, groups, -1], which looks like a signal."""
    net = live(NormedLast(IDENTITY[name]()), seed=1, size=SIZE)
    assert isinstance(net, NormedLast)
    x = smooth_images(2, SIZE, seed=7)
    explainer = Explainer(export(net, x, exporter=exporter), backend="numpy")
    with torch.no_grad():
        expected = net.features(x)
    found = explainer.activations(x.numpy(), [explainer.default_layer])[explainer.default_layer]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_random_numbers_are_said() -> None:
    """A dropout exported as in training: the file draws numbers, and two runs differ."""
    from tiny_models import Net as Tiny

    net = Tiny()
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    x = net.node("Mul", "drop", x, net.node("RandomUniformLike", "noise", x))
    notes = Explainer(net.model(net.head(net.conv("conv2", x, 4, 4), 4))).notes
    assert "the model draws random numbers (RandomUniformLike, node 'noise'): two runs give two maps" in notes
