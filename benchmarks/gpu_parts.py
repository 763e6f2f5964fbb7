"""What the parts of gpu.py are made of: networks and batches, a descent that can be timed, contestants in turns."""

from __future__ import annotations

import copy
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import alternate

if TYPE_CHECKING:
    from gpu import Bench

OURS = ("float32", "fast")
# The setting of PyTorch that a precision of ours is compared with.
EQUAL = {"float32": "tf32_off", "fast": "tf32_on"}
RESULT = "relevance_at_target"
PAUSE = 0.005  # seconds between turns: the device is idle then, and no thread of a contestant spins
LONGEST_TURN = 8.0  # seconds: what takes longer on the processor is not run, and the figure says so


@dataclass(frozen=True)
class Part:
    """One part of the run: a section, for one model and one batch where it has them."""

    section: str
    model: str | None = None
    batch: int | None = None

    @property
    def name(self) -> str:
        return "/".join(str(word) for word in (self.section, self.model, self.batch) if word is not None)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in PyTorch on the device, and its file. ``published``: None where no procedure was published."""

    name: str
    model: Any
    published: Any
    autograd: Any
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Case:
    """A batch of one network: what its forward pass left for the descent, on the host and on the device."""

    subject: Subject
    x: np.ndarray
    explanation: Any
    program: Any
    inputs: dict[str, np.ndarray]
    addresses: dict[str, int]
    memory: list[Any]
    compiled: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.inputs.items()}


def stand_in(name: str) -> Any:
    """A tiny network with the modules of the large one."""
    from torch import nn
    from torch_reference import import_torchvision

    def conv(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    class Vgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pools = [nn.MaxPool2d(2) for _ in range(2)]
            self.features = nn.Sequential(*conv(3, 4), *conv(4, 8), pools[0], *conv(8, 20), pools[1])
            self.classifier = nn.Sequential(nn.Linear(20 * 64, 12), nn.ReLU(), nn.Linear(12, 5))

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).flatten(1))

    class Resnet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = import_torchvision().models.resnet.BasicBlock
            shortcut = nn.Sequential(nn.Conv2d(8, 20, 1, stride=2, bias=False), nn.BatchNorm2d(20))
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
            self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
            self.layer1 = nn.Sequential(block(8, 8))
            self.layer2 = nn.Sequential(block(8, 20, 2, shortcut))
            self.layer3, self.layer4 = (nn.Sequential(block(20, 20)) for _ in range(2))
            self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(20, 5)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(self.avgpool(x).flatten(1))

    return Vgg() if name.startswith("vgg") else Resnet()


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """Why a part or a contestant is not run."""


class BrokenDevice(RuntimeError):  # noqa: N818 - what is wrong, not what went wrong
    """A contestant left the device's context unusable; the part can be run again without it."""


@dataclass(frozen=True)
class Failure:
    error: Exception


@dataclass(frozen=True, eq=False)
class Descent:
    """Runs a compiled program on activations that lie on the device; the map and the books come back to the host."""

    device: Any
    program: Any
    addresses: Mapping[str, int]

    def __call__(self) -> dict[str, np.ndarray]:
        with self.device.active():
            found: dict[str, np.ndarray] = self.program.run(self.addresses)
        return found

    def map(self) -> np.ndarray:
        found = self()[RESULT]
        return found.reshape(len(found), *found.shape[2:])

    def as_graph(self, wanted: bool) -> Descent:
        """The same launches, with memory of their own: replayed as one graph, or asked for one by one."""
        kind = type(self.program)
        made = copy.copy(self.program)
        made.__class__ = type(kind.__name__, (kind,), {"small": wanted})
        made.__dict__.update(_block=None, _held={}, _graphs={}, _last=None, _captures=0)
        return Descent(self.device, made, self.addresses)

    @property
    def way(self) -> str:
        return "replayed as one CUDA graph" if self.program._graphs else "launches asked for one by one"


@dataclass(frozen=True)
class Contestant:
    """``contains``: exactly what is timed. ``run``: ends when its result is on the host."""

    contains: str
    run: Callable[[], Any]


def race(
    bench: Bench, part: Part, contestants: Mapping[str, Contestant], budget: float, *, slow: bool = False
) -> dict[str, Any]:
    """Figures by name: seconds of each turn, turns alternating. A contestant that fails is reported and left out.

    ``slow``: for what takes seconds: no warm-up, and nothing that would take too long by what was seen before.

    Raises:
        BrokenDevice: a contestant broke it; the next try leaves that one out.
    """
    images = part.batch or 1
    figures: dict[str, Any] = {}
    alive: dict[str, Callable[[], Any]] = {}
    together = 0.0
    for name, contestant in contestants.items():
        figures[name] = {"contains": contestant.contains}
        known = f"{part.model}: {name}"
        try:
            if known in bench.broken:
                raise Skipped("not run: it broke the device's context before")
            expected = bench.slow.get(known, 0.0) * images
            if slow and expected > LONGEST_TURN:
                raise Skipped(f"not run: it would take {expected:.0f} s")
            if not slow:
                contestant.run()  # compiles, tries algorithms out
            begin = time.perf_counter()
            contestant.run()
            took = time.perf_counter() - begin
        except Exception as error:
            figures[name]["skipped" if isinstance(error, Skipped) else "error"] = words(error)
            if not bench.machine.alive():
                bench.broken.append(known)
                raise BrokenDevice(f"{name}: {words(error)}") from error
            bench.machine.release()
            continue
        if slow:
            bench.slow[known] = took / images
        together += took + PAUSE
        alive[name] = contestant.run
    if alive:
        rounds = max(1 if slow else 3, min(bench.options.rounds, int(budget / together)))
        for timing in alternate(alive, rounds, warm_up=0 if slow else 1, pause=PAUSE):
            figures[timing.name] |= {"seconds": list(timing.seconds), "median": timing.median,
                                     "spread": timing.spread, "images_per_second": images / timing.median}  # fmt: skip
    return figures


def by_precision(bench: Bench, measure: Callable[[str], Any]) -> dict[str, Any]:
    """What is found for each precision of ours, or the error of it: one does not take the other's figures along."""
    found: dict[str, Any] = {}
    for precision in OURS:
        try:
            found[precision] = measure(precision)
        except Exception as error:
            found[precision] = {"error": words(error), "traceback": traceback.format_exc()}
            earlier = f"{found['error']}; " if "error" in found else ""
            found |= {"status": "failed", "error": f"{earlier}{precision}: {words(error)}"}
            if not bench.machine.alive():
                break
    return found


def errors(found: Any, expected: Any) -> tuple[float, float]:
    """Relative error of the median picture and of the worst. A max-pool whose two best inputs tie moves one map."""
    from torch_reference import relative_error

    each = [relative_error(a[None], b[None]) for a, b in zip(np.asarray(found), np.asarray(expected), strict=True)]
    return statistics.median(each), float(np.max(each))


def words(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (text if isinstance(error, Skipped) else f"{name}: {text}" if text else name)[:400]
