"""The CuPy backend on a GPU: ``pytest -m gpu``, or with everything else; skipped where there is none.

The descent is compared with NumPy in float64 on the same activations: with the forward pass on the CPU, so that no ReLU
is decided otherwise. What CUDA's forward pass changes is a test of its own. compute-sanitizer looks for races and for
addresses outside of what was allocated.
"""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from test_verbs import CALLS, agree

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.backends.base import Program
from fgcam_onnx.backends.cuda import program as program_module
from fgcam_onnx.backends.cupy import FIRST_TF32, CupyBackend, CupyDevice, status
from fgcam_onnx.backends.numpy import NumpyBackend

pytestmark = pytest.mark.gpu

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Of the norm of a map, against NumPy in float64.
TOLERANCES = {"float32": 1e-5, "fast": 5e-4, "float64": 1e-9}
MODELS = [*sorted(tiny_models.by_layers()), "one_d", "three_d"]
METHODS: dict[str, dict[str, Any]] = {
    "fg-grad-cam": {},
    "fg-layer-cam": {"method": "fg-layer-cam"},
    "fg-score-cam": {"method": "fg-score-cam"},
    "grad-cam": {"method": "grad-cam"},
    "denoised": {"denoise": True},
}


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    """Asked when the first test runs: collecting costs nothing."""
    usable, words = status()
    if not usable:
        pytest.skip(f"no GPU: {words}")


@pytest.fixture(scope="module")
def backends() -> Callable[[str], CupyBackend]:
    """One for each precision."""

    @functools.cache
    def make(precision: str) -> CupyBackend:
        if precision == "fast" and CupyDevice().architecture < FIRST_TF32:
            pytest.skip("this GPU has no TF32 tensor cores")
        return CupyBackend(precision)

    return make


def distance(found: Explanation, expected: Explanation) -> float:
    """The worst map's ||found - expected|| / ||expected||. float32 is what both are stored in."""
    a, b = (e.relevance.astype(np.float64).reshape(len(e.relevance), -1) for e in (found, expected))
    assert a.shape == b.shape
    norms = np.linalg.norm(b, axis=1)
    return float((np.linalg.norm(a - b, axis=1) / np.where(norms == 0, 1, norms)).max())


def tolerance(precision: str) -> float:
    return max(TOLERANCES[precision], 2 * float(np.finfo(np.float32).eps))


@functools.cache
def model(name: str) -> onnx.ModelProto:
    found: onnx.ModelProto = getattr(tiny_models, name)()
    return found


@functools.cache
def defined(name: str, method: str) -> tuple[np.ndarray, Explanation]:
    x = tiny_models.pictures(model(name))
    return x, Explainer(model(name), backend="numpy", precision="float64").explain(x, **METHODS[method])


def info() -> tuple[int, int]:
    """Bytes of the pool, and free bytes of the device."""
    import cupy

    gc.collect()
    return int(cupy.get_default_memory_pool().total_bytes()), int(cupy.cuda.runtime.memGetInfo()[0])


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("verb", sorted({c.verb for c in CALLS}))
def test_verbs(backends: Callable[[str], CupyBackend], verb: str, precision: str) -> None:
    """Each does what NumPy defines."""
    plain = NumpyBackend(np.dtype(precision))
    for c in (c for c in CALLS if c.verb == verb):
        agree(c, c.answers(backends(precision)), c.answers(plain))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_tiny_networks(backends: Callable[[str], CupyBackend], name: str, method: str, precision: str) -> None:
    """Launched and replayed. Where singular values lie close, their space turns by more than what was rounded."""
    x, expected = defined(name, method)
    explainer = Explainer(model(name), backend=backends(precision), providers=[CPU])
    for _ in range(3):
        found = explainer.explain(x, **METHODS[method])
        assert distance(found, expected) <= tolerance(precision) * (10 if method == "denoised" else 1)
        assert found.ledger.residual < (1e-3 if precision == "fast" else 1e-4)


