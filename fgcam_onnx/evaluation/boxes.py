"""Where the objects are: boxes from CSV lists, Pascal VOC files and the Kaggle lists of ImageNet.

Numbers are taken as they are. Pascal VOC counts pixels from 1 and inclusively, and ImageNet's XML files have its form;
the field, and the lists made from these files, use them as corners from 0 on, and so does this package: half a pixel
of difference, and the same region for everybody. Whether a box lies in its picture is seen when the picture's size is
known: :func:`check`.

XML comes from anywhere. The standard library's parser expands the entities that a file declares, which lets a kilobyte
become gigabytes; so a file with a document type or any other declaration is refused before it is parsed, and once more
by the parser. VOC files have none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fgcam_onnx.errors import InputError
from fgcam_onnx.evaluation import listing
from fgcam_onnx.evaluation.listing import Listing, Row

__all__ = ["Box", "check", "read_boxes", "with_boxes"]

CORNERS = (("x1", "xmin", "left"), ("y1", "ymin", "top"), ("x2", "xmax", "right"), ("y2", "ymax", "bottom"))
LARGEST_XML = 4 << 20
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DECLARATION = re.compile(rb"<!(?!--|\[CDATA\[)")


@dataclass(frozen=True)
class Box:
    """Corners in pixels of the picture's own size, as the list has them. ``label``: whose box, as it is written."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2), as :func:`fgcam_onnx.metrics.localisation.box_mask` takes them."""
        return self.x1, self.y1, self.x2, self.y2


def read_boxes(path: str | Path) -> Mapping[str, tuple[Box, ...]]:
    """The boxes of each picture, in the order of the list, by the picture's name as the list has it.

    ``path``: a CSV of ``file,x1,y1,x2,y2[,label]`` (also xmin or left, ymin or top and so on; the header may be
    missing, the delimiter is a comma, a semicolon or a tab); the Kaggle ``ImageId,PredictionString``; a Pascal VOC XML
    file; or a folder of them, of any depth. An XML file speaks of the picture of its own stem: what it says in
    ``filename`` is wrong in some of ImageNet's. Where several have one stem, their paths below the folder, without
    the ending, are the names. A picture that is listed without a box has an empty tuple.

    Raises:
        InputError: what is missing, empty or no such list; a row that cannot be read, with file and line.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".xml":
        return {path.stem: _from_xml(path)}
    return _from_list(path)


def check(boxes: Iterable[Box], size: Sequence[int]) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """The boxes that can be used in a picture of ``size`` (height, width), and why the others cannot.

    A corner up to one pixel outside is moved to the edge, since lists that count inclusively end there. What reaches
    further is a box of another picture or of another size, and what has no area is none: they are left out.
    """
    high, wide = (int(side) for side in size)
    usable, reasons = [], []
    for box in boxes:
        name = f"the box (x1, y1, x2, y2) = ({', '.join(map(_written, box.corners))})"
        if not all(map(math.isfinite, box.corners)):
            reasons.append(f"{name} is not finite")
        elif min(box.x1, box.y1) < -1 or box.x2 > wide + 1 or box.y2 > high + 1:
            reasons.append(f"{name} reaches out of its picture, {wide} pixels wide and {high} high")
        else:
            corners = max(box.x1, 0.0), max(box.y1, 0.0), min(box.x2, float(wide)), min(box.y2, float(high))
            if corners[0] < corners[2] and corners[1] < corners[3]:
                usable.append(box if corners == box.corners else Box(*corners, box.label))
            elif box.x1 < box.x2 and box.y1 < box.y2:
                reasons.append(f"{name} lies outside its picture, {wide} pixels wide and {high} high")
            else:
                reasons.append(f"{name} has no area")
    return tuple(usable), tuple(reasons)


def _written(value: float) -> str:
    return f"{value:.10g}"


# ---------------------------------------------------------------------------------------------------- lists


def _from_list(path: Path) -> dict[str, tuple[Box, ...]]:
    names = (*listing.FILES, *listing.BOXES, *(name for side in CORNERS for name in side))
    found = with_boxes(listing.read_listing(path, names, _is_row))
    if found is None:
        raise InputError(
            f"the list {str(path)!r} has no boxes",
            known="a header with file, x1, y1, x2, y2 (or xmin or left, ...), or ImageId and PredictionString",
            next="without a header a row is file,x1,y1,x2,y2 or file,x1,y1,x2,y2,label",
        )
    return found


def _is_row(cells: Sequence[str]) -> bool:
    return len(cells) in (5, 6) and all(map(_NUMBER.fullmatch, cells[1:5]))


def with_boxes(rows: Listing) -> dict[str, tuple[Box, ...]] | None:
    """The boxes in a list, or None where it has no columns for them. Raises :class:`InputError` for a bad row."""
    if rows.header is None:
        if not any(_is_row(row.cells) for row in rows.rows):
            return None
        file, corners = 0, [1, 2, 3, 4]
        label: int | None = 5
        string: int | None = None
    else:
        found = [rows.column(side) for side in CORNERS]
        string, label = rows.column(listing.BOXES), rows.column(listing.LABELS)
        corners = [column for column in found if column is not None]
        if not corners and string is None:
            return None
        if string is None and len(corners) < 4:
            missing = [side[0] for side, column in zip(CORNERS, found, strict=True) if column is None]
            raise InputError(
                f"the boxes of {str(rows.path)!r} have no {' and no '.join(missing)}", known=", ".join(rows.header)
            )
        of_files = rows.column(listing.FILES)
        if of_files is None:
            raise InputError(
                f"no column of {str(rows.path)!r} names the pictures",
                known=", ".join(rows.header),
                next=f"call one of them file; known names are {', '.join(listing.FILES)}",
            )
        file = of_files
    boxes: dict[str, list[Box]] = {}
    for row in rows.rows:
        name = _cell(row, file)
        if name is None:
            raise InputError("a row of boxes names no picture", at=rows.at(row))
        of_picture = boxes.setdefault(name, [])
        if string is not None:
            of_picture += _prediction(_cell(row, string) or "", rows.at(row))
        else:
            written = _cell(row, label) if label is not None else None
            of_picture.append(_box([_cell(row, column) for column in corners], written, rows.at(row)))
    return {name: tuple(of_picture) for name, of_picture in boxes.items()}


def _cell(row: Row, column: int) -> str | None:
    return (row.cells[column] or None) if column < len(row.cells) else None


def _prediction(text: str, at: str) -> list[Box]:
    """``n01978287 240 170 260 240 n01978287 ...``"""
    words = text.split()
    if len(words) % 5:
        raise InputError(
            f"a PredictionString of {len(words)} words", at=at, known="five for each box: n01978287 240 170 260 240"
        )
    return [_box(words[i + 1 : i + 5], words[i], at) for i in range(0, len(words), 5)]


def _box(words: Sequence[str | None], label: str | None, at: str) -> Box:
    values = []
    for word, name in zip(words, ("x1", "y1", "x2", "y2"), strict=True):
        if word is None or not _NUMBER.fullmatch(word) or not math.isfinite(float(word)):
            raise InputError(
                f"{name} of a box is {word!r}" if word else f"a box has no {name}", at=at, known="a number of pixels"
            )
        values.append(float(word))
    x1, y1, x2, y2 = values
    return Box(x1, y1, x2, y2, label)


# ---------------------------------------------------------------------------------------------------- Pascal VOC


def _from_folder(folder: Path) -> dict[str, tuple[Box, ...]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".xml" and not p.name.startswith("."))
    if not files:
        raise InputError(
            f"the folder {str(folder)!r} holds no boxes",
            known="Pascal VOC files, *.xml, in it or below it",
            next="give the CSV file itself if the boxes are in one",
        )
    count: dict[str, int] = {}
    for file in files:
        count[file.stem] = count.get(file.stem, 0) + 1
    names = [
        file.stem if count[file.stem] == 1 else file.relative_to(folder).with_suffix("").as_posix() for file in files
    ]
    return {name: _from_xml(file) for name, file in zip(names, files, strict=True)}


class _NoDoctype(ElementTree.TreeBuilder):
    """The second guard: the parser calls this at the start of a document type, in whatever encoding it is written."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("a document type")


