"""The blurred picture: what a mask shows where it hides.

    B = Gaussian blur, separable:  weights exp(-t^2 / (2 sigma^2)), t = -r..r, r = (kernel - 1) / 2, of sum 1
    reflect border: beyond the edge the picture is mirrored, without repeating the edge pixel

Source: methods 7.1. A kernel wider than the picture is mirrored again and again, as ``numpy.pad`` does.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.errors import OptionError

__all__ = ["blur"]


def blur(x: np.ndarray, axes: tuple[int, ...], *, kernel: int = 51, sigma: float = 50.0) -> np.ndarray:
    """x blurred along ``axes``, of its shape and dtype; integers become float32.

    Raises:
        OptionError: the kernel is no odd number, or sigma is not above 0.
    """
    if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"option kernel cannot be {kernel!r}", known="an odd number of pixels, 1 or more")
    if not sigma > 0:
        raise OptionError(f"option sigma cannot be {sigma!r}", known="pixels, above 0")
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
    result = x.astype(np.float64)
    for axis in axes:
        blurred = np.tensordot(result, _matrix(x.shape[axis], kernel, sigma), axes=(axis, 1))
        result = np.moveaxis(blurred, -1, axis)
    return np.ascontiguousarray(result, dtype)


def _matrix(n: int, kernel: int, sigma: float) -> np.ndarray:
    """[n, n]: row i holds how much each pixel counts in pixel i of the blurred picture."""
    t = np.arange(kernel) - kernel // 2
    weights = np.exp(-(t**2) / (2 * sigma**2))
    weights /= weights.sum()
    period = max(1, 2 * (n - 1))
    position = (np.arange(n)[:, None] + t) % period  # mirrored: 0 1 2 3 2 1 | 0 1 2 3 2 1 ...
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], np.minimum(position, period - position)), weights)
    return matrix
