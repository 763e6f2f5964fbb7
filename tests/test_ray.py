"""Evaluation and maps on a local Ray cluster of two workers, held against one machine bit for bit; workers and drivers
that are killed; pictures out of Parquet and behind addresses.

A run of Ray costs seconds of processes that start, so that each run here asks several things.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fgcam_onnx import Explainer, bulk, cluster, imaging, models
from fgcam_onnx.cli import app
from fgcam_onnx.errors import BackendError, ImageError, InputError, MissingPackageError, ModelError, OptionError
from fgcam_onnx.evaluation import dataset, local, remote
from fgcam_onnx.evaluation import ray as on_ray
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.run import Run, facts_of, plan
from fgcam_onnx.evaluation.settings import Settings
from fgcam_onnx.evaluation.store import open_store
from fgcam_onnx.preprocessing import choose

pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install fgcam_onnx[ray]")
MODEL = models.path(models.HONEST)
PICTURES = [picture.path for picture in models.pictures()]
# Of Ray's own making: deprecations inside it, sockets and files that it leaves to the garbage collector.
OF_RAY = ("default", "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning",
          "ignore::pytest.PytestUnraisableExceptionWarning")  # fmt: skip


def needs_ray(test: Any) -> Any:
    for line in OF_RAY:
        test = pytest.mark.filterwarnings(line)(test)
    missing = any(importlib.util.find_spec(name) is None for name in ("ray", "pandas"))
    return pytest.mark.skipif(missing, reason="no Ray: pip install fgcam_onnx[ray]")(test)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of this machine with two cores, for all tests of this file."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        here = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))  # workers unpickle what stands in this file
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # as this process, and not behind all others of the machine
        patch.setenv("FGCAM_THREADS", "1")
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        for last in (False, False, True):
            try:
                ray.init(num_cpus=2, num_gpus=0, **options)
                break
            except Exception:  # Ray gives its processes 30 seconds to start, which a busy machine may not have
                ray.shutdown()
                if last:
                    raise
        try:
            patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            yield ray
        finally:
            with warnings.catch_warnings():  # its processes are told to end, and not waited for
                warnings.simplefilter("ignore")
                ray.shutdown()
                gc.collect()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGCAM_THREADS", "1")


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODEL, backend="ort", threads=1)


def recipe_of(explainer: Explainer) -> Any:
    return choose(
        {},
        metadata=explainer.metadata,
        path=explainer.path,
        input_shape=explainer.input_shape,
        layout=explainer.layout,
        input_dtype=explainer.input_dtype,
    )


@pytest.fixture(scope="module")
def run(explainer: Explainer) -> Run:
    """Two methods and a control at the input, and curves of a few steps."""
    return plan(
        explainer,
        recipe_of(explainer),
        engine={"backend": "ort", "threads": 1},
        methods="fg-grad-cam,lrp,random",
        layers="input",
        controls=False,
        settings=Settings(step=4096),
        batch_size=4,
    )


@dataclass(frozen=True)
class Deadly:
    """A picture whose reading kills the worker, ``lives`` times; each death leaves a file."""

    path: Path
    marks: Path
    lives: int = 1

    def __call__(self) -> bytes:
        if len(list(self.marks.iterdir())) < self.lives:
            (self.marks / f"{os.getpid()}-{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.path.read_bytes()


def sample(path: Path, source: Callable[[], bytes] | None = None) -> Sample:
    return Sample(path.name, path, None, source=source)


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Rows whose every bit shows: repr of a float is the float, nan too."""
    return sorted(repr(sorted(row.items())) for row in rows)


# ---------------------------------------------------------------------------------------------------- evaluation


