"""Does this device compute what the kernels say? Asked once, before the first map, by a small program of known answer.

Kernels are proved on a CPU, where their text is the same and the hardware is not. A driver, a compiler or a chip that
treats it otherwise must be an error and not a map: so one layer of each kind goes through the device in the precision
that was asked for, and is compared with NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fgcam_onnx.backends.base import Array, Convolution, Program, Verbs, Window
from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.errors import BackendError

__all__ = ["TOLERANCES", "check"]

# Of one layer, relative to the largest value; rounding to TF32 costs 2^-11 an operand.
TOLERANCES = {"float32": 1e-5, "fast": 2e-3, "float64": 1e-11}
# Enough channels and cells for the largest tiles, and none of them a multiple of anything.
SIGNED, POSITIVE = Convolution((2, 1), (1, 2), (1, 2)), Convolution((1, 1), (1, 1), (1, 1))
DEPTHWISE = Convolution((1, 2), (1, 0), (1, 1), 67)
POOL = Window((3, 2), (2, 2), (1, 0), (1, 1))

Execute = Callable[[Program, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def _layers(xp: Verbs, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Relevance through a pool, a depthwise convolution, a residual Add, z+ with two terms and z+ with one."""
    random = np.random.default_rng(11)
    x, r = inputs["x"], inputs["r"]  # [2, 67, 13, 11], some zeros; [2, 67, 7, 5]
    first, second = (random.normal(size=(67, 67, 3, 3)), random.normal(size=(67, 1, 3, 3)))
    xp.rounding(one_sign=True)
    w = xp.constant(np.abs(first))
    z = xp.conv(x, w, POSITIVE, (13, 11))
    pooled = xp.max_route(x, r, POOL)
    s, leak = xp.share(pooled, z, nonnegative=True)
    back = xp.mul(x, xp.conv_adjoint(s, w, POSITIVE, (13, 11)))

    signed = xp.sub(x, xp.constant(0.5))
    halves = [(xp.positive(signed), np.maximum(first, 0)), (xp.negative(signed), np.minimum(first, 0))]
    both = xp.add(*(xp.conv(part, xp.constant(half), SIGNED, (7, 11)) for part, half in halves))
    spread = xp.window_spread(xp.window_sum(both, POOL, (4, 5)), POOL, (7, 11))
    t, lost = xp.share(xp.mul(both, spread), xp.nonzero(both))

    xp.rounding(one_sign=False)
    deep = xp.constant(second)
    u = xp.conv_adjoint(xp.conv(back, deep, DEPTHWISE, (13, 5)), deep, DEPTHWISE, (13, 11))
    kept, dropped = xp.keep(xp.add(u, back), xp.greater(x, xp.constant(1.0)))
    return {
        "z+": back, "two terms": t, "gated": kept, "leaked": leak.signed, "lost": lost.absolute,
        "dropped": dropped.absolute, "total": xp.total(back), "largest": xp.reduce_max(kept, (1, 2, 3)),
        "scores": xp.matmul(xp.reshape(kept, (2, -1)), xp.constant(random.normal(size=(67 * 13 * 11, 70)))),
    }  # fmt: skip


def check(execute: Execute, precision: str, device: str) -> None:
    """Run a small program and compare it with NumPy in float64.

    Raises:
        BackendError: the answers differ.
    """
    random = np.random.default_rng(19)
    x = np.maximum(random.normal(size=(2, 67, 13, 11)), 0).astype(np.float32)
    x[0, :, 9:] = 0  # z is 0 there
    inputs = {"x": x, "r": random.normal(size=(2, 67, 7, 5)).astype(np.float32)}
    found = execute(Program(f"self-check {precision}", _layers), inputs)
    exact = NumpyVerbs(np.float64)
    expected = _layers(exact, {name: array.astype(np.float64) for name, array in inputs.items()})
    for name, right in expected.items():
        error = np.abs(found[name].astype(np.float64) - right).max() / np.abs(right).max(initial=1e-30)
        if not error <= TOLERANCES[precision]:
            raise BackendError(
                f"this GPU does not compute what the kernels say: {name!r} is off by {error:.1e}",
                at=f"the self-check in {precision} on {device}",
                known=f"{TOLERANCES[precision]:.0e} is allowed: the driver, a compiler or a kernel is wrong",
                next="backend='ort' runs on the CPU; please report this with the line above",
            )
