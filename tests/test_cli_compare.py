"""``fgcam explain`` with several methods, layers or classes, and ``fgcam methods``: on the real engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import NAMES, RECIPE, Run, noise, run, tiny  # noqa: F401

import fgcam_onnx
from fgcam_onnx import grid, imaging
from fgcam_onnx.cli import compare
from fgcam_onnx.methods import METHODS, method


@pytest.fixture
def model(run: Run) -> Path:  # noqa: F811
    return tiny(Path("m.onnx"), labels=list(NAMES), preprocessing=RECIPE)


def test_a_grid_is_the_maps_of_single_calls(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    sheets: list[grid.Sheet] = []
    arrange = grid.arrange
    monkeypatch.setattr(grid, "arrange", lambda *a, **k: sheets.append(arrange(*a, **k)) or sheets[-1])
    image = noise(Path("a.png"), 1)
    words = ["-m", "fg-grad-cam,rise,cam", "--layer", "input,r2", "-t", "blue", "-O", "masks=8", "--json"]
    code, out, err = run("explain", model, image, *words)
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    assert json.loads(Path("fgcam_maps/manifest.json").read_text())["images"] == manifest["images"]
    (record,) = manifest["images"]
    assert record["target"] == 2
    made = [(cell["method"], cell["layer"]) for cell in record["cells"]]
    assert made == [("fg-grad-cam", "input"), ("fg-grad-cam", "r2"), ("cam", "r2"), ("rise", "input")]
    assert [(cell["method"], cell["layer"]) for cell in record["refused"]] == [("cam", "input"), ("rise", "r2")]
    painted = np.asarray(Image.open("fgcam_maps/a.png"))
    (sheet,) = sheets
    places = {(placed.row, placed.column): placed for placed in sheet.cells}
    for cell in record["cells"]:
        file = Path("fgcam_maps", cell["files"]["relevance"])
        assert file.parent == Path("fgcam_maps/a", cell["method"], cell["layer"])
        map_alone = np.load(file)
        assert cell["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert json.loads((file.parent / "manifest.json").read_text())["method"] == cell["method"]
        more = ["-O", "masks=8"] if cell["method"] == "rise" else []
        alone = ["-m", cell["method"], "--layer", cell["layer"], "-t", "blue", "-o", "alone", "-q", *more]
        assert run("explain", model, image, *alone)[0] == 0
        np.testing.assert_array_equal(map_alone, np.load("alone/a.npy"))
        recipe = fgcam_onnx.preprocessing.choose(metadata={"preprocessing": json.dumps(RECIPE)})
        shown = imaging.fit(recipe.view(imaging.read(image)), 128)
        row = ["fg-grad-cam", "cam", "rise"].index(cell["method"])
        left, top, right, bottom = places[row, ["input", "r2"].index(cell["layer"])].box
        np.testing.assert_array_equal(painted[top:bottom, left:right], imaging.draw(shown, map_alone).overlay)
    assert places[1, 0].picture is None
    assert places[2, 1].picture is None


def test_several_classes(model: Path, run: Run) -> None:  # noqa: F811
    code, out, _ = run("explain", model, noise(Path("a.png"), 1), "-t", "0,blue", "--json")
    (record,) = json.loads(out)["images"]
    assert code == 0
    assert [each["target"] for each in record["classes"]] == [0, 2]
    assert record["files"]["overlays"] == ["a_class0.png", "a_class2.png"]
    assert all(Path("fgcam_maps", name).is_file() for name in record["files"]["overlays"])
    maps = np.load("fgcam_maps/a.npy")
    for i, target in enumerate((0, 2)):
        assert run("explain", model, "a.png", "-t", target, "-q", "-o", "alone")[0] == 0
        np.testing.assert_allclose(maps[i], np.load("alone/a.npy"), rtol=1e-4, atol=1e-7)
    top = json.loads(run("explain", model, "a.png", "-t", "top3", "--json")[1])["images"][0]
    assert [each["target"] for each in top["classes"]] == [each["class"] for each in top["top"]]


def test_against_composite_and_rules(model: Path, run: Run) -> None:  # noqa: F811
    words = ["-m", "lrp", "-t", 0, "--against", "blue", "--composite", "epsilon_plus", "--rule", "Conv & first=z_box"]
    code, out, err = run("explain", model, noise(Path("a.png"), 1), *words, "--json")
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    assert (manifest["images"][0]["target"], manifest["images"][0]["against"]) == (0, 2)
    assert manifest["options"]["composite"] == "epsilon_plus"
    assert manifest["options"]["rules"] == {"Conv & first": "z_box"}


def test_words_that_are_wrong(model: Path, run: Run) -> None:  # noqa: F811
    noise(Path("a.png"), 1)
    for words, message in (
        (["-m", "grad-cam,fg-gradcam"], "MethodError: there is no method 'fg-gradcam'\n"),
        (["-m", "grad-cam,lrp", "--layer", "pool9"], "LayerError: the model has no layer 'pool9'\n"),
        (["-m", "grad-cam,lrp", "-O", "maks=2"], "OptionError: none of these methods has an option 'maks'\n"),
        (["-m", "grad-cam,lrp", "-t", "0,1"], "OptionError: a comparison explains one class\n"),
        (["-m", "gradient,lrp", "--denoise"], "OptionError: --denoise belongs to methods with an L\n"),
        (["--rule", "Conv"], "OptionError: --rule 'Conv' is not SELECTOR=RULE\n"),
        (["-t", "0,9"], "TargetError: there is no class 9\n"),
    ):
        code, out, err = run("explain", model, "a.png", *words)
        assert (code, out) == (2, ""), words
        assert err.startswith(message)
        assert not Path("fgcam_maps").exists()


def test_a_wrong_value_is_no_blank_row(model: Path, run: Run) -> None:  # noqa: F811
    """What rise refuses at every layer is the user's mistake; that it explains the input alone is none."""
    image = noise(Path("a.png"), 1)
    words = ["explain", model, image, "-m", "cam,rise", "-t", "blue"]
    code, out, err = run(*words, "--layer", "input,r2", "-O", "masks=0", "-o", "wrong")
    assert (code, "masks" in err, "wrote" in out) == (2, True, False)
    assert not Path("wrong/manifest.json").exists()
    code, out, err = run(*words, "--layer", "r2", "-O", "masks=8", "-o", "right")
    assert (code, err) == (0, "")
    assert "rise at r2: " in out
    assert "layer=" not in out


def test_cheap_cells_come_first() -> None:
    assert compare.passes(method("grad-cam"), {}, 64) == 1
    assert compare.passes(method("score-cam"), {}, 64) == 64
    assert compare.passes(method("rise"), {"masks": 9}, 64) == 9
    assert compare.passes(method("rise"), {}, 64) == 4000


def test_methods(run: Run) -> None:  # noqa: F811
    code, out, err = run("methods", "--json")
    assert (code, err) == (0, "")
    assert [each["name"] for each in json.loads(out)] == list(METHODS)
    assert set(json.loads(out)[0]) == {"name", "kind", "summary", "paper", "options", "many_passes"}
    text = run("methods")[1]
    assert all(f"\n{name} " in text for name in METHODS)
