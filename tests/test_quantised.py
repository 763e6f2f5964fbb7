"""int8 graphs as onnxruntime's own quantiser writes them: decoded layers compute what the integer ones compute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from fgcam_onnx import Explainer, testing
from fgcam_onnx.backends.base import Program, Verbs
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.feeds import Feeds
from fgcam_onnx.graph.layer import SATURATE, Layer, LayerGraph
from fgcam_onnx.node import Node
from fgcam_onnx.rules.conv import Conv

# Format, a scale for each channel of the weights, types of activations and weights, symmetric activations.
KINDS = {
    "qoperator": (QuantFormat.QOperator, False, QuantType.QUInt8, QuantType.QInt8, False),
    "qoperator-per-channel": (QuantFormat.QOperator, True, QuantType.QUInt8, QuantType.QInt8, False),
    "qoperator-uint8-weights": (QuantFormat.QOperator, False, QuantType.QUInt8, QuantType.QUInt8, False),
    "qdq": (QuantFormat.QDQ, False, QuantType.QUInt8, QuantType.QInt8, False),
    "qdq-per-channel-int8": (QuantFormat.QDQ, True, QuantType.QInt8, QuantType.QInt8, False),
    "qdq-symmetric": (QuantFormat.QDQ, True, QuantType.QInt8, QuantType.QInt8, True),
}
DYNAMIC = "dynamic"
SHAPE = (4, 3, 16, 12)


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, x: np.ndarray) -> None:
        self.left = iter([{name: x[i : i + 1]} for i in range(len(x))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE[1:])).astype(np.float32)


@cache
def quantised(kind: str, network: str) -> tuple[bytes, bytes]:
    """The float model and its int8 twin."""
    import tempfile

    model: onnx.ModelProto = getattr(tiny_models, network)()
    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (Path(folder) / f"{name}.onnx" for name in ("float", "ready", "int8"))
        onnx.save(model, source)
        logging.disable(logging.WARNING)
        try:
            # As its documentation asks: BatchNormalization is folded before anything is quantised.
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            if kind == DYNAMIC:
                quantize_dynamic(str(ready), str(target), weight_type=QuantType.QUInt8)
            else:
                fmt, per_channel, activations, weights, symmetric = KINDS[kind]
                quantize_static(
                    str(ready), str(target), _Pictures(model.graph.input[0].name, pictures(16, 1)), quant_format=fmt,
                    per_channel=per_channel, activation_type=activations, weight_type=weights,
                    extra_options={"ActivationSymmetric": symmetric},
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        return source.read_bytes(), target.read_bytes()


CASES = [(kind, network) for kind in KINDS for network in ("vgg", "residual")]
# Those with a Concat, a Sigmoid that is multiplied, and a Softmax at the end.
MAPS = [*CASES, *((DYNAMIC, network) for network in ("vgg", "residual"))]
MAPS += [(kind, network) for kind in (*KINDS, DYNAMIC) for network in ("concat", "squeeze_excite", "softmax_end")]


def activations(explainer: Explainer, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Decoded activations by name, in float64."""
    found = explainer.activations(x, names)
    out = {}
    for name, value in found.items():
        tensor = explainer.graph.tensor(name)
        scale = 1.0 if tensor.scale is None else tensor.scale
        out[name] = (value.astype(np.float64) - (tensor.zero_point if tensor.scale is not None else 0)) * scale
    return out


def convolutions(graph: LayerGraph) -> list[tuple[Layer, Layer]]:
    """(convolution, the Saturate behind it)."""
    return [
        (layer, graph.consumers(layer.output)[0])
        for layer in graph.layers
        if layer.op == "Conv" and graph.consumers(layer.output)[0].op == SATURATE
    ]


def convolved(
    graph: LayerGraph, conv: Layer, tape: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> np.ndarray:
    """The decoded convolution of the decoded input, in float64, without bias."""

    def run(xp: Verbs, inputs: Mapping[str, Any]) -> dict[str, Any]:
        node = Node(conv, graph, xp, inputs, shapes)
        return {"z": Conv.apply(node, inputs[conv.inputs[0]], xp.constant(conv.constants[1]), xp)}

    return NumpyBackend(np.float64).execute(Program("z", run), tape)["z"]


@cache
def saturates() -> bool:
    """Do onnxruntime's integer convolutions overflow 16 bits, as they do where the processor has no VNNI?

    Products of unsigned activations and signed weights are then added in pairs in 16 bits.
    """
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    shape, largest = [1, 8, 4, 4], 8 * 255 * 127
    constants: dict[str, Any] = {
        "one": np.float32(1), "zero": np.uint8(0), "w": np.full((8, 8, 1, 1), 127, np.int8), "w_zero": np.int8(0),
        "scale": np.float32(largest / 255),
    }  # fmt: skip
    inputs = ["x", "one", "zero", "w", "one", "w_zero", "scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", inputs, ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full(shape, 255, np.uint8)})
    return bool((y != 255).any())


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_a_decoded_convolution_computes_what_the_integer_one_does(kind: str, network: str) -> None:
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor: they are not what the file says")
    explainer = Explainer(quantised(kind, network)[1])
    x = pictures(2, 2)
    pairs = convolutions(explainer.graph)
    assert pairs
    for conv, clamp in pairs:
        names = [conv.inputs[0], clamp.output]
        tape = activations(explainer, x, names)
        weight, bias = conv.constants[1], conv.constants.get(2, np.zeros(1))

        shapes = {name: array.shape for name, array in tape.items()} | {conv.output: tape[clamp.output].shape}
        z = convolved(explainer.graph, conv, tape, shapes)
        z = z + bias.reshape(1, -1, *[1] * (weight.ndim - 2))
        expected = np.clip(z, clamp.attributes["low"], clamp.attributes["high"])
        step = explainer.graph.tensor(clamp.output).scale
        assert step is not None
        assert np.abs(expected - tape[clamp.output]).max() <= 0.51 * step


