"""The nine "light" graphs of the ONNX model zoo that come with the onnx package: opset 9, one image of 224 x 224.

They carry the small parameters of trained networks; in place of each larger one stands a ConstantOfShape of 0.02. So
all channels say much the same, every class is as likely as every other, and little could go wrong unseen. ``alive``
puts random weights there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from architectures.proof import Truth

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SHAPE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Light:
    """``layer``: L by methods 2.2; ``logits``: the scores before the softmax, if there is one. Both are in the file.

    ``quick``: every run also proves it alive; the others, of up to 140 million weights, are proved so by
    ``pytest -m slow``.
    """

    name: str
    layer: str
    shape: tuple[int, int, int]
    logits: str
    softmax: bool = True
    quick: bool = True

    @property
    def path(self) -> Path:
        return FOLDER / f"light_{self.name}.onnx"

    @property
    def expected(self) -> NDArray[np.float32]:
        """The output that lies beside the file, [1, classes], for the input of :func:`ramp`."""
        tensor = TensorProto()
        tensor.ParseFromString(self.path.with_name(f"{self.path.stem}_output_0.pb").read_bytes())
        return numpy_helper.to_array(tensor).reshape(1, -1)


LIGHT = (
    Light("bvlc_alexnet", "r14", (256, 6, 6), "r24", quick=False),
    Light("densenet121", "r907", (1024, 7, 7), "fc6_1", softmax=False),
    Light("inception_v1", "r137", (1024, 6, 6), "r143"),
    Light("inception_v2", "r504", (1024, 7, 7), "r507"),
    Light("resnet50", "r171", (2048, 7, 7), "r174"),
    Light("shufflenet", "r198", (544, 7, 7), "r201"),
    Light("squeezenet", "r61", (512, 13, 13), "r65"),
    Light("vgg19", "r36", (512, 7, 7), "r46", quick=False),
    Light("zfnet512", "r14", (512, 6, 6), "r20", quick=False),
)


def ramp() -> NDArray[np.float32]:
    """The input that the published outputs belong to: 0 to 1 in equal steps."""
    size = int(np.prod(SHAPE))
    ramp: NDArray[np.float32] = (np.arange(size) / size).reshape(SHAPE).astype(np.float32)
    return ramp


def alive(light: Light, seed: int = 0) -> onnx.ModelProto:
    """The same graph with a random initializer in place of each ConstantOfShape; each fits the place it is read at."""
    model, rng = onnx.load(light.path), np.random.default_rng(seed)
    graph = model.graph
    sizes = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    readers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, (node, position))
    filled = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in filled:
        (name,), shape = node.output, tuple(int(d) for d in sizes[node.input[0]])
        value = numpy_helper.from_array(_weight(shape, *_reader(name, readers), rng).astype(np.float32), name)
        graph.initializer.append(value)
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))  # as files of this age do
        graph.node.remove(node)
    return model


def _reader(name: str, readers: dict[str, tuple[onnx.NodeProto, int]]) -> tuple[str, int]:
    """The operator that works with the tensor, and as which operand."""
    node, position = readers[name]
    while node.op_type in ("Unsqueeze", "Reshape"):
        node, position = readers[node.output[0]]
    return node.op_type, position


def _weight(shape: tuple[int, ...], op: str, position: int, rng: np.random.Generator) -> NDArray[np.floating]:
    if len(shape) > 1:  # He
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if op == "Mul" or (op == "BatchNormalization" and position in (1, 4)):  # a scale or a variance
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(0.0, 0.1, shape)


def truth(light: Light, model: onnx.ModelProto, x: NDArray[np.float32]) -> Truth:
    """What onnxruntime says of the graph, image by image."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    known = {output.name for output in model.graph.output}
    names = [light.logits, light.layer]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = {each.name for each in session.get_inputs()}
    logits, at_l = zip(*(session.run(names, {image: x[i : i + 1]}) for i in range(len(x))), strict=True)
    scores = np.concatenate(logits).reshape(len(x), -1)
    target = [int(order[-1 - i]) for i, order in enumerate(scores.argsort(axis=1))]
    return Truth(x, target, scores, np.concatenate(at_l))
