"""Small ONNX models, built by hand: every shape of network that the tests need, in a few kilobytes each.

:class:`Net` writes a graph line by line; the functions below it are ready-made classifiers. A node ``conv1`` writes the
tensor ``conv1.y``, so that node names and tensor names can be told apart. Weights are random and seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "Net",
    "attention",
    "by_layers",
    "concat",
    "external",
    "fixed_batch",
    "free_size",
    "nhwc",
    "one_d",
    "pictures",
    "residual",
    "run",
    "softmax_end",
    "squeeze_excite",
    "three_d",
    "two_inputs",
    "vgg",
]

Array = npt.NDArray[Any]
CLASSES = 5


class Net:
    """A graph in the making. Arrays given as operands become initializers, ``pass by name`` ones stay names."""

    def __init__(
        self,
        shape: Sequence[int | str | None] = ("n", 3, 16, 12),
        *,
        opset: int = 17,
        seed: int = 0,
        image: str = "image",
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs = [helper.make_tensor_value_info(image, TensorProto.FLOAT, shape)]
        self.weights: list[TensorProto] = []
        self.channels: dict[str, int] = {}

    def weight(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        array = np.asarray(value)
        array = array if array.dtype.kind in "ib" else array.astype(dtype)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op: str, name: str, *operands: str | Array | np.number[Any] | None, outputs: int = 1, **attributes: Any
    ) -> str:
        """Append a node; its first output's name."""
        names = []
        for i, operand in enumerate(operands):
            if operand is None or isinstance(operand, str):
                names.append(operand or "")
            else:
                names.append(self.weight(f"{name}.{i}", operand))
        results = [f"{name}.y", *(f"{name}.y{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op, names, results, name=name, **attributes))
        return results[0]

    def random(self, *shape: int, scale: float | None = None) -> Array:
        """Weights [co, ci, k...] of He's variance."""
        fan = max(1, int(np.prod(shape[1:])))
        values: Array = self.rng.normal(0, np.sqrt(2 / fan) if scale is None else scale, shape).astype(np.float32)
        return values

    def conv(
        self, name: str, x: str, ci: int, co: int, k: int = 3, *, rank: int = 2, bias: bool = True, **attributes: Any
    ) -> str:
        """A convolution that keeps the size unless ``pads`` or ``strides`` say otherwise."""
        group = attributes.get("group", 1)
        attributes.setdefault("pads", [k // 2] * 2 * rank)
        operands: list[str | Array] = [self.random(co, ci // group, *[k] * rank)]
        if bias:
            operands.append(self.random(co, scale=0.1))
        return self.node("Conv", name, x, *operands, **attributes)

    def batch_norm(self, name: str, x: str, c: int, *, negative: int = 0, **attributes: Any) -> str:
        gamma = self.rng.uniform(0.5, 1.5, c)
        gamma[:negative] *= -1
        beta, mean = self.rng.normal(0, 0.2, (2, c))
        return self.node("BatchNormalization", name, x, gamma, beta, mean, self.rng.uniform(0.5, 2, c), **attributes)

    def relu(self, name: str, x: str) -> str:
        return self.node("Relu", name, x)

    def max_pool(self, name: str, x: str, k: int = 2, rank: int = 2) -> str:
        return self.node("MaxPool", name, x, kernel_shape=[k] * rank, strides=[k] * rank)

    def head(self, x: str, c: int, classes: int = CLASSES) -> str:
        """Global average pool, flatten, linear."""
        flat = self.node("Flatten", "flat", self.node("GlobalAveragePool", "gap", x))
        return self.node("Gemm", "fc", flat, self.random(classes, c), self.random(classes, scale=0.1), transB=1)

    def input(self, name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def model(self, *outputs: str, domain: str = "", **metadata: str) -> onnx.ModelProto:
        """The checked model. ``domain``: the name under which ONNX's own operators are imported."""
        graph = helper.make_graph(
            self.nodes, "tiny", self.inputs, [onnx.ValueInfoProto(name=name) for name in outputs], self.weights
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        try:
            typed = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.output}
        except onnx.shape_inference.InferenceError:
            typed = {}
        for value in proto.graph.output:
            known = typed.get(value.name)
            if known is not None and known.type.HasField("tensor_type"):
                value.CopyFrom(known)
            else:
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))
        if domain:
            proto.opset_import[0].domain = domain
        for key, text in metadata.items():
            entry = proto.metadata_props.add()
            entry.key, entry.value = key, text
        return proto


# --- ready-made classifiers ---------------------------------------------------------------------------------


def vgg(seed: int = 0) -> onnx.ModelProto:
    """conv-bn-relu, max-pool, conv-bn-relu, max-pool, flatten, two linear layers. Fixed 16 x 12; L is 4 x 3."""
    net = Net(seed=seed)
    x = net.relu("relu1", net.batch_norm("bn1", net.conv("conv1", "image", 3, 6, bias=False), 6))
    x = net.max_pool("pool1", x)
    x = net.relu("relu2", net.batch_norm("bn2", net.conv("conv2", x, 6, 8), 8))
    x = net.node("Flatten", "flat", net.max_pool("pool2", x))
    x = net.relu("relu3", net.node("Gemm", "fc1", x, net.random(10, 8 * 4 * 3), net.random(10, scale=0.1), transB=1))
    return net.model(net.node("Gemm", "fc2", x, net.random(CLASSES, 10), net.random(CLASSES, scale=0.1), transB=1))


def residual(seed: int = 0) -> onnx.ModelProto:
    """A stem, a block with a shortcut, a strided block with a projected shortcut; GAP head."""
    net = Net(seed=seed)
    stem = net.relu("relu0", net.conv("stem", "image", 3, 6))
    x = net.conv("b1.conv2", net.relu("b1.relu1", net.conv("b1.conv1", stem, 6, 6)), 6, 6)
    one = net.relu("b1.relu2", net.node("Add", "b1.add", x, stem))
    x = net.conv("b2.conv2", net.relu("b2.relu1", net.conv("b2.conv1", one, 6, 8, strides=[2, 2])), 8, 8)
    short = net.conv("b2.down", one, 6, 8, 1, strides=[2, 2])
    return net.model(net.head(net.relu("b2.relu2", net.node("Add", "b2.add", x, short)), 8))


def squeeze_excite(seed: int = 0) -> onnx.ModelProto:
    """SiLU as x * Sigmoid(x), a squeeze-and-excitation branch, HardSwish spelt out, GAP head."""
    net = Net(seed=seed)
    c = net.conv("conv1", "image", 3, 6)
    x = net.node("Mul", "silu", c, net.node("Sigmoid", "silu.sigmoid", c))
    s = net.node("GlobalAveragePool", "se.pool", x)
    s = net.relu("se.relu", net.conv("se.down", s, 6, 4, 1))
    s = net.node("Sigmoid", "se.sigmoid", net.conv("se.up", s, 4, 6, 1))
    x = net.conv("conv2", net.node("Mul", "se.scale", s, x), 6, 8, strides=[2, 2])
    g = net.node("Add", "hs.add", x, np.float32(3))
    g = net.node("Clip", "hs.clip", g, np.float32(0), np.float32(6))
    x = net.node("Div", "hs.div", net.node("Mul", "hs.mul", x, g), np.float32(6))
    return net.model(net.head(x, 8))


def concat(seed: int = 0) -> onnx.ModelProto:
    """Two branches joined along the channels, then a conv classifier whose pooled maps are the logits (SqueezeNet)."""
    net = Net(seed=seed)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    a = net.relu("relu2a", net.conv("conv2a", x, 6, 4, 1))
    b = net.relu("relu2b", net.conv("conv2b", x, 6, 4))
    x = net.max_pool("pool", net.node("Concat", "join", a, b, axis=1))
    x = net.node("GlobalAveragePool", "gap", net.relu("relu3", net.conv("classifier", x, 8, CLASSES, 1)))
    return net.model(net.node("Flatten", "flat", x))


def nhwc(seed: int = 0) -> onnx.ModelProto:
    """As TensorFlow exports: [n, h, w, c] in, Transposes around the convolutions, Pad before one, MatMul + Add."""
    net = Net(("n", 16, 12, 3), seed=seed)
    x = net.node("Transpose", "to_nchw", "image", perm=[0, 3, 1, 2])
    x = net.relu("relu1", net.conv("conv1", x, 3, 6))
    x = net.node("Pad", "pad", x, np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    x = net.relu("relu2", net.conv("conv2", x, 6, 8, strides=[2, 2], pads=[0, 0, 0, 0]))
    x = net.node("Transpose", "to_nhwc", x, perm=[0, 2, 3, 1])
    x = net.node("ReduceMean", "gap", x, axes=[1, 2], keepdims=0)
    x = net.node("MatMul", "fc", x, net.random(8, CLASSES))
    return net.model(net.node("Add", "fc.bias", x, net.random(CLASSES, scale=0.1)))


def softmax_end(seed: int = 0) -> onnx.ModelProto:
    """A chain whose only output is probabilities."""
    net = Net(seed=seed)
    x = net.max_pool("pool", net.relu("relu1", net.conv("conv1", "image", 3, 6)))
    x = net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8)
    return net.model(net.node("Softmax", "softmax", x, axis=1))


def free_size(
    seed: int = 0, shape: Sequence[int | str | None] = ("n", 3, "h", "w"), strides: int = 2, **metadata: str
) -> onnx.ModelProto:
    """conv-relu, strided conv-relu, GAP head: takes any height and width. L is relu2.y."""
    net = Net(shape, seed=seed)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    x = net.relu("relu2", net.conv("conv2", x, 6, 8, strides=[strides, strides]))
    return net.model(net.head(x, 8), **metadata)


def fixed_batch(n: int = 4, seed: int = 0) -> onnx.ModelProto:
    """Takes exactly ``n`` images of 16 x 12."""
    return free_size(seed, (n, 3, 16, 12))


def one_d(seed: int = 0) -> onnx.ModelProto:
    """Signals [n, 2, 40]."""
    net = Net(("n", 2, 40), seed=seed)
    x = net.max_pool("pool", net.relu("relu1", net.conv("conv1", "image", 2, 6, rank=1)), rank=1)
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8, rank=1)), 8))


def three_d(seed: int = 0) -> onnx.ModelProto:
    """Volumes [n, 2, 6, 8, 4]."""
    net = Net(("n", 2, 6, 8, 4), seed=seed)
    x = net.max_pool("pool", net.relu("relu1", net.conv("conv1", "image", 2, 6, rank=3)), rank=3)
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8, rank=3)), 8))


