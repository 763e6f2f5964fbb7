"""What the rows say together: each figure of each cell, differences picture by picture, and the paper's orderings.

    results = Results(rows)                       # one row an (image, method, layer)
    cells(results)                                # mean, standard error, 95 % interval, n, undefined
    compare(results, "overall", ("fg-grad-cam", "input"), ("lrp", "input")).verdict      # "higher"
    for claim in orderings(results):
        print(claim.verdict, claim.text)

Two methods are compared on the pictures that both have, by the difference on each: pictures differ more than methods
do, and the difference takes that out. Its interval is a percentile bootstrap over pictures, with a fixed seed. Below
six pictures nothing is separated, whatever the interval says: five that agree may be chance (2 / 2^5 > 0.05).

Source: methods 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import InputError, OptionError, nearest
from fgcam_onnx.evaluation.names import BASELINES, CLASS_BLIND, DENOISE, INPUT, family, is_control, method_name
from fgcam_onnx.evaluation.published import METHODS as PAPER
from fgcam_onnx.metrics.base import Summary, interval, summarise

__all__ = [
    "CLASS_BLIND",
    "CONTROL_FIGURES",
    "FIGURES",
    "Cell",
    "Claim",
    "Comparison",
    "Evidence",
    "Figure",
    "Results",
    "Row",
    "against_controls",
    "cells",
    "compare",
    "control_at",
    "figure_of",
    "orderings",
]

Row = Mapping[str, Any]
Key = tuple[str, str]
Floats = npt.NDArray[np.float64]

# Below this many pictures even differences of one sign may be chance: 2 / 2^5 > 0.05 > 2 / 2^6.
FEWEST = 6
# Differences that are only rounding.
ROUNDING = 1e-9
# How far the stored over-all may be from insertion - deletion: float32 rows are allowed.
IDENTITY = 1e-6

HOLDS, FAILS, UNCLEAR, UNMEASURED = "holds", "does not hold", "not separated", "not measured"


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """``better``: "lower", "higher", or "" where neither is. ``digits``: as the paper prints it.

    ``undefined``: what a picture lacks for which there is no figure.
    """

    name: str
    title: str
    better: str
    digits: int
    meaning: str
    undefined: str = "a value"

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is, 0 if neither."""
        return {"higher": 1, "lower": -1}.get(self.better, 0)

    def text(self, value: float) -> str:
        """With the paper's digits; ``-`` where there is no value."""
        return "-" if not math.isfinite(value) else f"{value:.{self.digits}f}"


FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure(
            "average_drop", "A.D. %", "lower", 2, "the score lost when only the map's upper half is seen", "a score"
        ),
        Figure(
            "average_increase",
            "A.I. %",
            "higher",
            2,
            "pictures whose score rises when only that half is seen",
            "a score",
        ),
        Figure("insertion", "insertion", "higher", 5, "area under the score as the map's pixels come, best first"),
        Figure("deletion", "deletion", "lower", 5, "area under the score as the map's pixels go, best first"),
        Figure("overall", "over-all", "higher", 5, "insertion less deletion"),
        Figure(
            "proportion", "localisation", "higher", 5, "share of the positive map inside the box", "a box that counts"
        ),
        Figure(
            "pointing_game",
            "pointing game",
            "higher",
            3,
            "pictures whose largest value lies inside the box",
            "a box that counts",
        ),
        Figure(
            "rank_accuracy",
            "rank accuracy",
            "higher",
            4,
            "share of the top K pixels inside, K = size of the box",
            "a box that counts",
        ),
        Figure("road", "ROAD", "higher", 4, "score lost as the map's pixels are imputed, bottom first less top first"),
        Figure(
            "sensitivity_n", "Sensitivity-n", "higher", 4, "correlation of relevance with the score its pixels cost"
        ),
        Figure(
            "mu_fidelity", "MuFidelity", "higher", 4, "rank correlation of relevance with the score its pixels cost"
        ),
        Figure("infidelity", "infidelity", "lower", 4, "squared error of relevance as a forecast of the score"),
        Figure("infidelity_normalised", "infidelity, normalised", "lower", 4, "the same of the map's best multiple"),
        Figure("max_sensitivity", "max-sensitivity", "lower", 4, "largest change of the map under invisible noise"),
        Figure("sparseness", "sparseness", "", 4, "Gini coefficient of the map: higher is sparser"),
        Figure("complexity", "complexity", "", 4, "entropy of the map: lower is simpler"),
        Figure("random_logit", "random logit", "lower", 4, "likeness to the map of another class"),
        Figure("randomisation_spearman", "randomisation, Spearman", "lower", 4, "likeness to a random network's map"),
        Figure("randomisation_ssim", "randomisation, SSIM", "lower", 4, "likeness to a random network's map"),
        Figure(
            "randomisation_entropy", "randomisation, entropy", "higher", 4, "entropy gained by a random network's map"
        ),
        Figure("completeness_gap", "completeness gap", "lower", 4, "distance of the map's sum from what is promised"),
        Figure("completeness_relative", "completeness, relative", "lower", 4, "the same over what is promised"),
    )
}