@needs_ray
def test_evaluation_is_that_of_one_machine(ray: Any, run: Run, tmp_path: Path) -> None:
    """The rows of two workers are the local ones, bit for bit.

    On the way one worker is killed, two pictures are none, and the engine is changed twice in one store.
    """
    marks = tmp_path / "deaths"
    marks.mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(PICTURES[0].read_bytes()[:500])
    good = [sample(path) for path in PICTURES[:5]]
    bad = [sample(broken), sample(tmp_path / "missing.png")]
    with open_store(tmp_path / "local", run.spec(), columns=run.columns) as store:
        expected_failures = local.evaluate(run.evaluator(), [*good[:2], *bad, *good[2:]], store)
        expected = store.rows()
    assert [f.id for f in expected_failures] == ["broken.png", "missing.png"]
    assert len(expected) == 5 * len(run.cells)

    deadly = replace(good[2], source=Deadly(good[2].path, marks))
    said: list[tuple[float, str]] = []
    with open_store(tmp_path / "ray", run.spec(), columns=run.columns) as store:
        local.evaluate(run.evaluator(), good[:1], store)
        failures = on_ray.evaluate(
            run, [*good[:2], *bad, deadly, good[3]], store, workers=2, progress=lambda *now: said.append(now)
        )
        assert store.done == {each.id for each in good[:4]}
        local.evaluate(run.evaluator(), good, store)
        found = store.rows()
    assert len(list(marks.iterdir())) == 1, "the worker was not killed, or twice"
    assert in_order(found) == in_order(expected)
    assert failures == expected_failures
    assert said[0] == (1, "")
    assert said[-1] == (6, "")
    assert sorted(done for done, _ in said[1:-1]) == [2, 3, 4, 5, 6]
    assert {id for _, id in said[1:-1]} == {*(each.id for each in [*good[1:4], *bad])}


@needs_ray
@pytest.mark.slow
def test_a_picture_that_kills_every_worker_is_a_failure(ray: Any, run: Run, tmp_path: Path) -> None:
    """Three workers die at it, a fourth does not begin; the others are measured."""
    marks = tmp_path / "deaths"
    marks.mkdir()
    samples = [sample(path) for path in PICTURES[:4]]
    samples[1] = replace(samples[1], source=Deadly(PICTURES[1], marks, lives=100))
    with open_store(tmp_path / "rows", run.spec(), columns=run.columns) as store:
        (failure,) = on_ray.evaluate(run, samples, store, workers=2)
        assert store.done == {each.id for each in samples} - {samples[1].id}
    assert (failure.id, failure.error) == (samples[1].id, "BackendError")
    assert failure.what == "3 workers died, one after the other, at it"
    assert len(list(marks.iterdir())) == cluster.TRIES


@needs_ray
@pytest.mark.slow
def test_what_a_worker_cannot_load_is_told_as_it_is(ray: Any, run: Run, tmp_path: Path) -> None:
    """A ModelError of a worker is a ModelError here; its versions are compared with the run's."""
    other = replace(run, facts={**run.facts, "onnxruntime": "0.0.1"})
    with (
        open_store(tmp_path / "rows", run.spec(), columns=run.columns) as store,
        pytest.raises(BackendError, match=r"a worker has onnxruntime .*, and this run is of onnxruntime 0\.0\.1"),
    ):
        on_ray.evaluate(other, [sample(PICTURES[0])], store, workers=1)


