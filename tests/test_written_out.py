"""Operators that exporters write out in smaller ones: the view sees what they are, and gives the same map.

The oracle is the same network with the operator itself: LayerNormalization-17, RMSNormalization-23.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from single_op import close, descend, tape
from test_passes import ops, view
from tiny_models import Net

from fgcam_onnx.composite import GradientComposite
from fgcam_onnx.errors import UnsupportedOpError

EPSILON = 0.05


def network(norm: Any, *, opset: int = 17, axes: str = "last") -> onnx.ModelProto:
    """conv, relu, a normalisation over the channels (moved to the end, or where they are), relu, conv."""
    net = Net(("n", 3, 6, 5), opset=opset)
    x = net.relu("relu1", net.conv("conv1", "image", 3, 4))
    if axes == "last":
        x = net.node("Transpose", "last", x, perm=[0, 2, 3, 1])
    x = norm(net, x)
    x = net.node("Add", "shift", net.node("Mul", "scale", x, gamma(axes)), np.asarray(0.3))
    if axes == "last":
        x = net.node("Transpose", "first", x, perm=[0, 3, 1, 2])
    return net.model(net.conv("conv2", net.relu("relu2", x), 4, 3))


def gamma(axes: str) -> np.ndarray:
    values = np.linspace(0.5, 2, 4)
    return values if axes == "last" else values.reshape(4, 1, 1)


def written(
    axis: int = -1,
    *,
    square: str = "Pow",
    centred: bool = True,
    tail: str = "Div",
    twice: bool = False,
    squares: str | None = None,
) -> Any:
    """(x - mean) / sqrt(mean of squares + epsilon), in the ways that exporters have."""

    def norm(net: Net, x: str) -> str:
        def less_mean(name: str) -> str:
            mean = net.node("ReduceMean", f"mean{name}", x, axes=[axis])
            return net.node("Sub", f"centred{name}", x, mean)

        d = less_mean("") if centred else x
        base = squares or (less_mean("2") if twice else d)
        if square == "Pow":
            squared = net.node("Pow", "square", base, np.asarray(2.0))
        else:
            squared = net.node("Mul", "square", base, base)
        v = net.node("ReduceMean", "variance", squared, axes=[axis])
        v = net.node("Add", "epsilon", v, np.asarray(EPSILON))
        if tail == "Div":
            return net.node("Div", "norm", d, net.node("Sqrt", "root", v))
        if tail == "half":
            return net.node("Div", "norm", d, net.node("Pow", "root", v, np.asarray(0.5)))
        if tail == "Reciprocal":
            inverse = net.node("Reciprocal", "inverse", net.node("Sqrt", "root", v))
        else:
            inverse = net.node("Pow", "inverse", v, np.asarray(-0.5))
        return net.node("Mul", "norm", inverse, d)

    return norm


def layer_norm(net: Net, x: str) -> str:
    return net.node("LayerNormalization", "norm", x, np.ones(4), epsilon=EPSILON)


def rms_norm(net: Net, x: str) -> str:
    return net.node("RMSNormalization", "norm", x, np.ones(4), epsilon=EPSILON)


def maps(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Relevance and gradient from the last convolution down to the first one's output, in float64."""
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5))
    x = x.astype(np.float32).astype(np.float64)
    found = descend(model, x, "conv2.y", "conv1.y")
    assert found.ledger.residual < 1e-12
    return found.relevance, descend(model, x, "conv2.y", "conv1.y", composite=GradientComposite()).relevance


