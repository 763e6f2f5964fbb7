"""The SavedModel exporter on a network of bare TensorFlow operators, saved as TensorFlow saves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import pytest
from exporting import EPSILON, SIZE, Twin, Weights

from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import export
from fgcam_onnx.exporters.dispatch import find

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: see docs/testing.md, exporters")

Record = Callable[[str, object], None]


def save(folder: Path, function: Any, shape: Any, variables: Any = ()) -> Path:
    """A SavedModel of ``function`` for pictures of ``shape``."""
    module = tf.Module()
    module.kept = list(variables)
    call = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name="pixels")])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": call})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of ``exporting``: variables, ``tf.nn`` and SAME."""
    weights = Weights()
    kernels = {name: tf.Variable(kernel.transpose(2, 3, 1, 0)) for name, kernel in weights.kernel.items()}
    dense, bias = tf.Variable(weights.dense.T), tf.Variable(weights.bias)

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel, n = kernels[name], weights.norm[name]
        if kernel.shape[2] == 1:
            strides = [1, stride, stride, 1]
            x = tf.nn.depthwise_conv2d(x, tf.transpose(kernel, (0, 1, 3, 2)), strides, "SAME")
        else:
            x = tf.nn.conv2d(x, kernel, stride, "SAME")
        return tf.nn.batch_normalization(x, n.mean, n.variance, n.beta, n.gamma, EPSILON)

    def network(x: Any) -> Any:
        x = tf.nn.relu(conv(x, "stem", 2))
        x = tf.nn.relu(x + conv(tf.nn.relu6(conv(x, "depthwise")), "project"))
        x = tf.nn.relu(conv(x, "down", 2))
        x = tf.nn.relu(conv(x, "expand"))
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        return tf.reduce_mean(x, (1, 2)) @ dense + bias

    at = tmp_path_factory.mktemp("saved") / "model"
    return save(at, network, (None, *SIZE, 3), (*kernels.values(), dense, bias))


def test_a_small_network(tmp_path: Path, folder: Path, record_property: Record) -> None:
    done = export(str(folder), tmp_path / "m.onnx", preprocessing={"scale": 1 / 127.5, "mean": 1, "std": 1})
    assert done.difference <= 1e-5
    assert (done.layout, done.input_shape) == ("NHWC", (None, *SIZE, 3))
    assert done.preprocessing is not None
    assert done.preprocessing.describe().startswith("stretched to 33x30 (bilinear), RGB, (v/127.5 - 1) / 1, NHWC")
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(Weights()), "NHWC", record_property, "tensorflow")


def test_a_fixed_batch(tmp_path: Path) -> None:
    """A signature of two pictures: the three of the proof go through it in two runs."""
    folder = save(tmp_path / "m", lambda x: tf.reduce_mean(tf.nn.relu(x), (1, 2)), (2, 9, 8, 3))
    done = export(folder, tmp_path / "m.onnx")
    assert done.input_shape == (2, 9, 8, 3)
    assert done.difference <= 1e-5


def test_a_size_where_the_signature_leaves_it_free(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", lambda x: tf.reduce_mean(tf.nn.relu(x), (1, 2)), (None, None, None, 3))
    assert export(folder, tmp_path / "m.onnx", size=(12, 10)).input_shape == (None, 12, 10, 3)


@pytest.mark.parametrize(
    ("function", "shape", "text"),
    [
        (lambda x: {"a": x, "b": x}, (None, 8, 8, 3), "takes pixels .*; gives a .*, b "),
        (lambda x: x, (None, 8), "does not take one picture"),
        (lambda x: x, (None, 8, 8, 3), None),
    ],
)
def test_a_signature_that_is_no_classifier(tmp_path: Path, function: Any, shape: Any, text: str | None) -> None:
    folder = save(tmp_path / "m", function, shape)
    if text is None:  # one picture, one array: a dense output is nobody's mistake
        assert find(folder).input_shape == shape[1:]
        return
    with pytest.raises(ExportError, match=text):
        find(folder)


def test_what_the_folder_cannot_take(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(OptionError, match="size 20x20 does not fit the model"):
        find(folder, size=(20, 20))
    with pytest.raises(OptionError, match="weights and classes are for networks of a catalogue"):
        find(folder, weights="none", classes=4)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ExportError, match="TensorFlow cannot load "):
        find(tmp_path / "broken")
