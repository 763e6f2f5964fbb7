"""Harm done to a graph: edges, attributes, shapes, types, weights."""

from __future__ import annotations

import struct

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from fuzzing import corpus
from fuzzing.base import FLOATS, INTS, Draft, NotHereError, kind, pick

OPS = """
    Relu Conv MaxPool AveragePool GlobalAveragePool Gemm MatMul Add Mul Sub Div Concat Flatten Reshape Transpose
    Squeeze Unsqueeze Pad Slice Split Gather Clip Sigmoid Softmax BatchNormalization LRN Dropout Identity Cast Shape
    Resize ConvTranspose LeakyRelu HardSwish ReduceMean QuantizeLinear DequantizeLinear QLinearConv
    InstanceNormalization LpPool GridSample RoiAlign TopK NonZero Where Einsum LSTM GRU DepthToSpace SpaceToDepth
    OneHot ScatterND GatherND CumSum Expand Tile Range ConstantOfShape Loop If Scan MaxUnpool Det MaxRoiPool
    NonMaxSuppression StringNormalizer TfIdfVectorizer OptionalGetElement SequenceAt Col2Im CenterCropPad STFT DFT
    ImageDecoder Unique Compress EyeLike Bernoulli Multinomial Nonsense
"""
SIMPLE = """
    Relu LeakyRelu Sigmoid Tanh Identity Neg Abs Elu Softplus HardSwish Exp Sqrt Reciprocal Log Softsign Ceil Floor Sign
    Erf Mish Dropout Softmax Selu Cos
"""
KEYS = """
    kernel_shape strides pads dilations group axis axes perm alpha beta epsilon auto_pad ceil_mode count_include_pad
    storage_order transA transB keepdims to mode output_shape output_padding value block_size momentum size bias
    allowzero training_mode num_outputs
"""


@kind
def cyclic_edge(draft: Draft) -> None:
    """A node reads what a later one writes."""
    nodes = [n for n in draft.graph.node if n.input]
    first, last = sorted((draft.rng.randrange(len(nodes) or 1), draft.rng.randrange(len(nodes) or 1)))
    if not nodes:
        raise NotHereError
    inputs = nodes[first].input
    inputs[draft.rng.randrange(len(inputs))] = pick(draft.rng, nodes[last].output)


@kind
def dangling_edge(draft: Draft) -> None:
    """A node reads what nobody writes, or nothing at all."""
    node = pick(draft.rng, [n for n in draft.graph.node if n.input])
    node.input[draft.rng.randrange(len(node.input))] = draft.rng.choice(("nowhere", "", node.name, "image\0"))


@kind
def self_feeding(draft: Draft) -> None:
    node = pick(draft.rng, [n for n in draft.graph.node if n.input and n.output])
    node.input[draft.rng.randrange(len(node.input))] = node.output[0]


@kind
def rewired(draft: Draft) -> None:
    """A node reads another tensor that does exist, written before it."""
    graph = draft.graph
    position = draft.rng.randrange(1, max(2, len(graph.node)))
    node = pick(draft.rng, graph.node[position : position + 1])
    known = [o for n in graph.node[:position] for o in n.output] + [t.name for t in (*graph.input, *graph.initializer)]
    if not node.input:
        raise NotHereError
    node.input[draft.rng.randrange(len(node.input))] = pick(draft.rng, known)


@kind
def duplicate_names(draft: Draft) -> None:
    rng, graph = draft.rng, draft.graph
    one, other = pick(rng, graph.node), pick(rng, graph.node)
    match rng.randrange(5):
        case 0:
            one.output[0] = other.output[0]
        case 1:
            one.name = other.name
        case 2:
            pick(rng, graph.initializer).name = pick(rng, graph.initializer).name
        case 3:
            pick(rng, graph.initializer).name = one.output[0]
        case 4:
            graph.input.append(rng.choice((graph.input[0], graph.output[0])) if graph.input and graph.output else None)