@needs_ray
@pytest.mark.slow
def test_a_killed_evaluation_goes_on(ray: Any, tmp_path: Path) -> None:
    """The driver is killed by SIGKILL in the middle; the same command ends it, and the tables are the local ones."""
    options = ["-m", "fg-grad-cam,lrp", "--layers", "input", "--step", "4096", "--backend", "ort", "--no-plots"]
    words = ["evaluate", str(MODEL), *map(str, PICTURES), *options]
    for engine in (["--engine", "ray", "--workers", "2"], []):
        folder = tmp_path / (engine[1] if engine else "local")
        if engine:
            killed_in_the_middle([*words, *engine, "-o", str(folder)], folder / "rows")
        done = CliRunner().invoke(app, [*words, *engine, "-o", str(folder)])
        assert done.exit_code == 0, done.output
    for name in ("table.md", "summary.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def killed_in_the_middle(words: list[str], parts: Path) -> int:
    """Run a command, kill it when it has written its first part; how many parts there are then."""
    command = [sys.executable, "-m", "fgcam_onnx", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not list(parts.glob("part-*.parquet")):
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    return len(list(parts.glob("part-*.parquet")))


# ---------------------------------------------------------------------------------------------------- maps


@needs_ray
def test_maps_are_those_of_one_machine(ray: Any, explainer: Explainer, tmp_path: Path) -> None:
    """``fgcam explain --engine ray`` on an address: killed in the middle and started again, each map is that of
    ``Explainer.explain`` and of the .npy of ``fgcam explain``, bit for bit. A picture that is none has a row too."""
    import pandas

    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{i}-{PICTURES[i % 3].name}" for i in range(32)]  # enough to be killed among them
    for i, name in enumerate(names):
        (folder / name).write_bytes(PICTURES[i % 3].read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "maps"
    words = ["explain", str(MODEL), f"file://{folder}", "--engine", "ray", "--workers", "1", "--backend", "ort"]
    before = killed_in_the_middle([*words, "-o", str(out)], out / "maps")
    assert before < 4
    assert not (out / "manifest.json").exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "maps").glob("part-*.parquet")}

    done = CliRunner().invoke(app, [*words, "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert {**json.loads(done.stdout), "files": {}} == {**manifest, "output": str(out)}
    assert (manifest["maps"], manifest["pictures"]) == (len(names), len(names) + 1)
    assert [failure["image"] for failure in manifest["failures"]] == ["broken.png"]
    assert manifest["failures"][0]["error"].startswith("ImageError: ")
    for name, stamp in stamps.items():
        assert (out / "maps" / name).stat().st_mtime_ns == stamp, "a part that was there was made again"

    table = pandas.read_parquet(out / "maps").set_index("image")
    assert sorted(table.index) == sorted(path.name for path in folder.iterdir())
    assert CliRunner().invoke(app, ["explain", str(MODEL), *map(str, PICTURES[:3]), "--backend", "ort", "-q",
                                    "-o", str(tmp_path / "local")]).exit_code == 0  # fmt: skip
    explained = [explainer.explain(recipe_of(explainer).apply(imaging.read(path))[0][None]) for path in PICTURES[:3]]
    for i, name in enumerate(names):
        row, path, e = table.loc[name], PICTURES[i % 3], explained[i % 3]
        relevance = np.frombuffer(row.relevance, "<f4").reshape(int(row.height), int(row.width))
        assert relevance.tobytes() == np.load(tmp_path / "local" / f"{path.stem}.npy").tobytes()
        assert relevance.tobytes() == e.relevance[0].tobytes()
        assert (row.target, row.logit) == (e.classes[0], e.logits[0, e.classes[0]])
        assert row.probability == e.probabilities[0, e.classes[0]]
        assert (row.leaked, row.residual) == (e.ledger.leaked, e.ledger.residual)
        assert (row.method, row.layer, row.start) == (e.method, e.layer, e.start)
        assert pandas.isna(row.error)
    assert table.loc["broken.png"].relevance is None

    other = CliRunner().invoke(app, [*words, "-o", str(out), "--denoise"])  # before any worker is asked for
    assert isinstance(other.exception, OptionError)
    assert "call.denoise: there false, now true" in str(other.exception)


@needs_ray
@pytest.mark.parametrize("by", ["from_arrow", pytest.param("read_parquet", marks=pytest.mark.slow)])
def test_a_dataset_of_parquet(ray: Any, by: str, explainer: Explainer, tmp_path: Path) -> None:
    """``explain_dataset`` on bytes in Parquet: a map a row, the same as here; the model comes out of the object store
    where the file is not."""
    import pyarrow.parquet
    import ray.data as data

    paths = PICTURES[:2]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths] + [{"bytes": b"no", "path": "no.png"}]
    write_parquet(tmp_path / "p.parquet", {"image": cells, "label": [0, 1, 2]})
    model = tmp_path / "moved.onnx"
    model.write_bytes(MODEL.read_bytes())
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    pictures = data.from_arrow(table) if by == "from_arrow" else data.read_parquet(str(tmp_path / "p.parquet"))
    maps = bulk.explain_dataset(pictures, model, backend="ort", threads=1, workers=1, target="top2")
    model.unlink()
    rows = maps.take_all()
    assert [row["error"] is None for row in rows].count(False) == 1
    recipe = recipe_of(explainer)
    for path in paths:
        its = [row for row in rows if row["image"] == path.name]
        e = explainer.explain(recipe.apply(imaging.read(path))[0][None], target="top2")
        assert [row["relevance"] for row in its] == [each.tobytes() for each in e.relevance[0]]
        assert [row["target"] for row in its] == e.target[0].tolist()
        assert set(its[0]) == set(bulk.COLUMNS)


@needs_ray
def test_no_gpu_is_asked_for_where_there_is_none(ray: Any) -> None:
    found = cluster.present(workers=None, threads=1, gpus=True)
    assert (found.workers, found.threads, found.gpus) == (2, 1, 0)
    assert cluster.present(workers=1, threads=None, gpus=False).threads == 2
    with pytest.raises(BackendError, match="no node of the Ray cluster has 3 cores for a worker"):
        cluster.present(workers=1, threads=3, gpus=False)


def test_a_gpu_for_each_worker_where_there_are() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}] * 2 + [{"Alive": False, "Resources": {}}]
    machine: Any = SimpleNamespace(cluster_resources=lambda: {"CPU": 32.0, "GPU": 4.0}, nodes=lambda: nodes)
    found = cluster._fitted(machine, False, None, None, True)
    assert (found.workers, found.threads, found.gpus) == (4, 8, 1)
    found = cluster._fitted(machine, False, None, None, False)
    assert (found.workers, found.threads, found.gpus) == (8, 4, 0)
    assert cluster._fitted(machine, False, 3, 1, True).workers == 3
    assert cluster._fitted(machine, False, None, 1, True).workers == 4
    without: Any = SimpleNamespace(cluster_resources=lambda: {"CPU": 32.0}, nodes=lambda: nodes)
    assert cluster._fitted(without, False, None, 1, True).gpus == 0


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "share"),
    [(1, 1, 1, 0.5), (2, 1, 2, 1), (2, 2, 1, 0.5), (32, 8, 4, 3), (32, 4, 4, 4)],
)
def test_a_core_is_left_for_reading(cores: int, workers: int, threads: int, share: float) -> None:
    found = cluster.Cluster(None, workers, threads, 0, False, cores).share
    assert found == share
    assert workers * found <= max(cores - 1, 0.5)