# Keys of a row that are no figures.
_ABOUT = frozenset(
    ("image", "sha256", "target", "label", "method", "layer", "p", "p_baseline", "height", "width", "leaked", "note")
)
# A count that belongs under the tables of localisation: maps without anything positive, which count as 0.
EMPTY = "empty"


def figure_of(name: str) -> Figure:
    """The figure of that name; one that is not known has no better and four digits."""
    return FIGURES.get(name) or Figure(name, name.replace("_", " "), "", 4, "")


# --- rows -------------------------------------------------------------------------------------------------------------


class Results:
    """Rows by picture, method and layer.

    ``layers``: the deepest first and the input last; by default in order of appearance, the input last.

    Raises:
        InputError: a row without image, method or layer, or two rows that contradict each other.
    """

    def __init__(self, rows: Iterable[Row], layers: Sequence[str] | None = None) -> None:
        self._rows: dict[Key, dict[str, Row]] = {}
        images: dict[str, None] = {}
        for row in rows:
            try:
                image, key = str(row["image"]), (str(row["method"]), str(row["layer"]))
            except KeyError as missing:
                raise InputError(f"a row has no {missing.args[0]}", known=f"it has {', '.join(row)}") from None
            held = self._rows.setdefault(key, {})
            if image in held and not _same(held[image], row):
                raise InputError(
                    f"two rows for {image!r}, {key[0]} at {key[1]!r} that differ",
                    next="evaluate into a folder of its own, or leave one of them out",
                )
            held[image] = row
            images[image] = None
        self.images = tuple(images)
        self.methods = tuple(dict.fromkeys(method for method, _ in self._rows))
        found = tuple(dict.fromkeys(layer for _, layer in self._rows))
        order = tuple(layers) if layers is not None else (*(name for name in found if name != INPUT), INPUT)
        if missing_layers := [name for name in found if name not in order]:
            raise OptionError(
                f"layers leave out {missing_layers[0]!r}, which is in the rows", known=f"layers are {', '.join(order)}"
            )
        self.layers = tuple(name for name in order if name in found)
        self._vectors: dict[tuple[Key, str], Floats] = {}
        self._summaries: dict[tuple[Key, str], Summary] = {}
        self._position = {image: i for i, image in enumerate(self.images)}
        self.figures = self._figures()

    @classmethod
    def of(cls, rows: Iterable[Row] | Results) -> Results:
        """Rows as they are, or brought into order."""
        return rows if isinstance(rows, Results) else cls(rows)

    def _figures(self) -> tuple[str, ...]:
        """Names with at least one defined value: the known ones in order, then the others by name."""
        names: set[str] = set()
        for held in self._rows.values():
            for row in held.values():
                names.update(
                    n
                    for n, v in row.items()
                    if n not in names and n not in _ABOUT and n != EMPTY and not math.isnan(_number(v))
                )
        return (*(n for n in FIGURES if n in names), *sorted(names - set(FIGURES)))

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def rows_of(self, method: str, layer: str) -> list[Row]:
        """In the order of their pictures."""
        return list(self._rows.get((method, layer), {}).values())

    def vector(self, method: str, layer: str, figure: str) -> Floats:
        """The figure of each of ``images``, [n]; NaN where it is undefined or there is no row."""
        key = ((method, layer), figure)
        if key not in self._vectors:
            values = np.full(len(self.images), np.nan)
            for image, row in self._rows.get(key[0], {}).items():
                values[self._position[image]] = _number(row.get(figure))
            self._vectors[key] = values
        return self._vectors[key]

    def summary(self, method: str, layer: str, figure: str) -> Summary:
        """Over the pictures that have a row with this figure."""
        key = ((method, layer), figure)
        if key not in self._summaries:
            held = self._rows.get(key[0], {}).values()
            self._summaries[key] = summarise([_number(row[figure]) for row in held if figure in row])
        return self._summaries[key]


