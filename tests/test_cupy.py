"""The CuPy backend as a whole, without a GPU: its device code runs over a stand-in for CuPy on this processor.

What is proved: whole networks give the maps of the definition in NumPy; graphs, memory and errors do what the user is
told; the choice of a backend says why; the forward pass beside a GPU leaves its activations where they are. The
stand-in has what the installed CuPy has: the last part compares names. test_gpu.py repeats the numbers on a GPU.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import importlib.util
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import onnx
import pytest
import tiny_models
from fake_cupy import CUDARuntimeError, FakeGpu, Misuse, installed
from fake_onnxruntime import CPU, CUDA, FakeCuda
from tiny_models import Net

from fgcam_onnx import Explainer, Explanation, backends, runtime
from fgcam_onnx.backends import cupy as cupy_backend
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.cuda import program as program_module
from fgcam_onnx.backends.cuda.program import CAPTURES
from fgcam_onnx.backends.cupy import KEPT, CupyBackend, CupyDevice, status
from fgcam_onnx.errors import ActivationError, BackendError, DeviceMemoryError, FgcamError

MODELS = [*sorted(tiny_models.by_layers()), "one_d", "three_d"]
METHODS: dict[str, dict[str, Any]] = {
    "fg-grad-cam": {},
    "fg-layer-cam": {"method": "fg-layer-cam"},
    "fg-score-cam": {"method": "fg-score-cam"},
    "grad-cam": {"method": "grad-cam"},
    "denoised": {"denoise": True},
}
NO_CUDA = (
    "the forward pass runs on the CPU and only the descent on the GPU: execution provider CUDAExecutionProvider is not "
    "in this onnxruntime (it has CPUExecutionProvider)"
)
EXTRAS = (
    'it needs a CUDA GPU and pip install "fgcam_onnx[gpu]" (CUDA 13) or "fgcam_onnx[gpu-cuda12]"; '
    "backend='ort' runs on the CPU"
)
PROBE_FAILED = f"CuPy {fake_cupy.VERSION} cannot run a kernel: "
DRIVER = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"


def made(**options: Any) -> FakeGpu:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and running CUDA kernels on the CPU needs it")
    return FakeGpu(**options)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A machine with one GPU, and with an onnxruntime that knows of the CPU alone."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    found = made()
    with installed(found.cupy):
        yield found
    gc.collect()


@functools.cache
def model(name: str) -> onnx.ModelProto:
    found: onnx.ModelProto = getattr(tiny_models, name)()
    return found


@functools.cache
def defined(name: str, method: str, seed: int = 0) -> tuple[np.ndarray, Explanation]:
    """Pictures, and what NumPy says of them in float64."""
    x = tiny_models.pictures(model(name), seed=seed)
    return x, Explainer(model(name), backend="numpy", precision="float64").explain(x, **METHODS[method])


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the worst cell, against the largest of its map."""
    assert found.shape == expected.shape
    axes = tuple(range(1, expected.ndim))
    scale = np.abs(expected).max(axes, keepdims=True)
    return float((np.abs(found - expected) / np.where(scale == 0, 1, scale)).max())


def caught(kind: type[FgcamError], call: Any) -> str:
    with pytest.raises(FgcamError) as info:
        call()
    assert type(info.value) is kind
    return str(info.value)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.name == "fgcam_onnx" for record in caplog.records)
    return [f"{record.levelname}: {record.getMessage()}" for record in caplog.records]


# --- whole networks ---------------------------------------------------------------------------------------------------


def half(methods: Iterable[str]) -> list[Any]:
    """Every run has each method on every other network, and each network with every other method."""
    return [
        pytest.param(name, method, marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
        for i, name in enumerate(MODELS)
        for j, method in enumerate(methods)
    ]


@pytest.mark.parametrize(("name", "method"), half(METHODS))
def test_the_maps_are_those_of_the_definition(gpu: FakeGpu, name: str, method: str) -> None:
    """Launched, captured and replayed: 1e-5 of NumPy in float64, the same bits each time, the ledger closed."""
    x, expected = defined(name, method)
    explainer = Explainer(model(name), backend="cupy")
    found = [explainer.explain(x, **METHODS[method]) for _ in range(3)]
    assert distance(found[0].relevance, expected.relevance) <= 1e-5
    assert found[0].ledger.residual < 1e-4
    np.testing.assert_allclose(found[0].ledger.arrived, expected.ledger.arrived, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0].logits, expected.logits)
    for again in found[1:]:
        assert again.relevance.tobytes() == found[0].relevance.tobytes()
        np.testing.assert_array_equal(again.ledger.arrived, found[0].ledger.arrived)
    assert gpu.replays > 0
    assert gpu.launched


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float64", 1e-10), ("fast", 5e-4)], ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("name", ["vgg", "residual", "squeeze_excite"])
def test_other_precisions(gpu: FakeGpu, name: str, precision: str, tolerance: float) -> None:
    """float64 is the definition but for rounding; the last map is stored in float32."""
    x, expected = defined(name, "fg-grad-cam")
    found = Explainer(model(name), backend="cupy", precision=precision).explain(x)
    rounded = max(tolerance, float(np.finfo(np.float32).eps))
    assert distance(found.relevance, expected.relevance) <= rounded
    np.testing.assert_allclose(found.ledger.arrived, expected.ledger.arrived, rtol=10 * tolerance, atol=10 * tolerance)
    assert found.provenance["precision"] == precision


