"""What gpu.py's figures come to: the aims, the table, and what the figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_parts import EQUAL, OURS, Part, words
from harness import ROOT, table

if TYPE_CHECKING:
    from gpu import Bench


def aims(bench: Bench) -> list[dict[str, Any]]:
    """Each aim with what was found for it; ``met`` is None where it could not be measured."""
    found: list[dict[str, Any]] = []

    def aim(model: str, said: str, contains: str, value: float | None, limit: float, *, least: bool) -> None:
        met = None if value is None else bool(value >= limit if least else value <= limit)
        found.append({"model": model, "aim": said, "wanted": f"{'>=' if least else '<='} {limit:g}", "found": value,
                      "met": met, "contains": contains})  # fmt: skip

    def value(part: Part, *path: str) -> float | None:
        here: Any = bench.found.get(part.name)
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    for model in bench.options.models:
        large, small = (Part("comparison", model, batch) for batch in (bench.large, bench.small))
        where = value(large, "forward_of_fgcam_onnx")
        ways = {
            "ours with a PyTorch forward pass": "whole, PyTorch's forward pass in both",
            "descents": "descents alone",
        }
        if where == "the GPU":
            ways["whole"] = "whole, each with its own forward pass on the GPU"
        for way, contains in ways.items():
            if model.startswith("vgg"):
                for part, limit in ((large, 10.0), (small, 3.0)):
                    name = f"published/tf32_off : float32, {way}"
                    aim(model, f"batch {part.batch}: float32, times as fast as published, tf32_off", contains,
                        value(part, "ratios", name, "value"), limit, least=True)  # fmt: skip
            for precision, setting in EQUAL.items():
                name = f"autograd/{setting} : {precision}, {way}"
                aim(model, f"batch {bench.large}: {precision}, times as fast as autograd, {setting}", contains,
                    value(large, "ratios", name, "value"), 1.0, least=True)  # fmt: skip
        for precision, setting in EQUAL.items():
            for other in ("torch_forward", "convolutions", "ort_cuda"):
                name = f"{precision} descent : {other}/{setting}"
                aim(model, f"batch {bench.large}: {precision} descent, in forward passes", f"one is {other}, {setting}",
                    value(Part("forward", model, bench.large), "ratios", name, "value"), 2.2, least=False)  # fmt: skip
            kinds = Part("kernels", model, bench.large)
            kind, limit = ("contraction fp32", 0.6) if precision == "float32" else ("contraction tf32", 0.4)
            aim(model, f"batch {bench.large}: {kind}, share of torch.matmul", f"{precision}, all launches, L2 flushed",
                value(kinds, precision, "kinds", kind, "share_of_matmul"), limit, least=True)  # fmt: skip
            aim(model, f"batch {bench.large}: elementwise, share of a copy", f"{precision}, launches over twice L2",
                value(kinds, precision, "kinds", "map", "not_small", "share_of_copy"), 0.8, least=True)  # fmt: skip
            for section, reference in (("accuracy", "cupy"), ("numpy", "numpy")):
                part = Part(section, model, bench.small if section == "accuracy" else None)
                name = f"{precision} against {reference} float64"
                limit = {"float32": 1e-5, "fast": 5e-4}[precision]
                aim(model, f"batch {bench.small}: {name}", "error of the worst picture, same activations",
                    value(part, "errors", name, "worst"), limit, least=False)  # fmt: skip
    part = Part("memory", bench.options.models[0], max(bench.options.batches))
    for precision in OURS:
        peak = value(part, "figures", precision, "peak_bytes_of_the_process")
        aim(part.model or "", f"batch {part.batch}: {precision}, peak of the device's memory in GB", "a fresh process",
            None if peak is None else 1e-9 * peak, 16.0, least=False)  # fmt: skip
    return found


def show(result: Mapping[str, Any]) -> None:
    """The short table."""
    parts: Mapping[str, Any] = result["parts"]
    print(f"\n{result['device']}" + ("   REHEARSAL: NO FIGURE BELOW IS A MEASUREMENT" if result["rehearsal"] else ""))
    limits = parts.get("ceilings", {})
    if limits.get("status") == "ok":
        rates = [1e-12 * limits[f"matmul_tf32_{setting}"]["flops_per_second"] for setting in ("off", "on")]
        copied = 1e-9 * limits["copy"]["bytes_per_second"]
        print(f"  matmul {rates[0]:.1f} TFLOP/s, with TF32 {rates[1]:.1f}; copy {copied:.0f} GB/s")
    for name, part in parts.items():
        if not name.startswith("comparison") or part["status"] != "ok":
            continue
        base = part["figures"].get("ours/float32/descent", {}).get("median")
        rows = []
        for figure, found in part["figures"].items():
            if "median" in found:
                against = f"{found['median'] / base:.2f}" if base else ""
                rows.append([figure, f"{1e3 * found['median']:.2f} ms", f"{found['images_per_second']:.0f} /s", against,
                             f"{found['spread']:.0%}"])  # fmt: skip
            else:
                rows.append([figure, (found.get("error") or found.get("skipped", ""))[:60], "", "", ""])
        head = ["", "median", "images", "/ our float32 descent", "spread"]
        table(f"{name}: our forward pass ran on {part['forward_of_fgcam_onnx'].split(',')[0]}", rows, head)
    for name, part in parts.items():
        if name.startswith("kernels"):
            for precision in [p for p in OURS if "kinds" in part.get(p, {})]:
                rows = [[kind, str(k["launches"]), f"{1e3 * k['seconds']:.3f} ms", f"{k['tflops']:.2f}",
                         f"{k['gbytes_per_second']:.0f}", share(k.get("share_of_matmul")),
                         share(k.get("share_of_copy"))]
                        for kind, k in part[precision]["kinds"].items()]  # fmt: skip
                head = ["", "launches", "together", "TFLOP/s", "GB/s", "of matmul", "of copy"]
                table(f"{name}, {precision}", rows, head)
    shown = result.get("aims", [])
    rows = [[f"{a['model']}, {a['aim']} ({a['contains']})", a["wanted"],
             "-" if a["found"] is None else f"{a['found']:.3g}",
             {True: "met", False: "missed", None: "not measured"}[a["met"]]] for a in shown]  # fmt: skip
    if rows:
        table("aims", rows, ["", "wanted", "found", ""])
    rest = [[name, part["status"], part["error"][:100]] for name, part in parts.items() if part["status"] != "ok"]
    if rest:
        table("parts without a result", rest, ["", "", ""])


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def environment(machine: Any) -> dict[str, Any]:
    """What the figures were taken on; what cannot be asked is said to be unknown."""

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:
            return f"unknown: {words(error)}"

    def version(name: str) -> Any:
        return asked(lambda: import_module(name).__version__)

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": machine.name,
        **asked_of_device(asked, machine),
        "processor": asked(processor),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {n: version(n) for n in ("fgcam_onnx", "numpy", "onnx", "onnxruntime", "torch", "torchvision")},
        "cuda_of_torch": torch.version.cuda,
        "cudnn_of_torch": asked(torch.backends.cudnn.version),
        "providers_of_onnxruntime": asked(lambda: import_module("onnxruntime").get_available_providers()),
        "commit": asked(lambda: git("rev-parse", "HEAD")),
        "changed_files": asked(lambda: git("status", "--porcelain").splitlines()),
    }


def asked_of_device(asked: Callable[[Callable[[], Any]], Any], machine: Any) -> dict[str, Any]:
    found = asked(machine.describe)
    return found if isinstance(found, dict) else {"description": found}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
