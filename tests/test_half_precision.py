"""float16 and bfloat16 models, whole and with float32 islands: their own activations, and a descent in float32."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tiny_models
import torch
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch_reference.export import export

from fgcam_onnx import Explainer

NETWORKS = ["vgg", "residual", "squeeze_excite", "concat", "nhwc", "softmax_end"]
FORMS: dict[str, dict[str, Any]] = {
    "float16": {"keep_io_types": False},
    "float16 between casts": {"keep_io_types": True},
    "float32 islands": {"keep_io_types": True, "op_block_list": ["Gemm", "GlobalAveragePool", "Add", "MatMul"]},
    "float16 islands": {"keep_io_types": True, "op_block_list": ["Relu", "MaxPool", "Concat", "Mul", "Sigmoid"]},
}


@cache
def halved(network: str, form: str) -> onnx.ModelProto:
    logging.disable(logging.WARNING)
    try:
        return convert_float_to_float16(getattr(tiny_models, network)(), **FORMS[form])
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_float16_map_is_that_of_float32(network: str, form: str) -> None:
    """As near as the activations are: float16 has eleven bits. Coverage and books as ever."""
    model = getattr(tiny_models, network)()
    plain, half = Explainer(model), Explainer(halved(network, form))
    assert "float16" in half.model_precision
    assert half.coverage().complete
    x = tiny_models.pictures(model, 3)
    a = plain.explain(x, target=1)
    b = half.explain(x.astype(half.input_dtype), target=1)
    assert b.relevance.dtype == np.float32
    assert b.ledger.residual < 1e-5, "the descent computes in float32"
    assert 0 < np.abs(b.logits - a.logits).max() < 1e-2 * np.abs(a.logits).max()
    assert np.abs(b.relevance - a.relevance).max() < 2e-2 * np.abs(a.relevance).max()
    assert np.corrcoef(a.relevance.ravel(), b.relevance.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("form", FORMS)
def test_the_activations_are_those_of_the_float16_model(form: str) -> None:
    """What the rules read is what onnxruntime computes in the file as it is, to the last place of float16."""
    model = halved("residual", form)
    explainer = Explainer(model)
    x = tiny_models.pictures(tiny_models.residual(), 2).astype(explainer.input_dtype)
    names = [f"{name}.y" for name in ("relu0", "b1.relu1", "b1.relu2", "b2.relu2")]
    found = explainer.activations(x, names)
    expected = tiny_models.run(model, x, *names)
    for name, array in zip(names, expected, strict=True):
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=2**-9, atol=2**-14)


def test_a_descent_beyond_the_range_of_float16() -> None:
    """Relevance of 1e-9 a cell, which float16 has no number for, arrives."""
    model = halved("residual", "float16")
    head = next(t for t in model.graph.initializer if t.name == "fc.1")
    head.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(head) * 1e-6).astype(np.float16), head.name))
    next(n for n in model.graph.node if n.op_type == "Gemm").input[2] = ""
    found = Explainer(model).explain(tiny_models.pictures(tiny_models.residual(), 1).astype(np.float16), target=1)
    assert 0 < np.abs(found.relevance).max() < 6e-8, "float16's smallest number"
    assert found.ledger.residual < 1e-5


class Small(torch.nn.Module):
    """conv-bn-relu, max-pool, a depthwise branch behind SiLU that is added, linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.deep, self.mix = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Linear(8, 5)
        for tensor, low, high in ((self.bn.running_mean, -0.3, 0.3), (self.bn.running_var, 0.5, 2.0)):
            tensor.uniform_(low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.bn(self.stem(x))), 2)
        x = torch.relu(x + self.mix(torch.nn.functional.silu(self.deep(x))))
        return self.head(x.mean((2, 3)))


def test_a_bfloat16_model_answers_as_pytorch_does() -> None:
    """onnxruntime cannot run it on a CPU: each operator in float32, each result a bfloat16 number, and a note."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 16, 12)).astype(np.float32))
    plain = Explainer(export(Small().eval(), x))
    narrow = Small().eval().to(torch.bfloat16)
    explainer = Explainer(export(narrow, x.to(torch.bfloat16)))
    assert explainer.input_dtype == "float32"
    assert any("rounded to bfloat16" in note for note in explainer.notes)
    assert not any("rounded to bfloat16" in note for note in plain.notes)
    found = explainer.explain(x.numpy(), target=1)
    with torch.no_grad():
        expected = narrow(x.to(torch.bfloat16)).float().numpy()
    # One step of bfloat16 is 2^-8 of a number.
    np.testing.assert_allclose(found.logits, expected, atol=2**-7 * np.abs(expected).max())
    a = plain.explain(x.numpy(), target=1)
    assert np.abs(found.logits - a.logits).max() > 2**-12, "nothing was rounded"
    assert explainer.coverage().complete
    assert found.ledger.residual < 1e-5
    assert np.corrcoef(a.relevance.ravel(), found.relevance.ravel())[0, 1] > 0.99
    names = [layer.output for layer in explainer.graph.layers]
    for name, values in explainer.activations(x.numpy(), names).items():
        np.testing.assert_array_equal(values, values.astype(ml_dtypes.bfloat16).astype(np.float32), err_msg=name)
    # The rounding is no layer of its own.
    assert [layer.op for layer in explainer.graph.layers].count("Cast") <= 1


def test_weights_that_are_stored_in_bfloat16() -> None:
    """A float32 network whose weights come through a Cast: the constants are folded, nothing is rounded."""
    model = tiny_models.residual()
    x = tiny_models.pictures(model, 2)
    expected = tiny_models.residual()
    for tensor, twin in zip(model.graph.initializer, expected.graph.initializer, strict=True):
        value = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        twin.CopyFrom(numpy_helper.from_array(value.astype(np.float32), twin.name))
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(value, f"{name}.bf16"))
        cast = onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    stored = Explainer(model)
    a, b = Explainer(expected).explain(x, target=1), stored.explain(x, target=1)
    np.testing.assert_allclose(b.logits, a.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b.relevance, a.relevance, rtol=1e-4, atol=1e-7)
    assert "bfloat16" in stored.model_precision