def _number(value: Any) -> float:
    """A figure as a float, NaN where it is none: None, infinite, text, a curve."""
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else math.nan
    return math.nan


def _same(a: Row, b: Row) -> bool:
    """Do two rows of one cell agree in every number? A missing key is no contradiction."""
    for name in a.keys() & b.keys():
        x, y = _number(a[name]), _number(b[name])
        if not (x == y or (math.isnan(x) and math.isnan(y))):
            return False
    return True


# --- cells and differences --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One figure of one method at one layer."""

    method: str
    layer: str
    figure: str
    summary: Summary


def cells(rows: Iterable[Row] | Results, figures: Sequence[str] | None = None) -> list[Cell]:
    """Every cell that has rows, layer by layer; ``figures``: all with at least one value, by default."""
    results = Results.of(rows)
    names = results.figures if figures is None else tuple(figures)
    return [
        Cell(method, layer, name, results.summary(method, layer, name))
        for layer in results.layers
        for method in results.methods
        if (method, layer) in results
        for name in names
    ]


@dataclass(frozen=True)
class Comparison:
    """a - b, picture by picture.

    ``mean`` of the difference with its 95 % interval, ``low`` to ``high``, over the ``n`` pictures that both have.
    ``share``: of pictures on which a is the better one, ``ties``: on which they are equal. ``verdict``: "higher",
    "lower", "not separated", or "not measured" where no picture has both.
    """

    figure: str
    a: Key
    b: Key
    mean: float
    low: float
    high: float
    n: int
    share: float
    ties: float
    verdict: str

    @property
    def better(self) -> bool | None:
        """Is a better than b? None where they are not separated, or neither direction is better."""
        sign = figure_of(self.figure).sign
        return None if not sign or self.verdict not in ("higher", "lower") else (self.verdict == "higher") == (sign > 0)


def compare(rows: Iterable[Row] | Results, figure: str, a: Key, b: Key) -> Comparison:
    """The difference of two cells, each (method, layer), over the pictures that both have.

    Raises:
        OptionError: a figure that no row has.
    """
    results = Results.of(rows)
    if figure not in results.figures:
        raise OptionError(
            f"no row has a figure {figure!r}",
            known=", ".join(results.figures) or "no figures",
            next=nearest(figure, results.figures) or None,
        )
    difference = _contrast(results, figure, [(1.0, a), (-1.0, b)])
    mean, low, high, verdict = _measured(difference)
    better = difference * figure_of(figure).sign > ROUNDING
    share = float(better.mean()) if len(difference) else math.nan
    ties = float((np.abs(difference) <= ROUNDING).mean()) if len(difference) else math.nan
    return Comparison(figure, a, b, mean, low, high, len(difference), share, ties, verdict)


def _contrast(results: Results, figure: str, terms: Sequence[tuple[float, Key]], offset: float = 0.0) -> Floats:
    """sum of weight * figure + offset for each picture that has all the terms."""
    total = np.full(len(results.images), offset)
    for weight, key in terms:
        total = total + weight * results.vector(*key, figure)
    found: Floats = total[~np.isnan(total)]
    return found


def _measured(values: Floats) -> tuple[float, float, float, str]:
    """Mean, interval, and on which side of 0 it lies."""
    if not len(values):
        return math.nan, math.nan, math.nan, UNMEASURED
    low, high = interval(values)
    verdict = UNCLEAR
    if len(values) >= FEWEST and low > ROUNDING:
        verdict = "higher"
    elif len(values) >= FEWEST and high < -ROUNDING:
        verdict = "lower"
    return float(values.mean()), low, high, verdict


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """One comparison that a claim rests on.

    ``margin``: by how much it speaks for the claim, the mean over ``n`` pictures, negative where it speaks against it;
    ``low`` to ``high``: its 95 % interval. NaN where the claim is about numbers that need none. ``digits`` to print.
    """

    where: str
    text: str
    margin: float
    low: float
    high: float
    n: int
    digits: int
    verdict: str
    values: Floats = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)


