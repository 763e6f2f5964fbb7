"""How the commands speak: facts, tables, JSON, errors. Text that a program reads goes to stdout, all else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fgcam_onnx.errors import FgcamError

Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program, and nothing else, on stdout.")]


def style(text: str, **look: Any) -> str:
    """Text with a look, unless NO_COLOR is set (no-color.org); a pipe gets plain text in any case."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, **look)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """``label   text`` a line; an empty text is left out."""
    for label, text in pairs:
        if text:
            typer.echo(style(f"{label:<10} ", dim=True) + text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = ()) -> None:
    """Columns as wide as their longest word; the rows whose numbers are in ``marked`` stand out."""
    widths = [max(len(word) for word in column) for column in zip(head, *rows, strict=True)]

    def line(words: Sequence[str]) -> str:
        return "  ".join(f"{word:<{width}}" for word, width in zip(words, widths, strict=True)).rstrip()

    typer.echo(style(line(head), dim=True))
    for i, row in enumerate(rows):
        typer.echo(style(line(row), fg="red") if i in marked else line(row))


def as_json(record: Any) -> None:
    """The record on stdout; arrays and NumPy numbers as plain JSON."""
    from fgcam_onnx.explanation import plain_json

    typer.echo(json.dumps(plain_json(record), indent=2, ensure_ascii=False))


def error(error: FgcamError) -> None:
    """``ClassName: what`` and its rows on stderr."""
    first, *rest = str(error).split("\n")
    typer.echo(style(type(error).__name__, fg="red", bold=True) + f": {first}", err=True)
    for row in rest:
        label, text = row[:10], row[10:]
        typer.echo(style(label, dim=True) + text if label.strip() else row, err=True)


def size(count: int) -> str:
    """Bytes for people."""
    number = float(count)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            break
        number, unit = number / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"


def shape(sides: Iterable[int | str | None]) -> str:
    """``[N, 3, 224, 224]``, ``?`` where the model leaves a side open."""
    return f"[{', '.join('?' if side is None else str(side) for side in sides)}]"


def on_terminal() -> bool:
    """Whether somebody watches stderr."""
    return sys.stderr.isatty()
