"""The store: killed at every system call and at random moments, torn at every byte, out of space, opened by two.

As a program (``python test_evaluation_store.py MODE FORM FOLDER``) this file is the process that is killed: it forks,
and the fork does the work. A kill takes nothing back that the system has been given, so nothing waits for the disk
here; that it would, and in which order, has a test of its own.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgcam_onnx.errors import FgcamError, InputError, MissingPackageError, OptionError, OutputError
from fgcam_onnx.evaluation import store as module
from fgcam_onnx.evaluation.store import FORMS, Row, Store, open_store, read_rows

COLUMNS = {
    "image": "string", "method": "string", "layer": "string", "target": "int64", "drop": "float64", "curve": "floats"
}  # fmt: skip
SPEC = {"model": "ab12", "methods": ["fg-cam", "cam"], "options": {"seed": 0}, "limit": 10, "free": ["limit"]}
NASTY = 'a "quoted", word\r\nand a line\n; é 猫'
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


def rows_of(i: int) -> list[Row]:
    """Rows with everything that a form could lose."""
    floats = [0.1 * i, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 1 / 3]
    return [
        {
            "method": ("fg-cam", NASTY, "", "a,b", '"', "x\ry")[(i + k) % 6],
            "layer": None if k else f"layer{i}",
            "target": (i * 7919, -(2**63), 2**63 - 1, None)[(i + k) % 4],
            "drop": None if k == 3 else floats[(i + k) % 8],
            "curve": (None, [], floats[: k + 1])[(i + k) % 3],
        }
        for k in range(1 + i % 4)
    ]


def name_of(i: int) -> str:
    return f"n{i % 3:08}/{i}, {'é' * (i % 2)}.jpg" + "x" * (400 if i % 5 == 4 else 0)


def expected(n: int) -> list[Row]:
    return [{**dict.fromkeys(COLUMNS), **row, "image": name_of(i)} for i in range(n) for row in rows_of(i)]


def opened(folder: Path, form: str, **options: Any) -> Store:
    return open_store(folder, SPEC, columns=COLUMNS, form=form, **options)


def fill(store: Store, n: int) -> None:
    for i in range(n):
        if name_of(i) not in store.done:
            store.append(name_of(i), rows_of(i))


def same(a: object, b: object) -> bool:
    """By their text: nan equals nan, -0.0 is not 0.0, 1 is not 1.0."""
    return repr(a) == repr(b)


def failed(kind: type[FgcamError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as info:
        call()
    assert type(info.value) is kind
    return str(info.value)


def lines_of(folder: Path) -> int:
    """The rows in the CSV itself, whole or not; without its header."""
    if not (folder / "rows.csv").exists():
        return 0
    with open(folder / "rows.csv", encoding="utf-8", newline="") as stream:
        return len(list(csv.reader(stream))) - 1


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- undisturbed


@forms
def test_rows_come_back_as_they_were(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "new" / "run"
    with opened(folder, form) as store:
        assert store.done == frozenset()
        assert store.rows() == []
        fill(store, 12)
        assert same(store.rows(), expected(12))
        assert store.done == {name_of(i) for i in range(12)}
        assert same(read_rows(folder)[1], expected(12))  # while it is being written
    with opened(folder, form) as store:
        assert store.done == {name_of(i) for i in range(12)}
        fill(store, 15)
        assert same(store.rows(), expected(15))
    record, rows = read_rows(folder)
    assert same(rows, expected(15))
    assert record["spec"] == SPEC
    assert record == json.loads((folder / "run.json").read_text(encoding="utf-8"))


@forms
def test_numpy_becomes_python(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form) as store:
        row = {"target": np.int32(3), "drop": np.float32(0.1), "curve": np.float32([0.1, 2]), "method": np.str_("m")}
        store.append("a", [row])
        (made,) = store.rows()
    assert same(
        [made["target"], made["drop"], made["curve"]], [3, float(np.float32(0.1)), [float(np.float32(0.1)), 2.0]]
    )
    assert made["layer"] is None


def test_parts_are_a_data_set_for_everybody(tmp_path: Path) -> None:
    import pandas
    import pyarrow.dataset
    import pyarrow.parquet

    with opened(tmp_path, "parquet") as store:
        fill(store, 9)
        (tmp_path / "rows" / ".part-00000099-x.tmp").write_bytes(b"half")  # what is being written is not looked at
        table = pyarrow.dataset.dataset(tmp_path / "rows", format="parquet").to_table()
        assert same(table.to_pylist(), expected(9))
        assert len(pandas.read_parquet(tmp_path / "rows")) == len(expected(9))
    parts = sorted((tmp_path / "rows").glob("*.parquet"))
    assert len(parts) == 9
    assert parts[0].name == "part-00000001-n00000000%2F0%2C%20.jpg.parquet"
    assert max(len(part.name) for part in parts) <= 255 - len(".tmp")
    schemas = {pyarrow.parquet.read_schema(part).to_string() for part in parts}
    assert len(schemas) == 1  # also of a part in which a column is None throughout


def test_the_csv_is_one_for_everybody(tmp_path: Path) -> None:
    with opened(tmp_path, "csv") as store:
        fill(store, 9)
    content = (tmp_path / "rows.csv").read_bytes()
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream, strict=True)
    assert header == [*COLUMNS, "rows"]
    assert content.count(b"image,method") == 1
    assert content.endswith(b"\r\n")
    for line, row in zip(lines, expected(9), strict=True):
        got = dict(zip(header, line, strict=True))
        assert got["image"] == row["image"]
        assert got["method"] == row["method"]
        assert got["drop"] == ("" if row["drop"] is None else repr(row["drop"]))
        assert got["rows"] == str(sum(r["image"] == row["image"] for r in expected(9)))


@forms
def test_an_image_comes_once(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form) as store:
        fill(store, 2)
        before = store.rows()
        for rows, words in (
            (rows_of(0), "are in"),
            ([], "there are no rows"),
            ([{"image": "other"}], "says that it is of 'other'"),
        ):
            id = name_of(0) if words == "are in" else "new"
            assert words in failed(InputError, lambda id=id, rows=rows: store.append(id, rows))  # type: ignore[misc]
        assert same(store.rows(), before)
        store.append("new", [{"image": "new"}])
        assert "new" in store.done
    assert "is closed" in failed(OutputError, lambda: store.append("more", rows_of(1)))
    store.close()  # once more does nothing


@forms
@pytest.mark.parametrize(
    "row",
    [
        {"target": 1.5}, {"target": "1"}, {"target": 2**63}, {"drop": "0.1"}, {"drop": [1.0]}, {"drop": 10**400},
        {"curve": "12"}, {"curve": 1.0}, {"curve": [1.0, None]}, {"curve": ["1"]}, {"method": 3}, {"method": b"a"},
        {"method": "\ud800"}, {"method": "a\0"}, {"drops": 1.0},
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_that_does_not_fit_its_column(tmp_path: Path, form: str, row: Row) -> None:
    with opened(tmp_path, form) as store:
        message = failed(InputError, lambda: store.append("a.jpg", [{"drop": 1.0}, row]))
        assert next(iter(row)) in message
        assert "'a.jpg'" in message
        assert store.rows() == []
        assert store.done == frozenset()


# ---------------------------------------------------------------------------------------------------- floats

FLOATS = [
    0.0, -0.0, 0.1, 1 / 3, 5e-324, -5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308,
    math.inf, -math.inf, math.nan, 1e16, 1e22, 9007199254740993.0, 123456789012345680.0, 1e-5, 2.0**-1074 * 3,
]  # fmt: skip


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


@given(st.floats())
def test_a_float_keeps_its_bits_as_text(value: float) -> None:
    for kind in ("float64", "floats"):
        text = module._cell(value if kind == "float64" else [value, value], kind)
        back = module._parsed(module._cells(text)[0], kind)
        for each in [back] if kind == "float64" else back:
            assert bits(each) == bits(value)


@forms
def test_floats_keep_their_bits_on_the_disk(tmp_path: Path, form: str) -> None:
    patterns = random.Random(5)
    values = FLOATS + [struct.unpack("<d", patterns.randbytes(8))[0] for _ in range(2000)]
    with opened(tmp_path, form) as store:
        store.append("a", [{"drop": value} for value in values] + [{"curve": values}])
    *rows, last = read_rows(tmp_path)[1]
    assert [bits(row["drop"]) for row in rows] == [bits(value) for value in values]
    assert [bits(value) for value in last["curve"]] == [bits(value) for value in values]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ['"', '""', ",", "\r\n", "\n", "\r", " ", '",1\r\n', "x,1\r\ny,1\r\n"]
)
some_rows = st.fixed_dictionaries(
    {
        "method": st.none() | texts,
        "target": st.none() | st.integers(-(2**63), 2**63 - 1),
        "drop": st.none() | st.floats(),
        "curve": st.none() | st.lists(st.floats(), max_size=3),
    }
)
images = st.dictionaries(texts, st.lists(some_rows, min_size=1, max_size=3), max_size=4)


@settings(max_examples=40, deadline=None)
@given(images)
def test_any_rows_come_back_from_csv(tmp_path_factory: pytest.TempPathFactory, made: dict[str, list[Row]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    with opened(folder, "csv") as store:
        for id, rows in made.items():
            store.append(id, rows)
    with opened(folder, "csv") as store:
        assert store.done == frozenset(made)
        wanted = [{**dict.fromkeys(COLUMNS), **row, "image": id} for id, rows in made.items() for row in rows]
        assert same(store.rows(), wanted)


# ---------------------------------------------------------------------------------------------------- torn tails


def test_a_torn_tail_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    """Also filled up with zeros, as a power cut leaves it, and never more is lost than the last image."""
    folder = tmp_path / "run"
    n = 8  # the last image has four rows, a quoted line break among them
    with opened(folder, "csv") as store:
        fill(store, n - 1)
    start = (folder / "rows.csv").stat().st_size
    with opened(folder, "csv") as store:
        fill(store, n)
    whole = (folder / "rows.csv").read_bytes()
    assert NASTY.split('"')[0].encode() in whole[start:]
    assert whole[start:].count(b"\r\n") > 4
    for cut in range(start, len(whole)):
        for tail in (b"",) if cut % 7 else (b"", b"\0" * (len(whole) - cut)):
            (folder / "rows.csv").write_bytes(whole[:cut] + tail)
            if not cut % 7:
                assert same(read_rows(folder)[1], expected(n - 1))  # reading alone repairs nothing
            with opened(folder, "csv") as store:
                assert (folder / "rows.csv").stat().st_size == start
                assert store.done == {name_of(i) for i in range(n - 1)}
                store.append(name_of(n - 1), rows_of(n - 1))
            assert (folder / "rows.csv").read_bytes() == whole


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    opened(tmp_path, "csv").close()
    header = (tmp_path / "rows.csv").read_bytes()
    for cut in range(len(header) + 1):
        for tail in (b"", b"\0" * (len(header) - cut), b"\0" * 4096):
            (tmp_path / "rows.csv").write_bytes(header[:cut] + tail)
            opened(tmp_path, "csv").close()
            assert (tmp_path / "rows.csv").read_bytes() == header


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("image,method", "image,methods"), ("the header is another", "line 1")),
        (lambda text: text.replace("\r\n", "\n"), ("the header is another",)),
        (lambda text: text.replace("b,m,,2,", "b,m,,2,x,"), ("could not", "line 3")),
        (lambda text: text.replace(",2\r\nb", ",3\r\nb", 1), ("whole images follow", "line 3")),
        (lambda text: text.replace(",2\r\nc", ",3\r\nc"), ("whole images follow", "line 3")),
        (lambda text: text.replace(",2\r\nb", ",2\r\nx"), ("whole images follow", "line 3")),
        (lambda text: text.replace("a,m,", '"a,m,'), ("whole images follow", "line 2")),
        (lambda text: text + "a,m,,1,0.5,,1\r\n", ("'a' are there twice",)),
    ],
)
def test_a_csv_that_was_changed_by_hand(tmp_path: Path, change: Callable[[str], str], words: tuple[str, ...]) -> None:
    """Whole images are never cut off because of what stands before them."""
    with opened(tmp_path, "csv") as store:
        store.append("a", [{"method": "m", "target": 1, "drop": 0.5}])
        store.append("b", [{"method": "m", "target": 2, "drop": 0.5}] * 2)
        store.append("c", [{"method": "m", "target": 3, "drop": 0.5}])
    text = change((tmp_path / "rows.csv").read_bytes().decode())
    (tmp_path / "rows.csv").write_bytes(text.encode())
    if "could not" in words:

        def look() -> object:
            with opened(tmp_path, "csv") as store:
                return store.rows()
    else:

        def look() -> object:
            return opened(tmp_path, "csv")

    message = failed(InputError, look)
    for word in words[words[0] == "could not" :]:
        assert word in message
    assert "--fresh" in message
    assert (tmp_path / "rows.csv").read_bytes() == text.encode()
    opened(tmp_path, "csv", fresh=True).close()  # the lock was let go


def test_a_part_without_its_end_is_made_again(tmp_path: Path) -> None:
    with opened(tmp_path, "parquet") as store:
        fill(store, 5)
    parts = sorted((tmp_path / "rows").glob("*.parquet"))
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    parts[3].write_bytes(b"")
    (tmp_path / "rows" / ".part-00000006-x.tmp").write_bytes(b"PAR1")
    with opened(tmp_path, "parquet") as store:
        assert store.done == {name_of(i) for i in (0, 2, 4)}
        assert not list((tmp_path / "rows").glob(".*"))
        fill(store, 5)
        assert sorted(map(repr, store.rows())) == sorted(map(repr, expected(5)))


def test_two_parts_of_one_image(tmp_path: Path) -> None:
    with opened(tmp_path, "parquet") as store:
        fill(store, 1)
    (part,) = (tmp_path / "rows").glob("*.parquet")
    shutil.copy(part, part.with_name(part.name.replace("00000001", "00000002")))
    assert "two parts hold rows of" in failed(InputError, lambda: opened(tmp_path, "parquet"))


# ---------------------------------------------------------------------------------------------------- killed

IMAGES = 6


def run(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@forms
def test_killed_at_every_system_call(tmp_path: Path, form: str) -> None:
    """A new run for each call that opening and appending make; then another process goes on."""
    calls = int(run("everywhere", form, tmp_path))
    assert calls > 15
    assert len(list(tmp_path.iterdir())) == calls
    for folder in tmp_path.iterdir():
        assert same(read_rows(folder)[1], expected(2)), folder.name
        assert len(files(folder)) == (4 if form == "parquet" else 3)


@forms
def test_killed_at_random_moments(tmp_path: Path, form: str) -> None:
    """At least 15 times, in as many runs as that takes; each was begun again until it was done."""
    runs = int(run("random", form, tmp_path))
    for i in range(runs):
        assert same(read_rows(tmp_path / str(i))[1], expected(IMAGES)), i


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """The write that the kernel cuts short."""
    assert "OutputError" in run("limited", "csv", tmp_path / "run")
    with opened(tmp_path / "run", "csv") as store:
        assert 0 < len(store.done) < 200
        assert same(store.rows(), expected(len(store.done)))


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """The id of a process that does this."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    yield process


