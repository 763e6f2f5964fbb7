"""Rows summed up: cells, paired differences, and the paper's orderings as claims that can hold, fail and stay open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evaluation_rows import TENSORS, realistic, row, rows_of

from fgcam_onnx.errors import InputError, OptionError
from fgcam_onnx.evaluation.names import is_control, layer_labels, method_name
from fgcam_onnx.evaluation.published import INPUT_METHODS, LAYERS, METHODS, published
from fgcam_onnx.evaluation.summary import (
    FIGURES,
    Results,
    against_controls,
    cells,
    compare,
    control_at,
    figure_of,
    orderings,
)

N = 40
NOISE = np.random.default_rng(7).normal(0, 1, N)
A, B = ("fg-grad-cam", "L"), ("grad-cam", "L")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("grad-cam", "Grad-CAM"),
        ("fg-grad-cam", "FG-Grad-CAM"),
        ("fg-grad-cam+denoise", "FG-Grad-CAM^D"),
        ("fg-score-cam+denoise", "FG-Score-CAM^D"),
        ("sglrp", "SGLRP"),
        ("fg-class-blind", "FG-Class-blind"),
        ("center-gaussian", "Centre Gaussian"),
        ("my-method", "my-method"),
        ("fg-my-method+denoise", "FG-my-method^D"),
    ],
)
def test_methods_have_the_papers_names(method: str, name: str) -> None:
    assert method_name(method) == name


def test_every_method_has_a_name() -> None:
    from fgcam_onnx.methods import METHODS as ALL

    assert [name for name in ALL if method_name(name) == name] == []


def test_controls() -> None:
    controls = ["random", "center-gaussian", "edges", "class-blind", "fg-class-blind", "fg-class-blind+denoise"]
    assert all(map(is_control, controls))
    assert not any(map(is_control, ["grad-cam", "fg-grad-cam+denoise", "lrp"]))


def test_labels_of_layers() -> None:
    assert layer_labels(["hardtanh_22", "input"]) == {"hardtanh_22": "hardtanh_22", "input": "input"}
    long = ["/features/features.33/MaxPool_output_0", "relu", "input"]
    assert list(layer_labels(long).values()) == ["layer 1", "layer 2", "input"]
    assert list(layer_labels(long, {long[0]: 33}).values()) == ["L33", "relu", "input"]


# --- results ----------------------------------------------------------------------------------------------------------


def test_layers_stand_in_order_of_appearance_and_the_input_last() -> None:
    rows = [row("a", "m", "input", overall=1.0), row("a", "m", "deep", overall=1.0), row("a", "m", "flat", overall=1.0)]
    assert Results(rows).layers == ("deep", "flat", "input")
    assert Results(rows, ["flat", "absent", "deep", "input"]).layers == ("flat", "deep", "input")
    with pytest.raises(OptionError) as caught:
        Results(rows, ["flat", "input"])
    assert str(caught.value) == ("layers leave out 'deep', which is in the rows\n  known   layers are flat, input")


def test_a_row_twice_counts_once_and_a_contradiction_is_an_error() -> None:
    first = row("a", "m", "L", overall=0.5, road=None)
    assert Results([first, dict(first)]).summary("m", "L", "overall").n == 1
    with pytest.raises(InputError) as caught:
        Results([first, first | {"overall": 0.6}])
    assert str(caught.value) == (
        "two rows for 'a', m at 'L' that differ\n  next    evaluate into a folder of its own, or leave one of them out"
    )
    with pytest.raises(InputError) as caught:
        Results([{"image": "a", "method": "m"}])
    assert str(caught.value) == "a row has no layer\n  known   it has image, method"


def test_figures_are_what_was_measured_in_the_papers_order() -> None:
    rows = [
        row("a", "m", "L", zebra=1, overall=0.5, average_drop=3.0, road=None, sha256="1", height=3, deletion_scores=[1])
    ]
    assert Results(rows).figures == ("average_drop", "overall", "zebra")
    assert (figure_of("zebra").title, figure_of("zebra").better, figure_of("zebra").digits) == ("zebra", "", 4)


def test_every_measure_has_its_figures_here() -> None:
    from fgcam_onnx.evaluation.measures import MEASURES

    found = {name for measure in MEASURES.values() for name in measure.figures}
    assert found - set(FIGURES) == {"empty"}, "a figure that nobody says the better of"


def test_a_cell_by_hand() -> None:
    values = [1.0, 2.0, None, 4.0, math.nan, math.inf, 5.0]
    (cell,) = cells(rows_of({("m", "L"): values}, "overall"))
    assert (cell.method, cell.layer, cell.figure) == ("m", "L", "overall")
    s = cell.summary
    assert (s.mean, s.n, s.undefined) == (3.0, 4, 3)
    assert s.standard_error == pytest.approx(np.std([1, 2, 4, 5], ddof=1) / 2)
    assert 1 <= s.low < 3 < s.high <= 5


def test_a_figure_without_any_key_is_not_undefined() -> None:
    rows = [row("a", "m", "L", overall=1.0), row("b", "m", "L", overall=None), row("c", "m", "L")]
    s = Results(rows).summary("m", "L", "overall")
    assert (s.n, s.undefined) == (1, 1)


def test_cells_of_all_figures_layer_by_layer() -> None:
    rows = [
        row("a", method, layer, overall=0.5, deletion=0.1)
        for method in ("x", "y")
        for layer in ("L", "input")
        if (method, layer) != ("y", "L")
    ]
    found = [(c.layer, c.method, c.figure) for c in cells(rows)]
    assert found == [
        ("L", "x", "deletion"),
        ("L", "x", "overall"),
        ("input", "x", "deletion"),
        ("input", "x", "overall"),
        ("input", "y", "deletion"),
        ("input", "y", "overall"),
    ]
    assert [c.figure for c in cells(rows, ["overall"])] == ["overall"] * 3


# --- differences ------------------------------------------------------------------------------------------------------


def pair(a: Any, b: Any, figure: str = "overall") -> list[dict[str, Any]]:
    return rows_of({A: list(a), B: list(b)}, figure)


def test_the_difference_is_paired() -> None:
    """Pictures that differ by far more than the methods do: the difference is seen, over the pictures with both."""
    b = 10 * NOISE
    a = b + 0.1 + 0.02 * NOISE[::-1]
    rows = pair([*a[:-2], None, 7.0], [*b[:-2], 3.0, None])
    found = compare(rows, "overall", A, B)
    d = (a - b)[:-2]
    assert found.n == N - 2
    assert found.mean == pytest.approx(d.mean(), abs=1e-12)
    means = d[np.random.default_rng(0).integers(0, len(d), (4000, len(d)))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    assert (found.verdict, found.better) == ("higher", True)


def test_the_interval_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    d = 0.3 + NOISE
    found = compare(pair(d, np.zeros(N)), "overall", A, B)
    other = stats.bootstrap((d,), np.mean, n_resamples=9999, method="percentile", random_state=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.03)


@pytest.mark.parametrize(
    ("figure", "shift", "verdict", "better"),
    [
        ("overall", 1.0, "higher", True),
        ("overall", -1.0, "lower", False),
        ("overall", 0.0, "not separated", None),
        ("deletion", 1.0, "higher", False),
        ("deletion", -1.0, "lower", True),
        ("sparseness", 1.0, "higher", None),
    ],
)
def test_verdicts(figure: str, shift: float, verdict: str, better: bool | None) -> None:
    noise = NOISE - NOISE.mean()
    found = compare(pair(shift + 0.5 * noise, np.zeros(N), figure), figure, A, B)
    assert (found.verdict, found.better) == (verdict, better)


def test_the_share_of_pictures_and_ties() -> None:
    rows = pair([3, 3, 1, 1, 1, 1], [1, 1, 1, 1, 1, 2], "average_drop")
    found = compare(rows, "average_drop", A, B)
    assert (found.share, found.ties) == (1 / 6, 3 / 6)  # lower is better
    other = compare(rows, "average_drop", B, A)
    assert (other.share, other.ties, other.mean) == (2 / 6, 3 / 6, -found.mean)


def test_five_pictures_that_agree_separate_nothing_and_six_do() -> None:
    assert compare(pair([1.0] * 5, [0.0] * 5), "overall", A, B).verdict == "not separated"
    assert compare(pair([1.0] * 6, [0.0] * 6), "overall", A, B).verdict == "higher"


def test_equal_maps_are_not_separated_by_rounding() -> None:
    assert compare(pair([0.3 + 1e-12] * N, [0.3] * N), "overall", A, B).verdict == "not separated"


def test_nothing_to_compare() -> None:
    found = compare(pair([1.0, None], [None, 1.0]), "overall", A, B)
    assert (found.verdict, found.n, found.better) == ("not measured", 0, None)
    assert math.isnan(found.share)
    with pytest.raises(OptionError) as caught:
        compare(pair([1.0], [1.0]), "overal", A, B)
    assert str(caught.value) == ("no row has a figure 'overal'\n  known   overall\n  next    did you mean 'overall'?")


# --- orderings --------------------------------------------------------------------------------------------------------

Change = Callable[[str, str, str, float], float]


def published_rows(change: Change = lambda m, layer, f, v: v, noise: float = 0.0, n: int = N) -> list[dict[str, Any]]:
    """The paper's figures on n pictures, changed in places; ``noise`` in units of what the figure is counted in."""
    random = np.random.default_rng(3)
    rows = []
    for layer in (*LAYERS, "input"):
        for method in INPUT_METHODS if layer == "input" else METHODS:
            at = TENSORS[layer]
            means = {f: change(method, at, f, published(method, layer, f)) for f in list(FIGURES)[:6]}
            for i in range(n):
                scale = {f: noise * (100 if f.startswith("average") else 1) for f in means}
                values = {f: v + scale[f] * random.normal() for f, v in means.items()}
                if noise or means["overall"] == published(method, layer, "overall"):
                    values["overall"] = values["insertion"] - values["deletion"]
                rows.append(row(f"{i}", method, at, **values))
    return rows


