"""Large weights read past the parser are the weights that the parser reads; what is unusual is declined."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fgcam_onnx.graph import wire
from fgcam_onnx.graph.load import STREAMED, load


def model(*shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), f"w{i}") for i, s in enumerate(shapes)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Conv", ["x", "w0"], ["y"])]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)]
    )


BIG = (64, 3, 16, 16)  # 196,608 bytes


def test_split_and_parse_agree() -> None:
    proto = model((64, 3, 3, 3), BIG, (5,), BIG)
    content = proto.SerializeToString()
    found = wire.split(io.BytesIO(content), len(content), STREAMED)
    assert found is not None
    slim, payloads = found
    assert [p.index for p in payloads] == [1, 3]
    rest = onnx.ModelProto.FromString(slim)
    for payload in payloads:
        assert not rest.graph.initializer[payload.index].raw_data
        rest.graph.initializer[payload.index].raw_data = content[payload.offset : payload.offset + payload.length]
    assert rest == proto


def test_weights_from_a_file_equal_weights_from_bytes(tmp_path: Path) -> None:
    proto = model(BIG, BIG, (7, 5))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    streamed, parsed = load(path), load(path.read_bytes())
    assert streamed.weights.keys() == parsed.weights.keys() == {"w0", "w1"}
    for name, array in parsed.weights.items():
        np.testing.assert_array_equal(streamed.weights[name], array)
    assert streamed.sha256 == parsed.sha256


def test_two_graphs_or_twice_the_data_are_declined() -> None:
    content = model(BIG).SerializeToString()
    doubled = content + content  # protobuf merges them: not this module's business
    assert wire.split(io.BytesIO(doubled), len(doubled), STREAMED) is None
    assert wire.split(io.BytesIO(b"\xff" * 20), 20, STREAMED) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_declined_or_read_as_the_parser_reads_it(data: st.DataObject) -> None:
    content = bytearray(model((8, 3, 3, 3), (40, 3, 12, 12)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = wire.split(io.BytesIO(bytes(content)), len(content), 1 << 12)
    if found is None:
        return
    slim, payloads = found
    try:
        whole = onnx.ModelProto.FromString(bytes(content))
    except Exception:
        return  # the slim one need not parse either
    rest = onnx.ModelProto.FromString(slim)
    for payload in payloads:
        rest.graph.initializer[payload.index].raw_data = bytes(
            content[payload.offset : payload.offset + payload.length]
        )
    assert rest == whole


def test_a_lie_about_the_shape_is_found_before_memory_is_taken(tmp_path: Path) -> None:
    from fgcam_onnx.errors import ModelError

    proto = model(BIG)
    proto.graph.initializer[0].dims[0] = 1 << 40
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"tensor 'w0' states 3,377,699,720,527,872 bytes and holds 196,608"):
        load(path)