@kind
def nodes_moved(draft: Draft) -> None:
    """Nodes in another order, missing, or there twice."""
    rng, graph = draft.rng, draft.graph
    nodes = list(graph.node)
    place = rng.randrange(len(nodes) or 1)
    match rng.randrange(4):
        case 0:
            rng.shuffle(nodes)
        case 1:
            del nodes[place : place + rng.choice((1, 1, 3))]
        case 2:
            nodes.insert(rng.randrange(len(nodes) or 1), pick(rng, nodes))
        case 3:
            nodes.reverse()
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)


@kind
def skipped_node(draft: Draft) -> None:
    """A node is taken out and its readers read what it read: often a sound network still."""
    graph = draft.graph
    node = pick(draft.rng, [n for n in graph.node if n.input and n.output])
    source, target = node.input[0], node.output[0]
    if any(o.name == target for o in graph.output):
        raise NotHereError
    graph.node.remove(node)
    for reader in graph.node:
        for i, name in enumerate(reader.input):
            if name == target:
                reader.input[i] = source


@kind
def exchanged_operator(draft: Draft) -> None:
    nodes = draft.graph.node
    node = pick(draft.rng, nodes)
    node.op_type = draft.rng.choice((draft.rng.choice(OPS.split()), pick(draft.rng, nodes).op_type))


@kind
def exchanged_activation(draft: Draft) -> None:
    """Another operator of one input and one output in the place of such a one."""
    simple = SIMPLE.split()
    node = pick(draft.rng, [n for n in draft.graph.node if n.op_type in (*simple, "Clip") and n.input])
    node.op_type = draft.rng.choice(simple)
    del node.input[1:], node.attribute[:]


@kind
def inserted_node(draft: Draft) -> None:
    """An operator more on an edge."""
    rng, graph = draft.rng, draft.graph
    position = rng.randrange(len(graph.node) or 1)
    node = pick(rng, [n for n in graph.node[position : position + 1] if n.input])
    slot = rng.randrange(len(node.input))
    extra = onnx.NodeProto(op_type=rng.choice(OPS.split()), name="extra", input=[node.input[slot]], output=["extra.y"])
    for _ in range(rng.choice((0, 0, 1, 2))):
        extra.input.append(rng.choice([n for m in graph.node[: position + 1] for n in m.input] or [""]))
    if rng.random() < 0.5:
        _absurd(draft, extra)
    node.input[slot] = "extra.y"
    graph.node.insert(position, extra)


def _schema(node: onnx.NodeProto) -> list[str]:
    try:
        return sorted(defs.get_schema(node.op_type, 22, node.domain).attributes)
    except defs.SchemaError:
        return []


def _absurd(draft: Draft, node: onnx.NodeProto) -> None:
    """One attribute of a node, whether it has it or not, takes an absurd value."""
    rng = draft.rng
    names = [a.name for a in node.attribute] or _schema(node)
    names = names if rng.random() < 0.7 else [*_schema(node), rng.choice(KEYS.split())]
    name = pick(rng, names)
    old = next((a for a in node.attribute if a.name == name), None)
    kind = old.type if old is not None else _type(node, name)
    if rng.random() < 0.1:
        kind = rng.choice((AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING, 0, 99))
    new = AttributeProto(name=name)
    few = [i for i in INTS if abs(i) < 1000]
    ints = few if rng.random() < 0.4 else list(INTS)
    match kind:
        case AttributeProto.INT:
            new.i = rng.choice(ints)
        case AttributeProto.FLOAT:
            new.f = struct.unpack("f", struct.pack("f", rng.choice(FLOATS)))[0]
        case AttributeProto.STRING:
            new.s = rng.choice(
                (b"", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"\xff\xfe", b"x" * 10_000, b"nearest", b"edge")
            )
        case AttributeProto.INTS:
            values = (
                list(old.ints)
                if old is not None and old.ints and rng.random() < 0.7
                else [1] * rng.choice((0, 1, 2, 4, 7))
            )
            if values and rng.random() < 0.9:
                values[rng.randrange(len(values))] = rng.choice(ints)
            if rng.random() < 0.1:
                values *= rng.choice((0, 2, 10_000))
            new.ints.extend(values)
        case AttributeProto.FLOATS:
            new.floats.extend(rng.choice(FLOATS) for _ in range(rng.choice((0, 1, 4))))
        case AttributeProto.TENSOR:
            dims = [rng.choice(ints) for _ in range(rng.choice((0, 1, 2)))]
            new.t.CopyFrom(TensorProto(data_type=rng.choice((1, 7, 6, 8, 99)), dims=dims, raw_data=bytes(8)))
        case _:
            pass
    new.type = kind if kind in AttributeProto.AttributeType.values() else 0
    if old is not None and rng.random() < 0.95:
        node.attribute.remove(old)
    node.attribute.append(new)