@pytest.fixture(scope="module")
def networks(test_data: Path) -> Callable[[str], tuple[Any, np.ndarray, Explanation]]:
    """A trained model, two photos as it takes them, and what NumPy says of them in float64."""
    from test_real_models import _case

    @functools.cache
    def make(name: str) -> tuple[Any, np.ndarray, Explanation]:
        x = _case(test_data, name).x[:2]
        path = test_data / "models" / name
        return path, x, Explainer(path, backend="numpy", precision="float64").explain(x)

    return make


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0_pytorch.onnx",
        "squeezenet_v1.0_caffe.onnx",
        "mobilenetv2-12-int8.onnx",
        "dog19_mobilenetv2_keras.onnx",
    ],
)
def test_trained_networks(
    backends: Callable[[str], CupyBackend], networks: Callable[[str], Any], name: str, precision: str
) -> None:
    path, x, expected = networks(name)
    found = Explainer(path, backend=backends(precision), providers=[CPU]).explain(x)
    assert distance(found, expected) <= tolerance(precision)
    assert found.ledger.residual < (1e-3 if precision == "fast" else 1e-4)


@functools.cache
def torchvision_model(arch: str, images: int) -> tuple[bytes, np.ndarray]:
    """Random weights under which activations live, as ONNX; pictures for it."""
    pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from torch_reference import export, import_torchvision, live, smooth_images

    network = live(getattr(import_torchvision().models, arch)(weights=None), 0)
    pictures = smooth_images(images, (224, 224), 7)
    return export(network, pictures[:2], exporter="legacy"), pictures.numpy()


@functools.cache
def torchvision_defined(arch: str) -> Explanation:
    proto, x = torchvision_model(arch, 2)
    return Explainer(proto, backend="numpy", precision="float64").explain(x[:1])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("arch", ["resnet18", "vgg11_bn"])
def test_torchvision_networks(backends: Callable[[str], CupyBackend], arch: str, precision: str) -> None:
    proto, x = torchvision_model(arch, 2)
    explainer = Explainer(proto, backend=backends(precision), providers=[CPU])
    found = explainer.explain(x[:1])
    assert distance(found, torchvision_defined(arch)) <= tolerance(precision)
    assert distance(explainer.explain(x, batch_size=1), explainer.explain(x)) <= 2 * tolerance(precision)


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_same_bits_each_time(backends: Callable[[str], CupyBackend], precision: str) -> None:
    """Five times, with other programs in between, and from a backend of its own."""
    x, _ = defined("residual", "fg-grad-cam")
    found = set()
    for backend in (backends(precision), CupyBackend(precision)):
        explainer = Explainer(model("residual"), backend=backend, providers=[CPU])
        other = Explainer(model("vgg"), backend=backend, providers=[CPU])
        for _ in range(5):
            e = explainer.explain(x)
            found.add((e.relevance.tobytes(), e.ledger.arrived.tobytes()))
            other.explain(x, method="fg-layer-cam")
            explainer.explain(x[:1])
    assert len(found) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_graph_is_its_launches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, also for pictures that it was not captured with."""
    pictures = [tiny_models.pictures(model(name), seed=seed) for seed in range(4)]
    found = []
    for captures in (0, program_module.CAPTURES):
        monkeypatch.setattr(program_module, "CAPTURES", captures)
        backend = CupyBackend()
        explainer = Explainer(model(name), backend=backend, providers=[CPU])
        found.append([explainer.explain(x).relevance.tobytes() for x in pictures])
        graphs = [len(compiled._graphs) for compiled in backend._compiled.values()]
        assert graphs == [min(captures, 1)]
    assert found[0] == found[1]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_stays_flat() -> None:
    """Two hundred calls of two methods on two models: neither the pool nor the device loses a byte."""
    backend = CupyBackend()
    explainers = [Explainer(model(name), backend=backend) for name in ("residual", "vgg")]
    x = tiny_models.pictures(model("residual"))
    seen = []
    for k in range(50):
        for explainer, method in itertools.product(explainers, ("fg-grad-cam", "fg-layer-cam")):
            explainer.explain(x, method=method)
        if k in (4, 49):
            seen.append(info())
    (pool, free), (pool_at_end, free_at_end) = seen
    assert pool_at_end == pool
    assert free - free_at_end < 1 << 25, "graphs and modules: others may use this GPU"


def test_release_gives_memory_back() -> None:
    backend = CupyBackend()
    x, expected = defined("residual", "fg-grad-cam")
    explainer = Explainer(model("residual"), backend=backend, providers=[CPU])
    backend.release()
    before = info()[0]
    explainer.explain(x)
    assert info()[0] > before
    backend.release()
    assert info()[0] <= before
    assert distance(explainer.explain(x), expected) <= 1e-5


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Sets the limit of CuPy's pool; 0 is none."""
    import cupy

    pool = cupy.get_default_memory_pool()
    yield lambda size: pool.set_limit(size=size)
    pool.set_limit(size=0)


