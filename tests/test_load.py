"""Reading models: every way to hand one over, and no file, however damaged or hostile, does worse than a FgcamError."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from fuzzing import corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fgcam_onnx import Explainer, memory
from fgcam_onnx.errors import FgcamError, ModelError, OptionError
from fgcam_onnx.graph.load import LoadedModel, load
from fgcam_onnx.graph.shapes import concrete_shapes

VALID = {name: model.SerializeToString() for name, model in tiny_models.by_layers().items()}
FUZZ = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))


def survives(content: bytes | onnx.ModelProto | Path) -> bool:
    """Read ``content`` all the way to an Explainer; False where a FgcamError refused it. Anything else is a failure."""
    refusal = None
    try:
        explainer = Explainer(content, threads=1)
        explainer.coverage()
    except FgcamError as error:
        refusal = error
    if refusal is not None:
        assert refusal.what
        assert len(str(refusal).splitlines()) <= 4, "an error fits one screen"
        return False
    assert explainer.num_classes >= 0
    return True


# --- ways to hand a model over ------------------------------------------------------------------------------


def test_path_bytes_and_proto_are_the_same_model(tmp_path: Path) -> None:
    """One model three ways: the same weights and graph; the checksum is that of the file."""
    model = tiny_models.vgg()
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path)
    ways = [load(path), load(str(path)), load(path.read_bytes()), load(model)]
    for way in ways:
        assert way.proto == ways[0].proto
        assert way.weights.keys() == ways[0].weights.keys()
        assert all(np.array_equal(way.weights[k], ways[0].weights[k]) for k in way.weights)
    assert {way.sha256 for way in ways[:3]} == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert [way.path for way in ways] == [path, path, None, None]


def test_large_weights_stand_apart_once() -> None:
    """Every initializer is either in ``weights`` or in the light graph, and ``weights`` has those of 1 KiB and more."""
    model = tiny_models.vgg()
    loaded = load(model)
    sizes = {t.name: len(t.raw_data) for t in model.graph.initializer}
    assert set(loaded.weights) == {name for name, size in sizes.items() if size >= 1024}
    held = {t.name: len(t.raw_data) for t in loaded.proto.graph.initializer}
    assert held == {name: 0 if name in loaded.weights else size for name, size in sizes.items()}


def test_a_given_proto_is_not_touched() -> None:
    model = tiny_models.residual()
    before = model.SerializeToString()
    load(model)
    assert model.SerializeToString() == before


def test_metadata_is_read() -> None:
    assert load(tiny_models.free_size(author="somebody", labels="[]")).metadata == {
        "author": "somebody",
        "labels": "[]",
    }


def test_external_data_beside_the_file_is_the_same_model(tmp_path: Path) -> None:
    """A model with its weights in a side file, also in a subfolder, gives the map of the one without."""
    model = tiny_models.vgg()
    x = tiny_models.pictures(model)
    expected = Explainer(model).explain(x).relevance
    (tmp_path / "weights").mkdir()
    for location in ("model.bin", "weights/model.bin"):
        path = tiny_models.external(model, tmp_path, location)
        np.testing.assert_array_equal(Explainer(path).explain(x).relevance, expected)
        path.unlink()


def test_sha256_covers_external_data(tmp_path: Path) -> None:
    """One changed bit in the side file is another checksum, and so is one in the model file."""
    path = tiny_models.external(tiny_models.vgg(), tmp_path)
    side = tmp_path / "weights.bin"
    seen = {load(path).sha256}
    assert seen == {hashlib.sha256(path.read_bytes() + side.read_bytes()).hexdigest()}
    content = bytearray(side.read_bytes())
    content[5] ^= 1
    side.write_bytes(content)
    seen.add(load(path).sha256)
    assert len(seen) == 2


def test_a_symlinked_model_finds_its_side_file(tmp_path: Path) -> None:
    """Model hubs keep files in one place and link to them: the folder of the real file is the one that counts."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = tiny_models.external(tiny_models.vgg(), tmp_path / "blobs")
    link = tmp_path / "snapshot" / "model.onnx"
    link.symlink_to(path)
    assert load(link).sha256 == load(path).sha256


def test_local_functions_are_inlined() -> None:
    """A model whose activation is a local function loads, with the operators inside it."""
    model = _with_functions(3)
    assert [node.op_type for node in load(model).proto.graph.node] == ["Relu"] * 8


