"""The engine of a cluster: pictures go out to workers, their rows come back to the store of the one that asked.

The store alone says what is done, as with one machine, so either engine goes on where the other was. A picture's rows
depend on the picture, the model and the run, and on the same backend and threads they are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fgcam_onnx import cluster
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.local import PICTURE_ERRORS, Failure, Progress
from fgcam_onnx.evaluation.run import Run
from fgcam_onnx.evaluation.store import Row, Store

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The job of a worker: a run and its model."""

    run: Run
    model: cluster.Model

    def start(self) -> Callable[[Sample], list[Row]]:
        explainer = self.model.open(**self.run.engine)
        cluster.agree(explainer, self.run.facts)
        return self.run.evaluator(explainer)


def evaluate(
    run: Run, samples: Sequence[Sample], store: Store, *, workers: int | None = None, progress: Progress | None = None
) -> list[Failure]:
    """Measure what the store does not have yet; returns what could not be measured, which the next start tries again.

    ``workers``: one Explainer each; as many as fit the cluster if None. ``progress(pictures done, id)``. A picture at
    which three workers died is a failure, and the run goes on.

    Raises:
        MissingPackageError: Ray is not installed.
        BackendError: no cluster, or one whose workers are not as the run says.
        OutputError: the rows cannot be written; what was stored stays.
    """
    report = progress or (lambda done, id: None)
    left = {sample.id: sample for sample in samples if sample.id not in store.done}
    done = len(samples) - len(left)
    report(done, "")
    failures: dict[str, Failure] = {}
    if left:
        gpus = run.facts.get("backend") == "cupy" or "CUDAExecutionProvider" in run.facts.get("providers", ())
        with cluster.join(workers=workers, threads=cluster.threads_of(run.engine), gpus=gpus) as joined:
            job = Evaluation(_told(run, joined.threads), joined.model(run.model, run.facts["model"]))
            for outcomes in joined.work(job, list(left.items())):
                for outcome in outcomes:
                    failure = _failure(outcome)
                    if failure is not None:
                        failures[outcome.key] = failure
                    elif outcome.key not in store.done:
                        store.append(outcome.key, outcome.value)
                    done += 1
                    report(done, outcome.key)
    report(len(samples), "")
    return [failures[sample.id] for sample in samples if sample.id in failures]


def _told(run: Run, threads: int) -> Run:
    """The run for the workers: what "auto" and the environment are here, they are there."""
    return replace(run, engine={**run.engine, "backend": run.facts["backend"], "threads": threads})


def _failure(outcome: cluster.Outcome) -> Failure | None:
    if outcome.deaths:
        return Failure(outcome.key, "BackendError", f"{outcome.deaths} workers died, one after the other, at it")
    if isinstance(outcome.error, PICTURE_ERRORS):
        return Failure(outcome.key, type(outcome.error).__name__, outcome.error.what)
    if outcome.error is not None:
        raise outcome.error
    return None
