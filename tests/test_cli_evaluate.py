"""``fgcam evaluate``: its words, its files, its errors, and that it goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgcam_onnx import models
from fgcam_onnx.cli import main
from fgcam_onnx.evaluation.store import read_rows

Run = Callable[..., tuple[int, str, str]]
MODEL = str(models.path("demo_honest.onnx"))
PICTURES = ("fish-sailboat", "house-rocket", "mushroom-tree")
# As little as shows all: two methods, two layers, eight steps.
SMALL = ("--methods", "grad-cam,lrp", "--layers", "L,input", "--step", "2048", "--threads", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        try:
            main(["evaluate", *map(str, words)])
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, their labels and boxes."""
    made = tmp_path / "pictures"
    made.mkdir()
    for name in PICTURES:
        shutil.copy(models.path(f"pictures/{name}.png"), made)
    labels = "".join(f"{name}.png,{name.split('-')[0]}\n" for name in PICTURES)
    (made / "labels.csv").write_text("file,label\n" + labels)
    boxes = ("fish-sailboat.png,6,67,65,114", "house-rocket.png,8,54,65,115", "mushroom-tree.png,58,56,118,116")
    (made / "boxes.csv").write_text("file,x1,y1,x2,y2\n" + "\n".join(boxes) + "\n")
    return made


