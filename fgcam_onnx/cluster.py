"""Work on a Ray cluster: units in, what became of them out, whatever becomes of the workers in between.

Ray Data has the units worked on by a pool of actors, each with a model of its own, and starts an actor anew that died.
What the actor was at is then begun again; nothing of it was kept, so nothing is there twice. A unit that is begun a
fourth time has killed three workers, and is given up: :class:`Attempts` counts, since Ray would go on for ever.

Errors come back as values. An exception that leaves an actor would end the run or restart the actor, and arrives as a
page of Ray's own frames.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fgcam_onnx import errors
from fgcam_onnx.errors import BackendError, FgcamError, ModelError
from fgcam_onnx.optional import need

__all__ = ["Attempts", "Cluster", "Job", "Model", "Outcome", "agree", "join", "present", "threads_of"]

# So often a unit may be begun: what kills three workers would kill the fourth.
TRIES = 3
# Cores of a worker where nobody says how many.
CORES = 4
# Units are dealt out one by one up to so many; Ray's own cost of each is about ten milliseconds.
PIECES = 10_000
PURPOSE = "it spreads the work over processes and machines"


class Job(Protocol):
    """What the workers do, as plain data that any process can begin from."""

    def start(self) -> Callable[[Any], Any]:
        """In the worker, once: load the model. What is returned works on one unit after another."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit. ``deaths``: of the workers that it killed; then there is neither value nor error."""

    key: str
    value: Any = None
    error: Exception | None = None
    deaths: int = 0


# ---------------------------------------------------------------------------------------------------- the cluster


@contextlib.contextmanager
def join(*, workers: int | None, threads: int | None, gpus: bool) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names or that this process is in already; else one of this machine, for as long.

    ``workers``: actors; as many as fit if None. ``threads``: cores of each. ``gpus``: a GPU for each, where there are.

    Raises:
        MissingPackageError: Ray is not installed.
        BackendError: the cluster cannot be reached, or has no place for a worker.
    """
    ray = need("ray", "ray", PURPOSE)
    ours = not ray.is_initialized()
    if ours:
        _start(ray, (workers or 1) * (threads or 1))
    try:
        need("ray.data", "ray", PURPOSE)
        with _hushed(ours):
            yield _fitted(ray, ours, workers, threads, gpus)
    finally:
        if ours:
            ray.shutdown()


def present(*, workers: int | None, threads: int | None, gpus: bool) -> Cluster:
    """The cluster that this process is in, as :func:`join`, for work that goes on after the call."""
    return _fitted(need("ray", "ray", PURPOSE), False, workers, threads, gpus)


def _start(ray: Any, cores: int) -> None:
    address = os.environ.get("RAY_ADDRESS") or "local"
    # Ray writes its own log of everything below /tmp/ray; what its processes say on this terminal helps nobody here.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": max(cores, os.cpu_count() or 1), "include_dashboard": False}
    set_here = [name for name in quiet if name not in os.environ]
    os.environ.update({name: quiet[name] for name in set_here})
    try:
        with warnings.catch_warnings(), _muted():
            warnings.simplefilter("ignore")
            ray.init(address=address, **options)
    except Exception as error:  # a node that does not start in time is a plain Exception of Ray's
        raise BackendError(
            "there is no Ray cluster to work on",
            at=f"RAY_ADDRESS={address}" if address != "local" else None,
            known=_first_line(error),
            next="start one with ray start --head, or unset RAY_ADDRESS for a cluster of this machine",
        ) from None
    finally:
        for name in set_here:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Without what C++ writes to stderr. What matters of it is raised."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _hushed(ours: bool) -> Iterator[None]:
    """Ray Data keeps its log file; the terminal belongs to this package's own progress."""
    shown = [h for h in logging.getLogger("ray.data").handlers if type(h).__name__ == "PlainRayHandler"]
    levels = [handler.level for handler in shown]
    from ray._private import worker

    # Deaths of workers are told where they matter, and Ray would print them on stdout, between results.
    printed = getattr(worker, "_worker_logs_enabled", None) if ours else None
    try:
        for handler in shown:
            handler.setLevel(logging.CRITICAL)
        if printed is not None:
            worker._worker_logs_enabled = False
        yield
    finally:
        for handler, level in zip(shown, levels, strict=True):
            handler.setLevel(level)
        if printed is not None:
            worker._worker_logs_enabled = printed