def ended(process: int) -> bool:
    """Did it end by itself? Else it was killed. Anything but success is an error."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def killing(at: int) -> None:
    """From now on this process kills itself in the call of this number; a write is half done by then."""
    count = 0

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def killer(*words: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if name == "write":
                    call(words[0], words[1][: len(words[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*words, **options)

        return killer

    for name in ("write", "fsync", "replace", "close", "ftruncate", "mkdir"):
        setattr(os, name, wrapped(name, getattr(os, name)))


def work(folder: Path, form: str, n: int, at: int = 0) -> None:
    if at:
        killing(at)
    with opened(folder, form) as store:
        fill(store, n)


def look(folder: Path, form: str) -> None:
    """Whatever moment it was, what is there can be read, and holds whole images."""
    if form == "parquet" and any(folder.glob("rows/*.parquet")):
        import pyarrow.dataset

        rows = pyarrow.dataset.dataset(folder / "rows", format="parquet").to_table().to_pylist()
        assert any(same(rows, expected(n)) for n in range(IMAGES + 1)), rows
    if (folder / "run.json").exists() and (form == "parquet" or (folder / "rows.csv").exists()):
        with contextlib.suppress(InputError):  # the header is torn
            rows = read_rows(folder)[1]
            assert any(same(rows, expected(n)) for n in range(IMAGES + 1)), rows


def in_a_fork(call: Callable[[], None]) -> None:
    with forked(call) as process:
        assert ended(process)


def everywhere(form: str, root: Path) -> None:
    at = 0
    while True:
        at += 1
        folder = root / str(at)
        with forked(lambda folder=folder, at=at: work(folder, form, 2, at)) as process:  # type: ignore[misc]
            done = ended(process)
        in_a_fork(lambda folder=folder: (look(folder, form), work(folder, form, 2)))  # type: ignore[misc]
        if done:
            print(at)
            return


def at_random(form: str, root: Path) -> None:
    random.seed(1)
    kills = runs = 0
    begin = time.perf_counter()
    in_a_fork(lambda: work(root / "timed", form, IMAGES))
    longest = time.perf_counter() - begin
    while kills < 15:
        folder = root / str(runs)
        runs += 1
        done = False
        while not done:
            with forked(lambda folder=folder: work(folder, form, IMAGES)) as process:  # type: ignore[misc]
                time.sleep(random.uniform(0, longest * 1.2))
                os.kill(process, signal.SIGKILL)
                done = ended(process)
            kills += not done
    print(runs)


def limited(form: str, folder: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    with opened(folder, form) as store:
        try:
            fill(store, 200)
        except OutputError as error:
            assert len(store.done) > 0
            print("OutputError", error)


def hold(form: str, folder: Path) -> None:
    with opened(folder, form) as store:
        fill(store, 2)
        print("held", flush=True)
        sys.stdin.read()


# ---------------------------------------------------------------------------------------------------- the disk


@forms
def test_nothing_counts_before_it_is_on_the_disk(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls: every file is forced to the disk before it gets its name, and its name before it counts."""
    log: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace")}

    def open_(path: Any, *words: Any) -> int:
        file: int = real["open"](path, *words)
        names[file] = os.path.relpath(path, tmp_path)
        return file

    monkeypatch.setattr(os, "open", open_)
    for name in ("write", "fsync"):
        monkeypatch.setattr(
            os, name, lambda file, *words, name=name: (log.append((name, names[file])), real[name](file, *words))[1]
        )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (log.append(("replace", os.path.relpath(a, tmp_path))), real["replace"](a, b))[1]
    )
    with opened(tmp_path / "run", form) as store:
        begun = [(what, name) for what, name in log if "run.json" in name or name in ("run", ".")]
        beside = "run/.run.json.part"
        assert begun[:5] == [
            ("fsync", "."), ("write", beside), ("fsync", beside), ("replace", beside), ("fsync", "run")
        ]  # fmt: skip
        for i in range(2):
            log.clear()
            store.append(name_of(i), rows_of(i))
            if form == "csv":
                assert log == [("write", "run/rows.csv"), ("fsync", "run/rows.csv")]
            else:
                ((_, beside),) = [entry for entry in log if entry[0] == "replace"]
                assert Path(beside).name.startswith(".part-")
                assert log == [("write", beside), ("fsync", beside), ("replace", beside), ("fsync", "run/rows")]


