"""Hostile files: a thousand mutants of honest models here, twenty thousand in ``pytest -m slow tests/test_fuzz.py``.

Each ends in a FgcamError or in a map that was checked; none in a crash, a hang, another exception, a wrong answer, or a
process of more than 1 GiB. FGCAM_FUZZ=50000 makes the long run longer, FGCAM_FUZZ_FIRST=100000 begins it elsewhere.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import tiny_models
from fuzzing import corpus, pool
from fuzzing.mutants import KINDS, make
from fuzzing.planted import MARK
from fuzzing.pool import Result, Worker

from fgcam_onnx import Explainer
from fgcam_onnx.errors import ActivationError

IN_CI = 1000
IN_A_NIGHT = int(os.environ.get("FGCAM_FUZZ", "20000"))
FIRST = int(os.environ.get("FGCAM_FUZZ_FIRST", "10000"))


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return pool.examined(pool.plan(IN_CI))


def harm(results: list[Result]) -> str:
    """What must not be, with the commands that show it again."""
    return "\n".join(str(result) for result in results if not result.good)


def test_no_mutant_does_harm(results: list[Result]) -> None:
    """Refused, or explained correctly: nothing else, a thousand times."""
    assert len(results) == IN_CI
    assert not harm(results), harm(results)


def test_the_mutants_are_worth_it(results: list[Result]) -> None:
    """All kinds occur, all small models, refusals at each stage, and a fair share comes through to a checked map."""
    kinds = Counter(kind for result in results for kind in result.kinds)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 5
    assert {result.entry for result in results} >= set(corpus.entries()) - set(corpus.HEAVY)
    refused = Counter(result.stage for result in results if result.outcome == "refused")
    assert min(refused[stage] for stage in ("load", "coverage", "explain")) >= 5
    explained = Counter(kind for result in results if result.outcome == "explained" for kind in result.kinds)
    assert sum(result.outcome == "explained" for result in results) >= IN_CI // 10
    assert len(explained) >= len(KINDS) // 2


@pytest.mark.slow
def test_no_mutant_does_harm_in_a_night() -> None:
    done = pool.examined(pool.plan(IN_A_NIGHT, FIRST, heavy=0.05))
    print(pool.table(done), Counter(result.outcome for result in done), sep="\n")
    assert not harm(done), harm(done)


def test_a_mutant_follows_from_its_number() -> None:
    """The same number gives the same file, others mostly others, and each kind does change a file."""
    many = [make("residual", seed) for seed in range(3 * len(KINDS))]
    assert many == [make("residual", seed) for seed in range(3 * len(KINDS))]
    assert len({mutant.content for mutant in many}) > 2.7 * len(KINDS)
    changed = {kind for mutant in many for kind in mutant.kinds if mutant.content != corpus.read("residual")}
    assert changed == set(KINDS)


# --- tests of the test: each fault, planted in a worker, is noticed -----------------------------------------


@pytest.fixture(scope="module")
def worker() -> Worker:
    with Worker() as made:
        yield made


@pytest.mark.parametrize("death", ["segfault", "abort", "exit"])
def test_a_worker_that_dies_is_a_crash(worker: Worker, death: str) -> None:
    """The mutant is named, and the next one is examined by a new worker."""
    found = worker.examine(MARK + death, 7)
    assert found.outcome == "crash"
    assert not found.good
    expected = {"segfault": "SIGSEGV", "abort": "SIGABRT", "exit": "exit code 0"}[death]
    assert found.detail == f"the worker died: {expected}"
    assert f"worker.py {MARK}{death} 7" in harm([found])
    assert worker.examine(MARK + "none", 0).good


def test_a_worker_that_hangs_is_ended() -> None:
    with Worker(patience=1) as impatient:
        found = impatient.examine(MARK + "hang", 0)
        assert (found.outcome, found.good) == ("hang", False)
        assert impatient.pid is None


def test_a_worker_that_takes_too_much(worker: Worker) -> None:
    """Also where it has given the memory back by the time of its answer; and it is not held against the next mutant."""
    found = worker.examine(MARK + "memory", 0)
    assert (found.outcome, found.good) == ("memory", False)
    assert found.peak > pool.LIMIT
    after = worker.examine(MARK + "none", 0)
    assert after.good
    assert after.peak < pool.LIMIT // 2


@pytest.mark.parametrize(
    ("fault", "outcome", "said"),
    [
        ("raise", "escaped", "KeyError: 'planted'"),
        ("logits", "wrong", "logits are off by"),
        ("map", "wrong", "the map sums to"),
        ("nan", "wrong", "the map is not finite"),
        ("sign", "wrong", "NumPy in float64 gives another map"),
        ("books", "wrong", "the books are off by"),
        ("none", "explained", ""),
    ],
)
def test_a_wrong_answer_is_noticed(worker: Worker, fault: str, outcome: str, said: str) -> None:
    """Off by a thousandth, mirrored, not finite, another exception; and the same model without a fault is fine."""
    found = worker.examine(MARK + fault, 0)
    assert found.outcome == outcome
    assert said in found.detail


# --- what mutants have found beyond the reading of files ----------------------------------------------------


def test_a_map_that_its_numbers_cannot_hold_is_refused() -> None:
    """Weights near the largest float32: relevance over z is below the smallest, and is lost without being a leak."""
    model = corpus.quantised_operators()
    step = next(t for t in model.graph.initializer if t.name == "conv1.w.scale")
    x = tiny_models.pictures(model)
    Explainer(model).explain(x)
    step.raw_data = np.float32(5e36).tobytes()
    with pytest.raises(ActivationError, match="the books do not close"):
        Explainer(model, backend="ort").explain(x)
    exact = Explainer(model, backend="numpy", precision="float64").explain(x)
    assert exact.ledger.residual < 1e-12
