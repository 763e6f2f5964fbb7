"""``fgcam evaluate MODEL IMAGES``: how faithful are the maps? The paper's experiments on any model and any pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import picture_options, say
from fgcam_onnx.errors import ImageError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fgcam_onnx import Explainer
    from fgcam_onnx.evaluation.dataset import Dataset
    from fgcam_onnx.evaluation.local import Failure
    from fgcam_onnx.evaluation.run import Run
    from fgcam_onnx.evaluation.store import Store
    from fgcam_onnx.evaluation.summary import Results
    from fgcam_onnx.evaluation.table import Report

_DATA, _HOW, _RUN = "Which pictures", "How it is measured", "Where it runs"
# Failures that are listed on the terminal; all are in failures.csv.
SHOWN = 5


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The ONNX file, or a folder with one.", show_default=False)
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES",
            help="A folder of pictures, a tree of class folders, a CSV of file and label, Parquet, an address such as "
            "s3://bucket/val, or pictures.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "-m",
            help="Names of fgcam methods with commas between them; NAME+denoise; quick, paper or all. Score-CAM, in "
            "paper and all, costs as many forward passes as a layer has channels.",
        ),
    ] = "quick",
    layers: Annotated[
        str,
        typer.Option(
            help='Where the maps are: "L"; "paper", three stages below it and the input; "all" stages; names of fgcam '
            "inspect."
        ),
    ] = "L,paper",
    metrics: Annotated[
        str,
        typer.Option(help="average-drop, deletion-insertion, localisation, and others of docs/faithfulness.md."),
    ] = "average-drop,deletion-insertion,localisation",
    controls: Annotated[
        bool,
        typer.Option("--controls/--no-controls", help="Measure random, centre, edge and class-blind maps beside them."),
    ] = True,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Where the objects are: CSV, a folder of Pascal VOC XML, or LOC_val_solution.csv.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    which_boxes: Annotated[
        str,
        typer.Option(
            "--which-boxes",
            help='"paper": pictures with one box of at most half their area; "any".',
            rich_help_panel=_DATA,
        ),
    ] = "paper",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many pictures, drawn by --seed.", rich_help_panel=_DATA, show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A file of class names, a class a line or JSON.", rich_help_panel=_DATA, show_default=False),
    ] = None,
    target: Annotated[
        str, typer.Option(help='The class that is explained: "predicted", or the picture\'s own "label".')
    ] = "predicted",
    fraction: Annotated[
        float, typer.Option(help="Share of pixels that Average Drop keeps.", rich_help_panel=_HOW)
    ] = 0.5,
    step: Annotated[int, typer.Option(help="Pixels a step of deletion and insertion.", rich_help_panel=_HOW)] = 448,
    baseline: Annotated[
        str, typer.Option(help="What hides a pixel: blur, mean, zero or a number.", rich_help_panel=_HOW)
    ] = "blur",
    kernel: Annotated[int, typer.Option(help="Width of the blur in pixels.", rich_help_panel=_HOW)] = 51,
    sigma: Annotated[float, typer.Option(help="Deviation of the blur in pixels.", rich_help_panel=_HOW)] = 50.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", rich_help_panel=_HOW)] = 0,
    folder: Annotated[
        Path, typer.Option("--folder", "-o", help="The folder for the results. The same again goes on where it was.")
    ] = Path("fgcam_evaluation"),
    rows: Annotated[str, typer.Option(help="parquet or csv: the form of the rows, one a map.")] = "parquet",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew: remove the rows of the folder.")] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw curves and metrics against layers.")] = True,
    preprocess: picture_options.Preprocess = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height and width: 224 or 224x320.", rich_help_panel=picture_options.PANEL, show_default=False
        ),
    ] = None,
    resize: picture_options.Resize = None,
    short_side: picture_options.ShortSide = None,
    interpolation: picture_options.Interpolation = None,
    color: picture_options.Color = None,
    scale: picture_options.Scale = None,
    mean: picture_options.Mean = None,
    std: picture_options.Std = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster.", rich_help_panel=_RUN)] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers of the ray engine.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, cupy, ort or numpy.", rich_help_panel=_RUN)] = "auto",
    provider: Annotated[
        list[str] | None,
        typer.Option(help="An onnxruntime execution provider.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Which output to explain; the first.", rich_help_panel=_RUN, show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Changed pictures at a time.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of every session; all cores.", rich_help_panel=_RUN, show_default=False),
    ] = None,
    json: say.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: say.Debug = False,
) -> None:
    """Measure how faithful the maps are: Average Drop, deletion and insertion, localisation, over many pictures.

    Stopped at any moment and started again with the same command, it goes on where it was.
    """
    from fgcam_onnx.evaluation.dataset import read_dataset
    from fgcam_onnx.evaluation.settings import Settings
    from fgcam_onnx.evaluation.store import open_store
    from fgcam_onnx.optional import need

    settings = Settings(
        tuple(word.strip() for word in metrics.split(",") if word.strip()), target, fraction, step,
        _baseline(baseline), kernel, sigma, which_boxes, seed,
    )  # fmt: skip
    if engine not in ("local", "ray"):
        raise OptionError(f"there is no engine {engine!r}", known="local, ray")
    if workers is not None and engine == "local":
        raise OptionError("--workers belongs to --engine ray", next="--threads says how many cores one machine uses")
    if plots:
        need("matplotlib", "evaluate", "plots (or leave them out: --no-plots)")  # told now, and not after hours
    data = read_dataset(images, boxes=boxes, limit=limit, seed=seed)

    run, explainer, label_source = _planned(
        model,
        {"backend": backend, "providers": provider, "output": output, "threads": threads},
        given={
            **picture_options.fields(resize, short_side, interpolation, color, scale, mean, std),
            "size": None if size is None else picture_options.sides(size),
        },
        preprocess=preprocess,
        labels=labels,
        methods=methods,
        layers=layers,
        controls=controls,
        settings=settings,
        batch_size=batch_size,
    )
    silent = quiet or json
    spec = run.spec(limit=limit, pictures=data.counts["pictures"], boxes=None if boxes is None else str(boxes))
    with open_store(folder, spec, columns=run.columns, form=rows, fresh=fresh) as store:
        ids = {sample.id for sample in data.samples}
        if not silent:
            _announce(run, explainer, data, label_source, len(store.done & ids), folder)
        try:
            failures = _measured(run, explainer, data, store, engine, workers, silent)
        except KeyboardInterrupt:
            if not silent:
                typer.echo(
                    f"stopped: {_of(len(store.done & ids), len(ids))} stored; the same command goes on", err=True
                )
            raise
        place = {sample.id: i for i, sample in enumerate(data.samples)}
        # In the order of the pictures, whoever measured them in whatever order: sums are the same to the last bit.
        found = sorted((row for row in store.rows() if row["image"] in ids), key=lambda row: place[row["image"]])
    if not found:
        raise ImageError("no picture could be measured", known="; ".join(f"{f.id}: {f.what}" for f in failures[:SHOWN]))
    report = _write(folder, run, explainer, found, failures, plots)
    if json:
        say.as_json(_record(folder, run, found, failures))
    elif not quiet:
        _print(report, folder, failures, len(ids))


# ---------------------------------------------------------------------------------------------------- the plan


def _baseline(word: str) -> str | float:
    try:
        return float(word)
    except ValueError:
        return word


def _planned(
    model: Path,
    engine: dict[str, Any],
    *,
    given: Mapping[str, Any],
    preprocess: str | None,
    labels: Path | None,
    **asked: Any,
) -> tuple[Run, Explainer, str]:
    from fgcam_onnx import Explainer
    from fgcam_onnx.evaluation.run import plan
    from fgcam_onnx.labels import read_labels
    from fgcam_onnx.preprocessing import choose

    explainer = Explainer(model, **engine)
    recipe = choose(
        given,
        preprocess=preprocess,
        metadata=explainer.metadata,
        path=explainer.path,
        input_shape=explainer.input_shape,
        layout=explainer.layout,
        input_dtype=explainer.input_dtype,
    )
    words, source = explainer.labels, explainer.labels_source or ""
    if labels is not None:
        words, source = read_labels(labels, explainer.num_classes or None), labels.name
    run = plan(explainer, recipe, engine=engine, labels=words, **asked)
    return run, explainer, source


def _announce(run: Run, explainer: Explainer, data: Dataset, label_source: str, done: int, folder: Path) -> None:
    counts = data.counts
    layers = list(dict.fromkeys(cell.layer for cell in run.cells))
    names = list(dict.fromkeys(cell.contender.name for cell in run.cells))
    passes = _passes(run, explainer)
    say.facts(
        [
            ("model", f"{explainer.path.name if explainer.path else ''}   sha256 {explainer.sha256[:12]}"),
            ("input", f"{explainer.input_name} {say.shape(explainer.input_shape)}   {run.recipe.describe()}"),
            ("pictures", f"{counts['pictures']}   with a label {counts['labelled']}, with boxes {counts['boxed']}"),
            ("labels", label_source or "none found: --labels FILE"),
            ("methods", ", ".join(names)),
            ("layers", ", ".join(layers)),
            ("metrics", ", ".join(run.settings.metrics)),
            ("cost", f"{len(run.cells)} maps a picture, about {passes} forward passes"),
            (
                "backend",
                f"{explainer.backend}   {', '.join(explainer.providers)}   {run.batch_size} pictures at a time",
            ),
            *(("note", note) for note in (*explainer.notes, *run.recipe.notes, *data.notes, *run.notes)),
            ("found", f"{_of(done, counts['pictures'])} measured before in {folder}" if done else ""),
        ]
    )


def _passes(run: Run, explainer: Explainer) -> int:
    """About how many pictures the network is shown for one of the data set."""
    from fgcam_onnx.evaluation.evaluator import EVERYWHERE
    from fgcam_onnx.methods import METHODS

    names = run.settings.metrics
    pixels = run.recipe.size[0] * run.recipe.size[1]
    each = ("average-drop" in names) + ("deletion-insertion" in names) * 2 * (-(-pixels // run.settings.step) - 1)
    once = {c.contender.name for c in run.cells if c.contender.name in EVERYWHERE}
    count = 3 + each * (sum(c.contender.name not in EVERYWHERE for c in run.cells) + len(once))
    layouts = {stage.name: explainer.graph.tensor(stage.name).layout or "NCHW" for stage in explainer.layers()}
    channels = {stage.name: stage.shape[layouts[stage.name].index("C")] for stage in explainer.layers()}
    paid = set()
    for cell in run.cells:
        if not cell.contender.many_passes or cell.contender.method is None:
            continue
        start = explainer.default_layer if cell.contender.kind == "fine-grained" else cell.layer
        paid.add((METHODS[cell.contender.method].module, start))
    known = (channels.get(start) for _, start in paid)
    return count + len(run.cells) + sum(c for c in known if isinstance(c, int))


# ---------------------------------------------------------------------------------------------------- the run


def _measured(
    run: Run, explainer: Explainer, data: Dataset, store: Store, engine: str, workers: int | None, silent: bool
) -> list[Failure]:
    if engine == "ray":
        from fgcam_onnx.evaluation import ray

        with _progress(len(data.samples), silent) as report:
            failures: list[Failure] = ray.evaluate(run, data.samples, store, workers=workers, progress=report)
            return failures
    from fgcam_onnx.evaluation import local

    with _progress(len(data.samples), silent) as report:
        return local.evaluate(run.evaluator(explainer), data.samples, store, report)


@contextmanager
def _progress(total: int, silent: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr with the time left, drawn where somebody watches; elsewhere a line now and then."""
    import time

    if silent:
        yield lambda done, id: None
        return
    if not say.on_terminal():
        said = time.monotonic()

        def line(done: float, id: str) -> None:
            nonlocal said
            if time.monotonic() - said > 60:
                said = time.monotonic()
                typer.echo(f"{_of(int(done), total)} pictures", err=True)

        yield line
        return
    from fgcam_onnx.cli.explain import new_bar

    with new_bar() as bar:
        task = bar.add_task("pictures", total=total)
        yield lambda done, id: bar.update(task, completed=done, description=Path(id).name[:32] or "pictures")