def verdicts(rows: Any) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in orderings(rows)}


def test_all_orderings_hold_in_the_papers_own_figures() -> None:
    found = verdicts(published_rows())
    by_digits = {  # 0.15278 to 0.16... at some layers, 0.1098 at another: within the paper's rounding only
        name for name, verdict in found.items() if verdict != "holds"
    }
    assert by_digits <= {"fg-score-cam+denoise localises better by 0.11 to 0.16"}
    assert len(found) == 23


def test_noise_leaves_the_small_ones_open() -> None:
    found = verdicts(published_rows(noise=0.2))
    assert found["fg-grad-cam+denoise lowers overall"] == "not separated"
    assert found["fg-grad-cam is best at the input"] == "not separated"
    assert found["layer-cam deletes best"] == "not separated"
    assert set(found.values()) <= {"holds", "not separated"}


def swap(a: str, b: str, figure: str, at: str | None = None) -> Change:
    """The figures of two methods change places, at one layer or all."""

    def change(method: str, layer: str, name: str, value: float) -> float:
        if name != figure or method not in (a, b) or (at is not None and layer != at):
            return value
        index = {tensor: key for key, tensor in TENSORS.items()}[layer]
        other = published(b if method == a else a, index, figure)
        return value if other is None else other

    return change


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("fg-grad-cam beats grad-cam: average_drop", swap("fg-grad-cam", "grad-cam", "average_drop", "pool3")),
        ("fg-grad-cam beats grad-cam: average_increase", swap("fg-grad-cam", "grad-cam", "average_increase", "pool4")),
        ("fg-score-cam beats score-cam: overall", swap("fg-score-cam", "score-cam", "overall", "pool2")),
        ("fg-grad-cam is steady: overall", swap("fg-grad-cam", "grad-cam", "overall")),
        ("fg-score-cam is steady: average_drop", swap("fg-score-cam", "score-cam", "average_drop")),
        (
            "fg-grad-cam+denoise localises better",
            swap("fg-grad-cam+denoise", "fg-grad-cam", "proportion", "input"),
        ),
        (
            "fg-grad-cam+denoise localises better by 0.11 to 0.16",
            lambda m, at, f, v: v + 0.1 if (m, at, f) == ("fg-grad-cam+denoise", "input", "proportion") else v,
        ),
        (
            "fg-grad-cam+denoise localises better by 0.11 to 0.16",
            lambda m, at, f, v: v - 0.1 if (m, at, f) == ("fg-grad-cam+denoise", "pool2", "proportion") else v,
        ),
        ("fg-grad-cam+denoise lowers overall", swap("fg-grad-cam+denoise", "fg-grad-cam", "overall", "pool3")),
        (
            "fg-grad-cam+denoise lowers overall by less than 0.02",
            lambda m, at, f, v: v - 0.02 if (m, at, f) == ("fg-grad-cam+denoise", "pool4", "overall") else v,
        ),
        ("layer-cam deletes best", swap("layer-cam", "fg-score-cam", "deletion", "pool2")),
        ("fg-score-cam+denoise deletes worse", swap("fg-score-cam+denoise", "fg-score-cam", "deletion", "input")),
        ("fg-grad-cam is best at the input", swap("fg-grad-cam", "clrp", "overall", "input")),
        ("clrp deletes worse than lrp", swap("clrp", "lrp", "deletion")),
        ("sglrp deletes worse than lrp", swap("sglrp", "lrp", "deletion")),
        (
            "overall is insertion less deletion",
            lambda m, at, f, v: v + 2e-6 if (m, at, f) == ("layer-cam", "pool3", "overall") else v,
        ),
    ],
)
def test_a_claim_that_does_not_hold(claim: str, change: Change) -> None:
    """One figure is put out of order: this claim falls."""
    assert verdicts(published_rows())[claim] == "holds"
    assert verdicts(published_rows(change))[claim] == "does not hold"


