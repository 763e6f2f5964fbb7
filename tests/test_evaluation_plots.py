"""Plots of an evaluation: files that open, the same bytes each time, every method named, and no words on others."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_rows import realistic, row
from PIL import Image

from fgcam_onnx.errors import OutputError
from fgcam_onnx.evaluation.names import is_control, method_name
from fgcam_onnx.evaluation.plots import against_layers, band, curves, looks, save
from fgcam_onnx.evaluation.published import INPUT_METHODS, METHODS
from fgcam_onnx.evaluation.summary import Results

pytest.importorskip("matplotlib")

ALL = list(dict.fromkeys((*METHODS, *INPUT_METHODS)))
CONTROLS = ["class-blind", "fg-class-blind", "random", "center-gaussian", "edges"]


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(realistic(7, steps=8, layers=(13, "input")))


def words(svg: Path) -> set[str]:
    """All text of an SVG, which has to be valid XML."""
    found = ET.parse(svg).getroot()
    return {"".join(each.itertext()).strip() for each in found.iter("{http://www.w3.org/2000/svg}text")}


def drawn(figure: Any, folder: Path) -> set[str]:
    return words(save(figure, folder / "plot", dpi=20)[0])


def test_files_open_and_name_every_method(results: Results, tmp_path: Path) -> None:
    svg, png = save(curves(results, labels={"pool2": "L13"}), tmp_path / "plot")
    assert (svg.name, png.name) == ("plot.svg", "plot.png")
    found = words(svg)
    assert {method_name(m) for m in (*ALL, *CONTROLS)} <= found
    assert {"methods", "controls", "L13", "at the input"} <= found
    assert {"Deletion: lower is better", "Insertion: higher is better"} <= found
    assert "The score as pixels go and come, 7 pictures" in found
    with Image.open(png) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 1600


def test_layers_say_what_is_better(results: Results, tmp_path: Path) -> None:
    found = drawn(against_layers(results), tmp_path)
    assert {method_name(m) for m in (*ALL, *CONTROLS)} <= found
    assert {
        "A.D. %: lower is better",
        "A.I. %: higher is better",
        "Insertion: higher is better",
        "Deletion: lower is better",
        "Over-all: higher is better",
        "Localisation: higher is better",
    } <= found


@pytest.mark.parametrize("draw", [curves, against_layers])
def test_the_same_rows_give_the_same_bytes(draw: Any, tmp_path: Path) -> None:
    rows = [r for r in realistic(3, steps=6, layers=("input",)) if r["method"] in ("lrp", "fg-grad-cam", "random")]
    first = [p.read_bytes() for p in save(draw(rows), tmp_path / "a", dpi=50)]
    second = [p.read_bytes() for p in save(draw(rows), tmp_path / "b", dpi=50)]
    assert first == second
    assert b"<dc:date>" not in first[0]
    assert b"Software" not in first[1]


def panels(figure: Any) -> list[Any]:
    return list(figure.get_axes())


def line(axes: Any, name: str) -> Any:
    return next(each for each in axes.get_lines() if each.get_label() == name)


def test_a_curve_is_the_mean_over_share_of_pixels() -> None:
    rows = [
        row(f"{i}", "grad-cam", "L", deletion_scores=[0.8, 0.2 * i, 0.0], insertion_scores=[0.0, 0.5, 0.8])
        for i in range(3)
    ]
    deletion, insertion = panels(curves(rows))
    drawn = line(deletion, "Grad-CAM")
    assert list(drawn.get_xdata()) == [0, 50, 100]
    assert list(drawn.get_ydata()) == pytest.approx([0.8, 0.2, 0.0])
    assert list(line(insertion, "Grad-CAM").get_ydata()) == pytest.approx([0.0, 0.5, 0.8])
    assert [len(axes.collections) for axes in (deletion, insertion)] == [1, 1]  # the bands


def test_the_band_is_the_interval_of_the_mean() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, (50, 4))
    low, high = band(scores)
    error = scores.std(axis=0, ddof=1) / math.sqrt(50)
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.12)
    assert np.all((low < scores.mean(axis=0)) & (scores.mean(axis=0) < high))


def test_curves_of_other_lengths_meet_on_shares() -> None:
    rows = [
        row("a", "lrp", "input", deletion_scores=[1.0, 0.0], insertion_scores=None),
        row("b", "lrp", "input", deletion_scores=[1.0, 1.0, 0.0], insertion_scores=[math.nan, 1.0]),
    ]
    figure = curves(rows)
    assert list(line(panels(figure)[0], "LRP").get_ydata()) == pytest.approx([1.0, 0.75, 0.0])
    assert len(panels(figure)[1].get_lines()) == 0


def test_means_and_bars_stand_at_their_layers() -> None:
    rows = [
        row(f"{i}", method, layer, overall=base + i * i / 10)  # skewed: the interval is longer above
        for i in range(4)
        for method, layer, base in (
            ("grad-cam", "L", 0.1),
            ("grad-cam", "M", 0.2),
            ("lrp", "input", 0.3),
            ("random", "M", 0.0),
        )
    ]
    (axes,) = panels(against_layers(rows))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["L", "M", "input"]
    cam = next(c for c in axes.containers if c.get_label() == "Grad-CAM")
    assert list(cam[0].get_ydata())[:2] == pytest.approx([0.45, 0.55])
    assert math.isnan(cam[0].get_ydata()[2])
    assert list(cam[0].get_xdata()) == pytest.approx([0, 1, 2], abs=0.1)
    results = Results(rows)
    s = results.summary("grad-cam", "L", "overall")
    (segment, *_) = cam[2][0].get_segments()
    assert [segment[0][1], segment[1][1]] == pytest.approx([s.low, s.high])
    assert [c.get_label() for c in axes.containers] == ["Grad-CAM", "LRP"]  # controls have no bars
    # A control at one layer has no neighbour to be joined with, and is drawn as a short line of its own.
    assert any(
        list(each.get_ydata()) == pytest.approx([0.35, 0.35]) for each in axes.get_lines() if len(each.get_xdata()) == 2
    )


def test_one_picture_missing_cells_and_nan(tmp_path: Path) -> None:
    rows = realistic(1, steps=5, layers=(33, "input"))
    del rows[3]
    for each in rows[::4]:
        each.update(overall=math.nan, deletion_scores=None, average_drop=None)
    for figure in (curves(rows), against_layers(rows, ["overall", "average_drop"])):
        found = drawn(figure, tmp_path)
        assert not any("95 %" in each for each in found), "one picture has no interval"
        assert any("1 picture" in each for each in found)


def test_nothing_to_draw() -> None:
    assert curves([]) is None
    assert against_layers([]) is None
    rows = [row("a", "lrp", "input", overall=None, deletion_scores=None)]
    assert curves(rows) is None
    assert against_layers(rows) is None
    assert against_layers([row("a", "lrp", "input", overall=1.0)], figures=["deletion"]) is None


def texts(figure: Any) -> list[tuple[str, Any]]:
    """What is written, with its place; tilted words are left out, whose boxes say little."""
    figure.canvas.draw()
    written = [*figure.texts]
    for legend in figure.legends:
        written += [legend.get_title(), *legend.get_texts()]
    for axes in figure.get_axes():
        written += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            written += [
                t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_visible()
            ]
    return [
        (t.get_text(), t.get_window_extent()) for t in written if t.get_text().strip() and t.get_rotation() in (0, 90)
    ]


@pytest.mark.parametrize("many", [1, 30])
def test_no_words_overlap_or_leave_the_page(many: int) -> None:
    """Legends, headings and ticks; for one method and for thirty, at layers with long names."""
    layers = ("features_conv1", "stage.two.pool", "hardtanh_22", "blocks_3_add_0", "relu5_3", "input")
    curve = {"deletion_scores": [1, 0], "insertion_scores": [0, 1]}
    methods = [*(f"method-{m}" for m in range(many)), *CONTROLS]
    rows = [
        row(f"{i}", method, layer, overall=0.5 + m / 100, deletion=0.1, **(curve if layer == "relu5_3" else {}))
        for i in range(2)
        for m, method in enumerate(methods)
        for layer in layers
    ]
    for figure in (curves(rows), against_layers(rows, ["overall", "deletion"])):
        found = texts(figure)
        assert len(found) > many + len(CONTROLS)
        page = figure.bbox
        for text, box in found:
            assert min(box.x0, box.y0) >= 0, text
            assert box.x1 <= page.x1, text
            assert box.y1 <= page.y1, text
        for i, (text, box) in enumerate(found):
            for other, beside in found[i + 1 :]:
                apart = box.x1 <= beside.x0 or beside.x1 <= box.x0 or box.y1 <= beside.y0 + 1 or beside.y1 <= box.y0 + 1
                assert apart, f"{text!r} lies on {other!r}"


# --- looks ------------------------------------------------------------------------------------------------------------


def test_no_two_methods_look_alike() -> None:
    from fgcam_onnx.methods import METHODS as EVERY

    names = [*EVERY, *(f"{m}+denoise" for m in EVERY if m.startswith("fg-")), "random", "center-gaussian", "edges"]
    found = looks(names)
    seen = {(look.colour, str(look.line), look.marker, look.fill) for look in found.values()}
    assert len(seen) == len(names)


def test_families_share_a_colour_and_controls_are_grey() -> None:
    found = looks([*ALL, *CONTROLS])
    assert len({found[m].colour for m in ("grad-cam", "fg-grad-cam", "fg-grad-cam+denoise")}) == 1
    assert len({found[m].colour for m in ("grad-cam", "score-cam", "layer-cam", "lrp", "clrp", "sglrp")}) == 6
    for name in CONTROLS:
        red, green, blue = (found[name].colour[i : i + 2] for i in (1, 3, 5))
        assert red == green == blue
        assert is_control(name)
    assert looks(["lrp"])["lrp"].colour == found["lrp"].colour  # whoever else is there


# --- manners ----------------------------------------------------------------------------------------------------------


def test_settings_of_matplotlib_are_put_back(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "axes.linewidth": 9, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        rows = [row("a", "lrp", "input", overall=0.5), row("b", "lrp", "input", overall=0.6)]
        theirs = [p.read_bytes() for p in save(against_layers(rows), tmp_path / "a", dpi=50)]
        assert dict(matplotlib.rcParams) == before
    assert theirs == [
        p.read_bytes() for p in save(against_layers(rows), tmp_path / "b", dpi=50)
    ]  # and mean nothing to ours


def test_matplotlib_is_loaded_late_and_pyplot_never() -> None:
    code = (
        "import sys\nfrom fgcam_onnx.evaluation import plots\nassert 'matplotlib' not in sys.modules\n"
        "rows = [dict(image='a', method='lrp', layer='input', overall=0.5)]\n"
        "assert plots.against_layers(rows)\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    figure = against_layers([row("a", "lrp", "input", overall=0.5)])
    with pytest.raises(OutputError) as caught:
        save(figure, tmp_path / "absent" / "plot")
    assert (
        str(caught.value) == f"{str(tmp_path / 'absent' / 'plot.svg')!r} cannot be written: No such file or directory"
    )


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    figure = against_layers([row("a", "lrp", "input", overall=0.5)])
    assert [p.name for p in save(figure, tmp_path / "v1.2", dpi=20)] == ["v1.2.svg", "v1.2.png"]
    assert io.BytesIO((tmp_path / "v1.2.png").read_bytes()).read(4) == b"\x89PNG"
