"""Models as somebody writes them who means harm: much out of little, endless, recursive, reading what is not theirs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from fuzzing.base import INTS, Draft, NotHereError, kind, pick

HUGE = (10**4, 10**5, 10**6, 10**8, 2**28, 2**31, 2**33, 10**12, 2**62, 2**63 - 1)

MAKERS = """
    ConstantOfShape Expand Tile Range Resize Pad EyeLike OneHot Upsample Concat Gather MatMul Broadcast DepthToSpace
    ConvTranspose MaxUnpool RandomNormal CenterCropPad Pool Unfold SpaceToDepth
"""
LOCATIONS = (
    *(
        "weights.bin",
        "weights.bin",
        "weights.bin",
        "./weights.bin",
        "weights.bin/",
        "out/../weights.bin",
        "nowhere.bin",
    ),
    *(
        "../../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/self/fd/0",
        "file:///etc/passwd",
    ),
    *("out/passwd", "passwd", "loop", "model.onnx", "", ".", "..", "~/x", "a\0b", "x" * 5000, "\\etc\\passwd"),
)
GARBAGE = (
    *("", "{", "null", "NaN", "1" * 6000, "\0" * 1000, "ü" * 1000, "[" * 100_000, '{"a":' * 50_000, '["a", 1, null]'),
    *("{0: 'a', ", "{'0': '" + "\\" * 20_001, '[["x", "x"], ["x", "x"]]', '{"mean": 1e999, "std": 0}'),
    *(
        '{"size": [1e18, 1e18]}',
        '{"²": "a", "1": "b"}',
        '{"٣": "a"}',
        '{"-1": "a", "0": "b"}',
        f'{{"1{"0" * 5000}": "a"}}',
    ),
)


@kind
def external_data(draft: Draft) -> None:
    """Weights in a side file that is not there, not inside, not as long, or no file."""
    rng = draft.rng
    tensor = pick(rng, [t for t in draft.graph.initializer if t.raw_data])
    size = len(tensor.raw_data)
    draft.beside["weights.bin"] = rng.choice((tensor.raw_data, tensor.raw_data + bytes(100), tensor.raw_data[:-1], b""))
    draft.links["out"], draft.links["passwd"], draft.links["loop"] = "/etc", "/etc/passwd", "loop"
    entries = {"location": rng.choice(LOCATIONS)}
    if rng.random() < 0.6:
        entries["offset"] = str(rng.choice((0, 0, 1, size, -1, *INTS, "one", "9" * 5000, "0x10", "", " 0", "1e3")))
    if rng.random() < 0.6:
        entries["length"] = str(rng.choice((size, size, size - 1, 0, *INTS, "many", "", "٣")))
    if rng.random() < 0.2:
        entries[rng.choice(("checksum", "location ", ""))] = "x" * rng.choice((1, 10_000))
    if rng.random() < 0.8:
        tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _edge(draft: Draft) -> tuple[onnx.NodeProto, int]:
    """A node and its position, to hang something on its first input."""
    nodes = draft.graph.node
    place = draft.rng.randrange(len(nodes) or 1)
    return pick(draft.rng, [n for n in nodes[place : place + 1] if n.input]), place


def _hang(draft: Draft, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], result: str) -> None:
    """Put nodes before an edge of the graph and add their largest value to what runs along it."""
    reader, place = _edge(draft)
    tail = [
        helper.make_node("Cast", [result], ["fuzz.f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["fuzz.f"], ["fuzz.m"], keepdims=0),
        helper.make_node("Add", [reader.input[0], "fuzz.m"], ["fuzz.sum"]),
    ]
    if draft.rng.random() < 0.3:  # nobody reads it
        tail = []
    else:
        reader.input[0] = "fuzz.sum"
    for offset, node in enumerate([*nodes, *tail]):
        draft.graph.node.insert(place + offset, node)
    draft.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())


@kind
def much_out_of_little(draft: Draft) -> None:
    """Operators whose result is as large as a number says, stated or computed from the picture's shape."""
    rng, big = draft.rng, draft.rng.choice(HUGE)
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    image = draft.graph.input[0].name if draft.graph.input else "image"

    def number(name: str, *values: int) -> str:
        """The numbers as an initializer, or by arithmetic that only a run would do."""
        constants[name] = np.array(values, np.int64)
        match rng.randrange(3):
            case 0:
                return name
            case 1:  # what data propagation may or may not see
                nodes.append(helper.make_node("Shape", [image], [f"{name}.s"], start=0, end=1))
                nodes.append(helper.make_node("Mul", [f"{name}.s", name], [f"{name}.m"]))
                return f"{name}.m"
            case _:
                nodes.append(helper.make_node("ReduceSum", [image], [f"{name}.r"], keepdims=0))
                nodes.append(helper.make_node("Mul", [f"{name}.r", f"{name}.0"], [f"{name}.z"]))
                nodes.append(helper.make_node("Cast", [f"{name}.z"], [f"{name}.c"], to=TensorProto.INT64))
                nodes.append(helper.make_node("Add", [f"{name}.c", name], [f"{name}.m"]))
                constants[f"{name}.0"] = np.float32(0)
                return f"{name}.m"

    many = [big] if rng.random() < 0.7 else [min(big, 2**20)] * rng.choice((2, 3, 9))
    op = rng.choice(MAKERS.split())
    one = "fuzz.one"
    constants[one] = np.ones((1, 1, 2, 2), np.float32)
    if op == "ConstantOfShape":
        nodes.append(helper.make_node(op, [number("fuzz.n", *many)], ["fuzz.big"]))
    elif op == "Expand":
        nodes.append(helper.make_node(op, [one, number("fuzz.n", *many, 1, 1, 2, 2)], ["fuzz.big"]))
    elif op == "Tile":
        nodes.append(helper.make_node(op, [one, number("fuzz.n", 1, 1, big, 1)], ["fuzz.big"]))
    elif op == "Range":
        constants["fuzz.a"], constants["fuzz.b"], constants["fuzz.d"] = np.int64(0), np.int64(big), np.int64(1)
        nodes.append(helper.make_node(op, ["fuzz.a", "fuzz.b", "fuzz.d"], ["fuzz.big"]))
    elif op in ("Resize", "Upsample"):
        constants["fuzz.scales"] = np.array([1, 1, float(big), 1], np.float32)
        given = [one, "", "fuzz.scales"] if op == "Resize" else [one, "fuzz.scales"]
        given = [one, "", "", number("fuzz.n", 1, 1, big, 2)] if op == "Resize" and rng.random() < 0.5 else given
        nodes.append(helper.make_node(op, given, ["fuzz.big"], mode=rng.choice(("nearest", "linear"))))
    elif op == "Pad":
        nodes.append(helper.make_node(op, [one, number("fuzz.n", 0, 0, big, 0, 0, 0, 0, 1)], ["fuzz.big"]))
    elif op == "EyeLike":
        nodes.append(helper.make_node("ConstantOfShape", [number("fuzz.n", min(big, 2**31), 2)], ["fuzz.eye"]))
        nodes.append(helper.make_node(op, ["fuzz.eye"], ["fuzz.big"], k=rng.choice(INTS)))
    elif op == "OneHot":
        constants["fuzz.index"], constants["fuzz.values"] = np.array([1, 2]), np.array([0, 1], np.float32)
        nodes.append(helper.make_node(op, ["fuzz.index", number("fuzz.n", big), "fuzz.values"], ["fuzz.big"]))
    elif op == "Concat":  # 2^k of it
        nodes.extend(
            helper.make_node("Concat", [f"fuzz.{i or 'one'}"] * 2, [f"fuzz.{i + 1}"], axis=2) for i in range(40)
        )
        nodes.append(helper.make_node("Identity", [f"fuzz.{rng.choice((10, 24, 30, 40))}"], ["fuzz.big"]))
    elif op == "Gather":
        constants["fuzz.index"] = np.zeros(rng.choice((10, 100_000)), np.int64)
        nodes.append(helper.make_node("Gather", [one, "fuzz.index"], ["fuzz.g"], axis=3))
        nodes.append(helper.make_node("Gather", ["fuzz.g", "fuzz.index"], ["fuzz.big"], axis=2))
    elif op in ("MatMul", "Broadcast"):
        constants["fuzz.col"] = np.ones((rng.choice((1000, 100_000)), 1), np.float32)
        nodes.append(helper.make_node("Transpose", ["fuzz.col"], ["fuzz.row"]))
        nodes.append(helper.make_node("MatMul" if op == "MatMul" else "Add", ["fuzz.col", "fuzz.row"], ["fuzz.big"]))
    elif op in ("DepthToSpace", "SpaceToDepth"):
        nodes.append(helper.make_node(op, [one], ["fuzz.big"], blocksize=rng.choice((*INTS, *HUGE))))
    elif op == "ConvTranspose":
        name = rng.choice(("output_shape", "output_padding", "strides", "pads", "dilations"))
        values = [rng.choice((big, -1, 0, 1000)) for _ in range(4 if name == "pads" else 2)]
        nodes.append(helper.make_node(op, [one, one], ["fuzz.big"], **{name: values}))
    elif op == "MaxUnpool":
        constants["fuzz.index"] = np.array([big] * 4).reshape(1, 1, 2, 2)
        nodes.append(
            helper.make_node(op, [one, "fuzz.index"], ["fuzz.big"], kernel_shape=[2, 2], strides=[min(big, 2**40)] * 2)
        )
    elif op == "RandomNormal":
        nodes.append(helper.make_node(op, [], ["fuzz.big"], shape=many))
    elif op == "CenterCropPad":
        nodes.append(helper.make_node(op, [one, number("fuzz.n", big)], ["fuzz.big"], axes=[2]))
    elif op == "Pool":
        side = min(big, 10**6)
        nodes.append(helper.make_node("Pad", [one, number("fuzz.n", 0, 0, 99, 99, 0, 0, 99, 99)], ["fuzz.p"]))
        nodes.append(
            helper.make_node(
                rng.choice(("MaxPool", "AveragePool")),
                ["fuzz.p"],
                ["fuzz.big"],
                kernel_shape=[side] * 2,
                pads=[side - 1] * 4,
            )
        )
    else:
        nodes.append(
            helper.make_node(
                "Einsum", [one, one], ["fuzz.big"], equation=rng.choice(("abcd,efgh->abcdefgh", "...,...", "a" * 999))
            )
        )
    _hang(draft, nodes, constants, "fuzz.big")


