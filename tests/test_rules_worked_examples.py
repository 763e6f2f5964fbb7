"""The worked examples of methods 9.4 and of the rules' own docstrings, number by number, on every backend.

The sentences of the docstrings are quoted here, so that an example that is edited there fails until it is run again.
"""

from __future__ import annotations

import sys
from types import ModuleType

import backends
import numpy as np
import pytest
import single_op
from single_op import Case, Floats, Result, X, close, rule

from fgcam_onnx.denoise import denoise


def one_output(op: str) -> tuple[Case, dict[str, Floats], list[Floats]]:
    """x = (2, -1, 3), w = (1, -2, -1), no bias, R = 8: as a Gemm, a MatMul, a Conv over three cells or channels."""
    x, w = np.array([[2.0, -1, 3]]), np.array([1, -2, -1], np.float32)
    shapes = {"Gemm": ((1, 3), (3, 1)), "MatMul": ((1, 3), (3, 1)), "Conv over cells": ((1, 1, 3), (1, 1, 3)),
              "Conv over channels": ((1, 3, 1, 1), (1, 3, 1, 1))}  # fmt: skip
    of_x, of_w = shapes[op]
    case = Case(op, op.split()[0], (X(values=x.reshape(of_x)), w.reshape(of_w)))
    values = case.values()
    return case, values, [np.full(case.forward(values)[0].shape, 8.0)]


def everywhere(
    case: Case, name: str, x: dict[str, Floats], r: list[Floats], bounds: object = "per_image"
) -> list[tuple[Result, float]]:
    """The answer of each backend, and how near it must be."""
    chosen = rule(case, name, bounds)
    return [(single_op.run(case, chosen, x, r, e.backend), e.tolerance) for e in backends.available()]


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv over cells", "Conv over channels"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("z_plus", [4, 4, 0]),
        ("z_box", [24 / 11, 64 / 11, 0]),
        ("flat", [8 / 3, 8 / 3, 8 / 3]),
        ("gradient", [8, -16, -8]),
    ],
)
def test_one_output(op: str, name: str, expected: list[float]) -> None:
    case, x, r = one_output(op)
    for found, tolerance in everywhere(case, name, x, r):
        close(found.parts[0].ravel(), expected, tolerance)
        assert not found.leaked.any()


def test_z_box_with_the_bounds_of_the_table() -> None:
    """l = -1, h = 3 given as numbers are those of the image itself."""
    case, x, r = one_output("Conv over cells")
    for found, tolerance in everywhere(case, "z_box", x, r, (-1.0, 3.0)):
        close(found.parts[0].ravel(), [24 / 11, 64 / 11, 0], tolerance)


A, B = [[2.0, -1, 1]], [[1.0, 3, -4]]
ADD = {("zplus", 0): [4, 0, 6], ("zplus", 1): [2, 6, 0], ("norm", 0): [4, -3, -2], ("norm", 1): [2, 9, 8]}


@pytest.mark.parametrize("name", ["zplus", "norm"])
@pytest.mark.parametrize("op", ["Add", "Sum", "Sub"])
def test_add(op: str, name: str) -> None:
    """Sub with the second operand negated is the same sum."""
    second = np.negative(B) if op == "Sub" else B
    case = Case(f"{op} {name}", op, (X(values=A), X(values=second)))
    for found, tolerance in everywhere(case, name, case.values(), [np.full((1, 3), 6.0)]):
        for i in (0, 1):
            close(found.parts[i], [ADD[name, i]], tolerance)
        assert not found.leaked.any()


def test_max_pool() -> None:
    """Window (1, 1, 1, 0), I = 6: the first maximum takes all."""
    for op, attributes in (("MaxPool", {"kernel_shape": [2, 2]}), ("GlobalMaxPool", {})):
        case = Case(f"{op} example", op, (X(values=[[[[1.0, 1], [1, 0]]]]),), attributes)
        for found, _ in everywhere(case, "winner", case.values(), [np.full((1, 1, 1, 1), 6.0)]):
            assert found.parts[0].ravel().tolist() == [6, 0, 0, 0]


