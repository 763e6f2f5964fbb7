"""benchmarks/gpu.py, rehearsed on this machine: every part runs, says what it found, and fails alone.

Nobody writes a benchmark's figures here; what is checked is that a GPU would meet no line that never ran.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import CompilerMissing, CpuModule
from fake_cupy import FakeGpu, installed

torch = pytest.importorskip("torch", reason="the benchmark compares with PyTorch")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MODELS = ("vgg16_bn", "resnet50")
Json = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _place() -> Iterator[None]:
    """The scripts are importable; what a rehearsal sets is set back."""
    try:
        CpuModule('extern "C" __global__ void nothing() {}')
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    backends = torch.backends
    before = (
        torch.get_num_threads(), backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
    torch.set_num_threads(before[0])
    backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = before[1:]
    for name in [name for name, module in list(sys.modules.items()) if in_benchmarks(module)]:
        del sys.modules[name]


def in_benchmarks(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == BENCHMARKS


def rehearse(path: Path, *arguments: str) -> tuple[int, Json]:
    import gpu

    code = gpu.main(["--rehearse", "--rounds", "2", "--json", str(path), *arguments])
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return code, found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Json:
    path = tmp_path_factory.mktemp("rehearsal") / "figures.json"
    code, found = rehearse(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a half-written file was left"
    assert code == 0, {name: part.get("error") for name, part in found["parts"].items()}
    return found


def test_every_part_is_there(whole: Json) -> None:
    expected = {"ceilings", "memory/vgg16_bn/2"}
    for model in MODELS:
        expected |= {f"{section}/{model}" for section in ("numpy", "first_call")}
        expected |= {f"{section}/{model}/1" for section in ("accuracy", "determinism")}
        expected |= {f"{name}/{model}/{batch}" for name in ("comparison", "forward", "kernels") for batch in (1, 2)}
    assert set(whole["parts"]) == expected
    assert {part["status"] for part in whole["parts"].values()} == {"ok"}
    assert whole["rehearsal"]
    assert "no figure in here is a measurement" in whole["warning"]
    assert whole["environment"]["packages"]["torch"] == torch.__version__


def test_comparisons_name_what_they_contain(whole: Json) -> None:
    for model in MODELS:
        part = whole["parts"][f"comparison/{model}/2"]
        figures, others = part["figures"], ("published", "autograd") if model == "vgg16_bn" else ("autograd",)
        wanted = {f"ours/{precision}/descent" for precision in ("float32", "fast")} | {
            "ours/float32/whole",
            "ort/whole",
        }
        settings = [f"{other}/tf32_{setting}" for other in others for setting in ("off", "on")]
        wanted |= {f"{name}/{what}" for name in settings for what in ("whole", "descent")}
        assert wanted <= set(figures)
        for figure in figures.values():
            assert figure["contains"]
            assert figure["median"] > 0
            assert figure["images_per_second"] == pytest.approx(2 / figure["median"])
        assert part["forward_of_fgcam_onnx"].startswith("the processor")
        for name, ratio in part["ratios"].items():
            over, under = figures[ratio["over"]]["median"], sum(figures[f]["median"] for f in ratio["under"])
            assert ratio["value"] == pytest.approx(over / under), name
            assert ratio["contains"]
        assert any("PROCESSOR" in ratio["contains"] for ratio in part["ratios"].values())
        # On this processor TF32 is nothing, and everybody computes the same map.
        maps = part["maps_against_ours_float32"]
        assert set(maps) == set(settings)
        assert all(error["worst"] < 1e-5 for error in maps.values())


def test_forward_passes(whole: Json) -> None:
    for model in MODELS:
        part = whole["parts"][f"forward/{model}/2"]
        assert "no CUDA provider" in part["figures"]["ort_cuda/tf32_off"]["skipped"]
        assert len(part["ratios"]) == 4
        assert all(ratio["value"] > 0 for ratio in part["ratios"].values())


def test_kernels_add_up(whole: Json) -> None:
    for model in MODELS:
        for precision in ("float32", "fast"):
            found = whole["parts"][f"kernels/{model}/2"][precision]
            assert len(found["each"]) == found["launches"] + 1
            kinds = found["kinds"]
            assert sum(kind["launches"] for kind in kinds.values()) == found["launches"]
            assert sum(k["seconds"] for k in kinds.values()) == pytest.approx(found["seconds_of_all_launches"])
            assert {"contraction fp32", "map", "max_winner", "max_route", "totals"} <= set(kinds)
            assert ("contraction tf32" in kinds) == (precision == "fast")
            assert all(0 < kind["share_of_matmul"] < math.inf for kind in kinds.values() if kind["flops"])
            assert all(kind["bytes"] > 0 and kind["share_of_copy"] > 0 for kind in kinds.values())
            assert 0 < len(found["costliest"]) <= 10


def test_operations_are_counted(whole: Json) -> None:
    """The stand-in of a VGG: Z and its adjoint of two convolutions behind ReLU, two of each of the first, times 2 n."""
    products = 32 * 32 * 9 * (2 * 4 * 8) + 16 * 16 * 9 * (2 * 8 * 20) + 32 * 32 * 9 * (2 * 2 * 3 * 4)
    kinds = whole["parts"]["kernels/vgg16_bn/2"]["float32"]["kinds"]
    assert kinds["contraction fp32"]["flops"] == 2 * 2 * products


def test_maps_and_bits(whole: Json) -> None:
    for model in MODELS:
        for part in (f"accuracy/{model}/1", f"numpy/{model}"):
            for name, error in whole["parts"][part]["errors"].items():
                assert error["worst"] <= (5e-4 if name.startswith("fast") else 1e-5)
        assert "float64 against numpy float64" in whole["parts"][f"numpy/{model}"]["errors"]
        found = whole["parts"][f"determinism/{model}/1"]
        for precision in ("float32", "fast"):
            assert set(found[precision]["same_bits"].values()) == {True}
            assert found[precision]["as_a_graph"] == "replayed as one CUDA graph"


def test_processes_of_their_own(whole: Json) -> None:
    memory = whole["parts"]["memory/vgg16_bn/2"]["figures"]
    assert all(0 < memory[p]["peak_bytes_of_the_process"] < 1e9 for p in ("float32", "fast"))
    for model in MODELS:
        part = whole["parts"][f"first_call/{model}"]
        for cache in ("empty_cache", "filled_cache"):
            assert len(part[cache]["explain"]) == len(part[cache]["descent"]) == 3


def test_aims_say_met_missed_or_not_measured(whole: Json) -> None:
    aims = whole["aims"]
    assert {aim["model"] for aim in aims} == set(MODELS)
    for aim in aims:
        assert (aim["met"] is None) == (aim["found"] is None)
        assert aim["found"] is not None or "ort_cuda" in aim["contains"]
        if aim["met"] is not None:
            sign, limit = aim["wanted"].split()
            assert aim["met"] == (aim["found"] >= float(limit) if sign == ">=" else aim["found"] <= float(limit))


# --- what goes wrong --------------------------------------------------------------------------------------------------

FEW = ("--models", "vgg16_bn", "--batches", "1")


def fail(*_: Any) -> Any:
    raise ValueError("no such luck")


def test_a_part_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    monkeypatch.setitem(gpu.SECTIONS, "ceilings", (fail, 0))
    code, found = rehearse(tmp_path / "f.json", *FEW, "--sections", "ceilings", "kernels", "accuracy")
    parts = found["parts"]
    assert code == 1
    assert parts["ceilings"]["status"] == "failed"
    assert parts["ceilings"]["error"] == "ValueError: no such luck"
    assert "test_benchmark_gpu.py" in parts["ceilings"]["traceback"]
    assert parts["kernels/vgg16_bn/1"]["status"] == parts["accuracy/vgg16_bn/1"]["status"] == "ok"
    assert capsys.readouterr().out.split("parts without a result")[1].split()[:3] == [
        "ceilings",
        "failed",
        "ValueError:",
    ]
    assert any(aim["found"] is None for aim in found["aims"])


def test_a_contestant_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_reference import PublishedFGCAM

    monkeypatch.setattr(PublishedFGCAM, "descend", fail)
    code, found = rehearse(tmp_path / "f.json", *FEW, "--sections", "comparison")
    part = found["parts"]["comparison/vgg16_bn/1"]
    assert code == 0
    assert part["figures"]["published/tf32_off/whole"]["error"] == "ValueError: no such luck"
    assert part["figures"]["autograd/tf32_off/whole"]["median"] > 0
    assert not any(name.startswith("published") for name in part["ratios"])


def test_one_precision_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    compiled = gpu.Bench.compiled
    monkeypatch.setattr(gpu.Bench, "compiled", lambda self, c, p: fail() if p == "fast" else compiled(self, c, p))
    code, found = rehearse(tmp_path / "f.json", *FEW, "--sections", "kernels", "determinism")
    assert code == 1
    for part in found["parts"].values():
        assert part["error"] == "fast: ValueError: no such luck"
        assert "error" not in part["float32"]


def test_a_broken_device_is_left_to_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contestant after which nothing works is named, and its part is run again without it."""
    import gpu

    commands: list[list[str]] = []

    def new_process(command: list[str]) -> int:
        commands.append(command)
        return int(gpu.main(command[2:]))

    monkeypatch.setattr(gpu.subprocess, "call", new_process)
    descend = gpu.Descent.__call__

    def breaks(self: Any) -> Any:
        if self.program.target.tf32:
            broken.append(True)
            monkeypatch.setattr(gpu_machine.Rehearsal, "alive", lambda machine: len(commands) > 0)
            fail()
        return descend(self)

    import gpu_machine

    broken: list[bool] = []
    monkeypatch.setattr(gpu.Descent, "__call__", breaks)
    code, found = rehearse(tmp_path / "f.json", *FEW, "--sections", "ceilings", "comparison", "accuracy")
    assert code == 1, "accuracy has no map of 'fast'"
    assert len(commands) == 1
    assert found["restarts"] == 1
    assert found["broken"] == ["vgg16_bn: ours/fast/descent"]
    figures = found["parts"]["comparison/vgg16_bn/1"]["figures"]
    assert "broke the device's context before" in figures["ours/fast/descent"]["skipped"]
    assert figures["ours/float32/descent"]["median"] > 0
    assert found["parts"]["accuracy/vgg16_bn/1"]["error"] == "fast: ValueError: no such luck"


