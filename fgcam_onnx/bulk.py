"""Maps of many pictures, on a Ray cluster: rows with the relevance in them, as Parquet.

    maps = explain_dataset(ray.data.read_parquet("s3://bucket/pictures"), "model.onnx", method="fg-grad-cam")
    maps.write_parquet("s3://bucket/maps")

:func:`explain_samples` is what ``fgcam explain --engine ray`` runs: it keeps what is done in a folder, and goes on
there. A row is a map. Its relevance is the bytes of a float32 array, little-endian, row by row:

    np.frombuffer(row["relevance"], "<f4").reshape(row["height"], row["width"])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgcam_onnx import cluster
from fgcam_onnx.errors import OptionError
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.evaluation.local import PICTURE_ERRORS, Failure, Progress
from fgcam_onnx.evaluation.run import facts_of
from fgcam_onnx.evaluation.store import Row, Store
from fgcam_onnx.recipe import Preprocessing

if TYPE_CHECKING:
    from fgcam_onnx import Explainer, Explanation
    from fgcam_onnx.feeds import Feeds

__all__ = ["COLUMNS", "PARTS", "Bulk", "explain_dataset", "explain_samples"]

# The folder of the parts, and the most pictures that one holds.
PARTS, PART = "maps", 32
# ``target`` is None of a dense output, whose place is in ``place``. ``error`` is None where there is a map.
COLUMNS = {
    "image": "string", "sha256": "string", "target": "int64", "label": "string", "probability": "float64",
    "logit": "float64", "score": "float64", "place": "string", "method": "string", "layer": "string",
    "start": "string", "depth": "int64", "height": "int64", "width": "int64", "relevance": "bytes",
    "leaked": "float64", "residual": "float64", "error": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Bulk:
    """What is explained with what, as plain data. ``call``: the words of :meth:`fgcam_onnx.Explainer.explain`.

    ``batch``: pictures at a time, taken in their order. ``facts``: model, versions and backend, as a run has them.
    """

    path: Path
    engine: Mapping[str, Any]
    recipe: Preprocessing
    call: Mapping[str, Any]
    labels: tuple[str, ...] | None
    batch: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, **more: Any) -> dict[str, Any]:
        """What the maps depend on, plain JSON."""
        recipe = self.recipe.to_dict()
        return {
            **self.facts,
            "call": dict(self.call),
            "preprocessing": {k: v for k, v in recipe.items() if k not in ("source", "file", "notes")},
            "batch": self.batch,
            **more,
        }

    def on(self, threads: int | None) -> Bulk:
        """For the workers: what "auto" and the environment are here, they are there."""
        return replace(self, engine={**self.engine, "backend": self.facts["backend"], "threads": threads})

    @property
    def gpus(self) -> bool:
        return self.facts["backend"] == "cupy" or "CUDAExecutionProvider" in self.facts["providers"]


# ---------------------------------------------------------------------------------------------------- in the worker


@dataclass(frozen=True)
class Chunk:
    """Pictures that are explained together; ``targets`` one each or None, ``others`` what the model takes beside."""

    samples: tuple[Sample, ...]
    targets: tuple[Any, ...] | None = None
    others: Feeds | None = None


@dataclass(frozen=True)
class Explaining:
    """The job of a worker."""

    bulk: Bulk
    model: cluster.Model

    def start(self) -> Callable[[Chunk], dict[str, list[Row]]]:
        explainer = self.model.open(**self.bulk.engine)
        cluster.agree(explainer, self.bulk.facts)
        if self.bulk.labels is not None:
            explainer.labels = list(self.bulk.labels)
        return Maps(explainer, self.bulk)


class Maps:
    """Pictures to rows, with a model that is loaded."""

    def __init__(self, explainer: Explainer, bulk: Bulk) -> None:
        self.explainer, self.bulk = explainer, bulk

    def __call__(self, chunk: Chunk) -> dict[str, list[Row]]:
        """The rows of each picture by its id. One that cannot be explained has a row that says why.

        The others of its chunk are then explained without it.
        """
        import numpy as np

        from fgcam_onnx import imaging

        rows: dict[str, list[Row]] = {}
        read: dict[int, tuple[Any, str]] = {}
        for i, sample in enumerate(chunk.samples):
            digest = None
            try:
                content = sample.content()
                digest = hashlib.sha256(content).hexdigest()
                read[i] = self.bulk.recipe.apply(imaging.read(sample.path, content))[0], digest
            except PICTURE_ERRORS as error:
                rows[sample.id] = [_failed(sample.id, digest, error)]
        if not read:
            return rows
        try:
            e = self._explained(np.stack([x for x, _ in read.values()]), list(read), chunk)
        except PICTURE_ERRORS as error:
            if len(read) == 1:
                (i,) = read
                return {**rows, chunk.samples[i].id: [_failed(chunk.samples[i].id, read[i][1], error)]}
            for i in read:  # which of them it was shows when each is alone
                rows |= self(_alone(chunk, i))
            return rows
        for row, i in enumerate(read):
            sample = chunk.samples[i]
            rows[sample.id] = [{"image": sample.id, "sha256": read[i][1], **each} for each in self._rows(e, row)]
        return rows

    def _explained(self, x: Any, indices: Sequence[int], chunk: Chunk) -> Explanation:
        targets: Any = None if chunk.targets is None else [chunk.targets[i] for i in indices]
        if targets is not None and isinstance(targets[0], str) and self.explainer.num_classes:
            targets = targets[0]  # "top3": the library knows what that is
        others: Any = chunk.others
        if others is not None and len(indices) < len(chunk.samples):
            cut = {n: a[list(indices)] if n in others.per_image else a for n, a in others.arrays.items()}
            others = replace(others, arrays=cut)
        return self.explainer.explain(x, target=targets, inputs=others, **self.bulk.call)

    def _rows(self, e: Explanation, i: int) -> list[Row]:
        import numpy as np

        from fgcam_onnx.labels import short

        rows = []
        for index in np.ndindex(e.rows):
            if index[0] != i:
                continue
            ledger = e.ledger.part(slice(*_place(e, index)))
            row: Row = {**dict.fromkeys(COLUMNS), "method": e.method, "layer": e.layer, "start": e.start}
            relevance = np.ascontiguousarray(e.relevance[index], "<f4")
            row |= dict(zip(("width", "height", "depth"), reversed(relevance.shape), strict=False))
            row |= {
                "relevance": relevance.tobytes(), "score": float(e.score[index]),
                "leaked": ledger.leaked if ledger.rows else None, "residual": ledger.residual if ledger.rows else None,
            }  # fmt: skip
            if e.classes is None:
                row["place"] = json.dumps(e.target[i])
            else:
                target = int(e.classes[index])
                row |= {
                    "target": target, "probability": float(e.probabilities[i, target]),
                    "logit": float(e.logits[i, target]),
                    "label": short(self.explainer.labels[target]) if self.explainer.labels else None,
                }  # fmt: skip
            del row["image"], row["sha256"]
            rows.append(row)
        return rows


def _place(e: Explanation, index: tuple[int, ...]) -> tuple[int, int]:
    """Of a map in the ledger's rows."""
    first = index[0] if len(index) == 1 else index[0] * e.rows[1] + index[1]
    return first, first + 1