def _branch(name: str, depth: int, width: int) -> onnx.GraphProto:
    """If within If within If, in one branch or in both (``width``)."""
    graph = onnx.GraphProto(name=name)
    out = f"{name}.{depth}"
    if depth == 0:
        graph.node.add().CopyFrom(helper.make_node("Identity", ["fuzz.x"], [out]))
    else:
        node = graph.node.add()
        node.op_type, node.input[:], node.output[:] = "If", ["fuzz.yes"], [out]
        for key in ("then_branch", "else_branch"):
            attribute = node.attribute.add(name=key, type=AttributeProto.GRAPH)
            deeper = width == 2 or key[0] == "t"
            attribute.g.CopyFrom(_branch(name + key[0], depth - 1 if deeper else 0, width))
    graph.output.add().CopyFrom(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    return graph


@kind
def subgraphs(draft: Draft) -> None:
    """If in If in If; a Loop or a Scan of more rounds than there is time; a branch that lacks its outputs."""
    rng = draft.rng
    reader, place = _edge(draft)
    source = reader.input[0]
    constants: dict[str, np.ndarray] = {"fuzz.yes": np.array(rng.random() < 0.5)}
    nodes = [helper.make_node("Identity", [source], ["fuzz.x"])]
    shape = rng.randrange(6)
    if shape <= 1:
        width, depth = (2, rng.choice((1, 2, 5, 8))) if shape == 0 else (1, rng.choice((10, 20, 28)))
        node = helper.make_node("If", ["fuzz.yes"], ["fuzz.y"])
        for key in ("then_branch", "else_branch"):
            branch = _branch(f"b{key[0]}", depth if width == 2 or key[0] == "t" else 0, width)
            node.attribute.add(name=key, type=AttributeProto.GRAPH).g.CopyFrom(branch)
        nodes.append(node)
    elif shape <= 3:
        rounds = rng.choice((1, 10, *HUGE, -1))
        constants["fuzz.rounds"], constants["fuzz.cond"] = np.int64(rounds), np.array(True)
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Relu", ["v"], ["v2"])],
            "body",
            [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("c", 9, []), ("v", 1, None))],
            [helper.make_tensor_value_info(n, t, s) for n, t, s in (("c2", 9, []), ("v2", 1, None))],
        )
        given = [rng.choice(("fuzz.rounds", "")), rng.choice(("fuzz.cond", "")), "fuzz.x"]
        nodes.append(helper.make_node("Loop", given, ["fuzz.y"], body=body))
    elif shape == 4:
        body = helper.make_graph(
            [helper.make_node("Relu", ["v"], ["v2"])],
            "body",
            [helper.make_tensor_value_info("v", 1, None)],
            [helper.make_tensor_value_info("v2", 1, None)],
        )
        axis = rng.choice((0, 1, -1, 99, 2**62))
        nodes.append(
            helper.make_node(
                "Scan",
                ["fuzz.x"],
                ["fuzz.y"],
                body=body,
                num_scan_inputs=rng.choice((1, 0, -1, 2**62)),
                scan_input_axes=[axis],
            )
        )
    else:
        node = helper.make_node("If", ["fuzz.yes"], ["fuzz.y"])
        node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.CopyFrom(onnx.GraphProto(name="empty"))
        if rng.random() < 0.5:
            node.attribute.add(name="else_branch", type=AttributeProto.GRAPH).g.CopyFrom(_branch("e", 0, 1))
        nodes.append(node)
    if rng.random() < 0.7:  # else nobody reads it, and it runs all the same
        reader.input[0] = "fuzz.y"
    for offset, node in enumerate(nodes):
        draft.graph.node.insert(place + offset, node)
    draft.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())