def test_fast_rounds_what_may_be_rounded(gpu: FakeGpu) -> None:
    """A check of the check: "fast" is not float32 under another name, where a network is wide enough for it."""
    net = Net(("n", 3, 16, 16))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 32))
    x = net.relu("relu2", net.conv("conv2", x, 32, 32))
    wide = net.model(net.head(x, 32))
    pictures = tiny_models.pictures(wide)
    expected = Explainer(wide, backend="numpy", precision="float64").explain(pictures).relevance
    fast, exact = (Explainer(wide, backend="cupy", precision=p).explain(pictures) for p in ("fast", "float32"))
    assert distance(exact.relevance, expected) <= 1e-5
    assert 1e-5 < distance(fast.relevance, expected) <= 5e-4
    assert fast.ledger.residual < 1e-4


@pytest.mark.parametrize("name", ["residual", "nhwc"])
def test_a_batch_is_its_images(gpu: FakeGpu, name: str) -> None:
    x = tiny_models.pictures(model(name), 3)
    explainer = Explainer(model(name), backend="cupy")
    whole = explainer.explain(x)
    for i in range(3):
        one = explainer.explain(x[i : i + 1])
        assert distance(one.relevance, whole.relevance[i : i + 1]) <= 1e-6
        np.testing.assert_allclose(one.ledger.arrived, whole.ledger.arrived[i : i + 1], rtol=1e-5)


def test_two_backends_give_the_same_bits(gpu: FakeGpu) -> None:
    """Also after other programs ran on one of them."""
    x, _ = defined("residual", "fg-grad-cam")
    explainers = [Explainer(model("residual"), backend="cupy") for _ in range(2)]
    for method in METHODS.values():
        explainers[1].explain(x[:1], **method)
    first, second = (e.explain(x).relevance.tobytes() for e in explainers)
    assert first == second


def test_one_backend_for_several_models(gpu: FakeGpu) -> None:
    """Programs of equal shapes and different weights are kept apart; equal weights are uploaded once."""
    backend = CupyBackend()
    pair = [tiny_models.free_size(seed) for seed in (0, 1)]
    x = tiny_models.pictures(pair[0])
    for each in (*pair, *pair):
        found = Explainer(each, backend=backend).explain(x)
        expected = Explainer(each, backend="numpy", precision="float64").explain(x)
        assert distance(found.relevance, expected.relevance) <= 1e-5
    assert len(backend._compiled) == 2
    Explainer(pair[0], backend=backend).explain(x, method="fg-layer-cam")
    first, other, second = (
        {memory.pointer for memory in compiled._constants.values()} for compiled in backend._compiled.values()
    )
    assert len(first & second) > len(first & other)


def test_nan_is_named(gpu: FakeGpu) -> None:
    """A tensor that is not finite in the middle of the one program: named as on the other backends."""
    net = Net()
    x = net.node("Log", "log", net.conv("conv1", "image", 3, 6))
    x = net.relu("relu2", net.conv("conv2", x, 6, 8))
    spoilt = net.model(net.head(x, 8))
    pictures = tiny_models.pictures(spoilt)
    texts = {
        backend: caught(ActivationError, lambda b=backend: Explainer(spoilt, backend=b).explain(pictures))
        for backend in ("cupy", "ort", "numpy")
    }
    assert texts["cupy"] == texts["ort"] == texts["numpy"]
    assert "at      tensor 'log.y' of node 'log' (Log)" in texts["cupy"]


