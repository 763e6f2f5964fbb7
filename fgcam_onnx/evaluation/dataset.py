"""Which pictures are measured: a folder, a tree of class folders, a CSV list, or single files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgcam_onnx.evaluation.boxes import Box

__all__ = ["Dataset", "Sample", "read_dataset"]


@dataclass(frozen=True)
class Sample:
    """A picture. ``id``: its path below the root in posix form, unique. ``label``: as written, or None."""

    id: str
    path: Path
    label: str | None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """``counts``: found, pictures, labelled, boxed. ``notes``: what a reader of the results has to know."""

    samples: tuple[Sample, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()


def read_dataset(
    source: str | Path | Sequence[str | Path],
    *,
    boxes: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The pictures of a source, their labels and boxes."""
    raise NotImplementedError
