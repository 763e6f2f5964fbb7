"""A view by strides: Reshape to one axis, then Gather by computed positions; one index map, image by image.

PyTorch's exporter writes ``as_strided`` so, behind the global pooling of a channels-last network. Left apart, the flat
tensor in between has no batch axis, and no rule can tell the images apart. That every image really reads its own cells
is checked when the positions are known (``fgcam_onnx.rules.gather``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcam_onnx.graph.layer import STRIDED, Layer, LayerGraph, Refusal
from fgcam_onnx.graph.passes.base import PassResult, fuse_pairs, refuse


def fold_strided(graph: LayerGraph) -> PassResult:
    """Fuse each flattening Reshape with the Gather along that axis."""
    return fuse_pairs(graph, _matches, _fuse)


def _matches(first: Layer, second: Layer) -> bool:
    if first.op != "Reshape" or second.op != "Gather" or second.attributes.get("axis", 0) not in (0, -1):
        return False
    shape = first.constant(1)
    return shape is not None and np.array_equal(shape, [-1])


def _fuse(graph: LayerGraph, flat: Layer, gather: Layer) -> Layer | Refusal:
    if gather.operands != (0,) or gather.unknown(1):
        return refuse(gather, "its positions are computed from values")
    return replace(
        gather,
        op=STRIDED,
        version=1,
        inputs=(flat.inputs[0], gather.inputs[1]),
        attributes={},
        nodes=(*gather.nodes, *flat.nodes),
    )
