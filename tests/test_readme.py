"""The README is true: its snippets print what it says they print, its commands work, its tables are complete."""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgcam_onnx import Explainer, cli, imaging, models, registry
from fgcam_onnx.backends import BACKENDS
from fgcam_onnx.composite import CHOICES
from fgcam_onnx.families.base import COMPOSITE_OPTIONS, DENOISE_OPTIONS
from fgcam_onnx.methods import METHODS
from fgcam_onnx.preprocessing import choose

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATORS = ROOT / "docs" / "operators.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
QUICK_GELU = "com.microsoft::QuickGelu"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(models.path(models.HONEST), "model.onnx")
    photo = imaging.read(models.path("pictures/fish-sailboat.png"))
    photo.save("photo.jpg")
    (tmp_path / "photos").mkdir()
    for name in ("one.jpg", "two.png"):
        photo.save(tmp_path / "photos" / name)
    return tmp_path


@pytest.fixture
def no_new_rules() -> Iterator[None]:
    """Rules that a snippet registers do not outlive it."""
    registry.table()
    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)


def blocks(text: str) -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in BLOCK.finditer(text)]


def run_page(text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Every python block of a page in one namespace; a text block right behind one is what it prints."""
    names: dict[str, Any] = {"__name__": "readme"}
    found = blocks(text)
    for position, (language, code) in enumerate(found):
        if language == "python":
            exec(compile(code, f"README block {position}", "exec"), names)
            printed = capsys.readouterr().out
            following = found[position + 1] if position + 1 < len(found) else ("", "")
            assert printed == (following[1] if following[0] == "text" else ""), code
    return names


def test_snippets(desk: Path, no_new_rules: None, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page(README, capsys)
    assert sorted(p.name for p in (desk / "first_picture").iterdir()) == [
        "manifest.json",
        "overlay.png",
        "relevance.npy",
    ]
    assert names["both"].target.tolist() == [2, 6]
    check_quick_gelu(names)


def check_quick_gelu(names: dict[str, Any]) -> None:
    """The README's derivative is one: against a difference quotient, through the network."""
    explainer = Explainer(names["proto"], backend="numpy", precision="float64")
    head = explainer.explain(names["x"][None], method="grad-cam", layer="max_pool2d_2", target="fish")
    assert np.isfinite(head.relevance).all()

    from fgcam_onnx.backends.numpy import NumpyVerbs

    class Layer:
        attributes = {"alpha": 1.5}  # noqa: RUF012
        values = np.linspace(-3, 3, 25)

        def x(self) -> np.ndarray:
            return self.values

    def f(v: np.ndarray) -> np.ndarray:
        return v / (1 + np.exp(-1.5 * v))

    found = names["derivative"](Layer(), np.ones(25), NumpyVerbs(np.dtype("float64"))).parts[0]
    h = 1e-6
    np.testing.assert_allclose(found, (f(Layer.values + h) - f(Layer.values - h)) / (2 * h), rtol=1e-7, atol=1e-9)


def test_the_new_rule_is_gone() -> None:
    assert registry.find("relevance", QUICK_GELU) is None


def test_a_false_output_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    page = "```python\nprint(1 + 1)\n```\n```text\n2\n```\n"
    run_page(page, capsys)
    with pytest.raises(AssertionError):
        run_page(page.replace("\n2\n", "\n3\n"), capsys)


def test_first_picture_within_five_lines() -> None:
    section = README.split("## The first picture")[1].split("\n## ")[0]
    (first,) = [code for language, code in blocks(section) if language == "python"]
    assert len([line for line in first.splitlines() if line.strip()]) <= 5


def run_fgcam(words: list[str]) -> int:
    """The exit code of a command line."""
    try:
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def commands() -> list[str]:
    lines = [line for language, text in blocks(README) if language == "console" for line in text.splitlines()]
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]


