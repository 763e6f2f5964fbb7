"""The comparison that papers print: a row for each method, a column for each layer, photo and answer at the head.

    photo   title
            lines                      headings   a line over the first row of a group
                 column  column  ...   rows       a title at the left of each
    row          [cell]  [cell]        cells      pictures of one size, or a box with the reason why there is none

Many rows are folded into blocks side by side, so that the sheet keeps about the proportions of a page. ``arrange``
decides where everything goes, ``Sheet.paint`` draws it, ``comparison`` is both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.imaging import _EDGE, _FAINT, _INK, _PAPER, _SOFT, Bar, _font, _plain, colorize, fit

__all__ = ["Placed", "Sheet", "Words", "arrange", "comparison"]

Pixels = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside
_MARGIN, _GAP, _BESIDE, _BETWEEN = 32, 8, 12, 34
_BLANK = "#f1efe9"
_PAGE = 1.3  # height over width that folding aims at: a page of paper has 1.41, with a caption below
_LONGEST = 190  # pixels of a row's title before it is broken


@dataclass(frozen=True)
class Words:
    """One line of text, its left top corner at (x, y)."""

    x: int
    y: int
    text: str
    size: int
    colour: str
    weight: float = 0.0

    @property
    def box(self) -> Rectangle:
        """What the line covers: from the top of its capitals to below its descenders."""
        return (self.x, self.y, self.x + math.ceil(_font(self.size).getlength(self.text)), self.y + _line(self.size))


@dataclass(frozen=True, eq=False)
class Placed:
    """A cell at its place: the picture in the box, or the reason why there is none."""

    row: int
    column: int
    box: Rectangle
    picture: Pixels | None
    reason: tuple[Words, ...] = ()


@dataclass(frozen=True, eq=False)
class Sheet:
    """Where everything is. ``size``: (width, height). ``photo``: box and picture. ``bar``: its box and the scale."""

    size: tuple[int, int]
    words: tuple[Words, ...]
    cells: tuple[Placed, ...]
    photo: tuple[Rectangle, Pixels] | None = None
    bar: tuple[Rectangle, Bar] | None = None

    def paint(self) -> Image.Image:
        sheet = Image.new("RGB", self.size, _PAPER)
        draw = ImageDraw.Draw(sheet)
        for placed in self.cells:
            left, top, right, bottom = placed.box
            if placed.picture is None:
                draw.rectangle((left, top, right - 1, bottom - 1), fill=_BLANK)
            else:
                draw.rectangle((left - 1, top - 1, right, bottom), outline=_EDGE)
                sheet.paste(Image.fromarray(placed.picture), (left, top))
        if self.photo is not None:
            (left, top, right, bottom), picture = self.photo
            draw.rectangle((left - 1, top - 1, right, bottom), outline=_EDGE)
            sheet.paste(Image.fromarray(picture), (left, top))
        if self.bar is not None:
            (left, top, right, bottom), bar = self.bar
            ramp = colorize(np.linspace(0, 1, right - left), bar.colormap)
            draw.rectangle((left - 1, top - 1, right, bottom), outline=_EDGE)
            sheet.paste(Image.fromarray(np.repeat(ramp[None], bottom - top, axis=0)), (left, top))
        for words in (*self.words, *(words for placed in self.cells for words in placed.reason)):
            font, ink, weight = _font(words.size), words.colour, words.weight
            draw.text((words.x, words.y), words.text, font=font, fill=ink, stroke_width=weight, stroke_fill=ink)
        return sheet


def comparison(
    cells: Sequence[Sequence[Pixels | str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    lines: Sequence[str] = (),
    photo: Pixels | None = None,
    headings: Mapping[int, str] | None = None,
    bar: Bar | None = None,
    footer: str = "",
    blocks: int | None = None,
    tile: int = 128,
) -> Image.Image:
    """A grid of pictures with titles for its rows and columns, as a Pillow picture.

    ``cells``: row by row, each a picture ``uint8 [H, W, 3]``, or a short reason why there is none. ``rows``,
    ``columns``: their titles; of a title of several lines the first stands out. ``title``, ``lines``: beside the
    ``photo`` at the head. ``headings``: a line over the row of that number. ``bar``: a colour scale for all cells.
    ``blocks``: into how many blocks side by side the rows are folded, by default as many as make a page. ``tile``: the
    longer side of a picture, in pixels; a picture of that size is drawn as it is.

    Nothing overlaps and nothing is cut off: text that is too long for its place is broken, and ends in an ellipsis
    where it has no more lines.

    Raises:
        InputError: the cells do not fit the titles, or a picture is not ``uint8 [H, W, 3]``.
        OptionError: no rows, no columns, or a ``tile`` or ``blocks`` that makes no sense.
    """
    return arrange(
        cells, rows, columns, title=title, lines=lines, photo=photo, headings=headings, bar=bar, footer=footer,
        blocks=blocks, tile=tile,
    ).paint()  # fmt: skip


def arrange(
    cells: Sequence[Sequence[Pixels | str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    lines: Sequence[str] = (),
    photo: Pixels | None = None,
    headings: Mapping[int, str] | None = None,
    bar: Bar | None = None,
    footer: str = "",
    blocks: int | None = None,
    tile: int = 128,
) -> Sheet:
    """Where :func:`comparison` puts everything; its arguments, its errors."""
    _check(cells, rows, columns, photo, blocks, tile)
    headings = dict(headings or {})
    pictures = [[cell if isinstance(cell, str) else fit(cell, tile) for cell in row] for row in cells]
    shapes = [cell.shape for row in pictures for cell in row if not isinstance(cell, str)]
    h, w = max((s[0] for s in shapes), default=tile), max([s[1] for s in shapes] or [tile])
    w_box = max(w, 72)

    row_titles, aside = _row_titles(rows)
    column_titles = [_titled(text, w_box, 13, 11, most=(3, 2)) for text in columns]
    over = max(sum(_line(size) for _, size, _, _ in lines_) for lines_ in column_titles)
    width = aside + _BESIDE + len(columns) * (w_box + _GAP) - _GAP
    heading = _line(14) + 10
    cuts = _cuts(len(rows), headings, h + _GAP, heading, over, width, blocks)

    inner = max(len(cuts) * (width + _BETWEEN) - _BETWEEN, 560)
    words: list[Words] = []
    y, placed_photo, placed_bar = _head(words, inner, title, lines, photo, bar, tile)
    placed: list[Placed] = []
    bottom = y
    for b, (first, last) in enumerate(cuts):
        left = _MARGIN + b * (width + _BETWEEN)
        xs = [left + aside + _BESIDE + c * (w_box + _GAP) for c in range(len(columns))]
        for x, block in zip(xs, column_titles, strict=True):
            _write(words, block, x, y + over - sum(_line(size) for _, size, _, _ in block), centre=w_box)
        top = y + over + 8
        for row in range(first, last):
            under = max((at for at in headings if at <= row), default=None) if row == first else row
            if under in headings:
                more = " (continued)" if under != row else ""
                text = _broken(headings[under] + more, _font(14), width, 1)[0]
                words.append(Words(left, top + 4, text, 14, _INK, 0.35))
                top += heading
            tall = sum(_line(size) for _, size, _, _ in row_titles[row])
            _write(words, row_titles[row], left, top + max(0, (h - tall) // 2), right=aside)
            for column, (x, cell) in enumerate(zip(xs, pictures[row], strict=True)):
                placed.append(_placed(row, column, cell, x, top, w_box, h))
            top += max(h, tall) + _GAP
        bottom = max(bottom, top - _GAP)
    if footer:
        bottom += 16
        for line in _broken(footer, _font(11), inner, 4):
            words.append(Words(_MARGIN, bottom, line, 11, _FAINT))
            bottom += _line(11)
    size = (inner + 2 * _MARGIN, bottom + _MARGIN)
    return Sheet(size, tuple(words), tuple(placed), placed_photo, placed_bar)


def _check(
    cells: Sequence[Sequence[Pixels | str]], rows: Sequence[str], columns: Sequence[str], photo: Pixels | None,
    blocks: int | None, tile: int,
) -> None:  # fmt: skip
    if not rows or not columns:
        raise OptionError("a comparison needs rows and columns", known=f"{len(rows)} rows, {len(columns)} columns")
    if tile < 32:
        raise OptionError(f"tile is {tile}", known="the longer side of a cell in pixels, at least 32")
    if blocks is not None and not 1 <= blocks <= len(rows):
        raise OptionError(f"blocks is {blocks}", known=f"from 1 to the number of rows, {len(rows)}")
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
        raise InputError(
            f"the cells are not {len(rows)} rows of {len(columns)}",
            known=f"there are {len(cells)} rows of {', '.join(sorted({str(len(row)) for row in cells}))}",
        )
    for picture in (*(cell for row in cells for cell in row), photo):
        if isinstance(picture, str) or picture is None:
            continue
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise InputError(
                "a picture has to be uint8 [H, W, 3]", known=f"one is {picture.dtype} {list(picture.shape)}"
            )


# A block of lines: text, size, colour, weight of each.
Lines = list[tuple[str, int, str, float]]


def _row_titles(rows: Sequence[str]) -> tuple[list[Lines], int]:
    """The titles of the rows, and the width that they all get."""
    widest = max(
        (_font(12 if i else 14).getlength(_plain(line)) for row in rows for i, line in enumerate(row.split("\n"))),
        default=0,
    )
    aside = max(40, min(math.ceil(widest) + 1, _LONGEST))
    return [_titled(text, aside, 14, 11, most=(2, 2)) for text in rows], aside


def _titled(text: str, width: int, size: int, small: int, *, most: tuple[int, int]) -> Lines:
    """A title whose first line stands out, broken to a width: ``most`` lines of the first, and of each other one."""
    first, *others = text.split("\n")
    found: Lines = [(line, size, _INK, 0.25) for line in _broken(first, _font(size), width, most[0])]
    for other in others:
        found += [(line, small, _SOFT, 0.0) for line in _broken(other, _font(small), width, most[1])]
    return found


def _write(words: list[Words], lines: Lines, x: int, y: int, *, centre: int = 0, right: int = 0) -> None:
    """Lines under each other from (x, y) down; in the middle of a width, or at its right end."""
    for text, size, colour, weight in lines:
        spare = max(0, (centre or right) - math.ceil(_font(size).getlength(text)))
        shift = spare // 2 if centre else spare if right else 0
        words.append(Words(x + shift, y, text, size, colour, weight))
        y += _line(size)


def _head(
    words: list[Words], inner: int, title: str, lines: Sequence[str], photo: Pixels | None, bar: Bar | None, tile: int
) -> tuple[int, tuple[Rectangle, Pixels] | None, tuple[Rectangle, Bar] | None]:
    """Photo, title, lines, colour scale; and where the grid begins."""
    x, y = _MARGIN, _MARGIN
    placed = None
    below = y
    if photo is not None:
        shown = fit(photo, max(tile, 112))
        h, w = shown.shape[:2]
        placed = ((x, y, x + w, y + h), shown)
        x, below = x + w + 20, y + h
    room = _MARGIN + inner - x
    for line in _broken(title, _font(22), room, 3):
        words.append(Words(x, y, line, 22, _INK, 0.45))
        y += _line(22)
    y += 2
    for each in lines:
        for line in _broken(each, _font(13), room, 4):
            words.append(Words(x, y, line, 13, _SOFT))
            y += _line(13)
    scale = None
    if bar is not None:
        y += 6
        low, high = _plain(bar.low), _plain(bar.high)
        words.append(Words(x, y, low, 11, _SOFT))
        start = x + math.ceil(_font(11).getlength(low)) + 8
        scale = ((start, y + 3, start + 110, y + 12), bar)
        words.append(Words(start + 118, y, high, 11, _SOFT))
        y += _line(11)
    return max(y, below) + 20, placed, scale


def _cuts(
    n: int, headings: Mapping[int, str], row: int, heading: int, over: int, width: int, blocks: int | None
) -> list[tuple[int, int]]:
    """The rows of each block, from first to behind last. A cut moves to the head of a group that is near."""

    def cut(count: int) -> list[tuple[int, int]]:
        edges = [0]
        for b in range(1, count):
            even = round(b * n / count)
            near = [at for at in headings if abs(at - even) <= max(1, n // (8 * count)) and edges[-1] < at < n]
            edges.append(min(near, key=lambda at: abs(at - even)) if near else max(even, edges[-1] + 1))
        return list(itertools.pairwise([*edges, n]))

    def unlike_a_page(count: int) -> float:
        tallest = max((last - first) * row + _headings(first, last, headings) * heading for first, last in cut(count))
        return abs(math.log((tallest + over + 200) / (count * (width + _BETWEEN) * _PAGE)))

    if blocks is not None:
        return cut(blocks)
    return cut(min(range(1, n + 1), key=unlike_a_page))


def _headings(first: int, last: int, headings: Mapping[int, str]) -> int:
    """How many headings a block shows: those of its groups, the one that goes on from the block before among them."""
    return sum(first < at < last for at in headings) + any(at <= first for at in headings)


def _placed(row: int, column: int, cell: Pixels | str, x: int, y: int, w: int, h: int) -> Placed:
    if not isinstance(cell, str):
        tall, wide = cell.shape[:2]
        left, top = x + (w - wide) // 2, y + (h - tall) // 2
        return Placed(row, column, (left, top, left + wide, top + tall), cell)
    lines = _broken(cell, _font(11), w - 12, max(1, (h - 8) // _line(11))) if cell else []
    start = y + (h - len(lines) * _line(11)) // 2
    reason: list[Words] = []
    _write(reason, [(line, 11, _SOFT, 0.0) for line in lines], x + 6, start, centre=w - 12)
    return Placed(row, column, (x, y, x + w, y + h), None, tuple(reason))


def _line(size: int) -> int:
    return round(size * 1.36)


def _broken(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """At most so many lines, none wider than ``width``: broken at spaces, in a long name behind ``/ . _ - :``."""
    pieces: list[str] = []
    for i, word in enumerate(_plain(text).split()):
        pieces += [(" " if i and not j else "") + part for j, part in enumerate(_parts(word, font, width))]
    lines = [""]
    for piece in pieces:
        if font.getlength(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines.append(piece.lstrip())
    lines = [line for line in lines if line] or [""]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "…"]


def _parts(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word as it is where it fits, else the parts that it may be broken into."""
    if font.getlength(word) <= width:
        return [word]
    parts = [""]
    for glyph in word:
        parts[-1] += glyph
        if glyph in "/._-:":
            parts.append("")
    found: list[str] = []
    for part in filter(None, parts):
        while font.getlength(part) > width:
            n = 1
            while font.getlength(part[: n + 1]) <= width:
                n += 1
            found.append(part[:n])
            part = part[n:]
        found.append(part)
    return found
