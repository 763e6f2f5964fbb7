"""``fgcam explain`` with several methods or layers: each map on its own, and the comparison grid of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fgcam_onnx.cli import say
from fgcam_onnx.errors import FgcamError, LayerError, MethodError, OptionError, UnsupportedOpError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fgcam_onnx import Explainer, Explanation
    from fgcam_onnx.cli.explain import Run
    from fgcam_onnx.feeds import Feeds
    from fgcam_onnx.imaging import Pixels
    from fgcam_onnx.methods import Method

ALL = "all"
OWN = "its own layer"
KINDS = {
    "fine-grained": "Fine-grained CAMs, walked down from L",
    "cam": "Class activation maps",
    "relevance": "Relevance from the logits",
    "derivative": "Derivatives",
    "sampling": "Sampling",
}
# Forward passes from which a cell is announced as slow.
SLOW = 200
# What stops one cell and not the others: this method cannot serve this layer, or this model.
CANNOT = (MethodError, LayerError, OptionError, UnsupportedOpError)


def words_of(text: str | None) -> list[str]:
    """``a,b`` as a list; a word that is given twice counts once."""
    return list(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def wanted(method: str, layer: str | None) -> bool:
    """Does the command ask for more than one method or layer?"""
    return any(word == ALL or len(words_of(word)) > 1 for word in (method.strip(), (layer or "").strip()))


def methods_of(text: str) -> list[Method]:
    """The methods by kind, as the grid has them.

    Raises:
        MethodError: one that does not exist.
    """
    from fgcam_onnx.methods import METHODS, method

    found = list(METHODS.values()) if text.strip() == ALL else [method(word) for word in words_of(text)]
    return sorted(found, key=lambda m: list(KINDS).index(m.kind))


def layers_of(explainer: Explainer, text: str | None) -> list[str | None]:
    """The names of the columns, from the input to L; None stands for each method's own layer."""
    if text is None:
        return [None]
    if text.strip() == ALL:
        return ["input", *(stage.name for stage in explainer.layers()[1:])]
    return list(words_of(text))


def options_of(
    methods: Sequence[Method], given: Mapping[str, Any], *, start: str | None, denoise: bool
) -> list[dict[str, Any]]:
    """What each method is called with: of the options those that it has, L and denoising where it has an L.

    Raises:
        OptionError: an option, --start or --denoise that none of the methods has.
    """
    from fgcam_onnx.errors import nearest
    from fgcam_onnx.families.base import COMPOSITE_OPTIONS, DENOISE_OPTIONS

    found: list[dict[str, Any]] = []
    for m in methods:
        at_l = m.kind in ("fine-grained", "cam")
        walks = COMPOSITE_OPTIONS if m.kind in ("fine-grained", "relevance") else ()
        has = {*m.options, *walks, *(DENOISE_OPTIONS if at_l else ())}
        call: dict[str, Any] = {name: value for name, value in given.items() if name in has}
        if at_l:
            call["denoise"] = denoise
            if start is not None and m.kind == "fine-grained":
                call["start"] = start
        found.append(call)
    known = dict.fromkeys(name for m in methods for name in m.options)
    for name in given:
        if not any(name in call for call in found):
            raise OptionError(
                f"none of these methods has an option {name!r}",
                known=", ".join((*known, *COMPOSITE_OPTIONS)),
                next=nearest(name, (*known, *COMPOSITE_OPTIONS, *DENOISE_OPTIONS)) or None,
            )
    for flag, given_flag in (("--start", start is not None), ("--denoise", denoise)):
        key = flag.removeprefix("--")
        if given_flag and not any(call.get(key) for call in found):
            raise OptionError(f"{flag} belongs to methods with an L", next="choose a fine-grained method")
    return found


def passes(method: Method, call: Mapping[str, Any], channels: int) -> int:
    """About how many forward passes a map costs."""
    if not method.many_passes:
        return 1
    for name in ("masks", "samples", "steps", "groups"):
        value = call.get(name, method.options.get(name))
        if isinstance(value, int):
            return max(1, value)
    return max(1, channels)


@dataclass(frozen=True, eq=False)
class Column:
    """A layer: the name that explain() is given (None: each method's own), how it is called, and its channels."""

    layer: str | None
    title: str
    channels: int


@dataclass(frozen=True, eq=False)
class Spot:
    """One cell: which method at which layer, with what, and what it costs."""

    row: int
    column: int
    method: Method
    layer: str | None
    call: Mapping[str, Any]
    cost: int


