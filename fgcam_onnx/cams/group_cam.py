"""Group-CAM: channels in groups, each group weighted by what it shows of the image beyond a blurred one.

    M_l = ReLU(sum over k in group l of <g_k> A_k);   m_l = mm(Up(M_l));   x_l = x m_l + B (1 - m_l)
    s_l = ReLU(p_c(x_l) - p_c(B));   map = sum_l s_l M_l
    components s_l <g_k> A_k where M_l > 0, 0 elsewhere          [rows, c, ...]

g = dy_c/dA, <.> the mean over space, mm min-max to [0, 1], B the blurred image (``kernel``, ``sigma``: Gaussian,
reflect border). ``groups`` of consecutive channels; where their number does not divide that of the channels the first
ones have one more. ``quantile``: cells of Up(M_l) below it become 0 before mm; they do so in the mask, not in the map.

Conserves: nothing. The map is >= 0.

Differs: the map is taken at L. The definition adds up Up(M_l): Up of this map, but for a quantile.

Source: methods 5 and 7.1; Zhang et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fgcam_onnx.cams.base import Context, over_space
from fgcam_onnx.cams.blur import blur
from fgcam_onnx.cams.masks import input_space, min_max, pieces
from fgcam_onnx.cams.probability import probability
from fgcam_onnx.errors import OptionError
from fgcam_onnx.graph.layer import LayerGraph, Shape
from fgcam_onnx.imaging import resize

DESCENDS = True
OPTIONS: dict[str, Any] = {"groups": 32, "quantile": None, "kernel": 51, "sigma": 50.0}


def refuses(graph: LayerGraph, source: str, shape: Shape, options: Mapping[str, Any] = OPTIONS) -> str | None:
    """Why L cannot be cut into so many groups, None if it can or its channels are not known."""
    layout = graph.tensor(source).layout or ""
    channels = dict(zip(layout, shape, strict=False)).get("C")
    groups = options.get("groups", OPTIONS["groups"])
    if isinstance(channels, int) and isinstance(groups, int) and channels < groups:
        return (
            f"group-cam cuts the channels into {groups} groups, and {source!r} has {channels}: take fewer groups "
            f"(groups={channels}), or score-cam, which takes each channel by itself"
        )
    return None


def components(context: Context) -> np.ndarray:
    """[rows, c, ...], signed; their sum is >= 0. Costs one forward pass a group.

    Raises:
        OptionError: ``groups`` is not a number of groups that the channels fill, ``quantile`` is outside (0, 1), or the
            blur's ``kernel`` or ``sigma`` is none.
    """
    options = {**OPTIONS, **context.options}
    a, (n, c) = context.activations, context.activations.shape[:2]
    cuts, quantile = _cuts(options["groups"], c), _checked(options["quantile"])
    g = np.asarray(context.gradient)
    parts = over_space(g.reshape(*g.shape[:2], -1).mean(axis=2), a) * a
    maps = np.maximum(np.add.reduceat(parts, cuts, axis=1), 0)  # M: [rows, groups, ...]
    space = tuple(axis for axis in range(context.x.ndim) if axis not in (0, context.channel_axis))
    scores = np.zeros(maps.shape[:2], a.dtype)
    for image in range(n):
        hidden = blur(context.x[image : image + 1], space, kernel=options["kernel"], sigma=options["sigma"])
        nothing = context.score(hidden)
        rows = context.rows_of(image)
        for place, row in enumerate(rows):
            target = context.target[row : row + 1]
            for groups in pieces(len(cuts), context.batch_size):
                masks = _masks(maps[row, groups], input_space(context), quantile)
                live = masks.reshape(len(masks), -1).any(axis=1)  # through a mask of zeros there is only the blur
                if live.any():
                    p = probability(context.score(_seen(masks[live], hidden, context, image)), target, context.head)
                    gain = p - probability(nothing, target, context.head)
                    scores[row, groups[live]] = np.maximum(gain[0], 0)
                done = (image * len(rows) + place) * len(cuts) + int(groups[-1]) + 1
                context.progress(done, n * len(rows) * len(cuts))
    sizes = np.diff([*cuts, c])
    result: np.ndarray = np.repeat(over_space(scores, a) * (maps > 0), sizes, axis=1) * parts
    return result


def _cuts(groups: Any, channels: int) -> np.ndarray:
    """The first channel of each group."""
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= channels:
        raise OptionError(f"option groups cannot be {groups!r}", known=f"1 to {channels}, the channels at L")
    each, more = divmod(channels, groups)
    index = np.arange(groups)
    return index * each + np.minimum(index, more)


def _checked(quantile: Any) -> float | None:
    if quantile is None:
        return None
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float)) or not 0 < quantile < 1:
        raise OptionError(f"option quantile cannot be {quantile!r}", known="None, or a share between 0 and 1")
    return float(quantile)


def _masks(maps: np.ndarray, size: tuple[int, ...], quantile: float | None) -> np.ndarray:
    """m of each map, [m, ...] -> [m, *size]."""
    up = resize(maps, size)
    if quantile is not None:
        axes = tuple(range(1, up.ndim))
        up = np.where(up < np.quantile(up, quantile, axis=axes, keepdims=True), 0, up).astype(up.dtype)
    return min_max(up)


def _seen(masks: np.ndarray, hidden: np.ndarray, context: Context, image: int) -> np.ndarray:
    """x m + B (1 - m), written so that a mask of ones gives x and one of zeros B."""
    m = np.expand_dims(masks, context.channel_axis)
    seen: np.ndarray = context.x[image : image + 1] * m + hidden * (1 - m)
    return seen
