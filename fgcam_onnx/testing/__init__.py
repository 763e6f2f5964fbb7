"""Tests for your own operator rule, or your own model, in three lines.

    from fgcam_onnx import testing
    import my_rules                                              # registers them

    def test_my_operator():
        testing.check_operator("my.domain::QuickGelu", [testing.X((2, 3, 4, 5))], alpha=1.702)

    def test_my_model():
        testing.check_model("model.onnx", x)

Everything here raises a plain AssertionError with a sentence in it, and returns a :class:`Report` that says what was
checked and what was not. Nothing needs pytest.
"""

from fgcam_onnx.testing.case import STYLES, Case, Operand, X
from fgcam_onnx.testing.compare import Floats, Report, Row, close, flatten
from fgcam_onnx.testing.derivative import check_gradient, numeric_gradient, off_the_kinks
from fgcam_onnx.testing.invariants import (
    check_batch,
    check_conservation,
    check_contraction,
    check_dead_inputs,
    check_denormals,
    check_linearity,
    check_parts,
    check_rows,
    check_shortcuts,
    check_sign,
    check_zeros,
)
from fgcam_onnx.testing.matrix import Answer, Replica, check_adjoint, check_replica, dense
from fgcam_onnx.testing.model import check_model
from fgcam_onnx.testing.operator import UNBOUNDED, check_case, check_invariants, check_operator
from fgcam_onnx.testing.parity import check_backends, check_forward
from fgcam_onnx.testing.run import Result, rule, rules, run

__all__ = [
    "STYLES",
    "UNBOUNDED",
    "Answer",
    "Case",
    "Floats",
    "Operand",
    "Replica",
    "Report",
    "Result",
    "Row",
    "X",
    "check_adjoint",
    "check_backends",
    "check_batch",
    "check_case",
    "check_conservation",
    "check_contraction",
    "check_dead_inputs",
    "check_denormals",
    "check_forward",
    "check_gradient",
    "check_invariants",
    "check_linearity",
    "check_model",
    "check_operator",
    "check_parts",
    "check_replica",
    "check_rows",
    "check_shortcuts",
    "check_sign",
    "check_zeros",
    "close",
    "dense",
    "flatten",
    "numeric_gradient",
    "off_the_kinks",
    "rule",
    "rules",
    "run",
]