# --- not a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VALID))
def test_a_file_cut_anywhere_is_refused(name: str) -> None:
    """No prefix of a model file is taken for the model, and none raises anything but ModelError."""
    content = VALID[name]
    lengths = {0, 1, 2, 7, 8, len(content) - 1, *range(0, len(content), max(1, len(content) // 60))}
    for length in sorted(lengths):
        with pytest.raises(ModelError):
            load(content[:length])


def test_a_model_without_nodes_or_opset() -> None:
    for empty in (b"", onnx.ModelProto(), helper.make_model(helper.make_graph([], "empty", [], []))):
        with pytest.raises(ModelError):
            load(empty)


def test_a_folder_stands_for_its_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder without a model"):
        load(tmp_path)
    onnx.save_model(tiny_models.vgg(), tmp_path / "net.onnx")
    assert load(tmp_path).path == tmp_path / "net.onnx"
    assert load(tmp_path).sha256 == load(tmp_path / "net.onnx").sha256


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    onnx.save_model(tiny_models.vgg(), tmp_path / "net.onnx")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "nett.onnx")
    assert caught.value.what == f"there is no file {tmp_path / 'nett.onnx'}"
    assert caught.value.known == f"{tmp_path} holds net.onnx"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A pipe would wait for ever and a device never end: neither is read. A NUL in a path is no crash."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), "a\0b", tmp_path / "net.onnx" / "beyond", "x" * 5000):
        with pytest.raises(ModelError):
            load(path)


@FUZZ
@given(st.binary(max_size=400))
def test_random_bytes(content: bytes) -> None:
    """Bytes from nowhere are refused, or happen to be a model; nothing else."""
    survives(content)


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes_as_a_graph(content: bytes) -> None:
    """The same where the outermost fields are right, so that the bytes are taken for a graph."""
    wrapped = b"\x08\x08" + b"\x3a" + _varint(len(content)) + content + b"\x42\x04\x0a\x00\x10\x11"
    survives(wrapped)


@FUZZ
@given(st.sampled_from(sorted(VALID)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits(name: str, flips: list[tuple[float, int]]) -> None:
    """A model with up to four wrong bits loads or is refused: no other exception, no crash, no hang."""
    content = bytearray(VALID[name])
    for where, bit in flips:
        content[min(int(where * len(content)), len(content) - 1)] ^= 1 << bit
    survives(bytes(content))


@FUZZ
@given(st.sampled_from(sorted(VALID)), st.data())
def test_flipped_bits_in_the_structure(name: str, data: st.DataObject) -> None:
    """Most bytes of a model are weights. Here the wrong byte is always one of names, shapes, attributes or lengths."""
    content = bytearray(VALID[name])
    position = data.draw(st.sampled_from(STRUCTURE[name]))
    change = data.draw(st.sampled_from(["flip", "set", "cut", "insert"]))
    if change == "flip":
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "set":
        content[position] = data.draw(st.integers(0, 255))
    elif change == "cut":
        del content[position]
    else:
        content.insert(position, data.draw(st.integers(0, 255)))
    survives(bytes(content))


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _structure(content: bytes) -> list[int]:
    weights = [t.raw_data for t in onnx.ModelProto.FromString(content).graph.initializer if len(t.raw_data) > 40]
    taken: set[int] = set()
    for raw in weights:
        start = content.index(raw)
        taken.update(range(start + 4, start + len(raw)))
    return [i for i in range(len(content)) if i not in taken]


STRUCTURE = {name: _structure(content) for name, content in VALID.items()}


@FUZZ
@given(st.sampled_from(sorted(VALID)), st.data())
def test_damaged_files_read_past_the_parser(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """From a file, large weights are read around the parser: with the same result, damaged or not."""
    content = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(0, 2))):
        position = data.draw(st.sampled_from(STRUCTURE[name]))
        content[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 40))
    content = content[: len(content) - cut] if cut > 30 else content
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    found: list[Any] = []
    for way in (bytes(content), path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fgcam_onnx.graph.load.STREAMED", 32)
            try:
                loaded = load(way)
                found.append({k: (v.dtype, v.tobytes()) for k, v in _values(loaded).items()})
            except FgcamError:
                found.append(None)
    assert found[0] == found[1]


def _values(loaded: LoadedModel) -> dict[str, np.ndarray]:
    held = {
        t.name: onnx.numpy_helper.to_array(t) for t in loaded.proto.graph.initializer if t.name not in loaded.weights
    }
    return held | dict(loaded.weights)


def test_a_file_of_many_fields_is_no_long_walk(tmp_path: Path) -> None:
    """Ten million empty fields: the walk past the parser gives up early."""
    path = tmp_path / "many.onnx"
    path.write_bytes(b"\x08\x08" * 10_000_000)
    with pytest.raises(ModelError, match="it has 0 nodes"):
        load(path)


# --- external data ------------------------------------------------------------------------------------------


def _pointing(tmp_path: Path, **entries: str | None) -> Path:
    """A model whose first weight's reference to the side file is edited; None removes an entry."""
    path = tiny_models.external(tiny_models.vgg(), tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    known = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "{outside}", "", ".", "/dev/zero"])
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    """Nothing outside the model's folder is read, by whatever name it is called."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    path = _pointing(inside, location=location.format(outside=tmp_path / "secret.bin"), offset="0")
    with pytest.raises(ModelError, match=r"lies outside the model's folder|is missing"):
        load(path)


def test_external_data_by_an_absolute_path_inside_is_refused_too(tmp_path: Path) -> None:
    path = _pointing(tmp_path, location=str(tmp_path / "weights.bin"))
    with pytest.raises(ModelError, match="lies outside the model's folder"):
        load(path)


def test_external_data_through_a_symlink_out(tmp_path: Path) -> None:
    """A link inside the folder that leads out of it is followed no further than the check."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "folder").symlink_to(tmp_path)
    for location in ("link.bin", "folder/secret.bin"):
        with pytest.raises(ModelError, match="lies outside the model's folder") as caught:
            load(_pointing(inside, location=location, offset="0"))
        assert str(tmp_path / "secret.bin") in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "99999999"},
        {"offset": "-8"},
        {"offset": "9" * 400},
        {"offset": "9" * 5000},
        {"offset": "one"},
        {"offset": " 0"},
        {"offset": "٣"},
        {"offset": "0_0"},
        {"unheard of": "x"},
        {"length": "3"},
        {"length": "-1"},
        {"length": "99999999"},
        {"length": "0x10"},
        {"length": None, "offset": "16000"},
    ],
    ids=str,
)
def test_external_data_that_lies_about_place_or_length(tmp_path: Path, entries: dict[str, str | None]) -> None:
    with pytest.raises(ModelError, match="external data"):
        load(_pointing(tmp_path, **entries))


