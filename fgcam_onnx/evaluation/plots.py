"""Two pictures of an evaluation: the curves of insertion and deletion, and every figure against the layer.

    save(curves(results), "curves")             # curves.svg and curves.png
    save(against_layers(results), "layers")

A family of methods has one colour and one marker: dashed and hollow for the method itself, solid and full for its
fine-grained variant, dash-dotted and tinted for the denoised one. Controls are grey. The same rows give the same bytes,
on the same matplotlib.

matplotlib is loaded when a figure is drawn; its settings are put back, and pyplot is never touched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import OutputError
from fgcam_onnx.evaluation.names import INPUT, family, is_control, layer_labels, method_name
from fgcam_onnx.evaluation.summary import Results, Row, figure_of
from fgcam_onnx.optional import need

__all__ = ["LAYER_FIGURES", "Look", "against_layers", "band", "curves", "looks", "save"]

Floats = npt.NDArray[np.float64]
Figure = Any  # of matplotlib

_PAPER, _INK, _SOFT, _FAINT, _EDGE = "#fbfaf7", "#1d1d1f", "#5c5c63", "#8e8e96", "#d9d7d0"
# Okabe and Ito's palette without its yellow, which a light page swallows; the families of the paper first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FA3", "#7F3B08")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_FAMILIES = ("grad-cam", "score-cam", "layer-cam", "lrp", "clrp", "sglrp")
_CONTROL_LINES: Mapping[str, Any] = {
    "class-blind": (0, (6, 2)),
    "fg-class-blind": (0, (6, 1.5, 1, 1.5)),
    "fg-class-blind+denoise": (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    "random": (0, (1, 1.6)),
    "center-gaussian": (0, (3, 1.5)),
    "edges": (0, (4, 1.5, 1, 1.5)),
}
_CONTROL_GREYS: Mapping[str, str] = {
    "class-blind": "#4d4d4d",
    "fg-class-blind": "#262626",
    "fg-class-blind+denoise": "#262626",
    "random": "#b0b0b0",
    "center-gaussian": "#8c8c8c",
    "edges": "#9d9d9d",
}
# Figures that a panel is drawn for, where they were measured.
LAYER_FIGURES = ("average_drop", "average_increase", "insertion", "deletion", "overall", "proportion")
RESAMPLES, SEED = 1000, 0
_BAND_STEPS = 57  # points of a band: enough for the eye, and a file that loads
_WIDTH = 10.0  # inches
_LETTERS = 110  # that fit side by side below a panel as wide as the page


# --- how a method looks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Of one method in every panel."""

    colour: str
    line: Any
    marker: str
    fill: str
    width: float
    order: int


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Colour and marker by family, the line by variant. The families of the paper always look the same."""
    others = [family(m) for m in methods if not is_control(m) and family(m) not in _FAMILIES]
    position = {name: i for i, name in enumerate((*_FAMILIES, *dict.fromkeys(others)))}
    found = {}
    for order, method in enumerate(methods):
        if is_control(method):
            kind = method if method in _CONTROL_LINES else family(method)
            line, colour = _CONTROL_LINES[kind], _CONTROL_GREYS[kind]
            found[method] = Look(colour, line, "", colour, 1.1, order)
            continue
        i = position[family(method)]
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
        if method.endswith("+denoise"):
            line, fill, width = (0, (5, 1.4, 1.2, 1.4)), _tinted(colour), 1.5
        elif method.startswith("fg-") or family(method) in ("lrp", "clrp", "sglrp"):
            line, fill, width = "-", colour, 1.9
        else:
            line, fill, width = (0, (3.2, 1.6)), _PAPER, 1.5
        found[method] = Look(colour, line, marker, fill, width, order)
    return found


def _tinted(colour: str) -> str:
    """Half way to the page."""
    pairs = zip(_rgb(colour), _rgb(_PAPER), strict=True)
    return "#" + "".join(f"{(a + b) // 2:02x}" for a, b in pairs)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _lined(method: str, look: Look, **more: Any) -> dict[str, Any]:
    """Arguments of a line in matplotlib's words."""
    control = is_control(method)
    return {
        "color": look.colour,
        "linestyle": look.line,
        "linewidth": look.width,
        "marker": look.marker or None,
        "markersize": 5.2,
        "markerfacecolor": look.fill,
        "markeredgecolor": look.colour,
        "markeredgewidth": 1.2,
        "zorder": 2 if control else 3 + (look.width > 1.6),
        "label": method_name(method),
        **more,
    }


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(rows: Iterable[Row] | Results, labels: Mapping[str, str] | None = None) -> Figure | None:
    """p_c as pixels go and as they come, the mean over pictures; a row of panels for each layer.

    The bands are 95 % intervals of the mean at each share, of methods only. None where no row has curves.
    """
    results = Results.of(rows)
    names = layer_labels(results.layers) | dict(labels or {})
    found: dict[tuple[str, str, str], Floats] = {}
    for layer in results.layers:
        for method in results.methods:
            for kind in ("deletion", "insertion"):
                scores = _scores(results, method, layer, f"{kind}_scores")
                if len(scores):
                    found[layer, method, kind] = scores
    layers = [layer for layer in results.layers if any(at == layer for at, _, _ in found)]
    if not layers:
        return None
    shown = [m for m in results.methods if any(method == m for _, method, _ in found)]
    every = looks(shown)
    with _style():
        height = max(2.6 * len(layers) + 0.95, _legend_height(shown) + 1.3)
        figure = _figure(_WIDTH, height)
        legend = 2.05 / _WIDTH
        grid = figure.add_gridspec(
            len(layers), 2, left=0.075, right=1 - legend - 0.015, top=1 - 0.8 / height, bottom=0.5 / height,
            wspace=0.12, hspace=0.12,
        )  # fmt: skip
        shade = min(0.12, max(0.03, 0.8 / len(shown)))
        top = max(float(scores.mean(axis=0).max()) for scores in found.values())
        panels = []
        for i, layer in enumerate(layers):
            for j, kind in enumerate(("deletion", "insertion")):
                axes = figure.add_subplot(grid[i, j])
                panels.append(axes)
                for method in shown:
                    if (layer, method, kind) in found:
                        _curve(axes, method, every[method], found[layer, method, kind], shade)
                _plain_axes(axes)
                axes.set_xlim(0, 100)
                axes.set_ylim(0, min(1.0, top * 1.12))
                if j:
                    axes.tick_params(labelleft=False)
                else:
                    axes.set_ylabel("mean $p_c$" if False else "mean score of the class")
                if i < len(layers) - 1:
                    axes.tick_params(labelbottom=False)
                else:
                    axes.set_xlabel(f"% of pixels {'shown' if j else 'hidden'}, most relevant first")
                # Where curves of either kind leave room.
                y, va = (0.05, "bottom") if j else (0.95, "top")
                where = "at the input" if layer == INPUT else names[layer]
                look = {"color": _INK, "weight": "bold", "fontsize": 10}
                axes.text(0.985, y, where, ha="right", va=va, transform=axes.transAxes, **look)
                if i == 0:
                    better = "lower" if kind == "deletion" else "higher"
                    axes.set_title(f"{kind.capitalize()}: {better} is better", loc="left", fontsize=11, color=_INK)
        pictures = max(len(scores) for scores in found.values())
        _heading(figure, height, f"The score as pixels go and come, {_pictures(pictures)}")
        _legend(figure, shown, every, panels[1], band_text=pictures > 1)
    return figure