# ---------------------------------------------------------------------------------------------------- without a cluster


def test_words_of_the_command(tmp_path: Path) -> None:
    """What belongs to the cluster alone, and what it does not take."""
    for words, text in (
        (["--engine", "spark"], "there is no engine 'spark'"),
        (["--workers", "2"], "--workers belongs to --engine ray"),
        (["--fresh"], "--fresh belongs to --engine ray"),
        (["--engine", "ray", "-m", "all"], "--engine ray takes one method and one layer"),
    ):
        done = CliRunner().invoke(app, ["explain", str(MODEL), str(PICTURES[0]), *words, "-o", str(tmp_path)])
        assert isinstance(done.exception, OptionError)
        assert str(done.exception).startswith(text)


def test_the_command_line_does_not_import_ray() -> None:
    code = "import sys, fgcam_onnx.cli, fgcam_onnx.bulk, fgcam_onnx.evaluation.ray; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_ray(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        open_store(tmp_path, run.spec(), columns=run.columns) as store,
        pytest.raises(MissingPackageError, match=r'(?s)ray .*pip install "fgcam_onnx\[ray\]"'),
    ):
        on_ray.evaluate(run, [sample(PICTURES[0])], store)
    with open_store(tmp_path, run.spec(), columns=run.columns) as store:
        assert on_ray.evaluate(run, [], store) == []  # nothing is left, and nobody is asked


