"""Free sizes: what a file computes from shapes is known when the picture is, and no activation before.

The oracle is the same network exported for one size, where the chain is a constant; for the values, torch.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import Net
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch_reference.export import _quiet_exporter, live, smooth_images

from fgcam_onnx import Explainer
from fgcam_onnx.errors import ModelError
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.sizes import complete_shapes, sizes_known
from fgcam_onnx.graph.view import build_view

SIZES = ((24, 32), (30, 20))


class Measuring(nn.Module):
    """Shuffles and halves channels, resizes to another tensor's size, pads and crops: all by measured sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.join = nn.Conv2d(10, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        small = F.relu(self.deep(left))
        large = F.interpolate(small, size=(h, w), mode="bilinear", align_corners=False)
        x = torch.cat([large, right], dim=1)
        x = F.pad(x, (0, w % 3, h % 2, 1))
        x = F.relu(self.join(x[:, :, h // 4 :]))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@cache
def network() -> nn.Module:
    return live(Measuring(), seed=3, size=SIZES[0])


@cache
def exported(exporter: str, size: tuple[int, int] | None) -> bytes:
    """For one size, or for any batch, height and width."""
    x, buffer = smooth_images(2, size or SIZES[0], seed=0), io.BytesIO()
    with _quiet_exporter(), torch.no_grad():
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
        if exporter == "legacy":
            free = None if size else {"image": {0: "n", 2: "h", 3: "w"}, "logits": {0: "n"}}
            torch.onnx.export(network(), (x,), buffer, dynamo=False, opset_version=13, dynamic_axes=free, **names)
        else:
            dims = None if size else ({0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
            program = torch.onnx.export(network(), (x,), dynamo=True, verbose=False, dynamic_shapes=dims, **names)
            assert program is not None
            buffer.write(program.model_proto.SerializeToString())
    return buffer.getvalue()


@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_a_free_size_gives_the_map_of_a_fixed_one(exporter: str) -> None:
    """One Explainer, two sizes, batches of two and one; the layers that measure are neither gaps nor rows."""
    free = Explainer(exported(exporter, None), backend="ort")
    assert free.graph.measures
    assert any(layer.sizes for layer in free.graph.layers)
    coverage = free.coverage()
    assert coverage.complete, coverage.gaps
    assert not {"Shape", "Range"} & {row.op for row in coverage.rows}
    for size in (*SIZES, SIZES[0]):
        x = smooth_images(2, size, seed=5).numpy()
        fixed = Explainer(exported(exporter, size), backend="ort")
        found, expected = free.explain(x), fixed.explain(x)
        np.testing.assert_allclose(found.logits, network()(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)
        assert found.relevance.shape == (2, *size)
        scale = np.abs(expected.relevance).max()
        np.testing.assert_allclose(found.relevance, expected.relevance, atol=1e-5 * scale)
        np.testing.assert_allclose(free.explain(x[1:]).relevance[0], found.relevance[1], atol=1e-5 * scale)
        assert found.ledger.residual < 1e-5


def test_numpy_agrees_where_sizes_are_free() -> None:
    x = smooth_images(2, SIZES[1], seed=5).numpy()
    ort, numpy = (Explainer(exported("legacy", None), backend=name).explain(x) for name in ("ort", "numpy"))
    np.testing.assert_allclose(ort.relevance, numpy.relevance, atol=1e-5 * np.abs(numpy.relevance).max())


def test_shapes_behind_measured_ones_are_known_beforehand() -> None:
    """No part of the network has to run to know its shapes; a free axis stays free."""
    model = load(exported("legacy", None))
    graph = build_view(model)
    unknown = [o for layer in graph.layers for o in layer.outputs if graph.tensor(o).shape is None]
    assert not unknown
    join = next(layer for layer in graph.layers if layer.op == "Conv" and layer.constants[1].shape[0] == 8
                and layer.constants[1].shape[1] == 10)  # fmt: skip
    assert graph.tensor(join.output).shape == (None, 8, None, None)
    inputs = {"image": (2, 3, 24, 32)}
    assert complete_shapes(graph, inputs)[join.output] == (2, 8, 10, 17)


def test_a_size_that_cannot_be_computed() -> None:
    """The node that stands in the way is named."""
    net = Net(("n", 3, "h", "w"))
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    half = net.node("Div", "half", net.node("Shape", "shape", x, start=2, end=3), np.asarray([0]))
    x = net.node("Slice", "slice", x, np.asarray([0]), half, np.asarray([2]))
    graph = build_view(load(net.model(net.head(x, 4))))
    layer = next(layer for layer in graph.layers if layer.op == "Slice")
    assert layer.sizes == {2}
    assert not layer.unknown(2)
    with pytest.raises(ModelError) as caught:
        sizes_known(graph, layer, {"conv.y": (1, 4, 8, 8)})
    assert str(caught.value).splitlines() == [
        "the sizes that node 'slice' works with cannot be computed",
        "  at      node 'shape' (Shape)",
        "  known   a shape is unknown",
        "  next    export the model with a fixed input size",
    ]


def test_a_value_is_no_size() -> None:
    """The end of a slice that is computed from activations: a gap, named as such."""
    net = Net(("n", 3, 8, 8))
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    end = net.node("Cast", "end", net.node("ReduceMax", "most", x, keepdims=0), to=7)
    end = net.node("Reshape", "one", end, np.asarray([1]))
    x = net.node("Slice", "slice", x, np.asarray([0]), end, np.asarray([2]))
    explainer = Explainer(net.model(net.head(net.conv("conv2", x, 4, 4), 4)))
    assert "its operand 'one.y' is computed in the graph" in [gap.reason for gap in explainer.coverage().gaps]