# ---------------------------------------------------------------------------------------------------- the results


def _write(
    folder: Path,
    run: Run,
    explainer: Explainer,
    rows: Sequence[Mapping[str, Any]],
    failures: Sequence[Failure],
    plots: bool,
) -> Report:
    """Tables, the list of failures and the plots, each file whole or not at all, and the manifest last."""
    from fgcam_onnx.evaluation import published, table
    from fgcam_onnx.evaluation.names import layer_labels
    from fgcam_onnx.evaluation.summary import Results
    from fgcam_onnx.explanation import Folder

    layers = list(dict.fromkeys(cell.layer for cell in run.cells))
    results = Results(rows, layers)
    places = published.recognise(explainer.graph)
    report = table.report(results, places)
    files = {
        "table.md": report.markdown().encode(),
        "summary.csv": table.as_csv(results, places).encode(),
        "failures.csv": _listed(failures).encode(),
    }
    if plots:
        files |= _drawn(results, layer_labels(results.layers, places))
    with Folder(folder, keep=True) as out:
        out.write(files)
        out.finish({**run.spec(), "pictures": len({row["image"] for row in rows}), "failures": len(failures)})
    return report


def _drawn(results: Results, labels: Mapping[str, str]) -> dict[str, bytes]:
    """The plots as files: curves of deletion and insertion, and each metric against the layers."""
    from tempfile import TemporaryDirectory

    from fgcam_onnx.evaluation.plots import against_layers, curves, save

    files = {}
    with TemporaryDirectory() as beside:
        for name, figure in (("curves", curves(results, labels)), ("layers", against_layers(results, labels=labels))):
            for path in save(figure, Path(beside, name)) if figure is not None else ():
                files[path.name] = path.read_bytes()
    return files


