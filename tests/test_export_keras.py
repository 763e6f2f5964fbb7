"""The Keras exporter on real Keras models: NHWC, SAME with stride 2, BatchNorm, and what keras.applications knows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
from exporting import CLASSES, EPSILON, SIZE, Twin, Weights

from fgcam_onnx import Explainer, preprocessing
from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import export, from_keras
from fgcam_onnx.exporters.dispatch import find

pytest.importorskip("tensorflow", reason="TensorFlow is not installed: see docs/testing.md, exporters")
keras = pytest.importorskip("keras", reason="Keras is not installed: see docs/testing.md, exporters")

Record = Callable[[str, object], None]


def network(weights: Weights) -> Any:
    """The network of ``exporting`` in Keras layers."""
    layers = keras.layers

    def norm(x: Any, name: str) -> Any:
        layer = layers.BatchNormalization(epsilon=EPSILON)
        x = layer(x)
        n = weights.norm[name]
        layer.set_weights([n.gamma, n.beta, n.mean, n.variance])
        return x

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel = weights.kernel[name]  # OIHW
        out, inside, k, _ = kernel.shape
        if inside == 1:
            layer = layers.DepthwiseConv2D(k, strides=stride, padding="same", use_bias=False)
            values = kernel.transpose(2, 3, 0, 1)
        else:
            layer = layers.Conv2D(out, k, strides=stride, padding="same", use_bias=False)
            values = kernel.transpose(2, 3, 1, 0)
        x = layer(x)
        layer.set_weights([values])
        return norm(x, name)

    image = layers.Input((*SIZE, 3))
    x = layers.ReLU()(conv(image, "stem", 2))
    x = layers.ReLU()(layers.Add()([x, conv(layers.ReLU(6.0)(conv(x, "depthwise")), "project")]))
    x = layers.ReLU()(conv(x, "down", 2))
    x = layers.ReLU()(conv(x, "expand"))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    dense = layers.Dense(CLASSES)
    model = keras.Model(image, dense(layers.GlobalAveragePooling2D()(x)))
    dense.set_weights([weights.dense.T, weights.bias])
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return network(Weights())


def test_a_small_network(tmp_path: Path, model: Any, record_property: Record) -> None:
    done = export(model, tmp_path / "m.onnx")
    assert done.difference <= 1e-5
    assert (done.layout, done.input_shape) == ("NHWC", (None, *SIZE, 3))
    assert {"keras", "tensorflow", "tf2onnx"} <= set(done.versions)
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(Weights()), "NHWC", record_property, "keras")


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_model_file(tmp_path: Path, model: Any, ending: str) -> None:
    model.save(tmp_path / f"m.{ending}")
    options = {"mean": [0.5, 0.4, 0.3], "color": "BGR"}
    export(str(tmp_path / f"m.{ending}"), tmp_path / "m.onnx", preprocessing=options, labels=list("abcde"))
    explainer = Explainer(tmp_path / "m.onnx")
    assert explainer.labels == list("abcde")
    recipe = preprocessing.choose(
        metadata=explainer.metadata, input_shape=explainer.input_shape, layout=explainer.layout
    )
    assert (recipe.layout, recipe.color, recipe.mean, recipe.size) == ("NHWC", "BGR", (0.5, 0.4, 0.3), SIZE)
    x = exporting.images().transpose(0, 2, 3, 1)
    expected = np.asarray(model(x))
    assert np.abs(explainer.explain(x).logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_lambda_in_a_file_is_not_run(tmp_path: Path) -> None:
    image = keras.layers.Input((8, 8, 3))
    keras.Model(image, keras.layers.Lambda(lambda x: x + 1)(image)).save(tmp_path / "m.keras")
    with pytest.raises(ExportError, match=r"Keras cannot load .*\n.*[Ll]ambda"):
        export(tmp_path / "m.keras", tmp_path / "m.onnx")
    (tmp_path / "broken.keras").write_bytes(b"no zip")
    with pytest.raises(ExportError, match=r"Keras cannot load .*broken\.keras"):
        export(tmp_path / "broken.keras", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_size_where_the_model_leaves_it_free(tmp_path: Path) -> None:
    image = keras.layers.Input((None, None, 3))
    free = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same")(image)))
    assert export(free, tmp_path / "m.onnx", size=(20, 30)).input_shape == (None, 20, 30, 3)
    with pytest.raises(OptionError, match=r"size 20x20 does not fit the model\n.*33, 30, 3"):
        find(network(Weights()), size=(20, 20))


def test_a_converter_that_changes_a_weight(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import tf2onnx

    real = tf2onnx.convert.from_function

    def careless(*args: Any, output_path: str, **options: Any) -> Any:
        proto, storage = real(*args, **options)
        (bias,) = (t for t in proto.graph.initializer if list(t.dims) == [CLASSES])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[1] *= 1.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save_model(proto, output_path)
        return proto, storage

    monkeypatch.setattr(tf2onnx.convert, "from_function", careless)
    with pytest.raises(ExportError, match=r"does not compute what keras:\S+ computes\n.*class 1 "):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_fails(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ExportError, match=r"tf2onnx cannot convert keras:\S+\n  at      keras 3\S+, tensorflow 2\S+"):
        export(model, tmp_path / "m.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- applications


@pytest.mark.parametrize("home", ["mobilenet_v2", "vgg16", "densenet", "efficientnet"])
def test_preprocess_input_is_measured(home: str) -> None:
    """The modes tf, caffe, torch and none: our recipe gives what ``preprocess_input`` gives, channel order included."""
    preprocess = getattr(keras.applications, home).preprocess_input
    recipe = preprocessing.Preprocessing(**{**from_keras._recipe(preprocess, home), "size": (4, 5), "layout": "NHWC"})
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = preprocess(pixels.astype(np.float32))
    assert np.abs(recipe.apply(pixels)[0] - expected).max() <= 1e-4


def test_an_application(tmp_path: Path) -> None:
    done = export("keras:MobileNet", tmp_path / "m.onnx", weights="none", size=64, classes=7, seed=4)
    assert done.source == "keras:MobileNet weights=none"
    assert done.output_shape == (None, 7)
    assert done.labels is None
    explainer = Explainer(tmp_path / "m.onnx")
    recipe = preprocessing.choose(
        metadata=explainer.metadata, input_shape=explainer.input_shape, layout=explainer.layout
    )
    assert (recipe.mean, recipe.std, recipe.resize, recipe.size) == ((0.5,) * 3, (0.5,) * 3, "stretch", (64, 64))


def test_published_weights_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the downloads: the classes are named from the table behind ``decode_predictions``."""
    real = keras.applications.MobileNet

    @functools.wraps(real)
    def cached(weights: str) -> Any:
        return real(weights=None)

    monkeypatch.setattr(keras.applications, "MobileNet", cached)
    table = [[(f"n{i:08d}", f"name {i}", 1.0)] for i in range(1000)]
    monkeypatch.setattr(keras.applications.mobilenet, "decode_predictions", lambda scores, top: table)
    source = find("keras:MobileNet")
    assert source.labels is not None
    assert (len(source.labels), source.labels[3]) == (1000, "n00000003 name 3")
    assert source.name == "keras:MobileNet weights=imagenet"