@pytest.mark.parametrize("location", ["gone.bin", "weights.bin/", "a\0b", "pipe", "folder", "x" * 5000])
def test_external_data_that_is_not_there(tmp_path: Path, location: str) -> None:
    """Missing, unspeakable, or no file at all: an error, and no waiting on a pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError):
        load(_pointing(tmp_path, location=location))


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    """Bytes and protos have no folder, so they may not point at files."""
    path = tiny_models.external(tiny_models.vgg(), tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    for given_model in (path.read_bytes(), proto):
        with pytest.raises(ModelError, match="was not given as a path"):
            load(given_model)


def test_external_data_of_functions_attributes_and_subgraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor may hide in a local function, a Constant's attribute or a branch of an If: the same checks."""
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(bytes(16))
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = hidden.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    constant = helper.make_node("Constant", [], ["c"], value=hidden)
    function = helper.make_function(
        "local",
        "f",
        ["x"],
        ["y"],
        [constant, helper.make_node("Add", ["x", "c"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    out = [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])]
    branch = helper.make_graph([constant], "branch", [], out)
    hosts: list[tuple[list[onnx.NodeProto], list[Any]]] = [
        ([constant, helper.make_node("Add", ["x", "c"], ["y"])], []),
        ([helper.make_node("f", ["x"], ["y"], domain="local")], [function]),
        ([helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)], []),
    ]
    for nodes, functions in hosts:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])]
        inputs.append(helper.make_tensor_value_info("b", TensorProto.BOOL, []))
        graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        (tmp_path / "sub").mkdir(exist_ok=True)
        path = tmp_path / "sub" / "m.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=functions).SerializeToString())
        with pytest.raises(ModelError, match="lies outside the model's folder"):
            load(path)


# --- tensors that lie ---------------------------------------------------------------------------------------


def _lying(change: Callable[[TensorProto], None], tensor: int = 0) -> onnx.ModelProto:
    model = tiny_models.vgg()
    change(model.graph.initializer[tensor])
    return model


def _dims(*dims: int) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def _as_floats(n: int) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([0.5] * n)

    return change