@pytest.mark.parametrize(("kind", "network"), MAPS)
def test_the_int8_map_is_close_to_the_float_map_and_accounted_for(kind: str, network: str) -> None:
    plain, integer = (Explainer(content) for content in quantised(kind, network))
    x = pictures(4, 3)
    target = plain.explain(x).target
    coverage = integer.coverage()
    assert coverage.complete, coverage.gaps
    for method in ("fg-grad-cam", "grad-cam", "fg-layer-cam"):
        a, b = (e.explain(x, method=method, target=list(target)) for e in (plain, integer))
        assert b.ledger.residual < 1e-4
        pearson = np.corrcoef(a.relevance.ravel(), b.relevance.ravel())[0, 1]
        assert pearson > 0.9, (method, pearson)
        # The scale too: a tensor read as bare integers would keep the shape of the map and multiply its size.
        np.testing.assert_allclose(np.abs(b.relevance).sum(), np.abs(a.relevance).sum(), rtol=0.1)


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_the_forward_pass_is_the_quantised_one(kind: str) -> None:
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor, and not the same in every fusion")
    content = quantised(kind, "vgg")[1]
    x = pictures(3, 4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    # A dynamically quantised model scales by the range of its batch: each picture is run as if it came alone.
    scores = np.concatenate([session.run(None, {name: x[i : i + 1]})[0] for i in range(len(x))])
    np.testing.assert_allclose(Explainer(content).explain(x).logits, scores, rtol=1e-6, atol=1e-6)


def test_an_absorbed_relu_is_on_the_way_of_the_gradient() -> None:
    """In int8 the ReLU is the lower end of the range: where it bites, the gradient is 0, as behind the float ReLU."""
    content = quantised("qoperator", "vgg")[1]
    explainer = Explainer(content)
    graph = explainer.graph
    absorbed = [clamp for _, clamp in convolutions(graph) if graph.tensor(clamp.output).nonnegative]
    assert absorbed, "the quantiser should have absorbed a ReLU"
    from fgcam_onnx.composite import GradientComposite
    from fgcam_onnx.descent import walk

    source = absorbed[0].inputs[0]
    steps, gaps = walk(graph, graph.logits, source, GradientComposite())
    assert not gaps
    assert any(step.layer.op == SATURATE and step.layer.name == absorbed[0].name for step in steps)


def test_signs_come_from_zero_points() -> None:
    explainer = Explainer(quantised("qoperator", "vgg")[1])
    x = pictures(8, 5)
    graph = explainer.graph
    names = [n for n, t in graph.tensors.items() if t.scale is not None and graph.producer(n) is not None]
    assert names
    for name, values in activations(explainer, x, names).items():
        if graph.tensor(name).nonnegative:
            assert values.min() >= 0, name


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_rules_read_onnxruntimes_own_dequantised_values(kind: str) -> None:
    """Bit for bit: what a DequantizeLinear in the model makes of each integer tensor is what the tape holds."""
    x = pictures(1, 6)
    explainer = Explainer(quantised(kind, "residual")[1])
    graph = explainer.graph
    names = [name for name, tensor in graph.tensors.items() if tensor.scale is not None and graph.producer(name)]
    assert len(names) >= 6
    integers = explainer.activations(x, names)
    model = onnx.ModelProto.FromString(quantised(kind, "residual")[1])
    for name in names:
        tensor = graph.tensor(name)
        pair = [tensor.scale, tensor.zero_point]
        for i, (value, dtype) in enumerate(zip(pair, (np.float32, integers[name].dtype), strict=True)):
            if not isinstance(value, str):
                pair[i] = f"{name}.{i}"
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), pair[i]))
        model.graph.node.append(onnx.helper.make_node("DequantizeLinear", [name, *pair], [f"{name}.read"]))
    engine = Explainer(model)._engine
    reads = {f"{name}.read" for name in names}
    engine.forward.require({*names, *reads})
    tape = engine.tape(engine.graph, x, {}, [], [*names, *reads])
    for name in names:
        assert np.ptp(tape.array(name)) > 0
        np.testing.assert_array_equal(tape.array(name), tape.array(f"{name}.read"))