@kind
def functions(draft: Draft) -> None:
    """A node becomes a local function: honest, calling itself, calling in a circle, or doubling and doubling."""
    rng, proto = draft.rng, draft.proto
    node = pick(rng, [n for n in proto.graph.node if n.op_type in ("Relu", "Clip", "Sigmoid", "Identity") and n.input])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("fuzz", 1)]
    depth = rng.choice((1, 3, 8, 30, 100))
    shape = rng.randrange(5)
    for i in range(depth):
        call = lambda x, y, j=(i + 1): helper.make_node(f"f{j}", [x], [y], domain="fuzz")  # noqa: E731
        body = [call("x", "y")] if shape < 3 else [call("x", "a"), call("a", "y")]
        proto.functions.append(helper.make_function("fuzz", f"f{i}", ["x"], ["y"], body, opsets))
    inner = {
        0: helper.make_node("Relu", ["x"], ["y"]),
        1: helper.make_node(f"f{rng.randrange(depth)}", ["x"], ["y"], domain="fuzz"),
        2: helper.make_node("Relu", ["nowhere"], ["y"]),
        3: helper.make_node("Relu", ["x"], ["y"]),
        4: helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.zeros(4, np.float32))),
    }[shape]
    proto.functions.append(helper.make_function("fuzz", f"f{depth}", ["x"], ["y"], [inner], opsets))
    if rng.random() < 0.1:
        proto.functions.append(proto.functions[0])
    node.op_type, node.domain = "f0", "fuzz"
    del node.input[1:], node.attribute[:]
    if rng.random() < 0.9:
        proto.opset_import.append(helper.make_opsetid("fuzz", 1))


