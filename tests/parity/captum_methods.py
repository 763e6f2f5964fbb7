"""Gradient-type methods by captum, and its LRP on chains.

captum works on modules: a ReLU that is called twice, as in torchvision's residual blocks, needs ``networks.unrolled``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from captum import attr
from captum.attr._core import deep_lift as captum_deep_lift
from captum.attr._core import guided_backprop_deconvnet, noise_tunnel
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, PropagationRule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F  # noqa: N812

from parity.networks import array, plain, unrolled

__all__ = ["deep_lift", "gradient", "gradient_x_input", "guided_backprop", "integrated_gradients", "lrp", "smooth_grad"]

Quadrature = Literal["gausslegendre", "riemann_right"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what captum says of its hooks and of inputs that it makes require a gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> NDArray[np.float64]:
    """dy_c/dx, [n, c, h, w]: Saliency without its absolute value."""
    with _quiet():
        return array(attr.Saliency(plain(model)).attribute(x, target=target, abs=False))


def gradient_x_input(model: nn.Module, x: Tensor, target: Tensor) -> NDArray[np.float64]:
    with _quiet():
        return array(attr.InputXGradient(plain(model)).attribute(x, target=target))


def integrated_gradients(
    model: nn.Module, x: Tensor, target: Tensor, steps: int, quadrature: Quadrature
) -> NDArray[np.float64]:
    """From a reference of 0."""
    with _quiet():
        method = attr.IntegratedGradients(plain(model))
        return array(method.attribute(x, target=target, n_steps=steps, method=quadrature, internal_batch_size=len(x)))


def smooth_grad(model: nn.Module, x: Tensor, target: Tensor, noise: Tensor) -> NDArray[np.float64]:
    """The average gradient at x + noise, noise [n, samples, c, h, w]: NoiseTunnel, drawing what it is given."""
    drawn = noise.flatten(0, 1)
    with _quiet(), mock.patch.object(noise_tunnel.torch, "normal", return_value=drawn):
        tunnel = attr.NoiseTunnel(attr.Saliency(plain(model)))
        found = tunnel.attribute(
            x, target=target, abs=False, nt_type="smoothgrad", nt_samples=noise.shape[1], stdevs=1.0
        )
    return array(found)


def guided_backprop(model: nn.Module, x: Tensor, target: Tensor, *, relu6: bool = False) -> NDArray[np.float64]:
    """captum guides ``nn.ReLU`` alone and lets a ReLU6 hand back its plain derivative without a word.

    ``relu6``: guide these as well.
    """
    hooked = (nn.ReLU, nn.ReLU6) if relu6 else nn.ReLU
    with _quiet(), mock.patch.object(guided_backprop_deconvnet.torch.nn, "ReLU", hooked):
        return array(attr.GuidedBackprop(unrolled(model)).attribute(x, target=target))


def _max_pool(
    module: Any, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """captum's rule for MaxPool2d, what two windows send to one cell added up.

    captum writes them over each other (max_unpool2d), so that in a pool whose windows overlap, such as ResNet's first,
    contributions are lost; and where a cell is the same in both pictures, it takes the gradient of the batch's first.
    """
    (x, x0), (y, y0), (r, _) = inputs.chunk(2), outputs.chunk(2), grad_output.chunk(2)
    top = torch.maximum(y, y0)
    shape = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)

    def spread(at: Tensor, amount: Tensor) -> Tensor:
        winners = F.max_pool2d(at, *shape, return_indices=True)[1]
        return torch.zeros_like(at).flatten(2).scatter_add_(2, winners.flatten(2), amount.flatten(2)).view_as(at)

    found = spread(x, r * (top - y0)) + spread(x0, r * (y - top))
    delta = x - x0
    safe = torch.where(delta.abs() < eps, torch.ones_like(delta), delta)
    multiplier = torch.where(delta.abs() < eps, grad_input.chunk(2)[0], found / safe)
    return torch.cat([multiplier, multiplier])


class _Copy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _apart(model: nn.Module) -> nn.Module:
    """``model`` unrolled, with a copy before every max-pool.

    Where a max-pool reads what another hooked module gave, captum's two hooks meet on one tensor, the pool's comes too
    late, and the plain gradient goes on.
    """
    traced: Any = unrolled(model)
    for number, node in enumerate(list(traced.graph.nodes)):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.MaxPool2d):
            traced.add_submodule(f"copy_{number}", _Copy())
            with traced.graph.inserting_before(node):
                copied = traced.graph.call_module(f"copy_{number}", (node.args[0],))
            node.args = (copied, *node.args[1:])
    traced.recompile()
    separate: nn.Module = traced
    return separate


def deep_lift(model: nn.Module, x: Tensor, target: Tensor, *, mended: bool = True) -> NDArray[np.float64]:
    """DeepLIFT-rescale from a reference of 0.

    captum rescales the modules that it knows and differentiates every other, ReLU6 among them, without a word; and see
    :func:`_max_pool` and :func:`_apart`. Its sum over the map is then not y(x) - y(0). ``mended``: rescale ReLU6, and
    max-pools wherever they stand.
    """
    rules: dict[Any, Any] = {nn.ReLU6: captum_deep_lift.nonlinear, nn.MaxPool2d: _max_pool} if mended else {}
    prepared = _apart(model) if mended else unrolled(model)
    with _quiet(), mock.patch.dict(captum_deep_lift.SUPPORTED_NON_LINEAR, rules):
        return array(attr.DeepLift(prepared).attribute(x, torch.zeros_like(x), target=target))


def folded(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are in its convolutions: captum's own rule for a norm is epsilon, which absorbs beta."""
    return fuse(plain(model))


RULES: Mapping[str, type[PropagationRule]] = {
    "epsilon": EpsilonRule,
    "z_plus": Alpha1_Beta0_Rule,
    "gamma": GammaRule,
}


def lrp(model: nn.Module, x: Tensor, target: Tensor, conv: str, *, first: str = "epsilon") -> NDArray[np.float64]:
    """captum's LRP of a chain, relevance z_t at the class. Linear layers and pools: epsilon, 1e-9.

    ``conv``: the rule of the convolutions, ``first`` of the first one: captum's z+ and gamma are for inputs >= 0. Their
    biases are out. captum refuses networks that add tensors outside a module.
    """
    model = folded(model)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        rule = RULES[first if module is convolutions[0] else conv]
        module.rule = rule() if rule is EpsilonRule else rule(set_bias_to_zero=True)  # type: ignore[call-arg]
    with _quiet():
        return array(attr.LRP(model).attribute(x, target=target))
