"""docs/architectures.md lists what the matrix lists. Its figures are a record; they are not measured again here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the lists build torch models")

from architectures import light_models, timm_models, torchvision_models

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table under a heading, without its own two lines."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_lists_the_matrix() -> None:
    ask = "out of date: run the whole matrix, then python .ci/write_architectures.py"
    yes = {True: "yes", False: ""}
    torchvision = [(row[0], row[-1]) for row in rows("torchvision")]
    assert torchvision == [(n, yes[n in torchvision_models.QUICK]) for n in torchvision_models.MODELS], ask
    timm = [(row[0], row[1], row[-1]) for row in rows("timm")]
    assert timm == [(m.family, m.name, yes[m.quick]) for m in timm_models.MEMBERS], ask
    assert [(row[0], row[-1]) for row in rows("onnx")] == [(m.name, yes[m.quick]) for m in light_models.LIGHT], ask
    refused = [each.name for each in (*torchvision_models.REFUSED, *timm_models.REFUSED)]
    assert [row[1] for row in rows("Refused")] == refused, ask


def test_the_number_is_that_of_the_tables() -> None:
    n = 2 * len(list(rows("torchvision"))) + len(list(rows("timm"))) + len(list(rows("onnx")))
    assert f"**{n} of {n}** files" in PAGE.read_text(encoding="utf-8")


def test_every_error_on_the_page_is_below_the_bound() -> None:
    errors = [float(cell) for row in rows("torchvision") for cell in row[3:5]]
    assert len(errors) == 2 * len(torchvision_models.MODELS)
    assert max(errors) <= 1e-4