def test_a_batch_that_does_not_fit_is_halved(
    limited: Callable[[int], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy's own error is understood."""
    monkeypatch.setattr(program_module, "SMALL", 0)
    x = tiny_models.pictures(model("free_size"), 8, free=160)
    backend = CupyBackend()
    explainer = Explainer(model("free_size"), backend=backend, providers=[CPU])
    expected = explainer.explain(x)
    backend.release()
    base = info()[0]
    explainer.explain(x[:4])
    half = info()[0] - base
    backend.release()
    limited(base + half + half // 2)
    caplog.clear()
    found = explainer.explain(x)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the descent does not fit the GPU's memory: 8 images at a time are too many, going on with 4"
    ]
    assert distance(found, expected) <= 1e-6


def test_a_batch_of_64_of_a_large_network(caplog: pytest.LogCaptureFixture) -> None:
    """VGG-16 at 224: forward pass and descent together need less than 16 GB."""
    proto, x = torchvision_model("vgg16_bn", 64)
    backend = CupyBackend()
    backend.release()
    before = info()[1]
    if before < 17 << 30:
        pytest.skip(f"only {before >> 30} GiB of the GPU are free")
    explainer = Explainer(proto, backend=backend)
    found = explainer.explain(x, batch_size=64)
    used = before - info()[1]
    assert np.isfinite(found.relevance).all()
    assert found.ledger.residual < 1e-4
    assert not [record for record in caplog.records if "too many" in record.getMessage()]
    assert used < 16e9
    one = explainer.explain(x[40:41])
    assert distance(one, _one(found, 40)) <= 1e-3  # cuDNN may choose another algorithm for another batch
    backend.release()


def _one(e: Explanation, i: int) -> Any:
    class Part:
        relevance = e.relevance[i : i + 1]

    return Part


# --- onnxruntime on the same stream -----------------------------------------------------------------------------------


class Twice(CupyBackend):
    """Runs each program on what lies on the device, and again on copies from the host."""

    adopted = 0

    def execute(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = super().execute(program, inputs)
        self.adopted += sum(not isinstance(v, np.ndarray) and v.device_name() == "cuda" for v in inputs.values())
        copies = {name: v if isinstance(v, np.ndarray) else v.numpy() for name, v in inputs.items()}
        again = super().execute(program, copies)
        assert set(again) == set(found)
        for name, array in found.items():
            assert array.tobytes() == again[name].tobytes(), name
        return found


@pytest.mark.parametrize("name", MODELS)
def test_cuda_s_activations_are_read_where_they_lie(name: str) -> None:
    """The same bits as from copies, call after call; and the CPU's maps where no unit is decided by rounding."""
    backend = Twice()
    explainer = Explainer(model(name), backend=backend)
    x, expected = defined(name, "fg-grad-cam")
    found = explainer.explain(x)
    if CUDA not in explainer.providers:
        assert len(explainer.notes) > 0
        pytest.skip(explainer.notes[-1])
    for _ in range(3):
        found = explainer.explain(x)
    assert backend.adopted > 0
    assert explainer.notes == list(explainer.graph.notes)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert distance(found, expected) <= 1e-3


# --- compute-sanitizer ------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import cupy
import tiny_models
from fgcam_onnx import Explainer
cupy.cuda.set_allocator(None)  # each array is an allocation: what lies behind it is nobody's
for precision in ("float32", "fast", "float64"):
    for make in (tiny_models.vgg, tiny_models.residual, tiny_models.squeeze_excite, tiny_models.nhwc):
        try:
            explainer = Explainer(make(), backend="cupy", precision=precision, providers=["CPUExecutionProvider"])
        except Exception as error:
            if precision != "fast":
                raise
            continue
        for _ in range(3):
            explainer.explain(tiny_models.pictures(make()))
print("explained")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str, tmp_path: Path) -> None:
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    script = tmp_path / "explain.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [program, "--tool", tool, "--error-exitcode", "99", sys.executable, str(script)]
    if tool == "memcheck":
        command[3:3] = ["--report-api-errors", "no"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    said = done.stdout + done.stderr
    assert "explained" in said, said[-3000:]
    assert done.returncode == 0, said[-3000:]
    assert " 0 errors" in said or "(0 errors" in said, said[-3000:]
