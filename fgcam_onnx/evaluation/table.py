"""The figures of an evaluation in the form of the paper's tables, for a terminal, Markdown and CSV.

    for table in tables(results, published=recognise(explainer.graph)):
        print(table.text())

1 to 3: A.D. and A.I., insertion, deletion and over-all, and localisation, by layer. 4 to 6: the same at the input.
What the paper does not have follows without a number. Methods stand above the rule, controls below it, published
figures under the method that they belong to.

An interval stands in brackets, for a bootstrap's is not symmetric: 18.69 [17.5, 20.1]. ``*`` is the best mean of its
column, ``+`` one that is not separated from it picture by picture; controls do not compete.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fgcam_onnx.evaluation.names import BASELINES, INPUT, is_control, layer_labels, method_name
from fgcam_onnx.evaluation.published import provenance, published
from fgcam_onnx.evaluation.summary import (
    CONTROL_FIGURES,
    EMPTY,
    FAILS,
    FEWEST,
    HOLDS,
    UNCLEAR,
    UNMEASURED,
    Claim,
    Evidence,
    Figure,
    Results,
    Row,
    against_controls,
    cells,
    compare,
    control_at,
    figure_of,
    orderings,
)

__all__ = [
    "Block",
    "Entry",
    "Line",
    "Report",
    "Table",
    "as_csv",
    "controls_tables",
    "controls_tally",
    "report",
    "tables",
]

Kind = Literal["method", "published", "control"]
# Stands for a rule until the width of a table is known.
_RULE = "-"


@dataclass(frozen=True)
class Entry:
    """``value`` and ``interval`` as printed; ``mark``: "*" for the best of its column, "+" for one as good, or ""."""

    value: str = ""
    interval: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    entries: tuple[Entry, ...]
    kind: Kind = "method"


@dataclass(frozen=True)
class Block:
    """Lines under a heading, "" for none."""

    heading: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """``columns``: of each its group, "" for none, and its heading. ``notes`` stand below, a line each.

    ``shared``: notes that tables of one report have in common, so that it can say them once.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    corner: str = "method"

    def text(self, width: int = 100, *, shared: bool = True) -> str:
        """Plain aligned columns, intervals beside the values where ``width`` allows, else below them.

        Where even that is too wide, groups of columns follow below each other. ``shared``: with the shared notes.
        """
        parts = []
        everything = list(range(len(self.columns)))
        if _width(self._lay(everything, beside=True)) <= width:
            parts.append(self._lay(everything, beside=True))
        else:
            parts += [self._lay(some, beside=False) for some in self._chunks(width)]
        lines = [self.title]
        for part in parts:
            lines += ["", *part]
        notes = [*self.notes, *(self.shared if shared else ())]
        return "\n".join([*lines, *([""] if notes else []), *_wrapped(notes, width)]) + "\n"

    def _chunks(self, width: int) -> list[list[int]]:
        """Columns that fit beside each other, groups kept whole."""
        groups: list[list[int]] = []
        for i, (group, _) in enumerate(self.columns):
            if groups and group and self.columns[groups[-1][0]][0] == group:
                groups[-1].append(i)
            else:
                groups.append([i])
        chunks = [groups[0]]
        for some in groups[1:]:
            if _width(self._lay(chunks[-1] + some, beside=False)) <= width:
                chunks[-1] = chunks[-1] + some
            else:
                chunks.append(some)
        return chunks

    def _lay(self, columns: Sequence[int], *, beside: bool) -> list[str]:
        """The lines of some of the columns."""
        lines = [line for block in self.blocks for line in block.lines]
        names = [_indented(line) for line in lines]
        first = max(len(text) for text in (self.corner, *names, *(block.heading for block in self.blocks)))
        grouped = any(self.columns[i][0] for i in columns)
        drawn = {id(line): [_Drawn.of(line.entries[i]) for i in columns] for line in lines}
        widths = []
        for at, i in enumerate(columns):
            found = [drawn[id(line)][at] for line in lines]
            value, interval = max(len(d.value) for d in found), max(len(d.interval) for d in found)
            whole = value + (interval + 1 if interval else 0) if beside else max(value, interval)
            heading = len(self.columns[i][1]) + 1
            if grouped and (i == columns[0] or self.columns[i][0] != self.columns[i - 1][0]):
                span = sum(self.columns[k][0] == self.columns[i][0] for k in columns)
                heading = max(heading, -(-(len(self.columns[i][0]) + 1) // span))
            widths.append((max(whole, heading), value, interval))
        out = []
        if grouped:
            out.append(self._groups(columns, first, [w for w, _, _ in widths]))
        heads = (f"{self.columns[i][1] + ' ':>{w}}" for i, (w, _, _) in zip(columns, widths, strict=True))
        out.append("  ".join([f"{self.corner:<{first}}", *heads]).rstrip())
        out.append(_RULE)
        for number, block in enumerate(self.blocks):
            if block.heading:
                out += [""] * (number > 0) + [block.heading]
            before: Kind = "method"
            for line in block.lines:
                if line.kind == "control" and before != "control" and line is not block.lines[0]:
                    out.append(_RULE)
                before = line.kind
                out += _drawn_line(_indented(line), first, drawn[id(line)], widths, beside)
        return ["-" * _width(out) if line is _RULE else line for line in out]

    def _groups(self, columns: Sequence[int], first: int, widths: Sequence[int]) -> str:
        """The line above the headings: each group over the middle of its columns."""
        words, at = " " * first, 0
        while at < len(columns):
            group, span = self.columns[columns[at]][0], 1
            while at + span < len(columns) and self.columns[columns[at + span]][0] == group:
                span += 1
            room = sum(widths[at : at + span]) + 2 * (span - 1)
            words += "  " + f"{group:^{room}}"
            at += span
        return words.rstrip()

    def markdown(self, *, shared: bool = True) -> str:
        """A pipe table for each block, the best of a column in bold."""
        out = [f"**{self.title}**"]
        for block in self.blocks:
            heads = [" ".join(word for word in column if word) for column in self.columns]
            if block.heading:
                out += ["", f"*{_escaped(block.heading)}*"]
            out += ["", _pipes([self.corner, *heads]), _pipes(["---", *("---:" for _ in heads)])]
            before: Kind = "method"
            for line in block.lines:
                if line.kind == "control" and before != "control" and line is not block.lines[0]:
                    out.append(_pipes(["*controls*", *("" for _ in heads)]))
                before = line.kind
                name = _escaped(line.name) if line.kind != "published" else f"*{line.name}*"
                out.append(_pipes([name, *(_pipe_entry(entry) for entry in line.entries)]))
        notes = [*self.notes, *(self.shared if shared else ())]
        return "\n".join([*out, *([""] if notes else []), *_listed(notes)]) + "\n"


@dataclass(frozen=True)
class _Drawn:
    """An entry with room for its mark."""

    value: str
    interval: str

    @classmethod
    def of(cls, entry: Entry) -> _Drawn:
        return cls(f"{entry.value}{entry.mark or ' '}" if entry.value else "", entry.interval)


def _drawn_line(
    name: str, first: int, drawn: Sequence[_Drawn], widths: Sequence[tuple[int, int, int]], beside: bool
) -> list[str]:
    if beside:
        words = [
            f"{f'{d.value:>{value}} {d.interval:>{interval}}' if interval else d.value:>{whole}}"
            for d, (whole, value, interval) in zip(drawn, widths, strict=True)
        ]
        return ["  ".join([f"{name:<{first}}", *words]).rstrip()]
    lines = [[f"{d.value:>{whole}}" for d, (whole, _, _) in zip(drawn, widths, strict=True)]]
    if any(d.interval for d in drawn):
        lines.append([f"{d.interval:>{whole}}" for d, (whole, _, _) in zip(drawn, widths, strict=True)])
    return ["  ".join([f"{word:<{first}}", *line]).rstrip() for word, line in zip((name, ""), lines, strict=False)]


def _indented(line: Line) -> str:
    return f"  {line.name}" if line.kind == "published" else line.name


def _width(lines: Iterable[str]) -> int:
    return max(len(line) for line in lines)


def _wrapped(notes: Iterable[str], width: int) -> list[str]:
    """Notes as lines of at most ``width``, what is carried over further in."""
    lines: list[str] = []
    for note in notes:
        lines += textwrap.wrap(
            note, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    return lines


def _listed(notes: Iterable[str]) -> list[str]:
    """Notes for Markdown, where bold stands for the asterisk."""
    return [f"- {_escaped(note.replace('* best', 'bold: best'))}" for note in notes]


def _pipes(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"


def _escaped(text: str) -> str:
    """Names of tensors and notes with nothing that Markdown would read as its own."""
    for letter in "\\|*_<`":
        text = text.replace(letter, f"\\{letter}")
    return text


def _pipe_entry(entry: Entry) -> str:
    if not entry.value:
        return ""
    value = f"**{entry.value}**" if entry.mark == "*" else entry.value + entry.mark
    return f"{value} {entry.interval}".rstrip()


# --- from rows to tables ----------------------------------------------------------------------------------------------

_DROP, _CURVES = ("average_drop", "average_increase"), ("insertion", "deletion", "overall")
_LOCAL = ("proportion",)


def tables(
    rows: Iterable[Row] | Results,
    published: Mapping[str, int] | None = None,
    *,
    batch_norm: bool | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[Table]:
    """The tables for which there are figures.

    ``published``: layer -> 33, 23 or 13 where the paper's figures belong beside, as
    :func:`fgcam_onnx.evaluation.published.recognise` gives it. ``batch_norm``: as of ``provenance``.
    """
    results = Results.of(rows)
    maker = _Maker(results, dict(published or {}), batch_norm, labels)
    inner = [layer for layer in results.layers if layer != INPUT]
    at_input = [layer for layer in results.layers if layer == INPUT]
    found = [
        maker.beside("Table 1. Average Drop and Average Increase", inner, _DROP),
        maker.below("Table 2. Insertion, deletion and over-all", inner, _CURVES),
        maker.beside("Table 3. Localisation", inner, _LOCAL),
        maker.beside("Table 4. Average Drop and Average Increase at the input", at_input, _DROP),
        maker.beside("Table 5. Insertion, deletion and over-all at the input", at_input, _CURVES),
        maker.beside("Table 6. Localisation at the input", at_input, _LOCAL),
    ]
    for name in results.figures:
        if name not in (*_DROP, *_CURVES, *_LOCAL):
            title = figure_of(name).title
            found.append(maker.beside(title[:1].upper() + title[1:], list(results.layers), (name,)))
    return [table for table in found if table is not None]


@dataclass(frozen=True)
class _Maker:
    """What all tables of a report share."""

    results: Results
    published: dict[str, int]
    batch_norm: bool | None
    labels: Mapping[str, str] | None

    @property
    def names(self) -> dict[str, str]:
        return layer_labels(self.results.layers, self.published) | dict(self.labels or {})

    def beside(self, title: str, layers: Sequence[str], figures: Sequence[str]) -> Table | None:
        """One block: a group of columns for each layer; without groups where there is one layer or one figure."""
        columns = [(layer, name) for layer in layers for name in self._measured(figures)]
        columns = [column for column in columns if self._any(*column)]
        if not columns:
            return None
        alone, single = len({layer for layer, _ in columns}) == 1, len(figures) == 1
        heads = []
        for layer, name in columns:
            at, what = self.names[layer], figure_of(name).title
            if alone and layer == INPUT:
                heads.append(("", what))
            else:
                heads.append(("", at) if single else (at, what))
        block = Block("", self._lines(columns))
        return Table(self._titled(title, columns), tuple(heads), (block,), self._notes(columns), self._shared(columns))

    def below(self, title: str, layers: Sequence[str], figures: Sequence[str]) -> Table | None:
        """A block for each layer, a column for each figure."""
        names = [name for name in self._measured(figures) if any(self._any(layer, name) for layer in layers)]
        here = [layer for layer in layers if any(self._any(layer, name) for name in names)]
        if not here:
            return None
        columns = [(layer, name) for layer in here for name in names]
        blocks = tuple(Block(self.names[layer], self._lines([(layer, name) for name in names])) for layer in here)
        heads = tuple(("", figure_of(name).title) for name in names)
        return Table(self._titled(title, columns), heads, blocks, self._notes(columns), self._shared(columns))

    def _measured(self, figures: Sequence[str]) -> list[str]:
        return [name for name in figures if name in self.results.figures]

    def _any(self, layer: str, figure: str) -> bool:
        return any(self.results.summary(method, layer, figure).n for method in self.results.methods)

    def _titled(self, title: str, columns: Sequence[tuple[str, str]]) -> str:
        used, all_ = self._pictures(columns), len(self.results.images)
        count = f"{used} of {all_}" if used != all_ else f"{all_}"
        return f"{title}, {count} picture{'s' * (all_ != 1)}"

    def _pictures(self, columns: Sequence[tuple[str, str]]) -> int:
        """With a value in at least one of the columns."""
        return max(self._at_most(name) for _, name in columns)

    def _at_most(self, figure: str) -> int:
        return max(
            self.results.summary(m, layer, figure).n for m in self.results.methods for layer in self.results.layers
        )

    # --- lines ---

    def _lines(self, columns: Sequence[tuple[str, str]]) -> tuple[Line, ...]:
        here = [m for m in self.results.methods if any((m, layer) in self.results for layer, _ in columns)]
        marks = {column: self._marks([m for m in here if not is_control(m)], *column) for column in columns}
        lines = []
        for method in (m for m in here if not is_control(m)):
            entries = tuple(self._entry(method, layer, name, marks[layer, name]) for layer, name in columns)
            lines.append(Line(method_name(method), entries))
            beside = tuple(self._published(method, layer, name) for layer, name in columns)
            if any(entry.value for entry in beside):
                lines.append(Line("published", beside, "published"))
        for method in (m for m in here if is_control(m)):
            entries = tuple(self._entry(method, layer, name, {}) for layer, name in columns)
            lines.append(Line(method_name(method), entries, "control"))
        return tuple(lines)

    def _entry(self, method: str, layer: str, name: str, marks: Mapping[str, str]) -> Entry:
        if (method, layer) not in self.results:
            return Entry()
        figure, s = figure_of(name), self.results.summary(method, layer, name)
        interval = _interval(figure, s.low, s.high) if s.n > 1 else ""
        return Entry(figure.text(s.mean), interval, marks.get(method, ""))

    def _published(self, method: str, layer: str, name: str) -> Entry:
        if not self.published:
            return Entry()
        value = published(method, layer if layer == INPUT else self.published.get(layer, ""), name)
        return Entry() if value is None else Entry(figure_of(name).text(value))

    def _marks(self, methods: Sequence[str], layer: str, name: str) -> dict[str, str]:
        """``*`` for the best mean, ``+`` for those not separated from it; nothing for a method without company."""
        sign = figure_of(name).sign
        means = {m: sign * self.results.summary(m, layer, name).mean for m in methods}
        means = {m: value for m, value in means.items() if not math.isnan(value)}
        if not sign or len(means) < 2:
            return {}
        best = max(means, key=means.__getitem__)
        marks = {best: "*"}
        for method in means.keys() - {best}:
            if compare(self.results, name, (best, layer), (method, layer)).verdict == UNCLEAR:
                marks[method] = "+"
        return marks

    # --- notes ---

    def _notes(self, columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        figures = list(dict.fromkeys(name for _, name in columns))
        notes = []
        better = {
            word: [figure_of(name).title for name in figures if figure_of(name).better == word]
            for word in ("lower", "higher")
        }
        if any(better.values()):
            notes.append(
                "; ".join(f"{word} is better: {', '.join(titles)}" for word, titles in better.items() if titles)
            )
        if self._pictures(columns) == 1:
            notes.append("no intervals: they take two pictures")
        elif self._pictures(columns) < FEWEST:
            notes.append(f"fewer than {FEWEST} pictures separate nothing, whatever the intervals say")
        for name in figures:
            notes += self._undefined(name, [layer for layer, each in columns if each == name])
        if "proportion" in figures:
            notes += self._empty(list(dict.fromkeys(layer for layer, _ in columns)))
        return tuple(notes)

    def _shared(self, columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """In an order that is the same for every table."""
        notes = []
        if any(self._marks(_competing(self.results), *column) for column in columns):
            notes.append("* best mean of its column; + not separated from it, picture by picture")
        if self._pictures(columns) > 1:
            notes.append("[low, high]: 95 % interval of the mean, by bootstrap over the pictures")
        layers = dict.fromkeys(layer for layer, _ in columns)
        notes += [f"{self.names[layer]}: {layer}" for layer in layers if self.names[layer] != layer]
        if any(self._published(m, *column).value for m in self.results.methods for column in columns):
            notes.append(provenance(self.batch_norm))
        return tuple(notes)

    def _undefined(self, name: str, layers: Sequence[str]) -> list[str]:
        """Where a figure does not exist for all pictures, and where pictures were not measured at all."""
        figure, all_ = figure_of(name), len(self.results.images)
        undefined: dict[int, list[str]] = {}
        absent: dict[int, list[str]] = {}
        every = [(m, layer) for layer in layers for m in self.results.methods if (m, layer) in self.results]
        for method, layer in every:
            s = self.results.summary(method, layer, name)
            where = f"{method_name(method)} at {self.names[layer]}"
            if s.undefined:
                undefined.setdefault(s.undefined, []).append(where)
            if s.n + s.undefined < all_:
                absent.setdefault(s.n + s.undefined, []).append(where)
        notes = []
        for count, cells_ in sorted(undefined.items()):
            text = f"{figure.title} is undefined, for want of {figure.undefined}, for {count} of {all_} pictures"
            notes.append(text if len(cells_) == len(every) else f"{text}: {', '.join(cells_)}")
        for count, cells_ in sorted(absent.items()):
            notes.append(f"{figure.title} was measured on {count} of {all_} pictures: {', '.join(cells_)}")
        return notes

    def _empty(self, layers: Sequence[str]) -> list[str]:
        """Maps without anything positive."""
        counts: dict[int, list[str]] = {}
        for layer in layers:
            for method in self.results.methods:
                values = self.results.vector(method, layer, EMPTY)
                if count := int((values > 0).sum()):
                    counts.setdefault(count, []).append(f"{method_name(method)} at {self.names[layer]}")
        return [
            f"{'1 map' if count == 1 else f'{count} maps'} without anything positive, counted as 0: {', '.join(cells_)}"
            for count, cells_ in sorted(counts.items())
        ]


def _competing(results: Results) -> list[str]:
    return [m for m in results.methods if not is_control(m)]


def _interval(figure: Figure, low: float, high: float) -> str:
    """With fewer digits than the value: nobody needs five of a bound."""
    digits = _bound_digits(figure.digits)
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _bound_digits(digits: int) -> int:
    return max(1, min(digits - 1, 3))


# --- controls ---------------------------------------------------------------------------------------------------------

_CONTROLS = (*BASELINES, "class-blind")
_WORDS = {HOLDS: "yes", FAILS: "no", UNCLEAR: "unclear", UNMEASURED: "-"}


def controls_tables(
    rows: Iterable[Row] | Results,
    figures: Sequence[str] = CONTROL_FIGURES,
    *,
    labels: Mapping[str, str] | None = None,
) -> list[Table]:
    """Does each method beat each control? A table for each figure that was measured, a block for each layer."""
    results = Results.of(rows)
    names = layer_labels(results.layers) | dict(labels or {})
    found = []
    for name in figures:
        if name not in results.figures:
            continue
        claims = {claim.name: claim for claim in against_controls(results, (name,), names)}
        blocks = []
        columns = [
            c for c in _CONTROLS if any(claim.startswith(f"{m} > {c}:") for m in results.methods for claim in claims)
        ]
        for layer in results.layers:
            lines = []
            for method in _competing(results):
                of = [claims.get(f"{method} > {control}: {name} at {layer}") for control in columns]
                if any(claim is not None and claim.evidence for claim in of):
                    lines.append(Line(method_name(method), tuple(_answer(claim) for claim in of)))
            if lines:
                blocks.append(Block(names[layer], tuple(lines)))
        if not blocks:
            continue
        title = f"Better than the controls? {figure_of(name).title}".rstrip()
        notes = [
            "by how much, picture by picture, with its 95 % interval; positive: the method is the better one",
        ]
        if "class-blind" in columns:
            notes.append(
                "class-blind: the same activations with every channel's weight 1, walked down as the method is"
            )
        notes += _elsewhere(results, columns, names)
        heads = tuple(("", method_name(control)) for control in columns)
        found.append(Table(title, heads, tuple(blocks), tuple(notes)))
    return found


def controls_tally(rows: Iterable[Row] | Results, figures: Sequence[str] = CONTROL_FIGURES) -> list[Table]:
    """At how many of its layers does each method clearly beat each control? A table for each figure."""
    results = Results.of(rows)
    found = []
    for name in (each for each in figures if each in results.figures):
        won: dict[tuple[str, str], list[bool]] = {}
        for layer in results.layers:
            for method in _competing(results):
                for control in _CONTROLS:
                    rival = control_at(results, control, method, layer)
                    if rival is None or (method, layer) not in results:
                        continue
                    difference = compare(results, name, (method, layer), rival)
                    if difference.n:
                        won.setdefault((method, control), []).append(difference.better is True)
        columns = [control for control in _CONTROLS if any(c == control for _, c in won)]
        lines = tuple(
            Line(method_name(m), tuple(_tallied(won.get((m, control), [])) for control in columns))
            for m in _competing(results)
            if any(method == m for method, _ in won)
        )
        if lines:
            heads = tuple(("", method_name(control)) for control in columns)
            title = f"Layers at which a method is better than a control, by {figure_of(name).title}"
            found.append(Table(title, heads, (Block("", lines),)))
    return found


def _tallied(won: Sequence[bool]) -> Entry:
    return Entry(f"{sum(won)} of {len(won)}" if won else "")


def _answer(claim: Claim | None) -> Entry:
    if claim is None or not claim.evidence:
        return Entry()
    (evidence,) = claim.evidence
    digits = min(evidence.digits, 3)
    interval = f"[{evidence.low:.{digits}f}, {evidence.high:.{digits}f}]" if evidence.n > 1 else ""
    return Entry(f"{_WORDS[claim.verdict]} {evidence.margin:+.{digits}f}", interval)


def _elsewhere(results: Results, columns: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Controls that stand in from the input."""
    found: dict[str, None] = {}
    for layer in results.layers:
        for method in _competing(results):
            for control in columns:
                place = control_at(results, control, method, layer)
                if place is not None and place[1] != layer and (method, layer) in results:
                    found[f"{method_name(control)} at {names[layer]}: its map at {names[place[1]]}"] = None
    return list(found)


# --- the whole report -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Tables, what the paper's orderings become on these pictures, and the controls."""

    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    controls: tuple[Table, ...]
    tally: tuple[Table, ...] = ()

    @property
    def shared(self) -> list[str]:
        """What the tables have in common, each note once."""
        return list(dict.fromkeys(note for table in self.tables for note in table.shared))

    def text(self, width: int = 100, *, brief: bool = False) -> str:
        """For a terminal. ``brief``: of claims and controls the outcome alone."""
        parts = [table.text(width, shared=False) for table in self.tables]
        if self.shared:
            parts.append("\n".join(_wrapped(self.shared, width)) + "\n")
        parts += [table.text(width) for table in (self.tally if brief else self.controls)]
        if any(claim.evidence for claim in self.claims):
            parts.append("\n".join([_ORDERINGS, "", *self._claims(brief)]) + "\n")
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """For a file that people read."""
        parts = [table.markdown(shared=False) for table in self.tables]
        if self.shared:
            parts.append("\n".join(_listed(self.shared)) + "\n")
        parts += [table.markdown() for table in self.controls]
        if any(claim.evidence for claim in self.claims):
            parts.append("\n".join([f"**{_ORDERINGS}**", "", "```text", *self._claims(False), "```"]) + "\n")
        return "\n".join(parts)

    def _claims(self, brief: bool) -> list[str]:
        lines = []
        for claim in self.claims:
            if claim.verdict == UNMEASURED:
                continue
            lines.append(f"{claim.verdict:<13}  {claim.text}")
            wide = max(len(each.where) for each in claim.evidence)
            for each in () if brief else claim.evidence:
                measured = "" if math.isnan(each.margin) else f": {_margin(each)}"
                apart = "" if each.verdict == claim.verdict else f"   {each.verdict}"
                lines.append(f"{'':13}    {each.where:<{wide}}  {each.text}{measured}, n {each.n}{apart}")
        missing = [claim.text for claim in self.claims if claim.verdict == UNMEASURED]
        lines += [f"{UNMEASURED:<13}  {text}" for text in missing]
        words = (HOLDS, FAILS, UNCLEAR, UNMEASURED)
        counts = {word: sum(claim.verdict == word for claim in self.claims) for word in words}
        intervals = sum(not math.isnan(each.margin) for claim in self.claims for each in claim.evidence)
        lines += ["", ", ".join(f"{word}: {count}" for word, count in counts.items())]
        lines += [
            "A claim holds if all of its differences are above 0 with their 95 % intervals, and does not",
            "hold if one is below 0 with an interval of 1 - 5 % / k, where k is the number of its differences.",
            f"Of the {intervals} intervals here one in twenty misses the true value by chance.",
        ]
        return lines


_ORDERINGS = "Orderings of the paper on these pictures"


def _margin(evidence: Evidence) -> str:
    digits = _bound_digits(evidence.digits)
    margin = f"by {evidence.margin:.{evidence.digits}f}"
    if evidence.n < 2:
        return margin
    return f"{margin} [{evidence.low:.{digits}f}, {evidence.high:.{digits}f}]"


def report(
    rows: Iterable[Row] | Results,
    published: Mapping[str, int] | None = None,
    *,
    batch_norm: bool | None = None,
    labels: Mapping[str, str] | None = None,
) -> Report:
    """All of it; arguments as of :func:`tables`."""
    results = Results.of(rows)
    names = layer_labels(results.layers, published) | dict(labels or {})
    return Report(
        tuple(tables(results, published, batch_norm=batch_norm, labels=labels)),
        tuple(orderings(results, names)),
        tuple(controls_tables(results, labels=names)),
        tuple(controls_tally(results)),
    )


def as_csv(rows: Iterable[Row] | Results, published_at: Mapping[str, int] | None = None) -> str:
    """Every cell as a row, with the standard error, counts and the published figure; empty where there is none."""
    results = Results.of(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            "method",
            "name",
            "layer",
            "figure",
            "better",
            "mean",
            "standard_error",
            "low",
            "high",
            "n",
            "undefined",
            "published",
        )
    )
    places = dict(published_at or {})
    for cell in cells(results):
        s = cell.summary
        beside = None
        if places:
            beside = published(
                cell.method, cell.layer if cell.layer == INPUT else places.get(cell.layer, ""), cell.figure
            )
        numbers = ["" if math.isnan(v) else f"{v:.10g}" for v in (s.mean, s.standard_error, s.low, s.high)]
        writer.writerow(
            (
                cell.method, method_name(cell.method), cell.layer, cell.figure, figure_of(cell.figure).better, *numbers,
                s.n, s.undefined, "" if beside is None else f"{beside:g}",
            )
        )  # fmt: skip
    return out.getvalue()
