"""Every bad input ends in one FgcamError that fits a screen: what happened, where, what is known, what to do next.

Texts are compared word by word: what a user reads is part of the product.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import helper
from tiny_models import Net

from fgcam_onnx import Explainer, errors
from fgcam_onnx.errors import (
    ActivationError,
    BackendError,
    FgcamError,
    InputError,
    LayerError,
    MethodError,
    MissingRuntimeError,
    ModelError,
    OptionError,
    TargetError,
    UnsupportedOpError,
    nearest,
)

MODEL = tiny_models.vgg()
X = tiny_models.pictures(MODEL)
EXTRAS = 'pip install "fgcam_onnx[cpu]" without a GPU, "fgcam_onnx[gpu]" (CUDA 13) or "fgcam_onnx[gpu-cuda12]" with one'


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODEL)


def caught(kind: type[FgcamError], call: Callable[[], object]) -> str:
    """The text of the error that ``call`` raises: exactly of that kind, with its exit code, on one screen."""
    with pytest.raises(FgcamError) as info:
        call()
    error = info.value
    assert type(error) is kind
    assert error.exit_code == (2 if kind in (LayerError, TargetError, MethodError, OptionError) else 1)
    text = str(error)
    assert len(text.splitlines()) <= 4
    assert text.splitlines()[0] == error.what
    assert not any(line.rstrip() != line for line in text.splitlines())
    assert "{" not in text.replace("{'use_tf32", "!").replace("inputs={", "!"), "a forgotten f-string prefix"
    return text


# --- the tree -----------------------------------------------------------------------------------------------


def test_text_is_what_at_known_next() -> None:
    assert str(FgcamError("it broke")) == "it broke"
    assert str(FgcamError("it broke", next="mend it")) == "it broke\n  next    mend it"
    assert str(FgcamError("it broke", at="here", known="this", next="that")) == (
        "it broke\n  at      here\n  known   this\n  next    that"
    )


def test_exit_codes_and_one_tree() -> None:
    """1 for a failure, 2 for a wrong word in a command; every class is under FgcamError and exported."""
    classes = {name: c for name, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    assert set(classes) | {"nearest"} == set(errors.__all__)
    codes = {name: c.exit_code for name, c in classes.items() if issubclass(c, FgcamError)}
    assert set(codes) == set(classes)
    assert {name for name, code in codes.items() if code == 2} == {
        "LayerError", "MethodError", "OptionError", "TargetError"
    }  # fmt: skip
    assert set(codes.values()) == {1, 2}
    assert issubclass(MissingRuntimeError, ImportError)


def test_nearest() -> None:
    assert nearest("relu1y", ["relu1.y", "conv1", "relu2.y"]) == "did you mean 'relu1.y', 'relu2.y'?"
    assert nearest("GRAD-CAM", ["grad-cam", "score-cam"], n=1) == "did you mean 'grad-cam'?"
    assert nearest("zzz", ["relu"]) == ""
    assert nearest("x", []) == ""


# --- the model ----------------------------------------------------------------------------------------------


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(MODEL.SerializeToString()[:1000])
    assert caught(ModelError, lambda: Explainer(path)) == (
        f"{path} is not an ONNX model: its bytes do not parse\n"
        "  known   1,000 bytes, starting with b'\\x08\\x08:\\xa8<\\n9\\n'\n"
        "  next    the file is truncated, or of another format: export or download it again"
    )


def test_a_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert caught(ModelError, lambda: Explainer(path)) == (
        f"{path} is not an ONNX model: its bytes do not parse\n"
        "  known   8 bytes, starting with b'\\x89PNG\\r\\n\\x1a\\n'\n"
        "  next    the file is truncated, or of another format: export or download it again"
    )


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    assert caught(ModelError, lambda: Explainer(path)) == (
        f"{path} is not an ONNX model: it has 0 nodes and 0 opset imports\n"
        "  known   0 bytes, starting with b''\n"
        "  next    the file is truncated, or of another format: export or download it again"
    )


def test_an_invalid_model() -> None:
    broken = tiny_models.vgg()
    broken.graph.node[2].op_type = "Reluu"
    assert caught(ModelError, lambda: Explainer(broken)) == (
        "the given model is not a valid ONNX model\n"
        "  known   No Op registered for Reluu with domain_version of 17 ==> Context: Bad node spec for node. "
        "Name: relu1 OpType: Reluu\n"
        "  next    export it again, or report the file to whoever made it"
    )


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    path = tiny_models.external(MODEL, tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    name = proto.graph.initializer[0].name
    next(e for e in proto.graph.initializer[0].external_data if e.key == "location").value = "../weights.bin"
    path.write_bytes(proto.SerializeToString())
    assert caught(ModelError, lambda: Explainer(path)) == (
        "external data '../weights.bin' lies outside the model's folder\n"
        f"  at      tensor {name!r} of {path}\n"
        f"  known   it resolves to {tmp_path.parent / 'weights.bin'}, the folder is {tmp_path}\n"
        "  next    a model may only read files beside it: do not trust this file"
    )


def test_external_data_missing(tmp_path: Path) -> None:
    path = tiny_models.external(MODEL, tmp_path)
    (tmp_path / "weights.bin").unlink()
    name = MODEL.graph.initializer[0].name
    assert caught(ModelError, lambda: Explainer(path)) == (
        "the side file 'weights.bin' with the model's weights is missing\n"
        f"  at      tensor {name!r} of {path}\n"
        f"  known   looked in {tmp_path}\n"
        "  next    copy it beside the .onnx file"
    )


def test_a_model_without_convolutions() -> None:
    net = Net(("n", 20))
    model = net.model(net.node("Gemm", "fc", net.relu("relu", "image"), net.random(20, 5)))
    text = (
        "the model has no convolution: there is no spatial evidence to map\n"
        "  known   its operators are Gemm, Relu\n"
        "  next    fgcam_onnx explains convolutional networks; give the model of one"
    )
    explainer = Explainer(model)
    x = np.zeros((1, 20), np.float32)
    calls: tuple[Callable[[], object], ...] = (explainer.layers, explainer.coverage, lambda: explainer.explain(x))
    for call in calls:
        assert caught(ModelError, call) == text


def test_a_model_of_two_pictures() -> None:
    net = Net()
    right = net.input("right", ("n", 3, 16, 12))
    both = net.node("Concat", "both", "image", right, axis=1)
    model = net.model(net.head(net.relu("relu", net.conv("conv", both, 6, 4)), 4))
    assert caught(ModelError, lambda: Explainer(model)) == (
        "which input of the model is the picture is not clear: 2 of those that feed 'fc.y' could be\n"
        "  known   image [n, 3, 16, 12], right [n, 3, 16, 12]\n"
        "  next    name it: Explainer(model, input='name') or --input; explain(x, inputs={...}) takes the others"
    )
    assert caught(ModelError, lambda: Explainer(model, input="left")) == (
        "the model has no input 'left'\n  known   its inputs are image [n, 3, 16, 12], right [n, 3, 16, 12]"
    )


def test_an_input_that_does_not_feed_the_output() -> None:
    net = Net()
    net.input("other", ("n", 3, 16, 12))
    second = net.relu("second", "other")
    model = net.model(net.head(net.relu("relu", net.conv("conv", "image", 3, 4)), 4), second)
    assert caught(ModelError, lambda: Explainer(model, input="other")) == (
        "output 'fc.y' does not depend on input 'other'\n"
        "  known   it depends on image [n, 3, 16, 12]\n"
        "  next    name another input, or another output"
    )


def test_inputs_beside_the_picture() -> None:
    """A missing one, one too many, a wrong shape, a wrong number of rows, numbers that are none."""
    model = tiny_models.two_inputs()
    explainer = Explainer(model)
    x = tiny_models.pictures(model, 3)
    facts = np.zeros((3, 2), np.float32)
    takes = "the model takes facts [n, 2] float32, the first axis is the batch"
    for inputs, text in (
        (None, "input 'facts' is missing: the model takes it beside the picture\n"
               "  known   facts [n, 2] float32\n"
               "  next    explain(x, inputs={'facts': array}); --inputs NAME=FILE.npy"),
        ({"facts": facts, "fact": facts}, "the model has no input 'fact'\n"
               "  known   beside the picture 'image' it takes facts\n  next    did you mean 'facts'?"),
        ({"image": x}, "input 'image' is the picture\n  next    give it as x: inputs= takes the others"),
        ({"facts": facts[:, :1]}, f"input 'facts' has shape [3, 1]\n  known   {takes}"),
        ({"facts": facts[:2]}, f"input 'facts' has 2 rows for 3 images\n  known   {takes}\n"
               "  next    give a row for each image, or one row for all"),
        ({"facts": facts * np.nan}, "input 'facts' holds 6 NaN or Inf\n  at      first at [0, 0]"),
        ({"facts": facts.astype(float) + 1e300}, "input 'facts' holds 6 numbers that float32 cannot\n"
               "  at      first at [0, 0]: 1e+300\n"
               "  next    the model takes float32: check the preprocessing, or round and clip the numbers yourself"),
        ({"facts": [["a", "b"]] * 3}, "input 'facts' has dtype <U1, the model takes float32\n"
               "  next    give an array of numbers"),
    ):  # fmt: skip
        assert caught(InputError, partial(explainer.explain, x, inputs=inputs)) == text


def test_an_input_that_takes_no_numbers() -> None:
    net = Net()
    net.input("word", ("n",), onnx.TensorProto.STRING)
    explainer = Explainer(net.model(net.head(net.relu("relu", net.conv("conv", "image", 3, 4)), 4)))
    assert caught(InputError, lambda: explainer.explain(X, inputs={"word": np.zeros(2)})) == (
        "input 'word' would have to be object, which is no number\n  next    only inputs of numbers can be given"
    )


def test_a_value_that_is_in_the_file_cannot_be_given() -> None:
    """An old exporter lists every weight as an input: the walk reads the file's, so another one must not run."""
    model = tiny_models.vgg()
    weight = model.graph.initializer[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    explainer = Explainer(model)
    assert explainer.other_inputs == {}
    x = tiny_models.pictures(model, 1)
    assert caught(InputError, lambda: explainer.explain(x, inputs={weight.name: np.zeros(weight.dims)})) == (
        f"input {weight.name!r} has its value in the file, and the walk reads that value as a constant\n"
        "  next    leave it out; to explain another value, change or delete this initializer in the file"
    )
    expected = Explainer(tiny_models.vgg()).explain(x).relevance
    np.testing.assert_allclose(explainer.explain(x).relevance, expected, rtol=1e-4, atol=1e-7)


def test_an_output_that_does_not_exist() -> None:
    assert caught(ModelError, lambda: Explainer(MODEL, output="fc2y")) == (
        "the model has no output 'fc2y'\n"
        "  known   its outputs are fc2.y [n, 5]\n"
        "  next    did you mean 'fc2.y', 'fc1.y', 'conv2.y'?"
    )


def test_a_tensor_that_holds_less_than_it_states() -> None:
    broken = tiny_models.vgg()
    broken.graph.initializer[0].dims[0] = 1 << 40
    name = broken.graph.initializer[0].name
    assert caught(ModelError, lambda: Explainer(broken)) == (
        f"tensor {name!r} states 118,747,255,799,808 bytes and holds 648\n"
        "  at      the given model\n"
        "  known   shape [1099511627776, 3, 3, 3], type FLOAT\n"
        "  next    the file is damaged: export or download it again"
    )


# --- operators without a rule -------------------------------------------------------------------------------


def unsupported(op: str, make: Callable[[Net, str], str]) -> str:
    net = Net()
    x = make(net, net.conv("conv1", "image", 3, 6))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    explainer = Explainer(model)
    gaps = explainer.coverage().gaps
    assert [gap.node for gap in gaps] == ["middle"]
    assert not explainer.coverage().complete
    text = caught(UnsupportedOpError, lambda: explainer.explain(tiny_models.pictures(model)))
    assert text.splitlines()[1] == "  at      node 'middle'   (conv1 -> middle -> conv2)"
    decided = op in ("Softmax", "Einsum", "If", "LSTM")
    assert text.splitlines()[3] == "  next    " + (
        "a map may be had behind it: layer= a tensor between this node and the scores (fgcam inspect)"
        if decided
        else f"register one, as rules/{op.lower()}.py would: see 'Adding a rule' in the README"
    )
    assert text.splitlines()[2].startswith("  known   Abs, Add, AveragePool, BatchNormalization and ")
    assert text.splitlines()[2].endswith(" more: fgcam ops")
    return text.splitlines()[0]


def test_operators_without_a_rule() -> None:
    """Named with their version and their place in the graph, before anything runs; coverage() says the same."""
    softmax = unsupported("Softmax", lambda net, x: net.node("Softmax", "middle", x, axis=1))
    assert softmax == (
        "no relevance rule for Softmax-13: inside the path: relevance starts at the logits, before any Softmax"
    )
    einsum = unsupported("Einsum", lambda net, x: net.node("Einsum", "middle", x, x, equation="nchw,nchw->nchw"))
    assert einsum == (
        "no relevance rule for Einsum-12: attention: cells are mixed by weights computed from the cells, and there is "
        "no relevance rule for that"
    )
    rounded = unsupported("Round", lambda net, x: net.node("Round", "middle", x))
    assert rounded == "no relevance rule for Round-11"


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "given"])
def test_a_subgraph_on_the_path(captured: bool) -> None:
    """Its branches read activations as their own names, not as inputs of the node: no relevance may slip past it.

    ``captured``: they alone do; else the condition is computed from the activation as well.
    """
    inner = helper.make_graph(
        [helper.make_node("Relu", ["conv1.y"], ["inner"])], "branch", [], [onnx.ValueInfoProto(name="inner")]
    )
    net = Net()
    x = net.conv("conv1", "image", 3, 6)
    read = net.input("bias", ()) if captured else x
    total = net.node("ReduceSum", "total", read, keepdims=0)
    condition = net.node("Greater", "condition", total, np.asarray(0.0))
    x = net.node("If", "middle", condition, then_branch=inner, else_branch=inner)
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", net.node("Add", "sum", x, "conv1.y"), 6, 8)), 8))
    explainer = Explainer(model)
    assert "middle" in [gap.node for gap in explainer.coverage().gaps]
    others = {"bias": np.float32(1)} if captured else None
    text = caught(UnsupportedOpError, lambda: explainer.explain(tiny_models.pictures(model), inputs=others))
    assert text.splitlines()[0].startswith(
        "no relevance rule for If-16: it runs a subgraph, whose activations cannot be read from outside: "
        "export the model without control flow"
    )
    assert text.splitlines()[1].startswith("  at      node 'middle'")


