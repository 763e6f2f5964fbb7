"""CSV lists as people write them: comma, semicolon or tab, with or without a header, every row with its line."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgcam_onnx.errors import InputError

__all__ = ["BOXES", "FILES", "LABELS", "LIST_ENDINGS", "Listing", "Row", "read_listing", "read_regular"]

LIST_ENDINGS = (".csv", ".tsv", ".txt")
DELIMITERS = ("\t", ";", ",")
LARGEST_LIST = 256 << 20
# The names of columns, in any letter case. Of several columns of labels the first of this order is taken: a synset
# means the same class in every model, an index only where the classes stand in the same order.
FILES = ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "imageid", "image_id")
LABELS = ("label", "synset", "wnid", "class", "class_index", "class_id", "target")
BOXES = ("predictionstring",)


@dataclass(frozen=True)
class Row:
    """``line``: where it starts in the file, from 1 on."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """``header``: None where the file has none. No cell has spaces around it; empty lines are left out."""

    path: Path
    header: tuple[str, ...] | None
    rows: tuple[Row, ...]

    def column(self, names: Sequence[str]) -> int | None:
        """Which column has the first of these names that the header has, in any letter case."""
        return next(iter(self.columns(names)), None)

    def columns(self, names: Sequence[str]) -> list[int]:
        """The columns that have one of these names, in the order of the names."""
        have = [name.casefold() for name in self.header or ()]
        return [have.index(name) for name in names if name in have]

    def at(self, row: Row | int) -> str:
        """The place of a row, for an error."""
        return f"{str(self.path)!r}, line {row if isinstance(row, int) else row.line}"


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises :class:`InputError` where it is missing, a folder, a pipe, a device, or larger.
    """
    name = repr(str(path))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, a device never end
            raise InputError(f"{name} is not a regular file", next=f"give {what}")
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(f"{name} cannot be read: {reason}", next="check the path and its permissions") from None
    if len(content) > limit:
        raise InputError(f"{name} is too large for {what}", known=f"more than {limit:,} bytes")
    return content


def read_listing(path: Path, names: Sequence[str], first: Callable[[Sequence[str]], bool]) -> Listing:
    """A list and its header, if it has one.

    ``names``: one of these in the first row makes it a header. ``first``: are these cells surely a row of the list? The
    delimiter is the one that makes a header of the first row; failing that, one that divides it, and of those the one
    with which most rows are surely rows.

    Raises :class:`InputError` for what is empty, no UTF-8, or no CSV.
    """
    content = read_regular(path, LARGEST_LIST, "a list in CSV")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{str(path)!r} is not text in UTF-8", at=f"line {line}", next="save the list in UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(
            f"{str(path)!r} is not text",
            at=f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}",
            known="it has NULs",
        )
    head = _cut(text, 200)

    def is_header(cells: Sequence[str]) -> bool:
        return any(cell.casefold() in names for cell in cells) and not first(cells)

    def fits(delimiter: str) -> tuple[bool, bool, int]:
        rows = [row.cells for row in _rows(path, head, delimiter, strict=False)]
        return bool(rows) and is_header(rows[0]), bool(rows) and len(rows[0]) > 1, sum(map(first, rows))

    rows = _rows(path, text, max(DELIMITERS, key=fits))
    if not rows:
        raise InputError(f"the list {str(path)!r} is empty", next="a line for each picture: its file, its label")
    header = None
    if is_header(rows[0].cells):
        header = rows[0].cells
        rows = rows[1:]
        if not rows:
            raise InputError(f"the list {str(path)!r} has a header and nothing else", known=", ".join(header))
        twice = {name for name in header if name and [n.casefold() for n in header].count(name.casefold()) > 1}
        if twice:
            raise InputError(f"the list {str(path)!r} has two columns {min(twice)!r}", known=", ".join(header))
    listing = Listing(path, header, tuple(rows))
    width = len(header or rows[0].cells)
    for row in rows:
        if len(row.cells) > width:
            raise InputError(
                f"a row of {len(row.cells)} cells, where the {'header' if header else 'first row'} has {width}",
                at=listing.at(row),
                next='a cell with the delimiter in it stands between quotes: "harvester, reaper"',
            )
    return listing


def _cut(text: str, lines: int) -> str:
    """The first lines, for a guess."""
    end = -1
    for _ in range(lines):
        end = text.find("\n", end + 1)
        if end < 0:
            return text
    return text[: end + 1]


def _rows(path: Path, text: str, delimiter: str, *, strict: bool = True) -> list[Row]:
    """``strict``: a quote that nobody closes would otherwise swallow the rest of the list."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)
    rows, line = [], 1
    try:
        for cells in reader:
            found = [cell.strip() for cell in cells]
            while found and not found[-1]:
                found.pop()
            if found:
                rows.append(Row(line, tuple(found)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{str(path)!r} is not CSV: {error}", at=f"line {line}") from None
    return rows