def _fitted(ray: Any, ours: bool, workers: int | None, threads: int | None, gpus: bool) -> Cluster:
    """How many workers of what size."""
    have = ray.cluster_resources()
    cores, devices = int(have.get("CPU", 0)), int(have.get("GPU", 0)) if gpus else 0
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if threads is None:
        share = cores // (workers or devices or 1) if workers or devices else CORES
        threads = max(1, min(share, largest))
    if largest < threads:
        raise BackendError(
            f"no node of the Ray cluster has {threads} cores for a worker",
            known=f"the largest has {largest}",
            next=f"--threads {max(1, largest)}",
        )
    if workers is None:
        workers = max(1, min(cores // threads, devices or cores))
    return Cluster(ray, workers, threads, 1 if devices else 0, ours, max(1, cores))


@dataclass(frozen=True)
class Cluster:
    """``workers`` actors of ``threads`` cores and ``gpus`` devices each, of all its ``cores``.

    ``ours``: it ends with this run.
    """

    ray: Any
    workers: int
    threads: int
    gpus: int
    ours: bool
    cores: int

    @property
    def share(self) -> float:
        """Cores that an actor holds while a dataset is read beside it: where actors hold all, nobody reads."""
        room = max(self.cores - 1, self.cores / 2) / self.workers
        return min(self.threads, int(room) if room >= 1 else room)

    def model(self, path: Path, sha256: str) -> Model:
        """The model for the workers. On machines that do not have the file it comes out of the object store."""
        if self.ours and os.environ.get("RAY_ADDRESS", "local") == "local":
            return Model(path, sha256)
        from fgcam_onnx.graph.load import load

        return Model(path, sha256, self.ray.put(load(path)))

    def work(self, job: Job, units: Sequence[tuple[str, Any]], *, together: int = 1) -> Iterator[list[Outcome]]:
        """The outcomes of the units, each a key and what ``job`` works on, as they come and in no order.

        ``together``: so many units go to a worker and come back at a time.

        Raises:
            FgcamError: what ended the work itself, such as a model that a worker cannot load.
            BackendError: the cluster failed.
        """
        data = need("ray.data", "ray", PURPOSE)
        context = data.DataContext.get_current()
        before = {name: getattr(context, name, None) for name in ("enable_progress_bars", "print_on_execution_start")}
        together = max(together, -(-len(units) // PIECES))
        items = [{"units": pickle.dumps(units[i : i + together])} for i in range(0, len(units), together)]
        attempts = self.ray.remote(num_cpus=0, max_restarts=-1)(Attempts).remote()
        found: Any = None
        try:
            for name in before:
                if hasattr(context, name):
                    setattr(context, name, False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = iter(
                    data.from_items(items, override_num_blocks=len(items))
                    .map_batches(
                        Worker,
                        fn_constructor_args=(job, attempts),
                        batch_size=1,
                        compute=data.ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=2),
                        num_cpus=self.threads,
                        num_gpus=self.gpus or None,
                    )
                    .iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
                )
            for batch in found:
                for result in batch["outcomes"]:
                    outcomes = pickle.loads(result)
                    if isinstance(outcomes, Trouble):
                        raise outcomes.error()
                    yield [_opened(each) for each in outcomes]
        except self.ray.exceptions.RayError as error:
            raise BackendError(
                "the Ray cluster failed",
                known=_first_line(error),
                next="the same command goes on where it was; Ray's own log is in /tmp/ray/session_latest/logs",
            ) from error
        finally:
            del found  # ends the execution, if it goes on
            with contextlib.suppress(Exception):
                self.ray.kill(attempts)
            for name, value in before.items():
                if hasattr(context, name):
                    setattr(context, name, value)

    def over(self, dataset: Any, actor: type, words: Sequence[Any]) -> Any:
        """The dataset with ``actor(*words)`` called on each few of its rows, as tables of Arrow."""
        data = need("ray.data", "ray", PURPOSE)
        return dataset.map_batches(
            actor,
            fn_constructor_args=tuple(words),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=self.workers),
            num_cpus=self.share,
            num_gpus=self.gpus or None,
        )


def _opened(outcome: Outcome) -> Outcome:
    error: Any = outcome.error
    return Outcome(outcome.key, outcome.value, error.error()) if isinstance(error, Trouble) else outcome


def _first_line(error: BaseException) -> str:
    """Of what Ray says the cause, which stands last in its tracebacks."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = lines[-1] if lines and "Traceback" in str(cause) else (lines[0] if lines else "")
    return f"{type(cause).__name__}: {said}"[:300]


def threads_of(engine: Mapping[str, Any]) -> int | None:
    """Of every session: as it is said, or as FGCAM_THREADS has it on this machine and perhaps not on the others."""
    return engine.get("threads") or int(os.environ.get("FGCAM_THREADS", "0") or 0) or None


# ---------------------------------------------------------------------------------------------------- in the worker


class Worker:
    """What an actor runs. The job starts with the first unit, so that its errors come back like any other."""

    def __init__(self, job: Job, attempts: Any) -> None:
        self.job, self.attempts = job, attempts
        self.work: Callable[[Any], Any] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        return {"outcomes": [pickle.dumps(self._all(pickle.loads(units))) for units in batch["units"]]}

    def _all(self, units: Sequence[tuple[str, Any]]) -> list[Outcome] | Trouble:
        try:
            if self.work is None:
                self.work = self._started()
        except Exception as error:
            return Trouble.of(error)
        return [self._one(self.work, key, unit) for key, unit in units]

    def _started(self) -> Callable[[Any], Any]:
        if self._begun(None) > TRIES:
            raise BackendError(
                f"{TRIES} workers died one after the other as they loaded the model",
                known="a worker that takes more memory than its machine has is killed",
                next="fewer of them: --workers N",
            )
        work = self.job.start()
        self._ended(None)
        return work

    def _one(self, work: Callable[[Any], Any], key: str, unit: Any) -> Outcome:
        count = self._begun(key)
        if count > TRIES:
            return Outcome(key, deaths=count - 1)
        try:
            outcome = Outcome(key, work(unit))
        except Exception as error:
            outcome = Outcome(key, error=Trouble.of(error))  # type: ignore[arg-type]
        self._ended(key)
        return outcome

    def _begun(self, key: str | None) -> int:
        import ray

        try:
            return int(ray.get(self.attempts.begin.remote(key)))
        except ray.exceptions.RayError:  # the counter's own node is gone: without it nobody is given up
            return 1

    def _ended(self, key: str | None) -> None:
        self.attempts.end.remote(key)


class Attempts:
    """How often each unit was begun and not ended; None is the loading of the model."""

    def __init__(self) -> None:
        self.open: dict[str | None, int] = {}

    def begin(self, key: str | None) -> int:
        self.open[key] = self.open.get(key, 0) + 1
        return self.open[key]

    def end(self, key: str | None) -> None:
        self.open.pop(key, None)


@dataclass(frozen=True)
class Trouble:
    """An exception on its way to another process: the classes of this package do not survive pickling."""

    kind: str
    rows: tuple[str | None, ...]
    frames: str = field(default="", compare=False)

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        if isinstance(error, FgcamError):
            return cls(type(error).__name__, (error.what, error.at, error.known, error.next))
        return cls(type(error).__name__, (str(error),), traceback.format_exc())

    def error(self) -> Exception:
        kind = getattr(errors, self.kind, None)
        if kind is None or self.frames:
            return RuntimeError(f"a worker ended with {self.kind}: {self.rows[0]}\n\n{self.frames}")
        what, at, known, next = self.rows
        found: FgcamError = kind(what, at=at, known=known, next=next)
        return found


@dataclass(frozen=True)
class Model:
    """A model file, wherever a worker is. ``loaded``: the model in the object store, None where all have the file."""

    path: Path
    sha256: str
    loaded: Any = None

    def open(self, **engine: Any) -> Any:
        """An Explainer of the model.

        Raises:
            ModelError: the file is not here, or another is in its place, and it was not sent.
        """
        from fgcam_onnx import Explainer

        if self.path.is_file():
            explainer = Explainer(self.path, **engine)
            if explainer.sha256 == self.sha256:
                return explainer
        if self.loaded is None:
            raise ModelError(
                f"this node has {'another file' if self.path.is_file() else 'no file'} {str(self.path)!r}",
                at=f"node {node()}",
                next="put the model at the same path on every node",
            )
        import ray

        return Explainer(ray.get(self.loaded), **engine)


def node() -> str:
    import socket

    return socket.gethostname()


def agree(explainer: Any, facts: Mapping[str, Any]) -> None:
    """A worker computes with what the run says, or its rows would be of another kind.

    Raises:
        BackendError: it does not; the node is named.
    """
    import fgcam_onnx
    from fgcam_onnx.runtime import onnxruntime

    here = {
        "backend": explainer.backend,
        "precision": explainer.precision,
        "providers": explainer.providers,
        "fgcam_onnx": fgcam_onnx.__version__,
        "onnxruntime": onnxruntime().__version__,
    }
    for name, value in here.items():
        if name in facts and facts[name] != value:
            raise BackendError(
                f"a worker has {name} {value}, and this run is of {name} {facts[name]}",
                at=f"node {node()}",
                next="the same versions and devices on every node, or --backend ort --provider CPUExecutionProvider",
            )
