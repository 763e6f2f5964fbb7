"""Which pictures are measured: a folder, a tree of class folders, a CSV list, Parquet, an address, or single files.

Nothing is opened here but lists: a picture that is missing or broken is found when it is read, and then it is one
failure among the results and no end of the run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fgcam_onnx.errors import FgcamError, ImageError, InputError, OptionError
from fgcam_onnx.evaluation import listing
from fgcam_onnx.evaluation.boxes import Box, read_boxes, with_boxes
from fgcam_onnx.evaluation.listing import Listing
from fgcam_onnx.imaging import PICTURE_ENDINGS

__all__ = ["Dataset", "Sample", "read_dataset"]

# Folders that are a part of a data set and no class of it; the first that is there is taken.
SPLITS = ("val", "validation", "valid", "test", "train")
# Folders that hold pictures and are no class: n01443537/images/, VOC's JPEGImages/.
HOLDERS = ("images", "imgs", "img", "pictures", "photos", "jpegimages")
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Sample:
    """A picture. ``id``: its path below the root in posix form, unique. ``label``: as written, or None.

    ``source``: reads the bytes of a picture that is no file here; ``path`` is then its name in errors.
    """

    id: str
    path: Path
    label: str | None
    boxes: tuple[Box, ...] = ()
    source: Callable[[], bytes] | None = None

    def content(self) -> bytes:
        """The bytes of the picture's file. Raises :class:`ImageError` where it cannot be read."""
        if self.source is not None:
            return self.source()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(
                f"the picture {str(self.path)!r} cannot be read", known=error.strerror or str(error)
            ) from None