def _type(node: onnx.NodeProto, name: str) -> int:
    try:
        return int(defs.get_schema(node.op_type, 22, node.domain).attributes[name].type.value)
    except (defs.SchemaError, KeyError):
        return AttributeProto.INTS


@kind
def absurd_attribute(draft: Draft) -> None:
    _absurd(draft, pick(draft.rng, [n for n in draft.graph.node if n.attribute]))


@kind
def absurd_geometry(draft: Draft) -> None:
    """Kernel, strides, pads, dilations or group of a convolution or a pool."""
    rng = draft.rng
    node = pick(
        rng, [n for n in draft.graph.node if n.op_type in ("Conv", "MaxPool", "AveragePool", "QLinearConv", "LRN")]
    )
    name = rng.choice(("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad", "ceil_mode"))
    old = next((a for a in node.attribute if a.name == name), None)
    if old is not None:
        node.attribute.remove(old)
    value = rng.choice([i for i in INTS if abs(i) < 5000] if rng.random() < 0.6 else INTS)
    if name in ("group", "ceil_mode"):
        node.attribute.append(AttributeProto(name=name, type=AttributeProto.INT, i=value))
    elif name == "auto_pad":
        node.attribute.append(
            helper.make_attribute(name, rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID", "", "best")))
        )
    else:
        values = list(old.ints) if old is not None else [1] * (4 if name == "pads" else 2)
        for i in range(len(values)):
            values[i] = value if rng.random() < 0.6 else values[i]
        node.attribute.append(AttributeProto(name=name, type=AttributeProto.INTS, ints=values))


@kind
def attributes_lost(draft: Draft) -> None:
    """An attribute is missing, there twice, of another name, or of a type that is not its own."""
    rng = draft.rng
    node = pick(rng, [n for n in draft.graph.node if n.attribute])
    place = rng.randrange(len(node.attribute))
    match rng.randrange(5):
        case 0:
            del node.attribute[place]
        case 1:
            node.attribute.append(node.attribute[place])
        case 2:
            node.attribute[place].name = rng.choice((*KEYS.split(), ""))
        case 3:
            node.attribute[place].type = rng.choice(list(AttributeProto.AttributeType.values()))
        case 4:
            node.attribute[place].ref_attr_name = rng.choice(("alpha", node.attribute[place].name))


@kind
def initializer_dims(draft: Draft) -> None:
    tensor = pick(draft.rng, draft.graph.initializer)
    _change_dims(draft, tensor.dims)


def _change_dims(draft: Draft, dims: object) -> None:
    rng = draft.rng
    values = list(dims)  # type: ignore[call-overload]
    match rng.randrange(5):
        case 0:
            values.reverse()
        case 1:
            values = [int(np.prod(values, dtype=object))] if rng.random() < 0.5 else [1, *values]
        case 2:
            values.append(rng.choice((1, 1, 0, 2)))
        case _:
            if values:
                values[rng.randrange(len(values))] = rng.choice(INTS)
            else:
                values = [rng.choice(INTS)]
    del dims[:]  # type: ignore[attr-defined]
    dims.extend(max(-(2**63), min(2**63 - 1, v)) for v in values)  # type: ignore[attr-defined]


@kind
def stated_shapes(draft: Draft) -> None:
    """The shape of an input, an output or a tensor between, as the file states it."""
    rng, graph = draft.rng, draft.graph
    value = pick(rng, [*graph.input, *graph.input, *graph.output, *graph.value_info])
    shape = value.type.tensor_type.shape
    match rng.randrange(6):
        case 0:
            value.type.tensor_type.ClearField("shape")
        case 1:
            shape.dim.add().dim_value = rng.choice(INTS)
        case 2:
            pick(rng, shape.dim).dim_param = rng.choice(("n", "", "h", "x" * 10_000, "-1", "\0"))
        case 3:
            value.ClearField("type")
        case _:
            pick(rng, shape.dim).dim_value = rng.choice(INTS)


@kind
def data_types(draft: Draft) -> None:
    rng, graph = draft.rng, draft.graph
    kinds = [*TensorProto.DataType.values(), -1, 99]
    if rng.random() < 0.5 and graph.initializer:
        tensor = pick(rng, graph.initializer)
        tensor.data_type = rng.choice(kinds)
        if rng.random() < 0.6:  # with bytes to fill it, so that more than a comparison of sizes is asked
            elements = int(np.prod(tensor.dims))
            try:
                item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            except (KeyError, ValueError):
                item = 1
            tensor.raw_data = rng.randbytes(elements * item)
    else:
        value = pick(rng, [*graph.input, *graph.output, *graph.value_info])
        value.type.tensor_type.elem_type = rng.choice(kinds)


@kind
def stored_data(draft: Draft) -> None:
    """Too few bytes, too many, or in the field of another type."""
    rng = draft.rng
    tensor = pick(rng, draft.graph.initializer)
    raw = tensor.raw_data
    match rng.randrange(6):
        case 0:
            tensor.raw_data = raw[: rng.randrange(len(raw) + 1)]
        case 1:
            tensor.raw_data = raw + rng.randbytes(rng.choice((1, 4, 100)))
        case 2:
            tensor.ClearField("raw_data")
        case 3:
            values = np.frombuffer(raw[: len(raw) // 4 * 4], np.float32)
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.tolist())
        case 4:
            tensor.int32_data.extend(rng.choice(INTS[:10]) for _ in range(rng.choice((1, 100))))
        case 5:
            tensor.segment.CopyFrom(TensorProto.Segment(begin=rng.choice(INTS), end=rng.choice(INTS)))


@kind
def initializers_lost(draft: Draft) -> None:
    """Initializers missing, exchanged, empty, or there twice."""
    rng, graph = draft.rng, draft.graph
    one, other = pick(rng, graph.initializer), pick(rng, graph.initializer)
    match rng.randrange(5):
        case 0:
            graph.initializer.remove(one)
        case 1:
            one.name, other.name = other.name, one.name
        case 2:
            name = one.name
            one.Clear()
            one.name = name
        case 3:
            graph.initializer.append(other)
        case 4:
            one.name = rng.choice(("", "nowhere", graph.output[0].name if graph.output else ""))


@kind
def strange_weights(draft: Draft) -> None:
    """NaN, Inf, huge, denormal, zero, negative: weights that a sound graph can hold."""
    rng = draft.rng
    tensor = pick(rng, [t for t in draft.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.raw_data) > 3])
    values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32).copy()
    strange = np.float32(rng.choice(FLOATS))
    match rng.randrange(4):
        case 0:
            values[:] = strange
        case 1:
            values[rng.randrange(len(values))] = strange
        case 2:
            with np.errstate(all="ignore"):
                values *= strange
        case 3:
            values = -values
    tensor.raw_data = values.tobytes()