def test_one_command(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (MODEL, folder / "labels.csv", "--boxes", folder / "boxes.csv", *SMALL, "-o", out)
    code, text, err = run(*words)
    assert (code, err) == (0, "")
    assert "3   with a label 3, with boxes 3" in text
    assert "Table 1. Average Drop and Average Increase, 3 pictures" in text
    assert "Layers at which a method is better than a control, by over-all" in text
    files = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert files >= {"run.json", "rows", "table.md", "summary.csv", "failures.csv", "manifest.json"}
    assert files >= {"curves.png", "curves.svg", "layers.png", "layers.svg"}
    record, rows = read_rows(out)
    assert record["spec"]["settings"]["step"] == 2048
    assert [row["image"] for row in rows[:: len(rows) // 3]] == [f"{name}.png" for name in PICTURES]
    assert all(row["proportion"] is not None for row in rows)
    summary = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    mean = sum(r["overall"] for r in rows if (r["method"], r["layer"]) == ("lrp", "input")) / 3
    told = next(r for r in summary if (r["method"], r["layer"], r["figure"]) == ("lrp", "input", "overall"))
    assert float(told["mean"]) == pytest.approx(mean, rel=1e-6)
    assert told["n"] == "3"
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["files"]) >= {"table.md", "summary.csv", "failures.csv"}


def test_json_is_all_of_stdout(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text, _ = run(MODEL, folder, *SMALL, "--rows", "csv", "--no-plots", "--json", "-o", tmp_path / "out")
    assert code == 0
    found = json.loads(text)
    assert found["pictures"] == 3
    assert found["failures"] == []
    assert {(r["method"], r["layer"]) for r in found["results"]} >= {("grad-cam", "max_pool2d_3"), ("lrp", "input")}
    assert (tmp_path / "out" / "rows.csv").is_file()
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_few_and_then_more(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger limit measures what is missing, and nothing twice; the table is of the pictures that are asked for."""
    from fgcam_onnx.evaluation.evaluator import Evaluator

    seen: list[str] = []
    real = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, s, p=None: seen.append(s.id) or real(self, s, p))
    words = (MODEL, folder, *SMALL, "--metrics", "average-drop", "--no-plots", "-o", tmp_path / "out")
    assert run(*words, "--limit", 1)[0] == 0
    first = list(seen)
    assert len(first) == 1
    code, text, _ = run(*words)
    assert code == 0
    assert "1 of 3 measured before" in text
    assert sorted(seen) == [f"{name}.png" for name in PICTURES]
    code, text, _ = run(*words, "--limit", 1)
    assert "Average Increase, 1 picture" in text
    assert len(seen) == 3
    code, text, err = run(*words, "--seed", 1)
    assert code == 2
    assert "OptionError" in err
    assert "seed" in err
    assert "--fresh" in err
    assert run(*words, "--seed", 1, "--fresh")[0] == 0
    assert len(seen) == 6


def test_pictures_that_do_not_decode(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "short.png").write_bytes((folder / "fish-sailboat.png").read_bytes()[:800])
    words = (MODEL, folder, *SMALL, "--metrics", "average-drop", "--no-plots", "-o", tmp_path / "out")
    code, text, _ = run(*words)
    assert code == 0
    assert "2 of 5 pictures could not be measured" in text
    assert "broken.jpg   ImageError: " in text
    listed = list(csv.DictReader((tmp_path / "out" / "failures.csv").read_text().splitlines()))
    assert [row["image"] for row in listed] == ["broken.jpg", "short.png"]
    assert len({row["image"] for row in read_rows(tmp_path / "out")[1]}) == 3


def test_nothing_that_decodes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    code, _, err = run(MODEL, tmp_path / "broken.jpg", *SMALL, "-q", "-o", tmp_path / "out")
    assert code == 1
    assert err.startswith("ImageError: no picture could be measured\n  known   broken.jpg: ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--methods", "gradcam"), "MethodError: there is no method 'gradcam'"),
        (("--layers", "pool9"), "LayerError: the model has no layer 'pool9'"),
        (("--metrics", "overall"), "OptionError: there is no metric 'overall'"),
        (("--engine", "spark"), "OptionError: there is no engine 'spark'"),
        (("--workers", "2"), "OptionError: --workers belongs to --engine ray"),
        (("--baseline", "black"), "OptionError: option baseline cannot be 'black'"),
        (("--rows", "xml"), "OptionError: no form 'xml'"),
        (("--target", "best"), "OptionError: option target cannot be 'best'"),
    ],
)
def test_wrong_words(run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    code, _, err = run(MODEL, folder, "-o", tmp_path / "out", *words)
    assert code == 2
    assert err.split("\n")[0] == text


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run(MODEL, tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 1
    assert "holds no pictures" in err


def test_labels_that_the_model_does_not_have(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "labels.csv").write_text("file,label\nfish-sailboat.png,fish\nhouse-rocket.png,900\n")
    words = (MODEL, folder / "labels.csv", *SMALL, "--metrics", "average-drop", "--target", "label", "--no-plots")
    code, text, _ = run(*words, "-o", tmp_path / "out")
    assert code == 0
    assert "1 of 2 pictures could not be measured" in text
    assert "house-rocket.png   TargetError: the label of 'house-rocket.png': there is no class 900" in text


def test_a_folder_that_cannot_be_written(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(MODEL, folder, *SMALL, "-o", tmp_path / "file" / "out")
    assert code == 1
    assert err.startswith("OutputError: ")


def test_killed_and_started_again(folder: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as the first rows are there; the same command then gives the rows of an undisturbed run."""
    words = [sys.executable, "-m", "fgcam_onnx", "evaluate", MODEL, str(folder), *SMALL, "--no-plots", "--quiet", "-o"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = subprocess.Popen([*words, str(cut)])
    for _ in range(2400):
        if list(cut.glob("rows/*.parquet")) or first.poll() is not None:
            break
        time.sleep(0.025)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert 1 <= len(list(cut.glob("rows/*.parquet"))) < 3
    assert not (cut / "manifest.json").exists()
    for out in (cut, whole):
        assert subprocess.run([*words, str(out)]).returncode == 0
    assert read_rows(cut)[1] == read_rows(whole)[1]
    assert (cut / "table.md").read_text() == (whole / "table.md").read_text()


def test_interrupted(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it with 130 and says what is stored."""
    from fgcam_onnx.evaluation.evaluator import Evaluator

    real = Evaluator.__call__

    def call(self: Evaluator, sample: Any, progress: Any = None) -> Any:
        if sample.id.startswith("house"):
            raise KeyboardInterrupt
        return real(self, sample, progress)

    monkeypatch.setattr(Evaluator, "__call__", call)
    code, _, err = run(MODEL, folder, *SMALL, "--metrics", "average-drop", "-o", tmp_path / "out")
    assert code == 130
    assert err == "stopped: 1 of 3 stored; the same command goes on\n"