@forms
@pytest.mark.parametrize("room", [0, 1, 100, 150, 400, 2000, 3000])
def test_a_full_disk(tmp_path: Path, form: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, form) as store:
        before = files(tmp_path)
        left = room
        write = os.write

        def full(file: int, content: Any) -> int:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = write(file, memoryview(content)[:left])
            left -= count
            return count

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            message = failed(OutputError, lambda: fill(store, 60))
        assert f"cannot write to {str(tmp_path)!r}: No space left on device" in message
        assert "it goes on where it stopped" in message
        n = len(store.done)
        assert n < 60
        assert same(store.rows(), expected(n))  # also without opening it again
        assert lines_of(tmp_path) == len(expected(n)) * (form == "csv")
        if form == "parquet":
            assert len(files(tmp_path)) == len(before) + n
        copy = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy")
        fill(store, 60)
        assert same(store.rows(), expected(60))
    with opened(copy, form) as store:
        assert store.done == {name_of(i) for i in range(n)}
        fill(store, 60)
        assert same(store.rows(), expected(60))


@forms
@pytest.mark.parametrize("call", ["fsync", "write", "replace", "ftruncate"])
def test_a_disk_with_errors(tmp_path: Path, form: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call fails, the first or the second time; what cannot even be taken back is taken back later."""
    if call == "replace" and form == "csv":
        return

    def fails(*words: Any) -> Any:
        nonlocal count
        count -= 1
        if count < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*words)

    real = getattr(os, call)
    for turn in (0, 1) if call == "fsync" and form == "parquet" else (0,):
        folder = tmp_path / str(turn)
        with opened(folder, form) as store:
            fill(store, 2)
            count = turn
            with monkeypatch.context() as patched:
                patched.setattr(os, call, fails)
                if call == "ftruncate":
                    patched.setattr(os, "fsync", fails)
                assert "Input/output error" in failed(OutputError, lambda: store.append("long", rows_of(3) * 9))
            assert len(store.done) == 2
            fill(store, 4)
            assert same(store.rows(), expected(4))
            assert lines_of(folder) == len(expected(4)) * (form == "csv")
        with opened(folder, form) as store:
            assert same(store.rows(), expected(4))


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        message = failed(OutputError, lambda place=place: opened(tmp_path / place, "csv"))  # type: ignore[misc]
        assert f"cannot write to {str(tmp_path / place)!r}" in message
        assert "-o DIR" in message

    def refused(*words: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(words[0]))

    monkeypatch.setattr(os, "open", refused)
    assert "Permission denied" in failed(OutputError, lambda: opened(tmp_path / "new", "csv"))


# ---------------------------------------------------------------------------------------------------- two at once


@forms
def test_two_processes(tmp_path: Path, form: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, __file__, "hold", form, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for fresh in (False, True):
            message = failed(OutputError, lambda fresh=fresh: opened(tmp_path, form, fresh=fresh))  # type: ignore[misc]
            assert f"another process is writing to {str(tmp_path)!r}" in message
        assert same(read_rows(tmp_path)[1], expected(2))
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout):
            assert stream is not None
            stream.close()
    with opened(tmp_path, form) as store:
        assert same(store.rows(), expected(2))


@forms
def test_one_process_twice(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form):
        assert "another process" in failed(OutputError, lambda: opened(tmp_path, form))
    opened(tmp_path, form).close()


# ---------------------------------------------------------------------------------------------------- the run


@forms
def test_another_run_is_refused_with_what_differs(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form) as store:
        fill(store, 2)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    other = {
        "model": "cd34", "methods": ["fg-cam", "lrp"], "options": {"seed": 1}, "limit": 20, "more": True,
        "free": ["limit"],
    }  # fmt: skip
    columns = {**COLUMNS, "drop": "string"}
    message = failed(OptionError, lambda: open_store(tmp_path, other, columns=columns, form=form))
    assert message.split("\n", 1)[1] == "\n".join(
        [
            '  known   model: there "ab12", now "cd34"',
            '          methods: only there ["cam"], only now ["lrp"]',
            "          options.seed: there 0, now 1",
            '          columns.drop: there "float64", now "string"',
            "          more: there nothing, now true",
            "  next    begin anew, which removes these rows: --fresh; or choose another folder: -o DIR",
        ]
    )
    swapped = {**SPEC, "methods": ["cam", "fg-cam"]}
    message = failed(OptionError, lambda: open_store(tmp_path, swapped, columns=COLUMNS, form=form))
    assert 'methods: there ["fg-cam", "cam"], now ["cam", "fg-cam"]' in message
    less = {key: value for key, value in SPEC.items() if key != "model"}
    assert 'model: there "ab12", now nothing' in failed(
        OptionError, lambda: open_store(tmp_path, less, columns=COLUMNS, form=form)
    )
    another = "csv" if form == "parquet" else "parquet"
    message = failed(OptionError, lambda: opened(tmp_path, another))
    assert f'form: there "{form}", now "{another}"' in message
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    with open_store(tmp_path, other, columns=columns, form=form, fresh=True) as store:
        assert store.rows() == []
    assert read_rows(tmp_path)[0]["spec"] == other


@forms
def test_what_is_free_may_change(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form) as store:
        fill(store, 2)
    turned = dict(reversed(COLUMNS.items()))
    with open_store(tmp_path, {**SPEC, "limit": 99}, columns=turned, form=form) as store:
        fill(store, 3)
        assert same(store.rows(), expected(3))
    assert read_rows(tmp_path)[0]["spec"]["limit"] == 99


@forms
def test_fresh_removes_rows_and_nothing_else(tmp_path: Path, form: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.txt").write_text("mine")
    with opened(tmp_path, form) as store:
        fill(store, 3)
    with opened(tmp_path, form, fresh=True) as store:
        assert store.done == frozenset()
        assert store.rows() == []
        fill(store, 1)
        assert same(store.rows(), expected(1))
    assert {"notes.txt", "rows/mine.txt"} < set(files(tmp_path))
    another = "csv" if form == "parquet" else "parquet"
    with opened(tmp_path, another, fresh=True) as store:
        fill(store, 1)
    opened(tmp_path, another).close()
    assert (tmp_path / "rows.csv").exists() == (another == "csv")
    assert bool(list((tmp_path / "rows").glob("*.parquet"))) == (another == "parquet")


@forms
def test_rows_of_unknown_origin(tmp_path: Path, form: str) -> None:
    with opened(tmp_path, form) as store:
        fill(store, 1)
    (tmp_path / "run.json").unlink()
    assert "no run.json says what they are of" in failed(OptionError, lambda: opened(tmp_path, form))
    for content in ("{", "[]", "{}", '{"spec": {}, "columns": {}, "form": "xml"}', "\xff"):
        (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
        assert "run.json" in failed(InputError, lambda: opened(tmp_path, form))
    record = {"schema_version": 99, "spec": {}, "columns": {}, "form": form}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "is of version 99" in failed(InputError, lambda: opened(tmp_path, form))
    opened(tmp_path, form, fresh=True).close()


def test_words(tmp_path: Path) -> None:
    assert "did you mean 'parquet'" in failed(OptionError, lambda: opened(tmp_path, "parket"))
    for columns, words in (
        ({"a": "float"}, "the column 'a' holds 'float'"),
        ({"image": "int64"}, "the column 'image' holds 'int64'"),
        ({"rows": "int64"}, "cannot be called 'rows'"),
        ({"": "int64"}, "cannot be called ''"),
    ):
        call = lambda columns=columns: open_store(tmp_path / "new", {}, columns=columns)  # noqa: E731
        assert words in failed(OptionError, call)
    assert not (tmp_path / "new").exists()
    assert "no folder of an evaluation" in failed(OptionError, lambda: read_rows(tmp_path))


def test_csv_needs_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with opened(tmp_path / "csv", "csv") as store:
        fill(store, 2)
        assert same(store.rows(), expected(2))
    message = failed(MissingPackageError, lambda: opened(tmp_path / "parquet", "parquet"))
    assert 'pip install "fgcam_onnx[evaluate]"' in message
    assert not (tmp_path / "parquet").exists()


if __name__ == "__main__":
    mode, form_, place = sys.argv[1:]
    os.fsync = lambda file: None
    if form_ == "parquet":
        import pyarrow.dataset
        import pyarrow.parquet  # noqa: F401  (once, and before the forks)
    {"everywhere": everywhere, "random": at_random, "limited": limited, "hold": hold}[mode](form_, Path(place))