@kind
def scales(draft: Draft) -> None:
    """Quantisation with a step or a zero point that is none."""
    rng, graph = draft.rng, draft.graph
    nodes = [n for n in graph.node if "Linear" in n.op_type or n.op_type.startswith("Q")]
    if not nodes:
        nodes = [_quantised_edge(draft)]
    node = pick(rng, nodes)
    stored = {t.name: t for t in graph.initializer}
    names = [n for n in list(node.input)[1:] if n in stored and int(np.prod(stored[n].dims)) <= 4096]
    tensor = stored[pick(rng, names)]
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(
            numpy_helper.from_array(np.full(list(tensor.dims), rng.choice(FLOATS), np.float32), tensor.name)
        )
    else:
        size = max(1, int(np.prod(tensor.dims)))
        tensor.raw_data = rng.randbytes(max(1, len(tensor.raw_data) or size))


def _quantised_edge(draft: Draft) -> onnx.NodeProto:
    """A QuantizeLinear and a DequantizeLinear on an edge of the model."""
    graph = draft.graph
    place = draft.rng.randrange(len(graph.node) or 1)
    node = pick(draft.rng, [n for n in graph.node[place : place + 1] if n.input])
    graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "fuzz.scale"))
    graph.initializer.append(numpy_helper.from_array(np.uint8(128), "fuzz.zero"))
    pair = [helper.make_node("QuantizeLinear", [node.input[0], "fuzz.scale", "fuzz.zero"], ["fuzz.q"])]
    pair.append(helper.make_node("DequantizeLinear", ["fuzz.q", "fuzz.scale", "fuzz.zero"], ["fuzz.d"]))
    node.input[0] = "fuzz.d"
    for offset, made in enumerate(pair):
        graph.node.insert(place + offset, made)
    return graph.node[place]