LIES: dict[str, Callable[[TensorProto], None]] = {
    "one more": _dims(6, 3, 3, 4),
    "one less": _dims(6, 3, 3, 2),
    "negative": _dims(-6, 3, 3, 3),
    "two negatives": _dims(-6, -3, 3, 3),
    "huge": _dims(1 << 40, 1 << 20),
    "huger than 64 bits": _dims(1 << 62, 1 << 62, 1 << 62),
    "rank 2000": _dims(*[1] * 2000),
    "empty": _dims(0),
    "unknown type": lambda t: setattr(t, "data_type", 77),
    "undefined type": lambda t: setattr(t, "data_type", 0),
    "strings": lambda t: setattr(t, "data_type", TensorProto.STRING),
    "too few floats": _as_floats(5),
    "too many floats": _as_floats(1000),
    "a segment": lambda t: t.segment.CopyFrom(TensorProto.Segment(begin=0, end=1)),
    "nothing": lambda t: t.ClearField("raw_data"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies(lie: str) -> None:
    """A stated shape or type that the stored bytes do not fill is refused before it is believed."""
    assert not survives(_lying(LIES[lie]))


@pytest.mark.parametrize(("lie", "stated"), [("one more", 864), ("one less", 432), ("empty", 0)])
def test_bytes_stated_and_held_must_be_equal(lie: str, stated: int) -> None:
    """Too many bytes are as wrong as too few."""
    with pytest.raises(ModelError) as caught:
        load(_lying(LIES[lie]))
    assert caught.value.what == f"tensor 'conv1.1' states {stated} bytes and holds 648"


def test_a_huge_shape_allocates_nothing() -> None:
    """A terabyte stated in a few bytes costs no memory: the peak stays where a plain load leaves it."""
    import tracemalloc

    content = _lying(_dims(1 << 20, 1 << 18)).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="states 1,099,511,627,776 bytes and holds 648"):
            load(content)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


MAKERS: dict[str, Callable[[int], tuple[np.ndarray | np.float32, ...]]] = {
    "ConstantOfShape": lambda n: (np.array([n]),),
    "Expand": lambda n: (np.float32(1), np.array([n])),
    "Tile": lambda n: (np.ones(8, np.float32), np.array([n // 8])),
    "Range": lambda n: (np.array(0), np.array(n), np.array(1)),
}


def _much_out_of_little(op: str, n: int) -> onnx.ModelProto:
    """A model that adds the largest of ``n`` computed numbers to its activations."""
    net = tiny_models.Net()
    big = net.node(op, "big", *(np.asarray(operand) for operand in MAKERS[op](n)))
    big = net.node("ReduceMax", "largest", net.node("Cast", "cast", big, to=TensorProto.FLOAT), keepdims=0)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    return net.model(net.head(net.node("Add", "add", x, big), 4))


@pytest.mark.parametrize("op", MAKERS)
def test_a_large_constant_is_not_folded(op: str) -> None:
    """Operators that make much out of little stay nodes when the view folds constants."""
    explainer = Explainer(_much_out_of_little(op, 1 << 29 if op == "ConstantOfShape" else 1 << 26))
    assert [r.node for r in explainer.graph.refusals] == ["big"]
    assert explainer.graph.refusals[0].reason == "a constant, but too large or of unknown size to be folded"


@pytest.mark.parametrize("op", MAKERS)
def test_a_huge_constant_is_refused(op: str) -> None:
    """Shapes beyond any memory end in an error, before onnx's inference or the runtime believes them."""
    with pytest.raises(ModelError) as caught:
        Explainer(_much_out_of_little(op, 1 << 40))
    assert caught.value.what == "tensor 'big.y' would have 1,099,511,627,776 elements"


def test_a_huge_input_allocates_nothing() -> None:
    """An input of 2^60 pixels is refused and never made, also where the classes can only be counted by a run."""
    assert not survives(tiny_models.free_size(shape=(1, 3, 1 << 30, 1 << 30)))
    net = tiny_models.Net((1, 3, 1 << 28, 1 << 28))
    x = net.node("GlobalAveragePool", "gap", net.relu("relu", net.conv("conv", "image", 3, 4)))
    shape = net.node("Cast", "shape", net.node("NonZero", "nz", x), to=TensorProto.INT64)
    shape = net.node("ReduceMax", "row", shape, axes=[1], keepdims=0)
    logits = net.node("Reshape", "logits", x, net.node("Slice", "two", shape, np.array([0]), np.array([2])))
    assert not survives(net.model(logits))


def _with_functions(depth: int) -> onnx.ModelProto:
    """f0 calls f1 twice, f1 calls f2 twice, ...: 2^depth Relus."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]

    def twice(i: int) -> onnx.FunctionProto:
        body = [
            helper.make_node(f"f{i + 1}", ["x"], ["a"], domain="local"),
            helper.make_node(f"f{i + 1}", ["a"], ["y"], domain="local"),
        ]
        return helper.make_function("local", f"f{i}", ["x"], ["y"], body, opsets)

    last = helper.make_function("local", f"f{depth}", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="local")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    functions = [*(twice(i) for i in range(depth)), last]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def test_functions_that_double_and_double() -> None:
    """A hundred small functions can state 2^100 nodes: counted, not written out."""
    with pytest.raises(ModelError, match="local functions that grow to more than 1,000,000 nodes"):
        load(_with_functions(100))


def test_functions_that_call_themselves() -> None:
    model = _with_functions(2)
    model.functions[2].node[0].op_type = "f0"
    model.functions[2].node[0].domain = "local"
    with pytest.raises(ModelError, match=r"cannot be inlined: Cycle detected"):
        load(model)


def test_parts_that_contradict_each_other() -> None:
    """What the checker lets through and numpy trips over is said as a damaged file."""
    model = tiny_models.vgg()
    scale = next(t for t in model.graph.initializer if t.name == "bn1.1")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), scale.name))
    with pytest.raises(ModelError, match="is damaged: its parts contradict each other") as caught:
        Explainer(model)
    assert caught.value.known is not None
    assert caught.value.known.startswith("ValueError: ")


def test_text_that_is_not_utf8() -> None:
    for text in (b"conv1", b"image", b"relu1.y", b"MaxPool", b"kernel_shape"):
        assert not survives(VALID["vgg"].replace(text, b"\xff" + text[1:])), text
    content = tiny_models.free_size(labels="[1, 2]").SerializeToString()
    for text in (b"labels", b"[1, 2]"):
        with pytest.raises(ModelError, match="is damaged: its metadata is not UTF-8"):
            load(content.replace(text, b"\xff" + text[1:]))


def test_a_deeply_nested_message() -> None:
    """Ten thousand levels of subgraphs: protobuf refuses, nothing overflows."""
    content = b""
    for _ in range(10_000):  # graph.node.attribute.g: fields 1, 5 and 6
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + _varint(len(content)) + content
    with pytest.raises(ModelError, match="its bytes do not parse"):
        load(b"\x08\x08\x3a" + _varint(len(content)) + content)


# --- much out of little, and endless ------------------------------------------------------------------------


def _beside(op: str, *operands: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    """A model that adds the mean of ``op(*operands)``, all constants, to its activations."""
    net = tiny_models.Net()
    made = net.node(op, "made", *operands, **attributes)
    made = net.node("ReduceMean", "mean", net.node("Cast", "cast", made, to=TensorProto.FLOAT), keepdims=0)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    return net.model(net.head(net.node("Add", "add", x, made), 4))


ONES = np.ones((1, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "reason"),
    [
        ("Resize", (ONES, np.float32([]), np.float32([1, 1, 9, 9])), {}, "a constant, but Resize is not computed here"),
        ("Conv", (ONES, ONES), {"pads": [3, 3, 3, 3]}, "a constant, but Conv is not computed here"),
        ("Pad", (ONES, np.array([0, 0, 9999, 9999] * 2)), {}, "too large or of unknown size to be folded"),
        ("Add", (np.ones((40_000, 1), np.float32), np.ones((1, 40_000), np.float32)), {}, "too large"),
        ("Gather", (np.ones((2, 4000), np.float32), np.zeros(40_000, np.int64)), {"axis": 0}, "too large"),
        ("GatherND", (np.ones((2, 4000), np.float32), np.zeros((40_000, 1), np.int64)), {}, "too large"),
        ("MatMul", (np.ones((40_000, 1), np.float32), np.ones((1, 40_000), np.float32)), {}, "too large"),
        ("DequantizeLinear", (np.ones((40_000, 1), np.int8), np.ones(40_001, np.float32)), {}, "a step for each"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_constants_that_cost_too_much_stay_nodes(
    op: str, operands: tuple[np.ndarray, ...], attributes: dict[str, Any], reason: str
) -> None:
    """Slow operators are not computed at all, and others only where their operands say that the result is small."""
    refusals = Explainer(_beside(op, *operands, **attributes)).graph.refusals
    assert any(r.node == "made" and reason in r.reason for r in refusals)


@pytest.mark.parametrize("dims", [[1 << 29, 4], [1 << 62, 1 << 62], [-5, 10]])
def test_sparse_weights_that_would_fill_the_memory(dims: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three numbers and a shape: onnxruntime makes them dense. Also where an attribute holds them."""
    monkeypatch.setenv("FGCAM_MEMORY", "1G")
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "bias"))
    made.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(3)))
    stored, held = tiny_models.free_size(), tiny_models.free_size()
    stored.graph.sparse_initializer.append(made)
    held.graph.node.append(helper.make_node("Constant", [], ["bias"], sparse_value=made))
    for model in (stored, held):
        with pytest.raises(ModelError, match=r"sparse tensor"):
            load(model)
    del made.dims[:]
    made.dims.append(10)
    stored.graph.sparse_initializer[0].CopyFrom(made)
    load(stored)


