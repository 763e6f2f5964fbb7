"""Where the rows of an evaluation go as they are made: whole for an image or not at all, whenever it is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Row", "Store", "open_store"]

Row = dict[str, Any]


class Store:
    """Rows of one run in one folder."""

    done: frozenset[str]

    def append(self, id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """All rows of one image, at once."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """All rows, in the order in which their images were appended."""
        raise NotImplementedError

    def close(self) -> None:
        """Let another process have the folder."""

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(
    folder: str | Path,
    spec: Mapping[str, Any],
    *,
    columns: Mapping[str, str],
    form: str = "parquet",
    fresh: bool = False,
) -> Store:
    """The store of a run, begun or gone on with.

    ``columns``: the name of each column and what it holds: "string", "int64", "float64" or "floats".
    """
    raise NotImplementedError
