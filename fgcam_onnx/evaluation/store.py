"""Where the rows of an evaluation go as they are made: whole for an image or not at all, whenever it is stopped.

A folder holds one run:

    run.json        what is measured with what; written first, and compared when the folder is opened again
    rows/           parquet: part-00000001-<image>.parquet, a part an image, numbered in the order they were made
                    (of maps, part-00000001-<first image>!<hash>.parquet: several images, whole or not at all together)
    rows.csv        or CSV, RFC 4180: a line a row, its last column the number of rows of its image
    .lock           held while a process writes; the system lets go of it when the process ends, however it ends

A part is written beside its place under a name that no reader takes, forced to the disk, and renamed: ``rows/`` can be
read at any moment by pyarrow.dataset, pandas or DuckDB. The lines of an image are appended by one write. A process that
is killed in the middle leaves a part that never got its name, or lines fewer than they say: both are cut off at the
next opening, and the image is made again.

Floats keep their bits in both forms, nan and inf among them. In CSV a float is written as Python writes it, a list as
its numbers between spaces (``[]`` for an empty one), None as an empty cell, and an empty string as ``""``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import quote, unquote

from fgcam_onnx.errors import InputError, OptionError, OutputError, nearest
from fgcam_onnx.explanation import plain_json
from fgcam_onnx.optional import need

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FORMS", "KEY", "KINDS", "Row", "Store", "arrow_schema", "open_store", "read_rows"]

Row = dict[str, Any]

FORMS = ("parquet", "csv")
KINDS = ("string", "int64", "float64", "floats", "bytes")
# The column of the image's id, and the one that CSV ends with.
KEY, COUNT = "image", "rows"
SCHEMA_VERSION = 1
AGAIN = "begin anew, which removes these rows: --fresh; or choose another folder: -o DIR"
INT64 = range(-(1 << 63), 1 << 63)


def open_store(
    folder: str | Path,
    spec: Mapping[str, Any],
    *,
    columns: Mapping[str, str],
    form: str = "parquet",
    fresh: bool = False,
    parts: str = "rows",
) -> Store:
    """The store of a run, begun or gone on with.

    ``spec``: what is measured with what, plain JSON values; the keys that ``spec["free"]`` lists may change from one
    opening to the next, such as a limit. ``columns``: each column and what it holds: string, int64, float64, floats
    for a list of them, or bytes, which Parquet alone has; the image's id is the column ``image``, added where it is
    missing. ``fresh`` removes the rows of an earlier run, and nothing else in the folder. ``parts``: the name of the
    folder of Parquet's parts.

    Raises:
        OptionError: the folder holds a run of another spec, other columns or another form, or rows of unknown origin;
            a form or a kind of column that does not exist.
        OutputError: the folder cannot be written, or another process is writing to it.
        InputError: the rows that are there were changed by hand, or damaged.
        MissingPackageError: Parquet without pyarrow.
    """
    kinds = _checked(columns)
    if form not in FORMS:
        raise OptionError(f"no form {form!r}", known=", ".join(FORMS), next=nearest(form, FORMS) or None)
    if form == "csv" and "bytes" in kinds.values():
        raise OptionError("CSV has no bytes", known="a column holds bytes", next="form parquet")
    arrow = _arrow() if form == "parquet" else None
    folder = Path(folder)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "form": form,
        "columns": dict(kinds),
        "spec": json.loads(json.dumps(plain_json(spec))),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told(folder, "write to"))
        _make(folder)
        lock = _lock(folder)
        stack.callback(os.close, lock)
        _remove([folder / ".run.json.part"])
        if fresh:
            _begin_anew(folder, parts)
        there = _same_run(folder, record, parts)
        if there is not None:  # the order in which the columns stand in the file
            kinds = record["columns"] = {name: kinds[name] for name in there["columns"]}
        text = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
        if not _is(folder / "run.json", text):
            _write(folder / "run.json", text)
        rows: _Parquet | _Csv = _Csv(folder, kinds) if arrow is None else _Parquet(folder / parts, kinds, arrow)
        store = Store(folder, kinds, rows, rows.opened(), lock)
        stack.pop_all()
    return store


def read_rows(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """What run.json says, and all complete rows, of a run that may still be going on; nothing is written or locked.

    Raises :class:`OptionError` for a folder without a run, :class:`InputError` for one that is damaged.
    """
    folder = Path(folder)
    record = _record(folder)
    if record is None:
        raise OptionError(f"{str(folder)!r} is no folder of an evaluation", known="it has no run.json")
    kinds = _checked(record["columns"])
    rows: _Parquet | _Csv = (
        _Csv(folder, kinds) if record["form"] == "csv" else _Parquet(folder / "rows", kinds, _arrow())
    )
    with _told(folder, "read"):
        return record, rows.read()


class Store:
    """Rows of one run in one folder. A context manager; :func:`open_store` makes it.

    ``path``: the folder. ``columns``: each column and what it holds, the id first.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, str], rows: _Parquet | _Csv, done: Iterable[str], lock: int
    ) -> None:
        self.path, self.columns = path, dict(columns)
        self._rows, self._lock = rows, lock
        self._done = dict.fromkeys(done)
        self._frozen: frozenset[str] | None = None

    @property
    def done(self) -> frozenset[str]:
        """The ids of the images whose rows are all there."""
        if self._frozen is None:
            self._frozen = frozenset(self._done)
        return self._frozen

    def append(self, id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """All rows of one image. They are on the disk when this returns; after an error none of them is.

        A column that a row lacks is None; ``image`` is filled in.

        Raises:
            OutputError: they cannot be written: no space, no permission, or the store is closed.
            InputError: the image has its rows already, there are no rows, or a value does not fit its column.
        """
        self.append_all({id: rows})

    def append_all(self, images: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """All rows of several images, by their ids: in Parquet one part, and all of them are there or none.

        Raises: as :meth:`append`.
        """
        if self._lock < 0:
            raise OutputError(f"the store {str(self.path)!r} is closed")
        made: dict[str, list[Row]] = {}
        for id, rows in images.items():
            if id in self._done:
                raise InputError(f"the rows of {id!r} are in {str(self.path)!r} already")
            made[id] = [self._row(id, row) for row in rows]
            if not made[id]:
                raise InputError(
                    f"there are no rows of {id!r}", known="an image without rows would never count as done"
                )
        if not made:
            return
        with _told(self.path, "write to"):
            self._rows.append(made)
        self._done |= dict.fromkeys(made)
        self._frozen = None

    def rows(self, columns: Sequence[str] | None = None) -> list[Row]:
        """All rows, in the order in which their images were appended. Every row has every column, or those named."""
        with _told(self.path, "read"):
            return self._rows.read(columns)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            self._rows.close()
            os.close(lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _row(self, id: str, row: Mapping[str, Any]) -> Row:
        unknown = [name for name in row if name not in self.columns]
        if unknown:
            raise InputError(
                f"a row of {id!r} has a column {unknown[0]!r} that the store does not have",
                known=", ".join(self.columns),
                next=nearest(unknown[0], self.columns) or None,
            )
        if row.get(KEY, id) != id:
            raise InputError(f"a row of {id!r} says that it is of {row[KEY]!r}")
        made = {name: _value(row.get(name), kind, name, id) for name, kind in self.columns.items()}
        made[KEY] = _value(id, "string", KEY, id)
        return made


# ---------------------------------------------------------------------------------------------------- values


def _checked(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns, with the id first."""
    kinds = {KEY: columns.get(KEY, "string"), **columns}
    for name, kind in kinds.items():
        if kind not in KINDS or (name == KEY and kind != "string"):
            raise OptionError(
                f"the column {name!r} holds {kind!r}", known="string" if name == KEY else ", ".join(KINDS)
            )
        if not name or name == COUNT or not name.isprintable():
            raise OptionError(f"a column cannot be called {name!r}", known=f"{COUNT!r} is the last column of the CSV")
    return kinds


def _value(value: Any, kind: str, name: str, id: str) -> Any:
    """The value as its column holds it, of Python's own types. NumPy's numbers become Python's."""
    if value is None:
        return None
    try:
        if kind == "string":
            if not isinstance(value, str) or "\0" in value:
                raise TypeError
            value.encode()
            return str(value)
        if kind == "int64":
            whole = operator.index(value)
            if whole not in INT64:
                raise TypeError
            return int(whole)
        if kind == "float64":
            if isinstance(value, (str, bytes)):
                raise TypeError
            return float(value)
        if kind == "bytes":
            return bytes(memoryview(value))
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError
        return [_number(each) for each in value]
    except (TypeError, ValueError, OverflowError):
        shown = repr(value)
        raise InputError(
            f"{name} of {id!r} is {shown[:80]}{'...' * (len(shown) > 80)}", known=f"the column holds {kind}"
        ) from None


def _number(value: Any) -> float:
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError
    return float(value)


# ---------------------------------------------------------------------------------------------------- run.json


def _record(folder: Path) -> dict[str, Any] | None:
    """What run.json says, or None where there is none."""
    file = folder / "run.json"
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", next=AGAIN) from None
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("spec"), dict)
        or not isinstance(record.get("columns"), dict)
        or record.get("form") not in FORMS
    ):
        raise InputError(f"{str(file)!r} is no record of an evaluation", next=AGAIN)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{str(file)!r} is of version {record.get('schema_version')!r}", known=f"{SCHEMA_VERSION}", next=AGAIN
        )
    return record


def _same_run(folder: Path, record: Mapping[str, Any], parts: str) -> dict[str, Any] | None:
    """The record in the folder, checked to be of the same run; None where there is none."""
    there = _record(folder)
    if there is None:
        if next(_made_here(folder, parts), None) is not None:
            raise OptionError(f"{str(folder)!r} holds rows, and no run.json says what they are of", next=AGAIN)
        return None
    free = {"free", *map(str, record["spec"].get("free") or ())}
    old, new = (
        {
            **_flat({key: value for key, value in each["spec"].items() if key not in free}),
            **_flat({"columns": each["columns"], "form": each["form"]}),
        }
        for each in (there, record)
    )
    different = [key for key in {**old, **new} if key not in old or key not in new or old[key] != new[key]]
    if different:
        raise OptionError(
            f"the folder {str(folder)!r} holds a run of another kind",
            known="\n          ".join(_difference(key, old, new) for key in different),
            next=AGAIN,
        )
    return there


def _flat(record: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Mappings in mappings as ``options.ratio``, so that a difference is told where it is."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Both values; of two lists, what only one of them has."""
    there, now = old.get(key), new.get(key)
    if isinstance(there, list) and isinstance(now, list):
        gone, come = [x for x in there if x not in now], [x for x in now if x not in there]
        if gone or come:
            return f"{key}: only there {_shown(gone)}, only now {_shown(come)}"
    return f"{key}: there {_shown(there) if key in old else 'nothing'}, now {_shown(now) if key in new else 'nothing'}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _made_here(folder: Path, parts: str) -> Iterator[Path]:
    """The rows of a run, whole or not."""
    yield from (folder / parts).glob("part-*.parquet")
    yield from (folder / parts).glob(".part-*.tmp")
    yield from folder.glob("rows.csv")


def _begin_anew(folder: Path, parts: str) -> None:
    """Rows first, then what they are of: stopped between the two, the folder holds less of the old run."""
    _remove(list(_made_here(folder, parts)))
    if (folder / parts).is_dir():
        _sync_folder(folder / parts)
    _sync_folder(folder)
    _remove([folder / "run.json"])
    _sync_folder(folder)


# ---------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _told(folder: Path, verb: str) -> Iterator[None]:
    """An error of the system as one of this package."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"cannot {verb} {str(folder)!r}: {error.strerror or error}",
            at=str(error.filename) if error.filename else None,
            next="make room and start again: it goes on where it stopped" if full else "choose another folder: -o DIR",
        ) from None


def _make(folder: Path) -> None:
    """The folder, and its name on the disk."""
    if not folder.is_dir():
        above = next(each for each in folder.absolute().parents if each.exists())
        folder.mkdir(parents=True, exist_ok=True)
        each = folder.absolute()
        while each != above:
            each = each.parent
            _sync_folder(each)


def _lock(folder: Path) -> int:
    """An open file that only one process has locked. It stays when the run ends: removing it would be a race."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise OutputError(
                f"another process is writing to {str(folder)!r}",
                next="wait for it, or choose another folder: -o DIR",
            ) from None
        raise
    return lock


def _write(place: Path, content: bytes | memoryview) -> None:
    """A file that appears whole, written beside its place, and is on the disk when this returns."""
    beside = place.parent / f".{place.name.removesuffix('.parquet')}.{'tmp' if place.suffix == '.parquet' else 'part'}"
    try:
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, place)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_folder(place.parent)


