"""How long until the first map, from a cold process: importing fgcam_onnx, and ``fgcam explain`` on one picture.

Beside them: an empty interpreter, importing torch with torchvision, and a script that explains the same picture with
the PyTorch reference. Every figure is the wall time of a whole process, in turns, files in the page cache.

    python benchmarks/cold_start.py --imports
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import ROOT, alternate, arguments, report, table, write

ARCH, SIZE = "resnet18", (224, 224)
OURS = "fgcam explain"
BASELINE = "PyTorch script"

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from PIL import Image
import torch
from torch_reference.relevance_autograd import RelevanceResNet
from torch_reference.torchvision_import import import_torchvision

torch.set_num_threads({threads})
with torch.device("meta"):
    model = import_torchvision().models.{arch}(weights=None).eval()
model.load_state_dict(torch.load({weights!r}, mmap=True), assign=True)
picture = np.asarray(Image.open({picture!r}).convert("RGB"), np.float32) / 255
x = torch.from_numpy((picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).float().permute(2, 0, 1)[None]
np.save({out!r}, RelevanceResNet(model).explain(x).numpy())
"""


def prepare(folder: Path) -> None:
    """Write model.onnx, weights.pt and picture.png."""
    import torch
    from PIL import Image
    from torch_reference import export, import_torchvision, live, smooth_images

    model = live(getattr(import_torchvision().models, ARCH)(weights=None), seed=0, size=SIZE, images=4)
    torch.save(model.state_dict(), folder / "weights.pt")
    export(model, smooth_images(2, SIZE, seed=0), folder / "model.onnx", exporter="legacy")
    pixels = (smooth_images(1, SIZE, seed=1)[0] * 40 + 120).clamp(0, 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "picture.png")


def slowest_imports(n: int = 12) -> list[list[str]]:
    """The modules whose own code takes longest when fgcam_onnx is imported, as ``python -X importtime`` counts."""
    command = [sys.executable, "-X", "importtime", "-c", "import fgcam_onnx; fgcam_onnx.Explainer"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    found = []
    for line in lines:
        own, total, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit():
            found.append((int(own), int(total), name))
    return [[name, f"{own / 1e3:.1f} ms", f"{total / 1e3:.1f} ms"] for own, total, name in sorted(found)[: -n - 1 : -1]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--imports", action="store_true", help="list the slowest imports too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        script = SCRIPT.format(
            tests=str(ROOT / "tests"),
            threads=options.threads,
            arch=ARCH,
            weights=str(folder / "weights.pt"),
            picture=str(folder / "picture.png"),
            out=str(folder / "map.npy"),
        )

        def process(*command: str) -> Any:
            def run() -> None:
                subprocess.run([sys.executable, *command], check=True, capture_output=True)

            return run

        fgcam = ("-m", "fgcam_onnx", "explain", str(folder / "model.onnx"), str(folder / "picture.png"), "-o")
        path = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); "
        torchvision = path + "from torch_reference.torchvision_import import import_torchvision as i; i()"
        contestants = {
            "empty interpreter": process("-c", "pass"),
            "import fgcam_onnx": process("-c", "import fgcam_onnx; fgcam_onnx.Explainer"),
            "import torch, torchvision": process("-c", torchvision),
            "fgcam --help": process("-m", "fgcam_onnx", "--help"),
            OURS: process(*fgcam, str(folder / "maps")),
            BASELINE: process("-c", script),
        }
        title = f"cold start, {ARCH}, FG-Grad-CAM at the input"
        results = [report(title, alternate(contestants, options.rounds, warm_up=1), OURS, BASELINE)]
    if options.imports:
        table("slowest imports of fgcam_onnx", slowest_imports(), ["", "own", "with what it imports"])
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
