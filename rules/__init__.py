"""The relevance rules, one operator family a file. Importing this package registers them all."""

from fgcam_onnx.rules import (
    activation,
    add,
    average_pool,
    concat,
    conv,
    gemm,
    max_pool,
    mul,
    normalisation,
    reshape,
    slice,
)

__all__ = [
    "activation",
    "add",
    "average_pool",
    "concat",
    "conv",
    "gemm",
    "max_pool",
    "mul",
    "normalisation",
    "reshape",
    "slice",
]