@kind
def strings(draft: Draft) -> None:
    """A tensor of text where numbers belong."""
    rng = draft.rng
    if rng.random() < 0.3:
        pick(rng, draft.graph.input).type.tensor_type.elem_type = TensorProto.STRING
        return
    tensor = pick(rng, draft.graph.initializer)
    elements = int(np.prod(tensor.dims))
    text = rng.choice((b"", b"0.5", b"\xff\xfe", b"x" * 100))
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    tensor.string_data.extend([text] * rng.choice((min(elements, 100_000), 1, 0)))


@kind
def sparse(draft: Draft) -> None:
    """A sparse initializer in the place of a dense one: honest, or with indices and shapes beyond reason."""
    rng, graph = draft.rng, draft.graph
    tensor = pick(rng, [t for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.dims])
    size = int(np.prod(tensor.dims))
    few = rng.choice((1, 3))
    index = sorted(rng.sample(range(max(size, few)), few))
    if rng.random() < 0.5:
        index = [rng.choice(INTS) for _ in range(few)]
    made = graph.sparse_initializer.add()
    made.values.CopyFrom(numpy_helper.from_array(np.ones(few, np.float32), tensor.name))
    made.indices.CopyFrom(numpy_helper.from_array(np.array(index, np.int64), rng.choice(("", "index"))))
    dims = list(tensor.dims)
    if rng.random() < 0.5:
        dims[rng.randrange(len(dims))] = rng.choice((*INTS, *HUGE))
    made.dims.extend(dims)
    graph.initializer.remove(tensor)