def test_threads_take_turns(gpu: FakeGpu) -> None:
    """One backend, an Explainer in each thread, one program with its memory: no result is another's."""
    backend = CupyBackend()
    explainers = [Explainer(model("residual"), backend=backend) for _ in range(2)]
    cases = [defined("residual", "fg-grad-cam", seed) for seed in range(4)]

    def work(i: int) -> float:
        found = [explainers[i].explain(cases[(i + k) % 4][0]) for k in range(30)]
        return max(distance(e.relevance, cases[(i + k) % 4][1].relevance) for k, e in enumerate(found))

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(work, range(2))) <= 1e-5
    assert len(backend._compiled) == 1


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_a_program_is_replayed_from_its_second_call(gpu: FakeGpu) -> None:
    """And gives the maps of other images, whose activations are copied to the same places."""
    explainer = Explainer(model("residual"), backend="cupy")
    for k in range(4):
        x, expected = defined("residual", "fg-grad-cam", k)
        found = explainer.explain(x)
        assert distance(found.relevance, expected.relevance) <= 1e-5
        assert (gpu.captures, gpu.replays) == (min(k, 1), k)


def test_large_programs_give_their_memory_back(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not captured, and between calls hold their weights alone."""
    monkeypatch.setattr(program_module, "SMALL", 0)
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend="cupy")
    for _ in range(3):
        assert distance(explainer.explain(x).relevance, expected.relevance) <= 1e-5
    assert (gpu.captures, gpu.replays) == (0, 0)
    gc.collect()
    backend: Any = explainer._backend
    (compiled,) = backend._compiled.values()
    constants = {memory.pointer for memory in compiled._constants.values()}
    assert constants
    assert set(gpu.pool.used) == constants


@pytest.mark.parametrize("moment", ["begin", "end"])
def test_a_driver_that_cannot_capture(gpu: FakeGpu, moment: str) -> None:
    """Launches are asked for one by one, and capturing is not tried again."""
    gpu.capture_fails = moment
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend="cupy")
    for _ in range(4):
        assert distance(explainer.explain(x).relevance, expected.relevance) <= 1e-5
    assert (gpu.captures, gpu.replays) == (0, 0)
    backend: Any = explainer._backend
    assert [compiled._captures for compiled in backend._compiled.values()] == [CAPTURES]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-score-cam", "denoised"])
def test_memory_stays_flat(gpu: FakeGpu, method: str) -> None:
    x, _ = defined("residual", method)
    explainer = Explainer(model("residual"), backend="cupy")
    sizes = []
    for _ in range(50 if method == "fg-grad-cam" else 8):
        explainer.explain(x, **METHODS[method])
        sizes.append(gpu.pool.total_bytes())
    assert set(sizes[2:]) == {sizes[2]}


def test_release_gives_everything_back(gpu: FakeGpu) -> None:
    """And what is released can be used again."""
    backend = CupyBackend()
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend=backend)
    for _ in range(3):
        assert distance(explainer.explain(x).relevance, expected.relevance) <= 1e-5
        assert gpu.pool.used_bytes() > 0
        backend.release()
        assert gpu.pool.total_bytes() == 0


def test_release_is_of_the_backend_s_own_device() -> None:
    """Whichever device is current when it is called."""
    gpu = made(devices=2)
    with installed(gpu.cupy):
        with gpu.cupy.cuda.Device(1):
            backend = CupyBackend()
        x, _ = defined("free_size", "fg-grad-cam")
        Explainer(model("free_size"), backend=backend, providers=[CPU]).explain(x)
        assert gpu.pools[0].total_bytes() == 0
        assert gpu.pools[1].total_bytes() > 0
        backend.release()
        assert gpu.pools[1].total_bytes() == 0


def test_old_programs_are_dropped_with_their_memory(gpu: FakeGpu) -> None:
    """Of many shapes, the last ones hold memory: as much as if there had been no others."""
    sizes = range(8, 8 + 2 * (KEPT + 4), 2)

    def used(wanted: Any) -> int:
        backend = CupyBackend()
        explainer = Explainer(model("free_size"), backend=backend)
        before = gpu.pool.used_bytes()
        for size in wanted:
            explainer.explain(tiny_models.pictures(model("free_size"), free=size))
        assert len(backend._compiled) == KEPT
        gc.collect()
        return gpu.pool.used_bytes() - before

    everything = used(sizes)
    gc.collect()
    assert everything == used(list(sizes)[-KEPT:])


def peak(gpu: FakeGpu, explainer: Explainer, x: np.ndarray) -> int:
    """The most memory that the explanation needs, starting from nothing."""
    explainer._backend.release()
    gpu.most_used = 0
    explainer.explain(x)
    explainer._backend.release()
    return gpu.most_used


def test_a_batch_that_does_not_fit_is_halved(gpu: FakeGpu, caplog: pytest.LogCaptureFixture) -> None:
    """Until it fits, for all that follows; each halving is one line of the log, and the result is the same."""
    x = tiny_models.pictures(model("residual"), 8)
    target = [0, 1, 2, 3, 4, 0, 1, 2]
    explainer = Explainer(model("residual"), backend="cupy")
    expected = explainer.explain(x, target=target)
    gpu.memory = (peak(gpu, explainer, x[:2]) + peak(gpu, explainer, x[:4])) // 2
    gpu.most_used = 0
    caplog.clear()
    found = explainer.explain(x, target=target)
    assert messages(caplog) == [
        "WARNING: the descent does not fit the GPU's memory: 8 images at a time are too many, going on with 4",
        "WARNING: the descent does not fit the GPU's memory: 4 images at a time are too many, going on with 2",
    ]
    assert distance(found.relevance, expected.relevance) <= 1e-6
    np.testing.assert_array_equal(found.target, target)
    np.testing.assert_allclose(found.ledger.arrived, expected.ledger.arrived, rtol=1e-5, atol=1e-6)
    assert 0 < gpu.most_used <= gpu.memory


def test_an_odd_batch_is_halved(
    gpu: FakeGpu, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger half first; what is left of the batch is a shape of its own."""
    monkeypatch.setattr(program_module, "SMALL", 0)
    x = tiny_models.pictures(model("residual"), 5)
    explainer = Explainer(model("residual"), backend="cupy")
    expected = explainer.explain(x)
    gpu.memory = (peak(gpu, explainer, x[:3]) + peak(gpu, explainer, x)) // 2
    caplog.clear()
    found = explainer.explain(x)
    assert messages(caplog) == [
        "WARNING: the descent does not fit the GPU's memory: 5 images at a time are too many, going on with 3"
    ]
    assert distance(found.relevance, expected.relevance) <= 1e-6


def test_what_other_programs_keep_is_given_up_first(gpu: FakeGpu) -> None:
    """An image that fits an empty GPU fits whatever was explained before."""
    x = tiny_models.pictures(model("residual"), 1)
    explainer = Explainer(model("residual"), backend="cupy")
    needs = []
    for method in ("fg-grad-cam", "fg-layer-cam"):
        gpu.most_used = 0
        explainer.explain(x, method=method)
        needs.append(gpu.most_used)
        explainer._backend.release()
    gpu.memory = max(needs)
    for method in ("fg-grad-cam", "fg-layer-cam", "fg-grad-cam"):
        explainer.explain(x, method=method)


def too_large(size: int, total: int) -> str:
    return (
        "the descent does not fit the GPU's memory\n"
        f"  known   Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).\n"
        "  next    fewer images at a time (batch_size=), or a smaller picture"
    )


@pytest.mark.parametrize("name", ["residual", "fixed_batch"])
def test_one_image_that_does_not_fit(gpu: FakeGpu, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """And a model whose batch is fixed: nothing can be halved, so the user is told."""
    x = tiny_models.pictures(model(name), 1 if name == "residual" else 4)
    explainer = Explainer(model(name), backend="cupy")
    explainer.explain(x)
    explainer._backend.release()
    gpu.memory = 4096
    caplog.clear()
    text = caught(DeviceMemoryError, lambda: explainer.explain(x))
    size, total = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", text))
    assert text == too_large(size, total)
    assert size > 4096 - total
    assert messages(caplog) == []
    gpu.memory = 1 << 34
    _, expected = defined(name, "fg-grad-cam")
    if name == "fixed_batch":
        assert distance(explainer.explain(x).relevance, expected.relevance) <= 1e-5


# --- the choice -------------------------------------------------------------------------------------------------------


def provenance(explainer: Explainer, folder: Path) -> dict[str, Any]:
    """What the manifest of a saved explanation says."""
    x = tiny_models.pictures(model("free_size"))
    manifest = json.loads((explainer.explain(x).save(folder) / "manifest.json").read_text())
    found: dict[str, Any] = manifest.get("provenance", manifest)
    return found


def test_auto_without_cupy(tmp_path: Path) -> None:
    """Who has not asked for a GPU is not told that there is none."""
    with installed(None):
        explainer = Explainer(model("free_size"))
        said = provenance(explainer, tmp_path)
    assert (explainer.backend, explainer.notes) == ("ort", [])
    assert (said["backend"], said["backend_providers"], said["precision"]) == ("ort", [CPU], "float32")
    assert said["notes"] == []


def test_auto_with_a_cupy_that_cannot_run(gpu: FakeGpu, tmp_path: Path) -> None:
    """The CPU works, and the reason is in the notes and in the manifest."""
    gpu.trouble = CUDARuntimeError(DRIVER)
    explainer = Explainer(model("free_size"))
    note = f"the descent runs on the CPU: {PROBE_FAILED}CUDARuntimeError: {DRIVER}"
    assert (explainer.backend, explainer.notes) == ("ort", [note])
    said = provenance(explainer, tmp_path)
    assert (said["backend"], said["notes"]) == ("ort", [note])


def test_auto_with_a_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    explainer = Explainer(model("free_size"))
    assert (explainer.backend, explainer.precision) == ("cupy", "float32")
    said = provenance(explainer, tmp_path)
    assert said["backend"] == "cupy"
    assert said["backend_providers"] == [f"Fake GPU (sm_90), CuPy {fake_cupy.VERSION}"]
    assert (said["precision"], said["providers"], said["notes"]) == ("float32", [CPU], [NO_CUDA])


def spoil(gpu: FakeGpu, what: str) -> ModuleType | None:
    """The module that ``import cupy`` finds when this is wrong with it."""
    if what == "none":
        return None
    if what == "no device":
        gpu.devices = 0
    elif what == "driver":
        gpu.trouble = CUDARuntimeError(DRIVER)
    elif what == "nvrtc":
        gpu.compile_trouble = RuntimeError("CuPy failed to load libnvrtc.so.13: OSError\nsecond line")
    elif what == "wordless":
        gpu.compile_trouble = MemoryError()
    elif what == "wrong":
        gpu.answer = 41
    return gpu.cupy


REASONS = {
    "none": "CuPy cannot be imported: ModuleNotFoundError: import of cupy halted; None in sys.modules",
    "no device": "CuPy sees no CUDA device",
    "driver": f"{PROBE_FAILED}CUDARuntimeError: {DRIVER}",
    "nvrtc": f"{PROBE_FAILED}RuntimeError: CuPy failed to load libnvrtc.so.13: OSError",
    "wordless": f"{PROBE_FAILED}MemoryError",
    "wrong": "a probe kernel gave a wrong answer",
}


@pytest.mark.parametrize("what", REASONS)
def test_cupy_that_was_asked_for_and_cannot_run(what: str) -> None:
    with installed(spoil(gpu := made(), what)):
        for call in (CupyDevice, CupyBackend, lambda: Explainer(model("free_size"), backend="cupy")):
            text = caught(BackendError, call)
            assert text == f"the cupy backend cannot work here\n  known   {REASONS[what]}\n  next    {EXTRAS}"
        assert status() == (False, REASONS[what])
    assert gpu.launched == []


def test_status_is_asked_once(gpu: FakeGpu) -> None:
    assert status() == (True, f"Fake GPU (sm_90), CuPy {fake_cupy.VERSION}")
    gpu.trouble = CUDARuntimeError(DRIVER)
    assert status()[0]


def test_fast_needs_tensor_cores() -> None:
    gpu = made(architecture=75)
    with installed(gpu.cupy):
        assert caught(BackendError, lambda: backends.make("cupy", "fast")) == (
            f"precision 'fast' needs TF32 tensor cores, and Fake GPU (sm_75), CuPy {fake_cupy.VERSION} has none\n"
            "  known   they came with sm_80; this device is sm_75\n"
            "  next    precision='float32' computes the same maps without them"
        )
        assert backends.make("cupy", "float32").precision == "float32"


@pytest.mark.parametrize(
    ("name", "precision", "text"),
    [
        ("numpy", "fast", "backend 'numpy' has nothing to round\n  next    precision='fast' is for backend='cupy'"),
        ("ort", "fast", "backend 'ort' computes in float32 only\n  next    precision='fast' is for backend='cupy'"),
        (
            "ort",
            "float64",
            "backend 'ort' computes in float32 only\n  next    backend='numpy' computes in float64, slowly",
        ),
        (
            "auto",
            "fast",
            "backend 'auto' is ort here and computes in float32 only\n"
            f"  known   the descent runs on the CPU: {PROBE_FAILED}CUDARuntimeError: {DRIVER}\n"
            "  next    precision='fast' is for backend='cupy'",
        ),
    ],
)
def test_a_precision_that_a_backend_has_not(gpu: FakeGpu, name: str, precision: str, text: str) -> None:
    gpu.trouble = CUDARuntimeError(DRIVER)
    assert caught(BackendError, lambda: Explainer(model("free_size"), backend=name, precision=precision)) == text


@pytest.mark.parametrize(
    ("name", "precision", "dtype"),
    [
        ("numpy", "float32", "float32"),
        ("numpy", "float64", "float64"),
        ("ort", "float32", "float32"),
        ("cupy", "float32", "float32"),
        ("cupy", "fast", "float32"),
        ("cupy", "float64", "float64"),
        ("auto", "fast", "float32"),
    ],
)
def test_the_precision_that_was_asked_for(gpu: FakeGpu, name: str, precision: str, dtype: str) -> None:
    backend: Backend = backends.make(name, precision)
    assert (backend.precision, backend.dtype.name) == (precision, dtype)


# --- the forward pass beside a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def cuda(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """An onnxruntime with CUDA beside it."""
    return FakeCuda(gpu, monkeypatch)


def test_the_forward_pass_shares_the_stream(cuda: FakeCuda, gpu: FakeGpu) -> None:
    """Its options say whose stream and no TF32; the provider stands in the provenance."""
    backend = CupyBackend()
    x, expected = defined("residual", "fg-grad-cam")
    found = Explainer(model("residual"), backend=backend).explain(x)
    assert distance(found.relevance, expected.relevance) <= 1e-5
    assert cuda.options == [
        {
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "device_id": "0",
            "user_compute_stream": str(backend.device.cuda_stream.ptr),  # type: ignore[attr-defined]
        }
    ]
    assert backend.stream is not None
    assert str(backend.stream.handle) == cuda.options[0]["user_compute_stream"] != "0"
    assert gpu.streams == 1
    assert found.provenance["providers"] == [CUDA, CPU]
    assert found.provenance["notes"] == []


@pytest.mark.parametrize(("name", "method"), half(["fg-grad-cam", "fg-layer-cam", "grad-cam"]))
def test_activations_stay_on_the_device(cuda: FakeCuda, gpu: FakeGpu, name: str, method: str) -> None:
    """Only the logits are read on the host; only picture and seed are copied there, and weights in the first call."""
    x, expected = defined(name, method)
    explainer = Explainer(model(name), backend="cupy")
    picture, seed = x.nbytes, expected.logits.nbytes
    for k in range(4):
        gpu.copies.clear()
        cuda.read.clear()
        found = explainer.explain(x, **METHODS[method])
        assert distance(found.relevance, expected.relevance) <= 1e-5
        assert cuda.read == [explainer.graph.logits]
        if k:
            written = [nbytes for word, nbytes in gpu.copies if word == "write"]
            assert written in ([seed], [picture, seed])
    assert len(cuda.bindings) == len({id(binding) for binding in cuda.bindings}) == 4


@pytest.mark.parametrize("method", ["fg-score-cam", "denoised"])
def test_steps_on_the_host_read_what_they_need(cuda: FakeCuda, method: str) -> None:
    x, expected = defined("residual", method)
    explainer = Explainer(model("residual"), backend="cupy")
    found = explainer.explain(x, **METHODS[method])
    assert distance(found.relevance, expected.relevance) <= 1e-5
    assert set(cuda.read) == {explainer.graph.logits, explainer.default_layer}


def test_float64_copies_what_lies_on_the_device(cuda: FakeCuda) -> None:
    """Activations are float32: a program in float64 gets them through the host."""
    x, expected = defined("vgg", "fg-grad-cam")
    found = Explainer(model("vgg"), backend="cupy", precision="float64").explain(x)
    assert distance(found.relevance, expected.relevance) <= 1e-6
    assert len(cuda.read) > 2


def test_weights_are_not_fed_to_a_gpu(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU large matrices are inputs that cost no copy; here they would be copied in every call."""
    monkeypatch.setattr(runtime, "FED", 0)
    x, expected = defined("vgg", "fg-grad-cam")
    assert distance(Explainer(model("vgg"), backend="cupy").explain(x).relevance, expected.relevance) <= 1e-5
    assert {name for binding in cuda.bindings for name in binding.inputs} == {"image"}


def test_the_user_s_own_providers_beside_a_gpu(cuda: FakeCuda) -> None:
    """The CPU, if that was asked for: no note, no binding."""
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend="cupy", providers=[CPU])
    assert distance(explainer.explain(x).relevance, expected.relevance) <= 1e-5
    assert (explainer.providers, explainer.notes, cuda.options, cuda.bindings) == ([CPU], [], [], [])


FELL_BACK = (
    "execution provider CUDAExecutionProvider does not work here: onnxruntime fell back to CPUExecutionProvider",
    "its libraries or its device are missing",
)
REFUSED = ("onnxruntime cannot load the model", "cuDNN is not there")


@pytest.mark.parametrize(("what", "known"), [FELL_BACK, REFUSED])
def test_a_cuda_provider_that_does_not_work(
    cuda: FakeCuda, what: str, known: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The forward pass goes on the CPU: said once in the log, in the notes and in the manifest."""
    cuda.works = False
    cuda.refuses = None if what.startswith("execution") else RuntimeError(known)
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend="cupy")
    for _ in range(2):
        found = explainer.explain(x)
        assert distance(found.relevance, expected.relevance) <= 1e-5
    note = f"the forward pass runs on the CPU and only the descent on the GPU: {what} ({known})"
    assert explainer.notes == [note]
    assert messages(caplog) == [f"WARNING: {note}"]
    assert found.provenance["notes"] == [note]
    assert found.provenance["providers"] == [CPU]
    assert json.dumps(note)[1:-1] in (found.save(tmp_path) / "manifest.json").read_text()


@pytest.mark.parametrize(("what", "known"), [FELL_BACK, REFUSED])
def test_a_cuda_provider_that_was_asked_for(cuda: FakeCuda, what: str, known: str) -> None:
    """Who names it gets it or an error."""
    cuda.works = False
    cuda.refuses = None if what.startswith("execution") else RuntimeError(known)
    explainer = Explainer(model("residual"), backend="cupy", providers=[CUDA])
    text = caught(BackendError, lambda: explainer.explain(defined("residual", "fg-grad-cam")[0]))
    assert text.splitlines()[:2] == [what, f"  known   {known}"]
    assert explainer.notes == []


@pytest.mark.parametrize(
    "words",
    [
        "Non-zero status code. BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 12",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=here",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_a_forward_pass_that_does_not_fit(cuda: FakeCuda, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """Is halved as a descent is."""
    x = tiny_models.pictures(model("residual"), 8)
    explainer = Explainer(model("residual"), backend="cupy")
    expected = explainer.explain(x)
    cuda.trouble, cuda.images = RuntimeError(words), 2
    cuda.batches.clear()
    found = explainer.explain(x)
    assert cuda.batches == [8, 4, 2, 2, 2, 2]
    assert distance(found.relevance, expected.relevance) <= 1e-6
    assert messages(caplog) == [
        "WARNING: the forward pass does not fit the GPU's memory: 8 images at a time are too many, going on with 4",
        "WARNING: the forward pass does not fit the GPU's memory: 4 images at a time are too many, going on with 2",
    ]
    cuda.images = 0
    assert caught(DeviceMemoryError, lambda: explainer.explain(x[:1])) == (
        "the forward pass does not fit the GPU's memory\n"
        "  at      input image [1, 3, 16, 12]\n"
        f"  known   {words}\n"
        "  next    fewer images at a time (batch_size=), or providers=['CPUExecutionProvider']"
    )


def test_another_failure_is_no_matter_of_memory(cuda: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    cuda.trouble = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    explainer = Explainer(model("residual"), backend="cupy")
    assert caught(BackendError, lambda: explainer.explain(tiny_models.pictures(model("residual"), 8))) == (
        "the forward pass failed\n"
        "  at      input image [8, 3, 16, 12]\n"
        "  known   CUDA failure 700: an illegal memory access was encountered\n"
        "  next    does the model run in onnxruntime alone at this input size?"
    )
    assert messages(caplog) == []
    assert cuda.batches == [8]


# --- the stand-in and the real one ------------------------------------------------------------------------------------


def test_the_stand_in_refuses_what_a_gpu_would(gpu: FakeGpu) -> None:
    """A check of the checks: each misuse is noticed."""
    device = CupyDevice()
    source = 'extern "C" __global__ void set(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] = n; }'
    cupy = gpu.cupy
    stream = device.cuda_stream
    with device.active():
        function = cupy.RawModule(code=source, options=("--std=c++17",)).get_function("set")
    held = [device.allocate(8)]
    pointer: int = held[0].pointer
    grid, block, address, n = (1,), (32,), np.uint64(pointer), np.int32(2)
    with device.active():
        function(grid, block, (address, n))
        assert device.read(pointer, (2,), np.dtype(np.float32)).tolist() == [2, 2]
        with pytest.raises(Misuse, match="eight bytes"):
            function(grid, block, (pointer, n))
        with pytest.raises(Misuse, match="width of a int"):
            function(grid, block, (address, 2))
        with pytest.raises(TypeError, match="integer of 8 bytes"):
            function(grid, block, (address, np.int64(2)))
        with pytest.raises(Misuse, match="nobody holds"):
            function(grid, block, (np.uint64(4096), n))
        with pytest.raises(Misuse, match="nobody holds"):
            device.read(pointer, (1000,), np.dtype(np.float32))
        with pytest.raises(Misuse, match="C\\+\\+17"):
            cupy.RawModule(code=source)
        for forbidden in (
            stream.synchronize,
            lambda: cupy.cuda.alloc(8),
            lambda: device.read(pointer, (2,), np.dtype(np.float32)),
        ):
            stream.begin_capture()
            with pytest.raises(CUDARuntimeError, match="CaptureUnsupported"):
                forbidden()
            with pytest.raises(CUDARuntimeError, match="CaptureInvalidated"):
                stream.end_capture()
        stream.begin_capture()
        function(grid, block, (address, n))
        graph = stream.end_capture()
    with pytest.raises(Misuse, match="default stream"):
        function(grid, block, (address, n))
    with pytest.raises(Misuse, match="outside of its stream"):
        device.read(pointer, (2,), np.dtype(np.float32))
    held.clear()
    with device.active(), pytest.raises(Misuse, match=f"nobody holds .* {pointer:#x}"):
        graph.launch(stream)


# Expressions of the backend whose type is one of CuPy's, and an object or class that has the type's attributes.
TYPED = {
    "self._device": "cuda.Device",
    "self.cuda_stream": "cuda.Stream.null",
    "stream": "cuda.Stream.null",
    "graph": "cuda.Graph",
    "module": "RawModule",
    "memory": "cuda.MemoryPointer",
    "self._cupy.get_default_memory_pool()": "cuda.MemoryPool",
}


def uses(source: str) -> set[str]:
    """The attributes of CuPy that a source asks for, as paths from the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner in TYPED:
            found.add(f"{TYPED[owner]}.{node.attr}")
        path = ast.unparse(node)
        for root in ("cupy.", "self._cupy."):
            if path.startswith(root) and "(" not in path:
                found.add(path.removeprefix(root))
    return found


def missing(module: Any, paths: set[str]) -> list[str]:
    def has(path: str) -> bool:
        owner: Any = module
        for name in path.split("."):
            try:
                owner = getattr(owner, name)
            except AttributeError:
                return False
        return True

    return sorted(path for path in paths if not has(path))


@pytest.fixture(scope="module")
def real() -> ModuleType:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip('CuPy is not installed: pip install "fgcam_onnx[gpu]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("cupy")


SOURCE = Path(cupy_backend.__file__).read_text(encoding="utf-8")


def test_the_installed_cupy_has_what_is_used(real: ModuleType) -> None:
    paths = uses(SOURCE)
    assert len(paths) > 20
    assert {"cuda.runtime.memcpyAsync", "cuda.Stream.null.begin_capture", "cuda.Graph.launch", "RawModule"} <= paths
    assert missing(real, paths) == []


@pytest.mark.parametrize(
    ("right", "wrong", "path"),
    [
        ("runtime.memcpyAsync", "runtime.memcpyAsinc", "cuda.runtime.memcpyAsinc"),
        ("begin_capture", "begin_captures", "cuda.Stream.null.begin_captures"),
        ("graph.launch", "graph.replay", "cuda.Graph.replay"),
        ("memory.OutOfMemoryError", "memory.OutOfMemory", "cuda.memory.OutOfMemory"),
        ("free_all_blocks", "free_blocks", "cuda.MemoryPool.free_blocks"),
        ("cuda_stream.ptr", "cuda_stream.handle", "cuda.Stream.null.handle"),
        ("cupy.RawKernel", "cupy.RowKernel", "RowKernel"),
    ],
)
def test_a_name_that_cupy_has_not_is_noticed(real: ModuleType, right: str, wrong: str, path: str) -> None:
    assert right in SOURCE
    assert missing(real, uses(SOURCE.replace(right, wrong))) == [path]


def test_the_stand_in_has_no_name_of_its_own(real: ModuleType) -> None:
    """What the stand-in offers, CuPy offers too."""
    fake: Any = FakeGpu().cupy
    offered = {name for name in vars(fake) if not name.startswith("__")}
    offered |= {f"cuda.{name}" for name in vars(fake.cuda)}
    offered |= {f"cuda.{group}.{name}" for group in ("runtime", "memory") for name in vars(getattr(fake.cuda, group))}
    assert len(offered) > 12
    assert missing(real, offered) == []


def test_the_installed_cupy_says_why(real: ModuleType) -> None:
    """On a machine without a GPU, and on one with: a reason or a device, in one line."""
    status.cache_clear()
    try:
        usable, words = status()
    finally:
        status.cache_clear()
    assert real.__version__ in words or words == "CuPy sees no CUDA device"
    assert len(words.splitlines()) == 1
    assert usable == words.endswith(f", CuPy {real.__version__}")
