"""``fgcam inspect MODEL``: what the file is, where a map can be made, and whether every node has a rule."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import say

if TYPE_CHECKING:
    from fgcam_onnx import Explainer
    from fgcam_onnx.coverage import CoverageRow


def inspect(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The ONNX file, or a folder with model.onnx.", show_default=False),
    ],
    input: Annotated[
        str | None, typer.Option("--input", help="Which input is the picture.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Which output to explain; the first.", show_default=False)
    ] = None,
    json: say.Json = False,
    debug: say.Debug = False,
) -> None:
    """Show a model's facts, its layers, and the rule of each node. Ends with 1 if a node on the path has none."""
    from fgcam_onnx import Explainer

    explainer = Explainer(model, input=input, output=output)
    coverage = explainer.coverage()
    if json:
        say.as_json(_record(explainer))
    else:
        _print(explainer)
    if not coverage.complete:
        raise typer.Exit(1)


def _recipe(explainer: Explainer) -> tuple[dict[str, Any] | None, str]:
    """The preprocessing as a record and as a line; None and the reason where there is none, or it cannot be read."""
    from fgcam_onnx.errors import FgcamError
    from fgcam_onnx.preprocessing import choose

    try:
        recipe = choose(
            metadata=explainer.metadata,
            path=explainer.path,
            input_shape=explainer.input_shape,
            layout=explainer.layout,
            input_dtype=explainer.input_dtype,
        )
    except FgcamError as error:
        return None, error.what
    return recipe.to_dict(), recipe.describe()


def _named(row: CoverageRow) -> tuple[str, str]:
    """Node and operator with its version; an operator that only the view has comes without one."""
    return row.node, row.op.removeprefix("fgcam::") if row.op.startswith("fgcam::") else f"{row.op}-{row.version}"


def _record(explainer: Explainer) -> dict[str, Any]:
    coverage = explainer.coverage()
    return {
        "file": None if explainer.path is None else str(explainer.path),
        "bytes": None if explainer.path is None else explainer.path.stat().st_size,
        "sha256": explainer.sha256,
        "metadata": dict(explainer.metadata),
        "model_precision": explainer.model_precision,
        "input": {
            "name": explainer.input_name,
            "shape": list(explainer.input_shape),
            "dtype": explainer.input_dtype,
            "layout": explainer.layout,
        },
        "other_inputs": {name: _sides(shape) for name, shape in explainer.other_inputs.items()},
        "output": {
            "name": explainer.output_name,
            "shape": list(explainer.output_shape),
            "axes": list(explainer.output_axes),
            "dense": explainer.dense,
        },
        "outputs": {name: _sides(shape) for name, shape in explainer.outputs.items()},
        "classes": explainer.num_classes,
        "labels": explainer.labels_source,
        "backend": explainer.backend,
        "providers": explainer.providers,
        "preprocessing": _recipe(explainer)[0],
        "default_layer": explainer.default_layer,
        "notes": explainer.notes,
        "layers": [
            {"name": s.name, "node": s.node, "shape": list(s.shape), "scale": s.scale, "default": s.default}
            for s in explainer.layers()
        ],
        "coverage": {
            "complete": coverage.complete,
            "gaps": [r.node for r in coverage.gaps],
            "nodes": coverage.nodes,
            "rows": [asdict(row) for row in coverage.rows],
        },
    }


def _sides(shape: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if shape is None else list(shape)


def _ends(explainer: Explainer) -> list[tuple[str, str]]:
    """What a model of one picture and one score a class need not say."""
    others, outputs = (
        ", ".join(name if shape is None else f"{name} {say.shape(shape)}" for name, shape in ends.items())
        for ends in (explainer.other_inputs, explainer.outputs)
    )
    lines = [("inputs", f"beside the picture: {others}" if others else "")]
    if explainer.dense:
        place = f"{say.shape(explainer.output_shape)}: a target is ({', '.join(explainer.output_axes)})"
        lines.append(("output", f"{explainer.output_name}   {place}"))
    if len(explainer.outputs) > 1:
        lines.append(("outputs", outputs))
    return lines


def _print(explainer: Explainer) -> None:
    coverage = explainer.coverage()
    assert explainer.path is not None
    shape = f"{say.shape(explainer.input_shape)} {explainer.layout} {explainer.input_dtype}"
    recipe, pictures = _recipe(explainer)
    labels = f"{explainer.num_classes or 'not told by the axes of the output'}"
    if explainer.labels:
        labels += f", named by {explainer.labels_source}"
    say.facts(
        [
            ("model", f"{explainer.path.name}   {say.size(explainer.path.stat().st_size)}   sha256 {explainer.sha256}"),
            ("numbers", explainer.model_precision),
            ("input", f"{explainer.input_name}   {shape}"),
            *_ends(explainer),
            ("pictures", pictures),
            ("classes", labels),
            ("backend", f"{explainer.backend}   {', '.join(explainer.providers)}"),
            *(("note", note) for note in (*explainer.notes, *(recipe["notes"] if recipe else ()))),
        ]
    )
    typer.echo()
    stages = explainer.layers()
    say.table(
        ["layer", "node", "shape", "scale", ""],
        [
            [s.name, s.node, say.shape(s.shape), f"{s.scale:.4g}", "L, where a CAM starts" if s.default else ""]
            for s in stages
        ],
    )
    typer.echo()
    gaps = list(coverage.gaps)
    rows = [*gaps, *(row for row in coverage.rows if row.rule is not None)]
    say.table(
        ["node", "op", "part", "rule", "may leak"],
        [[*_named(r), r.part, r.rule or f"none: {r.reason}", r.leaks or "-"] for r in rows],
        marked=range(len(gaps)),
    )
    typer.echo()
    if coverage.complete:
        layers = f", {len(rows)} once folded" if coverage.nodes > len(rows) else ""
        covered = f": each of the {coverage.nodes} nodes on the path has a rule{layers}"
        typer.echo(say.style("complete", fg="green") + covered)
    else:
        count = f"{len(gaps)} of the {len(rows)} nodes on the path {'has' if len(gaps) == 1 else 'have'} no rule"
        typer.echo(say.style("not complete", fg="red") + f": {count}")
