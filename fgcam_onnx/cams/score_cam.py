"""Score-CAM: each channel's weight is the score of the image seen through that channel.

    m_k = mm(Up(A_k)),   w_k = p_c(x * m_k),   w_k = 0 if A_k is constant;   components w_k A_k at the size of L

The mask multiplies the *normalised* input, so 0 is the mean colour. p_c is the softmax probability (the sigmoid, for a
model that ends in one); no baseline is subtracted and no softmax taken over channels. Source: methods 5 and 10 (as the
published FG-CAM code); Wang et al. 2020.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.cams.base import Context, over_space
from fgcam_onnx.imaging import resize


def components(context: Context) -> np.ndarray:
    """[n, c, ...], signed as the activations are. Costs one forward pass a channel."""
    a = context.activations
    weights = np.zeros(a.shape[:2], a.dtype)
    total = a.shape[0] * a.shape[1]
    for image in range(a.shape[0]):
        for first in range(0, a.shape[1], context.batch_size):
            channels = np.arange(first, min(first + context.batch_size, a.shape[1]))
            masks = _masks(a[image, channels], _space(context))
            live = masks.reshape(len(masks), -1).any(axis=1)
            if live.any():
                scores = context.score(_seen_through(masks[live], context, image))
                weights[image, channels[live]] = _probability(scores, int(context.target[image]), context.head)
            context.progress(image * a.shape[1] + int(channels[-1]) + 1, total)
    result: np.ndarray = over_space(weights, a) * a
    return result


def _space(context: Context) -> tuple[int, ...]:
    return tuple(d for axis, d in enumerate(context.x.shape) if axis not in (0, context.channel_axis))


def _masks(a: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """[m, ...] -> min-max of each, at the input's size; all 0 where a channel is constant."""
    up = resize(a, size)
    axes = tuple(range(1, up.ndim))
    low, high = up.min(axis=axes, keepdims=True), up.max(axis=axes, keepdims=True)
    masks: np.ndarray = np.divide(up - low, high - low, out=np.zeros_like(up), where=high > low)
    return masks


def _seen_through(masks: np.ndarray, context: Context, image: int) -> np.ndarray:
    seen: np.ndarray = context.x[image : image + 1] * np.expand_dims(masks, context.channel_axis)
    return seen


def _probability(logits: np.ndarray, target: int, head: str | None) -> np.ndarray:
    """p_c of each row: softmax, or the sigmoid of the class alone where the model's classes do not compete."""
    if head == "Sigmoid" or logits.shape[1] == 1:
        alone: np.ndarray = np.exp(-np.logaddexp(0, -logits[:, target]))
        return alone
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = e[:, target] / e.sum(axis=1)
    return shares
