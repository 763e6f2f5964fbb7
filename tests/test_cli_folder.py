"""``fgcam explain FOLDER photo.jpg`` and ``--preprocess``: what is printed, what is recorded, what is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from PIL import Image

from fgcam_onnx import Explainer
from fgcam_onnx.cli import main
from fgcam_onnx.preprocessing import choose

Run = Callable[..., tuple[int, str, str]]
NAMES = ["cat", "dog", "fish", "crane", "jean"]
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.75, "resample": 2,
    "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip
TIMM = {"architecture": "resnet18", "num_classes": 5, "label_names": NAMES,
        "pretrained_cfg": {"input_size": [3, 24, 24], "crop_pct": 0.75, "mean": [0.1, 0.2, 0.3]}}  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line in a folder with a photo: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    pixels = np.random.default_rng(4).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")

    def go(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return go


def folder(kind: str) -> Path:
    """``net/`` as Optimum or timm writes it."""
    Path("net").mkdir()
    onnx.save_model(tiny_models.free_size(), "net/model.onnx")
    if kind == "timm":
        Path("net/config.json").write_text(json.dumps(TIMM))
    else:
        Path("net/config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(NAMES)}}))
        Path("net/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return Path("net")


def line(out: str, label: str) -> str:
    (found,) = (line for line in out.splitlines() if line.startswith(f"{label:<10} "))
    return found[11:]


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("optimum", "shorter side to 32, centre 24x24 (bilinear), RGB, (v/255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4], "
                    "NCHW; from preprocessor_config.json (ConvNextImageProcessor)"),
        ("timm", "shorter side to 32, centre 24x24 (bicubic), RGB, (v/255 - [0.1, 0.2, 0.3]) / [0.229, 0.224, 0.225], "
                 "NCHW; from config.json (timm)"),
    ],
)  # fmt: skip
def test_a_folder_just_works(kind: str, recipe: str, run: Run) -> None:
    """The map is that of the array which the recipe gives; recipe and labels are printed and recorded."""
    net = folder(kind)
    code, out, err = run("explain", net, "photo.png", "-t", "fish")
    assert (code, err) == (0, "")
    assert line(out, "model").startswith("model.onnx ")
    assert line(out, "input") == f"image [n, 3, h, w]   {recipe}"
    assert line(out, "labels") == "config.json"
    manifest = json.loads(Path("fgcam_maps/manifest.json").read_text())
    assert (manifest["model"], manifest["labels"], manifest["images"][0]["label"]) == (
        "model.onnx",
        "config.json",
        "fish",
    )
    file = Path(manifest["preprocessing"]["file"])
    assert file == net / ("config.json" if kind == "timm" else "preprocessor_config.json")
    assert manifest["preprocessing"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    chosen = choose(path=net / "model.onnx")
    assert manifest["preprocessing"] == chosen.to_dict()
    x, _ = chosen.apply(Image.open("photo.png"))
    want = Explainer(net / "model.onnx", backend="ort").explain(x[None], target=2).relevance[0]
    np.testing.assert_allclose(np.load("fgcam_maps/photo.npy"), want, rtol=1e-4, atol=1e-7)


def test_inspect_a_folder(run: Run) -> None:
    net = folder("optimum")
    code, out, err = run("inspect", net)
    assert (code, err) == (0, "")
    assert line(out, "pictures").endswith("from preprocessor_config.json (ConvNextImageProcessor)")
    assert line(out, "classes") == "5, named by config.json"
    record = json.loads(run("inspect", net, "--json")[1])
    assert record["file"] == "net/model.onnx"
    assert record["preprocessing"]["short_side"] == 32


def test_what_cannot_be_honoured_is_printed_and_recorded(run: Run) -> None:
    net = folder("optimum")
    Path("net/preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "image_processor_type": "OddProcessor"}))
    Path("net/labels.txt").write_text("x")
    note = "preprocessor_config.json: OddProcessor is not known here, its keys are read as most processors read them"
    for words in (["inspect", net], ["explain", net, "photo.png"]):
        code, out, _ = run(*words)
        assert code == 0
        assert f"note       {note}\n" in out
    assert note in json.loads(Path("fgcam_maps/manifest.json").read_text())["notes"]


def test_a_folder_of_several_models_is_one_screen(run: Run) -> None:
    net = folder("optimum")
    Path("net/model.onnx").rename("net/model_a.onnx")
    Path("net/model_b.onnx").write_bytes(Path("net/model_a.onnx").read_bytes())
    for words in (["inspect", net], ["explain", net, "photo.png"]):
        assert run(*words) == (
            1, "", "ModelError: net holds 2 models, and none is called model.onnx\n"
                   "  known   model_a.onnx, model_b.onnx\n  next    give the file: net/model_a.onnx\n",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "source", "want"),
    [
        (["--preprocess", "tf,size=16"], "--preprocess tf,size=16 over {beside}",
         {"size": [16, 16], "short_side": 21, "scale": 1 / 127.5, "mean": [1, 1, 1]}),
        (["--preprocess", "crop=20,mean=0.5", "--mean", "0.25", "--scale", "1"],
         "options (scale, mean) over --preprocess crop=20,mean=0.5 over {beside}",
         {"size": [20, 20], "short_side": 27, "mean": [0.25] * 3, "scale": 1}),
        (["--preprocess", "mine.json"], "--preprocess mine.json over {beside}",
         {"size": [12, 14], "resize": "stretch", "short_side": None, "color": "BGR", "mean": [0.6, 0.5, 0.4],
          "file": "mine.json"}),
    ],
    ids=["a preset", "under the single options", "a file"],
)  # fmt: skip
@pytest.mark.parametrize("compared", [False, True], ids=["one method", "a grid"])
def test_preprocess(words: list[str], source: str, want: dict[str, Any], compared: bool, run: Run) -> None:
    net = folder("optimum")
    mine = {"size": [12, 14], "resize": "stretch", "color": "BGR", "mean": [0.6, 0.5, 0.4]}
    Path("mine.json").write_text(json.dumps(mine))
    code, _, err = run("explain", net, "photo.png", *words, *(["-m", "grad-cam,layer-cam"] if compared else []))
    assert (code, err) == (0, "")
    recorded = json.loads(Path("fgcam_maps/manifest.json").read_text())["preprocessing"]
    assert recorded["source"] == source.replace("{beside}", "preprocessor_config.json (ConvNextImageProcessor)")
    assert {key: recorded[key] for key in want} == want


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--preprocess", "cafe"], 2, "OptionError: --preprocess is 'cafe'\n"
         "  known   a preset (imagenet, torch, tf, inception, caffe, unit, none), key=value words, or a JSON file\n"
         "  next    did you mean 'caffe'?\n"),
        (["--preprocess", "none.json"], 1, "ModelError: 'none.json' cannot be read: No such file or directory\n"
         "  next    correct the file of --preprocess\n"),
        (["--preprocess", "layout=NHWC"], 2, "OptionError: layout NHWC contradicts the model, whose input is NCHW\n"
         "  known   its input [n, c, h, w] = [n, 3, 16, 12]; as NHWC it would have 12 channels\n"
         "  next    leave layout out: the model's own is taken\n"),
        (["--preprocess", "size=20"], 2, "OptionError: size 20x20 does not fit the model\n"
         "  known   its input [n, c, h, w] = [n, 3, 16, 12]\n"
         "  next    leave size out: the model's own size is taken\n"),
        (["--preprocess", "mean=1,2,3,4"], 2, "OptionError: mean has 4 values for 3 channels\n"),
        (["--labels", "labels.txt"], 1, "ModelError: 'labels.txt' has 2 labels, the model has 5 classes\n"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_what_is_refused(words: list[str], code: int, message: str, run: Run) -> None:
    onnx.save_model(tiny_models.vgg(), "model.onnx")
    Path("labels.txt").write_text("a\nb")
    assert run("explain", "model.onnx", "photo.png", *words) == (code, "", message)


def test_a_layout_as_stated(run: Run) -> None:
    """Nothing in the input's shape says which axis is which: the array is made as the user says, and a note is left."""
    net = tiny_models.Net((1, 3, 3, 3))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    onnx.save_model(net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8)), "model.onnx")
    code, out, err = run("explain", "model.onnx", "photo.png", "--preprocess", "layout=NHWC")
    assert (code, err) == (0, "")
    assert ", NHWC; from " in line(out, "input")
    assert "note       layout NHWC is as stated; the graph reads its input as NCHW\n" in out
