"""One small CNN for every framework: its weights, its PyTorch twin, and what an exported file has to fulfil.

    conv 3x3 / 2, BN, ReLU -> [depthwise 3x3, BN, ReLU6, conv 1x1, BN] + x, ReLU -> depthwise 3x3 / 2, BN, ReLU
    -> conv 1x1, BN, ReLU -> max-pool 3x3 / 2 -> mean -> dense

``SAME`` padding, as TensorFlow means it: 33 x 30 pixels, so that the strided layers pad one side of an even length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch_reference import export, relative_error, smooth_images

from fgcam_onnx import Explainer

Array = npt.NDArray[Any]
SIZE, WIDTH, DEEP, CLASSES, EPSILON = (33, 30), 8, 16, 5, 1e-3
# Name, output channels, input channels of a group, kernel. Each is followed by a BatchNorm of the same name.
CONVS = {
    "stem": (WIDTH, 3, 3),
    "depthwise": (WIDTH, 1, 3),
    "project": (WIDTH, WIDTH, 1),
    "down": (WIDTH, 1, 3),
    "expand": (DEEP, WIDTH, 1),
}


@dataclass(frozen=True)
class Norm:
    """A BatchNorm's gamma, beta, running mean and variance, each ``[channels]``."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array


class Weights:
    """Random weights under which every layer lives: kernels OIHW, dense ``[classes, DEEP]``."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Array:
            return (mean + scale * rng.normal(size=shape)).astype(np.float32)

        self.kernel = {
            name: draw(out, inside, k, k, scale=(2 / (inside * k * k)) ** 0.5)
            for name, (out, inside, k) in CONVS.items()
        }
        self.norm = {
            name: Norm(
                rng.uniform(0.5, 1.5, out).astype(np.float32),
                draw(out, scale=0.3, mean=0.3),
                draw(out, scale=0.4),
                rng.uniform(0.4, 2.0, out).astype(np.float32),
            )
            for name, (out, _, _) in CONVS.items()
        }
        self.dense, self.bias = draw(CLASSES, DEEP, scale=0.5), draw(CLASSES, scale=0.5)


class Twin(nn.Module):
    """The network in PyTorch, with TensorFlow's ``SAME`` written out as padding."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.w = weights
        for name, kernel in weights.kernel.items():
            self.register_buffer(f"kernel_{name}", torch.from_numpy(kernel))
            for part in ("gamma", "beta", "mean", "variance"):
                self.register_buffer(f"{part}_{name}", torch.from_numpy(getattr(weights.norm[name], part)))
        self.dense = nn.Linear(DEEP, CLASSES)
        self.dense.weight.data, self.dense.bias.data = torch.from_numpy(weights.dense), torch.from_numpy(weights.bias)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        _, inside, k = CONVS[name]
        x = F.conv2d(same(x, k, stride), getattr(self, f"kernel_{name}"), stride=stride, groups=x.shape[1] // inside)
        mean, variance, gamma, beta = (getattr(self, f"{p}_{name}") for p in ("mean", "variance", "gamma", "beta"))
        return F.batch_norm(x, mean, variance, gamma, beta, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x, "stem", 2))
        x = F.relu(x + self.conv(F.relu6(self.conv(x, "depthwise")), "project"))
        x = F.relu(self.conv(x, "down", 2))
        x = F.relu(self.conv(x, "expand"))
        x = F.max_pool2d(same(x, 3, 2), 3, 2)  # zeros do not win over what a ReLU leaves
        return self.dense(x.mean((2, 3)))


def same(x: Tensor, k: int, stride: int) -> Tensor:
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + k - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def images(n: int = 4) -> Array:
    """Pictures ``[n, 3, h, w]``, about N(0, 1)."""
    return np.asarray(smooth_images(n, SIZE, seed=3).numpy())


def twin_file(twin: nn.Module) -> bytes:
    """The twin as torch exports it."""
    return export(twin, torch.from_numpy(images(2)))


@dataclass(frozen=True)
class Agreement:
    """How far an exported file is from the network itself, and from its twin."""

    scores: float
    map: float
    residual: float
    complete: bool

    def __str__(self) -> str:
        return f"scores {self.scores:.1e}, map {self.map:.1e}, ledger {self.residual:.1e}"


def agreement(path: Path, twin: nn.Module, layout: str) -> Agreement:
    """The file's scores against the twin's in torch, its FG-Grad-CAM for class 3 against that of the twin's file."""
    x = images()
    with torch.no_grad():
        expected = twin.eval()(torch.from_numpy(x)).numpy()
    explainer = Explainer(path)
    assert explainer.layout == layout
    mine = explainer.explain(x if layout == "NCHW" else x.transpose(0, 2, 3, 1), target=3)
    reference = Explainer(twin_file(twin)).explain(x, target=3)
    assert mine.relevance.shape == reference.relevance.shape == (len(x), *SIZE)
    scores = float(np.abs(mine.logits - expected).max() / np.abs(expected).max())
    return Agreement(
        scores, relative_error(mine.relevance, reference.relevance), mine.ledger.residual, explainer.coverage().complete
    )


def assert_faithful(path: Path, twin: nn.Module, layout: str, record: Any, name: str) -> None:
    """Logits 1e-4, map 1e-4, books closed to 1e-4, every node with a rule; the figures go into pytest's summary."""
    found = agreement(path, twin, layout)
    record("summary", f"{name}: {found}")
    assert found.complete
    assert found.scores <= 1e-4
    assert found.map <= 1e-4
    assert found.residual < 1e-4