def test_constants_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of them, each small enough: those that fit are folded, the others stay nodes."""
    net = tiny_models.Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    for i in range(10):
        made = net.node("Expand", f"made{i}", np.float32(1), np.array([1, 4, 16, 12]))
        x = net.node("Add", f"add{i}", x, made)
    model = net.model(net.head(x, 4))
    assert not Explainer(model).graph.refusals
    held = sum(len(t.raw_data) for t in model.graph.initializer)
    monkeypatch.setattr("fgcam_onnx.graph.passes.fold_constants.largest", lambda: 8 * 4 * 16 * 12)
    monkeypatch.setattr("fgcam_onnx.graph.passes.fold_constants.GROWTH", 0)
    refused = [r.node for r in Explainer(model).graph.refusals]
    assert refused == [f"made{i}" for i in range(2, 10)], held


def _loop(rounds: np.ndarray | None, read: bool = True, inside: np.ndarray | None = None) -> onnx.ModelProto:
    """A Loop over the activations; with ``inside`` another one in its body."""

    def body(name: str, inner: list[onnx.NodeProto]) -> onnx.GraphProto:
        nodes = [helper.make_node("Identity", [f"{name}c"], [f"{name}c2"]), *inner]
        given = [
            helper.make_tensor_value_info(f"{name}{n}", t, s)
            for n, t, s in (("i", 7, []), ("c", 9, []), ("v", 1, None))
        ]
        made = [helper.make_tensor_value_info(f"{name}{n}", t, s) for n, t, s in (("c2", 9, []), ("w", 1, None))]
        return helper.make_graph(nodes, name, given, made)

    inner = [helper.make_node("Relu", ["av"], ["aw"])]
    if inside is not None:
        inner = [
            helper.make_node(
                "Loop", ["m2", "", "av"], ["aw"], body=body("b", [helper.make_node("Relu", ["bv"], ["bw"])])
            )
        ]
    net = tiny_models.Net()
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    if inside is not None:
        net.weight("m2", inside)
    count = None if rounds is None else rounds
    y = net.node("Loop", "loop", count, net.weight("go", np.array(True)), x, body=body("a", inner))
    return net.model(net.head(y if read else x, 4))


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize(
    ("rounds", "inside", "often"),
    [
        (None, None, "nobody knows how often"),
        (np.array(1 << 62), None, "4,611,686,018,427,387,904 times"),
        (np.array(10_001), None, "10,001 times"),
        (np.array(500), np.array(500), "250,000 times"),
    ],
)
def test_loops_without_end(rounds: np.ndarray | None, inside: np.ndarray | None, often: str, read: bool) -> None:
    """Refused by their stated number, loops in loops by the product, also where nothing reads what they compute."""
    with pytest.raises(ModelError, match="has a Loop that runs") as caught:
        load(_loop(rounds, read, inside))
    assert caught.value.what == f"the given model has a Loop that runs {often}"
    load(_loop(np.array(100), read, None if inside is None else np.array(100)))


def test_pooling_that_would_not_end() -> None:
    """A window of 10^8 cells at 10^8 places is refused, with the shape known or not; a global pool is not."""
    for shape in ((1, 3, 5000, 5000), (1, 3, None, None)):
        net = tiny_models.Net(shape)
        x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
        pads = [2000] * 4 if shape[2] else [9999] * 4
        x = net.node("MaxPool", "pool", x, kernel_shape=[p + 1 for p in pads[:2]], pads=pads)
        with pytest.raises(ModelError, match=r"MaxPool 'pool' has a window of \[\d+, \d+\]: it would not end"):
            Explainer(net.model(net.head(x, 4)))
    net = tiny_models.Net((1, 3, 400, 400))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    assert survives(net.model(net.head(net.node("AveragePool", "pool", x, kernel_shape=[400, 400]), 4)))


@pytest.mark.parametrize("name", ["vgg", "squeeze_excite", "nhwc"])
def test_nodes_in_any_order(name: str) -> None:
    """onnxruntime sorts the nodes of a file, and converters rely on it: the map does not depend on their order."""
    model = getattr(tiny_models, name)()
    x = tiny_models.pictures(model)
    expected = Explainer(model).explain(x, target=1)
    nodes = list(model.graph.node)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(nodes))
        del model.graph.node[:]
        model.graph.node.extend(nodes[i] for i in order)
        assert [n.name for n in model.graph.node] != [n.name for n in nodes]
        found = Explainer(model.SerializeToString()).explain(x, target=1)
        np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-7)


def test_nodes_that_wait_for_each_other() -> None:
    model = tiny_models.vgg()
    model.graph.node[0].input[0] = model.graph.node[2].output[0]
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        load(model)


def test_a_branch_reads_the_graph_around_it() -> None:
    """What a subgraph reads without being handed it is an edge all the same: the picture may pass there, past L."""
    net = tiny_models.Net()
    then, other = (
        helper.make_graph(
            [helper.make_node(op, ["image"], [out]), helper.make_node("Relu", [out], [f"{out}2"])],
            op, [], [helper.make_tensor_value_info(f"{out}2", TensorProto.FLOAT, None)],
        )
        for op, out in (("Neg", "a"), ("Identity", "b"))
    )  # fmt: skip
    branch = net.node("If", "if", net.input("yes", (), TensorProto.BOOL), then_branch=then, else_branch=other)
    x = net.node("Concat", "join", net.relu("relu1", net.conv("conv1", "image", 3, 4)), branch, axis=1)
    explainer = Explainer(net.model(net.head(net.relu("relu2", net.conv("conv2", x, 7, 8)), 8)))
    layer = next(each for each in explainer.graph.layers if each.op == "If")
    assert layer.inputs == ("yes", "image")
    assert [gap.node for gap in explainer.coverage().gaps] == ["if"]
    with pytest.raises(FgcamError, match="no relevance rule for If"):
        explainer.explain(np.ones((1, 3, 16, 12), np.float32), inputs={"yes": np.array(True)})


@pytest.mark.parametrize("step", [-0.03, float("nan"), float("inf")])
def test_a_quantisation_step_that_is_none(step: float) -> None:
    """A negative step would turn the signs that the range of the integers promises: backends differed in the map."""
    model = corpus.quantised_operators()
    Explainer(model)
    scale = next(t for t in model.graph.initializer if t.name == "b.scale")
    scale.raw_data = np.float32(step).tobytes()
    with pytest.raises(ModelError, match="has a quantisation step that is none") as caught:
        Explainer(model)
    assert str(np.float32(step))[:4] in caught.value.what


def test_quantisation_steps_that_do_not_fit_the_weight() -> None:
    """960 steps along an axis of one cell would meet 960 channels each: a shape that spreads is refused, not made."""
    model = corpus.quantised_operators()
    step = next(t for t in model.graph.initializer if t.name == "conv1.w.scale")
    step.CopyFrom(onnx.numpy_helper.from_array(np.full(6, 0.01, np.float32), step.name))
    Explainer(model)
    step.CopyFrom(onnx.numpy_helper.from_array(np.full(7, 0.01, np.float32), step.name))
    with pytest.raises(ModelError, match=r"7 quantisation steps along axis 0 of a tensor of shape \[6, 3, 3, 3\]"):
        Explainer(model)


def test_an_input_that_is_no_picture() -> None:
    model = tiny_models.vgg()
    for kind in (TensorProto.STRING, TensorProto.COMPLEX64, 0):
        model.graph.input[0].type.tensor_type.elem_type = kind
        with pytest.raises(ModelError):
            Explainer(model)


def test_an_inner_tensor_of_no_type() -> None:
    for kind in (TensorProto.UNDEFINED, 99):
        model = tiny_models.vgg()
        model.graph.value_info.append(helper.make_tensor_value_info("pool2.y", kind, None))
        with pytest.raises(ModelError, match=r"tensor 'pool2\.y' has no type that ONNX knows"):
            load(model)


def test_a_negative_size_is_a_free_one() -> None:
    """Some exporters write -1 for a batch of any size; the map is that of the model with a name there."""
    model = tiny_models.vgg()
    x = tiny_models.pictures(model)
    expected = Explainer(model).explain(x).relevance
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = -5
    explainer = Explainer(model)
    assert explainer.input_shape == (None, 3, 16, 12)
    assert explainer.num_classes >= 0
    np.testing.assert_array_equal(explainer.explain(x).relevance, expected)


def test_weights_of_a_type_that_no_array_has() -> None:
    """A kilobyte of bfloat16 stays in the graph: onnxruntime takes over no arrays of it."""
    model = tiny_models.vgg()
    tensor = next(t for t in model.graph.initializer if t.name == "fc1.1")
    tensor.data_type, tensor.raw_data = TensorProto.BFLOAT16, bytes(2 * int(np.prod(tensor.dims)))
    assert len(tensor.raw_data) > 1024
    assert load(model).weights.keys() == load(tiny_models.vgg()).weights.keys() - {"fc1.1"}
    told = [note for note in Explainer(model).notes if "has operands of" in note]
    said = "Gemm 'fc1' has operands of float and bfloat16: ONNX does not allow that, and each number is taken as"
    assert told == [f"{said} it is stored"]


# --- a memory limit -----------------------------------------------------------------------------------------


def test_memory_limit_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, size in {"1G": 1 << 30, "512M": 512 << 20, "1.5 GiB": 3 << 29, "7kb": 7 << 10, "1000": 1000}.items():
        monkeypatch.setenv("FGCAM_MEMORY", text)
        assert memory.limit() == memory.available() == size
    for text in ("lots", "-1G", "0", "1e9", "٣G", "1P"):
        monkeypatch.setenv("FGCAM_MEMORY", text)
        with pytest.raises(OptionError, match="which is no size"):
            Explainer(tiny_models.vgg())
    monkeypatch.delenv("FGCAM_MEMORY")
    assert memory.limit() is None
    assert memory.available() > 1 << 28


def test_a_tensor_beyond_the_limit_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the shape that inference finds, in bytes; the same model passes without the limit."""
    model = _much_out_of_little("Expand", 1 << 26)
    Explainer(model)
    monkeypatch.setenv("FGCAM_MEMORY", "200M")
    with pytest.raises(ModelError) as caught:
        Explainer(model)
    assert caught.value.what == "tensor 'big.y' would have 67,108,864 elements"
    assert caught.value.known == "shape [67108864]; FGCAM_MEMORY is 209,715,200 bytes"


