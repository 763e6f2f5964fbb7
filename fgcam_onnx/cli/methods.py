"""``fgcam methods``: what can explain, from the table of methods itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from fgcam_onnx.cli import say


def methods(json: say.Json = False, debug: say.Debug = False) -> None:
    """List the methods: what each one shows, its options, and where it was published."""
    from fgcam_onnx.composite import CHOICES, NAMED
    from fgcam_onnx.families.base import COMPOSITE_OPTIONS, DENOISE_OPTIONS
    from fgcam_onnx.methods import METHODS

    if json:
        say.as_json(
            [
                {
                    "name": m.name,
                    "kind": m.kind,
                    "summary": m.summary,
                    "paper": m.paper,
                    "options": {name: _values(value) for name, value in m.options.items()},
                    "many_passes": m.many_passes,
                }
                for m in METHODS.values()
            ]
        )
        return
    rows = [[m.name, m.kind, m.summary, _options(m.options), m.paper] for m in METHODS.values()]
    say.table(["method", "kind", "what it shows", "options, default first", "source"], rows)
    choices = [f"{name} {' | '.join(values)}" for name, values in CHOICES.items()]
    others = [name for name in COMPOSITE_OPTIONS if name not in CHOICES and name != "composite"]
    typer.echo(f"\n{len(rows)} methods")
    say.facts(
        [
            ("descent", "fine-grained and relevance methods also take " + ", ".join([*choices, *others])),
            ("composite", " | ".join(NAMED)),
            ("denoise", f"fine-grained methods and CAMs take --denoise, and with it {', '.join(DENOISE_OPTIONS)}"),
            ("use", "fgcam explain MODEL IMAGE --method NAME --option NAME=VALUE"),
        ]
    )


def _values(value: Any) -> dict[str, Any]:
    """A tuple of words are the choices, the default first."""
    if isinstance(value, tuple):
        return {"default": value[0], "choices": list(value)}
    return {"default": value}


def _options(options: Mapping[str, Any]) -> str:
    words = []
    for name, value in options.items():
        shown = " | ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)
        words.append(f"{name} {shown}")
    return ", ".join(words) or "-"
