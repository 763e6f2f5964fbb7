"""``fgcam explain --engine ray``: the maps of many pictures on a Ray cluster, as Parquet, gone on with when stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fgcam_onnx.cli import say
from fgcam_onnx.errors import ImageError, OptionError

if TYPE_CHECKING:
    from fgcam_onnx import Explainer
    from fgcam_onnx.evaluation.dataset import Dataset
    from fgcam_onnx.evaluation.local import Failure
    from fgcam_onnx.evaluation.store import Store
    from fgcam_onnx.feeds import Feeds
    from fgcam_onnx.preprocessing import Preprocessing

ENGINES = ("local", "ray")
# Pictures without a map that are listed on the terminal; all are in the manifest.
SHOWN = 5


def wanted(engine: str, workers: int | None, fresh: bool) -> bool:
    """Is it the cluster that is asked for?

    Raises:
        OptionError: an engine that does not exist, or an option of ray's without it.
    """
    if engine not in ENGINES:
        raise OptionError(f"there is no engine {engine!r}", known=", ".join(ENGINES))
    for name, given in (("--workers", workers is not None), ("--fresh", fresh)):
        if given and engine == "local":
            raise OptionError(f"{name} belongs to --engine ray")
    return engine == "ray"


def pictures(images: Sequence[str | Path]) -> Dataset:
    """Pictures, folders, Parquet or addresses."""
    from fgcam_onnx.evaluation.dataset import read_dataset

    return read_dataset(images)


def explain(
    explainer: Explainer,
    recipe: Preprocessing,
    labels: Sequence[str] | None,
    data: Dataset,
    call: dict[str, Any],
    *,
    engine: dict[str, Any],
    targets: Sequence[Any] | None,
    others: Feeds,
    batch: int,
    folder: Path,
    workers: int | None,
    fresh: bool,
    silent: bool,
) -> dict[str, Any]:
    """Explain, store part by part, and write the manifest last; returns it with the folder."""
    from fgcam_onnx import bulk
    from fgcam_onnx.cli.evaluate import _progress
    from fgcam_onnx.evaluation.run import facts_of
    from fgcam_onnx.evaluation.store import open_store
    from fgcam_onnx.methods import method

    method(call["method"])
    for name in (call["layer"], call["start"]):
        if name is not None:
            explainer.tensor_name(name)
    if explainer.path is None:
        raise ValueError("a cluster needs a model file")
    words = None if labels is None else tuple(labels)
    job = bulk.Bulk(explainer.path.resolve(), engine, recipe, call, words, batch, facts_of(explainer))
    one = list(targets or ())[:1] if targets is None or len({repr(each) for each in targets}) == 1 else list(targets)
    spec = job.spec(target=one, inputs=others.record(), pictures=len(data.samples), free=["pictures"])
    ids = {sample.id for sample in data.samples}
    with open_store(folder, spec, columns=bulk.COLUMNS, fresh=fresh, parts=bulk.PARTS) as store:
        if not silent:
            _announce(explainer, recipe, call, data, len(store.done & ids), folder)
        try:
            with _progress(len(ids), silent) as report:
                lost = bulk.explain_samples(
                    job, data.samples, store, targets=targets, others=others if others.arrays else None,
                    workers=workers, progress=report,
                )  # fmt: skip
        except KeyboardInterrupt:
            if not silent:
                done = len(store.done & ids)
                typer.echo(f"stopped: {done} of {len(ids)} stored; the same command goes on", err=True)
            raise
        record = _finished(store, ids, lost, spec, explainer, folder)
    if not silent:
        _print(record, folder)
    if not record["maps"]:
        raise ImageError("no picture could be explained", known=f"the reasons are in {folder / 'manifest.json'}")
    return {**record, "output": str(folder)}


def _announce(
    explainer: Explainer, recipe: Preprocessing, call: dict[str, Any], data: Dataset, done: int, folder: Path
) -> None:
    count = len(data.samples)
    say.facts(
        [
            ("model", f"{explainer.path.name if explainer.path else ''}   sha256 {explainer.sha256[:12]}"),
            ("input", f"{explainer.input_name} {say.shape(explainer.input_shape)}   {recipe.describe()}"),
            ("method", f"{call['method']}   layer {call['layer'] or 'as of the method'}"),
            ("pictures", str(count)),
            ("backend", f"{explainer.backend}   {', '.join(explainer.providers)}"),
            *(("note", note) for note in (*explainer.notes, *recipe.notes, *data.notes)),
            ("found", f"{done} of {count} explained before in {folder}" if done else ""),
        ]
    )


def _finished(
    store: Store, ids: set[str], lost: Sequence[Failure], spec: dict[str, Any], explainer: Explainer, folder: Path
) -> dict[str, Any]:
    from fgcam_onnx import bulk
    from fgcam_onnx.explanation import SCHEMA_VERSION, Folder, plain_json

    rows = [row for row in store.rows(["image", "error"]) if row["image"] in ids]
    failures = [{"image": row["image"], "error": row["error"]} for row in rows if row["error"] is not None]
    failures += [{"image": each.id, "error": f"{each.error}: {each.what}"} for each in lost]
    record: dict[str, Any] = plain_json(
        {
            "schema_version": SCHEMA_VERSION,
            "file": None if explainer.path is None else explainer.path.name,
            **{name: value for name, value in spec.items() if name != "free"},
            "maps": sum(row["error"] is None for row in rows),
            "failures": sorted(failures, key=lambda each: each["image"]),
            "parts": f"{bulk.PARTS}/*.parquet",
            "relevance": "float32, little-endian, row by row: depth, height, width",
        }
    )
    with Folder(folder, keep=True) as out:
        out.finish(record)
    return record


def _print(record: dict[str, Any], folder: Path) -> None:
    failures = record["failures"]
    if failures:
        typer.echo(say.style(f"{len(failures)} of {record['pictures']} pictures have no map:", fg="red"))
        for failure in failures[:SHOWN]:
            typer.echo(f"  {failure['image']}   {failure['error']}")
        if len(failures) > SHOWN:
            typer.echo(f"  and {len(failures) - SHOWN} more, all in {folder / 'manifest.json'}")
    typer.echo(f"wrote {record['maps']} maps to {folder / record['parts']}, and manifest.json")
