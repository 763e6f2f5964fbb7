"""Score-CAM: each channel weighted by the score of the image seen through it.

    m_k = mm(Up(A_k));   w_k = p_c(x m_k), 0 where A_k is constant          components w_k A_k          [rows, c, ...]
    weights="softmax":   w = softmax over k of y_c(x m_k) - y_c(baseline), over the channels that are not constant

mm: min-max to [0, 1]. The mask multiplies the *normalised* input, so 0 is the mean colour. p_c is the softmax
probability; the sigmoid for a model that ends in one or has one class. The baseline moves all scores alike and so no
softmax: it is not computed. One forward pass a channel, shared by all classes of an image.

Conserves: nothing. Components are >= 0 where activations are.

Differs: from the paper and pytorch-grad-cam, whose weights are the softmax over channels (weights="softmax"); the
default is that of the published FG-CAM code. In pytorch-grad-cam constant channels take part in the softmax, Up has
aligned corners, and mm has 1e-8 in the denominator.

Source: methods 5 and 10; Wang et al. 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgcam_onnx.cams.base import Context, over_space
from fgcam_onnx.cams.masks import input_space, pieces, stretched, through
from fgcam_onnx.cams.probability import probability

DESCENDS = True
OPTIONS: dict[str, Any] = {"weights": ("probability", "softmax")}


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed as the activations are. Costs one forward pass a channel of each image."""
    a, (n, c) = context.activations, context.activations.shape[:2]
    softmax = context.options.get("weights", "probability") == "softmax"
    weights = np.zeros((len(context.target), c), a.dtype)
    size = input_space(context)
    for image in range(n):
        rows = context.rows_of(image)
        target = context.target[rows]
        alive = np.zeros(c, bool)
        for channels in pieces(c, context.batch_size):
            masks = stretched(a[image, channels], size)
            live = masks.reshape(len(masks), -1).any(axis=1)
            seen = channels[live]
            if live.any():
                logits = context.score(through(masks[live], context, image))
                weights[np.ix_(rows, seen)] = (
                    logits[:, target].T if softmax else probability(logits, target, context.head)
                )
                alive[seen] = True
            context.progress(image * c + int(channels[-1]) + 1, n * c)
        if softmax and alive.any():
            scores = weights[np.ix_(rows, alive)]
            e = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights[np.ix_(rows, alive)] = e / e.sum(axis=1, keepdims=True)
    result: np.ndarray = over_space(weights, a) * a
    return result
