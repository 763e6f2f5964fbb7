"""The command line: its words, its exit codes, its files. The engine is a fake at first, and real further down."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dense_models
import numpy as np
import pytest
import tiny_models
from PIL import Image

import fgcam_onnx
from fgcam_onnx import imaging, registry
from fgcam_onnx.cli import main
from fgcam_onnx.coverage import Coverage, CoverageRow
from fgcam_onnx.errors import UnsupportedOpError
from fgcam_onnx.explanation import Explanation
from fgcam_onnx.feeds import Feeds
from fgcam_onnx.ledger import Ledger, LedgerRow
from fgcam_onnx.preprocessing import choose

RNG = np.random.default_rng(5)
NAMES = ("red thing", "n02085620 green, verdant", "blue")
Run = Callable[..., tuple[int, str, str]]


class FakeExplainer:
    """A model of three classes that answers by the mean colour of the picture."""

    shape: tuple[Any, ...] = ("n", 3, 8, 12)
    layout = "NCHW"
    names: list[str] | None = list(NAMES)  # noqa: RUF012
    gaps: tuple[Any, ...] = ()
    broken: Exception | None = None

    def __init__(
        self, model: Any, *, backend: str = "auto", precision: str = "float32", providers: Any = None,
        input: Any = None, output: Any = None,
    ) -> None:  # fmt: skip
        self.path, self.metadata, self.sha256 = Path(model), {"labels": json.dumps(self.names)}, "5e" * 32
        self.input_name, self.input_shape, self.input_dtype = "data", self.shape, "float32"
        self.backend, self.precision, self.providers = backend, precision, providers or ["CPUExecutionProvider"]
        self.notes, self.default_layer, self.num_classes = ["a trailing Softmax is left out"], "relu2", 3
        self.labels, self.labels_source = self.names, "a fake" if self.names else None
        self.output_name, self.output_shape, self.output_axes = "scores", ("n", 3), ("axis 1",)
        self.dense, self.other_inputs, self.outputs = False, {}, {"scores": ("n", 3)}
        self.model_precision = "float16"
        self.calls: list[dict[str, Any]] = []
        FakeExplainer.last = self

    last: FakeExplainer

    def layers(self) -> list[Any]:
        return [
            SimpleNamespace(name="data", node="input", shape=("n", 3, 8, 12), scale=1.0, default=False),
            SimpleNamespace(name="relu2", node="relu_2", shape=("n", 16, 2, 3), scale=0.25, default=True),
        ]

    def coverage(self) -> Any:
        row = CoverageRow("conv1", "Conv", 11, "z_box", leaks="zero denominators", folded=("bn1",))
        return Coverage((row, *self.gaps))

    def feeds(self, inputs: Any, n: int) -> Feeds:
        return Feeds(inputs, frozenset(inputs))

    def explain(
        self, x: Any, *, target: Any = None, inputs: Any = None, progress: Any = None, **options: Any
    ) -> Explanation:
        if self.broken is not None:
            raise self.broken
        self.calls.append({"x": x, "target": target, **options})
        n, axes = len(x), (2, 3) if self.layout == "NCHW" else (1, 2)
        logits = x.mean(axis=axes).astype(np.float32)
        chosen = logits.argmax(1) if target is None else np.asarray(target)
        one = np.ones(n)
        ledger = Ledger((LedgerRow("conv1", "Conv", "z_box", one, 0.75 * one, 0.25 * one, 0.25 * one),), one, one, one)
        return Explanation(
            relevance=np.arange(n * 24, dtype=np.float32).reshape(n, 4, 6),
            logits=logits, target=chosen.astype(np.int64), method=options["method"], layer=options["layer"] or "input",
            start="relu2", ledger=ledger, input_size=(8, 12), provenance={"fgcam_onnx": "0.1.0"},
        )  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")

    def go(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return go


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeExplainer]:
    class Fake(FakeExplainer):
        pass

    monkeypatch.setattr(fgcam_onnx, "Explainer", Fake, raising=False)
    return Fake


def picture(path: Path, colour: tuple[int, int, int] = (200, 10, 20), size: tuple[int, int] = (30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# ---------------------------------------------------------------------------------------------------- the door


def test_help_names_the_commands(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for word in ("demo", "inspect", "explain", "ops", "What did this network look at?"):
        assert word in out
    assert run()[0] in (0, 2)  # typer changed its mind about this between versions


@pytest.mark.parametrize(
    "words", [["explain"], ["explain", "m.onnx"], ["inspect"], ["nonsense"], ["ops", "--nonsense"]]
)
def test_usage_errors_end_with_2(words: list[str], run: Run) -> None:
    code, out, _ = run(*words)
    assert (code, out) == (2, "")


def test_help_loads_neither_numpy_nor_a_runtime() -> None:
    heavy = {"numpy", "onnx", "onnxruntime", "PIL", "cupy"}
    code = f"import sys, fgcam_onnx.cli; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_is_one_screen_on_stderr(run: Run, fake: type[FakeExplainer]) -> None:
    fake.broken = UnsupportedOpError(
        "no rule for Softplus-1", at="node 'a'", known="Relu", next="add rules/softplus.py"
    )
    code, out, err = run("explain", "m.onnx", picture(Path("a.png")), "--quiet")
    assert (code, out) == (1, "")
    assert err == (
        "UnsupportedOpError: no rule for Softplus-1\n"
        "  at      node 'a'\n  known   Relu\n  next    add rules/softplus.py\n"
    )
    assert not Path("fgcam_maps").exists()
    with pytest.raises(UnsupportedOpError):
        main(["explain", "m.onnx", "a.png", "--debug"])


def test_other_errors_are_not_swallowed(run: Run, fake: type[FakeExplainer]) -> None:
    fake.broken = ZeroDivisionError("a bug of ours")
    picture(Path("a.png"))
    with pytest.raises(ZeroDivisionError):
        main(["explain", "m.onnx", "a.png"])


def test_an_interrupt_ends_with_130(run: Run, fake: type[FakeExplainer]) -> None:
    fake.broken = KeyboardInterrupt()  # type: ignore[assignment]
    assert run("explain", "m.onnx", picture(Path("a.png")))[0] == 130


# ---------------------------------------------------------------------------------------------------- inspect


def test_inspect(run: Run, fake: type[FakeExplainer]) -> None:
    Path("m.onnx").write_bytes(b"x" * 1234)
    code, out, err = run("inspect", "m.onnx")
    assert (code, err) == (0, "")
    assert out == (
        f"model      m.onnx   1.2 kB   sha256 {'5e' * 32}\n"
        "numbers    float16\n"
        "input      data   [n, 3, 8, 12] NCHW float32\n"
        "pictures   stretched to 8x12 (bilinear), RGB, (v/255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], NCHW; "
        "from the ImageNet default\n"
        "classes    3, named by a fake\n"
        "backend    auto   CPUExecutionProvider\n"
        "note       a trailing Softmax is left out\n"
        "\n"
        "layer  node    shape          scale\n"
        "data   input   [n, 3, 8, 12]  1\n"
        "relu2  relu_2  [n, 16, 2, 3]  0.25   L, where a CAM starts\n"
        "\n"
        "node   op       part  rule   may leak\n"
        "conv1  Conv-11  body  z_box  zero denominators\n"
        "\n"
        "complete: each of the 2 nodes on the path has a rule, 1 once folded\n"
    )


def test_inspect_shows_gaps_first_and_ends_with_1(run: Run, fake: type[FakeExplainer]) -> None:
    Path("m.onnx").write_bytes(b"x")
    gap = CoverageRow("act", "Softplus", 1, None, "no rule for Softplus")
    fake.gaps = (gap,)
    code, out, _ = run("inspect", "m.onnx")
    assert code == 1
    assert out.endswith(
        "node   op          part  rule                        may leak\n"
        "act    Softplus-1  body  none: no rule for Softplus  -\n"
        "conv1  Conv-11     body  z_box                       zero denominators\n"
        "\n"
        "not complete: 1 of the 2 nodes on the path has no rule\n"
    )
    code, out, _ = run("inspect", "m.onnx", "--json")
    record = json.loads(out)
    assert code == 1
    assert record["coverage"]["gaps"] == ["act"]
    assert record["coverage"]["complete"] is False
    assert record["layers"][1] == {
        "name": "relu2",
        "node": "relu_2",
        "shape": ["n", 16, 2, 3],
        "scale": 0.25,
        "default": True,
    }


def test_inspect_a_model_that_takes_no_pictures(run: Run, fake: type[FakeExplainer]) -> None:
    Path("m.onnx").write_bytes(b"x")
    fake.shape, fake.layout = (1, 1, 100), "NCW"
    code, out, _ = run("inspect", "m.onnx")
    assert code == 0
    assert "pictures   the model does not take pictures\n" in out
    assert json.loads(run("inspect", "m.onnx", "--json")[1])["preprocessing"] is None


# ---------------------------------------------------------------------------------------------------- ops


@pytest.fixture
def two_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        registry.OpRow("Conv", (1, 11), {"relevance": "z_plus", "gradient": "gradient"}, "zero denominators"),
        registry.OpRow("MaxPool", (1,), {"relevance": "winner | winner_positive"}, "conserved"),
    ]
    monkeypatch.setattr(registry, "table", lambda: rows)
    monkeypatch.setattr(registry, "decided_against", lambda: {"there is no share": ("Softmax", "Hardmax")})


def test_ops(run: Run, two_ops: None) -> None:
    assert run("ops") == (
        0,
        "op       since opset  relevance                 gradient  leaks\n"
        "Conv     1, 11        z_plus                    gradient  zero denominators\n"
        "MaxPool  1            winner | winner_positive  -         conserved\n"
        "\n"
        "2 operators\n"
        "none: Softmax, Hardmax: there is no share\n",
        "",
    )


def test_ops_for_programs_and_pages(run: Run, two_ops: None) -> None:
    assert json.loads(run("ops", "--json")[1])[0] == {
        "op": "Conv", "since": [1, 11], "leaks": "zero denominators",
        "rules": {"relevance": "z_plus", "gradient": "gradient"},
    }  # fmt: skip
    assert run("ops", "--markdown")[1] == (
        "| op | since opset | relevance | gradient | leaks |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| Conv | 1, 11 | z_plus | gradient | zero denominators |\n"
        "| MaxPool | 1 | winner \\| winner_positive | - | conserved |\n"
    )


# ---------------------------------------------------------------------------------------------------- explain


def test_explain_says_what_it_chose(run: Run, fake: type[FakeExplainer]) -> None:
    code, out, err = run("explain", "m.onnx", picture(Path("a.png")), "--scale", "1/255", "--mean", "0", "--std", "1")
    assert (code, err) == (0, "")
    # softmax of (200, 10, 20) / 255
    assert out == (
        f"model      m.onnx   sha256 {'5e' * 6}\n"
        "numbers    float16\n"
        "input      data [n, 3, 8, 12]   stretched to 8x12 (bilinear), RGB, v/255, NCHW; "
        "from options (scale, mean, std) over the ImageNet default\n"
        f"method     fg-grad-cam   {summary()}\n"
        "layer      input [4, 6]\n"
        "L          relu2\n"
        "labels     a fake\n"
        "backend    auto   CPUExecutionProvider\n"
        "note       a trailing Softmax is left out\n"
        "\n"
        "a.png -> fgcam_maps/a.png\n"
        "  class    0 · red thing   p = 0.5080   then 2 blue 0.251, 1 green 0.241\n"
        "  ledger   leaked 25 %   in the map 2.8e+04 %   residual 0.0e+00\n"  # the fake's map is any numbers
        "wrote 1 panel, maps and manifest.json to fgcam_maps\n"
    )
    assert sorted(p.name for p in Path("fgcam_maps").iterdir()) == ["a.npy", "a.png", "manifest.json"]


def test_explain_hands_on_where_and_how_precisely(run: Run, fake: type[FakeExplainer]) -> None:
    code, out, err = run("explain", "m.onnx", picture(Path("a.png")), "--backend", "numpy", "--precision", "float64")
    assert (code, err) == (0, "")
    assert (fake.last.backend, fake.last.precision) == ("numpy", "float64")
    assert "backend    numpy   float64   CPUExecutionProvider\n" in out


def summary() -> str:
    from fgcam_onnx.methods import METHODS

    return METHODS["fg-grad-cam"].summary


def test_explain_writes_panel_map_and_manifest(run: Run, fake: type[FakeExplainer]) -> None:
    picture(Path("in/b.png"), (0, 0, 250))
    picture(Path("in/a.jpg"), (0, 250, 0))
    Path("in/notes.txt").write_text("not a picture")
    picture(Path("c.png"))
    code, out, _ = run("explain", "m.onnx", "in", "c.png", "-o", "out/deep", "-m", "lrp", "--layer", "relu1", "--json")
    assert code == 0
    record = json.loads(out)
    manifest = json.loads(Path("out/deep/manifest.json").read_text())
    assert [image["image"] for image in manifest["images"]] == ["in/a.jpg", "in/b.png", "c.png"]
    assert [image["label"] for image in manifest["images"]] == ["green", "blue", "red thing"]
    assert (manifest["method"], manifest["layer"], manifest["start"]) == ("lrp", "relu1", "relu2")
    assert manifest["preprocessing"]["size"] == [8, 12]
    assert manifest["images"][0]["ledger"] == {"leaked": 0.25, "in_map": 276.0, "residual": 0.0}
    assert set(manifest["files"]) == {"a.png", "a.npy", "b.png", "b.npy", "c.png", "c.npy"}
    assert record["output"] == "out/deep"
    assert record["images"] == manifest["images"]
    assert np.load("out/deep/b.npy").shape == (4, 6)
    with Image.open("out/deep/b.png") as panel:
        assert panel.width > 900


def test_explain_targets(run: Run, fake: type[FakeExplainer]) -> None:
    for name in "ab":
        picture(Path(f"{name}.png"))
    words = ["explain", "m.onnx", "a.png", "b.png", "-q"]
    assert run(*words)[0] == 0
    assert [call["target"] for call in fake.last.calls] == [None, None]
    assert run(*words, "-t", "VERDANT")[0] == 0
    assert [call["target"] for call in fake.last.calls] == [[1], [1]]
    assert run(*words, "-t", "2", "-t", "red")[0] == 0
    assert [call["target"] for call in fake.last.calls] == [[2], [0]]
    assert run(*words, "-t", "1", "-t", "1", "-t", "1") == (
        2, "", "TargetError: 3 targets for 2 pictures\n  next    give --target once, or once for each picture\n"
    )  # fmt: skip
    assert run(*words, "-t", "bleu") == (
        2, "", "TargetError: no class is called 'bleu'\n  known   3 classes, 0 to 2\n  next    did you mean 'blue'?\n"
    )  # fmt: skip
    Path("names.txt").write_text("x\ny\nz\n")
    assert run(*words, "-t", "z", "--labels", "names.txt")[0] == 0
    assert fake.last.calls[0]["target"] == [2]


def test_explain_hands_its_options_on(run: Run, fake: type[FakeExplainer]) -> None:
    words = ["-O", "ratio=0.2", "-O", "first-layer=flat", "-O", "seed=7", "--denoise", "--start", "relu1"]
    assert run("explain", "m.onnx", picture(Path("a.png")), "-q", *words)[0] == 0
    call = fake.last.calls[0]
    assert {key: call[key] for key in ("ratio", "first_layer", "seed", "denoise", "start", "method", "layer")} == {
        "ratio": 0.2, "first_layer": "flat", "seed": 7, "denoise": True, "start": "relu1", "method": "fg-grad-cam",
        "layer": None,
    }  # fmt: skip
    assert run("explain", "m.onnx", "a.png", "-O", "ratio") == (
        2, "", "OptionError: --option 'ratio' is not NAME=VALUE\n  next    for example: -O ratio=0.2\n"
    )  # fmt: skip


@pytest.mark.parametrize(("fixed", "wanted", "sizes"), [("n", 2, [2, 2, 1]), (4, 4, [4, 1]), (1, 1, [1] * 5)])
def test_explain_in_batches(fixed: Any, wanted: int, sizes: list[int], run: Run, fake: type[FakeExplainer]) -> None:
    fake.shape = (fixed, 3, 8, 12)
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        picture(Path(name), (0, 0, 250) if i % 2 else (250, 0, 0))
    code, out, _ = run("explain", "m.onnx", *names, "--batch-size", wanted, "--json", "-t", 1)
    assert code == 0
    assert [len(call["x"]) for call in fake.last.calls] == sizes
    assert [image["top"][0]["class"] for image in json.loads(out)["images"]] == [0, 2, 0, 2, 0]
    assert all(call["batch_size"] == wanted for call in fake.last.calls)
    if fixed == 4:
        run("explain", "m.onnx", *names, "-q")
        assert [len(call["x"]) for call in fake.last.calls] == sizes
        assert all("batch_size" not in call for call in fake.last.calls)
        assert run("explain", "m.onnx", "0.png", "--batch-size", 3)[2] == (
            "OptionError: --batch-size 3 does not fit the model\n  known   its batch is fixed at 4\n"
        )


def test_stems_that_clash_are_numbered(run: Run, fake: type[FakeExplainer]) -> None:
    for name in ("x/cat.png", "x/cat.jpg", "y/CAT.png", "y/cat_2.png"):
        picture(Path(name))
    assert run("explain", "m.onnx", "x", "y", "-q", "-o", "out")[0] == 0
    assert sorted(p.name for p in Path("out").glob("*.png")) == ["CAT_3.png", "cat.png", "cat_2.png", "cat_2_2.png"]


def test_a_result_never_overwrites_a_picture(run: Run, fake: type[FakeExplainer]) -> None:
    before = picture(Path("in/cat.png")).read_bytes()
    code, _, err = run("explain", "m.onnx", "in", "-o", "in")
    assert (code, err) == (
        1,
        "OutputError: the result 'in/cat.png' would overwrite the picture of that name\n"
        "  next    choose another folder: -o DIR\n",
    )
    assert Path("in/cat.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.png"], 1, "ImageError: there is no picture 'none.png'\n  next    check the path\n"),
        (["empty"], 1, "ImageError: the folder 'empty' holds no pictures\n"
                       "  known   .jpg .jpeg .png .bmp .gif .tif .tiff .webp .ppm .pgm\n"),
        (["a.txt"], 1, "ImageError: 'a.txt' is not a picture that Pillow can read\n  known   5 bytes\n"),
        (["a.png", "--size", "8x8"], 2, "OptionError: size 8x8 does not fit the model\n"
         "  known   its input [n, c, h, w] = [n, 3, 8, 12]\n"
         "  next    leave --size out: the model's own size is taken\n"),
        (["a.png", "--size", "8x"], 2, "OptionError: --size is '8x'\n"
         "  known   one number of pixels, or height x width: 224 or 224x320\n"),
        (["a.png", "--mean", "1,a"], 2, "OptionError: --mean is 'a'\n  known   numbers with commas between them\n"),
        (["a.png", "--scale", "1/0"], 2, "OptionError: --scale is '1/0'\n  known   a number or a fraction\n"),
        (["a.png", "--colormap", "viridis"], 2, "OptionError: no colormap 'viridis'\n"
         "  known   jet, ember, gray, bwr\n"),
        (["a.png", "--alpha", "2"], 2, "OptionError: alpha is 2.0\n"
         "  known   0 shows the picture alone, 1 the map alone\n"),
        (["a.png", "--labels", "none.txt"], 1, "ModelError: 'none.txt' cannot be read: No such file or directory\n"
         "  next    check the path and its permissions\n"),
        (["a.png", "-o", "a.txt"], 1, "OutputError: cannot write to 'a.txt': File exists\n"
         "  next    choose another folder: -o DIR\n"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_what_explain_refuses(words: list[str], code: int, message: str, run: Run, fake: type[FakeExplainer]) -> None:
    picture(Path("a.png"))
    Path("empty").mkdir()
    Path("a.txt").write_text("words")
    assert run("explain", "m.onnx", *words) == (code, "", message)
    assert not Path("fgcam_maps").exists()


def test_a_bad_picture_in_the_middle_leaves_whole_files_and_no_manifest(run: Run, fake: type[FakeExplainer]) -> None:
    whole = picture(Path("a.png"), size=(300, 300)).read_bytes()
    Path("b.png").write_bytes(whole[: len(whole) // 2])
    picture(Path("c.png"))
    code, _, err = run("explain", "m.onnx", "a.png", "b.png", "c.png", "-q")
    assert code == 1
    assert err.startswith("ImageError: 'b.png' cannot be read to its end\n")
    assert sorted(p.name for p in Path("fgcam_maps").iterdir()) == ["a.npy", "a.png"]


def test_a_model_without_labels(run: Run, fake: type[FakeExplainer]) -> None:
    fake.names = None
    _, out, _ = run("explain", "m.onnx", picture(Path("a.png")), "--top", 1)
    assert "labels     none found: --labels FILE\n" in out
    assert "  class    class 0   p = 0." in out


# ---------------------------------------------------------------------------------------------------- the real engine


def segmenter(path: Path, **metadata: Any) -> Path:
    """Five classes for each cell of 16 x 12, as exported channels last behind a Softmax."""
    from onnx import save

    save(dense_models.segmenter(nhwc=True, end="Softmax", **metadata), path)
    return path


@pytest.mark.parametrize(
    ("word", "target", "said"),
    [
        ("10,5,3", (10, 5, 3), {"y": 10, "x": 5, "class": 3}),
        ("10, -1, car", (10, 11, 2), {"y": 10, "x": 11, "class": 2}),
        (":,2:4,1", (None, slice(2, 4), 1), {"y": ":", "x": "2:4", "class": 1}),
    ],
)
def test_a_place_of_a_dense_output(word: str, target: Any, said: Any, run: Run) -> None:
    """What --target writes is what target= means; the record has axes and a score, and no probability."""
    model = segmenter(Path("m.onnx"), labels='["sky", "road", "car", "tree", "dog"]')
    pictures = [noise(Path(f"{i}.png"), i) for i in range(2)]
    plain = ["--size", "16x12", "--scale", 1, "--mean", 0, "--std", 1]
    code, out, err = run("explain", model, *pictures, "--target", word, "-m", "fg-layer-cam", *plain, "--json")
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    recipe = choose({"size": [16, 12], "scale": 1, "mean": 0, "std": 1})
    x = np.stack([recipe.apply(imaging.read(path))[0] for path in pictures])
    e = fgcam_onnx.Explainer(model).explain(x, target=target, method="fg-layer-cam")
    for i, record in enumerate(manifest["images"]):
        np.testing.assert_allclose(np.load(f"fgcam_maps/{i}.npy"), e.relevance[i], rtol=1e-3, atol=1e-5)
        assert list(record["target"].items()) == list(said.items())
        assert record["label"] == ["sky", "road", "car", "tree", "dog"][e.target[i][2]]
        assert record["score"] == pytest.approx(float(e.score[i]), rel=1e-4)
        assert "probability" not in record
    code, out, _ = run("explain", model, pictures[0], "--target", word)
    words = ", ".join(f"{axis} {entry}" for axis, entry in said.items())
    assert code == 0
    assert f"  target   {words} · {record['label']}   score = " in out


def test_labels_of_a_file_for_a_dense_output(run: Run) -> None:
    model, image = segmenter(Path("m.onnx")), noise(Path("a.png"), 0)
    Path("names.txt").write_text("sky\nroad\ncar\ntree\ndog\n")
    code, out, _ = run("explain", model, image, "-t", "0,1,car", "--labels", "names.txt", "--json")
    assert code == 0
    (record,) = json.loads(out)["images"]
    assert (record["target"], record["label"]) == ({"y": 0, "x": 1, "class": 2}, "car")


def test_words_that_name_no_place(run: Run) -> None:
    model, image = segmenter(Path("m.onnx")), noise(Path("a.png"), 0)
    for words, text in (
        ([], "the output is dense, and no target does not say which of its scores to explain"),
        (["-t", "3"], "target (3) has 1 entries, and the output 3 axes after the batch"),
        (["-t", "16,0,0"], "target (16, 0, 0) is outside the output: 16 on the axis y, of size 16"),
        (["-t", "0,0,cat"], "target (0, 0, cat) has the word 'cat' on the axis class"),
    ):
        code, out, err = run("explain", model, image, *words, "-q")
        assert (code, out) == (2, "")
        assert err.startswith(f"TargetError: {text}\n")
        assert not Path("fgcam_maps").exists()


def test_inspect_a_dense_output(run: Run) -> None:
    model = segmenter(Path("m.onnx"))
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "output     to_nhwc.y   [" in out
    assert ", 16, 12, 5]: a target is (y, x, class)\n" in out
    record = json.loads(run("inspect", model, "--json")[1])
    assert record["output"]["axes"] == ["y", "x", "class"]
    assert (record["output"]["dense"], record["classes"]) == (True, 5)


def test_several_inputs_and_outputs(run: Run) -> None:
    """--input, --output and --inputs: a row for each picture, cut to the pictures of each batch."""
    from onnx import save

    net = tiny_models.Net()
    side = net.input("side", ("n", 6, 16, 12))
    x = net.node("Add", "join", net.relu("relu1", net.conv("conv1", "image", 3, 6)), side)
    first = net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8)
    second = net.node("Gemm", "other", "flat.y", net.random(8, 2))
    save(net.model(first, second), "m.onnx")
    array = RNG.normal(size=(3, 6, 16, 12)).astype(np.float32)
    np.save("side.npy", array)
    pictures = [noise(Path(f"{i}.png"), i) for i in range(3)]
    words = ["--input", "image", "--output", "other.y", "--inputs", "side=side.npy", "-t", 1]
    recipe = choose({"size": [16, 12]})
    x = np.stack([recipe.apply(imaging.read(path))[0] for path in pictures])
    explainer = fgcam_onnx.Explainer("m.onnx", input="image", output="other.y")
    e = explainer.explain(x, inputs={"side": array}, target=1)
    for batch in (1, 2):
        code, out, err = run("explain", "m.onnx", *pictures, *words, "--json", "--batch-size", batch)
        assert (code, err) == (0, "")
        manifest = json.loads(out)
        assert manifest["provenance"]["input"] == "image"
        assert manifest["provenance"]["output"] == "other.y"
        for i, record in enumerate(manifest["images"]):
            np.testing.assert_allclose(np.load(f"fgcam_maps/{i}.npy"), e.relevance[i], rtol=1e-3, atol=1e-6)
            share = e.ledger.aside_absolute["side"][i] / e.ledger.start_absolute[i]
            assert record["ledger"]["to side"] == pytest.approx(share, rel=1e-3)
    code, out, _ = run("explain", "m.onnx", pictures[0], *words[:4], "--inputs", "side=one.npy")
    assert code == 1
    np.save("one.npy", array[:1])
    code, out, _ = run("explain", "m.onnx", *pictures, *words[:4], "--inputs", "side=one.npy")
    assert code == 0
    assert "   to side " in out
    code, out, _ = run("inspect", "m.onnx", "--input", "image")
    assert code == 0
    assert "inputs     beside the picture: side [n, 6, 16, 12]\n" in out
    assert "outputs    fc.y [n, 5], other.y [n, 2]\n" in out
    for wrong, text in (
        (["--inputs", "side"], "OptionError: --inputs 'side' is not NAME=FILE.npy\n"),
        (["--inputs", "side=m.onnx"], "InputError: the array for input 'side' cannot be read from 'm.onnx'\n"),
        ([], "InputError: input 'side' is missing: the model takes it beside the picture\n"),
    ):
        assert run("explain", "m.onnx", pictures[0], "--input", "image", *wrong)[2].startswith(text)
    assert run("explain", "m.onnx", pictures[0])[2].startswith("ModelError: which input of the model is the picture")


def tiny(path: Path, activation: str = "Relu", **metadata: Any) -> Path:
    """Two convolutions of random weights, global average pool, three classes; a free batch of 24 x 16 pictures."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["data", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["c2"], ["r2"], name="act2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool2"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], name="classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 24, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [weight("w1", 8, 3, 3, 3), weight("w2", 6, 8, 3, 3), weight("w3", 3, 6)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    save(model, path)
    return path


RECIPE = {"size": [24, 16], "resize": "stretch", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3, "color": "BGR"}


def noise(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("method", ["fg-grad-cam", "grad-cam", "fg-layer-cam", "score-cam"])
def test_explain_for_real(method: str, run: Run) -> None:
    """What lands in the folder is what the library gives for the same array."""
    model = tiny(Path("m.onnx"), labels=list(NAMES), preprocessing=RECIPE)
    pictures = [noise(Path(f"{i}.png"), i) for i in range(3)]
    code, out, err = run("explain", model, *pictures, "-m", method, "-t", "blue", "--json", "--batch-size", 2)
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    assert manifest["preprocessing"]["source"] == "the model's metadata"
    assert manifest["provenance"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    recipe = choose(metadata={"preprocessing": json.dumps(RECIPE)})
    x = np.stack([recipe.apply(imaging.read(path))[0] for path in pictures])
    e = fgcam_onnx.Explainer(model).explain(x, method=method, target="blue")
    for i, record in enumerate(manifest["images"]):
        np.testing.assert_allclose(np.load(f"fgcam_maps/{i}.npy"), e.relevance[i], rtol=1e-4, atol=1e-7)
        assert (record["target"], record["label"]) == (2, "blue")
        assert record["probability"] == pytest.approx(e.probabilities[i, 2], rel=1e-5)
        assert record["ledger"]["residual"] < 1e-5
    assert max(record["ledger"]["leaked"] for record in manifest["images"]) == pytest.approx(e.ledger.leaked, abs=1e-6)


def test_save_for_real(tmp_path: Path) -> None:
    model = tiny(tmp_path / "m.onnx")
    x = RNG.normal(size=(2, 3, 24, 16)).astype(np.float32)
    e = fgcam_onnx.Explainer(model).explain(x)
    folder = e.save(tmp_path / "out", RNG.integers(0, 256, (2, 48, 32, 3), dtype=np.uint8))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"sha256", "fgcam_onnx", "onnx", "onnxruntime", "numpy", "providers", "backend"} <= set(
        manifest["provenance"]
    )
    assert [row["node"] for row in manifest["ledger"]["rows"]] == ["act2", "conv2", "pool1", "relu1", "conv1"]
    rows = manifest["ledger"]["rows"]
    np.testing.assert_allclose(
        np.array(rows[0]["relevance_in"]) - np.sum([row["leaked"] for row in rows], axis=0),
        e.relevance.sum(axis=(1, 2)),
        atol=1e-5 * max(manifest["ledger"]["start_absolute"]),
    )


def test_inspect_for_real(run: Run) -> None:
    model = tiny(Path("m.onnx"), labels=list(NAMES), preprocessing=RECIPE)
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "BGR, (v/255 - 0.5) / 0.25, NCHW; from the model's metadata\n" in out
    assert "classes    3, named by the model's metadata key 'labels'\n" in out
    record = json.loads(run("inspect", model, "--json")[1])
    assert record["default_layer"] in [layer["name"] for layer in record["layers"]]
    assert run("explain", model, noise(Path("a.png"), 0), "-q", "--layer", record["layers"][1]["name"])[0] == 0


def test_a_gap_for_real(run: Run) -> None:
    """A node without a rule: inspect shows it and fails; explain names it before anything runs."""
    model = tiny(Path("m.onnx"), activation="Sin")
    code, out, _ = run("inspect", model)
    assert code == 1
    assert "not complete: 1 of the " in out
    code, out, err = run("explain", model, noise(Path("a.png"), 0))
    assert (code, out) == (1, "")
    assert err.startswith("UnsupportedOpError: ")
    assert "Sin" in err
    assert "act2" in err
    assert not Path("fgcam_maps").exists()


def test_words_the_engine_does_not_know(run: Run) -> None:
    model, image = tiny(Path("m.onnx")), noise(Path("a.png"), 0)
    for words, kind in (
        (["-m", "fg-gradcam"], "MethodError"),
        (["--layer", "pool9"], "LayerError"),
        (["-t", "3"], "TargetError"),
        (["--backend", "tpu"], "OptionError"),
        (["-O", "first_layer=zc"], "OptionError"),
    ):
        code, out, err = run("explain", model, image, *words)
        assert (out, err.split(":")[0]) == ("", kind)
        assert code == 2
        assert not Path("fgcam_maps").exists()
    assert run("explain", "none.onnx", image)[0] == 1


def test_ops_for_real(run: Run) -> None:
    rows = {row["op"]: row for row in json.loads(run("ops", "--json")[1])}
    assert {"Conv", "Gemm", "MaxPool", "Add", "Relu", "GlobalAveragePool", "Concat"} <= set(rows)
    assert rows["Conv"]["since"] == sorted(rows["Conv"]["since"])
    assert len(run("ops", "--markdown")[1].splitlines()) == 2 + len(rows)


def test_demo(run: Run) -> None:
    """The story that it tells, as numbers: the class moves the map, and the cheat's map lies on the badge."""
    code, out, err = run("demo", "-o", "out")
    assert (code, err) == (0, "")
    assert "why sailboat?" in out
    assert out.endswith("Look at out/poster.png, then try your own: fgcam explain MODEL.onnx PHOTO.jpg\n")
    with Image.open("out/poster.png") as poster:
        assert poster.width > 1200
    code, out, err = run("demo", "-o", "out", "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    for sight in record["classes"]:
        assert sight["shares"][sight["class"]] > 0.7
        assert sight["ledger"]["residual"] < 1e-5
    for sight in record["badges"]:
        assert (sight["shares"]["badge"] > 0.5) == (sight["network"] == "cheat")
        assert Path("out", f"{sight['picture']}.{sight['network']}.{sight['class']}.png").is_file()
    assert run("demo", "--method", "grad-cam")[0] == 0


def test_a_deployed_model_and_a_photograph(run: Run, test_data: Path) -> None:
    recipe = ["--color", "BGR", "--scale", 1, "--mean", "104,117,123", "--std", 1, "--short-side", 259]
    labels = test_data / "models" / "imagenet1000_labels.txt"
    model = test_data / "models" / "squeezenet_v1.0_caffe.onnx"
    picture = test_data / "images" / "n02106550_Rottweiler.jpg"
    code, out, err = run("explain", model, picture, *recipe, "--labels", labels, "--json", "-t", "rottweiler")
    assert (code, err) == (0, "")
    (record,) = json.loads(out)["images"]
    assert (record["target"], record["label"], record["top"][0]["class"]) == (234, "Rottweiler", 234)
    assert record["ledger"]["residual"] < 1e-5
    assert "doubt" not in record
    assert np.isfinite(np.load("fgcam_maps/n02106550_Rottweiler.npy")).all()


@pytest.mark.parametrize("words", [[], ["-t", "top2"], ["--method", "grad-cam,gradient"]])
def test_a_picture_in_another_range_than_in_training(words: list[str], run: Run, test_data: Path) -> None:
    """A network from Caffe wants BGR of 0 to 255; with anything else no class stands out, and the user is told."""
    model = test_data / "models" / "squeezenet_v1.0_caffe.onnx"
    picture = test_data / "images" / "n02106550_Rottweiler.jpg"
    code, out, _ = run("explain", model, picture, *words)
    assert code == 0
    assert "no class stands out: the most likely of 1000 has p = 0.0" in " ".join(out.split())
    assert "no class stands out" in Path("fgcam_maps", "manifest.json").read_text(encoding="utf-8")