def test_many_comparisons_do_not_make_a_false_one() -> None:
    """Twelve differences, one of them below 0 with an interval of 95 % and not of 1 - 5 % / 12: alone it would fail."""
    against = NOISE - NOISE.mean() - 2.3 / math.sqrt(N) * NOISE.std()

    def claim(layers: int) -> Any:
        values = {}
        for i in range(layers):
            values["fg-grad-cam", f"L{i}"] = against if i == 0 else NOISE + 9
            values["grad-cam", f"L{i}"] = np.zeros(N)
        rows = rows_of(values, "overall")
        return next(c for c in orderings(rows) if c.name == "fg-grad-cam beats grad-cam: overall")

    assert claim(1).verdict == "does not hold"
    many = claim(12)
    assert many.evidence[0].high < 0
    assert (many.evidence[0].verdict, many.verdict) == ("not separated", "not separated")


def test_claims_that_nobody_measured() -> None:
    found = verdicts(rows_of({("rise", "input"): [0.5] * 9}, "overall"))
    assert set(found.values()) == {"not measured"}
    only = [r for r in published_rows() if r["layer"] == "pool4"]
    found = verdicts(only)
    assert found["fg-grad-cam beats grad-cam: overall"] == "holds"
    assert found["fg-grad-cam is steady: overall"] == "not measured"
    assert found["layer-cam deletes best"] == "not measured"  # the deepest layer is not in question
    assert found["clrp deletes worse than lrp"] == "not measured"


