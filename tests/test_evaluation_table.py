"""Tables word for word: the paper's form, intervals, marks, controls, published figures, and what the notes admit."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from evaluation_rows import TENSORS, realistic, row, rows_of

from fgcam_onnx.evaluation.summary import Results
from fgcam_onnx.evaluation.table import as_csv, controls_tables, controls_tally, report, tables

PLACES = {tensor: index for index, tensor in TENSORS.items() if index != "input"}
NAMES = {tensor: f"L{index}" for tensor, index in PLACES.items()}


def small(n: int = 8) -> list[dict[str, Any]]:
    """Two methods and a control at a layer, two and one at the input; boxes on five pictures, one score of 0."""
    cells = {
        ("grad-cam", "pool4"): (50.0, 0, 0.40, 0.15, 0.30),
        ("fg-grad-cam", "pool4"): (20.0, 1, 0.60, 0.10, 0.50),
        ("fg-grad-cam", "input"): (19.0, 1, 0.61, 0.09, 0.60),
        ("lrp", "input"): (25.0, 0, 0.55, 0.10, 0.48),
        ("random", "pool4"): (60.0, 0, 0.30, 0.28, 0.20),
        ("random", "input"): (60.0, 0, 0.30, 0.28, 0.20),
    }
    rows = []
    for i in range(n):
        for (method, layer), (drop, gain, insertion, deletion, inside) in cells.items():
            unscored = i == 0 and (method, layer) == ("grad-cam", "pool4")
            rows.append(
                row(
                    f"{i}",
                    method,
                    layer,
                    average_drop=None if unscored else drop + i,
                    average_increase=None if unscored else 100.0 * gain * (i % 2),
                    insertion=insertion + i / 100,
                    deletion=deletion,
                    overall=insertion + i / 100 - deletion,
                    proportion=inside if i < 5 else None,
                    empty=float(method == "random" and i == 2) if i < 5 else None,
                )
            )
    return rows


def test_table_1() -> None:
    assert (
        tables(small(), {"pool4": 33}, batch_norm=True)[0].text()
        == """\
Table 1. Average Drop and Average Increase, 8 pictures

                               L33
method                   A.D. %               A.I. %
-----------------------------------------------------
Grad-CAM     54.00  [52.6, 55.4]   0.00    [0.0, 0.0]
  published  44.53                18.85
FG-Grad-CAM  23.50* [22.0, 25.0]  50.00* [12.5, 87.5]
  published  18.69                34.90
-----------------------------------------------------
Random       63.50  [62.0, 65.0]   0.00    [0.0, 0.0]

  lower is better: A.D. %; higher is better: A.I. %
  A.D. % is undefined, for want of a score, for 1 of 8 pictures: Grad-CAM at L33
  A.I. % is undefined, for want of a score, for 1 of 8 pictures: Grad-CAM at L33
  * best mean of its column; + not separated from it, picture by picture
  [low, high]: 95 % interval of the mean, by bootstrap over the pictures
  L33: pool4
  published: for VGG-16-BN with the torchvision weights, ILSVRC2012 val, 2000 pictures
    (localisation: 500); this model has VGG-16's shapes and BatchNormalization; whose weights it
    holds, the file does not say
"""
    )


def test_table_2_has_a_block_for_each_layer() -> None:
    rows = [r | {"layer": "pool3"} if r["layer"] == "input" else r for r in small()]
    assert (
        tables(rows)[1].text(shared=False)
        == """\
Table 2. Insertion, deletion and over-all, 8 pictures

method                    insertion                 deletion                 over-all
--------------------------------------------------------------------------------------
pool4
Grad-CAM     0.43500  [0.420, 0.450]  0.15000  [0.150, 0.150]  0.28500  [0.270, 0.300]
FG-Grad-CAM  0.63500* [0.620, 0.650]  0.10000* [0.100, 0.100]  0.53500* [0.520, 0.550]
--------------------------------------------------------------------------------------
Random       0.33500  [0.320, 0.350]  0.28000  [0.280, 0.280]  0.05500  [0.040, 0.070]

