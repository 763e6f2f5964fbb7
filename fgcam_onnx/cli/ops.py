"""``fgcam ops``: which operators can be explained, from the registry itself."""

from __future__ import annotations

from typing import Annotated

import typer

from fgcam_onnx.cli import say


def ops(
    json: say.Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, as the documentation has it.")
    ] = False,
    debug: say.Debug = False,
) -> None:
    """List the ONNX operators that have rules, since which opset, and what they conserve."""
    from fgcam_onnx import registry

    rows = registry.table()
    if json:
        say.as_json([{"op": r.op, "since": r.since, "rules": r.rules, "leaks": r.leaks} for r in rows])
        return
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.rules))
    head = ["op", "since opset", *kinds, "leaks"]
    lines = [[r.op, ", ".join(map(str, r.since)), *(r.rules.get(kind) or "-" for kind in kinds), r.leaks] for r in rows]
    if markdown:
        typer.echo(f"| {' | '.join(head)} |")
        typer.echo(f"|{' --- |' * len(head)}")
        for words in lines:
            typer.echo(f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |")
        return
    say.table(head, lines)
    typer.echo(f"\n{len(rows)} operators")
    for reason, ops in registry.decided_against().items():
        typer.echo(f"none: {', '.join(ops)}: {reason}")
