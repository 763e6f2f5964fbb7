"""Side by side: contestants take turns in one process, their maps are compared first, medians are what is reported.

Turns matter: two programs timed one after the other meet a processor at two temperatures, with two sets of neighbours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the references live beside the tests that prove them

PAUSE = 0.05  # seconds between turns: idle threads of the last contestant stop spinning


@dataclass(frozen=True)
class Timing:
    """Seconds of every turn of one contestant."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median: above about 0.1 the machine was busy."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def use_checkout() -> None:
    """Let ``import fgcam_onnx`` find this checkout where the package is not installed.

    Top-level folders are subpackages, which the package itself does not know.
    """
    sys.path.append(str(ROOT))
    if importlib.util.find_spec("fgcam_onnx.rules") is None:
        importlib.import_module("fgcam_onnx").__path__.append(str(ROOT))


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options every benchmark has: --rounds, --threads, --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=defaults.get("rounds", 7), help="turns of each contestant")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every contestant")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, pause: float = PAUSE
) -> list[Timing]:
    """Time the contestants in turns, after ``warm_up`` turns that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, run in contestants.items():
            time.sleep(pause)
            begin = time.perf_counter()
            run()
            took = time.perf_counter() - begin
            if turn >= warm_up:
                seconds[name].append(took)
    return [Timing(name, tuple(values)) for name, values in seconds.items()]


def environment(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    from importlib import metadata

    packages = ("fgcam_onnx", "onnxruntime", "torch", "torchvision", "numpy")
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def table(title: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """Print rows under a heading, columns aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"\n{title}")
    for first, *others in (head, *rows):
        print("  ".join(["", first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]))


def report(title: str, timings: Sequence[Timing], ours: str, baseline: str) -> dict[str, Any]:
    """Print medians, each one's time relative to ``ours``, and the ratio to the baseline; return them."""
    by_name = {timing.name: timing for timing in timings}
    rows = [
        [
            t.name,
            f"{1e3 * t.median:.0f} ms",
            f"{t.median / by_name[ours].median:.2f}",
            f"{1e3 * t.fastest:.0f} ms",
            f"{t.spread:.0%}",
        ]
        for t in timings
    ]
    table(title, rows, ["", "median", f"/ {ours}", "fastest", "spread"])
    ratio = by_name[baseline].median / by_name[ours].median
    of_fastest = by_name[baseline].fastest / by_name[ours].fastest
    print(f"  {ours} is {ratio:.2f} times as fast as {baseline} ({of_fastest:.2f} by the fastest turns)")
    return {
        "title": title,
        "seconds": {t.name: list(t.seconds) for t in timings},
        "median": {t.name: t.median for t in timings},
        "ratio": ratio,
        "ratio_of_fastest": of_fastest,
    }


def require_equal(found: Any, expected: Any, what: str, typical: float = 2e-5, worst: float = 1e-2) -> None:
    """Refuse to time two programs that do not compute the same maps.

    ``typical`` bounds the median picture's relative error, ``worst`` every picture's: a max-pool whose two best inputs
    are equal to rounding sends importance to either, and moves that one map by about 1e-3. The tests, which ask 1e-5
    of every picture, choose theirs such that no winner is in doubt.
    """
    from torch_reference import relative_error

    errors = [relative_error(a[None], b[None]) for a, b in zip(found, expected, strict=True)]
    print(f"\n{what}: maps differ by {statistics.median(errors):.1e} relative, the worst by {max(errors):.1e}")
    if not (statistics.median(errors) <= typical and max(errors) <= worst):
        raise SystemExit(f"{what}: too much; what does not compute the same is not compared")


def write(path: Path | None, threads: int, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures as JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps({"environment": environment(threads), "results": list(results)}, indent=1))