pool3
FG-Grad-CAM  0.64500* [0.630, 0.660]  0.09000* [0.090, 0.090]  0.55500* [0.540, 0.570]
LRP          0.58500  [0.570, 0.600]  0.10000  [0.100, 0.100]  0.48500  [0.470, 0.500]
--------------------------------------------------------------------------------------
Random       0.33500  [0.320, 0.350]  0.28000  [0.280, 0.280]  0.05500  [0.040, 0.070]

  lower is better: deletion; higher is better: insertion, over-all
"""
    )


def test_table_3_counts_pictures_without_a_box_and_empty_maps() -> None:
    assert (
        tables(small())[2].text()
        == """\
Table 3. Localisation, 5 of 8 pictures

method                        pool4
------------------------------------
Grad-CAM     0.30000+ [0.300, 0.300]
FG-Grad-CAM  0.50000* [0.500, 0.500]
------------------------------------
Random       0.20000  [0.200, 0.200]

  higher is better: localisation
  fewer than 6 pictures separate nothing, whatever the intervals say
  localisation is undefined, for want of a box that counts, for 3 of 8 pictures
  1 map without anything positive, counted as 0: Random at pool4
  * best mean of its column; + not separated from it, picture by picture
  [low, high]: 95 % interval of the mean, by bootstrap over the pictures
"""
    )


def test_tables_4_to_6_at_the_input() -> None:
    titles = [table.title for table in tables(small())]
    assert titles == [
        "Table 1. Average Drop and Average Increase, 8 pictures",
        "Table 2. Insertion, deletion and over-all, 8 pictures",
        "Table 3. Localisation, 5 of 8 pictures",
        "Table 4. Average Drop and Average Increase at the input, 8 pictures",
        "Table 5. Insertion, deletion and over-all at the input, 8 pictures",
        "Table 6. Localisation at the input, 5 of 8 pictures",
    ]
    assert (
        tables(small(), {"pool4": 33})[4].text(shared=False)
        == """\
Table 5. Insertion, deletion and over-all at the input, 8 pictures

method                    insertion                 deletion                 over-all
--------------------------------------------------------------------------------------
FG-Grad-CAM  0.64500* [0.630, 0.660]  0.09000* [0.090, 0.090]  0.55500* [0.540, 0.570]
  published  0.60757                  0.08668                  0.52089
LRP          0.58500  [0.570, 0.600]  0.10000  [0.100, 0.100]  0.48500  [0.470, 0.500]
  published  0.55344                  0.09975                  0.45369
--------------------------------------------------------------------------------------
Random       0.33500  [0.320, 0.350]  0.28000  [0.280, 0.280]  0.05500  [0.040, 0.070]

  lower is better: deletion; higher is better: insertion, over-all
"""
    )


def test_narrow_screens_have_the_interval_below() -> None:
    assert (
        tables(small())[0].text(45, shared=False)
        == """\
Table 1. Average Drop and Average Increase, 8 pictures

                       pool4
method            A.D. %        A.I. %
---------------------------------------
Grad-CAM           54.00          0.00
             [52.6, 55.4]    [0.0, 0.0]
FG-Grad-CAM        23.50*        50.00*
             [22.0, 25.0]  [12.5, 87.5]
---------------------------------------
Random             63.50          0.00
             [62.0, 65.0]    [0.0, 0.0]

  lower is better: A.D. %; higher is better:
    A.I. %
  A.D. % is undefined, for want of a score,
    for 1 of 8 pictures: Grad-CAM at pool4
  A.I. % is undefined, for want of a score,
    for 1 of 8 pictures: Grad-CAM at pool4