def test_pictures_of_a_dynamic_model_do_not_see_each_other() -> None:
    """Its steps come from the range of the batch: a glaring neighbour would coarsen a picture's own. A note says so."""
    explainer = Explainer(quantised(DYNAMIC, "residual")[1])
    x = pictures(2, 7)
    x[1] *= 50
    both, alone = explainer.explain(x, target=1), explainer.explain(x[:1], target=1)
    np.testing.assert_array_equal(both.relevance[0], alone.relevance[0])
    np.testing.assert_array_equal(both.logits[0], alone.logits[0])
    assert any("range of each batch" in note for note in both.provenance["notes"])
    scores = {m: explainer.explain(x, target=1, method=m).relevance[0] for m in ("score-cam", "ablation-cam")}
    for method, found in scores.items():
        np.testing.assert_array_equal(found, explainer.explain(x[:1], target=1, method=method).relevance[0])


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_a_softmax_between_quantisers_is_stripped(kind: str) -> None:
    """The explained tensor is what the Softmax reads, in the numbers that its integers stand for."""
    plain, integer = (Explainer(content) for content in quantised(kind, "softmax_end"))
    assert integer.graph.head == "Softmax"
    x = pictures(4, 8)
    a, b = plain.explain(x, target=2), integer.explain(x, target=2)
    assert a.logits.min() < 0, "probabilities would not be"
    np.testing.assert_allclose(b.logits, a.logits, atol=0.1 * np.ptp(a.logits))


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_a_quantised_model_passes_the_checks_of_a_model(kind: str) -> None:
    """Forward pass beside a bare session, books, batches and backends: what every model of a user is checked for."""
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor, and not the same in every fusion")
    report = testing.check_model(quantised(kind, "residual")[1], pictures(2, 3))
    assert {row.check for row in report.ran} >= {"coverage", "forward", "map", "ledger", "batch", "backend ort"}


WORDS = {
    "qoperator": "int8 (QOperator, weights int8, activations uint8)",
    "qoperator-per-channel": "int8 (QOperator, weights int8 per channel, activations uint8)",
    "qoperator-uint8-weights": "int8 (QOperator, weights uint8, activations uint8)",
    "qdq": "int8 (QDQ, weights int8, activations uint8)",
    "qdq-per-channel-int8": "int8 (QDQ, weights int8 per channel, activations int8)",
    "qdq-symmetric": "int8 (QDQ, weights int8 per channel, activations int8)",
    DYNAMIC: "int8 (dynamic, weights uint8, activations uint8)",
}


@pytest.mark.parametrize("kind", WORDS)
def test_what_a_model_computes_in_is_said(kind: str) -> None:
    plain, integer = (Explainer(content) for content in quantised(kind, "vgg"))
    assert plain.model_precision == "float32"
    assert integer.model_precision == WORDS[kind]
    assert integer.explain(pictures(1, 9)).provenance["model_precision"] == WORDS[kind]


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_the_model_behind_an_integer_tensor(kind: str) -> None:
    """Fed with a decoded activation, what lies behind it gives the logits of the whole: zero points are put back."""
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor, and not the same in every fusion")
    engine = Explainer(quantised(kind, "residual")[1])._engine
    graph, x = engine.graph, pictures(1, 10)
    upstream = graph.ancestors(graph.logits)
    names = [n for n, t in graph.tensors.items() if t.scale is not None and n in upstream and graph.producer(n)]
    tape = engine.tape(graph, x, {}, [], names)
    points = any(graph.tensor(name).zero_point for name in names)
    assert points == (kind != "qdq-symmetric"), names
    expected = tape.array(graph.logits)
    for name in names:
        found = engine.behind(name).run(tape.array(name), x, Feeds({}, frozenset())).array(graph.logits)
        # Reading a tensor may change a fusion, and the result by a step of its quantiser.
        np.testing.assert_allclose(found, expected, atol=0.02 * np.ptp(expected), err_msg=name)


@pytest.mark.parametrize("kind", [*KINDS, DYNAMIC])
def test_masks_are_put_on_an_integer_layer(kind: str) -> None:
    """Score-CAM and its kin run what lies behind L, which may be the sum of an operator that onnx does not know."""
    explainer = Explainer(quantised(kind, "residual")[1])
    for method in ("score-cam", "fg-score-cam", "ablation-cam"):
        assert explainer.explain(pictures(2, 11), method=method, target=1).relevance.any()