@kind
def metadata(draft: Draft) -> None:
    """What the file says about itself: garbage, nested without end, twice, or long."""
    rng, proto = draft.rng, draft.proto
    key = rng.choice(
        ("labels", "id2label", "names", "preprocessing", "Image.BitmapPixelFormat", "author", "", "x" * 10_000)
    )
    labels = [f"class {i}" for i in range(rng.choice((5, 8, 1000)))]
    value = rng.choice((*GARBAGE, json.dumps(labels), json.dumps(dict(enumerate(labels)))))
    for _ in range(rng.choice((1, 1, 2, 1000)) if len(value) < 1000 else 1):
        proto.metadata_props.add(key=key, value=value)
    proto.doc_string = rng.choice(("", "\0", "x" * 100_000))
    if rng.random() < 0.3:
        proto.producer_name = "\x7f" * 100


@kind
def long_graphs(draft: Draft) -> None:
    """Thousands of nodes in a row, or side by side, or names of many letters."""
    rng = draft.rng
    reader, place = _edge(draft)
    count, op = rng.choice((100, 1000, 3000)), rng.choice(("Identity", "Relu", "Add"))
    names = [reader.input[0], *(f"fuzz.{i}" for i in range(count))]
    if op == "Add":  # 2^n ways to the last of them
        made = [helper.make_node("Add", [a, a], [b]) for a, b in itertools.pairwise(names[:101])]
        reader.input[0] = names[100]
    else:
        made = [helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
        reader.input[0] = names[-1]
    nodes = [*draft.graph.node[:place], *made, *draft.graph.node[place:]]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del draft.graph.node[:]
    draft.graph.node.extend(copies)


@kind
def dense_attributes(draft: Draft) -> None:
    """Constants in attributes: a Constant node for an initializer, of the right size or of any other."""
    rng, graph = draft.rng, draft.graph
    tensor = pick(rng, graph.initializer)
    copy = TensorProto.FromString(tensor.SerializeToString())
    name = copy.name
    if rng.random() < 0.6 and copy.dims:
        copy.dims[rng.randrange(len(copy.dims))] = rng.choice(INTS)
    match rng.randrange(4):
        case 0 | 1:
            node = helper.make_node("Constant", [], [name], value=copy)
        case 2:
            node = helper.make_node("Constant", [], [name], value_floats=[0.5] * rng.choice((1, 5, 1000)))
        case _:
            node = helper.make_node("Constant", [], [name], value_string="x")
    graph.initializer.remove(tensor)
    graph.node.insert(0, node)
    if not graph.node:
        raise NotHereError