def two_inputs(seed: int = 0) -> onnx.ModelProto:
    """A picture and a vector of facts, joined before the linear layer."""
    net = Net(seed=seed)
    facts = net.input("facts", ("n", 2))
    x = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    x = net.node("Flatten", "flat", net.node("GlobalAveragePool", "gap", x))
    x = net.node("Concat", "join", x, facts, axis=1)
    return net.model(net.node("Gemm", "fc", x, net.random(CLASSES, 8), net.random(CLASSES), transB=1))


def attention(seed: int = 0, op: str = "Softmax") -> onnx.ModelProto:
    """A chain with ``op``, which has no relevance rule, between two convolutions."""
    net = Net(seed=seed)
    x = net.node(op, "middle", net.conv("conv1", "image", 3, 6), **({"axis": 1} if op == "Softmax" else {}))
    return net.model(net.head(net.relu("relu2", net.conv("conv2", x, 6, 8)), 8))


def by_layers() -> dict[str, onnx.ModelProto]:
    """Every ready-made classifier of pictures that can be explained, by name."""
    makers = (vgg, residual, squeeze_excite, concat, nhwc, softmax_end, free_size, fixed_batch)
    return {make.__name__: make() for make in makers}


def external(model: onnx.ModelProto, folder: Path, location: str = "weights.bin") -> Path:
    """``model`` written to ``folder`` with all its weights in a side file; the path of the .onnx file."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    path = folder / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=location,
                    size_threshold=0)  # fmt: skip
    return path


def pictures(model: onnx.ModelProto, n: int | None = None, seed: int = 0, free: int = 14) -> Array:
    """Random input for ``model``: its batch or ``n``, ``free`` where another size is open."""
    rng = np.random.default_rng(seed)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value or free for d in dims]
    shape[0] = n or dims[0].dim_value or 2
    return rng.normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, x: Array, *names: str) -> list[Array]:
    """The named tensors (the outputs if none are named) for input x, by onnxruntime without optimisation."""
    import onnxruntime as ort

    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    have = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = list(names) or [value.name for value in model.graph.output]
    found: list[Array] = session.run(wanted, {proto.graph.input[0].name: x})
    return found
