"""The JAX exporter on a flax.nnx module and on a bare function: NHWC, SAME with stride 2, BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
from exporting import CLASSES, DEEP, EPSILON, SIZE, Twin, Weights

from fgcam_onnx import Explainer, preprocessing
from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import export
from fgcam_onnx.exporters.dispatch import find
from fgcam_onnx.exporters.packages import load

pytest.importorskip("jax2onnx", reason="JAX is not installed: see docs/testing.md, exporters")
jax = pytest.importorskip("jax", reason="JAX is not installed: see docs/testing.md, exporters")
load("flax")
nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: see docs/testing.md, exporters")
jnp = jax.numpy

Record = Callable[[str, object], None]


def module(weights: Weights) -> Any:
    """The network of ``exporting`` in flax.nnx."""

    class Network(nnx.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            for name, kernel in weights.kernel.items():
                out, inside, k, _ = kernel.shape
                groups = out if inside == 1 else 1
                stride = 2 if name in ("stem", "down") else 1
                conv = nnx.Conv(
                    inside * groups,
                    out,
                    (k, k),
                    stride,
                    padding="SAME",
                    feature_group_count=groups,
                    use_bias=False,
                    rngs=rngs,
                )
                conv.kernel.set_value(jnp.asarray(kernel.transpose(2, 3, 1, 0)))
                norm, given = nnx.BatchNorm(out, epsilon=EPSILON, rngs=rngs), weights.norm[name]
                for ours, theirs in (
                    ("gamma", norm.scale),
                    ("beta", norm.bias),
                    ("mean", norm.mean),
                    ("variance", norm.var),
                ):
                    theirs.set_value(jnp.asarray(getattr(given, ours)))
                setattr(self, name, conv)
                setattr(self, f"{name}_norm", norm)
            self.dense = nnx.Linear(DEEP, CLASSES, rngs=rngs)
            self.dense.kernel.set_value(jnp.asarray(weights.dense.T))
            self.dense.bias.set_value(jnp.asarray(weights.bias))

        def conv(self, x: Any, name: str) -> Any:
            return getattr(self, f"{name}_norm")(getattr(self, name)(x))

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.conv(x, "stem"))
            x = nnx.relu(x + self.conv(nnx.relu6(self.conv(x, "depthwise")), "project"))
            x = nnx.relu(self.conv(x, "down"))
            x = nnx.relu(self.conv(x, "expand"))
            return self.dense(flax_pool(x).mean((1, 2)))

    return Network()


def function(weights: Weights, pool: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """The same with ``jax.lax``, but for the pooling."""
    pool = pool or flax_pool
    kernels = {name: jnp.asarray(kernel.transpose(2, 3, 1, 0)) for name, kernel in weights.kernel.items()}

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        n, kernel = weights.norm[name], kernels[name]
        groups = x.shape[3] // kernel.shape[2]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return (x - n.mean) / jnp.sqrt(n.variance + EPSILON) * n.gamma + n.beta

    def apply(x: Any) -> Any:
        x = jax.nn.relu(conv(x, "stem", 2))
        x = jax.nn.relu(x + conv(jax.nn.relu6(conv(x, "depthwise")), "project"))
        x = jax.nn.relu(conv(x, "down", 2))
        x = jax.nn.relu(conv(x, "expand"))
        return pool(x).mean((1, 2)) @ weights.dense.T + weights.bias

    return apply


def flax_pool(x: Any) -> Any:
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")


def lax_pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def flax_factory() -> Any:
    return module(Weights()), (*SIZE, 3)


def lax_factory() -> Any:
    return function(Weights()), (*SIZE, 3)


def lax_pool_factory() -> Any:
    return function(Weights(), lax_pool), (*SIZE, 3)


def no_factory() -> Any:
    return 3


@pytest.mark.parametrize("name", ["flax", "lax"])
def test_a_small_network(tmp_path: Path, name: str, record_property: Record) -> None:
    done = export(
        f"jax:test_export_jax:{name}_factory",
        tmp_path / "m.onnx",
        labels=list("abcde"),
        preprocessing={"scale": 1, "mean": 127.5, "std": 64},
    )
    assert done.difference <= 1e-5
    assert (done.layout, done.input_shape) == ("NHWC", (None, *SIZE, 3))
    assert {"jax", "flax", "jax2onnx"} <= set(done.versions)
    explainer = Explainer(tmp_path / "m.onnx")
    assert explainer.labels == list("abcde")
    recipe = preprocessing.choose(
        metadata=explainer.metadata, input_shape=explainer.input_shape, layout=explainer.layout
    )
    assert (recipe.scale, recipe.mean, recipe.std, recipe.layout) == (1, (127.5,) * 3, (64.0,) * 3, "NHWC")
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(Weights()), "NHWC", record_property, f"jax, {name}")


def test_a_pooling_that_onnxruntime_does_not_run(tmp_path: Path) -> None:
    """jax2onnx 0.17 writes a reduce_window over NHWC as a pooling of four axes."""
    with pytest.raises(
        ExportError, match=r"onnxruntime cannot run the exported file of jax:\S+ on 3 pictures\n.*MaxPool"
    ):
        export("jax:test_export_jax:lax_pool_factory", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_is_exported_as_it_evaluates(tmp_path: Path) -> None:
    """The object itself, left in training mode; a size for what has no shape of its own."""
    network = module(Weights())
    network.train()
    done = export(network, tmp_path / "m.onnx", size=SIZE)
    assert done.source == "jax:Network"
    exported = Explainer(tmp_path / "m.onnx").explain(exporting.images().transpose(0, 2, 3, 1)).logits
    expected = np.asarray(function(Weights())(exporting.images().transpose(0, 2, 3, 1)))
    assert np.abs(exported - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_converter_that_mistranslates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One padding exchanged: SAME_LOWER for SAME_UPPER, as a converter might."""
    import jax2onnx
    import onnx

    real = jax2onnx.to_onnx

    def careless(*args: Any, output_path: str, **options: Any) -> None:
        real(*args, output_path=output_path, **options)
        model = onnx.load_model(output_path)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "auto_pad" and attribute.s == b"SAME_UPPER":
                    attribute.s = b"SAME_LOWER"
        onnx.save_model(model, output_path)

    monkeypatch.setattr(jax2onnx, "to_onnx", careless)
    with pytest.raises(ExportError, match="does not compute what jax:test_export_jax:lax_factory computes"):
        export("jax:test_export_jax:lax_factory", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "options", "kind", "text"),
    [
        ("jax:test_export_jax:no_factory", {}, ExportError, "is a int, not a function of pictures"),
        ("jax:test_export_jax:flax_factory", {"size": (9, 9)}, OptionError, "size 9x9 does not fit the model"),
        ("jax:test_export_jax:flax_factory", {"classes": 3}, OptionError, "for networks of a catalogue"),
        ("jax:test_export_jax:absent", {}, OptionError, "has no function 'absent'"),
    ],
)
def test_wrong_words(word: str, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        find(word, **options)
