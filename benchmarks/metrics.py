"""What a metric costs beyond its forward passes, and against Quantus.

Deletion and insertion of one 224 x 224 picture: 224 forward passes in batches, against onnxruntime running the same
batches, built beforehand. How much of the time is spent outside onnxruntime. Resident memory over 1,000 pictures.
Quantus' PixelFlipping on the same maps, through the same onnxruntime session, in the batch that suits it best: of the
map and of its negative, which are our two curves. Scores are compared first.

    python benchmarks/metrics.py --json benchmarks/results/metrics.json

The 224 x 224 network is EfficientNet-Lite0 in the folder FGCAM_TEST_DATA; the others ship with the package.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import alternate, arguments, report, table, write

OURS, BARE, QUANTUS = "fgcam_onnx", "onnxruntime alone", "Quantus"
STEP, PICTURES, FEW, MANY = 448, 4, 100, 1000
BATCHES = (1, 2, 4)
PARTS = ("memory", "quantus", "forwards")
WORST = 1e-5


def require_close(found: Any, expected: Any, what: str) -> float:
    """Refuse to time programs whose scores differ."""
    import numpy as np

    worst = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    print(f"\n{what}: scores differ by {worst:.1e} at most")
    if not worst <= WORST:
        raise SystemExit(f"{what}: too much; what does not compute the same is not compared")
    return worst


class Processor:
    """Seconds of the processor, beside those of the clock: what was worked on a busy machine too."""

    def __init__(self, contestants: Mapping[str, Callable[[], Any]], warm_up: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        self.turns = {name: self._counted(name, run) for name, run in contestants.items()}
        self.warm_up = warm_up

    def _counted(self, name: str, run: Callable[[], Any]) -> Callable[[], Any]:
        def turn() -> Any:
            begin = time.process_time()
            found = run()
            self.seconds[name].append(time.process_time() - begin)
            return found

        return turn

    def ratio(self, over: str, under: str) -> float:
        """Of medians."""
        first, second = (statistics.median(self.seconds[name][self.warm_up :]) for name in (over, under))
        return first / second


class Clock:
    """Seconds inside onnxruntime, by the clock and of the processor."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        import onnxruntime

        kept = {name: getattr(onnxruntime.InferenceSession, name) for name in ("run", "run_with_ort_values")}

        def timed(run: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                wall, processor = time.perf_counter(), time.process_time()
                try:
                    return run(*args, **options)
                finally:
                    self.wall += time.perf_counter() - wall
                    self.processor += time.process_time() - processor

            return call

        try:
            for name, run in kept.items():
                setattr(onnxruntime.InferenceSession, name, timed(run))
            yield
        finally:
            for name, run in kept.items():
                setattr(onnxruntime.InferenceSession, name, run)


def large(path: Path, options: Any) -> list[dict[str, Any]]:
    """Deletion and insertion of one picture against its forward passes alone, and the share of everything else."""
    import numpy as np
    import onnxruntime

    from fgcam_onnx import Explainer
    from fgcam_onnx.metrics import Scorer, deletion_insertion

    random = np.random.default_rng(0)
    x = random.normal(size=(1, 3, 224, 224)).astype(np.float32)
    e = random.normal(size=(1, 224, 224)).astype(np.float32)
    explainer = Explainer(path, backend="ort", threads=options.threads)
    batches: list[Any] = []

    def recorded(inputs: Any) -> Any:
        batches.append(inputs.copy())
        return explainer.scores(inputs)

    found = deletion_insertion(Scorer(recorded), x, e, 0, step=STEP)
    scorer = Scorer(explainer)
    deletion_insertion(scorer, x, e, 0, step=STEP)
    passes = scorer.forwards
    setting = onnxruntime.SessionOptions()
    setting.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(path, setting, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, [session.get_outputs()[0].name]

    def bare() -> Any:
        return [session.run(output, {name: batch})[0] for batch in batches]

    p = scorer.probability(np.concatenate(bare()), 0)  # the walk, then both ends
    steps = found.deletion.shape[1] - 2
    expected = np.concatenate([p[2 * steps : 2 * steps + 1], p[:steps], p[2 * steps + 1 :]])
    title = f"EfficientNet-Lite0, deletion and insertion of one picture, {passes} forward passes"
    worst = require_close(found.deletion[0], expected, title)
    work = Processor({OURS: lambda: deletion_insertion(scorer, x, e, 0, step=STEP), BARE: bare}, 1)
    first = report(title, alternate(work.turns, options.rounds, warm_up=1), OURS, BARE)
    over, worked = 1 / first["ratio"], work.ratio(OURS, BARE)
    print(f"  {OURS} / {BARE} = {over:.3f}, in processor time {worked:.3f}")
    shares = []
    for _ in range(options.rounds):
        clock, wall, processor = Clock(), time.perf_counter(), time.process_time()
        with clock.watching():
            deletion_insertion(scorer, x, e, 0, step=STEP)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        shares.append((1 - clock.wall / wall, 1 - clock.processor / processor))
    by_clock, by_processor = (sorted(each)[len(shares) // 2] for each in zip(*shares, strict=True))
    title = "everything but onnxruntime, share of the whole"
    table(title, [["by the clock", f"{by_clock:.1%}"], ["of the processor", f"{by_processor:.1%}"]], ["", "median"])
    return [
        {**first, "forwards": passes, "over_bare": over, "over_bare_processor": worked, "scores_differ": worst},
        {"title": title, "by_clock": by_clock, "by_processor": by_processor, "turns": shares},
    ]


def against_quantus(options: Any) -> dict[str, Any]:
    """Both curves of the demo model's own maps, 64 scores each."""
    import numpy as np
    from torch_reference import import_torchvision

    import_torchvision()
    warnings.simplefilter("ignore")
    import quantus

    from fgcam_onnx import Explainer, models
    from fgcam_onnx.metrics import Scorer, deletion_insertion
    from fgcam_onnx.metrics.quantus import interface

    class PixelFlipping(quantus.PixelFlipping):  # type: ignore[misc]
        """On pictures in colour whose pixels are no multiple of three, which its check refuses."""

        def custom_preprocess(self, **data: Any) -> dict[str, Any]:
            return {"model": model}

    random = np.random.default_rng(0)
    explainer = Explainer(models.path("demo_honest.onnx"), backend="ort", threads=options.threads)
    model = interface(explainer, softmax=True)
    x = random.uniform(-1, 1, (PICTURES, 3, 128, 128)).astype(np.float32)
    maps = explainer.explain(x).relevance.reshape(PICTURES, -1)
    places = np.argsort(np.argsort(maps, axis=1, kind="stable"), axis=1).reshape(PICTURES, 128, 128)
    e = (places - places.mean()).astype(
        np.float32
    )  # in the same order, without ties, which it sorts in any, and signed
    classes, step = explainer.scores(x).argmax(axis=1), 256
    scorer = Scorer(explainer)

    def ours() -> Any:
        found = deletion_insertion(scorer, x, e, classes, step=step, baseline="zero")
        return np.stack([found.deletion[:, 1:], found.insertion[:, ::-1][:, 1:]])

    def theirs(batch: int) -> Any:
        metric = PixelFlipping(features_in_step=3 * step, perturb_baseline=0.0, disable_warnings=True)
        both = [e[:, None], -e[:, None]]
        return np.stack([metric(None, x, classes, a, channel_first=True, batch_size=batch) for a in both])

    title = f"both curves of {PICTURES} pictures 128 x 128, 64 steps"
    worst = require_close(ours(), theirs(PICTURES), title)
    tried = Processor({str(b): partial(theirs, b) for b in BATCHES}, 0)
    alternate(tried.turns, 2, warm_up=0)
    best = int(min(tried.seconds, key=lambda name: min(tried.seconds[name])))
    print(f"  Quantus works least with {best} pictures at a time")
    work = Processor({OURS: ours, QUANTUS: partial(theirs, best)}, 1)
    found = report(title, alternate(work.turns, options.rounds, warm_up=1), OURS, QUANTUS)
    worked = work.ratio(QUANTUS, OURS)
    print(f"  in processor time {worked:.2f}")
    clock, whole = Clock(), time.perf_counter()
    with clock.watching():
        theirs(best)
    whole = time.perf_counter() - whole
    print(f"  of Quantus' time {clock.wall / whole:.0%} is onnxruntime's")
    return {
        **found,
        "batch": best,
        "processor": worked,
        "scores_differ": worst,
        "onnxruntime_share_of_quantus": clock.wall / whole,
    }


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def long_run(threads: int) -> None:
    """Deletion, insertion and Average Drop of many pictures, one after the other."""
    import numpy as np

    from fgcam_onnx import Explainer, models
    from fgcam_onnx.metrics import AverageDrop, DeletionInsertion, Scorer

    random = np.random.default_rng(0)
    scorer = Scorer(Explainer(models.path("demo_honest.onnx"), backend="ort", threads=threads))
    metrics = DeletionInsertion(scorer, step=8192), AverageDrop(scorer)
    seen = {}
    for i in range(1, MANY + 1):
        x = random.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
        e = random.normal(size=(1, 128, 128)).astype(np.float32)
        for metric in metrics:
            metric.update(x, e, 0)
        if i in (FEW, MANY):
            seen[i] = resident()
    print(json.dumps({"few": seen[FEW], "many": seen[MANY], "forwards": scorer.forwards}))


def memory(options: Any) -> dict[str, Any]:
    command = [sys.executable, os.path.abspath(__file__), "--threads", str(options.threads), "--child"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    title = f"demo model, 128 x 128, {found['forwards']} forward passes: resident memory"
    rows = [[f"after {n} pictures", f"{found[key] / (1 << 20):.1f} MiB"] for n, key in ((FEW, "few"), (MANY, "many"))]
    table(title, rows, ["", "resident"])
    print(f"  {(found['many'] - found['few']) / (1 << 20):+.1f} MiB")
    return {"title": title, **found}


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", action="store_true", help="used by this program itself")
    options = parser.parse_args()
    if options.child:
        long_run(options.threads)
        return
    results: list[dict[str, Any]] = []
    if "memory" in options.parts:
        results.append(memory(options))
    if "quantus" in options.parts:
        results.append(against_quantus(options))
    folder = os.environ.get("FGCAM_TEST_DATA", "")
    path = Path(folder, "models", "efficientnet_lite0_pytorch.onnx")
    if "forwards" in options.parts and folder and path.is_file():
        results += large(path, options)
    elif "forwards" in options.parts:
        print(f"\nno EfficientNet-Lite0: FGCAM_TEST_DATA is {folder or 'not set'}")
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