"""
    )


def test_columns_that_do_not_fit_follow_below() -> None:
    text = tables(realistic(3), PLACES)[0].text(70, shared=False)
    assert max(map(len, text.splitlines())) <= 70
    heads = [line.split() for line in text.splitlines() if line.split() and set(line.split()) <= set(NAMES.values())]
    assert heads == [["L33"], ["L23"], ["L13"]]
    assert text.count("FG-Grad-CAM^D") == len(heads)


def test_the_screen_is_kept_to() -> None:
    found = report(realistic(3), PLACES, batch_norm=False)
    for table in (*found.tables, *found.controls, *found.tally):
        assert max(map(len, table.text(100).splitlines())) <= 100, table.title


def test_markdown() -> None:
    assert (
        tables(small(), {"pool4": 33}, batch_norm=True)[0].markdown()
        == """\
**Table 1. Average Drop and Average Increase, 8 pictures**

| method | L33 A.D. % | L33 A.I. % |
| --- | ---: | ---: |
| Grad-CAM | 54.00 [52.6, 55.4] | 0.00 [0.0, 0.0] |
| *published* | 44.53 | 18.85 |
| FG-Grad-CAM | **23.50** [22.0, 25.0] | **50.00** [12.5, 87.5] |
| *published* | 18.69 | 34.90 |
| *controls* |  |  |
| Random | 63.50 [62.0, 65.0] | 0.00 [0.0, 0.0] |

- lower is better: A.D. %; higher is better: A.I. %
- A.D. % is undefined, for want of a score, for 1 of 8 pictures: Grad-CAM at L33
- A.I. % is undefined, for want of a score, for 1 of 8 pictures: Grad-CAM at L33
- bold: best mean of its column; + not separated from it, picture by picture
- [low, high]: 95 % interval of the mean, by bootstrap over the pictures
- L33: pool4
- published: for VGG-16-BN with the torchvision weights, ILSVRC2012 val, 2000 pictures (localisation: 500); this model has VGG-16's shapes and BatchNormalization; whose weights it holds, the file does not say
"""  # noqa: E501
    )


def test_names_mean_nothing_to_markdown() -> None:
    rows = [r | {"layer": "a|b_*c*"} if r["layer"] == "pool4" else r for r in small()]
    text = tables(rows, labels={"a|b_*c*": "_x_"})[1].markdown()
    assert "*\\_x\\_*" in text
    assert "- \\_x\\_: a\\|b\\_\\*c\\*" in text


def test_the_best_is_marked_and_what_is_not_separated_from_it() -> None:
    rows = rows_of(
        {
            ("a", "L"): [1.0, 2, 3, 4, 5, 6, 7, 8],
            ("b", "L"): [1.1, 1.9, 3.1, 3.9, 5.1, 5.9, 7.1, 7.9],
            ("c", "L"): [3.0, 4, 5, 6, 7, 8, 9, 10],
            ("random", "L"): [0.0] * 8,
        },
        "average_drop",
    )
    (table,) = tables(rows)
    marks = {line.name: line.entries[0].mark for line in table.blocks[0].lines}
    assert marks == {"a": "*", "b": "+", "c": "", "Random": ""}
    (alone,) = tables([r for r in rows if r["method"] in ("a", "random")])
    assert [line.entries[0].mark for line in alone.blocks[0].lines] == ["", ""]
    assert not any("best" in note for note in (*alone.notes, *alone.shared))


def test_higher_is_better_elsewhere() -> None:
    (table,) = tables(rows_of({("a", "L"): [1.0] * 9, ("b", "L"): [2.0] * 9}, "overall"))
    assert [line.entries[0].mark for line in table.blocks[0].lines] == ["", "*"]
    (table,) = tables(rows_of({("a", "L"): [1.0] * 9, ("b", "L"): [2.0] * 9}, "sparseness"))
    assert [line.entries[0].mark for line in table.blocks[0].lines] == ["", ""]
    assert table.title == "Sparseness, 9 pictures"


def test_one_picture_has_no_interval() -> None:
    (table,) = tables(rows_of({("a", "L"): [1.0], ("b", "L"): [2.0]}, "overall"))
    assert (
        table.text()
        == """\
Table 2. Insertion, deletion and over-all, 1 picture

