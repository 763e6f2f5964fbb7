"""Pictures that are no files here: rows of Parquet files, and objects of a store such as ``s3://bucket/pictures``.

Only names and labels are listed; a picture's bytes are read where it is measured, and a failure to read them is the
failure of that picture. pyarrow opens s3://, gs://, abfs://, hdfs:// and file://.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fgcam_onnx.errors import ImageError, InputError
from fgcam_onnx.evaluation.dataset import Sample
from fgcam_onnx.imaging import PICTURE_ENDINGS
from fgcam_onnx.optional import need

__all__ = ["InParquet", "InStore", "column_of", "is_remote", "samples_of", "uri_of"]

# Columns by these names hold pictures, labels and names; the first that is there is taken.
PICTURES = ("image", "bytes", "content", "img", "picture", "image_bytes", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "class", "target", "fine_label", "cls", "y")
NAMES = ("path", "file", "filename", "file_name", "image_path", "image_id", "id", "__key__")
# pathlib makes one slash of two.
_URI = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE)


def uri_of(word: str | Path) -> str | None:
    """``s3://bucket/a``, also after pathlib has had it; None for a path."""
    match = _URI.fullmatch(str(word))
    if match is None or len(match[1]) < 2 or Path(word).exists():
        return None
    return f"{match[1].lower()}://{'/' if match[1].lower() == 'file' else ''}{match[2]}"


def is_remote(word: str | Path) -> bool:
    """Is this a URI, a Parquet file, or a folder of such files and of no pictures?"""
    path = Path(word)
    return uri_of(word) is not None or path.suffix.lower() == ".parquet" or _holds_parquet(path)


