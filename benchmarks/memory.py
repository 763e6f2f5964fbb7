"""Peak memory of one FG-Grad-CAM at the input, batch 1: Explainer and the PyTorch references, each in its own process.

A process reads its model from a file, explains one picture three times and reports what the kernel counted: the peak of
its whole life (``ru_maxrss``), what it held after the last map, and how much of the peak the imports were. Weights are
mapped, not copied, where the PyTorch side can do so.

    python benchmarks/memory.py --model vgg16_bn resnet50
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, table, write

SIZE = (224, 224)
OURS, BASELINE = "fgcam_onnx", "PyTorch reference"


def peak() -> int:
    """Bytes: the largest resident set of this process so far (Linux counts in KiB, macOS in bytes)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def explain_ours(folder: Path, threads: int) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    from fgcam_onnx import Explainer

    imports, version = peak(), onnxruntime.__version__
    explainer = Explainer(folder / "model.onnx", backend="ort", threads=threads)
    x = np.load(folder / "x.npy")
    for _ in range(3):
        explainer.explain(x, method="fg-grad-cam", layer="input")
    return {"imports": imports, "runtime": f"onnxruntime {version}"}


def explain_reference(folder: Path, arch: str, threads: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch_reference import PublishedFGCAM, RelevanceResNet, import_torchvision

    models = import_torchvision().models
    imports = peak()
    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = getattr(models, arch)(weights=None).eval()
    model.load_state_dict(torch.load(folder / "weights.pt", mmap=True), assign=True)
    explainer = RelevanceResNet(model) if arch.startswith("resnet") else PublishedFGCAM.of(model)
    x = torch.from_numpy(np.load(folder / "x.npy"))
    for _ in range(3):
        explainer.explain(x)
    return {"imports": imports, "runtime": f"torch {torch.__version__}"}


def child(who: str, folder: Path, arch: str, threads: int) -> None:
    import psutil

    found = explain_ours(folder, threads) if who == OURS else explain_reference(folder, arch, threads)
    print(json.dumps({**found, "peak": peak(), "afterwards": psutil.Process().memory_info().rss}))


def prepare(folder: Path, arch: str) -> None:
    """Write model.onnx, weights.pt and x.npy; in a process of its own, whose memory is not counted."""
    import numpy as np
    import torch
    from torch_reference import export, import_torchvision, live, smooth_images

    model = live(getattr(import_torchvision().models, arch)(weights=None), seed=0, size=SIZE, images=2)
    torch.save(model.state_dict(), folder / "weights.pt")
    export(model, smooth_images(2, SIZE, seed=0), folder / "model.onnx", exporter="legacy")
    np.save(folder / "x.npy", smooth_images(1, SIZE, seed=67).numpy())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", nargs="+", default=["vgg16_bn", "resnet50"])
    parser.add_argument("--child", nargs=3, metavar=("WHO", "FOLDER", "ARCH"), help="used by this program itself")
    options = parser.parse_args()
    if options.child:
        who, folder, arch = options.child
        if who == "prepare":
            prepare(Path(folder), arch)
        else:
            child(who, Path(folder), arch, options.threads)
        return
    results = []
    for arch in options.model:
        with tempfile.TemporaryDirectory() as folder:
            found: dict[str, dict[str, Any]] = {}
            for who in ("prepare", OURS, BASELINE):
                command = [sys.executable, os.path.abspath(__file__), "--threads", str(options.threads)]
                command += ["--child", who, folder, arch]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                if who != "prepare":
                    found[who] = json.loads(output.splitlines()[-1])
            file_size = (Path(folder) / "model.onnx").stat().st_size
        mebi = 1 << 20
        rows = [
            [name, *(f"{f[key] / mebi:.0f} MiB" for key in ("peak", "afterwards", "imports")), f["runtime"]]
            for name, f in found.items()
        ]
        table(
            f"{arch}, model file {file_size / mebi:.0f} MiB, batch 1",
            rows,
            ["", "peak", "afterwards", "after imports", "on"],
        )
        print(f"  peak of {OURS} / peak of the reference = {found[OURS]['peak'] / found[BASELINE]['peak']:.2f}")
        results.append({"arch": arch, "model_file": file_size, **found})
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