def _write_all(file: int, content: bytes | memoryview) -> None:
    left = memoryview(content).cast("B")
    while left:
        left = left[os.write(file, left) :]


def _sync_folder(folder: Path) -> None:
    """Names on the disk. Windows has no such call."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _is(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------- Parquet


def _arrow() -> ModuleType:
    need("pyarrow.parquet", "evaluate", "Parquet")
    need("pyarrow.dataset", "evaluate", "Parquet")
    return need("pyarrow", "evaluate", "Parquet")


def arrow_schema(columns: Mapping[str, str]) -> Any:
    """Of Parquet's parts."""
    arrow = _arrow()
    types = {
        "string": arrow.string(), "int64": arrow.int64(), "float64": arrow.float64(),
        "floats": arrow.list_(arrow.float64()), "bytes": arrow.binary(),
    }  # fmt: skip
    return arrow.schema([(name, types[kind]) for name, kind in columns.items()])


class _Parquet:
    """A part an image. Its name has the number of the part and the image's id, so that opening reads no part.

    Of a long id the name has the beginning and a hash; then the id is read from the part. So it is with a part of
    several images, which is named after the first and a hash of all.
    """

    LONGEST = 160  # of 255 bytes that a name may have

    def __init__(self, folder: Path, columns: Mapping[str, str], arrow: ModuleType) -> None:
        self.folder, self.columns, self.arrow = folder, columns, arrow
        self.schema = arrow_schema(columns)
        self.next = 1

    def opened(self) -> list[str]:
        """The images whose parts are there. What a killed process left behind is removed."""
        _make(self.folder)
        _remove(self.folder.glob(".part-*.tmp"))
        done: dict[str, Path] = {}
        for part in self._parts():
            if not _is_whole(part):  # a disk that lost what it had confirmed
                part.unlink()
                continue
            for id in self._ids(part):
                if id in done:
                    raise InputError(
                        f"two parts hold rows of {id!r}",
                        known=f"{done[id].name} and {part.name}",
                        next="remove one of them",
                    )
                done[id] = part
            self.next = int(part.name.split("-")[1]) + 1
        _sync_folder(self.folder)
        return list(done)

    def append(self, images: Mapping[str, Sequence[Row]]) -> None:
        rows = [row for its in images.values() for row in its]
        table = self.arrow.Table.from_pylist(rows, schema=self.schema)
        out = self.arrow.BufferOutputStream()
        self.arrow.parquet.write_table(table, out)
        part = self.folder / f"part-{self.next:08}-{self._named(list(images))}.parquet"
        try:
            _write(part, memoryview(out.getvalue()))
        except BaseException:  # perhaps renamed, and the name not yet on the disk
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self.next += 1

    def read(self, columns: Sequence[str] | None = None) -> list[Row]:
        parts = [str(part) for part in self._parts()]
        if not parts:
            return []
        try:
            data = self.arrow.dataset.dataset(parts, schema=self.schema)
            rows: list[Row] = data.to_table(columns=None if columns is None else list(columns)).to_pylist()
        except self.arrow.ArrowInvalid as error:
            raise InputError(f"{str(self.folder)!r} has a part that cannot be read: {error}", next=AGAIN) from None
        return rows

    def close(self) -> None:
        """Nothing is open between two parts."""

    def _parts(self) -> list[Path]:
        """By number. A name that was not given here is none of ours."""
        parts = [(re.match(r"part-(\d{8,})-", path.name), path) for path in self.folder.glob("part-*.parquet")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in parts if match)]

    def _named(self, ids: Sequence[str]) -> str:
        name = quote(ids[0], safe="")
        if len(ids) == 1 and len(name) <= self.LONGEST:
            return name
        return f"{name[:96]}!{hashlib.sha256(chr(0).join(ids).encode()).hexdigest()[:32]}"

    def _ids(self, part: Path) -> list[str]:
        """Of a part, each once: it may hold several rows of an image."""
        name = part.name.split("-", 2)[2].removesuffix(".parquet")
        if "!" not in name:
            return [unquote(name)]
        with open(part, "rb") as stream:
            ids = self.arrow.parquet.read_table(stream, columns=[KEY])[KEY].to_pylist()
        return list(dict.fromkeys(ids))


