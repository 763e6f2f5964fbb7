"""FD-CAM: mean gradients, weighted by what a channel's group of similar ones does to the score, on and off.

    cos_kk' = <A_k, A_k'> / (|A_k| |A_k'|), 0 for a dead channel;   on_k = {k': cos_kk' > quantile of row k}
    s_k = y_c(A on on_k, 0 elsewhere) + y_c(A) - y_c(A but 0 on on_k)
    w_k = exp(mm(s)_k) mm(<g>)_k - 0.5          components w_k A_k          [rows, c, ...]

g = dy_c/dA, <.> the mean over space, mm min-max over the channels, 0 where all are equal. ``quantile``: of each row of
cos, 0.95. Two passes through the layers behind L a channel, shared by all classes of an image.

Conserves: nothing. Where all gradients are equal every weight is -0.5.

Differs: nothing known; what a dead channel resembles is undefined in the paper.

Source: methods 5; Li et al. 2022.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgcam_onnx.cams.base import Context, over_space
from fgcam_onnx.cams.masks import min_max, pieces
from fgcam_onnx.errors import OptionError

DESCENDS = True
OPTIONS: dict[str, Any] = {"quantile": 0.95}


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed. Costs two passes from L to the logits a channel.

    Raises:
        OptionError: ``quantile`` is no number between 0 and 1.
    """
    quantile = context.options.get("quantile", OPTIONS["quantile"])
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float)) or not 0 <= quantile <= 1:
        raise OptionError(f"option quantile cannot be {quantile!r}", known="a share, 0 to 1")
    a, (n, c) = context.activations, context.activations.shape[:2]
    scores = np.zeros((len(context.target), c), a.dtype)
    for image in range(n):
        rows = context.rows_of(image)
        target = context.target[rows]
        y = context.behind(a[image : image + 1], image)[0, target][:, None]
        on = _alike(a[image], float(quantile))
        for channels in pieces(c, context.batch_size):
            mask = over_space(on[channels], a)
            alone = context.behind(np.where(mask, a[image], 0), image)[:, target].T
            without = context.behind(np.where(mask, 0, a[image]), image)[:, target].T
            scores[np.ix_(rows, channels)] = alone + y - without
            context.progress(image * c + int(channels[-1]) + 1, n * c)
    g = np.asarray(context.gradient)
    weights = np.exp(min_max(scores)) * min_max(g.reshape(*g.shape[:2], -1).mean(axis=2)) - np.asarray(0.5, a.dtype)
    result: np.ndarray = over_space(weights, a) * a
    return result


def _alike(a: np.ndarray, quantile: float) -> np.ndarray:
    """A of one image [c, ...] -> [c, c], True where k' is in on_k."""
    flat = a.reshape(len(a), -1).astype(np.float64)
    length = np.sqrt((flat**2).sum(axis=1, keepdims=True))
    unit = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    cosine = unit @ unit.T
    alike: np.ndarray = cosine > np.quantile(cosine, quantile, axis=1, keepdims=True)
    return alike
