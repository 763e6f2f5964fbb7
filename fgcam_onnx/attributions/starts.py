"""Where the relevance of LRP starts: what is put on the logits.

Each function: logits z [rows, N] -> relevance R [rows, N]; t is the target of a row. Source: methods 4.2.
"""

from __future__ import annotations

import numpy as np

__all__ = ["contrast", "one", "score", "softmax_gradient", "uniform_dual", "uniform_dual_absolute"]
__all__ += ["uniform_rest"]


def score(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R_t = |z_t|: the score itself, made positive so that a map does not turn its signs with it (LRP).

    ``weights`` [rows, N]: 1 at t; of any other sum of logits R_n = w_n z_n, times the sign of the sum.
    """
    start = weights.astype(np.float64) * z
    sign = np.where(start.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    result: np.ndarray = start * sign
    return result


def one(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_t = 1 (excitation backpropagation)."""
    start = np.zeros(z.shape, np.float64)
    start[np.arange(len(start)), target] = 1
    return start


def contrast(z: np.ndarray, target: np.ndarray, against: np.ndarray) -> np.ndarray:
    """R_A = 1, R_B = -1: why A and not B. It sums to 0, its halves to 1 and -1."""
    start: np.ndarray = one(z, target) - one(z, against)
    return start


def uniform_dual(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_n = z_t / (N - 1) for n != t, R_t = 0: the dual of CLRP1 (Gu, Yang, Tresp 2018)."""
    rest = 1 - one(z, target)
    own: np.ndarray = np.take_along_axis(z, target[:, None], 1).astype(np.float64)
    start: np.ndarray = rest * np.abs(own) / max(1, z.shape[1] - 1)
    return start


def uniform_dual_absolute(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_n = |z_n| for n != t, R_t = 0: the dual of CLRP1 in its authors' code."""
    start: np.ndarray = (1 - one(z, target)) * np.abs(z)
    return start


def uniform_rest(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_t = 1, R_n = -1/N: the start of Relevance-CAM (Lee et al. 2021)."""
    single = one(z, target)
    start: np.ndarray = single - (1 - single) / z.shape[1]
    return start


def softmax_gradient(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R_t = 1, R_n = -exp(z_n) / sum over m != t of exp(z_m): SGLRP (Iwana et al. 2019), free of scale.

    That is R_t = p_t (1 - p_t), R_n = -p_t p_n, divided by p_t (1 - p_t), which underflows where p_t is near 1. It sums
    to 0, its two halves to 1 and -1.
    """
    single = one(z, target)
    others = np.where(single == 1, -np.inf, z.astype(np.float64))
    largest = others.max(axis=1, keepdims=True)
    e = np.exp(others - np.where(np.isfinite(largest), largest, 0))
    total = e.sum(axis=1, keepdims=True)
    result: np.ndarray = single - np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    return result