class Comparison:
    """Methods by layers for each picture: a folder for each map, a grid for each picture, the manifest last."""

    def __init__(self, run: Run, methods: Sequence[Method], layers: Sequence[str | None]) -> None:
        self.run, self.methods, self.layers = run, methods, layers

    def __call__(
        self,
        pictures: Sequence[Path],
        names: Sequence[str],
        targets: Sequence[Any] | None,
        output: Path,
        call: Mapping[str, Any],
        calls: Sequence[Mapping[str, Any]],
        others: Feeds,
    ) -> dict[str, Any]:
        """``call``: what all cells share; ``calls``: what each method takes beside it. Returns the manifest."""
        from fgcam_onnx.explanation import Folder, png

        run = self.run
        if targets is not None and any(isinstance(t, (list, str)) and len(t) > 1 for t in targets):
            raise OptionError("a comparison explains one class", next="--target with one class, or one --method")
        # everything is read before anything is written: a bad picture is told at once
        read = [run.read(path) for path in pictures]
        columns = self._columns(read[0][0][None], others.part(0, 1))
        spots = self._spots(columns, calls)
        if not run.silent:
            self._announce(spots)
        records: list[dict[str, Any]] = []
        common: dict[str, Any] = {}
        places = _folders([column.title for column in columns])
        total = len(pictures) * sum(spot.cost for spot in spots)
        with Folder(output, keep=True) as folder, _bar(total) as bar:
            for i, (path, (x, view, digest)) in enumerate(zip(pictures, read, strict=True)):
                target = None if targets is None else targets[i]
                found: dict[tuple[int, int], Explanation | FgcamError] = {}
                first: Explanation | None = None
                cells: list[dict[str, Any]] = []
                for spot in spots:
                    with bar.cell(f"{spot.method.name} {columns[spot.column].title}", spot.cost) as inner:
                        aim = None if target is None and first is None else [target if first is None else _aim(first)]
                        try:
                            e = run.explainer.explain(
                                x[None], method=spot.method.name, layer=spot.layer, target=aim,
                                inputs=others.part(i, i + 1), progress=inner, **call, **spot.call,
                            )  # fmt: skip
                        except CANNOT as error:
                            found[spot.row, spot.column] = error
                            continue
                    first = first or e
                    found[spot.row, spot.column] = e
                    place = Path(names[i], spot.method.name, places[spot.column])
                    cells.append({"spot": (spot.row, spot.column), **self._write(output / place, place, e)})
                if first is None:
                    raise next(error for error in found.values() if isinstance(error, FgcamError))
                self._check_options(found, calls)
                common = common or {**run.common(first, {"denoise": False}), **self._what(columns, call, calls)}
                record = run.one(first, 0, path, digest)
                for key in ("relevance", "ledger"):
                    record.pop(key)
                refused = [
                    {"spot": at, **self._name(at, columns), "error": type(error).__name__, **_told(error)}
                    for at, error in found.items()
                    if isinstance(error, FgcamError)
                ]
                cells.sort(key=lambda cell: cell.pop("spot"))
                refused.sort(key=lambda cell: cell.pop("spot"))
                record |= {"files": {"grid": f"{names[i]}.png"}, "cells": cells, "refused": refused}
                folder.write({f"{names[i]}.png": png(self._draw(view, record, columns, found, call))})
                records.append(record)
                if not run.silent:
                    with bar.aside():
                        self._print(record, folder.path / f"{names[i]}.png")
            manifest = {**common, "images": records}
            folder.finish(manifest)
        if not run.silent:
            n = sum(len(record["cells"]) for record in records)
            typer.echo(f"wrote {n} map{'s' * (n > 1)}, {_count(len(records), 'grid')} and manifest.json to {output}")
        return {**manifest, "output": str(output)}

    def _check_options(
        self, found: Mapping[tuple[int, int], Explanation | FgcamError], calls: Sequence[Mapping[str, Any]]
    ) -> None:
        """A value that a method takes at no layer is a mistake of the command, and no blank row.

        Raises:
            OptionError: what the method said.
        """
        for row, own in enumerate(calls):
            cells = [cell for (r, _), cell in found.items() if r == row]
            errors = [cell for cell in cells if isinstance(cell, OptionError)]
            if errors and own.keys() - {"denoise", "start"} and all(isinstance(cell, FgcamError) for cell in cells):
                raise errors[0]

    def _columns(self, x: npt.NDArray[np.float32], others: Feeds) -> list[Column]:
        """The layers with their sizes, from one forward pass: a name that the model does not have is told here."""
        explainer = self.run.explainer
        named = [layer for layer in self.layers if layer is not None]
        own = explainer.layers()[-1]
        arrays = explainer.activations(x, [*named, own.name], inputs=others)
        columns = []
        for layer in self.layers:
            a = arrays[layer or own.name]
            tensor = explainer.input_name if layer == "input" else layer or own.name
            layout = _layout(explainer, tensor) or "NCHW"
            sides = dict(zip(layout, a.shape, strict=False))
            space = " x ".join(str(side) for axis, side in sides.items() if axis not in "NC")
            title = OWN if layer is None else layer
            columns.append(Column(layer, f"{title}\n{space}" if layer else title, int(sides.get("C", 1))))
        return columns

    def _spots(self, columns: Sequence[Column], calls: Sequence[Mapping[str, Any]]) -> list[Spot]:
        """All cells, the cheap ones first."""
        spots = []
        at_l = columns[-1].channels
        for row, (method, call) in enumerate(zip(self.methods, calls, strict=True)):
            for c, column in enumerate(columns):
                channels = at_l if method.kind == "fine-grained" else column.channels
                # sampling methods explain the input alone, and refuse elsewhere before anything runs
                runs = method.kind != "sampling" or column.layer in (None, "input", self.run.explainer.input_name)
                cost = 1 + (passes(method, call, channels) if runs else 0)
                spots.append(Spot(row, c, method, column.layer, call, cost))
        return sorted(spots, key=lambda spot: spot.cost)

    def _what(
        self, columns: Sequence[Column], call: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The part of the manifest that says what was compared, in the place of one method's."""
        from fgcam_onnx.explanation import plain_json

        return {
            "method": [m.name for m in self.methods],
            "layer": [column.layer for column in columns],
            "start": None,
            "options": plain_json(
                {m.name: {**_shown(call), **_shown(own)} for m, own in zip(self.methods, calls, strict=True)}
            ),
        }

    def _write(self, path: Path, place: Path, e: Explanation) -> dict[str, Any]:
        """The map in a folder of its own, with its own manifest."""
        from fgcam_onnx.cli.explain import account
        from fgcam_onnx.explanation import Folder, npy, plain_json

        with Folder(path, keep=True) as folder:
            folder.write({"relevance.npy": npy(e.relevance[0])})
            folder.finish(e.manifest())
            digest = folder.hashes["relevance.npy"]
        r = e.relevance[0].astype("float64")
        leaked, in_map, residual = account(e, 0)
        record: dict[str, Any] = plain_json(
            {
                "method": e.method,
                "layer": e.layer,
                "start": e.start,
                "relevance": {"shape": list(r.shape), "sum": r.sum(), "positive": r.clip(min=0).sum(), "max": r.max()},
                "ledger": {"leaked": leaked, "in_map": in_map, "residual": residual},
                "files": {"relevance": (place / "relevance.npy").as_posix()},
                "sha256": digest,
            }
        )
        return record

    def _name(self, at: tuple[int, int], columns: Sequence[Column]) -> dict[str, Any]:
        return {"method": self.methods[at[0]].name, "layer": columns[at[1]].layer}

    def _draw(
        self,
        view: Pixels,
        record: dict[str, Any],
        columns: Sequence[Column],
        found: Mapping[tuple[int, int], Explanation | FgcamError],
        call: Mapping[str, Any],
    ) -> Any:
        """The grid: the cell of a map is that map over the photo, alone."""
        from fgcam_onnx import imaging
        from fgcam_onnx.cli.explain import TILE, described, strength
        from fgcam_onnx.grid import comparison

        run = self.run
        cells: list[list[Pixels | str]] = []
        for row in range(len(self.methods)):
            each = [found[row, column] for column in range(len(columns))]
            cells.append([e.what if isinstance(e, FgcamError) else run.overlay(view, e.relevance[0]) for e in each])
        kinds = [m.kind for m in self.methods]
        changes = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
        signs = run.look.colormap in imaging.SIGNED_COLORMAPS
        ends = ("against", "for the class") if signs else ("none", "most")
        top = f"the {run.look.cap:g}th percentile of its cells" if run.look.cap < 100 else "its largest cell"
        explainer = run.explainer
        return comparison(
            cells,
            [_row_title(m, [found[i, c] for c in range(len(columns))], columns) for i, m in enumerate(self.methods)],
            [column.title for column in columns],
            title=f"{described(record)}   {strength(record, 3)}",
            lines=[
                f"{explainer.path.name if explainer.path else 'model'} · {Path(record['image']).name}",
                f"L = {explainer.default_layer}" + "".join(f" · {k} {v}" for k, v in _shown(call).items()),
                f"each map in its own colours, up to {top}",
            ],
            photo=view,
            headings={i: KINDS[kinds[i]] for i in changes} if len(changes) > 1 else None,
            bar=imaging.Bar(run.look.colormap, *ends),
            footer=" · ".join(run.made_by()),
            tile=TILE,
        )

    def _announce(self, spots: Sequence[Spot]) -> None:
        slow: dict[str, int] = {}
        for spot in spots:
            if spot.cost >= SLOW:
                slow[spot.method.name] = slow.get(spot.method.name, 0) + spot.cost - 1
        if slow:
            words = ", ".join(f"{name} {n}" for name, n in sorted(slow.items(), key=lambda pair: pair[1]))
            say.facts([("slow", f"forward passes for each picture, about: {words}")])

    def _print(self, record: dict[str, Any], path: Path) -> None:
        from fgcam_onnx.cli.explain import described, doubts, strength

        typer.echo(f"\n{record['image']} -> {path}")
        refused: dict[tuple[str, str], list[str]] = {}
        for cell in record["refused"]:
            refused.setdefault((cell["method"], _same(cell["what"], cell["layer"])), []).append(cell["layer"] or OWN)
        say.facts(
            [
                ("  class" if "top" in record else "  target", f"{described(record)}   {strength(record, 4)}"),
                ("  maps", f"{len(record['cells'])} of {len(record['cells']) + len(record['refused'])}"),
                *(("  blank", f"{name} at {', '.join(at)}: {what}") for (name, what), at in refused.items()),
                *doubts(record),
            ]
        )


def _aim(e: Explanation) -> Any:
    """The target of an explanation, so that all others explain the same."""
    return e.target[0] if e.classes is None else int(e.classes[0])


def _told(error: FgcamError) -> dict[str, Any]:
    return {"what": error.what, "at": error.at, "known": error.known, "next": error.next}


def _same(what: str, layer: str | None) -> str:
    """A reason without the name of its layer, so that the same reason at several layers is told once."""
    return what if layer is None else re.sub(r"(layer=)?'?\b" + re.escape(layer) + r"\b'?", "it", what)


def _shown(call: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a reader should see."""
    return {name: value for name, value in call.items() if value not in (None, False) and name != "batch_size"}


def _row_title(method: Method, row: Sequence[Explanation | FgcamError], columns: Sequence[Column]) -> str:
    """The name; beside each method's own layer also where that is."""
    if len(columns) != 1 or columns[0].layer is not None or isinstance(row[0], FgcamError):
        return method.name
    return f"{method.name}\nat {row[0].layer}"


def _folders(titles: Sequence[str]) -> list[str]:
    """A folder for each layer: its name with _ for what a file system may not like."""
    found: list[str] = []
    for title in titles:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", title.split("\n")[0]).strip("._") or "layer"
        name, count = plain, 1
        while name.casefold() in {each.casefold() for each in found}:
            count += 1
            name = f"{plain}_{count}"
        found.append(name)
    return found


def _layout(explainer: Explainer, tensor: str) -> str | None:
    graph = explainer.graph
    nodes = {name: layer.output for layer in graph.layers for name in (layer.name, *layer.nodes)}
    return graph.tensor(nodes.get(tensor, tensor)).layout


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n > 1)}"


class _Bar:
    """Where a comparison reports to: ``cell`` around each map, ``aside`` around what it prints."""

    @contextmanager
    def cell(self, name: str, cost: int) -> Iterator[Any]:
        """Nobody watches."""
        yield None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing is in the way."""
        yield


@contextmanager
def _bar(total: int) -> Iterator[_Bar]:
    """One bar for everything on stderr, in forward passes, drawn only where somebody watches."""
    if not say.on_terminal():
        yield _Bar()
        return
    from fgcam_onnx.cli.explain import new_bar

    bar = new_bar(count=False)
    task = bar.add_task("", total=total)

    class Watched(_Bar):
        def __init__(self) -> None:
            self.done = 0

        @contextmanager
        def cell(self, name: str, cost: int) -> Iterator[Any]:
            bar.update(task, description=name.replace("\n", " "))
            try:
                yield lambda done, of: bar.update(task, completed=self.done + cost * done / max(of, 1))
            finally:
                self.done += cost
                bar.update(task, completed=self.done)

        @contextmanager
        def aside(self) -> Iterator[None]:
            bar.stop()
            yield
            bar.start()

    bar.start()
    try:
        yield Watched()
    finally:
        bar.stop()