def _from_xml(file: Path) -> tuple[Box, ...]:
    name = repr(str(file))
    content = listing.read_regular(file, LARGEST_XML, "boxes in Pascal VOC's XML")
    refused = InputError(
        f"the XML file {name} declares a document type or entities: it is not parsed",
        known="boxes need none, and entities can blow a small file up without end",
        next="remove the <!DOCTYPE ...> if you trust the file",
    )
    if b"\0" in content:
        raise InputError(f"the XML file {name} is not in UTF-8", next="save it in UTF-8")
    if _DECLARATION.search(content):
        raise refused
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(content)
        root: Any = parser.close()
    except InputError:
        raise refused from None
    except ElementTree.ParseError as error:
        raise InputError(f"{name} is not XML: {error}", at=f"{name}, line {error.position[0]}") from None
    except (ValueError, LookupError) as error:  # an encoding that Python or the parser does not know
        raise InputError(f"the XML file {name} cannot be read: {error}", next="save it in UTF-8") from None
    if root.tag != "annotation":
        raise InputError(f"the XML file {name} has no boxes in Pascal VOC's form", known=f"it is a <{root.tag}>")
    boxes = []
    for i, thing in enumerate(root.findall("object"), start=1):
        at = f"{name}, object {i}"
        bounds = thing.find("bndbox")
        if bounds is None:
            raise InputError("an object without a <bndbox>", at=at)
        words = [(bounds.findtext(side[1]) or "").strip() or None for side in CORNERS]
        boxes.append(_box(words, (thing.findtext("name") or "").strip() or None, at))
    return tuple(boxes)
