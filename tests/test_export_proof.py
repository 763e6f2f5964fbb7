"""What stands between a converter and the target: the proof, the record, and errors that leave no file.

No framework here: the source is a NumPy function, the converter writes a graph by hand.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx import Explainer, preprocessing
from fgcam_onnx.errors import (
    ExportError,
    FgcamError,
    MissingFrameworkError,
    ModelError,
    OptionError,
    OutputError,
)
from fgcam_onnx.exporters import base, dispatch, packages, proof
from fgcam_onnx.exporters.base import Source, write
from fgcam_onnx.preprocessing import Preprocessing

RNG = np.random.default_rng(3)
KERNEL, DENSE = (RNG.normal(size=shape).astype(np.float32) for shape in ((64, 3, 1, 1), (64, 5)))
SHAPE = (3, 6, 7)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}


def scores(x: Any) -> Any:
    hidden = np.maximum(np.einsum("oi,nihw->nohw", KERNEL[:, :, 0, 0], x), 0)
    return hidden.mean((2, 3)) @ DENSE


def graph(change: Callable[[onnx.ModelProto], None] | None = None, batch: int | str = "n") -> onnx.ModelProto:
    """The same as ONNX; ``change`` is the converter's mistake."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["z"], name="conv"),
        helper.make_node("Relu", ["z"], ["hidden"], name="relu"),
        helper.make_node("GlobalAveragePool", ["hidden"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"], name="matmul"),
    ]
    ends = [
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
    ]
    weights = [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(DENSE, "dense")]
    made = helper.make_model(
        helper.make_graph(nodes, "net", *ends, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    helper.set_model_props(made, {"producer's own": "kept", "source": "old"})
    if change is not None:
        change(made)
    return made


def source(change: Callable[[onnx.ModelProto], None] | None = None, batch: int | str = "n", **fields: Any) -> Source:
    def convert(path: Path) -> Sequence[str]:
        onnx.save_model(graph(change, batch), path)
        return ["a note of the converter"]

    return replace(Source("numpy:net", scores, convert, SHAPE, "NCHW", ("numpy",)), **fields)


def weight(made: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    (tensor,) = (t for t in made.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))


# ---------------------------------------------------------------------------------------------------- what is written


def test_a_file_and_its_record(tmp_path: Path) -> None:
    """The engine finds preprocessing and labels again; what the converter recorded stays, but for our keys."""
    names = ["a", "b", "c", "d", "é"]
    done = write(source(recipe={**IMAGENET, "size": (6, 7)}, labels=names), tmp_path / "m.onnx", seed=9)
    assert done.path == tmp_path / "m.onnx"
    assert (done.input_shape, done.output_shape, done.opset) == ((None, *SHAPE), (None, 5), 17)
    assert done.notes == ("a note of the converter",)
    explainer = Explainer(done.path)
    assert explainer.labels == names
    assert explainer.labels_source == "the model's metadata key 'labels'"
    recipe = preprocessing.choose(metadata=explainer.metadata, input_shape=explainer.input_shape)
    assert (recipe.mean, recipe.size, recipe.source) == (IMAGENET["mean"], (6, 7), "the model's metadata")
    kept = dict(explainer.metadata)
    assert (kept["source"], kept["producer's own"]) == ("numpy:net", "kept")
    assert json.loads(kept["proof"]) == {"tolerance": 1e-4, "difference": done.difference, "images": 3, "seed": 9}
    assert set(json.loads(kept["versions"])) == {"numpy", "fgcam_onnx", "onnx", "onnxruntime"}
    assert list(tmp_path.iterdir()) == [done.path]


@pytest.mark.parametrize("batch", ["n", 1, 2, 3, 7])
def test_a_fixed_batch_is_proved_all_the_same(tmp_path: Path, batch: int | str) -> None:
    assert write(source(batch=batch), tmp_path / "m.onnx").difference < 1e-6


def test_weights_beside_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "INSIDE", 10)
    write(source(), tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    x = RNG.normal(size=(2, *SHAPE)).astype(np.float32)
    assert np.allclose(Explainer(tmp_path / "m.onnx").explain(x).logits, scores(x), atol=1e-5)


def test_the_file_that_names_the_weights_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights cannot be put in their place, the older file stays whole."""

    def full(source: str | Path, target: str | Path) -> None:
        if str(target).endswith(".data"):
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    (tmp_path / "m.onnx").write_text("an older file")
    monkeypatch.setattr(base, "INSIDE", 10)
    monkeypatch.setattr(base.os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot be written\n  known   No space left on device"):
        write(source(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an older file"


def test_pictures_are_pictures() -> None:
    """Seeded, in the range that pixels have under the recipe, smoother than noise, in the model's layout."""
    recipe = Preprocessing(size=(40, 50), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, layout="NHWC")
    x = proof.pictures(2, (40, 50, 3), "NHWC", recipe, seed=1)
    assert x.shape == (2, 40, 50, 3)
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert 200 < x.max() <= 255
    assert np.abs(np.diff(x, axis=1)).mean() < 0.5 * x.std()
    assert np.array_equal(x, proof.pictures(2, (40, 50, 3), "NHWC", recipe, seed=1))
    assert not np.array_equal(x, proof.pictures(2, (40, 50, 3), "NHWC", recipe, seed=2))
    first, second = x
    assert not np.array_equal(first, second)


# ---------------------------------------------------------------------------------------------------- mistranslations


def wrong_weight(made: onnx.ModelProto) -> None:
    weight(made, "dense", lambda w: w * np.asarray([1, 1, 1, 1.01, 1]))


def dropped_relu(made: onnx.ModelProto) -> None:
    made.graph.node[1].op_type = "Identity"


def swapped_channels(made: onnx.ModelProto) -> None:
    weight(made, "kernel", lambda w: w[:, ::-1])


def not_a_number(made: onnx.ModelProto) -> None:
    weight(made, "dense", lambda w: np.where(np.arange(5) == 2, np.nan, w))


def another_shape(made: onnx.ModelProto) -> None:
    made.graph.node[3].op_type = "Identity"
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    made.graph.output[0].type.tensor_type.ClearField("shape")
    made.graph.node[4].op_type, made.graph.node[4].input[1] = "Add", "pooled"


def another_dtype(made: onnx.ModelProto) -> None:
    made.graph.node.append(helper.make_node("Cast", ["logits"], ["wide"], name="cast", to=TensorProto.DOUBLE))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.DOUBLE, ["n", 5]))


def a_constant_batch(made: onnx.ModelProto) -> None:
    """Traced with two pictures, and their number taken for a constant of the graph."""
    made.graph.node[3].CopyFrom(helper.make_node("Reshape", ["pooled", "sides"], ["flat"], name="reshape"))
    made.graph.initializer.append(numpy_helper.from_array(np.asarray([2, 64]), "sides"))


def another_input(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8


def another_input_dtype(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def two_outputs(made: onnx.ModelProto) -> None:
    made.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", 64, 6, 7]))


WRONG = "the exported file does not compute what numpy:net computes"


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (wrong_weight, WRONG + r"\n  at      image \d of 3, class 3   \(scores \[3, 5\]\)\n  known   source \S+"),
        (dropped_relu, WRONG),
        (swapped_channels, WRONG),
        (not_a_number, WRONG + r"\n  at      image 0 of 3, class 2 .*\n  known   source \S+, file nan: not finite, "),
        (another_shape, WRONG + r"\n  known   scores \[3, 64, 1, 1\], those of the source are \[3, 5\]"),
        (another_dtype, WRONG + r"\n  known   scores of float64, those of the source are float32"),
        (a_constant_batch, r"onnxruntime cannot run the exported file of numpy:net on 3 pictures"),
        (another_input, r"the exported file takes \[None, 3, 8, 7\], numpy:net takes NCHW \[n, 3, 6, 7\]"),
        (another_input_dtype, "the exported file takes float64, numpy:net takes float32"),
        (two_outputs, "the exported file has 2 outputs\n  known   logits, hidden"),
    ],
)  # fmt: skip
def test_a_mistranslated_model(tmp_path: Path, mistake: Callable[[onnx.ModelProto], None], text: str) -> None:
    """An error with place and figures; at the target what was there before."""
    (tmp_path / "m.onnx").write_text("an older file")
    with pytest.raises(ExportError, match=text):
        write(source(mistake), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an older file"


def test_the_tolerance_is_a_share_of_the_largest_score(tmp_path: Path) -> None:
    """1 % in one class: refused at half of what is seen, taken at twice, and the figure is in the record."""
    seen = write(source(wrong_weight), tmp_path / "m.onnx", tolerance=0.1).difference
    assert 1e-3 < seen <= 1e-2
    with pytest.raises(ExportError, match="does not compute"):
        write(source(wrong_weight), tmp_path / "m.onnx", tolerance=seen / 2)
    assert write(source(wrong_weight), tmp_path / "m.onnx", tolerance=seen * 2).difference == seen


def test_compare_by_hand() -> None:
    """max|a - b| / max|a|: 0.5 of 10."""
    a = np.asarray([[1.0, -10.0], [2.0, 3.0]])
    b = np.asarray([[1.0, -10.0], [2.5, 3.0]])
    assert proof.compare(a, b, 0.05, "net") == pytest.approx(0.05)
    with pytest.raises(
        ExportError, match=r"image 1 of 2, class 0 .*\n.*source 2, file 2.5: 5.0e-02 of the largest score"
    ):
        proof.compare(a, b, 0.049, "net")
    with pytest.raises(ExportError, match=r"largest class of each image: source \[0, 1\], file \[0, 0\]"):
        proof.compare(a, np.asarray([[1.0, -10.0], [9.0, 3.0]]), 0.05, "net")


def test_all_zero_scores_have_to_be_equal(tmp_path: Path) -> None:
    nothing = source(lambda m: weight(m, "dense", lambda w: 0 * w), run=lambda x: 0 * scores(x))
    assert any("all scores are 0" in note for note in write(nothing, tmp_path / "m.onnx").notes)
    with pytest.raises(ExportError, match=WRONG):
        write(replace(source(), run=lambda x: 0 * scores(x)), tmp_path / "m.onnx")


def test_scores_that_prove_little(tmp_path: Path) -> None:
    """Untrained networks may answer every picture alike: the proof holds, and says that it says little."""

    def flat(x: Any) -> Any:
        return (1 + 1e-4 * scores(x)).astype(np.float32)

    def convert(made: onnx.ModelProto) -> None:
        weight(made, "dense", lambda w: 1e-4 * w)
        made.graph.node[4].output[0] = "small"
        made.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
        made.graph.node.append(helper.make_node("Add", ["small", "one"], ["logits"], name="add"))

    notes = write(source(convert, run=flat), tmp_path / "m.onnx").notes
    assert [note for note in notes if "equal scores prove little for such weights" in note]
    assert not [note for note in write(source(), tmp_path / "m.onnx").notes if "prove little" in note]


# ---------------------------------------------------------------------------------------------------- bad sources


def raising(x: Any) -> Any:
    raise ValueError("Dense wants 4 features")


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (raising, r"numpy:net does not run on NCHW \[n, 3, 6, 7\]\n  known   ValueError: Dense wants 4 features"),
        (lambda x: scores(x) * np.nan, "numpy:net itself answers with NaN or infinity: 15 of 15 scores"),
        (lambda x: (scores(x), scores(x)), "numpy:net answers with a tuple, a classifier gives one array"),
        (lambda x: scores(x).ravel(), r"answers with an array \[15\]"),
        (lambda x: scores(x)[:2], r"answers with an array \[2, 5\]"),
    ],
)
def test_a_source_that_is_no_classifier(tmp_path: Path, run: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(ExportError, match=text):
        write(source(run=run), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def nothing_written(path: Path) -> Sequence[str]:
    print("Error: op 'det' is not supported")
    return ()


def rubbish(path: Path) -> Sequence[str]:
    path.write_bytes(b"\xff rubbish")
    return ()


def crash(path: Path) -> Sequence[str]:
    path.write_bytes(b"half a file")
    raise RuntimeError("no converter for Det")


@pytest.mark.parametrize(
    ("convert", "reason"),
    [
        (nothing_written, "Error: op 'det' is not supported"),
        (rubbish, "its file cannot be read: "),
        (crash, "RuntimeError: no converter for Det"),
    ],
)
def test_a_converter_that_fails(tmp_path: Path, convert: Any, reason: str) -> None:
    with pytest.raises(ExportError) as caught:
        write(source(convert=convert), tmp_path / "m.onnx")
    assert caught.value.what == "numpy cannot convert numpy:net"
    assert caught.value.at == f"numpy {np.__version__}"
    assert reason in str(caught.value.known)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf"), "1e-4"])
def test_a_tolerance_that_is_none(tmp_path: Path, tolerance: Any) -> None:
    with pytest.raises(OptionError, match="tolerance is "):
        write(source(), tmp_path / "m.onnx", tolerance=tolerance)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write(source(), tmp_path)
    with pytest.raises(OutputError, match="there is no folder"):
        write(source(), tmp_path / "absent" / "m.onnx")


# ---------------------------------------------------------------------------------------------------- labels, recipes


def never(path: Path) -> Sequence[str]:
    raise AssertionError("checked before the converter runs")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"labels": ["a", "b"]}, ExportError, r"2 labels for 5 classes\n  known   given; the scores are \[3, 5\]"),
        ({"labels": "names.txt"}, ModelError, r"names.txt' has 1 label, the model has 5 classes"),
        ({"preprocessing": {"size": (6, 8)}}, OptionError, r"size 6x8 does not fit the model\n.*\[\?, 3, 6, 7\]"),
        ({"preprocessing": {"color": "GRAY"}}, OptionError, "color GRAY makes 1 channel, and mean has 3 values"),
        ({"preprocessing": "unit,color=GRAY"}, OptionError, "color GRAY gives 1 channel, the model takes 3"),
        ({"preprocessing": {"mean": [1, 2]}}, OptionError, "mean has 2 values for 3 channels"),
        ({"preprocessing": {"layout": "NHWC"}}, OptionError, "the preprocessing is for NHWC, the model takes NCHW"),
        ({"preprocessing": {"sise": 6}}, OptionError, "no preprocessing option 'sise'"),
        ({"preprocessing": Preprocessing(size=(9, 9))}, OptionError, "size 9x9 does not fit the model"),
    ],
)
def test_what_contradicts_the_model(
    tmp_path: Path, options: dict[str, Any], kind: type[FgcamError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("one name\n")
    with pytest.raises(kind, match=text):
        write(source(convert=never), "m.onnx", **options)


def test_a_source_s_own_contradictions(tmp_path: Path) -> None:
    """What a framework says of its model is checked as what a user says."""
    with pytest.raises(ExportError, match=r"4 labels for 5 classes\n  known   from numpy:net"):
        write(source(convert=never, labels=list("abcd")), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="mean has 2 values for 3 channels"):
        write(source(convert=never, recipe={"mean": (1, 2)}), tmp_path / "m.onnx")


def test_the_model_s_size_wins_over_the_source_s(tmp_path: Path) -> None:
    """A recipe for 224 of 256 pixels, a model of 6 x 7: what is cut away keeps its share."""
    geometry = {"size": (224, 224), "resize": "short_side_then_center_crop", "short_side": 256}
    done = write(source(recipe={**IMAGENET, **geometry}), tmp_path / "m.onnx")
    assert done.preprocessing is not None
    assert (done.preprocessing.size, done.preprocessing.short_side) == ((6, 7), 7)  # 256 * 6 / 224


def test_fields_replace_those_of_the_source(tmp_path: Path) -> None:
    done = write(source(recipe={**IMAGENET, "source": "a hub"}), tmp_path / "m.onnx", preprocessing={"std": 1})
    assert done.preprocessing is not None
    assert (done.preprocessing.mean, done.preprocessing.std) == (IMAGENET["mean"], (1.0,) * 3)
    assert done.preprocessing.source == "a hub, with std as given"
    assert write(source(), tmp_path / "m.onnx").preprocessing is None


# ---------------------------------------------------------------------------------------------------- packages, words


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingFrameworkError) as caught:
        packages.load("timm")
    assert str(caught.value) == 'timm is not installed\n  next    pip install "fgcam_onnx[export-timm]"'
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("found", ["2.8.9", "3.0", "3.1rc1"])
def test_an_unsupported_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """Both versions are named, and what works."""
    real = packages.metadata.version
    monkeypatch.setattr(packages.metadata, "version", lambda name: found if name == "torch" else real(name))
    with pytest.raises(ExportError) as caught:
        packages.load("torch", beside="numpy")
    assert str(caught.value) == (
        f"torch {found} with numpy {np.__version__} cannot be used for an export\n"
        '  known   torch has to be >=2.9,<3\n  next    pip install "fgcam_onnx[export]"'
    )


@pytest.mark.parametrize("found", ["2.9", "2.9.0+cpu", "2.13.0", "2.100"])
def test_a_supported_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    real = packages.metadata.version
    monkeypatch.setattr(packages.metadata, "version", lambda name: found if name == "torch" else real(name))
    assert packages.load("torch").__name__ == "torch"


def test_the_extras_bring_what_the_table_wants() -> None:
    """pyproject.toml and the table say the same bounds, package by package."""
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    extras = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, package in packages.PACKAGES.items():
        wanted = f"{package.names[0]}>={package.at_least},<{package.below}"
        assert wanted in [line.partition(";")[0] for line in extras[package.extra]], name


def test_chatter_is_kept_off_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """From Python, from C, and from a logger that keeps the stream it found."""
    with packages.captured() as said:
        stream = sys.stderr
        print("from python")
        os.write(1, b"from C\n")
        os.write(2, b"and its errors\n")
        print("a log line", file=stream)
    print("ours")
    print("later", file=stream)
    assert capfd.readouterr() == ("ours\n", "later\n")
    assert said.text().split("\n") == ["from python", "from C", "and its errors", "a log line", ""]


def test_an_object_of_no_framework(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a dict is no model of torch, keras, paddle, flax"):
        dispatch.export({}, tmp_path / "m.onnx")
