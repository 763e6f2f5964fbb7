"""Sign analysis: which tensors are provably >= 0.

Where the input of a layer cannot be negative, its rule needs no negative half: half the work of a z+ descent.
"Provably" means for every input of the network; anything not listed here may be negative.
"""

from __future__ import annotations

import numpy as np

from fgcam_onnx.graph.layer import SATURATE, Layer

__all__ = ["nonnegative_tensors"]

# Never negative, whatever comes in.
RANGE = {"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Abs", "Softmax", "Sqrt", "ReduceL1", "ReduceL2"}
RANGE |= {"ReduceSumSquare"}
# Not negative if no operand is.
KEEPS = {"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum"}
KEEPS |= {"ReduceMax", "ReduceMin", "Identity", "Dropout", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze"}
KEEPS |= {"Unsqueeze", "Concat", "Split", "Slice", "Gather", "GatherND", "Expand", "Tile", "Add", "Sum", "Mul", "Div"}
KEEPS |= {"SpaceToDepth", "DepthToSpace", "LRN", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish", "Swish"}
KEEPS |= {"Gelu", "Mish", "Tanh", "Erf", "Min"}


def nonnegative_tensors(layers: tuple[Layer, ...]) -> set[str]:
    """Names of the tensors that are >= 0 for every input."""
    found: set[str] = set()
    for layer in layers:
        if _is_nonnegative(layer, found):
            found.update(name for name in layer.outputs if name)
    return found


def _is_nonnegative(layer: Layer, found: set[str]) -> bool:
    def known(position: int) -> bool:
        value = layer.constant(position)
        return bool(np.all(value >= 0)) if value is not None else layer.inputs[position] in found

    data = [i for i, name in enumerate(layer.inputs) if name]
    if layer.op in RANGE:
        # A negative slope or offset would break HardSigmoid's range only through its outer clip at 0: it does not.
        return True
    if layer.op == SATURATE:
        return bool(layer.attributes["low"] >= 0) or known(0)
    if layer.op == "Clip":
        low, high = _bounds(layer)
        return high >= 0 and (low >= 0 or known(0))  # the upper bound wins where it is below the lower one
    if layer.op == "ThresholdedRelu":
        return layer.attributes["alpha"] >= 0 or known(0)
    if layer.op == "Max":
        return any(known(i) for i in data)
    if layer.op == "Pad":
        fill = layer.attributes.get("value", 0.0) if layer.version < 11 else layer.constant(2)
        unknown = layer.version >= 11 and layer.given(2) and fill is None
        return known(0) and not unknown and bool(np.all(np.asarray(0.0 if fill is None else fill) >= 0))
    if layer.op in ("Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherND", "Expand", "Tile", "Dropout",
                    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Split"):  # fmt: skip
        return known(0)  # the other operands are shapes, axes, indices
    if layer.op == "Resize":
        outside = layer.attributes.get("extrapolation_value", 0.0)
        return known(0) and layer.attributes.get("mode", "nearest") != "cubic" and outside >= 0
    if layer.op == "Pow":
        exponent = layer.constant(1)
        return known(0) or (exponent is not None and bool(np.all(exponent % 2 == 0)))
    if layer.op == "Selu" and layer.attributes["gamma"] < 0:
        return False
    return layer.op in KEEPS and all(known(i) for i in data)


def _bounds(layer: Layer) -> tuple[float, float]:
    """Clip's min and max; a bound that is computed in the graph may be anything."""
    if layer.version < 11:
        return float(layer.attributes.get("min", -np.inf)), float(layer.attributes.get("max", np.inf))
    low, high = layer.constant(1), layer.constant(2)
    unknown_high = high is None and layer.given(2)
    return (
        -np.inf if low is None else float(low.ravel()[0]),
        -np.inf if unknown_high else np.inf if high is None else float(high.ravel()[0]),
    )
