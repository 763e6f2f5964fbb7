"""Maps of pytorch-grad-cam before its ReLU, resize and min-max, and its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytorch_grad_cam as library
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import ablation_cam, score_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from parity.networks import plain

__all__ = ["CAMS", "coarse"]

CAMS: dict[str, Any] = {
    "grad-cam": library.GradCAM,
    "grad-cam++": library.GradCAMPlusPlus,
    "xgrad-cam": library.XGradCAM,
    "layer-cam": library.LayerCAM,
    "hires-cam": library.HiResCAM,
    "eigen-cam": library.EigenCAM,
    "score-cam": library.ScoreCAM,
    "ablation-cam": library.AblationCAM,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars; and masks that are resized half-pixel, where the library aligns the corners."""
    half_pixel = partial(nn.Upsample, mode="bilinear", align_corners=False)
    with (
        mock.patch.object(score_cam.tqdm, "tqdm", lambda steps: steps),
        mock.patch.object(ablation_cam.tqdm, "tqdm", lambda steps: steps),
        mock.patch.object(torch.nn, "UpsamplingBilinear2d", half_pixel),
    ):
        yield


def coarse(method: str, model: nn.Module, layer: str, x: Tensor, target: Tensor) -> NDArray[np.float64]:
    """The signed map [n, h, w] at the output of the submodule ``layer``.

    Score-CAM here has the softmax over channels of the logits of the masked pictures for weights, and no baseline,
    which such a softmax does not see.
    """
    model = plain(model)
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    with _quiet(), CAMS[method](model=model, target_layers=[model.get_submodule(layer)]) as cam:
        logits = cam.activations_and_grads(x)
        if cam.uses_gradients:
            model.zero_grad()
            sum(t(y) for t, y in zip(targets, logits, strict=True)).backward()  # type: ignore[union-attr]
        activations, gradients = (
            [tensor.numpy() for tensor in found]
            for found in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
        )
        a, g = activations[0], gradients[0] if gradients else None
        return np.asarray(cam.get_cam_image(x, cam.target_layers[0], targets, a, g, False), np.float64)
