"""The comparison grid: nothing overlaps, nothing is cut off, and a cell's pixels are the picture that was given."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import ImageChops

from fgcam_onnx import grid
from fgcam_onnx.errors import FgcamError, InputError, OptionError
from fgcam_onnx.imaging import Bar

LONG = "/features/features.18/conv/block.0/conv.3/Relu_output_0"
WIDEST = "a_name_without_any_place_to_break_it_that_goes_on_and_on_and_on" * 3


def tiles(rows: int, columns: int, size: tuple[int, int] = (128, 96)) -> list[list[Any]]:
    rng = np.random.default_rng(3)
    return [[rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(columns)] for _ in range(rows)]


def apart(a: grid.Rectangle, b: grid.Rectangle) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def check(sheet: grid.Sheet) -> None:
    """No two things overlap, and all of them are inside the margins; a reason is inside its cell."""
    boxes = [placed.box for placed in sheet.cells] + [words.box for words in sheet.words]
    boxes += [thing[0] for thing in (sheet.photo, sheet.bar) if thing is not None]
    for a, b in itertools.combinations(boxes, 2):
        assert apart(a, b), f"{a} and {b} overlap"
    for left, top, right, bottom in boxes:
        assert left >= 24
        assert top >= 24
        assert right <= sheet.size[0] - 24
        assert bottom <= sheet.size[1] - 24
    for placed in sheet.cells:
        for words in placed.reason:
            assert placed.box[0] <= words.box[0] < words.box[2] <= placed.box[2]
            assert placed.box[1] <= words.box[1] < words.box[3] <= placed.box[3]


CASES = {
    "one cell": (1, 1, {}),
    "one row": (1, 6, {"footer": "model 123"}),
    "one column": (37, 1, {"headings": {0: "first", 12: "second group"}}),
    "many": (37, 5, {"headings": {0: "first", 12: "second group of a " + WIDEST}, "lines": ["words " * 90]}),
    "blocks": (9, 3, {"blocks": 3, "headings": {0: "first", 4: "second"}}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("size", [(128, 96), (40, 128), (128, 20)])
def test_nothing_overlaps_and_nothing_is_cut_off(case: str, long: bool, size: tuple[int, int]) -> None:
    n, m, more = CASES[case]
    cells = tiles(n, m, size)
    cells[-1][-1] = "a reason of " + WIDEST if long else "the input only"
    rows = [f"fg-{LONG}\n{WIDEST}" if long else f"method {i}" for i in range(n)]
    columns = [f"{LONG}\n{WIDEST}" if long else f"layer {i}\n16 x 16" for i in range(m)]
    title = f"{WIDEST} {LONG}" if long else "a title"
    photo = np.zeros((*size, 3), np.uint8)
    sheet = grid.arrange(cells, rows, columns, title=title, photo=photo, bar=Bar("ember", "none", "most"), **more)
    check(sheet)
    assert [(p.row, p.column) for p in sheet.cells] == list(itertools.product(range(n), range(m)))
    said = [words.text for words in sheet.words]
    assert all(sum(text == f"method {i}" for text in said) == 1 for i in range(n)) or long
    assert sheet.paint().size == sheet.size


def test_an_overlap_is_noticed() -> None:
    sheet = grid.arrange(tiles(2, 6), ["a", "b"], list("uvwxyz"), title="t")
    check(sheet)
    first, second, *rest = sheet.cells
    moved = tuple(side - 20 * (i % 2 == 0) for i, side in enumerate(second.box))
    with pytest.raises(AssertionError, match="overlap"):
        check(replace(sheet, cells=(first, replace(second, box=moved), *rest)))  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check(replace(sheet, size=(sheet.size[0] - 40, sheet.size[1])))
    word = sheet.words[0]
    with pytest.raises(AssertionError):
        check(replace(sheet, words=(replace(word, text=word.text * 400), *sheet.words[1:])))


def test_what_is_painted_stays_in_its_box() -> None:
    """Every dark pixel of a line of text lies in the box that is kept free for it."""
    for size, weight in ((22, 0.45), (14, 0.25), (11, 0.0)):
        words = grid.Words(40, 40, "Ägypten: (jumpy) fg-grad-cam++ Q_|", size, "#000000", weight)
        words = replace(words, text=grid._plain(words.text))
        blank = grid.Sheet((600, 120), (), ())
        box = ImageChops.difference(replace(blank, words=(words,)).paint(), blank.paint()).getbbox()
        assert box is not None
        left, top, right, bottom = words.box
        assert left - 1 <= box[0]
        assert top <= box[1]
        assert box[2] <= right + 1
        assert box[3] <= bottom + 1


def test_the_pixels_of_a_cell() -> None:
    cells = tiles(3, 2)
    cells[1][0] = "not here"
    cells[2][1] = np.zeros((8, 6, 3), np.uint8) + np.uint8(7)  # enlarged, as a tiny picture
    sheet = grid.arrange(cells, ["a", "b", "c"], ["x", "y"], title="t")
    painted = np.asarray(grid.comparison(cells, ["a", "b", "c"], ["x", "y"], title="t"))
    for placed in sheet.cells:
        left, top, right, bottom = placed.box
        given = cells[placed.row][placed.column]
        found = painted[top:bottom, left:right]
        if isinstance(given, str):
            assert placed.picture is None
            assert " ".join(words.text for words in placed.reason) == given
            assert len(np.unique(found.reshape(-1, 3), axis=0)) > 2  # the reason is painted
        elif given.shape == (8, 6, 3):
            assert found.shape == (128, 96, 3)
            assert (found == 7).all()
        else:
            np.testing.assert_array_equal(found, given)


def test_a_blank_without_a_reason_is_plain() -> None:
    cells = [["", tiles(1, 1)[0][0]]]
    sheet = grid.arrange(cells, ["a"], ["x", "y"], title="t")
    assert sheet.cells[0].reason == ()
    left, top, right, bottom = sheet.cells[0].box
    assert len(np.unique(np.asarray(sheet.paint())[top:bottom, left:right].reshape(-1, 3), axis=0)) == 1


def test_a_grid_of_blanks() -> None:
    check(grid.arrange([["why"], ["not"]], ["a", "b"], ["x"], title="t"))


def test_rows_are_folded_to_a_page() -> None:
    rows = [f"m{i}" for i in range(40)]
    cells = tiles(40, 3, (128, 128))
    width, height = grid.arrange(cells, rows, ["x", "y", "z"], title="t").size
    assert 1.0 < height / width < 1.7
    tall = grid.arrange(cells, rows, ["x", "y", "z"], title="t", blocks=1).size
    assert tall[1] / tall[0] > 5
    few = grid.arrange(cells[:2], rows[:2], ["x", "y", "z"], title="t")
    assert len({placed.box[0] for placed in few.cells}) == 3


def test_a_block_says_which_group_goes_on() -> None:
    sheet = grid.arrange(tiles(20, 1), [f"m{i}" for i in range(20)], ["x"], title="t", headings={0: "group"}, blocks=2)
    assert [words.text for words in sheet.words if "group" in words.text] == ["group", "group (continued)"]
    cut = grid.arrange(
        tiles(20, 1), [f"m{i}" for i in range(20)], ["x"], title="t", headings={0: "group", 11: "other"}, blocks=2
    )
    assert [words.text for words in cut.words if words.text in ("group", "other")] == ["group", "other"]
    assert {p.row for p in cut.cells if p.box[0] == cut.cells[0].box[0]} == set(range(11))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": []}, OptionError, "a comparison needs rows and columns\n  known   0 rows, 2 columns"),
        ({"rows": ["a"]}, InputError, "the cells are not 1 rows of 2\n  known   there are 2 rows of 2"),
        ({"columns": ["x"]}, InputError, "the cells are not 2 rows of 1\n  known   there are 2 rows of 2"),
        ({"tile": 8}, OptionError, "tile is 8\n  known   the longer side of a cell in pixels, at least 32"),
        ({"blocks": 3}, OptionError, "blocks is 3\n  known   from 1 to the number of rows, 2"),
        ({"photo": np.zeros((3, 3))}, InputError, "a picture has to be uint8 [H, W, 3]\n"
                                                 "  known   one is float64 [3, 3]"),
    ],
)  # fmt: skip
def test_what_a_grid_refuses(change: dict[str, Any], error: type[FgcamError], message: str) -> None:
    call: dict[str, Any] = {"cells": tiles(2, 2), "rows": ["a", "b"], "columns": ["x", "y"], "title": "t", **change}
    with pytest.raises(error) as raised:
        grid.comparison(**call)
    assert str(raised.value) == message