def _is_whole(part: Path) -> bool:
    """Parquet begins and ends with four letters."""
    with open(part, "rb") as stream:
        head = stream.read(4)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 4, 0))
        return size >= 12 and head == stream.read(4) == b"PAR1"


# ---------------------------------------------------------------------------------------------------- CSV

_CELL = rb'(?:"(?:[^"]++|"")*+"|[^,"\r\n]*+)'
# A line of cells: the id, the cells between, and the number of rows that its image has.
_LINE = re.compile(rb"(" + _CELL + rb")((?:," + _CELL + rb")*+)\r\n")
_WORDS = re.compile(r'"((?:[^"]|"")*)"|([^,"\r\n]*)')


class _Csv:
    """One file. What is not the whole of an image at its end is cut off when it is opened."""

    def __init__(self, folder: Path, columns: Mapping[str, str]) -> None:
        self.folder, self.columns = folder, columns
        self.path = folder / "rows.csv"
        self.header = (",".join(_quoted(name) for name in (*columns, COUNT)) + "\r\n").encode()
        self.file = -1
        self.end = 0

    def opened(self) -> list[str]:
        new = not self.path.exists()
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            content = self.path.read_bytes()
            begun = content.rstrip(b"\0")  # a power cut may leave the length and not the letters
            if begun != self.header and self.header.startswith(begun):
                self._put(0, self.header)
                self.end = len(self.header)
                done: list[str] = []
            else:
                done, self.end = self._complete(content)
            if self.end < len(content):
                os.ftruncate(self.file, self.end)
                os.fsync(self.file)
            if new:
                _sync_folder(self.folder)
        except BaseException:
            self.close()
            raise
        return done

    def append(self, images: Mapping[str, Sequence[Row]]) -> None:
        lines = [
            [*(_cell(row[name], kind) for name, kind in self.columns.items()), str(len(rows))]
            for rows in images.values()
            for row in rows
        ]
        content = "".join(",".join(line) + "\r\n" for line in lines).encode()
        self._put(self.end, content)
        self.end += len(content)

    def read(self, columns: Sequence[str] | None = None) -> list[Row]:
        content = self.path.read_bytes()
        _, end = self._complete(content)
        rows = []
        kinds = list(self.columns.items())
        position = len(self.header)
        while position < end:
            line = _LINE.match(content, position)
            assert line is not None
            cells = _cells(line[0][:-2].decode())
            try:
                rows.append({name: _parsed(cell, kind) for (name, kind), cell in zip(kinds, cells[:-1], strict=True)})
            except ValueError as error:
                raise self._damaged(content, position, str(error)) from None
            position = line.end()
        return rows if columns is None else [{name: row[name] for name in columns} for row in rows]

    def close(self) -> None:
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)

    def _put(self, place: int, content: bytes) -> None:
        """Write and force to the disk; after an error the file ends where it ended."""
        try:
            if os.fstat(self.file).st_size > place:  # what an earlier error could not take back
                os.ftruncate(self.file, place)
            os.lseek(self.file, place, os.SEEK_SET)
            _write_all(self.file, content)
            os.fsync(self.file)
        except BaseException:
            with contextlib.suppress(OSError):  # if this fails too, the next opening does it
                os.ftruncate(self.file, place)
            raise

    def _complete(self, content: bytes) -> tuple[list[str], int]:
        """The images whose lines are all there, and where the last of these ends.

        What follows is cut off only if it can be the beginning of one image. Whole images behind a break were not left
        by a process that was killed, and nothing here removes them.
        """
        if not content.startswith(self.header):
            raise self._damaged(content, 0, "the header is another")
        done: dict[str, None] = {}
        position = len(self.header)
        while True:
            found = self._image(content, position)
            if found is None:
                break
            id, position = found
            if id in done:
                raise self._damaged(content, position, f"the rows of {id!r} are there twice")
            done[id] = None
        line = content.find(b"\r\n", position)
        while line >= 0:
            behind = self._image(content, line + 2)
            if behind is not None:
                raise self._damaged(content, position, "it is no whole image, and whole images follow")
            line = content.find(b"\r\n", line + 2)
        return list(done), position

    def _image(self, content: bytes, position: int) -> tuple[str, int] | None:
        """The image whose lines begin here, and where they end; None where they are not all there."""
        first = _LINE.match(content, position)
        if first is None:
            return None
        count = first[2].rpartition(b",")[2]
        if not count.isdigit() or int(count) < 1 or not first[1]:
            return None
        line = first
        for _ in range(int(count) - 1):
            following = _LINE.match(content, line.end())
            if following is None or following[1] != first[1] or following[2].rpartition(b",")[2] != count:
                return None
            line = following
        try:
            return _cells(first[1].decode())[0] or "", line.end()
        except UnicodeDecodeError:
            return None

    def _damaged(self, content: bytes, position: int, why: str) -> InputError:
        return InputError(
            f"{str(self.path)!r} was changed or damaged: {why}",
            at=f"line {content.count(bytes([10]), 0, position) + 1}",
            next=f"restore it, or {AGAIN}",
        )


def _quoted(text: str) -> str:
    if not text or any(c in text for c in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""
    if kind == "string":
        return _quoted(value)
    if kind == "floats":
        return " ".join(map(repr, value)) or "[]"
    return repr(value)


def _cells(line: str) -> list[str | None]:
    """The cells of a line, None for an empty one; ``""`` is an empty string."""
    cells: list[str | None] = []
    position = 0
    while True:
        match = _WORDS.match(line, position)
        assert match is not None  # the second of its two may be empty
        cells.append(match[2] or None if match[1] is None else match[1].replace('""', '"'))
        position = match.end()
        if position == len(line):
            return cells
        if line[position] != ",":
            raise ValueError(f"a quote within a cell at {line[position : position + 20]!r}")
        position += 1


def _parsed(cell: str | None, kind: str) -> Any:
    if cell is None or kind == "string":
        return cell
    if kind == "int64":
        return int(cell)
    if kind == "float64":
        return float(cell)
    return [] if cell == "[]" else [float(each) for each in cell.split(" ")]
