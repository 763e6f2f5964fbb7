"""Workers that examine mutants, watched: one that dies, hangs or grows costs its mutant and no more.

A worker serves many mutants, since starting one takes as long as examining twenty. It is replaced when it ends, when it
was ended, and after some hundreds of mutants, so that what one leaves behind cannot be laid to another far away.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzzing import corpus
from fuzzing.examine import GOOD

__all__ = ["LIMIT", "Result", "Worker", "examined", "plan", "table"]

# What a worker may hold at its peak: Python, onnx, onnxruntime and its own corpus included.
LIMIT = 1 << 30
# No answer for so long is a hang. The machine may be busy, so it is generous.
PATIENCE = 60.0
SERVES = 400
# Not the limit that is tested: it protects the machine from what the test finds.
ADDRESSES = 12 << 30


@dataclass(frozen=True)
class Result:
    """What came of one mutant. ``outcome``: those of Finding, or crash, hang, memory."""

    entry: str
    seed: int
    kinds: tuple[str, ...]
    outcome: str
    stage: str
    detail: str
    peak: int

    @property
    def good(self) -> bool:
        return self.outcome in GOOD

    def __str__(self) -> str:
        again = f"python tests/fuzzing/worker.py {self.entry} {self.seed}"
        what = f"{self.outcome} at {self.stage}, peak {self.peak >> 20} MiB, {'+'.join(self.kinds)}"
        return f"{what}: {again}\n{self.detail}"


class Worker:
    """One process that examines mutants, one after the other."""

    def __init__(self, patience: float = PATIENCE, limit: int = LIMIT) -> None:
        self.patience, self.limit = patience, limit
        self._process: subprocess.Popen[str] | None = None
        self._served = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "FGCAM_THREADS": "1", "FGCAM_MEMORY": str(LIMIT)}
        self._served = 0
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES)),
        )

    def examine(self, entry: str, seed: int) -> Result:
        """What comes of one mutant, whatever it does to the worker."""
        if self._process is None or self._served >= SERVES:
            self.end()
            self._process = self._start()
        self._served += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        try:
            process.stdin.write(f"{entry} {seed}\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self.patience)
            if not ready:
                self.end()
                return Result(entry, seed, _kinds(entry, seed), "hang", "?", f"no answer in {self.patience} s", 0)
            line = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = process.wait()
            self.end()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Result(entry, seed, _kinds(entry, seed), "crash", "?", f"the worker died: {how}", 0)
        said = json.loads(line)
        outcome = said["outcome"]
        if said["peak"] > self.limit:
            outcome = "memory"
        if said["peak"] > self.limit * 3 // 4:
            self.end()  # what it still holds would count against the next
        return Result(entry, seed, tuple(said["kinds"]), outcome, said["stage"], said["detail"], said["peak"])


def _kinds(entry: str, seed: int) -> tuple[str, ...]:
    from fuzzing.mutants import make

    try:
        return make(entry, seed).kinds
    except Exception:  # a planted fault is no mutant
        return ()


def plan(count: int, first: int = 0, heavy: float = 0.02) -> list[tuple[str, int]]:
    """``count`` mutants, numbered from ``first``: a model for each, a large one in the given share of cases."""
    large = [name for name in corpus.entries() if name in corpus.HEAVY]
    small = [name for name in corpus.entries() if name not in corpus.HEAVY]
    found = []
    for seed in range(first, first + count):
        rng = random.Random(seed)
        among = large if large and rng.random() < heavy else small
        found.append((among[rng.randrange(len(among))], seed))
    return found


def examined(wanted: Sequence[tuple[str, int]], workers: int = 2) -> list[Result]:
    """The results of many mutants, in order, by so many processes at a time."""

    def share(part: Sequence[tuple[str, int]]) -> list[Result]:
        with Worker() as worker:
            return [worker.examine(entry, seed) for entry, seed in part]

    parts = [wanted[i::workers] for i in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        done = list(threads.map(share, parts))
    return [done[i % workers][i // workers] for i in range(len(wanted))]


def table(results: Iterable[Result]) -> str:
    """Outcomes by kind of mutation, a line each."""
    rows: dict[str, Counter[str]] = {}
    for result in results:
        for name in result.kinds:
            rows.setdefault(name, Counter())[result.outcome] += 1
    columns = sorted({outcome for row in rows.values() for outcome in row})
    lines = [f"{'kind':24}" + "".join(f"{column:>11}" for column in columns)]
    lines += [f"{name:24}" + "".join(f"{row[column]:11}" for column in columns) for name, row in sorted(rows.items())]
    return "\n".join(lines)