def test_what_comes_back_is_stored_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which outcomes come, failures have that of the pictures; another error ends the run, and
    what came before stays."""
    rows = [{"method": "lrp", "layer": "input"}]
    came = [
        cluster.Outcome("d", deaths=3),
        cluster.Outcome("c", rows),
        cluster.Outcome("c", rows),  # as after a worker that died once it had answered
        cluster.Outcome("b", error=ImageError("no picture")),
        cluster.Outcome("a", error=ModelError("no model")),
    ]
    machine = SimpleNamespace(threads=1, model=lambda path, sha256: None, work=lambda job, units: iter([came]))
    monkeypatch.setattr(cluster, "join", lambda **how: contextlib.nullcontext(machine))
    samples = [sample(Path(name)) for name in "abcd"]
    with open_store(tmp_path, run.spec(), columns=run.columns) as store:
        with pytest.raises(ModelError, match="no model"):
            on_ray.evaluate(run, samples, store)
        assert store.done == {"c"}
        del came[-1]
        assert on_ray.evaluate(run, samples, store) == [
            local.Failure("b", "ImageError", "no picture"),
            local.Failure("d", "BackendError", "3 workers died, one after the other, at it"),
        ]
        assert len(store.rows()) == 1


@dataclass(frozen=True)
class Cannot:
    """A job whose model cannot be loaded."""

    error: Exception

    def start(self) -> Callable[[Any], Any]:
        raise self.error


@dataclass(frozen=True)
class Divides:
    """A job: 1 / unit."""

    def start(self) -> Callable[[Any], Any]:
        return lambda unit: 1 / unit


def worked(job: Any, units: Any, began: Any = lambda key: 1) -> Any:
    """What a worker sends back, without Ray."""
    import pickle

    worker = cluster.Worker(job, None)
    worker._begun, worker._ended = began, lambda key: None  # type: ignore[method-assign]
    (result,) = worker({"units": [pickle.dumps(units)]})["outcomes"]
    return pickle.loads(result)


def test_errors_come_back_as_they_were() -> None:
    """One of this package with all its rows; any other with the frames of the worker."""
    sent = ModelError("no model", at="node a", known="nothing", next="look")
    back = worked(Cannot(sent), [("a", 1)]).error()
    assert (type(back), str(back)) == (ModelError, str(sent))
    assert (back.what, back.at, back.known, back.next) == ("no model", "node a", "nothing", "look")
    first, second = worked(Divides(), [("a", 2), ("b", 0)])
    assert (first.key, first.value, first.error, first.deaths) == ("a", 0.5, None, 0)
    error = cluster._opened(second).error
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("a worker ended with ZeroDivisionError: division by zero\n\nTraceback")


def test_the_fourth_beginning_is_refused() -> None:
    counter = cluster.Attempts()
    for _ in range(3):
        (outcome,) = worked(Divides(), [("a", 2)], lambda key: counter.begin(key) if key else 1)
        assert outcome.value == 0.5
    (outcome,) = worked(Divides(), [("a", 2)], lambda key: counter.begin(key) if key else 1)
    assert (outcome.deaths, outcome.value) == (3, None)
    counter.end("a")
    assert counter.begin("a") == 1
    back = worked(Divides(), [("a", 2)], lambda key: 4 if key is None else 1).error()
    assert str(back).startswith("3 workers died one after the other as they loaded the model")


def test_a_node_without_the_model(explainer: Explainer, tmp_path: Path) -> None:
    """Without the file, or with another, the error names the node and the path."""
    assert cluster.Model(MODEL, explainer.sha256).open(backend="ort").sha256 == explainer.sha256
    place = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match=r"this node has no file '.*m\.onnx'(?s:.*)at      node "):
        cluster.Model(place, explainer.sha256).open(backend="ort")
    place.write_bytes(models.path(models.CHEAT).read_bytes())
    with pytest.raises(ModelError, match="this node has another file"):
        cluster.Model(place, explainer.sha256).open(backend="ort")


def test_a_chunk_with_a_picture_that_is_none(explainer: Explainer) -> None:
    """The others of the batch have the maps that they have without it; targets stay with their pictures."""
    job = bulk.Bulk(MODEL, {}, recipe_of(explainer), {"method": "fg-grad-cam"}, None, 3, facts_of(explainer))
    samples = (sample(PICTURES[0]), sample(Path("x.png"), lambda: b"no"), sample(PICTURES[1]))
    rows = bulk.Maps(explainer, job)(bulk.Chunk(samples, (1, 2, 3)))
    assert {id: its[0]["target"] for id, its in rows.items()} == {samples[0].id: 1, "x.png": None, samples[2].id: 3}
    x = np.stack([recipe_of(explainer).apply(imaging.read(path))[0] for path in PICTURES[:2]])
    e = explainer.explain(x, target=[1, 3])
    assert rows[samples[2].id][0]["relevance"] == e.relevance[1].tobytes()
    assert rows["x.png"][0]["error"] == "ImageError: 'x.png' is not a picture that Pillow can read"
    alone = explainer.explain(x[1:], target=3).ledger
    assert rows[samples[2].id][0]["leaked"] == pytest.approx(alone.leaked, rel=1e-5)


def test_maps_that_are_there_are_not_made_again(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that is done in part is made again as a whole, and only what is new of it is stored."""
    job = bulk.Bulk(MODEL, {}, recipe_of(explainer), {"method": "grad-cam"}, None, 2, facts_of(explainer))
    asked: list[list[str]] = []

    def work(its: bulk.Explaining, units: list[tuple[str, bulk.Chunk]], together: int) -> Iterator[Any]:
        asked.append([each.id for _, chunk in units for each in chunk.samples])
        yield [cluster.Outcome(key, bulk.Maps(explainer, its.bulk)(chunk)) for key, chunk in units]

    machine = SimpleNamespace(threads=1, workers=1, model=lambda path, sha256: None, work=work)
    monkeypatch.setattr(cluster, "join", lambda **how: contextlib.nullcontext(machine))
    samples = [sample(path) for path in PICTURES[:5]]
    ids = [each.id for each in samples]
    with open_store(tmp_path, job.spec(), columns=bulk.COLUMNS, parts="maps") as store:
        for count in (3, 5, 5):
            assert bulk.explain_samples(job, samples[:count], store) == []
            assert store.done == set(ids[:count])
        assert asked == [ids[:3], ids[2:]]
        assert [row["image"] for row in store.rows(["image"])] == ids


