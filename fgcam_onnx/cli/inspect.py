"""``fgcam inspect MODEL``: what the file is, where a map can be made, and whether every node has a rule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import say

if TYPE_CHECKING:
    from fgcam_onnx import Explainer


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)],
    json: say.Json = False,
    debug: say.Debug = False,
) -> None:
    """Show a model's facts, its layers, and the rule of each node. Ends with 1 if a node on the path has none."""
    from fgcam_onnx import Explainer

    explainer = Explainer(model)
    coverage = explainer.coverage()
    if json:
        say.as_json(_record(explainer))
    else:
        _print(explainer)
    if not coverage.complete:
        raise typer.Exit(1)


def _recipe(explainer: Explainer) -> tuple[dict[str, Any] | None, str]:
    """The preprocessing as a record and as a line; None and the reason where the model takes no pictures."""
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


def _record(explainer: Explainer) -> dict[str, Any]:
    coverage = explainer.coverage()
    return {
        "file": None if explainer.path is None else str(explainer.path),
        "bytes": None if explainer.path is None else explainer.path.stat().st_size,
        "sha256": explainer.sha256,
        "metadata": dict(explainer.metadata),
        "input": {
            "name": explainer.input_name,
            "shape": list(explainer.input_shape),
            "dtype": explainer.input_dtype,
            "layout": explainer.layout,
        },
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
            "rows": [
                {"node": r.node, "op": r.op, "version": r.version, "rule": r.rule, "reason": r.reason}
                for r in coverage.rows
            ],
        },
    }


def _print(explainer: Explainer) -> None:
    coverage = explainer.coverage()
    assert explainer.path is not None
    shape = f"{say.shape(explainer.input_shape)} {explainer.layout} {explainer.input_dtype}"
    labels = f"{explainer.num_classes}"
    if explainer.labels:
        labels += f", named by {explainer.labels_source}"
    say.facts(
        [
            ("model", f"{explainer.path.name}   {say.size(explainer.path.stat().st_size)}   sha256 {explainer.sha256}"),
            ("input", f"{explainer.input_name}   {shape}"),
            ("pictures", _recipe(explainer)[1]),
            ("classes", labels),
            ("backend", f"{explainer.backend}   {', '.join(explainer.providers)}"),
            *(("note", note) for note in explainer.notes),
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
        ["node", "op", "rule"],
        [[r.node, f"{r.op}-{r.version}", r.rule or f"none: {r.reason}"] for r in rows],
        marked=range(len(gaps)),
    )
    typer.echo()
    if coverage.complete:
        typer.echo(say.style("complete", fg="green") + f": each of the {len(rows)} nodes on the path has a rule")
    else:
        count = f"{len(gaps)} of the {len(rows)} nodes on the path {'has' if len(gaps) == 1 else 'have'} no rule"
        typer.echo(say.style("not complete", fg="red") + f": {count}")