def test_an_operator_that_is_refused_for_a_reason() -> None:
    """An operator that has a rule, in a form that rule does not serve."""
    net = Net(("n", 3, 12, 12))
    x = net.conv("conv1", "image", 3, 6)
    x = net.node("MatMul", "middle", x, net.relu("relu1", x))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    text = caught(UnsupportedOpError, lambda: Explainer(model).explain(tiny_models.pictures(model)))
    assert text.splitlines()[0] == (
        "no relevance rule for MatMul-13: it multiplies two activations (attention): "
        "there is no relevance rule for that"
    )


def test_nothing_runs_before_the_rules_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes without a forward pass."""
    explainer = Explainer(tiny_models.attention())
    monkeypatch.setattr(explainer._forward, "run", lambda *args: pytest.fail("the network ran"))
    caught(UnsupportedOpError, lambda: explainer.explain(X))


# --- the input ----------------------------------------------------------------------------------------------

TAKES = "the model takes [n, c, h, w] = [any, 3, 16, 12]"
AT = "  at      input 'image', layout NCHW"
BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "no batch axis": (
        X[0],
        f"the input has shape [3, 16, 12], {TAKES}\n{AT}\n  next    add the batch axis: x[None]",
    ),
    "channels last": (
        X.transpose(0, 2, 3, 1),
        f"the input has shape [2, 16, 12, 3], {TAKES}\n{AT}\n"
        "  next    the axes are in another order: x.transpose(0, 3, 1, 2)",
    ),
    "another size": (
        np.zeros((1, 3, 8, 8), np.float32),
        f"the input has shape [1, 3, 8, 8], {TAKES}\n{AT}\n  next    preprocess the image to this size",
    ),
    "no images": (X[:0], "the input is empty: shape [0, 3, 16, 12]"),
    "text": (
        np.array(["a", "b"]),
        "the input has dtype <U1, the model takes float32 [n, c, h, w] = [any, 3, 16, 12]\n"
        "  next    give an array of numbers",
    ),
    "complex": (
        X.astype(np.complex128),
        "the input has dtype complex128, the model takes float32 [n, c, h, w] = [any, 3, 16, 12]\n"
        "  next    give an array of numbers",
    ),
    "nothing": (
        None,
        "the input has dtype object, the model takes float32 [n, c, h, w] = [any, 3, 16, 12]\n"
        "  next    give an array of numbers",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_inputs_that_do_not_fit(explainer: Explainer, case: str) -> None:
    x, text = BAD_INPUTS[case]
    assert caught(InputError, lambda: explainer.explain(x)) == text


def test_rows_of_different_lengths(explainer: Explainer) -> None:
    text = caught(InputError, lambda: explainer.explain([[1, 2], [3]]))
    assert text.startswith("the input is no array: setting an array element with a sequence.")


def test_the_hint_for_a_channels_last_model() -> None:
    model = tiny_models.nhwc()
    text = caught(InputError, lambda: Explainer(model).explain(np.zeros((1, 3, 16, 12), np.float32)))
    assert text == (
        "the input has shape [1, 3, 16, 12], the model takes [n, h, w, c] = [any, 16, 12, 3]\n"
        "  at      input 'image', layout NHWC\n"
        "  next    the axes are in another order: x.transpose(0, 2, 3, 1)"
    )


def test_nan_and_inf_pixels(explainer: Explainer) -> None:
    x = X.copy()
    x[1, 2, 3, 4], x[1, 0, 5, 6] = np.nan, np.inf
    assert caught(InputError, lambda: explainer.explain(x)) == (
        "the input holds 2 NaN or Inf\n"
        "  at      first at [n, c, h, w] = [1, 0, 5, 6]\n"
        "  next    clean the picture before it is explained"
    )


@pytest.mark.parametrize("method", ["fg-grad-cam", "grad-cam", "fg-score-cam"])
def test_nan_that_the_network_computes(method: str) -> None:
    """The first tensor that is not finite is named, never turned into a number."""
    net = Net()
    x = net.node("Log", "log", net.conv("conv1", "image", 3, 6))
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))
    bad = int(np.isnan(tiny_models.run(model, X, "log.y")[0]).sum())
    explainer = Explainer(model)
    text = caught(ActivationError, lambda: explainer.explain(X, method=method))
    first = "log.y" if method.startswith("fg-") else "relu2.y"
    if first == "log.y":
        assert text.splitlines()[0] == f"the network computed NaN or Inf: {bad} of {2 * 6 * 16 * 12} values"
        assert text.splitlines()[1] == "  at      tensor 'log.y' of node 'log' (Log)"
    else:
        assert text.splitlines()[1] == "  at      tensor 'relu2.y' of node 'relu2' (Relu)"
    assert text.splitlines()[2:] == [
        "  known   earlier tensors that were read are finite",
        "  next    the model overflows on this input: check its weights, its precision and the preprocessing",
    ]


def test_nan_weights() -> None:
    """A damaged weight shows in the first tensor it reaches."""
    model = tiny_models.vgg()
    weight = next(t for t in model.graph.initializer if t.name == "fc1.1")
    weight.raw_data = np.full(tuple(weight.dims), np.nan, np.float32).tobytes()
    text = caught(ActivationError, lambda: Explainer(model).explain(X))
    assert "tensor 'relu3.y'" in text or "tensor 'fc2.y'" in text


# --- words: class, layer, method, option, backend, provider -------------------------------------------------


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (7, "there is no class 7\n  known   the model has 5 classes, 0 to 4"),
        (-1, "there is no class -1\n  known   the model has 5 classes, 0 to 4"),
        ([0, 9], "there is no class 9\n  known   the model has 5 classes, 0 to 4"),
        (
            "cat",
            "there are no labels to look 'cat' up in\n  known   the model has 5 classes, 0 to 4\n"
            "  next    give the index, or a file of labels: --labels FILE",
        ),
        ([0, 1, 2], "3 targets for 2 images\n  next    give one target for all, or one for each image"),
        (1.5, "target is 1.5, a float\n  known   an index, a label, or None"),
    ],
    ids=str,
)
def test_a_class_that_does_not_exist(explainer: Explainer, target: Any, text: str) -> None:
    assert caught(TargetError, lambda: explainer.explain(X, target=target)) == text


def test_a_label_with_a_typo() -> None:
    explainer = Explainer(tiny_models.free_size(labels='["ant", "bee", "crow", "dog", "eel"]'))
    assert caught(TargetError, lambda: explainer.explain(X, target="crwo")) == (
        "no class is called 'crwo'\n  known   5 classes, 0 to 4\n  next    did you mean 'crow'?"
    )


@pytest.mark.parametrize("options", [{"layer": "relu1y"}, {"start": "relu1y"}], ids=str)
def test_a_layer_with_a_typo(explainer: Explainer, options: dict[str, Any]) -> None:
    assert caught(LayerError, lambda: explainer.explain(X, **options)) == (
        "the model has no layer 'relu1y'\n"
        "  known   11 tensors; the stages are input, pool1.y, pool2.y\n"
        "  next    did you mean 'relu1.y', 'relu1', 'relu3.y'?"
    )


def test_a_layer_without_space(explainer: Explainer) -> None:
    assert caught(LayerError, lambda: explainer.explain(X, method="grad-cam", layer="flat.y")) == (
        "tensor 'flat.y' has no space: no map can be drawn there\n"
        "  known   its shape is ['n', 96]\n"
        "  next    choose one of image, pool1.y, pool2.y"
    )


def test_a_layer_behind_the_start(explainer: Explainer) -> None:
    assert caught(LayerError, lambda: explainer.explain(X, layer="pool2", start="pool1")) == (
        "no relevance can reach 'pool2.y' from 'pool1.y'\n"
        "  known   the first is not upstream of the second\n"
        "  next    choose layer= upstream of start=: fgcam inspect lists both"
    )


def test_a_layer_behind_a_gate() -> None:
    explainer = Explainer(tiny_models.squeeze_excite())
    assert caught(LayerError, lambda: explainer.explain(X, layer="se.up")) == (
        "no relevance can reach 'se.up.y' from 'hs.div.y'\n"
        "  known   every way between them is a gate, which gets no relevance\n"
        "  next    choose layer= upstream of start=: fgcam inspect lists both"
    )


def test_two_places_for_a_cam(explainer: Explainer) -> None:
    assert caught(OptionError, lambda: explainer.explain(X, method="grad-cam", layer="pool2", start="pool1")) == (
        "grad-cam works at one layer, and layer='pool2' and start='pool1' are two\n"
        "  next    give one of them, or use fg-grad-cam to walk from one to the other"
    )


def test_an_unknown_method(explainer: Explainer) -> None:
    text = caught(MethodError, lambda: explainer.explain(X, method="fg-gradcam"))
    assert text.splitlines()[0] == "there is no method 'fg-gradcam'"
    assert text.splitlines()[2].startswith("  next    did you mean 'fg-grad-cam', ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"add": "zpluss"}, "option add cannot be 'zpluss'\n  known   its choices are zplus, norm\n"
                            "  next    did you mean 'zplus'?"),
        ({"relu": 3}, "option relu cannot be 3\n  known   its choices are mask, identity"),
        ({"maxpool": "all"}, "option maxpool cannot be 'all'\n  known   its choices are winner, winner_positive"),
        ({"zb_bounds": "mean"}, "option zb_bounds cannot be 'mean'\n"
                                "  known   'per_image', or a pair (low, high) of numbers or of one number a channel"),
        ({"zb_bounds": (1, 0)}, "option zb_bounds cannot be (1, 0)\n  known   a pair (low, high) with low <= high"),
        ({"zb_bounds": 3}, "option zb_bounds cannot be 3\n  known   a pair (low, high) with low <= high"),
        ({"zb_bounds": ((0, 0), (1, 1))}, "option zb_bounds has 2 numbers\n  known   the image has 3 channels"),
        ({"ratio": 0.1}, "option ratio belongs to denoising\n  next    add denoise=True"),
        ({"denoise": True, "ratio": 0},
         "option ratio cannot be 0\n  known   a share of the directions, above 0 and up to 1"),
        ({"batch_size": 0}, "option batch_size cannot be 0\n  known   images at a time, at least 1"),
        ({"firstlayer": "zB"},
         "method 'fg-grad-cam' has no option 'firstlayer'\n"
         "  known   composite, rules, bias, epsilon, first_layer, zb_bounds, batchnorm, relu, add, mul, maxpool, "
         "ratio, add_mean_back, support_mask\n"
         "  next    did you mean 'first_layer'?"),
    ],
    ids=str,
)  # fmt: skip
def test_options(explainer: Explainer, options: dict[str, Any], text: str) -> None:
    assert caught(OptionError, lambda: explainer.explain(X, **options)) == text


def test_an_unknown_option_of_coverage(explainer: Explainer) -> None:
    assert caught(OptionError, lambda: explainer.coverage(ad="norm")).splitlines()[0] == "coverage() has no option 'ad'"


def test_an_unknown_backend_or_precision() -> None:
    text = caught(OptionError, lambda: Explainer(MODEL, backend="orrt"))
    assert text.splitlines()[0] == "there is no backend 'orrt'"
    assert text.splitlines()[2] == "  next    did you mean 'ort'?"
    assert caught(OptionError, lambda: Explainer(MODEL, precision="float16")) == (
        "there is no precision 'float16'\n  known   float32, fast, float64"
    )
    assert caught(BackendError, lambda: Explainer(MODEL, backend="ort", precision="float64")) == (
        "backend 'ort' computes in float32 only\n  next    backend='numpy' computes in float64, slowly"
    )


@pytest.mark.parametrize("provider", ["NoSuchExecutionProvider", "CUDAExecutionProvider"])
def test_a_provider_that_is_not_here(provider: str) -> None:
    """Never another provider in its place."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider in available:
        pytest.skip(f"this onnxruntime has {provider}")
    text = caught(BackendError, lambda: Explainer(MODEL, providers=[provider]).explain(X))
    assert text == (
        f"execution provider {provider} is not in this onnxruntime\n"
        f"  known   it has {', '.join(available)}\n"
        f"  next    choose one of these, or install the build that has it: {EXTRAS}"
    )