def _holds_parquet(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = [path.name.lower() for path in folder.iterdir() if not path.name.startswith(".")]
    return any(n.endswith(".parquet") for n in names) and not any(n.endswith(PICTURE_ENDINGS) for n in names)


def samples_of(word: str | Path) -> list[Sample]:
    """The pictures of a URI, a Parquet file or a folder of Parquet files, in the order of names and rows.

    Below a URI the picture's id is its path there, and its label the first folder on it, where all pictures lie in
    folders. In Parquet the pictures are a column of bytes (:data:`PICTURES`), or Hugging Face's struct of ``bytes`` and
    ``path``; the id is the path or name beside it if there is one for each and no two are the same, else
    ``file.parquet#row``.

    Raises:
        ImageError: there is nothing, or no picture in it.
        InputError: it cannot be listed, or a Parquet file has no column of pictures.
        MissingPackageError: pyarrow is not installed.
    """
    root = uri_of(word) or str(Path(word).absolute())
    fs, top = _opened(root)
    arrow_fs = need("pyarrow.fs", "evaluate", "it reads Parquet and object stores")
    try:
        info = fs.get_file_info(top)
        if info.type == arrow_fs.FileType.NotFound:
            raise ImageError(f"there is no picture {root!r}", next="check the address")
        found = [info] if info.is_file else fs.get_file_info(arrow_fs.FileSelector(top, recursive=True))
    except OSError as error:
        raise InputError(f"{root!r} cannot be listed", known=_said(error)) from None
    base = PurePosixPath(top).parent if info.is_file else PurePosixPath(top)
    files = sorted(PurePosixPath(each.path) for each in found if each.is_file)
    inside = {file: file.relative_to(base).as_posix() for file in files}
    shown = [file for file in files if not any(part[0] in "._" for part in inside[file].split("/"))]
    parquet = [file for file in shown if file.suffix.lower() == ".parquet"]
    if parquet:
        return _of_parquet(_above(root) if info.is_file else root, [inside[file] for file in parquet])
    pictures = [inside[file] for file in shown if file.name.lower().endswith(PICTURE_ENDINGS) or info.is_file]
    if not pictures:
        raise ImageError(f"{root!r} holds no pictures", known=" ".join((*PICTURE_ENDINGS, ".parquet")))
    place = _above(root) if info.is_file else root
    labelled = all("/" in name for name in pictures)
    return [
        Sample(name, Path(place, name), name.split("/")[0] if labelled else None, source=InStore(place, name))
        for name in pictures
    ]


def _above(root: str) -> str:
    return root.rstrip("/").rsplit("/", 1)[0]


# ---------------------------------------------------------------------------------------------------- one picture


@dataclass(frozen=True)
class InStore:
    """An object below the address of a folder."""

    root: str
    name: str

    def __call__(self) -> bytes:
        fs, top = _opened(self.root)
        try:
            with fs.open_input_stream(f"{top}/{self.name}") as stream:
                return bytes(stream.read())
        except OSError as error:
            raise ImageError(f"the picture {self.name!r} cannot be read", at=self.root, known=_said(error)) from None


@dataclass(frozen=True)
class InParquet:
    """A row of a row group of a Parquet file below the address of a folder."""

    root: str
    name: str
    group: int
    row: int
    column: str

    def __call__(self) -> bytes:
        try:
            cell = _group(self.root, self.name, self.group, self.column)[self.row].as_py()
        except (OSError, IndexError) as error:
            raise ImageError(
                f"row {self.row} of row group {self.group} of {self.name!r} cannot be read",
                at=self.root,
                known=_said(error),
            ) from None
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ImageError(
                f"row {self.row} of row group {self.group} of {self.name!r} has no bytes of a picture",
                at=f"column {self.column!r}",
                known="a path alone" if isinstance(cell, dict) and cell.get("path") else None,
            )
        return content


@functools.lru_cache(maxsize=1)
def _group(root: str, name: str, group: int, column: str) -> Any:
    """A column of a row group. Pictures are asked for in their order, so that each group is read once."""
    return _file(root, name).read_row_group(group, columns=[column])[column]


@functools.lru_cache(maxsize=1)
def _file(root: str, name: str) -> Any:
    parquet = need("pyarrow.parquet", "evaluate", "it reads Parquet")
    fs, top = _opened(root)
    return parquet.ParquetFile(f"{top}/{name}", filesystem=fs)


@functools.lru_cache(maxsize=8)
def _opened(root: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    arrow_fs = need("pyarrow.fs", "evaluate", "it reads Parquet and object stores")
    try:
        fs, path = arrow_fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"the address {root!r} cannot be opened", known=_said(error)) from None
    return fs, path.rstrip("/")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# ---------------------------------------------------------------------------------------------------- Parquet


def _of_parquet(root: str, names: Sequence[str]) -> list[Sample]:
    found: list[tuple[str, str | None, InParquet]] = []
    for name in names:
        found += _rows(root, name)
    given = [own for _, own, _ in found]
    named = None not in given and len(set(given)) == len(given)
    samples = []
    for i, (label, own, source) in _numbered(found):
        id = str(own) if named else f"{source.name}#{i}"
        samples.append(Sample(id, Path(root, id), label, source=source))
    return samples


def _numbered(
    found: Sequence[tuple[str | None, str | None, InParquet]],
) -> Iterator[tuple[int, tuple[str | None, str | None, InParquet]]]:
    """Each row with its number in its file."""
    count, file = 0, ""
    for each in found:
        count, file = (count + 1, file) if each[2].name == file else (0, each[2].name)
        yield count, each


def _rows(root: str, name: str) -> list[Any]:
    """Label, name and source of each row."""
    try:
        file = _file(root, name)
        schema = file.schema_arrow
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{name!r} is no Parquet file", at=root, known=_said(error)) from None
    pictures = column_of(schema, name)
    columns = {field.name.lower(): field.name for field in schema if field.name != pictures}
    label = next((columns[word] for word in LABELS if word in columns), None)
    own = next((columns[word] for word in NAMES if word in columns), None)
    beside = f"{pictures}.path" if own is None and _has_path(schema.field(pictures)) else None
    wanted = [each for each in (label, own, beside) if each]
    rows: list[Any] = []
    for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        table = file.read_row_group(group, columns=wanted) if wanted else None
        labels = [None] * n if label is None or table is None else table[label].to_pylist()
        if own is not None and table is not None:
            its = table[own].to_pylist()
        elif beside is not None and table is not None:
            its = [cell and cell.get("path") for cell in table[pictures].to_pylist()]
        else:
            its = [None] * n
        rows += [(_word(labels[row]), _word(its[row]), InParquet(root, name, group, row, pictures)) for row in range(n)]
    return rows


def _word(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def column_of(schema: Any, name: str) -> str:
    """The column of pictures of a schema. Raises :class:`InputError` where there is none."""
    types = need("pyarrow", "evaluate", "it reads Parquet").types
    fits = [field.name for field in schema if _is_bytes(types, field.type)]
    by_name = {each.lower(): each for each in fits}
    found: str | None = next((by_name[word] for word in PICTURES if word in by_name), None) or (
        fits[0] if len(fits) == 1 else None
    )
    if found is None:
        raise InputError(
            f"no column of {name!r} holds pictures",
            known=", ".join(f"{field.name} {field.type}"[:60] for field in schema),
            next=f"a column of bytes, or of Hugging Face's struct, called {', '.join(PICTURES[:3])}",
        )
    return found


def _is_bytes(types: Any, kind: Any) -> bool:
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return any(field.name == "bytes" and _is_bytes(types, field.type) for field in fields)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_path(field: Any) -> bool:
    kind = field.type
    return hasattr(kind, "num_fields") and any(kind.field(i).name == "path" for i in range(kind.num_fields))