method  over-all
-----------------
L
a        1.00000+
b        2.00000*

  higher is better: over-all
  no intervals: they take two pictures
  * best mean of its column; + not separated from it, picture by picture
"""
    )


def test_few_pictures_are_admitted() -> None:
    (table,) = tables(rows_of({("a", "L"): [1.0] * 5, ("b", "L"): [2.0] * 5}, "overall"))
    assert "fewer than 6 pictures separate nothing, whatever the intervals say" in table.notes
    assert [line.entries[0].mark for line in table.blocks[0].lines] == ["+", "*"]


def test_pictures_that_a_method_was_not_measured_on() -> None:
    rows = rows_of({("a", "L"): [1.0] * 8, ("b", "L"): [2.0] * 6}, "overall")
    (table,) = tables(rows)
    assert table.title == "Table 2. Insertion, deletion and over-all, 8 pictures"
    assert "over-all was measured on 6 of 8 pictures: b at L" in table.notes


def test_long_names_of_layers_are_numbered() -> None:
    long = "/features/features.33/MaxPool_output_0"
    (table,) = tables(rows_of({("a", long): [1.0] * 8, ("a", "relu"): [1.0] * 8}, "average_drop"))
    assert [group for group, _ in table.columns] == ["layer 1", "layer 2"]
    assert [note for note in table.shared if note.startswith("layer")] == [f"layer 1: {long}", "layer 2: relu"]


def test_no_rows_no_tables() -> None:
    assert tables([]) == []
    assert report([]).text() == ""
    assert report([]).markdown() == ""
    only = [row("a", "m", "L", overall=None)]
    assert tables(only) == []


def test_published_figures_only_where_asked() -> None:
    assert not any("published" in table.text() for table in tables(small()))
    found = tables(small(), {"pool4": 33})
    assert [sum(line.kind == "published" for b in table.blocks for line in b.lines) for table in found] == [2] * 6


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls() -> None:
    assert (
        controls_tables(small(), ("overall",), labels=NAMES)[0].text()
        == """\
Better than the controls? over-all

method                          Random
---------------------------------------
L33
Grad-CAM     yes +0.230  [0.230, 0.230]
FG-Grad-CAM  yes +0.480  [0.480, 0.480]

input
FG-Grad-CAM  yes +0.500  [0.500, 0.500]
LRP          yes +0.430  [0.430, 0.430]

  by how much, picture by picture, with its 95 % interval; positive: the method is the better one
"""
    )


def test_controls_that_stand_in_from_the_input_are_named() -> None:
    rows = [r for r in small() if (r["method"], r["layer"]) != ("random", "pool4")]
    (table,) = controls_tables(rows, ("overall",), labels=NAMES)
    assert "Random at L33: its map at input" in table.notes


def test_the_tally() -> None:
    (table,) = controls_tally(small(), ("overall",))
    assert (
        table.text()
        == """\
Layers at which a method is better than a control, by over-all

method       Random
-------------------
Grad-CAM     1 of 1
FG-Grad-CAM  2 of 2
LRP          1 of 1
"""
    )


def test_only_what_is_clearly_better_is_tallied() -> None:
    same = [1.0, 2, 3, 4, 5, 6, 7, 8]
    other = [1.1, 1.9, 3.1, 3.9, 5.1, 5.9, 7.1, 7.9]
    rows = rows_of({("lrp", "input"): same, ("random", "input"): other, ("edges", "input"): [0.0] * 8}, "overall")
    (table,) = controls_tally(rows, ("overall",))
    assert [entry.value for entry in table.blocks[0].lines[0].entries] == ["0 of 1", "1 of 1"]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_report_says_shared_notes_once_and_ends_with_the_orderings() -> None:
    text = report(small(), {"pool4": 33}, batch_norm=True).text()
    assert text.count("* best mean of its column") == 1
    assert text.count("published: for VGG-16-BN") == 1
    end = text[text.index("Orderings of the paper on these pictures") :]
    kept = [line for line in end.splitlines() if not line.startswith("not measured")]
    assert (
        "\n".join(kept)
        == """\
