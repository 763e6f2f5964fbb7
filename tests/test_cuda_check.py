"""The self-check: a device that computes something else than the kernels say makes no map."""

from __future__ import annotations

import numpy as np
import pytest
from backends import needs_gxx
from cuda_on_cpu.device import CpuDevice

from fgcam_onnx.backends.base import Program
from fgcam_onnx.backends.cuda.check import TOLERANCES
from fgcam_onnx.backends.cuda.device import Kernel
from fgcam_onnx.backends.cupy import CupyBackend
from fgcam_onnx.errors import BackendError

pytestmark = needs_gxx
PROGRAM = Program("nothing", lambda xp, i: {"y": xp.absolute(i["x"])})
ONE = {"x": np.ones((1, 1), np.float32)}


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_the_self_check_passes_on_a_device_that_is_right(precision: str) -> None:
    """And it has a kernel of each kind in it: what is not launched is not checked."""
    for multiprocessors in (4, 132):
        device = CpuDevice(multiprocessors=multiprocessors)
        backend = CupyBackend(precision, device)
        backend.execute(PROGRAM, ONE)
        kinds = {name.split("_")[0] if name.startswith("map") else name for name in device.launched}
        assert kinds >= {"map", "contraction", "conv_direct", "max_winner", "max_route", "window_sum", "window_spread",
                         "totals"}  # fmt: skip
        assert kinds & {"reduce", "reduce_short"}


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
@pytest.mark.parametrize("name", ["contraction", "conv_direct", "max_winner", "totals", "map"])
def test_a_device_that_computes_something_else_is_refused(name: str, precision: str) -> None:
    """One kernel of the kind finds its first output off by a percent or so: no map is made there."""

    class Broken(CpuDevice):
        def kernel(self, name_: str, source: str) -> Kernel:
            wrong = source
            if name_.split("_")[0] == name or name_ == name:
                wrong = source.replace("fma(a[i], b[j], acc[i][j])", "fma(a[i], b[j], acc[i][j] * (real)0.99)")
                wrong = wrong.replace("d[r] =", "d[r] = 0.99f *").replace("acc = fma(", "acc = (real)0.98 * fma(")
                wrong = wrong.replace("multiply_add(acc[i][j], a[i], b[j])", "multiply_add(acc[i][j], a[i], b[0])")
                wrong = wrong.replace("winner[o] = best", "winner[o] = best + 1")
                wrong = wrong.replace("out[blockIdx.x] = (real)sum", "out[blockIdx.x] = (real)(1.02 * sum)")
                wrong = wrong.replace("const real s = r / z;", "const real s = (real)1.02 * r / z;")
            return super().kernel(name_, wrong)

    backend = CupyBackend(precision, Broken())
    for _ in range(2):  # it stays refused
        with pytest.raises(BackendError, match="this GPU does not compute what the kernels say") as caught:
            backend.execute(PROGRAM, ONE)
    assert f"the self-check in {precision} on CUDA on a CPU" in str(caught.value)