def _alone(chunk: Chunk, i: int) -> Chunk:
    return Chunk(
        chunk.samples[i : i + 1],
        None if chunk.targets is None else chunk.targets[i : i + 1],
        None if chunk.others is None else chunk.others.part(i, i + 1),
    )


def _failed(id: str, digest: str | None, error: Exception) -> Row:
    what = getattr(error, "what", str(error))
    return {**dict.fromkeys(COLUMNS), "image": id, "sha256": digest, "error": f"{type(error).__name__}: {what}"}


# ---------------------------------------------------------------------------------------------------- a folder of maps


def explain_samples(
    bulk: Bulk,
    samples: Sequence[Sample],
    store: Store,
    *,
    targets: Sequence[Any] | None = None,
    others: Feeds | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Failure]:
    """Explain what the store does not have; returns the pictures at which workers died, which the next start tries.

    A picture that cannot be read or explained is in the store with a row that says why, and not tried again.
    ``targets``, ``others``: for each of the samples, in their order.

    Raises:
        MissingPackageError, BackendError: no Ray, no cluster, or one whose workers are not as this process.
        OutputError: the rows cannot be written.
    """
    report = progress or (lambda done, id: None)
    chunks: list[tuple[str, Chunk]] = []
    for first in range(0, len(samples), bulk.batch):
        part = tuple(samples[first : first + bulk.batch])
        if all(sample.id in store.done for sample in part):
            continue  # a chunk that is done in part is made again as a whole: its maps may depend on its size
        chunks.append((part[0].id, Chunk(
            part,
            None if targets is None else tuple(targets[first : first + bulk.batch]),
            None if others is None else others.part(first, first + bulk.batch),
        )))  # fmt: skip
    done = sum(sample.id in store.done for sample in samples)
    report(done, "")
    lost: dict[str, Failure] = {}
    if chunks:
        with cluster.join(workers=workers, threads=cluster.threads_of(bulk.engine), gpus=bulk.gpus) as joined:
            job = Explaining(bulk.on(joined.threads), joined.model(bulk.path, bulk.facts["model"]))
            of = dict(chunks)
            together = max(1, min(PART // bulk.batch, -(-len(chunks) // (4 * joined.workers))))
            for outcomes in joined.work(job, chunks, together=together):
                found: dict[str, list[Row]] = {}
                for outcome in outcomes:
                    if outcome.error is not None:
                        raise outcome.error
                    if outcome.deaths:
                        what = f"{outcome.deaths} workers died, one after the other, at it"
                        its = [s.id for s in of[outcome.key].samples if s.id not in store.done]
                        lost |= {id: Failure(id, "BackendError", what) for id in its}
                        continue
                    found |= {id: rows for id, rows in outcome.value.items() if id not in store.done}
                store.append_all(found)
                done += len(found)
                report(done, next(iter(found), ""))
    report(len(samples), "")
    return [lost[sample.id] for sample in samples if sample.id in lost]


# ---------------------------------------------------------------------------------------------------- a Ray dataset


def explain_dataset(
    dataset: Any,
    model: str | Path,
    *,
    column: str | None = None,
    path: str | None = None,
    preprocess: str | None = None,
    backend: str = "auto",
    providers: Sequence[str] | None = None,
    output: str | None = None,
    precision: str = "float32",
    threads: int | None = None,
    workers: int | None = None,
    **call: Any,
) -> Any:
    """A Ray dataset with a map for each picture of ``dataset``, made when it is written or iterated.

    ``dataset``: rows with the bytes of pictures, as ``ray.data.read_binary_files(uri, include_paths=True)`` or
    ``read_parquet(uri)`` give them. ``column``: theirs, Hugging Face's struct of bytes and path too; found by its type
    and name if None. ``path``: the column that names a picture; found likewise. ``call``: the words of
    :meth:`fgcam_onnx.Explainer.explain`, such as method, layer, target (one for all) and denoise. The rows have
    :data:`COLUMNS`; a picture that cannot be explained has a row with its ``error``.

    The model is loaded here once, to check it and the call before any worker starts.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: no column holds pictures.
        ModelError, OptionError and others, as :class:`fgcam_onnx.Explainer` and ``explain``.
    """
    from fgcam_onnx import Explainer
    from fgcam_onnx.evaluation import remote
    from fgcam_onnx.methods import method as find_method
    from fgcam_onnx.preprocessing import choose

    for word in ("progress", "inputs"):
        if word in call:
            raise OptionError(f"explain_dataset has no option {word!r}")
    find_method(call.get("method", "fg-grad-cam"))
    engine: dict[str, Any] = {
        "backend": backend, "providers": providers, "output": output, "precision": precision
    }  # fmt: skip
    explainer = Explainer(model, **engine, threads=threads)
    recipe = choose(
        {}, preprocess=preprocess, metadata=explainer.metadata, path=explainer.path,
        input_shape=explainer.input_shape, layout=explainer.layout, input_dtype=explainer.input_dtype,
    )  # fmt: skip
    target = call.pop("target", None)
    labels = None if explainer.labels is None else tuple(explainer.labels)
    where = Path(model) if explainer.path is None else explainer.path.resolve()
    bulk = Bulk(where, {**engine, "threads": threads}, recipe, call, labels, 1, facts_of(explainer))
    schema = dataset.schema().base_schema
    column = column or remote.column_of(schema, "the dataset")
    path = path or next((word for word in remote.NAMES if word in schema.names), None)
    here = cluster.present(workers=workers, threads=cluster.threads_of(bulk.engine), gpus=bulk.gpus)
    job = Explaining(bulk.on(here.threads), here.model(where, explainer.sha256))
    return here.over(dataset, Mapped, (job, column, path, target))


class Mapped:
    """What an actor of :func:`explain_dataset` runs on a batch of rows."""

    def __init__(self, job: Explaining, column: str, path: str | None, target: Any) -> None:
        self.maps, self.column, self.path, self.target = job.start(), column, path, target

    def __call__(self, table: Any) -> Any:
        from fgcam_onnx.evaluation.store import arrow_schema

        rows: list[Row] = []
        for i, row in enumerate(table.to_pylist()):
            cell = row[self.column]
            named = row.get(self.path) if self.path else cell.get("path") if isinstance(cell, dict) else None
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            sample = Sample(str(i), Path(str(named or "picture")), None, source=lambda content=content: content or b"")  # type: ignore[misc]
            targets = None if self.target is None else (self.target,)
            for its in self.maps(Chunk((sample,), targets)).values():
                rows += [{**each, "image": named} for each in its]
        return table.from_pylist(rows, schema=arrow_schema(COLUMNS))