def _scores(results: Results, method: str, layer: str, column: str) -> Floats:
    """Curves [pictures, steps + 1]; shorter ones are brought to the length of the longest."""
    lists = [
        np.asarray(row[column], np.float64) for row in results.rows_of(method, layer) if row.get(column) is not None
    ]
    lists = [each for each in lists if len(each) > 1 and np.isfinite(each).all()]
    if not lists:
        return np.zeros((0, 0))
    longest = max(len(each) for each in lists)
    t = np.linspace(0, 1, longest)
    return np.stack([e if len(e) == longest else np.interp(t, np.linspace(0, 1, len(e)), e) for e in lists])


def _curve(axes: Any, method: str, look: Look, scores: Floats, shade: float) -> None:
    steps = scores.shape[1]
    share = np.linspace(0, 100, steps)
    if len(scores) > 1 and not is_control(method):
        some = np.unique(np.linspace(0, steps - 1, min(steps, _BAND_STEPS)).round().astype(int))
        low, high = band(scores[:, some])
        axes.fill_between(share[some], low, high, color=look.colour, alpha=shade, linewidth=0, zorder=1)
    every = max(1, (steps - 1) // 8)
    # Markers of different methods stand at different shares.
    first = 1 + (look.order * 5) % every if every > 1 else 0
    axes.plot(share, scores.mean(axis=0), **_lined(method, look, markevery=(first, every), markersize=4.2))


def band(scores: Floats) -> tuple[Floats, Floats]:
    """The 95 % interval of the mean curve at each step, by percentile bootstrap over pictures [n, steps] -> [steps]."""
    means = _weights(len(scores)) @ scores
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


@functools.lru_cache(maxsize=4)
def _weights(n: int) -> Floats:
    """How much of each of n pictures is in each resample: [resamples, n], rows sum to 1."""
    drawn = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    counts = np.zeros((RESAMPLES, n))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    return counts / n


# --- figures against layers -------------------------------------------------------------------------------------------


def against_layers(
    rows: Iterable[Row] | Results, figures: Sequence[str] | None = None, labels: Mapping[str, str] | None = None
) -> Figure | None:
    """Each figure from the deepest layer to the input, the mean with its 95 % interval; None without any.

    ``figures``: those of the paper, by default, as far as they were measured.
    """
    results = Results.of(rows)
    names = layer_labels(results.layers) | dict(labels or {})
    chosen = [f for f in (LAYER_FIGURES if figures is None else figures) if f in results.figures]
    if not chosen:
        return None
    shown = [
        m for m in results.methods if any(results.summary(m, layer, f).n for layer in results.layers for f in chosen)
    ]
    every = looks(shown)
    columns = 1 if len(chosen) == 1 else 2
    lines = math.ceil(len(chosen) / columns)
    with _style():
        ticks = [names[layer] for layer in results.layers]
        tilted = len(ticks) * (max(map(len, ticks)) + 2) > _LETTERS / columns
        height = max((3.1 if tilted else 2.75) * lines + 0.95, _legend_height(shown) + 1.3)
        figure = _figure(_WIDTH, height)
        legend = 2.05 / _WIDTH
        below, between = (0.95, 0.62) if tilted else (0.5, 0.36)
        grid = figure.add_gridspec(
            lines, columns, left=0.075, right=1 - legend - 0.015, top=1 - 0.8 / height, bottom=below / height,
            wspace=0.2, hspace=between,
        )  # fmt: skip
        panels = []
        for i, name in enumerate(chosen):
            axes = figure.add_subplot(grid[i // columns, i % columns])
            panels.append(axes)
            for method in shown:
                _points(axes, results, method, name, every[method], _shift(method, shown))
            _plain_axes(axes)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
            for border in range(1, len(ticks)):
                axes.axvline(border - 0.5, color=_EDGE, linewidth=0.6, zorder=0)
            tilt = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
            axes.set_xticks(range(len(ticks)), ticks, **tilt)
            known = figure_of(name)
            better = f": {known.better} is better" if known.better else ""
            axes.set_title(f"{known.title[:1].upper()}{known.title[1:]}{better}", loc="left", fontsize=11, color=_INK)
        pictures = max(results.summary(m, layer, f).n for m in shown for layer in results.layers for f in chosen)
        _heading(figure, height, f"From the deepest layer to the input, {_pictures(pictures)}")
        _legend(figure, shown, every, panels[min(1, columns - 1)], band_text=pictures > 1, bars=True)
    return figure


def _shift(method: str, shown: Sequence[str]) -> float:
    """Methods stand beside each other, so that their bars do not meet; controls in the middle."""
    methods = [m for m in shown if not is_control(m)]
    if method not in methods:
        return 0.0
    return (methods.index(method) - (len(methods) - 1) / 2) * min(0.07, 0.7 / len(methods))


def _points(axes: Any, results: Results, method: str, name: str, look: Look, shift: float) -> None:
    """Means joined where neighbouring layers have them, with bars for methods."""
    found = [results.summary(method, layer, name) for layer in results.layers]
    values = np.array([s.mean for s in found])
    if not np.isfinite(values).any():
        return
    at = np.arange(len(found)) + shift
    style = _lined(method, look)
    if not is_control(method):
        bars = [[max(0.0, d) if s.n > 1 else 0.0 for d in (s.mean - s.low, s.high - s.mean)] for s in found]
        axes.errorbar(at, values, yerr=np.array(bars).T, elinewidth=0.9, capsize=0, **style)
        return
    axes.plot(at, values, **style)
    for i in np.flatnonzero(np.isfinite(values)):  # a control without neighbours still shows
        if not np.isfinite(values[max(i - 1, 0) : i + 2]).sum() > 1:
            axes.plot([at[i] - 0.3, at[i] + 0.3], [values[i]] * 2, **style)


# --- what both share --------------------------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's settings for the time of a block; the user's own, whatever they are, are left out and put back."""
    matplotlib = need("matplotlib", "evaluate", "plots")
    ours = {
        "font.family": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.edgecolor": _EDGE,
        "axes.labelcolor": _SOFT,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "svg.fonttype": "none",
        "svg.hashsalt": "fgcam_onnx",
        "path.simplify": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(ours)
        yield


def _figure(width: float, height: float) -> Figure:
    figure = need("matplotlib.figure", "evaluate", "plots").Figure(figsize=(width, height), dpi=100, facecolor=_PAPER)
    need("matplotlib.backends.backend_agg", "evaluate", "plots").FigureCanvasAgg(figure)
    return figure


def _plain_axes(axes: Any) -> None:
    axes.set_facecolor(_PAPER)
    axes.grid(True, axis="y", color=_EDGE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _heading(figure: Figure, height: float, text: str) -> None:
    figure.text(0.075, 1 - 0.28 / height, text, fontsize=13, weight="bold", color=_INK, va="center")


def _legend(
    figure: Figure, shown: Sequence[str], every: Mapping[str, Look], beside: Any, *, band_text: bool, bars: bool = False
) -> None:
    """Methods, then controls, level with the first row of panels."""
    lines = need("matplotlib.lines", "evaluate", "plots")
    box = beside.get_position()
    top = box.y1
    for title, members in (
        ("methods", [m for m in shown if not is_control(m)]),
        ("controls", [m for m in shown if is_control(m)]),
    ):
        if not members:
            continue
        handles = [lines.Line2D([], [], **_lined(m, every[m])) for m in members]
        legend = figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(box.x1 + 0.012, top), frameon=False, fontsize=9,
            labelcolor=_INK, handlelength=3.2, labelspacing=0.45, borderaxespad=0, borderpad=0, title=title,
            alignment="left", title_fontproperties={"size": 9, "weight": "bold"},
        )  # fmt: skip
        legend.get_title().set_color(_SOFT)
        top -= _part_height(len(members)) / figure.get_figheight()
    if band_text:
        text = f"{'bars' if bars else 'bands'}: 95 % interval of\nthe mean, methods only"
        figure.text(box.x1 + 0.012, top, text, fontsize=8, color=_SOFT, va="top", linespacing=1.3)


def _part_height(members: int) -> float:
    """Inches of a part of the legend with its title and the room below it."""
    return members * 0.1885 + 0.42 if members else 0.0


def _legend_height(shown: Sequence[str]) -> float:
    controls = sum(is_control(m) for m in shown)
    return _part_height(len(shown) - controls) + _part_height(controls) + 0.4


def _pictures(n: int) -> str:
    return f"{n} picture{'s' * (n != 1)}"


def save(figure: Figure, stem: str | Path, *, dpi: int = 160) -> tuple[Path, Path]:
    """``stem.svg`` and ``stem.png``, without dates; the folder has to be there.

    Raises:
        OutputError: they cannot be written.
    """
    stem = Path(stem)
    paths = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    with _style():
        try:
            figure.savefig(paths[0], format="svg", metadata={"Date": None, "Creator": None})
            figure.savefig(paths[1], format="png", dpi=dpi, metadata={"Software": None})
        except OSError as error:
            raise OutputError(f"{str(error.filename or stem)!r} cannot be written: {error.strerror or error}") from None
    return paths