LIMITED = """
import numpy as np, sys
from fgcam_onnx import Explainer
from fgcam_onnx.errors import BackendError
explainer = Explainer(sys.argv[1], output="fc.y", threads=1)
for n in (1, 100, 1):
    try:
        found = explainer.explain(np.full((1, 3, 16, 12), n, np.float32))
        print("explained", np.isfinite(found.relevance).all())
    except BackendError as error:
        print("refused", error.what)
"""


def test_a_run_beyond_the_limit_is_refused_in_time(tmp_path: Path) -> None:
    """Where no shape tells beforehand: onnxruntime's own arena ends at its share, and the next run is fine again.

    Beside the scores the model makes a tensor of a million cells for each step of the brightest pixel.
    """
    net = tiny_models.Net()
    most = net.node("Mul", "much", net.node("ReduceMax", "most", "image", keepdims=0), np.float32(1e6))
    count = net.node("Reshape", "count", net.node("Cast", "whole", most, to=TensorProto.INT64), np.array([1]))
    made = net.node("Expand", "made", np.float32([1]), count)
    scores = net.head(net.relu("relu1", net.conv("conv1", "image", 3, 4)), 4)
    onnx.save_model(net.model(scores, made), tmp_path / "net.onnx")
    said = []
    for limit in ("60M", ""):
        env = {**os.environ, "FGCAM_MEMORY": limit}
        command = [sys.executable, "-c", LIMITED, str(tmp_path / "net.onnx")]
        said.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines())
    assert said[0] == ["explained True", "refused the forward pass failed", "explained True"]
    assert said[1] == ["explained True"] * 3