def test_a_provider_that_falls_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime lists CUDA on machines that have none and goes on with the CPU: here that is an error."""
    import onnxruntime

    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    original = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers: original(model, options, providers=["CPUExecutionProvider"]),
    )
    text = caught(BackendError, lambda: Explainer(MODEL, providers=["CUDAExecutionProvider"]).explain(X))
    assert text.splitlines()[0] == (
        "execution provider CUDAExecutionProvider does not work here: onnxruntime fell back to CPUExecutionProvider"
    )


MISSING = """
import sys
{block}
from fgcam_onnx import Explainer
from fgcam_onnx.errors import MissingRuntimeError
try:
    Explainer({path!r}).explain(__import__("numpy").zeros((1, 3, 16, 12), "float32"))
except MissingRuntimeError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("sys.modules['onnxruntime'] = None",
         "onnxruntime is not installed: nothing can run the model\n"
         "  known   import of onnxruntime halted; None in sys.modules\n"
         f"  next    {EXTRAS}\n"),
        ("sys.modules['onnxruntime'] = type(sys)('onnxruntime')",
         "onnxruntime is installed but broken: it has no InferenceSession\n"
         "  known   onnxruntime and onnxruntime-gpu share one folder and break each other when both are installed\n"
         f"  next    uninstall both, then {EXTRAS}\n"),
    ],
    ids=["missing", "broken"],
)  # fmt: skip
def test_missing_onnxruntime(tmp_path: Path, block: str, text: str) -> None:
    """One clear error that names the extras, in a process of its own."""
    onnx.save_model(MODEL, tmp_path / "m.onnx")
    script = MISSING.format(block=block, path=str(tmp_path / "m.onnx"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, text), done.stderr


def test_the_runtime_s_own_complaints_reach_the_user_once(capfd: pytest.CaptureFixture[str]) -> None:
    """A forward pass that fails is one BackendError; onnxruntime prints nothing beside it."""
    net = Net(("n", 3, "h", "w"))
    x = net.node("Reshape", "fixed", net.relu("relu", net.conv("conv", "image", 3, 4)), np.array([-1, 4 * 10 * 10]))
    explainer = Explainer(net.model(net.node("Gemm", "fc", x, net.random(400, 5))))
    text = caught(BackendError, lambda: explainer.explain(np.zeros((1, 3, 9, 7), np.float32)))
    assert text.splitlines()[0] == "the forward pass failed"
    assert text.splitlines()[1] == "  at      input image [1, 3, 9, 7]"
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_scores_for_each_place_are_no_classes() -> None:
    """Flattened, a segmentation's output would pass for 960 classes, and a class index for a pixel."""
    net = tiny_models.Net()
    model = net.model(net.conv("c2", net.relu("r1", net.conv("c1", "image", 3, 6)), 6, 5))
    for target, said in ((3, "target 3"), (None, "no target"), ("cat", "target 'cat'")):
        with pytest.raises(TargetError) as caught:
            Explainer(model).explain(tiny_models.pictures(model, 1), target=target)
        assert str(caught.value) == (
            f"the output is dense, and {said} does not say which of its scores to explain\n"
            "  known   its axes after the batch are [class, y, x] = [5, 16, 12]\n"
            "  next    target=(class, y, x), with None to sum over an axis, or a function of the logits that returns "
            "how much each of them counts"
        )