WAYS = {
    "as torch does at opset 13": {},
    "squared by Mul": {"square": "Mul"},
    "a mean for each": {"twice": True},
    "Reciprocal": {"tail": "Reciprocal"},
    "power of a half": {"tail": "half"},
    "power of minus a half": {"tail": "power"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
def test_a_normalisation_is_one_layer(way: str, centred: bool) -> None:
    """Handed on by relevance, differentiated with its mean and deviation: as the operator itself is."""
    if not centred and way == "a mean for each":
        pytest.skip("there is no mean")
    model = network(written(centred=centred, **WAYS[way]))
    assert ops(view(model)) == ["Conv", "Relu", "Transpose", "fgcam::Standardise", "Mul", "Add", "Transpose", "Relu",
                                "Conv"]  # fmt: skip
    itself = network(layer_norm) if centred else network(rms_norm, opset=23)
    for found, expected in zip(maps(model), maps(itself), strict=True):
        close(found, expected, 1e-6)
        assert np.abs(expected).max() > 0


def test_a_normalisation_over_the_channels_where_they_are() -> None:
    """The same numbers with the channels on axis 1."""
    first = network(written(1), axes="first")
    assert "fgcam::Standardise" in ops(view(first))
    for found, expected in zip(maps(first), maps(network(layer_norm)), strict=True):
        close(found, expected, 1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_what_only_looks_like_one(centred: bool) -> None:
    """x divided by the deviation of something else is no normalisation of x."""
    net = Net(("n", 3, 6, 5))
    x, other = (net.relu(f"relu{k}", net.conv(f"conv{k}", "image", 3, 4)) for k in (1, 2))
    graph = view(net.model(written(1, centred=centred, squares=other)(net, x)))
    assert "fgcam::Standardise" not in ops(graph)
    assert "Div" in ops(graph)


def test_a_part_that_is_read_elsewhere_stays() -> None:
    """The centred tensor is also read by an Add: it stays, with its mean, beside the folded layer."""

    def norm(net: Net, x: str) -> str:
        return net.node("Add", "both", written()(net, x), "centred.y")

    graph = view(network(norm))
    assert "fgcam::Standardise" in ops(graph)
    assert [layer.name for layer in graph.layers if layer.op in ("ReduceMean", "Sub")] == ["mean", "centred"]
    assert not {"Pow", "Sqrt", "Div"} & set(ops(graph))


def strided(n: str | int, positions: np.ndarray | None = None) -> onnx.ModelProto:
    """A pooled tensor through Reshape([-1]) and Gather, as torch.export writes ``as_strided``."""
    net = Net((n, 3, 6, 5))
    x = net.node("ReduceMean", "gap", net.relu("relu1", net.conv("conv1", "image", 3, 4)), axes=[2, 3])
    flat = net.node("Reshape", "flat", x, np.asarray([-1]))
    if positions is None:  # 4 * image + channel, for a batch that is known when it runs
        batch = net.node("Gather", "batch", net.node("Shape", "shape", "image"), np.asarray(0))
        images = net.node("Range", "images", np.asarray(0), batch, np.asarray(1))
        starts = net.node("Unsqueeze", "column", net.node("Mul", "starts", images, np.asarray(4)), np.asarray([1]))
        reads: Any = net.node("Add", "positions", starts, np.arange(4)[None])
    else:
        reads = positions
    x = net.node("Gather", "strided", flat, reads, axis=0)
    return net.model(net.node("Gemm", "fc", x, net.random(3, 4), transB=1))


def test_a_view_by_strides_is_one_layer() -> None:
    """The same gradient as without the detour, for a batch of three."""
    model = strided("n")
    assert ops(view(model)) == ["Conv", "Relu", "ReduceMean", "fgcam::Strided", "Gemm"]
    plain = Net(("n", 3, 6, 5))
    y = plain.node(
        "ReduceMean", "gap", plain.relu("relu1", plain.conv("conv1", "image", 3, 4)), axes=[2, 3], keepdims=0
    )
    reference = plain.model(plain.node("Gemm", "fc", y, plain.random(3, 4), transB=1))
    x = np.random.default_rng(1).normal(size=(3, 3, 6, 5))
    for composite in (GradientComposite(), None):
        found = descend(model, x, "fc.y", "conv1.y", composite=composite)
        close(found.relevance, descend(reference, x, "fc.y", "conv1.y", composite=composite).relevance)
    assert found.ledger.residual < 1e-12


@pytest.mark.parametrize("positions", [[[1, 2, 3, 4], [0, 5, 6, 7]], [[0, 1, 2, 3], [5, 4, 6, 7]]])
def test_a_view_that_mixes_images_is_refused(positions: list[list[int]]) -> None:
    """One reads a cell of the next image; the other reads other cells of each."""
    model = strided(2, np.asarray(positions))
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5))
    assert tape(model, x)["strided.y"].shape == (2, 4)
    with pytest.raises(UnsupportedOpError, match="no rule for a view by strides that mixes images"):
        descend(model, x, "fc.y", "conv1.y")
