"""Small networks whose outputs are more than one score a class: segmentation, detection, dense signals and volumes.

Their backbone is the same and ends in ``relu2.y``, at half the size of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from tiny_models import CLASSES, Net

__all__ = ["backbone", "cut_down", "detector", "fcn", "segmenter", "signals", "two_paths", "unet", "volumes"]


def backbone(net: Net, *, channels: int = 3, rank: int = 2) -> str:
    """conv-relu, max-pool, conv-relu: 8 channels at half the size."""
    x = net.relu("relu1", net.conv("conv1", "image", channels, 6, rank=rank))
    return net.relu("relu2", net.conv("conv2", net.max_pool("pool", x, rank=rank), 6, 8, rank=rank))


def segmenter(
    *,
    end: str = "",
    nhwc: bool = False,
    shape: Sequence[int | str | None] = ("n", 3, 16, 12),
    seed: int = 0,
    **metadata: str,
) -> onnx.ModelProto:
    """A hidden layer, a 1x1 classifier and bilinear growth: [n, 5, 16, 12], [n, 16, 12, 5] with ``nhwc``.

    ``end``: "Softmax", "Sigmoid", "ArgMax" or "Softmax ArgMax" over the classes behind it.
    """  # fmt: skip
    net = Net(shape, seed=seed)
    x = net.relu("relu3", net.conv("conv3", backbone(net), 8, 7))
    x = net.conv("classes", x, 7, CLASSES, 1)
    x = net.node("Resize", "grow", x, None, np.array([1, 1, 2, 2], np.float32), mode="linear")
    if nhwc:
        x = net.node("Transpose", "to_nhwc", x, perm=[0, 2, 3, 1])
    for op in end.split():
        axis = {} if op == "Sigmoid" else {"axis": -1 if nhwc else 1}
        x = net.node(op, op.lower(), x, **axis, **({"keepdims": 0} if op == "ArgMax" else {}))
    model = net.model(x, **metadata)
    if end.endswith("ArgMax"):
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def fcn(seed: int = 0) -> onnx.ModelProto:
    """Classes at half the size that a transposed convolution grows: learned weights behind the classes themselves."""
    net = Net(seed=seed)
    x = net.conv("classes", backbone(net), 8, CLASSES, 1)
    grown = net.node("ConvTranspose", "grow", x, net.random(CLASSES, CLASSES, 2, 2), strides=[2, 2])
    return net.model(net.node("Transpose", "to_nhwc", grown, perm=[0, 2, 3, 1]))


def cut_down(model: onnx.ModelProto, weights: np.ndarray) -> onnx.ModelProto:
    """``model`` with its first output reduced to one score inside the graph: the sum of ``weights`` times the logits.

    ``weights``: for one image, [1, ...]. Mul and ReduceSum stand behind the logits, so an ordinary classifier of one
    class explains what the target explains.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    name = proto.graph.output[0].name
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights.astype(np.float32), "weights"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, weights.size]), "flat"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((weights.size, 1), np.float32), "ones"))
    proto.graph.node.extend(
        [
            helper.make_node("Mul", [name, "weights"], ["weighted"], name="weigh"),
            helper.make_node("Reshape", ["weighted", "flat"], ["row"], name="flatten"),
            helper.make_node("MatMul", ["row", "ones"], ["score"], name="sum"),
        ]
    )
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ("n", 1)))
    return proto


def unet(seed: int = 0) -> onnx.ModelProto:
    """Two levels with a skip connection at each: every cut has the size of the picture."""
    net = Net(seed=seed)
    one = net.relu("down1.relu", net.conv("down1", "image", 3, 6))
    two = net.relu("down2.relu", net.conv("down2", net.max_pool("pool1", one), 6, 8))
    deep = net.relu("bottom.relu", net.conv("bottom", net.max_pool("pool2", two), 8, 10))
    up = net.node("ConvTranspose", "up2", deep, net.random(10, 8, 2, 2), strides=[2, 2])
    up = net.relu("up2.relu", net.conv("up2.conv", net.node("Concat", "join2", up, two, axis=1), 16, 8))
    up = net.node("ConvTranspose", "up1", up, net.random(8, 6, 2, 2), strides=[2, 2])
    up = net.relu("up1.relu", net.conv("up1.conv", net.node("Concat", "join1", up, one, axis=1), 12, 6))
    return net.model(net.conv("classes", up, 6, CLASSES, 1))


def two_paths(seed: int = 0) -> onnx.ModelProto:
    """A path of detail and a path of context, both from the pixels: nothing but the picture is passed by all."""
    net = Net(seed=seed)
    detail = net.relu("detail.relu", net.conv("detail", "image", 3, 6))
    context = net.relu("context.relu", net.conv("context", net.max_pool("shrink", "image"), 3, 6))
    context = net.node("Resize", "grow", context, None, np.array([1, 1, 2, 2], np.float32), mode="nearest")
    left, right = net.conv("detail.classes", detail, 6, CLASSES, 1), net.conv("context.classes", context, 6, CLASSES, 1)
    return net.model(net.node("Add", "add", left, right))


def detector(seed: int = 0) -> onnx.ModelProto:
    """Two scales, two anchors a cell: boxes [n, 120, 4], scores [n, 120, 5], and both joined [n, 120, 9], the first."""
    net = Net(seed=seed)
    fine = backbone(net)
    coarse = net.relu("relu3", net.conv("conv3", fine, 8, 10, strides=[2, 2]))
    parts: dict[str, list[str]] = {"boxes": [], "scores": []}
    for scale, x, channels in (("fine", fine, 8), ("coarse", coarse, 10)):
        for kind, size in (("boxes", 4), ("scores", CLASSES)):
            y = net.conv(f"{scale}.{kind}", x, channels, 2 * size)
            y = net.node("Transpose", f"{scale}.{kind}.last", y, perm=[0, 2, 3, 1])
            parts[kind].append(net.node("Reshape", f"{scale}.{kind}.rows", y, np.array([0, -1, size])))
    boxes, scores = (net.node("Concat", kind, *rows, axis=1) for kind, rows in parts.items())
    return net.model(net.node("Concat", "found", boxes, scores, axis=2), boxes, scores)


def signals(seed: int = 0) -> onnx.ModelProto:
    """A label for each moment of a signal: [n, 2, 40] -> [n, 1, 40], which is no row of 40 classes."""
    net = Net(("n", 2, 40), seed=seed)
    x = net.node("Resize", "grow", backbone(net, channels=2, rank=1), None, np.array([1, 1, 2], np.float32))
    return net.model(net.conv("moments", x, 8, 1, rank=1))


def volumes(seed: int = 0) -> onnx.ModelProto:
    """A class for each cell of a volume: [n, 1, 6, 8, 4] -> [n, 5, 6, 8, 4]."""
    net = Net(("n", 1, 6, 8, 4), seed=seed)
    x = net.node(
        "ConvTranspose", "grow", backbone(net, channels=1, rank=3), net.random(8, 6, 2, 2, 2), strides=[2, 2, 2]
    )
    return net.model(net.conv("classes", net.relu("relu3", x), 6, CLASSES, 1, rank=3))