Orderings of the paper on these pictures

holds          FG-Grad-CAM beats Grad-CAM on A.D. at every layer
                 L33  FG-Grad-CAM 24.00, Grad-CAM 54.00: by 30.00 [30.0, 30.0], n 7
holds          FG-Grad-CAM beats Grad-CAM on A.I. at every layer
                 L33  FG-Grad-CAM 57.14, Grad-CAM 0.00: by 57.14 [28.6, 85.7], n 7
holds          FG-Grad-CAM beats Grad-CAM on over-all at every layer
                 L33  FG-Grad-CAM 0.53500, Grad-CAM 0.28500: by 0.25000 [0.250, 0.250], n 8
holds          at the input FG-Grad-CAM has a better over-all than LRP
                 input  FG-Grad-CAM 0.55500, LRP 0.48500: by 0.07000 [0.070, 0.070], n 8
holds          over-all is insertion less deletion in every cell
                 every row  largest gap 0.0e+00, n 48

holds: 5, does not hold: 0, not separated: 0, not measured: 18
A claim holds if all of its differences are above 0 with their 95 % intervals, and does not
hold if one is below 0 with an interval of 1 - 5 % / k, where k is the number of its differences.
Of the 4 intervals here one in twenty misses the true value by chance."""
    )


def test_a_brief_report_has_the_outcome_alone() -> None:
    found = report(small(), {"pool4": 33})
    brief = found.text(brief=True)
    assert "holds          FG-Grad-CAM beats Grad-CAM on A.D. at every layer\n" in brief
    assert "FG-Grad-CAM 21.00" not in brief
    assert "1 of 1" in brief
    assert "Better than the controls?" not in brief
    assert brief.count("\n") < found.text().count("\n")


def test_evidence_against_is_named_beside_its_claim() -> None:
    rows = rows_of(
        {("grad-cam", "L"): [2.0] * 9, ("fg-grad-cam", "L"): [1.0] * 9}
        | {("grad-cam", "M"): [1.0] * 9, ("fg-grad-cam", "M"): [2.0] * 9},
        "overall",
    )
    lines = report(rows).text().splitlines()
    at = lines.index("does not hold  FG-Grad-CAM beats Grad-CAM on over-all at every layer")
    assert lines[at + 1 : at + 3] == [
        "                 L  FG-Grad-CAM 1.00000, Grad-CAM 2.00000: by -1.00000 [-1.000, -1.000], n 9",
        "                 M  FG-Grad-CAM 2.00000, Grad-CAM 1.00000: by 1.00000 [1.000, 1.000], n 9   holds",
    ]


def test_csv() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv(small(), {"pool4": 33}))))
    assert len(found) == 6 * 6
    assert found[0] == {
        "method": "grad-cam", "name": "Grad-CAM", "layer": "pool4", "figure": "average_drop", "better": "lower",
        "mean": "54", "standard_error": "0.8164965809", "low": "52.57142857", "high": "55.42857143", "n": "7",
        "undefined": "1", "published": "44.53",
    }  # fmt: skip
    at_input = [r for r in found if (r["method"], r["layer"], r["figure"]) == ("lrp", "input", "overall")]
    assert at_input[0]["published"] == "0.45369"
    assert {r["published"] for r in csv.DictReader(io.StringIO(as_csv(small())))} == {""}
    assert as_csv([row("a", "m", "L", overall=0.5)]).splitlines()[1] == "m,m,L,overall,higher,0.5,,0.5,0.5,1,0,"


def test_results_are_read_once() -> None:
    results = Results(small())
    assert [t.text() for t in tables(results)] == [t.text() for t in tables(small())]


@pytest.mark.parametrize("n", [1, 2])
def test_any_number_of_pictures(n: int) -> None:
    found = report(realistic(n), PLACES)
    assert found.text().count("Table ") == (6 if n > 1 else 4)  # the first picture has no box
    assert found.markdown()