@dataclass(frozen=True)
class Claim:
    """A sentence that "holds" if all of its evidence does: every interval is above 0.

    It "does not hold" if one of k pieces is below 0 with an interval of 1 - 0.05 / k, so that many comparisons do not
    make a false one by their number. Else it is "not separated", or "not measured" without evidence.
    """

    name: str
    text: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        verdicts = [each.verdict for each in self.evidence if each.verdict != UNMEASURED]
        if not verdicts:
            return UNMEASURED
        if FAILS in verdicts:
            return FAILS
        return HOLDS if set(verdicts) == {HOLDS} else UNCLEAR


def _weigh(
    results: Results,
    where: str,
    text: str,
    figure: str,
    terms: Sequence[tuple[float, Key]],
    offset: float = 0.0,
) -> Evidence:
    """Evidence that sum of weight * figure + offset is above 0."""
    values = _contrast(results, figure, terms, offset)
    mean, low, high, side = _measured(values)
    verdict = {"higher": HOLDS, "lower": FAILS}.get(side, side)
    return Evidence(where, text, mean, low, high, len(values), figure_of(figure).digits, verdict, values)


def _beats(results: Results, figure: str, a: Key, b: Key, where: str) -> Evidence:
    """Evidence that a is better than b, with the means of both over the pictures that both have."""
    known = figure_of(figure)
    left, right = results.vector(*a, figure), results.vector(*b, figure)
    both = ~np.isnan(left + right)
    means = [known.text(float(v[both].mean())) if both.any() else "-" for v in (left, right)]
    text = f"{method_name(a[0])} {means[0]}, {method_name(b[0])} {means[1]}"
    return _weigh(results, where, text, figure, [(float(known.sign), a), (-float(known.sign), b)])


