"""The Paddle exporter on real layers and inference models: SAME with stride 2, BatchNorm, files of weights."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
from exporting import CLASSES, DEEP, EPSILON, SIZE, Twin, Weights

from fgcam_onnx import Explainer, preprocessing
from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import export, from_paddle
from fgcam_onnx.exporters.dispatch import find
from fgcam_onnx.exporters.packages import load

pytest.importorskip("paddle2onnx", reason="Paddle is not installed: see docs/testing.md, exporters")
paddle = load("paddle")  # it warns when it is imported

Record = Callable[[str, object], None]
nn, F = paddle.nn, paddle.nn.functional


class Network(nn.Layer):  # type: ignore[misc, name-defined]
    """The network of ``exporting`` in Paddle layers."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.convs, self.norms = nn.LayerDict(), nn.LayerDict()
        for name, kernel in weights.kernel.items():
            out, inside, k, _ = kernel.shape
            stride = 2 if name in ("stem", "down") else 1
            groups = out if inside == 1 else 1
            conv = nn.Conv2D(inside * groups, out, k, stride, "SAME", groups=groups, bias_attr=False)
            norm, given = nn.BatchNorm2D(out, epsilon=EPSILON), weights.norm[name]
            conv.weight.set_value(kernel)
            for ours, theirs in (
                ("gamma", norm.weight),
                ("beta", norm.bias),
                ("mean", norm._mean),
                ("variance", norm._variance),
            ):
                theirs.set_value(getattr(given, ours))
            self.convs[name], self.norms[name] = conv, norm
        self.dense = nn.Linear(DEEP, CLASSES)
        self.dense.weight.set_value(weights.dense.T)
        self.dense.bias.set_value(weights.bias)

    def conv(self, x: Any, name: str) -> Any:
        return self.norms[name](self.convs[name](x))

    def forward(self, x: Any) -> Any:
        x = F.relu(self.conv(x, "stem"))
        x = F.relu(x + self.conv(F.relu6(self.conv(x, "depthwise")), "project"))
        x = F.relu(self.conv(x, "down"))
        x = F.relu(self.conv(x, "expand"))
        x = F.max_pool2d(x, 3, 2, padding="SAME")
        return self.dense(x.mean([2, 3]))


@pytest.fixture
def network() -> Any:
    return Network(Weights())


def test_a_small_network(tmp_path: Path, network: Any, record_property: Record) -> None:
    done = export(
        network, tmp_path / "m.onnx", size=SIZE, labels=list("abcde"), preprocessing={"mean": 0.5, "std": 0.5}
    )
    assert done.difference <= 1e-5
    assert (done.layout, done.input_shape) == ("NCHW", (None, 3, *SIZE))
    assert {"paddle", "paddle2onnx"} <= set(done.versions)
    explainer = Explainer(tmp_path / "m.onnx")
    assert explainer.labels == list("abcde")
    recipe = preprocessing.choose(metadata=explainer.metadata, input_shape=explainer.input_shape)
    assert (recipe.mean, recipe.std, recipe.size) == ((0.5,) * 3, (0.5,) * 3, SIZE)
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(Weights()), "NCHW", record_property, "paddle")


def test_an_inference_model(tmp_path: Path, network: Any, record_property: Record) -> None:
    network.eval()
    spec = paddle.static.InputSpec([None, 3, *SIZE], "float32", name="x")
    paddle.jit.save(network, str(tmp_path / "saved"), input_spec=[spec])
    assert export(tmp_path / "saved.json", tmp_path / "m.onnx").input_shape == (None, 3, *SIZE)
    assert find(tmp_path / "saved.pdiparams").name == str(tmp_path / "saved.json")
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(Weights()), "NCHW", record_property, "paddle inference model")
    with pytest.raises(OptionError, match="size 20x20 does not fit the model"):
        find(tmp_path / "saved.json", size=(20, 20))
    (tmp_path / "saved.pdiparams").unlink()
    with pytest.raises(ExportError, match=r"is no Paddle inference model\n.*no saved.pdiparams beside it"):
        find(tmp_path / "saved.json")


def test_a_converter_that_drops_the_bias(tmp_path: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    real = from_paddle._convert

    def careless(program: Path, path: Path, opset: int | None) -> None:
        real(program, path, opset)
        model = onnx.load_model(path)
        (add,) = [node for node in model.graph.node if node.op_type == "Add"][-1:]
        add.op_type = "Identity"
        del add.input[1]
        onnx.save_model(model, path)

    monkeypatch.setattr(from_paddle, "_convert", careless)
    with pytest.raises(ExportError, match="does not compute what paddle:Network computes"):
        export(network, tmp_path / "m.onnx", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_the_converter_does_not_know(tmp_path: Path) -> None:
    """An operator that paddle2onnx does not know: it ends its process, and we name the operator."""

    class Strange(nn.Layer):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return paddle.linalg.det(x)

    with pytest.raises(ExportError, match=r"paddle2onnx cannot convert paddle:Strange\n  at .*\n  known .*det"):
        export(Strange(), tmp_path / "m.onnx", size=8)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_the_catalogue(tmp_path: Path) -> None:
    """Weights from a file, other classes; Paddle states no preprocessing, and a note says so."""
    paddle.seed(3)
    trained = paddle.vision.models.squeezenet1_1(num_classes=4)
    paddle.save(trained.state_dict(), str(tmp_path / "w.pdparams"))
    file = str(tmp_path / "w.pdparams")
    done = export("paddle:squeezenet1_1", tmp_path / "m.onnx", weights=file, classes=4, size=64)
    assert done.source == "paddle:squeezenet1_1 weights=w.pdparams"
    assert done.preprocessing is None
    assert "no preprocessing is known: give it here, or to fgcam explain" in done.notes
    trained.eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = trained(paddle.to_tensor(x)).numpy()
    assert np.abs(Explainer(tmp_path / "m.onnx").explain(x).logits - expected).max() <= 1e-4 * np.abs(expected).max()
    with pytest.raises(ExportError, match=r"the network has \[1000, 512, 1, 1\].*\n.*--classes N"):
        find("paddle:squeezenet1_1", weights=file)


def test_random_weights_follow_the_seed() -> None:
    x = exporting.images(2)
    scores = [find("paddle:squeezenet1_1", weights="none", size=SIZE, seed=s).run(x).tobytes() for s in (1, 1, 2)]
    assert scores[0] == scores[1] != scores[2]


class Trap:
    """Would run code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pdparams").write_bytes(pickle.dumps({"conv.weight": np.zeros(3), "trap": Trap()}))
    with pytest.raises(ExportError, match=r"cannot be read without running code from the file\n.*which is no array"):
        find("paddle:resnet18", weights="w.pdparams")
    assert not Path("sprung").exists()


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Downloading from https://paddle failed! Retry limit reached")

    monkeypatch.setattr("paddle.vision.models.resnet.get_weights_path_from_url", offline)
    with pytest.raises(ExportError, match=r"of paddle:resnet18 could not be fetched\n.*Retry limit reached"):
        find("paddle:resnet18")


@pytest.mark.parametrize(
    ("word", "weights", "text"),
    [
        ("paddle:resnet81", None, "paddle.vision.models has no 'resnet81'.*\n.*\n.*did you mean 'resnet18'"),
        ("paddle:resnet18", "IMAGENET", "has no weights 'IMAGENET'"),
    ],
)
def test_wrong_words(word: str, weights: str | None, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        find(word, weights=weights)