def test_a_part_of_several_pictures_is_whole_or_not_there(tmp_path: Path) -> None:
    columns = {"image": "string", "relevance": "bytes"}
    with open_store(tmp_path, {"a": 1}, columns=columns, parts="maps") as store:
        store.append_all({"a": [{"relevance": b"\0\1"}] * 2, "b/c": [{"relevance": None}]})
        assert store.done == {"a", "b/c"}
        store.append("d", [{"relevance": np.float32([1.5])}])
        with pytest.raises(InputError, match="the rows of 'd' are in"):
            store.append_all({"e": [{}], "d": [{}]})
        with pytest.raises(InputError, match="relevance of 'f' is 'text'"):
            store.append_all({"e": [{}], "f": [{"relevance": "text"}]})
    assert len(list((tmp_path / "maps").iterdir())) == 2
    with open_store(tmp_path, {"a": 1}, columns=columns, parts="maps") as store:
        assert store.done == {"a", "b/c", "d"}
        assert store.rows(["relevance"])[-1] == {"relevance": np.float32([1.5]).tobytes()}
    with pytest.raises(OptionError, match="CSV has no bytes"):
        open_store(tmp_path / "csv", {"a": 1}, columns=columns, form="csv")


# ---------------------------------------------------------------------------------------------------- other sources