def test_what_other_pairs_there_are_is_asked_too() -> None:
    rows = rows_of({("hires-cam", "L"): NOISE, ("fg-hires-cam", "L"): NOISE + 1}, "overall")
    claims = {claim.name: claim for claim in orderings(rows)}
    claim = claims["fg-hires-cam beats hires-cam: overall"]
    assert claim.text == "FG-HiRes-CAM beats HiRes-CAM on over-all at every layer"
    assert claim.verdict == "holds"
    assert "fg-class-blind beats class-blind: overall" not in {
        c.name for c in orderings(rows_of({("class-blind", "L"): NOISE, ("fg-class-blind", "L"): NOISE}, "overall"))
    }


def test_the_evidence_of_a_claim() -> None:
    rows = rows_of({("grad-cam", "L"): NOISE + 30, ("fg-grad-cam", "L"): NOISE + 20}, "average_drop")
    claim = next(c for c in orderings(rows, {"L": "L33"}) if c.name == "fg-grad-cam beats grad-cam: average_drop")
    (evidence,) = claim.evidence
    assert (evidence.where, evidence.n, evidence.digits, evidence.verdict) == ("L33", N, 2, "holds")
    assert evidence.text == f"FG-Grad-CAM {20 + NOISE.mean():.2f}, Grad-CAM {30 + NOISE.mean():.2f}"
    assert (evidence.margin, evidence.low, evidence.high) == pytest.approx((10, 10, 10))


