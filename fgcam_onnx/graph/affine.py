"""Operators that are linear in their operands, up to a constant, without being a linear map of the registry.

For fixed parameters their derivative does not depend on the input, so it is also what DeepLIFT multiplies with.
"""

from __future__ import annotations

from fgcam_onnx.graph.layer import STRIDED

__all__ = ["AFFINE", "BY_DERIVATIVE", "INDEX_MOVES"]

# They only move, copy, drop or pad cells.
INDEX_MOVES = frozenset(
    {"Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad"}
    | {"Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", STRIDED}
)
# They weigh cells by constants and add them.
AFFINE = frozenset({"Add", "BatchNormalization", "Mean", "Neg", "Resize", "Sub", "Sum", "Upsample"})
BY_DERIVATIVE = INDEX_MOVES | AFFINE