def write_parquet(path: Path, columns: dict[str, Any], group: int = 2) -> None:
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)


def test_pictures_in_parquet(tmp_path: Path) -> None:
    """Hugging Face's struct and plain bytes, across row groups; ids by name where the names are good for it."""
    contents = [path.read_bytes() for path in PICTURES[:5]]
    structs = [{"bytes": b, "path": p.name} for b, p in zip(contents, PICTURES, strict=False)]
    write_parquet(tmp_path / "hf.parquet", {"image": structs, "label": [3, 1, None, 2, 0]})
    write_parquet(tmp_path / "more" / "a.parquet", {"content": contents[:3], "file_name": ["x", "y", "x"]})
    write_parquet(tmp_path / "more" / "b.parquet", {"content": contents[3:], "file_name": ["u", "v"]})
    found = dataset.read_dataset(tmp_path / "hf.parquet").samples
    assert [each.id for each in found] == [path.name for path in PICTURES[:5]]
    assert [each.label for each in found] == ["3", "1", None, "2", "0"]
    assert [each.content() for each in found] == contents
    found = dataset.read_dataset(tmp_path / "more").samples
    assert [each.id for each in found] == [
        "a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0", "b.parquet#1",
    ]  # fmt: skip
    assert [each.content() for each in found] == contents
    both = dataset.read_dataset([tmp_path / "hf.parquet", tmp_path / "more"]).samples
    assert len({each.id for each in both}) == 10
    write_parquet(tmp_path / "no.parquet", {"a": [1], "b": ["x"]})
    with pytest.raises(InputError, match=r"no column of 'no\.parquet' holds pictures(?s:.*)a int64, b string"):
        dataset.read_dataset(tmp_path / "no.parquet")
    write_parquet(tmp_path / "null.parquet", {"image": [{"bytes": None, "path": "here.png"}, structs[0]]})
    with pytest.raises(ImageError, match="has no bytes of a picture"):
        dataset.read_dataset(tmp_path / "null.parquet").samples[0].content()


def test_pictures_behind_an_address(tmp_path: Path) -> None:
    for name in ("fish/a.png", "fish/.hidden.png", "tree/b.PNG", "tree/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PICTURES[0].read_bytes())
    for address in (f"file://{tmp_path}", Path(f"file://{tmp_path}"), f"file://{tmp_path}/"):
        found = dataset.read_dataset(address).samples
        assert [(each.id, each.label) for each in found] == [("fish/a.png", "fish"), ("tree/b.PNG", "tree")]
        assert found[0].content() == PICTURES[0].read_bytes()
    (one,) = dataset.read_dataset(f"file://{tmp_path}/fish/a.png").samples
    assert (one.id, one.label, one.content()) == ("a.png", None, PICTURES[0].read_bytes())
    (tmp_path / "fish" / "a.png").unlink()
    with pytest.raises(ImageError, match=r"the picture 'a\.png' cannot be read"):
        one.content()
    with pytest.raises(ImageError, match="there is no picture 'file://"):
        dataset.read_dataset(f"file://{tmp_path}/nothing")
    with pytest.raises(ImageError, match="holds no pictures"):
        dataset.read_dataset(f"file://{tmp_path}/fish")


@pytest.mark.parametrize(
    ("word", "uri"),
    [
        ("s3://b/a.png", "s3://b/a.png"),
        (Path("s3://b/a"), "s3://b/a"),
        ("GS://b", "gs://b"),
        ("file:///a/b", "file:///a/b"),
        (Path("file:///a/b"), "file:///a/b"),
        ("C:/pictures", None),
        ("a/b.png", None),
        ("/a:b/c", None),
    ],
)
def test_addresses(word: str | Path, uri: str | None) -> None:
    """A command line hands paths on, in which two slashes are one."""
    assert remote.uri_of(word) == uri