# --- controls ---------------------------------------------------------------------------------------------------------


def test_against_the_controls() -> None:
    rows = rows_of(
        {
            ("grad-cam", "L"): NOISE,
            ("fg-grad-cam", "L"): NOISE + 1,
            ("lrp", "input"): NOISE,
            ("random", "L"): NOISE - 1,
            ("random", "input"): NOISE + 1,
            ("edges", "input"): NOISE + 0.5,
            ("class-blind", "L"): NOISE + 2,
            ("fg-class-blind", "L"): NOISE,
            ("fg-class-blind", "input"): NOISE[::-1],
        },
        "overall",
    )
    found = {claim.name: claim for claim in against_controls(rows)}
    assert {name: claim.verdict for name, claim in found.items()} == {
        "grad-cam > random: overall at L": "holds",
        "grad-cam > edges: overall at L": "does not hold",
        "grad-cam > class-blind: overall at L": "does not hold",
        "fg-grad-cam > random: overall at L": "holds",
        "fg-grad-cam > edges: overall at L": "holds",
        "fg-grad-cam > class-blind: overall at L": "holds",
        "lrp > random: overall at input": "does not hold",
        "lrp > edges: overall at input": "does not hold",
        "lrp > class-blind: overall at input": "not separated",
    }
    assert found["grad-cam > class-blind: overall at L"].text == "Grad-CAM beats Class-blind on over-all at L"
    assert found["fg-grad-cam > class-blind: overall at L"].text == "FG-Grad-CAM beats FG-Class-blind on over-all at L"
    assert found["grad-cam > edges: overall at L"].text == "Grad-CAM beats Edges (input) on over-all at L"


@pytest.mark.parametrize(
    ("method", "layer", "control"),
    [
        ("grad-cam", "L", "class-blind"),
        ("fg-grad-cam", "L", "fg-class-blind"),
        ("lrp", "input", "fg-class-blind"),
        ("fg-grad-cam+denoise", "L", "fg-class-blind+denoise"),
    ],
)
def test_the_class_blind_control_walks_as_the_method_does(method: str, layer: str, control: str) -> None:
    names = ("class-blind", "fg-class-blind", "fg-class-blind+denoise")
    results = Results([row("a", name, at, overall=1.0) for name in names for at in ("L", "input")])
    assert control_at(results, "class-blind", method, layer) == (control, layer)


def test_realistic_rows_are_summed_up_whole() -> None:
    results = Results(realistic(9))
    assert len(cells(results)) == 8 * (3 * 12 + 11)
    assert {c.summary.n for c in cells(results, ["overall"])} == {9}
    assert {(c.summary.n, c.summary.undefined) for c in cells(results, ["proportion"])} == {(6, 3)}