def test_winner_positive_drops_the_windows_without_a_positive() -> None:
    x = X(values=[[[-1.0, -2, 0, 3]]])
    case = Case("winner_positive example", "MaxPool", (x,), {"kernel_shape": [2], "strides": [2]})
    for found, _ in everywhere(case, "winner_positive", case.values(), [np.array([[[6.0, 5]]])]):
        assert found.parts[0].ravel().tolist() == [0, 0, 0, 5]
        assert found.leaked.tolist() == [6]


def test_average_pool() -> None:
    """Window (1, 3, 0, 2), I = 6: (1, 3, 0, 2); count_include_pad either way gives the same shares."""
    window = X(values=[[[[1.0, 3], [0, 2]]]])
    cases = [
        Case("AveragePool example", "AveragePool", (window,), {"kernel_shape": [2, 2]}),
        Case("GlobalAveragePool example", "GlobalAveragePool", (window,)),
        Case("ReduceMean example", "ReduceMean", (window,), {"axes": [2, 3]}),
        Case("ReduceSum example", "ReduceSum", (window, np.array([2, 3]))),
    ]
    for include in (0, 1):
        attributes = {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": include}
        cases.append(Case(f"AveragePool padded {include}", "AveragePool", (window,), attributes))
    for case in cases:
        for found, tolerance in everywhere(case, "z_plus", case.values(), [np.full((1, 1, 1, 1), 6.0)]):
            close(found.parts[0].ravel(), [1, 3, 0, 2], tolerance)


ROWS = np.array([[4.0, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0]]).reshape(1, 3, 2, 2)
DENOISED = [[2.9924, -1.1396, -0.9264, -0.9264], [-0.5698, 0.2170, 0.1764, 0.1764], [0.4632, -0.1764, -0.1434, -0.1434]]


def test_denoise() -> None:
    """Three rows of four cells, d = 1; four decimals are printed."""
    centred = ROWS.reshape(3, 4) - ROWS.reshape(3, 4).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.svd(centred)[1], [3.56236, 1.81923, 0], atol=5e-6)
    for dtype in (np.float64, np.float32):
        found = denoise(ROWS.astype(dtype), np.ones_like(ROWS, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.reshape(3, 4), DENOISED, atol=5e-5)


def test_a_permille_is_noticed() -> None:
    case, x, r = one_output("Gemm")
    for found, tolerance in everywhere(case, "z_plus", x, r):
        with pytest.raises(AssertionError):
            close(1.001 * found.parts[0].ravel(), [4, 4, 0], tolerance)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(1.001 * denoise(ROWS, np.ones_like(ROWS)).reshape(3, 4), DENOISED, atol=5e-5)


# What the modules' docstrings say, and which test above runs it.
SENTENCES = {
    "z_plus": "One output, x = (2, -1, 3), w = (1, -2, -1), R = 8: contributions 2, 2, 0, so R = 4, 4, 0.",
    "z_box": "One output, x = (2, -1, 3), w = (1, -2, -1), l = -1, h = 3, R = 8: "
    "3, 8, 0 of 11, so R = 24/11, 64/11, 0.",
    "flat": "One output of three inputs, R = 8: 8/3 each.",
    "add": "a = (2, -1, 1), b = (1, 3, -4), R = (6, 6, 6): zplus gives a (4, 0, 6), b (2, 6, 0); "
    "norm a (4, -3, -2), b (2, 9, 8).",
    "max_pool": "Window (1, 1, 1, 0), R = 6: (6, 0, 0, 0).",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_docstring_says_the_example(name: str) -> None:
    module: ModuleType = sys.modules.get(f"fgcam_onnx.propagation.{name}") or sys.modules[f"fgcam_onnx.rules.{name}"]
    assert module.__doc__ is not None
    assert SENTENCES[name] in " ".join(module.__doc__.split())
