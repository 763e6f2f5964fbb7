"""CAMs of ResNet-50, 224 x 224, one picture: Explainer against pytorch-grad-cam. Time, and Score-CAM's peak memory.

Both get the same weights; the library's resize of masks is set to half-pixel centres, so that the masks are equal. Maps
are compared before any normalisation, then timed. Score-CAM costs one forward pass a channel, 2048 of them: a turn
takes half a minute or more.

    python benchmarks/cams.py --method grad-cam layer-cam score-cam --json benchmarks/results/cams.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import alternate, arguments, report, require_equal, table, write
from memory import peak, prepare

OURS, BASELINE = "fgcam_onnx", "pytorch-grad-cam"
SIZE = (224, 224)
LIBRARY = {"grad-cam": "GradCAM", "layer-cam": "LayerCAM", "score-cam": "ScoreCAM"}
OPTIONS: dict[str, dict[str, Any]] = {"score-cam": {"weights": "softmax"}}


def ours(folder: Path, method: str, threads: int) -> Callable[[], Any]:
    """A turn of Explainer: the signed map at L, [1, 7, 7]."""
    import numpy as np

    from fgcam_onnx import Explainer

    explainer = Explainer(folder / "model.onnx", backend="ort", threads=threads)
    x = np.load(folder / "x.npy")
    return lambda: explainer.explain(x, method=method, **OPTIONS.get(method, {})).relevance


def theirs(folder: Path, arch: str, method: str, threads: int) -> Callable[[], Any]:
    """A turn of pytorch-grad-cam: the same map, as it has it before ReLU, min-max and resize."""
    import numpy as np
    import torch
    from torch_reference import import_torchvision

    models = import_torchvision().models
    torch.set_num_threads(threads)
    torch.nn.UpsamplingBilinear2d = partial(torch.nn.Upsample, mode="bilinear", align_corners=False)
    import pytorch_grad_cam
    import pytorch_grad_cam.score_cam as scores

    scores.tqdm.tqdm = lambda steps: steps  # no progress bar
    with torch.device("meta"):
        model = getattr(models, arch)(weights=None).eval()
    model.load_state_dict(torch.load(folder / "weights.pt", mmap=True), assign=True)
    explainer = getattr(pytorch_grad_cam, LIBRARY[method])(model, [model.layer4[-1]])
    draw, seen = explainer.get_cam_image, []

    def recorded(*args: Any) -> Any:
        seen[:] = [draw(*args)]
        return seen[0]

    explainer.get_cam_image = recorded
    x = torch.from_numpy(np.load(folder / "x.npy"))

    def turn() -> Any:
        explainer(x, None)
        return seen[0]

    return turn


def child(who: str, folder: Path, arch: str, method: str, threads: int) -> None:
    """One turn in a process of its own, and what the kernel counted."""
    if who == "prepare":
        prepare(folder, arch)
        return
    turn = ours(folder, method, threads) if who == OURS else theirs(folder, arch, method, threads)
    ready = peak()
    turn()
    print(json.dumps({"peak": peak(), "before": ready}))


def in_a_process(who: str, folder: Path, options: Any, method: str) -> str:
    """What a child prints last."""
    command = [sys.executable, os.path.abspath(__file__), "--threads", str(options.threads), "--arch", options.arch]
    command += ["--child", who, str(folder), method]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.splitlines()[-1] if output else ""


def memory(folder: Path, options: Any, method: str) -> dict[str, Any]:
    """Peaks of both. Linux hands a process's peak on to its children: this one must still be small."""
    found = {who: json.loads(in_a_process(who, folder, options, method)) for who in (OURS, BASELINE)}
    rows = [[who, *(f"{f[key] / (1 << 20):.0f} MiB" for key in ("peak", "before"))] for who, f in found.items()]
    table(f"{options.arch}, {method}, one picture: resident memory", rows, ["", "peak", "before the first turn"])
    print(f"  peak of {OURS} / peak of {BASELINE} = {found[OURS]['peak'] / found[BASELINE]['peak']:.2f}")
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--method", nargs="+", choices=LIBRARY, default=list(LIBRARY))
    parser.add_argument("--arch", default="resnet50", help="a residual network of torchvision")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "FOLDER", "METHOD"), help="used by this program itself")
    options = parser.parse_args()
    if options.child:
        who, folder, method = options.child
        child(who, Path(folder), options.arch, method, options.threads)
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_a_process("prepare", folder, options, "")
        peaks = {"memory": memory(folder, options, "score-cam")} if "score-cam" in options.method else {}
        for method in options.method:
            contestants = {
                OURS: ours(folder, method, options.threads),
                BASELINE: theirs(folder, options.arch, method, options.threads),
            }
            title = f"{options.arch}, {method}, one picture"
            require_equal(contestants[OURS](), contestants[BASELINE](), title, typical=1e-4)  # float32 on both sides
            slow = method == "score-cam"
            timings = alternate(contestants, options.rounds, warm_up=0 if slow else 2)
            found = report(title, timings, OURS, BASELINE)
            results.append({"method": method, **found, **(peaks if slow else {})})
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
