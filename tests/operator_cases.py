"""The cases that every operator's rules are tested on: each attribute off its default, each version in force.

A registered operator, rule or version without a case here fails ``test_no_operator_is_forgotten``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from single_op import Case, Floats, Operand, X

__all__ = ["distinct", "grid"]


def _weight(*shape: int, seed: int = 0) -> Floats:
    values = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return np.where(np.abs(values) < 0.01, np.float32(0.5), values)  # no cell is 0: flat counts the cells by it


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def _scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def _label(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Grid:
    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(
        self,
        op: str,
        *operands: Operand,
        opset: int | Sequence[int] = 17,
        tag: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> None:
        """A case for each opset."""
        for version in [opset] if isinstance(opset, int) else opset:
            words = [op, f"opset{version}", *([tag] if tag else [])]
            words += [f"{key}={_label(value)}" for key, value in attributes.items() if key != "to"]
            self.cases.append(Case("-".join(words), op, operands, attributes, version, outputs))


@functools.cache
def grid() -> tuple[Case, ...]:
    """Every registered operator, every attribute off its default, every version in force from opset 7 on."""
    add = _Grid()
    for fill in (
        _convolutions,
        _transposed_convolutions,
        _resizes,
        _matrices,
        _averages,
        _max_pools,
        _arithmetic,
        _joins,
        _slices,
        _shapes,
        _norms,
        _standardisations,
        _copies,
        _smooth,
    ):
        fill(add)
    ids = [case.id for case in add.cases]
    assert len(set(ids)) == len(ids), sorted(i for i in ids if ids.count(i) > 1)
    return tuple(add.cases)


def distinct() -> tuple[Case, ...]:
    """The grid without the repetitions of a node at further opsets."""
    found: dict[str, Case] = {}
    for case in grid():
        found.setdefault(case.id.replace(f"-opset{case.opset}", ""), case)
    return tuple(found.values())


def _convolutions(add: _Grid) -> None:
    x = X((2, 4, 7, 6))
    w = _weight(6, 4, 3, 2)
    add("Conv", x, w, opset=(7, 11, 22))
    add("Conv", x, w, _weight(6), tag="bias", kernel_shape=[3, 2])
    add("Conv", X((2, 3, 9)), _weight(4, 3, 3), tag="1d", strides=[2], pads=[1, 0])
    add("Conv", X((1, 2, 11)), _weight(4, 1, 2), tag="1d", strides=[3], dilations=[2], pads=[0, 3], group=2)
    add("Conv", x, _weight(6, 2, 3, 3), group=2)
    add("Conv", x, _weight(4, 1, 3, 3), tag="depthwise", group=4, pads=[1, 1, 1, 1])
    add("Conv", x, _weight(8, 1, 3, 3), tag="depthwise2", group=4, strides=[2, 2], pads=[1, 0, 0, 1])
    add("Conv", x, _weight(5, 4, 3, 2), dilations=[2, 3])
    add("Conv", x, _weight(5, 4, 3, 2), dilations=[2, 3], strides=[2, 1], pads=[1, 0, 2, 3])
    add("Conv", x, w, pads=[1, 0, 2, 1], strides=[2, 2])
    add("Conv", x, w, pads=[0, 2, 0, 0], strides=[1, 3])
    add("Conv", x, w, pads=[3, 2, 4, 3], tag="pads_beyond_kernel")
    add("Conv", x, w, pads=[4, 3, 0, 0], strides=[2, 2], tag="pads_beyond_kernel")
    add("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 2])
    add("Conv", x, w, auto_pad="SAME_LOWER", strides=[2, 2])
    add("Conv", x, w, auto_pad="SAME_LOWER", dilations=[2, 1])
    add("Conv", x, w, auto_pad="VALID", strides=[3, 1])
    add("Conv", X((2, 2, 9, 8)), _weight(3, 2, 2, 2), tag="stride_over_kernel", strides=[4, 3])
    add("Conv", X((2, 2, 9, 9)), _weight(3, 2, 2, 2), tag="stride_over_kernel", strides=[3, 3], pads=[1, 1, 0, 0])
    add("Conv", X((2, 3, 8, 7)), _weight(3, 3, 3, 3), tag="leftovers", strides=[3, 3])
    add("Conv", X((1, 3, 12, 13)), _weight(4, 3, 5, 5), tag="first_layer", strides=[4, 4], pads=[2, 2, 2, 2])
    add("Conv", X((1, 3, 10, 7)), _weight(4, 3, 3, 3), tag="first_layer", strides=[2, 2], pads=[1, 1, 1, 1])
    add(
        "Conv",
        X((1, 3, 10, 7)),
        _weight(4, 3, 3, 3),
        tag="first_layer",
        strides=[2, 2],
        dilations=[2, 2],
        pads=[2, 1, 0, 3],
    )
    add("Conv", x, _weight(5, 4, 1, 1), tag="pointwise", strides=[2, 2])
    add("Conv", X((2, 20, 5, 6)), _weight(4, 20, 3, 3), tag="wide", strides=[2, 2], pads=[1, 0, 1, 1])
    add("Conv", X((2, 3, 1, 1)), _weight(4, 3, 1, 1), tag="one_cell")
    add(
        "Conv",
        X((2, 4, 4, 5, 3)),
        _weight(4, 2, 2, 3, 2),
        tag="3d",
        strides=[1, 2, 1],
        pads=[1, 0, 0, 0, 2, 1],
        group=2,
    )
    add("Conv", X((1, 2, 5, 4, 6)), _weight(3, 2, 2, 2, 2), tag="3d", dilations=[2, 1, 3], strides=[2, 2, 2])


def _transposed_convolutions(add: _Grid) -> None:
    x = X((2, 4, 5, 4))
    w = _weight(4, 3, 3, 2)
    add("ConvTranspose", x, w, opset=(7, 11, 22))
    add("ConvTranspose", x, w, _weight(3), tag="bias", kernel_shape=[3, 2], strides=[2, 3])
    add("ConvTranspose", x, w, strides=[2, 2], pads=[1, 0, 2, 1])
    add("ConvTranspose", x, w, strides=[2, 3], output_padding=[1, 2])
    add("ConvTranspose", x, w, dilations=[2, 3], pads=[0, 1, 1, 2])
    add("ConvTranspose", x, w, strides=[2, 2], dilations=[1, 2], pads=[1, 1, 0, 2], output_padding=[1, 0])
    add("ConvTranspose", x, w, auto_pad="SAME_UPPER", strides=[2, 2])
    add("ConvTranspose", x, w, auto_pad="SAME_LOWER", strides=[2, 2])
    add("ConvTranspose", x, w, auto_pad="VALID", strides=[1, 2])
    add("ConvTranspose", x, w, output_shape=[10, 9], strides=[2, 2])
    add("ConvTranspose", x, w, output_shape=[9, 8], strides=[2, 2], auto_pad="SAME_UPPER")
    add("ConvTranspose", x, w, output_shape=[9, 6], strides=[2, 2], output_padding=[1, 0])
    add("ConvTranspose", x, _weight(4, 3, 2, 2), group=2, strides=[2, 2])
    add("ConvTranspose", x, _weight(4, 1, 3, 3), tag="depthwise", group=4, pads=[1, 1, 1, 1])
    add("ConvTranspose", x, _weight(4, 2, 2, 2), tag="stride_over_kernel", strides=[3, 4])
    add("ConvTranspose", x, _weight(4, 5, 1, 1), tag="pointwise")
    add("ConvTranspose", X((2, 3, 1, 1)), _weight(3, 2, 4, 3), tag="one_cell")
    add("ConvTranspose", X((2, 3, 7)), _weight(3, 4, 4), tag="1d", strides=[2], pads=[1, 1])
    add(
        "ConvTranspose",
        X((1, 2, 3, 2, 4)),
        _weight(2, 2, 2, 3, 2),
        tag="3d",
        strides=[1, 2, 2],
        pads=[0, 1, 0, 1, 0, 1],
    )


def _resizes(add: _Grid) -> None:
    x, one = X((2, 3, 4, 5)), X((1, 3, 4, 5))
    none = np.zeros(0, np.float32)
    twice, uneven = (np.asarray([1, 1, *s], np.float32) for s in ((2, 2), (1.6, 0.7)))
    asymmetric = {"coordinate_transformation_mode": "asymmetric"}
    add("Upsample", x, opset=7, scales=[1.0, 1.0, 2.0, 3.0])
    add("Upsample", x, np.asarray([1, 1, 2, 1.5], np.float32), opset=9, mode="linear")
    add("Upsample", x, np.asarray([1, 1, 3, 2], np.float32), opset=9, tag="nearest")
    for mode in ("nearest", "linear"):
        add("Resize", x, twice, opset=10, tag="twice", mode=mode)
        add("Resize", x, none, twice, opset=(11, 13, 18, 19), tag="twice", mode=mode)
        add("Resize", x, none, uneven, tag="uneven", mode=mode)
        add("Resize", one, none, None, _ints(1, 3, 7, 3), tag="sizes", mode=mode)
        add("Resize", x, none, uneven, tag="uneven", mode=mode, **asymmetric)
        add("Resize", x, none, uneven, tag="uneven", mode=mode, coordinate_transformation_mode="align_corners")
        add("Resize", x, none, uneven, tag="uneven", mode=mode, coordinate_transformation_mode="pytorch_half_pixel")
        add("Resize", x, none, uneven, opset=19, tag="uneven", mode=mode,
            coordinate_transformation_mode="half_pixel_symmetric")  # fmt: skip
        add("Resize", one, np.asarray([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.1], np.float32), None, _ints(1, 3, 6, 7),
            tag="region", mode=mode, coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    for rounding in ("floor", "ceil", "round_prefer_ceil"):
        add("Resize", x, none, uneven, tag="uneven", nearest_mode=rounding)
        add("Resize", x, none, twice, tag="twice", nearest_mode=rounding, **asymmetric)
    add("Resize", x, none, np.asarray([1, 1, 0.5, 0.4], np.float32), tag="shrinks", mode="nearest")
    add("Resize", x, none, twice, tag="twice", mode="cubic")
    add("Resize", x, none, uneven, tag="uneven", mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
    add("Resize", x, none, uneven, opset=18, tag="uneven", mode="cubic", antialias=1)
    add(
        "Resize", x, none, np.asarray([1, 1, 0.5, 0.4], np.float32), opset=18, tag="shrinks", mode="linear", antialias=1
    )
    add("Resize", x, none, np.asarray([2, 1.5], np.float32), opset=18, tag="axes", mode="linear", axes=[2, 3])
    add("Resize", x, none, None, _ints(7, 7), opset=18, axes=[2, 3], keep_aspect_ratio_policy="not_larger")
    add("Resize", x, none, None, _ints(7, 7), opset=18, axes=[2, 3], keep_aspect_ratio_policy="not_smaller",
        mode="linear")  # fmt: skip
    add("Resize", X((2, 3, 6)), none, np.asarray([1, 1, 1.5], np.float32), tag="1d", mode="linear")
    add("Resize", X((1, 2, 3, 2, 3)), none, np.asarray([1, 1, 2, 1, 1.5], np.float32), tag="3d", mode="linear")
    add("Resize", X((2, 4, 5, 3)), none, np.asarray([1, 2, 1.5, 1], np.float32), tag="nhwc", mode="linear")
    add("Resize", X((1, 3, 2, 2)), none, None, _ints(1, 3, 1, 1), tag="one_cell", mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel")  # fmt: skip


def _matrices(add: _Grid) -> None:
    x = X((3, 5))
    add("Gemm", x, _weight(5, 4), _weight(4), opset=(7, 9, 11, 13))
    add("Gemm", x, _weight(4, 5), _weight(1, 4), transB=1, alpha=0.5, beta=2.0)
    add("Gemm", x, _weight(5, 4), tag="no_bias", alpha=-1.5, opset=13)
    add("MatMul", x, _weight(5, 4), opset=(7, 9, 13))
    add("MatMul", X((2, 3, 5)), _weight(5, 4), tag="3d")
    add("MatMul", X((2, 3, 5)), _weight(1, 5, 4), tag="one_matrix_stacked")
    add("MatMul", X((2, 1, 3, 5)), _weight(4, 5, 2), tag="broadcast")


def _averages(add: _Grid) -> None:
    x = X((2, 3, 7, 6))
    add("AveragePool", x, opset=(7, 10, 11, 19, 22), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
    add("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1], count_include_pad=1)
    add("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)
    add(
        "AveragePool",
        x,
        opset=19,
        kernel_shape=[2, 3],
        strides=[2, 2],
        ceil_mode=1,
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    )
    add("AveragePool", x, opset=19, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 0, 0, 1])
    add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")
    add("AveragePool", x, kernel_shape=[3, 2], strides=[2, 3], auto_pad="VALID")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[3, 3], tag="stride_over_kernel")
    add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], tag="touching")
    add("AveragePool", X((2, 3, 7, 5)), kernel_shape=[2, 2], strides=[2, 2], tag="touching", ceil_mode=1)
    add("AveragePool", X((2, 3, 9)), tag="1d", kernel_shape=[4], strides=[2], pads=[2, 1])
    add("AveragePool", X((1, 2, 4, 5, 3)), tag="3d", kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[0, 1, 1, 0, 0, 1])
    add("GlobalAveragePool", x, opset=(7, 22))
    add("GlobalAveragePool", X((2, 3, 5)), tag="1d")
    add("GlobalAveragePool", X((2, 3, 2, 3, 4)), tag="3d")
    add("GlobalAveragePool", X((2, 3, 1, 1)), tag="one_cell")
    add("ReduceMean", x, opset=(7, 11, 13), axes=[2, 3])
    add("ReduceMean", x, opset=13, axes=[-1, -2], keepdims=0)
    add("ReduceMean", x, opset=13, axes=[1], keepdims=0)
    add("ReduceMean", x, _ints(2, 3), opset=18, tag="operand", keepdims=0)
    add("ReduceMean", x, _ints(), opset=18, tag="none", noop_with_empty_axes=1)
    add("ReduceSum", x, opset=(7, 11), axes=[2], keepdims=0)
    add("ReduceSum", x, _ints(-1, 2), opset=13, tag="operand")
    add("ReduceSum", x, _ints(1, 3), opset=13, tag="operand", keepdims=0)


def _max_pools(add: _Grid) -> None:
    x = X((2, 3, 7, 6))
    ties = X(values=np.random.default_rng(5).integers(-1, 2, (2, 3, 7, 6)))
    add("MaxPool", x, opset=(7, 8, 10, 11, 12, 22), kernel_shape=[2, 2], strides=[2, 2])
    add("MaxPool", ties, tag="ties", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    add("MaxPool", ties, tag="ties_overlap", kernel_shape=[2, 3])
    add("MaxPool", ties, tag="ties", kernel_shape=[2, 2], storage_order=1, strides=[2, 2])
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1])
    add("MaxPool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)
    add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[0, 1, 0, 0])
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 3])
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 2], tag="dilated_overlap")
    add("MaxPool", x, kernel_shape=[2, 2], dilations=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 1])
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    add("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")
    add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 3], auto_pad="VALID")
    add("MaxPool", x, kernel_shape=[2, 2], strides=[3, 4], tag="stride_over_kernel")
    add("MaxPool", X((2, 3, 9)), tag="1d", kernel_shape=[4], strides=[3], pads=[2, 1])
    add("MaxPool", X((1, 2, 4, 5, 3)), tag="3d", kernel_shape=[2, 3, 2], strides=[1, 2, 1], pads=[0, 1, 1, 0, 0, 1])
    add("GlobalMaxPool", x, opset=(7, 22))
    add("GlobalMaxPool", ties, tag="ties")
    add("GlobalMaxPool", X((2, 3, 5)), tag="1d")
    add("ReduceMax", x, opset=(7, 11, 12, 13), axes=[2, 3])
    add("ReduceMax", ties, opset=13, tag="ties", axes=[-1, 1], keepdims=0)
    add("ReduceMax", x, _ints(1), opset=(18, 20), tag="operand", keepdims=0)
    add("ReduceMax", x, _ints(3, 2), opset=18, tag="operand")
    add("ReduceMax", x, _ints(), opset=18, tag="none", noop_with_empty_axes=1)


def _arithmetic(add: _Grid) -> None:
    a, b = X((2, 3, 4, 5)), X((2, 3, 4, 5), low=None)
    for op in ("Add", "Sub"):
        add(op, a, b, opset=(7, 13, 14))
        add(op, a, X((2, 3, 1, 1)), tag="broadcast")
        add(op, X((2, 1, 4, 5)), X((2, 3, 1, 5)), tag="broadcast_both")
        add(op, a, X(same=0), tag="itself")
        add(op, a, _weight(3, 1, 1), tag="constant")
        add(op, _weight(3, 1, 1), a, tag="constant_first")
        add(op, X((2, 1, 4, 1)), _weight(3, 1, 5), tag="constant_broadcasts")
    add("Sum", a, b, X((2, 3, 4, 5)), opset=(7, 8, 13))
    add("Sum", a, X((2, 3, 1, 5)), _weight(3, 4, 1), tag="broadcast_and_constant")
    add("Sum", a, tag="one")
    add("Mean", a, b, opset=(7, 8, 13))
    add("Mean", a, X((2, 3, 1, 5)), _weight(3, 4, 1), tag="broadcast_and_constant")
    chosen = np.arange(20).reshape(4, 5) % 3 == 0
    add("Where", chosen, a, b, opset=(9, 16))
    add("Where", chosen, a, _scalar(0.5), tag="else_constant")
    add("Where", chosen, _weight(3, 1, 1), X((2, 1, 4, 1)), tag="then_constant")
    whole = [X(values=np.random.default_rng(k).integers(-2, 3, (2, 3, 4, 5))) for k in range(3)]
    for op in ("Max", "Min"):
        add(op, *whole, opset=(7, 8, 12, 13), tag="ties")
        add(op, a, X((2, 1, 4, 5)), tag="broadcast")
        add(op, a, _weight(3, 1, 1), tag="constant")  # one number would be a bound, and this a Clip
        add(op, _weight(3, 1, 1), a, b, tag="constant_first")
    add("Mul", a, b, opset=(7, 13, 14))
    add("Mul", a, X((2, 3, 1, 1)), tag="gate")
    add("Mul", X((2, 3, 1, 1)), a, tag="gate_first")
    add("Mul", a, X((2, 1, 4, 5)), tag="broadcast")
    add("Mul", a, X(same=0), tag="itself")
    add("Mul", a, _weight(3, 1, 1), tag="constant")
    add("Mul", X((2, 1, 4, 1)), _weight(3, 1, 5), tag="constant_broadcasts")
    add("Div", a, X((2, 3, 4, 5), low=0.5), opset=(7, 13, 14))
    add("Div", a, X((2, 1, 4, 1), low=0.5), tag="broadcast")
    add("Div", a, _weight(3, 1, 1), tag="constant")
    add("Div", _weight(3, 1, 1), X((2, 3, 4, 5), low=0.5), tag="constant_first")


def _joins(add: _Grid) -> None:
    a = X((2, 3, 4, 5))
    add("Concat", a, X((2, 1, 4, 5)), X((2, 2, 4, 5)), opset=(7, 11, 13), axis=1)
    add("Concat", a, X((2, 3, 4, 2)), tag="last", axis=-1)
    add("Concat", a, X(same=0), tag="itself", axis=2)
    add("Concat", X((1, 3, 4)), _weight(1, 2, 4), X((1, 1, 4)), tag="constant", axis=1)
    x = X((2, 7, 4, 5))
    add("Split", x, opset=(7, 11), tag="uneven", outputs=3, axis=1, split=[1, 4, 2])
    add("Split", x, _ints(3, 4), opset=(13, 18), tag="uneven", outputs=2, axis=1)
    add("Split", X((2, 6, 4, 5)), opset=13, tag="even", outputs=3, axis=-3)
    add("Split", x, opset=18, tag="last_is_smaller", outputs=3, axis=1, num_outputs=3)


def _slices(add: _Grid) -> None:
    x = X((2, 5, 7, 6))
    add("Slice", x, opset=7, starts=[1, -5], ends=[4, 1000], axes=[1, 2])
    add("Slice", x, opset=7, tag="no_axes", starts=[0, 2], ends=[1000, 5])
    add("Slice", x, _ints(1, 2), _ints(5, 7), _ints(1, 3), opset=(10, 11, 13), tag="range")
    add("Slice", x, _ints(0, 6), _ints(1000, 0), _ints(-1, 2), _ints(2, -3), tag="steps")
    add("Slice", x, _ints(-1), _ints(-1000), _ints(2), _ints(-1), tag="reversed")
    add("Slice", x, _ints(-2, 1), _ints(-5, -1), _ints(1, 2), _ints(-1, 2), tag="negative")
    add("Slice", x, _ints(6), _ints(-8), _ints(2), _ints(-2), tag="to_the_front")
    add("Slice", x, _ints(4), _ints(-(2**63)), _ints(1), _ints(-1), tag="int_min")
    add("Gather", x, _ints(3, 0, 3, -1), opset=(7, 11, 13), tag="repeated", axis=1)
    add("Gather", x, np.asarray(2, np.int64), tag="scalar", axis=-2)
    add("Gather", x, _ints(5, 1, 1, 0).reshape(2, 2), tag="two_axes", axis=3)
    cells = np.asarray([[[0, 2], [4, -1], [0, 2]]], np.int64)
    add("GatherND", X((1, 5, 7, 6)), cells, opset=(12, 13), batch_dims=1)
    add("fgcam::Strided", X((1, 3, 2, 2)), _ints(11, 0, 5, 5, 2, 1).reshape(1, 2, 3), tag="repeated")
    add("GatherND", X((1, 2, 4, 3)), _ints(3, 0, 1, -4).reshape(1, 2, 2, 1), tag="rows", batch_dims=2)
    add("Pad", x, opset=7, pads=[0, 0, 1, 2, 0, 0, 0, 3])
    add("Pad", x, opset=7, mode="reflect", pads=[0, 0, 2, 1, 0, 0, 3, 0])
    add("Pad", x, _ints(0, 0, 1, 2, 0, 1, 0, 3), opset=(11, 13, 18, 19, 21, 23, 24, 25), tag="constant")
    add("Pad", x, _ints(0, 0, 1, 2, 0, 0, 0, 3), _scalar(1.5), tag="fill", opset=13)
    add("Pad", x, _ints(0, 0, -1, -2, 0, -1, 0, -1), tag="crops", opset=13)
    add("Pad", x, _ints(0, 0, -1, 2, 0, 1, 3, -2), tag="crops_and_pads", opset=13)
    add("Pad", x, _ints(0, 2, 1, 3, 0, 0, 2, 0), tag="mirror", opset=13, mode="reflect")
    add("Pad", x, _ints(0, 0, 3, 2, 0, 1, 0, 4), tag="copies", opset=13, mode="edge")
    add("Pad", x, _ints(2, 1, 0, 3), None, _ints(3, 2), tag="axes", opset=18)
    add("Pad", x, _ints(2, 1, 0, 3), None, _ints(-1, 2), tag="axes", opset=19, mode="wrap")


def _shapes(add: _Grid) -> None:
    x = X((2, 3, 4, 5))
    every = (13, 21, 23, 24, 25)
    add("Reshape", x, _ints(0, -1), opset=(7, *every, 14, 19))
    add("Reshape", x, _ints(-1, 4, 3, 5), tag="mixes")
    add("Flatten", x, opset=(7, 9, 11, *every))
    add("Flatten", x, tag="axis", opset=13, axis=-3)
    add("Squeeze", X((2, 3, 1, 1)), opset=(7, 11), axes=[2, 3])
    add("Squeeze", X((2, 3, 1, 1)), _ints(-1, 2), opset=every, tag="operand")
    add("Squeeze", X((2, 1, 4, 1)), opset=13, tag="all")
    add("Unsqueeze", X((2, 3)), opset=(7, 11), axes=[2, 3])
    add("Unsqueeze", X((2, 3)), _ints(-1, 1), opset=every, tag="operand")
    add("Transpose", x, opset=(7, *every), perm=[0, 2, 3, 1])
    add("Transpose", X((2, 3, 4)), perm=[0, 2, 1])
    add("Identity", x, opset=(7, *every, 14, 16, 19))
    add("Cast", x, opset=(7, 9, *every, 19, 28), to=1)
    add("Dropout", x, opset=(7, 10), ratio=0.3)
    add("Dropout", x, _scalar(0.4), opset=(12, 13, 22), tag="operand")
    add("Dropout", x, _scalar(0.4), np.asarray(False), opset=13, tag="not_training")


def _norms(add: _Grid) -> None:
    parameters = (_weight(3), _weight(3, seed=1), _weight(3, seed=2), np.abs(_weight(3, seed=3)) + np.float32(0.1))
    add("BatchNormalization", X((2, 3, 4, 5)), *parameters, opset=(7, 9, 14, 15), epsilon=0.1)
    add("BatchNormalization", X((4, 3)), *parameters, tag="flat", opset=15)
    add("BatchNormalization", X((2, 3, 4)), *parameters, tag="1d", opset=15, momentum=0.5)
    for size in (1, 2, 3, 4, 9):
        add("LRN", X((2, 6, 3, 2)), size=size, alpha=0.3, beta=0.6, bias=1.4, opset=(7, 13) if size == 3 else 13)
    add("LRN", X((2, 6, 3, 2)), tag="defaults", size=5)


def _standardisations(add: _Grid) -> None:
    x = X((2, 4, 3, 5))
    add("InstanceNormalization", x, _weight(4), _weight(4, seed=1), opset=(7, 22), epsilon=0.2)
    add("InstanceNormalization", X((2, 3, 5)), _weight(3), _weight(3, seed=1), tag="1d")
    add("GroupNormalization", x, _weight(4), _weight(4, seed=1), opset=21, num_groups=2, epsilon=0.1)
    add("LayerNormalization", x, _weight(5), _weight(5, seed=1), epsilon=0.1)
    add("LayerNormalization", x, _weight(4, 3, 5), axis=1)
    add("LayerNormalization", x, _weight(3, 5), _weight(3, 5, seed=1), axis=-2, stash_type=1)
    add("RMSNormalization", x, _weight(5), opset=23, epsilon=0.1)
    add("RMSNormalization", x, _weight(3, 5), opset=23, axis=2)
    add("MeanVarianceNormalization", x, opset=(9, 13), axes=[2, 3])
    add("MeanVarianceNormalization", x, opset=13, axes=[-3])
    add("fgcam::Standardise", x, axes=[-1], epsilon=0.1, centred=1)
    add("fgcam::Standardise", x, axes=[1], epsilon=0.1, centred=0)


def _copies(add: _Grid) -> None:
    x = X((2, 3, 1, 5))
    add("Expand", x, _ints(1, 3, 4, 5), opset=(8, 13))
    add("Expand", X((2, 1, 4, 1)), _ints(3, 1, 2), tag="broadcasts_back")
    add("Tile", X((2, 3, 4)), _ints(1, 2, 3), opset=(7, 13))
    add("Tile", X((2, 3, 2, 4)), _ints(1, 1, 2, 1), tag="one_axis")
    add("SpaceToDepth", X((2, 3, 4, 6)), opset=(7, 13, 28), blocksize=2)
    add("SpaceToDepth", X((2, 3, 4, 6)), opset=28, blocksize=2, mode="CRD")
    add("DepthToSpace", X((2, 12, 2, 3)), opset=(7, 11, 13, 28), blocksize=2)
    add("DepthToSpace", X((2, 8, 2, 3)), blocksize=2, mode="CRD")


def _smooth(add: _Grid) -> None:
    x = X((2, 3, 4, 5))
    spread = X(values=6 * np.random.default_rng(3).normal(size=(2, 3, 4, 5)))
    add("Relu", x, opset=(7, 13, 14))
    add("Clip", spread, opset=(7,), min=-1.0, max=2.5)
    add("Clip", x, opset=(7,), tag="no_bounds")
    add("Clip", spread, _scalar(0), _scalar(6), opset=(11, 12, 13), tag="relu6")
    add("Clip", x, _scalar(-0.5), tag="below")
    add("Clip", x, None, _scalar(0.25), tag="above")
    add("Clip", x, _scalar(0.5), _scalar(1), tag="zero_is_outside")
    add("fgcam::Saturate", spread, low=-1.0, high=2.5)
    add("fgcam::Saturate", spread, tag="relu6", low=0.0, high=6.0)
    add("LeakyRelu", x, opset=(7, 16), alpha=0.3)
    add("LeakyRelu", x, tag="default")
    add("PRelu", x, _weight(3, 1, 1), opset=(7, 9, 16))
    add("PRelu", x, np.full(1, -0.2, np.float32), tag="one_slope")
    add("Elu", x, opset=(7, 22), alpha=1.7)
    add("Selu", x, opset=(7, 22), alpha=1.3, gamma=0.8)
    add("Selu", x, tag="default")
    add("Celu", x, opset=(12, 28), alpha=0.6)
    add("Softplus", spread, opset=(7, 22))
    add("Softsign", x, opset=(7, 22))
    add("ThresholdedRelu", x, opset=(10, 22), alpha=0.4)
    add("Tanh", x, opset=(7, 13))
    add("Sigmoid", spread, opset=(7, 13))
    add("HardSigmoid", spread, opset=(7, 22), alpha=0.3, beta=0.4)
    add("HardSigmoid", spread, tag="default")
    add("HardSwish", spread, opset=(14, 22))
    add("Swish", spread, opset=24, alpha=0.7)
    add("Mish", spread, opset=(18, 22))
    add("Gelu", spread, opset=20)
    add("Gelu", spread, opset=20, approximate="tanh")
    add("Erf", x, opset=(9, 13))
    add("Exp", x, opset=(7, 13))
    add("Log", X((2, 3, 4, 5), low=0.1), opset=(7, 13))
    add("Sqrt", X((2, 3, 4, 5), low=0.1), opset=(7, 13))
    add("Pow", X((2, 3, 4, 5), low=0.1), _scalar(1.5), opset=(7, 12, 13, 15))
    add("Pow", x, _scalar(2), tag="square")
    add("Pow", x, np.asarray([2, 3, 1], np.float32).reshape(3, 1, 1), tag="a_power_each")
    add("Abs", x, opset=(7, 13))
    add("Neg", x, opset=(7, 13))