@pytest.mark.parametrize("op", ["Cast", "Mul", "Concat", "Unsqueeze"])
def test_shapes_are_followed_through_short_tensors_only(op: str) -> None:
    """A trillion cells by the picture's own size, then an operator that onnx follows element by element: no hang."""
    net = tiny_models.Net((1, 3, 16, 12))
    size = net.node("Mul", "size", net.node("Shape", "shape", "image", start=0, end=1), np.array([10**12]))
    made = net.node("Expand", "made", np.float32([1]), size)
    flat = net.node("Reshape", "row", made, np.array([-1]))
    operands = {"Mul": [flat, flat], "Concat": [flat, flat], "Unsqueeze": [flat, np.array([0])]}.get(op, [flat])
    attributes = {"Cast": {"to": TensorProto.FLOAT}, "Concat": {"axis": 0}}.get(op, {})
    made = net.node("ReduceMax", "most", net.node(op, "odd", *operands, **attributes), keepdims=0)
    x = net.node("Add", "add", net.relu("relu1", net.conv("conv1", "image", 3, 4)), made)
    with pytest.raises(ModelError, match=r"tensor '\w+\.y' would have 1,000,000,000,000 elements"):
        Explainer(net.model(net.head(x, 4)))


def test_short_shapes_are_followed_all_the_way() -> None:
    """Shape, arithmetic, Concat, Reshape and once more: each step is only known when the one before it is."""
    net = tiny_models.Net((1, 3, 16, 12))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    for i in range(2):
        shape = net.node("Mul", f"twice{i}", net.node("Shape", f"shape{i}", x), np.array([1, 1, 1, 1]))
        x = net.node("Expand", f"same{i}", x, shape)
    sizes = concrete_shapes(load(net.model(net.head(x, 4))), {"image": (1, 3, 16, 12)})
    assert sizes["same0.y"] == sizes["same1.y"] == (1, 4, 16, 12)
