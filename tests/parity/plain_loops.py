"""Methods that need no library: a loop over torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity.networks import array

__all__ = ["gradient", "rise"]


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> NDArray[np.float64]:
    """dy_c/dx, [n, c, h, w]."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)
    return array(found)


def rise(model: nn.Module, x: Tensor, target: Tensor, masks: NDArray[np.floating], keep: float) -> NDArray[np.float64]:
    """E = 1/(N p) sum over masks of p_c(x m) m, masks [N, h, w] -> [n, h, w]."""
    maps = []
    for picture, t in zip(x, target, strict=True):
        total = np.zeros(masks.shape[1:])
        for mask in masks:
            with torch.no_grad():
                p = model((picture * torch.from_numpy(mask).to(picture))[None]).softmax(dim=1)
            total += float(p[0, t]) * mask
        maps.append(total / (len(masks) * keep))
    return np.stack(maps)