@kind
def versions(draft: Draft) -> None:
    """Opsets and format versions that never were, and such as no longer fit the nodes."""
    rng, proto = draft.rng, draft.proto
    match rng.randrange(5):
        case 0:
            proto.ir_version = rng.choice((0, -1, 1, 2, 3, 7, 10, 12, 13, 99, 2**62))
        case 1:
            proto.opset_import.add().version = rng.choice(INTS)
        case 2:
            del proto.opset_import[:]
        case _:
            pick(rng, proto.opset_import).version = rng.choice(
                (*INTS, 1, 6, 7, 8, 9, 10, 11, 12, 13, 18, 19, 21, 22, 25, 27)
            )


@kind
def domains(draft: Draft) -> None:
    rng, proto = draft.rng, draft.proto
    names = (
        "ai.onnx",
        "ai.onnx.ml",
        "com.microsoft",
        "",
        "ai.onnx.training",
        "nowhere",
        "com.microsoft.nchwc",
        "x" * 9999,
    )
    if rng.random() < 0.5:
        pick(rng, proto.opset_import).domain = rng.choice(names)
    else:
        pick(rng, proto.graph.node).domain = rng.choice(names)


@kind
def ends(draft: Draft) -> None:
    """Inputs and outputs of the graph: more, fewer, others."""
    rng, graph = draft.rng, draft.graph
    inner = [o for n in graph.node for o in n.output if o]
    match rng.randrange(6):
        case 0:
            graph.output.insert(0, onnx.ValueInfoProto(name=pick(rng, inner)))
            if rng.random() < 0.7:
                graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.FLOAT, None))
        case 1:
            del graph.output[:]
        case 2:
            del graph.input[:]
        case 3:
            graph.input.add().CopyFrom(
                helper.make_tensor_value_info("more", rng.choice((1, 7, 8, 9)), [rng.choice(INTS)])
            )
        case 4:
            graph.output.add().CopyFrom(
                helper.make_tensor_value_info(rng.choice(("nowhere", "")), TensorProto.FLOAT, [1])
            )
        case 5:
            graph.input.add().CopyFrom(graph.output[0] if graph.output else graph.input[0])


@kind
def merged_graphs(draft: Draft) -> None:
    """The nodes of another model behind one's own: the names collide, or not."""
    others = [name for name in corpus.entries() if name not in corpus.HEAVY and "demo" not in name]
    other = onnx.ModelProto.FromString(corpus.read(draft.rng.choice(others)))
    draft.graph.node.extend(other.graph.node)
    if draft.rng.random() < 0.5:
        draft.graph.initializer.extend(other.graph.initializer)
    if draft.rng.random() < 0.5:
        draft.proto.opset_import.extend(other.opset_import)