@dataclass(frozen=True)
class Dataset:
    """``counts``: found, pictures (less than found under a limit), labelled, boxed. ``notes``: what a reader of the
    results has to know, a sentence each."""

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
    """The pictures of a source, their labels and boxes, in the order of their names or of their list.

    ``source`` is one of these, or several of them:

    - a folder of pictures: no labels. Lists in it are not read unless they are given;
    - a folder of class folders: the label is the folder's name, and the pictures may lie deeper. ``val/`` and
      ``train/`` are no classes: of several such parts the first of val, validation, valid, test, train is taken;
    - a CSV of file and label (``.csv``, ``.tsv``, ``.txt``): paths relative to the list, their endings may be missing.
      Boxes in the list (x1, y1, x2, y2, or ``PredictionString``) are read with it, and where all boxes of a
      ``PredictionString`` are of one class, that is the label;
    - a picture;
    - a Parquet file or a folder of them, or an address such as s3://bucket/pictures
      (:func:`fgcam_onnx.evaluation.remote.samples_of`).

    ``boxes``: what :func:`fgcam_onnx.evaluation.boxes.read_boxes` reads. A picture has the boxes of its own path, or
    of the end of it, whatever the endings. ``limit``: so many pictures, drawn by ``seed``; of one seed, the draw of 10
    is part of the draw of 20. The id of a picture is relative to the folder, to the folder of the list or picture, or,
    of several sources, to the folder that all of them lie in.

    Raises:
        ImageError: a source that does not exist, or a folder without pictures.
        InputError: a list or boxes that cannot be read; a picture that is listed with two labels.
        OptionError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit is {limit}", known="the number of pictures to draw, 1 or more")
    sources = [Path(source)] if isinstance(source, (str, Path)) else [Path(each) for each in source]
    if not sources:
        raise InputError("no pictures are given", next="give a folder, a list in CSV, or pictures")
    given = None if boxes is None else Path(boxes)
    notes: list[str] = []
    found = [_from(each, given, notes) for each in sources]
    samples = _joined(found, notes) if len(sources) > 1 else found[0]
    samples = _once(samples, notes)
    if given is not None:
        samples = _boxed(samples, read_boxes(given), notes)
    missing = [sample for sample in samples if sample.source is None and not os.path.lexists(sample.path)]
    if missing:
        notes.append(f"pictures that are listed and not there: {len(missing)}, first {str(missing[0].path)!r}")
    counts = {"found": len(samples)}
    if limit is not None and limit < len(samples):
        samples = _drawn(samples, limit, seed)
        notes.append(f"{limit} of {counts['found']} pictures, drawn with seed {seed}")
    counts["pictures"] = len(samples)
    counts["labelled"] = sum(sample.label is not None for sample in samples)
    counts["boxed"] = sum(bool(sample.boxes) for sample in samples)
    return Dataset(tuple(samples), counts, tuple(notes))


def _drawn(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Each picture has its place by a hash of seed and id, so that no other picture moves it."""

    def place(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()

    chosen = {sample.id for sample in sorted(samples, key=place)[:limit]}
    return [sample for sample in samples if sample.id in chosen]


# ---------------------------------------------------------------------------------------------------- sources


def _from(source: Path, boxes: Path | None, notes: list[str]) -> list[Sample]:
    from fgcam_onnx.evaluation import remote

    if remote.is_remote(source):
        return remote.samples_of(source)
    if source.is_dir():
        return _from_folder(source, boxes, notes)
    if not source.exists():
        raise ImageError(f"there is no picture {str(source)!r}", next="check the path")
    if source.suffix.lower() in listing.LIST_ENDINGS:
        return _from_list(source, notes)
    return [Sample(_id(source.name), source, None)]


def _joined(found: Sequence[Sequence[Sample]], notes: list[str]) -> list[Sample]:
    """The samples of several sources, with ids relative to the folder that all of them lie in."""
    samples = [sample for each in found for sample in each]
    paths = [Path(os.path.abspath(sample.path)) for sample in samples]
    try:
        root = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # two drives of Windows
        return [replace(s, id=_id(path.as_posix())) for s, path in zip(samples, paths, strict=True)]
    return [replace(s, id=_id(path.relative_to(root).as_posix())) for s, path in zip(samples, paths, strict=True)]


def _once(samples: Sequence[Sample], notes: list[str]) -> list[Sample]:
    """Each id once. The same picture with another label is a contradiction, and nobody but the user can solve it."""
    by_id: dict[str, Sample] = {}
    again = 0
    for sample in samples:
        first = by_id.setdefault(sample.id, sample)
        if first is sample:
            continue
        again += 1
        if first.label is None or sample.label is None:
            by_id[sample.id] = replace(first, label=first.label or sample.label, boxes=first.boxes or sample.boxes)
        elif first.label != sample.label:
            raise InputError(
                f"the picture {sample.id!r} has two labels",
                known=f"{first.label!r} and {sample.label!r}",
                next="leave one of them",
            )
    if again:
        notes.append(f"pictures that were named again and are measured once: {again}")
    return list(by_id.values())


def _id(name: str) -> str:
    """A name that can be written to any file: bytes that are no UTF-8 become ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------------------------------------- folders


def _from_folder(source: Path, boxes: Path | None, notes: list[str]) -> list[Sample]:
    top = source
    while True:
        pictures, folders = _listed(top)
        holding = [folder for folder in folders if next(_pictures(folder), None) is not None]
        lists = sorted(p.name for p in top.iterdir() if p.suffix.lower() == ".csv" and p.is_file() and p != boxes)
        if lists:
            notes.append(f"lists among the pictures, not read unless they are given: {_some(lists)}")
        if pictures:
            if holding:
                notes.append(f"folders beside the pictures, left out: {_some([folder.name for folder in holding])}")
            return [_sample(path, source, None) for path in pictures]
        if not holding:
            raise ImageError(f"the folder {str(source)!r} holds no pictures", known=" ".join(PICTURE_ENDINGS))
        if all(folder.name.lower() in SPLITS for folder in holding):
            holding.sort(key=lambda folder: SPLITS.index(folder.name.lower()))
            top = holding[0]
            if len(holding) > 1:
                notes.append(f"{top.name}/ is measured; left out: {_some([folder.name for folder in holding[1:]])}")
        elif len(holding) == 1 and _is_way(holding[0]):
            top = holding[0]
        else:
            break
    return [
        _sample(path, source, _id(folder.name))
        for folder in holding
        for path in sorted(_pictures(folder), key=lambda path: path.as_posix())
    ]


def _is_way(folder: Path) -> bool:
    """A folder alone on the way to the classes, such as ``ILSVRC/Data/CLS-LOC``, and no class itself."""
    if _SYNSET.fullmatch(folder.name):
        return False
    return folder.name.lower() in HOLDERS or not _listed(folder)[0]


def _sample(path: Path, root: Path, label: str | None) -> Sample:
    return Sample(_id(path.relative_to(root).as_posix()), path, label)


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the folders in a folder, by name. What is hidden, and what macOS leaves in archives, is not."""
    pictures, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    folders.append(folder / entry.name)
                elif entry.name.lower().endswith(PICTURE_ENDINGS):
                    pictures.append(folder / entry.name)
    except OSError as error:
        raise ImageError(
            f"the folder {str(folder)!r} cannot be read: {error.strerror}", next="check its permissions"
        ) from None
    return sorted(pictures), sorted(folders)


def _pictures(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The pictures at any depth. A link to a folder is followed, but not back into itself."""
    real = os.path.realpath(folder)
    if real in above:
        return
    pictures, folders = _listed(folder)
    yield from pictures
    for each in folders:
        yield from _pictures(each, (*above, real))


# ---------------------------------------------------------------------------------------------------- lists


def _from_list(path: Path, notes: list[str]) -> list[Sample]:
    places = _Places(path.parent)
    names = (*listing.FILES, *listing.LABELS, *listing.BOXES)
    rows = listing.read_listing(path, names, lambda cells: cells[0].lower().endswith(PICTURE_ENDINGS))
    boxes = with_boxes(rows)
    string = rows.column(listing.BOXES)
    file, label = _columns(rows, places, boxes is not None, notes)
    samples: dict[str, Sample] = {}
    lines: dict[str, int] = {}
    again, undecided = 0, set()
    for row in rows.rows:
        name = row.cells[file] if file < len(row.cells) else ""
        if not name:
            raise InputError("a row names no picture", at=rows.at(row))
        its = (boxes or {}).get(name, ())
        written = row.cells[label] if label is not None and label < len(row.cells) else ""
        if string is not None and not written and len({box.label for box in its}) == 1:
            written = its[0].label or ""
        where, place = places(name)
        sample = Sample(where, place, written or None, its)
        first = samples.setdefault(where, sample)
        line = lines.setdefault(where, row.line)
        if first is sample:
            continue
        again += 1
        if first.label == sample.label:
            continue
        if boxes is None:
            raise InputError(
                f"the picture {where!r} has two labels",
                at=rows.at(row),
                known=f"{first.label!r} in line {line}, and {sample.label!r}",
                next="leave one of them",
            )
        undecided.add(where)
    if again and boxes is None:  # where a line is a box, a picture comes again with each
        notes.append(f"pictures that are listed again and measured once: {again}")
    if undecided:
        notes.append(f"pictures whose boxes are of several classes, taken without a label: {len(undecided)}")
    return [replace(s, label=None) if s.id in undecided else s for s in samples.values()]


def _columns(rows: Listing, places: _Places, boxed: bool, notes: list[str]) -> tuple[int, int | None]:
    """The column of the pictures and that of their labels."""
    if rows.header is not None:
        file = rows.column(listing.FILES)
        if file is None:
            raise _nameless(rows, rows.header)
        labels = rows.columns(listing.LABELS)
        if len(labels) > 1:
            unread = _some([rows.header[column] for column in labels[1:]])
            notes.append(f"labels are of the column {rows.header[labels[0]]!r} of {rows.path.name}, not {unread}")
        return file, labels[0] if labels else None

    def is_picture(cell: str) -> bool:
        return cell.lower().endswith(PICTURE_ENDINGS) or os.path.lexists(places(cell)[1])

    first, *others = [row.cells for row in rows.rows]
    below = [cell for cells in others[:20] for cell in cells]
    if not is_picture(first[0]) and any(map(is_picture, (*first[1:], *below))):
        raise _nameless(rows, first)
    width = max(len(row.cells) for row in rows.rows)
    return 0, (5 if width > 5 else None) if boxed else (1 if width > 1 else None)


def _nameless(rows: Listing, first: Sequence[str]) -> FgcamError:
    return InputError(
        f"no column of {str(rows.path)!r} names the pictures",
        known=f"its first line is {', '.join(first)}",
        next=f"call one of them file; known names are {', '.join(listing.FILES)}",
    )


class _Places:
    """From a name in a list to id and path. Folders are listed once: a list may have a million names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[Path, dict[str, str]] = {}

    def __call__(self, name: str) -> tuple[str, Path]:
        path = self.root / name
        if "\\" in name and not os.path.lexists(path):
            path = self.root / name.replace("\\", "/")
        if not path.name.lower().endswith(PICTURE_ENDINGS):
            path = path.with_name(self._of(path.parent).get(path.name, path.name)) if path.name else path
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return _id(inside.as_posix()), path

    def _of(self, folder: Path) -> dict[str, str]:
        """The pictures of a folder by their names without the ending; the first by name where there are several."""
        if folder not in self._stems:
            try:
                pictures = _listed(folder)[0] if folder.is_dir() else []
            except ImageError:
                pictures = []
            self._stems[folder] = {path.stem: path.name for path in reversed(pictures)}
        return self._stems[folder]


# ---------------------------------------------------------------------------------------------------- boxes


def _boxed(samples: Sequence[Sample], boxes: Mapping[str, tuple[Box, ...]], notes: list[str]) -> list[Sample]:
    """The samples with their boxes; what fits none of them, or several, is told."""
    by_stem: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        by_stem.setdefault(_bare(sample.id)[-1], []).append(i)
    found: dict[int, list[Box]] = {}
    nowhere = several = 0
    for name, its in boxes.items():
        parts = _bare(name)
        fitting = [i for i in by_stem.get(parts[-1], ()) if _is_end(parts, _bare(samples[i].id))]
        if len(fitting) > 1:  # the same name with other endings: a.jpg and a.png
            ending = PurePosixPath(name.replace("\\", "/")).suffix
            fitting = [i for i in fitting if PurePosixPath(samples[i].id).suffix == ending] or fitting
        if len(fitting) == 1:
            found.setdefault(fitting[0], []).extend(its)
        elif fitting:
            several += len(its)
        else:
            nowhere += len(its)
    total = sum(map(len, boxes.values()))
    if nowhere:
        notes.append(f"boxes without a picture: {nowhere} of {total}")
    if several:
        notes.append(f"boxes whose name fits several pictures, left out: {several} of {total}")
    without = len(samples) - sum(bool(its) for its in found.values())
    if without:
        notes.append(f"pictures without a box: {without} of {len(samples)}")
    return [replace(sample, boxes=tuple(found.get(i, ()))) for i, sample in enumerate(samples)]


def _bare(name: str) -> tuple[str, ...]:
    """The parts of a path, the last without the ending of a picture."""
    *folders, last = PurePosixPath(name.replace("\\", "/")).parts or ("",)
    ending = next((ending for ending in PICTURE_ENDINGS if last.lower().endswith(ending)), "")
    return (*folders, last[: len(last) - len(ending)])


def _is_end(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Is one of the paths the end of the other?"""
    n = min(len(a), len(b))
    return a[-n:] == b[-n:]


def _some(names: Sequence[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