@pytest.mark.parametrize("line", list(dict.fromkeys(commands())))
def test_commands(line: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(line)
    assert program == "fgcam"
    assert run_fgcam(words) == 0, capsys.readouterr().err


def test_the_two_set_up_commands() -> None:
    """CI takes them from the README word for word: they have to be there, and to be such that it can follow them."""
    readme = runpy.run_path(str(ROOT / ".ci" / "readme.py"))
    assert readme["parts"]("test", "python3.12", "/v") == [
        "python3.12 -m venv /v",
        '/v/bin/pip install -e ".[test]"',
        "/v/bin/python -m pytest",
    ]
    assert readme["parts"]("demo")[-1] == ".venv/bin/fgcam demo"
    assert ".ci/readme.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        readme["command"]("test", "no command here")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_methods_table() -> None:
    listed = [name for row in rows("Methods") for name in names(row[1])]
    assert sorted(listed) == sorted(METHODS)


def test_the_method_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("write_methods", ROOT / ".ci" / "write_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "method_reference.md").read_text(encoding="utf-8")
    assert written == module.page(), "docs/method_reference.md is out of date: run python .ci/write_methods.py"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented(name: str) -> None:
    text = inspect.cleandoc(METHODS[name].module.__doc__ or "")
    assert re.match(r"[^\n:]+: .+", text)
    assert re.search(r"^    \S", text, re.MULTILINE), "no formula"
    for part in ("Conserves: ", "Differs: ", "Source: "):
        assert f"\n{part}" in text, part


def test_options_table() -> None:
    table = {names(row[0])[0]: row for row in rows("Options")}
    assert set(table) == {*COMPOSITE_OPTIONS, *DENOISE_OPTIONS}
    for option, (default, *others) in CHOICES.items():
        assert names(table[option][1]) == [default]
        assert names(table[option][2]) == others


def test_backends_table() -> None:
    assert [names(row[0])[0] for row in rows("Backends")] == list(BACKENDS)


def test_links_and_pictures() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
    assert (ROOT / "docs" / "images" / "poster.png").stat().st_size < 600_000


def test_poster_is_the_demo_s(tmp_path: Path) -> None:
    """The picture on top of the README is what the command below it makes, but for rounding."""
    from PIL import Image

    assert run_fgcam(["demo", "-o", str(tmp_path)]) == 0
    with Image.open(tmp_path / "poster.png") as made, Image.open(ROOT / "docs" / "images" / "poster.png") as shown:
        assert made.size == shown.size
        difference = np.abs(np.asarray(made.convert("RGB"), int) - np.asarray(shown.convert("RGB"), int))
    assert difference.mean() < 1


def test_operators_page() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "fgcam_onnx", "ops", "--markdown"], capture_output=True, text=True, check=True
    ).stdout
    table = OPERATORS.read_text(encoding="utf-8").partition("<!-- fgcam ops --markdown -->\n")[2]
    assert table == printed, "docs/operators.md is out of date: run python .ci/write_operators.py"


RECIPES: dict[str, dict[str, Any]] = {
    "squeezenet_v1.0_caffe": {"short_side": 259, "color": "BGR", "scale": 1.0, "mean": [104, 117, 123], "std": 1.0},
    "efficientnet_lite0_pytorch": {
        "short_side": 256,
        "interpolation": "bicubic",
        "scale": 1.0,
        "mean": 127,
        "std": 128,
    },
    "dog19_mobilenetv2_keras": {"interpolation": "bicubic", "scale": 1 / 127.5, "mean": 1.0, "std": 1.0},
}
LEAKS = {
    "squeezenet_v1.0_caffe": (0.0, 5e-5),
    "dog19_mobilenetv2_keras": (0.055, 0.565),
    "efficientnet_lite0_pytorch": (0.325, 0.955),
}


@pytest.mark.parametrize("model", LEAKS)
def test_leaks_table(model: str, test_data: Path) -> None:
    """Some of the 58 photographs, against the smallest and the largest figure of the README's table."""
    explainer = Explainer(test_data / "models" / f"{model}.onnx")
    recipe = choose(
        RECIPES[model], path=explainer.path, input_shape=explainer.input_shape, layout=explainer.layout
    )  # fmt: skip
    low, high = LEAKS[model]
    for photo in sorted((test_data / "images").glob("*.jpg"))[::15]:
        ledger = explainer.explain(recipe.apply(imaging.read(photo))[0][None]).ledger
        assert low <= ledger.leaked <= high
        assert ledger.residual < 1e-6
        dropping = {row.op for row in ledger.rows if row.dropped.sum() > 1e-3 * ledger.start_absolute.sum()}
        assert dropping <= {"Conv", "Add"}