def test_time_runs_out(tmp_path: Path) -> None:
    code, found = rehearse(tmp_path / "f.json", *FEW, "--limit", "0")
    assert code == 0
    assert {part["status"] for part in found["parts"].values()} == {"skipped"}
    assert {aim["met"] for aim in found["aims"]} == {None}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    monkeypatch.setenv("CUPY_CACHE_DIR", "set back afterwards")
    monkeypatch.setattr("fgcam_onnx.backends.cupy.status", lambda: (False, "CuPy sees no CUDA device"))
    assert gpu.main([]) == 1
    words = capsys.readouterr()
    assert words.out == ""
    assert words.err == "benchmarks/gpu.py needs a GPU: CuPy sees no CUDA device. --rehearse runs it without one.\n"


def test_a_rehearsal_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    path = BENCHMARKS / "results" / "rehearsal.json"
    assert gpu.main(["--rehearse", "--json", str(path)]) == 1
    assert not path.exists()
    assert "do not belong among the results" in capsys.readouterr().err
    assert gpu.default_path("NVIDIA H100 80GB HBM3", False) == path.with_name("nvidia-h100-80gb-hbm3.json")
    assert gpu.default_path("rehearsal without a GPU", True).parent != path.parent


class Event:
    """As CuPy's and PyTorch's."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = 1e3 * time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return end.time - self.time


def test_what_is_asked_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class for a real GPU, over a CuPy that is this processor: addresses, streams and captures are checked."""
    import gpu
    import gpu_machine

    fake = FakeGpu()
    cuda, runtime = fake.cupy.cuda, fake.cupy.cuda.runtime
    copy = runtime.memcpyAsync
    copied: list[int] = []

    def memcpy(to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        if kind != 3:
            copy(to, source, nbytes, kind, stream)
            return
        assert stream == fake.here.streams[-1].ptr
        fake.must_hold(to, nbytes, "copy")
        fake.must_hold(source, nbytes, "copy")
        copied.append(nbytes)

    runtime.memcpyAsync, runtime.memcpyDeviceToDevice = memcpy, 3
    runtime.memGetInfo = lambda: (fake.memory - fake.pool.total_bytes(), fake.memory)
    runtime.deviceSynchronize = runtime.runtimeGetVersion = runtime.driverGetVersion = lambda: 13000
    cuda.Event, cuda.get_elapsed_time = Event, lambda begin, end: begin.elapsed_time(end)
    for name in ("synchronize", "empty_cache", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)

    class Small(gpu_machine.Gpu):
        rehearsal = True  # tiny networks
        torch_device = "cpu"
        matrix, copied = 32, 1 << 16

    path = tmp_path / "f.json"
    sections = ("ceilings", "comparison", "forward", "kernels", "accuracy", "determinism")
    options = gpu.parsed(["--rehearse", *FEW, "--rounds", "2", "--sections", *sections])
    with installed(fake.cupy):
        machine = Small()
        machine._flushed = 1 << 15
        assert gpu.Bench(machine, options, tmp_path, path).run() == 0, path.read_text()
        assert machine.alive()
    found = json.loads(path.read_text())
    assert {part["status"] for part in found["parts"].values()} == {"ok"}
    assert found["device"] == "Fake GPU"
    assert found["environment"]["cuda_of_driver"] == 13000
    assert {1 << 15, 1 << 16} == set(copied)
    assert set(found["parts"]["determinism/vgg16_bn/1"]["fast"]["same_bits"].values()) == {True}
    # A forward pass without CUDA's provider was noted, and nothing was measured that would hide it.
    assert "runs on the CPU" in found["parts"]["comparison/vgg16_bn/1"]["notes"][0]


def test_errors_are_of_each_picture() -> None:
    import gpu_parts

    expected = np.ones((3, 2, 2))
    found = expected * np.array([1, 1.5, 1])[:, None, None]
    assert gpu_parts.errors(found, expected) == (0.0, 0.5)