def test_weights_from_a_file(tmp_path: Path) -> None:
    build = keras.applications.MobileNet
    trained = build(weights=None, classes=3, input_shape=(32, 32, 3))
    trained.save_weights(tmp_path / "w.weights.h5")
    file = str(tmp_path / "w.weights.h5")
    source = find("keras:MobileNet", weights=file, classes=3, size=(32, 32))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    assert np.array_equal(source.run(x), np.asarray(trained(x, training=False)))
    with pytest.raises(ExportError, match=r"the weights in .* are not those of "):
        find("keras:MobileNet", weights=file, size=(32, 32))


@pytest.mark.parametrize(
    ("word", "options", "kind", "text"),
    [
        (
            "keras:MobileNetV5",
            {},
            OptionError,
            "keras.applications has no 'MobileNetV5'.*\n.*\n.*did you mean 'MobileNetV",
        ),
        ("keras:MobileNet", {"weights": "noisy"}, OptionError, "has no weights 'noisy'"),
        ("keras:MobileNet", {"size": (8, 8), "weights": "none"}, OptionError, "Keras cannot build MobileNet so"),
        ("keras:MobileNet", {"weights": "absent.h5"}, ExportError, "there is no file of weights 'absent.h5'"),
    ],
)
def test_wrong_words(word: str, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        find(word, **options)


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise Exception("URL fetch failure on https://storage: None -- Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(ExportError, match=r"imagenet of keras:MobileNet could not be fetched\n.*URL fetch failure"):
        find("keras:MobileNet")


def test_another_backend_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ExportError, match=r"Keras runs on jax here.*\n  next    set KERAS_BACKEND=tensorflow"):
        find("keras:MobileNet", weights="none")


def test_a_model_of_two_inputs() -> None:
    ends = [keras.layers.Input((8, 8, 3)) for _ in range(2)]
    with pytest.raises(ExportError, match="the Keras model has to take one picture"):
        find(keras.Model(ends, keras.layers.Add()(ends)))