def _listed(failures: Sequence[Failure]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "error", "what"))
    writer.writerows((f.id, f.error, f.what) for f in failures)
    return out.getvalue()


def _record(folder: Path, run: Run, rows: Sequence[Mapping[str, Any]], failures: Sequence[Failure]) -> dict[str, Any]:
    from dataclasses import asdict

    from fgcam_onnx.evaluation.summary import Results, cells

    layers = list(dict.fromkeys(cell.layer for cell in run.cells))
    return {
        **run.spec(),
        "pictures": len({row["image"] for row in rows}),
        "failures": [asdict(f) for f in failures],
        "results": [asdict(cell) for cell in cells(Results(rows, layers))],
        "output": str(folder),
    }


def _print(report: Report, folder: Path, failures: Sequence[Failure], total: int) -> None:
    import shutil

    typer.echo("")
    typer.echo(report.text(max(80, shutil.get_terminal_size((100, 24)).columns), brief=True))
    if failures:
        typer.echo(say.style(f"{_of(len(failures), total)} pictures could not be measured:", fg="red"))
        for failure in failures[:SHOWN]:
            typer.echo(f"  {failure.id}   {failure.error}: {failure.what}")
        if len(failures) > SHOWN:
            typer.echo(f"  and {len(failures) - SHOWN} more, all in {folder / 'failures.csv'}")
        typer.echo("the same command tries them again")
    typer.echo(f"wrote to {folder}: table.md with every comparison, summary.csv, rows, plots, manifest.json")


def _of(count: int, total: int) -> str:
    return f"{count} of {total}"
