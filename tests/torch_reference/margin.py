"""Is a picture decided? A ReLU next to its kink, or a max-pool with two near-equal winners, is decided by rounding.

Gradients jump there, and so do maps: two correct float32 programs, or one on two kinds of processor, then differ by far
more than rounding. Tests to 1e-5 need pictures on which no unit is in doubt, and say so with :func:`margin`.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,),
    "hardtanh": (0.0, 6.0),  # ReLU6
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
}
POOL = "max_pool2d_with_indices"


class _Recorder(TorchDispatchMode):
    """Keeps the input of every operator with a kink, and of every max-pool, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Tensor, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in KINKS or name == POOL:
            self.seen.append((name, args[0].detach().double().clone(), args[1:]))
        return func(*args, **(kwargs or {}))


def _distance(name: str, x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """How far each unit is from another decision: from its kinks, or a winner from the next different value.

    A runner-up that is equal is in no doubt: zeros behind a ReLU are zeros on every processor.
    """
    if name != POOL:
        return torch.stack([(x - kink).abs() for kink in KINKS[name]]).amin(dim=0)
    kernel, stride, padding = (tuple(arguments[i]) if len(arguments) > i else (0, 0) for i in range(3))
    padded = F.pad(x, (padding[1], kernel[1], padding[0], kernel[0]), value=float("-inf"))  # room for ceil mode
    windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    best = windows.amax(dim=4, keepdim=True)
    gap = best - windows
    gap = gap.masked_fill(gap == 0, float("inf")).amin(dim=4)
    return gap[best[..., 0] > float("-inf")]


def margin(
    model: nn.Module, x: Tensor, only: str | None = None, start: str | None = None, value: Tensor | None = None
) -> float:
    """The least distance of a unit from another decision, in units of float32's noise on its tensor (rms).

    Above about 4 the picture is decided. ``only``: look at the operators of one name, :data:`POOL` for instance.
    ``start``: look at what comes after the module of this name, whose output is taken to be ``value``.
    """
    records = []
    for dtype in (torch.float64, torch.float32):
        network, recorder = copy.deepcopy(model).to(dtype), _Recorder()
        if start is not None:
            network.get_submodule(start).register_forward_hook(partial(_restart, recorder, value))
        with torch.no_grad(), recorder:
            network(x.to(dtype))
        records.append(recorder.seen)
    least = float("inf")
    for (name, exact, arguments), (_, rounded, _) in zip(*records, strict=True):
        if only is None or name == only:
            noise = (exact - rounded).square().mean().sqrt().clamp(min=1e-30)
            least = min(least, float(_distance(name, exact, arguments).min() / noise))
    return least


def _restart(recorder: _Recorder, value: Tensor | None, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    recorder.seen.clear()
    return output if value is None else value.to(output.dtype)
