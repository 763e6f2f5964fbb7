"""Write docs/method_reference.md from the methods' docstrings: python .ci/write_methods.py (package installed)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

from fgcam_onnx.methods import METHODS, Method

PAGE = Path(__file__).resolve().parents[1] / "docs" / "method_reference.md"
HEAD = """# Method reference

Written by `python .ci/write_methods.py` from the methods' own docstrings. What they have in common, and the mathematics
of the walk: [methods.md](methods.md). `fgcam methods` prints the names.

A *row* is one image explained for one class. "Conserves" says what the values of a map sum to, "Differs" where another
library's map of the same name is another one. Every map is returned signed and as it is: ReLU, scaling and resizing
belong to `heatmap()`.

| method | kind | what it shows | map at | costs beside the forward pass | options | source |
| --- | --- | --- | --- | --- | --- | --- |
"""
COSTS = {
    "gradient": "the gradient",
    "relevance": "a walk to L",
    "contributions": "two passes behind L",
    "reference": "a second forward pass",
    "scores": "**many forward passes**",
}
SECTIONS = ("Conserves", "Differs", "Source")


def options(method: Method) -> str:
    """Name = default, and the choices."""
    found = []
    for name, default in method.options.items():
        words = " \\| ".join(default) if isinstance(default, tuple) else str(default)
        found.append(f"`{name}` {words}")
    return "; ".join(found)


def place(method: Method) -> str:
    """Where the map is by default, and whether it may be elsewhere."""
    if method.kind == "cam":
        return "L, or any layer"
    return "the input" if method.kind == "sampling" else "the input, or any layer"


def row(method: Method) -> str:
    """A line of the table."""
    cost = ", ".join(COSTS[need] for need in COSTS if need in method.needs) or (
        "a walk" if method.kind != "cam" else "-"
    )
    cells = (f"`{method.name}`", method.kind, method.summary, place(method), cost, options(method) or "-", method.paper)
    return f"| {' | '.join(cells)} |"


def section(module: ModuleType) -> str:
    """A module's docstring as a chapter; its indented block is the formula."""
    text = inspect.cleandoc(module.__doc__ or "")
    names = ", ".join(f"`{m.name}`" for m in METHODS.values() if m.module is module)
    parts = re.split(r"\n\n(?=\S)|\n(?=    )", text)
    title, _, first = parts[0].partition(": ")
    lines = [f"## {title}", f"{names}: {' '.join(first.split())}"]
    for part in parts[1:]:
        if part.startswith("    "):
            formula = "\n".join(line for line in part.splitlines())
            if lines[-1].startswith("    "):
                lines[-1] += "\n" + formula
            else:
                lines.append(formula)
            continue
        label, colon, rest = part.partition(": ")
        text_of = " ".join(part.split())
        lines.append(f"**{label}.** {' '.join(rest.split())}" if colon and label in SECTIONS else text_of)
    return "\n\n".join(lines)


def page() -> str:
    """The page as it should be."""
    modules = list(dict.fromkeys(method.module for method in METHODS.values()))
    table = "\n".join(row(method) for method in METHODS.values())
    return HEAD + table + "\n\n" + "\n\n".join(section(module) for module in modules) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
