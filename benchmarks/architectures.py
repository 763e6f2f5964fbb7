"""FG-Grad-CAM of five architectures at the input, 224 x 224, batch 1: in forward passes, and against torch autograd.

How much longer a map takes than the bare forward pass of the same file in onnxruntime, and the same rules as torch
autograd functions beside it. Times are of the clock and of the processor: the latter says what was worked, whoever else
was on the machine, the former needs a machine for itself.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --models mobilenet_v2 densenet121 --threads 1 --rounds 20
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness import PAUSE, arguments, require_equal, table, write

SIZE = (224, 224)
# Seeds of the pictures that are compared; the first is timed. On some others VGG's map differs from torch's by 1e-4: a
# tie of a max-pool would do that (see README), but it was not traced.
PICTURES = (67, 1, 2)
OURS, BARE, BASELINE = "fgcam_onnx", "onnxruntime, forward only", "torch autograd functions"
# What a map may take, in forward passes: two convolutions of the descent for one of the forward pass make 3, four
# where a layer's input has both signs make 5.
AIMS = {"vgg16_bn": 3.5, "resnet50": 3.5, "mobilenet_v2": 8.0, "efficientnet_b0": 8.0, "densenet121": 4.5}


@dataclass(frozen=True)
class Turns:
    """Seconds of every turn of one contestant, by the clock and of the processor (all threads)."""

    clock: tuple[float, ...]
    processor: tuple[float, ...]

    def over(self, other: Turns) -> dict[str, float]:
        """How many times as long as the other one."""
        return {
            "median": statistics.median(self.clock) / statistics.median(other.clock),
            "fastest": min(self.clock) / min(other.clock),
            "processor": statistics.median(self.processor) / statistics.median(other.processor),
        }


def in_turns(contestants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, Turns]:
    """As ``harness.alternate``, with the processor's time as well."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, run in contestants.items():
            time.sleep(PAUSE)
            clock, processor = time.perf_counter(), time.process_time()
            run()
            took = time.perf_counter() - clock, time.process_time() - processor
            if turn >= warm_up:
                found[name].append(took)
    return {name: Turns(tuple(c for c, _ in turns), tuple(p for _, p in turns)) for name, turns in found.items()}


def reference(arch: str, model: Any) -> Any:
    """The same rules in PyTorch."""
    from torch_reference import RelevanceResNet, RelevanceVGG
    from torch_reference.relevance_traced import RelevanceTraced

    return {"vgg16_bn": RelevanceVGG, "resnet50": RelevanceResNet}.get(arch, RelevanceTraced)(model)


def measure(arch: str, threads: int, rounds: int) -> dict[str, Any]:
    """Everything about one architecture."""
    import onnxruntime
    import torch
    from torch_reference import export, import_torchvision, live, smooth_images

    from fgcam_onnx import Explainer

    torch.set_num_threads(threads)
    images = 2 if arch == "vgg16_bn" else 4  # that set the running statistics, as in the benchmark of each
    model = live(getattr(import_torchvision().models, arch)(weights=None), seed=0, size=SIZE, images=images)
    theirs = reference(arch, model)
    onnx_file = export(model, smooth_images(2, SIZE, seed=0))
    begin = time.process_time()
    explainer = Explainer(onnx_file, backend="ort", threads=threads)
    built = time.process_time() - begin
    pictures = torch.cat([smooth_images(1, SIZE, seed) for seed in PICTURES])
    x, feed = pictures[:1], pictures[:1].numpy()
    explainer.explain(feed)
    first = time.process_time() - begin
    ours = [explainer.explain(picture[None].numpy()).relevance[0] for picture in pictures]
    # In float32 the contestant itself may be 4e-5 from its own float64 (MobileNetV2): that is what ours is held to.
    exact = reference(arch, copy.deepcopy(model).double())
    targets = [torch.tensor(explainer.explain(picture[None].numpy()).target) for picture in pictures]
    truth = [exact.explain(p[None].double(), t)[0].numpy() for p, t in zip(pictures, targets, strict=True)]
    require_equal(ours, truth, f"{arch}, against torch in float64")
    del exact
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # As in ours: threads that spin while they wait would be counted as work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    bare = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    turns = in_turns(
        {
            BARE: lambda: bare.run(None, {"image": feed}),
            OURS: lambda: explainer.explain(feed),
            BASELINE: lambda: theirs.explain(x),
        },
        rounds,
    )
    return {
        "model": arch,
        "aim": AIMS[arch],
        "ours_over_forward": turns[OURS].over(turns[BARE]),
        "torch_over_ours": turns[BASELINE].over(turns[OURS]),
        "processor_seconds_until_built": built,
        "processor_seconds_until_first_map": first,
        "clock": {name: t.clock for name, t in turns.items()},
        "processor": {name: t.processor for name, t in turns.items()},
    }


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--models", nargs="+", choices=list(AIMS), default=list(AIMS))
    options = parser.parse_args()
    results = [measure(arch, options.threads, options.rounds) for arch in options.models]
    rows = [
        [
            r["model"],
            *(f"{r['ours_over_forward'][by]:.2f}" for by in ("median", "fastest", "processor")),
            f"{r['aim']:.1f}",
            *(f"{r['torch_over_ours'][by]:.2f}" for by in ("median", "fastest", "processor")),
            f"{r['processor_seconds_until_first_map']:.1f} s",
        ]
        for r in results
    ]
    head = ["", "map / forward", "fastest", "processor", "aim", "torch / ours", "fastest", "processor", "first map"]
    table(f"FG-Grad-CAM at the input, batch 1, {options.threads} threads", rows, head)
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