def _present(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """What was measured; a piece that is against its claim, though not among so many, is not separated."""
    found = [each for each in evidence if each.n]
    level = 1 - 0.05 / max(len(found), 1)
    return tuple(
        replace(each, verdict=UNCLEAR)
        if each.verdict == FAILS and interval(each.values, level=level)[1] >= -ROUNDING
        else each
        for each in found
    )


def orderings(rows: Iterable[Row] | Results, labels: Mapping[str, str] | None = None) -> list[Claim]:
    """The orderings that the paper's tables show, each as a claim on these rows. ``labels``: short names of layers."""
    results = Results.of(rows)
    names = {layer: layer for layer in results.layers} | dict(labels or {})
    pairs = ["grad-cam", "score-cam"]
    pairs += [m for m in results.methods if f"fg-{m}" in results.methods and m not in pairs and not is_control(m)]
    fine = ["fg-grad-cam", "fg-score-cam"]
    fine += [m for m in results.methods if m + DENOISE in results.methods and m not in fine and not is_control(m)]
    found = [_fine_beats_coarse(results, x, figure, names) for x in pairs for figure in _THREE]
    found += [_fine_is_steady(results, x, figure, names) for x in pairs for figure in ("average_drop", "overall")]
    for x in fine:
        found += [_denoising_localises(results, x, names), _denoising_localises_by(results, x, names)]
    found += _denoising_costs(results, names)
    found.append(_layer_cam_deletes_best(results, names))
    found += [_denoising_deletes_worse(results, x, names) for x in fine]
    found.append(_best_at_the_input(results, names))
    found += [_contrast_deletes_worse(results, x, names) for x in ("clrp", "sglrp")]
    found.append(_identity(results))
    return found


_THREE = ("average_drop", "average_increase", "overall")


def _title(figure: str) -> str:
    return figure_of(figure).title.removesuffix(" %")


def _fine_beats_coarse(results: Results, x: str, figure: str, names: Mapping[str, str]) -> Claim:
    a, b = method_name(f"fg-{x}"), method_name(x)
    evidence = [_beats(results, figure, (f"fg-{x}", layer), (x, layer), names[layer]) for layer in results.layers]
    return Claim(f"fg-{x} beats {x}: {figure}", f"{a} beats {b} on {_title(figure)} at every layer", _present(evidence))


def _fine_is_steady(results: Results, x: str, figure: str, names: Mapping[str, str]) -> Claim:
    """loss(m) = figure at the deepest less at the shallowest layer, as far as it is worse there.

    loss(X) > 0 and |loss(FG-X)| < loss(X) / 4, the second as two sides.
    """
    a, b = method_name(f"fg-{x}"), method_name(x)
    text = f"from the deepest to the shallowest layer {a} keeps its {_title(figure)} while {b} loses it"
    name = f"fg-{x} is steady: {figure}"
    both = [
        layer
        for layer in results.layers
        if layer != INPUT and results.summary(x, layer, figure).n and results.summary(f"fg-{x}", layer, figure).n
    ]
    if len(both) < 2:
        return Claim(name, text, ())
    deep, shallow = both[0], both[-1]
    sign = float(figure_of(figure).sign)

    def loss(method: str, weight: float) -> list[tuple[float, Key]]:
        return [(sign * weight, (method, deep)), (-sign * weight, (method, shallow))]

    where = f"{names[deep]} to {names[shallow]}"
    return Claim(
        name,
        text,
        _present(
            [
                _weigh(results, where, f"{b} loses", figure, loss(x, 1)),
                _weigh(
                    results,
                    where,
                    f"a quarter of that exceeds what {a} loses",
                    figure,
                    loss(x, 0.25) + loss(f"fg-{x}", -1),
                ),
                _weigh(
                    results,
                    where,
                    f"a quarter of that exceeds what {a} gains",
                    figure,
                    loss(x, 0.25) + loss(f"fg-{x}", 1),
                ),
            ]
        ),
    )


def _denoising_localises(results: Results, x: str, names: Mapping[str, str]) -> Claim:
    evidence = [
        _beats(results, "proportion", (x + DENOISE, layer), (x, layer), names[layer]) for layer in results.layers
    ]
    text = f"{method_name(x + DENOISE)} localises better than {method_name(x)} at every layer"
    return Claim(f"{x}+denoise localises better", text, _present(evidence))


def _denoising_localises_by(results: Results, x: str, names: Mapping[str, str]) -> Claim:
    """0.11 < gain < 0.16, as two sides at each layer."""
    evidence = []
    for layer in results.layers:
        gain = [(1.0, (x + DENOISE, layer)), (-1.0, (x, layer))]
        loss = [(-weight, key) for weight, key in gain]
        evidence.append(_weigh(results, names[layer], "the gain exceeds 0.11", "proportion", gain, -0.11))
        evidence.append(_weigh(results, names[layer], "the gain stays below 0.16", "proportion", loss, 0.16))
    text = f"the gain of {method_name(x + DENOISE)} in localisation is 0.11 to 0.16, as published"
    return Claim(f"{x}+denoise localises better by 0.11 to 0.16", text, _present(evidence))


def _denoising_costs(results: Results, names: Mapping[str, str]) -> list[Claim]:
    plain, denoised = "fg-grad-cam", "fg-grad-cam" + DENOISE
    lower, slightly = [], []
    for layer in results.layers:
        a, b = (plain, layer), (denoised, layer)
        lower.append(_beats(results, "overall", a, b, names[layer]))
        terms = [(1.0, b), (-1.0, a)]
        slightly.append(_weigh(results, names[layer], "the loss stays below 0.02", "overall", terms, 0.02))
    text = "FG-Grad-CAM^D has a lower over-all than FG-Grad-CAM at every layer"
    small = "the loss of FG-Grad-CAM^D in over-all is slight, below 0.02 as published"
    return [
        Claim("fg-grad-cam+denoise lowers overall", text, _present(lower)),
        Claim("fg-grad-cam+denoise lowers overall by less than 0.02", small, _present(slightly)),
    ]


def _layer_cam_deletes_best(results: Results, names: Mapping[str, str]) -> Claim:
    """The deepest layer is the first that fine-grained methods walk down to: L33 of the paper, which starts at L43."""
    inner = [
        layer
        for layer in results.layers
        if layer != INPUT and any((fine, layer) in results for fine in PAPER if fine.startswith("fg-"))
    ]
    rivals = [other for other in PAPER if other != "layer-cam"]
    evidence = {
        other: _present(_beats(results, "deletion", ("layer-cam", at), (other, at), names[at]) for at in inner[1:])
        for other in rivals
    }
    measured = [other for other in rivals if evidence[other]]
    text = f"Layer-CAM has a better deletion than {_listed(measured or rivals)} at the shallower layers"
    return Claim("layer-cam deletes best", text, _present(each for found in evidence.values() for each in found))


def _listed(methods: Sequence[str]) -> str:
    """A, B and C."""
    *first, last = map(method_name, methods)
    return f"{', '.join(first)} and {last}" if first else last


def _denoising_deletes_worse(results: Results, x: str, names: Mapping[str, str]) -> Claim:
    evidence = [_beats(results, "deletion", (x, layer), (x + DENOISE, layer), names[layer]) for layer in results.layers]
    text = f"{method_name(x + DENOISE)} has a worse deletion than {method_name(x)} at every layer"
    return Claim(f"{x}+denoise deletes worse", text, _present(evidence))


def _best_at_the_input(results: Results, names: Mapping[str, str]) -> Claim:
    """Of LRP, CLRP and SGLRP the text names those that were measured, and all where none was."""
    rivals = ["lrp", "clrp", "sglrp"]
    where = names.get(INPUT, INPUT)
    evidence = {m: _beats(results, "overall", ("fg-grad-cam", INPUT), (m, INPUT), where) for m in rivals}
    measured = [m for m in rivals if evidence[m].n]
    text = f"at the input FG-Grad-CAM has a better over-all than {_listed(measured or rivals)}"
    return Claim("fg-grad-cam is best at the input", text, _present(evidence.values()))


def _contrast_deletes_worse(results: Results, x: str, names: Mapping[str, str]) -> Claim:
    evidence = [_beats(results, "deletion", ("lrp", INPUT), (x, INPUT), names.get(INPUT, INPUT))]
    text = f"at the input {method_name(x)} has a worse deletion than LRP"
    return Claim(f"{x} deletes worse than lrp", text, _present(evidence))


def _identity(results: Results) -> Claim:
    gaps = [np.zeros(0)]
    for method in results.methods:
        for layer in results.layers:
            insertion, deletion, overall = (
                results.vector(method, layer, figure) for figure in ("insertion", "deletion", "overall")
            )
            gap = np.abs(overall - (insertion - deletion))
            gaps.append(gap[~np.isnan(gap)])
    every = np.concatenate(gaps)
    evidence: tuple[Evidence, ...] = ()
    if len(every):
        verdict = HOLDS if every.max() <= IDENTITY else FAILS
        text = f"largest gap {every.max():.1e}"
        evidence = (Evidence("every row", text, math.nan, math.nan, math.nan, len(every), 5, verdict),)
    return Claim("overall is insertion less deletion", "over-all is insertion less deletion in every cell", evidence)


# --- controls ---------------------------------------------------------------------------------------------------------

CONTROL_FIGURES = ("overall", "proportion")


def against_controls(
    rows: Iterable[Row] | Results,
    figures: Sequence[str] = CONTROL_FIGURES,
    labels: Mapping[str, str] | None = None,
) -> list[Claim]:
    """Does each method beat each control at its layer? A claim each, named ``method > control: figure at layer``.

    The class-blind control of a method that walks down (``fg-``, and any at the input) is ``fg-class-blind``. A
    baseline does not depend on the layer: where it was not measured at that layer, its map at the input serves, and
    the claim says so.
    """
    results = Results.of(rows)
    names = {layer: layer for layer in results.layers} | dict(labels or {})
    found = []
    for figure in (name for name in figures if name in results.figures):
        for layer in results.layers:
            for method in results.methods:
                if is_control(method) or (method, layer) not in results:
                    continue
                for control in (*BASELINES, "class-blind"):
                    rival = control_at(results, control, method, layer)
                    if rival is None:
                        continue
                    evidence = _present([_beats(results, figure, (method, layer), rival, names[layer])])
                    there = "" if rival[1] == layer else f" ({names[rival[1]]})"
                    text = f"{method_name(method)} beats {method_name(rival[0])}{there} on {_title(figure)}"
                    name = f"{method} > {control}: {figure} at {layer}"
                    found.append(Claim(name, f"{text} at {names[layer]}", evidence))
    return found


def control_at(results: Results, control: str, method: str, layer: str) -> Key | None:
    """The cell of a control beside that of a method: one of ``BASELINES``, or "class-blind" in the fitting variant."""
    if family(control) != "class-blind":
        places = [(control, layer), (control, INPUT)]
    else:
        fine = method.startswith("fg-") or layer == INPUT
        wanted = ["fg-class-blind", "class-blind"] if fine else ["class-blind", "fg-class-blind"]
        if method.endswith(DENOISE):
            wanted.insert(0, "fg-class-blind" + DENOISE)
        places = [(name, layer) for name in wanted]
    return next((place for place in places if place in results), None)
