"""SpaceToDepth, DepthToSpace: blocks of pixels become channels, and channels blocks of pixels.

Every cell moves and none is lost: relevance goes back the way the cells came. The derivative is the same map. Source:
methods 3.1; ONNX SpaceToDepth-1, -13, -28, DepthToSpace-1, -11, -13, -28.

``mode`` says how the channels of the deep side are ordered: DCR block row, block column, c; CRD c, block row, block
column. "DCR" where a version has no choice.
"""

from __future__ import annotations

from fgcam_onnx.backends.base import Array, Verbs
from fgcam_onnx.node import Flow, Node
from fgcam_onnx.registry import gradient, relevance

TO_DEPTH = {"SpaceToDepth": (1, 13, 28)}
TO_SPACE = {"DepthToSpace": (1, 11, 13, 28)}


@gradient(**TO_DEPTH)
@relevance("to_space", dead_inputs="inherits", **TO_DEPTH)
def to_space(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, b b c, h / b, w / b] -> [n, c, h, w]."""
    (n, c, h, w), b = node.in_shape(), int(node.attributes["blocksize"])
    if node.attributes.get("mode", "DCR") == "CRD":
        blocks, order = xp.reshape(r, (n, c, b, b, h // b, w // b)), (0, 1, 4, 2, 5, 3)
    else:
        blocks, order = xp.reshape(r, (n, b, b, c, h // b, w // b)), (0, 3, 4, 1, 5, 2)
    return Flow({0: xp.reshape(xp.transpose(blocks, order), (n, c, h, w))})


@gradient(**TO_SPACE)
@relevance("to_depth", dead_inputs="inherits", **TO_SPACE)
def to_depth(node: Node, r: Array, xp: Verbs) -> Flow:
    """r [n, c, h b, w b] -> [n, c b b, h, w]."""
    (n, whole, h, w), b = node.in_shape(), int(node.attributes["blocksize"])
    blocks = xp.reshape(r, (n, whole // (b * b), h, b, w, b))
    order = (0, 1, 3, 5, 2, 4) if node.attributes.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return Flow({0: xp.reshape(xp.transpose(blocks, order), (n, whole, h, w))})
